"""What the kernel has counted of one data connection, and which of its ends have come by.

The rules of our table (`ftpproxy.table`) make what counts when the call comes: `forth` and `back`, each with the call's
first packet in it.  From the three-way handshake on they count what is sent that way; `forth_end` and `back_end` are
there when a FIN or RST has come by.  So nothing has to be installed for them, and whether there is a `forth` tells
whether somebody has called.

**Octets.**  The kernel counts packets and their octets from the IP header on.  Less 52 octets of headers a packet
(IPv6: 72), which is IP, TCP and the time stamp option that every system in use has, that is the payload; the first
packet has eight more, of options that only it may have.  Retransmissions count, and peers without time stamps
are under-estimated by 12 octets a packet, so this is an estimate.

**A table that is lost** (flushed by somebody) takes the counters along: they begin again, and what was seen is kept.
"""

from __future__ import annotations

from attrs import frozen

from ..endpoints import Side
from ..netfilter import Count, Element, Elements

__all__ = ["COUNTERS", "Counted", "Counters"]

COUNTERS = ("forth", "back", "forth_end", "back_end")
HEADERS = {4: 52, 6: 72}
"""Octets of each packet that are not payload, by IP version."""
BOTH = range(2)
"""Forth and back, in that order wherever there are two or four."""
_NOTHING = Count(-1)
FIRST_MORE = 8
"""Octets that the first packet has more: the options MSS, SACK permitted and window scale (RFC 9293, 2018, 7323)."""


@frozen
class Counted:
    """What a successor must know."""

    before: tuple[Count, Count]
    last: tuple[Count | None, ...]
    ended: tuple[bool, bool]


class Counters:
    """Of the connection that takes `once` away, an element of that set, by calling.  `caller` calls."""

    def __init__(self, elements: Elements, once: Element, caller: Side, version: int) -> None:
        self._elements = elements
        self._once = once
        self._caller = caller
        self._version = version
        first = Count(-1, -HEADERS[version] - FIRST_MORE)
        self._before = [first, first]  # of counters that were lost since
        self._last: list[Count | None] = [None] * len(COUNTERS)
        self._ended = [False, False]

    @property
    def called(self) -> bool:
        """Whether somebody has, if perhaps in vain."""
        return self._last[0] is not None

    @property
    def up(self) -> bool:
        """Whether the three-way handshake was seen."""
        return self._total(0).packets > 0

    @property
    def ends(self) -> dict[Side, bool]:
        """Whether the end of what each side sends has come by."""
        return dict(zip((self._caller, self._caller.peer), self._ended, strict=True))

    @property
    def payload(self) -> dict[Side, int]:
        """The octets that each side has sent."""
        headers, octets = HEADERS[self._version], {}
        for which, side in enumerate((self._caller, self._caller.peer)):
            total = self._total(which)
            octets[side] = max(0, total.octets - headers * total.packets)
        return octets

    def _total(self, which: int) -> Count:
        before, last = self._before[which], self._last[which] or Count()
        return Count(before.packets + last.packets, before.octets + last.octets)

    def _elements_of(self, *kinds: str) -> tuple[Element, ...]:
        return tuple(self._once._replace(map=f"{kind}{self._version}") for kind in kinds)

    def look(self) -> None:
        """Ask the kernel.  Raises `OSError`."""
        read = self._elements.read(*self._elements_of(*COUNTERS))
        if self.called and any((read[which] or _NOTHING) < (self._last[which] or _NOTHING) for which in BOTH):
            self._before = [self._total(which) for which in BOTH]
            if missing := [COUNTERS[which] for which in BOTH if read[which] is None]:
                self._elements.add(*self._elements_of(*missing))
            read[:2] = [read[which] or Count() for which in BOTH]
        self._last = read
        if self.called:  # which takes away what another connection may have left
            for which in BOTH:
                self._ended[which] |= read[which + 2] is not None

    def renew(self) -> None:
        """Begin again, with their whole time before them.  (Linux changes the time of an element only since 6.12.)
        Raises `OSError`."""
        standing = self.standing
        self._before = [self._total(which) for which in BOTH]
        self._last = [None if last is None else Count() for last in self._last]
        self._elements.remove(*standing)
        self._elements.add(*standing)

    @property
    def standing(self) -> tuple[Element, ...]:
        """Those that stand in the table, as far as was seen."""
        return self._elements_of(*(kind for kind, last in zip(COUNTERS, self._last, strict=True) if last is not None))

    def remove_late(self) -> None:
        """Remove what packets made between the last look and the removal of what is `standing`, an end mostly; now that
        the rest is gone they make no more.  Raises `OSError`."""
        unseen = self._elements_of(*(kind for kind, last in zip(COUNTERS, self._last, strict=True) if last is None))
        if unseen:
            found = zip(unseen, self._elements.read(*unseen), strict=True)
            if late := [element for element, read in found if read is not None]:
                self._elements.remove(*late)

    def leave(self) -> Counted:
        """For a successor."""
        first, second = self._before
        return Counted((first, second), tuple(self._last), (self._ended[0], self._ended[1]))

    def inherit(self, counted: Counted) -> None:
        """Go on from what a predecessor has left."""
        self._before, self._last, self._ended = list(counted.before), list(counted.last), list(counted.ended)
