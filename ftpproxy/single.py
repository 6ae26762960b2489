"""One session in a process of its own: admitted as a server would, carried by the relay, without tasks.

What needs a process that lives is refused beforehand (`chosen`): gateway mode, PROXY headers, addresses that are looked
at again and again, TLS of our own.  Limits of sessions are those of whoever starts us.  Kernel planes are not used: the
session and its data connections end with this process.

For `redirect` the map elements go into the table that `netfilter` describes, shared with other processes and left to
the next: nobody wipes what another session's data connection needs.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import time
from contextlib import ExitStack
from functools import partial

from attrs import evolve

from . import sockets
from .config.values import Announce, AnnounceFrom, Config, ConfigError, Problem, ServiceConfig
from .doors import Doors
from .dtp.relay import RelayPlane
from .endpoints import Endpoint, IPAddress, Side
from .gates import gate_of, open_lookup
from .intercept.interceptor import Gate, GateError, PortRange
from .log import event
from .netfilter import Elements, NetfilterError
from .pf.natlook import NatlookError
from .pi.policy import Policy
from .privileges import PrivilegeError
from .process import NoSuchUser, drop_privileges
from .reasons import Code, Reason
from .session import Session
from .switchboard import Switchboard
from .table import Claim, may_load
from .terms import Terms
from .wire.reply import reply
from .xferlog import Xferlog

__all__ = ["chosen", "serve_one"]

SECONDS_FOR_ANOTHER = 2.0
"""How long another process with our table may take to load it."""

log = logging.getLogger(__name__)


def chosen(config: Config, name: str | None) -> ServiceConfig:
    """The service called `name`, or else the first.  Raises `ConfigError` where there is none, or where it cannot be
    had in a process of one session."""
    service = next((each for each in config.services if name in (None, each.name)), None)
    if service is None:
        known = ", ".join(each.name for each in config.services)
        raise ConfigError([Problem("service", f'there is no "{name}" for --service; there are: {known}')])
    lives = "needs a process that lives: serve without --inetd"
    problems = []
    if service.mode == "gateway":
        problems.append(("mode", f'"gateway" {lives}'))
    if service.proxy_protocol:
        problems.append(("proxy_protocol", lives))
    if any(policy.tls not in ("pass", "refuse") for policy in _policies(service)):
        problems.append(("tls.mode", lives))
    for key, announce in (("announce", service.announce), *(("announce_to", each) for each in service.announce_to)):
        for told in (announce.client, announce.server):
            if isinstance(told, AnnounceFrom) and told.kind != "own":
                problems.append((key, f'"{told}" {lives}, or name an address'))
    if problems:
        raise ConfigError(Problem(f'service "{service.name}".{key}', why) for key, why in problems)
    return service


def _policies(service: ServiceConfig) -> list[Policy]:
    return [service.policy, *(rule.policy for rule in service.rules)]


def serve_one(config: Config, service: ServiceConfig, client: socket.socket, sorry: bytes) -> int:
    """Run the session of `client`, which is ours from now on, to its end.  Returns an exit code; where nothing can be
    served, the reason is said on standard error, and `sorry` to the client."""
    with ExitStack() as stack:
        try:
            gate, terms, board = _compose(config, service, stack)
        except (NetfilterError, NatlookError, NoSuchUser, PrivilegeError, OSError) as error:
            print(f"ftpproxy: {error}", file=sys.stderr)
            _farewell(client, sorry)
            return os.EX_UNAVAILABLE
        _serve(service, client, gate, terms, board)
    return os.EX_OK


def _compose(config: Config, service: ServiceConfig, stack: ExitStack) -> tuple[Gate, Terms, Switchboard]:
    board = Switchboard()
    board.now = time.monotonic()
    stack.callback(board.close)
    doors = Doors(board)
    stack.callback(doors.close)
    elements: Elements | None = None
    if service.intercept == "redirect" or service.firewall_mark or (service.intercept == "auto" and may_load()):
        claim = Claim(share=True, leave=True)
        stack.callback(claim.close)
        elements = Elements(partial(claim.load, SECONDS_FOR_ANOTHER))  # when the first element is added
        stack.callback(elements.close)
    lookup = open_lookup([service])
    if lookup is not None:
        stack.callback(lookup.close)
    gate = gate_of(service, doors, elements, lookup)
    stack.callback(gate.close)
    xferlog = None
    if config.log.xferlog is not None:
        try:
            xferlog = Xferlog(config.log.xferlog)
        except OSError as error:
            raise OSError(f"log.xferlog: {config.log.xferlog}: {error.strerror}") from error
        stack.callback(xferlog.close)
    drop_privileges(config, table=elements is not None, xferlog=xferlog)
    timeouts = service.timeouts
    plane = RelayPlane(
        gate,
        PortRange(*service.data_ports),
        board,
        connect_timeout=timeouts.connect,
        data_setup=timeouts.data_setup,
        data_idle=timeouts.data_idle,
    )
    stack.callback(plane.close)
    terms = Terms(
        service=service.name,
        policy=service.policy,
        timeouts=timeouts,
        planes=[plane],
        source=service.source,
        active_source_port=service.active_source_port,
        translate=service.translate,
        xferlog=xferlog,
        send_proxy=None if service.send_proxy == "off" else service.send_proxy,
    )
    return gate, terms, board


def _serve(service: ServiceConfig, sock: socket.socket, gate: Gate, terms: Terms, board: Switchboard) -> None:
    client, here = Endpoint.from_sockaddr(sock.getpeername()), Endpoint.from_sockaddr(sock.getsockname())
    if service.clients and not any(client.host in network for network in service.clients):
        _turn_away(service, sock, client, Reason(Code.POLICY_CLIENT, "You may not use this service."))
        return
    try:
        orig_server = gate.original_destination(sock)
    except (GateError, OSError) as error:
        _turn_away(
            service, sock, client, Reason(Code.INTERCEPT_UNKNOWN, "Cannot tell which server you called."), str(error)
        )
        return
    server = _server_for(service, orig_server)

    def ours(target: Endpoint) -> bool:
        """Whether a call to `target` would start another of us: inetd listens at `here`, or at every address."""
        if target == here or target in service.listen:
            return True
        at_once = service.mode == "forward" and target.port == here.port
        return at_once and sockets.is_ours(target.host) and sockets.is_ours(here.host)

    if ours(server):
        _turn_away(service, sock, client, Reason(Code.LOOP, "The way to that server leads back to this proxy."))
        return
    over: list[Session] = []
    session = Session(
        os.getpid(),
        sock,
        client=client,
        orig_server=orig_server,
        server=server,
        terms=evolve(terms, policy=service.policies.policy_for(client.host), announce=_announced(service, client.host)),
        board=board,
        ended=over.append,
        ours=ours,
    )
    board.sweep(session.sweep, session.crashed)
    stop: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: stop.append(number))
    board.run_alone(lambda: bool(over or stop))
    if not over:
        session.dismiss(Reason(Code.SHUTDOWN, "The service is shutting down."))
        session.close()


def _server_for(service: ServiceConfig, orig_server: Endpoint) -> Endpoint:
    if service.mode == "forward":
        return orig_server
    same = [server for server in service.servers if server.host.version == orig_server.host.version]
    return (same or list(service.servers))[0]


def _announced(service: ServiceConfig, client: IPAddress) -> dict[Side, tuple[IPAddress, ...]]:
    found = next((each for each in service.announce_to if any(client in network for network in each.clients)), None)
    announced: dict[Side, tuple[IPAddress, ...]] = {}
    for side in Side:
        told = _told(found, side) if found is not None else None
        if told is None:
            told = _told(service.announce, side)
        if told is not None and not isinstance(told, AnnounceFrom):  # "own" is what is told without any
            announced[side] = (told,)
    return announced


def _told(announce: Announce, side: Side) -> IPAddress | AnnounceFrom | None:
    return announce.client if side is Side.CLIENT else announce.server


def _turn_away(
    service: ServiceConfig, sock: socket.socket, client: Endpoint, why: Reason, error: str | None = None
) -> None:
    event(
        log,
        logging.WARNING,
        "session.refused",
        service=service.name,
        client=client,
        code=why.code,
        reason=error or why,
    )
    _farewell(sock, reply(421, why))


def _farewell(sock: socket.socket, words: bytes) -> None:
    try:
        sock.setblocking(False)
        sock.send(words)
        sock.recv(4096)  # what is unread would turn our close into a reset, which may overtake the 421
    except OSError:
        pass  # nothing to read, or the client is gone already
    sock.close()
