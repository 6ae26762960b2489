"""Messages of nftables about elements of our maps and sets, packed by hand.

Everything in such a message but its number, key, data and time is the same for all elements of one map, so it is put
together once and kept as a `struct`: packing costs 1.5 us an element, where message classes take 60 and more.

Sources: linux/netlink.h, linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h, netlink(7).  Keys of several fields
are concatenations: each field is padded to four octets.
"""

from __future__ import annotations

import errno
import functools
import os
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

from .endpoints import Endpoint, IPAddress

__all__ = [
    "ELEMENT_SECONDS",
    "TABLE",
    "Answer",
    "Count",
    "Element",
    "answers",
    "awaited",
    "called",
    "failure",
    "led",
    "of_path",
    "pack_batch",
    "pack_nat_chain",
    "pack_questions",
    "pack_table_question",
    "success",
]

TABLE = "ftpproxy"
"""Name of our table, family inet."""

ELEMENT_SECONDS = 300.0
"""How long an element lives by default: longer than any data connection may take to come up (`data_setup`, 120 s
unless configured), short enough that what a killed process left behind is soon gone."""

# linux/netfilter/nfnetlink.h
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
# linux/netfilter/nf_tables.h
_NEW_ELEMENT, _DELETE_ELEMENT = _SUBSYSTEM << 8 | 12, _SUBSYSTEM << 8 | 14  # NFT_MSG_NEWSETELEM, NFT_MSG_DELSETELEM
_GET_ELEMENT = _SUBSYSTEM << 8 | 13  # NFT_MSG_GETSETELEM
_GET_TABLE = _SUBSYSTEM << 8 | 1  # NFT_MSG_GETTABLE
_NEW_TABLE, _NEW_CHAIN, _NEW_RULE = (_SUBSYSTEM << 8 | kind for kind in (0, 3, 6))  # NFT_MSG_NEW...
_TABLE_NAME, _TABLE_HANDLE = 1, 4  # NFTA_TABLE_NAME, NFTA_TABLE_HANDLE
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS = 1, 2, 3  # NFTA_SET_ELEM_LIST_*
_LIST_ELEMENT = 1  # NFTA_LIST_ELEM
_ELEMENT_KEY, _ELEMENT_DATA, _ELEMENT_TIMEOUT = 1, 2, 4  # NFTA_SET_ELEM_*
_EXPRESSION_DATA = 2  # NFTA_EXPR_DATA
_COUNTER_BYTES, _COUNTER_PACKETS = 1, 2  # NFTA_COUNTER_*
_DATA_VALUE = 1  # NFTA_DATA_VALUE
_FAMILY_INET = 1  # NFPROTO_INET
# linux/netlink.h
_REQUEST, _ACK, _EXCLUSIVE, _CREATE = 0x001, 0x004, 0x200, 0x400
_ERROR = 2  # NLMSG_ERROR
_NESTED = 0x8000  # NLA_F_NESTED

_header = struct.Struct("=IHHIIBBH")  # struct nlmsghdr, then struct nfgenmsg with res_id (network order)
_attribute_head = struct.Struct("=HH")  # struct nlattr
_LONG_ACK = 36  # struct nlmsghdr and struct nlmsgerr, which has the header of the message in question
_ERROR_KIND = struct.pack("=H", _ERROR)
_answer = struct.Struct("=IHHIIi")  # struct nlmsghdr, then the error of struct nlmsgerr


class Element(NamedTuple):
    """One element of one of our maps, or of a set if `data` is empty.  Both are packed as the kernel compares them."""

    map: str
    key: bytes
    data: bytes
    seconds: float = ELEMENT_SECONDS


_port = struct.Struct("!Hxx").pack


def _host_port(host: IPAddress, port: int) -> bytes:
    return host.packed + _port(port)


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


def led(once: Element, to: Endpoint, seen: Endpoint) -> tuple[Element, Element]:
    """What leads whoever is awaited by `once`, an element of that set, on to `to`, where he is seen as coming from
    `seen`: `carried` and `called` of the same caller, who may call as long.  All are of one family."""
    version = to.host.version
    target = _host_port(*to)
    key = once.key[: len(target) - 4] + target
    if seen.port:
        out = Element(f"pinned{version}", key, _host_port(*seen), once.seconds)
    else:
        out = Element(f"called{version}", key, seen.host.packed, once.seconds)
    return Element(f"carried{version}", once.key, target, once.seconds), out


def of_path(kind: str, peer: IPAddress, at: Endpoint, *, seconds: float = ELEMENT_SECONDS) -> Element:
    """The element for `peer`'s call to `at` in the set `kind`: once, expected, marked, forth, back, forth_end,
    back_end."""
    return Element(f"{kind}{at.host.version}", peer.packed + _host_port(*at), b"", seconds)


def _attribute(kind: int, payload: bytes) -> bytes:
    # Everything that we send is a multiple of four octets long, except names.
    return struct.pack("=HH", len(payload) + 4, kind) + payload + bytes(-len(payload) % 4)


def _message(kind: int, flags: int, sequence: int, family: int, resource: int, payload: bytes = b"") -> bytes:
    length = _header.size + len(payload)
    return _header.pack(length, kind, flags, sequence, 0, family, 0, socket.htons(resource)) + payload


class _Form:
    """The message about an element of one map, as a `struct`.

    To be packed with the flags, the number, the key and, if it is to be added, its data (none for a set) and its time.
    """

    def __init__(self, kind: int, name: str, key: int, data: int | None) -> None:
        """`key` and `data` are lengths; without `data` the message has nothing but the key."""
        tail = b""
        if data is not None:
            if data:
                tail += _attribute(_NESTED | _ELEMENT_DATA, _attribute(_DATA_VALUE, bytes(data)))
            tail += _attribute(_ELEMENT_TIMEOUT, bytes(8))
        inner = _attribute(_NESTED | _ELEMENT_KEY, _attribute(_DATA_VALUE, bytes(key))) + tail
        payload = (
            _attribute(_LIST_TABLE, TABLE.encode() + b"\0")
            + _attribute(_LIST_SET, name.encode() + b"\0")
            + _attribute(_NESTED | _LIST_ELEMENTS, _attribute(_NESTED | _LIST_ELEMENT, inner))
        )
        whole = _message(kind, 0, 0, _FAMILY_INET, 0, payload)
        self._start = whole[:6]  # length and kind; flags and number follow
        self._before_key = whole[12 : len(whole) - len(tail) - key]
        self._before_data = tail[:8] if data else b""
        self._before_time = tail[-12:-8]
        layout = f"=6sHI{len(self._before_key)}s{key}s"
        if data is not None:
            layout += f"{len(self._before_data)}s{data}s4s8s"
        self._pack = struct.Struct(layout).pack

    def key_only(self, flags: int, number: int, key: bytes) -> bytes:
        return self._pack(self._start, flags, number, self._before_key, key)

    def whole(self, flags: int, number: int, element: Element) -> bytes:
        milliseconds = round(element.seconds * 1000).to_bytes(8, "big")
        return self._pack(
            self._start,
            flags,
            number,
            self._before_key,
            element.key,
            self._before_data,
            element.data,
            self._before_time,
            milliseconds,
        )


_form = functools.cache(_Form)

_BEGIN = _message(_BATCH_BEGIN, _REQUEST, 0, 0, _SUBSYSTEM)
_END = _message(_BATCH_END, _REQUEST, 0, 0, _SUBSYSTEM)


def pack_batch(elements: tuple[Element, ...], *, add: bool) -> bytes:
    """One transaction that adds, or removes, all `elements` or none; message i has number 1 + i.

    Only the last is acknowledged: what goes wrong with another one is reported in any case.
    """
    flags = _REQUEST | _CREATE | _EXCLUSIVE if add else _REQUEST
    messages = [_BEGIN]
    last = len(elements)
    for number, element in enumerate(elements, 1):
        if number == last:
            flags |= _ACK
        name, key, data, _ = element
        if add:
            messages.append(_form(_NEW_ELEMENT, name, len(key), len(data)).whole(flags, number, element))
        else:
            messages.append(_form(_DELETE_ELEMENT, name, len(key), None).key_only(flags, number, key))
    messages.append(_END)
    return b"".join(messages)


def pack_questions(elements: tuple[Element, ...], *, sequence: int = 0) -> bytes:
    """One question about each of `elements`; message i has number `sequence` + i."""
    return b"".join(
        _form(_GET_ELEMENT, element.map, len(element.key), None).key_only(_REQUEST, number, element.key)
        for number, element in enumerate(elements, sequence)
    )


def pack_table_question(name: str, *, sequence: int = 0) -> bytes:
    """The question whether there is a table `inet NAME`, and which."""
    payload = _attribute(_TABLE_NAME, name.encode() + b"\0")
    return _message(_GET_TABLE, _REQUEST, sequence, _FAMILY_INET, 0, payload)


def _attributes(octets: bytes) -> dict[int, bytes]:
    """The attributes in there, by kind, the first of each."""
    found: dict[int, bytes] = {}
    at = 0
    while at + 4 <= len(octets):
        length, kind = _attribute_head.unpack_from(octets, at)
        if length < 4:
            break
        found.setdefault(kind & ~_NESTED, octets[at + 4 : at + length])
        at += (length + 3) & ~3
    return found


class Answer(NamedTuple):
    """One message from the kernel."""

    number: int
    """Of the message that it answers."""
    error: int | None
    """Of errno(3), 0 for none, where it is an acknowledgement; else None."""
    body: bytes
    """The attributes, where it is none."""

    @property
    def counted(self) -> Count:
        """Of the element that it describes.

        Its counter is an expression, NFTA_SET_ELEM_EXPR: a name, and behind it the attributes of the counter.  The name
        is looked for from the end, where no key can be mistaken for it.
        """
        at = self.body.rfind(b"counter\0")
        if at < 0:
            return Count()
        counter = _attributes(_attributes(self.body[at + 8 :]).get(_EXPRESSION_DATA, b""))
        return Count(
            int.from_bytes(counter.get(_COUNTER_PACKETS, b""), "big"),
            int.from_bytes(counter.get(_COUNTER_BYTES, b""), "big"),
        )

    @property
    def handle(self) -> bytes:
        """Of the table that it describes: no two tables have the same."""
        return _attributes(self.body)[_TABLE_HANDLE]


def answers(datagram: bytes) -> Iterator[Answer]:
    """The messages of one datagram."""
    at = 0
    while at + _answer.size <= len(datagram):
        length, kind, _, number, _, code = _answer.unpack_from(datagram, at)
        if length < _answer.size:
            break
        yield (
            Answer(number, -code, b"")
            if kind == _ERROR
            else Answer(number, None, datagram[at + _header.size : at + length])
        )
        at += (length + 3) & ~3


def success(datagram: bytes) -> bool:
    """Whether this is the acknowledgement of a batch, so that nothing else comes."""
    return len(datagram) == _LONG_ACK and datagram[4:6] == _ERROR_KIND and datagram[16:20] == bytes(4)


def failure(code: int) -> OSError:
    """What `Answer.error` means for whoever asked."""
    text = "one of its sets is full" if code == errno.ENFILE else os.strerror(code)
    return OSError(code, f"nftables, table inet {TABLE}: {text}")


def pack_nat_chain(table: str, *, sequence: int = 0) -> bytes:
    """One transaction that makes the table `inet TABLE`, owned by the socket that sends it (NFT_TABLE_F_OWNER):

        chain prerouting { type nat hook prerouting priority 0; ct direction original }

    Only the last of its three messages is acknowledged, as in `pack_batch`.
    """
    name, chain = _attribute(1, table.encode() + b"\0"), b"prerouting\0"
    hook = _attribute(1, _number(0)) + _attribute(2, _number(0))  # NFTA_HOOK_HOOKNUM, NFTA_HOOK_PRIORITY
    load = _expression(b"ct\0", _attribute(1, _number(1)) + _attribute(2, _number(1)))  # NFTA_CT_DREG, NFTA_CT_KEY
    same = _attribute(1, _number(1)) + _attribute(2, _number(0))  # NFTA_CMP_SREG, NFTA_CMP_OP
    same += _attribute(_NESTED | 3, _attribute(_DATA_VALUE, b"\0"))  # NFTA_CMP_DATA
    new = _REQUEST | _CREATE | _EXCLUSIVE
    messages = (
        (_NEW_TABLE, new, name + _attribute(2, _number(2))),  # NFTA_TABLE_FLAGS
        # NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME, NFTA_CHAIN_HOOK, NFTA_CHAIN_TYPE:
        (_NEW_CHAIN, new, name + _attribute(3, chain) + _attribute(_NESTED | 4, hook) + _attribute(7, b"nat\0")),
        # NFTA_RULE_TABLE, NFTA_RULE_CHAIN, NFTA_RULE_EXPRESSIONS:
        (
            _NEW_RULE,
            _REQUEST | _CREATE | _ACK,
            name + _attribute(2, chain) + _attribute(_NESTED | 4, load + _expression(b"cmp\0", same)),
        ),
    )
    return b"".join(
        (
            _message(_BATCH_BEGIN, _REQUEST, sequence, 0, _SUBSYSTEM),
            *(
                _message(kind, flags, number, _FAMILY_INET, 0, payload)
                for number, (kind, flags, payload) in enumerate(messages, sequence + 1)
            ),
            _message(_BATCH_END, _REQUEST, sequence + len(messages) + 1, 0, _SUBSYSTEM),
        )
    )


def _number(value: int) -> bytes:
    return struct.pack("!I", value)


def _expression(name: bytes, data: bytes) -> bytes:
    """NFTA_LIST_ELEM with NFTA_EXPR_NAME and NFTA_EXPR_DATA."""
    return _attribute(_NESTED | 1, _attribute(1, name) + _attribute(_NESTED | 2, data))
