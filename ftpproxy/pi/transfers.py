"""Transfers: the path that the next one will use, and its fate.

At most one path is open.  It is replaced by the next set-up command, survives a transfer that was refused without
a preliminary reply, and is settled by the final reply after one: from then on it goes to its own end, whatever comes
next.  In block mode it stays for the next file.

"Transfer complete" for a download is held back until the path has delivered everything, at most ten seconds: a client
should not read it before the octets.
"""

from __future__ import annotations

from attrs import define, field

from ..endpoints import Side
from ..freezing import GIVEN
from ..paths import Direction
from ..wire.command import Command
from .actions import Arm, DropPath, EndTransfer, SettlePath, StartPath, Timer
from .dialogue import Dialogue
from .ledger import Turn
from .verbs import TRANSFERS, Kind

__all__ = ["Transfers"]

HOLD_SECONDS = 10.0
ABORT_SECONDS = 2.0
"""How long a transfer may be unanswered after its ABOR was."""
ABORTED_SECONDS = 5.0
"""How long the other answer to an abort may come late."""


@define
class _Path:
    """The one path that the next transfer will use."""

    reports_end: bool
    up: set[Side] = field(factory=set)
    concluded: bool = False
    """The server said 2yz before both legs were up; a client may still call."""
    delivered: bool = False
    finished: bool = False


@define(eq=False)
class Transfers:
    """The open path and the transfer that uses it."""

    _dialogue: Dialogue = field(metadata=GIVEN)
    user: bytes = field(init=False, default=b"")
    text: bool = field(init=False, default=True)
    _block_mode: bool = field(init=False, default=False)
    """MODE B or C: one data connection may carry several files (RFC 959 section 3.4)."""
    _direction: Direction = field(init=False, default=Direction.DOWN)
    aborted: bool = field(init=False, default=False)
    """ABOR was answered a moment ago: a second answer may come late."""
    _path: _Path | None = field(init=False, default=None)
    held: list[bytes] | None = field(init=False, default=None)
    """The final reply of the transfer under way, which waits for the last octet of its download: nothing of the
    server's may overtake it."""

    @property
    def up(self) -> set[Side] | None:
        """The legs of the open path that are up; None without a path."""
        return self._path.up if self._path is not None else None

    # What the client and the server say

    def begin(self, command: Command) -> bool:
        """A transfer verb is about to be forwarded.  False if it has no data connection to go by: a server that tried
        its default port (RFC 959 section 3.2) would find us there, where nobody listens."""
        if self._path is None:
            return False
        self._direction = TRANSFERS[command.verb]
        self._dialogue.act(StartPath(self._direction, command.line, self.user, self.text))
        return True

    def answered(self, turn: Turn, positive: bool, lines: list[bytes]) -> None:
        """The server's final reply to a transfer, which is passed on now or when the last octet was delivered."""
        path = self._path
        self._dialogue.act(EndTransfer(positive))
        if (
            positive
            and path is not None
            and path.reports_end
            and not path.delivered
            and self._direction is Direction.DOWN
            and not self._block_mode
            and not self._dialogue.ledger.owes(Kind.ABORT)
        ):
            self.held = lines
            self._dialogue.act(Arm(Timer.HOLD, HOLD_SECONDS))
        else:
            self._end(turn, positive, lines)

    def abort_answered(self, turn: Turn, *, positive: bool = True) -> None:
        """The server's reply to ABOR."""
        if positive:
            self.aborted = True
            self._dialogue.act(Arm(Timer.ABORTED, ABORTED_SECONDS))
            if self._dialogue.ledger.abort_answered():
                self._dialogue.act(Arm(Timer.ABORT, ABORT_SECONDS))
            else:
                self.drop("aborted")
        self._dialogue.end(turn)

    def give_up(self) -> None:
        """The server has answered ABOR and not the transfer (pyftpdlib, when no data connection was made)."""
        if (transfer := self._dialogue.ledger.aborted) is not None and self.held is None:
            self._dialogue.act(EndTransfer(positive=False))
            self.drop("aborted")
            self._dialogue.end(transfer)

    def release(self) -> None:
        """Pass on what was held back."""
        if self.held is not None:
            turn, lines = self._dialogue.ledger.transfer, self.held
            assert turn is not None  # it is answered when this is passed on
            self.held = None
            self._end(turn, True, lines)

    def _end(self, turn: Turn, positive: bool, lines: list[bytes]) -> None:
        self._dialogue.pass_on(lines)
        self._conclude(turn, positive)
        self._dialogue.end(turn)

    def _conclude(self, turn: Turn, positive: bool) -> None:
        path = self._path
        if path is None or not (positive or turn.preliminary):
            return
        if path.finished:
            self._path = None
        elif len(path.up) == 2 or not path.reports_end:
            # Where the kernel carries nobody calls the server before the client does: there was a connection.
            if not self._block_mode:
                self._settle()
        elif positive:
            # We call the server early, so a short transfer may be over before the client has called.
            path.concluded = True
        else:
            self.drop("the transfer failed")

    def _settle(self) -> None:
        self._path = None
        self._dialogue.act(SettlePath())

    def drop(self, reason: str) -> None:
        """The open path is void."""
        if self._path is not None:
            self._path = None
            self._dialogue.act(DropPath(reason))

    def mode(self, argument: bytes) -> None:
        """The server has accepted MODE (RFC 959 section 3.4)."""
        self._block_mode = argument.strip().upper() in (b"B", b"C")

    def type(self, argument: bytes) -> None:
        """The server has accepted TYPE (RFC 959 section 3.1.1)."""
        self.text = argument.strip()[:1].upper() not in (b"I", b"L")

    def reset(self) -> None:
        """REIN: back to the beginning."""
        self._block_mode, self.text, self.user = False, True, b""
        self.drop("REIN")

    # What the path reports

    def opened(self, *, reports_end: bool) -> None:
        self._path = _Path(reports_end)

    def connected(self, side: Side) -> bool:
        """A leg is up.  False without a path."""
        path = self._path
        if path is None:
            return False
        path.up.add(side)
        if path.concluded and len(path.up) == 2 and self.held is None:
            self._settle()
        return True

    def delivered(self) -> None:
        """The client has been sent all, and its end."""
        if self._path is not None:
            self._path.delivered = True
            self.release()

    def finished(self) -> None:
        """Everything that will be delivered was delivered."""
        if self._path is not None:
            self._path.delivered = self._path.finished = True
            if self.held is not None:
                self.release()
            elif self._path.concluded or self._block_mode:
                self._path = None

    def failed(self) -> bool:
        """It never came up and never will.  False without a path."""
        if self._path is None:
            return False
        self._path = None
        self.release()
        return True

    def forget(self) -> None:
        """The path is gone already."""
        self._path = None
