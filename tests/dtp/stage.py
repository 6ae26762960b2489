"""What the tests of the relay stand on: a gate to loopback, an owner that writes down what it hears, two peers."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

import pytest
import trio

from ftpproxy import sockets
from ftpproxy.doors import Doors, Expected
from ftpproxy.dtp.plane import Path
from ftpproxy.dtp.relay import RelayPath, RelayPlane
from ftpproxy.endpoints import Endpoint, IPAddress, Side
from ftpproxy.intercept.interceptor import Caller, GateError, Listener, PortRange
from ftpproxy.paths import Await, Call, PathSpec, Tally
from ftpproxy.switchboard import Switchboard

LOOPBACK: dict[int, IPAddress] = {4: ip_address("127.0.0.1"), 6: ip_address("::1")}
MIB = 1 << 20
PATIENCE = 20
"""Seconds after which a test gives up waiting."""


class LoopbackGate:
    """Addresses of this machine, and a count of what was not released."""

    def __init__(self, doors: Doors) -> None:
        self.doors = doors
        self.held = 0

    def listener(self, leg: Await, ports: PortRange) -> Listener:
        for port in [leg.at.port] if leg.at.port else ports.once_round(100):
            try:
                expected = self.doors.expect(leg.at.at(port), leg.peer)
            except OSError:
                continue
            release = self._hold()

            def both(expected: Expected = expected, release: Callable[[], None] = release) -> None:
                expected.close()
                release()

            return Listener(expected, expected.at, both)
        raise GateError(f"no port at {leg.at} is free")

    def caller(self, leg: Call, ports: PortRange) -> Caller:
        for port in [leg.source.port] if leg.source.port else [*ports.once_round(100), 0]:
            try:
                return Caller(sockets.bound(leg.source.at(port)), self._hold())
            except OSError:
                continue
        raise GateError("no port")

    def _hold(self) -> Callable[[], None]:
        self.held += 1
        pending = [True]

        def release() -> None:
            if pending:
                pending.clear()
                self.held -= 1

        return release

    def prepare(self, listener: Any) -> None: ...

    def original_destination(self, control: Any) -> Endpoint:
        raise GateError("not here")

    def close(self) -> None: ...


class Owner:
    """Writes down what a path reports, and checks that it is entitled to report it."""

    def __init__(self) -> None:
        self.up: list[Side] = []
        self.why: str | None = None
        self.tally: Tally | None = None
        self.was_delivered = False
        self.on_connected: Callable[[Path, Side], object] | None = None
        self._news = trio.Event()

    @property
    def over(self) -> bool:
        return self.why is not None or self.tally is not None

    def connected(self, path: Path, side: Side) -> None:
        assert not self.over
        assert side not in self.up
        self.up.append(side)
        self._tell()
        if self.on_connected:
            self.on_connected(path, side)

    def delivered(self, path: Path) -> None:
        assert not self.over
        assert not self.was_delivered
        self.was_delivered = True
        self._tell()

    def failed(self, path: Path, why: str) -> None:
        assert not self.over
        self.why = why
        self._tell()

    def finished(self, path: Path, tally: Tally) -> None:
        assert not self.over
        self.tally = tally
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = trio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        with trio.fail_after(PATIENCE):
            while not condition():
                await self._news.wait()

    async def is_up(self, *sides: Side) -> None:
        await self.until(lambda: set(sides) <= set(self.up))

    async def failure(self) -> str:
        await self.until(lambda: self.over)
        assert self.why is not None, self.tally
        return self.why

    async def end(self) -> Tally:
        await self.until(lambda: self.over)
        assert self.tally is not None, self.why
        return self.tally


class Stage:
    """A switchboard that runs, a relay on it, and the two peers' ends."""

    def __init__(self, board: Switchboard, version: int = 4, **options: Any) -> None:
        self.board = board
        self.doors = Doors(board)
        self.gate = LoopbackGate(self.doors)
        self.host = LOOPBACK[version]
        self.plane = RelayPlane(self.gate, PortRange(20000, 29999), board, **options)
        self.family = sockets.family(self.host)
        self._sockets: list[trio.socket.SocketType] = []

    def mine(self, sock: trio.socket.SocketType) -> trio.socket.SocketType:
        self._sockets.append(sock)
        return sock

    async def listening(self) -> tuple[trio.socket.SocketType, Endpoint]:
        """A peer's listener."""
        sock = self.mine(trio.socket.socket(self.family))
        await sock.bind((str(self.host), 0))
        sock.listen(8)
        return sock, Endpoint.from_sockaddr(sock.getsockname())

    async def call(self, to: Endpoint, source: str | None = None) -> trio.socket.SocketType:
        """A peer's call."""
        sock = self.mine(trio.socket.socket(self.family))
        if source:
            await sock.bind((source, 0))
        with trio.fail_after(PATIENCE):
            await sock.connect(to.sockaddr())
        return sock

    async def turned_away(self, at: Endpoint, source: str | None = None) -> bool:
        """Call somewhere; whether a reset was the answer, during the call or after it."""
        try:
            await rest(await self.call(at, source))
        except ConnectionResetError:
            return True
        return False

    async def accept(self, listener: trio.socket.SocketType) -> trio.socket.SocketType:
        with trio.fail_after(PATIENCE):
            sock, _ = await listener.accept()
        return self.mine(sock)

    def awaits(self, caller: str | None = None) -> Await:
        return Await(Endpoint(self.host, 0), ip_address(caller) if caller else self.host)

    def calls(self, to: Endpoint) -> Call:
        return Call(to, Endpoint(self.host, 0))

    def open(self, spec: PathSpec, owner: Owner) -> RelayPath:
        path = self.plane.open(spec, owner)
        assert isinstance(path, RelayPath), path
        return path

    async def joined(self, *, client_called: bool = False, server_called: bool = True) -> Joined:
        """A path with both legs up.  `*_called`: we dial that side."""
        owner = Owner()
        listeners: dict[Side, trio.socket.SocketType] = {}
        legs: dict[Side, Await | Call] = {}
        for side, called in ((Side.CLIENT, client_called), (Side.SERVER, server_called)):
            if called:
                listeners[side], at = await self.listening()
                legs[side] = self.calls(at)
            else:
                legs[side] = self.awaits()
        path = self.open(PathSpec(legs[Side.CLIENT], legs[Side.SERVER]), owner)
        assert owner.up == []
        peers: dict[Side, trio.socket.SocketType] = {}
        for side in (Side.SERVER, Side.CLIENT):
            if side in listeners:
                peers[side] = await self.accept(listeners[side])
            else:
                peers[side] = await self.call(path.announced[side])
        await owner.is_up(Side.CLIENT, Side.SERVER)
        return Joined(path, owner, peers[Side.CLIENT], peers[Side.SERVER])

    async def settled(self, condition: Callable[[], bool]) -> None:
        """Wait until the relay has come to a state."""
        with trio.fail_after(PATIENCE):
            while not condition():  # noqa: ASYNC110  (a relay in the middle of its work tells nobody)
                await trio.sleep(0.002)

    def close(self) -> None:
        self.plane.close()
        self.doors.close()
        for sock in self._sockets:
            sock.close()


class Joined:
    """A path that carries, its owner, and the sockets of the two peers."""

    def __init__(
        self, path: RelayPath, owner: Owner, client: trio.socket.SocketType, server: trio.socket.SocketType
    ) -> None:
        self.path = path
        self.owner = owner
        self.client = client
        self.server = server

    def __getitem__(self, side: Side) -> trio.socket.SocketType:
        return self.client if side is Side.CLIENT else self.server


def refused(at: Endpoint) -> bool:
    """Whether nobody listens there."""
    with socket.socket(sockets.family(at.host)) as probe:
        return probe.connect_ex(at.sockaddr()) == errno.ECONNREFUSED


def clean(tally: Tally, *, down: int, up: int) -> bool:
    """Whether this is the account of a clean end after so many octets."""
    return (tally.octets_down, tally.octets_up, tally.failed, tally.reason) == (down, up, None, "")


both_families = pytest.mark.parametrize("stage", [{"version": 4}, {"version": 6}], ids=["ipv4", "ipv6"], indirect=True)
both_carriers = pytest.mark.parametrize(
    "stage", [{"splice_after": None}, {"splice_after": 1}], ids=["copy", "splice"], indirect=True
)


def reset(sock: trio.socket.SocketType) -> None:
    """End a connection with a reset."""
    sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    sock.close()


async def send(sock: trio.socket.SocketType, octets: bytes | memoryview, *, end: bool = False) -> None:
    view = memoryview(octets)
    with trio.fail_after(PATIENCE):
        while view:
            view = view[await sock.send(view) :]
    if end:
        sock.shutdown(trio.socket.SHUT_WR)


async def receive(sock: trio.socket.SocketType, size: int) -> bytes:
    """Exactly `size` octets."""
    found = bytearray()
    with trio.fail_after(PATIENCE):
        while len(found) < size:
            piece = await sock.recv(min(size - len(found), 1 << 18))
            assert piece, f"the end came after {len(found)} of {size} octets"
            found += piece
    return bytes(found)


async def rest(sock: trio.socket.SocketType) -> bytes:
    """Everything up to the end of file.  Raises `ConnectionResetError`."""
    found = bytearray()
    with trio.fail_after(PATIENCE):
        while piece := await sock.recv(1 << 18):
            found += piece
    return bytes(found)
