"""The kernel of OpenBSD or FreeBSD carries: a data plane of pf anchors.  No octet of a data connection enters us.

A path is an anchor of its own, `ftp-proxy/PID.ID`, with the rules of `pf.anchor`; what loads it is the pf engine, so
`open` answers `Pending`, and the path is not announced before the engine has said that its rules stand.  An answer that
is an error, or does not come within `PATIENCE`, is a refusal.  Paths share their ports as on nft: a rule has the
caller's address, so only one caller's paths must differ.  What two of them cannot share is where they lead to, since
each rule lets one connection through: a path that is settled makes room for the next one, another is in its way.

pf does not tell us when a connection comes up or ends.  Its rules count: packets and octets, each way, of the
connection that they have let in, with all headers; a process has to run to read them.  So it is done as soon as the
server has said its last word about the transfer (`settle`), then once a second until nothing moves any more, and now
and then while a transfer runs, by which the session knows that it is not idle.  Octets are estimates.

What this plane cannot do: end a connection.  Rules that are flushed keep new calls out; the state of a running
connection lives until both ends have closed it, or as long as pf's time-outs let it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from attrs import evolve, frozen

from ..doors import Doors
from ..endpoints import ANY_PORT, Endpoint, IPAddress, Side
from ..estate import Estate, Inheritance
from ..freezing import Unthawable
from ..intercept.interceptor import PortRange
from ..log import event
from ..paths import Await, Direction, PathSpec, Tally
from ..pf.anchor import RuleError, RuleOptions, render
from ..pf.client import Engine
from ..reasons import Code, Reason
from ..sockets import is_ours
from ..switchboard import Switchboard
from .alive import AlivePaths
from .plane import CUT_SHORT, Opener, PathOwner, Pending, Refused

__all__ = ["PATIENCE", "PfPath", "PfPending", "PfPlane"]

HEADERS = {4: 52, 6: 72}
"""Octets of each packet that are not payload, by IP version: the address header, TCP's, and its time stamps."""
MORE_IN_SYN = 8
"""Octets of options that SYN and SYN|ACK have more."""

PATIENCE = 10.0
"""Seconds for the engine to load rules: more than one stalled pfctl takes."""
QUIET = 2.0
"""Seconds without a packet after which a settled transfer is over."""
SELDOM = 10.0
"""Seconds between two looks at the counters of a transfer, at most."""
SHOWN = 1.0
"""The same for those who watch."""
DATA_SETUP = 120.0
DATA_IDLE = 900.0
MOST_TRIES = 500
"""How many ports one path tries before it gives up."""

log = logging.getLogger(__name__)


@frozen(eq=False)
class _Place:
    """What of a path no other path of this caller may have."""

    peer: IPAddress
    at: Endpoint
    to: Endpoint
    caller: Side
    release: Callable[[], None]


class PfPending(Pending):
    """Rules that the engine is loading.  Made by `PfPlane.open`."""

    def __init__(self, plane: PfPlane, place: _Place, owner: Opener) -> None:
        self._plane = plane
        self._place = place
        self._owner = owner
        self._since = plane.board.now
        self._over = False
        self.number = 0

    def answered(self, error: str, _: tuple[int, ...]) -> None:
        """What the engine says."""
        if self._over:
            return
        self._over = True
        if error:
            self._plane.forget(self, self._place)
            self._owner.refused(self, error)
        else:
            path = PfPath(self._plane, self._place, self.number, self._owner)
            self._plane.stands(self, self._place, path)
            self._owner.opened(self, path)

    def sweep(self, now: float) -> None:
        if now - self._since > PATIENCE:
            self.close()
            self._owner.refused(self, Reason(Code.PLANE_FAILED, f"the pf engine did not answer within {PATIENCE:g} s"))

    def crashed(self, error: Exception) -> None:
        """Something in here went wrong, or in who was told."""
        if not self._over:
            self.close()
            self._owner.refused(self, Reason(Code.INTERNAL, f"internal error: {error!r}"))

    def close(self) -> None:
        if not self._over:
            self._over = True
            self._plane.take_down(self, self._place, self.number)  # behind the load, if that is done at all


class PfPath:
    """One data connection that pf carries."""

    ready = True
    reports_end = False
    counts_at_once = False

    def __init__(self, plane: PfPlane, place: _Place, number: int, owner: PathOwner) -> None:
        self.announced: Mapping[Side, Endpoint] = {place.caller: place.at}
        self.number = number
        self._plane = plane
        self._place = place
        self._owner = owner
        self._caller = place.caller
        self._counts = (0, 0, 0, 0)
        self._direction: Direction | None = None
        now = plane.board.now
        self._set_up_at = self._begun_at = self._moved_at = self._looked_at = now
        self._look_at = now + SELDOM
        self._looking = False
        self._up = False
        self._reported = False
        self._settled = False
        self._over = False

    def start(self, direction: Direction) -> None:
        now = self._plane.board.now
        if self._direction is not None:  # another file of the same connection (MODE B)
            self._settled = False
        self._direction = direction
        self._set_up_at = self._begun_at = self._moved_at = now
        self._look_at = now + 1

    def settle(self) -> None:
        if not self._over and not self._settled:
            self._settled = True
            self._moved_at = self._plane.board.now
            self._look()

    def settled(self) -> bool:
        """Nobody waits for it any more: it may be taken down before it knows its end."""
        return self._settled

    def so_far(self) -> Tally | None:
        if not self._over and self._plane.board.now - self._looked_at >= SHOWN:
            self._look()
        return self._tally(None, "") if self._up else None

    def leave(self, estate: Estate) -> None:
        """It cannot: anchors are the engine's, which ends with this process.  Its connection goes on uncounted."""
        self._over = True
        self._plane.take_down(self, self._place, self.number)

    def close(self) -> Tally | None:
        if self._over:
            return None
        self._let_go()
        return self._tally(None, "" if self._settled else CUT_SHORT) if self._up else None

    def crashed(self, error: Exception) -> None:
        """Something in here went wrong."""
        self._end(None, Reason(Code.INTERNAL, f"internal error: {error!r}"))

    # The counters

    def _look(self) -> None:
        """Ask for the counters; `_counted` comes later."""
        if not self._looking:
            self._looking = True
            self._looked_at = self._plane.board.now
            self._plane.engine.count(self.number, self._counted, self.crashed)

    def _counted(self, error: str, counts: tuple[int, ...]) -> None:
        self._looking = False
        if self._over:
            return
        now = self._plane.board.now
        if error:
            event(log, logging.DEBUG, "pf.uncounted", path=self.number, reason=error)
            self._up = self._up or self._direction is not None  # nobody knows better
        elif counts != self._counts:
            packets_in, octets_in, packets_out, octets_out = counts
            self._counts = packets_in, octets_in, packets_out, octets_out
            self._moved_at = now
            # A call that was refused is a SYN and a RST; one that was taken has an ACK behind.
            self._up = self._up or (packets_in >= 2 and packets_out >= 1)
        self._judge(now)

    def _judge(self, now: float) -> None:
        if self._up and not self._reported:
            self._reported = True
            for side in Side:
                self._owner.connected(self, side)
                if self._over:
                    return
        if self._settled and (not self._up or now - self._moved_at >= QUIET):
            self._end(None, "" if self._up else self._missing())
        elif self._up and now - self._moved_at > self._plane.data_idle:
            sender = self._direction.sender if self._direction is not None else Side.CLIENT
            self._end(sender, Reason(Code.DATA_IDLE, f"idle for {self._plane.data_idle:g} s", side=sender))
        elif not self._up and now - self._set_up_at > self._plane.data_setup:
            self._end(None, self._missing(f" within {self._plane.data_setup:g} s"))

    def sweep(self, now: float) -> None:
        """Look whether something has happened."""
        if not self._over and (self._settled or now >= self._look_at):
            # Soon at first, seldom when it has lasted.
            self._look_at = now + (SELDOM if self._direction is None else min(SELDOM, now - self._begun_at))
            self._look()

    # The end

    def _missing(self, within: str = "") -> Reason:
        text = f"no data connection came from the {self._caller}{within}"
        return Reason(Code.DATA_MISSING, text, side=self._caller, at=self._place.at)

    def make_room(self) -> None:
        """The next path leads to the same place: what this one has carried is what is known of it.  Reports later."""
        why = "" if self._up else self._missing()
        self._let_go()
        self._plane.board.soon(lambda _: self._report(None, why), self.crashed)

    def _end(self, failed: Side | None, why: str) -> None:
        if not self._over:
            self._let_go()
            self._report(failed, why)

    def _report(self, failed: Side | None, why: str) -> None:
        if self._up:
            self._owner.finished(self, self._tally(failed, why))
        else:
            self._owner.failed(self, why)

    def _tally(self, failed: Side | None, why: str) -> Tally:
        headers = HEADERS[self._place.peer.version]
        octets: dict[Side, int] = {}
        for side, packets, all_octets in (
            (self._caller, *self._counts[:2]),
            (self._caller.peer, *self._counts[2:]),
        ):
            octets[side] = max(0, all_octets - headers * packets - MORE_IN_SYN)
        if self._direction is not None:
            octets[self._direction.sender.peer] = 0
        seconds = max(0.0, self._moved_at - self._begun_at)
        return Tally(octets[Side.SERVER], octets[Side.CLIENT], seconds, exact=False, failed=failed, reason=why)

    def _let_go(self) -> None:
        self._over = True
        self._plane.take_down(self, self._place, self.number)


class PfPlane:
    """Data connections through pf, for peers beyond this machine.  Needs the engine, and its anchor in pf.conf.

    See `DataPlane`; times are in seconds.  The engine, which must be attached to `board`, may be shared and stays its
    maker's to close.
    """

    name = "pf"

    def __init__(
        self,
        engine: Engine,
        rules: RuleOptions,
        ports: PortRange,
        board: Switchboard,
        doors: Doors,
        *,
        data_setup: float = DATA_SETUP,
        data_idle: float = DATA_IDLE,
    ) -> None:
        self.engine = engine
        self.board = board
        self.data_setup = data_setup
        self.data_idle = data_idle
        self._rules = rules
        self._ports = ports
        self._paths: AlivePaths[PfPending | PfPath] = AlivePaths(board)
        self._doors = doors
        self._led: dict[tuple[IPAddress, Endpoint], PfPending | PfPath] = {}

    def __len__(self) -> int:
        """Paths that are being prepared or carried."""
        return len(self._paths)

    def carries(self, spec: PathSpec) -> bool:
        """One leg awaited, one called, and all of one family."""
        if (halves := spec.halves) is None:
            return False
        _, leg, call = halves
        return len({host.version for host in (leg.at.host, leg.peer, call.to.host, call.source.host)}) == 1

    def foresee(self, spec: PathSpec) -> None:
        """Nothing is done beforehand."""

    def open(self, spec: PathSpec, owner: Opener) -> PfPending | Refused:
        if self._paths.closed or self.engine.over:
            return Refused(self.engine.over or "the plane is closed")
        if self.engine.full:
            return Refused("the pf engine has too much to do")
        if (halves := spec.halves) is None or not self.carries(spec):
            return _unsuited("pf carries between one awaited and one called leg of one address family")
        caller, leg, call = halves
        for host in (leg.peer, call.to.host):
            if is_ours(host):  # pf translates for this machine's own connections in other places
                return _unsuited(f"{host} is this machine itself; pf carries only what is forwarded")
        if (other := self._led.get((leg.peer, call.to))) is not None:
            if not isinstance(other, PfPath) or not other.settled():
                return _unsuited(f"{leg.peer} is being led to {call.to} already")
            other.make_room()
        if (at := self._free(leg)) is None:
            why = f"no port is left for {leg.peer} in {self._ports}; more data_ports are needed"
            if leg.at.port != ANY_PORT:
                why = f"{leg.peer} is awaited at {leg.at} already"
            return Refused(Reason(Code.PLANE_PORTS, why))
        whole = _at(spec, caller, at)
        client = call.to.host if caller is Side.SERVER else leg.peer
        # `pfctl -k label -k ftp:ADDRESS` ends the data connections of that client.
        options = evolve(self._rules, label=f"ftp:{client}")
        try:
            render(whole, options)  # the engine would refuse it
        except RuleError as error:
            return _unsuited(str(error))
        place = _Place(leg.peer, at, call.to, caller, self._doors.reserve(at, leg.peer))
        pending = PfPending(self, place, owner)
        self._led[leg.peer, call.to] = pending
        self._paths.add(pending)
        pending.number = self.engine.load(whole, options, pending.answered, pending.crashed)
        return pending

    def _free(self, leg: Await) -> Endpoint | None:
        """Where no other path awaits this peer."""
        ports = (leg.at.port,) if leg.at.port != ANY_PORT else self._ports.once_round(MOST_TRIES)
        ends = map(leg.at.at, ports)
        return next((at for at in ends if not self._doors.taken(at, leg.peer)), None)

    def stands(self, pending: PfPending, place: _Place, path: PfPath) -> None:
        """Rules were loaded: from here on it is a path."""
        self._paths.forget(pending)
        self._paths.add(path)
        self._led[place.peer, place.to] = path

    def forget(self, which: PfPending | PfPath, place: _Place) -> None:
        """It is over, and nothing stands."""
        self._paths.forget(which)
        place.release()
        self._led.pop((place.peer, place.to), None)

    def take_down(self, which: PfPending | PfPath, place: _Place, number: int) -> None:
        """It is over.  What is loaded from now on is loaded after its rules are gone."""
        self.forget(which, place)
        self.engine.flush(number)

    def inherit(self, left: object, owner: PathOwner, inheritance: Inheritance) -> PfPath:
        raise Unthawable("a path of pf cannot be left")

    def close(self) -> None:
        self._paths.close()


def _unsuited(why: str) -> Refused:
    return Refused(Reason(Code.PLANE_UNSUITED, why))


def _at(spec: PathSpec, caller: Side, at: Endpoint) -> PathSpec:
    """The same with the port that was chosen."""
    leg = spec.leg(caller)
    assert isinstance(leg, Await)
    if caller is Side.CLIENT:
        return PathSpec(Await(at, leg.peer), spec.server)
    return PathSpec(spec.client, Await(at, leg.peer))
