"""The ledger of unanswered commands: the interesting state of a control connection.

A *turn* is one command and its reply.  Turns stand in the order in which the client sent its commands, and
replies leave in that order: also ours, which wait behind those that the server still owes.  With a single
"last command" variable instead of this queue, a pipelining client loses the rewrite of its 227.

Matching is by order: a final reply belongs to the oldest turn that the server owes.  The exceptions are RFC 959
section 5.4 and what servers do:

* a preliminary reply (1yz) ends no turn (of a dummy server it may, see `begins`);
* 200 for a transfer verb that has had no 1yz yet is noise of an old server and does not end it either;
* ABOR, STAT, NOOP and QUIT may be sent while a transfer runs (RFC 959 section 4.1.3).  They stand in a second queue,
  *out of band*, because their replies may come before or after the transfer's, and one may serve for two:

      the transfer runs, ABOR was sent     426, then 226 or 225    the transfer's, then ABOR's
                                           226 that says "abor"    both
                                           225                     ABOR's; the transfer's may never come
      STAT or NOOP was sent                200, 21x, 50x           theirs, whether before or after the 226
"""

from __future__ import annotations

from collections import deque

from attrs import define, field

from ..wire.command import Command
from .verbs import BARRIERS, Kind

__all__ = ["MOST_TURNS", "Ledger", "Turn"]

MOST_TURNS = 64
MOST_OCTETS = 64 * 1024
"""Unanswered commands, and octets of them; with more, the client is not read until the server has answered some."""

_OUT_OF_BAND_CODES = frozenset({200, 202, 211, 212, 213, 214, 221, 500, 501, 502, 503})
"""Replies that are no transfer's while something was sent out of band."""

_PRELIMINARY = frozenset({Kind.GREETING, Kind.RESET, Kind.TRANSFER, Kind.PASSIVE, Kind.ACTIVE})
"""What may be answered with 1yz first (RFC 959 section 5.4); the set-up commands because nobody else may end them."""


@define(eq=False)
class Turn:
    """One command and what became of it."""

    command: Command
    kind: Kind
    local: bytes = b""
    """Our own reply; the command was not forwarded."""
    preliminary: bool = field(init=False, default=False)
    """A 1yz was seen."""
    aborted: bool = field(init=False, default=False)
    """It is a transfer whose ABOR was answered."""

    def ended_by(self, code: int) -> bool:
        """Whether a complete reply with this code, which is not preliminary, ends the turn."""
        return not (code == 200 and self.kind is Kind.TRANSFER and not self.preliminary)


@define(eq=False)
class Ledger:
    """Turns in the client's order, and those out of band; the first is always one that the server owes."""

    _turns: deque[Turn] = field(init=False, factory=deque)
    _out_of_band: deque[Turn] = field(init=False, factory=deque)
    _octets: int = field(init=False, default=0)
    sent: int = field(init=False, default=0)
    """Commands that the server was sent, or we have answered."""
    quit: bool = field(init=False, default=False)
    """The client has said QUIT to the server."""

    def __len__(self) -> int:
        return len(self._turns) + len(self._out_of_band)

    def __bool__(self) -> bool:
        return bool(self._turns or self._out_of_band)

    @property
    def head(self) -> Turn | None:
        """The oldest turn in order that the server owes."""
        return self._turns[0] if self._turns else None

    @property
    def transfer(self) -> Turn | None:
        """The transfer under way: a barrier, so alone."""
        head = self.head
        return head if head is not None and head.kind is Kind.TRANSFER else None

    @property
    def aborted(self) -> Turn | None:
        """The transfer under way, if its ABOR was answered and it was not."""
        transfer = self.transfer
        return transfer if transfer is not None and transfer.aborted else None

    def abort_answered(self) -> bool:
        """ABOR was answered.  Whether a transfer has still to be."""
        if (transfer := self.transfer) is not None:
            transfer.aborted = True
        return transfer is not None

    @property
    def full(self) -> bool:
        """Whether no more may be forwarded."""
        return len(self) >= MOST_TURNS or self._octets >= MOST_OCTETS

    def admits(self, kind: Kind) -> bool:
        """Whether a command of this kind may be forwarded now, in order."""
        if not self:
            return True
        if kind in BARRIERS or self._out_of_band or self.full:
            return False
        last = self._turns[-1].kind
        return last not in BARRIERS and last is not Kind.GREETING

    def admits_out_of_band(self, kind: Kind, command: Command) -> bool:
        """Whether a command may overtake the transfer that runs.

        ABOR and QUIT at any time: the server may be waiting for a data connection that will not come.  STAT without an
        argument and NOOP once the server has said that it is transferring.
        """
        transfer = self.transfer
        if transfer is None or len(self._turns) > 1 or self.full:
            return False
        if kind in (Kind.ABORT, Kind.ENDING):
            return True
        return transfer.preliminary and (
            command.verb == b"NOOP" or (command.verb == b"STAT" and not command.argument.strip())
        )

    def add(self, turn: Turn) -> None:
        self._octets += len(turn.command.line)
        self.sent += 1
        self.quit |= turn.kind is Kind.ENDING
        self._turns.append(turn)

    def add_out_of_band(self, turn: Turn) -> None:
        self._octets += len(turn.command.line)
        self.sent += 1
        self.quit |= turn.kind is Kind.ENDING
        self._out_of_band.append(turn)

    def begins(self, *, lenient: bool) -> bool:
        """Whether a complete 1yz is preliminary, which is noted.  `lenient`: there are servers that answer any verb
        with 1yz and have no more to say; then it is so only where RFC 959 has it."""
        turn = self.head or next(iter(self._out_of_band), None)
        if turn is None or (lenient and turn.kind not in _PRELIMINARY):
            return False
        turn.preliminary = True
        return True

    def match(self, code: int, text: bytes) -> list[Turn]:
        """The turns that a complete final reply answers, in order; they still stand (see `end`)."""
        head, beside = self.head, self._out_of_band
        if head is None:
            return [beside[0]] if beside else []
        if beside and head.kind is Kind.TRANSFER:
            if code in _OUT_OF_BAND_CODES:
                return [beside[0]]
            aborts = [turn for turn in beside if turn.kind is Kind.ABORT]
            if code == 225 and aborts:
                return [aborts[0]]
            if code == 226 and aborts[:1] == [beside[0]] and b"abor" in text.lower():
                return [head, aborts[0]]
        return [head]

    def end(self, turn: Turn) -> list[bytes]:
        """A turn is answered.  Returns our own replies that waited right behind it."""
        self._octets -= len(turn.command.line)
        due: list[bytes] = []
        if self._out_of_band and turn in self._out_of_band:
            self._out_of_band.remove(turn)
            return due
        assert turn is self._turns[0]
        self._turns.popleft()
        while self._turns and self._turns[0].local:
            due.append(self._turns.popleft().local)
        return due

    def owes(self, kind: Kind) -> bool:
        """Whether a turn of this kind is unanswered."""
        for turn in self._turns:
            if turn.kind is kind:
                return True
        return any(turn.kind is kind for turn in self._out_of_band)
