"""curl, lftp, wget and Python's ftplib, each as its users run it.

A `Client` turns an operation into a `Command` and knows nothing of where it runs; `start` and `complete` run one
on a host of the lab.  Settings stand at their defaults but for four things: how long is waited (a failing test must
end), that nothing is tried twice (a retry would hide what is looked for), how much is said, and the mode.

What they send (seen on the wire; curl 7.88, lftp 4.9.2, wget 1.21.3, CPython 3.11):

| client | default, IPv4 | default, IPv6 | active, IPv4 | active, IPv6 |
| ------ | ------------- | ------------- | ------------ | ------------ |
| curl   | EPSV          | EPSV          | EPRT         | EPRT         |
| curl --disable-eprt |  |               | PORT         |              |
| lftp   | PASV          | EPSV          | PORT         | EPRT         |
| wget   | PASV          | EPSV          | PORT         | EPRT         |
| ftplib | PASV          | EPSV          | PORT         | EPRT         |
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from attrs import field, frozen

from .servers import PASSWORD, USER, Host

__all__ = ["CLIENTS", "Client", "ClientFailed", "Command", "Job", "Mode", "Site", "complete"]

QUIET_SECONDS = 10
"""How long a client waits for one answer."""
JOB_SECONDS = 60
"""How long one run of a client may take."""


class Mode(Enum):
    """Who calls whom for the data."""

    DEFAULT = "default"
    """What the client does by itself, which is passive for all of them."""
    ACTIVE = "active"
    PORT = "port"
    """Active, and PORT although the client would have said EPRT over IPv4."""

    def __str__(self) -> str:
        return self.value


@frozen
class Site:
    """The server as a client's user names it."""

    host: str
    version: int
    """4 or 6."""
    port: int = 21

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if self.version == 6 else self.host
        return host if self.port == 21 else f"{host}:{self.port}"

    def url(self, path: str) -> str:
        return f"ftp://{self.authority}/{path}"


@frozen
class Command:
    """A process to be run on the client's host."""

    argv: Sequence[str]
    cwd: Path | None = None


class Client(Protocol):
    """One program.  File names are relative to the login's directory; local files are named by path."""

    name: str
    uploads: bool

    def modes(self, version: int) -> list[Mode]:
        """The modes that are distinct for it with this family."""

    def list(self, site: Site, mode: Mode, folder: str) -> Command:
        """Print a listing of `folder`."""

    def get(self, site: Site, mode: Mode, folder: str, names: Sequence[str], into: Path) -> Command:
        """Fetch `names` of `folder` into the directory `into`, in one session."""

    def put(self, site: Site, mode: Mode, files: Sequence[Path], folder: str) -> Command:
        """Store `files` in `folder`, in one session."""

    def resume(self, site: Site, mode: Mode, folder: str, name: str, into: Path) -> Command:
        """Fetch what is missing of `name`, whose beginning stands in `into` already (REST)."""


class Curl:
    name = "curl"
    uploads = True

    def modes(self, version: int) -> list[Mode]:
        return [Mode.DEFAULT, Mode.ACTIVE, Mode.PORT] if version == 4 else [Mode.DEFAULT, Mode.ACTIVE]

    def _argv(self, mode: Mode) -> list[str]:
        options = {Mode.DEFAULT: [], Mode.ACTIVE: ["--ftp-port", "-"], Mode.PORT: ["--ftp-port", "-", "--disable-eprt"]}
        limits = ["--connect-timeout", str(QUIET_SECONDS), "--max-time", str(JOB_SECONDS)]
        chatter = ["--verbose", "--silent", "--show-error", "--fail-early"]
        return ["curl", *chatter, *limits, "--user", f"{USER}:{PASSWORD}", *options[mode]]

    def list(self, site: Site, mode: Mode, folder: str) -> Command:
        return Command([*self._argv(mode), site.url(f"{folder}/")])

    def get(self, site: Site, mode: Mode, folder: str, names: Sequence[str], into: Path) -> Command:
        return Command(
            [*self._argv(mode), "--remote-name-all", *(site.url(f"{folder}/{name}") for name in names)], into
        )

    def put(self, site: Site, mode: Mode, files: Sequence[Path], folder: str) -> Command:
        pairs = [word for file in files for word in ("--upload-file", str(file), site.url(f"{folder}/"))]
        return Command([*self._argv(mode), *pairs])

    def resume(self, site: Site, mode: Mode, folder: str, name: str, into: Path) -> Command:
        return Command([*self._argv(mode), "--continue-at", "-", "--remote-name", site.url(f"{folder}/{name}")], into)


class Lftp:
    name = "lftp"
    uploads = True

    def modes(self, version: int) -> list[Mode]:
        return [Mode.DEFAULT, Mode.ACTIVE]

    def _command(self, site: Site, mode: Mode, *commands: str, cwd: Path | None = None) -> Command:
        settings = [
            "debug 5",
            "set cmd:fail-exit yes",
            "set net:max-retries 1",
            f"set net:timeout {QUIET_SECONDS}",
            *(["set ftp:passive-mode no"] if mode is Mode.ACTIVE else []),
        ]
        script = [*settings, f"open -u {USER},{PASSWORD} ftp://{site.authority}", *commands]
        return Command(["lftp", "-c", "; ".join(script)], cwd)

    def list(self, site: Site, mode: Mode, folder: str) -> Command:
        return self._command(site, mode, f"ls {folder}")

    def get(self, site: Site, mode: Mode, folder: str, names: Sequence[str], into: Path) -> Command:
        return self._command(site, mode, *(f"get {folder}/{name}" for name in names), cwd=into)

    def put(self, site: Site, mode: Mode, files: Sequence[Path], folder: str) -> Command:
        return self._command(site, mode, f"cd {folder}", *(f"put {file}" for file in files))

    def resume(self, site: Site, mode: Mode, folder: str, name: str, into: Path) -> Command:
        return self._command(site, mode, f"get -c {folder}/{name}", cwd=into)


class Wget:
    name = "wget"
    uploads = False

    def modes(self, version: int) -> list[Mode]:
        return [Mode.DEFAULT, Mode.ACTIVE]

    def _argv(self, mode: Mode) -> list[str]:
        options = ["--no-passive-ftp"] if mode is Mode.ACTIVE else []
        limits = ["--tries=1", f"--timeout={QUIET_SECONDS}"]
        return ["wget", "--debug", "--progress=dot:giga", *limits, f"--user={USER}", f"--password={PASSWORD}", *options]

    def list(self, site: Site, mode: Mode, folder: str) -> Command:
        return Command([*self._argv(mode), "--output-document=-", site.url(f"{folder}/")])

    def get(self, site: Site, mode: Mode, folder: str, names: Sequence[str], into: Path) -> Command:
        # Several URLs are several sessions; a pattern is one.
        url = site.url(f"{folder}/{names[0]}" if len(names) == 1 else f"{folder}/*")
        return Command([*self._argv(mode), url], into)

    def put(self, site: Site, mode: Mode, files: Sequence[Path], folder: str) -> Command:
        raise NotImplementedError("wget does not upload")

    def resume(self, site: Site, mode: Mode, folder: str, name: str, into: Path) -> Command:
        return Command([*self._argv(mode), "--continue", site.url(f"{folder}/{name}")], into)


class Ftplib:
    name = "ftplib"
    uploads = True

    def modes(self, version: int) -> list[Mode]:
        return [Mode.DEFAULT, Mode.ACTIVE]

    def _argv(self, site: Site, mode: Mode) -> list[str]:
        program = str(Path(__file__).with_name("ftplib_client.py"))
        return [sys.executable, program, str(mode), site.host, str(site.port), USER, PASSWORD, str(QUIET_SECONDS)]

    def list(self, site: Site, mode: Mode, folder: str) -> Command:
        return Command([*self._argv(site, mode), "list", folder])

    def get(self, site: Site, mode: Mode, folder: str, names: Sequence[str], into: Path) -> Command:
        return Command([*self._argv(site, mode), "get", folder, *names], into)

    def put(self, site: Site, mode: Mode, files: Sequence[Path], folder: str) -> Command:
        return Command([*self._argv(site, mode), "put", folder, *map(str, files)])

    def resume(self, site: Site, mode: Mode, folder: str, name: str, into: Path) -> Command:
        return Command([*self._argv(site, mode), "resume", folder, name], into)


CLIENTS: dict[str, Client] = {client.name: client for client in (Curl(), Lftp(), Wget(), Ftplib())}


class ClientFailed(AssertionError):
    """A client ended with an error; the text is all it said, which is the dialogue."""


@frozen(eq=False)
class Job:
    """A running `Command`.  A context manager: at the end of the block it does not run any more."""

    command: Command
    process: subprocess.Popen[str]
    home: Path = field(repr=False)

    @classmethod
    def start(cls, host: Host, command: Command) -> Job:
        """Run `command` on `host` with an empty home directory, so that nobody's settings count."""
        home = Path(tempfile.mkdtemp(prefix=f"ftpx-{os.getpid()}-home-"))
        environment = {"PATH": os.environ["PATH"], "HOME": str(home), "LC_ALL": "C.UTF-8"}
        process = subprocess.Popen(
            host.command(*command.argv), cwd=command.cwd or home, env=environment, text=True, errors="replace",
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        return cls(command, process, home)

    def result(self) -> str:
        """What it printed on standard output, after its end.  Raises `ClientFailed`."""
        try:
            said, dialogue = self.process.communicate(timeout=JOB_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            said, dialogue = self.process.communicate()
            dialogue += f"\n(killed after {JOB_SECONDS} s)"
        if self.process.returncode:
            argv = " ".join(self.command.argv)
            raise ClientFailed(f"{argv}\nended with {self.process.returncode}:\n{dialogue[-8000:]}\n{said[-2000:]}")
        return said

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self.process.returncode is None:
            self.process.kill()
            self.process.communicate()
        shutil.rmtree(self.home, ignore_errors=True)


def complete(host: Host, *commands: Command) -> list[str]:
    """Run `commands` on `host` at the same time and return what each printed.  Raises `ClientFailed`."""
    jobs: list[Job] = []
    try:
        jobs = [Job.start(host, command) for command in commands]
        return [job.result() for job in jobs]
    finally:
        for job in jobs:
            job.__exit__(None, None, None)
