"""The dialogue: what was said and is still to be said on one control connection.

The ledger of unanswered turns, the octets that wait to be written to either side, and the actions that wait for the
session.  The interpreter (which reads lines) and the negotiation (which sets data connections up) both write
here, and only here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from attrs import define, field

from ..endpoints import Side
from ..wire.command import Command
from ..wire.reply import mended, reply
from .actions import Action, Chunk, Denied
from .collector import ENDPOINT_CODES
from .filter import Refusal
from .ledger import Ledger, Turn
from .masking import loggable
from .verbs import Kind

__all__ = ["NO_COMMAND", "Dialogue"]

NO_COMMAND = Command(b"", b"", b"")


@define(eq=False)
class Dialogue:
    """Replies leave in the order of the client's commands, ours included."""

    ledger: Ledger = field(init=False, factory=Ledger)
    actions: deque[Action] = field(init=False, factory=deque)
    client_out: list[Chunk] = field(init=False, factory=list)
    server_out: list[Chunk] = field(init=False, factory=list)

    def act(self, action: Action) -> None:
        self.actions.append(action)

    def forward(self, command: Command, kind: Kind, octets: bytes) -> None:
        """Send a command to the server, which owes a reply from now on."""
        self.ledger.add(Turn(command, kind))
        self.server_out.append(Chunk(octets))

    def say(self, code: int, text: str) -> None:
        """A reply of ours, now."""
        self.client_out.append(Chunk(reply(code, text)))

    def answer(self, code: int, text: str) -> None:
        """A reply of ours in its turn: behind all that the server still owes."""
        if self.ledger:
            self.ledger.add(Turn(NO_COMMAND, Kind.ORDINARY, reply(code, text)))
        else:
            self.say(code, text)

    def refuse(self, command: Command, refusal: Refusal, *, logged_in: bool = True) -> None:
        """Answer a command that is not to reach the server, and have it logged if a rule says so."""
        if refusal.rule:
            self.act(Denied(loggable(command.line, logged_in=logged_in), refusal.rule, refusal.by))
        self.answer(refusal.code, refusal.text)

    def pass_on(self, lines: Iterable[bytes]) -> None:
        """Lines of the server, with their line ends."""
        self.client_out += map(Chunk, lines)

    def pass_by(self, line: bytes) -> None:
        """A line of the server that answers nothing: no endpoint, and nothing that ends a line but its end."""
        if line[:3] not in map(b"%d".__mod__, ENDPOINT_CODES):
            self.pass_on([mended(line) + b"\r\n"])

    def end(self, turn: Turn) -> None:
        """A turn is answered; replies of ours that waited behind it are due."""
        self.client_out += map(Chunk, self.ledger.end(turn))

    def take_output(self, side: Side) -> list[Chunk]:
        """Octets for this side, in order; they are the caller's now."""
        if side is Side.CLIENT:
            chunks, self.client_out = self.client_out, []
        else:
            chunks, self.server_out = self.server_out, []
        return chunks
