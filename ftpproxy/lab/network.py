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
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from enum import Enum
from ipaddress import ip_interface
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

from attrs import define, field, frozen

from ..endpoints import Endpoint, parse_address

__all__ = ["DATA_PORTS", "Gateway", "Host", "Lab", "LabError", "Loopback", "Topology", "enter_sandbox", "sweep"]

PREFIX = "ftpx"
DATA_PORTS = "20000-29999"
"""What a gateway's firewall lets in for the proxy, beside port 21."""

SANDBOX = "FTPPROXY_LAB_SANDBOX"
"""Set in the environment of a process that runs below `unshare`."""

_numbers = itertools.count(1)


class LabError(Exception):
    """The lab cannot be built or used here; the text says what failed and what the system said."""


class Topology(Enum):
    """Where address translation happens."""

    CLIENT_NAT = "client behind NAT"
    SERVER_NAT = "server behind NAT"
    BOTH_NAT = "both behind NAT"
    PLAIN = "no NAT"

    def __str__(self) -> str:
        return self.value


@frozen
class Interface:
    """An interface with its addresses, one of each family, and the gateway behind it if there is one."""

    name: str
    ipv4: str
    ipv6: str
    via: tuple[str, ...] = ()
    """Next hops of default routes."""

    def address(self, version: int) -> str:
        return str(ip_interface(self.ipv4 if version == 4 else self.ipv6).ip)

    def network(self, version: int) -> str:
        return str(ip_interface(self.ipv4 if version == 4 else self.ipv6).network)


CLIENT_INSIDE = Interface("eth0", "10.77.1.2/24", "fd77:1::2/64", ("10.77.1.1", "fd77:1::1"))
CLIENT_OUTSIDE = Interface("eth0", "198.51.100.10/24", "2001:db8:100::10/64")
CLIENT_LAN = Interface("lan", "10.77.1.1/24", "fd77:1::1/64")
CLIENT_WAN = Interface("wan", "198.51.100.1/24", "2001:db8:100::1/64")
SERVER_WAN = Interface("wan", "198.51.100.2/24", "2001:db8:100::2/64")
SERVER_LAN = Interface("lan", "10.77.2.1/24", "fd77:2::1/64")
SERVER_INSIDE = Interface("eth0", "10.77.2.21/24", "fd77:2::21/64", ("10.77.2.1", "fd77:2::1"))
SERVER_OUTSIDE = Interface("eth0", "198.51.100.21/24", "2001:db8:100::21/64")
SERVER_ROUTED = Interface("eth0", "198.51.100.21/24", "2001:db8:100::21/64", ("198.51.100.1", "2001:db8:100::1"))


@define(eq=False)
class Host:
    """A machine of the lab: one namespace."""

    name: str
    """`client`, `server`, `client-gateway` or `server-gateway`."""
    namespace: str
    interfaces: tuple[Interface, ...]
    children: list[subprocess.Popen[Any]] = field(factory=list, repr=False)

    def address(self, version: int) -> str:
        """Its IPv4 (4) or IPv6 (6) address; of a gateway the one outside."""
        return self.interfaces[-1].address(version)

    def command(self, *argv: str) -> list[str]:
        """`argv` as a command to be run on this host, for any way of starting processes (ip-netns(8))."""
        return ["ip", "netns", "exec", self.namespace, *argv]

    def run(self, *argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """`subprocess.run` on this host: text, output captured, unless `options` say otherwise."""
        if "stdout" not in options and "stderr" not in options:
            options.setdefault("capture_output", True)
        options.setdefault("text", True)
        completed: subprocess.CompletedProcess[str] = subprocess.run(self.command(*argv), **options)
        return completed

    def popen(self, *argv: str, **options: Any) -> subprocess.Popen[str]:
        """`subprocess.Popen` on this host, in text.  It is killed when the lab ends, if not before."""
        options.setdefault("text", True)
        child: subprocess.Popen[str] = subprocess.Popen(self.command(*argv), **options)
        self.children.append(child)
        return child

    def set_up(self) -> None:
        """Addresses, routes and kernel settings.  Raises `LabError`."""
        lines = ["for dad in /proc/sys/net/ipv6/conf/*/accept_dad; do echo 0 > $dad; done"]
        if isinstance(self, Gateway):
            lines += [
                "echo 1 > /proc/sys/net/ipv4/ip_forward",
                "echo 1 > /proc/sys/net/ipv6/conf/all/forwarding",
            ]
        lines += ["ip -batch - <<'END'", "link set lo up"]
        for interface in self.interfaces:
            lines += [
                f"address add {interface.ipv4} dev {interface.name}",
                f"address add {interface.ipv6} dev {interface.name} nodad",
                f"link set {interface.name} up",
                *(f"route add default via {hop} dev {interface.name}" for hop in interface.via),
            ]
        lines.append("END")
        self._sh("\n".join(lines))

    def _sh(self, script: str) -> None:
        done = self.run("sh", "-e", input=script)
        if done.returncode or done.stderr:
            raise LabError(f"setting up {self.name} failed: {done.stderr.strip()}")


@define(eq=False)
class Gateway(Host):
    """A router between `lan` (the first interface) and `wan` (the last), with its administrator's nftables."""

    nat: bool = True
    inward: Interface | None = None
    """The server to which port 21 is mapped."""

    def inside_address(self, version: int) -> str:
        """Its address on `lan`."""
        return self.interfaces[0].address(version)

    def inside_network(self, version: int) -> str:
        """The network on `lan`, as `10.77.1.0/24`."""
        return self.interfaces[0].network(version)

    def ruleset(self, *, proxied: bool = False, data_ports: str = DATA_PORTS) -> str:
        """The administrator's nftables; with `proxied`, as he changes them when the proxy moves in."""
        if not self.nat:
            return ""
        mapped, welcome = "", ""
        if self.inward is not None and not proxied:
            mapped = f"""
        meta nfproto ipv4 iifname "wan" tcp dport 21 dnat ip to {self.inward.address(4)}
        meta nfproto ipv6 iifname "wan" tcp dport 21 dnat ip6 to {self.inward.address(6)}"""
        if proxied:
            ports = f"21, {data_ports}" if self.inward is not None else data_ports
            welcome = f"""
        iifname "wan" tcp dport {{ {ports} }} accept"""
        return f"""
table inet nat {{
    chain prerouting {{
        type nat hook prerouting priority dstnat; policy accept;{mapped}
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        oifname "wan" masquerade
    }}
}}
table inet filter {{
    chain input {{
        type filter hook input priority filter; policy drop;
        ct state established,related accept
        iifname {{ "lo", "lan" }} accept
        meta l4proto {{ icmp, ipv6-icmp }} accept{welcome}
    }}
    chain forward {{
        type filter hook forward priority filter; policy drop;
        ct state established,related accept
        iifname "lan" accept
        ct status dnat accept
    }}
}}
"""

    def set_up(self) -> None:
        super().set_up()
        self._load(self.ruleset())

    def make_way(self, data_ports: str = DATA_PORTS) -> None:
        """Change the administrator's tables as the proxy needs them: no port 21 mapped inward, `data_ports` let in."""
        emptied = "".join(f"table inet {name}\ndelete table inet {name}\n" for name in ("nat", "filter"))
        if self.nat:
            self._load(emptied + self.ruleset(proxied=True, data_ports=data_ports))

    def _load(self, ruleset: str) -> None:
        if ruleset:
            self._sh(f"nft -f - <<'END'\n{ruleset}\nEND\n")


class Loopback(Host):
    """This machine as it is, for where no namespaces can be had: commands run here."""

    def __init__(self) -> None:
        super().__init__("this machine", "", (Interface("lo", "127.0.0.1/8", "::1/128"),))

    def command(self, *argv: str) -> list[str]:
        return list(argv)


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
            signal.signal(number, signal.SIG_IGN)  # a second SIGTERM must not interrupt the clearing up
        _delete([host.namespace for host in self.hosts])
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


def _delete(names: list[str]) -> None:
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
    _delete(dead)
    return dead


_PRELUDE = """
mount -t tmpfs tmpfs /run
mkdir /run/netns
exec "$@"
"""


def enter_sandbox() -> None:
    """Return when this process may make namespaces; where it may not, run the whole command again where it may.

    Root needs nothing.  Anybody else becomes root of a user namespace of his own (unshare(1), `-Urnm`), with a
    private /run for ip-netns(8); this function does not return then.  Raises `LabError` where neither is possible.
    """
    path = os.environ.get("PATH", os.defpath).split(os.pathsep)
    # An ordinary user of Debian has no sbin in the path, where nft(8) lives.
    os.environ["PATH"] = os.pathsep.join(path + [extra for extra in ("/usr/sbin", "/sbin") if extra not in path])
    missing = [tool for tool in ("ip", "nft") if shutil.which(tool) is None]
    if missing:
        raise LabError(f"the lab needs {' and '.join(missing)}: install iproute2 and nftables")
    probe = f"{PREFIX}-{os.getpid()}-0-probe"
    # All that a lab does and that a container may forbid; /proc/sys is often read-only there.
    inside = "nft list ruleset && echo 1 > /proc/sys/net/ipv4/ip_forward"
    script = f"ip netns add {probe} && ip netns exec {probe} sh -c '{inside}' && ip netns delete {probe}"
    why = ""
    if os.geteuid() == 0:
        trial = subprocess.run(["sh", "-c", script], text=True, capture_output=True)
        if trial.returncode == 0:
            return
        _delete([probe])
        why = trial.stderr.strip()
    if SANDBOX not in os.environ and shutil.which("unshare") is not None:
        unshare = ["unshare", "-Urnm", "sh", "-e", "-c", _PRELUDE, "sh"]
        trial = subprocess.run([*unshare, "sh", "-c", script], text=True, capture_output=True)
        if trial.returncode == 0:
            os.environ[SANDBOX] = "1"
            sys.stdout.flush()
            sys.stderr.flush()
            os.execvp("unshare", [*unshare, sys.executable, *sys.orig_argv[1:]])
        why = why or trial.stderr.strip()
    raise LabError(
        f"this system does not let us make network namespaces, as root or by unshare -Urnm ({why or 'not root'})"
    )
