"""Signs of life: what a supervisor hears of a running server, from the sweep of the switchboard.

The watchdog is fed by the same loop that serves sessions, so a loop that stands still is noticed.  The status line
changes at most every few seconds and is said only when it changes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from .activation import NotifyError, Supervisor
from .log import event
from .server import Server
from .show import count
from .switchboard import Switchboard

__all__ = ["Vitals"]

STATUS_SECONDS = 5.0

log = logging.getLogger(__name__)


class Vitals:
    """Tells `supervisor` how `server` does."""

    def __init__(self, supervisor: Supervisor, server: Server, board: Switchboard) -> None:
        self._supervisor = supervisor
        self._server = server
        self._said = ""
        self._next_status = 0.0
        if supervisor:
            board.sweep(self._sweep, self._crashed)

    @property
    def status(self) -> str:
        """The line for `systemctl status`."""
        return f"{count(len(self._server.services), 'service')}, {count(len(self._server.sessions), 'session')}"

    def ready(self) -> None:
        """The start, or a reload, is done."""
        self._said = self.status
        self._tell(lambda: self._supervisor.ready(self._said))

    def reloading(self) -> None:
        """A reload has begun; `ready` must follow."""
        self._tell(self._supervisor.reloading)

    def stopping(self, status: str) -> None:
        """The end has begun."""
        self._next_status = float("inf")
        self._tell(lambda: self._supervisor.stopping(status))

    def _sweep(self, now: float) -> None:
        self._tell(lambda: self._supervisor.sign_of_life(now))
        if now >= self._next_status:
            self._next_status = now + STATUS_SECONDS
            if (status := self.status) != self._said:
                self._said = status
                self._tell(lambda: self._supervisor.status(status))

    @staticmethod
    def _tell(what: Callable[[], None]) -> None:
        try:
            what()
        except NotifyError as error:  # it will do what it does about a process that does not speak
            event(log, logging.WARNING, "supervisor.deaf", reason=error)

    def _crashed(self, error: Exception) -> None:
        """It is tried again in the next sweep."""
