"""Composition: from a configuration to a running server.  The only room that knows every class."""

from __future__ import annotations

import errno
import gc
import logging
import resource
import sys

import trio

from . import advice, netfilter, rules
from . import log as logs
from .announce import OWN, Announcements, Announcer, File, Interface, Name, Told
from .config import Announce, AnnounceFrom, Config, GatewayConfig, ServiceConfig
from .doors import Doors
from .dtp.nft import NftPlane
from .dtp.plane import DataPlane
from .dtp.relay import RelayPlane
from .endpoints import Side
from .errands import Errands
from .intercept.direct import DirectGate
from .intercept.interceptor import Gate, PortRange
from .intercept.linux import RedirectGate, TproxyGate
from .log import event
from .passwords import BadUsersFile, Users
from .pi.destinations import Destinations
from .pi.wishes import LoginSettings
from .reception import Gateway
from .server import CannotListen, Server, Service
from .session import Terms
from .switchboard import Switchboard
from .table import Claim
from .xferlog import Xferlog

__all__ = ["run"]

EX_OK, EX_UNAVAILABLE, EX_NOPERM, EX_CONFIG = 0, 69, 77, 78
"""sysexits(3)."""

DESCRIPTORS_A_SESSION = 10
"""Two control sockets, two data sockets, a listener and two pipes, and the same again for a transfer that drains."""

log = logging.getLogger(__name__)


def run(config: Config) -> int:
    """Serve `config` until a signal ends it.  Returns an exit code; expected failures are said on standard error."""
    logs.set_up(logging.getLevelNamesMapping()[config.log.level.upper()])
    _spare_the_collector()
    _raise_descriptor_limit(config)
    claim: Claim | None = None
    try:
        if any(service.intercept == "redirect" or "nft" in service.planes for service in config.services):
            claim = Claim()
        return trio.run(_serve, config, claim)
    except netfilter.NoPermission as error:
        return _fail(str(error), EX_NOPERM)
    except netfilter.NetfilterError as error:
        return _fail(str(error), EX_UNAVAILABLE)
    except BadUsersFile as error:
        return _fail(str(error), EX_CONFIG)
    except CannotListen as error:
        denied = isinstance(error.__cause__, PermissionError)
        return _fail(str(error), EX_NOPERM if denied else EX_UNAVAILABLE)
    finally:
        if claim is not None:
            claim.close()


def _fail(text: str, code: int) -> int:
    print(f"ftpproxy: {text}", file=sys.stderr)
    return code


async def _serve(config: Config, claim: Claim | None) -> int:
    board = Switchboard()
    elements = None if claim is None else netfilter.Elements(claim.load)
    announcer = Announcer()
    errands = Errands(board)
    xferlog = _xferlog(config)
    doors = Doors(board)
    services = [_service(service, board, doors, elements, announcer, errands, xferlog) for service in config.services]
    server = Server(board, services, errands, announcer=announcer)
    try:
        server.listen()
        if claim is not None:
            claim.load()  # behind the listeners: a start that fails must not touch what is there
        if elements is not None:
            keep = _Keeper(elements)
            keep(0.0)
            board.sweep(keep, keep.crashed)
        _warn(config)
        event(log, logging.INFO, "ready", services=len(services))
        await server.run()
    finally:
        server.close()
        for service in services:
            for plane in service.terms.planes:
                plane.close()
            service.gate.close()
        doors.close()
        if elements is not None:
            elements.close()
        board.close()
        if xferlog is not None:
            xferlog.close()
    return EX_OK


def _xferlog(config: Config) -> Xferlog | None:
    if config.log.xferlog is None:
        return None
    try:
        return Xferlog(config.log.xferlog)
    except OSError as error:
        raise CannotListen(f"log.xferlog: {config.log.xferlog}: {error.strerror}") from error


def _warn(config: Config) -> None:
    """Say in the log what about this machine will make sessions fail."""
    for overlap in advice.port_overlaps(config):
        event(
            log,
            logging.WARNING,
            "data_ports.overlap",
            service=overlap.service,
            data_ports=overlap.data_ports,
            ip_local_port_range=overlap.local,
        )
    if advice.rules_missing(config):
        event(log, logging.WARNING, "rules.missing", table=f"inet {rules.TABLE}", hint="ftpproxy rules -c FILE --apply")


def _service(
    config: ServiceConfig,
    board: Switchboard,
    doors: Doors,
    elements: netfilter.Elements | None,
    announcer: Announcer,
    errands: Errands,
    xferlog: Xferlog | None,
) -> Service:
    gate = _gate(config, doors, elements)
    return Service(
        terms=Terms(
            service=config.name,
            policy=config.policy,
            timeouts=config.timeouts,
            planes=_planes(config, gate, board, doors, elements),
            source=config.source,
            active_source_port=config.active_source_port,
            translate=config.translate,
            xferlog=xferlog,
            send_proxy=None if config.send_proxy == "off" else config.send_proxy,
        ),
        gate=gate,
        listen=config.listen,
        clients=config.clients,
        policies=config.policies,
        announcements=_announcements(config, announcer),
        servers=config.servers if config.mode == "reverse" else None,
        gateway=_gateway(config.gateway, errands) if config.mode == "gateway" else None,
        proxy_protocol=config.proxy_protocol,
        most_sessions=config.limits.sessions,
        most_per_client=config.limits.per_client,
    )


def _announcements(config: ServiceConfig, announcer: Announcer) -> Announcements | None:
    def told(announce: Announce) -> dict[Side, Told]:
        given = {Side.CLIENT: announce.client, Side.SERVER: announce.server}
        return {
            side: _source(where) if isinstance(where, AnnounceFrom) else (where,)
            for side, where in given.items()
            if where is not None
        }

    general = told(config.announce)
    networks = [(each.clients, told(each)) for each in config.announce_to]
    for each in (general, *(instead for _, instead in networks)):
        for source in each.values():
            if not isinstance(source, tuple):
                announcer.keep(source, config.announce_refresh)
    return Announcements(announcer, general, networks) if general or networks else None


def _source(where: AnnounceFrom) -> Told:
    kinds: dict[str, type[Interface | Name | File]] = {"interface": Interface, "name": Name, "file": File}
    return OWN if where.kind == "own" else kinds[where.kind](where.what)


def _gateway(config: GatewayConfig, errands: Errands) -> Gateway:
    """Raises `BadUsersFile`."""
    return Gateway(
        settings=LoginSettings(
            destinations=Destinations(config.destinations),
            hosts=dict(config.hosts),
            styles=frozenset(config.styles),
            authenticate=bool(config.users),
        ),
        errands=errands,
        users=Users.read(config.users) if config.users else None,
    )


def _planes(
    config: ServiceConfig, gate: Gate, board: Switchboard, doors: Doors, elements: netfilter.Elements | None
) -> list[DataPlane]:
    ports = PortRange(*config.data_ports)  # walked round by all of them together
    timeouts = config.timeouts
    planes: list[DataPlane] = []
    for name in config.planes:
        if name == "nft":
            assert elements is not None
            planes.append(
                NftPlane(
                    elements,
                    ports,
                    board,
                    doors,
                    data_setup=timeouts.data_setup,
                    data_idle=timeouts.data_idle,
                    seconds=_element_seconds(config),
                )
            )
        else:
            planes.append(
                RelayPlane(
                    gate,
                    ports,
                    board,
                    connect_timeout=timeouts.connect,
                    data_setup=timeouts.data_setup,
                    data_idle=timeouts.data_idle,
                )
            )
    return planes


def _element_seconds(config: ServiceConfig) -> float:
    """An element must outlive the longest that a data connection may take to come up: once before its transfer command,
    once behind it."""
    return max(netfilter.ELEMENT_SECONDS, 2 * config.timeouts.data_setup + 60)


class _Keeper:
    """Sees to it that our table is there; said once if it is not and cannot be."""

    def __init__(self, elements: netfilter.Elements) -> None:
        self._elements = elements
        self._failing = False

    def __call__(self, _: float) -> None:
        try:
            self._elements.check()
            self._failing = False
        except OSError as error:
            if not self._failing:
                event(log, logging.ERROR, "table.missing", reason=error.__cause__ or error.strerror)
            self._failing = True

    def crashed(self, error: Exception) -> None:
        """It is tried again in the next sweep."""


def _gate(config: ServiceConfig, doors: Doors, elements: netfilter.Elements | None) -> Gate:
    if config.intercept == "tproxy":
        return TproxyGate(doors)
    if config.intercept == "redirect":
        assert elements is not None
        return RedirectGate(elements, doors, seconds=_element_seconds(config))
    return DirectGate(doors)


def _spare_the_collector() -> None:
    """Modules live for ever and sessions for long: what the default collector walks through again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def _raise_descriptor_limit(config: Config) -> None:
    """As many descriptors as the configured sessions need; said in the log where the system does not allow them."""
    wanted = 64 + DESCRIPTORS_A_SESSION * sum(service.limits.sessions for service in config.services)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= wanted:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(hard, wanted)))
    except (ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.EPERM, errno.EINVAL):
            raise
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        event(log, logging.WARNING, "descriptors.few", allowed=hard, wanted=wanted)
