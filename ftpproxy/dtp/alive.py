"""The paths of a plane that are alive: what every plane keeps of them, however it carries.

A path is in from the end of `DataPlane.open` until it is over.  Once a second each is asked to look at its clocks,
behind the exception boundary of the switchboard, so that one that crashes ends by itself; each may end, and take others
with it, meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

from ..switchboard import Switchboard

__all__ = ["AlivePaths"]


class Swept(Protocol):
    """What is asked of a path."""

    def sweep(self, now: float) -> None:
        """Look at the clocks; `now` in seconds, on the board's clock."""

    def crashed(self, error: Exception) -> None:
        """Something in it went wrong: end."""

    def close(self) -> object:
        """End now."""


P = TypeVar("P", bound=Swept)


class AlivePaths(Generic[P]):
    """Paths in the order of their opening, swept once a second from here on."""

    def __init__(self, board: Switchboard) -> None:
        self.closed = False
        """No more come."""
        self._board = board
        self._paths: dict[P, None] = {}
        board.sweep(self._sweep, _sweep_crashed)

    def __len__(self) -> int:
        return len(self._paths)

    def __iter__(self) -> Iterator[P]:
        return iter(list(self._paths))

    def add(self, path: P) -> None:
        self._paths[path] = None

    def forget(self, path: P) -> None:
        """It is over; nothing happens if that was said before."""
        self._paths.pop(path, None)

    def close(self) -> None:
        """Close them all, and sweep no more.  Idempotent."""
        self.closed = True
        self._board.unsweep(self._sweep)
        for path in self:
            path.close()

    def _sweep(self, now: float) -> None:
        for path in self:
            if path in self._paths:
                self._board.guard(path.sweep, now, path.crashed)


def _sweep_crashed(error: Exception) -> None:
    """Nothing to end: each path is guarded by itself."""
