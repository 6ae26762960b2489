"""What no single value can tell: whether the values of a configuration fit together.

Each check yields the place and one sentence that says what to do about it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Network, IPv6Address, IPv6Network
from itertools import combinations

from ..endpoints import Endpoint, IPAddress
from ..pf.anchor import RuleOptions, problems
from ..pi.filter import UNTRANSLATED, verbs_of
from ..pi.policy import IPNetwork, Policy
from .reading import Found, Where
from .tables import ServiceTable
from .values import Announce, AnnounceFrom, GatewayConfig, PfConfig, ServiceConfig

__all__ = ["check_service", "check_together", "collide"]

FLOORS = {"idle": (300.0, "5m"), "data_setup": (30.0, "30s"), "noop": (30.0, "30s"), "keepalive": (1.0, "1s")}
"""Seconds below which a time breaks honest peers: RFC 1123 section 4.1.3.2 (a server waits five minutes for the next
command, so must we) and RFC 6384 section 12 (half a minute for a data connection to come up)."""

MOST_SESSIONS = 1_000_000
"""A session needs descriptors, and the kernel has no more for a process (fs.nr_open)."""


MOST_KEEPALIVE = 32767.0
"""Seconds (Linux: MAX_TCP_KEEPIDLE in net/tcp.h)."""

LEAST_REFRESH = 1.0
"""Seconds: nameservers would not like it more often."""

MOST_PATIENCE = 1_000_000
"""More than any session would do."""


def family(host: IPAddress) -> str:
    return f"IPv{host.version}"


def check_service(service: ServiceTable) -> Iterator[Found]:
    """Places are relative to the service."""
    yield from _numbers(service)
    yield from _policies(service)
    yield from _rules(service)
    yield from _listeners(service)
    yield from _mode(service)
    yield from _gateway(service)
    yield from _addresses(service)
    if not service.planes:
        yield ("planes",), 'is empty: nothing would carry the data connections; use ["relay"]'
    for index, plane in enumerate(service.planes):
        if plane in service.planes[:index]:
            yield ("planes", index), f'"{plane}" is there already'
        elif "relay" in service.planes[:index]:
            yield ("planes", index), f'"{plane}" is never asked: "relay" carries everything'
    yield from _pf(service)


def _rules_of(pf: PfConfig) -> RuleOptions:
    """Where no dialect is known, that of fewer restrictions."""
    return pf.rules or RuleOptions(dialect="freebsd", tag=pf.tag, queue=pf.queue, log=pf.log, rtable=pf.rtable)


def _pf(service: ServiceTable) -> Iterator[Found]:
    if service.pf == PfConfig():
        return
    if "pf" not in service.planes:
        yield ("pf",), 'is about the plane "pf", which is not in planes'
    for key, why in problems(_rules_of(service.pf)):
        yield ("pf", key), why


def _numbers(service: ServiceTable) -> Iterator[Found]:
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", service.name):
        yield ("name",), "is 1 to 64 of the letters A to Z and a to z, digits, and _ . -"
    for name in ("sessions", "per_client"):
        if not 1 <= getattr(service.limits, name) <= MOST_SESSIONS:
            yield ("limits", name), f"{getattr(service.limits, name)} is not a number from 1 to {MOST_SESSIONS}"
    if service.announce_refresh < LEAST_REFRESH:
        yield ("announce_refresh",), f'is at least "{LEAST_REFRESH:g}s"'
    if service.limits.keepalive > MOST_KEEPALIVE:
        yield ("limits", "keepalive"), f'is at most "{MOST_KEEPALIVE:g}s": no system waits longer'
    for name, (floor, text) in FLOORS.items():
        value = getattr(service.limits, name)
        if value is not None and value < floor:
            yield ("limits", name), f'is at least "{text}": less breaks honest peers'


def _policies(service: ServiceTable) -> Iterator[Found]:
    policies: list[tuple[Where, Policy]] = [(("policy",), service.policy)]
    policies += [(("rule", index), rule) for index, rule in enumerate(service.rule)]
    for where, policy in policies:
        yield from ((where + place, reason) for place, reason in _policy(policy))
        for profile in ("read_only", "anonymous_only"):
            if getattr(policy, profile) and service.tls.mode == "pass":
                yield (*where, profile), 'needs [service.tls] mode = "refuse": TLS that passes unread is not filtered'


def _policy(policy: Policy) -> Iterator[Found]:
    if not 1 <= policy.min_data_port <= 65535:
        yield ("min_data_port",), f"{policy.min_data_port} is not a port from 1 to 65535"
    for port in sorted(policy.deny_data_ports):
        if not 1 <= port <= 65535:
            yield ("deny_data_ports",), f"{port} is not a port from 1 to 65535"
    for name in ("login_attempts", "unknown_verbs"):
        if not 1 <= getattr(policy, name) <= MOST_PATIENCE:
            yield (name,), f"{getattr(policy, name)} is not a number from 1 to {MOST_PATIENCE}"
    for index, rule in enumerate(policy.commands):
        if rule.allow and (verbs := verbs_of(rule.command)) and verbs <= UNTRANSLATED:
            yield (
                ("commands", index, "allow"),
                f"{rule.command} cannot be allowed: the addresses that it is about would not be translated",
            )
        for earlier in policy.commands[:index]:
            if earlier.argument is None and earlier.command == rule.command:
                yield ("commands", index), f"is never reached: an earlier rule decides about every {rule.command}"
                break


def _rules(service: ServiceTable) -> Iterator[Found]:
    yield from _networks("rule", [rule.clients for rule in service.rule])
    yield from _networks("announce_to", [each.clients for each in service.announce_to])
    for number, each in enumerate(service.announce_to):
        if each.client is None and each.server is None:
            yield ("announce_to", number), "tells nobody anything: give client or server"


def _networks(table: str, clients: Sequence[Sequence[IPNetwork]]) -> Iterator[Found]:
    """Of tables among which the first with the client's network is taken."""
    earlier: list[tuple[int, IPNetwork]] = []
    for number, networks in enumerate(clients):
        if not networks:
            reason = f'is empty: name the networks that the {table} is for, as in ["10.0.0.0/8"]'
            yield (table, number, "clients"), reason
        for index, network in enumerate(networks):
            covering = [each for each in earlier if _covers(each[1], network)]
            if covering:
                where = f"{covering[0][1]} of {table}[{covering[0][0]}]"
                yield (table, number, "clients", index), f"is never reached: {where} comes first"
        earlier += [(number, network) for network in networks]


def _covers(one: IPNetwork, other: IPNetwork) -> bool:
    if isinstance(one, IPv4Network):
        return isinstance(other, IPv4Network) and other.subnet_of(one)
    return isinstance(other, IPv6Network) and other.subnet_of(one)


def _listeners(service: ServiceTable) -> Iterator[Found]:
    if not service.listen:
        yield ("listen",), 'is empty: name at least one address, as in ["127.0.0.1:8021"]'
    for index, at in enumerate(service.listen):
        where = ("listen", index)
        earlier = [each for each in service.listen[:index] if each.host.version == at.host.version]
        if at.port == 0:
            yield where, "port 0 is no port to listen on"
        if at.host.is_multicast:
            yield where, f"{at.host} is a multicast address"
        if service.intercept == "tproxy":
            if at.host.is_unspecified:
                # `socket transparent` would match every packet to this port (nft(8), "socket expression")
                yield where, f'a "tproxy" listener has a specific address, such as 127.0.0.1 or ::1, not {at.host}'
            if earlier:
                yield where, f'"tproxy" leads to one listener a family, and {earlier[0]} is there already'
        if service.intercept in ("rdr", "divert"):
            if at.host.is_unspecified:
                yield where, f'"{service.intercept}" leads to one address, such as 127.0.0.1, not to {at.host}'
            if service.intercept == "rdr" and at.host == IPv6Address(1):
                yield where, '"rdr" never leads to ::1: it is dropped behind pf; listen at an inside address'
            if earlier:
                yield where, f'"{service.intercept}" leads to one listener a family, and {earlier[0]} is there already'
        if service.intercept == "redirect":
            if at.host.is_loopback:
                instead = "0.0.0.0" if at.host.version == 4 else "[::]"
                yield where, f'"redirect" never leads to {at.host}; listen at an inside address or {instead}'
            if earlier and earlier[0].port != at.port:
                yield where, f'"redirect" leads to one port a family, and {earlier[0]} is there already'


def _gateway(service: ServiceTable) -> Iterator[Found]:
    if service.mode != "gateway":
        if service.gateway != GatewayConfig():
            yield ("gateway",), "belongs to gateway mode"
        return
    if service.intercept != "none":
        yield ("intercept",), 'gateway mode needs "none": clients call the proxy and name the server'
    if service.servers:
        yield ("servers",), "belongs to reverse mode; in gateway mode the client names the server"
    for index, (name, server) in enumerate(service.gateway.hosts):
        where = ("gateway", "hosts", index)
        if name in [each.name for each in service.gateway.hosts[:index]]:
            yield where, f"{name} is there already"
        if server.port == 0 or server.host.is_unspecified or server.host.is_multicast:
            yield where, f"{server} is no server to call"
        if server in service.listen:
            yield where, "the service would call itself"


def _mode(service: ServiceTable) -> Iterator[Found]:
    if service.mode == "gateway":
        return
    if service.mode == "forward":
        if service.intercept == "none":
            yield (
                ("intercept",),
                'forward mode needs "auto" or a redirection by name: else nobody knows whom the client dialled',
            )
        if service.servers:
            yield ("servers",), "belongs to reverse mode; in forward mode the client chooses the server"
        return
    if not service.servers:
        yield ("servers",), 'reverse mode needs the server to call, as in ["10.0.0.5:21"]'
    seen: dict[int, Endpoint] = {}
    for index, server in enumerate(service.servers):
        first = seen.setdefault(server.host.version, server)
        if first is not server:
            yield ("servers", index), f"one server of each family, and {first} is there already"
        if server.port == 0:
            yield ("servers", index), "port 0 is no port to call"
        if server.host.is_unspecified or server.host.is_multicast:
            yield ("servers", index), f"{server.host} is no address to call"
        if server in service.listen:
            yield ("servers", index), "the service would call itself"
    for index, at in enumerate(service.listen):
        if seen and at.host.version not in seen:
            yield ("listen", index), f"no {family(at.host)} server is configured for this listener to call"


def _addresses(service: ServiceTable) -> Iterator[Found]:
    versions = {at.host.version for at in service.listen}
    singles: list[tuple[Where, IPAddress | AnnounceFrom | None]] = [(("source",), service.source)]
    told: list[tuple[Where, Announce]] = [(("announce",), service.announce)]
    told += [(("announce_to", number), each) for number, each in enumerate(service.announce_to)]
    for where, announce in told:
        singles += [((*where, "client"), announce.client), ((*where, "server"), announce.server)]
    for where, address in singles:
        if address is None or isinstance(address, AnnounceFrom):
            continue
        if address.is_unspecified or address.is_multicast:
            yield where, f"{address} is not the address of a host"
        elif versions and address.version not in versions:
            yield where, f"{address} is {family(address)}, but the service listens on no {family(address)} address"
    for index, network in enumerate(service.clients):
        if versions and network.version not in versions:
            yield ("clients", index), f"{network} is IPv{network.version}, but the service listens on no such address"


def collide(one: Endpoint, other: Endpoint) -> bool:
    """Whether nobody can listen at both."""
    same = one.host == other.host or one.host.is_unspecified or other.host.is_unspecified
    return same and one.port == other.port and one.host.version == other.host.version


def check_together(services: Sequence[tuple[int, ServiceConfig]]) -> Iterator[Found]:
    """Between all services, each with its number in the file.  Places are absolute."""
    listeners = [
        (("service", number, "listen", index), at, service)
        for number, service in services
        for index, at in enumerate(service.listen)
    ]
    for (_, first, owner), (where, second, _) in combinations(listeners, 2):
        if collide(first, second):
            yield where, f'{second} collides with {first} of service "{owner.name}"'
    for number, service in services:
        for _, at, owner in listeners:
            if service.data_ports.first <= at.port <= service.data_ports.last:
                yield ("service", number, "data_ports"), f'contains the port of {at}, where "{owner.name}" listens'
    names: dict[str, int] = {}
    for number, service in services:
        if names.setdefault(service.name, number) != number:
            yield ("service", number, "name"), f'"{service.name}" is the name of service[{names[service.name]}] already'
