"""The PROXY protocol, versions 1 and 2: who called, told by the load balancer that took the call.

    v1   PROXY TCP4|TCP6 source destination sport dport CRLF        at most 107 octets
         PROXY UNKNOWN anything CRLF
    v2   0D0A0D0A000D0A515549540A  21  11|21|...  length  addresses  TLVs
         (signature)               version and command (20 LOCAL, 21 PROXY), family, 2 octets, ...

The header stands before everything else that the connection carries, and what follows belongs to somebody else.
`HeaderReader` is therefore shown octets and says how many of them are the header's: whoever reads the socket peeks,
shows, and takes exactly that many.  TLVs are counted and not looked at.

Source: "The PROXY protocol, versions 1 & 2" (haproxy, doc/proxy-protocol.txt), sections 2.1 and 2.2.
"""

from __future__ import annotations

import re
import struct
from ipaddress import IPv4Address, IPv6Address
from typing import Literal

from attrs import define, field, frozen

from ..endpoints import Endpoint, parse_address

__all__ = ["LONGEST_V1", "SIGNATURE", "BadHeader", "HeaderReader", "ProxyHeader", "build"]

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
LONGEST_V1 = 107
"""Octets with the line end: "worst case" of section 2.1."""

_FIXED = 16
"""Octets of version 2 before the addresses."""
_LOCAL, _PROXY = 0x20, 0x21
_TCP4, _TCP6 = 0x11, 0x21
_NO_ENDPOINTS = frozenset({0x00, 0x31})
"""Families without addresses of ours: unspecified, and a Unix stream socket."""
_ADDRESSES = {_TCP4: 12, _TCP6: 36}

_V1 = re.compile(rb"PROXY (TCP[46]) ([^ ]+) ([^ ]+) (0|[1-9][0-9]{0,4}) (0|[1-9][0-9]{0,4})\r\n")


class BadHeader(ValueError):
    """What stands where a header must stand is none."""


@frozen
class ProxyHeader:
    """What a balancer says of a connection; None where it has nothing to say (LOCAL, UNKNOWN): take the socket's."""

    source: Endpoint | None = None
    """Who called."""
    destination: Endpoint | None = None
    """Whom it called."""


@define(eq=False)
class HeaderReader:
    """Finds the end of a header and what it says.  After `BadHeader` it is of no further use."""

    header: ProxyHeader | None = field(init=False, default=None)
    """Set as soon as the last octet was taken."""
    _held: bytearray = field(init=False, factory=bytearray)
    _length: int = field(init=False, default=0)
    """Octets that have been taken, also those that were not worth holding."""

    def take(self, octets: bytes) -> int:
        """How many of `octets`, which follow what was taken before, belong to the header.

        All of them as long as `header` is None; none once it is set.  Raises `BadHeader` as soon as it is certain.
        """
        taken = 0
        while self.header is None and taken < len(octets):
            piece = octets[taken : taken + self._certain()]
            taken += len(piece)
            self._length += len(piece)
            if self._length <= _FIXED + 36 or not self._is_v2():  # the rest of version 2 is TLVs
                self._held += piece
            self._judge()
        return taken

    def _is_v2(self) -> bool:
        return self._held.startswith(SIGNATURE)

    def _certain(self) -> int:
        """How many more octets belong to the header whatever they are."""
        if not self._is_v2():
            # Version 1 has no length: octet by octet up to LF, but the shortest ("PROXY UNKNOWN" CR LF) has 15.
            return max(1, len(SIGNATURE) - self._length)
        if self._length < _FIXED:
            return _FIXED - self._length
        whole = self._whole()
        return min(_FIXED + 36, whole) - self._length if self._length < _FIXED + 36 < whole else whole - self._length

    def _whole(self) -> int:
        """Octets of a version 2 header, addresses and TLVs included."""
        return _FIXED + int.from_bytes(self._held[14:16], "big")

    def _judge(self) -> None:
        held = self._held
        if self._is_v2():
            if self._length >= _FIXED:
                _check_v2(held)
                if self._length == self._whole():
                    self.header = _v2(held)
        elif len(held) <= len(SIGNATURE) and SIGNATURE.startswith(held):
            return
        elif not b"PROXY ".startswith(held[:6]):
            raise BadHeader("it does not begin with a PROXY header")
        elif held.endswith(b"\n"):
            self.header = _v1(bytes(held))
        elif len(held) >= LONGEST_V1:
            raise BadHeader("a PROXY line that does not end")


def _v1(line: bytes) -> ProxyHeader:
    if line.startswith(b"PROXY UNKNOWN") and line.endswith(b"\r\n") and line[13:14] in (b" ", b"\r"):
        return ProxyHeader()
    match = _V1.fullmatch(line)
    if match is None:
        raise BadHeader("a malformed PROXY line")
    word, *texts = (each.decode("latin-1") for each in match.groups())
    kind = IPv4Address if word == "TCP4" else IPv6Address
    try:
        hosts = [kind(text) for text in texts[:2]]
    except ValueError:
        raise BadHeader(f"a PROXY line with an address that is not {word}") from None
    ports = [int(text) for text in texts[2:]]
    if max(ports) > 65535 or any("%" in text for text in texts[:2]):
        raise BadHeader("a PROXY line with an impossible address")
    return _header(str(hosts[0]), ports[0], str(hosts[1]), ports[1])


def _check_v2(held: bytearray) -> None:
    command, family, length = held[12], held[13], int.from_bytes(held[14:16], "big")
    if command not in (_LOCAL, _PROXY):
        raise BadHeader(f"a PROXY header of unknown version or command 0x{command:02x}")
    if command == _PROXY and family not in _NO_ENDPOINTS:
        if family not in _ADDRESSES:
            raise BadHeader(f"a PROXY header of family 0x{family:02x}, which is no TCP")
        if length < _ADDRESSES[family]:
            raise BadHeader("a PROXY header too short for its addresses")


def _v2(held: bytearray) -> ProxyHeader:
    family = held[13]
    if held[12] == _LOCAL or family in _NO_ENDPOINTS:
        return ProxyHeader()
    size = 4 if family == _TCP4 else 16
    source, destination, sport, dport = struct.unpack_from(f"!{size}s{size}sHH", held, _FIXED)
    kind = IPv4Address if family == _TCP4 else IPv6Address
    return _header(str(kind(source)), sport, str(kind(destination)), dport)


def _header(source: str, sport: int, destination: str, dport: int) -> ProxyHeader:
    caller, called = Endpoint(parse_address(source), sport), Endpoint(parse_address(destination), dport)
    if caller.host.version != called.host.version:
        raise BadHeader("a PROXY header whose addresses are of two families")
    for host in (caller.host, called.host):
        if host.is_multicast or host.is_unspecified:
            raise BadHeader(f"a PROXY header with {host}, which is no host")
    return ProxyHeader(caller, called)


def build(version: Literal["v1", "v2"], source: Endpoint, destination: Endpoint) -> bytes:
    """The header that tells a server who called whom; UNKNOWN or unspecified where they are of two families."""
    versions = {source.host.version, destination.host.version}
    if version == "v1":
        if len(versions) > 1:
            return b"PROXY UNKNOWN\r\n"
        family = f"TCP{versions.pop()}"
        return f"PROXY {family} {source.host} {destination.host} {source.port} {destination.port}\r\n".encode("ascii")
    if len(versions) > 1:
        return SIGNATURE + bytes([_PROXY, 0, 0, 0])
    addresses = source.host.packed + destination.host.packed + struct.pack("!HH", source.port, destination.port)
    code = _TCP4 if source.host.version == 4 else _TCP6
    return SIGNATURE + bytes([_PROXY, code]) + struct.pack("!H", len(addresses)) + addresses
