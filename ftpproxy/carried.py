"""One data connection of a session, and what the log says of it."""

from __future__ import annotations

from attrs import define, field

from .dtp.plane import Path
from .endpoints import Side
from .paths import Direction, Tally

__all__ = ["Carried"]


@define
class Carried:
    """A path that is open, carries, or is on the way to its end."""

    path: Path
    plane: str
    what: bytes = b""
    """The transfer command, once it was sent."""
    direction: Direction | None = None
    up: set[Side] = field(factory=set)

    def missing(self) -> dict[str, object]:
        """Fields about a data connection that never came: the commonest fault of all, and mostly a firewall's."""
        missing = [side for side in Side if side not in self.up]
        awaited = [f"{side} at {self.path.announced[side]}" for side in missing if side in self.path.announced]
        return {
            "plane": self.plane,
            "what": self.what or None,
            "missing": " and ".join(map(str, missing)),
            "awaited": " and ".join(awaited) or None,
            "hint": "does a firewall let it in?" if awaited and self.what else None,
        }

    def account(self, tally: Tally) -> dict[str, object]:
        """Fields about a data connection that carried."""
        return {
            "what": self.what or None,
            "direction": self.direction,
            "plane": self.plane,
            "down": tally.octets_down,
            "up": tally.octets_up,
            "seconds": f"{tally.seconds:.3f}",
            "estimate": None if tally.exact else "yes",
            "failed": tally.failed,
            "reason": tally.reason or None,
        }
