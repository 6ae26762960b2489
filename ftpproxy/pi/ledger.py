"""The ledger of unanswered commands: the interesting state of a control connection.

A *turn* is one command and its reply.  Turns stand in the order in which the client sent its commands, and
replies leave in that order: also ours, which wait behind those that the server still owes.  With a single
"last command" variable instead of this queue, a pipelining client loses the rewrite of its 227.

Matching is by order alone: a final reply belongs to the oldest turn that the server owes.  Two refinements
(RFC 959 section 5.4 and what servers do):

* a preliminary reply (1yz) does not end a turn;
* 200 for a transfer verb that has had no 1yz yet is noise of an old server and does not end it either.
"""

from __future__ import annotations

from collections import deque

from ..wire.command import Command
from .verbs import BARRIERS, Kind

__all__ = ["MOST_TURNS", "Ledger", "Turn"]

MOST_TURNS = 64
"""Unanswered commands; with more, the client is not read until the server has answered some."""


class Turn:
    """One command and what became of it."""

    __slots__ = ("command", "kind", "local", "preliminary")

    def __init__(self, command: Command, kind: Kind, local: bytes = b"") -> None:
        self.command = command
        self.kind = kind
        self.local = local
        """Our own reply; the command was not forwarded."""
        self.preliminary = False
        """A 1yz was seen."""

    def ended_by(self, code: int) -> bool:
        """Whether a complete reply with this code ends the turn."""
        if code < 200:
            return False
        return not (code == 200 and self.kind is Kind.TRANSFER and not self.preliminary)


class Ledger:
    """Turns in the client's order; the first is always one that the server owes."""

    __slots__ = ("_turns",)

    def __init__(self) -> None:
        self._turns: deque[Turn] = deque()

    def __len__(self) -> int:
        return len(self._turns)

    @property
    def head(self) -> Turn | None:
        """The turn that the server's next reply belongs to."""
        return self._turns[0] if self._turns else None

    @property
    def full(self) -> bool:
        return len(self._turns) >= MOST_TURNS

    def admits(self, kind: Kind) -> bool:
        """Whether a command of this kind may be forwarded now."""
        if not self._turns:
            return True
        if kind in BARRIERS or self.full:
            return False
        last = self._turns[-1].kind
        return last not in BARRIERS and last is not Kind.GREETING

    def add(self, turn: Turn) -> None:
        self._turns.append(turn)

    def end_head(self) -> list[bytes]:
        """The server has answered the head.  Returns our own replies that waited right behind it."""
        self._turns.popleft()
        due = []
        while self._turns and self._turns[0].local:
            due.append(self._turns.popleft().local)
        return due

    def owes(self, kind: Kind) -> bool:
        """Whether a turn of this kind is unanswered."""
        return any(turn.kind is kind for turn in self._turns)
