"""The pf engine and its client, with real processes and a stand-in for pfctl."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from attrs import define, evolve, field
from hypothesis import given
from hypothesis import strategies as st

from ftpproxy.endpoints import Endpoint
from ftpproxy.paths import Await, PathSpec
from ftpproxy.pf import EngineError
from ftpproxy.pf.anchor import RuleError, RuleOptions, render
from ftpproxy.pf.client import Engine, start
from ftpproxy.pf.engine import Anchors, Pfctl, serve_rules
from ftpproxy.pf.messages import Answer, BadMessage, Bind, Count, Flush, Load, read_answer, read_request
from ftpproxy.sockets import bound

from .stage import Stage, lives, until
from .standin import StandIn
from .test_anchor import CASES, GOOD_OPTIONS, SENSIBLE, of_ports

PASSIVE = CASES["fwd-passive"]
TRUE = Pfctl(shutil.which("true") or "")
OPENBSD = RuleOptions(dialect="openbsd")
FOREIGN = Endpoint(ip_address("203.0.113.9"), 20)


def on(port: int) -> PathSpec:
    """Another path: the caller is told another port."""
    assert isinstance(PASSIVE.client, Await)
    return evolve(PASSIVE, client=evolve(PASSIVE.client, at=PASSIVE.client.at.at(port)))


@define
class Heard:
    """What was answered."""

    answers: list[tuple[str, tuple[int, ...]]] = field(factory=list)

    def answered(self, error: str, counts: tuple[int, ...]) -> None:
        self.answers.append((error, counts))

    def crashed(self, error: Exception) -> None:
        raise error


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage.at(tmp_path / "pf")
    yield stage
    stage.close()
    assert stage.pfctl.anchors == {}


def load(stage: Stage, spec: PathSpec = PASSIVE, options: RuleOptions = OPENBSD) -> tuple[int, Heard]:
    heard = Heard()
    return stage.engine.load(spec, options, heard.answered, heard.crashed), heard


def answer(stage: Stage, heard: Heard) -> tuple[str, tuple[int, ...]]:
    stage.until(lambda: heard.answers, "no answer")
    assert len(heard.answers) == 1
    return heard.answers.pop()


# What it is asked for


def test_rules_come_and_go(stage: Stage) -> None:
    number, heard = load(stage)
    assert heard.answers == []  # later, never from inside
    assert answer(stage, heard) == ("", ())
    anchor = f"ftp-proxy/{stage.worker}.{number}"
    assert stage.pfctl.anchors == {anchor: render(PASSIVE, OPENBSD)}
    stage.engine.flush(number)
    stage.until(lambda: not stage.pfctl.anchors, "the anchor stays")
    assert [call.arguments for call in stage.pfctl.changes] == [["-a", anchor, "-f", "-"]] * 2


def test_each_path_has_its_own_anchor_in_order(stage: Stage) -> None:
    paths = [load(stage, on(port)) for port in range(50000, 50020)]
    assert [answer(stage, heard)[0] for _, heard in paths] == [""] * 20
    assert [number for number, _ in paths] == list(range(1, 21))
    stage.engine.flush(paths[0][0])
    number, heard = load(stage)
    assert answer(stage, heard)[0] == ""
    assert number == 21  # never one that was given back
    assert len(stage.pfctl.anchors) == 20


def test_what_was_counted(stage: Stage) -> None:
    """`pfctl -s labels`: of the first rule, which is `pass in`."""
    number, heard = load(stage, options=RuleOptions(dialect="freebsd", label="ftp:10.1.0.5"))
    assert answer(stage, heard)[0] == ""
    stage.pfctl.behave(counted=[7, 480, 9, 12000])
    stage.engine.count(number, heard.answered, heard.crashed)
    assert answer(stage, heard) == ("", (7, 480, 9, 12000))
    stage.engine.flush(number)
    stage.engine.count(number, heard.answered, heard.crashed)
    assert answer(stage, heard) == ("these rules are gone", ())


def test_without_a_label_nothing_is_counted(stage: Stage) -> None:
    number, heard = load(stage)
    stage.engine.count(number, heard.answered, heard.crashed)
    stage.until(lambda: len(heard.answers) == 2, "no answer")
    assert heard.answers == [("", ()), ("pfctl shows no counters", ())]


def test_rules_that_cannot_be_are_refused_by_the_engine_too(stage: Stage) -> None:
    calls = len(stage.pfctl.calls)
    _, heard = load(stage, PathSpec(PASSIVE.client, CASES["fwd6-passive"].server))
    assert "one address family" in answer(stage, heard)[0]
    _, heard = load(stage, options=RuleOptions(dialect="openbsd", tag='x" pass all #'))
    assert answer(stage, heard)[0].startswith("tag: ")
    assert len(stage.pfctl.calls) == calls


def test_a_full_pipe_is_waited_for(stage: Stage) -> None:
    """Nothing is lost, and nothing blocks, where the engine is slower than those who ask."""
    stage.pfctl.behave(slow=0.3, at="50000")
    paths = [load(stage, on(50000))]
    heard = Heard()
    asked = 3000
    for _ in range(asked):
        stage.engine.count(4711, heard.answered, heard.crashed)
    assert answer(stage, paths[0][1])[0] == ""
    stage.until(lambda: len(heard.answers) == asked, "answers are missing")
    assert set(heard.answers) == {("these rules are gone", ())}


# What pfctl does


def test_pfctl_refuses(stage: Stage) -> None:
    stage.pfctl.behave(fail="pfctl: ALTQ\nstdin:1: queue ftpq is not defined\npfctl: Syntax error in config file")
    _, heard = load(stage)
    assert answer(stage, heard)[0] == "stdin:1: queue ftpq is not defined / pfctl: Syntax error in config file"
    assert stage.pfctl.anchors == {}
    stage.pfctl.behave()
    _, heard = load(stage)
    assert answer(stage, heard)[0] == ""


def test_busy_is_tried_again(stage: Stage) -> None:
    stage.pfctl.behave(busy=3)
    _, heard = load(stage)
    assert answer(stage, heard)[0] == ""
    assert len(stage.pfctl.loads) == 4


def test_busy_is_not_tried_for_ever(stage: Stage) -> None:
    stage.pfctl.behave(busy=1000)
    _, heard = load(stage)
    assert answer(stage, heard)[0] == "pfctl: DIOCXCOMMIT: Device busy"
    assert len(stage.pfctl.loads) == 6


def test_a_stalled_pfctl_is_killed(tmp_path: Path) -> None:
    stage = Stage.at(tmp_path / "pf", seconds=1.0)
    try:
        stage.pfctl.behave(stall=1, at="51001")
        _, stalled = load(stage, on(51001))
        _, behind = load(stage, on(51002))
        assert answer(stage, stalled)[0] == "pfctl did not end within 1 s"
        assert answer(stage, behind)[0] == ""
        assert len(stage.pfctl.anchors) == 1
        # Killed, it may have loaded: what was answered with an error is flushed.
        assert [call.text for call in stage.pfctl.changes] == [
            stage.pfctl.loads[0].text,
            "",
            stage.pfctl.loads[1].text,
        ]
    finally:
        stage.close()
    assert stage.pfctl.anchors == {}


def test_a_pfctl_that_dies(stage: Stage) -> None:
    stage.pfctl.behave(die=signal.SIGSEGV)
    _, heard = load(stage)
    assert answer(stage, heard)[0] == "pfctl was killed by signal 11"


@pytest.mark.parametrize(
    ("mood", "words", "denied"),
    [
        ({"disabled": 1}, "pf is disabled; enable it with: pfctl -e", False),
        ({"denied": 1}, "pfctl: /dev/pf: Permission denied", True),
    ],
)
def test_no_start_without_pf(tmp_path: Path, mood: dict[str, Any], words: str, denied: bool) -> None:
    pfctl = StandIn(tmp_path / "pf")
    pfctl.behave(**mood)
    with pytest.raises(EngineError) as caught:
        start(str(pfctl.program))
    assert str(caught.value) == words
    assert caught.value.denied is denied


def test_no_start_without_pfctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineError, match="pfctl was not found"):
        start()
    with pytest.raises(EngineError, match="/nowhere/pfctl: No such file"):
        start("/nowhere/pfctl")


CALLED = ['nat-anchor "ftp-proxy/*" all', 'rdr-anchor "ftp-proxy/*" all', 'anchor "ftp-proxy/*" all']


@pytest.mark.parametrize(
    ("conf", "missing"),
    [
        (CALLED, ()),
        (CALLED[2:], ('nat-anchor "ftp-proxy/*"', 'rdr-anchor "ftp-proxy/*"')),
        ([*CALLED[:2], 'anchor "others/*" all'], ('anchor "ftp-proxy/*"',)),
    ],
)
def test_anchors_that_pf_conf_does_not_call(tmp_path: Path, conf: list[str], missing: tuple[str, ...]) -> None:
    pfctl = StandIn(tmp_path / "pf")
    pfctl.behave(conf=conf)
    engine = start(str(pfctl.program))
    assert engine.missing_lines == missing
    engine.close()


# Nothing is left behind


def test_the_start_flushes_what_dead_processes_have_left(tmp_path: Path) -> None:
    pfctl = StandIn(tmp_path / "pf")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for anchor in (f"{dead.pid}.1", f"{dead.pid}.70000", f"{os.getpid()}.1", "1.1", "others", f"{dead.pid}.x", "0.1"):
        pfctl.leave(f"ftp-proxy/{anchor}")
    engine = start(str(pfctl.program))
    kept = {f"ftp-proxy/{anchor}" for anchor in (f"{os.getpid()}.1", "1.1", "others", f"{dead.pid}.x", "0.1")}
    assert set(pfctl.anchors) == kept
    engine.close()
    assert set(pfctl.anchors) == kept


def test_the_end_flushes_everything(tmp_path: Path) -> None:
    """Also what is only on its way."""
    stage = Stage.at(tmp_path / "pf")
    paths = [load(stage, on(port)) for port in range(50000, 50010)]
    answer(stage, paths[0][1])
    stage.close()
    assert stage.pfctl.anchors == {}
    assert len(stage.pfctl.loads) == 10


OWNER = """
import sys, time
from ftpproxy.pf.client import start
from ftpproxy.switchboard import Switchboard
from tests.pf.test_anchor import CASES
from tests.pf.test_engine import OPENBSD

engine = start(sys.argv[1])
board = Switchboard()
engine.attach(board, print)
done = []
for _ in range(3):
    engine.load(CASES["fwd-passive"], OPENBSD, lambda *said: done.append(said), print)
while len(done) < 3:
    board.turn()
print(engine.pid, flush=True)
time.sleep(1000)
"""


def test_the_proxy_is_killed(tmp_path: Path) -> None:
    pfctl = StandIn(tmp_path / "pf")
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(pfctl.program)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    with owner:
        assert owner.stdout is not None
        engine = int(owner.stdout.readline())
        assert len(pfctl.anchors) == 3
        owner.kill()
    until(lambda: not lives(engine), "the engine lives on")
    assert pfctl.anchors == {}


def test_the_worker_is_killed(tmp_path: Path) -> None:
    """Who waits for an answer gets one, the owner is told once, and the watcher flushes, though a load is running."""
    stage = Stage.at(tmp_path / "pf")
    numbers = [load(stage, on(port)) for port in (50000, 50001)]
    assert [answer(stage, heard)[0] for _, heard in numbers] == ["", ""]
    stage.pfctl.behave(slow=0.5, at="50002")
    _, pending = load(stage, on(50002))
    stage.until(lambda: len(stage.pfctl.loads) == 3, "the third load does not begin")
    os.kill(stage.worker, signal.SIGKILL)
    why = f"the pf engine (process {stage.engine.pid}) has died"
    assert answer(stage, pending) == (why, ())
    assert stage.lost == [why]
    _, later = load(stage)
    assert answer(stage, later) == (why, ())
    stage.close()
    assert stage.pfctl.anchors == {}


def exists(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_killed_altogether(tmp_path: Path) -> None:
    """Then it is the next start that flushes."""
    stage = Stage.at(tmp_path / "pf")
    _, heard = load(stage)
    answer(stage, heard)
    worker = stage.worker
    os.kill(stage.engine.pid, signal.SIGKILL)
    os.kill(worker, signal.SIGKILL)
    stage.until(lambda: stage.lost, "nobody was told")
    stage.close()
    assert len(stage.pfctl.anchors) == 1
    until(lambda: not exists(worker), "init does not wait for it")
    start(str(stage.pfctl.program)).close()
    assert stage.pfctl.anchors == {}


def test_signals_of_a_terminal_are_for_the_proxy(stage: Stage) -> None:
    worker = stage.worker
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(worker, number)
        os.kill(stage.engine.pid, number)
    _, heard = load(stage)
    assert answer(stage, heard)[0] == ""
    assert os.getsid(worker) != os.getsid(0)


def test_silence_is_death(stage: Stage) -> None:
    stage.pfctl.behave(slow=0.2)
    _, heard = load(stage)
    stage.board.sweep_now(stage.board.now + 59)
    assert not stage.lost
    stage.board.sweep_now(stage.board.now + 2)
    assert stage.lost == [f"the pf engine (process {stage.engine.pid}) does not answer"]
    assert answer(stage, heard)[0] == stage.lost[0]


# Who does not speak the language


NONSENSE = [
    b"hello\n",
    b"[]\n",
    b"{}\n",
    b'{"ask":1}\n',
    b'{"ask":1,"count":true}\n',
    b'{"ask":1,"count":0}\n',
    b'{"ask":0,"count":1}\n',
    b'{"ask":"1","count":1}\n',
    b'{"ask":1,"count":1,"flush":1}\n',
    b'{"ask":1,"flush":1.5}\n',
    b'{"ask":1,"run":"pfctl -d"}\n',
    b'{"ask":1,"load":1,"spec":{},"options":{}}\n',
    b'{"ask":1,"bind":"203.0.113.9:0"}\n',
    Load(1, 1, PASSIVE, OPENBSD).line().replace(b"10.1.0.5", b"any"),
    Load(1, 1, PASSIVE, OPENBSD).line().replace(b'"tag"', b'"gat"'),
    Load(1, 1, PASSIVE, OPENBSD).line().replace(b'"peer"', b'"more":1,"peer"'),
]


@pytest.mark.parametrize("said", NONSENSE, ids=lambda said: said[:30].decode())
def test_what_is_not_understood(said: bytes) -> None:
    here, there = socket.socketpair()
    with here, there:
        here.sendall(said)
        with pytest.raises(BadMessage):
            serve_rules(there, Anchors(Pfctl("/nowhere/pfctl"), 1))


@pytest.mark.parametrize("said", [b'{"ask":1,"run":"pfctl -d"}\n', b"x" * 10000], ids=["another", "endless"])
def test_nonsense_ends_the_engine(said: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    stage = Stage.at(tmp_path / "pf")
    _, heard = load(stage)
    answer(stage, heard)
    calls = len(stage.pfctl.calls)
    stage.engine._rules.setblocking(True)
    stage.engine._rules.sendall(said)
    stage.until(lambda: stage.lost, "the engine goes on")
    stage.close()
    assert stage.pfctl.anchors == {}
    assert all(not call.text for call in stage.pfctl.calls[calls:])
    assert "a message that it does not understand" in capfd.readouterr().err


def test_numbers_only_rise(stage: Stage) -> None:
    """An anchor that a path has had is not loaded again, whatever the proxy says."""
    _, heard = load(stage)
    assert answer(stage, heard)[0] == ""
    stage.engine._paths = 0
    _, heard = load(stage, on(50001))
    assert answer(stage, heard)[0] == "path 1 has been"
    assert list(stage.pfctl.anchors.values()) == [render(PASSIVE, OPENBSD)]


@pytest.mark.parametrize("leg", ["at", "to", "source"])
def test_ports_that_are_no_data_connection_s(leg: str) -> None:
    """Rules could lead to any service of any host behind the gateway."""
    anchors = Anchors(TRUE, 1, 990)
    for number, (port, refused) in enumerate([(989, True), (990, False), (22, True), (20, False)], 1):
        ports = {"at": 50000, "to": 50001, "source": 0, leg: port}
        request = Load(1, number, of_ports(PASSIVE, **ports), OPENBSD)
        if refused:
            with pytest.raises(
                RuleError, match=f"^{port} is not the port of a data connection: those are 20, and from"
            ):
                anchors.load(request)
        else:
            anchors.load(request)


def test_no_more_anchors_than_pf_can_bear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ftpproxy.pf.engine.MOST_STANDING", 3)
    anchors = Anchors(TRUE, 1)
    for number in (1, 2, 3):
        anchors.load(Load(1, number, on(50000 + number), OPENBSD))
    with pytest.raises(RuleError, match="the rules of 3 data connections stand already"):
        anchors.load(Load(1, 4, on(50004), OPENBSD))
    anchors.flush(2)
    anchors.load(Load(1, 5, on(50005), OPENBSD))


def test_the_lowest_port_is_that_of_the_configuration(tmp_path: Path) -> None:
    stage = Stage.at(tmp_path / "pf", least_port=2048)
    try:
        _, heard = load(stage, of_ports(PASSIVE, 50000, 2047, 0))
        assert answer(stage, heard)[0].startswith("2047 is not the port of a data connection")
        with pytest.raises(OSError, match="1500 is not the port of a data connection"):
            stage.engine.bound(Endpoint.parse("203.0.113.9:1500"))
        _, heard = load(stage, of_ports(PASSIVE, 50000, 2048, 0))
        assert answer(stage, heard)[0] == ""
    finally:
        stage.close()


@given(st.builds(Load, st.integers(1, 2**62), st.integers(1, 2**62), SENSIBLE, GOOD_OPTIONS))
def test_what_is_said_is_what_is_heard(request: Load) -> None:
    assert read_request(request.line()) == request
    assert len(request.line()) < 1000


@pytest.mark.parametrize("request_", [Count(1, 2), Flush(3, 4), Bind(5, Endpoint.parse("[2001:db8::1]:20"))])
def test_the_small_ones_as_well(request_: Count | Flush | Bind) -> None:
    assert read_request(request_.line()) == request_


@given(st.integers(0), st.text(), st.integers(0), st.just(()) | st.tuples(*[st.integers(0)] * 4), st.lists(st.text()))
def test_answers(number: int, error: str, errno: int, counts: tuple[int, ...], notes: list[str]) -> None:
    answer = Answer(number, error, errno, counts, tuple(notes))
    assert read_answer(answer.line()) == answer


@given(st.binary(max_size=200) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda each: st.lists(each, max_size=4) | st.dictionaries(st.sampled_from(
        ["ask", "load", "count", "flush", "bind", "spec", "options", "client", "server", "at", "peer", "to", "source"]
    ), each, max_size=5),
    max_leaves=12,
).map(lambda said: json.dumps(said).encode()))  # fmt: skip
def test_anything_else_is_a_bad_message(octets: bytes) -> None:
    for read in (read_request, read_answer):
        try:
            read(octets)
        except BadMessage:
            continue


# Sockets


def foreign_sockets() -> bool:
    """Whether we may make them, by the option that this system is said to have."""
    try:
        bound(FOREIGN, transparent=True).close()
    except OSError:
        return False
    return True


FOREIGN_SOCKETS = foreign_sockets()
needs_foreign_sockets = pytest.mark.skipif(not FOREIGN_SOCKETS, reason="no foreign addresses for us here")


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = start(str(StandIn(tmp_path / "pf").program))
    yield engine
    engine.close()


@needs_foreign_sockets
@pytest.mark.parametrize("at", ["203.0.113.9:20", "203.0.113.9:50000", "[2001:db8::9]:20", "[2001:db8::9]:50000"])
def test_a_foreign_socket(engine: Engine, at: str) -> None:
    """A real one, made by the engine with the option of this kernel, and passed."""
    wanted = Endpoint.parse(at)
    with engine.bound(wanted) as sock:
        assert Endpoint.from_sockaddr(sock.getsockname()) == wanted
        assert sock.type == socket.SOCK_STREAM
        assert not sock.getblocking()
        assert not os.get_inheritable(sock.fileno())
        sock.listen()
        with pytest.raises(OSError, match="in use") as caught, engine.bound(wanted) as second:
            second.listen()
    assert caught.value.errno


@pytest.mark.own_kernel
@pytest.mark.parametrize("at", ["203.0.113.9:22", "203.0.113.9:0", "0.0.0.0:20", "127.0.0.1:50000", "[ff02::1]:50000"])
def test_sockets_that_no_data_connection_needs(engine: Engine, at: str) -> None:
    with pytest.raises(PermissionError, match="is not the"):
        engine.bound(Endpoint.parse(at))
    if FOREIGN_SOCKETS:
        engine.bound(FOREIGN).close()  # the next one is made


@needs_foreign_sockets
def test_a_socket_while_pfctl_is_slow(stage: Stage) -> None:
    stage.pfctl.behave(slow=2)
    _, heard = load(stage)
    began = time.monotonic()
    stage.engine.bound(FOREIGN).close()
    assert not heard.answers
    assert time.monotonic() - began < 1.5
    stage.pfctl.behave()
    answer(stage, heard)


def test_no_sockets_from_the_dead(tmp_path: Path) -> None:
    stage = Stage.at(tmp_path / "pf")
    os.kill(stage.worker, signal.SIGKILL)
    until(lambda: not lives(stage.engine.pid), "the watcher lives on")
    with pytest.raises(BrokenPipeError, match="no more sockets"):
        stage.engine.bound(FOREIGN)
    stage.until(lambda: stage.lost, "nobody was told")
    stage.close()


def test_nonsense_on_the_pipe_of_sockets(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    stage = Stage.at(tmp_path / "pf")
    stage.engine._sockets.sendall(Count(1, 1).line())
    with pytest.raises(BrokenPipeError):
        stage.engine.bound(FOREIGN)
    stage.until(lambda: stage.lost, "nobody was told")
    stage.close()
    assert "this pipe is about sockets" in capfd.readouterr().err
