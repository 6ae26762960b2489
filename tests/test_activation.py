"""What a supervisor hands over and hears: real datagrams, real descriptors."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ftpproxy.activation import Inherited, NotifyError, Supervisor, inherited


class Listening:
    """The receiving end of sd_notify(3)."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.settimeout(5)

    def hear(self) -> tuple[list[str], list[int]]:
        text, descriptors, _, _ = socket.recv_fds(self.socket, 4096, 253)
        return text.decode().splitlines(), descriptors


@pytest.fixture(params=["path", "abstract"])
def listening(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Listening]:
    if request.param == "abstract" and sys.platform != "linux":
        pytest.skip("abstract names are Linux's")
    address = str(tmp_path / "notify") if request.param == "path" else f"@ftpproxy-test-{os.getpid()}"
    found = Listening(address)
    yield found
    found.socket.close()


def test_the_life_of_a_service(listening: Listening) -> None:
    environment = {"NOTIFY_SOCKET": listening.address, "OTHER": "stays"}
    supervisor = Supervisor.from_environment(environment)
    assert environment == {"OTHER": "stays"}
    supervisor.ready("2 services\nforged=1")
    assert listening.hear() == (["READY=1", "STATUS=2 services forged=1", f"MAINPID={os.getpid()}"], [])
    supervisor.reloading()
    lines, _ = listening.hear()
    assert lines[0] == "RELOADING=1"
    assert lines[1].startswith("MONOTONIC_USEC=")
    supervisor.stopping("draining 3 sessions")
    assert listening.hear() == (["STOPPING=1", "STATUS=draining 3 sessions"], [])


def test_a_descriptor_goes_to_the_store(listening: Listening) -> None:
    reading, writing = os.pipe()
    try:
        Supervisor(listening.address).store("session-1", reading)
        lines, (stored,) = listening.hear()
        assert lines == ["FDSTORE=1", "FDNAME=session-1", "FDPOLL=0"]
        assert os.path.samestat(os.fstat(stored), os.fstat(reading))
        os.close(stored)
        Supervisor(listening.address).forget("session-1")
        assert listening.hear() == (["FDSTOREREMOVE=1", "FDNAME=session-1"], [])
    finally:
        os.close(reading)
        os.close(writing)


def test_a_barrier_waits_until_it_is_lifted(listening: Listening) -> None:
    """In another process, because it blocks."""
    argv = [sys.executable, "-c", "import sys; from ftpproxy.activation import *; Supervisor(sys.argv[1]).barrier()"]
    waiting = subprocess.Popen([*argv, listening.address])
    try:
        lines, descriptors = listening.hear()
        assert lines == ["BARRIER=1"]
        assert waiting.poll() is None
        os.close(descriptors[0])
        assert waiting.wait(10) == 0
    finally:
        waiting.kill()
        waiting.wait()


def test_a_barrier_that_is_never_lifted_is_an_error(listening: Listening) -> None:
    with pytest.raises(NotifyError, match=r"did not take everything within 0\.01 s"):
        Supervisor(listening.address).barrier(0.01)


def test_a_supervisor_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(NotifyError, match="was not told READY=1: No such file or directory"):
        Supervisor(str(tmp_path / "gone")).ready("x")


def test_nobody_is_told_nothing() -> None:
    supervisor = Supervisor.from_environment({})
    assert not supervisor
    supervisor.ready("x")
    supervisor.barrier()


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, 0.0),
        ({"WATCHDOG_USEC": "soon"}, 0.0),
        ({}, 0.0),
    ],
)
def test_the_watchdog_is_asked_for(environment: dict[str, str], seconds: float) -> None:
    assert Supervisor.from_environment(environment).watchdog == seconds


def test_a_sign_of_life_comes_in_time_and_not_more_often(listening: Listening) -> None:
    supervisor = Supervisor(listening.address, watchdog=10.0)
    said = []
    listening.socket.setblocking(False)
    for second in range(20):
        supervisor.sign_of_life(float(second))
        try:
            listening.hear()
            said.append(second)
        except BlockingIOError:
            pass
    assert said == [0, 4, 8, 12, 16]


INHERITING = """
import os, sys
os.environ["LISTEN_PID"] = str(os.getpid())
from ftpproxy.activation import inherited
for each in inherited():
    sock = each.listener()
    print(each.name, sock and sock.getsockname()[1])
assert inherited() == []
assert not {"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} & os.environ.keys()
"""


def test_listeners_are_inherited_by_name(tmp_path: Path) -> None:
    """Of three descriptors one listens, one is no socket, one a socket of another kind."""
    listener = socket.create_server(("127.0.0.1", 0))
    datagram = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    file = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    try:
        order = [listener.fileno(), file, datagram.fileno()]
        environment = {**os.environ, "LISTEN_FDS": "3", "LISTEN_FDNAMES": "lan:store"}
        # The child's numbers 3, 4 and 5 are ours, in that order.
        high = [os.dup(each) for each in order]
        for number, target in zip(high, (103, 104, 105), strict=True):
            os.dup2(number, target)
            os.close(number)
        move = f"exec 3<&103 4<&104 5<&105; exec {sys.executable} -c '{INHERITING}'"
        done = subprocess.run(
            ["bash", "-c", move],
            env=environment,
            pass_fds=(103, 104, 105),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stderr == ""
        assert done.stdout.splitlines() == [f"lan {listener.getsockname()[1]}", "store None", "unknown None"]
    finally:
        for number in (103, 104, 105):
            os.close(number)
        listener.close()
        datagram.close()
        os.close(file)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"LISTEN_FDS": "2"},
        {"LISTEN_FDS": "2", "LISTEN_PID": "1"},
        {"LISTEN_FDS": "x", "LISTEN_PID": str(os.getpid())},
    ],
)
def test_what_was_meant_for_another_is_not_taken(environment: dict[str, str]) -> None:
    assert inherited(environment) == []
    assert environment == {}


def test_a_listener_takes_the_place_of_its_descriptor() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    descriptor = listener.detach()
    sock = Inherited("lan", descriptor).listener()
    assert sock is not None
    sock.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
