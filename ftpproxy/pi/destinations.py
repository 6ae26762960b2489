"""Whom a client of the gateway mode may name: targets, and the list of destinations that are allowed.

Nothing is allowed that the list does not allow, or the proxy would carry anybody anywhere.  An entry is a network or a
pattern of host names, with ports (21 alone, unless it says more):

    198.51.100.0/24   [2001:db8::/32]:21   ftp.example.com:2121   *.example.com:21-2121   *

A name is allowed by a pattern, or because every address that is called for it lies in a network of the list.  A name
proves nothing about an address, since its owner may let it point anywhere (RFC 6303 zones, "DNS rebinding"): an
address that is not public is therefore called only where a network of such addresses is listed, so neither `*` nor
`0.0.0.0/0` opens the inside.  Addresses in forms that only inet_aton(3) knows (`127.1`, `0x7f000001`) are no names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import NamedTuple

from attrs import frozen

from ..endpoints import IPAddress, parse_address

__all__ = ["FTP_PORT", "Destination", "Destinations", "Target", "parse_target"]

FTP_PORT = 21

_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME = re.compile(rf"(?=.{{1,253}}\Z)(?:{_LABEL}\.)*(?!(?:[0-9]+|0[xX][0-9A-Fa-f]*)\Z){_LABEL}\Z")
"""RFC 1123 section 2.1, and the underscore that is met in the field; the last label is no number."""
_TARGET = re.compile(
    r"(?:\[(?P<bracketed>[^]]+)\]|(?P<host>[^][: ]+)(?=[: ]|\Z)|(?P<bare>[^][ ]+)(?= |\Z))(?:[: ](?P<port>[0-9]{1,5}))?"
)
_PORTS = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")

_SPECIAL = [
    ip_network(text)
    for text in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
        *("192.0.0.0/24", "192.0.2.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24"),
        *("240.0.0.0/4", "::1/128", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "2001::/23", "2001:db8::/32"),
        *("2002::/16", "3fff::/20", "5f00::/16", "fc00::/7", "fe80::/10", "fec0::/10"),
    )
]
"""Not simply "some host on the Internet": the IANA special-purpose registries (RFC 6890), and the ranges that carry
IPv4 addresses within (6to4, NAT64), which may be anything."""


class Target(NamedTuple):
    """A server as a client names it."""

    host: str
    """A name in lower case or an address in canonical form."""
    port: int = FTP_PORT

    @property
    def address(self) -> IPAddress | None:
        """The address, if the client named one."""
        try:
            return parse_address(self.host)
        except ValueError:
            return None

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_target(octets: bytes) -> Target:
    """`h`, `h:port`, `h port`, with `h` a name, an IPv4 address, or an IPv6 address, in brackets if a colon follows.

    Raises `ValueError` for everything else.
    """
    match = _TARGET.fullmatch(octets.decode("ascii").strip(" "))
    if match is None:
        raise ValueError("neither a name nor an address")
    port = int(match["port"] or FTP_PORT)
    if not 1 <= port <= 65535:
        raise ValueError("not a port")
    try:
        address = parse_address(match["bracketed"] or match["host"] or match["bare"])
    except ValueError:
        name = (match["host"] or "").removesuffix(".")
        if not _NAME.match(name):
            raise ValueError("not a host") from None
        return Target(name.lower(), port)
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        raise ValueError("an address with a zone")
    return Target(str(address), port)


def _public(address: IPAddress) -> bool:
    return not any(address in network for network in _SPECIAL)


@frozen
class Destination:
    """One entry: a network or a pattern, and the ports."""

    where: IPv4Network | IPv6Network | str
    first: int = FTP_PORT
    last: int = FTP_PORT

    @classmethod
    def parse(cls, text: str) -> Destination:
        """Raises `ValueError` with a sentence that says what is wrong."""
        host, colon, ports = text, "", ""
        if text.startswith("["):
            host, bracket, ports = text[1:].partition("]")
            if not bracket or (ports and not ports.startswith(":")):
                raise ValueError(f"{text!r} is not [NETWORK] or [NETWORK]:PORTS")
            colon, ports = ports[:1], ports[1:]
        elif text.count(":") == 1:
            host, colon, ports = text.partition(":")
        first = last = FTP_PORT
        if colon:
            match = _PORTS.fullmatch(ports)
            first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
            if not 1 <= first <= last <= 65535:
                raise ValueError(f"{text!r}: {ports!r} is not a port or a range such as 21-2121")
        try:
            return cls(ip_network(host), first, last)
        except ValueError as error:
            if "host bits set" in str(error):
                raise ValueError(f"{text!r} has bits set behind its prefix length") from None
        name = host.removesuffix(".").lower()
        if text.startswith("[") or (name != "*" and not _NAME.match(name.removeprefix("*."))):
            raise ValueError(f"{text!r} is not a network, a host name or a pattern such as *.example.com")
        return cls(name, first, last)

    def names(self, target: Target) -> bool:
        """Whether this is a pattern that the target's name and port match."""
        if not isinstance(self.where, str) or not self.first <= target.port <= self.last:
            return False
        if self.where.startswith("*"):
            return target.host.endswith(self.where[1:])
        return target.host == self.where

    def holds(self, address: IPAddress, port: int) -> bool:
        """Whether this is a network that the address lies in, a special one for a special address."""
        network = self.where
        if isinstance(network, str) or not self.first <= port <= self.last or address not in network:
            return False
        return _public(address) or any(
            special.version == network.version and network.subnet_of(special)  # type: ignore[arg-type]
            for special in _SPECIAL
        )

    def __str__(self) -> str:
        host = f"[{self.where}]" if not isinstance(self.where, str) and self.where.version == 6 else str(self.where)
        if self.first == self.last == FTP_PORT:
            return host
        return f"{host}:{self.first}" if self.first == self.last else f"{host}:{self.first}-{self.last}"


@frozen
class Destinations:
    """The whole list; an empty one allows nothing."""

    entries: Sequence[Destination] = ()

    def admits(self, target: Target) -> bool:
        """Whether it is worth while to look the target up; `admits_address` decides for each address found."""
        if (address := target.address) is not None:
            return self.admits_address(target, address)
        return any(
            entry.names(target) or (not isinstance(entry.where, str) and entry.first <= target.port <= entry.last)
            for entry in self.entries
        )

    def admits_address(self, target: Target, address: IPAddress) -> bool:
        """Whether `address`, which the target is or was found to have, may be called."""
        if address.is_multicast or address.is_unspecified:
            return False
        if any(entry.holds(address, target.port) for entry in self.entries):
            return True
        named = target.address is None and any(entry.names(target) for entry in self.entries)
        return named and _public(address)
