"""A booted Debian with systemd that is the gateway of a lab: a container in the namespace of that gateway.

The network, with its administrator's firewall, is the lab's; the operating system is `rootfs.sh`'s, with everything
that is written into it in memory only.  The package is installed into it as an administrator would, from a wheel.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from ftpproxy.lab.network import Gateway

ROOT = Path(__file__).parents[2]
ROOTFS = ROOT / ".cache" / "system" / "debian12"
SECONDS = 120.0
ROOTFS_SECONDS = 420.0


class CannotBoot(Exception):
    """No machine can be booted here; the text says why."""


class Machine:
    """The container, between `with` and the end of the block.  Raises `CannotBoot`."""

    def __init__(self, gateway: Gateway, wheels: Path) -> None:
        self._gateway = gateway
        self._wheels = wheels
        self._nspawn: subprocess.Popen[bytes]
        self._leader = 0

    def __enter__(self) -> Self:
        name = self._gateway.namespace
        self._nspawn = subprocess.Popen(
            [
                "systemd-nspawn",
                "--quiet",
                "--boot",
                f"--directory={ROOTFS}",
                "--volatile=overlay",
                f"--machine={name}",
                f"--network-namespace-path=/run/netns/{name}",
                "--register=no",
                "--keep-unit",
                "--capability=CAP_NET_ADMIN",  # which a network that is not its own would take away
                "--console=pipe",
                f"--bind-ro={self._wheels}:/wheels",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            try:
                self.until(self._is_up, "the machine has booted")
            except AssertionError as error:
                raise CannotBoot(str(error)) from None
            self.run("/opt/ftpproxy/bin/pip", "install", "--quiet", "--no-index", "--find-links=/wheels", "ftpproxy")
            self.run("sh", "-ec", INSTALL)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._leader:
            try:
                os.kill(self._leader, signal.SIGKILL)  # all of its processes go with it
            except ProcessLookupError:
                pass
        self._nspawn.kill()
        self._nspawn.wait()
        if self._nspawn.stderr is not None:
            self._nspawn.stderr.close()

    def _is_up(self) -> bool:
        if self._nspawn.poll() is not None:
            assert self._nspawn.stderr is not None
            raise CannotBoot(f"systemd-nspawn has ended: {self._nspawn.stderr.read().decode().strip()}")
        if not self._leader:
            self._leader = self._first_process()
            return False
        state = self.run("systemctl", "is-system-running", check=False).strip()
        return state in ("running", "degraded")

    def _first_process(self) -> int:
        """The child that is number 1 of its own process namespace; 0 if there is none yet."""
        for child in Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children").read_text().split():
            try:
                numbers = re.search(r"(?m)^NSpid:(.*)", Path("/proc", child, "status").read_text())
            except OSError:
                continue  # one that only prepared something
            if numbers is not None and numbers[1].split()[1:] == ["1"]:
                return int(child)
        return 0

    def run(self, *argv: str, check: bool = True, input: str | None = None) -> str:
        """What `argv` prints in there, both streams."""
        done = subprocess.run(
            ["nsenter", f"--target={self._leader}", "--all", "--", *argv],
            input=input,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=None if input is not None else subprocess.DEVNULL,
            text=True,
            check=False,
            env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
        )
        if check and done.returncode:
            raise AssertionError(f"{' '.join(argv)} ended with {done.returncode}: {done.stdout}")
        return done.stdout

    def write(self, path: str, text: str) -> None:
        self.run("sh", "-ec", f"mkdir -p $(dirname {path}); cat > {path}", input=text)

    def show(self, unit: str, name: str) -> str:
        """A property of a unit (systemctl(1))."""
        return self.run("systemctl", "show", "--value", f"--property={name}", unit).strip()

    def journal(self, unit: str) -> str:
        return self.run("journalctl", "--no-pager", "--output=cat", f"--unit={unit}")

    @staticmethod
    def until(condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < deadline, f"it is not so that {what}"
            time.sleep(0.05)


INSTALL = """
cd /opt/ftpproxy/share/ftpproxy/systemd
cp *.service *.socket /etc/systemd/system
mkdir -p /etc/sysusers.d /etc/tmpfiles.d
cp sysusers.d-ftpproxy.conf /etc/sysusers.d/ftpproxy.conf
cp tmpfiles.d-ftpproxy.conf /etc/tmpfiles.d/ftpproxy.conf
systemd-sysusers
systemd-tmpfiles --create
systemctl daemon-reload
"""
"""As docs/operations.md says."""


def prepare() -> None:
    """Make the root file system if there is none yet.  Raises `CannotBoot`."""
    if os.geteuid() != 0:
        raise CannotBoot("only root may")
    for program in ("debootstrap", "systemd-nspawn", "nsenter"):
        if shutil.which(program) is None:
            raise CannotBoot(f"there is no {program} (tests/system-packages.sh system)")
    try:
        made = subprocess.run(
            ["bash", str(Path(__file__).parent / "rootfs.sh"), str(ROOTFS)],
            capture_output=True,
            text=True,
            check=False,
            timeout=ROOTFS_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise CannotBoot(f"making its root file system took more than {ROOTFS_SECONDS:.0f} s") from None
    if made.returncode:
        raise CannotBoot(f"its root file system cannot be made: {made.stderr.strip()}")


def wheels(folder: Path) -> Path:
    """The package and what it needs as wheels, in `folder`."""
    argv = [sys.executable, "-m", "pip", "wheel", "--quiet", f"--wheel-dir={folder}", str(ROOT)]
    subprocess.run(argv, check=True)
    return folder
