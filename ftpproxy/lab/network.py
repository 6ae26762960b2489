"""The lab's network: a chain of namespaces that breaks FTP the way networks in the field do.

    CLIENT_NAT   client --- lan [gateway] wan --- server
    SERVER_NAT   client --- wan [gateway] lan --- server
    BOTH_NAT     client --- lan [gateway] wan --- wan [gateway] lan --- server
    PLAIN        client --- lan [router]  wan --- server

A host has one interface, `eth0`; a gateway has `lan` and `wan`.  Inside a NAT stand private addresses (RFC 1918,
RFC 4193) and a default route to the gateway; outside stand documentation prefixes (RFC 5737, RFC 3849) and no
route to anything private.  Each gateway runs what an administrator would have written: `table inet nat` with
masquerading (and, before a server, port 21 mapped inward) for both families, and `table inet filter` that drops
unknown calls from outside without an answer.  No kernel FTP helper is assigned, so nothing but the proxy mends FTP.

Everything is made by ip(8) and nft(8) in namespaces named `ftpx-PID-N-HOST`; the interfaces are born inside them, so
the machine's own namespace is never touched.  `Lab.__exit__` kills what runs in the namespaces and deletes them;
SIGTERM and SIGHUP are turned into `SystemExit` while a lab stands, so that it happens then too.  What a killed
process left is removed by `sweep`.
"""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

from ..endpoints import Endpoint, parse_address
from .hosts import Gateway, Host, Interface, LabError

__all__ = ["PREFIX", "Gateway", "Host", "Lab", "LabError", "Topology", "delete", "sweep"]

PREFIX = "ftpx"

_numbers = itertools.count(1)


class Topology(Enum):
    """Where address translation happens."""

    CLIENT_NAT = "client behind NAT"
    SERVER_NAT = "server behind NAT"
    BOTH_NAT = "both behind NAT"
    PLAIN = "no NAT"

    def __str__(self) -> str:
        return self.value


CLIENT_INSIDE = Interface("eth0", "10.77.1.2/24", "fd77:1::2/64", ("10.77.1.1", "fd77:1::1"))
CLIENT_OUTSIDE = Interface("eth0", "198.51.100.10/24", "2001:db8:100::10/64")
CLIENT_LAN = Interface("lan", "10.77.1.1/24", "fd77:1::1/64")
CLIENT_WAN = Interface("wan", "198.51.100.1/24", "2001:db8:100::1/64")
SERVER_WAN = Interface("wan", "198.51.100.2/24", "2001:db8:100::2/64")
SERVER_LAN = Interface("lan", "10.77.2.1/24", "fd77:2::1/64")
SERVER_INSIDE = Interface("eth0", "10.77.2.21/24", "fd77:2::21/64", ("10.77.2.1", "fd77:2::1"))
SERVER_OUTSIDE = Interface("eth0", "198.51.100.21/24", "2001:db8:100::21/64")
SERVER_ROUTED = Interface("eth0", "198.51.100.21/24", "2001:db8:100::21/64", ("198.51.100.1", "2001:db8:100::1"))


class Lab:
    """One network, from `with Lab(topology) as lab:` to the end of the block.  Raises `LabError` if it cannot be."""

    client: Host
    server: Host
    gateways: Mapping[str, Gateway]
    """`client` and `server`, as far as they exist; the router of PLAIN is `client`."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        base = f"{PREFIX}-{os.getpid()}-{next(_numbers)}"
        behind = {
            "client": topology in (Topology.CLIENT_NAT, Topology.BOTH_NAT, Topology.PLAIN),
            "server": topology in (Topology.SERVER_NAT, Topology.BOTH_NAT),
        }
        reachable = SERVER_ROUTED if topology is Topology.PLAIN else SERVER_OUTSIDE
        self.client = Host("client", f"{base}-client", (CLIENT_INSIDE if behind["client"] else CLIENT_OUTSIDE,))
        self.server = Host("server", f"{base}-server", (SERVER_INSIDE if behind["server"] else reachable,))
        gateways = {}
        if behind["client"]:
            gateways["client"] = Gateway(
                "client-gateway", f"{base}-cgw", (CLIENT_LAN, CLIENT_WAN), nat=topology is not Topology.PLAIN
            )
        if behind["server"]:
            gateways["server"] = Gateway(
                "server-gateway", f"{base}-sgw", (SERVER_LAN, SERVER_WAN), inward=SERVER_INSIDE
            )
        self.gateways = gateways
        self._signals: dict[signal.Signals, Any] = {}

    @property
    def hosts(self) -> list[Host]:
        """All machines, from the client to the server."""
        return [self.client, *self.gateways.values(), self.server]

    def server_address(self, version: int) -> str:
        """What the client dials: the server's own address or the one its gateway has outside."""
        return self.gateways.get("server", self.server).address(version)

    @property
    def dialled(self) -> dict[int, Endpoint]:
        """Where the client finds the server, by version."""
        return {version: Endpoint(parse_address(self.server_address(version)), 21) for version in (4, 6)}

    def _links(self) -> Iterator[tuple[Host, str, Host, str]]:
        for left, right in itertools.pairwise(self.hosts):
            left_end = "wan" if left is self.gateways.get("client") else "eth0"
            right_end = {"client-gateway": "lan", "server-gateway": "wan"}.get(right.name, "eth0")
            yield left, "lan" if left is self.gateways.get("server") else left_end, right, right_end

    def __enter__(self) -> Self:
        self._guard()
        try:
            lines = [f"netns add {host.namespace}" for host in self.hosts]
            lines += [
                # Numbers that differ: between ends of one number the kernel takes up to a second to see the carrier
                # (linkwatch_urgent_event in net/core/link_watch.c).
                f"link add name {left_end} netns {left.namespace} index {2 * number}"
                f" type veth peer name {right_end} netns {right.namespace} index {2 * number + 1}"
                for number, (left, left_end, right, right_end) in enumerate(self._links(), 10)
            ]
            _ip(lines)
            for host in self.hosts:
                host.set_up()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill what runs in the namespaces and delete them.  Idempotent."""
        for number in self._signals:
            signal.signal(number, signal.SIG_IGN)  # a second one must not interrupt the clearing up, nor end ip(8)
        for host in self.hosts:
            for child in host.children:
                child.kill()  # it may be on its way into the namespace still, where `delete` would not find it
        delete([host.namespace for host in self.hosts])
        for host in self.hosts:
            for child in host.children:
                child.wait()
                for stream in (child.stdin, child.stdout, child.stderr):
                    if stream is not None:
                        stream.close()
            host.children.clear()
        for number, previous in self._signals.items():
            signal.signal(number, previous)
        self._signals.clear()

    def _guard(self) -> None:
        """Let SIGTERM and SIGHUP unwind the stack, where they would have ended the process at once."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                self._signals[number] = signal.signal(number, _unwind)
        self._signals[signal.SIGINT] = signal.getsignal(signal.SIGINT) or signal.SIG_DFL  # which unwinds already


def _unwind(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _ip(lines: list[str], *options: str) -> None:
    """ip(8) with a batch; `-force` among `options` goes on after failures."""
    try:
        done = subprocess.run(
            ["ip", *options, "-batch", "-"], input="\n".join(lines) + "\n", text=True, capture_output=True
        )
    except FileNotFoundError:
        raise LabError("the lab needs ip(8): install iproute2") from None
    if done.returncode and "-force" not in options:
        raise LabError(f"ip(8) could not build the network: {done.stderr.strip()}")


def _namespaces() -> list[str]:
    return sorted(path.name for path in Path("/run/netns").glob(f"{PREFIX}-*"))


def delete(names: list[str]) -> None:
    """Kill what runs in these namespaces, as far as they exist, and delete them."""
    there = [name for name in names if Path("/run/netns", name).exists()]
    for name in there:
        listed = subprocess.run(["ip", "netns", "pids", name], text=True, capture_output=True)
        for pid in listed.stdout.split():
            try:
                os.kill(int(pid), signal.SIGKILL)
            except ProcessLookupError:
                pass  # it ended by itself
    if there:
        _ip([f"netns delete {name}" for name in there], "-force")


def sweep() -> list[str]:
    """Delete namespaces whose maker is gone (it was killed), and return their names."""
    dead = []
    for name in _namespaces():
        match = re.match(rf"{PREFIX}-(\d+)-", name)
        if match and not Path("/proc", match[1]).exists():
            dead.append(name)
    delete(dead)
    return dead
