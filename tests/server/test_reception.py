"""Receptions on loopback, event by event: who is counted, what ends them, and that nothing is left behind."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from ftpproxy.endpoints import Endpoint
from ftpproxy.errands import Errands
from ftpproxy.pi.actions import Timer
from ftpproxy.pi.destinations import Destination, Destinations
from ftpproxy.pi.policy import Timeouts
from ftpproxy.pi.wishes import LoginSettings
from ftpproxy.reception import Gateway

from .test_server import Stage

GREETING = b"220 FTP proxy ready.\r\n"


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage()
    yield stage
    stage.close()


def serve(stage: Stage, **changes: Any) -> int:
    """A gateway to loopback; the port of the FTP server behind it."""
    settings = LoginSettings(destinations=Destinations([Destination.parse("127.0.0.1:1024-65535")]))
    stage.serve(gateway=Gateway(settings=settings, errands=Errands(stage.board)), servers=None, **changes)
    return Endpoint.from_sockaddr(stage.origin.getsockname()).port


def guest(stage: Stage) -> socket.socket:
    client = stage.client()
    stage.hears(client, GREETING)
    return client


def waiting(stage: Stage) -> int:
    assert stage.server is not None
    return len(stage.server._others)


def test_a_reception_becomes_a_session(stage: Stage) -> None:
    """Items 2, 144: from the greeting to the server's answer, and the reception is gone."""
    port = serve(stage)
    client = guest(stage)
    assert waiting(stage) == 1
    client.send(f"USER joe@127.0.0.1:{port}\r\nPASS x\r\n".encode())
    server = stage.accepted()
    server.send(b"220-hello\r\n")
    server.send(b"220 ready\r\n331 early\r\n")
    stage.hears(server, b"USER joe\r\n")
    stage.until(lambda: waiting(stage) == 0)
    assert stage.session.client == Endpoint.from_sockaddr(client.getsockname())
    stage.hears(client, b"331 early\r\n")
    client.close()
    stage.until(lambda: bool(stage.server and not stage.server.sessions))
    assert stage.server is not None
    assert not stage.server._census["test"].of_client


def test_receptions_count(stage: Stage) -> None:
    """Item 142: who has no server yet is counted like everybody."""
    serve(stage, most_per_client=1)
    first, second = guest(stage), stage.client()
    stage.hears(second, b"421 Too many sessions from your address.\r\n")
    first.close()
    stage.until(lambda: waiting(stage) == 0)
    guest(stage)


def test_who_does_not_log_in(stage: Stage) -> None:
    """Item 141: the time to name a server is limited, also for who keeps talking."""
    serve(stage, timeouts=Timeouts(login=30))
    client = guest(stage)
    assert stage.server is not None
    client.send(b"NOO")
    start = stage.board.now
    stage.server._sweep(start + 29)
    assert waiting(stage) == 1
    stage.server._sweep(start + 31)
    stage.hears(client, b"421 Login took too long.\r\n")
    stage.sees_the_end(client)
    assert waiting(stage) == 0


def test_a_server_that_never_greets(stage: Stage) -> None:
    """Item 147: given up after a time, and the client is told and may go on."""
    port = serve(stage, timeouts=Timeouts(greeting=10))
    client = guest(stage)
    client.send(f"USER joe@127.0.0.1:{port}\r\n".encode())
    server = stage.accepted()
    assert stage.server is not None
    # `until` knows of the call only when it was answered on our side as well
    stage.until(
        lambda: bool(
            stage.server and next(iter(stage.server._census["test"].receptions))._deadlines.get(Timer.GREETING)
        )
    )
    stage.server._sweep(stage.board.now + 11)
    stage.hears(client, b"530 The server did not answer in time.\r\n")
    stage.sees_the_end(server)
    client.send(b"NOOP\r\n")
    stage.hears(client, b"200 OK.\r\n")


@pytest.mark.parametrize("last", [b"", b"220-half", b"331 what\r\n"])
def test_a_server_that_hangs_up(stage: Stage, last: bytes) -> None:
    """Item 147: an end in the middle of the greeting is a failed try."""
    port = serve(stage)
    client = guest(stage)
    client.send(f"USER joe@127.0.0.1:{port}\r\n".encode())
    server = stage.accepted()
    server.send(last)
    server.close()
    stage.hears(client, b"530 The server ")
    assert waiting(stage) == 1


def test_a_client_that_leaves_in_the_middle(stage: Stage) -> None:
    """Item 49: nothing of a reception is left when its client has gone; the server sees the end."""
    port = serve(stage)
    client = guest(stage)
    client.send(f"USER joe@127.0.0.1:{port}\r\n".encode())
    server = stage.accepted()
    client.close()
    server.send(b"220 ready\r\n")
    stage.until(lambda: bool(stage.server and not stage.server.sessions and not stage.server._others))
    stage.until(lambda: _ended(server))


def _ended(sock: socket.socket) -> bool:
    try:
        return sock.recv(100) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def test_the_end_of_the_service(stage: Stage) -> None:
    """Item 33: who has no server yet is told 421 as well."""
    serve(stage)
    client = guest(stage)
    assert stage.server is not None
    stage.server.close()
    stage.hears(client, b"421 The service is shutting down.\r\n")
    stage.sees_the_end(client)
