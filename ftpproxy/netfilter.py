"""The kernel's address maps: the elements of our nftables table, through one netlink socket.

A data connection that must reach us, or leave us, under a foreign address is one element of a map:

    awaited   caller . dialled address . dialled port  ->  address . port      destination NAT, `Await` legs
    called    source . called address . called port    ->  source address      source NAT, `Call` legs, any port
    pinned    source . called address . called port    ->  source . port       source NAT from exactly that port
    carried   caller . dialled address . dialled port  ->  address . port      destination NAT, for one connection:
    once      the same key                                                     the call that it waits for
    expected  the same key                                                     whose first packet gets a mark
    marked    the same key                                                     which gets one as a whole, if carried
    forth, back, forth_end, back_end    the same key                           counters of the packets that follow

each for IPv4 and IPv6.  The rules that look into them never change, so the table is loaded once, as text
(`ftpproxy.table`).  Elements come and go with every transfer; they are packed by hand (`ftpproxy.nfmessages`), because
adding and removing one costs 25 to 35 us that way, whatever the size of the map, where one process costs 2.4 ms.
Every element carries a timeout, so nothing outlives a crash for long.

* **Install, then announce**: the kernel handles a batch within send(), and its answer is in our receive queue when
  send() returns.  So adding is an ordinary function call: no task, no await.
* One process a network namespace owns the table (`table.Claim`); loading it takes over what a killed one left.
* NLM_F_EXCL: two paths that pick the same port do not take it from each other; `FileExistsError`, take another one.
* Removing an element leaves connections that run through it alone (conntrack has them).
* Who flushes the ruleset takes our table along.  `check` notices, by the table's handle: the kernel gives none out
  twice, where the ruleset's generation moves with each element of our own.  The table is loaded again, with all that
  stood in it.

Sources: linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h, netlink(7), nft(8).
"""

from __future__ import annotations

import errno
import logging
import socket
import time
from collections.abc import Callable
from types import TracebackType

from attrs import frozen

from .log import event
from .nfmessages import (
    ELEMENT_SECONDS,
    TABLE,
    Answer,
    Count,
    Element,
    answers,
    awaited,
    called,
    failure,
    led,
    of_path,
    pack_batch,
    pack_questions,
    pack_table_question,
    success,
)

__all__ = [
    "ELEMENT_SECONDS",
    "TABLE",
    "Count",
    "Element",
    "Elements",
    "NetfilterError",
    "NoPermission",
    "all_answers",
    "awaited",
    "called",
    "has_table",
    "led",
    "of_path",
    "open_netlink",
]

_SOL_NETLINK, _CAP_ACK = 270, 10  # linux/netlink.h; NETLINK_CAP_ACK: an error does not quote our message
_NETLINK_NETFILTER = 12

log = logging.getLogger(__name__)


class NetfilterError(Exception):
    """The kernel's packet filter could not be set up; the text says why and what would mend it."""


class NoPermission(NetfilterError):
    """CAP_NET_ADMIN is missing."""


def open_netlink() -> socket.socket:
    """A socket to the kernel's packet filter; closing it costs up to 14 ms.  Raises `OSError` where there is none."""
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)


def all_answers(sock: socket.socket) -> list[Answer]:
    """Every message that is there by now, so that nothing is left for the next question."""
    found: list[Answer] = []
    while True:
        try:
            found += answers(sock.recv(_MOST_ANSWERS, socket.MSG_DONTWAIT))
        except BlockingIOError:
            return found


def has_table(name: str) -> bool | None:
    """Whether there is a table `inet NAME`; None where we may not look (CAP_NET_ADMIN) or there is no nftables."""
    try:
        with open_netlink() as sock:
            sock.send(pack_table_question(name))
            (answer,) = answers(sock.recv(8192))
    except OSError:
        return None
    if answer.error is None:
        return True
    return False if answer.error == errno.ENOENT else None


_MOST_ANSWERS = 8192
"""Octets that one recv takes: the kernel packs no more into one datagram (NLMSG_GOODSIZE)."""
MOST_IN_A_BATCH = 100
"""Answers to more might not fit the receive buffer (208 KiB by default, 1 to 2 KiB for each)."""


@frozen
class TableRecord:
    """What a successor must know of our table, which stays where it is."""

    form: str
    handle: bytes
    standing: tuple[tuple[Element, float], ...]
    """With the seconds that each has left."""


class Elements:
    """The elements of our table, through one netlink socket that stays open (closing one costs up to 14 ms).

    It belongs to the network namespace it was made in, and to one thread.  `reload` loads the table where it is gone,
    and raises `NetfilterError`; without it nothing is mended.  Raises `OSError` where the kernel has no netlink for its
    packet filter.
    """

    def __init__(self, reload: Callable[[], None] | None = None, form: str = "") -> None:
        """`form` tells one text of the table from another."""
        self._reload = reload
        self._form = form
        self._handle: bytes | None = None
        self._standing: dict[tuple[str, bytes], tuple[Element, float]] = {}  # and until when, if nobody removes it
        self._left: dict[tuple[str, bytes], tuple[Element, float]] = {}  # by a predecessor, for who adds it
        self._prune_at = 0.0
        self.ways_out: dict[tuple[int, bytes], tuple[Element, int]] = {}
        """Elements for the way out that several paths may need, of whatever plane, by IP version and key; and how many
        paths do."""
        self.reloads = 0
        """How often the table was loaded again: then all counters began again."""
        self._socket = open_netlink()
        self._socket.setsockopt(_SOL_NETLINK, _CAP_ACK, 1)
        self._socket.bind((0, 0))
        self._sequence = 0

    @property
    def alive(self) -> int:
        """How many elements of ours stand, as far as we know."""
        now = time.monotonic()
        return sum(until > now for _, until in self._standing.values())

    def add(self, *elements: Element) -> None:
        """Add all or none (at most 100); they stand when this returns.

        What is known to be taken by one of ours is not even tried: to undo a batch the kernel waits for all packets
        that are under way (synchronize_rcu), which takes milliseconds.

        Raises `FileExistsError` if the key of one is taken, `PermissionError` without CAP_NET_ADMIN,
        `FileNotFoundError` if our table is gone (flushed by somebody) and cannot be loaded again, other `OSError` as
        the kernel has it.
        """
        now = time.monotonic()
        for element in elements:
            if (known := self._standing.get((element.map, element.key))) is not None and known[1] > now:
                raise failure(errno.EEXIST)
        fresh = elements
        if self._left:
            fresh = tuple(element for element in elements if not self._is_left(element, now))
        if fresh or not elements:
            try:
                self._exchange(fresh, add=True)
            except FileNotFoundError as error:
                self._mend(error)
                self._exchange(fresh, add=True)
        for element in elements:
            place = element.map, element.key
            self._standing[place] = self._left.pop(place, (element, now + element.seconds))

    def _is_left(self, element: Element, now: float) -> bool:
        """Whether it stands already, as a predecessor has left it."""
        left, until = self._left.get((element.map, element.key), (None, 0.0))
        return left is not None and left.data == element.data and until > now

    def remove(self, *elements: Element) -> None:
        """Remove them (at most 100); what is gone already counts as removed, but where we cannot know that (flushed,
        taken away by a packet) costs milliseconds, as in `add`.  Raises `OSError` as `add` does otherwise."""
        now = time.monotonic()
        standing = [element for element in elements if self._may_stand(element, now)]
        self.forget(*elements)
        while standing:
            try:
                self._exchange(tuple(standing), add=False)
            except FileNotFoundError:
                # One that is missing undoes the whole batch.  (NFT_MSG_DESTROYSETELEM is too young: Linux 6.3.)
                # So those that are left are asked for: each attempt that fails costs as much as the first.
                counts = self.read(*standing)
                if None not in counts:
                    return  # it came back this moment, and has its time
                standing = [element for element, count in zip(standing, counts, strict=True) if count is not None]
            else:
                return

    def _may_stand(self, element: Element, now: float) -> bool:
        """Whether it has not timed out, as far as we know: who keeps a place of his for long must not cost others that
        time."""
        known = self._standing.get((element.map, element.key))
        return known is None or known[1] > now

    def forget(self, *elements: Element) -> None:
        """They are gone: the kernel has taken them away."""
        for element in elements:
            self._standing.pop((element.map, element.key), None)

    def read(self, *elements: Element) -> list[Count | None]:
        """What each of them has counted, if it counts; None for one that is not there.  Raises `OSError`."""
        first = self._number(len(elements))
        self._socket.send(pack_questions(elements, sequence=first))
        counts: list[Count | None] = [None] * len(elements)
        for answer in self._answers():
            if answer.error is None and 0 <= answer.number - first < len(elements):
                counts[answer.number - first] = answer.counted
            elif answer.error not in (None, errno.ENOENT):
                raise failure(answer.error)
        return counts

    def check(self) -> None:
        """Look whether our table is still the one that was loaded, and load it again, with what stood in it, if it is
        not.  For a sweep.  Raises `OSError` if that fails."""
        now = time.monotonic()
        if now >= self._prune_at:
            self._prune_at = now + ELEMENT_SECONDS
            self._standing = {key: value for key, value in self._standing.items() if value[1] > now}
        handle = self._table_handle()
        if self._handle is None:
            self._handle = handle
        if handle is None or handle != self._handle:
            self._mend(failure(errno.ENOENT))

    def leave(self) -> TableRecord:
        """Leave the table to a successor, as it stands."""
        now = time.monotonic()
        standing = [(element, until - now) for element, until in self._standing.values() if until > now]
        return TableRecord(self._form, self._handle or b"", tuple(standing))

    def inherit(self, record: TableRecord) -> None:
        """What stands in the table that a predecessor has left.  Who adds one of these finds it standing; the others go
        with `drop_left`.  `check` loads the table again, with all of them, if it is another one or of another form."""
        now = time.monotonic()
        self._handle = record.handle if record.form == self._form else b""
        self._left = {(element.map, element.key): (element, now + seconds) for element, seconds in record.standing}

    def keep(self, *elements: Element) -> None:
        """These, which a predecessor has left, are ours; nothing happens where they are gone."""
        for element in elements:
            if (left := self._left.pop((element.map, element.key), None)) is not None:
                self._standing[element.map, element.key] = left

    def drop_left(self) -> None:
        """Remove what a predecessor has left and nobody wants.  Raises `OSError`."""
        left, self._left = self._left, {}
        now = time.monotonic()
        for element, until in left.values():
            if until > now:
                self.remove(element)

    def close(self) -> None:
        """Close the socket.  The elements stay until they are removed or time out."""
        self._socket.close()

    def __enter__(self) -> Elements:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _mend(self, error: OSError) -> None:
        """Load the table again, with what stood in it.  Raises `error` if that cannot be."""
        if self._reload is None:
            raise error
        try:
            self._reload()
        except NetfilterError as why:
            raise error from why
        self.reloads += 1
        self._handle = self._table_handle()
        now = time.monotonic()
        known = (*self._standing.values(), *self._left.values())
        standing = [each._replace(seconds=until - now) for each, until in known if until - now > 0.1]
        for start in range(0, len(standing), MOST_IN_A_BATCH):
            self._exchange(tuple(standing[start : start + MOST_IN_A_BATCH]), add=True)
        event(log, logging.WARNING, "table.reloaded", table=f"inet {TABLE}", elements=len(standing))

    def _table_handle(self) -> bytes | None:
        """What tells our table from another one of the same name; None where there is none.  Raises `OSError`."""
        self._socket.send(pack_table_question(TABLE, sequence=self._number(1)))
        for answer in self._answers():
            if answer.error is None:
                return answer.handle
            if answer.error != errno.ENOENT:
                raise failure(answer.error)
        return None

    def _exchange(self, elements: tuple[Element, ...], *, add: bool) -> None:
        if not 1 <= len(elements) <= MOST_IN_A_BATCH:
            raise ValueError(f"{len(elements)} elements in a batch; 1 to {MOST_IN_A_BATCH} can be")
        self._socket.send(pack_batch(elements, add=add))
        try:
            first = self._socket.recv(_MOST_ANSWERS, socket.MSG_DONTWAIT)
        except BlockingIOError:
            raise OSError(errno.EPROTO, "nftables did not answer") from None
        if success(first):
            return
        errors = [answer.error for answer in (*answers(first), *self._answers()) if answer.error is not None]
        for error in errors:
            if error:
                raise failure(error)

    def _number(self, messages: int) -> int:
        """The first of so many numbers."""
        if self._sequence + messages > 0x7FFFFFFF:
            self._sequence = 0
        first = self._sequence
        self._sequence += messages
        return first

    def _answers(self) -> list[Answer]:
        return all_answers(self._socket)
