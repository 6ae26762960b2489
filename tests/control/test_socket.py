"""The control socket: where it is, who may use it, and that nobody can hurt by it."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from ftpproxy.config import ConfigError, ControlConfig, parse
from ftpproxy.control.address import Address, CannotControl
from ftpproxy.control.credentials import peer_of
from ftpproxy.control.hall import LONGEST_REQUEST, MOST_OF_A_USER
from ftpproxy.lab.peers import FtpServer

from .conftest import Stage, new_stage, until

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")

# -- the place --------------------------------------------------------------------------------------------------------


def test_it_is_for_root_and_the_group_and_goes_with_its_directory(tmp_path: Path) -> None:
    path = tmp_path / "made" / "control"
    address = Address.open(str(path), "daemon")
    status = path.stat()
    assert stat.S_IMODE(status.st_mode) == 0o660
    if os.geteuid() == 0:
        assert (address.group, status.st_gid) == (1, 1)
    address.close()
    assert not path.parent.exists()


def test_a_group_that_there_is_not(tmp_path: Path) -> None:
    address = Address.open(str(tmp_path / "control"), "no-such-group")
    assert address.group is None
    address.close()


def test_a_dead_socket_is_replaced(tmp_path: Path) -> None:
    path = str(tmp_path / "control")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    address = Address.open(path, "daemon")
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(path)
    address.close()
    assert os.listdir(tmp_path) == []


def test_a_living_one_is_not_touched(tmp_path: Path) -> None:
    path = str(tmp_path / "control")
    first = Address.open(path, "daemon")
    with pytest.raises(CannotControl, match="another ftpproxy answers there"):
        Address.open(path, "daemon")
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(path)
    first.close()


def test_a_successors_socket_stays(tmp_path: Path) -> None:
    path = tmp_path / "control"
    first = Address.open(str(path), "daemon")
    path.unlink()
    second = Address.open(str(path), "daemon")
    first.close()
    assert path.exists()
    second.close()
    assert not path.exists()


def test_something_else_is_there(tmp_path: Path) -> None:
    path = tmp_path / "control"
    path.write_text("precious")
    with pytest.raises(CannotControl, match="something else is there"):
        Address.open(str(path), "daemon")
    assert path.read_text() == "precious"


def test_a_directory_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(CannotControl, match="cannot be made: No such file or directory"):
        Address.open(str(tmp_path / "a" / "b" / "control"), "daemon")


SERVICE = """
[[service]]
name = "x"
mode = "reverse"
listen = ["127.0.0.1:8021"]
intercept = "none"
servers = ["127.0.0.1:21"]
"""


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (f'socket = "/{"x" * 107}"', "control.socket: has 108 octets; the path of a unix socket has at most 107"),
        ('socket = "control"', "control.socket: is the absolute path of a socket"),
        ('group = ""', "control.group: is the name of a group"),
        ('sockets = "/x"', "control.sockets: unknown key; did you mean socket?"),
    ],
)
def test_mistakes_in_the_file(line: str, problem: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(f"{SERVICE}[control]\n{line}\n")
    (found,) = map(str, error.value.problems)
    assert found.startswith(problem)


def test_the_longest_path_works(tmp_path: Path) -> None:
    path = str(tmp_path) + "/"
    path += "x" * (107 - len(path))
    assert parse(f'{SERVICE}[control]\nsocket = "{path}"\n').control == ControlConfig(socket=path)
    Address.open(path, "daemon").close()


# -- who asks ---------------------------------------------------------------------------------------------------------


def test_the_kernel_says_who_asks() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        peer = peer_of(ours)
    assert peer.uid == os.geteuid()
    assert {os.getegid(), *os.getgroups()} <= peer.groups
    assert peer.almighty


ASK = """
import json, os, socket, sys
groups, path, request = json.loads(sys.argv[1])
os.setgroups(groups[1:]); os.setgid(groups[0]); os.setuid(65534)
s = socket.socket(socket.AF_UNIX)
try:
    s.connect(path)
    try:
        s.sendall(request.encode() + b"\\n")
    except BrokenPipeError:
        pass  # refused before it was asked
    print(s.makefile().readline(), end="")
except PermissionError:
    print("{}")
"""


def ask_as_nobody(path: Path, groups: list[int], **request: object) -> dict[str, Any]:
    argument = json.dumps([groups, str(path), json.dumps(request)])
    done = subprocess.run([sys.executable, "-c", ASK, argument], capture_output=True, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@as_root
@pytest.mark.parametrize("groups", [[1], [NOBODY, 1]], ids=["primary", "supplementary"])
def test_members_of_the_group_may_look_and_change_nothing(stage: Stage, groups: list[int]) -> None:
    assert ask_as_nobody(stage.proxy.socket, groups, command="status")["result"]["state"] == "running"
    for request in ({"command": "kill", "session": 1}, {"command": "drain"}, {"command": "reload"}):
        refused = ask_as_nobody(stage.proxy.socket, groups, **request)
        assert refused == {"error": f"only root may say {request['command']}", "code": 77}
    assert stage.ask("status")["state"] == "running"


@as_root
def test_others_may_nothing(stage: Stage) -> None:
    assert ask_as_nobody(stage.proxy.socket, [NOBODY], command="status") == {}  # not even connect
    stage.proxy.socket.chmod(0o666)  # though somebody had opened the door: the credentials decide
    assert ask_as_nobody(stage.proxy.socket, [NOBODY], command="status")["code"] == 77
    stage.proxy.socket.chmod(0o660)


@pytest.fixture(scope="module")
def stage(ftp_server: FtpServer) -> Iterator[Stage]:
    """One proxy for all of them, whose socket belongs to the group 1 and is where everybody finds it."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ftpproxy-control-")))
        folder.chmod(0o755)
        more = f'[control]\nsocket = "{folder}/control"\ngroup = "daemon"\n'
        yield new_stage(stack, ftp_server, more)


# -- what comes in ----------------------------------------------------------------------------------------------------


class Guest:
    """Somebody with a socket and no manners."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(path))
        self.sock.settimeout(15)
        self.lines = self.sock.makefile("rb")

    def send(self, octets: bytes) -> None:
        self.sock.sendall(octets)

    def hear(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.lines.readline())
        return answer

    def close(self) -> None:
        self.lines.close()
        self.sock.close()


@pytest.fixture
def guest(stage: Stage) -> Iterator[Callable[[], Guest]]:
    guests: list[Guest] = []

    def another() -> Guest:
        guests.append(Guest(stage.proxy.socket))
        return guests[-1]

    yield another
    for each in guests:
        each.close()


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b"status", "a request is a JSON object on a line of its own"),
        (b"", "a request is a JSON object on a line of its own"),
        (b"[" * 3000, "a request is a JSON object on a line of its own"),
        (b'["status"]', "a request is a JSON object on a line of its own"),
        (b"\xff\xfe\x00", "a request is a JSON object on a line of its own"),
        (b"{}", "known commands are status, sessions, trace, kill, drain, reload, log-level"),
        (b'{"command": ["status"]}', "known commands are"),
        (b'{"command": "status", "self": 1}', "status does not take 'self'"),
        (b'{"command": "kill"}', "a session is named by its number"),
        (b'{"command": "kill", "session": "1"}', "a session is named by its number"),
        (b'{"command": "kill", "session": true}', "a session is named by its number"),
        (b'{"command": "kill", "session": 1e999}', "a session is named by its number"),
        (b'{"command": "kill", "session": 12}', "no session 12"),
        (b'{"command": "trace"}', "trace takes a session or an address"),
        (b'{"command": "trace", "address": {}}', "{} is not an IP address"),
        (
            b'{"command": "log-level", "level": ["info"]}',
            "log-level takes one of debug, info, notice, warning, error, critical",
        ),
    ],
)
def test_a_bad_line_gets_an_error_and_service_goes_on(guest: Callable[[], Guest], line: bytes, error: str) -> None:
    caller = guest()
    caller.send(line + b"\n")
    answer = caller.hear()
    assert error in answer["error"]
    assert answer["code"] in (1, 64)
    caller.send(b'{"command": "status"}\n')
    assert caller.hear()["result"]["state"] == "running"


def test_a_line_without_end(guest: Callable[[], Guest], stage: Stage) -> None:
    caller = guest()
    caller.send(b"x" * (2 * LONGEST_REQUEST))
    assert caller.hear() == {"error": f"a request has at most {LONGEST_REQUEST} octets", "code": 64}
    assert caller.lines.readline() == b""
    assert stage.ask("status")["state"] == "running"


def test_requests_in_pieces_and_in_one(guest: Callable[[], Guest]) -> None:
    caller = guest()
    for octet in b'{"command": "status"}':
        caller.send(bytes([octet]))
    caller.send(b'\n{"command": "sessions"}\n{"command": "status"}\n')
    assert caller.hear()["result"]["sessions"] == 0
    assert caller.hear()["result"] == []
    assert caller.hear()["result"]["sessions"] == 0


def test_who_hangs_up_is_forgotten(guest: Callable[[], Guest], stage: Stage) -> None:
    for _ in range(100):
        caller = guest()
        caller.send(b'{"command": "trace", "address": "127.0.0.1"}\n')
        caller.close()
    assert stage.ask("status")["state"] == "running"


@as_root
def test_an_ordinary_user_has_a_few_and_root_finds_room(stage: Stage) -> None:
    crowd = """
import os, socket, sys
os.setgroups([]); os.setgid(1); os.setuid(65534)
guests = [socket.socket(socket.AF_UNIX) for _ in range(20)]
for guest in guests: guest.connect(sys.argv[1])
refused = 0
for guest in guests[8:]:
    guest.settimeout(10)
    refused += b"too many ask already" in guest.recv(1000)
print(refused, flush=True)
sys.stdin.read()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", crowd, str(stage.proxy.socket)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert int(process.stdout.readline()) == 20 - MOST_OF_A_USER
        assert stage.ask("status")["state"] == "running"
    finally:
        process.communicate()


def test_slow_answers_do_not_hold_others_up(guest: Callable[[], Guest], stage: Stage) -> None:
    """A guest who asks and does not read."""
    deaf = guest()
    deaf.sock.setblocking(False)

    def shout() -> None:
        try:
            while True:
                deaf.sock.send(b'{"command": "status"}\n' * 50)
        except BlockingIOError:
            pass

    shouting = threading.Thread(target=shout)
    shouting.start()
    shouting.join()
    assert stage.ask("status")["state"] == "running"
    with stage.client().log_in() as client:
        assert client.say("NOOP").startswith("200")
    until(lambda: stage.sessions == [])
