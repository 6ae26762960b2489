"""What the proxy's process may do: capabilities and descriptors.  Where it runs, that process is looked at, else we."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from ..compose import DESCRIPTORS_A_SESSION
from ..config.values import ServiceConfig
from .finding import Finding, Severity
from .machine import CAP_NET_ADMIN, CAP_NET_BIND_SERVICE, CAP_NET_RAW, CAP_SYS_RESOURCE, Machine, Process, words

__all__ = ["descriptors", "privileges"]

NAMES = {CAP_NET_ADMIN: "CAP_NET_ADMIN", CAP_NET_RAW: "CAP_NET_RAW", CAP_NET_BIND_SERVICE: "CAP_NET_BIND_SERVICE"}


def privileges(machine: Machine) -> Iterator[Finding]:
    """Each kind of service can do what it does."""
    process = machine.server or Process("self")
    who = f"the running proxy (process {process.number})" if machine.server else "a proxy started from here"
    held = {capability for capability in NAMES if process.may(capability)}
    lowest = int(machine.sysctl("net/ipv4/ip_unprivileged_port_start") or 1024)
    for service in machine.config.services:
        for any_of, purpose in _needed(service, lowest, running=machine.server is not None):
            if not held & any_of:
                names = " or ".join(NAMES[each] for each in sorted(any_of))
                yield Finding(
                    Severity.HURTS,
                    "privileges",
                    f"{who} has no {names}",
                    f"It is needed for {purpose}.",
                    f"AmbientCapabilities={NAMES[min(any_of)]}    # in its systemd unit; or run it as root",
                    service.name,
                )


def _needed(service: ServiceConfig, lowest: int, *, running: bool) -> Iterator[tuple[set[int], str]]:
    if service.intercept == "tproxy":
        yield {CAP_NET_ADMIN, CAP_NET_RAW}, "sockets with foreign addresses (tproxy)"
        if 0 < service.active_source_port < lowest:
            yield {CAP_NET_BIND_SERVICE}, f"data connections from port {service.active_source_port}"
    if service.needs_table:
        uses = {
            "redirect": service.intercept == "redirect",
            'the plane "nft"': "nft" in service.planes,
            "firewall_mark": service.firewall_mark,
        }
        yield {CAP_NET_ADMIN}, f"the maps of data connections ({words(name for name, used in uses.items() if used)})"
    low = sorted({at.port for at in service.listen if at.port < lowest})
    if low and not running:
        yield {CAP_NET_BIND_SERVICE}, f"listening on port {low[0]}"


def descriptors(machine: Machine) -> Iterator[Finding]:
    """There are enough for the sessions of the configuration."""
    process = machine.server
    if process is None:
        _, allowed = Process("self").descriptors()  # the proxy raises its limit by itself, root beyond the hard one
        if Process("self").may(CAP_SYS_RESOURCE):
            allowed = sys.maxsize
    else:
        allowed, _ = process.descriptors()
    wanted = DESCRIPTORS_A_SESSION * sum(service.limits.sessions for service in machine.config.services)
    if allowed < wanted:
        sessions = allowed // DESCRIPTORS_A_SESSION
        yield Finding(
            Severity.WORTH_KNOWING,
            "descriptors",
            f"the proxy may open {allowed} files, and the sessions of the configuration may want {wanted}",
            f"From about {sessions} sessions on, connections and transfers fail.",
            f"LimitNOFILE={wanted + 64}    # in its systemd unit",
        )
