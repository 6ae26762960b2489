"""The kernel's address maps: the elements of our nftables table, through one netlink socket.

A data connection that must reach us, or leave us, under a foreign address is one element of a map:

    awaited   caller . dialled address . dialled port  ->  address . port      destination NAT, `Await` legs
    called    source . called address . called port    ->  source address      source NAT, `Call` legs, any port
    pinned    source . called address . called port    ->  source . port       source NAT from exactly that port
    carried   caller . dialled address . dialled port  ->  address . port      destination NAT, for one connection:
    once      the same key                                                     the call that it waits for
    forth, back, forth_end, back_end    the same key                           counters of the packets that follow

each for IPv4 and IPv6.  The rules that look into them never change, so the table is loaded once, as text
(`ftpproxy.table`).  Elements come and go with every transfer; they are packed here by hand, because adding and
removing one costs 25 to 35 us that way, whatever the size of the map, where one process costs 2.4 ms.  Every element
carries a timeout, so nothing outlives a crash for long.

* **Install, then announce**: the kernel handles a batch within send(), and its answer is in our receive queue when
  send() returns.  So adding is an ordinary function call: no task, no await.
* One process a network namespace owns the table (`table.Claim`); loading it takes over what a killed one left.
* NLM_F_EXCL: two paths that pick the same port do not take it from each other; `FileExistsError`, take another one.
* Removing an element leaves connections that run through it alone (conntrack has them).
* Who flushes the ruleset takes our table along.  `check` notices, by the table's handle: the kernel gives none out
  twice, where the ruleset's generation moves with each element of our own.  The table is loaded again, with all that
  stood in it.

Sources: linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h, netlink(7), nft(8).  Keys of several fields are
concatenations: each field is padded to four octets.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import NamedTuple

from attrs import evolve, frozen

from .endpoints import Endpoint, IPAddress
from .log import event

__all__ = [
    "ELEMENT_SECONDS",
    "TABLE",
    "Count",
    "Element",
    "Elements",
    "NetfilterError",
    "NoPermission",
    "awaited",
    "called",
    "carried",
    "has_table",
    "of_path",
]

TABLE = "ftpproxy"
"""Name of our table, family inet."""

ELEMENT_SECONDS = 300.0
"""How long an element lives by default: longer than any data connection may take to come up (`data_setup`, 120 s
unless configured), short enough that what a killed process left behind is soon gone."""

log = logging.getLogger(__name__)


class NetfilterError(Exception):
    """The kernel's packet filter could not be set up; the text says why and what would mend it."""


class NoPermission(NetfilterError):
    """CAP_NET_ADMIN is missing."""


# linux/netfilter/nfnetlink.h
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
# linux/netfilter/nf_tables.h
_NEW_ELEMENT, _DELETE_ELEMENT = _SUBSYSTEM << 8 | 12, _SUBSYSTEM << 8 | 14  # NFT_MSG_NEWSETELEM, NFT_MSG_DELSETELEM
_GET_ELEMENT = _SUBSYSTEM << 8 | 13  # NFT_MSG_GETSETELEM
_GET_TABLE = _SUBSYSTEM << 8 | 1  # NFT_MSG_GETTABLE
_TABLE_NAME, _TABLE_HANDLE = 1, 4  # NFTA_TABLE_NAME, NFTA_TABLE_HANDLE
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS = 1, 2, 3  # NFTA_SET_ELEM_LIST_*
_LIST_ELEMENT = 1  # NFTA_LIST_ELEM
_ELEMENT_KEY, _ELEMENT_DATA, _ELEMENT_TIMEOUT, _ELEMENT_EXPRESSION = 1, 2, 4, 7  # NFTA_SET_ELEM_*
_EXPRESSION_DATA = 2  # NFTA_EXPR_DATA
_COUNTER_BYTES, _COUNTER_PACKETS = 1, 2  # NFTA_COUNTER_*
_DATA_VALUE = 1  # NFTA_DATA_VALUE
_FAMILY_INET = 1  # NFPROTO_INET
# linux/netlink.h
_REQUEST, _ACK, _EXCLUSIVE, _CREATE = 0x001, 0x004, 0x200, 0x400
_ERROR = 2  # NLMSG_ERROR
_NESTED = 0x8000  # NLA_F_NESTED
_SOL_NETLINK, _CAP_ACK = 270, 10  # NETLINK_CAP_ACK: an error does not quote our message
_NETLINK_NETFILTER = 12

_header = struct.Struct("=IHHIIBBH")  # struct nlmsghdr, then struct nfgenmsg with res_id (network order)
_answer = struct.Struct("=IHHIIi")  # struct nlmsghdr, then the error of struct nlmsgerr


def _table_request(name: str, number: int) -> bytes:
    return _message(_GET_TABLE, _REQUEST, number, _FAMILY_INET, 0, _attribute(_TABLE_NAME, name.encode() + b"\0"))


def has_table(name: str) -> bool | None:
    """Whether there is a table `inet NAME`; None where we may not look (CAP_NET_ADMIN) or there is no nftables."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as sock:
            sock.send(_table_request(name, 1))
            answer = sock.recv(8192)
    except OSError:
        return None
    _, kind, _, _, _, code = _answer.unpack_from(answer)
    if kind != _ERROR:
        return True
    return False if code == -errno.ENOENT else None


MOST_IN_A_BATCH = 100
"""Answers to more might not fit the receive buffer (208 KiB by default, 1 to 2 KiB for each)."""


@frozen
class Element:
    """One element of one of our maps, or of a set if `data` is empty.  Both are packed as the kernel compares them."""

    map: str
    key: bytes
    data: bytes
    seconds: float = ELEMENT_SECONDS


def _host_port(host: IPAddress, port: int) -> bytes:
    return host.packed + struct.pack("!Hxx", port)


class Count(NamedTuple):
    """What an element of a set with counters has counted."""

    packets: int = 0
    octets: int = 0
    """From the IP header on."""


def awaited(peer: IPAddress, at: Endpoint, to: Endpoint, *, seconds: float = ELEMENT_SECONDS) -> Element:
    """When `peer` calls `at`, it reaches `to`.  All three are of one family."""
    key = peer.packed + _host_port(*at)
    return Element(f"awaited{at.host.version}", key, _host_port(*to), seconds)


def called(source: IPAddress, to: Endpoint, seen: Endpoint, *, seconds: float = ELEMENT_SECONDS) -> Element:
    """When `source` calls `to`, it is seen as coming from `seen`; port 0 there leaves the port to the kernel,
    which keeps the caller's where it is free.  All three are of one family."""
    key = source.packed + _host_port(*to)
    if seen.port:
        return Element(f"pinned{to.host.version}", key, _host_port(*seen), seconds)
    return Element(f"called{to.host.version}", key, seen.host.packed, seconds)


def carried(peer: IPAddress, at: Endpoint, to: Endpoint, *, seconds: float = ELEMENT_SECONDS) -> Element:
    """As `awaited`, but carried by the kernel, and for one connection if `of_path("once", ...)` stands beside it."""
    return evolve(awaited(peer, at, to, seconds=seconds), map=f"carried{at.host.version}")


def of_path(kind: str, peer: IPAddress, at: Endpoint, *, seconds: float = ELEMENT_SECONDS) -> Element:
    """The element of the set `kind` (once, forth, back, forth_end, back_end) for the connection of `peer` to `at`."""
    return Element(f"{kind}{at.host.version}", peer.packed + _host_port(*at), b"", seconds)


def _attribute(kind: int, payload: bytes) -> bytes:
    # Everything that we send is a multiple of four octets long, except names.
    return struct.pack("=HH", len(payload) + 4, kind) + payload + bytes(-len(payload) % 4)


def _message(kind: int, flags: int, sequence: int, family: int, resource: int, payload: bytes = b"") -> bytes:
    length = _header.size + len(payload)
    return _header.pack(length, kind, flags, sequence, 0, family, 0, socket.htons(resource)) + payload


def _element(element: Element, *, key_only: bool) -> bytes:
    inner = _attribute(_NESTED | _ELEMENT_KEY, _attribute(_DATA_VALUE, element.key))
    if not key_only:
        if element.data:
            inner += _attribute(_NESTED | _ELEMENT_DATA, _attribute(_DATA_VALUE, element.data))
        inner += _attribute(_ELEMENT_TIMEOUT, struct.pack("!Q", round(element.seconds * 1000)))
    return (
        _attribute(_LIST_TABLE, TABLE.encode() + b"\0")
        + _attribute(_LIST_SET, element.map.encode() + b"\0")
        + _attribute(_NESTED | _LIST_ELEMENTS, _attribute(_NESTED | _LIST_ELEMENT, inner))
    )


def pack_batch(elements: tuple[Element, ...], *, add: bool, sequence: int = 0) -> bytes:
    """One transaction that adds, or removes, all `elements` or none; message i has number `sequence` + 1 + i."""
    kind, flags = (_NEW_ELEMENT, _CREATE | _EXCLUSIVE) if add else (_DELETE_ELEMENT, 0)
    messages = [_message(_BATCH_BEGIN, _REQUEST, sequence, 0, _SUBSYSTEM)]
    for number, element in enumerate(elements, sequence + 1):
        payload = _element(element, key_only=not add)
        messages.append(_message(kind, _REQUEST | _ACK | flags, number, _FAMILY_INET, 0, payload))
    messages.append(_message(_BATCH_END, _REQUEST, sequence + len(elements) + 1, 0, _SUBSYSTEM))
    return b"".join(messages)


def pack_questions(elements: tuple[Element, ...], *, sequence: int = 0) -> bytes:
    """One question about each of `elements`; message i has number `sequence` + i."""
    return b"".join(
        _message(_GET_ELEMENT, _REQUEST, number, _FAMILY_INET, 0, _element(element, key_only=True))
        for number, element in enumerate(elements, sequence)
    )


def _attributes(octets: memoryview) -> dict[int, memoryview]:
    """The attributes in there, by kind, the first of each."""
    found: dict[int, memoryview] = {}
    while len(octets) >= 4:
        length, kind = struct.unpack_from("=HH", octets)
        if length < 4:
            break
        found.setdefault(kind & ~_NESTED, octets[4:length])
        octets = octets[(length + 3) & ~3 :]
    return found


def _nested(octets: memoryview, *kinds: int) -> dict[int, memoryview]:
    """The attributes within those attributes; none where one is missing."""
    for kind in kinds:
        octets = _attributes(octets).get(kind, octets[:0])
    return _attributes(octets)


def _counted(message: memoryview) -> Count:
    """What stands in the answer to a question about an element."""
    body = message[_header.size :]
    path = (_LIST_ELEMENTS, _LIST_ELEMENT, _ELEMENT_EXPRESSION, _EXPRESSION_DATA)
    counter = _nested(body, *path)
    return Count(
        int.from_bytes(counter.get(_COUNTER_PACKETS, b""), "big"),
        int.from_bytes(counter.get(_COUNTER_BYTES, b""), "big"),
    )


class Elements:
    """The elements of our table, through one netlink socket that stays open (closing one costs up to 14 ms).

    It belongs to the network namespace it was made in, and to one thread.  `reload` loads the table where it is gone,
    and raises `NetfilterError`; without it nothing is mended.  Raises `OSError` where the kernel has no netlink for its
    packet filter.
    """

    def __init__(self, reload: Callable[[], None] | None = None) -> None:
        self._reload = reload
        self._handle: bytes | None = None
        self._standing: dict[tuple[str, bytes], tuple[Element, float]] = {}  # and until when, if nobody removes it
        self._prune_at = 0.0
        self.reloads = 0
        """How often the table was loaded again: then all counters began again."""
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
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

        Raises `FileExistsError` if the key of one is taken, `PermissionError` without CAP_NET_ADMIN,
        `FileNotFoundError` if our table is gone (flushed by somebody) and cannot be loaded again, other `OSError` as
        the kernel has it.
        """
        try:
            self._exchange(elements, add=True)
        except FileNotFoundError as error:
            self._mend(error)
            self._exchange(elements, add=True)
        now = time.monotonic()
        for element in elements:
            self._standing[element.map, element.key] = element, now + element.seconds

    def remove(self, *elements: Element) -> None:
        """Remove them (at most 100); what is gone already (timed out, flushed) counts as removed.  Raises `OSError`
        as `add` does otherwise."""
        for element in elements:
            self._standing.pop((element.map, element.key), None)
        try:
            self._exchange(elements, add=False)
        except FileNotFoundError:
            # One that is missing undoes the whole batch.  (NFT_MSG_DESTROYSETELEM is too young: Linux 6.3.)
            if len(elements) > 1:
                for element in elements:
                    self.remove(element)

    def read(self, *elements: Element) -> list[Count]:
        """What each of them has counted; nothing for one that is gone.  Raises `OSError`."""
        first = self._number(len(elements))
        self._socket.send(pack_questions(elements, sequence=first))
        counts = [Count()] * len(elements)
        for message in self._answers():
            _, kind, _, number, _, code = _answer.unpack_from(message)
            if kind == _NEW_ELEMENT and 0 <= number - first < len(elements):
                counts[number - first] = _counted(message)
            elif kind == _ERROR and code not in (0, -errno.ENOENT):
                raise _failure(-code)
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
            self._mend(_failure(errno.ENOENT))

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
        standing = [evolve(each, seconds=until - now) for each, until in self._standing.values() if until - now > 0.1]
        for start in range(0, len(standing), MOST_IN_A_BATCH):
            self._exchange(tuple(standing[start : start + MOST_IN_A_BATCH]), add=True)
        event(log, logging.WARNING, "table.reloaded", table=f"inet {TABLE}", elements=len(standing))

    def _table_handle(self) -> bytes | None:
        """What tells our table from another one of the same name; None where there is none.  Raises `OSError`."""
        self._socket.send(_table_request(TABLE, self._number(1)))
        for message in self._answers():
            _, kind, _, _, _, code = _answer.unpack_from(message)
            if kind != _ERROR:
                return bytes(_attributes(message[_header.size :])[_TABLE_HANDLE])
            if code != -errno.ENOENT:
                raise _failure(-code)
        return None

    def _exchange(self, elements: tuple[Element, ...], *, add: bool) -> None:
        if not 1 <= len(elements) <= MOST_IN_A_BATCH:
            raise ValueError(f"{len(elements)} elements in a batch; 1 to {MOST_IN_A_BATCH} can be")
        self._socket.send(pack_batch(elements, add=add, sequence=self._number(len(elements) + 2)))
        answers, failure = 0, 0
        for message in self._answers():
            _, kind, _, _, _, code = _answer.unpack_from(message)
            if kind == _ERROR:
                answers += 1
                failure = failure or -code
        if failure:
            raise _failure(failure)
        if answers != len(elements):
            raise OSError(errno.EPROTO, f"nftables answered {answers} of {len(elements)} messages")

    def _number(self, messages: int) -> int:
        """The first of so many numbers."""
        if self._sequence + messages > 0x7FFFFFFF:
            self._sequence = 0
        first = self._sequence
        self._sequence += messages
        return first

    def _answers(self) -> Iterator[memoryview]:
        """Every message that is there by now, and nothing is left for the next question."""
        datagrams = []
        while True:
            try:
                datagrams.append(self._socket.recv(8192, socket.MSG_DONTWAIT))
            except BlockingIOError:
                break
        for datagram in datagrams:
            rest = memoryview(datagram)
            while len(rest) >= _answer.size:
                (length,) = struct.unpack_from("=I", rest)
                if length < _answer.size:
                    break
                yield rest[:length]
                rest = rest[(length + 3) & ~3 :]


def _failure(code: int) -> OSError:
    return OSError(code, f"nftables, table inet {TABLE}: {os.strerror(code)}")
