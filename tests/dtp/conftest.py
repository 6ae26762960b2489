"""A stage for each test, and a look behind it afterwards: no descriptor, path or kernel state may be left."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import trio
import trio.testing

from ftpproxy.switchboard import Switchboard

from ..waiting import open_descriptors
from .stage import Stage


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> Iterator[None]:
    before = open_descriptors()
    yield
    assert open_descriptors() == before


@pytest.fixture
async def board() -> AsyncIterator[Switchboard]:
    board = Switchboard()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(board.run)
        await trio.testing.wait_all_tasks_blocked()
        yield board
        nursery.cancel_scope.cancel()
    board.close()


@pytest.fixture
async def stage(board: Switchboard, request: pytest.FixtureRequest) -> AsyncIterator[Stage]:
    """Takes options of the plane, and `version` 4 or 6, as an indirect parameter."""
    stage = Stage(board, **getattr(request, "param", {}))
    yield stage
    left, doors = len(stage.plane), len(stage.doors)
    stage.close()
    assert left == 0, "a path was left in the plane"
    assert doors == 0, "somebody is still expected"
    assert stage.gate.held == 0, "kernel state was not released"
    assert not board.selector.get_map(), "a descriptor is still watched"
