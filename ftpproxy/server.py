"""The server: who is let in, and the life of the process.

A `Server` is all services of a process on one switchboard.  A connection is let in when its client may use the service,
neither cap is reached, and it is not about to call ourselves; everybody else is told 421 and the reason, and nobody's
refusal disturbs a session.

    accept -> (Arrival: a load balancer's PROXY header) -> (Reception: the client names its server) -> Session
"""

from __future__ import annotations

import itertools
import logging
import math
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import trio
from attrs import evolve

from . import sockets
from .announce import Announcer
from .arrival import Arrival
from .endpoints import Endpoint, Side
from .errands import Errands
from .intercept.interceptor import GateError
from .listeners import CannotListen, Listeners
from .log import event
from .metrics import counts
from .pi.handover import HandOver
from .reasons import Code, Reason
from .reception import Ends, Gateway, Reception
from .service import Census, Service
from .session import Session
from .switchboard import Switchboard
from .terms import Terms
from .wire.proxyheader import ProxyHeader
from .wire.reply import reply

__all__ = ["CannotListen", "Server", "Service"]

log = logging.getLogger(__name__)

_LIMIT_SESSIONS = Reason(Code.LIMIT_SESSIONS, "Too many sessions, try again later.")
_LIMIT_PER_CLIENT = Reason(Code.LIMIT_PER_CLIENT, "Too many sessions from your address.")
_POLICY_CLIENT = Reason(Code.POLICY_CLIENT, "You may not use this service.")
_LOOP = Reason(Code.LOOP, "The way to that server leads back to this proxy.")
_SHUTDOWN = Reason(Code.SHUTDOWN, "The service is shutting down.")
_INTERCEPT_UNKNOWN = Reason(Code.INTERCEPT_UNKNOWN, "Cannot tell which server you called.")


def _log_refusal(service: Service, client: Endpoint, why: Reason) -> None:
    counts.refused[service.name, why.code] += 1
    event(log, logging.WARNING, "session.refused", service=service.name, client=client, code=why.code, reason=why)


@contextmanager
def _heard(numbers: Iterable[signal.Signals]) -> Iterator[None]:
    """Those that were held back until now (pthread_sigmask(3)) come in, and are held back again behind."""
    before = signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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
        self._retired: list[Service] = []
        """Services of earlier configurations, as long as somebody is in them."""
        self.listeners = Listeners(board, self._accepted)
        self._census = {service.name: Census() for service in services}
        self._numbers = itertools.count(1)
        self.newcomers: dict[object, Callable[[Session | Reception], object]] = {}
        """Called with each session and reception that begins, by whoever wants to be."""
        self.draining = False
        """Nobody is let in any more."""
        self._drained_at = math.inf
        """When those who are still here have to go."""
        self._over = trio.Event()

    def listen(
        self,
        given: Mapping[str, Sequence[socket.socket]] = MappingProxyType({}),
        left: MutableMapping[Endpoint, socket.socket] | None = None,
    ) -> None:
        """Open every listener; `given` are those that a supervisor has opened, by the name of the service, `left` those
        of a predecessor, from which those go that have a use.

        Raises `CannotListen`; its cause is a `PermissionError` where a privilege lacks."""
        for service in self._services:
            self.listeners.open(service, given.get(service.name, ()), left)
        self.listeners.announce()

    # Who comes in

    def adopt(self, services: Sequence[Service]) -> None:
        """Serve new clients by these services; who is here keeps what he began with.

        Raises `CannotListen`, and then nothing has changed.
        """
        self.listeners.replace(services)
        self._retired += self._services
        self._services = services
        for service in services:
            self._census.setdefault(service.name, Census())
        self._retire()

    def _retire(self) -> None:
        """Close the services of earlier configurations that nobody is in any more."""
        for service in list(self._retired):
            if not any(map(service.serves, self.guests)):
                self._retired.remove(service)
                self._board.guard(Service.close, service, self.listeners.crashed)

    def _accepted(self, service: Service, sock: socket.socket, peer: Endpoint) -> None:
        if not any(peer.host in network for network in service.proxy_protocol):
            self._admit(service, sock, peer)
            return
        if len(self._census[service.name]) >= service.most_sessions:
            self._turn_away(service, sock, peer, _LIMIT_SESSIONS)
            return
        self.expect_header(service, sock, peer)

    def expect_header(self, service: Service, sock: socket.socket, peer: Endpoint, **begun: Any) -> None:
        """A load balancer's connection; `begun` is what `Arrival` is told of a predecessor's."""
        arrivals = self._census[service.name].arrivals

        def arrived(sock: socket.socket, header: ProxyHeader) -> None:
            arrivals.discard(arrival)
            present = [each for each in self._services if each.name == service.name]
            if present:  # there may have been a reload meanwhile
                self._admit(present[0], sock, header.source or peer, header.destination)
            else:
                self._turn_away(service, sock, peer, _SHUTDOWN)

        def strayed(reason: Reason) -> None:
            arrivals.discard(arrival)
            _log_refusal(service, peer, reason)

        arrival = Arrival(sock, self._board, service.name, peer, arrived=arrived, strayed=strayed, **begun)
        arrivals.add(arrival)

    def _admit(self, service: Service, sock: socket.socket, client: Endpoint, called: Endpoint | None = None) -> None:
        """`called`: whom the client called, where a load balancer has said it."""
        census = self._census[service.name]
        if service.clients and not any(client.host in network for network in service.clients):
            self._turn_away(service, sock, client, _POLICY_CLIENT)
        elif len(census) >= service.most_sessions:
            self._turn_away(service, sock, client, _LIMIT_SESSIONS)
        elif census.of_client[client.host] >= service.most_per_client:
            self._turn_away(service, sock, client, _LIMIT_PER_CLIENT)
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
                self._turn_away(service, sock, client, _INTERCEPT_UNKNOWN, error)
                return
            if service.gateway is None:
                server = service.server_for(orig_server)
                if self.listeners.listens_at(server):
                    self._turn_away(service, sock, client, _LOOP)
                    return
                self.begin(sock, client, orig_server, server, terms)
            else:
                self.receive(service.gateway, sock, client, orig_server, terms)

    def begin(
        self,
        sock: socket.socket | None,
        client: Endpoint,
        orig_server: Endpoint,
        server: Endpoint,
        terms: Terms,
        number: int | None = None,
        *,
        call: bool = True,
    ) -> Session:
        """A session; with a `number` it goes on from a reception or a predecessor's session, and where it is not to
        `call` it has its server already."""
        session = Session(
            next(self._numbers) if number is None else number,
            sock,
            client=client,
            orig_server=orig_server,
            server=server,
            terms=terms,
            board=self._board,
            ended=self._left,
            ours=self.listeners.listens_at,
            call=call,
        )
        self._entered(session)
        return session

    def receive(
        self,
        gateway: Gateway,
        sock: socket.socket,
        client: Endpoint,
        orig_server: Endpoint,
        terms: Terms,
        number: int | None = None,
    ) -> Reception:
        """A client of the gateway mode; with a `number` it goes on from a predecessor's."""
        reception = Reception(
            next(self._numbers) if number is None else number,
            sock,
            client=client,
            orig_server=orig_server,
            terms=terms,
            gateway=gateway,
            board=self._board,
            ours=self.listeners.listens_at,
            connected=self._connected,
            ended=self._left,
        )
        self._entered(reception)
        return reception

    def _connected(self, reception: Reception, ends: Ends, handover: HandOver) -> None:
        self._left(reception)
        client, orig_server, terms = reception.client, reception.orig_server, reception.terms
        session = self.begin(ends.client, client, orig_server, ends.at, terms, reception.number, call=False)
        self._board.guard(lambda _: session.take_over(ends.server, handover), None, session.crashed)

    def _entered(self, guest: Session | Reception) -> None:
        self._census[guest.service].enter(guest)
        for welcome in list(self.newcomers.values()):
            welcome(guest)

    def _left(self, guest: Session | Reception) -> None:
        self._census[guest.service].leave(guest)

    @staticmethod
    def _turn_away(
        service: Service, sock: socket.socket, client: Endpoint, why: Reason, error: Exception | None = None
    ) -> None:
        _log_refusal(service, client, why if error is None else Reason(why.code, str(error)))
        try:
            sock.setblocking(False)
            sock.send(reply(421, why))
            sock.recv(4096)  # what is unread would turn our close into a reset, which may overtake the 421
        except OSError:
            pass  # nothing to read, or the client is gone already
        sock.close()

    # The life of the process

    def count_from(self, number: int) -> None:
        """The next session has at least this number."""
        self._numbers = itertools.count(max(number, next(self._numbers)))

    def forget(self) -> None:
        """Nobody is here any more: they were left to a successor, with what their services have in the kernel."""
        for census in self._census.values():
            census.clear()
        self._services, self._retired = (), []

    @property
    def everybody(self) -> list[Session | Reception | Arrival]:
        """Whoever is here, in a session or not yet."""
        return [*self.sessions, *self._others]

    @property
    def services(self) -> Sequence[Service]:
        return self._services

    @property
    def occupied(self) -> list[Service]:
        """All services, those of earlier configurations included as long as somebody is in them."""
        return [*self._services, *self._retired]

    def present(self) -> dict[str, int]:
        """How many clients each service has."""
        return {name: len(census) for name, census in self._census.items()}

    @property
    def sessions(self) -> list[Session]:
        return [session for census in self._census.values() for session in census.sessions]

    @property
    def guests(self) -> list[Session | Reception]:
        """Whoever has a number."""
        receptions = [reception for census in self._census.values() for reception in census.receptions]
        return [*self.sessions, *receptions]

    @property
    def _others(self) -> list[Reception | Arrival]:
        """Who is not in a session yet."""
        waiting: list[Reception | Arrival] = []
        for census in self._census.values():
            waiting += [*census.receptions, *census.arrivals]
        return waiting

    def survey(self) -> list[dict[str, object]]:
        """Each service with its listeners and how many are in it."""
        return [
            {
                "name": service.name,
                "listeners": [str(each.at) for each in self.listeners if each.service is service],
                "sessions": len(census.sessions),
                "naming": len(census.receptions),
                "arriving": len(census.arrivals),
            }
            for service in self._services
            for census in (self._census[service.name],)
        ]

    def dismiss(self, guest: Session | Reception, reason: Reason) -> None:
        """End it; its client is told 421 and why."""
        self._board.guard(guest.dismiss, reason, guest.crashed)

    def _sweep(self, now: float) -> None:
        for each in self.everybody:
            self._board.guard(each.sweep, now, each.crashed)
        self.listeners.sweep()
        if self._retired:
            self._retire()
        if self.draining:
            self._drain(now)

    # The end

    def drain(self, grace: float | None = None) -> None:
        """Let nobody in any more, and end when the last has left.

        Without a `grace` they may stay as long as they like.  With one (seconds), whoever has nothing under way is told
        421 now, the others as soon as they are done, and everybody when it is over.
        """
        if not self.draining:
            self.draining = True
            event(log, logging.INFO, "draining", sessions=len(self.guests), seconds=grace)
            self.listeners.close()
        if grace is not None:
            self._drained_at = min(self._drained_at, self._board.now + grace)
        self._drain(self._board.now)

    def _drain(self, now: float) -> None:
        if self._drained_at < math.inf:
            for guest in self.guests:
                if guest.quiet:
                    self.dismiss(guest, _SHUTDOWN)
        if now >= self._drained_at or not self.everybody:
            self.stop()

    def terminate(self, grace: float) -> None:
        """`drain` with this grace, at once if that has been asked for before."""
        if self._drained_at < math.inf:
            self.stop()
        else:
            self.drain(grace)

    def stop(self) -> None:
        """End now: `run` returns, and every session is told 421 and ended."""
        self._over.set()

    async def run(
        self,
        orders: Mapping[signal.Signals, Callable[[], object]] = MappingProxyType({}),
        ready: Callable[[], None] = lambda: None,
    ) -> None:
        """Serve until `stop`.  `orders` are what to do at which signal; SIGINT is `stop` unless it is among them.

        `ready` is called when signals are obeyed: whoever is told so may send one at once."""
        orders = {signal.SIGINT: self.stop, signal.SIGTERM: self.stop, **orders}
        self._board.sweep(self._sweep, self.listeners.crashed)
        with trio.open_signal_receiver(*orders) as signals, _heard(orders):
            ready()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._turn, nursery)
                if self._errands is not None:
                    nursery.start_soon(self._errands.run)
                nursery.start_soon(self._obey, signals, orders)
                await self._over.wait()
                nursery.cancel_scope.cancel()
        event(log, logging.INFO, "stopping", sessions=len(self.guests))
        self.close()

    async def _obey(self, signals: AsyncIterator[int], orders: Mapping[signal.Signals, Callable[[], object]]) -> None:
        """An order with an internal error ends nothing, unless it was to end."""

        def obey(order: signal.Signals) -> None:
            orders[order]()

        def failed(_: Exception) -> None:
            if order in (signal.SIGINT, signal.SIGTERM):
                self.stop()

        async for number in signals:
            order = signal.Signals(number)
            event(log, logging.INFO, "signal", signal=order.name)
            self._board.guard(obey, order, failed)

    async def _turn(self, nursery: trio.Nursery) -> None:
        """Nobody is served before the sources of what we announce were asked."""
        if self._announcer is not None:
            await nursery.start(self._announcer.run)
        await self._board.run()

    def close(self) -> None:
        """Close every listener and end every session."""
        self.listeners.close()
        for guest in self.everybody:
            if not isinstance(guest, Arrival):
                guest.dismiss(_SHUTDOWN)
            guest.close()
        for service in self.occupied:
            service.close()
