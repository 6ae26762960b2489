"""A supervisor as systemd is one, as far as a restart needs it: sd_notify(3) with a descriptor store."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

__all__ = ["PATIENCE", "Supervisor"]

PATIENCE = 20.0
LAUNCH = """
import os, sys
count = int(sys.argv[1])
passed = list(map(int, sys.argv[3 : 3 + count]))
high = [os.dup(number) for number in passed]
while high and min(high) < 3 + count:
    high = [os.dup(number) for number in passed]
for index, number in enumerate(high):
    os.dup2(number, 3 + index)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(count), LISTEN_FDNAMES=sys.argv[2])
os.closerange(3 + count, 1024)
os.execv(sys.executable, [sys.executable, "-m", "ftpproxy", *sys.argv[3 + count :]])
"""
"""What a supervisor's child does between fork and exec."""


class Supervisor:
    """Starts `ftpproxy` with the given arguments, keeps what it stores, and passes that to the next one."""

    def __init__(self, folder: Path, *arguments: str, prefix: tuple[str, ...] = ()) -> None:
        """`prefix` is a command line before the interpreter's, as for another network namespace."""
        self.folder = folder
        self.arguments = arguments
        self.prefix = prefix
        self.stored: list[tuple[str, int]] = []
        self.said: list[str] = []
        self.log_file = folder / "log"
        self.process: subprocess.Popen[bytes] | None = None
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(folder / "notify"))

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def start_alone(self) -> None:
        """Start it as a shell would, and wait until it is ready."""
        environment = {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}
        with self.log_file.open("a") as log:
            command = [*self.prefix, sys.executable, "-m", "ftpproxy", *self.arguments]
            self.process = subprocess.Popen(command, stderr=log, env=environment)
        deadline = time.monotonic() + PATIENCE
        while " ready " not in self.log:
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.02)  # between two looks

    def start(self) -> None:
        """Start it with what is stored, and wait until it is ready."""
        names = ":".join(name for name, _ in self.stored)
        numbers = [number for _, number in self.stored]
        for number in numbers:
            os.set_inheritable(number, True)
        launch = [sys.executable, "-c", LAUNCH, str(len(numbers)), names, *map(str, numbers), *self.arguments]
        with self.log_file.open("a") as log:
            self.process = subprocess.Popen(
                [*self.prefix, *launch],
                pass_fds=numbers,
                stderr=log,
                env={**os.environ, "NOTIFY_SOCKET": str(self.folder / "notify")},
            )
        self.until("READY=1")

    def restart(self) -> None:
        """As `systemctl restart` with RestartKillSignal=SIGUSR2."""
        self.signal(signal.SIGUSR2)
        assert self.wait() == 0, self.log
        self.start()

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self) -> int:
        """Until it has ended; its exit code.  It is heard meanwhile."""
        assert self.process is not None
        deadline = time.monotonic() + PATIENCE
        while (code := self.process.poll()) is None:
            assert time.monotonic() < deadline, self.log
            self._hear(0.02)
        while self._hear(0):
            pass
        return code

    def until(self, word: str) -> None:
        """Until it has said `word`."""
        self.said.clear()
        deadline = time.monotonic() + PATIENCE
        while word not in self.said:
            assert self.process is not None
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            self._hear(0.1)

    def _hear(self, seconds: float) -> bool:
        if not select.select([self._socket], [], [], seconds)[0]:
            return False
        message, descriptors, _, _ = socket.recv_fds(self._socket, 8192, 253)
        lines = message.decode().splitlines()
        self.said += lines
        name = next((line.removeprefix("FDNAME=") for line in lines if line.startswith("FDNAME=")), "stored")
        if "FDSTORE=1" in lines:
            assert "FDPOLL=0" in lines
            self.stored += [(name, number) for number in descriptors]
        else:
            for number in descriptors:  # of BARRIER=1: closed is understood
                os.close(number)
        if "FDSTOREREMOVE=1" in lines:
            for stored in [each for each in self.stored if each[0] == name]:
                self.stored.remove(stored)
                os.close(stored[1])
        return True

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for _, number in self.stored:
            os.close(number)
        self._socket.close()
