"""The relay on real loopback sockets: legs, ends and limits."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from ftpproxy import sockets
from ftpproxy.dtp import carriers
from ftpproxy.dtp.plane import DataPlane, Refused
from ftpproxy.dtp.relay import CLOSE_WAIT, CONNECT_TIMEOUT, DATA_IDLE, DATA_SETUP
from ftpproxy.endpoints import Endpoint, Side
from ftpproxy.intercept.interceptor import GateError
from ftpproxy.paths import Call, Direction, PathSpec, Tally

from .stage import PATIENCE, Owner, Stage, receive, reset, rest, send

CLIENT, SERVER = Side.CLIENT, Side.SERVER
FOUR = [(client, server) for client in (False, True) for server in (False, True)]
both_families = pytest.mark.parametrize("stage", [{"version": 4}, {"version": 6}], ids=["ipv4", "ipv6"], indirect=True)
both_carriers = pytest.mark.parametrize(
    "stage", [{"splice_after": None}, {"splice_after": 1}], ids=["copy", "splice"], indirect=True
)
MIB = 1 << 20


def refused(at: Endpoint) -> bool:
    """Whether nobody listens there."""
    with socket.socket(sockets.family(at.host)) as probe:
        return probe.connect_ex(at.sockaddr()) == errno.ECONNREFUSED


def clean(tally: Tally, *, down: int, up: int) -> bool:
    return (tally.octets_down, tally.octets_up, tally.failed, tally.reason) == (down, up, None, "")


@contextmanager
def no_descriptors_left() -> Iterator[None]:
    """Inside, this process cannot open another descriptor."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    plugs = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 8, hard))
    try:
        while True:
            plugs.append(os.dup(0))
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        yield
    finally:
        for plug in plugs:
            os.close(plug)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# Legs


@both_families
@pytest.mark.parametrize(("client_called", "server_called"), FOUR)
async def test_every_pair_of_legs_carries(stage: Stage, client_called: bool, server_called: bool) -> None:
    """Items 92, 96: active, passive and both conversions are the same two words."""
    joined = await stage.joined(client_called=client_called, server_called=server_called)
    joined.path.start(Direction.DOWN)
    await send(joined.client, b"hello ", end=True)
    assert await rest(joined.server) == b"hello "
    await send(joined.server, b"world", end=True)
    assert await rest(joined.client) == b"world"
    tally = await joined.owner.end()
    assert clean(tally, down=5, up=6)
    assert tally.exact
    assert tally.seconds >= 0


async def test_it_is_a_data_plane(stage: Stage) -> None:
    plane: DataPlane = stage.plane
    assert plane.name == "relay"
    assert plane.carries(PathSpec(stage.awaits(), stage.awaits()))


async def test_it_listens_before_open_returns(stage: Stage) -> None:
    """Item 72: installed before it can be announced."""
    path = stage.open(PathSpec(stage.awaits(), stage.awaits()), Owner())
    assert path.ready
    assert set(path.announced) == {CLIENT, SERVER}
    for at in path.announced.values():
        assert not refused(at)
    path.close()


async def test_a_closed_path_refuses_its_port(stage: Stage) -> None:
    """Item 70: what a second PASV replaced cannot be reached any more."""
    owner = Owner()
    path = stage.open(PathSpec(stage.awaits(), stage.awaits()), owner)
    path.close()
    path.close()
    for at in path.announced.values():
        assert refused(at)
    await trio.testing.wait_all_tasks_blocked()
    assert not owner.over


async def test_the_listener_is_gone_once_its_peer_has_come(stage: Stage) -> None:
    """Section 2.2: one endpoint is one connection."""
    owner = Owner()
    path = stage.open(PathSpec(stage.awaits(), stage.awaits()), owner)
    await stage.call(path.announced[CLIENT])
    await owner.is_up(CLIENT)
    assert refused(path.announced[CLIENT])
    assert stage.gate.held == 1
    path.close()


async def test_a_server_is_dialled_at_once(stage: Stage) -> None:
    """A passive path is ready when the server has answered, and not before."""
    listener, at = await stage.listening()
    owner = Owner()
    path = stage.open(PathSpec(stage.awaits(), stage.calls(at)), owner)
    ready = [path.ready]
    assert owner.up == []
    await owner.is_up(SERVER)
    ready.append(path.ready)
    assert ready == [False, True]
    assert set(path.announced) == {CLIENT}
    path.close()
    server = await stage.accept(listener)
    with pytest.raises(ConnectionResetError):
        await rest(server)


async def test_a_client_is_dialled_when_the_server_has_called(stage: Stage) -> None:
    """Section 2.3: an active client sees our call only after the server's."""
    listener, at = await stage.listening()
    owner = Owner()
    path = stage.open(PathSpec(stage.calls(at), stage.awaits()), owner)
    assert path.ready
    await trio.testing.wait_all_tasks_blocked()
    assert not select.select([listener.fileno()], [], [], 0)[0]
    await stage.call(path.announced[SERVER])
    await stage.accept(listener)
    await owner.is_up(CLIENT)
    assert owner.up == [SERVER, CLIENT]
    path.close()


async def test_a_refused_server_is_a_failure(stage: Stage) -> None:
    """Item 99: and it is told later, not from inside open."""
    listener, at = await stage.listening()
    listener.close()
    owner = Owner()
    path = stage.open(PathSpec(stage.awaits(), stage.calls(at)), owner)
    assert not owner.over
    assert "refused" in await owner.failure()
    assert refused(path.announced[CLIENT])


async def test_a_refused_server_resets_the_client(stage: Stage) -> None:
    """Item 99: the client that has already called sees a reset, not an empty file."""
    listener, at = await stage.listening()
    listener.close()
    owner = Owner()
    # In the same turn: the client's call is in the queue before the refusal is handled.
    path = stage.open(PathSpec(stage.awaits(), stage.calls(at)), owner)
    client = socket.create_connection(path.announced[CLIENT].sockaddr())
    with client:
        assert "refused" in await owner.failure()
        with pytest.raises(ConnectionResetError):
            client.recv(1)


async def test_a_call_that_fails_at_once_is_told_later(stage: Stage) -> None:
    """A connect() that says no immediately must not call the owner from inside open."""
    unreachable = Call(Endpoint.parse("255.255.255.255:21"), Endpoint(stage.host, 0))
    owner = Owner()
    path = stage.open(PathSpec(stage.awaits(), unreachable), owner)
    assert not owner.over
    assert not path.ready
    assert "cannot reach the server at 255.255.255.255:21" in await owner.failure()


async def test_a_path_closed_before_its_bad_news_hears_none(stage: Stage) -> None:
    unreachable = Call(Endpoint.parse("255.255.255.255:21"), Endpoint(stage.host, 0))
    owner = Owner()
    stage.open(PathSpec(stage.awaits(), unreachable), owner).close()
    await trio.testing.wait_all_tasks_blocked()
    assert not owner.over


async def test_a_refused_client_resets_the_server(stage: Stage) -> None:
    """Section 2.3: active; on failure the server's leg is reset, so that it answers 425/426 itself."""
    listener, at = await stage.listening()
    listener.close()
    owner = Owner()
    path = stage.open(PathSpec(stage.calls(at), stage.awaits()), owner)
    assert await stage.turned_away(path.announced[SERVER])
    assert "refused" in await owner.failure()
    assert owner.up == [SERVER]


async def test_what_the_gate_cannot_do_is_refused(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing is left of the leg that did come up."""

    def nothing(leg: Call, ports: object) -> None:
        raise GateError("no such address")

    monkeypatch.setattr(stage.gate, "caller", nothing)
    spec = PathSpec(stage.awaits(), stage.calls(Endpoint(stage.host, 1)))
    assert stage.plane.open(spec, Owner()) == Refused("no such address")
    assert stage.gate.held == 0
    # The client's call is made later; then it is a failure.
    owner = Owner()
    path = stage.open(PathSpec(stage.calls(Endpoint(stage.host, 1)), stage.awaits()), owner)
    assert await stage.turned_away(path.announced[SERVER])
    assert await owner.failure() == "no such address"


async def test_no_descriptors_for_a_path(stage: Stage) -> None:
    with no_descriptors_left():
        refusal = stage.plane.open(PathSpec(stage.awaits(), stage.awaits()), Owner())
    assert isinstance(refusal, Refused)
    stage.plane.close()
    assert stage.plane.open(PathSpec(stage.awaits(), stage.awaits()), Owner()) == Refused("the relay is closed")


async def test_no_descriptors_for_a_call(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """accept(2), EMFILE: the call waits in the queue, the listener survives and does not spin."""
    owner = Owner()
    path = stage.open(PathSpec(stage.awaits(), stage.awaits()), owner)
    client = socket.create_connection(path.announced[CLIENT].sockaddr())  # no await: the board has not seen it yet
    with no_descriptors_left():
        stage.board.turn()
        stage.board.turn()
    assert [record.getMessage() for record in caplog.records] == ["data.accept"]
    assert owner.up == []
    stage.board.sweep_now(stage.board.now)
    await owner.is_up(CLIENT)
    path.close()
    with client, pytest.raises(ConnectionResetError):
        client.recv(1)


async def test_a_stranger_is_turned_away(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """Item 132: closed, logged, and the endpoint is not consumed."""
    caplog.set_level(logging.WARNING)
    owner = Owner()
    path = stage.open(PathSpec(stage.awaits(), stage.awaits()), owner)
    for _ in range(2):
        assert await stage.turned_away(path.announced[CLIENT], source="127.0.0.2")
    assert owner.up == []
    assert [record.getMessage() for record in caplog.records] == ["data.stranger"] * 2
    assert "127.0.0.2" in str(caplog.records[0].__dict__["fields"]["caller"])
    await stage.call(path.announced[CLIENT], source="127.0.0.1")
    await owner.is_up(CLIENT)
    path.close()


async def test_too_many_strangers(stage: Stage) -> None:
    """Section 6.4: after eight somebody searches the ports."""
    owner = Owner()
    path = stage.open(PathSpec(stage.awaits(), stage.awaits()), owner)
    for _ in range(8):
        assert await stage.turned_away(path.announced[SERVER], source="127.0.0.2")
    assert "strangers" in await owner.failure()
    assert refused(path.announced[SERVER])


# Time


async def test_nobody_came(stage: Stage) -> None:
    """Item 74: an endpoint is not kept for ever; `start` gives it more time."""
    owner = Owner()
    path = stage.open(PathSpec(stage.awaits(), stage.awaits()), owner)
    client = await stage.call(path.announced[CLIENT])
    await owner.is_up(CLIENT)
    stage.board.sweep_now(stage.board.now + DATA_SETUP - 1)
    path.start(Direction.UP)
    stage.board.sweep_now(stage.board.now + 2)
    assert not owner.over
    stage.board.sweep_now(stage.board.now + DATA_SETUP)
    assert owner.why == "no data connection with server within 120 s"
    with pytest.raises(ConnectionResetError):
        await rest(client)


async def test_no_answer(stage: Stage) -> None:
    """A dialled server that says nothing at all: its backlog is full."""
    with socket.socket() as silent:
        silent.bind((str(stage.host), 0))
        silent.listen(0)
        at = Endpoint.from_sockaddr(silent.getsockname())
        with socket.create_connection(at.sockaddr()):
            owner = Owner()
            stage.open(PathSpec(stage.awaits(), stage.calls(at)), owner)
            stage.board.sweep_now(stage.board.now + CONNECT_TIMEOUT - 1)
            assert not owner.over
            stage.board.sweep_now(stage.board.now + 2)
            assert owner.why == "the server did not answer within 30 s"


@pytest.mark.parametrize(
    ("direction", "failed"), [(None, CLIENT), (Direction.UP, CLIENT), (Direction.DOWN, SERVER)], ids=str
)
async def test_idle(stage: Stage, direction: Direction | None, failed: Side) -> None:
    """Item 93: a time-out is a reset on both legs."""
    joined = await stage.joined()
    if direction:
        joined.path.start(direction)
    await send(joined.server, b"a")
    assert await receive(joined.client, 1) == b"a"
    stage.board.sweep_now(stage.board.now + DATA_IDLE + 1)
    assert joined.owner.tally is not None
    assert joined.owner.tally.failed is failed
    assert joined.owner.tally.reason == "idle for 900 s"
    for side in Side:
        with pytest.raises(ConnectionResetError):
            await rest(joined[side])


async def test_a_receiver_that_does_not_close(stage: Stage) -> None:
    """Section 2.4: after the sender's end of file the wait for the other side's close is bounded; the file is whole."""
    joined = await stage.joined()
    joined.path.start(Direction.DOWN)
    await send(joined.server, b"file", end=True)
    assert await rest(joined.client) == b"file"
    stage.board.sweep_now(stage.board.now + CLOSE_WAIT - 1)
    assert not joined.owner.over
    stage.board.sweep_now(stage.board.now + 2)
    assert joined.owner.tally is not None
    assert clean(joined.owner.tally, down=4, up=0)
    assert await rest(joined.server) == b""


async def test_a_receiver_that_closes_first_is_not_the_sender(stage: Stage) -> None:
    """Item 94: `close_wait` begins with the end of the sender, not of the receiver."""
    joined = await stage.joined()
    joined.path.start(Direction.DOWN)
    joined.client.shutdown(trio.socket.SHUT_WR)
    assert await rest(joined.server) == b""
    stage.board.sweep_now(stage.board.now + CLOSE_WAIT + 1)
    assert not joined.owner.over
    await send(joined.server, b"file", end=True)
    assert await rest(joined.client) == b"file"
    assert clean(await joined.owner.end(), down=4, up=0)


# Ends


@both_carriers
@pytest.mark.parametrize("sender", Side, ids=str)
async def test_the_end_of_file_is_passed_on_after_the_last_octet(stage: Stage, sender: Side) -> None:
    """Item 92: a half-close; the other direction goes on."""
    joined = await stage.joined()
    file = os.urandom(3 * MIB)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send, joined[sender], file)
        got = await receive(joined[sender.peer], len(file))
    assert got == file
    joined[sender].shutdown(trio.socket.SHUT_WR)
    assert await rest(joined[sender.peer]) == b""
    await send(joined[sender.peer], b"still here", end=True)
    assert await rest(joined[sender]) == b"still here"
    down, up = (len(file), 10) if sender is SERVER else (10, len(file))
    assert clean(await joined.owner.end(), down=down, up=up)


@both_carriers
@pytest.mark.parametrize("breaker", Side, ids=str)
@pytest.mark.parametrize("direction", Direction, ids=str)
async def test_a_reset_becomes_a_reset(stage: Stage, breaker: Side, direction: Direction) -> None:
    """Item 93: by the sender or the receiver, in both directions; never an end of file."""
    joined = await stage.joined()
    joined.path.start(direction)
    await send(joined[direction.sender], b"x" * 1000)
    await receive(joined[direction.sender.peer], 1000)
    reset(joined[breaker])
    with pytest.raises(ConnectionResetError):
        await rest(joined[breaker.peer])
    tally = await joined.owner.end()
    assert tally.failed is breaker
    assert tally.reason


@both_carriers
async def test_a_reset_in_the_stream(stage: Stage) -> None:
    """Item 93: a server that dies while the client is slow; what was sent and the reset arrive, no end of file."""
    joined = await stage.joined()
    joined.path.start(Direction.DOWN)
    flow = joined.path._flows[SERVER]
    with trio.move_on_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, joined.server, bytes(64 * MIB))
            await stage.settled(lambda: flow.held > 0)
            nursery.cancel_scope.cancel()
    reset(joined.server)
    with pytest.raises(ConnectionResetError):
        await rest(joined.client)
    tally = await joined.owner.end()
    assert tally.failed is SERVER
    assert tally.octets_down == flow.octets < 64 * MIB


async def test_a_reset_of_an_empty_connection(stage: Stage) -> None:
    """Item 93, 95: an empty file and an aborted one differ."""
    joined = await stage.joined()
    reset(joined.server)
    with pytest.raises(ConnectionResetError):
        await rest(joined.client)
    assert (await joined.owner.end()).failed is SERVER


@both_carriers
async def test_a_client_that_aborts_a_download_by_closing(stage: Stage) -> None:
    """Section 2.4: a plain close in the middle of a download is a reset towards the server."""
    joined = await stage.joined()
    joined.path.start(Direction.DOWN)
    await send(joined.server, b"x" * 100_000)
    await receive(joined.client, 100_000)
    joined.client.close()  # everything read: this sends a FIN
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        await send(joined.server, bytes(64 * MIB))
    assert (await joined.owner.end()).failed is CLIENT


@pytest.mark.parametrize("sender", Side, ids=str)
async def test_both_close_at_once(stage: Stage, sender: Side) -> None:
    """Item 92: a sender that closes altogether, as most do, ends cleanly."""
    joined = await stage.joined()
    await send(joined[sender], b"upload")
    joined[sender].close()
    assert await rest(joined[sender.peer]) == b"upload"
    joined[sender.peer].close()
    down, up = (6, 0) if sender is SERVER else (0, 6)
    assert clean(await joined.owner.end(), down=down, up=up)


async def test_a_reset_after_the_end_of_an_upload_is_a_clean_end(stage: Stage) -> None:
    """Section 2.4: FIN, then RST from a client that has closed: its stream was complete and it was owed nothing."""
    joined = await stage.joined()
    joined.path.start(Direction.UP)
    await send(joined.client, b"upload", end=True)
    assert await rest(joined.server) == b"upload"
    reset(joined.client)
    await stage.settled(lambda: joined.path._flows[CLIENT].ended)
    joined.server.close()
    assert clean(await joined.owner.end(), down=0, up=6)


async def test_a_reset_after_the_end_by_one_who_is_owed_something(stage: Stage) -> None:
    """Item 93: the client half-closed, then reset: the download did not arrive."""
    joined = await stage.joined()
    joined.path.start(Direction.DOWN)
    joined.client.shutdown(trio.socket.SHUT_WR)
    assert await rest(joined.server) == b""
    await send(joined.server, b"listing")
    await receive(joined.client, 7)
    reset(joined.client)
    await send(joined.server, b"more")
    assert (await joined.owner.end()).failed is CLIENT
    # The server was told the client's end of file before, so Linux shows the reset to writers only.
    with pytest.raises(BrokenPipeError):
        await send(joined.server, b"and more")


@both_families
@pytest.mark.parametrize("direction", Direction, ids=str)
async def test_nothing_at_all(stage: Stage, direction: Direction) -> None:
    """Item 95: an empty file is a clean end, both ways."""
    joined = await stage.joined()
    joined.path.start(direction)
    joined[direction.sender].close()
    assert await rest(joined[direction.sender.peer]) == b""
    joined[direction.sender.peer].close()
    assert clean(await joined.owner.end(), down=0, up=0)


async def test_the_client_calls_late(stage: Stage) -> None:
    """Item 96: the server has sent everything and closed before the client calls."""
    listener, at = await stage.listening()
    owner = Owner()
    path = stage.open(PathSpec(stage.awaits(), stage.calls(at)), owner)
    server = await stage.accept(listener)
    await send(server, b"a whole listing")
    server.close()
    await owner.is_up(SERVER)
    path.start(Direction.DOWN)
    client = await stage.call(path.announced[CLIENT])
    assert await rest(client) == b"a whole listing"
    client.close()
    assert clean(await owner.end(), down=15, up=0)


async def test_the_client_calls_and_sends_early(stage: Stage) -> None:
    """Item 96: the client has sent its upload and closed before the server calls, and before `start`."""
    owner = Owner()
    path = stage.open(PathSpec(stage.awaits(), stage.awaits()), owner)
    client = await stage.call(path.announced[CLIENT])
    await send(client, b"a whole upload")
    client.close()
    await owner.is_up(CLIENT)
    server = await stage.call(path.announced[SERVER])
    assert await rest(server) == b"a whole upload"
    path.start(Direction.UP)
    server.close()
    assert clean(await owner.end(), down=0, up=14)


async def test_closing_resets_what_carries(stage: Stage) -> None:
    """`close` is silent, immediate and idempotent."""
    joined = await stage.joined()
    joined.path.close()
    joined.path.close()
    for side in Side:
        with pytest.raises(ConnectionResetError):
            await rest(joined[side])
    assert not joined.owner.over


@pytest.mark.parametrize("when", Side, ids=str)
async def test_an_owner_may_close_from_a_call(stage: Stage, when: Side) -> None:
    owner = Owner()
    owner.on_connected = lambda path, side: path.close() if side is when else None
    path = stage.open(PathSpec(stage.awaits(), stage.awaits()), owner)
    for side in (SERVER, CLIENT):
        with socket.socket() as peer:
            peer.connect_ex(path.announced[side].sockaddr())
            await trio.testing.wait_all_tasks_blocked()
    assert not owner.over
    assert owner.up[-1] is when


async def test_closing_the_plane_closes_its_paths(stage: Stage) -> None:
    joined = await stage.joined()
    waiting = stage.open(PathSpec(stage.awaits(), stage.awaits()), Owner())
    stage.plane.close()
    with pytest.raises(ConnectionResetError):
        await rest(joined.client)
    assert refused(waiting.announced[CLIENT])


@pytest.mark.parametrize("moment", ["connected", "carrying"])
async def test_a_crash_ends_one_path(stage: Stage, moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of ours ends the path it belongs to, once, with a reset, and no other."""
    other = await stage.joined()
    if moment == "connected":
        owner = Owner()

        def crash(path: object, side: Side) -> None:
            raise RuntimeError("an error of ours")

        owner.on_connected = crash
        path = stage.open(PathSpec(stage.awaits(), stage.awaits()), owner)
        assert await stage.turned_away(path.announced[CLIENT])
        assert "an error of ours" in await owner.failure()
    else:
        joined = await stage.joined()
        with monkeypatch.context() as patch:
            patch.setattr(joined.path._flows[SERVER], "move", None)
            await send(joined.server, b"x")
            tally = await joined.owner.end()
        assert tally.failed is not None
        assert "internal error" in tally.reason
        with pytest.raises(ConnectionResetError):
            await rest(joined.client)
    await send(other.server, b"alive")
    assert await receive(other.client, 5) == b"alive"
    other.path.close()


# Size


async def blocked(sock: trio.socket.SocketType, file: memoryview) -> int:
    """Push until the other end takes no more; the octets it took."""
    pushed = 0
    while pushed < len(file):
        with trio.move_on_after(1) as scope:
            pushed += await sock.send(file[pushed : pushed + MIB])
        if scope.cancelled_caught:
            break
    return pushed


@both_carriers
@pytest.mark.parametrize("direction", Direction, ids=str)
async def test_a_slow_receiver_does_not_grow_memory(stage: Stage, direction: Direction) -> None:
    """Item 100: the relay holds at most one buffer; the sender is held up, and everything arrives in the end."""
    joined = await stage.joined()
    sender, receiver = joined[direction.sender], joined[direction.sender.peer]
    file = memoryview(os.urandom(MIB) * 64)
    tracemalloc.start()
    try:
        pushed = await blocked(sender, file)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    flow = joined.path._flows[direction.sender]
    assert pushed < len(file)
    assert 0 < flow.held <= max(carriers.PIPE_SIZES)
    assert peak < 2 * MIB
    assert not flow.wants_read

    found = hashlib.sha256()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: send(sender, file[pushed:], end=True))
        while octets := await receiver.recv(MIB):
            found.update(octets)
    assert found.digest() == hashlib.sha256(file).digest()
    receiver.close()
    tally = await joined.owner.end()
    assert tally.octets_down + tally.octets_up == len(file)
    assert tally.failed is None


@pytest.mark.parametrize("splicing", [True, False], ids=["splice", "no splice"])
@pytest.mark.parametrize("stage", [{"version": 4}, {"version": 6}], ids=["ipv4", "ipv6"], indirect=True)
async def test_big_transfers_both_ways_at_once(stage: Stage, splicing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 2.4: 64 MiB each way across the change of carriers, and on systems that cannot splice."""
    if not splicing:
        monkeypatch.delattr(os, "splice")
    joined = await stage.joined()
    file = os.urandom(MIB) * 64
    digests: dict[Side, bytes] = {}

    async def receiving(side: Side) -> None:
        found = hashlib.sha256()
        while octets := await joined[side].recv(MIB):
            found.update(octets)
        digests[side] = found.digest()

    spliced = False
    async with trio.open_nursery() as nursery:
        for side in Side:
            nursery.start_soon(receiving, side)
            nursery.start_soon(lambda side: send(joined[side], file, end=True), side)
        await stage.settled(lambda: joined.owner.over or joined.path._flows[SERVER].octets > 2 * MIB)
        spliced = all(isinstance(flow._carrier, carriers.Splice) for flow in joined.path._flows.values())
    assert digests == dict.fromkeys(Side, hashlib.sha256(file).digest())
    assert clean(await joined.owner.end(), down=len(file), up=len(file))
    if not splicing:
        assert not spliced


@pytest.mark.parametrize("stage", [{"splice_after": 1}], indirect=True)
async def test_no_pipe_no_splice(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without descriptors for a pipe, or with a pipe that is too small, copying goes on."""
    monkeypatch.setattr(carriers, "SMALLEST_PIPE", 1 << 40)
    joined = await stage.joined()
    await send(joined.server, b"small", end=True)
    assert await rest(joined.client) == b"small"
    assert isinstance(joined.path._flows[SERVER]._carrier, carriers.Copy)
    joined.client.close()
    assert clean(await joined.owner.end(), down=5, up=0)


@pytest.mark.parametrize("stage", [{"splice_after": 1}], indirect=True)
async def test_urgent_data_is_no_end_of_file(stage: Stage) -> None:
    """splice(2) stops at an urgent octet and may say 0; a file must not end there."""
    joined = await stage.joined()
    await send(joined.server, b"begin")
    assert await receive(joined.client, 5) == b"begin"
    flow = joined.path._flows[SERVER]
    assert isinstance(flow._carrier, carriers.Splice)
    with socket.socket(fileno=os.dup(joined.server.fileno())) as plain:
        plain.send(b"!", socket.MSG_OOB)
        plain.send(b"end")
    joined.server.shutdown(trio.socket.SHUT_WR)
    assert await rest(joined.client) == b"end"
    joined.client.close()
    assert clean(await joined.owner.end(), down=8, up=0)


# The worst end


@pytest.mark.parametrize("megabytes", [0, 4], ids=["at once", "mid-transfer"])
async def test_a_killed_relay_is_a_reset(stage: Stage, megabytes: int) -> None:
    """`kill -9` in the middle of a transfer: both peers see a reset, not the end of a file."""
    listener, at = await stage.listening()
    root = Path(__file__).parent.parent.parent
    command = [sys.executable, "-m", "tests.dtp.relay_process", str(at)]
    process = await trio.lowlevel.open_process(command, cwd=root, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        announced = Endpoint.parse((await process.stdout.receive_some()).decode().strip())
        client, server = await stage.call(announced), await stage.accept(listener)
        await send(server, b"x")
        assert await receive(client, 1) == b"x"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, server, bytes(megabytes * MIB))
            await receive(client, megabytes * MIB)
        process.send_signal(signal.SIGKILL)
        await process.wait()
        for peer in (client, server):
            with pytest.raises(ConnectionResetError):
                await rest(peer)
    finally:
        process.kill()
        await process.wait()
        if process.stdout is not None:
            await process.stdout.aclose()
