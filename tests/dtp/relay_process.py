"""A relay in a process of its own, to be killed: `python -m tests.dtp.relay_process SERVER`."""

from __future__ import annotations

import sys

import trio
import trio.testing

from ftpproxy.endpoints import Endpoint, Side
from ftpproxy.paths import PathSpec
from ftpproxy.switchboard import Switchboard

from .stage import Owner, Stage


async def main(server: Endpoint) -> None:
    board = Switchboard()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(board.run)
        await trio.testing.wait_all_tasks_blocked()
        stage = Stage(board)
        owner = Owner()
        path = stage.open(PathSpec(stage.awaits(), stage.calls(server)), owner)
        await owner.is_up(Side.SERVER)
        print(path.announced[Side.CLIENT], flush=True)


if __name__ == "__main__":
    trio.run(main, Endpoint.parse(sys.argv[1]))
