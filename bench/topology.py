"""client | gateway | server: three network namespaces in a row, joined by two veth pairs.

For the kernel plane there is a second gateway beside the first, with interfaces of its own at both ends, that does
nothing but masquerade.

The client has one address for each way to the server, so that the ways can be measured in turn with the proxy and
its rules in place all the time: the rules of a service match its own client address only.  It is also what keeps
their TIME_WAIT sockets apart, for a transparent socket in TIME_WAIT on the gateway would swallow the packets of a
direct connection with the same four numbers.

What is set differs from the defaults where a default would be measured instead of the proxy, in the namespaces only:

* client: `ip_local_port_range` 1024-65535, because all sessions come from one address;
* gateway: `ip_local_port_range` 30000-65535, below it the proxy has its data ports;
* gateway: connection tracking forgets ended connections after 2 s instead of 120 s.  The table is shared with the whole
  machine, and at thousands of sessions a second it would be full within the minute.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from types import TracebackType

from .tools import BenchError

__all__ = [
    "BARE",
    "CLIENTS",
    "DIRECT",
    "GATEWAY_INSIDE",
    "GATEWAY_OUTSIDE",
    "NULL",
    "PLAIN",
    "PLAIN_CLIENTS",
    "PLAIN_OUTSIDE",
    "PLAIN_SERVER",
    "SERVER",
    "Topology",
]

DIRECT = "direct"
BARE = "bare"
"""Through a process that only hands octets on."""
PLAIN = "plain"
"""By way of the second gateway."""
NULL = "null"
"""Likewise, from another address."""
CLIENTS = {
    DIRECT: "10.83.1.10",
    "tproxy": "10.83.1.20",
    "redirect": "10.83.1.30",
    "none": "10.83.1.40",
    "kernel": "10.83.1.50",
    BARE: "10.83.1.60",
}
GATEWAY_INSIDE = "10.83.1.1"
GATEWAY_OUTSIDE = "10.83.2.1"
SERVER = "10.83.2.2"
PLAIN_INSIDE = "10.83.3.1"
PLAIN_OUTSIDE = "10.83.4.1"
PLAIN_SERVER = "10.83.4.2"
PLAIN_CLIENTS = {PLAIN: "10.83.3.10", NULL: "10.83.3.20"}

CONNTRACK = {
    f"net.netfilter.nf_conntrack_tcp_timeout_{state}": "2"
    for state in ("time_wait", "close", "close_wait", "last_ack", "fin_wait")
}

MASQUERADE = """
table ip bench {
    chain postrouting {
        type nat hook postrouting priority srcnat; policy accept;
        oifname "to-server" masquerade
    }
}
"""


def run(*command: str, text: str | None = None) -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    if done.returncode:
        raise BenchError(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")
    return done.stdout


class Topology:
    """A context manager; leaving it removes the namespaces, which takes everything inside them along."""

    def __init__(self, *, nat: bool, plain: bool = False, cores: Sequence[int] = ()) -> None:
        """`nat`: the gateway masquerades.  `plain`: there is a second gateway, that does nothing else.  `cores`: one
        each for the processes of client, gateway and server; none: where the scheduler puts them."""
        self._nat = nat
        self._spaces = [f"ftpb-{os.getpid()}-{who}" for who in ("client", "gateway", "server", "plain")]
        self.client, self.gateway, self.server, self.plain = self._spaces
        if not plain:
            self._spaces.remove(self.plain)
        self._cores = dict(zip(self._spaces, cores, strict=False))

    def __enter__(self) -> Topology:
        try:
            self._build()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def _build(self) -> None:
        for space in self._spaces:
            run("ip", "netns", "add", space)
            run("ip", "-n", space, "link", "set", "lo", "up")
        self.sysctl(self.client, {"net.ipv4.ip_local_port_range": "1024 65535"})
        self._join(self.gateway, "eth0", GATEWAY_INSIDE, list(CLIENTS.values()), GATEWAY_OUTSIDE, SERVER, "default")
        self.sysctl(self.gateway, {"net.ipv4.ip_local_port_range": "30000 65535"})
        if self.plain in self._spaces:
            clients = list(PLAIN_CLIENTS.values())
            self._join(self.plain, "eth1", PLAIN_INSIDE, clients, PLAIN_OUTSIDE, PLAIN_SERVER, PLAIN_SERVER)
        run("ip", "-n", self.server, "route", "add", "default", "via", GATEWAY_OUTSIDE)

    def _join(
        self, gateway: str, name: str, inside: str, clients: Sequence[str], outside: str, server: str, there: str
    ) -> None:
        """Client, `gateway` and server: interfaces called `name` at the ends, and the client's route to `there`."""
        for link, address, peer, peer_addresses in (
            ("to-client", inside, self.client, clients),
            ("to-server", outside, self.server, [server]),
        ):
            run("ip", "link", "add", link, "netns", gateway, "type", "veth", "peer", "name", name, "netns", peer)
            run("ip", "-n", gateway, "addr", "add", f"{address}/24", "dev", link)
            run("ip", "-n", gateway, "link", "set", link, "up")
            for peer_address in peer_addresses:
                run("ip", "-n", peer, "addr", "add", f"{peer_address}/24", "dev", name)
            run("ip", "-n", peer, "link", "set", name, "up")
        run("ip", "-n", self.client, "route", "add", there, "via", inside)
        self.sysctl(gateway, {"net.ipv4.ip_forward": "1"})
        if self._nat:
            run(*self.inside(gateway, ["nft", "-f", "-"]), text=MASQUERADE)

    def shorten_conntrack(self) -> None:
        """To be called when the proxy's rules stand: before the first of them there may be no connection tracking."""
        for gateway in {self.gateway, self.plain}.intersection(self._spaces):
            run(*self.inside(gateway, ["sysctl", "-q", "-e", "-w", *(f"{k}={v}" for k, v in CONNTRACK.items())]))

    def steer(self, ends: int | None, gateways: int | None) -> bool:
        """Have packets that arrive at client and server, and at the gateways, handled on that core, as if these were
        machines (Documentation/networking/scaling.rst, RPS); None: where they were sent.  False where the kernel does
        not let us: it asks for CAP_NET_ADMIN outside of all namespaces."""
        for space in self._spaces:
            core = gateways if space in (self.gateway, self.plain) else ends
            mask = 0 if core is None else 1 << core
            command = f"for queue in /sys/class/net/*/queues/rx-0/rps_cpus; do echo {mask:x} > $queue || exit; done"
            if subprocess.run(self.inside(space, ["sh", "-c", command]), capture_output=True).returncode:
                return False
        return True

    def conntrack_drops(self) -> int:
        """Packets that the gateway dropped because connection tracking had no room; 0 where it is not there."""
        try:
            table = run(*self.inside(self.gateway, ["cat", "/proc/net/stat/nf_conntrack"])).splitlines()
        except BenchError:
            return 0
        column = table[0].split().index("drop")
        return sum(int(row.split()[column], 16) for row in table[1:])

    def evidence(self) -> str:
        """What the three kernels have counted, for whoever has to explain a failure."""
        told = ""
        for space in self._spaces:
            command = ["sh", "-c", "nstat -as; cat /proc/net/stat/nf_conntrack"]
            done = subprocess.run(
                self.inside(space, command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            told += f"--- {space}\n{done.stdout}"
        return told

    def _remove(self) -> None:
        for space in self._spaces:
            subprocess.run(["ip", "netns", "del", space], capture_output=True)

    def sysctl(self, space: str, values: dict[str, str]) -> None:
        run(*self.inside(space, ["sysctl", "-q", "-w", *(f"{key}={value}" for key, value in values.items())]))

    def inside(self, space: str, command: Sequence[str]) -> list[str]:
        """`command` inside the namespace; `ip` executes it, so the process id is the command's own."""
        core = self._cores.get(space)
        pinned = [] if core is None else ["taskset", "--cpu-list", str(core)]
        return ["ip", "netns", "exec", space, *pinned, *command]
