"""The dialogue scripts on the plane pf: a session on loopback, the real plane and engine, and a stand-in for pfctl.

pfctl waits for the word, so each script shows that nothing is announced before its rules are acknowledged, that what is
loaded then is what the script says was opened, and that what fails becomes 425.  Some scripts are about what only a
relay can do; `OF_THE_RELAY` says why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ftpproxy.doors import Doors
from ftpproxy.dtp.pf import PfPath, PfPending, PfPlane
from ftpproxy.dtp.plane import Opener, Refused
from ftpproxy.intercept.interceptor import PortRange
from ftpproxy.paths import Direction, PathSpec, Tally
from ftpproxy.pf.anchor import RuleOptions
from ftpproxy.pf.client import Engine, start
from ftpproxy.switchboard import Switchboard

from .. import script as scripts
from ..session.test_dialogues import Stage as SessionStage
from .grammar import parse
from .stage import until
from .standin import StandIn

OPTIONS = RuleOptions(dialect="openbsd")

OF_THE_RELAY = {
    "convert_to_active": "two awaited legs",
    "convert_to_passive": "two called legs",
    "families_mixed": "two families",
    "server_calls_early": "the relay's own call is refused",
    "server_port_dead": "the relay's own call is refused",
}


class ScriptedPorts(PortRange):
    """The ports that the script says."""

    def __init__(self, lines: list[scripts.Line]) -> None:
        super().__init__(1, 1)
        opened = [scripts.opened(line)[0] for line in lines if line.word == "opened"]
        self._order = [at.port for each in opened for at in each.values()] or [20000]


class AskedPlane(PfPlane):
    """Writes down what it is asked for."""

    asked: list[str]
    last: PfPending | Refused | None = None

    def open(self, spec: PathSpec, owner: Opener) -> PfPending | Refused:
        self.asked.append("open " + scripts.spec(spec))
        self.last = super().open(spec, owner)
        return self.last


class Stage(SessionStage):
    plane: AskedPlane  # type: ignore[assignment]

    def __init__(self, script: scripts.Script, monkeypatch: pytest.MonkeyPatch, engine: Engine, pfctl: StandIn) -> None:
        board = Switchboard()
        board.now = 1000.0
        monkeypatch.setattr("tests.session.test_dialogues.Switchboard", lambda: board)
        self.pfctl = pfctl
        self.engine = engine
        self.doors = Doors(board)
        self.lost: list[str] = []
        engine.attach(board, self.lost.append)
        plane = AskedPlane(engine, OPTIONS, ScriptedPorts(script.lines), board, self.doors)
        plane.asked = []
        start, close = PfPath.start, PfPath.close

        def started(path: PfPath, direction: Direction) -> None:
            plane.asked.append(f"start {direction}")
            start(path, direction)

        def closed(path: PfPath) -> Tally | None:
            plane.asked.append("close")
            return close(path)

        monkeypatch.setattr(PfPath, "start", started)
        monkeypatch.setattr(PfPath, "close", closed)
        self.loaded = len(pfctl.loads)
        self.answers = iter([line.word for line in script.lines if line.word in ("opened", "refused")])
        self.prepare()
        super().__init__(script, monkeypatch, plane)  # type: ignore[arg-type]

    def play(self, line: scripts.Line) -> None:
        word = line.word
        if word in ("opened", "refused"):
            self.decide(line)
        elif word == "connected":
            self.count(7, 700, 9, 9000)
        elif word == "finished":
            self.count(8, 752, 10, 9052)
        elif word == "drop" and not self.plane.asked:
            # Where the kernel carries, nobody knows whether a transfer that the server gave up had a connection.
            self.turn_until(lambda: self.session.carriage._open is None, "the path is still there")
        elif word != "delivered":
            super().play(line)

    def turn_until(self, condition: Callable[[], object], what: str) -> None:
        def turned() -> object:
            self.settle()
            return condition()

        until(turned, what)

    def decide(self, line: scripts.Line) -> None:
        """pfctl has the rules, and nobody has heard of them."""
        assert isinstance(self.plane.last, PfPending)
        self.turn_until(lambda: len(self.pfctl.loads) > self.loaded, "nothing is loaded")
        self.loaded += 1
        assert not any(self.said.values()), self.said
        assert self.session.carriage.undecided
        if line.word == "opened":
            ((_, at),) = scripts.opened(line)[0].items()
            way_in, way_out = parse(self.pfctl.loads[-1].text, OPTIONS.dialect)
            assert (way_in.to, way_in.port) == at
            assert way_in.peer == way_out.peer
        self.pfctl.go()
        self.turn_until(lambda: not self.session.carriage.undecided, "nothing is decided")
        self.pfctl.go(False)
        self.prepare()

    def prepare(self) -> None:
        """What pfctl will say to the next rules."""
        self.pfctl.behave(wait=1, **({"fail": "stdin:1: syntax error"} if next(self.answers, "") == "refused" else {}))

    def count(self, *counts: int) -> None:
        self.pfctl.behave(wait=1, counted=counts)  # no script has a refusal behind it
        self.board.sweep_now(self.board.now + 11)
        self.quiet()

    def quiet(self) -> None:
        self.turn_until(lambda: not self.engine._owed, "the engine does not answer")

    def close(self) -> None:
        self.session.dismiss("the test is over")
        self.plane.close()
        self.quiet()
        assert self.pfctl.anchors == {}
        assert not self.doors._reserved
        assert not self.lost
        self.doors.close()
        self.engine._let_go()
        super().close()


@pytest.fixture(scope="module")
def pfctl(tmp_path_factory: pytest.TempPathFactory) -> StandIn:
    return StandIn(tmp_path_factory.mktemp("dialogues") / "pf")


@pytest.fixture(scope="module")
def engine(pfctl: StandIn) -> Iterator[Engine]:
    engine = start(str(pfctl.program))
    yield engine
    engine.close()


@pytest.fixture
def stage(path: Path, monkeypatch: pytest.MonkeyPatch, engine: Engine, pfctl: StandIn) -> Iterator[Stage]:
    stage = Stage(scripts.read(path), monkeypatch, engine, pfctl)
    yield stage
    stage.close()


CARRIED = [
    path
    for path in scripts.DIALOGUES
    if path.stem not in OF_THE_RELAY and any(line.word == "open" for line in scripts.read(path).lines)
]


@pytest.mark.parametrize("path", CARRIED, ids=lambda path: path.stem)
def test_dialogue(path: Path, stage: Stage) -> None:
    for line in scripts.read(path).lines:
        try:
            stage.play(line)
        except AssertionError as error:
            raise AssertionError(f"{path.name}:{line.number}: {error}") from error
    assert not stage.plane.asked
    assert not any(stage.said.values()), stage.said
