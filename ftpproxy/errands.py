"""Errands: what blocks (a name to be looked up, a password to be checked) is done in a thread and comes back.

The switchboard's callbacks never wait, so they hand such work over and are called back once, in a later turn of the
board and in its own task.  Everything is bounded: threads at a time, errands that wait for one, and seconds; a peer
can make us slow to answer others of its kind, and nothing else.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Generic, TypeVar

import trio

from .switchboard import Switchboard

__all__ = ["Errand", "Errands"]

AT_ONCE = 8
MOST_WAITING = 256
SECONDS = 15.0
"""glibc's resolver gives up on a silent server after 10 s (resolv.conf(5): timeout 5 s, 2 attempts)."""

log = logging.getLogger(__name__)

T = TypeVar("T")


class Errand(Generic[T]):
    """One piece of work on its way.  `close`, and nobody will hear of it again."""

    __slots__ = ("_board", "_done", "_on_crash", "_work", "over")

    def __init__(
        self,
        board: Switchboard,
        work: Callable[[], T],
        done: Callable[[T | None], None],
        on_crash: Callable[[Exception], None],
    ) -> None:
        self._board = board
        self._work = work
        self._done = done
        self._on_crash = on_crash
        self.over = False

    def do(self) -> T | None:
        """The work, in its thread; nothing if nobody waits for it any more."""
        return None if self.over else self._work()

    def finish(self, result: T | None) -> None:
        """Call back in a later turn."""

        def come_back(_: float) -> None:
            if not self.over:
                self.over = True
                self._done(result)

        self._board.soon(come_back, self._on_crash)

    def crash(self, error: Exception) -> None:
        """The work itself broke: that ends whom it was done for."""

        def come_back(_: float) -> None:
            if not self.over:
                self.over = True
                raise error

        self._board.soon(come_back, self._on_crash)

    def sweep(self, _: float) -> None:
        """Its seconds are counted where the work is done."""

    def close(self) -> None:
        self.over = True


class Errands:
    """All errands of a process.  `run` is the task; `send` is called from the board's callbacks."""

    def __init__(self, board: Switchboard, *, at_once: int = AT_ONCE, seconds: float = SECONDS) -> None:
        self._board = board
        self._seconds = seconds
        self._at_once = at_once
        self._outbox, self._inbox = trio.open_memory_channel[Errand](MOST_WAITING)  # type: ignore[type-arg]

    def send(
        self, work: Callable[[], T], done: Callable[[T | None], None], on_crash: Callable[[Exception], None]
    ) -> Errand[T]:
        """Do `work` in a thread, then call `done` with what it returned, or with None if there are too many errands
        or it took too long.  `done` comes once, later, and never after `Errand.close`."""
        errand = Errand(self._board, work, done, on_crash)
        try:
            self._outbox.send_nowait(errand)
        except trio.WouldBlock:
            errand.finish(None)
        return errand

    async def run(self) -> None:
        """Do what is sent, until cancelled."""
        threads = trio.CapacityLimiter(self._at_once)
        async with trio.open_nursery() as nursery:
            async for errand in self._inbox:
                if len(nursery.child_tasks) >= MOST_WAITING:
                    errand.finish(None)
                else:
                    nursery.start_soon(self._do, errand, threads)

    async def _do(self, errand: Errand[T], threads: trio.CapacityLimiter) -> None:
        result: T | None = None
        try:
            with trio.move_on_after(self._seconds):
                # A thread that is given up keeps its place until it has ended: there are never more than so many.
                result = await trio.to_thread.run_sync(errand.do, abandon_on_cancel=True, limiter=threads)
        except Exception as error:
            errand.crash(error)
        else:
            errand.finish(result)
