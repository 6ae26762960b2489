"""`serve` under a supervisor: the listeners that it is passed, and what it says."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

CONFIG = """
[process]
user = ""
[[service]]
name = "files"
mode = "reverse"
listen = ["127.0.0.1:1"]
intercept = "none"
servers = ["127.0.0.1:{port}"]
"""
LAUNCH = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="2", LISTEN_FDNAMES="files:other")
os.execv(sys.executable, [sys.executable, "-m", "ftpproxy", "serve", "-c", sys.argv[3]])
"""


class Supervised:
    """A `serve` with a passed listener for the service `files`, and one for nobody."""

    def __init__(self, folder: Path) -> None:
        self.origin = socket.create_server(("127.0.0.1", 0))
        self.origin.settimeout(10)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.stray = socket.create_server(("127.0.0.1", 0))
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.bind(str(folder / "notify"))
        self.notify.settimeout(10)
        file = folder / "ftpproxy.toml"
        file.write_text(CONFIG.format(port=self.origin.getsockname()[1]))
        passed = [self.listener.fileno(), self.stray.fileno()]
        high = [os.dup(number) for number in passed]
        for number in high:
            os.set_inheritable(number, True)
        self.log = folder / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", LAUNCH, *map(str, high), str(file)],
                pass_fds=high,
                stderr=log,
                env={**os.environ, "NOTIFY_SOCKET": str(folder / "notify"), "WATCHDOG_USEC": "2000000"},
            )
        for number in high:
            os.close(number)

    def hears(self, beginning: str) -> list[str]:
        """The next message that begins so; others may come before."""
        while True:
            lines = self.notify.recv(4096).decode().splitlines()
            if lines[0].startswith(beginning):
                return lines

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for sock in (self.origin, self.listener, self.stray, self.notify):
            sock.close()


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Supervised]:
    found = Supervised(tmp_path)
    yield found
    found.close()


def test_the_life_of_a_supervised_service(supervised: Supervised) -> None:
    """The passed listener serves, port 1 of the file is never asked for, the watchdog is fed, the end is told."""
    assert supervised.hears("READY=1")[1] == "STATUS=1 service, 0 sessions"
    with socket.create_connection(supervised.listener.getsockname(), 10) as client:
        served, _ = supervised.origin.accept()
        with served:
            served.sendall(b"220 here\r\n")
            assert client.recv(100) == b"220 here\r\n"
            assert supervised.hears("STATUS=") == ["STATUS=1 service, 1 session"]
            assert supervised.hears("WATCHDOG=1") == ["WATCHDOG=1"]
    supervised.process.send_signal(signal.SIGTERM)
    assert supervised.hears("STOPPING=1")
    assert supervised.process.wait(10) == 0
    log = supervised.log.read_text()
    assert "descriptor.unused called=other" in log
    assert f"listening service=files at=127.0.0.1:{supervised.listener.getsockname()[1]}" in log
