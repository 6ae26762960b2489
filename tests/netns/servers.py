"""vsftpd, pure-ftpd, proftpd and pyftpdlib, each as its users run it.

What is set is only what a server needs to run at all from a folder of its own: where its files are, one
login, permission to write.  Everything that decides about data connections stands at its default; above all a
server accepts PORT and EPRT only with the address that it sees, and calls from port 20 if it always does.

A server runs in a mount namespace where /etc/passwd, /etc/shadow, /etc/pam.d and /etc/resolv.conf are ours, so
that a login exists which the machine does not know, and in a PID namespace, so that killing its first process kills
all of it, however it has forked.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol

from attrs import frozen

from .peers import libraries, unpacked

__all__ = ["PASSWORD", "SERVERS", "USER", "FtpServer", "Host", "roomy_directory", "sweep_directories"]

USER = "walter"
PASSWORD = "knock-knock"
UID = 20021
HASH = "$6$ftpxftpx$KOJavTwMAh7.jO9eixfJA.GjF9ksb676egVLOSg53OSt3emyiSobxZNfgcEVAQzr5RzxExjsOIEDu2nqD82Bk."
"""crypt(PASSWORD): known to all of them, so nothing has to be made with tools that a machine may lack."""

BASES = (Path("/dev/shm"), Path(tempfile.gettempdir()))
ROOM = 1 << 30
START_SECONDS = 20


class Host(Protocol):
    """What is used here of a host of the lab: how a command is run in its namespace, and its addresses."""

    def command(self, *argv: str) -> Sequence[str]: ...

    def address(self, version: int) -> str: ...


@frozen
class Launch:
    """How one server is started."""

    argv: list[str]
    etc: Mapping[str, str] = {}
    """Files that it sees under /etc instead of the machine's own, with their content."""
    environment: Mapping[str, str] = {}


def roomy_directory() -> Path:
    """A new directory that any user may enter, in memory where there is room for a few large files."""
    for base in BASES:
        if base.is_dir() and shutil.disk_usage(base).free >= ROOM:
            break
    place = Path(tempfile.mkdtemp(prefix=f"ftpx-{os.getpid()}-", dir=base))
    place.chmod(0o755)
    return place


def sweep_directories() -> None:
    """Remove those whose maker was killed."""
    for base in BASES:
        for place in base.glob("ftpx-*-*"):
            maker = place.name.split("-")[1]
            if maker.isdigit() and not Path("/proc", maker).exists():
                shutil.rmtree(place, ignore_errors=True)


def _vsftpd(place: Path, root: Path) -> Launch:
    peer = unpacked("vsftpd")
    (place / "empty").mkdir()
    config = place / "vsftpd.conf"
    config.write_text(f"""\
listen=NO
listen_ipv6=YES
background=NO
local_enable=YES
anonymous_enable=NO
write_enable=YES
chroot_local_user=YES
allow_writeable_chroot=YES
connect_from_port_20=YES
secure_chroot_dir={place / "empty"}
pam_service_name=vsftpd
vsftpd_log_file={place / "log"}
dual_log_enable=YES
log_ftp_protocol=YES
xferlog_std_format=NO
""")
    rule = "auth required pam_unix.so\naccount required pam_unix.so\nsession required pam_permit.so\n"
    return Launch(
        [str(peer / "usr/sbin/vsftpd"), str(config)],
        etc={"pam.d/vsftpd": rule},
        environment={"LD_LIBRARY_PATH": libraries(peer)},
    )


def _pure_ftpd(place: Path, root: Path) -> Launch:
    peer = unpacked("pure-ftpd", "pure-ftpd-common")
    accounts = place / "accounts"
    accounts.write_text(f"{USER}:{HASH}:{UID}:{UID}::{root}/./::::::::::::\n")
    environment = {"LD_LIBRARY_PATH": libraries(peer)}
    subprocess.run(
        [peer / "usr/bin/pure-pw", "mkdb", place / "accounts.pdb", "-f", accounts],
        env=environment, check=True, capture_output=True,
    )  # fmt: skip
    # --dontresolve: there is no resolver in the namespace.
    flags = ["--noanonymous", "--chrooteveryone", "--dontresolve", "--verboselog"]
    files = ["--login", f"puredb:{place / 'accounts.pdb'}", "--pidfile", str(place / "pid")]
    return Launch([str(peer / "usr/sbin/pure-ftpd"), *flags, *files], environment=environment)


def _proftpd(place: Path, root: Path) -> Launch:
    peer = unpacked("proftpd-core")
    accounts = place / "accounts"
    accounts.write_text(f"{USER}:{HASH}:{UID}:{UID}::{root}:/bin/sh\n")
    accounts.chmod(0o600)
    groups = place / "groups"
    groups.write_text(f"{USER}:x:{UID}:\n")
    groups.chmod(0o600)
    config = place / "proftpd.conf"
    config.write_text(f"""\
ServerType standalone
DefaultServer on
UseIPv6 on
User nobody
Group nogroup
AuthOrder mod_auth_file.c
AuthUserFile {accounts}
AuthGroupFile {groups}
DefaultRoot ~
AllowOverwrite on
AllowStoreRestart on
UseReverseDNS off
PidFile {place / "pid"}
ScoreboardFile {place / "scoreboard"}
DelayEngine off
SystemLog {place / "log"}
ExtendedLog {place / "commands"} ALL
WtmpLog off
""")
    return Launch(
        [str(peer / "usr/sbin/proftpd"), "-n", "-c", str(config)],
        # It will not start before it has found an address for the machine's name.
        etc={"hosts": f"127.0.0.1 localhost {os.uname().nodename}\n"},
        environment={"LD_LIBRARY_PATH": libraries(peer)},
    )


def _pyftpdlib(place: Path, root: Path) -> Launch:
    program = Path(__file__).with_name("pyftpdlib_server.py")
    return Launch([sys.executable, str(program), USER, PASSWORD, str(root)])


SERVERS: Mapping[str, Callable[[Path, Path], Launch]] = {
    "vsftpd": _vsftpd,
    "pure-ftpd": _pure_ftpd,
    "proftpd": _proftpd,
    "pyftpdlib": _pyftpdlib,
}


class FtpServer:
    """One server on port 21 of `host`, IPv4 and IPv6.  A context manager; `files` is what its login sees as `/`."""

    def __init__(self, name: str, host: Host, *flags: str) -> None:
        """Start `name`, one of `SERVERS`, and wait until it greets.  Raises `PeerMissing`, `RuntimeError`."""
        self.name = name
        self._flags = flags
        self._host = host
        self._place = roomy_directory()
        self.files = self._place / "files"
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        self.files.mkdir()
        os.chown(self.files, UID, UID)
        launch = SERVERS[self.name](self._place, self.files)
        script = self._place / "start"
        script.write_text(_script(self._place, launch, self._flags))
        with (self._place / "output").open("wb") as output:
            self._process = subprocess.Popen(
                self._host.command("unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", str(script)),
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
                env={"PATH": os.environ["PATH"] + ":/usr/sbin:/sbin", **launch.environment},
            )  # fmt: skip
        waiter = [sys.executable, str(Path(__file__).with_name("greeting.py")), "21", str(START_SECONDS)]
        addresses = [self._host.address(version) for version in (4, 6)]
        done = subprocess.run(self._host.command(*waiter, *addresses), capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{self.name} does not greet: {done.stderr.strip()}\n{self.log()}")

    def log(self) -> str:
        """What it has written so far, for the message of a failed test."""
        parts = [self._place / name for name in ("output", "log", "commands")]
        return "\n".join(part.read_text(errors="replace") for part in parts if part.exists())

    def close(self) -> None:
        """Kill it and remove its files.  Idempotent."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None
        shutil.rmtree(self._place, ignore_errors=True)

    def __enter__(self) -> FtpServer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _script(place: Path, launch: Launch, flags: Sequence[str]) -> str:
    """Shell lines that dress the mount namespace and become the server."""
    etc = {
        "passwd": Path("/etc/passwd").read_text() + f"{USER}:x:{UID}:{UID}::{place / 'files'}:/bin/sh\n",
        "group": Path("/etc/group").read_text() + f"{USER}:x:{UID}:\n",
        "shadow": f"{USER}:{HASH}:19000:0:99999:7:::\n",
        "resolv.conf": "",
        **launch.etc,
    }
    folder = place / "etc"
    lines = ["set -e", "mount --make-rprivate /"]
    for name, content in etc.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    for entry in sorted(folder.iterdir()):
        lines += [f"[ -e /etc/{entry.name} ] && mount --bind {entry} $(readlink -f /etc/{entry.name})"]
    # Not `exec`: the shell is process 1 of the namespace and reaps the orphans there, at which vsftpd would die.
    return "\n".join([*lines, "set +e", " ".join([*launch.argv, *flags]), "exit $?", ""])
