"""The four ways to write an endpoint: PORT and 227 (RFC 959), EPRT and 229 (RFC 2428).

Numbers are unsigned decimal, leading zeros allowed and still decimal; nothing wraps around (the kernel's
helper once read port 22 out of `PORT 10,0,1,2,256,22`).  What we *write* is the one canonical form that every
client and every packet-inspecting box on the way understands; what we *read* is as wild as servers are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address

from ..endpoints import Endpoint, IPAddress, parse_address

__all__ = [
    "BadEndpoint",
    "UnsupportedProtocol",
    "eprt",
    "parse_227",
    "parse_229",
    "parse_eprt",
    "parse_port",
    "passive_reply",
    "port",
    "port_of_227",
    "protocol_number",
]

_SIX = re.compile(rb"([0-9]{1,5}),([0-9]{1,5}),([0-9]{1,5}),([0-9]{1,5}),([0-9]{1,5}),([0-9]{1,5}) *")
_USUAL = re.compile(rb"[^0-9]*\(" + rb",".join([rb"([0-9]{1,3})"] * 6) + rb"\)")
"""Nothing that could be a run before these six, as most servers write it."""
_RUN = re.compile(rb"(?<![0-9.\-])[0-9]+(?:[ \t]*,[ \t]*[0-9]+)*")
_EXTENDED = re.compile(
    rb"\(([!-'*-/:-~])([0-9]*)\1([0-9A-Fa-f:.]*)\1([0-9]+)\1\)"  # the form of RFC 2428, any delimiter
    rb"|(\|)([0-9]*)\|([0-9A-Fa-f:.]*)\|([0-9]+)\|"  # without parentheses: only with the usual delimiter
)
_DELIMITERS = frozenset(range(33, 127)) - frozenset(b"0123456789()")


class BadEndpoint(ValueError):
    """The argument is not an endpoint: 501."""


class UnsupportedProtocol(ValueError):
    """An EPRT whose protocol number is neither 1 nor 2: 522."""


def protocol_number(host: IPAddress) -> int:
    """The address family number of RFC 2428 section 2."""
    return 1 if host.version == 4 else 2


def _six_octets(numbers: Sequence[bytes]) -> list[int] | None:
    """Six decimal numbers as octets; None if they are none, or the last two are not a port."""
    six = [int(number) for number in numbers]
    return six if max(six) <= 255 and (six[4] or six[5]) else None


def _endpoint(six: list[int]) -> Endpoint:
    return Endpoint(IPv4Address(bytes(six[:4])), six[4] << 8 | six[5])


def parse_port(argument: bytes) -> Endpoint:
    """`h1,h2,h3,h4,p1,p2`, the whole argument (RFC 959 section 4.1.2).  Raises `BadEndpoint`."""
    match = _SIX.fullmatch(argument)
    if match is None or (six := _six_octets(match.groups())) is None:
        raise BadEndpoint("PORT takes h1,h2,h3,h4,p1,p2 with numbers from 0 to 255 and a port above 0.")
    return _endpoint(six)


def parse_eprt(argument: bytes) -> Endpoint:
    """`|af|address|port|` with any delimiter (RFC 2428 section 2).  Raises `BadEndpoint`, `UnsupportedProtocol`."""
    argument = argument.rstrip(b" ")
    delimiter = argument[:1]
    fields = argument.split(delimiter) if delimiter and delimiter[0] in _DELIMITERS else []
    if len(fields) != 5 or fields[0] or fields[4]:
        raise BadEndpoint("EPRT takes |protocol|address|port|.")
    _, family, address, number, _ = fields
    if not family.isdigit():
        raise BadEndpoint("EPRT: the protocol is 1 or 2.")
    if family not in (b"1", b"2"):
        raise UnsupportedProtocol("EPRT: the protocol is 1 or 2.")
    if not (number.isdigit() and len(number) <= 9 and 1 <= int(number) <= 65535):
        raise BadEndpoint("EPRT: the port is a number from 1 to 65535.")
    kind = IPv4Address if family == b"1" else IPv6Address
    try:
        text = address.decode("ascii")
        if "%" in text:
            raise ValueError(text)
        kind(text)
    except ValueError:
        raise BadEndpoint(f"EPRT: the address is not one of protocol {family.decode()}.") from None
    return Endpoint(parse_address(text), int(number))


def parse_227(text: bytes) -> Endpoint | None:
    """The endpoint in the text of a 227: the first run of exactly six numbers, wherever it stands; else None."""
    six = _first_six(text)
    return _endpoint(six) if six is not None else None


def port_of_227(text: bytes) -> int | None:
    """The port of `parse_227`, for those who call another host anyway."""
    six = _first_six(text)
    return six[4] << 8 | six[5] if six is not None else None


def _first_six(text: bytes) -> list[int] | None:
    if (match := _USUAL.match(text)) is not None:
        return _six_octets(match.groups())
    for run in _RUN.finditer(text):
        numbers = run.group().split(b",")
        if len(numbers) == 6 and all(len(number) <= 32 for number in numbers):
            return _six_octets(numbers)
    return None


def parse_229(text: bytes) -> tuple[IPAddress | None, int] | None:
    """Address (to be ignored: it is the control connection's, RFC 2428 section 3) and port in a 229's text."""
    match = _EXTENDED.search(text)
    if match is None:
        return None
    _, _, address, number = match.groups()[:4] if match[1] else match.groups()[4:]
    if len(number) > 9 or not 1 <= int(number) <= 65535:
        return None
    try:
        return (parse_address(address.decode("ascii")) if address else None), int(number)
    except ValueError:
        return None, int(number)


def _commas(at: Endpoint) -> bytes:
    return b"%d,%d,%d,%d,%d,%d" % (*at.host.packed, at.port >> 8, at.port & 255)


def port(at: Endpoint) -> bytes:
    """`PORT h1,h2,h3,h4,p1,p2` with line end; `at` is IPv4."""
    return b"PORT " + _commas(at) + b"\r\n"


def eprt(at: Endpoint) -> bytes:
    """`EPRT |af|address|port|` with line end."""
    host = str(at.host).partition("%")[0]  # a zone means something on this machine only
    return b"EPRT |%d|%s|%d|\r\n" % (protocol_number(at.host), host.encode(), at.port)


def passive_reply(at: Endpoint, *, extended: bool) -> bytes:
    """The 227 or (`extended`) 229 that tells a client where to call, with line end.

    No digits before the tuple, parentheses, no trailing dot: kernel helpers take the first digit after "227 ",
    some clients insist on the parentheses, some boxes compare the English words.
    """
    if extended:
        return b"229 Entering Extended Passive Mode (|||%d|)\r\n" % at.port
    return b"227 Entering Passive Mode (" + _commas(at) + b")\r\n"
