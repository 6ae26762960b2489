"""Every dialogue script against the bare interpreter."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import pytest

from ftpproxy.endpoints import Side
from ftpproxy.pi.actions import Arm, Need, OpenPath, Timer
from ftpproxy.pi.interpreter import ProtocolInterpreter

from .. import script as scripts

SIDES = {"C": Side.CLIENT, "S": Side.SERVER}


class Stage:
    """The interpreter, with what it has said and asked for so far."""

    def __init__(self, script: scripts.Script) -> None:
        self.interpreter = ProtocolInterpreter(script.route, script.policy, **script.terms)
        self.actions: deque[str] = deque()
        self.said = {side: bytearray() for side in Side}
        self.opening = False
        self.armed: set[Timer] = set()
        self.pump()

    def pump(self) -> None:
        moved = True
        while moved and not self.opening:
            moved = False
            for side in (Side.SERVER, Side.CLIENT):
                while not self.opening and not isinstance(action := self.interpreter.next_action(side), Need):
                    moved = True
                    self.opening = isinstance(action, OpenPath)
                    if isinstance(action, Arm):
                        self.armed.add(action.timer)
                    if (words := scripts.words(action)) is not None:
                        self.actions.append(words)
        for side in Side:
            for chunk in self.interpreter.take_output(side):
                self.said[side] += chunk.octets

    def take_line(self, side: Side) -> str:
        line, end, rest = bytes(self.said[side]).partition(b"\r\n")
        assert end, f"the {side} received nothing more than {line!r}"
        self.said[side][:] = rest
        return line.decode("latin-1")

    def play(self, line: scripts.Line) -> None:
        word = line.word
        if word in scripts.STIMULI or word[1:] in (":", "*", "."):
            assert not any(b"\n" in said for said in self.said.values()), f"unexpected: {self.said}"
            assert not (self.actions and word not in ("opened", "refused")), f"unexpected: {self.actions}"
        if word[:1] in SIDES and word[1:] in (":", "*"):
            self.interpreter.receive(SIDES[word[0]], scripts.octets(line))
        elif word[:1] in SIDES and word[1:] == ".":
            self.interpreter.receive(SIDES[word[0]], b"")
        elif word[:1] in SIDES and word[1:] == ">":
            assert self.take_line(SIDES[word[0]]) == scripts.text(line)
            return
        elif word == "opened":
            self.opening = False
            announced, ready = scripts.opened(line)
            self.interpreter.path_opened(announced, ready=ready)
        elif word == "refused":
            self.opening = False
            self.interpreter.path_refused()
        elif word == "connected":
            self.interpreter.path_connected(Side(line.rest))
        elif word == "failed":
            self.interpreter.path_failed()
        elif word == "delivered":
            self.interpreter.path_delivered()
        elif word == "finished":
            self.interpreter.path_finished()
        elif word == "timer":
            self.armed.remove(Timer(line.rest))
            self.interpreter.timer(Timer(line.rest))
        else:
            assert self.actions, f"expected {word} {line.rest}"
            assert self.actions.popleft() == f"{word} {line.rest}".strip()
            return
        self.pump()


@pytest.mark.parametrize("path", scripts.DIALOGUES, ids=lambda path: path.stem)
def test_dialogue(path: Path) -> None:
    script = scripts.read(path)
    stage = Stage(script)
    for line in script.lines:
        try:
            stage.play(line)
        except AssertionError as error:
            raise AssertionError(f"{path.name}:{line.number}: {error}") from error
    assert not stage.actions
    assert not any(stage.said.values()), stage.said
