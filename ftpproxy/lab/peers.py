"""The two ends of the lab: an FTP server on one host, clients on another, each a process of its own."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from attrs import frozen

from ..endpoints import Endpoint
from .hosts import Host, LabError, Stacked

__all__ = ["FtpServer", "Outcome", "Transfer", "environment", "run"]

PATIENCE = 60.0
"""Seconds after which a process of the lab that should long have ended is given up."""


def environment() -> dict[str, str]:
    """Our environment, so that a Python started in it finds this very package, installed or not."""
    root = str(Path(__file__).parents[2])
    path = os.environ.get("PYTHONPATH")
    return os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{path}" if path else root}


@frozen
class Transfer:
    """One file, one way, with one verb."""

    verb: str
    """PORT, EPRT, PASV or EPSV."""
    version: int
    """Of the Internet Protocol: 4 or 6; PORT and PASV exist with 4 only."""
    up: bool = False
    """STOR and not RETR."""
    obey: bool = False
    """Call the address in the reply to PASV; most clients call the address that they dialled."""

    @property
    def active(self) -> bool:
        return self.verb in ("PORT", "EPRT")


@frozen
class Outcome:
    """What became of a transfer."""

    ok: bool
    sha256: str
    octets: int
    seconds: float
    error: str


class FtpServer(Stacked):
    """pyftpdlib on `host`, between `with` and the end of the block; `content` lies there as `sample`.

    User `lab`, password `lab`, or anonymous.  Raises `LabError` if it does not come up.
    """

    program: tuple[str, ...] = (sys.executable, "-m", "ftpproxy.lab.ftpd")

    def __init__(self, host: Host, content: bytes = b"", *options: str) -> None:
        """`options` are those of `ftpproxy.lab.ftpd`."""
        self.host = host
        self.content = content
        self.options = options
        self.root = Path()
        """The directory that it serves; of the machine, not of a namespace."""
        self.endpoints: list[Endpoint] = []
        """Where it listens."""
        self.process: subprocess.Popen[str]
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ftpproxy-lab-")))
            (self.root / "sample").write_bytes(self.content)
            self._log = Path(stack.enter_context(tempfile.NamedTemporaryFile(prefix="ftpproxy-lab-")).name)
            argv = [*self.program, "--root", str(self.root), *self.options]
            with self._log.open("w") as log:
                self.process = self.host.popen(*argv, stdout=subprocess.PIPE, stderr=log, env=environment())
            stack.callback(self._stop)
            assert self.process.stdout is not None
            word, *endpoints = self.process.stdout.readline().split() or [""]
            if word != "ready":
                self.process.wait(PATIENCE)
                raise LabError(f"the lab's FTP server did not start: {self.log.strip()}")
            self.endpoints = [Endpoint.parse(text) for text in endpoints]
            self._stack = stack.pop_all()
        return self

    @property
    def log(self) -> str:
        """What it complained of so far."""
        return self._log.read_text(errors="replace")

    def _stop(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


def run(
    client: Host,
    dialled: Mapping[int, Endpoint],
    server: FtpServer,
    transfers: Iterable[Transfer],
    *,
    timeout: float = 5.0,
) -> dict[Transfer, Outcome]:
    """All `transfers` of the server's sample at once, each by a client process on `client` that calls `dialled`.

    An outcome is `ok` only if the file arrived whole: by checksum, at the client (RETR) or on the server's disk (STOR).
    `dialled` has an endpoint for each version; `timeout` is that of each step of a client (connect, login, ...).
    """
    want = hashlib.sha256(server.content).hexdigest()
    started = []
    for number, transfer in enumerate(transfers):
        name = f"stored-{os.getpid()}-{number}"
        host, port = dialled[transfer.version].sockaddr()
        argv = [sys.executable, "-m", "ftpproxy.lab.ftpc", host, "--port", str(port), "--verb", transfer.verb]
        argv += ["--put", str(server.root / "sample"), "--as", name] if transfer.up else ["--get", "sample"]
        argv += ["--timeout", str(timeout), *(["--obey"] if transfer.obey else [])]
        started.append((transfer, name, client.popen(*argv, stdout=subprocess.PIPE, env=environment())))
    outcomes = {}
    for transfer, name, process in started:
        try:
            line, _ = process.communicate(timeout=PATIENCE)
        except BaseException:  # an interrupt: nobody else ends those that are not in a namespace
            for *_, each in started:
                each.kill()
            raise
        outcome = Outcome(**json.loads(line))
        if outcome.ok:
            stored = server.root / name
            got = hashlib.sha256(stored.read_bytes()).hexdigest() if transfer.up else outcome.sha256
            if got != want or outcome.sha256 != want:
                outcome = Outcome(False, got, outcome.octets, outcome.seconds, "the file arrived damaged")
        outcomes[transfer] = outcome
    return outcomes
