"""The drop-in personality: what ftp-proxy(8)'s flags say, as the configuration that a file would say.

    -b 127.0.0.1 -p 8021 -R 10.0.0.5 -r -m 200   ->   Flags   ->   Config with one service "ftp-proxy"

Each flag sets one field, and what has no flag is as in a file that does not mention it, except for `BASE`, where the
original's behaviour is known and different.  `ftpproxy --show` prints the result as a file, to go on from there.

Source: ftp-proxy(8) of OpenBSD 7.6.  What is different on purpose: docs/ftp-proxy.md.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Literal

from attrs import evolve, frozen

from .config.values import Config, Level, Limits, LogConfig, PfConfig, ServiceConfig
from .endpoints import Endpoint, IPAddress, parse_address
from .pf.anchor import RuleOptions, native_dialect, problems
from .pi.policy import Policy, Timeouts
from .sockets import family
from .table import may_load

__all__ = ["NO_IDLE_LIMIT", "BadFlag", "CannotResolve", "Flags", "configuration", "ignored"]

NAME = "ftp-proxy"
FTP = 21
NO_IDLE_LIMIT = 365 * 24 * 3600.0
"""A year: the longest that a file can say.  For `-t 0`."""
MOST_SESSIONS = 1_000_000

BASE = Policy(port_address="override", greeting="lenient")
"""As ftp-proxy(8) does: PORT may carry any address and the client's own is used; any server's words are passed on."""

LEVELS: tuple[Level, ...] = (*("critical",) * 3, "error", "warning", "notice", "info", "debug")
"""By syslog priority, 0 to 7 (syslog(3))."""


class BadFlag(Exception):
    """A flag that cannot be: the text names it and says what it may be."""


class CannotResolve(Exception):
    """The name of `-R` has no address now."""


@frozen(kw_only=True)
class Flags:
    """The line as it was written, with the original's defaults."""

    ipv6: bool = False
    anonymous_only: bool = False
    source: IPAddress | None = None
    listen: Sequence[IPAddress] = ()
    """Empty: loopback, of the family that `ipv6` says."""
    debug_level: int = 5
    foreground: bool = False
    max_sessions: int = 100
    server_port: int = FTP
    port: int = 8021
    queue: str | None = None
    servers: Sequence[str] = ()
    """Addresses or names; empty: forward mode."""
    active_port_20: bool = False
    tag: str | None = None
    timeout: int = 86400
    verbose: int = 0


def configuration(flags: Flags, platform: str = sys.platform) -> Config:
    """What `flags` say on a system (`sys.platform`).  Names are looked up.

    Raises `BadFlag` where they do not fit together, `CannotResolve`."""
    hosts = flags.listen or ((IPv6Address(1),) if flags.ipv6 else (IPv4Address("127.0.0.1"),))
    _check(flags, hosts)
    log = LogConfig(level=LEVELS[flags.debug_level], format="classic" if flags.foreground else "classic-syslog")
    return Config(services=(_service(flags, hosts, platform),), log=log)


def _check(flags: Flags, hosts: Sequence[IPAddress]) -> None:
    if flags.ipv6:
        for option, address in (*(("-b", host) for host in hosts), ("-a", flags.source)):
            if address is not None and address.version == 4:
                raise BadFlag(f"{option} {address} is IPv4, and -6 asks for IPv6; without -6, -b may name both")
    for index, host in enumerate(hosts):
        if host in hosts[:index]:
            raise BadFlag(f"-b {host} is there twice")
    if flags.source is not None and flags.source.version not in {host.version for host in hosts}:
        raise BadFlag(f"-a {flags.source} is of another family than the address to listen at ({hosts[0]})")


def _service(flags: Flags, hosts: Sequence[IPAddress], platform: str) -> ServiceConfig:
    service = ServiceConfig(
        name=NAME,
        mode="reverse" if flags.servers else "forward",
        listen=tuple(Endpoint(host, flags.port) for host in hosts),
        intercept="auto",
        servers=_servers(flags, hosts),
        planes=_planes(platform),
        pf=_pf(flags, platform),
        source=flags.source,
        active_source_port=20 if flags.active_port_20 else 0,
        policy=BASE,
        limits=Limits(sessions=flags.max_sessions, per_client=MOST_SESSIONS),
        timeouts=Timeouts(idle=float(flags.timeout) or NO_IDLE_LIMIT),
    )
    if flags.anonymous_only:  # TLS that passes unread would not be looked at
        service = evolve(service, policy=evolve(BASE, anonymous_only=True, tls="refuse"))
    return service


def _planes(platform: str) -> tuple[Literal["nft", "pf", "relay"], ...]:
    if native_dialect(platform) is not None:
        return ("pf", "relay")
    return ("nft", "relay") if platform == "linux" and may_load() else ("relay",)


def ignored(flags: Flags, platform: str = sys.platform) -> list[str]:
    """The flags that mean nothing on a system."""
    words = {"-q": flags.queue, "-T": flags.tag, "-v": flags.verbose}
    return [word for word, value in words.items() if value] if native_dialect(platform) is None else []


def _pf(flags: Flags, platform: str) -> PfConfig:
    dialect = native_dialect(platform)
    if dialect is None:
        return PfConfig()
    log: dict[int, Literal[0, 1, 2]] = {0: 0, 1: 1, 2: 2}
    options = PfConfig(tag=flags.tag, queue=flags.queue, log=log[flags.verbose])
    for key, why in problems(RuleOptions(dialect=dialect, tag=options.tag, queue=options.queue, log=options.log)):
        raise BadFlag(f"{'-T' if key == 'tag' else '-q'} {getattr(options, key)} {why}")
    return options


def _servers(flags: Flags, hosts: Sequence[IPAddress]) -> tuple[Endpoint, ...]:
    """One server for each family that we listen in, the first that the names of `-R` have."""
    if not flags.servers:
        return ()
    found = [address for name in flags.servers for address in _addresses(name)]
    servers = []
    for version in dict.fromkeys(host.version for host in hosts):
        same = [address for address in found if address.version == version]
        if not same:
            raise BadFlag(
                f"-R {' -R '.join(flags.servers)}: no IPv{version} address, but -b listens at one"
                if flags.listen or flags.ipv6
                else f"-R {' -R '.join(flags.servers)}: no IPv4 address; -6 asks for IPv6"
            )
        servers.append(Endpoint(same[0], flags.server_port))
        if servers[-1] in [Endpoint(host, flags.port) for host in hosts]:
            raise BadFlag(f"-R {same[0]} at port {flags.server_port} is where -b and -p listen: it would call itself")
    return tuple(servers)


def _addresses(name: str) -> list[IPAddress]:
    try:
        return [parse_address(name)]
    except ValueError:
        pass
    try:
        answers = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        why = error.strerror if isinstance(error, socket.gaierror) else "it is no host name"
        raise CannotResolve(f"-R {name}: {why}") from None
    known = [family(IPv4Address(0)), family(IPv6Address(0))]
    return [parse_address(answer[4][0]) for answer in answers if answer[0] in known]
