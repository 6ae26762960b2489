"""The kernel carries: a data plane of nftables elements.  No octet of a data connection enters this process.

A data connection with one awaited leg and one called one is two address translations, whoever calls:

    passive   client calls orig_server:N  ->  goes to server:p,  as coming from proxy
    active    server calls proxy:N        ->  goes to client:p,  as coming from orig_server[:20]

So a path is a handful of elements of our table (`ftpproxy.table` has the rules that look at them): `carried` and `once`
under (caller, called address, called port), `called` or `pinned` for the way out, and four counters under the first
key.  What leads the call, and the first counter, stand when `open` returns, by one transaction; the other counters
follow while the announcement is on its way, in any case before the transfer command.  Nobody is dialled: the path is
ready at once, and whether the other end answers is seen by the caller itself.  Elements are taken away in one
transaction too, and never one that is gone already: to undo a transaction costs the kernel milliseconds.

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

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress

from ..doors import Doors
from ..endpoints import ANY_PORT, Endpoint, IPAddress, Side
from ..intercept.interceptor import PortRange
from ..netfilter import ELEMENT_SECONDS, Count, Element, Elements, called, carried, of_path
from ..paths import Await, Direction, PathSpec, Tally
from ..reasons import Code, Reason
from ..sockets import is_ours
from ..switchboard import Switchboard
from .alive import AlivePaths
from .plane import CUT_SHORT, PathOwner, Refused

__all__ = ["NftPath", "NftPlane"]

HEADERS = {4: 52, 6: 72}
"""Octets of each packet that are not payload, by IP version."""

MOST_TRIES = 500
"""How many ports one path tries before it gives up."""
QUIET = {False: 60.0, True: 2.0}
"""Seconds without an octet after which a settled transfer is over, by whether an end of the receiver's was seen.  Where
not, a client may just be slow to read what the server's kernel still holds."""
COUNTERS = ("forth", "back", "forth_end", "back_end")
SELDOM = 10.0
"""Seconds between two looks at the counters of a transfer, at most."""
SHOWN = 1.0
"""Seconds between two looks for those who watch, however many they are."""
DATA_SETUP = 120.0
DATA_IDLE = 900.0


class NftPath:
    """One data connection that the kernel carries.  Made by `NftPlane.open`."""

    ready = True
    reports_end = False
    counts_at_once = True

    def __init__(
        self,
        plane: NftPlane,
        owner: PathOwner,
        caller: Side,
        at: Endpoint,
        once: Element,
        carried: Element,
        counters: tuple[Element, ...],
        out: Element,
        release: Callable[[], None],
    ) -> None:
        """`once` and `carried` lead the caller's one call; `out` is its way out, which may be shared; `release` gives
        its place back."""
        self.announced: Mapping[Side, Endpoint] = {caller: at}
        self._plane = plane
        self._owner = owner
        self._caller = caller
        self._version = at.host.version
        self._once = once
        self._carried = carried
        self._out: Element | None = out
        self._release = release
        self.counters = counters
        self._counting = False
        self._counted = [Count()] * len(COUNTERS)  # of counters that were replaced since
        self._last = [Count()] * len(COUNTERS)
        self._reloads = self._reloads_before = plane.elements.reloads
        self._direction: Direction | None = None
        now = plane.board.now
        self._set_up_at = self._begun_at = self._moved_at = self._looked_at = now
        self._renew_at = now + plane.seconds / 2
        self._look_at = now + SELDOM
        self._up = False
        self._reported = False
        self._settled = False
        self._over = False

    def start(self, direction: Direction) -> None:
        with suppress(OSError):
            self.count()  # if not, the call that is to come soon fails as well, and reports it
        now = self._plane.board.now
        if self._direction is not None:  # another file of the same connection (MODE B)
            self._settled = False
        self._direction = direction
        self._set_up_at = self._begun_at = self._moved_at = self._look_at = now

    def settle(self) -> None:
        if self._over or self._settled:
            return
        self._settled = True
        self._plane.board.behind(self._conclude, self.crashed)

    def so_far(self) -> Tally | None:
        now = self._plane.board.now
        if not self._over and now - self._looked_at >= SHOWN:
            self._look()
        return self._tally(None, "") if self._up else None

    def close(self) -> Tally | None:
        if self._over:
            return None
        try:
            self._look()
        finally:
            self._let_go()
        if not self._up:
            return None
        return self._tally(None, "" if self._settled or self._ended else CUT_SHORT)

    def crashed(self, error: Exception) -> None:
        """Something in here went wrong."""
        self._end(None, Reason(Code.INTERNAL, f"internal error: {error!r}"))

    # The counters

    @property
    def _ended(self) -> bool:
        """The sender's end has come by; where none is known, both have."""
        ends = self._ends()
        return all(ends.values()) if self._direction is None else ends[self._direction.sender]

    def _ends(self) -> dict[Side, bool]:
        return {self._caller: self._total(2).packets > 0, self._caller.peer: self._total(3).packets > 0}

    def _total(self, which: int) -> Count:
        before, last = self._counted[which], self._last[which]
        return Count(before.packets + last.packets, before.octets + last.octets)

    def count(self, _: float = 0.0) -> None:
        """Install the counters that `open` has left out.  Raises `OSError`."""
        if not self._counting and not self._over:
            self._plane.elements.add(*self.counters[1:])
            self._counting = True

    def _look(self) -> None:
        """Read the counters; before a transfer only whether the call has come."""
        elements = self._plane.elements
        self._looked_at = self._plane.board.now
        before = self._payload()
        if self._up or self._direction is not None:
            read = elements.read(*self.counters)
        else:
            read = [*elements.read(self.counters[0]), *self._last[1:]]
        if elements.reloads != self._reloads or any(now < then for now, then in zip(read, self._last, strict=True)):
            self._reloads = elements.reloads  # the table was flushed: they began again
            self._begin_again()
        self._last = read
        if read[0].packets and not self._up:
            self._up = True
            elements.forget(self._once)  # which the call took away
            self._moved_at = self._plane.board.now
        if self._payload() != before:
            self._moved_at = self._plane.board.now

    def _begin_again(self) -> None:
        self._counted = [self._total(which) for which in range(len(COUNTERS))]
        self._last = [Count()] * len(COUNTERS)

    def _renew(self, now: float) -> None:
        """Counters must not time out before the transfer.  (Linux changes the time of an element only since 6.12.)"""
        self._begin_again()
        self._counting = True
        self._plane.elements.remove(*self.counters)
        self._plane.elements.add(*self.counters)
        self._renew_at = now + self._plane.seconds / 2

    # The clock

    def sweep(self, now: float) -> None:
        """Look whether something has happened."""
        if self._over or (now < self._look_at and not self._settled):
            return
        self._look()
        # Soon at first, seldom when it has lasted.
        self._look_at = now + (SELDOM if self._direction is None else min(SELDOM, now - self._begun_at))
        if self._up:
            self._sweep_carrying(now)
        elif now - self._set_up_at > self._plane.data_setup:
            caller = self._caller
            text = f"no data connection came from the {caller} within {self._plane.data_setup:g} s"
            self._end(None, Reason(Code.DATA_MISSING, text, side=caller, at=self.announced[caller]))

    def _sweep_carrying(self, now: float) -> None:
        if not self._reported:
            self._reported = True
            self._stop_awaiting()
            for side in Side:
                self._owner.connected(self, side)
                if self._over:
                    return
        if self._ended or (self._settled and now - self._moved_at >= QUIET[any(self._ends().values())]):
            self._end(None, "")
        elif now - self._moved_at > self._plane.data_idle:
            sender = self._direction.sender if self._direction is not None else Side.CLIENT
            self._end(sender, Reason(Code.DATA_IDLE, f"idle for {self._plane.data_idle:g} s", side=sender))
        elif now >= self._renew_at:
            self._renew(now)

    # The end

    def _conclude(self, now: float) -> None:
        """Settled: look whether anything more can come."""
        if self._over or not self._settled:
            return
        self._look()
        if not self._up:  # came and went while the table was gone, perhaps
            self._plane.elements.check()
            self._up = self._plane.elements.reloads != self._reloads_before
        if not self._up:
            text = f"no data connection came from the {self._caller}"
            self._end(None, Reason(Code.DATA_MISSING, text, side=self._caller, at=self.announced[self._caller]))
        elif self._ended:
            self._end(None, "")
        else:
            self._stop_awaiting()

    def _end(self, failed: Side | None, why: str) -> None:
        if self._over:
            return
        self._let_go()
        if self._up:
            self._owner.finished(self, self._tally(failed, why))
        else:
            self._owner.failed(self, why)

    def _tally(self, failed: Side | None, why: str) -> Tally:
        octets = self._payload()
        seconds = max(0.0, self._moved_at - self._begun_at)
        return Tally(octets[Side.SERVER], octets[Side.CLIENT], seconds, exact=False, failed=failed, reason=why)

    def _payload(self) -> dict[Side, int]:
        """The octets that each side has sent."""
        headers = HEADERS[self._version]
        forth, back = self._total(0), self._total(1)
        octets = {
            self._caller: max(0, forth.octets - headers * forth.packets),
            self._caller.peer: max(0, back.octets - headers * back.packets),
        }
        if self._direction is not None:
            octets[self._direction.sender.peer] = 0
        return octets

    def _stop_awaiting(self, *others: Element) -> None:
        """The call has come, or must not come any more; and remove `others`."""
        gone = list(others)
        if self._out is not None:
            out, self._out = self._out, None
            gone.append(self._carried)
            if not self._up:
                gone.append(self._once)
            if self._plane.leaves(out):
                gone.append(out)
        if gone:
            self._plane.elements.remove(*gone)

    def _let_go(self) -> None:
        self._over = True
        self._plane.paths.forget(self)
        self._release()
        self._stop_awaiting(*self.counters[: None if self._counting else 1])


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
    ) -> None:
        self.elements = elements
        self.board = board
        self.data_setup = data_setup
        self.data_idle = data_idle
        self.seconds = seconds
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
            return self._open(caller, leg, call.to, out, owner)
        except PermissionError:
            return Refused(
                Reason(
                    Code.PLANE_PERMISSION,
                    "changing nftables needs CAP_NET_ADMIN: run this as root, or give it the capability",
                )
            )
        except OSError as error:
            return Refused(str(error))

    def _open(self, caller: Side, leg: Await, to: Endpoint, out: Element, owner: PathOwner) -> NftPath | Refused:
        place = leg.at.host.version, out.key
        shared, users = self.elements.ways_out.get(place, (None, 0))
        if shared is not None and shared != out:
            return Refused(
                Reason(Code.PLANE_UNSUITED, f"{leg.peer} is being led to {to} already, under another address")
            )
        if shared is not None:
            self.elements.remove(out)  # and again below: its time begins anew
        version, seconds = leg.at.host.version, self.seconds
        for port in self._candidates(leg.at.port):
            at = leg.at.at(port)
            if self._doors.taken(at, leg.peer):
                continue
            once = of_path("once", leg.peer, at, seconds=seconds)
            way_in = carried(leg.peer, at, to, seconds=seconds)
            counters = tuple(Element(f"{kind}{version}", once.key, b"", seconds) for kind in COUNTERS)
            try:
                self.elements.add(once, way_in, counters[0], out)
            except FileExistsError:
                continue
            self.elements.ways_out[place] = out, users + 1
            release = self._doors.reserve(at, leg.peer)
            path = NftPath(self, owner, caller, at, once, way_in, counters, out, release)
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

    def close(self) -> None:
        self.paths.close()
