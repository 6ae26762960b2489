"""The kernel's address maps: one nftables table of ours, and its elements through one netlink socket.

A data connection that must reach us, or leave us, under a foreign address is one element of a map:

    awaited   caller . dialled address . dialled port  ->  address . port      destination NAT, `Await` legs
    called    source . called address . called port    ->  source address      source NAT, `Call` legs, any port
    pinned    source . called address . called port    ->  source . port       source NAT from exactly that port

each for IPv4 and IPv6.  The rules that look into the maps never change, so the table is loaded once, as text,
by the `nft` program.  Elements come and go with every transfer; they are packed here by hand, because adding and
removing one costs 25 to 35 us that way, whatever the size of the map, where one process costs 2.4 ms.  Every element
carries a timeout, so nothing outlives a crash for long.

* **Install, then announce**: the kernel handles a batch within send(), and its answer is in our receive queue when
  send() returns.  So adding is an ordinary function call: no task, no await.
* One process a network namespace owns the table (`Claim`); loading it takes over what a killed one left.
* NLM_F_EXCL: two paths that pick the same port do not take it from each other; `FileExistsError`, take another one.
* Removing an element leaves connections that run through it alone (conntrack has them).
* The priorities are one before the administrator's own dstnat and srcnat chains: in NAT hooks the first match
  wins, and his masquerade would otherwise give our calls the wrong address.
* The table holds no policy.  Where the administrator drops what he does not know, `ct status dnat accept` in his
  forward chain lets mapped connections through; what ends at a socket of ours passes his input chain.

Sources: linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h, netlink(7), nft(8).  Keys of several fields are
concatenations: each field is padded to four octets.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import struct
import subprocess
from types import TracebackType

from attrs import frozen

from .endpoints import Endpoint, IPAddress

__all__ = [
    "ELEMENT_SECONDS",
    "PLANE_TABLE",
    "TABLE",
    "Claim",
    "Element",
    "Elements",
    "NetfilterError",
    "NoPermission",
    "awaited",
    "called",
    "has_table",
    "load_table",
    "remove_table",
]

TABLE = "ftpproxy"
"""Name of our table, family inet."""

ELEMENT_SECONDS = 300.0
"""How long an element lives by default: longer than any data connection may take to come up (`data_setup`, 120 s
unless configured), short enough that what a killed process left behind is soon gone."""

# The first two lines make loading idempotent: whatever a killed process left is taken over, in one transaction.
PLANE_TABLE = f"""\
table inet {TABLE} {{}}
delete table inet {TABLE}
table inet {TABLE} {{
	map awaited4 {{ type ipv4_addr . ipv4_addr . inet_service : ipv4_addr . inet_service; flags timeout; }}
	map awaited6 {{ type ipv6_addr . ipv6_addr . inet_service : ipv6_addr . inet_service; flags timeout; }}
	map called4 {{ type ipv4_addr . ipv4_addr . inet_service : ipv4_addr; flags timeout; }}
	map called6 {{ type ipv6_addr . ipv6_addr . inet_service : ipv6_addr; flags timeout; }}
	map pinned4 {{ type ipv4_addr . ipv4_addr . inet_service : ipv4_addr . inet_service; flags timeout; }}
	map pinned6 {{ type ipv6_addr . ipv6_addr . inet_service : ipv6_addr . inet_service; flags timeout; }}
	chain prerouting {{
		type nat hook prerouting priority dstnat - 1; policy accept;
		dnat ip to ip saddr . ip daddr . tcp dport map @awaited4
		dnat ip6 to ip6 saddr . ip6 daddr . tcp dport map @awaited6
	}}
	chain postrouting {{
		type nat hook postrouting priority srcnat - 1; policy accept;
		snat ip to ip saddr . ip daddr . tcp dport map @pinned4
		snat ip to ip saddr . ip daddr . tcp dport map @called4
		snat ip6 to ip6 saddr . ip6 daddr . tcp dport map @pinned6
		snat ip6 to ip6 saddr . ip6 daddr . tcp dport map @called6
	}}
}}
"""


class NetfilterError(Exception):
    """The kernel's packet filter could not be set up; the text says why and what would mend it."""


class NoPermission(NetfilterError):
    """CAP_NET_ADMIN is missing."""


class Claim:
    """The right to our table, which one process in a network namespace has: a second one would wipe out the elements
    of the first, and with the table its data connections.

    It is a bound socket with an abstract name (unix(7)): the kernel scopes such names to the network namespace, as it
    does tables, and forgets them when their process ends in whatever way.  Raises `NetfilterError` where another
    process has it.
    """

    NAME = b"\0ftpproxy"

    def __init__(self) -> None:
        self._loaded = False
        self._lock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._lock.bind(self.NAME)
        except OSError as error:
            self._lock.close()
            if error.errno != errno.EADDRINUSE:
                raise
            raise NetfilterError(
                'another ftpproxy with a "redirect" service runs in this network namespace;'
                " put the services into one file, or stop it first"
            ) from None

    def load(self) -> None:
        """`load_table`, and remember to remove it."""
        load_table()
        self._loaded = True

    def close(self) -> None:
        """Remove the table if we loaded it, and give the right back.  Raises `NetfilterError`."""
        try:
            if self._loaded:
                remove_table()
        finally:
            self._lock.close()


def load_table() -> None:
    """Load our table, empty; one that is there already (a killed process's) is replaced.

    Runs `nft`, some 30 ms: for the start of a process only, which must have the `Claim`.  Raises `NetfilterError`.
    """
    _nft(PLANE_TABLE)


def remove_table() -> None:
    """Remove our table with all its elements; nothing happens where there is none.  Raises `NetfilterError`."""
    _nft(f"table inet {TABLE} {{}}\ndelete table inet {TABLE}\n")


def _nft(text: str) -> None:
    program = shutil.which("nft", path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin")
    if program is None:
        raise NetfilterError("the program nft was not found; install nftables (Debian: apt install nftables)")
    done = subprocess.run(
        [program, "-f", "-"],
        input=text,
        capture_output=True,
        text=True,
        env={**os.environ, "LC_ALL": "C"},
        check=False,
    )
    if done.returncode == 0:
        return
    said = " / ".join(line.strip() for line in done.stderr.splitlines() if line.strip(" \t^~"))
    if "Operation not permitted" in said:
        raise NoPermission("changing nftables needs CAP_NET_ADMIN: run this as root, or give it the capability")
    if "cache initialization failed" in said or "Protocol not supported" in said:
        raise NetfilterError(f"this kernel has no nftables (CONFIG_NF_TABLES, CONFIG_NF_TABLES_INET; nft: {said})")
    if "No such file or directory" in said or "not supported" in said:
        raise NetfilterError(f"this kernel lacks a part of nftables (CONFIG_NFT_NAT, CONFIG_NF_NAT; nft: {said})")
    raise NetfilterError(f"nft failed with exit code {done.returncode}: {said}")


# linux/netfilter/nfnetlink.h
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
# linux/netfilter/nf_tables.h
_NEW_ELEMENT, _DELETE_ELEMENT = _SUBSYSTEM << 8 | 12, _SUBSYSTEM << 8 | 14  # NFT_MSG_NEWSETELEM, NFT_MSG_DELSETELEM
_GET_TABLE = _SUBSYSTEM << 8 | 1  # NFT_MSG_GETTABLE
_TABLE_NAME = 1  # NFTA_TABLE_NAME
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS = 1, 2, 3  # NFTA_SET_ELEM_LIST_*
_LIST_ELEMENT = 1  # NFTA_LIST_ELEM
_ELEMENT_KEY, _ELEMENT_DATA, _ELEMENT_TIMEOUT = 1, 2, 4  # NFTA_SET_ELEM_*
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


def has_table(name: str) -> bool | None:
    """Whether there is a table `inet NAME`; None where we may not look (CAP_NET_ADMIN) or there is no nftables."""
    request = _message(_GET_TABLE, _REQUEST, 1, _FAMILY_INET, 0, _attribute(_TABLE_NAME, name.encode() + b"\0"))
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as sock:
            sock.send(request)
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
    """One element of one of our maps.  `key` and `data` are packed as the kernel compares them."""

    map: str
    key: bytes
    data: bytes
    seconds: float = ELEMENT_SECONDS


def _host_port(host: IPAddress, port: int) -> bytes:
    return host.packed + struct.pack("!Hxx", port)


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


def _attribute(kind: int, payload: bytes) -> bytes:
    # Everything that we send is a multiple of four octets long, except names.
    return struct.pack("=HH", len(payload) + 4, kind) + payload + bytes(-len(payload) % 4)


def _message(kind: int, flags: int, sequence: int, family: int, resource: int, payload: bytes = b"") -> bytes:
    length = _header.size + len(payload)
    return _header.pack(length, kind, flags, sequence, 0, family, 0, socket.htons(resource)) + payload


def _element(element: Element, *, key_only: bool) -> bytes:
    inner = _attribute(_NESTED | _ELEMENT_KEY, _attribute(_DATA_VALUE, element.key))
    if not key_only:
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


class Elements:
    """The elements of our table's maps, through one netlink socket that stays open (closing one costs up to 14 ms).

    It belongs to the network namespace it was made in, and to one thread.  Raises `OSError` where the kernel has no
    netlink for its packet filter.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
        self._socket.setsockopt(_SOL_NETLINK, _CAP_ACK, 1)
        self._socket.bind((0, 0))
        self._sequence = 0

    def add(self, *elements: Element) -> None:
        """Add all or none (at most 100); they stand when this returns.

        Raises `FileExistsError` if the key of one is taken, `PermissionError` without CAP_NET_ADMIN,
        `FileNotFoundError` if our table is gone (flushed by somebody), other `OSError` as the kernel has it.
        """
        self._exchange(elements, add=True)

    def remove(self, *elements: Element) -> None:
        """Remove them (at most 100); what is gone already (timed out, flushed) counts as removed.  Raises `OSError`
        as `add` does otherwise."""
        try:
            self._exchange(elements, add=False)
        except FileNotFoundError:
            # One that is missing undoes the whole batch.  (NFT_MSG_DESTROYSETELEM is too young: Linux 6.3.)
            if len(elements) > 1:
                for element in elements:
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

    def _exchange(self, elements: tuple[Element, ...], *, add: bool) -> None:
        if not 1 <= len(elements) <= MOST_IN_A_BATCH:
            raise ValueError(f"{len(elements)} elements in a batch; 1 to {MOST_IN_A_BATCH} can be")
        first = self._sequence
        self._sequence = (first + len(elements) + 2) & 0x7FFFFFFF
        if self._sequence < first:
            first, self._sequence = 0, len(elements) + 2
        self._socket.send(pack_batch(elements, add=add, sequence=first))
        answers, failure = 0, 0
        while True:
            try:
                answer = self._socket.recv(8192, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            _, kind, _, _, _, code = _answer.unpack_from(answer)
            if kind == _ERROR:
                answers += 1
                failure = failure or -code
        if failure:
            raise OSError(failure, f"nftables, table inet {TABLE}: {os.strerror(failure)}")
        if answers != len(elements):
            raise OSError(errno.EPROTO, f"nftables answered {answers} of {len(elements)} messages")
