"""How carried connections end: half-closes, resets, and the cases between."""

from __future__ import annotations

import os
import socket

import pytest
import trio
import trio.testing

from ftpproxy.endpoints import Side
from ftpproxy.paths import Direction, PathSpec

from .stage import MIB, PATIENCE, Owner, Stage, both_carriers, both_families, clean, receive, refused, reset, rest, send

CLIENT, SERVER = Side.CLIENT, Side.SERVER


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
    until_now = joined.path.so_far()
    assert until_now is not None
    assert until_now.octets_down + until_now.octets_up == 1000
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


async def test_an_end_that_cannot_be_passed_on_is_no_end(stage: Stage) -> None:
    """Item 93: the client half-closed, got a part and reset; the server's end of file comes after that."""
    joined = await stage.joined()
    joined.path.start(Direction.DOWN)
    joined.client.shutdown(trio.socket.SHUT_WR)
    assert await rest(joined.server) == b""
    await send(joined.server, b"listing")
    await receive(joined.client, 7)
    reset(joined.client)
    joined.server.close()
    assert (await joined.owner.end()).failed is CLIENT


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
            if peer.connect_ex(path.announced[side].sockaddr()) == 0:
                await owner.is_up(side)
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


async def test_the_owner_hears_when_a_download_is_delivered(stage: Stage) -> None:
    """Item 98: when the server's end of file was passed on, although the client keeps its own direction open."""
    joined = await stage.joined()
    joined.path.start(Direction.DOWN)
    await send(joined.server, b"all", end=True)
    assert await rest(joined.client) == b"all"
    await joined.owner.until(lambda: joined.owner.was_delivered)
    assert not joined.owner.over
    joined.client.close()
    assert clean(await joined.owner.end(), down=3, up=0)
