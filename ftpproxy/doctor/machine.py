"""What this machine says of itself: /proc, addresses and routes, and the program nft.  Everything here only looks."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping
from functools import cached_property
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

from attrs import frozen

from ..config.values import Config
from ..endpoints import Endpoint, IPAddress, parse_address
from ..nathook import UNREADABLE, without
from ..rules import FAMILIES, PATH
from .finding import CannotLook
from .ruleset import Ruleset

__all__ = ["Machine", "Process", "Socket", "run", "words"]

LISTEN = "0A"
"""TCP_LISTEN in /proc/net/tcp (proc_pid_net(5))."""
CAP_NET_BIND_SERVICE, CAP_NET_ADMIN, CAP_NET_RAW = 10, 12, 13
CAP_SYS_PTRACE, CAP_SYS_RESOURCE = 19, 24
"""linux/capability.h"""
RTN_UNICAST, RTN_LOCAL = 1, 2
"""linux/rtnetlink.h"""


@frozen
class Socket:
    """One that listens."""

    at: Endpoint
    inode: int


class Process:
    """A process of this machine, `self` or its number."""

    def __init__(self, number: str) -> None:
        self.number = number
        self._place = Path("/proc", number)

    @property
    def words(self) -> str:
        """Its command line."""
        return self._read("cmdline").replace("\0", " ").strip() or self._read("comm").strip()

    def may(self, capability: int) -> bool:
        """Whether the capability is in its effective set."""
        lines = self._read("status").splitlines()
        return bool(next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff:")) >> capability & 1)

    def descriptors(self) -> tuple[int, int]:
        """Its limits of open files, soft and hard."""
        line = next(line for line in self._read("limits").splitlines() if line.startswith("Max open files"))
        soft, hard = (sys.maxsize if word == "unlimited" else int(word) for word in line.split()[3:5])
        return soft, hard

    def _read(self, name: str) -> str:
        try:
            return (self._place / name).read_text(errors="replace")
        except OSError as error:
            raise CannotLook(f"process {self.number}: {error.strerror}") from None


class Machine:
    """One look at this network namespace; what was looked at once is not looked at again."""

    def __init__(self, config: Config, file: str) -> None:
        self.config = config
        self.file = file

    # -- /proc ----------------------------------------------------------------------------------------------------

    def sysctl(self, name: str) -> str | None:
        """The value of `net/ipv4/...`; None where the kernel has no such thing.  Raises `CannotLook`."""
        try:
            return Path("/proc/sys", name).read_text().strip()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CannotLook(f"{name.replace('/', '.')}: {error.strerror}") from None

    @cached_property
    def listeners(self) -> list[Socket]:
        """All TCP sockets that listen.  Raises `CannotLook`."""
        found = []
        for name in ("tcp", "tcp6"):
            try:
                lines = Path("/proc/net", name).read_text().splitlines()[1:]
            except FileNotFoundError:
                continue  # a kernel without IPv6
            except OSError as error:
                raise CannotLook(f"/proc/net/{name}: {error.strerror}") from None
            for line in lines:
                columns = line.split()
                if columns[3] == LISTEN:
                    found.append(Socket(_endpoint(columns[1]), int(columns[9])))
        return found

    def listener(self, at: Endpoint) -> Socket | None:
        """The socket that takes what comes to `at`, also one on the wildcard address."""
        here = [each for each in self.listeners if each.at.port == at.port]
        exact = [each for each in here if each.at.host == at.host]
        # A wildcard socket of IPv6 commonly takes IPv4 too.
        wild = [each for each in here if each.at.host.is_unspecified and each.at.host.version >= at.host.version]
        return next(iter(exact + wild), None)

    @cached_property
    def owners(self) -> Mapping[int, Process]:
        """Who holds which listening socket, by inode, as far as we may see that."""
        wanted = {f"socket:[{each.inode}]": each.inode for each in self.listeners}
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            try:
                for descriptor in os.scandir(process / "fd"):
                    if (inode := wanted.get(os.readlink(descriptor.path))) is not None:
                        found[inode] = Process(process.name)
            except OSError:
                continue  # it ended, or it is not ours to look into
        return found

    def is_proxy(self, sock: Socket) -> bool:
        """Whether a proxy holds it, going by the words of its command line.  Raises `CannotLook`."""
        owner = self.owners.get(sock.inode)
        if owner is None and not Process("self").may(CAP_SYS_PTRACE):
            raise CannotLook("whose a listening socket is, only root may see")
        return owner is not None and "ftpproxy" in owner.words

    @cached_property
    def server(self) -> Process | None:
        """The process that serves a listener of the configuration, if there is one.  Raises `CannotLook`."""
        for service in self.config.services:
            for at in service.listen:
                sock = self.listener(at)
                if sock is not None and self.is_proxy(sock):
                    return self.owners[sock.inode]
        return None

    def counter(self, name: str) -> int:
        """A `TcpExt` counter of /proc/net/netstat; 0 where it does not count."""
        try:
            names, values, *_ = Path("/proc/net/netstat").read_text().splitlines()
        except OSError:
            return 0
        return int(dict(zip(names.split(), values.split(), strict=False)).get(name, 0))

    # -- addresses and routes -------------------------------------------------------------------------------------

    @cached_property
    def addresses(self) -> list[tuple[str, IPAddress]]:
        """Interface and address, one for each address of ours.  Raises `CannotLook`."""
        with _routing() as ip:
            names = {link["index"]: str(link.get_attr("IFLA_IFNAME")) for link in ip.get_links()}
            messages = list(ip.get_addr())
        return [
            (names.get(each["index"], ""), parse_address(each.get_attr("IFA_LOCAL") or each.get_attr("IFA_ADDRESS")))
            for each in messages
        ]

    def ours(self, host: IPAddress) -> bool:
        """Whether a call to `host` ends at this machine, as 127.0.0.2 does too.  Raises `CannotLook`."""
        return host.is_unspecified or host.is_loopback or any(host == address for _, address in self.addresses)

    def is_us(self, server: Endpoint) -> bool:
        """Whether a call to `server` comes to a listener of the configuration.  Raises `CannotLook`."""
        return any(
            at.port == server.port
            and (at.host == server.host or (at.host.is_unspecified and at.host.version == server.host.version))
            for service in self.config.services
            for at in service.listen
        ) and self.ours(server.host)

    def way(self, host: IPAddress, mark: int = 0) -> tuple[str, bool]:
        """The interface by which packets to `host` leave, or whether they end here; ("", False): neither.

        Raises `CannotLook`.
        """
        from pyroute2.netlink.exceptions import NetlinkError

        with _routing() as ip:
            marked: dict[str, Any] = {"mark": mark} if mark else {}
            try:
                answers = list(ip.route("get", family=FAMILIES[host.version], dst=str(host), **marked))
            except NetlinkError:
                return "", False
        if not answers:
            return "", False
        if answers[0]["type"] != RTN_UNICAST:  # broadcast, the anycast address of an IPv6 network, ...
            return "", answers[0]["type"] == RTN_LOCAL
        index = answers[0].get_attr("RTA_OIF")
        return (socket.if_indextoname(index) if index else ""), False

    # -- the packet filter ----------------------------------------------------------------------------------------

    @cached_property
    def ruleset(self) -> Ruleset:
        """Raises `CannotLook`."""
        texts = [self.nft("-j", *listed) for listed in without(self.nft("list", "tables"))]
        try:
            return Ruleset(*texts)
        except ValueError:
            raise CannotLook(UNREADABLE) from None

    def nft(self, *options: str, text: str | None = None) -> str:
        """The output of nft.  Raises `CannotLook`: no right to, no program, or what the program complained of."""
        program = shutil.which("nft", path=PATH)
        if program is None:
            raise CannotLook("the program nft is not installed")
        if not Process("self").may(CAP_NET_ADMIN):
            raise CannotLook("reading the packet filter needs CAP_NET_ADMIN; run this as root")
        done = run([program, *options], text)
        if done.returncode:
            raise CannotLook(f"nft: {' '.join(done.stderr.split())}")
        return done.stdout


def run(argv: list[str], text: str | None = None) -> subprocess.CompletedProcess[str]:
    """`argv` run to its end, with C for its messages."""
    return subprocess.run(
        argv,
        input=text,
        stdin=subprocess.DEVNULL if text is None else None,
        capture_output=True,
        text=True,
        errors="replace",
        env={**os.environ, "LC_ALL": "C"},
        check=False,
    )


def _routing() -> Any:
    from pyroute2 import IPRoute

    try:
        return IPRoute()
    except OSError as error:
        raise CannotLook(f"addresses and routes: {error.strerror}") from None


def _endpoint(text: str) -> Endpoint:
    """`0100007F:1F55`: 32-bit words in the machine's order, each in hexadecimal."""
    host, port = text.split(":")
    words = bytes.fromhex(host)
    if sys.byteorder == "little":
        words = b"".join(words[at : at + 4][::-1] for at in range(0, len(words), 4))
    kind = IPv4Address if len(words) == 4 else IPv6Address
    return Endpoint(kind(words), int(port, 16))


def words(values: Iterable[Any]) -> str:
    """`a, b and c`."""
    *front, last = map(str, values)
    return f"{', '.join(front)} and {last}" if front else last
