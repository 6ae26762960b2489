"""A call: one outgoing connection in the making, as an event on the switchboard."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable

from . import sockets
from .endpoints import ANY_PORT, Endpoint, IPAddress, Side
from .reasons import Reason, call_failed
from .switchboard import WRITE, Switchboard, Watch

__all__ = ["Dial"]


class Dial:
    """Call `to` from the address `source` (None lets the routing choose).

    Exactly one of `answered(socket)` and `unanswered(reason)` is called, later and never from here, unless
    `close` comes first.  `sweep(now)` has to be called about once a second: the call fails after `seconds`.
    `first` is said on the connection before anybody else can say something: a PROXY header fits into any empty buffer.
    """

    __slots__ = ("_answered", "_deadline", "_failure", "_first", "_over", "_sock", "_to", "_unanswered", "_watch")

    def __init__(
        self,
        board: Switchboard,
        to: Endpoint,
        source: IPAddress | None,
        seconds: float,
        *,
        first: bytes = b"",
        answered: Callable[[socket.socket], None],
        unanswered: Callable[[Reason], None],
        on_crash: Callable[[Exception], None],
    ) -> None:
        self._to = to
        self._answered = answered
        self._unanswered = unanswered
        self._deadline = board.now + seconds
        self._failure = 0
        self._first = first
        self._over = False
        self._watch: Watch | None = None
        self._sock: socket.socket | None = None
        try:
            if source is not None:
                self._sock = sockets.bound(Endpoint(source, ANY_PORT))
            else:
                self._sock = socket.socket(sockets.family(to.host), socket.SOCK_STREAM)
                self._sock.setblocking(False)
            self._failure = self._sock.connect_ex(to.sockaddr())
        except OSError as error:
            self._failure = error.errno or errno.EINVAL
        if self._failure in (0, errno.EINPROGRESS):
            assert self._sock is not None
            self._failure = 0
            self._watch = board.watch(self._sock, self._decided, on_crash)
            self._watch.want(WRITE)
        else:
            board.soon(self._failed_at_once, on_crash)

    def _failed_at_once(self, _: float) -> None:
        if not self._over:
            self._fail(self._failure)

    def _decided(self, _: int) -> None:
        sock = self._sock
        assert sock is not None
        if failure := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._fail(failure)
            return
        if self._first:
            try:
                sock.send(self._first)
            except OSError as error:
                self._fail(error.errno or errno.EIO)
                return
        assert self._watch is not None
        self._watch.close()
        self._over = True
        self._sock = None
        self._answered(sock)

    def sweep(self, now: float) -> None:
        if not self._over and now >= self._deadline:
            self._fail(errno.ETIMEDOUT)

    def _fail(self, number: int) -> None:
        self.close()
        why = Reason(call_failed(number, "server"), os.strerror(number), side=Side.SERVER, at=self._to)
        self._unanswered(why)

    def close(self) -> None:
        """Hang up before it is decided.  Idempotent; nothing is called afterwards."""
        self._over = True
        if self._watch is not None:
            self._watch.close()
        if self._sock is not None:
            self._sock.close()
            self._sock = None
