"""What others may see of a session: its events in the log, what it does at this moment, and what is said in it.

Beside the log nobody looks, mostly; then none of this costs anything.
"""

from __future__ import annotations

import logging

from .carriage import Carriage
from .endpoints import Endpoint
from .glance import Glance, load_of, text
from .log import event
from .pi.insight import Insight, insight
from .pi.interpreter import ProtocolInterpreter
from .switchboard import Switchboard
from .tap import Tap, Trace
from .terms import Terms

__all__ = ["Watched"]

log = logging.getLogger("ftpproxy.session")


class Watched:
    """The side of a session that is turned to those who look."""

    __slots__ = ("taps",)

    number: int
    client: Endpoint
    server: Endpoint
    over: bool
    carriage: Carriage
    taps: tuple[Tap, ...]
    _board: Switchboard
    _interpreter: ProtocolInterpreter | None
    _last_word: float
    _opened_at: float
    _terms: Terms

    @property
    def terms(self) -> Terms:
        """What it began with, and keeps."""
        return self._terms

    @property
    def service(self) -> str:
        """The name of the service that it belongs to."""
        return self._terms.service

    # The log

    def log(self, level: int, name: str, **fields: object) -> None:
        """An event of this session."""
        if log.isEnabledFor(level):
            event(log, level, name, session=self.number, client=self.client, **fields)
        for tap in self.taps:
            tap.happened(name, fields)

    # Those who look

    def _look(self) -> Insight | None:
        return insight(self._interpreter) if self._interpreter is not None else None

    def glance(self) -> Glance:
        """What it is doing at this moment."""
        now, view, carried = self._board.now, self._look(), self.carriage.foremost
        what = view.command if view is not None else b""
        if not what and carried is not None and carried is not self.carriage._open:
            what = carried.what  # the server has had its last word, and a slow receiver has not had all
        verb, _, file = what.partition(b" ")
        return Glance(
            session=self.number,
            service=self.service,
            state="ending" if self.over else "calling" if view is None else "unread" if view.unread else "open",
            client=str(self.client),
            server=str(self.server),
            age=now - self._opened_at,
            idle=0.0 if self.carriage.busy else now - self._last_word,
            user=text(view.user) if view is not None else "",
            command=text(verb),
            file=text(file),
            load=load_of(carried) if carried is not None else None,
        )

    @property
    def quiet(self) -> bool:
        """Whether nothing is under way: no data connection, and no command that the server has to answer."""
        view = self._look()
        return not self.carriage and (view is None or not (view.command or view.unread))

    def tap(self, trace: Trace) -> None:
        """Show `trace` what is said from now on."""
        view = self._look()
        within_a_line = view is not None and view.within_a_line
        self.taps += (Tap(self.number, trace, self._look, within_a_line=within_a_line),)

    def untap(self, trace: Trace) -> None:
        """It is not wanted any more."""
        self.taps = tuple(tap for tap in self.taps if tap.trace is not trace)
