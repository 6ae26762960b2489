"""The proxy on a gateway of the lab, run as an administrator runs it: a file, `check`, `rules --apply`, `serve`."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Self

from ..endpoints import Endpoint
from .hosts import DATA_PORTS, Gateway, Host, LabError, Passed, Stacked
from .peers import environment

__all__ = ["Proxy", "forward", "reverse"]

PATIENCE = 30.0
"""Seconds within which the proxy must listen, and must end when asked to."""
PATIENCE_FOR_LOG = 5.0
"""Seconds within which the last lines of the log must be there."""
LISTEN = "0A"
"""TCP_LISTEN as /proc/net/tcp writes it (proc_pid_net(5), include/net/tcp_states.h)."""


def forward(gateway: Gateway, intercept: str, *more: str, planes: Iterable[str] = ("relay",)) -> str:
    """The file for the clients' gateway; `more` are further lines of its `[[service]]`."""
    # redirect leads to the address of the interface that the client came in by, so the listener is there.
    at = [gateway.inside_address(4), f"[{gateway.inside_address(6)}]"] if intercept == "redirect" else _LOOPBACK
    lines = [
        "[[service]]",
        'name = "lan"',
        'mode = "forward"',
        f"listen = {_array(f'{host}:8021' for host in at)}",
        f'intercept = "{intercept}"',
        f"clients = {_array(gateway.inside_network(version) for version in (4, 6))}",
        f"planes = {_array(planes)}",
        f'data_ports = "{DATA_PORTS}"',
    ]
    return "\n".join([*lines, *more]) + "\n"


def reverse(listen: Iterable[str], servers: Iterable[str], *more: str, planes: Iterable[str] = ("relay",)) -> str:
    """The file for the server's gateway, which takes the server's place at its public address."""
    lines = [
        "[[service]]",
        'name = "server"',
        'mode = "reverse"',
        f"listen = {_array(listen)}",
        'intercept = "none"',
        f"servers = {_array(servers)}",
        f"planes = {_array(planes)}",
        f'data_ports = "{DATA_PORTS}"',
    ]
    return "\n".join([*lines, *more]) + "\n"


_TRANSFER = re.compile(r"^\S+ info transfer .* plane=(\w+) ", re.MULTILINE)
_LOOPBACK = ["127.0.0.1", "[::1]"]


def _array(words: Iterable[str]) -> str:
    return "[" + ", ".join(f'"{word}"' for word in words) + "]"


class Proxy(Stacked):
    """The proxy on `host` with `config` (TOML), between `with` and the end of the block.

    Raises `LabError`, with what the command said, if it is refused or does not come up.
    """

    def __init__(self, host: Host, config: str) -> None:
        self.host = host
        self.config = config
        self.process: subprocess.Popen[str]
        self.file = Path()
        self.socket = Path()
        """Its control socket."""
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ftpproxy-lab-")))
            self.file = folder / "ftpproxy.toml"
            given = tomllib.loads(self.config).get("control", {}).get("socket")
            self.socket = Path(given or folder / "control")
            self.file.write_text(self.config if given else f'{self.config}\n[control]\nsocket = "{self.socket}"\n')
            self._log = stack.enter_context((folder / "log").open("w+"))
            self.command("check", "-c", str(self.file))
            if isinstance(self.host, Gateway):
                self.make_way()
                stack.callback(self.command, "rules", "-c", str(self.file), "--remove")
                self.command("rules", "-c", str(self.file), "--apply")
            self.start()
            stack.callback(self.stop)
            self._stack = stack.pop_all()
        return self

    def start(self) -> None:
        """Run it, until it listens.  Raises `LabError`."""
        self._began = len(self.log)
        self.process = self.host.popen(
            *_FTPPROXY, "serve", "-c", str(self.file), stdout=self._log, stderr=self._log, env=environment()
        )
        try:
            self._await_listeners()
        except BaseException:
            self.stop()
            raise

    @property
    def log(self) -> str:
        """What the proxy wrote so far."""
        return Path(self.file.parent, "log").read_text()

    @property
    def planes(self) -> set[str]:
        """Those that any of its services may use."""
        services = tomllib.loads(self.config)["service"]
        return {plane for service in services for plane in service.get("planes", ["relay"])}

    def make_way(self) -> None:
        """Change the firewall of its gateway as it needs it: where the kernel is to carry everything, it is shut for
        everything else, so nothing that was relayed or went past can be taken for carried."""
        if isinstance(self.host, Gateway):
            self.host.make_way(carried=self.planes == {"nft"})

    def passed(self) -> Passed | None:
        """What the kernel carried, as the gateway's firewall counted it; None where that lets others through too."""
        if isinstance(self.host, Gateway) and self.host.nat and self.planes == {"nft"}:
            return self.host.passed()
        return None

    def carried(self, transfers: int, octets: int = 0) -> bool:
        """Whether it logs that many transfers, all on its planes, and the firewall has counted as many calls, and
        `octets`, where the kernel is to carry all of them.  Waits a moment for the last lines."""
        deadline = time.monotonic() + PATIENCE_FOR_LOG
        while len(planes := _TRANSFER.findall(self.log)) < transfers:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        passed = self.passed()
        counted = passed is None or (passed.calls >= transfers and passed.octets >= octets)
        return self.planes.issuperset(planes) and counted

    def command(self, *argv: str) -> str:
        """The output of `ftpproxy ARGV` on its host.  Raises `LabError` if it fails."""
        done = self.host.run(*_FTPPROXY, *argv, env=environment())
        if done.returncode:
            said = (done.stderr or done.stdout).strip()
            raise LabError(f"ftpproxy {argv[0]} on {self.host.name} ended with {done.returncode}: {said}")
        return done.stdout

    def _await_listeners(self) -> None:
        wanted = {
            Endpoint.parse(text) for service in tomllib.loads(self.config)["service"] for text in service["listen"]
        }
        deadline = time.monotonic() + PATIENCE
        # It listens first and loads its table then: only "ready" says that everything stands.
        while not (" info ready " in self.log[self._began :] and wanted <= self._listening()):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise LabError(f"ftpproxy serve on {self.host.name} does not listen:\n{self.log.strip()}")
            time.sleep(0.01)

    def _listening(self) -> set[Endpoint]:
        """Where anybody listens in the namespace that the process is in, once it is in the right one."""
        proc = Path("/proc", str(self.process.pid))
        try:
            if self.host.namespace and (proc / "ns/net").stat().st_ino != (
                Path("/run/netns", self.host.namespace).stat().st_ino
            ):
                return set()
            lines = [
                line.split() for name in ("tcp", "tcp6") for line in (proc / "net" / name).read_text().splitlines()
            ]
        except OSError:
            return set()  # it ended; the caller looks
        return {_endpoint(line[1]) for line in lines if line[3] == LISTEN}

    def stop(self) -> None:
        """End it.  Raises `LabError`."""
        self.process.send_signal(signal.SIGINT)  # SIGTERM would let transfers finish
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise LabError(f"ftpproxy serve on {self.host.name} did not end at SIGINT") from None


_FTPPROXY = (sys.executable, "-m", "ftpproxy")


def _endpoint(text: str) -> Endpoint:
    """`0100007F:1F55`: 32-bit words in the machine's order, each in hexadecimal."""
    host, port = text.split(":")
    words = bytes.fromhex(host)
    if sys.byteorder == "little":
        words = b"".join(words[at : at + 4][::-1] for at in range(0, len(words), 4))
    kind = IPv4Address if len(words) == 4 else IPv6Address
    return Endpoint(kind(words), int(port, 16))
