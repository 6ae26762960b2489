"""The estate: what a process leaves to its successor, so that no session ends with it.

Everything is in one descriptor: a unix socket in whose queue descriptors wait as messages (SCM_RIGHTS, unix(7)), at
most 253 in each.  The kernel keeps what is in flight open for as long as the socket is, also when the process that sent
it has gone.  So a supervisor keeps one descriptor, however many sessions there are, and they come back in their
order.  (One by one in the store of systemd, every new descriptor would be compared with all that are there: a
minute for 10,000 sessions.)  The first message has the state, the rest are the sockets:

    state     a memory file (memfd_create(2)) of lines, each one JSON value
                {"version": 1, "program": ..., "descriptors": ..., "octets": ..., "clients": [...]}
                ["session", {...}]                         one for each record, a session, a listener, ...
    octets    what sinks of data connections did not take yet, one behind the other

A record names a descriptor by its number, which is its place in the queue, and octets by where they begin and how many
they are.  The first line never changes its form: whoever cannot read the rest can still tell the clients of those
numbers that their sessions end.  `VERSION` changes when records of before cannot be read any more; a field more, which
has a default, is no such change (`ftpproxy.freezing`).  No class is named in there and no code, and a line that is
damaged harms nobody else's.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import tempfile
from collections.abc import Iterable
from itertools import chain
from typing import Any, BinaryIO, NamedTuple, Protocol, cast

from . import __version__
from .freezing import Unthawable, freeze

__all__ = ["VERSION", "Estate", "EstateError", "Inheritance", "Octets", "Unreadable"]

VERSION = 1
MOST_DESCRIPTORS = 253
"""Of one message (SCM_MAX_FD of the kernel)."""
MOST_STATE = 512 << 20
"""Octets of lines; a session is some two thousand."""
MOST_OCTETS = 8 << 20
"""Of one piece: more than any pipe holds."""
QUEUE = 4 << 20
"""Octets of queue that are asked for; the kernel caps it (net.core.wmem_max).  Its default has room for 70,000
descriptors, this for more than a process may have."""
MOST_MESSAGES = 10_000


class EstateError(Exception):
    """An estate cannot be left; says why."""


class Unreadable(Exception):
    """What was left cannot be read; says why."""


class _Descriptor(Protocol):
    def fileno(self) -> int: ...

    def close(self) -> None: ...


class Octets(NamedTuple):
    """A piece of the octets."""

    start: int
    length: int


class Estate:
    """What is being left.  Nothing of it is closed here: that is for the end of the process."""

    def __init__(self) -> None:
        self.left: list[_Descriptor] = []
        """Whose descriptors they are."""
        self._clients: list[int] = []
        self._octets = _memory("ftpproxy-octets")
        self._lines: list[bytes] = []

    def __len__(self) -> int:
        """How many records there are."""
        return len(self._lines)

    def descriptor(self, thing: _Descriptor, *, client: bool = False) -> int:
        """Leave a descriptor; its number.  `client`: it is a client's control connection, which may be told 421."""
        self.left.append(thing)
        if client:
            self._clients.append(len(self.left) - 1)
        return len(self.left) - 1

    def octets(self, octets: bytes) -> Octets:
        """Leave octets."""
        start = self._octets.tell()
        self._octets.write(octets)
        return Octets(start, len(octets))

    def note(self, kind: str, record: object) -> None:
        """Leave a record, of a class that `freeze` knows."""
        self._lines.append(_line([kind, freeze(record)]))

    def sealed(self) -> socket.socket:
        """The one descriptor that holds it all.  Raises `EstateError`."""
        header = {
            "version": VERSION,
            "program": __version__,
            "descriptors": len(self.left),
            "octets": self._octets.tell(),
            "clients": self._clients,
        }
        end, queue = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with _memory("ftpproxy-state") as state, self._octets as octets, end:
            state.writelines([_line(header), *self._lines])
            state.flush()
            octets.flush()
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, QUEUE)
            try:
                socket.send_fds(end, [b"0"], [state.fileno(), octets.fileno()])
                for start in range(0, len(self.left), MOST_DESCRIPTORS):
                    some = self.left[start : start + MOST_DESCRIPTORS]
                    socket.send_fds(end, [b"1"], [each.fileno() for each in some])
            except OSError as error:
                queue.close()
                raise EstateError(f"{len(self.left)} descriptors cannot be left: {error.strerror}") from error
        return queue

    def close(self) -> None:
        """It is not wanted; what was left in it stays open."""
        self._octets.close()

    def refuse(self, words: bytes) -> int:
        """It cannot be left: say `words` to the clients that may be told; how many heard them."""
        return sum(_say(self.left[number].fileno(), words) for number in self._clients)


class Inheritance:
    """What a predecessor has left: taken piece by piece, and closed at the end with what nobody has taken."""

    def __init__(self, queue: socket.socket) -> None:
        """Takes the socket that `Estate.sealed` gave.  Raises `Unreadable` where that is none."""
        self.program = ""
        """The version of the program that has left it."""
        self.damaged: list[str] = []
        """What was wrong with single records."""
        self._clients: list[int] = []
        self._files, self._descriptors = _unpacked(queue)

    def read(self) -> list[tuple[str, Any]]:
        """The records that can be read, each with its kind; for what cannot be see `damaged`.  Raises `Unreadable`
        where nothing can, but `refuse` perhaps."""
        with open(self._files[0], "rb", closefd=False) as state:
            state.seek(0)
            content = state.read(MOST_STATE + 1)
        if len(content) > MOST_STATE:
            raise Unreadable(f"the state has more than {MOST_STATE} octets")
        first, *lines = content.split(b"\n")
        self._read_header(_parsed(first))
        if not lines or lines.pop():
            self.damaged.append("the last record is cut short")
        records = []
        for number, line in enumerate(lines, 2):
            record = _parsed(line)
            if isinstance(record, list) and len(record) == 2 and isinstance(record[0], str):
                records.append((record[0], record[1]))
            else:
                self.damaged.append(f"line {number}, {len(line)} octets, is not a record")
        return records

    def _read_header(self, header: Any) -> None:
        if not isinstance(header, dict):
            raise Unreadable("the state does not begin with its version")
        self.program = str(header.get("program", "unknown"))[:40]
        clients = header.get("clients")
        if isinstance(clients, list):
            self._clients = [number for number in clients if type(number) is int]
        if header.get("version") != VERSION:
            version = str(header.get("version"))[:20]
            raise Unreadable(f"the state is of version {version}, of ftpproxy {self.program}; this one reads {VERSION}")
        if header.get("descriptors") != len(self._descriptors):
            raise Unreadable(
                f"{header.get('descriptors')!r:.20} descriptors were left, {len(self._descriptors)} are here"
            )

    def take(self, number: int) -> socket.socket:
        """The socket of that number, for its taker to close.  Raises `Unthawable` for one that is taken or is none."""
        descriptor = self._descriptors.get(number)
        if descriptor is None:
            raise Unthawable(f"there is no descriptor {number}, or it is taken")
        try:
            sock = socket.socket(fileno=descriptor)
        except OSError as error:
            raise Unthawable(f"descriptor {number} is no socket: {error.strerror}") from None
        del self._descriptors[number]
        sock.setblocking(False)
        return sock

    def octets(self, where: Octets) -> bytes:
        """Those octets.  Raises `Unthawable`."""
        if where.start < 0 or not 0 <= where.length <= MOST_OCTETS:
            raise Unthawable(f"{where.length} octets at {where.start} cannot be")
        octets = os.pread(self._files[1], where.length, where.start) if where.length else b""
        if len(octets) != where.length:
            raise Unthawable(f"there are no {where.length} octets at {where.start}")
        return octets

    def refuse(self, words: bytes, numbers: Iterable[int] | None = None) -> int:
        """Say `words` to the clients (those of `numbers`) whose control connection nobody has taken, and close it; how
        many heard them."""
        told = 0
        for number in self._clients if numbers is None else set(self._clients).intersection(numbers):
            if (descriptor := self._descriptors.pop(number, None)) is not None:
                told += _say(descriptor, words)
                os.close(descriptor)
        return told

    def close(self) -> None:
        """Close what nobody has taken: peers of data connections see a reset.  Idempotent."""
        for descriptor in (*self._files, *self._descriptors.values()):
            os.close(descriptor)
        self._files.clear()
        self._descriptors.clear()


def _unpacked(queue: socket.socket) -> tuple[list[int], dict[int, int]]:
    """The two files and the descriptors that wait in `queue`, which is closed.  Raises `Unreadable`."""
    received: list[list[int]] = []
    with queue:
        try:
            queue.setblocking(False)
            while len(received) <= MOST_MESSAGES:
                _, descriptors, _, _ = socket.recv_fds(queue, 1, MOST_DESCRIPTORS)
                if not descriptors:
                    break
                received.append(descriptors)
        except OSError as error:
            if error.errno != errno.EAGAIN or not received:
                why = f"it is no queue of descriptors: {error.strerror}"
                raise Unreadable(why) from None
    if not received or len(received[0]) != 2:
        for descriptor in chain(*received):
            os.close(descriptor)
        raise Unreadable("there are no descriptors in it")
    for descriptor in chain(*received):
        os.set_inheritable(descriptor, False)
    return received[0], dict(enumerate(chain(*received[1:])))


def _say(descriptor: int, words: bytes) -> bool:
    try:
        os.set_blocking(descriptor, False)
        os.write(descriptor, words)
        os.read(descriptor, 65536)  # what is unread would turn our close into a reset, which may overtake the words
    except BlockingIOError:
        return True  # nothing to read, or (seldom) no room for the words
    except OSError:
        return False
    return True


def _memory(name: str) -> BinaryIO:
    """A file without a name in any directory."""
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create(name), "w+b")
    return cast(BinaryIO, tempfile.TemporaryFile())


def _line(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def _parsed(line: bytes) -> Any:
    """The value of a line; None for what is no JSON."""
    try:
        return json.loads(line, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return None


def _no_number(text: str) -> Any:
    raise ValueError(text)
