"""Doors to be opened by gates, and shut after each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ftpproxy.doors import Doors
from ftpproxy.switchboard import Switchboard


@pytest.fixture
def doors() -> Iterator[Doors]:
    board = Switchboard()
    doors = Doors(board)
    yield doors
    doors.close()
    board.close()
