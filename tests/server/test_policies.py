"""Policies on a running server: by network, and against a client that never finishes; real sockets on loopback."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from ipaddress import ip_network

import pytest

from ftpproxy.pi.policy import NetworkRule, Policies, Policy, Timeouts

from .test_server import Stage


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage()
    yield stage
    stage.close()


def logged_in(stage: Stage, source: str) -> socket.socket:
    """A client at `source` whom the server has let in."""
    client = socket.create_connection(stage.at.sockaddr(), source_address=(source, 0))
    client.setblocking(False)
    stage.open.append(client)
    stage.accepted().send(b"230 hello\r\n")
    stage.hears(client, b"230 hello\r\n")
    return client


@pytest.mark.linux("all of 127/8 is loopback")
def test_the_network_of_a_client_decides_what_it_may(stage: Stage) -> None:
    policy = Policy(read_only=True)
    rules = (NetworkRule((ip_network("127.0.0.8/29"),), Policy()),)
    stage.serve(policy=policy, policies=Policies(policy, rules))
    reader, writer = logged_in(stage, "127.0.0.1"), logged_in(stage, "127.0.0.9")
    origin = stage.open[-1]
    for client in (reader, writer):
        client.send(b"DELE a\r\n")
    stage.hears(reader, b"550 This service is read-only.\r\n")
    stage.hears(origin, b"DELE a\r\n")


def test_a_line_that_does_not_end_ends_the_session(stage: Stage) -> None:
    """Item 141: one octet at a time holds a session for the time of a line and no longer, also after login."""
    stage.serve(timeouts=Timeouts(line=60))
    client = logged_in(stage, "127.0.0.1")
    server, session = stage.server, stage.session
    assert server is not None
    start = stage.board.now
    for sent in range(1, 7):
        client.send(b"N")
        stage.until(lambda sent=sent: len(session._interpreter._intake) == sent)  # type: ignore[misc, union-attr]
        server._sweep(start + 10 * sent - 1)
        assert not session.over
    server._sweep(start + 61)
    stage.hears(client, b"421 The command line took too long.\r\n")
    assert session.over
