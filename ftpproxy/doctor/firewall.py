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
from .machine import Machine, words
from .packet import Packet
from .redirect import SOMEWHERE

__all__ = ["closed", "taken_ports"]

NAMED = 5
"""So many ports are named."""


def closed(machine: Machine) -> Iterator[Finding]:
    """Connections that an input chain certainly drops."""
    for service in machine.config.services:
        shut: dict[tuple[str, str, str, str], list[str]] = {}
        for who, what, candidates in _calls(machine, service):
            chains = [machine.ruleset.closed("input", packet) for packet in candidates]
            if chains and all(chains):  # of several interfaces outside it is enough that one is open
                test = _test(service, what, candidates[0])
                shut.setdefault((chains[0], what, who, test), []).append(f"IPv{candidates[0].version}")
        for (chain, what, who, test), versions in shut.items():
            table, _, name = chain.partition(", chain ")
            yield Finding(
                Severity.HURTS,
                "firewall",
                f"{chain} drops the {what} connections of {who} ({words(dict.fromkeys(versions))})",
                "Clients wait until they give up." if who == "clients" else "Active transfers hang and end in 425.",
                f"nft 'insert rule {table} {name} {test} accept'",
                service.name,
            )


def _test(service: ServiceConfig, what: str, packet: Packet) -> str:
    """The expression that such packets, and no others, pass."""
    if packet.mark:
        return f"meta mark & {rules.MARK:#x} == {rules.MARK:#x}"
    via = f'iifname "{packet.interface}" ' if packet.interface else ""
    return f"{via}tcp dport {service.data_ports if what == 'data' else packet.port}"


def _calls(machine: Machine, service: ServiceConfig) -> Iterator[tuple[str, str, list[Packet]]]:
    """Who calls for what, and the packets of which one at least must come through."""
    ends = sorted(set(service.data_ports))
    for packet in arriving(machine, service):
        if service.intercept == "tproxy":
            yield "clients", "control", [evolve(packet, mark=rules.MARK)]
            continue
        if service.intercept == "redirect":
            at = next(each for each in service.listen if each.host.version == packet.version)
            packet = evolve(packet, port=at.port, local=True, status=frozenset({"dnat"}))
        packet = evolve(packet, unmarked=rules.MARK)
        yield "clients", "control", [packet]
        for port in ends:
            yield "clients", "data", [evolve(packet, port=port)]
    for version in sorted({at.host.version for at in service.listen}):
        interfaces = _towards_servers(machine, service, version)
        for port in ends:
            calls = [Packet(version=version, port=port, local=True, interface=name) for name in interfaces]
            yield "servers", "data", [evolve(call, unmarked=rules.MARK) for call in calls]


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
