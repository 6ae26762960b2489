"""The switchboard: one trio task that waits for every socket of the process.

Trio schedules tasks; a proxy with thousands of mostly idle connections wants none per connection.  So all
sockets are registered with one `selectors` object (epoll, kqueue), whose own descriptor is the only thing
that trio waits for.  When it becomes readable, every event is handed to its watcher's callback, and the
callback handles the event to its end: it never awaits, so nothing interleaves and nothing needs a lock.
(A kqueue does not survive fork(2): a process that goes into the background does so before it makes a switchboard.)

Rules that callbacks live by:

* A callback does a *bounded* amount of work: the descriptors are level-triggered, so what is left over is
  reported again in the next round, after everybody else had a turn.
* A watcher with no interest is taken out of the selector: the kernel reports a reset even with no interest
  set, and a paused socket would spin.
* An event of one batch may belong to a descriptor that an earlier callback of the same batch closed, and
  whose number was even given out again.  Watchers therefore carry their own `alive` flag, and the number is
  never trusted.
* An exception in a callback ends what the watcher belongs to (`on_crash`), not the service.

Deadlines are plain fields of sessions and paths; `sweep` callbacks look at them once a second.
"""

from __future__ import annotations

import logging
import selectors
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol, TypeVar

import trio

__all__ = ["READ", "WRITE", "Switchboard", "Watch"]

READ = selectors.EVENT_READ
WRITE = selectors.EVENT_WRITE

SWEEP_SECONDS = 1.0
TURNS_A_ROUND = 16
"""Before other tasks (signals, the sweep) get their turn."""
LINGER_SECONDS = 0.001
"""How long a round waits for more.  An answer from nearby comes within that time, and is handled without a round of
trio's scheduler, which costs as much as most events; other tasks wait that much longer."""

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.005
"""Between two looks at a selector without a descriptor of its own: poll(2), select(2)."""

T = TypeVar("T")


class _HasFileno(Protocol):
    def fileno(self) -> int: ...


class Watch:
    """One descriptor's registration.  Made by `Switchboard.watch`."""

    __slots__ = ("_board", "_fileobj", "alive", "callback", "events", "on_crash")

    def __init__(
        self,
        board: Switchboard,
        fileobj: _HasFileno,
        callback: Callable[[int], None],
        on_crash: Callable[[Exception], None],
    ) -> None:
        self._board = board
        self._fileobj = fileobj
        self.events = 0
        self.callback = callback
        self.on_crash = on_crash
        self.alive = True

    def want(self, events: int) -> None:
        """Be called for `READ`, `WRITE`, both or (0) nothing from now on."""
        if events == self.events or not self.alive:
            return
        selector = self._board.selector
        if not self.events:
            selector.register(self._fileobj, events, self)
        elif not events:
            selector.unregister(self._fileobj)
        else:
            selector.modify(self._fileobj, events, self)
        self.events = events

    def close(self) -> None:
        """Forget the descriptor.  Call before closing it.  Idempotent."""
        if self.alive:
            self.want(0)
            self.alive = False


class Switchboard:
    """All descriptors of one process.  `run` is the task; everything else is called from callbacks."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.now = 0.0
        """Seconds on a monotonic clock, read once per round; callbacks use it instead of reading a clock."""
        self._sweeps: dict[Callable[[float], None], Callable[[Exception], None]] = {}
        self._soon: list[tuple[Callable[[float], None], Callable[[Exception], None]]] = []
        self._behind: deque[tuple[Callable[[float], None], Callable[[Exception], None]]] = deque()
        self._something_soon: trio.Event | None = None
        """While there is a task that waits for it."""
        self._in_round = False

    def watch(
        self, fileobj: _HasFileno, callback: Callable[[int], None], on_crash: Callable[[Exception], None]
    ) -> Watch:
        """Register `callback(events)`; no event comes before `Watch.want` asked for one."""
        return Watch(self, fileobj, callback, on_crash)

    def sweep(self, callback: Callable[[float], None], on_crash: Callable[[Exception], None]) -> None:
        """Call `callback(now)` once a second."""
        self._sweeps[callback] = on_crash

    def unsweep(self, callback: Callable[[float], None]) -> None:
        self._sweeps.pop(callback, None)

    def soon(self, callback: Callable[[float], None], on_crash: Callable[[Exception], None]) -> None:
        """Call `callback(now)` in a later turn: for what must not be reported from inside the call that found it."""
        self._soon.append((callback, on_crash))
        self._wake()

    def behind(self, callback: Callable[[float], None], on_crash: Callable[[Exception], None]) -> None:
        """Call `callback(now)` behind everything that is pending: for work that nobody waits for."""
        self._behind.append((callback, on_crash))
        self._wake()

    def _wake(self) -> None:
        if not self._in_round and self._something_soon is not None:
            self._something_soon.set()

    def turn(self, linger: float = 0) -> bool:
        """Handle what is pending, or within `linger` seconds; whether there was anything."""
        pending = self.selector.select(linger)
        for key, events in pending:
            watch: Watch = key.data
            if watch.alive and (events := events & watch.events):
                self.guard(watch.callback, events, watch.on_crash)
        if self._soon:
            self._call_soon()
        if not pending and self._behind:
            self._call_one_behind()
        return bool(pending)

    def _call_soon(self) -> None:
        calls, self._soon = self._soon, []  # what these calls ask for has its turn after others
        for callback, on_crash in calls:
            self.guard(callback, self.now, on_crash)

    def _call_one_behind(self) -> None:
        callback, on_crash = self._behind.popleft()
        self.guard(callback, self.now, on_crash)

    def _call_behind(self) -> None:
        """All that is there now; who comes meanwhile waits for one of them at most."""
        for _ in range(len(self._behind)):
            if self._behind:
                self._call_one_behind()
                self.turn()

    def sweep_now(self, now: float) -> None:
        self.now = now
        for callback, on_crash in list(self._sweeps.items()):
            if callback in self._sweeps:
                self.guard(callback, now, on_crash)

    @staticmethod
    def guard(callback: Callable[[T], None], argument: T, on_crash: Callable[[Exception], None]) -> None:
        """The exception boundary: a crash ends what `on_crash` ends, never the service."""
        try:
            callback(argument)
        except Exception as error:
            log.exception("internal.error")  # what it belongs to ends
            try:
                on_crash(error)
            except Exception:
                log.exception("internal.error")  # while ending what had an internal error

    def run_alone(self, over: Callable[[], bool]) -> None:
        """Serve events in this thread, without trio and its tasks, until `over()`: looked at after each turn and at
        least once a second."""
        self.now = time.monotonic()
        sweep_at = self.now + SWEEP_SECONDS
        while not over():
            if not (self._soon or self._behind):
                self.selector.select(max(0.0, sweep_at - self.now))
            self.now = time.monotonic()
            self.turn()
            if self.now >= sweep_at:
                sweep_at = self.now + SWEEP_SECONDS
                self.sweep_now(self.now)

    async def run(self) -> None:
        """Serve events until cancelled."""
        self.now = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._sweep_forever)
            nursery.start_soon(self._soon_forever)
            # Wherever trio runs there is epoll or kqueue; a Python built without them still works, at a slower pace.
            fileno = getattr(self.selector, "fileno", None)
            while True:
                if fileno is not None:
                    await trio.lowlevel.wait_readable(fileno())
                else:
                    await trio.sleep(LOOK_SECONDS)
                self._round()

    def _round(self) -> None:
        self._in_round = True
        self.now = trio.current_time()
        for _ in range(TURNS_A_ROUND):
            if not self.turn(LINGER_SECONDS):
                break
            self.now = trio.current_time()
        self._call_behind()
        self._in_round = False
        if self._soon or self._behind:
            self._wake()

    async def _sweep_forever(self) -> None:
        while True:
            await trio.sleep(SWEEP_SECONDS)
            self.sweep_now(trio.current_time())

    async def _soon_forever(self) -> None:
        """Calls that were asked for outside a turn wake the board up; within one, `turn` itself gets to them."""
        while True:
            self._something_soon = trio.Event()
            if self._soon or self._behind:
                self._something_soon.set()
            await self._something_soon.wait()
            self.now = trio.current_time()
            self._call_soon()
            self._call_behind()

    def close(self) -> None:
        self.selector.close()
