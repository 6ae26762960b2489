"""Lines out of a stream: any cutting of the octets gives the same lines (RFC 1123 section 4.1.2.10).

A line ends at LF; one CR before it belongs to the line end.  A bare LF is accepted in both directions because
old clients and small servers send it; what leaves the proxy ends in CR LF always.

The buffer is bounded: a line that grows beyond `longest` is dropped up to its end and reported once as
`OVERLONG`, so nothing is ever silently cut short (a truncated argument would be another command).
"""

from __future__ import annotations

from enum import Enum
from typing import Final, Literal

from attrs import define, field

from ..freezing import GIVEN

__all__ = ["OVERLONG", "LineBuffer", "Overlong"]


class Overlong(Enum):
    OVERLONG = "overlong"


OVERLONG: Final = Overlong.OVERLONG


@define(eq=False)
class LineBuffer:
    """Feed octets, take lines."""

    longest: int = field(metadata=GIVEN)
    _held: bytearray = field(init=False, factory=bytearray)
    _searched: int = field(init=False, default=0)
    _dropping: bool = field(init=False, default=False)

    def feed(self, octets: bytes) -> None:
        self._held += octets

    def next_line(self) -> bytes | Literal[Overlong.OVERLONG] | None:
        """The next line without its line end, `OVERLONG` in its place if it was too long, None for "not yet"."""
        held = self._held
        if not held:
            return None
        end = held.find(b"\n", self._searched)
        if end < 0:
            if self._dropping or len(held) > self.longest + 1:  # + 1: the CR of a line that just fits
                self._dropping = True
                held.clear()
            self._searched = len(held)
            return None
        line = bytes(held[: end - 1 if held[end - 1 : end] == b"\r" else end])
        del held[: end + 1]
        self._searched = 0
        if self._dropping or len(line) > self.longest:
            self._dropping = False
            return OVERLONG
        return line

    def head(self, count: int) -> bytes:
        """The first `count` octets of what is buffered, or fewer."""
        return bytes(self._held[:count])

    @property
    def begun(self) -> bool:
        """Once `next_line` has said "not yet": whether a line has begun."""
        return bool(self._held) or self._dropping

    def take_rest(self) -> bytes:
        """Everything that is buffered, unread; the buffer is empty afterwards."""
        rest = bytes(self._held)
        self._held.clear()
        self._searched = 0
        return rest

    def __len__(self) -> int:
        return len(self._held)
