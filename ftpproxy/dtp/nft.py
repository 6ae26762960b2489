"""The kernel carries: a data plane of nftables elements.  No octet of a data connection enters this process.

A data connection with one awaited leg and one called one is two address translations, whoever calls:

    passive   client calls orig_server:N  ->  goes to server:p,  as coming from proxy
    active    server calls proxy:N        ->  goes to client:p,  as coming from orig_server[:20]

So a path is a handful of elements of our table (`ftpproxy.table` has the rules that look at them): `carried` and `once`
under (caller, called address, called port), `called` or `pinned` for the way out, and four counters under the first
key; where a firewall goes by marks, also `marked`.  What leads the call, and the first counter, stand when `open`
returns, by one transaction; the other counters follow while the announcement is on its way, in any case before the
transfer command.  Nobody is dialled: the path is ready at once, and whether the other end answers is seen by the caller
itself.  Elements are taken away in one transaction too, and never one that is gone already: to undo a transaction costs
the kernel milliseconds.

**Ports.**  The key has the caller's address, so one port serves any number of clients at once; a port is taken only if
the same caller is awaited, or counted, at the same address and port (NLM_F_EXCL).  Where two paths lead the same caller
to the same port of the same server, they share the element for the way out.

**Accounting.**  The kernel counts packets and their octets from the IP header on.  Less 52 octets of headers a packet
(IPv6: 72), which is IP, TCP and the time stamp option that every system in use has, that is the payload; the three-way
handshake, which has more options, is not counted.  Retransmissions count, and peers without time stamps are
under-estimated by 12 octets a packet, so the tally says that it is not exact.  The direction in which nothing is
transferred is counted as nothing: it has acknowledgements only, whose options would look like octets.

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
from typing import Any

from attrs import evolve

from ..doors import Doors
from ..endpoints import ANY_PORT, Endpoint, IPAddress
from ..estate import Inheritance
from ..freezing import Unthawable, thaw
from ..intercept.interceptor import PortRange
from ..netfilter import ELEMENT_SECONDS, Element, Elements, called, carried, of_path
from ..paths import PathSpec
from ..reasons import Code, Reason
from ..sockets import is_ours
from ..switchboard import Switchboard
from .alive import AlivePaths
from .nftpath import COUNTERS, NftPath, NftRecord, Way
from .plane import PathOwner, Refused

__all__ = ["COUNTERS", "NftPath", "NftPlane"]

MOST_TRIES = 500
"""How many ports one path tries before it gives up."""
DATA_SETUP = 120.0
DATA_IDLE = 900.0


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
        if (halves := spec.halves) is None:
            return False
        _, leg, call = halves
        return len({host.version for host in (leg.at.host, leg.peer, call.to.host, call.source.host)}) == 1

    def open(self, spec: PathSpec, owner: PathOwner) -> NftPath | Refused:
        halves = spec.halves
        if halves is None or not self.carries(spec):
            return Refused(
                Reason(
                    Code.PLANE_UNSUITED,
                    "the kernel carries between one awaited and one called leg of one address family",
                )
            )
        if self.paths.closed:
            return Refused("the plane is closed")
        caller, leg, call = halves
        for host in (leg.peer, call.to.host):
            if self._is_ours(host):  # what this machine sends passes no prerouting, what it receives no postrouting
                return Refused(
                    Reason(
                        Code.PLANE_UNSUITED, f"{host} is this machine itself; the kernel carries only what is forwarded"
                    )
                )
        out = called(leg.peer, call.to, call.source, seconds=self.seconds)
        try:
            return self._open(Way(caller, leg, call), out, owner)
        except PermissionError:
            return Refused(
                Reason(
                    Code.PLANE_PERMISSION,
                    "changing nftables needs CAP_NET_ADMIN: run this as root, or give it the capability",
                )
            )
        except OSError as error:
            return Refused(str(error))

    def _open(self, way: Way, out: Element, owner: PathOwner) -> NftPath | Refused:
        leg, to = way.leg, way.call.to
        place = leg.at.host.version, out.key
        shared, users = self.elements.ways_out.get(place, (None, 0))
        if shared is not None and shared != out:
            return Refused(
                Reason(Code.PLANE_UNSUITED, f"{leg.peer} is being led to {to} already, under another address")
            )
        if shared is not None:
            self.elements.remove(out)  # and again below: its time begins anew
        for port in self._candidates(leg.at.port):
            at = leg.at.at(port)
            if self._doors.taken(at, leg.peer):
                continue
            once, ways_in, counters = self._elements(leg.peer, at, to, mark=self._mark)
            try:
                self.elements.add(once, *ways_in, counters[0], out)
            except FileExistsError:
                continue
            self.elements.ways_out[place] = out, users + 1
            release = self._doors.reserve(at, leg.peer)
            path = NftPath(self, owner, evolve(way, leg=evolve(leg, at=at)), once, ways_in, counters, out, release)
            self.paths.add(path)
            self.board.soon(path.count, path.crashed)
            return path
        if shared is not None:
            self.elements.add(out)
        if leg.at.port != ANY_PORT:
            return Refused(Reason(Code.PLANE_PORTS, f"{leg.peer} is awaited at {leg.at} already"))
        return Refused(
            Reason(Code.PLANE_PORTS, f"no port is left for {leg.peer} in {self._ports}; more data_ports are needed")
        )

    def _elements(
        self, peer: IPAddress, at: Endpoint, to: Endpoint, *, mark: bool
    ) -> tuple[Element, tuple[Element, ...], tuple[Element, ...]]:
        """What leads `peer` from `at` to `to` once, perhaps with a `mark`, and counts."""
        version, seconds = at.host.version, self.seconds
        once = of_path("once", peer, at, seconds=seconds)
        counters = tuple(Element(f"{kind}{version}", once.key, b"", seconds) for kind in COUNTERS)
        ways_in = [carried(peer, at, to, seconds=seconds)]
        if mark:
            ways_in.append(of_path("marked", peer, at, seconds=seconds))
        return once, tuple(ways_in), counters

    def _candidates(self, wanted: int) -> Iterator[int]:
        return iter((wanted,)) if wanted != ANY_PORT else self._ports.once_round(MOST_TRIES)

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
        if len({host.version for host in (at.host, peer, to.host, way.call.source.host)}) != 1:
            raise Unthawable("a path of two families")
        if not len(record.counted) == len(record.last) == len(COUNTERS):
            raise Unthawable(f"a path has {len(COUNTERS)} counters")
        if self._doors.taken(at, peer):
            raise Unthawable(f"{peer} is awaited at {at} already")
        once, ways_in, counters = self._elements(peer, at, to, mark=record.marked)
        out = called(peer, to, way.call.source, seconds=self.seconds)
        path = NftPath(
            self, owner, way, once, ways_in, counters, out if record.awaited else None, self._doors.reserve(at, peer)
        )
        path.inherit(record)
        self.elements.keep(once, *ways_in, *counters, out)
        if record.awaited:
            place = at.host.version, out.key
            ways_out = self.elements.ways_out
            ways_out[place] = out, ways_out.get(place, (out, 0))[1] + 1
        self.paths.add(path)
        return path

    def close(self) -> None:
        self.paths.close()
