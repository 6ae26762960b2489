"""The listeners of a process: the sockets that control connections come in by.

An accept loop takes a bounded number a round, so a flood at one listener does not starve sessions.  Where the process
or the machine has no descriptor left, accepting pauses until the next sweep: the connections wait in the kernel, and
the loop does not spin.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Callable, Iterator, MutableMapping, Sequence

from attrs import define

from . import sockets
from .endpoints import Endpoint
from .estate import Estate
from .intercept.interceptor import GateError
from .log import event
from .records import ListenerRecord
from .service import Service
from .switchboard import READ, Switchboard, Watch

__all__ = ["CannotListen", "Listener", "Listeners"]

ACCEPTS_A_ROUND = 32
BACKLOG = 4096
"""Asked for; the kernel caps it (net.core.somaxconn)."""
NO_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

log = logging.getLogger(__name__)


class CannotListen(Exception):
    """A listener could not be opened; the text says which and why."""


@define(eq=False)
class Listener:
    """One of them."""

    service: Service
    sock: socket.socket
    at: Endpoint
    wanted: Endpoint | None = None
    """As the configuration has it; None where a supervisor has opened it."""
    watch: Watch | None = None
    paused: bool = False


def _why(error: OSError, at: Endpoint) -> str:
    """Why we cannot listen at `at`, and where to look."""
    if error.errno == errno.EADDRINUSE:
        return f"another process listens there already (ss -ltnp 'sport = :{at.port}')"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{at.host} is not an address of this machine (ip address show)"
    return error.strerror or str(error)


def _opened(service: Service, at: Endpoint) -> socket.socket:
    """A socket that listens at `at`.  Raises `CannotListen`; its cause is a `PermissionError` where a privilege
    lacks."""
    sock = socket.socket(sockets.family(at.host), socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if at.host.version == 6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        service.gate.prepare(sock)
        sock.bind(at.sockaddr())
        sock.listen(BACKLOG)
    except GateError as error:
        sock.close()
        raise CannotListen(f'service "{service.name}", {at}: {error}') from error.__cause__
    except PermissionError as error:
        sock.close()
        why = "a port below 1024 needs CAP_NET_BIND_SERVICE: run this as root, or give it the capability"
        raise CannotListen(f'service "{service.name}", {at}: {why if at.port < 1024 else error.strerror}') from error
    except OSError as error:
        sock.close()
        raise CannotListen(f'service "{service.name}", {at}: {_why(error, at)}') from error
    return sock


class Listeners:
    """All listeners of one process."""

    def __init__(self, board: Switchboard, accepted: Callable[[Service, socket.socket, Endpoint], None]) -> None:
        """`accepted(service, socket, peer)` is called for each connection, and has the socket from then on."""
        self._board = board
        self._accepted = accepted
        self._listeners: list[Listener] = []

    def __iter__(self) -> Iterator[Listener]:
        return iter(self._listeners)

    def open(
        self,
        service: Service,
        given: Sequence[socket.socket] = (),
        left: MutableMapping[Endpoint, socket.socket] | None = None,
    ) -> None:
        """Listen at the sockets that a supervisor has `given`; if there are none, everywhere that `service` says, with
        the socket there that a predecessor has `left`, from which it goes.  Raises `CannotListen`; its cause is a
        `PermissionError` where a privilege lacks."""
        for sock in given:
            self._add(service, self._prepared(service, sock))
        for at in () if given else service.listen:
            sock_left = left.pop(at, None) if left else None
            sock = _opened(service, at) if sock_left is None else self._prepared(service, sock_left)
            self._add(service, sock, at)

    @staticmethod
    def _prepared(service: Service, sock: socket.socket) -> socket.socket:
        try:
            service.gate.prepare(sock)
        except GateError as error:
            at = Endpoint.from_sockaddr(sock.getsockname())
            raise CannotListen(f'service "{service.name}", {at}, as passed to us: {error}') from error.__cause__
        return sock

    def _add(self, service: Service, sock: socket.socket, wanted: Endpoint | None = None) -> None:
        listener = Listener(service, sock, Endpoint.from_sockaddr(sock.getsockname()), wanted)
        listener.watch = self._board.watch(sock, lambda _: self._accept(listener), self.crashed)
        listener.watch.want(READ)
        self._listeners.append(listener)

    def replace(self, services: Sequence[Service]) -> None:
        """Listen where `services` say and nowhere else.  Where we listen already it is the same socket that goes on, so
        nobody is refused meanwhile; what a supervisor has opened stays with the service of its name.

        Raises `CannotListen`, and then nothing has changed.
        """
        kept: dict[Listener, Service] = {}
        fresh: list[tuple[Service, Endpoint, socket.socket]] = []
        try:
            for service in services:
                given = [each for each in self._listeners if each.wanted is None and each.service.name == service.name]
                for at in () if given else service.listen:
                    if same := [each for each in self._listeners if each.wanted == at]:
                        given += same
                    else:
                        fresh.append((service, at, self._opened_beside(service, at)))
                for listener in given:
                    service.gate.prepare(listener.sock)
                    kept[listener] = service
        except (CannotListen, GateError) as error:
            for *_, sock in fresh:
                sock.close()
            raise error if isinstance(error, CannotListen) else CannotListen(str(error)) from error.__cause__
        for listener, service in kept.items():
            listener.service = service
        for listener in [each for each in self._listeners if each not in kept]:
            self._accept(listener)  # who has called before it was closed
            self._close(listener)
            event(log, logging.INFO, "closed", service=listener.service.name, at=listener.at)
        self._listeners = list(kept)
        for service, at, sock in fresh:
            self._add(service, sock, at)
            event(log, logging.INFO, "listening", service=service.name, at=at)

    def _opened_beside(self, service: Service, at: Endpoint) -> socket.socket:
        """As `_opened`, among the listeners that there are."""
        try:
            return _opened(service, at)
        except CannotListen as error:
            cause = error.__cause__
            for other in self._listeners:
                same_port = other.at.port == at.port and other.at.host.version == at.host.version
                if same_port and isinstance(cause, OSError) and cause.errno == errno.EADDRINUSE:
                    reason = f"we listen at {other.at} ourselves; restart, or give that up first, with another reload"
                    raise CannotListen(f'service "{service.name}", {at}: {reason}') from cause
            raise

    def announce(self) -> None:
        """Say in the log where we listen."""
        for listener in self._listeners:
            event(log, logging.INFO, "listening", service=listener.service.name, at=listener.at)

    def _accept(self, listener: Listener) -> None:
        for _ in range(ACCEPTS_A_ROUND):
            try:
                sock, address = listener.sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno not in NO_ROOM:
                    continue  # accept(2): errors of the new connection are reported here; it is gone
                event(log, logging.ERROR, "accept.paused", at=listener.at, reason=error.strerror)
                assert listener.watch is not None
                listener.watch.want(0)  # the sweep tries again
                listener.paused = True
                return
            self._accepted(listener.service, sock, Endpoint.from_sockaddr(address))

    def crashed(self, _: Exception) -> None:
        """One connection was lost to an internal error, which is logged; the listener stays."""

    def sweep(self) -> None:
        """Try again where accepting was paused."""
        for listener in self._listeners:
            if listener.paused and listener.watch is not None:
                listener.paused = False
                listener.watch.want(READ)

    def listens_at(self, target: Endpoint) -> bool:
        """Whether a call to `target` would arrive at one of them (docs/protocol.md item 143)."""
        for listener in self._listeners:
            at = listener.at
            if at.port == target.port and at.host.version == target.host.version:
                if at.host == target.host:
                    return True
                if at.host.is_unspecified and sockets.is_ours(target.host):
                    return True
        return False

    def leave(self, estate: Estate) -> None:
        """Accept nobody any more, and leave what no supervisor has to a successor: callers wait meanwhile."""
        for listener in self._listeners:
            if listener.watch is not None:
                listener.watch.close()
            if listener.wanted is not None:
                number = estate.descriptor(listener.sock)
                estate.note("listener", ListenerRecord(listener.wanted, number))
        self._listeners.clear()

    def close(self) -> None:
        for listener in self._listeners:
            self._close(listener)
        self._listeners.clear()

    @staticmethod
    def _close(listener: Listener) -> None:
        if listener.watch is not None:
            listener.watch.close()
        listener.sock.close()
