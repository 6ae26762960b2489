"""Do control connections come to us?  What the rules need of the kernel, the rules, the policy route, the listeners."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

from .. import netfilter, rules
from ..config.values import ServiceConfig
from ..table import PLANE_TABLE
from .finding import CannotLook, Finding, Severity
from .machine import Machine, run, words
from .ruleset import Ruleset

__all__ = ["kernel_refuses", "kernel_support", "listeners", "plane", "policy_routes", "present"]

SCRATCH = "ftpproxy_doctor"
"""A table that never comes to be: nft -c."""
MODULES = "nf_tables nft_tproxy nft_socket nft_nat nft_redir nft_fib_inet"
OUR_TABLES = (f"inet {rules.TABLE}", f"inet {netfilter.TABLE}")
SOMEWHERE = {4: ip_address("192.0.2.1"), 6: ip_address("2001:db8::1")}
"""An address of nobody (RFC 5737, RFC 3849)."""


def kernel_support(machine: Machine) -> Iterator[Finding]:
    """TPROXY, `socket transparent`, redirect and the maps: tried, and not done."""
    kinds = {service.intercept for service in machine.config.services} - {"none"}
    mapped = any(service.needs_table for service in machine.config.services)
    if not (kinds or mapped):
        return
    text = rules.text(machine.config).replace(rules.TABLE, SCRATCH)
    if mapped:
        text += PLANE_TABLE.replace(f"table inet {netfilter.TABLE}", f"table inet {SCRATCH}_plane")
    try:
        refusal = kernel_refuses(machine, text)
    except CannotLook:
        if shutil.which("nft", path=rules.PATH) is not None:
            raise
        refusal = "the program nft is not installed"
    if refusal:
        yield Finding(
            Severity.HURTS,
            "kernel",
            f"the rules for {words(sorted(kinds))} cannot be loaded here: {refusal}",
            "Without them no connection comes to the proxy, or no data connection.",
            "apt install nftables" if "nft is not" in refusal else f"modprobe -a {MODULES}",
        )


def kernel_refuses(machine: Machine, text: str) -> str:
    """What the kernel has against `text`, which is not loaded; empty if nothing.  Raises `CannotLook`."""
    try:
        machine.nft("-c", "-f", "-", text=text)
    except CannotLook as error:
        match = re.search(r"Could not process rule: (No such file or directory|Operation not supported)", str(error))
        if match is None:
            raise
        return f"the kernel lacks a part of nftables ({match[1]})"
    return ""


def present(machine: Machine) -> Iterator[Finding]:
    """The table of `ftpproxy rules` is there, as it would be loaded now."""
    services = [service for service in machine.config.services if service.intercept != "none"]
    if not services:
        return
    apply = f"ftpproxy rules -c {machine.file} --apply"
    if not machine.ruleset.has_table(rules.TABLE):
        if all(_led(machine.ruleset, service) for service in services):
            yield Finding(
                Severity.WORTH_KNOWING,
                "rules.elsewhere",
                f"table inet {rules.TABLE} is not there, but other rules lead to the listeners",
                "They were not compared with what the configuration needs.",
                f"ftpproxy rules -c {machine.file}",
            )
        else:
            yield Finding(
                Severity.HURTS,
                "rules.missing",
                f"table inet {rules.TABLE} is not there: nothing is intercepted",
                "The clients' connections go past the proxy.  After a boot, and wherever the firewall is loaded anew"
                " with `flush ruleset`, the rules have to be loaded again.",
                apply,
            )
    elif _listed(machine) != _wanted(machine):
        yield Finding(
            Severity.HURTS,
            "rules.differ",
            f"table inet {rules.TABLE} is not what this configuration needs",
            "Connections of some clients go past the proxy, or to a place where nobody listens.",
            apply,
        )


def plane(machine: Machine) -> Iterator[Finding]:
    """The table of a running process is there."""
    if (
        any(service.needs_table for service in machine.config.services)
        and machine.server is not None
        and not machine.ruleset.has_table(netfilter.TABLE)
    ):
        yield Finding(
            Severity.HURTS,
            "plane.missing",
            f"table inet {netfilter.TABLE} of the running proxy is gone",
            "Data connections find no way to the proxy: clients log in, and the first listing fails.  A firewall that"
            " was loaded anew took it away, and a proxy that runs well has loaded it again a second later.",
            "systemctl restart ftpproxy",
        )


def _led(ruleset: Ruleset, service: ServiceConfig) -> bool:
    ports = {at.port for at in service.listen}
    return any(
        isinstance(value, dict) and value.get("port") in ports
        for rule in ruleset.rules
        if f"{rule.table}" not in OUR_TABLES
        for statement in rule.statements
        if isinstance(statement, dict)
        for kind, value in statement.items()
        if kind == service.intercept
    )


def _listed(machine: Machine) -> Any:
    return _bare(machine.nft("-j", "list", "table", "inet", rules.TABLE))


def _wanted(machine: Machine) -> Any:
    """The rules as the kernel would list them: loaded into a network namespace that is gone at once."""
    nft = shutil.which("nft", path=rules.PATH)
    script = f'"$0" -f - && exec "$0" -j list table inet {rules.TABLE}'
    try:
        done = run(["unshare", "--net", "sh", "-c", script, nft or "nft"], rules.text(machine.config))
    except FileNotFoundError:
        raise CannotLook("comparing the rules needs the program unshare (util-linux)") from None
    if done.returncode:
        raise CannotLook(f"comparing the rules needs a network namespace: {' '.join(done.stderr.split())}")
    return _bare(done.stdout)


def _bare(text: str) -> Any:
    """Without the numbers that the kernel gives."""
    entries = [entry for entry in json.loads(text)["nftables"] if "metainfo" not in entry]
    for entry in entries:
        for each in entry.values():
            each.pop("handle", None)
    return entries


def policy_routes(machine: Machine) -> Iterator[Finding]:
    """What carries the mark is for this machine, in the families that need it: asked of the kernel's own routing."""
    for version in rules.routed_families(machine.config):
        _, local = machine.way(SOMEWHERE[version], rules.MARK)
        if local:
            continue
        ip = "ip" if version == 4 else "ip -6"
        ruled, routed = _policy(version)
        mend = []
        if not ruled:
            mend.append(
                f"{ip} rule add priority {rules.PRIORITY} fwmark {rules.MARK:#x}/{rules.MARK:#x} lookup {rules.ROUTES}"
            )
        if not routed:
            mend.append(f"{ip} route replace local default dev lo table {rules.ROUTES}")
        lacking = words(["no `ip rule`"] * (not ruled) + ["no route"] * (not routed)) if mend else ""
        yield Finding(
            Severity.HURTS,
            "policy_route",
            f"IPv{version} packets with the mark {rules.MARK:#x} are not routed to this machine: "
            + (f"there is {lacking} for it" if lacking else "another `ip rule` comes first"),
            "TPROXY gives packets to the proxy by this mark; without the route they go past it.",
            "\n".join(mend) or f"{ip} rule show",
        )


def _policy(version: int) -> tuple[bool, bool]:
    """Whether our `ip rule` is there, and a route in its table."""
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    family = rules.FAMILIES[version]
    with IPRoute() as ip:
        try:
            ruled = any(
                rule.get_attr("FRA_TABLE") == rules.ROUTES and rule.get_attr("FRA_FWMARK") == rules.MARK
                for rule in ip.get_rules(family=family)
            )
        except NetlinkError:
            return False, False  # a kernel without that family
        try:
            return ruled, bool(list(ip.get_routes(family=family, table=rules.ROUTES)))
        except NetlinkError:
            return ruled, False  # there is no such table


def listeners(machine: Machine) -> Iterator[Finding]:
    """Where the rules lead, and where clients call, the proxy listens."""
    for service in machine.config.services:
        nobody = []
        for at in service.listen:
            sock = machine.listener(at)
            if sock is None:
                if machine.ours(at.host):
                    nobody.append(at)
            elif not machine.is_proxy(sock):
                owner = machine.owners.get(sock.inode)
                whose = "the kernel" if owner is None else f"process {owner.number}, {owner.words[:60]}"
                yield Finding(
                    Severity.HURTS,
                    "listener.foreign",
                    f"{at} is taken by another program: {whose}",
                    "The proxy cannot listen there, and clients reach that program instead.",
                    f"systemctl stop {owner.words.split()[0] if owner else at}",
                    service.name,
                )
        if nobody:
            past = service.intercept == "tproxy"
            yield Finding(
                Severity.HURTS,
                "listener.absent",
                f"nobody listens at {words(nobody)}",
                "The proxy does not run: " + ("FTP goes past it." if past else "clients are refused."),
                f"ftpproxy serve -c {machine.file}",
                service.name,
            )
