"""Signs of life: a NOOP of ours now and then, so that a server does not take a client that thinks for one that is gone.

It is said only where it can disturb nothing: somebody is logged in, no command waits for its reply, no data connection
is prepared or carries, and the server does not await the next command of a sequence (3yz: RNTO behind RNFR, RETR behind
REST; RFC 959 section 5.4).  A turn of the ledger like any other, its reply is matched in order, and is nobody's: the
client hears nothing of it, unless it is 421.  A server that does not know NOOP is not asked again.
"""

from __future__ import annotations

from attrs import define, field

from ..freezing import GIVEN
from .actions import Arm, Chunk, Timer
from .dialogue import NO_COMMAND, Dialogue
from .ledger import Turn
from .transfers import Transfers
from .verbs import Kind

__all__ = ["Liveness"]


@define(eq=False)
class Liveness:
    """When to say NOOP.  `interval` is in seconds; None: never."""

    _dialogue: Dialogue = field(metadata=GIVEN)
    _transfers: Transfers = field(metadata=GIVEN)
    _interval: float | None = field(metadata=GIVEN)
    amid: bool = field(init=False, default=False)
    """The server's last reply was 3yz."""
    _seen: int = field(init=False, default=0)
    """How many commands the server had been sent when the clock was started."""
    _refused: bool = field(init=False, default=False)

    def start(self) -> None:
        """Start the clock."""
        if self._interval is not None and not self._refused:
            self._seen = self._dialogue.ledger.sent
            self._dialogue.act(Arm(Timer.NOOP, self._interval))

    def due(self, *, open: bool) -> None:
        """The clock has run down.  `open`: there is a session in clear text, and not about to end."""
        ledger = self._dialogue.ledger
        idle = not ledger and ledger.sent == self._seen and not self.amid and self._transfers.up is None
        if open and idle and not self._refused:
            self._dialogue.server_out.append(Chunk(b"NOOP\r\n"))
            ledger.add(Turn(NO_COMMAND, Kind.PROBE))
        self.start()

    def answered(self, turn: Turn, code: int) -> None:
        """The server's complete reply to our NOOP."""
        self._refused = self._refused or code >= 500
        self._dialogue.end(turn)
