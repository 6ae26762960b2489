"""client | gateway | server: three network namespaces without names, entered one at a time.

A socket belongs for life to the namespace it was made in, so one process can hold all three ends of a connection.
The namespaces live only as long as their descriptors here are open: nothing can be left behind, not even by SIGKILL.

    client 10.77.1.2 fd77:1::2 -- 10.77.1.1 fd77:1::1 gateway 10.77.2.1 fd77:2::1 -- 10.77.2.2 fd77:2::2 server
    second client 10.77.1.3 fd77:1::3 (a second address of the first)
"""

from __future__ import annotations

import ctypes
import os
import select
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address

import pytest
from attrs import frozen

from ftpproxy.doors import Doors
from ftpproxy.endpoints import Endpoint, IPAddress
from ftpproxy.intercept.interceptor import Listener
from ftpproxy.paths import Await, Call, PathSpec

from ..waiting import pending

CLONE_NEWNET = 0x40000000
WAIT = 5.0
"""Seconds after which something that should have happened has not."""

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class Namespace:
    """A network namespace of our own."""

    def __init__(self) -> None:
        outside = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            _checked(_libc.unshare(CLONE_NEWNET))
            self._fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        finally:
            _checked(_libc.setns(outside, CLONE_NEWNET))
            os.close(outside)

    @property
    def path(self) -> str:
        return f"/proc/{os.getpid()}/fd/{self._fd}"

    @contextmanager
    def inside(self) -> Iterator[None]:
        """This thread, and the programs that it starts, are in the namespace."""
        outside = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        _checked(_libc.setns(self._fd, CLONE_NEWNET))
        try:
            yield
        finally:
            _checked(_libc.setns(outside, CLONE_NEWNET))
            os.close(outside)

    def run(self, *command: str, text: str | None = None) -> str:
        """The standard output of `command`, run inside."""
        with self.inside():
            done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout

    def ip(self, lines: str) -> None:
        self.run("ip", "-batch", "-", text=lines)

    def close(self) -> None:
        os.close(self._fd)


@frozen
class World:
    """The three namespaces."""

    client: Namespace
    gateway: Namespace
    server: Namespace


@frozen
class Family:
    """The addresses of one family."""

    version: int
    client: IPAddress
    second: IPAddress
    inside: IPAddress
    """The gateway's, towards the client."""
    outside: IPAddress
    """The gateway's, towards the server."""
    server: IPAddress

    def __str__(self) -> str:
        return f"IPv{self.version}"

    def passive(self, to: Endpoint, *, at: IPAddress | None = None, client: IPAddress | None = None) -> PathSpec:
        """The client calls the server, or `at`, and we call the server `to`."""
        awaited = Await(Endpoint(at or self.server, 0), client or self.client)
        return PathSpec(awaited, Call(to, Endpoint(self.outside, 0)))

    def active(self, to: Endpoint, port: int = 20) -> PathSpec:
        """The server calls us, and we call the client `to` in its name, from `port`."""
        return PathSpec(Call(to, Endpoint(self.server, port)), Await(Endpoint(self.outside, 0), self.server))


def _family(version: int, lan: str, wan: str) -> Family:
    return Family(version, *(ip_address(text) for text in (f"{lan}2", f"{lan}3", f"{lan}1", f"{wan}1", f"{wan}2")))


FAMILIES = [_family(4, "10.77.1.", "10.77.2."), _family(6, "fd77:1::", "fd77:2::")]


@contextmanager
def world() -> Iterator[World]:
    """The three namespaces, connected; the gateway forwards.  Skips the test where we may not make any."""
    made: list[Namespace] = []
    try:
        for _ in range(3):
            try:
                made.append(Namespace())
            except PermissionError:
                pytest.skip("needs root, or unshare -Urnm")
        client, gateway, server = made
        gateway.ip(
            f"link set lo up\n"
            f"link add lan type veth peer name eth0 netns {client.path}\n"
            f"link add wan type veth peer name eth0 netns {server.path}\n"
            "link set lan up\nlink set wan up\n"
            "addr add 10.77.1.1/24 dev lan\naddr add fd77:1::1/64 dev lan nodad\n"
            "addr add 10.77.2.1/24 dev wan\naddr add fd77:2::1/64 dev wan nodad\n"
        )
        client.ip(
            "link set lo up\nlink set eth0 up\n"
            "addr add 10.77.1.2/24 dev eth0\naddr add fd77:1::2/64 dev eth0 nodad\n"
            "addr add 10.77.1.3/24 dev eth0\naddr add fd77:1::3/64 dev eth0 nodad\n"
            "route add default via 10.77.1.1\nroute add default via fd77:1::1\n"
        )
        server.ip(
            "link set lo up\nlink set eth0 up\n"
            "addr add 10.77.2.2/24 dev eth0\naddr add fd77:2::2/64 dev eth0 nodad\n"
            "route add default via 10.77.2.1\nroute add default via fd77:2::1\n"
        )
        gateway.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        yield World(client, gateway, server)
    finally:
        for namespace in made:
            namespace.close()


def _ready(sock: socket.socket, event: int) -> bool:
    poll = select.poll()
    poll.register(sock, event)
    return bool(poll.poll(WAIT * 1000))


def listen(namespace: Namespace, at: Endpoint) -> socket.socket:
    """An ordinary listener inside."""
    with namespace.inside():
        return socket.create_server(
            at.sockaddr(), family=socket.AF_INET if at.host.version == 4 else socket.AF_INET6, reuse_port=False
        )


def connect(namespace: Namespace, to: Endpoint, source: IPAddress) -> socket.socket:
    """An ordinary call from inside.  Raises `OSError` (`TimeoutError` where nothing answers)."""
    with namespace.inside():
        return socket.create_connection(to.sockaddr(), timeout=WAIT, source_address=(str(source), 0))


def accept(listener: socket.socket) -> socket.socket:
    """The next connection of a listener, blocking or not."""
    assert _ready(listener, select.POLLIN), "nobody called"
    sock, _ = listener.accept()
    sock.settimeout(WAIT)
    return sock


def call(doors: Doors, listener: Listener) -> socket.socket:
    """The next call of the peer that `listener` is for."""
    calls: list[socket.socket] = []

    def crashed(error: Exception) -> None:
        raise error

    listener.expected.answer(calls.append, crashed)
    while not calls:
        assert pending(doors.board, seconds=WAIT), "nobody called"
        doors.board.turn()
    (sock,) = calls
    sock.settimeout(WAIT)
    return sock


def connected(caller: socket.socket, to: Endpoint) -> None:
    """Connect a non-blocking socket."""
    caller.connect_ex(to.sockaddr())
    assert _ready(caller, select.POLLOUT), "no answer"
    error = caller.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    assert error == 0, os.strerror(error)
    caller.settimeout(WAIT)


def talk(one: socket.socket, other: socket.socket) -> None:
    """Octets get through, both ways."""
    for sender, receiver in ((one, other), (other, one)):
        sender.sendall(b"ping")
        assert receiver.recv(100) == b"ping"


def name(sock: socket.socket) -> Endpoint:
    return Endpoint.from_sockaddr(sock.getsockname())


def peer(sock: socket.socket) -> Endpoint:
    return Endpoint.from_sockaddr(sock.getpeername())
