"""The relay and time: nobody comes, nobody answers, nothing moves, nobody closes."""

from __future__ import annotations

import socket

import pytest
import trio
import trio.testing

from ftpproxy.dtp.relay import CLOSE_WAIT, CONNECT_TIMEOUT, DATA_IDLE, DATA_SETUP
from ftpproxy.endpoints import Endpoint, Side
from ftpproxy.paths import Direction, PathSpec

from .stage import Owner, Stage, clean, receive, rest, send

CLIENT, SERVER = Side.CLIENT, Side.SERVER


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
