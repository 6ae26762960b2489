"""A session whose plane has not decided yet: nothing is announced, nothing is overtaken, and everything can end."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ftpproxy.endpoints import Side
from ftpproxy.pi.actions import Timer

from .. import script as scripts
from .test_dialogues import LatePlane, ScriptedPlane, Stage

CLIENT, SERVER = Side.CLIENT, Side.SERVER

DIALOGUE = """\
policy require_login=false
S: 220 ready
C> 220 ready
C: PASV
S> PASV
S: 227 (192,0,2,1,195,80)
open await 198.51.100.7:0 by 10.77.1.2 / call 198.51.100.7:50000 from 203.0.113.1:0
opened client 198.51.100.7:20001 ready
"""
SPEC = "open await 198.51.100.7:0 by 10.77.1.2 / call 198.51.100.7:50000 from 203.0.113.1:0"
ANNOUNCED = "227 Entering Passive Mode (198,51,100,7,78,33)"
BUSY = "425 Can't open data connection."

Begin = Callable[..., Stage]


@pytest.fixture
def begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Begin]:
    """A session up to the moment where a plane is asked."""
    stages = []

    def made(*more: ScriptedPlane, refuses: bool = False) -> Stage:
        path = tmp_path / "pending.txt"
        path.write_text(DIALOGUE.replace("opened client 198.51.100.7:20001 ready", "refused") if refuses else DIALOGUE)
        script = scripts.read(path)
        stage = Stage(script, monkeypatch, LatePlane(script.lines), *more)
        stages.append(stage)
        for line in script.lines[:-1]:
            stage.play(line)
        assert plane(stage).pending is not None
        return stage

    yield made
    for stage in stages:
        stage.close()


def plane(stage: Stage) -> LatePlane:
    assert isinstance(stage.plane, LatePlane)
    return stage.plane


def pending(stage: Stage) -> Any:
    found = plane(stage).pending
    assert found is not None
    return found


def decide(stage: Stage) -> None:
    pending(stage).decide()
    stage.settle()


def test_nobody_is_overtaken(begin: Begin) -> None:
    """What the client and the server say meanwhile is read afterwards, in its order."""
    stage = begin()
    stage.peers[CLIENT].send(b"NOOP\r\nQUIT\r\n")
    stage.peers[SERVER].send(b"200-late\r\n200 late\r\n")
    stage.settle()
    assert not any(stage.said.values())
    decide(stage)
    assert stage.take_line(CLIENT) == ANNOUNCED
    assert stage.take_line(CLIENT) == "200-late"
    assert stage.take_line(SERVER) == "NOOP"
    assert not stage.session.over


def test_clocks_stand_still(begin: Begin) -> None:
    stage = begin()
    stage.session._deadlines = {Timer.LOGIN: stage.board.now, Timer.GREETING: stage.board.now}
    stage.session.sweep(stage.board.now + 1)
    assert set(stage.session._deadlines) == {Timer.LOGIN, Timer.GREETING}
    decide(stage)
    assert stage.take_line(CLIENT) == ANNOUNCED
    stage.session.sweep(stage.board.now + 1)
    assert not stage.session._deadlines


@pytest.mark.parametrize("end", ["dismiss", "close", "crashed", "client", "server"])
def test_the_session_ends_meanwhile(begin: Begin, end: str) -> None:
    """The plane is told that nobody wants the path any more, and nothing of it is said to anybody."""
    stage = begin()
    asked = pending(stage)
    if end == "dismiss":
        stage.session.dismiss("Enough.")
    elif end == "close":
        stage.session.close()
    elif end == "crashed":
        stage.session.crashed(RuntimeError())
    else:  # a reset, which nobody would read
        peer = stage.peers.pop(Side(end))
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
        stage.session.sweep(stage.board.now)
    assert stage.session.over
    assert asked.owner is None
    asked.decide()
    stage.settle()
    if end == "dismiss":
        assert stage.take_line(CLIENT) == "421 Enough."
    assert not stage.said[SERVER]
    assert not stage.said[CLIENT].startswith(b"227")
    assert stage.session in stage.ended


def test_a_refusal_is_for_the_next_plane(begin: Begin, tmp_path: Path) -> None:
    (tmp_path / "next.txt").write_text("opened client 198.51.100.7:20001 ready\n")
    second = ScriptedPlane(scripts.read(tmp_path / "next.txt").lines)
    stage = begin(second, refuses=True)
    assert second.asked == []
    decide(stage)
    assert second.asked == [SPEC]
    assert stage.take_line(CLIENT) == ANNOUNCED


def test_the_next_one_may_be_waited_for_too(begin: Begin, tmp_path: Path) -> None:
    (tmp_path / "next.txt").write_text("refused\n")
    second = LatePlane(scripts.read(tmp_path / "next.txt").lines)
    stage = begin(second, refuses=True)
    decide(stage)
    assert not any(stage.said.values())
    assert second.pending is not None
    second.pending.decide()
    stage.settle()
    assert stage.take_line(CLIENT) == BUSY
    assert not stage.session.over


def test_without_another_plane_it_is_a_425(begin: Begin) -> None:
    stage = begin(refuses=True)
    decide(stage)
    assert stage.take_line(CLIENT) == BUSY
    assert not stage.session.over
