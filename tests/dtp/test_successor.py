"""Relayed paths that go on in a successor: what was read and not written, half-closes, calls that are under way."""

from __future__ import annotations

import json
import os
import socket
from typing import Any

import pytest
import trio

from ftpproxy.doors import DoorRecord
from ftpproxy.dtp.relay import RelayPath
from ftpproxy.endpoints import Endpoint, Side
from ftpproxy.estate import Estate, Inheritance
from ftpproxy.freezing import Unthawable, thaw
from ftpproxy.paths import Direction, PathSpec

from .stage import MIB, Owner, Stage, both_carriers, clean, receive, reset, rest, send

CLIENT, SERVER = Side.CLIENT, Side.SERVER


def left(path: RelayPath, stage: Stage) -> tuple[Any, Inheritance]:
    """The path, and every door, as an estate has them; nothing of them is open here any more."""
    estate = Estate()
    state = json.loads(json.dumps(path.leave(estate)))
    stage.doors.leave(estate)
    inheritance = Inheritance(estate.sealed())
    for thing in estate.left:
        thing.close()
    stage.gate.held = 0  # the successor has a gate of its own
    for kind, record in inheritance.read():
        assert kind == "door"
        stage.doors.inherit(thaw(record, DoorRecord), inheritance)
    return state, inheritance


def succeeded(path: RelayPath, stage: Stage) -> tuple[RelayPath, Owner]:
    """The path in a successor."""
    state, inheritance = left(path, stage)
    owner = Owner()
    successor = stage.plane.inherit(state, owner, inheritance)
    inheritance.close()
    stage.doors.drop_left()
    return successor, owner


@both_carriers
@pytest.mark.parametrize("sender", Side, ids=str)
async def test_what_is_held_arrives(stage: Stage, sender: Side) -> None:
    """A receiver that does not read: a buffer, or a pipe, is full of what only this process has."""
    joined = await stage.joined()
    joined.path.start(Direction.DOWN if sender is SERVER else Direction.UP)
    file = os.urandom(24 * MIB)
    path, owner = joined.path, joined.owner
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send, joined[sender], file)
        got = await receive(joined[sender.peer], 2 * MIB)
        for _ in range(2):
            flow = path._flows[sender]
            await stage.settled(lambda flow=flow: flow.held > 0)  # type: ignore[misc]
            path, owner = succeeded(path, stage)
            assert path._flows[sender].held > 0
            got += await receive(joined[sender.peer], MIB)
        got += await receive(joined[sender.peer], len(file) - len(got))
    assert got == file
    for side in Side:
        joined[side].shutdown(trio.socket.SHUT_WR)
    down, up = (len(file), 0) if sender is SERVER else (0, len(file))
    assert clean(await owner.end(), down=down, up=up)
    assert len(stage.plane) == 0


@both_carriers
async def test_half_closed(stage: Stage) -> None:
    """The end of one direction has been passed on, and is not passed on again."""
    joined = await stage.joined()
    await send(joined.server, b"all", end=True)
    assert await rest(joined.client) == b"all"
    _, owner = succeeded(joined.path, stage)
    await send(joined.client, b"still here", end=True)
    assert await rest(joined.server) == b"still here"
    assert clean(await owner.end(), down=3, up=10)


async def test_a_reset_afterwards(stage: Stage) -> None:
    joined = await stage.joined()
    _, owner = succeeded(joined.path, stage)
    reset(joined.server)
    with pytest.raises(ConnectionResetError):
        await rest(joined.client)
    assert (await owner.end()).failed is SERVER


async def test_nobody_takes_it_up(stage: Stage) -> None:
    """Then both peers see a reset, and no end of file."""
    joined = await stage.joined()
    await send(joined.server, b"part")
    assert await receive(joined.client, 4) == b"part"
    _, inheritance = left(joined.path, stage)
    inheritance.close()
    for side in Side:
        with pytest.raises(ConnectionResetError):
            await rest(joined[side])


async def test_who_calls_in_between(stage: Stage) -> None:
    """The client calls while nobody is there: it waits at the door."""
    listener, at = await stage.listening()
    owner = Owner()
    path = stage.open(PathSpec(stage.awaits(), stage.calls(at)), owner)
    server = await stage.accept(listener)
    await owner.is_up(SERVER)
    state, inheritance = left(path, stage)
    client = await stage.call(path.announced[CLIENT])
    owner = Owner()
    successor = stage.plane.inherit(state, owner, inheritance)
    inheritance.close()
    await owner.is_up(CLIENT)
    assert successor.announced == path.announced
    await send(server, b"hello", end=True)
    assert await rest(client) == b"hello"
    successor.close()


async def test_a_call_that_is_not_answered_yet(stage: Stage) -> None:
    """It is the same call afterwards: the peer sees one connection."""
    deaf = socket.create_server((str(stage.host), 0), backlog=0)
    with deaf, socket.create_connection(deaf.getsockname()):
        at = Endpoint.from_sockaddr(deaf.getsockname())
        path = stage.open(PathSpec(stage.awaits(), stage.calls(at)), Owner())
        dialled = path._legs[SERVER]._socket
        assert dialled is not None
        source = dialled.getsockname()
        path, owner = succeeded(path, stage)
        ready = [path.ready]
        deaf.accept()[0].close()
        server, caller = await trio.to_thread.run_sync(deaf.accept)
        with server:
            assert caller == source
            await owner.is_up(SERVER)
            assert [*ready, path.ready] == [False, True]
            path.close()


@pytest.mark.parametrize(
    "damage",
    [
        {"flows": [["CLIENT", {"octets": 1, "ended": False, "held": None}]]},
        {"legs": [["CLIENT", {"descriptor": 7, "up": True, "dialled": None}]]},
        {"spec": {}},
        {"announced": [["CLIENT", "nowhere"]]},
        {"direction": "SIDEWAYS"},
        {"flows": "x"},
        {},
    ],
)
async def test_damaged(stage: Stage, damage: dict[str, Any]) -> None:
    """It is refused, and nothing of it stays."""
    joined = await stage.joined()
    state, inheritance = left(joined.path, stage)
    doors = len(stage.doors)
    with pytest.raises(Unthawable):
        stage.plane.inherit({**state, **damage} if damage else {}, Owner(), inheritance)
    inheritance.close()
    assert len(stage.plane) == 0
    assert len(stage.doors) == doors
    for side in Side:
        with pytest.raises(ConnectionResetError):
            await rest(joined[side])
