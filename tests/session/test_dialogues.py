"""Every dialogue script against a whole session: real sockets on loopback, and a plane that the script plays.

Twice: with a plane that answers at once, and with one that asks to be waited for, as that on pf.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from ftpproxy.dtp.plane import Opener, PathOwner, Pending, Refused
from ftpproxy.endpoints import Endpoint, Side
from ftpproxy.estate import Estate, Inheritance
from ftpproxy.freezing import thaw
from ftpproxy.paths import Call, Direction, PathSpec, Tally
from ftpproxy.pi.actions import Timer
from ftpproxy.pi.policy import Timeouts
from ftpproxy.records import SessionRecord
from ftpproxy.session import Session, Terms
from ftpproxy.switchboard import Switchboard

from .. import script as scripts
from ..waiting import pending

PATIENCE = 5.0
SIDES = {"C": Side.CLIENT, "S": Side.SERVER}


class ScriptedPath:
    def __init__(self, owner: PathOwner, announced: Mapping[Side, Endpoint], ready: bool, asked: list[str]) -> None:
        self.owner = owner
        self.announced = announced
        self.ready = ready
        self.reports_end = self.counts_at_once = True
        self._asked = asked

    def start(self, direction: Direction) -> None:
        self._asked.append(f"start {direction}")

    def settle(self) -> None: ...

    def so_far(self) -> None: ...

    def close(self) -> None:
        self._asked.append("close")

    def leave(self, estate: Estate) -> str:
        return "as it is"


class ScriptedPlane:
    """Answers each `open` with the script's next `opened` or `refused`."""

    name = "scripted"

    def __init__(self, lines: list[scripts.Line]) -> None:
        self._answers = iter([line for line in lines if line.word in ("opened", "refused")])
        self.asked: list[str] = []
        self.foreseen: list[ScriptedForeseen] = []
        self.path: ScriptedPath | None = None

    def carries(self, spec: PathSpec) -> bool:
        return True

    def foresee(self, spec: PathSpec) -> ScriptedForeseen:
        self.foreseen.append(ScriptedForeseen(self, spec))
        return self.foreseen[-1]

    def open(self, spec: PathSpec, owner: PathOwner) -> ScriptedPath | Refused:
        self.asked.append("open " + scripts.spec(spec))
        answer = next(self._answers)
        if answer.word == "refused":
            return Refused("as the script says")
        self.path = ScriptedPath(owner, *scripts.opened(answer), self.asked)
        return self.path

    def inherit(self, left: Any, owner: PathOwner, inheritance: Inheritance) -> ScriptedPath:
        assert self.path is not None
        assert left == "as it is"
        self.path.owner = owner
        return self.path

    def close(self) -> None: ...


class ScriptedForeseen:
    """What is foreseen comes, but for the port, or is given back."""

    over: bool
    opened: bool

    def __init__(self, plane: ScriptedPlane, spec: PathSpec) -> None:
        assert isinstance(spec.server, Call)
        assert spec.server.to.port == 0
        assert all(earlier.over for earlier in plane.foreseen), "at most one at a time"
        self._plane = plane
        self._spec = spec
        self.over = self.opened = False

    def open(self, spec: PathSpec, owner: Opener) -> Any:
        assert not self.over
        self.over = self.opened = True
        assert isinstance(self._spec.server, Call)
        assert isinstance(spec.server, Call)
        port = spec.server.to.port
        assert spec == evolve(self._spec, server=evolve(self._spec.server, to=self._spec.server.to.at(port)))
        return self._plane.open(spec, owner)

    def close(self) -> None:
        self.over = True


class ScriptedPending(Pending):
    def __init__(self, owner: Opener, answer: ScriptedPath | Refused) -> None:
        self.owner: Opener | None = owner
        self._answer = answer

    def decide(self) -> None:
        if (owner := self.owner) is not None:
            self.owner = None
            if isinstance(self._answer, Refused):
                owner.refused(self, self._answer.why)
            else:
                owner.opened(self, self._answer)

    def close(self) -> None:
        self.owner = None


class LatePlane(ScriptedPlane):
    """Decides when the script says so, and not when it is asked."""

    pending: ScriptedPending | None = None

    def open(self, spec: PathSpec, owner: Opener) -> ScriptedPending:  # type: ignore[override]
        self.pending = ScriptedPending(owner, super().open(spec, owner))
        return self.pending


class Stage:
    """A session between two loopback sockets.  The route's addresses are the script's; only the wires are ours."""

    def __init__(self, script: scripts.Script, monkeypatch: pytest.MonkeyPatch, *planes: ScriptedPlane) -> None:
        self.board = Switchboard()
        self.plane = planes[0]
        self.ended: list[Session] = []
        self.successive = False
        """Whether the session goes on in another one between any two lines."""
        listener = socket.create_server(("127.0.0.1", 0))
        client = socket.create_connection(listener.getsockname())
        here, _ = listener.accept()
        # The session calls a loopback listener but believes the addresses of the script.
        monkeypatch.setattr("ftpproxy.session.Route", lambda *_: script.route)
        self.terms = Terms(
            service="test",
            policy=script.policy,
            timeouts=Timeouts(),
            planes=planes,
            **script.terms,
        )
        self.session = Session(
            1,
            here,
            client=script.route.client,
            orig_server=script.route.orig_server,
            server=Endpoint.from_sockaddr(listener.getsockname()),
            terms=self.terms,
            board=self.board,
            ended=self.ended.append,
        )
        server, _ = listener.accept()
        listener.close()
        self.peers = {Side.CLIENT: client, Side.SERVER: server}
        self.said = {side: bytearray() for side in Side}
        self.closed = dict.fromkeys(Side, False)
        for peer in self.peers.values():
            peer.setblocking(False)
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        self.settle()

    def settle(self) -> None:
        """Turn the board until nothing happens any more."""
        idle = 0
        while idle < 2:
            ready = pending(self.board, *self.open_peers(), seconds=0.002)
            idle = 0 if ready else idle + 1
            self.board.turn()
            self.listen()

    def open_peers(self) -> list[int]:
        return [peer.fileno() for side, peer in self.peers.items() if not self.closed[side]]

    def listen(self) -> None:
        for side, peer in self.peers.items():
            try:
                octets = peer.recv(65536)
            except BlockingIOError:
                continue
            except ConnectionResetError:
                octets = b""
            self.said[side] += octets
            self.closed[side] = not octets

    def take_line(self, side: Side) -> str:
        deadline = time.monotonic() + PATIENCE
        while b"\n" not in self.said[side] and time.monotonic() < deadline:
            self.settle()
        line, end, rest = bytes(self.said[side]).partition(b"\r\n")
        assert end, f"the {side} received nothing more than {line!r}"
        self.said[side][:] = rest
        return line.decode("latin-1")

    def take_asked(self) -> str:
        deadline = time.monotonic() + PATIENCE
        while not self.plane.asked and time.monotonic() < deadline:
            self.settle()
        assert self.plane.asked, "nothing was asked of the plane"
        return self.plane.asked.pop(0)

    def succeed(self) -> None:
        """The session goes on in another one, which knows of it what an estate has carried."""
        estate = Estate()
        estate.note("session", self.session.leave(estate))
        inheritance = Inheritance(estate.sealed())
        for end in estate.left:
            end.close()
        ((_, left),) = inheritance.read()
        record = thaw(left, SessionRecord)
        self.session = Session(
            1,
            inheritance.take(record.ends[Side.CLIENT].descriptor),
            client=record.client,
            orig_server=record.orig_server,
            server=record.server,
            terms=self.terms,
            board=self.board,
            ended=self.ended.append,
            call=False,
        )
        self.session.inherit(record, inheritance)
        inheritance.close()
        self.board.turn()

    def close(self) -> None:
        self.session.dismiss("the test is over")
        for peer in self.peers.values():
            peer.close()
        self.board.close()

    def play(self, line: scripts.Line) -> None:
        word = line.word
        side = SIDES.get(word[:1])
        if side and word[1:] in (":", "*"):
            self.peers[side].send(scripts.octets(line))
        elif side and word[1:] == ".":
            self.peers[side].shutdown(socket.SHUT_WR)
        elif side and word[1:] == ">":
            assert self.take_line(side) == scripts.text(line)
        elif word == "open":
            assert self.take_asked() == f"open {line.rest}"
            passive = line.rest.startswith("await ") and " / call " in line.rest
            if passive and not self.successive and isinstance(self.plane, ScriptedPlane):
                assert self.plane.foreseen[-1].opened
        elif word == "start":
            assert self.take_asked() == "start " + line.rest.split()[0]
        elif word == "drop":
            assert self.take_asked() == "close"
        elif word in ("connected", "failed", "delivered", "finished"):
            path = self.plane.path
            assert path is not None
            if word == "failed":
                path.owner.failed(path, "as the script says")
            elif word == "delivered":
                path.owner.delivered(path)
            elif word == "finished":
                path.owner.finished(path, Tally(1, 0, 1.0))
            else:
                path.owner.connected(path, Side(line.rest))
        elif word in ("opened", "refused"):
            if isinstance(self.plane, LatePlane):
                assert not any(self.said.values()), self.said  # install, then announce
                assert self.plane.pending is not None
                self.plane.pending.decide()
        elif word == "timer":
            self.session._deadlines = {Timer(line.rest): self.board.now}
            self.session.sweep(self.board.now)
        elif word == "hangup":
            deadline = time.monotonic() + PATIENCE
            while not self.session.over and time.monotonic() < deadline:
                self.settle()
            assert self.session.over
            while self.plane.asked[:1] == ["close"]:
                self.plane.asked.pop(0)
        self.settle()


@pytest.fixture(
    params=[(ScriptedPlane, False), (LatePlane, False), (ScriptedPlane, True)], ids=["at once", "later", "successive"]
)
def stage(path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    script = scripts.read(path)
    plane, successive = request.param
    stage = Stage(script, monkeypatch, plane(script.lines))
    stage.successive = successive
    yield stage
    stage.close()


@pytest.mark.parametrize("path", scripts.DIALOGUES, ids=lambda path: path.stem)
def test_dialogue(path: Path, stage: Stage) -> None:
    for line in scripts.read(path).lines:
        try:
            if stage.successive and not stage.session.over:
                stage.succeed()
            stage.play(line)
        except AssertionError as error:
            raise AssertionError(f"{path.name}:{line.number}: {error}") from error
    assert not stage.plane.asked
    assert not any(stage.said.values()), stage.said
    stage.session.close()
    assert all(foreseen.over for foreseen in stage.plane.foreseen)
