"""Control connections through hours of silence: keepalive, the idle clock, and NOOPs that nobody hears."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from ftpproxy.doors import Doors
from ftpproxy.dtp.relay import RelayPlane
from ftpproxy.intercept.direct import DirectGate
from ftpproxy.intercept.interceptor import PortRange
from ftpproxy.pi.insight import probing
from ftpproxy.pi.policy import Policy, Timeouts
from ftpproxy.terms import Terms

from .test_server import Stage


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage()
    yield stage
    stage.close()


@pytest.mark.skipif(not hasattr(socket, "TCP_KEEPIDLE"), reason="this system has no such options")
def test_both_legs_are_kept_alive(stage: Stage) -> None:
    """TCP asks after `keepalive` seconds of silence, and then in half that time, eight times."""
    stage.serve(timeouts=Timeouts(keepalive=20))
    stage.greeted()
    for channel in stage.session._channels.values():
        sock = channel._sock
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        options = [socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT]
        assert [sock.getsockopt(socket.IPPROTO_TCP, option) for option in options] == [20, 10, 8]


def test_a_relayed_transfer_of_hours(stage: Stage) -> None:
    """Item 101: the idle clock stands still while the relay carries, and goes on afterwards."""
    doors = Doors(stage.board)
    gate = DirectGate(doors)
    plane = RelayPlane(gate, PortRange(20000, 20099), stage.board)
    policy, timeouts = Policy(require_login=False), Timeouts(idle=300, login=100_000)
    stage.serve(gate=gate, terms=Terms(service="test", policy=policy, timeouts=timeouts, planes=[plane]))
    client, origin = stage.greeted()
    with socket.create_server(("127.0.0.1", 0)) as theirs:
        client.send(b"EPSV\r\n")
        stage.hears(origin, b"EPSV\r\n")
        origin.send(b"229 (|||%d|)\r\n" % theirs.getsockname()[1])
        stage.hears(client, b"229 Entering Extended Passive Mode (|||")
        rest = client.recv(100)
        with socket.create_connection(("127.0.0.1", int(rest.split(b"|")[0]))) as receiver:
            sender, _ = theirs.accept()
            receiver.setblocking(False)
            client.send(b"RETR x\r\n")
            stage.hears(origin, b"RETR x\r\n")
            with sender:
                origin.send(b"150 here\r\n")
                stage.hears(client, b"150 here\r\n")
                for _ in range(12):
                    sender.send(b"slowly")
                    stage.hears(receiver, b"slowly")
                    stage.board.sweep_now(stage.board.now + 600)
                    stage.session.sweep(stage.board.now)
                    assert not stage.session.over
            origin.send(b"226 done\r\n")
            stage.hears(client, b"226 done\r\n")
    stage.until(lambda: not stage.session.carriage)
    over_at = stage.board.now
    stage.session.sweep(over_at + 299)
    assert not stage.session.over
    stage.session.sweep(over_at + 300)
    stage.hears(client, b"421 Idle for too long.\r\n")
    plane.close()
    doors.close()


def test_a_noop_does_not_keep_a_client_that_left(stage: Stage) -> None:
    """The server hears NOOP, the client hears nothing, and its idle clock runs on."""
    stage.serve(timeouts=Timeouts(idle=300, noop=100))
    client, origin = stage.greeted(b"230 in")
    began = stage.board.now
    for number in (1, 2):
        stage.board.now = began + 101 * number
        stage.session.sweep(stage.board.now)
        stage.hears(origin, b"NOOP\r\n")
        origin.send(b"200 still here\r\n")
        stage.until(lambda: not answer_due(stage))
    stage.session.sweep(began + 300)
    stage.hears(client, b"421 Idle for too long.\r\n")


def answer_due(stage: Stage) -> bool:
    assert stage.session._interpreter is not None
    return probing(stage.session._interpreter)
