"""One data connection that the kernel carries: its counters, its clocks and its end.  What it is made of, and why, is
told in `dtp.nft`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from attrs import frozen

from ..doors import Doors
from ..endpoints import Endpoint, Side
from ..estate import Estate
from ..freezing import freeze
from ..netfilter import ELEMENT_SECONDS, Element, of_path
from ..paths import Await, Call, Direction, Tally
from ..reasons import Code, Reason
from .nftcount import Counted, Counters
from .plane import CUT_SHORT, PathOwner

if TYPE_CHECKING:
    from .nft import NftPlane

__all__ = ["NftPath", "NftRecord", "Way"]

QUIET = {False: 60.0, True: 2.0}
"""Seconds without an octet after which a settled transfer is over, by whether an end of the receiver's was seen.  Where
not, a client may just be slow to read what the server's kernel still holds."""
SELDOM = 10.0
"""Seconds between two looks at the counters of a transfer, at most."""
SHOWN = 1.0
"""Seconds between two looks for those who watch, however many they are."""


@frozen
class Way:
    """Who calls where, and where that leads."""

    caller: Side
    leg: Await
    """With its port."""
    call: Call


@frozen(kw_only=True)
class NftRecord:
    """What a successor must know of a path.  Times are seconds ago, or (`renew`) until then."""

    way: Way
    awaited: bool
    """The call has not come."""
    counted: Counted
    flushed: bool
    """The table was lost since it was opened."""
    direction: Direction | None
    set_up: float
    begun: float
    moved: float
    renew: float
    up: bool
    reported: bool
    settled: bool
    marked: bool = False


class Place:
    """Where `caller` is awaited for one call."""

    __slots__ = ("_give_back", "announced", "caller", "leg", "marks", "once")

    def __init__(self, caller: Side, leg: Await, seconds: float, *, mark: bool) -> None:
        """`leg` has its port; the elements live `seconds` unless they are removed.  `mark` the connection for the
        administrator's firewall."""
        self.caller = caller
        self.leg = leg
        self.announced = {caller: leg.at}
        self.once = once = of_path("once", leg.peer, leg.at, seconds=seconds)
        self.marks = (once._replace(map=f"marked{leg.at.host.version}"),) if mark else ()
        self._give_back: Callable[[], None] | None = None

    def reserve(self, doors: Doors) -> None:
        """Nobody else of this process tells the caller the same place, until `give_back`."""
        self._give_back = doors.reserve(self.leg.at, self.leg.peer)

    def give_back(self) -> None:
        if self._give_back is not None:
            self._give_back()
            self._give_back = None


class NftPath:
    """One data connection that the kernel carries.  Made by `NftPlane.open`."""

    ready = True
    reports_end = False
    counts_at_once = True

    _owner: PathOwner
    _call: Call

    def __init__(self, plane: NftPlane, place: Place) -> None:
        """It leads from `place` to nowhere until `lead`."""
        self.announced: Mapping[Side, Endpoint] = place.announced
        self.place = place
        self._plane = plane
        self._caller = place.caller
        self._counters = Counters(plane.elements, place.once, place.caller, place.leg.at.host.version)
        self._ways: tuple[Element, Element] | None = None
        self._awaited = True
        self._direction: Direction | None = None
        self._up = False
        self._reported = False
        self._settled = False
        self._over = False

    def lead(self, owner: PathOwner, call: Call, ways: tuple[Element, Element]) -> None:
        """From now on it leads to what `call` says by these `ways`: one in, for one call, and one out, which others may
        need as well."""
        self._owner = owner
        self._call = call
        self._ways = ways
        self._reloads_before = self._plane.elements.reloads
        now = self._plane.board.now
        self._set_up_at = self._begun_at = self._moved_at = self._looked_at = now
        self._renew_at = self._half_time(now)
        self._look_at = now + SELDOM

    def _half_time(self, now: float) -> float:
        """Of the counters, whoever has made them."""
        return now + min(self._plane.seconds, ELEMENT_SECONDS) / 2

    def start(self, direction: Direction) -> None:
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

    def leave(self, estate: Estate) -> Any:
        """Everything of it stands in the kernel, and goes on standing there."""
        with suppress(OSError):
            self._look()
        now = self._plane.board.now
        self._over = True
        self._plane.paths.forget(self)
        record = NftRecord(
            way=Way(self._caller, self.place.leg, self._call),
            awaited=self._awaited,
            counted=self._counters.leave(),
            flushed=self._plane.elements.reloads != self._reloads_before,
            direction=self._direction,
            set_up=now - self._set_up_at,
            begun=now - self._begun_at,
            moved=now - self._moved_at,
            renew=self._renew_at - now,
            up=self._up,
            reported=self._reported,
            settled=self._settled,
            marked=bool(self.place.marks),
        )
        return freeze(record)

    def inherit(self, record: NftRecord) -> None:
        """Go on where a predecessor has left off."""
        now = self._plane.board.now
        self._awaited = record.awaited
        self._counters.inherit(record.counted)
        self._reloads_before = -1 if record.flushed else 0
        self._direction = record.direction
        self._set_up_at, self._begun_at, self._moved_at = now - record.set_up, now - record.begun, now - record.moved
        self._renew_at, self._look_at = now + record.renew, now
        self._up, self._reported, self._settled = record.up, record.reported, record.settled
        if self._settled:
            self._plane.board.behind(self._conclude, self.crashed)

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

    def abandon(self) -> None:
        """It will not `lead` anywhere.  Raises `OSError`."""
        self._counters.look()  # somebody may have called already
        self._let_go()

    def crashed(self, error: Exception) -> None:
        """Something in here went wrong."""
        self._end(None, Reason(Code.INTERNAL, f"internal error: {error!r}"))

    # The counters

    @property
    def _ended(self) -> bool:
        """The sender's end has come by; where none is known, both have."""
        ends = self._counters.ends
        return all(ends.values()) if self._direction is None else ends[self._direction.sender]

    def _look(self) -> None:
        """Ask the kernel what has come by."""
        now, counters = self._plane.board.now, self._counters
        self._looked_at = now
        before, called = counters.payload, counters.called
        counters.look()
        if counters.called and not called:
            self._plane.elements.forget(self.place.once)  # which the call took away
        if (counters.up and not self._up) or counters.payload != before:
            self._moved_at = now
        self._up |= counters.up

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
        if self._ended or (self._settled and now - self._moved_at >= QUIET[any(self._counters.ends.values())]):
            self._end(None, "")
        elif now - self._moved_at > self._plane.data_idle:
            sender = self._direction.sender if self._direction is not None else Side.CLIENT
            self._end(sender, Reason(Code.DATA_IDLE, f"idle for {self._plane.data_idle:g} s", side=sender))
        elif now >= self._renew_at:
            self._counters.renew()
            self._renew_at = self._half_time(now)

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
        try:
            self._let_go()
        finally:  # whatever became of the elements, which have their time
            if self._up:
                self._owner.finished(self, self._tally(failed, why))
            else:
                self._owner.failed(self, why)

    def _tally(self, failed: Side | None, why: str) -> Tally:
        octets = self._counters.payload
        if self._direction is not None:
            octets[self._direction.sender.peer] = 0
        seconds = max(0.0, self._moved_at - self._begun_at)
        return Tally(octets[Side.SERVER], octets[Side.CLIENT], seconds, exact=False, failed=failed, reason=why)

    def _stop_awaiting(self, *others: Element) -> None:
        """The call has come, or must not come any more; and remove `others`."""
        gone = list(others)
        if self._awaited:
            self._awaited = False
            if not self._counters.called:
                gone.append(self.place.once)
            if self._ways is not None:
                way_in, out = self._ways
                gone += (*self.place.marks, way_in)
                if self._plane.leaves(out):
                    gone.append(out)
        if gone:
            self._plane.elements.remove(*gone)

    def _let_go(self) -> None:
        self._over = True
        self._plane.paths.forget(self)
        self.place.give_back()
        self._stop_awaiting(*self._counters.standing)
        self._plane.board.behind(self._clear_up, _nothing_left_to_end)

    def _clear_up(self, _: float) -> None:
        if not self._plane.taken(self.place):  # else what is there may be another's
            with suppress(OSError):  # then it goes with its time
                self._counters.remove_late()


def _nothing_left_to_end(error: Exception) -> None:
    """It is over."""
