"""The whole service with the plane pf, under a stand-in for pfctl: its start, its end, and the engine's."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import define

from ftpproxy.privileges import find, has_other_users

from .stage import lives, until
from .standin import StandIn

CONFIG = """\
[[service]]
name = "dmz"
mode = "reverse"
listen = ["127.0.0.1:{port}"]
intercept = "none"
servers = ["127.0.0.1:1"]
planes = ["pf"]
[service.pf]
dialect = "freebsd"
"""
SECONDS = 20


@define
class Running:
    process: subprocess.Popen[str]
    log: str = ""

    def until_ready(self) -> None:
        self.until_logged(" ready ")

    def until_logged(self, words: str) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log += line
            if words in line:
                return
        raise AssertionError(self.log)

    @property
    def engine(self) -> list[int]:
        """The watcher and the worker."""
        listed = subprocess.run(["ps", "-ax", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
        children = dict[int, int]((int(parent), int(pid)) for pid, parent in map(str.split, listed.splitlines()))
        watcher = children[self.process.pid]
        return [watcher, children[watcher]]

    def end(self) -> int:
        _, more = self.process.communicate(timeout=SECONDS)
        self.log += more
        return self.process.returncode


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        (tmp_path / "proxy.toml").write_text(CONFIG.format(port=probe.getsockname()[1]))
    return tmp_path


@pytest.fixture
def pfctl(folder: Path) -> StandIn:
    return StandIn(folder / "pf")


def start(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "ftpproxy", "serve", "-c", str(folder / "proxy.toml")],
        env={**os.environ, "PATH": f"{folder / 'pf'}:{os.environ['PATH']}"},
        cwd=Path(__file__).parents[2],
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def running(folder: Path, pfctl: StandIn) -> Iterator[Running]:
    running = Running(start(folder))
    with running.process:
        try:
            running.until_ready()
            yield running
        finally:
            running.process.kill()


@pytest.mark.parametrize(
    ("mood", "code", "words"),
    [
        ({"denied": 1}, 77, "pfctl: /dev/pf: Permission denied"),
        ({"disabled": 1}, 69, "pf is disabled; enable it with: pfctl -e"),
    ],
)
def test_no_start(folder: Path, pfctl: StandIn, mood: dict[str, Any], code: int, words: str) -> None:
    pfctl.behave(**mood)
    with start(folder) as process:
        _, said = process.communicate(timeout=SECONDS)
    assert (process.returncode, said) == (code, f"ftpproxy: {words}\n")


def test_no_pfctl(folder: Path) -> None:
    with start(folder) as process:
        _, said = process.communicate(timeout=SECONDS)
    assert (process.returncode, said) == (
        69,
        "ftpproxy: the program pfctl was not found; OpenBSD and FreeBSD have it\n",
    )


def test_start_and_end(pfctl: StandIn, running: Running) -> None:
    watcher, worker = running.engine
    assert [call.arguments for call in pfctl.calls[:2]] == [["-s", "info"], ["-a", "ftp-proxy", "-s", "Anchors"]]
    assert not pfctl.changes
    running.process.send_signal(signal.SIGTERM)
    assert running.end() == 0
    assert not lives(watcher)
    assert not lives(worker)


@pytest.mark.skipif(os.geteuid() != 0 or not has_other_users(), reason="needs root with other users to become")
def test_who_reads_the_network_is_not_root(folder: Path, pfctl: StandIn) -> None:
    """And the engine, which is, ends with it all the same."""
    with (folder / "proxy.toml").open("a") as config:
        config.write('[process]\nuser = "nobody"\n')
    running = Running(start(folder))
    with running.process:
        try:
            running.until_ready()
            engine = running.engine
            assert user(running.process.pid) == find_user("nobody")
            assert [user(process) for process in engine] == [0, 0]
            running.process.send_signal(signal.SIGTERM)
            assert running.end() == 0
        finally:
            running.process.kill()
    assert not any(map(lives, engine))


def user(process: int) -> int:
    return int(subprocess.run(["ps", "-o", "uid=", "-p", str(process)], capture_output=True, check=True).stdout)


def find_user(name: str) -> int:
    account = find(name)
    assert account is not None
    return account.uid


@pytest.mark.parametrize("victim", [0, 1], ids=["watcher", "worker"])
def test_a_dead_engine_ends_the_service(running: Running, victim: int) -> None:
    watcher, worker = running.engine
    os.kill((watcher, worker)[victim], signal.SIGKILL)
    if victim == 0:  # the worker does all that is to be done; it goes with the service
        running.process.send_signal(signal.SIGTERM)
        assert running.end() == 0
    else:
        assert running.end() == 69
        assert re.search(r" critical pf\.engine_lost .*has died", running.log)
        last = running.log.splitlines()[-1]
        assert last == f"ftpproxy: the pf engine (process {watcher}) has died; the service cannot go on without it"
    until(lambda: not lives(watcher) and not lives(worker), "the engine lives on")


def test_a_lower_port_needs_a_restart(folder: Path, running: Running) -> None:
    with (folder / "proxy.toml").open("a") as config:
        config.write("[service.policy]\nmin_data_port = 990\n")
    running.process.send_signal(signal.SIGHUP)
    running.until_logged("the pf engine opens no data port below 1024 until a restart, and 990 is named")
    running.process.send_signal(signal.SIGTERM)
    assert running.end() == 0


def test_killed(running: Running) -> None:
    engine = running.engine
    running.process.kill()
    running.end()
    until(lambda: not any(map(lives, engine)), "the engine lives on")
