"""A real proxy before a real FTP server on loopback, and clients that do as they are told."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import pytest

from ftpproxy.control.caller import Caller
from ftpproxy.endpoints import Endpoint
from ftpproxy.lab.hosts import Loopback
from ftpproxy.lab.peers import FtpServer, environment
from ftpproxy.lab.proxy import Proxy, reverse

PATIENCE = 10.0
ROOT = Path(__file__).parents[2]


def until(condition: Callable[[], bool], what: str = "it") -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.01)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


class Client:
    """One FTP session, a command at a time, and its data connection."""

    def __init__(self, at: Endpoint) -> None:
        self.control = socket.create_connection(at.sockaddr(), PATIENCE)
        self._lines = self.control.makefile("rb")
        self.data: socket.socket | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self.control.close()
        if self.data is not None:
            self.data.close()

    def hear(self) -> str:
        """The next reply; its last line."""
        while not re.match(rb"[0-9]{3} ", line := self._lines.readline()):
            assert line, "the connection was closed"
        return line.decode().rstrip()

    def say(self, line: str) -> str:
        self.control.sendall(line.encode("utf-8", "surrogateescape") + b"\r\n")
        return self.hear()

    def log_in(self) -> Self:
        assert self.hear().startswith("220")
        assert self.say("USER lab").startswith("331")
        assert self.say("PASS lab").startswith("230")
        assert self.say("TYPE I").startswith("200")
        return self

    def retrieve(self, name: str, some: int = 4096) -> Self:
        """Begin a download and read only `some` octets of it."""
        port = int(self.say("EPSV").split("|")[3])
        self.data = socket.socket()
        self.data.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # much must wait on the way
        self.data.connect(("127.0.0.1", port))
        assert self.say(f"RETR {name}")[:3] in ("125", "150")
        self.read(some)
        return self

    def read(self, octets: int) -> int:
        """Read so many octets of the data connection, fewer at its end."""
        assert self.data is not None
        got = 0
        while got < octets and (piece := self.data.recv(min(65536, octets - got))):
            got += len(piece)
        return got


class Stage:
    """What a test has."""

    def __init__(self, stack: ExitStack, server: FtpServer, at: Endpoint, more: str = "") -> None:
        self.guests = stack
        """Closes clients and callers."""
        self.ftp = server
        self.at = at
        config = reverse([str(at)], map(str, server.endpoints)) + more
        self.proxy = stack.enter_context(Proxy(Loopback(), config))

    def client(self) -> Client:
        return self.guests.enter_context(Client(self.at))

    def caller(self) -> Caller:
        return self.guests.enter_context(Caller(str(self.proxy.socket)))

    def ask(self, command: str, **arguments: object) -> Any:
        with Caller(str(self.proxy.socket)) as caller:
            return caller.ask(command, **arguments)

    def command(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """`ftpproxy WORD ...` about this proxy."""
        word, *rest = argv
        line = [sys.executable, "-W", "error", "-m", "ftpproxy", word, "--socket", str(self.proxy.socket), *rest]
        return subprocess.run(line, capture_output=True, text=True, env=environment(), timeout=60, check=False)

    def log_has(self, text: str) -> None:
        until(lambda: text in self.proxy.log, f"{text!r} in the log")

    @property
    def sessions(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.ask("sessions")
        return found


SAMPLE = bytes(range(256)) * 32768
"""8 MiB: more than all buffers on the way hold."""


@pytest.fixture(scope="module")
def ftp_server() -> Iterator[FtpServer]:
    with FtpServer(Loopback(), SAMPLE, "--listen", "127.0.0.1:0") as server:
        yield server


def new_stage(stack: ExitStack, server: FtpServer, more: str = "") -> Stage:
    return Stage(stack, server, Endpoint.parse(f"127.0.0.1:{free_port()}"), more)


@pytest.fixture(scope="module")
def shared(ftp_server: FtpServer) -> Iterator[Stage]:
    with ExitStack() as stack:
        yield new_stage(stack, ftp_server)


@pytest.fixture
def stage(shared: Stage) -> Iterator[Stage]:
    """A proxy with nobody in it and its first configuration, for tests that leave it alive."""
    text = shared.proxy.file.read_text()
    with ExitStack() as stack:
        shared.guests = stack
        yield shared
    until(lambda: shared.sessions == [], "the end of all sessions")
    if shared.proxy.file.read_text() != text:
        shared.proxy.file.write_text(text)
        shared.ask("reload")


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def mortal(ftp_server: FtpServer, stack: ExitStack) -> Stage:
    """A proxy for tests that end it."""
    return new_stage(stack, ftp_server)


def objects(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]
