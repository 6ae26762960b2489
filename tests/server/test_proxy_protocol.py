"""PROXY headers on real sockets: from balancers only, and from them always; and our own towards servers."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from ipaddress import ip_network

import pytest

from ftpproxy.arrival import SECONDS
from ftpproxy.doors import Doors
from ftpproxy.dtp.relay import RelayPlane
from ftpproxy.endpoints import Endpoint, Side
from ftpproxy.intercept.direct import DirectGate
from ftpproxy.intercept.interceptor import PortRange
from ftpproxy.pi.policy import Policy, Timeouts
from ftpproxy.terms import Terms
from ftpproxy.wire.proxyheader import SIGNATURE, build

from .test_server import Stage

BALANCER = [ip_network("127.0.0.1")]
CLIENT, CALLED = Endpoint.parse("192.0.2.7:40000"), Endpoint.parse("198.51.100.1:21")
GREETING = b"220 ready\r\n"


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage()
    yield stage
    stage.close()


def is_closed(stage: Stage, sock: socket.socket) -> None:
    """The connection ends, with a reset where what came was not read, and not a word was said on it."""
    stage.until(lambda: bool(select.select([sock], [], [], 0)[0]))
    try:
        assert sock.recv(1) == b""
    except ConnectionResetError:
        pass


def greets(stage: Stage, client: socket.socket) -> socket.socket:
    """The server is called, greets, and the client hears it; the server's end."""
    server = stage.accepted()
    server.send(GREETING)
    stage.hears(client, GREETING)
    return server


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_header_names_the_client_and_whom_it_called(stage: Stage, version: str) -> None:
    """Item 148: a header of either version, octet by octet, and nothing behind it is lost."""
    stage.serve(proxy_protocol=BALANCER)
    balancer = stage.client()
    balancer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    header = build("v1" if version == "v1" else "v2", CLIENT, CALLED)
    for octet in header[:-1]:
        balancer.send(bytes([octet]))
        stage.board.turn()
    assert stage.server is not None
    assert not stage.server.sessions
    balancer.send(header[-1:] + b"USER joe\r\n")
    server = greets(stage, balancer)
    stage.hears(server, b"USER joe\r\n")
    assert stage.session.client == CLIENT


def test_the_client_is_told_the_address_that_it_called(stage: Stage) -> None:
    """Item 148: `dst` is what a 227 names; we listen at an address of ours."""
    gate = DirectGate(Doors(stage.board))
    plane = RelayPlane(gate, PortRange(20000, 20099), stage.board, connect_timeout=5, data_setup=30, data_idle=30)
    terms = Terms(service="test", policy=Policy(require_login=False), timeouts=Timeouts(), planes=[plane])
    stage.serve(proxy_protocol=BALANCER, terms=terms)
    balancer = stage.client()
    balancer.send(build("v2", CLIENT, CALLED) + b"PASV\r\n")
    server = greets(stage, balancer)
    stage.hears(server, b"PASV\r\n")
    with socket.create_server(("127.0.0.1", 0)) as data:
        port = data.getsockname()[1]
        server.send(f"227 Entering Passive Mode (127,0,0,1,{port >> 8},{port & 255})\r\n".encode())
        stage.hears(balancer, b"227 Entering Passive Mode (198,51,100,1,")
    stage.session.close()
    plane.close()


def test_a_balancer_before_a_forward_service(stage: Stage) -> None:
    """Item 148: `dst` is the server that the client called, and is called; never ourselves."""
    stage.serve(proxy_protocol=BALANCER, servers=None)
    first, second = stage.client(), stage.client()
    first.send(build("v2", CLIENT, Endpoint.from_sockaddr(stage.origin.getsockname())))
    greets(stage, first)
    assert stage.session.orig_server == stage.session.server == Endpoint.from_sockaddr(stage.origin.getsockname())
    second.send(build("v2", CLIENT, stage.at))
    stage.hears(second, b"421 The way to that server leads back to this proxy.\r\n")


@pytest.mark.parametrize(
    "octets",
    [
        b"USER anonymous\r\n",
        b"PROXY TCP4 192.0.2.7 198.51.100.1 40000\r\n",
        b"PROXY UNKNOWN\n",
        SIGNATURE + b"\x21\x12\x00\x00",
        b"\x16\x03\x01\x00\x00",
    ],
)
def test_a_malformed_header(stage: Stage, octets: bytes) -> None:
    """Item 148: closed without a greeting, and the server hears nothing of it."""
    stage.serve(proxy_protocol=BALANCER)
    balancer = stage.client()
    balancer.send(octets)
    is_closed(stage, balancer)
    assert stage.server is not None
    assert not stage.server.sessions


@pytest.mark.parametrize("octets", [b"", b"PROXY TCP4 192.0", SIGNATURE])
def test_a_header_that_does_not_come(stage: Stage, octets: bytes) -> None:
    """Item 148: after 5 s closed without a greeting; others are served meanwhile."""
    stage.serve(proxy_protocol=BALANCER)
    balancer = stage.client()
    balancer.send(octets)
    assert stage.server is not None
    stage.until(lambda: bool(stage.server and stage.server._others))
    while stage.board.turn():
        pass  # an unfinished header leaves nothing to be woken by
    start = stage.board.now
    stage.server._sweep(start + SECONDS - 0.1)
    assert stage.server._others
    stage.server._sweep(start + SECONDS)
    is_closed(stage, balancer)
    assert not stage.server._others


@pytest.mark.parametrize("header", [b"PROXY UNKNOWN\r\n", SIGNATURE + b"\x20\x00\x00\x00"])
def test_a_balancer_that_speaks_for_itself(stage: Stage, header: bytes) -> None:
    """Item 148: UNKNOWN and LOCAL are served as whom the socket shows."""
    stage.serve(proxy_protocol=BALANCER)
    balancer = stage.client()
    balancer.send(header)
    greets(stage, balancer)
    assert stage.session.client == Endpoint.from_sockaddr(balancer.getsockname())


def test_others_are_served_without_a_header(stage: Stage) -> None:
    """Item 148: a header is nothing but a command to anybody who is no balancer."""
    stage.serve(proxy_protocol=[ip_network("192.0.2.1")])
    client = stage.client()
    server = greets(stage, client)
    client.send(build("v1", CLIENT, CALLED))
    stage.hears(server, build("v1", CLIENT, CALLED))
    assert stage.session.client == Endpoint.from_sockaddr(client.getsockname())


def test_the_client_of_the_header_is_who_may(stage: Stage) -> None:
    """Item 148: `clients` and the caps are about the inner client."""
    stage.serve(proxy_protocol=BALANCER, clients=[ip_network("192.0.2.0/24")], most_per_client=1)
    stranger = stage.client()
    stranger.send(build("v1", Endpoint.parse("203.0.113.9:1"), CALLED))
    stage.hears(stranger, b"421 You may not use this service.\r\n")
    first, second = stage.client(), stage.client()
    first.send(build("v1", CLIENT, CALLED))
    greets(stage, first)
    second.send(build("v1", CLIENT, CALLED))
    stage.hears(second, b"421 Too many sessions from your address.\r\n")


def test_waiting_for_headers_counts(stage: Stage) -> None:
    """Items 142, 148: a balancer that only connects cannot hold more than the service has room for."""
    stage.serve(proxy_protocol=BALANCER, most_sessions=2)
    waiting = [stage.client() for _ in range(2)]
    third = stage.client()
    stage.hears(third, b"421 Too many sessions, try again later.\r\n")
    waiting[0].send(build("v1", CLIENT, CALLED))
    stage.sees_the_end(third)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_servers_are_told(stage: Stage, version: str) -> None:
    """Item 148: where it is configured, the header is the first that a server hears."""
    word = "v1" if version == "v1" else "v2"
    terms = Terms(
        service="test",
        policy=Policy(),
        timeouts=Timeouts(),
        planes=[stage.plane],
        send_proxy="v1" if version == "v1" else "v2",
    )
    stage.serve(terms=terms)
    client = stage.client()
    server = stage.accepted()
    expected = build("v1" if word == "v1" else "v2", Endpoint.from_sockaddr(client.getsockname()), stage.at)
    stage.hears(server, expected)
    client.send(b"NOOP\r\n")
    server.send(GREETING)
    stage.hears(client, GREETING)
    stage.hears(server, b"NOOP\r\n")
    assert Side.SERVER in stage.session._channels


def test_the_end_of_the_server_ends_those_who_wait(stage: Stage) -> None:
    """Item 148: nothing is left open."""
    stage.serve(proxy_protocol=BALANCER)
    balancer = stage.client()
    stage.until(lambda: bool(stage.server and stage.server._others))
    assert stage.server is not None
    stage.server.close()
    is_closed(stage, balancer)
