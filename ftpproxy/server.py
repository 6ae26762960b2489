"""The server: listeners, who is let in, and the life of the process.

A `Service` is one configured listener with its policy; a `Server` is all services of a process on one
switchboard.  A connection is let in when its client may use the service, neither cap is reached, and it is not
about to call ourselves; everybody else is told 421 and the reason, and nobody's refusal disturbs a session.

    accept -> (Arrival: a load balancer's PROXY header) -> (Reception: the client names its server) -> Session
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

import trio
from attrs import define, evolve, field, frozen

from . import sockets
from .announce import Announcements, Announcer
from .arrival import Arrival
from .endpoints import Endpoint, IPAddress, Side
from .errands import Errands
from .intercept.interceptor import Gate, GateError
from .log import event
from .pi.handover import HandOver
from .pi.policy import Policies
from .reception import Ends, Gateway, Reception
from .session import Session
from .switchboard import READ, Switchboard, Watch
from .terms import Terms
from .wire.proxyheader import ProxyHeader
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
    announcements: Announcements | None = None
    """By client; None: what `terms` announce to everybody."""
    servers: Sequence[Endpoint] | None = None
    """Reverse mode: whom to call, one a family at most.  None: whom the client dialled."""
    gateway: Gateway | None = None
    """Gateway mode: the client names the server."""
    proxy_protocol: Sequence[IPv4Network | IPv6Network] = ()
    """Load balancers, whose connections begin with a PROXY header."""
    most_sessions: int = 1000
    most_per_client: int = 100

    @property
    def name(self) -> str:
        return self.terms.service

    def terms_for(self, client: IPAddress) -> Terms:
        """What holds for a session of `client`."""
        policy = self.policies.policy_for(client) if self.policies is not None else self.terms.policy
        announce = self.announcements.addresses(client) if self.announcements is not None else self.terms.announce
        if policy is self.terms.policy and announce is self.terms.announce:
            return self.terms
        return evolve(self.terms, policy=policy, announce=announce)

    @property
    def intercepts(self) -> bool:
        """Forward mode: clients call servers and reach us."""
        return self.servers is None and self.gateway is None

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
    receptions: set[Reception] = field(factory=set)
    arrivals: set[Arrival] = field(factory=set)
    of_client: Counter[IPAddress] = field(factory=Counter)
    """Sessions and receptions."""

    def __len__(self) -> int:
        return len(self.sessions) + len(self.receptions) + len(self.arrivals)

    def leave(self, client: IPAddress) -> None:
        self.of_client[client] -= 1
        if not self.of_client[client]:
            del self.of_client[client]


def _why(error: OSError, at: Endpoint) -> str:
    """Why we cannot listen at `at`, and where to look."""
    if error.errno == errno.EADDRINUSE:
        return f"another process listens there already (ss -ltnp 'sport = :{at.port}')"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{at.host} is not an address of this machine (ip address show)"
    return error.strerror or str(error)


class Server:
    """All services of one process.  `listen`, then `run`."""

    def __init__(
        self,
        board: Switchboard,
        services: Sequence[Service],
        errands: Errands | None = None,
        announcer: Announcer | None = None,
    ) -> None:
        """`errands` is what the gateways of the services were given, `announcer` what their announcements ask; both
        run as long as the server."""
        self._board = board
        self._announcer = announcer
        self._errands = errands
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
            why = "a port below 1024 needs CAP_NET_BIND_SERVICE: run this as root, or give it the capability"
            raise CannotListen(
                f'service "{service.name}", {at}: {why if at.port < 1024 else error.strerror}'
            ) from error
        except OSError as error:
            sock.close()
            raise CannotListen(f'service "{service.name}", {at}: {_why(error, at)}') from error
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
            self._accepted(listener.service, sock, Endpoint.from_sockaddr(address))

    def _accept_crashed(self, _: Exception) -> None:
        """One connection was lost to an internal error, which is logged; the listener stays."""

    def _accepted(self, service: Service, sock: socket.socket, peer: Endpoint) -> None:
        if not any(peer.host in network for network in service.proxy_protocol):
            self._admit(service, sock, peer)
            return
        arrivals = self._census[service.name].arrivals
        if len(self._census[service.name]) >= service.most_sessions:
            self._turn_away(service, sock, peer, "Too many sessions, try again later.")
            return

        def arrived(sock: socket.socket, header: ProxyHeader) -> None:
            arrivals.discard(arrival)
            self._admit(service, sock, header.source or peer, header.destination)

        def strayed(reason: str) -> None:
            arrivals.discard(arrival)
            event(log, logging.WARNING, "session.refused", service=service.name, client=peer, reason=reason)

        arrival = Arrival(sock, self._board, arrived=arrived, strayed=strayed)
        arrivals.add(arrival)

    def _admit(self, service: Service, sock: socket.socket, client: Endpoint, called: Endpoint | None = None) -> None:
        """`called`: whom the client called, where a load balancer has said it."""
        census = self._census[service.name]
        if service.clients and not any(client.host in network for network in service.clients):
            self._turn_away(service, sock, client, "You may not use this service.")
        elif len(census) >= service.most_sessions:
            self._turn_away(service, sock, client, "Too many sessions, try again later.")
        elif census.of_client[client.host] >= service.most_per_client:
            self._turn_away(service, sock, client, "Too many sessions from your address.")
        else:
            terms = service.terms_for(client.host)
            try:
                known = called is not None and (service.intercepts or sockets.is_ours(called.host))
                orig_server = called if known and called is not None else service.gate.original_destination(sock)
                if called is not None and not known:  # the balancer's: data connections reach that, and then us
                    terms = evolve(
                        terms,
                        announce={**terms.announce, Side.CLIENT: (*terms.announce.get(Side.CLIENT, ()), called.host)},
                    )
            except (GateError, OSError) as error:
                self._turn_away(service, sock, client, "Cannot tell which server you called.", error)
                return
            if service.gateway is None:
                server = service.server_for(orig_server)
                if self.listens_at(server):
                    self._turn_away(service, sock, client, "The way to that server leads back to this proxy.")
                    return
                self._begin(sock, client, orig_server, server, terms)
            else:
                self._receive(service.gateway, sock, client, orig_server, terms)

    def _begin(
        self,
        sock: socket.socket,
        client: Endpoint,
        orig_server: Endpoint,
        server: Endpoint,
        terms: Terms,
        number: int | None = None,
    ) -> Session:
        """With a `number` it goes on from a reception, and has its server already."""
        session = Session(
            next(self._numbers) if number is None else number,
            sock,
            client=client,
            orig_server=orig_server,
            server=server,
            terms=terms,
            board=self._board,
            ended=self._ended,
            ours=self.listens_at,
            call=number is None,
        )
        census = self._census[terms.service]
        census.sessions.add(session)
        census.of_client[client.host] += 1
        return session

    def _receive(
        self, gateway: Gateway, sock: socket.socket, client: Endpoint, orig_server: Endpoint, terms: Terms
    ) -> None:
        reception = Reception(
            next(self._numbers),
            sock,
            client=client,
            orig_server=orig_server,
            terms=terms,
            gateway=gateway,
            board=self._board,
            ours=self.listens_at,
            connected=self._connected,
            ended=self._left,
        )
        census = self._census[terms.service]
        census.receptions.add(reception)
        census.of_client[client.host] += 1

    def _connected(self, reception: Reception, ends: Ends, handover: HandOver) -> None:
        self._left(reception)
        client, orig_server, terms = reception.client, reception.orig_server, reception.terms
        session = self._begin(ends.client, client, orig_server, ends.at, terms, reception.number)
        self._board.guard(lambda _: session.take_over(ends.server, handover), None, session.crashed)

    def _left(self, reception: Reception) -> None:
        census = self._census[reception.service]
        if reception in census.receptions:
            census.receptions.remove(reception)
            census.leave(reception.client.host)

    def _ended(self, session: Session) -> None:
        census = self._census[session.service]
        if session in census.sessions:
            census.sessions.remove(session)
            census.leave(session.client.host)

    @staticmethod
    def _turn_away(
        service: Service, sock: socket.socket, client: Endpoint, text: str, error: Exception | None = None
    ) -> None:
        event(log, logging.WARNING, "session.refused", service=service.name, client=client, reason=error or text)
        try:
            sock.setblocking(False)
            sock.send(reply(421, text))
            sock.recv(4096)  # what is unread would turn our close into a reset, which may overtake the 421
        except OSError:
            pass  # nothing to read, or the client is gone already
        sock.close()

    def listens_at(self, target: Endpoint) -> bool:
        """Whether a call to `target` would arrive at one of our own listeners (docs/protocol.md item 143)."""
        for listener in self._listeners:
            at = listener.at
            if at.port == target.port and at.host.version == target.host.version:
                if at.host == target.host:
                    return True
                if at.host.is_unspecified and sockets.is_ours(target.host):
                    return True
        return False

    # The life of the process

    @property
    def sessions(self) -> list[Session]:
        return [session for census in self._census.values() for session in census.sessions]

    @property
    def _others(self) -> list[Reception | Arrival]:
        """Who is not in a session yet."""
        waiting: list[Reception | Arrival] = []
        for census in self._census.values():
            waiting += [*census.receptions, *census.arrivals]
        return waiting

    def _sweep(self, now: float) -> None:
        for each in [*self.sessions, *self._others]:
            self._board.guard(each.sweep, now, each.crashed)
        for listener in self._listeners:
            if listener.paused and listener.watch is not None:
                listener.paused = False
                listener.watch.want(READ)

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT; then every session is told 421 and ended."""
        self._board.sweep(self._sweep, self._accept_crashed)
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._turn, nursery)
                if self._errands is not None:
                    nursery.start_soon(self._errands.run)
                async for number in signals:
                    event(log, logging.INFO, "stopping", signal=signal.Signals(number).name)
                    break
                nursery.cancel_scope.cancel()
        self.close()

    async def _turn(self, nursery: trio.Nursery) -> None:
        """Nobody is served before the sources of what we announce were asked."""
        if self._announcer is not None:
            await nursery.start(self._announcer.run)
        await self._board.run()

    def close(self) -> None:
        """Close every listener and end every session."""
        for listener in self._listeners:
            if listener.watch is not None:
                listener.watch.close()
            listener.sock.close()
        self._listeners.clear()
        for guest in [*self.sessions, *self._others]:
            if not isinstance(guest, Arrival):
                guest.dismiss("The service is shutting down.")
            guest.close()
