"""Gateways with a proxy that runs, to be broken in one way at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from attrs import frozen

import ftpproxy.compose
import ftpproxy.doctor  # noqa: F401
from ftpproxy.cli import main
from ftpproxy.lab.network import Gateway, Lab, Topology
from ftpproxy.lab.peers import FtpServer, environment
from ftpproxy.lab.proxy import Proxy, forward, reverse

from ..netns.dialogue import inside

__all__ = ["KINDS", "MORE_KINDS", "Patient", "Wards", "admitted"]

KINDS = ("tproxy", "redirect", "reverse")
MORE_KINDS = ("nft", "marked", "marked nft")
"""The kernel's plane; a firewall that goes by marks; and both."""
FEW = "limits = { sessions = 100 }"
"""So that a small machine is large enough."""
FTPPROXY = f"{sys.executable} -m ftpproxy"


@frozen
class Patient:
    """One gateway, its clients and its server."""

    lab: Lab
    gateway: Gateway
    server: FtpServer
    proxy: Proxy

    @property
    def config(self) -> str:
        return self.proxy.config

    def file(self, config: str) -> Path:
        """Another file than that of the running proxy."""
        path = self.proxy.file.with_name("other.toml")
        path.write_text(config)
        return path

    def sh(self, script: str) -> str:
        """The output of `script` on the gateway, which must succeed."""
        done = self.gateway.run("sh", "-e", input=script, env=environment())
        assert (done.returncode, done.stderr) == (0, ""), script
        return done.stdout

    def doctor(self, *options: str, file: Path | None = None, before: tuple[str, ...] = ()) -> Any:
        """The whole of what `ftpproxy doctor` did."""
        argv = [*before, sys.executable, "-m", "ftpproxy", "doctor", "-c", str(file or self.proxy.file), *options]
        return self.gateway.run(*argv, env=environment())

    def findings(self, *, file: Path | None = None) -> list[dict[str, str]]:
        """What it finds, after a look at its exit code; in a fork of this process, which has all modules already."""
        with tempfile.TemporaryFile("w+") as out, inside(self.gateway):
            child = os.fork()
            if not child:
                os.dup2(out.fileno(), 1)
                os.dup2(out.fileno(), 2)
                sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
                try:
                    os._exit(main(["doctor", "-c", str(file or self.proxy.file), "--json"]))
                except BaseException:
                    traceback.print_exc()
                finally:
                    sys.stderr.flush()
                    os._exit(99)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            out.seek(0)
            said = out.read()
        assert said.startswith("["), said
        found: list[dict[str, str]] = json.loads(said)
        assert code == int(any(each["severity"] != "worth knowing" for each in found))
        return found

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Without its proxy, which comes again afterwards."""
        self.proxy.stop()
        yield
        self.proxy.start()

    @contextmanager
    def serving(self, config: str, *before: str) -> Iterator[Path]:
        """Another proxy instead of it, run by `before`, with a file of its own."""
        with self.stopped():
            file = self.file(config)
            argv = [*before, sys.executable, "-m", "ftpproxy", "serve", "-c", str(file)]
            with self.gateway.popen(*argv, stderr=subprocess.PIPE, env=environment()) as process:
                assert process.stderr is not None
                try:
                    while " ready " not in process.stderr.readline():
                        assert process.poll() is None
                    yield file
                finally:
                    process.terminate()

    def follow(self, findings: list[dict[str, str]]) -> None:
        """Do what the findings say."""
        for each in findings:
            self.sh(each["mend"].replace("ftpproxy rules", f"{FTPPROXY} rules"))

    @contextmanager
    def program(self, source: str) -> Iterator[subprocess.Popen[str]]:
        """A Python program on the gateway, from its first line of output on."""
        with started(self.gateway, source) as process:
            yield process


@contextmanager
def started(host: Any, source: str) -> Iterator[subprocess.Popen[str]]:
    process = host.popen(sys.executable, "-c", source, stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@contextmanager
def admitted(kind: str, config: str = "") -> Iterator[Patient]:
    """A gateway that is set up right, unless `config` says otherwise."""
    with ExitStack() as stack:
        side = "server" if kind == "reverse" else "client"
        lab = stack.enter_context(Lab(Topology.SERVER_NAT if kind == "reverse" else Topology.CLIENT_NAT))
        gateway = lab.gateways[side]
        server = stack.enter_context(FtpServer(lab.server, b"content"))
        if kind == "reverse":
            servers = [f"{lab.server.address(4)}:21", f"[{lab.server.address(6)}]:21"]
            good = reverse(map(str, lab.dialled.values()), servers, FEW)
        else:
            more = ["firewall_mark = true"] if "marked" in kind else []
            intercept = {"nft": "tproxy", "marked": "redirect", "marked nft": "redirect"}.get(kind, kind)
            good = forward(gateway, intercept, FEW, *more, planes=["nft" if "nft" in kind else "relay"])
        yield Patient(lab, gateway, server, stack.enter_context(Proxy(gateway, config or good)))


class Wards:
    """One gateway a kind, shared by tests that leave it as it was.  One that a test failed on is given up."""

    def __init__(self) -> None:
        self._stays: dict[str, tuple[ExitStack, Patient]] = {}

    @contextmanager
    def visit(self, kind: str) -> Iterator[Patient]:
        if kind not in self._stays:
            with ExitStack() as stack:
                patient = stack.enter_context(admitted(kind))
                self._stays[kind] = stack.pop_all(), patient
        stack, patient = self._stays[kind]
        try:
            yield patient
        except BaseException:
            del self._stays[kind]
            stack.close()
            raise

    def close(self) -> None:
        for stack, _ in self._stays.values():
            stack.close()
        self._stays.clear()
