"""The lobby: where a session waits for a port to be free again.

Pending data connections of one caller to one address are at most as many as there are ports, for each port is told to
the same caller once (`doors`, `dtp.nft`).  One more is no mistake of the client's: somebody else behind the same
address calls within a moment, or has just been served.  So it waits, `PATIENCE` seconds and up to one more, and is
refused then.  Its session does nothing else meanwhile, and nobody else waits for it.

Who came first is asked first, and each in a turn of its own, because an attempt that fails looks at many ports.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from .endpoints import IPAddress
from .switchboard import Switchboard

__all__ = ["PATIENCE", "Lobby", "Place", "Waiting"]

PATIENCE = 2.0
"""Seconds."""

Place = tuple[IPAddress, IPAddress]
"""An address where ports are told, and the caller who is told them."""


class Waiting:
    """One who waits.  Made by `Lobby.wait`."""

    def __init__(
        self,
        lobby: Lobby,
        places: frozenset[Place],
        until: float,
        again: Callable[[], bool],
        in_vain: Callable[[], None],
    ) -> None:
        self.places = places
        self.until = until
        self.again = again
        self._in_vain = in_vain
        self._lobby = lobby

    def give_up(self) -> None:
        """It took too long."""
        self.close()
        self._in_vain()

    def close(self) -> None:
        """Wait no more; nothing is called.  Idempotent."""
        self._lobby.forget(self)


class Lobby:
    """All who wait, in the order of their coming."""

    def __init__(self, board: Switchboard) -> None:
        self._board = board
        self._waiting: dict[Waiting, None] = {}
        self._of_place: dict[Place, dict[Waiting, None]] = {}
        board.sweep(self._sweep, _crashed)

    def __len__(self) -> int:
        return len(self._waiting)

    def wait(self, places: Iterable[Place], again: Callable[[], bool], in_vain: Callable[[], None]) -> Waiting:
        """Call `again` whenever a port at one of `places` is free; it returns whether it took one, and closes what is
        returned here when it does not want any more.  Call `in_vain` if that takes too long."""
        waiting = Waiting(self, frozenset(places), self._board.now + PATIENCE, again, in_vain)
        self._waiting[waiting] = None
        for place in waiting.places:
            self._of_place.setdefault(place, {})[waiting] = None
        return waiting

    def forget(self, waiting: Waiting) -> None:
        """It waits no more; nothing happens where it did not."""
        if waiting in self._waiting:
            del self._waiting[waiting]
            for place in waiting.places:
                del self._of_place[place][waiting]
                if not self._of_place[place]:
                    del self._of_place[place]

    def freed(self, place: Place) -> None:
        """A port is free again there, or will be when this turn is over."""
        if self._waiting and place in self._of_place:
            self._offer(tuple(self._of_place[place]))

    def _offer(self, candidates: tuple[Waiting, ...]) -> None:
        if candidates:
            self._board.soon(partial(self._ask, candidates), partial(self._failed, candidates))

    def _ask(self, candidates: tuple[Waiting, ...], _: float) -> None:
        first = candidates[0]
        if not (first in self._waiting and first.again()):
            self._offer(candidates[1:])

    def _failed(self, candidates: tuple[Waiting, ...], _: Exception) -> None:
        candidates[0].give_up()
        self._offer(candidates[1:])

    def _sweep(self, now: float) -> None:
        late = [waiting for waiting in self._waiting if now >= waiting.until]
        for waiting in late:
            if waiting in self._waiting:
                self._board.guard(Waiting.give_up, waiting, _crashed)

    def close(self) -> None:
        """Nobody waits any more; nobody is told."""
        self._board.unsweep(self._sweep)
        self._waiting.clear()
        self._of_place.clear()


def _crashed(error: Exception) -> None:
    """It is in the log."""
