"""The proxy where it is deployed: before clients with NAT (tproxy, redirect), or before a server (reverse)."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Self

from attrs import frozen

from ftpproxy.lab.network import Gateway, Host, Lab, Topology
from ftpproxy.lab.proxy import Proxy, forward, reverse

from .clients import Site
from .servers import FtpServer

__all__ = ["KINDS", "Deployment", "State", "Transfer", "state", "until"]

KINDS = ("tproxy", "redirect", "reverse")
SETTLE_SECONDS = 5


@frozen
class State:
    """What could be left behind on a gateway."""

    sockets: tuple[str, ...]
    """TCP sockets that somebody holds, TIME_WAIT excepted: that is the kernel's."""
    rules: str
    """The whole ruleset, elements included, counters and remaining times left out."""


@frozen
class Transfer:
    """What the proxy's log says of one."""

    plane: str
    octets: int
    result: str


def state(gateway: Host) -> State:
    lines = gateway.run("ss", "--no-header", "--tcp", "--numeric", "--all", check=True).stdout.splitlines()
    held = sorted(" ".join(line.split()[0:1] + line.split()[3:5]) for line in lines if not line.startswith("TIME-WAIT"))
    return State(tuple(held), gateway.run("nft", "--stateless", "list", "ruleset", check=True).stdout)


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for `condition`, which the kernel or another process will make true soon.  Raises `AssertionError`."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not within {SETTLE_SECONDS} s: {what}"
        time.sleep(0.02)  # between two looks


class Deployment:
    """A lab of one kind, the proxy on its gateway, and one server.

    Another server gets another lab: vsftpd, at whose port 20 another program left a connection in TIME_WAIT, dies.
    """

    def __init__(self, kind: str, server: str | None, *more: str, planes: Sequence[str] = ("relay",)) -> None:
        """`kind` of `KINDS`; `server` of `SERVERS` or none at all; `more` lines for the proxy's `[[service]]`."""
        self.kind = kind
        self._server_name = server
        self._more = more
        self._planes = planes
        self._stack = ExitStack()
        self._server: FtpServer | None = None
        self.lab: Lab
        self.gateway: Gateway
        self.proxy: Proxy

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            if self.kind == "reverse":
                self.lab = stack.enter_context(Lab(Topology.SERVER_NAT))
                self.gateway = self.lab.gateways["server"]
                config = reverse(
                    [f"{self.site(version).authority}:21" for version in (4, 6)],
                    [f"{Site(self.lab.server.address(version), version).authority}:21" for version in (4, 6)],
                    *self._more,
                    planes=self._planes,
                )
            else:
                self.lab = stack.enter_context(Lab(Topology.CLIENT_NAT))
                self.gateway = self.lab.gateways["client"]
                config = forward(self.gateway, self.kind, *self._more, planes=self._planes)
            if self._server_name is not None:
                self._server = stack.enter_context(FtpServer(self._server_name, self.lab.server))
            self.proxy = stack.enter_context(Proxy(self.gateway, config))
            self.before = state(self.gateway)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.close()

    def site(self, version: int) -> Site:
        """The server as the client's user names it."""
        return Site(self.lab.server_address(version), version)

    @property
    def client(self) -> Host:
        return self.lab.client

    def source(self, version: int) -> str:
        """The address that the server sees: the gateway's on the server's side."""
        return self.gateway.inside_address(version) if self.kind == "reverse" else self.gateway.address(version)

    @property
    def server(self) -> FtpServer:
        assert self._server is not None
        return self._server

    def ended(self, since: int) -> list[int]:
        """How many transfers each session had that ended after the first `since` characters of the proxy's log."""
        return [int(count) for count in re.findall(r" session\.close .* transfers=(\d+)", self.proxy.log[since:])]

    def transfers(self, since: int) -> list[Transfer]:
        """The transfers behind the first `since` characters of the proxy's log."""
        found = re.findall(r" transfer .* plane=(\w+) down=(\d+) up=(\d+) result=(\w+)", self.proxy.log[since:])
        return [Transfer(plane, int(down) + int(up), result) for plane, down, up, result in found]

    def check_nothing_left(self) -> None:
        """The gateway is as before the first client; connections that are being closed get a moment."""
        try:
            until(lambda: state(self.gateway) == self.before, "nothing is left behind on the gateway")
        except AssertionError as error:
            error.add_note(
                f"--- before\n{self.before}\n--- now\n{state(self.gateway)}\n--- proxy\n{self.proxy.log[-4000:]}"
            )
            raise

    @contextmanager
    def explained(self) -> Iterator[None]:
        """What fails inside is told with what the proxy and the server logged meanwhile, and the kernel's evidence."""
        seen = len(self.proxy.log)
        try:
            yield
        except Exception as error:
            error.add_note(f"--- proxy\n{self.proxy.log[seen:][-6000:]}")
            if self._server is not None:
                error.add_note(f"--- {self._server.name}\n{self._server.log()[-4000:]}")
            error.add_note(self.gateway.evidence())
            raise
