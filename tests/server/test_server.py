"""Who is let in, who is told what, and that nobody's end is anybody else's: real sockets on loopback."""

from __future__ import annotations

import os
import resource
import select
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from functools import partial
from ipaddress import ip_network
from typing import Any

import pytest
import trio

from ftpproxy.doors import Doors
from ftpproxy.dtp.plane import PathOwner, Refused
from ftpproxy.endpoints import Endpoint, Side
from ftpproxy.estate import Estate, Inheritance
from ftpproxy.freezing import Unthawable
from ftpproxy.intercept.direct import DirectGate
from ftpproxy.paths import Direction, PathSpec, Tally
from ftpproxy.pi.policy import Policy, Timeouts
from ftpproxy.server import CannotListen, Server, Service
from ftpproxy.session import Session, Terms
from ftpproxy.switchboard import Switchboard

from ..waiting import pending

PATIENCE = 5.0
LOOPBACK = Endpoint.parse("127.0.0.1:0")


class IdlePath:
    """A path that is open and carries when the test says so."""

    def __init__(self, owner: PathOwner) -> None:
        self.owner = owner
        self.announced = {Side.CLIENT: Endpoint.parse("127.0.0.1:20001")}
        self.ready = self.reports_end = self.counts_at_once = True
        self.closed = False
        self.tally: Tally | None = None

    def start(self, direction: Direction) -> None: ...

    def settle(self) -> None: ...

    def so_far(self) -> Tally | None:
        return self.tally

    def close(self) -> Tally | None:
        self.closed = True
        return self.tally

    def leave(self, estate: Estate) -> None: ...


class IdlePlane:
    name = "idle"

    def __init__(self) -> None:
        self.paths: list[IdlePath] = []
        self.reports_end = True

    def carries(self, spec: PathSpec) -> bool:
        return True

    def foresee(self, spec: PathSpec) -> None: ...

    def open(self, spec: PathSpec, owner: PathOwner) -> IdlePath | Refused:
        self.paths.append(IdlePath(owner))
        self.paths[-1].reports_end = self.reports_end
        return self.paths[-1]

    def inherit(self, left: Any, owner: PathOwner, inheritance: Inheritance) -> IdlePath:
        raise Unthawable("it was never left")

    def close(self) -> None: ...


class Stage:
    """A server on loopback, the FTP server behind it, and clients."""

    def __init__(self) -> None:
        self.board = Switchboard()
        self.origin = socket.create_server(("127.0.0.1", 0))
        self.plane = IdlePlane()
        self.open: list[socket.socket] = [self.origin]
        self.server: Server | None = None
        self.at = LOOPBACK

    def serve(self, **changes: Any) -> None:
        policy, timeouts = changes.pop("policy", Policy(require_login=False)), changes.pop("timeouts", Timeouts())
        xferlog = changes.pop("xferlog", None)
        service = {
            "terms": Terms(service="test", policy=policy, timeouts=timeouts, planes=[self.plane], xferlog=xferlog),
            "gate": DirectGate(Doors(self.board)),
            "listen": [LOOPBACK],
            "servers": [Endpoint.from_sockaddr(self.origin.getsockname())],
            **changes,
        }
        self.server = Server(self.board, [Service(**service)])
        self.server.listen()
        self.at = next(iter(self.server.listeners)).at

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, "it did not happen"
            pending(self.board, seconds=0.01)
            self.board.turn()

    def client(self) -> socket.socket:
        sock = socket.create_connection(self.at.sockaddr())
        sock.setblocking(False)
        self.open.append(sock)
        return sock

    def accepted(self) -> socket.socket:
        """The FTP server's end of the next session."""
        self.until(lambda: bool(select.select([self.origin], [], [], 0)[0]))
        sock, _ = self.origin.accept()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.open.append(sock)
        return sock

    def greeted(self, greeting: bytes = b"220 hello") -> tuple[socket.socket, socket.socket]:
        """A client whom the server has greeted, and the server's end."""
        client, origin = self.client(), self.accepted()
        origin.send(greeting + b"\r\n")
        self.hears(client, greeting + b"\r\n")
        return client, origin

    def hears(self, sock: socket.socket, expected: bytes) -> None:
        """`sock` receives exactly this."""
        heard = b""

        def listen() -> bool:
            nonlocal heard
            try:
                heard += sock.recv(len(expected) - len(heard))
            except BlockingIOError:
                pass
            return len(heard) == len(expected)

        try:
            self.until(listen)
        finally:
            assert heard == expected

    def sees_the_end(self, sock: socket.socket) -> None:
        self.until(lambda: bool(select.select([sock], [], [], 0)[0]))
        assert sock.recv(1) == b""

    def sees_the_end_after_what_was_sent(self, sock: socket.socket) -> None:
        def ended() -> bool:
            try:
                return not sock.recv(65536)
            except BlockingIOError:
                return False
            except ConnectionResetError:
                return True

        self.until(ended)

    @property
    def session(self) -> Session:
        assert self.server is not None
        (session,) = self.server.sessions
        return session

    def close(self) -> None:
        for sock in self.open:
            sock.close()
        if self.server is not None:
            self.server.close()
        self.board.close()


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage()
    yield stage
    stage.close()


def test_lines_pass_both_ways(stage: Stage) -> None:
    stage.serve()
    client, origin = stage.greeted()
    client.send(b"NOOP\r\n")
    stage.hears(origin, b"NOOP\r\n")
    client.close()
    stage.sees_the_end(origin)
    assert stage.server is not None
    stage.until(lambda: not stage.server or not stage.server.sessions)


def test_pipelining_costs_one_round_trip(stage: Stage) -> None:
    """Twenty commands sent at once reach the server at once: it answers none before it has all of them."""
    stage.serve()
    client, origin = stage.greeted()
    commands = b"".join(b"SIZE %d\r\n" % number for number in range(20))
    client.send(commands)
    stage.hears(origin, commands)
    answers = b"".join(b"213 %d\r\n" % number for number in range(20))
    origin.send(answers)
    stage.hears(client, answers)


def test_the_cap_of_all_sessions(stage: Stage) -> None:
    """Item 142: one more than allowed is told 421 and closed; when somebody leaves there is room again."""
    stage.serve(most_sessions=1)
    first = stage.client()
    origin = stage.accepted()
    refused = stage.client()
    stage.hears(refused, b"421 Too many sessions, try again later.\r\n")
    stage.sees_the_end(refused)
    origin.send(b"220 hello\r\n")
    stage.hears(first, b"220 hello\r\n")
    first.close()
    stage.sees_the_end(origin)
    stage.client()
    stage.accepted()


def test_the_cap_of_one_address(stage: Stage) -> None:
    """Item 142."""
    stage.serve(most_per_client=2)
    for _ in range(2):
        stage.client()
        stage.accepted()
    stage.hears(stage.client(), b"421 Too many sessions from your address.\r\n")


def test_who_may_use_it(stage: Stage) -> None:
    stage.serve(clients=[ip_network("192.0.2.0/24")])
    stage.hears(stage.client(), b"421 You may not use this service.\r\n")


def test_a_server_that_is_down(stage: Stage) -> None:
    """The client is told 421 with the reason."""
    closed = socket.create_server(("127.0.0.1", 0))
    gone = Endpoint.from_sockaddr(closed.getsockname())
    closed.close()
    stage.serve(servers=[gone])
    client = stage.client()
    stage.hears(client, f"421 Cannot reach the server {gone}: Connection refused.\r\n".encode())
    stage.sees_the_end(client)


def test_a_server_that_does_not_answer(stage: Stage) -> None:
    full = socket.create_server(("127.0.0.1", 0), backlog=0)
    stage.open.append(full)
    silent = Endpoint.from_sockaddr(full.getsockname())
    stage.open.append(socket.create_connection(silent.sockaddr()))  # fills the queue: further calls stay unanswered
    stage.serve(servers=[silent], timeouts=Timeouts(connect=30))
    client = stage.client()
    stage.until(lambda: bool(stage.server and stage.server.sessions))
    stage.session.sweep(stage.board.now + 29)
    stage.session.sweep(stage.board.now + 30)
    stage.hears(client, f"421 Cannot reach the server {silent}: Connection timed out.\r\n".encode())


def test_calling_ourselves(stage: Stage) -> None:
    """Item 143: a client that dials the listener itself, or a server that is the listener, makes no loop."""
    stage.serve(servers=None)
    client = stage.client()
    stage.hears(client, b"421 The way to that server leads back to this proxy.\r\n")
    stage.sees_the_end(client)
    assert stage.server is not None
    assert not stage.server.sessions


def test_calling_ourselves_at_the_wildcard(stage: Stage) -> None:
    """Item 143: a listener at the wildcard address is at every address of ours, and at no other."""
    stage.serve(listen=[Endpoint.parse("0.0.0.0:0")], servers=None)
    assert stage.server is not None
    assert stage.server.listeners.listens_at(Endpoint.parse("127.0.0.1:1").at(stage.at.port))
    assert not stage.server.listeners.listens_at(Endpoint.parse("192.0.2.1:1").at(stage.at.port))
    assert not stage.server.listeners.listens_at(Endpoint.parse("127.0.0.1:1"))


def test_a_taken_port_is_named() -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    try:
        at = Endpoint.from_sockaddr(taken.getsockname())
        stage = Stage()
        with pytest.raises(CannotListen, match=f"{at}: another process listens there already"):
            stage.serve(listen=[at])
        stage.close()
    finally:
        taken.close()


def test_an_address_that_is_not_ours_is_named() -> None:
    stage = Stage()
    with pytest.raises(CannotListen, match=r"192\.0\.2\.1:8021: 192\.0\.2\.1 is not an address of this machine"):
        stage.serve(listen=[Endpoint.parse("192.0.2.1:8021")])
    stage.close()


def test_no_descriptor_left_is_a_pause(stage: Stage) -> None:
    stage.serve()
    waiting = [stage.client() for _ in range(3)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    probe = socket.socket()
    lowest_free = probe.fileno()
    probe.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        assert stage.server is not None
        stage.until(lambda: stage.server is not None and all(listener.paused for listener in stage.server.listeners))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    stage.server._sweep(stage.board.now)
    for client in waiting:
        stage.accepted().send(b"220 hello\r\n")
        stage.hears(client, b"220 hello\r\n")


def test_a_crash_ends_one_session(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.serve()
    client, other = stage.client(), stage.client()
    origin, other_origin = stage.accepted(), stage.accepted()
    origin.send(b"220 hello\r\n")
    other_origin.send(b"220 hello\r\n")
    stage.hears(client, b"220 hello\r\n")
    stage.hears(other, b"220 hello\r\n")

    def crash(*_: object) -> None:
        raise RuntimeError("on purpose")

    assert stage.server is not None
    broken = min(stage.server.sessions, key=lambda session: session.number)
    monkeypatch.setattr(type(broken._interpreter), "timer", crash)
    client.send(b"NOOP\r\n")
    stage.hears(origin, b"NOOP\r\n")
    broken._deadlines.update(dict.fromkeys(broken._deadlines, 0.0))
    for session in stage.server.sessions:
        if session is not broken:
            session._deadlines.clear()
    stage.server._sweep(1.0)
    stage.sees_the_end(client)
    other.send(b"NOOP\r\n")
    stage.hears(other_origin, b"NOOP\r\n")


def open_path(stage: Stage, client: socket.socket, origin: socket.socket) -> IdlePath:
    client.send(b"PASV\r\n")
    stage.hears(origin, b"PASV\r\n")
    origin.send(b"227 (127,0,0,1,200,1)\r\n")
    stage.hears(client, b"227 Entering Passive Mode (127,0,0,1,78,33)\r\n")
    return stage.plane.paths[-1]


def test_an_abort_is_urgent(stage: Stage) -> None:
    """Items 9, 10, 15: the DM of the Synch is TCP urgent data, in both directions."""
    stage.serve()
    client, origin = stage.greeted()
    path = open_path(stage, client, origin)
    client.send(b"RETR x\r\n")
    stage.hears(origin, b"RETR x\r\n")
    path.owner.connected(path, Side.SERVER)
    path.owner.connected(path, Side.CLIENT)
    client.send(b"ABOR\r\n", socket.MSG_OOB)  # as CPython's ftplib does: the line's LF is urgent
    stage.hears(origin, b"\xff\xf4\xff")
    assert origin.recv(1, socket.MSG_OOB) == b"\xf2"
    stage.hears(origin, b"ABOR\r\n")


@pytest.mark.parametrize("reports_end", [True, False], ids=["relay", "kernel"])
def test_what_still_flows_is_seen(stage: Stage, reports_end: bool) -> None:
    """The server has had its last word, and the client is slow: the session is not idle."""
    stage.plane.reports_end = reports_end
    stage.serve()
    client, origin = stage.greeted()
    path = open_path(stage, client, origin)
    assert stage.session.glance().command == ""
    client.send(b"RETR x y\r\n")
    stage.hears(origin, b"RETR x y\r\n")
    path.owner.connected(path, Side.SERVER)
    path.owner.connected(path, Side.CLIENT)
    origin.send(b"150 go\r\n")
    stage.hears(client, b"150 go\r\n")
    origin.send(b"226 done\r\n")
    if reports_end:  # the word is held back until the octets are there
        stage.until(lambda: stage.session.carriage._transfer is None)
    else:
        stage.hears(client, b"226 done\r\n")
    glance = stage.session.glance()
    assert (glance.command, glance.file) == ("RETR", "x y")
    path.owner.finished(path, Tally(7, 0, 0.5))
    if reports_end:
        stage.hears(client, b"226 done\r\n")
    assert stage.session.glance().command == ""


def test_a_data_connection_that_never_comes_is_said(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    stage.serve()
    client, origin = stage.greeted()
    path = open_path(stage, client, origin)
    path.owner.connected(path, Side.SERVER)
    client.send(b"RETR x\r\n")
    stage.hears(origin, b"RETR x\r\n")
    origin.close()
    stage.sees_the_end(client)
    (record,) = [record for record in caplog.records if record.message == "data.missing"]
    fields = record.__dict__["fields"]
    assert fields["what"] == b"RETR x"
    assert fields["missing"] == "client"
    assert fields["awaited"] == "client at 127.0.0.1:20001"


def test_idle_time_stands_still_while_data_flows(stage: Stage) -> None:
    """Item 101: the control connection is not idle while its data connection carries."""
    stage.serve(timeouts=Timeouts(idle=300, login=100_000))
    client, origin = stage.greeted()
    path = open_path(stage, client, origin)
    session = stage.session
    path.owner.connected(path, Side.CLIENT)
    path.owner.connected(path, Side.SERVER)
    session.sweep(10_000.0)
    stage.board.now = 10_000.0
    path.owner.finished(path, Tally(1, 0, 1.0))
    session.sweep(10_299.0)
    assert stage.server is not None
    assert stage.server.sessions == [session]
    session.sweep(10_300.0)
    stage.hears(client, b"421 Idle for too long.\r\n")
    stage.sees_the_end(client)


def test_a_client_that_does_not_read_stops_the_server(stage: Stage) -> None:
    """Item 100 for control connections: what waits for a slow reader is bounded."""
    stage.serve()
    client = stage.client()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    origin = stage.accepted()
    origin.send(b"220 hello\r\n")
    stage.hears(client, b"220 hello\r\n")
    client.send(b"STAT /\r\n")
    stage.hears(origin, b"STAT /\r\n")
    line = b"213-" + b"x" * 1000 + b"\r\n"
    sent = 0
    quiet = 0
    while quiet < 20:
        try:
            sent += origin.send(line * 100)
            quiet = 0
        except BlockingIOError:
            quiet += 1
        pending(stage.board, seconds=0.005)
        stage.board.turn()
    channel = stage.session._channels[Side.CLIENT]
    assert channel.unsent < 64 * 1024 + 2 * 16 * 1024
    assert sent < 64 * 1024 * 1024


def test_a_service_that_stops_says_so(stage: Stage) -> None:
    stage.serve()
    client = stage.client()
    stage.accepted()
    assert stage.server is not None
    stage.server.close()
    stage.hears(client, b"421 The service is shutting down.\r\n")
    stage.sees_the_end(client)


def test_a_data_connection_to_ourselves_is_refused(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """Items 130, 143: neither a client nor a server makes the proxy call its own listener."""
    stage.serve(policy=Policy(require_login=False, deny_data_ports=frozenset()))
    client, origin = stage.greeted()
    numbers = b"127,0,0,1,%d,%d" % divmod(stage.at.port, 256)
    client.send(b"PORT " + numbers + b"\r\n")
    stage.hears(client, b"425 Can't open data connection.\r\n")
    client.send(b"PASV\r\n")
    stage.hears(origin, b"PASV\r\n")
    origin.send(b"227 (" + numbers + b")\r\n")
    stage.hears(client, b"425 Can't open data connection.\r\n")
    assert not stage.plane.paths
    assert [record.message for record in caplog.records].count("data.refused") == 2


def test_who_never_hangs_up_holds_a_bounded_number_of_paths(stage: Stage) -> None:
    stage.serve()
    client, origin = stage.greeted()
    for _ in range(20):
        client.send(b"PASV\r\n")
        stage.hears(origin, b"PASV\r\n")
        origin.send(b"227 (127,0,0,1,200,1)\r\n")
        stage.hears(client, b"227 Entering Passive Mode (127,0,0,1,78,33)\r\n")
        path = stage.plane.paths[-1]
        path.owner.connected(path, Side.CLIENT)
        path.owner.connected(path, Side.SERVER)
        client.send(b"STOR x\r\n")
        stage.hears(origin, b"STOR x\r\n")
        origin.send(b"150 go\r\n226 done\r\n")
        stage.hears(client, b"150 go\r\n226 done\r\n")
    assert len(stage.session.carriage) == 8
    assert sum(path.closed for path in stage.plane.paths) == 12


def unread_words(stage: Stage) -> tuple[socket.socket, socket.socket]:
    """A session that is over, with last words that the client does not read."""
    stage.serve()
    client, origin = stage.greeted()
    client.send(b"STAT /\r\n")
    stage.hears(origin, b"STAT /\r\n")
    channel = stage.session._channels[Side.CLIENT]
    line = b"213-" + b"x" * 1000 + b"\r\n"
    while channel.unsent < 64 * 1024:
        try:
            origin.send(line * 100)
        except BlockingIOError:
            pass
        pending(stage.board, seconds=0.01)
        stage.board.turn()
    session = stage.session
    session.dismiss("bye")
    assert session.over
    assert channel.unsent
    return client, origin


def test_last_words_to_a_client_that_resets_do_not_spin(stage: Stage) -> None:
    client, _ = unread_words(stage)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    assert stage.server is not None
    stage.until(lambda: stage.server is not None and not stage.server.sessions)


def test_last_words_are_read_to_the_end(stage: Stage) -> None:
    client, origin = unread_words(stage)
    stage.sees_the_end_after_what_was_sent(origin)
    heard = bytearray()

    def listen() -> bool:
        try:
            octets = client.recv(65536)
        except BlockingIOError:
            return False
        heard.extend(octets)
        return not octets

    stage.until(listen)
    assert heard.endswith(b"421 bye\r\n")


def test_a_client_that_resets_while_its_command_is_held(stage: Stage) -> None:
    """A reset of a connection that is not read at present is noticed by the sweep."""
    stage.serve()
    client, origin = stage.greeted()
    client.send(b"REIN\r\nNOOP\r\n")
    stage.hears(origin, b"REIN\r\n")
    session = stage.session
    stage.until(lambda: not session._channels[Side.CLIENT].reading)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()

    def swept() -> bool:
        session.sweep(stage.board.now)
        return session.over

    stage.until(swept)
    stage.sees_the_end(origin)


def test_a_path_that_cannot_be_closed_does_not_keep_the_session(stage: Stage) -> None:
    stage.serve()
    client, origin = stage.greeted()
    path = open_path(stage, client, origin)

    def broken() -> Tally | None:
        raise RuntimeError("on purpose")

    path.close = broken  # type: ignore[method-assign]
    client.close()
    assert stage.server is not None
    stage.until(lambda: stage.server is not None and not stage.server.sessions)


async def test_an_order_that_fails_ends_nothing_unless_it_was_to_end(caplog: pytest.LogCaptureFixture) -> None:
    board = Switchboard()
    server = Server(board, [])
    obey, obeyed = trio.open_memory_channel[signal.Signals](1)

    def fail(order: signal.Signals) -> None:
        obey.send_nowait(order)
        raise RuntimeError("on purpose")

    orders = {order: partial(fail, order) for order in (signal.SIGUSR1, signal.SIGTERM)}
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.run, orders, lambda: os.kill(os.getpid(), signal.SIGUSR1))
            for order in (signal.SIGUSR1, signal.SIGTERM):
                assert await obeyed.receive() is signal.SIGUSR1
                os.kill(os.getpid(), order)
    assert obeyed.receive_nowait() is signal.SIGTERM
    board.close()
    assert [record.getMessage() for record in caplog.records].count("internal.error") == 3
