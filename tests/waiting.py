"""To wait for a switchboard from outside of trio, and to count descriptors, on every system."""

from __future__ import annotations

import os
import selectors
from typing import Protocol

from ftpproxy.switchboard import Switchboard

MOST_DESCRIPTORS = 1024
"""More than a test has open.  (/proc/self/fd is Linux's, and /dev/fd of a BSD may show three.)"""


class _HasFileno(Protocol):
    def fileno(self) -> int: ...


def pending(board: Switchboard, *others: _HasFileno | int, seconds: float) -> bool:
    """Wait until `board` has something to do or one of `others` can be read; False after so many `seconds`."""
    with selectors.PollSelector() as everything:  # takes no descriptor: some tests leave none
        for key in board.selector.get_map().values():
            everything.register(key.fd, key.events)
        for other in others:
            everything.register(other, selectors.EVENT_READ)
        return bool(everything.select(seconds))


def open_descriptors() -> set[int]:
    """The numbers of this process's descriptors."""
    return {number for number in range(MOST_DESCRIPTORS) if _is_open(number)}


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True
