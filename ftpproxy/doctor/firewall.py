"""Does the administrator's firewall let in what the proxy listens for, and is nobody else on its ports?

What ends at a socket of ours passes the input chain.  Only what is certainly shut is reported: a rule that we do not
understand may open (`Ruleset`).
"""

from __future__ import annotations

from collections.abc import Iterator

from attrs import evolve

from .. import rules
from ..config.values import ServiceConfig
from .arrivals import arriving, inside
from .finding import Finding, Severity
from .machine import Machine
from .packet import Packet
from .redirect import SOMEWHERE

__all__ = ["closed", "taken_ports"]

NAMED = 5
"""So many ports are named."""


def closed(machine: Machine) -> Iterator[Finding]:
    """Connections that an input chain certainly drops."""
    for service in machine.config.services:
        span = str(service.data_ports)
        for who, where, candidates in _calls(machine, service):
            shut = [(packet, chain) for packet in candidates if (chain := machine.ruleset.closed("input", packet))]
            if not shut or len(shut) < len(candidates):
                continue  # of several interfaces outside it is enough that one is open
            packet, chain = shut[0]
            marked = packet.mark is not None
            port = span if where == "data" else str(packet.port)
            what = "data connections" if where == "data" else "control connections"
            via = f'iifname "{packet.interface}" ' if packet.interface else ""
            test = f"meta mark & {rules.MARK:#x} == {rules.MARK:#x}" if marked else f"{via}tcp dport {port}"
            table, _, name = chain.partition(", chain ")
            yield Finding(
                Severity.HURTS,
                "firewall",
                f"{chain} drops the {what} of {who} (IPv{packet.version}, "
                + ("with the proxy's mark)" if marked else f"port {port})"),
                "Clients wait until they give up." if who == "clients" else "Active transfers hang and end in 425.",
                f"nft insert rule {table} {name} {test} accept",
                service.name,
            )


def _calls(machine: Machine, service: ServiceConfig) -> Iterator[tuple[str, str, list[Packet]]]:
    """Who calls for what, and the packets of which one at least must come through."""
    first = service.data_ports.first
    for packet in arriving(machine, service):
        if service.intercept == "tproxy":
            yield "clients", "control", [evolve(packet, mark=rules.MARK)]
            continue
        if service.intercept == "redirect":
            at = next(each for each in service.listen if each.host.version == packet.version)
            packet = evolve(packet, port=at.port, local=True, status=frozenset({"dnat"}), mark=0)
        yield "clients", "control", [evolve(packet, mark=None)]
        yield "clients", "data", [evolve(packet, port=first, mark=None)]
    for version in sorted({at.host.version for at in service.listen}):
        called = [
            Packet(version=version, port=first, local=True, interface=name)
            for name in _towards_servers(machine, service, version)
        ]
        if called:
            yield "servers", "data", called


def _towards_servers(machine: Machine, service: ServiceConfig, version: int) -> list[str]:
    """The interfaces by which servers call: those of their routes, else all that clients are not behind."""
    known = [server.host for server in service.servers if server.host.version == version]
    if known:
        return sorted({name for host in known if (name := machine.way(host)[0])})
    default, _ = machine.way(SOMEWHERE[version])
    if default:
        return [default]
    clients = {inside(machine, network) for network in service.clients if network.version == version}
    names = {name for name, address in machine.addresses if address.version == version and not address.is_loopback}
    return sorted(names - clients)


def taken_ports(machine: Machine) -> Iterator[Finding]:
    """Other programs listen on data ports."""
    for service in machine.config.services:
        first, last = service.data_ports
        inside_range = [each for each in machine.listeners if first <= each.at.port <= last]
        taken = sorted({each.at.port for each in inside_range if not machine.is_proxy(each)})
        if not taken:
            continue
        every = len(taken) == last - first + 1
        named = ", ".join(map(str, taken[:NAMED])) + (" and more" if len(taken) > NAMED else "")
        yield Finding(
            Severity.HURTS if every else Severity.WORTH_KNOWING,
            "data_ports.taken",
            f"other programs listen on data ports: {named}",
            "No data connection can be had." if every else "The proxy passes over them; fewer are left for transfers.",
            f'data_ports = "FIRST-LAST"    # a range in which `ss -ltn` shows nobody, instead of {service.data_ports}',
            service.name,
        )
