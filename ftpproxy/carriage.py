"""The carriage: all data connections of one session, between the interpreter's actions and the planes.

At any moment at most one path is open for the next transfer, and one transfer waits for the server's word about it;
they may be the same.  Others, which the server has declared complete, are on the way to their own end.  A path's
transfer is accounted for, with its line in the log, when both are known: what it carried, and what the server said.

The carriage is the `PathOwner` of every path; the session hears only what its interpreter must know (`tell`), and
when something has come to its end.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Protocol

from attrs import evolve

from .carried import Carried, Opening
from .dtp.plane import Foreseen, Path, Pending
from .endpoints import Endpoint, Side
from .estate import Estate, Inheritance
from .freezing import Unthawable, freeze, restore
from .intercept.interceptor import GateError
from .metrics import counts
from .paths import Direction, PathSpec, Tally
from .pi.actions import DropPath, EndTransfer, OpenPath, SettlePath, StartPath
from .pi.interpreter import ProtocolInterpreter
from .reasons import Code, Reason, code_of, fields
from .records import CarriageRecord, CarriedRecord
from .switchboard import Switchboard
from .terms import Terms

__all__ = ["Carriage", "Principal"]

LOST = Reason(Code.DATA_CUT, "not followed beyond a restart")
MOST_PATHS = 8
"""Data connections alive at once: the next transfer's, and those that are on the way to their own end."""


class Principal(Protocol):
    """For whom a carriage works: a session."""

    client: Endpoint
    server: Endpoint
    over: bool

    def tell(self, what: Callable[[ProtocolInterpreter], None]) -> None: ...

    def carried(self, *, nothing_left: bool) -> None: ...

    def log(self, level: int, name: str, **fields: object) -> None: ...


def _already_logged(_: Exception) -> None:
    """What went wrong while something was closed: the switchboard has logged it."""


class _Gone:
    """The path of what has ended, or was lost, before this process."""

    announced: Mapping[Side, Endpoint] = MappingProxyType({})
    ready = reports_end = counts_at_once = True

    def start(self, direction: Direction) -> None: ...

    def settle(self) -> None: ...

    def so_far(self) -> None: ...

    def close(self) -> None: ...

    def leave(self, estate: Estate) -> None: ...


class Carriage:
    """The paths of one session."""

    __slots__ = (
        "_accounted",
        "_board",
        "_carried",
        "_fell_back",
        "_foreseen",
        "_open",
        "_opening",
        "_ours",
        "_principal",
        "_terms",
        "_transfer",
    )

    def __init__(
        self, principal: Principal, terms: Terms, board: Switchboard, ours: Callable[[Endpoint], bool]
    ) -> None:
        """`ours` tells whether a call to an endpoint would come back to us."""
        self._principal = principal
        self._terms = terms
        self._board = board
        self._ours = ours
        self._opening: Opening | None = None
        """What the interpreter waits for; it is asked nothing meanwhile."""
        self._foreseen: Foreseen | None = None
        """Of the first plane, for the path that is opened next."""
        self._open: Carried | None = None
        """What the next transfer will use."""
        self._transfer: Carried | None = None
        """What the server owes its word about."""
        self._carried: dict[Path, Carried] = {}
        self._fell_back = False
        self._accounted = 0

    def __len__(self) -> int:
        """Paths that are alive."""
        return len(self._carried)

    @property
    def busy(self) -> bool:
        """Whether octets may be on their way."""
        return any(len(carried.up) == 2 for carried in self._carried.values())

    @property
    def foremost(self) -> Carried | None:
        """What one would call the session's data connection: of the transfer under way, else one that carries, else the
        one that is prepared."""
        carrying = (carried for carried in self._carried.values() if len(carried.up) == 2)
        return self._transfer or next(carrying, self._open)

    def planes(self) -> Iterator[str]:
        """The plane of each path that is alive."""
        return (carried.plane for carried in self._carried.values())

    @property
    def transfers(self) -> int:
        """How many there were: those that were accounted for, and those that the server is done with."""
        return self._accounted + sum(carried.positive is not None for carried in self._carried.values())

    @property
    def undecided(self) -> bool:
        """Whether a path is being opened, and nothing else may happen until it is decided."""
        return self._opening is not None

    def stop_opening(self) -> None:
        """The path that is being opened, or foreseen, is not wanted any more."""
        self._forget_foreseen()
        if self._opening is not None:
            self._opening.close()
            self._opening = None

    def foresee(self, spec: PathSpec) -> None:
        """`spec`, but for its port, will probably be opened next.  To be called when nobody waits for us."""
        self._forget_foreseen()
        if self._terms.planes:
            self._foreseen = self._terms.planes[0].foresee(spec)

    def _forget_foreseen(self) -> None:
        if self._foreseen is not None:
            self._foreseen.close()
            self._foreseen = None

    # From the interpreter

    def perform(
        self,
        interpreter: ProtocolInterpreter,
        action: OpenPath | StartPath | EndTransfer | SettlePath | DropPath,
    ) -> None:
        """One action of the interpreter's that concerns data connections."""
        if isinstance(action, OpenPath):
            self._open_path(interpreter, action)
        elif isinstance(action, StartPath):
            if self._open is not None:
                self._transfer = self._open
                self._open.begin(action)
        elif isinstance(action, EndTransfer):
            if (carried := self._transfer) is not None:
                self._transfer = None
                carried.positive = action.positive
                if carried.settled:
                    self._account(carried)
        elif isinstance(action, SettlePath):
            if self._open is not None:
                carried, self._open = self._open, None
                carried.path.settle()
        else:
            self._forget_foreseen()
            if self._open is not None:
                self._drop(self._open)

    def _open_path(self, interpreter: ProtocolInterpreter, action: OpenPath) -> None:
        if len(self._carried) >= MOST_PATHS:  # whoever never closes a data connection holds descriptors of ours
            self._drop(next(iter(self._carried.values())))
        opening = Opening(self._terms.planes, action.spec, self._ours, self._terms.lobby, self._foreseen)
        self._foreseen = None
        carried = opening.ask(self)
        if opening.undecided:
            self._opening = opening
        else:
            self._decided(interpreter, opening, carried)

    def _decided(self, interpreter: ProtocolInterpreter, opening: Opening, carried: Carried | None) -> None:
        level = logging.WARNING if carried is None else logging.DEBUG if self._fell_back else logging.INFO
        for plane, why in opening.refusals:
            because = fields(why, Code.PLANE_FAILED)
            counts.fallbacks[self._terms.service, str(plane or "none"), code_of(why, Code.PLANE_FAILED)] += 1
            self._principal.log(level, "data.refused", plane=plane, **because, spec=opening.spec)
            self._fell_back = True
        if carried is None:
            interpreter.path_refused()
            return
        path = carried.path
        self._open = self._carried[path] = carried
        carried.opened_at = self._board.now
        self._principal.log(
            logging.DEBUG,
            "data.open",
            plane=carried.plane,
            spec=opening.spec,
            client_calls=path.announced.get(Side.CLIENT),
            server_calls=path.announced.get(Side.SERVER),
        )
        interpreter.path_opened(path.announced, ready=path.ready, reports_end=path.reports_end)

    # From the planes and the paths

    def opened(self, pending: Pending, path: Path) -> None:
        """`Opener`."""
        if (opening := self._opening) is not None and opening.pending is pending:
            self._opening = None
            carried = opening.opened(path)
            self._principal.tell(lambda interpreter: self._decided(interpreter, opening, carried))

    def refused(self, pending: Pending, why: str) -> None:
        """`Opener`."""
        if (opening := self._opening) is not None and opening.pending is pending:
            carried = opening.refused(why, self)
            if not opening.undecided:
                self._opening = None
                self._principal.tell(lambda interpreter: self._decided(interpreter, opening, carried))

    def reconsidered(self, opening: Opening, carried: Carried | None) -> None:
        """`Applicant`."""
        if self._opening is opening:
            self._opening = None
            self._principal.tell(lambda interpreter: self._decided(interpreter, opening, carried))

    def connected(self, path: Path, side: Side) -> None:
        """`PathOwner`."""
        if carried := self._carried.get(path):
            carried.up.add(side)
            self._principal.log(logging.DEBUG, "data.connected", plane=carried.plane, side=side)
            if len(carried.up) == 2 and path.reports_end:  # else it is told when somebody looked
                counts.set_ups[carried.plane].observe(self._board.now - carried.opened_at)
            if carried is self._open:
                self._principal.tell(lambda interpreter: interpreter.path_connected(side))

    def failed(self, path: Path, why: str) -> None:
        """`PathOwner`."""
        if carried := self._carried.pop(path, None):
            because = fields(why, Code.DATA_UNREACHABLE)
            counts.data_failures[self._terms.service, carried.plane, code_of(why, Code.DATA_UNREACHABLE)] += 1
            self._principal.log(logging.WARNING, "data.failed", plane=carried.plane, what=carried.what, **because)
            if carried is self._open:
                self._open = None
                self._principal.tell(ProtocolInterpreter.path_failed)
            self._principal.carried(nothing_left=not self._carried)

    def delivered(self, path: Path) -> None:
        """`PathOwner`."""
        if (carried := self._carried.get(path)) and carried is self._open:
            self._principal.tell(ProtocolInterpreter.path_delivered)

    def finished(self, path: Path, tally: Tally) -> None:
        """`PathOwner`."""
        if carried := self._carried.pop(path, None):
            if carried is self._open:
                self._open = None
                self._principal.tell(ProtocolInterpreter.path_finished)
            carried.tally = tally
            if carried.settled or self._principal.over:
                self._account(carried)
            self._principal.carried(nothing_left=not self._carried)

    # To a successor, and from a predecessor

    def leave(self, estate: Estate) -> CarriageRecord:
        """Write it down for a successor; it is of no further use here."""
        self._forget_foreseen()
        known = list(dict.fromkeys([*self._carried.values(), *filter(None, [self._transfer])]))
        return CarriageRecord(
            carried=tuple(self._written_down(each, estate) for each in known),
            opening=self._opening.spec if self._opening is not None else None,
            fell_back=self._fell_back,
            accounted=self._accounted,
        )

    def _written_down(self, carried: Carried, estate: Estate) -> CarriedRecord:
        path = so_far = None
        if carried.path in self._carried:
            so_far = carried.path.so_far()
            path = carried.path.leave(estate)
        return CarriedRecord(
            spec=carried.spec,
            carried=freeze(carried),
            age=self._board.now - carried.opened_at,
            path=path,
            so_far=so_far,
            open=carried is self._open,
            transfer=carried is self._transfer,
        )

    def inherit(self, record: CarriageRecord, inheritance: Inheritance) -> Callable[[ProtocolInterpreter | None], None]:
        """Take up what a predecessor has left.  What is returned is to be called, with the interpreter, when
        everything else of the session stands: it goes on with what was being opened, and reports what is lost.  Raises
        `Unthawable`."""
        self._fell_back, self._accounted = record.fell_back, record.accounted
        lost: list[tuple[Carried, Tally | None]] = []
        for each in record.carried:
            carried = Carried(_Gone(), "", each.spec, opened_at=self._board.now - each.age)
            restore(carried, each.carried)
            if carried.tally is None:
                try:
                    carried.path = self._inherited(carried.plane, each.path, inheritance)
                except (Unthawable, GateError, OSError) as error:
                    what = carried.what or None
                    self._principal.log(logging.WARNING, "data.lost", plane=carried.plane, what=what, reason=error)
                    lost.append((carried, each.so_far))
                self._carried[carried.path] = carried
            if each.open:
                self._open = carried
            if each.transfer:
                self._transfer = carried

        def go_on(interpreter: ProtocolInterpreter | None) -> None:
            for carried, so_far in lost:
                if so_far is not None:
                    self.finished(carried.path, evolve(so_far, exact=False, reason=LOST))
                else:
                    self.failed(carried.path, LOST)
            if record.opening is not None and interpreter is not None:
                self._open_path(interpreter, OpenPath(record.opening))

        return go_on

    def _inherited(self, name: str, left: Any, inheritance: Inheritance) -> Path:
        for plane in self._terms.planes:
            if plane.name == name:
                if left is None:
                    raise Unthawable("the plane cannot hand such a connection over")
                return plane.inherit(left, self, inheritance)
        raise Unthawable("the service has this plane no more")

    # The end

    def end(self, *, drain: bool) -> None:
        """The session ends: cut what is alive, or if it may `drain` only what has no transfer or would not tell when it
        ends, and account for what the server owes its word about."""
        self.stop_opening()
        for carried in list(self._carried.values()):
            if not drain or carried is self._open or carried.counted:
                self._drop(carried)
        if self._transfer is not None and self._transfer.tally is not None:
            self._account(self._transfer)

    def close(self) -> None:
        """Cut everything."""
        self.stop_opening()
        for carried in list(self._carried.values()):
            self._drop(carried)

    def _drop(self, carried: Carried) -> None:
        known = self._carried.pop(carried.path, None) is not None
        self._board.guard(Carried.close, carried, _already_logged)
        if known and len(carried.up) < 2 and carried.tally is None:
            level, missing = logging.WARNING if carried.what else logging.DEBUG, carried.missing()
            counts.data_failures[self._terms.service, carried.plane, carried.why_missing] += 1
            self._principal.log(level, "data.missing", **missing)
        if carried.tally is not None:
            self._account(carried)
        if carried is self._open:
            self._open = None

    def _account(self, carried: Carried) -> None:
        """A data connection has carried, and all is known of it."""
        if self._transfer is carried:
            self._transfer = None
        self._accounted += 1
        client = self._principal.client
        assert carried.tally is not None
        tally, direction, code = carried.tally, carried.direction, carried.code
        counts.transfer(self._terms.service, carried.spec, carried.plane, direction, tally, code)
        self._principal.log(logging.INFO, "transfer", server=self._principal.server, **carried.account())
        if self._terms.xferlog is not None:
            self._terms.xferlog.write(client.host, carried)
