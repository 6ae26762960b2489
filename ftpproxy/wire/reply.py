"""Replies, single and multi-line (RFC 959 section 4.2), one line at a time.

    single = DDD SP text CRLF                  bare "DDD" is tolerated and mended
    multi  = DDD "-" text CRLF  *(any line CRLF)  DDD SP text CRLF     the same DDD

Most replies are passed on line by line, since a STAT listing may be megabytes; the reader therefore judges single
lines and remembers only the code of the reply that is open.

Two things are mended on the way, both because clients and servers disagree on where a line or a reply ends:
CR and NUL inside a line become blanks, and an inner line that looks like the last line of *another* reply gets
a leading blank (RFC 959 section 4.2 asks the server to do that; curl, Squid and lftp end a reply at any
such line, and a forged reply inside a listing must stay text).
"""

from __future__ import annotations

import re
from typing import NamedTuple

from attrs import define, field

__all__ = ["NotAReply", "ReplyLine", "ReplyReader", "mended", "reply"]

_LOOKS_LAST = re.compile(rb"[0-9]{3}(?: |\Z)")
_CONTROLS = bytes.maketrans(b"\r\0", b"  ")


class NotAReply(Exception):
    """The first line of a reply does not begin with a reply code."""


class ReplyLine(NamedTuple):
    code: int
    """Of the reply that the line belongs to."""
    text: bytes
    """What stands behind the code and its separator; for an inner line the whole line."""
    line: bytes
    """The whole line, mended, without line end."""
    last: bool


@define(eq=False)
class ReplyReader:
    """Tells for each line of the server which reply it belongs to and whether it ends it."""

    _open: bytes = field(init=False, default=b"")

    @property
    def inside(self) -> bool:
        """Whether a multi-line reply is open."""
        return bool(self._open)

    def read(self, line: bytes) -> ReplyLine:
        """Judge one line.  Raises `NotAReply`, after which the reader is as before."""
        line = mended(line)
        if not self._open:
            code, separator = line[:3], line[3:4]
            if len(code) < 3 or not code.isdigit() or not b"1" <= code < b"7" or separator not in (b" ", b"-", b""):
                raise NotAReply(line[:80].decode("ascii", "backslashreplace"))
            if separator == b"-":
                self._open = code
                return ReplyLine(int(code), line[4:], line, False)
            return ReplyLine(int(code), line[4:], line if separator else code + b" ", True)
        code = self._open
        if line.startswith(code) and (len(line) == 3 or line[3:4] == b" "):
            self._open = b""
            return ReplyLine(int(code), line[4:], line if len(line) > 3 else code + b" ", True)
        if _LOOKS_LAST.match(line):
            line = b" " + line
        return ReplyLine(int(code), line, line, False)


def mended(line: bytes) -> bytes:
    """A line in which nothing ends a line: CR and NUL are blanks."""
    return line.translate(_CONTROLS) if b"\r" in line or b"\0" in line else line


def reply(code: int, text: str) -> bytes:
    """A reply of the proxy's own, with its line end.  7-bit ASCII only (RFC 2640 section 2.2)."""
    return b"%d %s\r\n" % (code, text.encode("ascii"))
