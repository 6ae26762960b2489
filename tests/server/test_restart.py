"""`serve` that is restarted: by a supervisor with a descriptor store, and by itself."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ftpproxy import activation
from ftpproxy.compose.heritage import ESTATE, Successor
from ftpproxy.config import Config
from ftpproxy.estate import Estate

from .supervisor import PATIENCE, Supervisor

IDLE = 50
SMALL, MEDIUM, BIG = 600_000, 6_000_000, 48_000_000
"""Octets of a transfer that is copied, of one that is spliced, and of one that does not fit into all buffers."""


class Site:
    """A server in the test's hands, behind a supervised proxy."""

    def __init__(self, folder: Path, planes: str = '["relay"]') -> None:
        self.stack = ExitStack()
        self.origin = self.keep(socket.create_server(("127.0.0.1", 0), backlog=128))
        self.origin.settimeout(PATIENCE)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.at = free.getsockname()
        self.file = folder / "ftpproxy.toml"
        self.write()
        self.supervisor = Supervisor(folder, "serve", "-c", str(self.file))
        self.stack.callback(self.supervisor.close)

    def write(self, name: str = "files") -> None:
        self.file.write_text(f"""
            [process]
            user = ""
            [control]
            socket = ""
            [[service]]
            name = "{name}"
            mode = "reverse"
            listen = ["127.0.0.1:{self.at[1]}"]
            intercept = "none"
            servers = ["127.0.0.1:{self.origin.getsockname()[1]}"]
            planes = ["relay"]
            [service.policy]
            require_login = false
        """)

    def keep(self, sock: socket.socket) -> socket.socket:
        sock.settimeout(PATIENCE)
        return self.stack.enter_context(sock)

    def log_has(self, pattern: str, times: int = 1) -> None:
        until(lambda: len(re.findall(pattern, self.supervisor.log)) >= times, f"{pattern} in the log")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    with site.stack:
        site.supervisor.start()
        yield site


class Session:
    """Both ends of one control connection."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.client = site.keep(socket.create_connection(site.at, PATIENCE))
        self.server = site.keep(site.origin.accept()[0])
        self.replies = self.client.makefile("rb")
        self.commands = self.server.makefile("rb")
        site.stack.enter_context(self.replies)
        site.stack.enter_context(self.commands)
        self.answers(b"220 hello")

    def says(self, line: bytes) -> None:
        """The client says it, and the server hears it."""
        self.client.sendall(line + b"\r\n")
        assert self.commands.readline() == line + b"\r\n"

    def answers(self, line: bytes) -> None:
        """The server says it, and the client hears it."""
        self.server.sendall(line + b"\r\n")
        assert self.replies.readline() == line + b"\r\n"

    def passive(self) -> tuple[str, int]:
        """Set a data connection up on the server's side; where the client is to call."""
        self.says(b"PASV")
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            self.server.sendall(b"227 (127,0,0,1,%d,%d)\r\n" % divmod(port, 256))
            listener.settimeout(PATIENCE)
            self.far = self.site.keep(listener.accept()[0])
        numbers = list(map(int, re.findall(rb"[0-9]+", self.replies.readline().partition(b"(")[2])))
        return "127.0.0.1", numbers[4] * 256 + numbers[5]

    def still_speaks(self) -> None:
        self.says(b"NOOP")
        self.answers(b"200 still here")


class Transfer:
    """One that is under way: `sender` to `receiver`."""

    def __init__(self, session: Session, verb: bytes, size: int) -> None:
        place = session.passive()
        near = session.site.keep(socket.create_connection(place, PATIENCE))
        session.says(verb + b" file")
        session.answers(b"150 go")
        self.session, self.verb, self.size = session, verb, size
        self.sender, self.receiver = (session.far, near) if verb == b"RETR" else (near, session.far)
        for sock in (self.sender, self.receiver):
            sock.setblocking(False)
        self.sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        self.receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        self.rest = memoryview(random.Random(size).randbytes(size))
        self.expected = hashlib.sha256(self.rest)
        self.got = hashlib.sha256()
        self.count = 0

    def move(self, until: int | None = None) -> bool:
        """Send and receive what can be now, not more than `until`; whether it has ended."""
        try:
            if self.rest:
                self.rest = self.rest[self.sender.send(self.rest[: 1 << 20]) :]
                if not self.rest:
                    self.sender.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            pass
        try:
            if until is None or self.count < until:
                if not (octets := self.receiver.recv(1 << 20)):
                    return True
                self.got.update(octets)
                self.count += len(octets)
        except BlockingIOError:
            pass
        return False

    def begin(self) -> None:
        """Get a part of it through; of a big one so much that what is sent behind it fills every buffer."""
        part = min(self.size // 3, 4_000_000)
        deadline = time.monotonic() + PATIENCE
        while self.count < part:
            assert time.monotonic() < deadline
            self.move(part)
        if self.size == BIG:
            while self.rest and select.select([], [self.sender], [], 0.1)[1]:
                self.move(0)
            assert self.rest, "it fits into the buffers"

    def end(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while not self.move():
            assert time.monotonic() < deadline
            writers = [self.sender] if self.rest else []
            select.select([self.receiver], writers, [], 1)
        assert self.count == self.size
        assert self.got.digest() == self.expected.digest()
        self.receiver.close()
        self.sender.close()
        self.session.answers(b"226 done")


def test_nobody_notices_a_restart(site: Site) -> None:
    """Idle sessions, half a command, a data connection that was announced, transfers each way, copied and spliced; who
    calls while nobody is there; and all of it once more."""
    idle = [Session(site) for _ in range(IDLE)]
    transfers = [
        Transfer(Session(site), verb, size)
        for verb in (b"RETR", b"STOR")
        for size in (SMALL, SMALL, SMALL, MEDIUM, BIG)
    ]
    for transfer in transfers:
        transfer.begin()
    waiting, halved = Session(site), Session(site)
    place = waiting.passive()
    halved.client.sendall(b"NO")

    for _ in range(2):
        site.supervisor.signal(signal.SIGUSR2)
        assert site.supervisor.wait() == 0
        assert [name for name, _ in site.supervisor.stored] == [ESTATE]
        early = site.keep(socket.create_connection(site.at, PATIENCE))
        site.supervisor.start()
        assert site.supervisor.stored == []
        for session in idle:
            session.still_speaks()
        site.keep(site.origin.accept()[0]).sendall(b"220 you were early\r\n")
        assert early.recv(100) == b"220 you were early\r\n"

    halved.client.sendall(b"OP\r\n")
    assert halved.commands.readline() == b"NOOP\r\n"
    with socket.create_connection(place, PATIENCE) as data:
        waiting.says(b"STOR late")
        waiting.answers(b"150 go")
        data.sendall(b"late")
        data.shutdown(socket.SHUT_WR)
        assert waiting.far.recv(100) == b"late"
        assert waiting.far.recv(100) == b""
        waiting.far.close()
        waiting.answers(b"226 done")
    for transfer in transfers:
        transfer.end()
    for session in idle:
        session.still_speaks()
    site.log_has(r" transfer .*result=complete", len(transfers) + 1)
    log = site.supervisor.log
    for verb, way in ((b"RETR", "down"), (b"STOR", "up")):
        for size, times in ((SMALL, 3), (MEDIUM, 1), (BIG, 1)):
            pattern = rf' transfer .*what="{verb.decode()} file".* {way}={size} .*result=complete'
            assert len(re.findall(pattern, log)) == times, log
    sessions = IDLE + len(transfers) + 2
    assert re.findall(r" restart\.left sessions=(\d+)", log) == [str(sessions), str(sessions + 1)]
    assert re.findall(r" restart\.inherited sessions=(\d+) program=", log) == [str(sessions), str(sessions + 1)]
    assert "error" not in log
    assert "session.close" not in log.partition(" restart.inherited")[0]


def test_a_service_that_is_gone(site: Site) -> None:
    """Its sessions are told, and the log says why."""
    session = Session(site)
    site.write("renamed")
    site.supervisor.restart()
    assert session.replies.readline() == b"421 The proxy was restarted and this session could not go on.\r\n"
    assert session.replies.readline() == session.commands.readline() == b""
    assert 'session.lost session=1 reason="there is no service \\"files\\" any more"' in site.supervisor.log
    Session(site).still_speaks()


def test_a_session_that_is_not_ours_to_read_goes_along(site: Site) -> None:
    """Behind AUTH the two ends speak TLS with each other."""
    session = Session(site)
    session.says(b"AUTH TLS")
    session.answers(b"234 go")
    session.client.sendall(b"\x16\x03\x01 hello")
    assert session.server.recv(100) == b"\x16\x03\x01 hello"
    site.supervisor.restart()
    session.server.sendall(b"\x16\x03\x03 hello yourself")
    assert session.client.recv(100) == b"\x16\x03\x03 hello yourself"


def test_the_server_is_called_again(tmp_path: Path) -> None:
    """A session whose server had not answered the call."""
    site = Site(tmp_path)
    with site.stack:
        site.origin.listen(0)  # one may wait to be accepted, and no other is answered
        full = site.keep(socket.create_connection(site.origin.getsockname()))
        site.supervisor.start()
        client = site.keep(socket.create_connection(site.at, PATIENCE))
        calling = f":{site.origin.getsockname()[1]:04X} 02 "  # SYN_SENT
        until(lambda: calling in Path("/proc/net/tcp").read_text(), "the server is called")
        site.supervisor.restart()
        full.close()
        site.origin.accept()[0].close()
        server = site.keep(site.origin.accept()[0])
        server.sendall(b"220 late\r\n")
        assert client.recv(100) == b"220 late\r\n"


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"it did not happen: {what}"
        time.sleep(0.02)  # between two looks


def test_by_itself(tmp_path: Path) -> None:
    """Without a supervisor SIGUSR2 starts the program anew in the same process; a bad file is refused first."""
    site = Site(tmp_path)
    with site.stack:
        site.supervisor.start_alone()
        session = Session(site)
        transfer = Transfer(Session(site), b"RETR", BIG)
        transfer.begin()
        good = site.file.read_text()
        site.file.write_text(good + "nonsense = 1")
        site.supervisor.signal(signal.SIGUSR2)
        site.log_has(r" restart\.refused ")
        session.still_speaks()
        site.file.write_text(good)
        site.supervisor.signal(signal.SIGUSR2)
        site.log_has(r" restart\.inherited ")
        session.still_speaks()
        transfer.end()
        site.log_has(rf" down={BIG} .*result=complete")


def test_what_its_user_may_not_run_is_refused_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Behind the point of no return it would end every session."""
    successor = Successor(activation.Supervisor(), lambda: Config(services=()))
    assert successor.possible()
    program = tmp_path / "python3"
    program.write_text("no permission to execute this")
    monkeypatch.setattr("sys.executable", str(program))
    assert not successor.possible()
    assert caplog.messages == ["restart.refused"]
    assert str(program) in vars(caplog.records[0])["fields"]["reason"]


def test_signals_in_the_middle_of_it(tmp_path: Path) -> None:
    """What is said to a process that is being replaced, or has just begun, waits: it does not end everybody."""
    site = Site(tmp_path)
    with site.stack:
        site.supervisor.start_alone()
        session = Session(site)
        site.supervisor.signal(signal.SIGUSR2)
        site.log_has(r" restart\.left ")
        site.supervisor.signal(signal.SIGHUP)
        site.supervisor.signal(signal.SIGUSR2)
        site.log_has(r" restart\.inherited ")
        session.still_speaks()


def test_more_descriptors_than_it_is_allowed_at_first(tmp_path: Path) -> None:
    """A soft limit is raised before what was left is unpacked."""
    site = Site(tmp_path)
    site.supervisor.prefix = ("prlimit", "--nofile=64:4096")
    with site.stack:
        site.supervisor.start()
        sessions = [Session(site) for _ in range(40)]
        site.supervisor.restart()
        for session in sessions:
            session.still_speaks()


# Estates that are none


def stored(site: Site, queue: socket.socket) -> None:
    """What the next process is to find."""
    for _, number in site.supervisor.stored:
        os.close(number)
    site.supervisor.stored = [(ESTATE, os.dup(queue.fileno()))]
    queue.close()


def damaged(change: str) -> socket.socket:
    """An estate whose state is damaged."""
    estate = Estate()
    lines = estate._lines
    lines.append(b'["session", {"number": 7}]\n')
    if change == "not JSON":
        lines.append(b"{{{\n")
    elif change == "deep":
        lines.append(b"[" * 100_000 + b"\n")
    elif change == "cut":
        lines += [b'["hunter2", {"num\n', b'["session", {"num']
    elif change == "foreign":
        lines += [b'["session", 7]\n', b'["__class__", {}]\n', b'["listener", {"service": 1}]\n', b'["door", null]\n']
        lines += [b'["table", {}]\n', b'["reception", {}]\n', b'["arrival", []]\n', b"7\n"]
    return estate.sealed()


@pytest.mark.parametrize("change", ["not JSON", "deep", "cut", "foreign"])
def test_damaged_records(site: Site, change: str) -> None:
    """What cannot be read is said, and everything else goes on."""
    site.supervisor.signal(signal.SIGTERM)
    site.supervisor.wait()
    stored(site, damaged(change))
    site.supervisor.start()
    Session(site).still_speaks()
    log = site.supervisor.log
    assert "session.lost session=7 reason=" in log
    assert log.count("restart.damaged") == {"foreign": 3, "cut": 2}.get(change, 1)
    assert "hunter2" not in log
    assert "Traceback" not in log


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_version(site: Site, version: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients are told, since the first line of a state never changes."""
    near, far = socket.socketpair()
    with near, far:
        estate = Estate()
        estate.descriptor(far, client=True)
        monkeypatch.setattr("ftpproxy.estate.VERSION", version)
        queue = estate.sealed()
        site.supervisor.signal(signal.SIGTERM)
        site.supervisor.wait()
        stored(site, queue)
        far.close()
        site.supervisor.start()
        assert near.recv(1000) == b"421 The proxy was restarted and this session could not go on.\r\n"
        assert near.recv(1000) == b""
    assert "restart.unreadable" in site.supervisor.log
    Session(site).still_speaks()


@pytest.mark.parametrize("kind", ["file", "empty queue", "listener"])
def test_what_is_no_estate(site: Site, kind: str) -> None:
    site.supervisor.signal(signal.SIGTERM)
    site.supervisor.wait()
    if kind == "file":
        number = os.open(site.file, os.O_RDONLY)
        site.supervisor.stored = [(ESTATE, number)]
    elif kind == "listener":
        stored(site, socket.create_server(("127.0.0.1", 0)))
    else:
        ours, theirs = socket.socketpair()
        ours.close()
        stored(site, theirs)
    site.supervisor.start()
    assert site.supervisor.stored == []
    Session(site).still_speaks()
    assert " error restart.unreadable reason=" in site.supervisor.log


def test_the_header_is_for_ever() -> None:
    """Every version has to find these in the first line."""
    estate = Estate()
    with estate.sealed() as queue:
        _, (state, octets), _, _ = socket.recv_fds(queue, 1, 2)
        header = json.loads(os.pread(state, 10_000, 0).partition(b"\n")[0])
        os.close(state)
        os.close(octets)
    assert {"version", "program", "descriptors", "octets", "clients"} == header.keys()
