"""How one leg of a relayed data connection comes up: awaited or called.

An awaited leg is expected at a door (`ftpproxy.doors`), which may be shared with others, until its peer has called;
then the place there and the kernel state that led to it are given back.

A called leg is dialled; refused, unreachable and no answer in time are reported later, never from inside `dial`.

Every socket carries SO_LINGER {1, 0} from before it is connected to the clean end of the path, so its peer sees a reset
in every other case: also when this process is killed.  And TCP_NODELAY: what a peer sent at once, such as half of a
TLS handshake, must not wait here for an acknowledgement.  Accepted sockets inherit both from their door.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from functools import partial
from typing import Protocol

from attrs import frozen

from .. import sockets
from ..endpoints import ANY_PORT, Endpoint, Side
from ..estate import Estate, Inheritance
from ..intercept.interceptor import Gate, PortRange, nothing_to_release
from ..paths import Await, Call, Leg
from ..reasons import Code, Reason, call_failed
from ..switchboard import WRITE, Switchboard, Watch

__all__ = ["LegOwner", "LegRecord", "RelayLeg"]

DIALS = 4
"""Ports tried where the pair of endpoints is in TIME_WAIT or in use."""

BUSY = frozenset({errno.EADDRNOTAVAIL, errno.EADDRINUSE})


class LegOwner(Protocol):
    """Whom a leg reports to: its path.  Never from inside `listen`, `dial` or `close`."""

    def leg_up(self, side: Side) -> None: ...

    def leg_failed(self, side: Side, why: str) -> None: ...

    def crashed(self, error: Exception) -> None: ...


@frozen
class LegRecord:
    """What a successor must know of a leg."""

    descriptor: int | None = None
    """Of its connection, if there is one or a call is under way."""
    up: bool = False
    dialled: float | None = None
    """Seconds since the call, while it is unanswered."""


class RelayLeg:
    """One leg: nothing yet, expected, dialling, up, closed."""

    def __init__(
        self, side: Side, spec: Leg, owner: LegOwner, board: Switchboard, gate: Gate, ports: PortRange
    ) -> None:
        self.side = side
        self.spec = spec
        self.up = False
        self.dialled_at: float | None = None
        """When the call was made, on the board's clock, while it is unanswered."""
        self._owner = owner
        self._board = board
        self._gate = gate
        self._ports = ports
        self._socket: socket.socket | None = None
        self._watch: Watch | None = None
        self._release: Callable[[], None] = nothing_to_release
        self._closed = False

    @property
    def connection(self) -> socket.socket:
        """The connection to the peer; only while `up`."""
        assert self.up
        assert self._socket is not None
        return self._socket

    @property
    def watch(self) -> Watch:
        """The registration of the socket; of a connection with no interest at first."""
        assert self._watch is not None
        return self._watch

    def listen(self) -> Endpoint:
        """Listen for the peer; where it is to call.  Raises `GateError`, `OSError`."""
        assert isinstance(self.spec, Await)
        listener = self._gate.listener(self.spec, self._ports)
        self._release = listener.release
        listener.expected.answer(self._call_came, self._owner.crashed)
        return listener.announced

    def dial(self) -> None:
        """Call the peer.  Raises `GateError` and `OSError` for want of a socket; a failed call is reported later."""
        assert isinstance(self.spec, Call)
        call = self.spec
        for tries_left in reversed(range(DIALS)):
            caller = self._gate.caller(call, self._ports)
            self._take(caller.socket, caller.release, self._answer_came)
            sockets.reset_on_close(caller.socket)
            caller.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            code = caller.socket.connect_ex(call.to.sockaddr())
            if code not in BUSY or not tries_left:
                break
            self._let_go(sockets.close_with_reset)
            call = Call(call.to, call.source.at(ANY_PORT))  # port 20 is a courtesy, the connection is not
        if code in (0, errno.EINPROGRESS):
            self.dialled_at = self._board.now
            self.watch.want(WRITE)
        else:
            self._board.soon(partial(self._not_reached, code), self._owner.crashed)

    def leave(self, estate: Estate) -> LegRecord:
        """Leave it to a successor, which is to listen anew where nothing else is there.  Of no further use here; what
        leads callers of an awaited leg here stays."""
        self._closed = True
        if self._watch is not None:
            self._watch.close()
        if self._socket is None or not (self.up or self.dialled_at is not None):
            return LegRecord()
        dialled = None if self.dialled_at is None else self._board.now - self.dialled_at
        return LegRecord(estate.descriptor(self._socket), self.up, dialled)

    def inherit(self, record: LegRecord, inheritance: Inheritance) -> None:
        """Go on with the connection, or the call, of a predecessor.  Raises `Unthawable`."""
        if record.descriptor is None:
            return
        sock = inheritance.take(record.descriptor)
        if record.up:
            self._take(sock, nothing_to_release, _unexpected)
            self.up = True
        else:  # the kernel knows the connection since the call, and what led it is needed no more
            self._take(sock, nothing_to_release, self._answer_came)
            self.dialled_at = self._board.now - (record.dialled or 0.0)
            self.watch.want(WRITE)

    def close(self, *, cleanly: bool = False) -> None:
        """Give everything back; the peer sees a reset unless the connection ended `cleanly`.  Idempotent."""
        self._closed = True
        self._let_go(sockets.close_cleanly if cleanly else sockets.close_with_reset)

    def _take(self, sock: socket.socket, release: Callable[[], None], callback: Callable[[int], None]) -> None:
        self._socket = sock
        self._release = release
        self._watch = self._board.watch(sock, callback, self._owner.crashed)

    def _let_go(self, how: Callable[[socket.socket], None]) -> None:
        self.dialled_at = None
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        if self._socket is not None:
            how(self._socket)
            self._socket = None
        release, self._release = self._release, nothing_to_release
        release()

    def _call_came(self, sock: socket.socket) -> None:
        self._let_go(socket.socket.close)
        self._take(sock, nothing_to_release, _unexpected)
        self._now_up()

    def _answer_came(self, events: int) -> None:
        assert self._socket is not None
        code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._not_reached(code, self._board.now)
            return
        if self._socket.getsockname() == self._socket.getpeername():  # TCP lets a socket call itself
            self._not_reached(errno.ELOOP, self._board.now)
            return
        self.watch.want(0)
        self.watch.callback = _unexpected
        self.dialled_at = None
        release, self._release = self._release, nothing_to_release
        release()  # the kernel knows the connection by now and asks the map no more
        self._now_up()

    def _not_reached(self, number: int, now: float) -> None:
        assert isinstance(self.spec, Call)
        if self._closed:
            return
        loop = number == errno.ELOOP
        code = Code.LOOP if loop else call_failed(number, "data")
        why = "the way leads back to this proxy" if loop else os.strerror(number)
        text = f"cannot reach the {self.side} at {self.spec.to}: {why}"
        self._owner.leg_failed(self.side, Reason(code, text, side=self.side, at=self.spec.to))

    def _now_up(self) -> None:
        self.up = True
        self._owner.leg_up(self.side)


def _unexpected(events: int) -> None:
    raise AssertionError("an event on a leg that nobody asked events of")
