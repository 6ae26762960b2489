"""The switchboard: calls that have their turn later."""

from __future__ import annotations

import trio
import trio.testing

from ftpproxy.switchboard import Switchboard


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
