"""Foreign legs of relayed data connections on pf: rules that lead them to sockets at addresses of ours.

A client that calls a server is led to a door of ours, and a call of ours gets the server's address on its way out:

    pass in quick inet proto tcp from C to S port = N flags S/SA keep state (max 1) rdr-to X port N
    pass out quick inet proto tcp from X to C port = P flags S/SA keep state (max 1) nat-to S port 20

X is our address towards C.  Each is one half of what `pf.anchor` renders for a whole path: the other half names packets
from X to X, or from ourselves to the server, which no interface ever sees come in, so the text is that of any path.

The rules are loaded by the pf engine, which answers later.  So a lead is asked for first, and whoever has asked makes
the leg when the answer has come; until then it waits here, for any leg that says the same.  Where that leg is never
made (a client that is to be called when the server has called, and the server does not), it goes after `seconds`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Protocol

from attrs import define, evolve

from ..doors import Doors, Expected
from ..endpoints import Endpoint
from ..paths import Await, Call, Leg, PathSpec
from ..pf.anchor import RuleOptions
from ..sockets import is_ours
from .direct import first_free, refusal, towards
from .interceptor import GateError, PortRange

__all__ = ["Leads", "Rules"]


class Rules(Protocol):
    """The pf engine (`pf.client`), as far as it is needed here."""

    over: str

    @property
    def full(self) -> bool: ...

    def load(
        self,
        spec: PathSpec,
        options: RuleOptions,
        answered: Callable[[str, tuple[int, ...]], None],
        on_crash: Callable[[Exception], None],
    ) -> int: ...

    def flush(self, path: int) -> None: ...


@define(eq=False)
class _Lead:
    """One leg's.  `release` takes everything back that was made for it."""

    leads: Leads
    leg: Leg
    since: float
    release: Callable[[], None]
    expected: Expected | None = None
    """Of an awaited leg."""
    announced: Endpoint | None = None
    over: bool = False

    def close(self) -> None:
        if not self.over:
            self.over = True
            self.leads.forget(self)
            self.release()


class Leads:
    """All leads of a gate.  The engine must be attached to the board of `doors`; it stays its maker's to close."""

    def __init__(self, engine: Rules, options: RuleOptions, doors: Doors, *, seconds: float) -> None:
        self._engine = engine
        self._options = evolve(options, label=None)
        self._doors = doors
        self._board = doors.board
        self._seconds = seconds
        self._asked: set[_Lead] = set()
        self._standing: dict[Leg, list[_Lead]] = {}
        self._board.sweep(self._sweep, self._crashed)

    def __len__(self) -> int:
        """How many are asked for, or stand."""
        return len(self._asked) + sum(map(len, self._standing.values()))

    def ask(
        self, leg: Leg, ports: PortRange, answered: Callable[[str], None], on_crash: Callable[[Exception], None]
    ) -> _Lead | None:
        """As `LeadingGate.lead`."""
        what = f"listen at {leg.at}" if isinstance(leg, Await) else f"call {leg.to} from {leg.source}"
        with refusal(what):
            if is_ours(leg.at.host if isinstance(leg, Await) else leg.source.host):
                return None
            if self._engine.over or self._engine.full:
                raise GateError(f"cannot {what}: {self._engine.over or 'the pf engine has too much to do'}")
            with ExitStack() as made:
                lead = self._awaited(leg, ports, made) if isinstance(leg, Await) else self._called(leg)
                spec = lead_spec(leg, lead.announced, lead.expected)
                number = self._engine.load(spec, self._options, partial(self._answered, lead, answered), on_crash)
                made.callback(self._engine.flush, number)
                lead.release = made.pop_all().close
        self._asked.add(lead)
        return lead

    def _awaited(self, leg: Await, ports: PortRange, made: ExitStack) -> _Lead:
        here = towards(leg.peer)

        def attempt(port: int) -> Expected:
            if self._doors.taken(leg.at.at(port), leg.peer):
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
            return self._doors.expect(Endpoint(here, port), leg.peer)

        expected = first_free(leg.at.port, ports, attempt)
        at = leg.at.at(expected.at.port)
        made.callback(expected.close)
        made.callback(self._doors.reserve(at, leg.peer))
        return _Lead(self, leg, self._board.now, made.close, expected, at)

    def _called(self, leg: Call) -> _Lead:
        return _Lead(self, leg, self._board.now, lambda: None)

    def _answered(self, lead: _Lead, answered: Callable[[str], None], error: str, _: tuple[int, ...]) -> None:
        if lead.over:
            return
        self._asked.discard(lead)
        if error:
            lead.close()
        else:
            self._standing.setdefault(lead.leg, []).append(lead)
        answered(error)

    def take(self, leg: Leg) -> _Lead:
        """What stands for this leg; the taker releases it.  Raises `GateError` where nothing does."""
        if not (standing := self._standing.get(leg)):
            raise GateError(f"pf leads nobody here for {leg}")
        lead = standing[-1]
        self.forget(lead)
        lead.over = True
        return lead

    def forget(self, lead: _Lead) -> None:
        """It is somebody else's now, or nobody's."""
        self._asked.discard(lead)
        standing = self._standing.get(lead.leg, [])
        if lead in standing:
            standing.remove(lead)
            if not standing:
                del self._standing[lead.leg]

    def _sweep(self, now: float) -> None:
        for lead in [each for standing in self._standing.values() for each in standing]:
            if now - lead.since > self._seconds:
                lead.close()

    def _crashed(self, error: Exception) -> None:
        """The next sweep goes on with the others."""

    def close(self) -> None:
        """Take back whatever nobody has taken."""
        self._board.unsweep(self._sweep)
        for lead in [*self._asked, *(each for standing in self._standing.values() for each in standing)]:
            lead.close()


def lead_spec(leg: Leg, announced: Endpoint | None, expected: Expected | None) -> PathSpec:
    """The path of which one half is what `leg` needs; see above."""
    if isinstance(leg, Await):
        assert expected is not None
        assert announced is not None
        return PathSpec(Await(announced, leg.peer), Call(expected.at, expected.at.at(0)))
    # in from us to the server's data port: nobody comes in that way
    return PathSpec(Await(leg.source.at(leg.source.port or 20), towards(leg.to.host)), leg)
