"""The pf engine under a stand-in for pfctl, and its client on a switchboard that the test turns."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from attrs import define, field

from ftpproxy.pf.client import Engine, start
from ftpproxy.pf.engine import LEAST_DATA_PORT
from ftpproxy.switchboard import Switchboard

from .standin import StandIn

__all__ = ["Stage", "lives", "until"]

PATIENCE = 10.0


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.002)


def lives(process: int) -> bool:
    """Whether it runs: neither gone nor a zombie that nobody has waited for yet."""
    state = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True, check=False
    ).stdout
    return bool(state.strip()) and not state.startswith("Z")


@define
class Stage:
    pfctl: StandIn
    engine: Engine
    board: Switchboard = field(factory=Switchboard)
    lost: list[str] = field(factory=list)

    @classmethod
    def at(cls, folder: Path, *, seconds: float = 5.0, least_port: int = LEAST_DATA_PORT) -> Stage:
        pfctl = StandIn(folder)
        stage = cls(pfctl, start(str(pfctl.program), seconds=seconds, least_port=least_port))
        stage.board.now = 1000.0
        stage.engine.attach(stage.board, stage.lost.append)
        return stage

    @property
    def worker(self) -> int:
        """The process that owns the anchors."""
        listed = subprocess.run(["ps", "-ax", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
        pairs = [line.split() for line in listed.splitlines()]
        (worker,) = [int(process) for process, parent in pairs if int(parent) == self.engine.pid]
        return worker

    def until(self, condition: Callable[[], object], what: str) -> None:
        def turned() -> object:
            self.board.turn()
            return condition()

        until(turned, what)

    def close(self) -> None:
        self.engine.close()
        self.board.close()
        assert not lives(self.engine.pid)
        assert not [name for name in os.listdir(self.pfctl.folder) if name.endswith(".new")]
