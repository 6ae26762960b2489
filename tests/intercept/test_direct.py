"""Ordinary sockets on loopback."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys

import pytest

from ftpproxy.doors import Doors
from ftpproxy.endpoints import Endpoint, parse_address
from ftpproxy.intercept.direct import DirectGate
from ftpproxy.intercept.interceptor import Gate, GateError, PortRange
from ftpproxy.paths import Await, Call
from ftpproxy.sockets import is_ours

from .namespaces import accept, call, connected, name, peer, talk

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
def test_listener(doors: Doors, host: str) -> None:
    """Items 72 and 82: it listens when it is returned, at the address named, at a port of the range."""
    at = Endpoint(parse_address(host), 0)
    ports = span(host, 5)
    gate: Gate = DirectGate(doors)
    listener = gate.listener(Await(at, at.host), ports)
    assert listener.announced == listener.expected.at
    assert listener.announced.host == at.host
    assert listener.announced.port in ports.once_round()
    with socket.create_connection(listener.announced.sockaddr()) as client, call(doors, listener) as data:
        assert not data.get_inheritable()
        talk(client, data)
        assert gate.original_destination(data) == peer(client) == listener.announced
    listener.release()
    listener.release()


@LOOPBACK
def test_ports_once_each_then_a_refusal(doors: Doors, host: str) -> None:
    """Item 133, and EADDRINUSE (of bind or of listen) means the next port: until none is left."""
    at = Endpoint(parse_address(host), 0)
    ports = span(host, 5)
    gate = DirectGate(doors)
    busy = next(ports.once_round())
    with socket.create_server((host, busy), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
        held = [gate.listener(Await(at, at.host), ports) for _ in range(4)]
        assert {listener.announced.port for listener in held} | {busy} == set(ports.once_round())
        with pytest.raises(GateError, match=rf"no port is left in {ports} \(5 tried\)"):
            gate.listener(Await(at, at.host), ports)
        with pytest.raises(GateError, match=f"port {busy} is taken"):
            gate.listener(Await(at.at(busy), at.host), ports)
        held.pop().release()
        gate.listener(Await(at, at.host), ports)


@LOOPBACK
def test_listen_arbitrates(doors: Doors, host: str) -> None:
    """With SO_REUSEADDR a bound socket that does not listen yet is not in the way."""
    at = Endpoint(parse_address(host), 0)
    ports = span(host, 1)
    gate = DirectGate(doors)
    caller = gate.caller(Call(at.at(9), at), ports)
    with caller.socket:
        listener = gate.listener(Await(at, at.host), ports)
        assert name(caller.socket) == listener.announced
        other = gate.caller(Call(at.at(9), at), ports)  # where all ports have a door, any other one will do
        with other.socket:
            assert name(other.socket).host == at.host
            assert name(other.socket).port not in ports.once_round()


@LOOPBACK
def test_caller(doors: Doors, host: str) -> None:
    """Item 83: the call comes from the address that was named, from a port of the range, each in turn."""
    at = Endpoint(parse_address(host), 0)
    seen = set()
    ports = span(host, 3)
    with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as listening:
        for _ in range(3):
            caller = DirectGate(doors).caller(Call(name(listening), at), ports)
            with caller.socket:
                assert not caller.socket.getblocking()
                connected(caller.socket, name(listening))
                with accept(listening) as data:
                    assert peer(data) == name(caller.socket)
                    assert peer(data).host == at.host
                    seen.add(peer(data).port)
    assert seen == set(ports.once_round())


@LOOPBACK
def test_a_source_port_that_is_taken_becomes_another(doors: Doors, host: str, caplog: pytest.LogCaptureFixture) -> None:
    """Item 85 is a SHOULD: the data connection matters more than where it comes from."""
    at = Endpoint(parse_address(host), 0)
    ports = span(host, 4)
    gate = DirectGate(doors)
    taken = gate.listener(Await(at, at.host), ports)
    with caplog.at_level(logging.DEBUG):
        caller = gate.caller(Call(at.at(9), taken.announced), ports)
        with caller.socket:
            assert name(caller.socket).port in set(ports.once_round()) - {taken.announced.port}
    assert [record.getMessage() for record in caplog.records] == ["gate.source_port_denied"]


@FOREIGN
def test_foreign_addresses_are_refused(doors: Doors, host: str) -> None:
    """What would mend it is another `intercept`; the sentence says whose address it is not."""
    foreign = Endpoint(parse_address(host), 0)
    ports = PortRange(20000, 20999)
    with pytest.raises(GateError, match=r"cannot listen at .*: it is not an address of this machine"):
        DirectGate(doors).listener(Await(foreign, foreign.host), ports)
    with pytest.raises(GateError, match=r"cannot call .* from .*: it is not an address of this machine"):
        DirectGate(doors).caller(Call(foreign.at(9), foreign.at(20)), ports)


@pytest.mark.parametrize("asked", [pytest.param("the kernel's routes", marks=pytest.mark.linux("rtnetlink")), "bind"])
def test_whose_an_address_is(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no netlink, as on BSD, bind() is tried."""
    if asked == "bind":
        monkeypatch.delattr(socket, "AF_NETLINK", raising=False)
    hosts = ("127.0.0.1", "::1", "0.0.0.0", "::", "192.0.2.77", "2001:db8::77")
    assert [is_ours(parse_address(host)) for host in hosts] == [True] * 4 + [False] * 2
    assert not is_ours(parse_address("224.0.0.1")) or asked == "bind"


UNPRIVILEGED = """
from ftpproxy.doors import Doors
from ftpproxy.endpoints import Endpoint
from ftpproxy.intercept.direct import DirectGate
from ftpproxy.intercept.interceptor import GateError, PortRange
from ftpproxy.paths import Await, Call
from ftpproxy.switchboard import Switchboard

twenty = Endpoint.parse("127.0.0.1:20")
ports = PortRange(20000, 20999)
gate = DirectGate(Doors(Switchboard()))
with gate.caller(Call(twenty.at(9), twenty), ports).socket as caller:
    print(20000 <= caller.getsockname()[1] <= 20999)
try:
    gate.listener(Await(twenty, twenty.host), ports)
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
