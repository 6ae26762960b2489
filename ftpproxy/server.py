"""The server: listeners, who is let in, and the life of the worker.

A `Service` is one configured listener with its policy; a `Server` is all services of a process on one
switchboard.  A connection is let in when its client may use the service, neither cap is reached, and it is not
about to call ourselves; everybody else is told 421 and the reason, and nobody's refusal disturbs a session.
"""

from __future__ import annotations

import errno
import itertools
import logging
import signal
import socket
from collections import Counter
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network
from typing import Any

import trio
from attrs import define, evolve, field, frozen

from . import sockets
from .endpoints import Endpoint, IPAddress
from .intercept.interceptor import Gate, GateError
from .log import event
from .pi.policy import Policies
from .session import Session, Terms
from .switchboard import READ, Switchboard, Watch
from .wire.reply import reply

__all__ = ["CannotListen", "Server", "Service"]

ACCEPTS_A_ROUND = 32
BACKLOG = 4096
"""Asked for; the kernel caps it (net.core.somaxconn)."""
NO_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

log = logging.getLogger(__name__)


class CannotListen(Exception):
    """A listener could not be opened; the text says which and why."""


@frozen(kw_only=True)
class Service:
    """One `[[service]]`, composed."""

    terms: Terms
    gate: Gate
    listen: Sequence[Endpoint]
    clients: Sequence[IPv4Network | IPv6Network] = ()
    """Who may use it; empty: everybody."""
    policies: Policies | None = None
    """By client; None: the policy of `terms` for everybody."""
    servers: Sequence[Endpoint] | None = None
    """Reverse mode: whom to call, one a family at most.  None: whom the client dialled."""
    most_sessions: int = 1000
    most_per_client: int = 100

    @property
    def name(self) -> str:
        return self.terms.service

    def terms_for(self, client: IPAddress) -> Terms:
        """What holds for a session of `client`."""
        policy = self.policies.policy_for(client) if self.policies is not None else self.terms.policy
        return self.terms if policy is self.terms.policy else evolve(self.terms, policy=policy)

    def server_for(self, orig_server: Endpoint) -> Endpoint:
        """Whom to call for a client that dialled `orig_server`; a server of its own family is preferred."""
        if self.servers is None:
            return orig_server
        same = [server for server in self.servers if server.host.version == orig_server.host.version]
        return (same or list(self.servers))[0]


@define
class _Listener:
    service: Service
    sock: socket.socket
    at: Endpoint
    watch: Watch | None = None
    paused: bool = False


@define
class _Census:
    """Who is in."""

    sessions: set[Session] = field(factory=set)
    of_client: Counter[IPAddress] = field(factory=Counter)


class Server:
    """All services of one worker.  `listen`, then `run`."""

    def __init__(self, board: Switchboard, services: Sequence[Service]) -> None:
        self._board = board
        self._services = services
        self._listeners: list[_Listener] = []
        self._census = {service.name: _Census() for service in services}
        self._numbers = itertools.count(1)

    def listen(self) -> None:
        """Open every listener.  Raises `CannotListen`; its cause is a `PermissionError` where a privilege lacks."""
        for service in self._services:
            for at in service.listen:
                self._listen(service, at)
        for listener in self._listeners:
            event(log, logging.INFO, "listening", service=listener.service.name, at=listener.at)

    def _listen(self, service: Service, at: Endpoint) -> None:
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
            why = "a port below 1024 needs CAP_NET_BIND_SERVICE" if at.port < 1024 else error.strerror
            raise CannotListen(f'service "{service.name}", {at}: {why}') from error
        except OSError as error:
            sock.close()
            raise CannotListen(f'service "{service.name}", {at}: {error.strerror}') from error
        listener = _Listener(service, sock, Endpoint.from_sockaddr(sock.getsockname()))
        listener.watch = self._board.watch(sock, lambda _: self._accept(listener), self._accept_crashed)
        listener.watch.want(READ)
        self._listeners.append(listener)

    # Who comes in

    def _accept(self, listener: _Listener) -> None:
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
            self._admit(listener, sock, address)

    def _accept_crashed(self, _: Exception) -> None:
        """One connection was lost to an internal error, which is logged; the listener stays."""

    def _admit(self, listener: _Listener, sock: socket.socket, address: Any) -> None:
        service = listener.service
        client = Endpoint.from_sockaddr(address)
        census = self._census[service.name]
        if service.clients and not any(client.host in network for network in service.clients):
            self._turn_away(service, sock, client, "You may not use this service.")
        elif len(census.sessions) >= service.most_sessions:
            self._turn_away(service, sock, client, "Too many sessions, try again later.")
        elif census.of_client[client.host] >= service.most_per_client:
            self._turn_away(service, sock, client, "Too many sessions from your address.")
        else:
            try:
                orig_server = service.gate.original_destination(sock)
            except (GateError, OSError) as error:
                self._turn_away(service, sock, client, "Cannot tell which server you called.", error)
                return
            server = service.server_for(orig_server)
            if self.listens_at(server):
                self._turn_away(service, sock, client, "The way to that server leads back to this proxy.")
                return
            session = Session(
                next(self._numbers),
                sock,
                client=client,
                orig_server=orig_server,
                server=server,
                terms=service.terms_for(client.host),
                board=self._board,
                ended=self._ended,
            )
            census.sessions.add(session)
            census.of_client[client.host] += 1

    def _ended(self, session: Session) -> None:
        census = self._census[session.service]
        if session in census.sessions:
            census.sessions.remove(session)
            census.of_client[session.client.host] -= 1
            if not census.of_client[session.client.host]:
                del census.of_client[session.client.host]

    @staticmethod
    def _turn_away(
        service: Service, sock: socket.socket, client: Endpoint, text: str, error: Exception | None = None
    ) -> None:
        event(log, logging.WARNING, "session.refused", service=service.name, client=client, reason=error or text)
        try:
            sock.send(reply(421, text))
        except OSError:
            pass  # the client is gone already: nobody is left to be told
        sock.close()

    def listens_at(self, target: Endpoint) -> bool:
        """Whether a call to `target` would arrive at one of our own listeners (PROTOCOL item 143)."""
        for listener in self._listeners:
            at = listener.at
            if at.port == target.port and at.host.version == target.host.version:
                if at.host == target.host:
                    return True
                if at.host.is_unspecified and sockets.is_ours(target.host):
                    return True
        return False

    # The life of the worker

    @property
    def sessions(self) -> list[Session]:
        return [session for census in self._census.values() for session in census.sessions]

    def _sweep(self, now: float) -> None:
        for session in self.sessions:
            self._board.guard(session.sweep, now, session.crashed)
        for listener in self._listeners:
            if listener.paused and listener.watch is not None:
                listener.paused = False
                listener.watch.want(READ)

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT; then every session is told 421 and ended."""
        self._board.sweep(self._sweep, self._accept_crashed)
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._board.run)
                async for number in signals:
                    event(log, logging.INFO, "stopping", signal=signal.Signals(number).name)
                    break
                nursery.cancel_scope.cancel()
        self.close()

    def close(self) -> None:
        """Close every listener and end every session."""
        for listener in self._listeners:
            if listener.watch is not None:
                listener.watch.close()
            listener.sock.close()
        self._listeners.clear()
        for session in self.sessions:
            session.dismiss("The service is shutting down.")
            session.close()
