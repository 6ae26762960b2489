"""Settings of the kernel, most of them meant for something else, that make or break an FTP gateway."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from ..advice import port_overlaps
from ..config.values import ServiceConfig
from .arrivals import inside
from .finding import CannotLook, Finding, Severity
from .machine import Machine
from .ruleset import Rule

__all__ = ["clock", "conntrack", "forwarding", "ports", "reverse_path"]

ENTRIES_A_SESSION = 10
"""In the conntrack table: two control connections, the two of a transfer, and those of the last minutes, which stay in
TIME_WAIT for two (nf_conntrack_tcp_timeout_time_wait)."""
FULL = 0.9
RELEASED = 1_793_000_000
"""October 2026: it was not earlier when this was written."""
DAY = 86_400
MANGLE = -150


def _versions(service: ServiceConfig) -> set[int]:
    return {at.host.version for at in service.listen}


def forwarding(machine: Machine) -> Iterator[Finding]:
    """Clients behind us have a gateway."""
    versions = set[int]().union(*(_versions(each) for each in machine.config.services if each.mode == "forward"))
    for version, name in ((4, "net/ipv4/ip_forward"), (6, "net/ipv6/conf/all/forwarding")):
        if version in versions and machine.sysctl(name) == "0":
            dotted = name.replace("/", ".")
            yield Finding(
                Severity.HURTS,
                "forwarding",
                f"this machine does not forward IPv{version} packets: {dotted} is 0",
                "What the proxy does not carry ends here: everything of the clients but FTP, the data connections of"
                " FTP over TLS, and FTP itself while the proxy does not run.",
                f"sysctl -w {dotted}=1",
            )


def reverse_path(machine: Machine) -> Iterator[Finding]:
    """A test of source addresses that takes the proxy's mark for a route sees every client come from nowhere."""
    services = [service for service in machine.config.services if service.intercept == "tproxy"]
    if not services:
        return
    yield from _source_routes(machine, services)
    for rule in machine.ruleset.rules:
        if _tests_by_mark(rule) and machine.ruleset.priority(rule) > MANGLE:
            yield Finding(
                Severity.HURTS,
                "reverse_path",
                f"a test of source addresses goes by the packet mark: {rule.place}",
                "The proxy's mark leads to this machine, so packets of clients seem to come from a wrong interface and"
                " are dropped.  Test without the mark (`fib saddr . iif oif`; firewalld: IPv6_rpfilter=loose or no).",
                rule.removal,
            )


def _source_routes(machine: Machine, services: list[ServiceConfig]) -> Iterator[Finding]:
    networks = [network for service in services for network in service.clients if network.version == 4]
    interfaces = sorted({name for network in networks if (name := inside(machine, network))})
    for name in ["all", *interfaces]:
        if machine.sysctl(f"net/ipv4/conf/{name}/src_valid_mark") == "1":
            yield Finding(
                Severity.HURTS,
                "reverse_path",
                f"net.ipv4.conf.{name}.src_valid_mark is 1",
                "The test of source addresses then goes by the packet mark, and the proxy's leads to this machine: the"
                ' IPv4 packets of clients are dropped.  (wg-quick sets it.  Where it must be, take "redirect".)',
                f"sysctl -w net.ipv4.conf.{name}.src_valid_mark=0",
            )
    dropped = machine.counter("IPReversePathFilter")
    strict = [name for name in interfaces if _rp_filter(machine, name) == 1]
    if strict and dropped:
        yield Finding(
            Severity.WORTH_KNOWING,
            "reverse_path.drops",
            f"the reverse path filter is strict on {', '.join(strict)}, and this machine has dropped {dropped} packets",
            "Where the way back to a client is another interface than it comes by, its packets are dropped unseen.",
            "\n".join(f"sysctl -w net.ipv4.conf.{name}.rp_filter=2" for name in strict),
        )


def _rp_filter(machine: Machine, name: str) -> int:
    """The larger of both counts (ip-sysctl)."""
    return max(int(machine.sysctl(f"net/ipv4/conf/{each}/rp_filter") or 0) for each in ("all", name))


def _tests_by_mark(rule: Rule) -> bool:
    for statement in rule.statements:
        left = statement.get("match", {}).get("left") if isinstance(statement, dict) else None
        fib = left.get("fib") if isinstance(left, dict) else None
        if fib and {"saddr", "mark"} <= set(fib["flags"]):
            return True
    return False


def ports(machine: Machine) -> Iterator[Finding]:
    """The data ports are not those that the kernel gives to others."""
    reserved = _spans(machine.sysctl("net/ipv4/ip_local_reserved_ports") or "")
    services = {service.name: service for service in machine.config.services}
    for overlap in port_overlaps(machine.config):
        first, last = services[overlap.service].data_ports
        low, high = map(int, overlap.local.split("-"))
        if not any(start <= max(first, low) and min(last, high) <= end for start, end in reserved):
            yield Finding(
                Severity.WORTH_KNOWING,
                "data_ports.overlap",
                f"the data_ports {overlap.data_ports} are among those that other programs are given ({overlap.local})",
                "A port may be taken when a transfer needs it, and its data connection take longer or fail.",
                f"sysctl -w net.ipv4.ip_local_reserved_ports={overlap.data_ports}",
                overlap.service,
            )


def _spans(text: str) -> list[tuple[int, int]]:
    parts = (part.split("-") for part in text.split(",") if part)
    return [(int(part[0]), int(part[-1])) for part in parts]


def conntrack(machine: Machine) -> Iterator[Finding]:
    """There is room for the sessions in the table of connections."""
    try:
        most, now = (machine.sysctl(f"net/netfilter/nf_conntrack_{name}") for name in ("max", "count"))
    except CannotLook:
        return
    if most is None or now is None:
        return
    if int(now) >= FULL * int(most):
        yield Finding(
            Severity.HURTS,
            "conntrack.full",
            f"the table of connections is full: {now} of {most}",
            "The kernel drops the first packet of new connections.",
            f"sysctl -w net.netfilter.nf_conntrack_max={2 * int(most)}",
        )
    sessions = sum(service.limits.sessions for service in machine.config.services)
    if int(most) < ENTRIES_A_SESSION * sessions:
        yield Finding(
            Severity.WORTH_KNOWING,
            "conntrack.small",
            f"the table of connections has room for {most}, and {sessions} sessions may want"
            f" {ENTRIES_A_SESSION * sessions}",
            "Each connection keeps its place for two minutes after its end: short sessions fill 262144 places at about"
            " 550 a second.  When it is full, new connections are dropped.",
            f"sysctl -w net.netfilter.nf_conntrack_max={ENTRIES_A_SESSION * sessions}",
        )


def clock(machine: Machine) -> Iterator[Finding]:
    """It is not earlier than it can be."""
    try:
        written = Path(machine.file).stat().st_mtime
    except OSError:
        return
    now = time.time()
    if now < RELEASED or now < written - DAY:
        yield Finding(
            Severity.WORTH_KNOWING,
            "clock",
            f"the clock says {time.strftime('%Y-%m-%d', time.gmtime(now))}, which is "
            + ("before this program was made" if now < RELEASED else "before the configuration was written"),
            "The times in the log are wrong.",
            "timedatectl set-ntp true",
        )
