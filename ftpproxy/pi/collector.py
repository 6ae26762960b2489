"""The collector: lines of the server become replies, or parts of replies that need not wait for their end.

Most replies are passed on line by line as they come, since a STAT listing may be megabytes.  Some are kept until
they are complete, because they may be replaced or held back: what answers a set-up command, FEAT or a transfer.
"""

from __future__ import annotations

from typing import NamedTuple

from attrs import define, field

from ..wire.reply import ReplyLine, ReplyReader
from .verbs import Kind

__all__ = ["ENDPOINT_CODES", "Part", "ReplyCollector", "ReplyTooLong"]

ENDPOINT_CODES = (227, 228, 229)
"""Replies that name an endpoint, whatever they answer."""
LONGEST_HELD_REPLY = 256 * 1024
"""Octets of a whole reply that may have to be replaced."""
LONGEST_HELD_TRANSFER_REPLY = 8 * 1024
"""Octets of a transfer's reply that is kept together; a longer one is passed on as it comes."""

_KEPT_TOGETHER = {
    Kind.PASSIVE: LONGEST_HELD_REPLY,
    Kind.ACTIVE: LONGEST_HELD_REPLY,
    Kind.FEATURES: LONGEST_HELD_REPLY,
    Kind.PROBE: LONGEST_HELD_REPLY,
    Kind.TRANSFER: LONGEST_HELD_TRANSFER_REPLY,
}
"""Replies that are kept until they are complete, and how many octets of them."""


class ReplyTooLong(Exception):
    """A reply that has to be kept together cannot be."""


class Part(NamedTuple):
    """Lines of a reply that are due, with their line ends."""

    lines: list[bytes]
    last: ReplyLine | None
    """The last line of the reply; None if more of it is to come."""


@define(eq=False)
class ReplyCollector:
    """Give lines, take parts of replies."""

    _reader: ReplyReader = field(init=False, factory=ReplyReader)
    _kind: Kind = field(init=False, default=Kind.ORDINARY)
    """What the reply that is open answers."""
    _kept: list[bytes] = field(init=False, factory=list)
    _octets: int = field(init=False, default=0)
    _streaming: bool = field(init=False, default=False)
    """The rest of the reply is passed on as it comes."""
    inside: bool = field(init=False, default=False)
    """A reply of several lines has begun and not ended."""

    def take(self, line: bytes, kind: Kind) -> Part:
        """What is due now that `line` has come, in answer to a command of `kind`.  Raises `NotAReply` for a line
        outside any reply, and `ReplyTooLong`."""
        judged = self._reader.read(line)
        begins, self.inside = not self.inside, not judged.last
        if begins:  # an endpoint is kept back whatever it answers, so that it need not be passed on
            self._kind = Kind.PASSIVE if judged.code in ENDPOINT_CODES else kind
        kind = self._kind
        octets = judged.line + b"\r\n"
        self._kept.append(octets)
        self._octets += len(octets)
        if judged.last:
            self._streaming = False
            return self._part(judged)
        if kind in _KEPT_TOGETHER and not self._streaming:
            if self._octets <= _KEPT_TOGETHER[kind]:
                return Part([], None)
            if kind is not Kind.TRANSFER:
                raise ReplyTooLong
            self._streaming = True
        return self._part(None)

    def _part(self, last: ReplyLine | None) -> Part:
        lines, self._kept, self._octets = self._kept, [], 0
        nobodys = self._kind is Kind.PROBE and last is not None and last.code != 421
        return Part([] if nobodys else lines, last)

    def __len__(self) -> int:
        """Octets that are kept."""
        return self._octets
