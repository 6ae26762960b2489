"""What `Server.adopt` does to sockets, sessions and the services of before, without any file."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from attrs import evolve

from ftpproxy.doors import Doors
from ftpproxy.endpoints import Endpoint
from ftpproxy.intercept.direct import DirectGate
from ftpproxy.intercept.interceptor import GateError
from ftpproxy.listeners import CannotListen
from ftpproxy.pi.policy import Policy
from ftpproxy.service import Service
from ftpproxy.tap import Trace
from ftpproxy.terms import Terms

from .test_server import LOOPBACK, IdlePlane, Stage


class ClosingPlane(IdlePlane):
    closed = False

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage()
    stage.plane = ClosingPlane()
    stage.serve()
    yield stage
    stage.close()


def another(stage: Stage, **changes: Any) -> tuple[Service, ClosingPlane]:
    """A service as the one there is, with a plane of its own."""
    assert stage.server is not None
    (present,) = stage.server.services
    plane = ClosingPlane()
    terms = Terms(
        service=changes.pop("name", "test"),
        policy=changes.pop("policy", Policy(require_login=False)),
        timeouts=present.terms.timeouts,
        planes=[plane],
    )
    return evolve(present, terms=terms, gate=DirectGate(Doors(stage.board)), **changes), plane


def closed(plane: IdlePlane) -> bool:
    assert isinstance(plane, ClosingPlane)
    return plane.closed


def test_the_same_socket_goes_on_and_old_planes_live_until_the_last_has_left(stage: Stage) -> None:
    assert stage.server is not None
    old = stage.client()
    origin = stage.accepted()
    origin.send(b"220 hello\r\n")
    stage.hears(old, b"220 hello\r\n")
    (before,) = stage.server.listeners
    descriptor = before.sock.fileno()
    service, plane = another(stage, most_sessions=2)
    stage.server.adopt([service])
    (after,) = stage.server.listeners
    assert (after, after.sock.fileno(), after.service) == (before, descriptor, service)
    assert not closed(stage.plane)
    old.send(b"PASV\r\n")
    stage.hears(origin, b"PASV\r\n")
    origin.send(b"227 ok (127,0,0,1,200,1)\r\n")
    stage.hears(old, b"227 Entering Passive Mode (127,0,0,1,78,33)\r\n")
    assert (len(stage.plane.paths), len(plane.paths)) == (1, 0)
    assert len(stage.server.occupied) == 2
    new = stage.client()
    stage.accepted()
    stage.hears(stage.client(), b"421 Too many sessions, try again later.\r\n")  # the old one counts
    old.close()
    stage.sees_the_end_after_what_was_sent(origin)
    stage.until(lambda: len(stage.server.sessions) == 1 if stage.server else False)
    stage.server._sweep(stage.board.now)
    assert closed(stage.plane)
    assert not plane.closed
    assert stage.server.occupied == [service]
    new.close()


def test_who_called_before_a_listener_went_is_served(stage: Stage) -> None:
    """The connection was in the kernel's queue, and nobody had accepted it."""
    assert stage.server is not None
    waiting = stage.client()
    service, _ = another(stage, listen=[Endpoint.parse("127.0.0.2:0")])
    stage.server.adopt([service])
    origin = stage.accepted()
    origin.send(b"220 hello\r\n")
    stage.hears(waiting, b"220 hello\r\n")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(stage.at.sockaddr())
    (listener,) = stage.server.listeners
    assert str(listener.at.host) == "127.0.0.2"


def test_a_service_that_cannot_be_leaves_everything_as_it_was(stage: Stage) -> None:
    assert stage.server is not None
    before, services = list(stage.server.listeners), stage.server.services
    bad, _ = another(stage, listen=[Endpoint.parse("127.0.0.2:0"), Endpoint.parse("192.0.2.1:0")])
    with pytest.raises(CannotListen, match=r"192\.0\.2\.1 is not an address of this machine"):
        stage.server.adopt([bad])
    assert list(stage.server.listeners) == before
    assert stage.server.services is services
    assert not closed(stage.plane)


def test_a_gate_that_refuses_a_listener_that_stays(stage: Stage) -> None:
    assert stage.server is not None

    class Refusing(DirectGate):
        def prepare(self, listener: socket.socket) -> None:
            raise GateError("no")

    service, _ = another(stage)
    with pytest.raises(CannotListen, match="no"):
        stage.server.adopt([evolve(service, gate=Refusing(Doors(stage.board)))])
    (listener,) = stage.server.listeners
    assert listener.service is stage.server.services[0]


def test_what_a_supervisor_opened_stays_with_its_service(stage: Stage) -> None:
    assert stage.server is not None
    passed = socket.create_server(("127.0.0.1", 0))
    passed.setblocking(False)
    stage.server.listeners.open(stage.server.services[0], [passed])
    configured, given = stage.server.listeners
    service, _ = another(stage, listen=[Endpoint.parse("127.0.0.2:0")])
    stage.server.adopt([service])
    (listener,) = stage.server.listeners
    assert listener is given
    assert configured.sock.fileno() == -1
    other, _ = another(stage, name="other", listen=[LOOPBACK])
    stage.server.adopt([other])
    assert given not in list(stage.server.listeners)


def test_newcomers_are_shown_to_who_wants_to_know(stage: Stage) -> None:
    assert stage.server is not None
    trace = Trace(lambda: None)
    stage.server.newcomers[trace] = lambda guest: guest.tap(trace)
    client, origin = stage.greeted()
    client.send(b"PASS secret\r\n")
    stage.hears(origin, b"PASS secret\r\n")
    records = trace.take()
    assert [each.get("line") for each in records if "line" in each] == ["220 hello", "PASS ****"]
    stage.session.untap(trace)
    assert stage.session.taps == ()
