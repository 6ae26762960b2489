"""The kernel carries: a data plane of nftables elements.  No octet of a data connection enters this process.

A data connection with one awaited leg and one called one is two address translations, whoever calls:

    passive   client calls orig_server:N  ->  goes to server:p,  as coming from proxy
    active    server calls proxy:N        ->  goes to client:p,  as coming from orig_server[:20]

So a path is a handful of elements of our table (`ftpproxy.table` has the rules that look at them): under (caller,
called address, called port) `once`, which makes the caller's *place*; `carried` under the same key and `called` or
`pinned` for the way out, which lead him on; and where a firewall goes by marks, `marked`.  They stand when `open`
returns, by one transaction, or by two where the path was foreseen: the place is made while the server thinks about
PASV, the rest when it has named its port.  (Also the mark: who guesses the place before is not led on, and would be let
in to whatever he has called.)  Nobody is dialled: the path is ready at once, and whether the other end answers is seen
by the caller itself.  Elements are taken away in one transaction too, and never one that is gone already: to undo a
transaction costs the kernel milliseconds.

**Ports.**  The key has the caller's address, so one port serves any number of clients at once; a port is taken only if
the same caller is awaited, or counted, at the same address and port (NLM_F_EXCL).  Where two paths lead the same caller
to the same port of the same server, they share the element for the way out.

**Accounting.**  The kernel counts packets and their octets (`dtp.nftcount`), so the tally is not exact.  The direction
in which nothing is transferred is counted as nothing: it has acknowledgements only, whose options would look like
octets.

**Ends.**  The kernel does not tell.  The counters are looked at, seldom while octets flow (so that the session is known
to be busy), at once when the server has said its last word about the transfer (`settle`), and then every second, as the
server's last octets may still be on their way to a slow client.  It is over when the sender's FIN or RST has come by,
for all that it sent has come by before; or when the receiver's has and nothing moves any more (a reset is not
answered), or when nothing has moved for long.

What this plane cannot do: end a connection.  Removing elements leaves running flows alone, which is what lets them
survive this process; it also means that `close` keeps new calls out and nothing else.  Packets that a flowtable of the
administrator's forwards pass no chain and are not counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from ..doors import Doors
from ..endpoints import ANY_PORT, IPAddress
from ..estate import Inheritance
from ..freezing import Unthawable, thaw
from ..intercept.interceptor import PortRange
from ..netfilter import ELEMENT_SECONDS, Element, Elements, led
from ..paths import Await, Call, Leg, PathSpec
from ..reasons import Code, Reason
from ..sockets import is_ours
from ..switchboard import Switchboard
from .alive import AlivePaths
from .nftcount import COUNTERS
from .nftpath import NftPath, NftRecord, Place, Way
from .plane import PathOwner, Refused

__all__ = ["NftPath", "NftPlane"]

MOST_TRIES = 500
"""How many ports one path tries before it gives up."""
DATA_SETUP = 120.0
DATA_IDLE = 900.0


class _Cannot(Exception):
    """This plane does not carry that: a code, and a sentence for the log."""


def _refused(error: _Cannot | OSError) -> Refused:
    if isinstance(error, _Cannot):
        return Refused(Reason(*error.args))
    if isinstance(error, PermissionError):
        text = "changing nftables needs CAP_NET_ADMIN: run this as root, or give it the capability"
        return Refused(Reason(Code.PLANE_PERMISSION, text))
    return Refused(str(error))


def _of_one_family(leg: Await, call: Call) -> bool:
    return leg.at.host.version == leg.peer.version == call.to.host.version == call.source.host.version


class NftPlane:
    """Data connections through the kernel, for peers beyond this machine.  Needs our table and CAP_NET_ADMIN.

    See `DataPlane`; times are in seconds.  `elements` may be shared with gates of this process and stays its maker's to
    close.  An element lives `seconds` if nobody removes it: more than a data connection may take to come up.
    """

    name = "nft"

    def __init__(
        self,
        elements: Elements,
        ports: PortRange,
        board: Switchboard,
        doors: Doors,
        *,
        data_setup: float = DATA_SETUP,
        data_idle: float = DATA_IDLE,
        seconds: float = ELEMENT_SECONDS,
        mark: bool = False,
    ) -> None:
        """`mark`: connections carry `FIREWALL_MARK` in their mark (ct mark)."""
        self.elements = elements
        self.board = board
        self.data_setup = data_setup
        self.data_idle = data_idle
        self.seconds = seconds
        self._mark = mark
        self._ports = ports
        self._doors = doors
        self.paths: AlivePaths[NftPath] = AlivePaths(board)
        self._ours: dict[IPAddress, bool] = {}
        self._ask_at = 0.0

    def __len__(self) -> int:
        """Paths that are being prepared or carried."""
        return len(self.paths)

    def carries(self, spec: PathSpec) -> bool:
        """One leg awaited, one called, and all of one family."""
        halves = spec.halves
        return halves is not None and _of_one_family(*halves[1:])

    def open(self, spec: PathSpec, owner: PathOwner) -> NftPath | Refused:
        try:
            return self._open(self._way(spec), owner)
        except (_Cannot, OSError) as error:
            return _refused(error)

    def foresee(self, spec: PathSpec) -> NftForeseen | None:
        """The caller's place stands from now on; where his call leads follows when that is known."""
        try:
            way = self._way(spec)
            for place in self._places(way):
                with suppress(FileExistsError):
                    self.elements.add(place.once)
                    place.reserve(self._doors)
                    return NftForeseen(self, way, NftPath(self, place))
        except (_Cannot, OSError):
            pass  # `open` will say why
        return None

    def _way(self, spec: PathSpec) -> Way:
        """Who calls where, and where that leads.  Raises `_Cannot`."""
        halves = spec.halves
        if halves is None or not _of_one_family(*halves[1:]):
            raise _Cannot(
                Code.PLANE_UNSUITED, "the kernel carries between one awaited and one called leg of one address family"
            )
        if self.paths.closed:
            raise _Cannot(Code.PLANE_FAILED, "the plane is closed")
        caller, leg, call = halves
        for host in (leg.peer, call.to.host):
            if self._is_ours(host):  # what this machine sends passes no prerouting, what it receives no postrouting
                raise _Cannot(
                    Code.PLANE_UNSUITED, f"{host} is this machine itself; the kernel carries only what is forwarded"
                )
        return Way(caller, leg, call)

    def _open(self, way: Way, owner: PathOwner) -> NftPath:
        leg = way.leg
        for place in self._places(way):
            with suppress(FileExistsError):
                path = NftPath(self, place)
                self.lead(path, way.call, owner, place.once)
                place.reserve(self._doors)
                return path
        if leg.at.port != ANY_PORT:
            raise _Cannot(Code.PLANE_PORTS, f"{leg.peer} is awaited at {leg.at} already")
        raise _Cannot(Code.PLANE_PORTS, f"no port is left for {leg.peer} in {self._ports}; more data_ports are needed")

    def lead(self, path: NftPath, call: Call, owner: PathOwner, *missing: Element) -> None:
        """Lead the path on from its place, where these are `missing`.  Raises `_Cannot`, `OSError`: `FileExistsError`
        if somebody has the place."""
        way_in, out = led(path.place.once, call.to, call.source)
        key = call.to.host.version, out.key
        shared, users = self.elements.ways_out.get(key, (None, 0))
        if shared is not None:
            if (shared.map, shared.data) != (out.map, out.data):
                text = f"{path.place.leg.peer} is being led to {call.to} already, under another address"
                raise _Cannot(Code.PLANE_UNSUITED, text)
            self.elements.remove(out)  # and again with the others: its time begins anew
            out = out._replace(seconds=max(out.seconds, shared.seconds))
        try:
            self.elements.add(*missing, *path.place.marks, way_in, out)
        except OSError as error:
            if shared is not None:  # others need it
                self.elements.add(shared)
            elif isinstance(error, FileExistsError) and self._stands(out):
                text = f"{path.place.leg.peer} is being led to {call.to} already, by another process"
                raise _Cannot(Code.PLANE_UNSUITED, text) from None
            raise
        self.elements.ways_out[key] = out, users + 1
        path.lead(owner, call, (way_in, out))
        self.paths.add(path)

    def _places(self, way: Way) -> Iterator[Place]:
        """Where the caller may be told to call: places that no path of this process has.  When one was another
        process's, the kernel is asked about the next: each attempt that fails costs milliseconds."""
        wanted, peer = way.leg.at, way.leg.peer
        ports = iter((wanted.port,)) if wanted.port != ANY_PORT else self._ports.once_round(MOST_TRIES)
        crowded = False
        for port in ports:
            at = wanted.at(port)
            if not self._doors.taken(at, peer):
                place = Place(way.caller, Await(at, peer), self.seconds, mark=self._mark)
                once = place.once
                if not (crowded and self._stands(once, once._replace(map=f"carried{peer.version}"))):
                    yield place
                    crowded = True

    def _stands(self, *elements: Element) -> bool:
        """Whether any of them stands, whosever it is."""
        return any(count is not None for count in self.elements.read(*elements))

    def taken(self, place: Place) -> bool:
        """Whether its caller is awaited there, for whatever path."""
        return self._doors.taken(place.leg.at, place.leg.peer)

    def leaves(self, out: Element) -> bool:
        """A path does not need its way out any more; whether nobody else does."""
        place = int(out.map[-1]), out.key
        _, users = self.elements.ways_out[place]
        if users > 1:
            self.elements.ways_out[place] = out, users - 1
            return False
        del self.elements.ways_out[place]
        return True

    def _is_ours(self, host: IPAddress) -> bool:
        """`is_ours`, asked at most once a second for each host."""
        if self.board.now >= self._ask_at:
            self._ask_at = self.board.now + 1
            self._ours.clear()
        if (known := self._ours.get(host)) is None:
            known = self._ours[host] = is_ours(host)
        return known

    def inherit(self, left: Any, owner: PathOwner, inheritance: Inheritance) -> NftPath:
        record = thaw(left, NftRecord)
        way = record.way
        peer, at, to = way.leg.peer, way.leg.at, way.call.to
        if not _of_one_family(way.leg, way.call):
            raise Unthawable("a path of two families")
        if len(record.counted.last) != len(COUNTERS):
            raise Unthawable(f"a path has {len(COUNTERS)} counters")
        if self._doors.taken(at, peer):
            raise Unthawable(f"{peer} is awaited at {at} already")
        place = Place(way.caller, way.leg, self.seconds, mark=record.marked)
        place.reserve(self._doors)
        way_in, out = led(place.once, to, way.call.source)
        path = NftPath(self, place)
        path.lead(owner, way.call, (way_in, out))
        path.inherit(record)
        self.elements.keep(place.once, *place.marks, way_in, out)
        if record.awaited:
            key = at.host.version, out.key
            ways_out = self.elements.ways_out
            ways_out[key] = out, ways_out.get(key, (out, 0))[1] + 1
        self.paths.add(path)
        return path

    def close(self) -> None:
        self.paths.close()


class NftForeseen:
    """A place that stands before it is known where it leads.  Made by `NftPlane.foresee`."""

    def __init__(self, plane: NftPlane, way: Way, path: NftPath) -> None:
        self._plane = plane
        self._way = way
        self._path = path
        self._until = plane.board.now + plane.seconds / 2
        self._over = False

    def open(self, spec: PathSpec, owner: PathOwner) -> NftPath | Refused:
        call = spec.server
        if isinstance(call, Call) and self._fits(spec.client, call):
            with suppress(_Cannot, OSError):
                self._plane.lead(self._path, call, owner)
                self._over = True
                return self._path
        self.close()
        return self._plane.open(spec, owner)

    def _fits(self, leg: Leg, call: Call) -> bool:
        """Whether it was this that was foreseen, not long ago."""
        then = self._way.call
        same = (leg, call.to.host, call.source) == (self._way.leg, then.to.host, then.source)
        return same and self._plane.board.now < self._until and not self._plane.paths.closed

    def close(self) -> None:
        if not self._over:
            self._over = True
            with suppress(OSError):
                self._path.abandon()
