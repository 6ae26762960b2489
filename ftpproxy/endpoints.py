"""Where something can be reached: an address and a port, and the two sides of a proxied connection.

Floor 0: pure vocabulary.  Addresses are `ipaddress` objects and never text, so a comparison is a comparison
of addresses; IPv4-mapped IPv6 addresses (RFC 4291 section 2.5.5.2) become the IPv4 address they stand for,
because a dual-stack listener reports an IPv4 client that way and PORT must be compared with the same words.
"""

from __future__ import annotations

from enum import Enum
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, NamedTuple

__all__ = ["ANY_PORT", "Endpoint", "IPAddress", "Side", "parse_address", "unspecified"]

IPAddress = IPv4Address | IPv6Address

ANY_PORT = 0
"""The port that means "choose one"."""


class Side(Enum):
    """The two neighbours of the proxy on a control or data connection."""

    CLIENT = "client"
    SERVER = "server"

    # Members are singletons and keys on the hot path; Enum's own hash is a Python function over the name.
    __hash__ = object.__hash__

    @property
    def peer(self) -> Side:
        return Side.SERVER if self is Side.CLIENT else Side.CLIENT

    def __str__(self) -> str:
        return self.value


@lru_cache(maxsize=4096)
def parse_address(text: str) -> IPAddress:
    """`text` as an address, IPv4-mapped addresses as IPv4.  Raises `ValueError` for anything else than an address."""
    address = ip_address(text)
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def unspecified(like: IPAddress) -> IPAddress:
    """The unspecified address (0.0.0.0, ::) of the family of `like`."""
    return IPv4Address(0) if like.version == 4 else IPv6Address(0)


class Endpoint(NamedTuple):
    """An address and a TCP port, 0 to 65535; port 0 means "any"."""

    host: IPAddress
    port: int

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """`"192.0.2.1:21"` or `"[2001:db8::1]:21"`.  Raises `ValueError` with a sentence that says what is wrong."""
        host, colon, port = text.rpartition(":")
        if not colon or not host:
            raise ValueError(f"{text!r} is not ADDRESS:PORT")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            raise ValueError(f"{text!r}: an IPv6 address before a port stands in brackets, as in [::1]:21")
        if not (port.isascii() and port.isdigit() and int(port) <= 65535):
            raise ValueError(f"{text!r}: {port!r} is not a port from 0 to 65535")
        try:
            return cls(parse_address(host), int(port))
        except ValueError:
            raise ValueError(f"{text!r}: {host!r} is not an IP address") from None

    @classmethod
    def from_sockaddr(cls, sockaddr: Any) -> Endpoint:
        """The endpoint in what `getsockname`, `getpeername` and `accept` return for AF_INET and AF_INET6."""
        host, port = sockaddr[:2]
        return cls(parse_address(host), port)

    def sockaddr(self) -> tuple[str, int]:
        """What `bind` and `connect` take."""
        return (str(self.host), self.port)

    def at(self, port: int) -> Endpoint:
        """The same host with another port."""
        return Endpoint(self.host, port)

    def __str__(self) -> str:
        return f"{self.host}:{self.port}" if self.host.version == 4 else f"[{self.host}]:{self.port}"
