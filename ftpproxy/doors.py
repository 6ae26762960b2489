"""Doors: where peers call this process for data connections.

A door is one listening socket at one address and port, shared by all paths of the process that await somebody there,
whichever service and gate they belong to: it finds the path by the caller's address.  So any number of clients may be
told one port at once, and ten ports are enough for hundreds of them.  Each caller is expected once at a door, for one
call; a second path of the same caller takes another port.  A door opens with the first caller that is expected and
closes with the last: who sits in its queue then is reset by the kernel.

**Strangers.**  Anybody can call a listening port, so only who is expected is served (RFC 2577 section 4).  Everybody
else is reset at once and logged, and ends nothing however often he calls: others wait behind the same door, and must
not lose their data connections by calls that a stranger makes.

Each socket that comes in carries SO_LINGER {1, 0} and TCP_NODELAY, inherited from its door: there is no moment at
which the end of this process could look like the end of a file.

**Reserved places.**  A caller may also be led elsewhere by the kernel before it gets to a door: to an address of ours
(`redirect`), or to the other peer (the nft plane).  Those places are reserved here, so that no two paths of this
process tell one caller the same address and port.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Callable
from functools import partial

from attrs import frozen

from . import sockets
from .endpoints import Endpoint, IPAddress
from .estate import Estate, Inheritance
from .lobby import Lobby
from .log import event
from .metrics import counts
from .switchboard import READ, Switchboard

__all__ = ["DoorRecord", "Doors", "Expected"]

ACCEPTS = 16
"""Calls looked at in one turn."""

BACKLOG = 256
"""Asked for; the kernel caps it (net.core.somaxconn).  Room for all who were told this port, and for strangers, who
must not crowd them out before they are turned away."""

FULL = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""accept(2): nothing to be had now; the call stays in the queue and the door readable."""

BROKEN = frozenset({errno.EBADF, errno.EINVAL, errno.ENOTSOCK, errno.EFAULT})
"""accept(2): errors of the door; all others are of that one call."""

log = logging.getLogger(__name__)


@frozen
class DoorRecord:
    """What a successor must know of a door."""

    at: Endpoint
    descriptor: int


class Expected:
    """One caller, expected at a door until it has called or `close`."""

    __slots__ = ("_door", "caller", "came", "crashed")

    def __init__(self, door: _Door, caller: IPAddress) -> None:
        self._door = door
        self.caller = caller
        self.came: Callable[[socket.socket], None] = _unanswered
        self.crashed: Callable[[Exception], None] = _unanswered

    @property
    def at(self) -> Endpoint:
        """Where the door is."""
        return self._door.at

    def answer(self, came: Callable[[socket.socket], None], crashed: Callable[[Exception], None]) -> None:
        """Call `came` with the non-blocking connection when the caller has called, in a later turn of the switchboard;
        the caller is not expected any more then.  `crashed` is called instead for an internal error."""
        self.came = came
        self.crashed = crashed

    def close(self) -> None:
        """Expect it no more.  Idempotent."""
        self._door.leave(self)


class _Door:
    """One listening socket."""

    def __init__(self, doors: Doors, at: Endpoint, sock: socket.socket) -> None:
        self.at = at
        self.expected: dict[IPAddress, Expected] = {}
        self._doors = doors
        self._socket = sock
        self.watch = doors.board.watch(sock, self._called, self._crashed)
        self.watch.want(READ)

    def leave(self, guest: Expected) -> None:
        if self.expected.get(guest.caller) is not guest:
            return
        del self.expected[guest.caller]
        if not self.expected:
            self._doors.shut(self)
        self._doors.lobby.freed((self.at.host, guest.caller))

    def leave_to(self, estate: Estate) -> None:
        self.watch.close()
        estate.note("door", DoorRecord(self.at, estate.descriptor(self._socket)))

    def shut(self) -> None:
        self.watch.close()
        self._socket.close()

    def _called(self, events: int) -> None:
        for _ in range(ACCEPTS):
            try:
                sock, address = self._socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in FULL:
                    event(log, logging.ERROR, "data.accept", at=self.at, error=error)
                    self._doors.full.append(self)
                    self.watch.want(0)  # until the next sweep: it would be reported again and again
                    return
                if error.errno in BROKEN:
                    raise
                continue
            caller = Endpoint.from_sockaddr(address)
            guest = self.expected.get(caller.host)
            if guest is None:
                self._turn_away(sock, caller)
                continue
            self.leave(guest)
            sock.setblocking(False)
            self._doors.board.guard(guest.came, sock, guest.crashed)
            if not self.watch.alive:
                return

    def _turn_away(self, sock: socket.socket, caller: Endpoint) -> None:
        sockets.close_with_reset(sock)
        counts.strangers += 1
        expected = next(iter(self.expected)) if len(self.expected) == 1 else f"{len(self.expected)} others"
        event(log, logging.WARNING, "data.stranger", at=self.at, caller=caller, expected=expected)

    def _crashed(self, error: Exception) -> None:
        """Whom it was opened for cannot come any more."""
        for guest in list(self.expected.values()):
            guest.close()
            self._doors.board.guard(guest.crashed, error, _unanswered)


class Doors:
    """All doors of the process, and all reserved places."""

    def __init__(self, board: Switchboard) -> None:
        self.board = board
        self.lobby = Lobby(board)
        """Who waits for a place that is taken."""
        self.full: list[_Door] = []
        """Doors that found no descriptor for a call."""
        self._doors: dict[Endpoint, _Door] = {}
        self._left: dict[Endpoint, socket.socket] = {}  # by a predecessor, for who is expected there
        self._reserved: set[tuple[Endpoint, IPAddress]] = set()
        board.sweep(self._sweep, _unanswered)

    def __len__(self) -> int:
        """How many are open."""
        return len(self._doors)

    def expect(self, at: Endpoint, caller: IPAddress, *, transparent: bool = False) -> Expected:
        """Listen for `caller` at `at`, a foreign address if `transparent`.  It can call when this returns.

        Raises `OSError`: EADDRINUSE where it is expected, or the place reserved for it, already, or another program
        listens there; otherwise as `sockets.bound`.
        """
        if self.taken(at, caller):
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        door = self._doors.get(at)
        if door is None:
            sock = self._left.pop(at, None) or _listening(at, transparent=transparent)
            door = self._doors[at] = _Door(self, at, sock)
        guest = door.expected[caller] = Expected(door, caller)
        return guest

    def taken(self, at: Endpoint, caller: IPAddress) -> bool:
        """Whether another path of this process has told `caller` to call `at`."""
        door = self._doors.get(at)
        return (at, caller) in self._reserved or (door is not None and caller in door.expected)

    def reserve(self, at: Endpoint, caller: IPAddress) -> Callable[[], None]:
        """Keep a place, which is not `taken`, for one path; call what is returned, once, to give it back."""
        place = at, caller
        self._reserved.add(place)
        return partial(self._give_back, place)

    def _give_back(self, place: tuple[Endpoint, IPAddress]) -> None:
        self._reserved.discard(place)
        at, caller = place
        self.lobby.freed((at.host, caller))

    def shut(self, door: _Door) -> None:
        """The last one has come."""
        if self._doors.get(door.at) is door:
            del self._doors[door.at]
            door.shut()

    def leave(self, estate: Estate) -> None:
        """Leave every door to a successor, with who has called and was not seen yet.  No use is left here."""
        for door in self._doors.values():
            door.leave_to(estate)
        self._doors.clear()

    def inherit(self, record: DoorRecord, inheritance: Inheritance) -> None:
        """The door of a predecessor; whoever is expected there first opens it.  Raises `Unthawable`."""
        self._left[record.at] = inheritance.take(record.descriptor)

    def drop_left(self) -> None:
        """Shut what a predecessor has left and nobody is expected at."""
        for sock in self._left.values():
            sock.close()
        self._left.clear()

    def close(self) -> None:
        """Shut all of them; nobody is told."""
        self.board.unsweep(self._sweep)
        self.lobby.close()
        for door in list(self._doors.values()):
            self.shut(door)

    def _sweep(self, now: float) -> None:
        full, self.full = self.full, []
        for door in full:
            door.watch.want(READ)


def _listening(at: Endpoint, *, transparent: bool) -> socket.socket:
    """Raises `OSError`: EADDRINUSE may come from bind or from listen, because with SO_REUSEADDR only listen tells two
    listeners apart."""
    sock = sockets.bound(at, transparent=transparent)
    try:
        sockets.reset_on_close(sock)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _unanswered(what: object) -> None:
    """Nobody to tell."""
