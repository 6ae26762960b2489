"""One `[[service]]` of a configuration as a `Service`: its gate, its planes and what it announces."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from .. import netfilter
from ..announce import OWN, Announcements, Announcer, File, Interface, Name, Told
from ..config import Announce, AnnounceFrom, GatewayConfig, ServiceConfig
from ..doors import Doors
from ..dtp.nft import NftPlane
from ..dtp.plane import DataPlane
from ..dtp.relay import RelayPlane
from ..endpoints import Side
from ..errands import Errands
from ..gates import element_seconds, gate_of
from ..intercept.interceptor import Gate, LeadingGate, PortRange
from ..intercept.pf import Lookup
from ..passwords import Users
from ..pi.destinations import Destinations
from ..pi.wishes import LoginSettings
from ..reception import Gateway
from ..service import Service
from ..switchboard import Switchboard
from ..terms import Terms
from ..xferlog import Xferlog

if TYPE_CHECKING:
    from ..pf.client import Engine

__all__ = ["Shared", "compose"]


@frozen
class Shared:
    """What all services of a process have in common."""

    board: Switchboard
    doors: Doors
    elements: netfilter.Elements | None
    """None where no service needs our table."""
    engine: Engine | None
    """None where no service needs pf."""
    announcer: Announcer
    errands: Errands
    xferlog: Xferlog | None
    lookup: Lookup | None = None
    """Knows whom clients called that pf redirected; None where no service is."""


def compose(config: ServiceConfig, shared: Shared) -> Service:
    """Raises `BadUsersFile`."""
    gate = gate_of(config, shared.doors, shared.elements, shared.lookup, shared.engine)
    return Service(
        terms=Terms(
            service=config.name,
            policy=config.policy,
            timeouts=config.timeouts,
            planes=_planes(config, gate, shared),
            lobby=shared.doors.lobby,
            source=config.source,
            active_source_port=config.active_source_port,
            translate=config.translate,
            xferlog=shared.xferlog,
            send_proxy=None if config.send_proxy == "off" else config.send_proxy,
        ),
        gate=gate,
        listen=config.listen,
        clients=config.clients,
        needs_table=config.needs_table or (config.intercept == "auto" and shared.elements is not None),
        policies=config.policies,
        announcements=_announcements(config, shared.announcer),
        servers=config.servers if config.mode == "reverse" else None,
        gateway=_gateway(config.gateway, shared.errands) if config.mode == "gateway" else None,
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


def _planes(config: ServiceConfig, gate: Gate, shared: Shared) -> list[DataPlane]:
    ports = PortRange(*config.data_ports)  # walked round by all of them together
    timeouts = config.timeouts
    planes: list[DataPlane] = []
    for name in config.planes:
        if name == "nft":
            assert shared.elements is not None
            planes.append(
                NftPlane(
                    shared.elements,
                    ports,
                    shared.board,
                    shared.doors,
                    data_setup=timeouts.data_setup,
                    data_idle=timeouts.data_idle,
                    seconds=element_seconds(config),
                    mark=config.firewall_mark,
                )
            )
        elif name == "pf":
            planes.append(_pf_plane(config, ports, shared))
        else:
            relay = RelayPlane(
                gate,
                ports,
                shared.board,
                connect_timeout=timeouts.connect,
                data_setup=timeouts.data_setup,
                data_idle=timeouts.data_idle,
            )
            planes.append(_led(relay, gate) if isinstance(gate, LeadingGate) else relay)
    return planes


def _led(relay: RelayPlane, gate: LeadingGate) -> DataPlane:
    from ..dtp.led import LedRelay

    return LedRelay(relay, gate)


def _pf_plane(config: ServiceConfig, ports: PortRange, shared: Shared) -> DataPlane:
    from ..dtp.pf import PfPlane

    rules = config.pf.rules
    assert shared.engine is not None
    assert rules is not None
    timeouts = config.timeouts
    return PfPlane(
        shared.engine,
        rules,
        ports,
        shared.board,
        shared.doors,
        data_setup=timeouts.data_setup,
        data_idle=timeouts.data_idle,
    )
