"""Calls by name and errands: bounded, one call back each, and only addresses that are allowed."""

from __future__ import annotations

import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import pytest
import trio

from ftpproxy import resolver
from ftpproxy.endpoints import Endpoint
from ftpproxy.errands import Errands
from ftpproxy.resolver import CallByName, look_up
from ftpproxy.switchboard import Switchboard

PATIENCE = 10.0


class Ends:
    """What came of a call, or of an errand."""

    def __init__(self) -> None:
        self.heard: list[object] = []
        self.something = trio.Event()

    def __call__(self, what: object) -> None:
        self.heard.append(what)
        self.something.set()

    async def only(self) -> object:
        with trio.fail_after(PATIENCE):
            await self.something.wait()
        (what,) = self.heard
        return what


@asynccontextmanager
async def running(**limits: float) -> AsyncIterator[tuple[Switchboard, Errands]]:
    board = Switchboard()
    errands = Errands(board, **limits)  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(board.run)
        nursery.start_soon(errands.run)
        yield board, errands
        nursery.cancel_scope.cancel()
    board.close()


async def call(
    host: str, port: int, admits: Callable[[Endpoint], bool] = lambda _: True, source: str | None = None
) -> object:
    """The peer that was reached, or why none was."""
    ends = Ends()
    async with running() as (board, errands):
        CallByName(
            board,
            errands,
            host,
            port,
            PATIENCE,
            source=None if source is None else Endpoint.parse(f"{source}:0").host,
            admits=admits,
            answered=ends,
            unanswered=ends,
            on_crash=ends,
        )
        what = await ends.only()
    if isinstance(what, socket.socket):
        with what:
            return Endpoint.from_sockaddr(what.getpeername())
    return what


def names(monkeypatch: pytest.MonkeyPatch, found: list[str] | str) -> None:
    """Let every name have these addresses, without asking anybody."""

    def answer(host: str, port: int) -> list[Endpoint] | str:
        return found if isinstance(found, str) else [Endpoint.parse(f"{each}:{port}") for each in found]

    monkeypatch.setattr(resolver, "look_up", answer)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def test_looking_up() -> None:
    """Item 146: a name of this machine, and none."""
    assert Endpoint.parse("127.0.0.1:21") in look_up("localhost", 21)
    assert isinstance(look_up("a" * 70 + ".b", 21), str)


async def test_a_name(listener: socket.socket) -> None:
    """Item 146: looked up in a thread, called on the switchboard."""
    port = listener.getsockname()[1]
    assert await call("localhost", port) == Endpoint.parse(f"127.0.0.1:{port}")


@pytest.mark.linux("all of 127/8 is loopback")
async def test_the_next_address(monkeypatch: pytest.MonkeyPatch, listener: socket.socket) -> None:
    """Item 146: an address that refuses is followed by the next, one that is not allowed is not called."""
    names(monkeypatch, ["127.0.0.3", "127.0.0.2", "127.0.0.1"])
    port = listener.getsockname()[1]
    with socket.create_server(("127.0.0.3", port)) as trap:
        reached = await call("x.test", port, lambda endpoint: str(endpoint.host) != "127.0.0.3")
        trap.setblocking(False)
        with pytest.raises(BlockingIOError):
            trap.accept()
    assert reached == Endpoint.parse(f"127.0.0.1:{port}")


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        ("Name or service not known", "Name or service not known"),
        (["127.0.0.9"], "Connection refused"),
        ([], "it is not allowed here"),
        (["::1"], "Network is unreachable"),
    ],
)
async def test_no_address(monkeypatch: pytest.MonkeyPatch, found: list[str] | str, reason: str) -> None:
    """Item 147: the reason is a sentence for the client."""
    names(monkeypatch, found if isinstance(found, str) else [f"[{each}]" if ":" in each else each for each in found])
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    assert await call("x.test", port, source="127.0.0.1") == reason


async def test_not_allowed() -> None:
    """Item 146: an address needs no looking up, and is not called."""
    assert await call("127.0.0.1", 21, lambda _: False) == "it is not allowed here"


async def test_an_errand_that_takes_too_long() -> None:
    """Item 146: it is given up, its thread keeps one place, and others are served."""
    release, slow, quick = threading.Event(), Ends(), Ends()
    try:
        async with running(at_once=2, seconds=0.2) as (_, errands):
            errands.send(release.wait, slow, slow)
            assert await slow.only() is None
            errands.send(lambda: "done", quick, quick)
            assert await quick.only() == "done"
    finally:
        release.set()


async def test_more_errands_than_places() -> None:
    """Item 146: what finds no place in time comes back with nothing, once."""
    release = threading.Event()
    ends = [Ends() for _ in range(600)]
    try:
        async with running(at_once=1, seconds=0.2) as (_, errands):
            for each in ends:
                errands.send(release.wait, each, each)
            assert [await each.only() for each in ends] == [None] * 600
    finally:
        release.set()


async def test_an_errand_that_breaks_and_one_that_nobody_waits_for(caplog: pytest.LogCaptureFixture) -> None:
    """Item 146: a crash ends whom it was for; who has closed hears nothing."""
    crash, closed, last = Ends(), Ends(), Ends()
    error = RuntimeError("broken")

    def break_down() -> None:
        raise error

    async with running() as (_, errands):
        errands.send(break_down, crash, crash)
        errands.send(lambda: "unheard", closed, closed).close()
        assert await crash.only() is error
        errands.send(lambda: "last", last, last)
        await last.only()
    assert closed.heard == []
    assert "internal.error" in caplog.text
