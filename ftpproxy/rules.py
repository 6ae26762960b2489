"""The redirect rules that a configuration needs on Linux: how control connections come to us.

Two parts, and both go away without a trace:

* one nftables table of our own, `inet ftpproxy_intercept`, with one chain a kind of interception.  It is loaded as
  text in one transaction that replaces the old one, so there is no moment without rules;
* for TPROXY, policy routing: what carries our mark is routed to this machine, whatever its destination address
  (kernel Documentation/networking/tproxy.rst).  `socket transparent` gives the mark to every packet that belongs to
  one of our transparent sockets, so the data connections need no rule for each transfer.

Which packets are taken: FTP (port 21) from the `clients` of a service.  Forward mode takes what is addressed to
somebody else; what is addressed to this machine, its own listener included, is left alone.  Reverse mode takes only
what is addressed to this machine.  A running proxy's data connections have a table of their own, which is not touched
here, except that `remove` clears it away where a killed process left it.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from ipaddress import collapse_addresses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config.values import Config, ConfigError, IPNetwork, Problem, ServiceConfig
from .endpoints import Endpoint
from .netfilter import TABLE as PLANE_TABLE
from .table import FIREWALL_MARK, MARK

if TYPE_CHECKING:
    from pyroute2 import IPRoute

__all__ = [
    "FIREWALL_MARK",
    "LINES",
    "MARK",
    "MARKED_CONNECTION",
    "MARKED_PACKET",
    "NO_OPENING",
    "PLANE_TABLE",
    "PRIORITY",
    "ROUTES",
    "TABLE",
    "TRANSLATED",
    "NoPermission",
    "RulesError",
    "Unavailable",
    "apply",
    "load",
    "openings",
    "remove",
    "text",
    "tools",
]

TABLE = "ftpproxy_intercept"
"""The nftables table of this module, family inet."""
ROUTES = 2121
"""The routing table that has one route: everything is local."""
PRIORITY = 2121
"""Of our `ip rule`: behind the table local (0), before main (32766)."""
FTP = 21
"""The port that clients dial (RFC 959 section 8)."""

FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
EVERYTHING = {4: "0.0.0.0/0", 6: "::/0"}
RT_SCOPE_HOST = 254
NO_SUCH_FAMILY = (errno.EAFNOSUPPORT, errno.EOPNOTSUPP)
CAP_NET_ADMIN = 12
PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
"""Ordinary users have no sbin in their PATH."""


class RulesError(Exception):
    """The kernel refused; the text has its words."""


class NoPermission(RulesError):
    """CAP_NET_ADMIN is missing."""


class Unavailable(RulesError):
    """The nft program or a part of the kernel is missing."""


# -- text -------------------------------------------------------------------------------------------------------------


def text(config: Config) -> str:
    """The rules as text for `nft -f`, the `ip` commands that belong to them as comments.

    Raises `ConfigError` for a service in forward mode without `clients`.
    """
    problems = [
        Problem(
            f'service "{service.name}".clients',
            'the rules need it in forward mode, or they would take the FTP of the whole world; "0.0.0.0/0" says so',
        )
        for service in config.services
        if service.mode == "forward" and not service.clients
    ]
    if problems:
        raise ConfigError(problems)

    lines = ["# Interception rules of ftpproxy.  Load this text with `nft -f`; it replaces what it loaded before."]
    families = routed_families(config)
    if families:
        lines += [
            "#",
            "# What carries our mark is for this machine, whatever its address.  TPROXY needs this beside the table:",
        ]
        for version in families:
            ip = "ip" if version == 4 else "ip -6"
            lines.append(f"#   {ip} rule add priority {PRIORITY} fwmark {MARK:#x}/{MARK:#x} lookup {ROUTES}")
            lines.append(f"#   {ip} route replace local default dev lo table {ROUTES}")
    if needed := openings(config):
        lines += [
            "#",
            "# Chains of yours that drop what they do not know need a line at their hook, which `--chain` inserts:",
            *(f"#   {hook}: {line}" for hook, line in needed.items()),
        ]
    lines += ["", f"table inet {TABLE}", f"delete table inet {TABLE}"]

    by_kind = {
        kind: [service for service in config.services if service.redirection == kind]
        for kind in ("tproxy", "redirect", "none")
    }
    for service in by_kind["none"]:
        lines += ["", f"# Service {service.name} is not intercepted and needs no rule."]
    chains = []
    if by_kind["tproxy"]:
        chains.append([*_chain("prerouting_mangle", "filter", "mangle", by_kind["tproxy"]), *_TRANSPARENT])
    if by_kind["redirect"]:
        chains.append(_chain("prerouting_dstnat", "nat", "dstnat", by_kind["redirect"]))
        if by_kind["tproxy"]:
            chains[1][2:2] = ["", "# Taken by the chain above.", f"meta mark & {MARK:#x} == {MARK:#x} accept"]
    if marked := [service for service in by_kind["redirect"] if service.firewall_mark]:
        chains.append(_chain("prerouting_mark", "filter", "mangle", marked, _mark))
    if chains:
        lines += ["", f"table inet {TABLE} {{"]
        for index, chain in enumerate(chains):
            lines += [""] * (index > 0) + [
                f"\t{chain[0]}",
                *(f"\t\t{line}" if line else "" for line in chain[1:]),
                "\t}",
            ]
        lines.append("}")
    return "\n".join(lines) + "\n"


_TRANSPARENT = [
    "",
    "# What belongs to a socket that listens or calls in a foreign name is for us: all data connections, but not those",
    "# that the kernel carries to somebody else, from the same place perhaps.",
    f"meta l4proto tcp ct status & dnat == 0 socket transparent 1 meta mark set meta mark | {MARK:#x} accept",
]


NO_OPENING = {
    "forward": 'no service has the plane "nft", so nothing of ftpproxy passes it, and no line is needed',
    "input": "no service has `firewall_mark = true`, so there is no mark to let in;"
    ' set it, or let the ports in (docs/configuration.md, "Firewall")',
}
"""Why a hook is not among the `openings`."""


TRANSLATED = "ct status dnat accept"
MARKED_CONNECTION = f"ct mark & {FIREWALL_MARK:#x} == {FIREWALL_MARK:#x} accept"
MARKED_PACKET = f"meta mark & {FIREWALL_MARK:#x} == {FIREWALL_MARK:#x} accept"
LINES = {"forward": (TRANSLATED, MARKED_CONNECTION), "input": (MARKED_PACKET,)}
"""What may be needed at each hook."""


def openings(config: Config) -> dict[str, str]:
    """The lines that chains of the administrator's need if they drop what they do not know, by hook.

    A forward chain goes by the mark, which only connections of ours have, if all of them have it.
    """
    found = {}
    if carried := [service for service in config.services if "nft" in service.planes]:
        found["forward"] = MARKED_CONNECTION if all(service.firewall_mark for service in carried) else TRANSLATED
    if any(service.firewall_mark for service in config.services):
        found["input"] = MARKED_PACKET
    return found


Verdict = Callable[[ServiceConfig, Endpoint], str]
"""What becomes of the control connections of a service, with its listener of that family."""


def _chain(
    name: str, kind: str, priority: str, services: Iterable[ServiceConfig], verdict: Verdict | None = None
) -> list[str]:
    lines = [f"chain {name} {{", f"type {kind} hook prerouting priority {priority}; policy accept;"]
    for service in services:
        lines += ["", f"# Service {service.name}, {service.mode} mode."]
        lines += _service_rules(service, verdict or _verdict)
    return lines


def _service_rules(service: ServiceConfig, verdict: Verdict) -> Iterator[str]:
    for version in sorted({at.host.version for at in service.listen}):
        clients = [network for network in service.clients if network.version == version]
        if service.clients and not clients:
            yield f"# No IPv{version} clients."
            continue
        listener = next(at for at in service.listen if at.host.version == version)
        # Forward: not what is for this machine, its listener for instance.  Reverse: only what is for this machine.
        addressed = "fib daddr type != local" if service.mode == "forward" else "fib daddr type local"
        yield f"{_from(clients, version)} tcp dport {FTP} {addressed} {verdict(service, listener)}"


def _from(clients: list[IPNetwork], version: int) -> str:
    networks = [str(network) for network in collapse_addresses(clients)]  # type: ignore[type-var]  # of one family
    if not networks or networks == [EVERYTHING[version]]:
        return f"meta nfproto ipv{version}"
    return f"{'ip' if version == 4 else 'ip6'} saddr {{ {', '.join(networks)} }}"


def _verdict(service: ServiceConfig, listener: Endpoint) -> str:
    if service.redirection == "redirect":
        return f"redirect to :{listener.port}"
    family = "ip" if listener.host.version == 4 else "ip6"
    mark = MARK | FIREWALL_MARK if service.firewall_mark else MARK
    return f"tproxy {family} to {listener} meta mark set meta mark | {mark:#x} accept"


def _mark(service: ServiceConfig, listener: Endpoint) -> str:
    return f"meta mark set meta mark | {FIREWALL_MARK:#x}"


def routed_families(config: Config) -> list[int]:
    """The IP versions whose policy routing the configuration needs."""
    return sorted({at.host.version for each in config.services if each.redirection == "tproxy" for at in each.listen})


# -- into the kernel and out of it ------------------------------------------------------------------------------------


def apply(config: Config) -> None:
    """Bring the kernel's interception rules to what `config` needs.  Repeating it changes nothing.

    Routing comes first: a mark without its route would do no harm, but the connections would go past us.
    Raises `ConfigError` as `text` does, `NoPermission`, `Unavailable`, or `RulesError`.
    """
    ruleset = text(config)
    nft = tools()
    wanted = routed_families(config)
    with _routing() as ip:
        for version in FAMILIES:
            if version in wanted:
                _route_marked(ip, version)
            else:
                _forget_marked(ip, version)
    load(nft, ruleset)


def remove() -> None:
    """Take everything of ours out of the kernel: both tables, rules and routes of both families.  Idempotent.

    A running proxy loses its data connections that are being set up.  Raises as `apply` does.
    """
    nft = tools()
    # "table" creates what is not there, so that "delete" never fails:
    load(nft, "".join(f"table inet {table}\ndelete table inet {table}\n" for table in (TABLE, PLANE_TABLE)))
    with _routing() as ip:
        for version in FAMILIES:
            _forget_marked(ip, version)


def tools() -> str:
    """The nft program, after making sure that we may use it."""
    status = Path("/proc/self/status").read_text()
    effective = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:"))
    if not effective >> CAP_NET_ADMIN & 1:
        raise NoPermission("changing the rules needs CAP_NET_ADMIN: run this as root")
    nft = shutil.which("nft", path=PATH)
    if nft is None:
        raise Unavailable("the nft program is not installed; Debian has it in the package nftables")
    return nft


def load(nft: str, ruleset: str) -> None:
    """Load text into the kernel, in one transaction.  Raises `NoPermission`, `RulesError`."""
    # C, because its error messages are searched for below
    done = subprocess.run(
        [nft, "-f", "-"], input=ruleset, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}, check=False
    )
    if done.returncode == 0:
        return
    complaint = done.stderr.strip()
    if "Operation not permitted" in complaint:
        raise NoPermission(f"changing the rules needs CAP_NET_ADMIN in this network namespace: {complaint}")
    raise RulesError(f"nft refused the rules: {complaint}")


@contextmanager
def _routing() -> Iterator[IPRoute]:
    """An `IPRoute`, with the kernel's refusals put into words."""
    from pyroute2 import IPRoute  # a quarter of a second to import, and `ftpproxy check` need not pay it
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        with IPRoute() as ip:
            yield ip
    except NetlinkError as error:
        if error.code == errno.EPERM:
            raise NoPermission("policy routing needs CAP_NET_ADMIN in this network namespace") from None
        if error.code == errno.ENETDOWN:
            raise RulesError("policy routing needs the interface lo up: ip link set lo up") from None
        if error.code in NO_SUCH_FAMILY:
            raise Unavailable(f"the kernel has no policy routing of that family: {os.strerror(error.code)}") from None
        raise RulesError(f"policy routing failed: {os.strerror(error.code)}") from None


def _ours(ip: IPRoute, version: int) -> list[Any]:
    """Our `ip rule` entries of that family, normally none or one."""
    return [
        rule
        for rule in _dump(ip.get_rules, version)
        if rule.get_attr("FRA_TABLE") == ROUTES and rule.get_attr("FRA_FWMARK") == MARK
    ]


def _dump(dump: Callable[..., Any], version: int, **filters: int) -> list[Any]:
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        return list(dump(family=FAMILIES[version], **filters))
    except NetlinkError as error:
        if error.code in (*NO_SUCH_FAMILY, errno.ENOENT):
            return []  # the kernel has no such family or no such table, hence nothing of ours
        raise


def _route_marked(ip: IPRoute, version: int) -> None:
    # ip route replace local default dev lo table 2121
    ip.route(
        "replace",
        family=FAMILIES[version],
        type="local",
        dst=EVERYTHING[version],
        oif=socket.if_nametoindex("lo"),
        table=ROUTES,
        scope=RT_SCOPE_HOST,
    )
    # ip rule add priority 2121 fwmark 0x200000/0x200000 lookup 2121
    if not _ours(ip, version):
        ip.rule("add", family=FAMILIES[version], priority=PRIORITY, fwmark=MARK, fwmask=MARK, table=ROUTES)


def _forget_marked(ip: IPRoute, version: int) -> None:
    # ip rule del fwmark 0x200000/0x200000 lookup 2121
    for rule in _ours(ip, version):
        ip.rule(
            "del",
            family=FAMILIES[version],
            priority=rule.get_attr("FRA_PRIORITY"),
            fwmark=MARK,
            fwmask=rule.get_attr("FRA_FWMASK"),
            table=ROUTES,
        )
    # ip route flush table 2121
    if _dump(ip.get_routes, version, table=ROUTES):
        ip.flush_routes(family=FAMILIES[version], table=ROUTES)
