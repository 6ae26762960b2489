"""What is thrown octets at: one target for each parser of `ftpproxy.wire`, and one for the interpreter.

A target takes octets and returns, or raises: whatever it raises is a fault of ours.  What a parser declares to raise is
caught here; what must hold of its result is asserted here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

from ftpproxy.endpoints import Endpoint
from ftpproxy.wire import feat, hostport
from ftpproxy.wire.command import parse_command
from ftpproxy.wire.lines import OVERLONG, LineBuffer, Overlong
from ftpproxy.wire.proxyheader import BadHeader, HeaderReader, ProxyHeader
from ftpproxy.wire.reply import NotAReply, ReplyReader
from ftpproxy.wire.telnet import TelnetFilter

from .ends import Ends

__all__ = ["TARGETS", "Target"]

Target = Callable[[bytes], None]
Result = TypeVar("Result")

LONGEST = 64

_TELNET = re.compile(rb"(?:\xff[\xfc\xfe].)*", re.DOTALL)
_LOOKS_LAST = re.compile(rb"[0-9]{3}(?: |\Z)")


def _pieces(data: bytes) -> tuple[list[bytes], bytes]:
    """The same octets twice: cut in pieces (of sizes that the first octet decides), and whole."""
    size = (data[0] % 16) + 1 if data else 1
    whole = data[1:]
    return [whole[start : start + size] for start in range(0, len(whole), size)], whole


def _lines(pieces: list[bytes]) -> list[bytes | Overlong]:
    buffer = LineBuffer(LONGEST)
    found: list[bytes | Overlong] = []
    for piece in pieces:
        buffer.feed(piece)
        while (line := buffer.next_line()) is not None:
            found.append(line)
        assert len(buffer) <= LONGEST + 1
    return found


def lines(data: bytes) -> None:
    pieces, whole = _pieces(data)
    found = _lines(pieces)
    assert found == _lines([whole])
    assert len(found) == whole.count(b"\n")
    assert all(line is OVERLONG or (isinstance(line, bytes) and b"\n" not in line) for line in found)


def command(data: bytes) -> None:
    for line in data.split(b"\n"):
        parsed = parse_command(line)
        assert parsed.verb == parsed.verb.upper()
        assert not re.search(rb"[ \t]", parsed.verb)
        assert parse_command(parsed.line) == parsed
        assert parsed.line.endswith(parsed.argument)
        assert isinstance(parsed.unclean, bool)


def reply(data: bytes) -> None:
    reader = ReplyReader()
    for line in data.split(b"\n"):
        inside = reader.inside
        try:
            judged = reader.read(line)
        except NotAReply:
            assert not inside
            assert not reader.inside
            continue
        assert 100 <= judged.code <= 699
        assert not re.search(rb"[\r\n\0]", judged.line)
        assert reader.inside is not judged.last
        assert bool(_LOOKS_LAST.match(judged.line)) is judged.last
        assert judged.line.endswith(judged.text)


def port(data: bytes) -> None:
    try:
        named = hostport.parse_port(data)
    except hostport.BadEndpoint:
        return
    _usable(named)
    assert hostport.parse_port(hostport.port(named)[5:-2]) == named


def eprt(data: bytes) -> None:
    try:
        named = hostport.parse_eprt(data)
    except (hostport.BadEndpoint, hostport.UnsupportedProtocol):
        return
    _usable(named)
    assert hostport.parse_eprt(hostport.eprt(named)[5:-2]) == named


def passive(data: bytes) -> None:
    if (named := hostport.parse_227(data)) is not None:
        _usable(named)
        assert hostport.parse_227(hostport.passive_reply(named, extended=False)[4:-2]) == named


def extended_passive(data: bytes) -> None:
    if (named := hostport.parse_229(data)) is not None:
        assert 1 <= named[1] <= 65535


def _usable(named: Endpoint) -> None:
    assert 1 <= named.port <= 65535


def telnet(data: bytes) -> None:
    pieces, whole = _pieces(data)
    one, many = TelnetFilter(), TelnetFilter()
    expected = one.feed(whole)
    got = [many.feed(piece) for piece in pieces]
    assert (b"".join(octets for octets, _ in got), b"".join(answer for _, answer in got)) == expected
    octets, answer = expected
    assert _TELNET.fullmatch(answer)
    assert len(octets) <= len(whole)
    assert len(answer) <= len(whole)


def features(data: bytes) -> None:
    said, _, rest = data.partition(b"\0")
    hidden = {word.upper() for word in rest.split()}
    shown = feat.filtered(said.split(b"\n"), hidden, [b"EPSV"])
    for line in shown[1:-1]:
        assert line.startswith(b" ")
        assert not line.startswith(b"  ")
    again = feat.filtered(shown, hidden, [b"EPSV"])
    assert again == shown


def proxy_header(data: bytes) -> None:
    pieces, whole = _pieces(data)
    assert _header(pieces) == _header([whole])


def _header(pieces: list[bytes]) -> tuple[ProxyHeader, int] | None:
    """What it says and how long it is; None for no header, and for none yet: how early that is seen depends."""
    reader = HeaderReader()
    taken = 0
    try:
        for piece in pieces:
            taken += reader.take(piece)
    except BadHeader:
        return None
    return (reader.header, taken) if reader.header is not None else None


def interpreter(data: bytes) -> None:
    Ends().feed(data)


TARGETS: dict[str, Target] = {
    "interpreter": interpreter,
    "lines": lines,
    "command": command,
    "reply": reply,
    "port": port,
    "eprt": eprt,
    "227": passive,
    "229": extended_passive,
    "telnet": telnet,
    "feat": features,
    "proxyheader": proxy_header,
}
