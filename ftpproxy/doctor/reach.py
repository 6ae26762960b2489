"""The addresses of the configuration, ours and those that we announce, and the servers behind them."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from ipaddress import ip_network

import trio

from ..announce import File, Interface, Name, Source, Unknown
from ..config.values import AnnounceFrom, ServiceConfig
from ..endpoints import Endpoint, IPAddress
from ..sockets import family
from ..wire.proxyheader import build
from .finding import Finding, Severity
from .machine import Machine

__all__ = ["announced", "own_addresses", "servers"]

SECONDS = 5.0
"""For a server to be reached, and to greet."""
LONGEST = 4096
PRIVATE = [ip_network(text) for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")]
"""RFC 1918, RFC 6598, RFC 4193: called from outside by nobody."""


def _private(host: IPAddress) -> bool:
    return any(host in network for network in PRIVATE)


def _clients_inside(service: ServiceConfig, version: int) -> bool:
    """Whether all clients have private addresses."""
    networks = [each for each in service.clients if each.version == version]
    return bool(networks) and all(_private(each.network_address) for each in networks)


def own_addresses(machine: Machine) -> Iterator[Finding]:
    """What the proxy binds to is there."""
    for service in machine.config.services:
        for key, host in [*(("listen", at.host) for at in service.listen), ("source", service.source)]:
            if host is not None and not machine.ours(host):
                yield Finding(
                    Severity.HURTS,
                    "address",
                    f"{host} is not an address of this machine, but {key} names it",
                    "The service cannot start." if key == "listen" else "No server can be called from there.",
                    f"ip address add {host}/{host.max_prefixlen} dev INTERFACE    # or another {key}",
                    service.name,
                )


def announced(machine: Machine) -> Iterator[Finding]:
    """What the two sides are told instead of our address can be called, as far as it can be seen from here."""
    for service in machine.config.services:
        told = [
            (side, where)
            for each in (service.announce, *service.announce_to)
            for side, where in (("client", each.client), ("server", each.server))
            if where is not None
        ]
        for side, where in told:
            if not isinstance(where, AnnounceFrom):
                yield from _plausible(machine, service, side, where)
            elif where.kind != "own":
                yield from _from_source(machine, service, side, where)
        if service.mode == "reverse" and not any(side == "client" for side, _ in told):
            yield from _own_is_private(service)


def _from_source(machine: Machine, service: ServiceConfig, side: str, where: AnnounceFrom) -> Iterator[Finding]:
    kinds: dict[str, type[Interface | Name | File]] = {"interface": Interface, "name": Name, "file": File}
    source: Source = kinds[where.kind](where.what)
    try:
        found = trio.run(source.look)
    except Unknown as error:
        yield Finding(
            Severity.HURTS,
            "announce",
            f"the address for {side}s has no answer from {where}: {error}",
            f"The {side}s are told this machine's own address instead, until there is one.",
            f'announce = {{ {side} = "ADDRESS" }}    # or mend {where}',
            service.name,
        )
        return
    for version in sorted({at.host.version for at in service.listen}):
        if (first := next((host for host in found if host.version == version), None)) is not None:
            yield from _plausible(machine, service, side, first)


def _plausible(machine: Machine, service: ServiceConfig, side: str, host: IPAddress) -> Iterator[Finding]:
    mend = f'announce = {{ {side} = "ADDRESS" }}    # the public one'
    if host.is_loopback or host.is_link_local:
        yield Finding(
            Severity.HURTS,
            "announce",
            f"{side}s are told {host}, which no other machine can call",
            "The data connection is called for at the machine that calls.",
            mend,
            service.name,
        )
    elif (
        _private(host) and not machine.ours(host) and not (side == "client" and _clients_inside(service, host.version))
    ):
        yield Finding(
            Severity.WORTH_KNOWING,
            "announce",
            f"{side}s are told {host}, a private address that is not this machine's",
            f"Only {side}s in the same private network can call it.",
            mend,
            service.name,
        )


def _own_is_private(service: ServiceConfig) -> Iterator[Finding]:
    for at in service.listen:
        if at.host.version == 4 and _private(at.host) and not _clients_inside(service, 4):
            yield Finding(
                Severity.WORTH_KNOWING,
                "announce",
                f"clients are told {at.host}, a private address",
                "If another NAT stands before this machine, clients outside cannot call that.",
                'announce = { client = "ADDRESS" }    # the public one',
                service.name,
            )


def servers(machine: Machine) -> Iterator[Finding]:
    """Each server of a reverse service can be called and greets with 220."""
    for service in machine.config.services:
        if service.source is not None and not machine.ours(service.source):
            continue  # a finding already
        for server in service.servers:
            if not machine.is_us(server) and (problem := _greeting(service, server)):
                yield Finding(
                    Severity.HURTS,
                    "server",
                    f"the server {server} {problem}",
                    "Clients are answered 421 instead of a greeting.",
                    f'servers = ["{server}"]    # is that it, and does it run?',
                    service.name,
                )


def _greeting(service: ServiceConfig, server: Endpoint) -> str:
    """What is wrong with the greeting of `server`; empty if nothing."""
    source = service.source if service.source is not None and service.source.version == server.host.version else None
    with socket.socket(family(server.host), socket.SOCK_STREAM) as sock:
        sock.settimeout(SECONDS)
        said = b""
        try:
            if source is not None:
                sock.bind((str(source), 0))
            sock.connect(server.sockaddr())
            if service.send_proxy != "off":
                sock.sendall(build(service.send_proxy, Endpoint.from_sockaddr(sock.getsockname()), server))
            while b"\n" not in said and len(said) < LONGEST and (octets := sock.recv(LONGEST)):
                said += octets
            sock.sendall(b"QUIT\r\n")
        except TimeoutError:
            return (
                f"says nothing within {SECONDS:g} s"
                if said or _connected(sock)
                else f"does not answer within {SECONDS:g} s"
            )
        except OSError as error:
            if not said:
                return f"cannot be called: {error.strerror}"
    line = said.split(b"\n")[0].decode(errors="replace").strip()
    if line.startswith(("220", "120")):
        return ""
    return f"does not greet with 220: {line[:60]!r}" if line else "ends the connection without a greeting"


def _connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True
