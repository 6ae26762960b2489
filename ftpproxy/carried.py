"""One data connection of a session, and what the log says of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from attrs import define, field

from .dtp.plane import DataPlane, Path, PathOwner, Refused
from .endpoints import Endpoint, Side
from .paths import Call, Direction, PathSpec, Tally
from .pi.actions import StartPath
from .reasons import Code, Reason, code_of

__all__ = ["Carried", "open_path"]

_UNSUITED = Reason(Code.PLANE_UNSUITED, "it does not carry such paths")


@define
class Carried:
    """A path that is open, carries, or is on the way to its end."""

    path: Path
    plane: str
    spec: PathSpec
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
    opened_at: float = 0.0
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
        return self.positive is not None and not self.path.reports_end

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


def open_path(
    planes: Iterable[DataPlane], spec: PathSpec, owner: PathOwner, ours: Callable[[Endpoint], bool]
) -> tuple[Carried | None, list[tuple[str | None, str]]]:
    """The path on the first plane that carries it, or None; and the planes that did not, each with its reason.

    None of them may where a call would come back to us, which `ours` tells.
    """
    if any(isinstance(leg, Call) and ours(leg.to) for leg in (spec.client, spec.server)):
        return None, [(None, Reason(Code.LOOP, "the way leads back to this proxy"))]
    refusals: list[tuple[str | None, str]] = []
    for plane in planes:
        path = plane.open(spec, owner) if plane.carries(spec) else Refused(_UNSUITED)
        if not isinstance(path, Refused):
            return Carried(path, plane.name, spec), refusals
        refusals.append((plane.name, path.why))
    return None, refusals
