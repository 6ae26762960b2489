"""client | gateway | server: three network namespaces in a row, joined by two veth pairs.

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

__all__ = ["CLIENTS", "DIRECT", "GATEWAY_INSIDE", "GATEWAY_OUTSIDE", "SERVER", "Topology"]

DIRECT = "direct"
CLIENTS = {
    DIRECT: "10.83.1.10",
    "tproxy": "10.83.1.20",
    "redirect": "10.83.1.30",
    "none": "10.83.1.40",
    "kernel": "10.83.1.50",
}
GATEWAY_INSIDE = "10.83.1.1"
GATEWAY_OUTSIDE = "10.83.2.1"
SERVER = "10.83.2.2"

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

    def __init__(self, *, nat: bool, cores: Sequence[int] = ()) -> None:
        """`cores`: one each for the processes of client, gateway and server; none: where the scheduler puts them."""
        self._nat = nat
        spaces = [f"ftpb-{os.getpid()}-{who}" for who in ("client", "gateway", "server")]
        self.client, self.gateway, self.server = spaces
        self._cores = dict(zip(spaces, cores, strict=True)) if cores else {}

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
        for space in (self.client, self.gateway, self.server):
            run("ip", "netns", "add", space)
            run("ip", "-n", space, "link", "set", "lo", "up")
        for one, name, address, other, peer, peer_addresses in (
            (self.gateway, "to-client", GATEWAY_INSIDE, self.client, "eth0", list(CLIENTS.values())),
            (self.gateway, "to-server", GATEWAY_OUTSIDE, self.server, "eth0", [SERVER]),
        ):
            run("ip", "link", "add", name, "netns", one, "type", "veth", "peer", "name", peer, "netns", other)
            run("ip", "-n", one, "addr", "add", f"{address}/24", "dev", name)
            run("ip", "-n", one, "link", "set", name, "up")
            for peer_address in peer_addresses:
                run("ip", "-n", other, "addr", "add", f"{peer_address}/24", "dev", peer)
            run("ip", "-n", other, "link", "set", peer, "up")
            run("ip", "-n", other, "route", "add", "default", "via", address)
        self.sysctl(self.client, {"net.ipv4.ip_local_port_range": "1024 65535"})
        self.sysctl(self.gateway, {"net.ipv4.ip_forward": "1", "net.ipv4.ip_local_port_range": "30000 65535"})
        if self._nat:
            run(*self.inside(self.gateway, ["nft", "-f", "-"]), text=MASQUERADE)

    def shorten_conntrack(self) -> None:
        """To be called when the proxy's rules stand: before the first of them there may be no connection tracking."""
        run(*self.inside(self.gateway, ["sysctl", "-q", "-e", "-w", *(f"{k}={v}" for k, v in CONNTRACK.items())]))

    def conntrack_drops(self) -> int:
        """Packets that the gateway dropped because connection tracking had no room; 0 where it is not there."""
        try:
            table = run(*self.inside(self.gateway, ["cat", "/proc/net/stat/nf_conntrack"])).splitlines()
        except BenchError:
            return 0
        column = table[0].split().index("drop")
        return sum(int(row.split()[column], 16) for row in table[1:])

    def _remove(self) -> None:
        for space in (self.client, self.gateway, self.server):
            subprocess.run(["ip", "netns", "del", space], capture_output=True)

    def sysctl(self, space: str, values: dict[str, str]) -> None:
        run(*self.inside(space, ["sysctl", "-q", "-w", *(f"{key}={value}" for key, value in values.items())]))

    def inside(self, space: str, command: Sequence[str]) -> list[str]:
        """`command` inside the namespace; `ip` executes it, so the process id is the command's own."""
        core = self._cores.get(space)
        pinned = [] if core is None else ["taskset", "--cpu-list", str(core)]
        return ["ip", "netns", "exec", space, *pinned, *command]
