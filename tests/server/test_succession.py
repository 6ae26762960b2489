"""Who is not in a session yet goes on in a successor as well: receptions, arrivals; and last words of sessions."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_network

import pytest

from ftpproxy.endpoints import Endpoint
from ftpproxy.estate import Estate, Inheritance
from ftpproxy.succession import Heirs, inherit, leave

from .test_reception import guest, serve, waiting
from .test_server import Stage


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage()
    yield stage
    stage.close()


def successor(stage: Stage) -> Heirs:
    """Everybody leaves, and is taken up by the same server."""
    assert stage.server is not None
    estate = Estate()
    services = stage.server.services
    leave(stage.server, stage.board, estate)
    assert not stage.server.everybody
    inheritance = Inheritance(estate.sealed())
    for thing in estate.left:
        thing.close()
    stage.server._services = services
    heirs = inherit(stage.server, inheritance.read(), inheritance)
    inheritance.close()
    return heirs


def test_a_reception_between_two_commands(stage: Stage) -> None:
    port = serve(stage)
    client = guest(stage)
    client.send(b"NOOP\r\nUSER joe@127.")
    stage.hears(client, b"200 OK.\r\n")
    assert successor(stage) == Heirs(0, 1, 0)
    client.send(b"0.0.1:%d\r\n" % port)
    server = stage.accepted()
    server.send(b"220 ready\r\n")
    stage.hears(server, b"USER joe\r\n")
    assert stage.session.number == 1


def test_a_reception_that_waits_for_its_server(stage: Stage) -> None:
    """The server has been called, and has not greeted."""
    port = serve(stage)
    client = guest(stage)
    client.send(b"USER joe@127.0.0.1:%d\r\n" % port)
    server = stage.accepted()
    server.send(b"220-wel")
    stage.until(lambda: b"wel" in bytes(next(iter(stage.server._census["test"].receptions))._login._replies._held))  # type: ignore[union-attr]
    assert successor(stage) == Heirs(0, 1, 0)
    server.send(b"come\r\n220 ready\r\n")
    stage.hears(server, b"USER joe\r\n")
    server.send(b"331 password\r\n")
    stage.hears(client, b"331 password\r\n")
    assert waiting(stage) == 0


def test_a_call_is_made_once_more(stage: Stage) -> None:
    port = serve(stage)
    client = guest(stage)
    client.send(b"USER joe@127.0.0.1:%d\r\n" % port)
    stage.until(lambda: next(iter(stage.server._census["test"].receptions))._errand is not None)  # type: ignore[union-attr]
    assert successor(stage) == Heirs(0, 1, 0)
    server = stage.accepted()
    server.setblocking(True)
    if server.recv(1) == b"":  # the first call, if it got that far
        server = stage.accepted()
    server.send(b"220 ready\r\n")
    stage.hears(server, b"USER joe\r\n")


def test_numbers_go_on(stage: Stage) -> None:
    serve(stage)
    for _ in range(3):
        guest(stage)
    assert successor(stage) == Heirs(0, 3, 0)
    assert stage.server is not None
    stage.server.listen()
    stage.at = next(iter(stage.server.listeners)).at
    guest(stage)
    stage.until(lambda: waiting(stage) == 4)
    assert sorted(each.number for each in stage.server._census["test"].receptions) == [1, 2, 3, 4]


def test_half_a_header(stage: Stage) -> None:
    """A load balancer's connection, of whose PROXY header a part was read."""
    stage.serve(proxy_protocol=[ip_network("127.0.0.1/32")])
    client = stage.client()
    client.send(b"PROXY TCP4 127.0.0.1 ")
    stage.until(lambda: waiting(stage) == 1)
    stage.until(lambda: len(next(iter(stage.server._census["test"].arrivals))._reader._held) > 15)  # type: ignore[union-attr]
    assert successor(stage) == Heirs(0, 1, 0)
    client.send(b"%s 12345 21\r\n" % str(stage.at.host).encode())
    server = stage.accepted()
    server.send(b"220 hello\r\n")
    stage.hears(client, b"220 hello\r\n")
    assert stage.session.client == Endpoint.parse("127.0.0.1:12345")


def test_gateway_mode_no_more(stage: Stage) -> None:
    """The client of a reception is told."""
    serve(stage)
    client = guest(stage)
    assert stage.server is not None
    estate = Estate()
    leave(stage.server, stage.board, estate)
    inheritance = Inheritance(estate.sealed())
    for thing in estate.left:
        thing.close()
    assert inherit(stage.server, inheritance.read(), inheritance) == Heirs(0, 0, 1)
    assert inheritance.refuse(b"421 no\r\n") == 1
    inheritance.close()
    stage.hears(client, b"421 no\r\n")


def test_what_a_client_has_not_read_yet(stage: Stage) -> None:
    """Octets that its socket did not take go along, in front of all others."""
    stage.serve()
    client, origin = stage.greeted()
    client.send(b"STAT .\r\n")
    stage.hears(origin, b"STAT .\r\n")
    origin.setblocking(False)
    line = b"x" * 998 + b"\r\n"
    sent = b"213-\r\n"
    origin.send(sent)
    rest = b""
    while not stage.session._channels[next(iter(stage.session._channels))].unsent:
        rest = rest or line * 16
        try:
            count = origin.send(rest)
            sent, rest = sent + rest[:count], rest[count:]
        except BlockingIOError:
            pass
        stage.board.turn()
    assert successor(stage) == Heirs(1, 0, 0)
    stage.hears(client, sent)
