"""The gates of pf, on loopback: what is asked of pf, and what is told about it."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from ftpproxy.doors import Doors
from ftpproxy.endpoints import Endpoint, parse_address
from ftpproxy.intercept.interceptor import Gate, GateError, PortRange
from ftpproxy.intercept.pf import DivertGate, RdrGate
from ftpproxy.paths import Await
from ftpproxy.pf.natlook import NatlookError

from .namespaces import accept, name, peer

SERVER = Endpoint.parse("203.0.113.9:21")


class Pf:
    """Answers as pf would, and remembers what it was asked."""

    def __init__(self, called: Endpoint | None = None, error: str = "") -> None:
        self.asked: list[tuple[Endpoint, Endpoint]] = []
        self._called = called
        self._error = error

    def original_destination(self, peer: Endpoint, here: Endpoint) -> Endpoint | None:
        self.asked.append((peer, here))
        if self._error:
            raise NatlookError(self._error)
        return self._called


@pytest.fixture(params=["127.0.0.1", "::1"])
def connection(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A client's end and ours."""
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    with (
        socket.create_server((request.param, 0), family=family) as listener,
        socket.create_connection(listener.getsockname()[:2]) as client,
        accept(listener) as control,
    ):
        yield client, control


def test_divert_is_the_name_of_the_socket(doors: Doors, connection: tuple[socket.socket, socket.socket]) -> None:
    client, control = connection
    assert DivertGate(doors).original_destination(control) == peer(client)


def test_rdr_asks_for_the_connection_as_it_is_seen_here(
    doors: Doors, connection: tuple[socket.socket, socket.socket]
) -> None:
    client, control = connection
    pf = Pf(SERVER)
    assert RdrGate(pf, doors).original_destination(control) == SERVER
    assert pf.asked == [(name(client), name(control))]


def test_what_pf_did_not_redirect(doors: Doors, connection: tuple[socket.socket, socket.socket]) -> None:
    """In forward mode it is an error: nobody knows the server.  In reverse mode clients may call the listener."""
    _, control = connection
    with pytest.raises(GateError, match=r"pf did not redirect the connection from .* to .*: clients call servers"):
        RdrGate(Pf(None), doors).original_destination(control)
    assert RdrGate(Pf(None), doors, called_directly=True).original_destination(control) == name(control)


def test_pf_that_does_not_answer(doors: Doors, connection: tuple[socket.socket, socket.socket]) -> None:
    _, control = connection
    for direct in (False, True):
        with pytest.raises(GateError, match=r"cannot find whom .* called: pf is asleep"):
            RdrGate(Pf(error="pf is asleep"), doors, called_directly=direct).original_destination(control)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_addresses_of_ours_are_ordinary(doors: Doors, host: str) -> None:
    at = Endpoint(parse_address(host), 0)
    gates: list[Gate] = [DivertGate(doors), RdrGate(Pf(), doors)]
    for gate in gates:
        listener = gate.listener(Await(at, at.host), PortRange(20000, 20999))
        assert listener.announced == listener.expected.at
        assert listener.announced.host == at.host
        listener.release()
        gate.close()
