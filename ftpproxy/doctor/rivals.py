"""Who else has a hand in the connections: the proxy itself in a loop, other rules, the kernel's own FTP helper."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from .. import nathook, rules
from ..files import read
from .arrivals import arriving
from .finding import Finding, Severity
from .machine import Machine, run
from .packet import Packet
from .redirect import OUR_TABLES
from .ruleset import Rule

__all__ = ["SAVED", "helper_of_iptables", "helpers", "loops", "saved", "saved_in", "taken_before"]

SAVED = (Path("/etc/nftables.conf"), Path("/etc/sysconfig/nftables.conf"), *Path("/etc/nftables.d").glob("*.nft"))
"""Where distributions keep the administrator's rules."""


def loops(machine: Machine) -> Iterator[Finding]:
    """The proxy's own calls come back to it."""
    for service in machine.config.services:
        for server in service.servers:
            if machine.is_us(server):
                yield Finding(
                    Severity.HURTS,
                    "loop",
                    f"the server {server} is this proxy itself",
                    "Each session calls the proxy again, until the limits of the service end it.",
                    f'servers = ["ADDRESS:{server.port}"]    # the FTP server itself',
                    service.name,
                )
    found: dict[Rule, None] = {
        rule: None
        for version in sorted({at.host.version for service in machine.config.services for at in service.listen})
        for rule, sure in machine.ruleset.translated("output", Packet(version=version, port=rules.FTP, local=False))
        if sure and rule.table not in OUR_TABLES
    }
    for rule in found:
        yield Finding(
            Severity.HURTS,
            "loop",
            f"this machine's own calls to port {rules.FTP} are sent elsewhere: {rule.place}",
            "The proxy calls servers there: it reaches itself, or a server that the client did not want.",
            rule.removal,
        )


def taken_before(machine: Machine) -> Iterator[Finding]:
    """Rules of others that send the clients' connections elsewhere before they come to us."""
    for service in machine.config.services:
        if service.intercept == "tproxy":
            continue  # taken at priority mangle, before any of them
        found = {
            rule: None
            for packet in arriving(machine, service)
            for rule, sure in machine.ruleset.translated("prerouting", packet, before=rules.TABLE)
            if sure and rule.table not in OUR_TABLES
        }
        for rule in found:
            yield Finding(
                Severity.HURTS,
                "taken",
                f"another rule takes the clients' connections: {rule.place}",
                "They go where it says and not to the proxy.",
                rule.removal,
                service.name,
            )


def saved(machine: Machine) -> Iterator[Finding]:
    """Tables of the running proxy in the administrator's own files."""
    return saved_in(SAVED)


def saved_in(files: Iterable[Path]) -> Iterator[Finding]:
    """As `saved`."""
    for file in files:
        try:
            text = read(file).decode(errors="replace")
        except OSError:
            continue  # most machines have one of them
        if re.search(rf"^\s*table inet {nathook.TABLE}\b", text, re.MULTILINE):
            yield Finding(
                Severity.HURTS,
                "saved",
                f"{file} has the table inet {nathook.TABLE}, which belongs to the running proxy",
                "While it runs the whole file is refused, and the firewall stays as it was.  (`nft list ruleset` lists"
                " that table with the others.)",
                f"sed -i '/^table inet {nathook.TABLE} /,/^}}/d' {file}",
            )


def helpers(machine: Machine) -> Iterator[Finding]:
    """The kernel's own FTP helper works on the same connections."""
    why = (
        "Two rewrite the same lines: the kernel may change a port that the proxy announced, opens ports for what it"
        " believes to have read, and drops lines that it cannot take apart."
    )
    if machine.sysctl("net/netfilter/nf_conntrack_helper") == "1":
        yield Finding(
            Severity.HURTS,
            "helper",
            "net.netfilter.nf_conntrack_helper is 1: the kernel's FTP helper is given to all FTP",
            why,
            "sysctl -w net.netfilter.nf_conntrack_helper=0",
        )
    ours = [packet for service in machine.config.services for packet in arriving(machine, service)]
    versions = sorted({packet.version for packet in ours})
    calls = [Packet(version=version, port=rules.FTP) for version in versions]
    found: dict[Rule, None] = {rule: None for packet in (*ours, *calls) for rule in machine.ruleset.helped(packet)}
    for rule in found:
        yield Finding(
            Severity.HURTS, "helper", f"the kernel's FTP helper is given to FTP: {rule.place}", why, rule.removal
        )
    for program in ("iptables", "ip6tables"):
        save = shutil.which(f"{program}-save", path=rules.PATH)
        if save is not None and (done := run([save, "-t", "raw"])).returncode == 0:
            for line in helper_of_iptables(done.stdout):
                mend = f"{program} -t raw {line.replace('-A ', '-D ', 1)}"
                yield Finding(Severity.HURTS, "helper", f"the kernel's FTP helper is given to FTP: {line}", why, mend)


def helper_of_iptables(saved: str) -> list[str]:
    """The lines in the output of iptables-save that give the FTP helper to somebody."""
    return [line for line in saved.splitlines() if re.match(r"-A .*-j CT .*--helper \"?ftp\b", line)]
