"""The switchboard: calls that have their turn later."""

from __future__ import annotations

import socket

import trio
import trio.testing

from ftpproxy.switchboard import READ, Switchboard


async def test_soon_is_later_and_wakes_the_board() -> None:
    """Also where nothing else happens, and where it is asked for before the board runs."""
    board = Switchboard()
    called: list[str] = []
    crashed: list[Exception] = []

    def first(now: float) -> None:
        board.soon(second, crashed.append)
        called.append("first")

    def second(now: float) -> None:
        called.append("second")

    board.soon(first, crashed.append)
    assert called == []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(board.run)
        await trio.testing.wait_all_tasks_blocked()
        assert called == ["first", "second"]
        board.soon(first, crashed.append)
        assert called == ["first", "second"]
        await trio.testing.wait_all_tasks_blocked()
        assert called == ["first", "second"] * 2
        nursery.cancel_scope.cancel()
    board.close()
    assert crashed == []


async def test_a_crash_ends_what_it_belongs_to_and_no_more() -> None:
    board = Switchboard()
    called: list[float] = []
    crashed: list[Exception] = []

    def crash(now: float) -> None:
        raise ValueError("an error of ours")

    board.soon(crash, crashed.append)
    board.soon(called.append, crashed.append)
    board.turn()
    assert [str(error) for error in crashed] == ["an error of ours"]
    assert len(called) == 1
    board.turn()
    assert len(called) == 1
    board.close()


async def test_who_comes_goes_before_what_nobody_waits_for() -> None:
    """Of all that is to be done behind everything else, one thing may keep a caller waiting, not all of them."""
    board = Switchboard()
    called: list[str] = []
    here, there = socket.socketpair()

    def tidy(now: float) -> None:
        called.append("tidy")
        there.send(b"x")

    def heard(events: int) -> None:
        here.recv(100)
        called.append("heard")

    with here, there:
        watch = board.watch(here, heard, _fail)
        watch.want(READ)
        for _ in range(3):
            board.behind(tidy, _fail)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(board.run)
            await trio.testing.wait_all_tasks_blocked(0.01)
            nursery.cancel_scope.cancel()
        watch.close()
    board.close()
    assert called == ["tidy", "heard"] * 3


def _fail(error: Exception) -> None:
    raise AssertionError(error)
