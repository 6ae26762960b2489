"""Does the administrator's firewall let in what the proxy listens for, and is nobody else on its ports?

What ends at a socket of ours passes the input chain, what the kernel carries (the plane "nft") the forward chain.  Only
what is certainly shut is reported: a rule that we do not understand may open (`Ruleset`).
"""

from __future__ import annotations

from collections.abc import Iterator

from attrs import evolve

from .. import holes, rules
from ..config.values import ServiceConfig
from .arrivals import arriving, inside
from .finding import Finding, Severity
from .machine import Machine, words
from .packet import Packet
from .redirect import SOMEWHERE

__all__ = ["closed", "forwarded", "taken_ports"]

OURS = rules.MARK | rules.FIREWALL_MARK
"""Bits of the mark that only our rules set."""
NAMED = 5
"""So many ports are named."""


def closed(machine: Machine) -> Iterator[Finding]:
    """Connections that an input chain certainly drops."""
    for service in machine.config.services:
        shut: dict[tuple[str, str, str, str], list[str]] = {}  # by chain, what, who and the line that mends it
        for who, what, candidates in _calls(machine, service):
            chains = [machine.ruleset.closed("input", packet) for packet in candidates]
            if chains and all(chains):  # of several interfaces outside it is enough that one is open
                mend = _insertion(machine, service, chains[0], what, candidates[0])
                shut.setdefault((chains[0], what, who, mend), []).append(f"IPv{candidates[0].version}")
        for (chain, what, who, mend), versions in shut.items():
            yield Finding(
                Severity.HURTS,
                "firewall",
                f"{chain} drops the {what} connections of {who} ({words(dict.fromkeys(versions))})",
                "Clients wait until they give up." if who == "clients" else "Active transfers hang and end in 425.",
                mend,
                service.name,
            )


def forwarded(machine: Machine) -> Iterator[Finding]:
    """Data connections that the kernel carries, and a forward chain certainly drops."""
    line = rules.openings(machine.config).get("forward", "")
    for service in machine.config.services:
        shut: dict[tuple[str, str], list[str]] = {}
        for who, candidates in _carried(machine, service) if "nft" in service.planes else ():
            chains = [machine.ruleset.closed("forward", packet) for packet in candidates]
            if chains and all(chains):
                shut.setdefault((chains[0], who), []).append(f"IPv{candidates[0].version}")
        for (chain, who), versions in shut.items():
            yield Finding(
                Severity.HURTS,
                "firewall.forward",
                f"{chain} drops the data connections of {who} ({words(dict.fromkeys(versions))}), which the kernel"
                " carries",
                f"Log-ins work, and the first listing hangs.  The chain needs the line `{line}`, which lets in what"
                f" {'carries our mark' if line == rules.MARKED_CONNECTION else 'was translated'}.",
                _opening(machine, chain),
                service.name,
            )


def _carried(machine: Machine, service: ServiceConfig) -> Iterator[tuple[str, list[Packet]]]:
    """Who calls, and the packets behind their translation, of which one at least must come through."""
    translated = Packet(
        version=4,
        local=False,
        status=frozenset({"dnat"}),
        unmarked=OURS,
        connection_mark=rules.FIREWALL_MARK if service.firewall_mark else 0,
    )
    for packet in arriving(machine, service):
        yield "clients", [evolve(translated, version=packet.version, source=packet.source, interface=packet.interface)]
    for version in sorted({at.host.version for at in service.listen}):
        names = _towards_servers(machine, service, version)
        yield "servers", [evolve(translated, version=version, interface=name) for name in names]


def _opening(machine: Machine, chain: str) -> str:
    """The command that inserts our line there."""
    table, _, name = chain.partition(", chain ")
    family, _, table = table.partition(" ")
    if (command := holes.of_iptables(family, table, name, machine.config)) is not None:
        return command
    return f"ftpproxy rules -c {machine.file} --apply --chain {family}/{table}/{name}"


def _insertion(machine: Machine, service: ServiceConfig, chain: str, what: str, packet: Packet) -> str:
    """The command that lets such packets, and no others, in."""
    if service.firewall_mark and packet.mark:
        return _opening(machine, chain)
    table, _, name = chain.partition(", chain ")
    return f"nft 'insert rule {table} {name} {_test(service, what, packet)} accept'"


def _test(service: ServiceConfig, what: str, packet: Packet) -> str:
    """The expression that such packets, and no others, pass."""
    if packet.mark:
        return f"meta mark & {rules.MARK:#x} == {rules.MARK:#x}"
    via = f'iifname "{packet.interface}" ' if packet.interface else ""
    return f"{via}tcp dport {service.data_ports if what == 'data' else packet.port}"


def _calls(machine: Machine, service: ServiceConfig) -> Iterator[tuple[str, str, list[Packet]]]:
    """Who calls for what, and the packets of which one at least must come through."""
    relayed = "nft" not in service.planes  # it goes through the forward chain then, but for what is seldom
    ends = sorted(set(service.data_ports)) if relayed else []
    mark = rules.FIREWALL_MARK if service.firewall_mark else None
    for packet in arriving(machine, service):
        if service.intercept == "tproxy":
            yield "clients", "control", [evolve(packet, mark=rules.MARK | (mark or 0))]
            continue
        if service.intercept == "redirect":
            at = next(each for each in service.listen if each.host.version == packet.version)
            packet = evolve(packet, port=at.port, local=True, status=frozenset({"dnat"}))
        packet = evolve(packet, unmarked=OURS)
        yield "clients", "control", [evolve(packet, mark=mark) if service.intercept == "redirect" else packet]
        for port in ends:
            yield "clients", "data", [evolve(packet, port=port, mark=mark)]
    for version in sorted({at.host.version for at in service.listen}):
        interfaces = _towards_servers(machine, service, version)
        for port in ends:
            calls = [Packet(version=version, port=port, local=True, interface=name) for name in interfaces]
            yield "servers", "data", [evolve(call, unmarked=OURS, mark=mark) for call in calls]


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
