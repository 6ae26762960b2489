"""How legs come up, on real loopback sockets: listening, calling, strangers, and what fails."""

from __future__ import annotations

import errno
import logging
import os
import resource
import select
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio
import trio.testing

from ftpproxy.dtp.plane import DataPlane, Refused
from ftpproxy.endpoints import Endpoint, Side
from ftpproxy.intercept.interceptor import GateError
from ftpproxy.paths import Call, Direction, PathSpec

from ..intercept.test_direct import span
from ..waiting import open_descriptors
from .stage import Owner, Stage, both_families, clean, refused, rest, send

CLIENT, SERVER = Side.CLIENT, Side.SERVER
FOUR = [(client, server) for client in (False, True) for server in (False, True)]


@contextmanager
def no_descriptors_left() -> Iterator[None]:
    """Inside, this process cannot open another descriptor."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(open_descriptors())
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


@pytest.mark.parametrize(("client_called", "server_called"), FOUR)
async def test_every_leg_resets_by_default(stage: Stage, client_called: bool, server_called: bool) -> None:
    """Accepted sockets inherit it from their listener: there is no moment at which a kill would look like an end."""
    joined = await stage.joined(client_called=client_called, server_called=server_called)
    for leg in joined.path._legs.values():
        assert leg.connection.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8) == struct.pack("ii", 1, 0)
        assert leg.connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert not leg.connection.get_inheritable()
    joined.path.close()


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


async def test_a_pinned_source_port_that_is_busy_gives_way(stage: Stage) -> None:
    """Item 85: port 20 is a courtesy; where the pair of endpoints is in use, another port calls."""
    listener, at = await stage.listening()
    with socket.socket() as probe:
        probe.bind((str(stage.host), 0))
        pinned = Endpoint.from_sockaddr(probe.getsockname())
    paths, callers = [], []
    for _ in range(2):
        owner = Owner()
        path = stage.open(PathSpec(Call(at, pinned), stage.awaits()), owner)
        await stage.call(path.announced[SERVER])
        await owner.is_up(CLIENT, SERVER)
        client = await stage.accept(listener)
        callers.append(Endpoint.from_sockaddr(client.getpeername()))
        paths.append(path)
    for path in paths:
        path.close()
    assert callers[0] == pinned
    assert callers[1].host == pinned.host
    assert callers[1] != pinned


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


@pytest.mark.linux("all of 127/8 is loopback")
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


@pytest.mark.linux("all of 127/8 is loopback")
async def test_strangers_end_nothing(stage: Stage) -> None:
    """Item 132: whoever wants to cut off the others does not manage it by calling, however often."""
    owner = Owner()
    path = stage.open(PathSpec(stage.awaits(), stage.awaits()), owner)
    for _ in range(20):
        assert await stage.turned_away(path.announced[CLIENT], source="127.0.0.2")
    await stage.call(path.announced[CLIENT])
    await owner.is_up(CLIENT)
    path.close()


@pytest.mark.linux("all of 127/8 is loopback")
async def test_a_port_is_shared_by_callers(stage: Stage) -> None:
    """Each gets its own path, whatever the order; one that is expected there already takes another port."""
    callers = [f"127.0.0.{number}" for number in range(10, 40)]
    stage.plane.ports = ports = span("127.0.0.1", 2)
    owners: list[Owner] = []
    listener, at = await stage.listening()
    listener.listen(100)
    for caller in [*callers, *callers]:
        owners.append(Owner())
        stage.open(PathSpec(stage.awaits(caller), stage.calls(at)), owners[-1])
        await owners[-1].is_up(SERVER)
    servers = [await stage.accept(listener) for _ in owners]
    paths = list(stage.plane.paths)
    assert {path.announced[CLIENT].port for path in paths} == set(ports.once_round())
    assert len(stage.doors) == 2
    assert isinstance(stage.plane.open(PathSpec(stage.awaits(callers[3]), stage.calls(at)), Owner()), Refused)
    for number in reversed(range(len(owners))):
        client = await stage.call(paths[number].announced[CLIENT], source=callers[number % len(callers)])
        await send(servers[number], b"%d" % number, end=True)
        assert await rest(client) == b"%d" % number
        await send(client, b"", end=True)
        await owners[number].end()
    assert len(stage.doors) == 0
    assert all(refused(Endpoint(stage.host, port)) for port in ports.once_round())


@pytest.mark.linux("all of 127/8 is loopback")
async def test_who_shares_a_port_is_left_alone(stage: Stage) -> None:
    """A path that is closed, or has had its call, leaves the door to the others."""
    stage.plane.ports = ports = span("127.0.0.1", 1)
    closed, served, waiting = owners = [Owner(), Owner(), Owner()]
    for number, owner in enumerate(owners):
        stage.open(PathSpec(stage.awaits(f"127.0.0.{10 + number}"), stage.calls(Endpoint(stage.host, 1))), owner)
    # A server that refuses ends each of them later; nobody has had a turn yet.
    paths = list(stage.plane.paths)
    assert [path.announced[CLIENT].port for path in paths] == [*ports.once_round()] * 3
    paths[0].close()
    assert len(stage.doors) == 1
    assert "refused" in await served.failure()
    assert "refused" in await waiting.failure()
    assert not closed.over
    assert len(stage.doors) == 0


@pytest.mark.linux("all of 127/8 is loopback")
async def test_a_second_call_of_the_same_caller_is_a_strangers(stage: Stage) -> None:
    """Section 2.2: one endpoint is one connection, also where the port stays open for others."""
    stage.plane.ports = span("127.0.0.1", 2)
    first, other = Owner(), Owner()
    path = stage.open(PathSpec(stage.awaits("127.0.0.10"), stage.awaits("127.0.0.10")), first)
    stage.open(PathSpec(stage.awaits("127.0.0.11"), stage.awaits("127.0.0.11")), other)
    await stage.call(path.announced[CLIENT], source="127.0.0.10")
    await first.is_up(CLIENT)
    assert await stage.turned_away(path.announced[CLIENT], source="127.0.0.10")
    assert not other.over
    stage.plane.close()


@pytest.mark.linux("all of 127/8 is loopback")
async def test_a_crash_ends_one_path(stage: Stage) -> None:
    """What goes wrong with one caller does not concern who waits behind the same door."""
    stage.plane.ports = span("127.0.0.1", 2)
    unlucky, other = Owner(), Owner()
    path = stage.open(PathSpec(stage.awaits("127.0.0.10"), stage.awaits("127.0.0.12")), unlucky)
    stage.open(PathSpec(stage.awaits("127.0.0.11"), stage.awaits("127.0.0.13")), other)

    def crash(path: object, side: Side) -> None:
        raise RuntimeError("for a test")

    unlucky.on_connected = crash
    assert await stage.turned_away(path.announced[CLIENT], source="127.0.0.10")
    assert "for a test" in await unlucky.failure()
    assert not other.over
    stage.plane.close()


async def test_a_call_that_reaches_its_own_caller_is_a_failure(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Item 143: TCP lets a socket call its own address and port; such a path carries nothing but itself."""
    with socket.socket() as probe:
        probe.bind((str(stage.host), 0))
        own = Endpoint.from_sockaddr(probe.getsockname())
    owner = Owner()
    stage.open(PathSpec(stage.awaits(), Call(own, own)), owner)
    assert "leads back to this proxy" in await owner.failure()
