"""Ordinary sockets on loopback."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys

import pytest

from ftpproxy.endpoints import Endpoint, parse_address
from ftpproxy.intercept.direct import DirectGate
from ftpproxy.intercept.interceptor import Gate, GateError, PortRange
from ftpproxy.paths import Await, Call

from .namespaces import accept, connected, name, peer, talk

LOOPBACK = pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
FOREIGN = pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1"])


def span(host: str, length: int) -> PortRange:
    """A range of ports that nobody uses just now, below the ephemeral ones."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for first in range(10000 + os.getpid() % 1000 * 10, 30000, 10):
        try:
            for port in range(first, first + length):
                with socket.socket(family) as probe:
                    probe.bind((host, port))
        except OSError:
            continue
        return PortRange(first, first + length - 1)
    raise AssertionError("no free ports on loopback")


@LOOPBACK
def test_listener(host: str) -> None:
    """Items 72 and 82: it listens when it is returned, at the address named, at a port of the range."""
    at = Endpoint(parse_address(host), 0)
    ports = span(host, 5)
    gate: Gate = DirectGate()
    listener = gate.listener(Await(at, at.host), ports)
    with listener.socket:
        assert listener.announced == name(listener.socket)
        assert listener.announced.host == at.host
        assert listener.announced.port in ports.once_round()
        assert not listener.socket.getblocking()
        assert not listener.socket.get_inheritable()
        with socket.create_connection(listener.announced.sockaddr()) as client, accept(listener.socket) as data:
            talk(client, data)
            assert DirectGate().original_destination(data) == peer(client) == listener.announced
    listener.release()
    listener.release()


@LOOPBACK
def test_ports_once_each_then_a_refusal(host: str) -> None:
    """Item 133, and EADDRINUSE (of bind or of listen) means the next port: until none is left."""
    at = Endpoint(parse_address(host), 0)
    ports = span(host, 5)
    held = []
    try:
        busy = next(ports.once_round())
        stranger = socket.create_server((host, busy), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        held.append(stranger)
        for _ in range(4):
            held.append(DirectGate().listener(Await(at, at.host), ports).socket)
        assert {name(sock).port for sock in held} == set(ports.once_round())
        with pytest.raises(GateError, match=rf"no port is left in {ports} \(5 tried\)"):
            DirectGate().listener(Await(at, at.host), ports)
        with pytest.raises(GateError, match=f"port {busy} is taken"):
            DirectGate().listener(Await(at.at(busy), at.host), ports)
        held.pop().close()
        held.append(DirectGate().listener(Await(at, at.host), ports).socket)
    finally:
        for sock in held:
            sock.close()


@LOOPBACK
def test_listen_arbitrates(host: str) -> None:
    """With SO_REUSEADDR a bound socket that does not listen yet is not in the way."""
    at = Endpoint(parse_address(host), 0)
    ports = span(host, 1)
    caller = DirectGate().caller(Call(at.at(9), at), ports)
    with caller.socket:
        listener = DirectGate().listener(Await(at, at.host), ports)
        with listener.socket:
            assert name(caller.socket) == listener.announced
            with pytest.raises(GateError, match="no port is left"):
                DirectGate().caller(Call(at.at(9), at), ports)


@LOOPBACK
def test_caller(host: str) -> None:
    """Item 83: the call comes from the address that was named, from a port of the range, each in turn."""
    at = Endpoint(parse_address(host), 0)
    seen = set()
    listening = DirectGate().listener(Await(at, at.host), span(host, 1))
    ports = span(host, 3)
    with listening.socket:
        for _ in range(3):
            caller = DirectGate().caller(Call(listening.announced, at), ports)
            with caller.socket:
                assert not caller.socket.getblocking()
                connected(caller.socket, listening.announced)
                with accept(listening.socket) as data:
                    assert peer(data) == name(caller.socket)
                    assert peer(data).host == at.host
                    seen.add(peer(data).port)
    assert seen == set(ports.once_round())


@LOOPBACK
def test_a_source_port_that_is_taken_becomes_another(host: str, caplog: pytest.LogCaptureFixture) -> None:
    """Item 85 is a SHOULD: the data connection matters more than where it comes from."""
    at = Endpoint(parse_address(host), 0)
    ports = span(host, 4)
    taken = DirectGate().listener(Await(at, at.host), ports)
    with taken.socket, caplog.at_level(logging.DEBUG):
        caller = DirectGate().caller(Call(at.at(9), taken.announced), ports)
        with caller.socket:
            assert name(caller.socket).port in set(ports.once_round()) - {taken.announced.port}
    assert [record.getMessage() for record in caplog.records] == ["gate.source_port_denied"]


@FOREIGN
def test_foreign_addresses_are_refused(host: str) -> None:
    """What would mend it is another `intercept`; the sentence says whose address it is not."""
    foreign = Endpoint(parse_address(host), 0)
    ports = PortRange(20000, 20999)
    with pytest.raises(GateError, match=r"cannot listen at .*: it is not an address of this machine"):
        DirectGate().listener(Await(foreign, foreign.host), ports)
    with pytest.raises(GateError, match=r"cannot call .* from .*: it is not an address of this machine"):
        DirectGate().caller(Call(foreign.at(9), foreign.at(20)), ports)


UNPRIVILEGED = """
from ftpproxy.endpoints import Endpoint
from ftpproxy.intercept.direct import DirectGate
from ftpproxy.intercept.interceptor import GateError, PortRange
from ftpproxy.paths import Await, Call

twenty = Endpoint.parse("127.0.0.1:20")
ports = PortRange(20000, 20999)
with DirectGate().caller(Call(twenty.at(9), twenty), ports).socket as caller:
    print(20000 <= caller.getsockname()[1] <= 20999)
try:
    DirectGate().listener(Await(twenty, twenty.host), ports)
except GateError as error:
    print(error)
"""


@pytest.mark.netns
def test_without_the_right_to_port_20() -> None:
    """A call comes from another port then; a listener, which was asked for just there, is refused by name."""
    unshare = ["unshare", "-Ur", "-n", "sh", "-c", 'ip link set lo up && exec unshare -U "$@"', "sh"]
    done = subprocess.run([*unshare, sys.executable, "-c", UNPRIVILEGED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    granted, refused = done.stdout.splitlines()
    assert granted == "True"
    assert "CAP_NET_BIND_SERVICE" in refused
