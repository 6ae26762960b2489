"""The machines of the lab: a host is a namespace with interfaces, a gateway one with NAT and a firewall besides."""

from __future__ import annotations

import json
import subprocess
from contextlib import ExitStack
from ipaddress import ip_interface
from types import TracebackType
from typing import Any

from attrs import define, field, frozen

__all__ = ["DATA_PORTS", "Gateway", "Host", "Interface", "LabError", "Loopback", "Passed", "Stacked"]

DATA_PORTS = "20000-29999"
"""What a gateway's firewall lets in for the proxy, beside port 21."""
CALLS, OCTETS = "data_calls", "data_octets"
"""The counters of a gateway that lets through nothing but what the kernel carries."""

EVIDENCE = (
    "nft list table inet ftpproxy",
    "cat /proc/net/nf_conntrack /proc/net/stat/nf_conntrack",
    "ss --tcp --all --numeric --options",
    "nstat --json --ignore --noupdate",
    "ip neighbour",
)
"""Commands that tell what happened; what a host lacks says so itself."""


class LabError(Exception):
    """The lab cannot be built or used here; the text says what failed and what the system said."""


class Stacked:
    """Something of the lab that goes, last things first, at the end of its `with`."""

    _stack: ExitStack

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


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


@frozen
class Passed:
    """What the forward chain of a gateway let through that lets through nothing but what the kernel carries."""

    calls: int
    """First packets of connections; one that is sent again counts again."""
    octets: int
    """Of all packets behind the first, headers included."""

    def __sub__(self, other: Passed) -> Passed:
        return Passed(self.calls - other.calls, self.octets - other.octets)


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
        """`subprocess.run` on this host: text, output captured, and out of reach of the terminal's Ctrl-C (which
        comes to us, and we end what we started), unless `options` say otherwise."""
        options.setdefault("start_new_session", True)
        if "stdout" not in options and "stderr" not in options:
            options.setdefault("capture_output", True)
        options.setdefault("text", True)
        completed: subprocess.CompletedProcess[str] = subprocess.run(self.command(*argv), **options)
        return completed

    def popen(self, *argv: str, **options: Any) -> subprocess.Popen[str]:
        """`subprocess.Popen` on this host: text, out of reach of the terminal's Ctrl-C, unless `options` say
        otherwise.  It is killed when the lab ends, if not before."""
        options.setdefault("start_new_session", True)
        options.setdefault("text", True)
        child: subprocess.Popen[str] = subprocess.Popen(self.command(*argv), **options)
        self.children.append(child)
        return child

    def evidence(self) -> str:
        """What its kernel knows of connections, for whoever has to explain a failure: our table, conntrack with its
        counters (`insert_failed`, `clashres`, `invalid`, `drop`), sockets, and what TCP and IP have counted."""
        done = self.run("sh", "-x", input="\n".join(EVIDENCE), stderr=subprocess.STDOUT, stdout=subprocess.PIPE)
        return f"--- evidence of {self.name}\n{done.stdout}"

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

    def ruleset(self, *, proxied: bool = False, carried: bool = False, data_ports: str = DATA_PORTS) -> str:
        """The administrator's nftables; with `proxied`, as he changes them when the proxy moves in.

        With `carried`, too, he has the kernel carry all data connections and lets nothing else through: no data port is
        open, nobody inside may call anybody outside, and what passes is counted (`passed`).
        """
        if not self.nat:
            return ""
        mapped, welcome, counters = "", "", ""
        if self.inward is not None and not proxied:
            mapped = f"""
        meta nfproto ipv4 iifname "wan" tcp dport 21 dnat ip to {self.inward.address(4)}
        meta nfproto ipv6 iifname "wan" tcp dport 21 dnat ip6 to {self.inward.address(6)}"""
        ports = ["21"] if self.inward is not None else []
        ports += [] if carried else [data_ports]
        if proxied and ports:
            welcome = f"""
        iifname "wan" tcp dport {{ {", ".join(ports)} }} accept"""
        through = """
        ct state established,related accept
        iifname "lan" accept
        ct status dnat accept"""
        if carried:
            counters = f"""
    counter {CALLS} {{}}
    counter {OCTETS} {{}}"""
            through = f"""
        ct state established,related counter name {OCTETS} accept
        ct status dnat counter name {CALLS} accept"""
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
table inet filter {{{counters}
    chain input {{
        type filter hook input priority filter; policy drop;
        ct state established,related accept
        iifname {{ "lo", "lan" }} accept
        meta l4proto {{ 1, 58 }} accept comment "ICMP; a minimal system knows no names"{welcome}
    }}
    chain forward {{
        type filter hook forward priority filter; policy drop;{through}
    }}
}}
"""

    def set_up(self) -> None:
        super().set_up()
        self._load(self.ruleset())

    def make_way(self, data_ports: str = DATA_PORTS, *, carried: bool = False) -> None:
        """Change the administrator's tables as the proxy needs them: no port 21 mapped inward, `data_ports` let in; or,
        with `carried`, no port let in, and nothing through but data connections that the kernel carries."""
        emptied = "".join(f"table inet {name}\ndelete table inet {name}\n" for name in ("nat", "filter"))
        if self.nat:
            self._load(emptied + self.ruleset(proxied=True, carried=carried, data_ports=data_ports))

    def passed(self) -> Passed:
        """What went through the forward chain since `make_way(carried=True)`.  Raises `LabError` without that."""
        listed = self.run("nft", "-j", "list", "counters", "table", "inet", "filter")
        if listed.returncode:
            raise LabError(f"{self.name} tells no counters: {listed.stderr.strip()}")
        counters = [item["counter"] for item in json.loads(listed.stdout)["nftables"] if "counter" in item]
        found = {counter["name"]: counter for counter in counters}
        if not found:
            raise LabError(f"the forward chain of {self.name} lets through more than what the kernel carries")
        return Passed(found[CALLS]["packets"], found[OCTETS]["bytes"])

    def _load(self, ruleset: str) -> None:
        if ruleset:
            self._sh(f"nft -f - <<'END'\n{ruleset}\nEND\n")


class Loopback(Host):
    """This machine as it is, for where no namespaces can be had: commands run here."""

    def __init__(self) -> None:
        super().__init__("this machine", "", (Interface("lo", "127.0.0.1/8", "::1/128"),))

    def command(self, *argv: str) -> list[str]:
        return list(argv)
