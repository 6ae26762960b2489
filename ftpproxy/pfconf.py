"""pf.conf(5) for a configuration: the lines by which pf brings control connections to us, and lets ours through.

Printed is a whole ruleset that loads, because in pf it is the order that matters: what translates, or blocks quick,
before our anchor has decided already.  Whoever has a ruleset takes the lines over, at the same places:

    OpenBSD                                              FreeBSD (translation comes first, and its first match wins)
      anchor "ftp-proxy/*"                                 nat-anchor "ftp-proxy/*"
      match out ... nat-to   the gateway's own NAT         rdr-anchor "ftp-proxy/*"
      pass in quick ... divert-to   to our listener        nat ...   the gateway's own NAT
      pass ...   what we say and carry ourselves           rdr pass ...   to our listener
                                                           anchor "ftp-proxy/*"
                                                           pass ...   what we say and carry ourselves

The anchor holds the rules of live data connections (`ftpproxy.pf.anchor`); its lines are those that ftp-proxy(8) needs.
FreeBSD 15 understands `rdr-to` as well, but its predecessors do not, and all of them understand what is printed here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import collapse_addresses

from .config.values import Config, ConfigError, IPNetwork, Problem, ServiceConfig
from .endpoints import Endpoint, IPAddress
from .pf.anchor import ROOT, Dialect, word

__all__ = ["INSIDE", "OUTSIDE", "is_interface", "text"]

FTP = 21
"""The port that clients dial (RFC 959 section 8)."""
OUTSIDE, INSIDE = "em0", "em1"

SYSTEMS: dict[Dialect, str] = {"openbsd": "OpenBSD", "freebsd": "FreeBSD"}
ANCHOR = f'anchor "{ROOT}/*"'
EVERYTHING = ("0.0.0.0/0", "::/0")
INET = {4: "inet ", 6: "inet6"}
"""As wide as each other: such lines stand below each other."""

_INTERFACE = re.compile(r"[a-z][a-z0-9_.]{0,14}")


def is_interface(name: str) -> bool:
    """Whether an interface may be called so (IFNAMSIZ 16), and pf.conf can say it in quotes."""
    return _INTERFACE.fullmatch(name) is not None


def text(config: Config, dialect: Dialect, *, outside: str = OUTSIDE, inside: str = INSIDE) -> str:
    """The ruleset, for `outside`, the interface towards the Internet, and `inside`, that of the other hosts.

    Raises `ConfigError` for what cannot work there; a configuration that was loaded for this system is right but for
    what "auto" means.
    """
    if problems := list(_problems(config, dialect)):
        raise ConfigError(problems)
    openbsd = dialect == "openbsd"
    head = [
        f"# pf.conf for ftpproxy on {SYSTEMS[dialect]}.  In a ruleset of yours the order is the same.",
        f'ext_if = "{outside}"',
        f'int_if = "{inside}"',
        f"set skip on {'lo' if openbsd else 'lo0'}",
    ]
    redirects = [line for service in config.services for line in _redirects(service, dialect)]
    passes = [line for service in config.services for line in _passes(service, dialect)]
    if openbsd:
        body = [
            "block return log",
            "# the data connections of live sessions, before anything that translates, or blocks quick",
            ANCHOR,
            *_tagged(config),
            "# the NAT that this gateway does anyway",
            "match out on $ext_if inet from !($ext_if:network) to any nat-to ($ext_if:0)",
            *redirects,
            *passes,
        ]
    else:
        body = [
            "# the data connections of live sessions, before any other nat or rdr",
            f"nat-{ANCHOR}",
            f"rdr-{ANCHOR}",
            "# the NAT that this gateway does anyway",
            "nat on $ext_if inet from $int_if:network to any -> ($ext_if:0)",
            *redirects,
            "block return log",
            "# the data connections of live sessions, before anything that blocks quick",
            ANCHOR,
            *_tagged(config),
            *passes,
        ]
    foot = ["# Nothing but FTP passes so far: your own rules go here (ssh, ICMP and ICMPv6, everybody else's traffic)."]
    return "".join(f"{line}\n" for line in (*head, *body, *foot))


def _problems(config: Config, dialect: Dialect) -> Iterator[Problem]:
    for service in config.services:
        kind = service.redirection_on(dialect)
        if kind == "none":
            continue
        for index, at in enumerate(service.listen):
            where = f'service "{service.name}".listen[{index}]'
            if at.host.is_unspecified:
                yield Problem(where, f"pf leads connections to one address, not to {at.host}; name it")
            elif kind == "rdr" and at.host.version == 6 and at.host.is_loopback:
                yield Problem(where, "what pf leads to ::1 is dropped behind it; listen at an address of the inside")


def _redirects(service: ServiceConfig, dialect: Dialect) -> Iterator[str]:
    kind = service.redirection_on(dialect)
    if kind == "none":
        return
    yield f"# {_title(service)}: control connections to the proxy"
    forward = service.mode == "forward"
    interface, to = ("$int_if", "any") if forward else ("$ext_if", "($ext_if)")
    for at in service.listen:
        version = at.host.version
        if (clients := _clients(service, version)) is None:
            yield f"# no IPv{version} clients"
            continue
        what = f"on {interface} {INET[version]} proto tcp"
        if dialect == "freebsd":
            # rdr pass on $int_if inet proto tcp from any to any port 21 -> 127.0.0.1 port 8021
            yield f"rdr pass {what} from {clients or 'any'} to {to} port {FTP} -> {at.host} port {at.port}"
        else:
            # pass in quick on $int_if inet proto tcp to port 21 divert-to 127.0.0.1 port 8021
            source = f" from {clients}" if clients else ""
            called = f" to {to}" if to != "any" or source else " to"
            how = "divert-to" if kind == "divert" else "rdr-to"
            yield f"pass in quick {what}{source}{called} port {FTP} {how} {at.host} port {at.port}"


def _passes(service: ServiceConfig, dialect: Dialect) -> Iterator[str]:
    """What neither the redirection nor the anchor lets through."""
    if service.redirection_on(dialect) == "none":
        yield f"# {_title(service)}: clients call the proxy"
        for at in service.listen:
            yield from _called_directly(service, at)
    if servers := list(_servers(service)):
        yield f"# {_title(service)}: the proxy calls servers"
        yield from servers
    if "relay" in service.planes and (carried := list(_carried(service))):
        yield f"# {_title(service)}: data connections that the proxy carries itself"
        yield from carried


def _called_directly(service: ServiceConfig, at: Endpoint) -> Iterator[str]:
    interface = "$int_if" if service.mode == "gateway" else "$ext_if"
    if at.host.is_loopback or (clients := _clients(service, at.host.version)) is None:
        return
    source = f" from {clients}" if clients else ""
    to = f"({interface})" if at.host.is_unspecified else at.host
    # pass in on $ext_if inet proto tcp to 198.51.100.1 port 21
    yield f"pass in on {interface} {INET[at.host.version]} proto tcp{source} to {to} port {at.port}"


def _servers(service: ServiceConfig) -> Iterator[str]:
    if service.mode == "reverse":
        for server in service.servers:
            if not server.host.is_loopback:  # the server on this very host is behind `set skip`
                ours = _ours(service, "$int_if", server.host.version)
                what = f"{INET[server.host.version]} proto tcp"
                # pass out on $int_if inet proto tcp from ($int_if) to 10.1.0.20 port 21
                yield f"pass out on $int_if {what} from {ours} to {server.host} port {server.port}"
        return
    port = f" port {FTP}" if service.mode == "forward" else ""  # a client of gateway mode may name another one
    for version in _versions(service):
        # pass out on $ext_if inet proto tcp from ($ext_if) to any port 21
        yield f"pass out on $ext_if {INET[version]} proto tcp from {_ours(service, '$ext_if', version)} to any{port}"


def _carried(service: ServiceConfig) -> Iterator[str]:
    """Both ways at each end, as passive and active are.  In forward mode clients call and are called by others than us:
    those connections have rules of their own in the anchor."""
    ports = f"{service.data_ports.first}:{service.data_ports.last}"
    ends: list[tuple[str, int, str]] = []
    if service.mode == "reverse":
        for version in _versions(service):
            if (clients := _clients(service, version)) is not None:
                ends.append(("$ext_if", version, clients or "any"))
        ends += [
            ("$int_if", each.host.version, str(each.host)) for each in service.servers if not each.host.is_loopback
        ]
    else:
        ends += [("$ext_if", version, "any") for version in _versions(service)]
    if service.mode == "gateway":
        for version in _versions(service):
            if (clients := _clients(service, version)) is not None:
                ends.append(("$int_if", version, clients or "any"))
    for interface, version, others in ends:
        yield f"pass in on {interface} {INET[version]} proto tcp from {others} to ({interface}) port {ports}"
        yield f"pass out on {interface} {INET[version]} proto tcp from ({interface}) port {ports} to {others}"


def _tagged(config: Config) -> Iterator[str]:
    """With a tag the anchor leaves it to the ruleset to pass data connections."""
    tags = dict.fromkeys(service.pf.tag for service in config.services if service.pf.tag is not None)
    for tag in tags:
        yield f"pass in quick tagged {word(tag)}"
        yield f"pass out quick tagged {word(tag)}"


def _title(service: ServiceConfig) -> str:
    return f"service {service.name}, {service.mode} mode"


def _versions(service: ServiceConfig) -> list[int]:
    return sorted({at.host.version for at in service.listen})


def _ours(service: ServiceConfig, interface: str, version: int) -> str | IPAddress:
    """The address we call servers from."""
    source = service.source
    return source if source is not None and source.version == version else f"({interface})"


def _clients(service: ServiceConfig, version: int) -> str | None:
    """Who may come, as pf.conf says it; "" for everybody, None for nobody."""
    networks: list[IPNetwork] = [network for network in service.clients if network.version == version]
    if service.clients and not networks:
        return None
    names = [str(network) for network in collapse_addresses(networks)]  # type: ignore[type-var]  # of one family
    if not names or names[0] in EVERYTHING:
        return ""
    return names[0] if len(names) == 1 else f"{{ {', '.join(names)} }}"
