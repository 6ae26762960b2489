"""One data connection of a session, and what the log says of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from attrs import define, field

from .dtp.plane import DataPlane, Foreseen, Opener, Path, Pending, Refused
from .endpoints import Endpoint, Side
from .freezing import GIVEN
from .lobby import Lobby, Waiting
from .paths import Await, Call, Direction, PathSpec, Tally
from .pi.actions import StartPath
from .reasons import Code, Reason, code_of

__all__ = ["Applicant", "Carried", "Opening"]

_UNSUITED = Reason(Code.PLANE_UNSUITED, "it does not carry such paths")


@define(eq=False)
class Carried:
    """A path that is open, carries, or is on the way to its end."""

    path: Path = field(metadata=GIVEN)
    plane: str
    spec: PathSpec = field(metadata=GIVEN)
    what: bytes = b""
    """The transfer command, once it was sent."""
    direction: Direction | None = None
    user: bytes = b""
    text: bool = True
    positive: bool | None = None
    """What the server said of the transfer; None for nothing yet."""
    tally: Tally | None = None
    """Once it has ended."""
    up: set[Side] = field(factory=set)
    opened_at: float = field(default=0.0, metadata=GIVEN)
    """On the board's clock."""

    def missing(self) -> dict[str, object]:
        """Fields about a data connection that never came: the commonest fault of all, and mostly a firewall's."""
        missing = [side for side in Side if side not in self.up]
        awaited = [f"{side} at {self.path.announced[side]}" for side in missing if side in self.path.announced]
        return {
            "plane": self.plane,
            "code": self.why_missing,
            "what": self.what or None,
            "missing": " and ".join(map(str, missing)),
            "awaited": " and ".join(awaited) or None,
            "hint": "does a firewall let it in?" if awaited and self.what else None,
        }

    @property
    def why_missing(self) -> Code:
        """Why it never came."""
        return Code.DATA_MISSING if self.what else Code.DATA_UNASKED

    @property
    def complete(self) -> bool:
        """The server said so, and both legs ended cleanly."""
        return bool(self.positive and self.tally is not None and self.tally.failed is None and not self.tally.reason)

    @property
    def code(self) -> Code | None:
        """Why it is not complete."""
        if self.tally is None or self.complete:
            return None
        if self.tally.reason or self.tally.failed is not None:
            code = code_of(self.tally.reason, Code.DATA_BROKEN)
            if code is not Code.DATA_CUT or self.positive is not False:
                return code  # else we cut what the server had refused
        if not self.what:
            return Code.DATA_UNASKED
        return Code.SERVER_UNANSWERED if self.positive is None else Code.SERVER_DENIED

    @property
    def settled(self) -> bool:
        """It has ended, and the server has said its word about the transfer, if there was one."""
        return self.tally is not None and (self.positive is not None or not self.what)

    @property
    def counted(self) -> bool:
        """The server has said its word, and the path would not tell by itself when it ends."""
        return self.positive is not None and not self.path.reports_end and self.path.counts_at_once

    def begin(self, action: StartPath) -> None:
        """The transfer command was sent."""
        self.what, self.direction, self.user, self.text = action.what, action.direction, action.user, action.text
        self.positive = None
        self.path.start(action.direction)

    def close(self) -> None:
        """Cut it, and take down what it had carried."""
        self.tally = self.path.close() or self.tally

    def account(self) -> dict[str, object]:
        """Fields about a data connection that carried."""
        tally = self.tally
        assert tally is not None
        return {
            "what": self.what or None,
            "direction": self.direction,
            "plane": self.plane,
            "down": tally.octets_down,
            "up": tally.octets_up,
            "result": "complete" if self.complete else "incomplete",
            "seconds": f"{tally.seconds:.3f}",
            "estimate": None if tally.exact else "yes",
            "code": self.code,
            "failed": tally.failed,
            "reason": tally.reason or None,
        }


class Opening:
    """A path that is being looked for: the planes are asked in their order, and waited for where they ask to be.  Where
    all ports are taken it waits in the `lobby`, and asks all of them again when one is free."""

    def __init__(
        self,
        planes: Sequence[DataPlane],
        spec: PathSpec,
        ours: Callable[[Endpoint], bool],
        lobby: Lobby | None = None,
        foreseen: Foreseen | None = None,
    ) -> None:
        """No plane is asked where a call would come back to us, which `ours` tells.  `foreseen` is what the first of
        them has prepared."""
        self.spec = spec
        self._foreseen = foreseen
        self.pending: Pending | None = None
        """What the last plane that was asked has still to decide."""
        self.refusals: list[tuple[str | None, str]] = []
        """The planes that do not carry it, each with its reason."""
        self._plane = ""
        self._planes = planes
        self._left = iter(planes)
        self._lobby = lobby
        self._waiting: Waiting | None = None
        if any(isinstance(leg, Call) and ours(leg.to) for leg in (spec.client, spec.server)):
            self._left = iter(())
            self.close()
            self.refusals.append((None, Reason(Code.LOOP, "the way leads back to this proxy")))

    @property
    def undecided(self) -> bool:
        """A plane has still to decide, or a port is waited for."""
        return self.pending is not None or self._waiting is not None

    def ask(self, owner: Applicant) -> Carried | None:
        """The path on the first plane that is left and carries it.  None: it is `undecided`, or no plane does."""
        for plane in self._left:
            self._plane = plane.name
            foreseen, self._foreseen = self._foreseen, None
            if foreseen is not None:
                answer = foreseen.open(self.spec, owner)
            else:
                answer = plane.open(self.spec, owner) if plane.carries(self.spec) else Refused(_UNSUITED)
            if isinstance(answer, Pending):
                self.pending = answer
                self._stop_waiting()
                return None
            if not isinstance(answer, Refused):
                self._stop_waiting()
                return Carried(answer, plane.name, self.spec)
            self.refusals.append((plane.name, answer.why))
        if all(code_of(why, Code.PLANE_FAILED) is not Code.PLANE_PORTS for _, why in self.refusals):
            self._stop_waiting()
        elif self._waiting is None and self._lobby is not None:
            awaited = [leg for leg in (self.spec.client, self.spec.server) if isinstance(leg, Await)]
            places = [(leg.at.host, leg.peer) for leg in awaited]
            self._waiting = self._lobby.wait(places, partial(self._again, owner), partial(self._in_vain, owner))
        return None

    def _again(self, owner: Applicant) -> bool:
        """A port is free, it is said: ask everybody once more.  Whether somebody has taken it for us."""
        self.refusals.clear()
        self._left = iter(self._planes)
        carried = self.ask(owner)
        if not self.undecided:
            owner.reconsidered(self, carried)
        return carried is not None or self.pending is not None

    def _in_vain(self, owner: Applicant) -> None:
        self._stop_waiting()
        owner.reconsidered(self, None)

    def _stop_waiting(self) -> None:
        """It waits no more, nor a second time."""
        if self._waiting is not None:
            self._waiting.close()
            self._waiting = self._lobby = None

    def opened(self, path: Path) -> Carried:
        """What was pending stands."""
        self.pending = None
        return Carried(path, self._plane, self.spec)

    def refused(self, why: str, owner: Applicant) -> Carried | None:
        """What was pending does not come; as `ask` for the other planes."""
        self.pending = None
        self.refusals.append((self._plane, why))
        return self.ask(owner)

    def close(self) -> None:
        """Nobody wants it any more."""
        if self._foreseen is not None:
            self._foreseen.close()
            self._foreseen = None
        if self.pending is not None:
            self.pending.close()
            self.pending = None
        self._stop_waiting()


class Applicant(Opener, Protocol):
    """Who looks for a path: also told what came of it where it had to wait for a port."""

    def reconsidered(self, opening: Opening, carried: Carried | None) -> None: ...
