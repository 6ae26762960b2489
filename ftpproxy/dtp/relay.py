"""The relay: a data plane in this process, which works wherever a socket does.

A path has two legs (legs.py), each awaited or called, and from the moment that both are up two flows (carriers.py).
All of it lives on the switchboard: no task and no thread, one registration for each socket.

Who is called when:

* A server that is to be called is dialled in `open`: the round trip is not lost, the leg is up when the client calls,
  and a refused port is known before anything was announced.
* A client that is to be called is dialled when the server has called us; opposite a server that we call
  ourselves it is dialled in `open` too.

Octets flow as soon as both legs are up, before `start` as well: a client may call, and even send, before its verb is
answered (RFC 959 section 3.2, RFC 4217 section 12.5).  Until then what a peer sends waits in its socket's buffer.

How a path ends:

* Clean: each leg has sent its end of file and got the other's.  Half-closes are passed on one by one, so a receiver
  that closes its sending half first ends nothing.
* Clean: the sender's end of file was passed on, nothing is held back, and nothing happens for `close_wait` seconds.  A
  receiver that forgets to close must not keep the path.
* Broken: a reset, a network error, or nothing to be moved for `data_idle` seconds.  Both legs are reset.
* `close`: both legs are reset.

The clocks are looked at in one sweep a second, for all paths of the plane.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import evolve, frozen

from ..endpoints import Endpoint, Side
from ..estate import Estate, Inheritance
from ..freezing import Unthawable, freeze, thaw
from ..intercept.interceptor import Gate, GateError, NoPortLeft, PortRange
from ..paths import Await, Call, Direction, Leg, PathSpec, Tally
from ..reasons import Code, Reason
from ..switchboard import READ, WRITE, Switchboard
from .alive import AlivePaths
from .carriers import Broken, Flow, FlowRecord
from .legs import LegRecord, RelayLeg
from .plane import CUT_SHORT, PathOwner, Refused

__all__ = ["RelayPath", "RelayPlane"]

BUDGET = 1 << 20
"""Octets that one direction moves before everybody else has a turn."""

SPLICE_AFTER = 1 << 20
"""Octets in one direction that show a transfer to be big (splicing costs two descriptors and a pipe)."""

CONNECT_TIMEOUT = 30.0
"""Seconds that a dialled peer has to answer."""

DATA_SETUP = 120.0
"""Seconds for both legs to come up, from `open` and again from `start`; never below 30 (RFC 6384 section 12)."""

DATA_IDLE = 900.0
"""Seconds without an octet moved after which a data connection is broken."""

CLOSE_WAIT = 60.0
"""Seconds that the receiver has to close after it was told the end of file."""


@frozen(kw_only=True)
class PathRecord:
    """What a successor must know of a path.  Times are seconds ago."""

    spec: PathSpec
    """With the ports of awaited legs."""
    announced: dict[Side, Endpoint]
    dialled: set[Side]
    direction: Direction | None
    legs: dict[Side, LegRecord]
    flows: dict[Side, FlowRecord]
    set_up: float
    up: float
    moved: float
    delivered: bool


class RelayPath:
    """One relayed data connection.  Made by `RelayPlane.open`."""

    def __init__(self, plane: RelayPlane, spec: PathSpec, owner: PathOwner) -> None:
        self.announced: Mapping[Side, Endpoint] = {}
        self._plane = plane
        self._board = plane.board
        self._owner = owner
        self._legs = {side: RelayLeg(side, spec.leg(side), self, plane.board, plane.gate, plane.ports) for side in Side}
        self._dialled: set[Side] = set()  # in `open`, and not answered yet
        self._direction: Direction | None = None
        self._flows: dict[Side, Flow] = {}  # by the side that they read; empty until both legs are up
        self._set_up_at = self._board.now
        self._up_at = 0.0
        self._moved_at = 0.0
        self._delivered = False
        self._over = False

    reports_end = True
    counts_at_once = True

    @property
    def ready(self) -> bool:
        return not self._dialled

    def set_up(self) -> None:
        """Listen, and call who is to be called at once.  Raises `GateError`, `OSError`; then nothing is left over."""
        client, server = self._legs[Side.CLIENT], self._legs[Side.SERVER]
        try:
            self.announced = {leg.side: leg.listen() for leg in (client, server) if isinstance(leg.spec, Await)}
            for leg in (server, client):
                if isinstance(leg.spec, Call) and (leg is server or isinstance(server.spec, Call)):
                    leg.dial()
                    self._dialled.add(leg.side)
        except BaseException:
            self._let_go(cleanly=False)
            raise

    def start(self, direction: Direction) -> None:
        self._direction = direction
        self._set_up_at = self._moved_at = self._board.now

    def settle(self) -> None:
        """Each leg sees its own end."""

    def so_far(self) -> Tally | None:
        return self._tally(None, "") if self._flows else None

    def close(self) -> Tally | None:
        if self._over or not self._flows:
            self._let_go(cleanly=False)
            return None
        # Where all was delivered and said to be, only the other end did not hang up yet.
        sent = self._direction is not None and self._flows[self._direction.sender].ended
        self._let_go(cleanly=sent)
        return self._tally(None, "" if sent else CUT_SHORT)

    # To a successor, and from a predecessor

    def leave(self, estate: Estate) -> Any:
        now = self._board.now
        self._over = True
        self._plane.paths.forget(self)
        record = PathRecord(
            spec=self._spec_as_announced(),
            announced=dict(self.announced),
            dialled=self._dialled,
            direction=self._direction,
            legs={side: leg.leave(estate) for side, leg in self._legs.items()},
            flows={side: flow.leave(estate) for side, flow in self._flows.items()},
            set_up=now - self._set_up_at,
            up=now - self._up_at,
            moved=now - self._moved_at,
            delivered=self._delivered,
        )
        return freeze(record)

    def _spec_as_announced(self) -> PathSpec:
        def leg(side: Side) -> Leg:
            spec = self._legs[side].spec
            return evolve(spec, at=self.announced[side]) if isinstance(spec, Await) else spec

        return PathSpec(leg(Side.CLIENT), leg(Side.SERVER))

    def inherit(self, record: PathRecord, inheritance: Inheritance) -> None:
        """Go on where a predecessor has left off.  Raises `Unthawable`, `GateError`, `OSError`; then nothing is left
        over."""
        now = self._board.now
        self.announced = record.announced
        self._direction, self._delivered = record.direction, record.delivered
        self._set_up_at, self._up_at, self._moved_at = now - record.set_up, now - record.up, now - record.moved
        try:
            for side, leg in self._legs.items():
                leg.inherit(record.legs.get(side, LegRecord()), inheritance)
                if not leg.up and isinstance(leg.spec, Await):
                    leg.listen()
                elif not leg.up and side in record.dialled and leg.dialled_at is None:
                    leg.dial()
            self._dialled = record.dialled
            if record.flows:
                self._pair_flows()
                for side, flow in self._flows.items():
                    flow.inherit(record.flows[side], inheritance)
                self._watch()
        except BaseException:
            self._let_go(cleanly=False)
            raise

    # From the legs

    def leg_up(self, side: Side) -> None:
        self._dialled.discard(side)
        self._owner.connected(self, side)
        if self._over:
            return
        peer = self._legs[side.peer]
        if peer.up:
            self._carry()
        elif side is Side.SERVER and isinstance(peer.spec, Call) and peer.side not in self._dialled:
            try:
                peer.dial()
            except (GateError, OSError) as error:
                self._end(side.peer, Reason(Code.PLANE_FAILED, str(error), side=side.peer))

    def leg_failed(self, side: Side, why: str) -> None:
        self._end(side, why)

    def crashed(self, error: Exception) -> None:
        # Neither side's fault, but no clean end either.
        self._end(Side.SERVER, Reason(Code.INTERNAL, f"internal error: {error!r}"))

    # Carrying

    def _carry(self) -> None:
        self._pair_flows()
        self._up_at = self._moved_at = self._board.now
        self._watch()

    def _pair_flows(self) -> None:
        client, server = self._legs[Side.CLIENT], self._legs[Side.SERVER]
        down, up = Flow.pair(client.connection, server.connection, splice_after=self._plane.splice_after)
        self._flows = {Side.SERVER: down, Side.CLIENT: up}
        client.watch.callback = self._client_event
        server.watch.callback = self._server_event

    def _watch(self) -> None:
        """Wait for what the flows need."""
        for leg in self._legs.values():
            reading, writing = self._flows[leg.side].wants_read, self._flows[leg.side.peer].wants_write
            leg.watch.want((READ if reading else 0) | (WRITE if writing else 0))

    def _client_event(self, events: int) -> None:
        self._event(Side.CLIENT, events)

    def _server_event(self, events: int) -> None:
        self._event(Side.SERVER, events)

    def _event(self, side: Side, events: int) -> None:
        from_here, to_here = self._flows[side], self._flows[side.peer]
        moved = False
        try:
            if events & WRITE:
                moved = to_here.move(BUDGET)
            if events & READ:
                moved = from_here.move(BUDGET) or moved
        except Broken as broken:
            self._end(broken.side, Reason(Code.DATA_BROKEN, str(broken), side=broken.side))
            return
        if moved:
            self._moved_at = self._board.now
        if from_here.ended and to_here.ended:
            self._end(None, "")
            return
        if self._flows[Side.SERVER].ended and not self._delivered:
            self._delivered = True
            self._owner.delivered(self)
            if self._over:
                return
        self._watch()

    # The clock

    def sweep(self, now: float) -> None:
        """Look at the deadlines."""
        if self._flows:
            self._sweep_carrying(now - self._moved_at)
            return
        for leg in self._legs.values():
            if leg.dialled_at is not None and now - leg.dialled_at > self._plane.connect_timeout:
                text = f"the {leg.side} did not answer within {self._plane.connect_timeout:g} s"
                at = leg.spec.to if isinstance(leg.spec, Call) else None
                self._end(leg.side, Reason(Code.DATA_TIMEOUT, text, side=leg.side, at=at))
                return
        if now - self._set_up_at > self._plane.data_setup:
            missing = [leg.side for leg in self._legs.values() if not leg.up]
            text = f"no data connection with {' and '.join(map(str, missing))} within {self._plane.data_setup:g} s"
            at = self.announced.get(missing[0])
            self._end(None, Reason(Code.DATA_MISSING, text, side=missing[0], at=at))

    def _sweep_carrying(self, quiet: float) -> None:
        stuck = [flow for flow in self._flows.values() if flow.held]
        sent = self._direction is not None and self._flows[self._direction.sender].ended
        if sent and not stuck and quiet > self._plane.close_wait:
            self._end(None, "")
        elif quiet > self._plane.data_idle:
            if stuck:
                to_move = stuck[0].sink_side
            elif self._direction is None:
                to_move = Side.CLIENT  # whose verb never came
            else:
                to_move = self._direction.sender.peer if sent else self._direction.sender
            self._end(to_move, Reason(Code.DATA_IDLE, f"idle for {self._plane.data_idle:g} s", side=to_move))

    # The end

    def _end(self, failed: Side | None, why: str) -> None:
        """End it and tell the owner; a clean end has no `why`."""
        if self._over:
            return
        self._let_go(cleanly=not why)
        if not self._flows:
            self._owner.failed(self, why)
            return
        self._owner.finished(self, self._tally(failed, why))

    def _tally(self, failed: Side | None, why: str) -> Tally:
        octets_down, octets_up = self._flows[Side.SERVER].octets, self._flows[Side.CLIENT].octets
        return Tally(octets_down, octets_up, self._board.now - self._up_at, failed=failed, reason=why)

    def _let_go(self, *, cleanly: bool) -> None:
        if self._over:
            return
        self._over = True
        self._plane.paths.forget(self)
        for leg in self._legs.values():
            leg.close(cleanly=cleanly)
        for flow in self._flows.values():
            flow.close()


class RelayPlane:
    """Carries every path, at the price of this process's time.  See `DataPlane`; time-outs are in seconds."""

    name = "relay"

    def __init__(
        self,
        gate: Gate,
        ports: PortRange,
        board: Switchboard,
        *,
        connect_timeout: float = CONNECT_TIMEOUT,
        data_setup: float = DATA_SETUP,
        data_idle: float = DATA_IDLE,
        close_wait: float = CLOSE_WAIT,
        splice_after: int | None = SPLICE_AFTER,
    ) -> None:
        """`splice_after` octets in one direction it changes from copying to splicing; None: never."""
        self.gate = gate
        self.ports = ports
        self.board = board
        self.connect_timeout = connect_timeout
        self.data_setup = data_setup
        self.data_idle = data_idle
        self.close_wait = close_wait
        self.splice_after = splice_after
        self.paths: AlivePaths[RelayPath] = AlivePaths(board)

    def __len__(self) -> int:
        """Paths that are being prepared or carried."""
        return len(self.paths)

    def carries(self, spec: PathSpec) -> bool:
        return True

    def foresee(self, spec: PathSpec) -> None:
        """Nothing is done beforehand."""

    def open(self, spec: PathSpec, owner: PathOwner) -> RelayPath | Refused:
        if self.paths.closed:
            return Refused("the relay is closed")
        path = RelayPath(self, spec, owner)
        try:
            path.set_up()
        except NoPortLeft as error:
            return Refused(Reason(Code.PLANE_PORTS, str(error)))
        except (GateError, OSError) as error:
            return Refused(str(error))
        self.paths.add(path)
        return path

    def inherit(self, left: Any, owner: PathOwner, inheritance: Inheritance) -> RelayPath:
        record = thaw(left, PathRecord)
        if record.flows and record.flows.keys() != set(Side):
            raise Unthawable("a path with one flow")
        path = RelayPath(self, record.spec, owner)
        path.inherit(record, inheritance)
        self.paths.add(path)
        return path

    def close(self) -> None:
        self.paths.close()
