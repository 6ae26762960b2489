"""How clients arrive: the first packets of their control connections, as far as the configuration tells."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_network

from .. import rules
from ..config.values import IPNetwork, ServiceConfig
from ..endpoints import Endpoint
from .machine import Machine
from .packet import Packet

__all__ = ["arriving", "inside"]

MOST_OF_OURS = 10
"""So many of the first addresses of a network are asked for; those that are ours, or of nobody, say nothing."""


def arriving(machine: Machine, service: ServiceConfig) -> Iterator[Packet]:
    """The first packets of clients, one for each network that they are in."""
    for at in service.listen:
        version = at.host.version
        networks: list[IPNetwork | None] = [each for each in service.clients if each.version == version]
        if service.mode == "forward":
            for network in networks:
                yield Packet(
                    version=version, port=rules.FTP, source=network, local=False, interface=inside(machine, network)
                )
            continue
        for network in networks or ([] if service.clients else [None]):
            yield _called(machine, at, network)


def _called(machine: Machine, at: Endpoint, network: IPNetwork | None) -> Packet:
    if at.host.is_unspecified:
        return Packet(version=at.host.version, port=at.port, source=network, local=True)
    interface = next((name for name, address in machine.addresses if address == at.host), None)
    if at.host.is_loopback:
        interface = "lo"
    return Packet(
        version=at.host.version,
        port=at.port,
        source=network,
        destination=ip_network(at.host),
        local=True,
        interface=interface,
    )


def inside(machine: Machine, network: IPNetwork | None) -> str | None:
    """The interface behind which `network` is; None where that is not clear, as for everybody."""
    if network is None or network.prefixlen == 0:
        return None
    for number in range(min(network.num_addresses, MOST_OF_OURS)):
        if interface := machine.way(network[number])[0]:
            return interface
    return None
