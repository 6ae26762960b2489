"""The plane on pf: real engine, stand-in for pfctl, and an owner that writes down what it is told."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Literal

import pytest
from attrs import define, evolve

from ftpproxy.doors import Doors
from ftpproxy.dtp.pf import PATIENCE, PfPath, PfPending, PfPlane
from ftpproxy.dtp.plane import Refused
from ftpproxy.endpoints import Endpoint, Side
from ftpproxy.intercept.interceptor import PortRange
from ftpproxy.paths import Await, Direction, PathSpec
from ftpproxy.pf.anchor import RuleOptions, render

from ..dtp.owner import KernelOwner as Owner
from .stage import Stage as EngineStage
from .test_anchor import CASES

FIRST, LAST = 20000, 20009


def unchosen(case: str) -> PathSpec:
    """As the interpreter asks for it: the plane chooses the port."""
    spec = CASES[case]
    legs = {
        side: evolve(leg, at=leg.at.at(0)) if isinstance(leg := getattr(spec, side), Await) else leg
        for side in ("client", "server")
    }
    return PathSpec(**legs)


@define
class Stage:
    on: EngineStage
    plane: PfPlane

    def ask(self, spec: PathSpec) -> tuple[PfPending, Owner]:
        owner = Owner()
        pending = self.plane.open(spec, owner)
        assert isinstance(pending, PfPending), pending
        assert owner == Owner()
        return pending, owner

    def open(self, spec: PathSpec) -> tuple[PfPath, Owner]:
        _, owner = self.ask(spec)
        self.on.until(lambda: owner.paths or owner.refusals, "nothing was decided")
        (path,) = owner.paths
        assert isinstance(path, PfPath)
        return path, owner

    def counted(self, *counts: int) -> None:
        self.on.pfctl.behave(counted=counts)

    def later(self, seconds: float) -> None:
        """The sweep, so much later, and what it asks for."""
        self.on.board.sweep_now(self.on.board.now + seconds)
        self.quiet()

    def quiet(self) -> None:
        self.on.until(lambda: not self.on.engine._owed, "the engine does not answer")
        self.on.board.turn()


@pytest.fixture(params=["openbsd", "freebsd"])
def dialect(request: pytest.FixtureRequest) -> Literal["openbsd", "freebsd"]:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    yield from made(tmp_path, RuleOptions(dialect="openbsd"))


def made(folder: Path, rules: RuleOptions) -> Iterator[Stage]:
    on = EngineStage.at(folder / "pf")
    doors = Doors(on.board)
    plane = PfPlane(on.engine, rules, PortRange(FIRST, LAST), on.board, doors)
    yield Stage(on, plane)
    plane.close()
    assert not doors._reserved
    doors.close()
    on.close()
    assert on.pfctl.anchors == {}


@pytest.mark.parametrize("case", CASES)
def test_the_rules_stand_before_it_is_a_path(tmp_path: Path, case: str, dialect: Literal["openbsd", "freebsd"]) -> None:
    rules = RuleOptions(dialect=dialect, log=1)
    for stage in made(tmp_path, rules):
        spec = unchosen(case)
        stage.on.pfctl.behave(slow=0.2)
        _, owner = stage.ask(spec)
        stage.on.until(lambda: stage.on.pfctl.loads, "nothing is loaded")  # noqa: B023
        assert not owner.paths
        stage.on.until(lambda: owner.paths, "no path")  # noqa: B023
        ((name, text),) = stage.on.pfctl.anchors.items()
        (path,) = owner.paths
        assert isinstance(path, PfPath)
        ((side, at),) = path.announced.items()
        assert FIRST <= at.port <= LAST
        leg = getattr(spec, side.value)
        assert at.host == leg.at.host
        whole = evolve(spec, **{side.value: evolve(leg, at=at)})
        client = CASES[case].halves
        assert client is not None
        label = "ftp:" + str(leg.peer if side is Side.CLIENT else spec.client.to.host)  # type: ignore[union-attr]
        assert text == render(whole, evolve(rules, label=label))
        assert name == f"ftp-proxy/{stage.on.worker}.{path.number}"
        assert (path.ready, path.reports_end, path.counts_at_once) == (True, False, False)


def test_what_fails_is_refused(stage: Stage) -> None:
    stage.on.pfctl.behave(fail="stdin:1: syntax error")
    _, owner = stage.ask(unchosen("fwd-passive"))
    stage.on.until(lambda: owner.refusals, "nothing was decided")
    assert owner.refusals == ["stdin:1: syntax error"]
    assert not owner.paths
    assert len(stage.plane) == 0
    stage.on.pfctl.behave()
    stage.open(unchosen("fwd-passive"))


def test_who_does_not_answer_is_not_waited_for(stage: Stage) -> None:
    stage.on.pfctl.behave(slow=0.3)
    _, owner = stage.ask(unchosen("fwd-passive"))
    stage.on.board.sweep_now(stage.on.board.now + PATIENCE + 1)
    assert owner.refusals == ["the pf engine did not answer within 10 s"]
    stage.quiet()
    assert len(owner.refusals) == 1
    assert not owner.paths
    assert stage.on.pfctl.anchors == {}  # loaded late, and flushed


def test_a_path_that_nobody_wants_any_more(stage: Stage) -> None:
    pending, owner = stage.ask(unchosen("fwd-passive"))
    pending.close()
    pending.close()
    stage.quiet()
    assert owner == Owner()
    assert stage.on.pfctl.anchors == {}
    assert len(stage.on.pfctl.loads) == 1
    assert len(stage.plane) == 0


def test_a_dead_engine(stage: Stage) -> None:
    _, owner = stage.ask(unchosen("fwd-passive"))
    os.kill(stage.on.worker, signal.SIGKILL)
    stage.on.until(lambda: owner.refusals or owner.paths, "nothing was decided")
    stage.on.until(lambda: stage.on.lost, "nobody was told")
    refused = stage.plane.open(unchosen("fwd-active"), Owner())
    assert isinstance(refused, Refused)
    assert "has died" in refused.why


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (PathSpec(CASES["fwd-passive"].client, CASES["fwd-active"].server), "one awaited and one called"),
        (PathSpec(CASES["fwd-passive"].client, CASES["fwd6-passive"].server), "one address family"),
        (
            PathSpec(
                Await(Endpoint.parse("203.0.113.9:0"), ip_address("127.0.0.1")),
                CASES["fwd-passive"].server,
            ),
            "127.0.0.1 is this machine itself",
        ),
        (
            PathSpec(
                Await(Endpoint.parse("224.0.0.1:0"), ip_address("10.1.0.5")),
                CASES["fwd-passive"].server,
            ),
            "beyond this machine",
        ),
    ],
)
def test_paths_that_pf_does_not_carry(stage: Stage, spec: PathSpec, words: str) -> None:
    refused = stage.plane.open(spec, Owner())
    assert isinstance(refused, Refused)
    assert words in refused.why
    assert len(stage.plane) == 0
    assert not stage.on.pfctl.loads


# Ports


def test_ports_are_shared_by_callers_and_not_by_paths_of_one(stage: Stage) -> None:
    """Each of ten clients may have all ten ports."""
    spec = unchosen("fwd-passive")
    assert isinstance(spec.client, Await)
    assert spec.halves is not None
    for client in ("10.1.0.5", "10.1.0.6"):
        seen = set()
        for port in range(30000, 30010):
            leg, call = evolve(spec.client, peer=ip_address(client)), spec.halves[2]
            path, _ = stage.open(PathSpec(leg, evolve(call, to=call.to.at(port))))
            seen.add(path.announced[Side.CLIENT].port)
        assert seen == set(range(FIRST, LAST + 1))
    refused = stage.plane.open(PathSpec(leg, evolve(call, to=call.to.at(31000))), Owner())
    assert isinstance(refused, Refused)
    assert "no port is left for 10.1.0.6 in 20000-20009" in refused.why
    fixed = evolve(leg, at=leg.at.at(FIRST))
    refused = stage.plane.open(PathSpec(fixed, evolve(call, to=call.to.at(31000))), Owner())
    assert isinstance(refused, Refused)
    assert "is awaited at 203.0.113.9:20000 already" in refused.why
    # What is closed may be had again, and its rules are gone before the new ones come.
    path.close()
    stage.open(PathSpec(leg, evolve(call, to=call.to.at(31000))))
    assert len(stage.on.pfctl.anchors) == 20
    assert stage.on.pfctl.calls[-2].text == ""


def test_two_ways_to_one_place(stage: Stage) -> None:
    """`max 1` holds for the rules of the way out too: a second path there waits, or goes by another plane."""
    spec = unchosen("fwd-passive")
    first, owner = stage.open(spec)
    refused = stage.plane.open(spec, Owner())
    assert isinstance(refused, Refused)
    assert refused.why == "10.1.0.5 is being led to 203.0.113.9:34567 already"
    stage.counted(5, 400, 9, 12000)
    first.start(Direction.DOWN)
    first.settle()
    stage.quiet()
    second, _ = stage.open(spec)
    assert second.announced
    stage.quiet()
    assert [tally.octets_down for tally in owner.tallies] == [12000 - 9 * 52 - 8]
    assert len(stage.on.pfctl.anchors) == 1
    third, _ = stage.open(unchosen("fwd-active"))
    assert third.announced


# From the first packet to the last


def test_a_transfer(stage: Stage) -> None:
    """Counters are read at the end and then until nothing moves; they are an estimate of the payload."""
    path, owner = stage.open(unchosen("fwd-passive"))
    path.start(Direction.DOWN)
    stage.counted(1, 60, 0, 0)  # a call that nobody has answered yet
    stage.later(11)
    assert owner.up == []
    assert path.so_far() is None
    stage.counted(2 + 40, 60 + 41 * 52, 1 + 100, 60 + 100 * 1500)
    stage.later(11)
    assert owner.up == [Side.CLIENT, Side.SERVER]
    stage.counted(2 + 80, 60 + 81 * 52, 1 + 200, 60 + 200 * 1500)
    path.settle()
    path.settle()
    stage.quiet()
    assert not owner.tallies
    stage.later(1)
    assert not owner.tallies
    stage.later(1.5)
    (tally,) = owner.tallies
    assert tally.octets_down == 200 * (1500 - 52)
    assert tally.octets_up == 0
    assert not tally.exact
    assert (tally.failed, tally.reason) == (None, "")
    assert path.close() is None
    stage.quiet()
    assert stage.on.pfctl.anchors == {}
    assert len(stage.plane) == 0


def test_an_upload_of_an_active_client(stage: Stage) -> None:
    """The caller is the server: what it is sent is what the client sends."""
    path, owner = stage.open(unchosen("fwd-active"))
    path.start(Direction.UP)
    stage.counted(1 + 50, 60 + 50 * 52, 1 + 99, 60 + 99 * 1052)
    path.settle()
    stage.quiet()
    stage.later(3)
    (tally,) = owner.tallies
    assert (tally.octets_up, tally.octets_down) == (99000, 0)


def test_nobody_called(stage: Stage) -> None:
    path, owner = stage.open(unchosen("fwd-passive"))
    path.start(Direction.DOWN)
    path.settle()
    stage.quiet()
    assert owner.failures == ["no data connection came from the client"]
    assert owner.tallies == []
    stage.quiet()
    assert stage.on.pfctl.anchors == {}


def test_a_refused_call_is_no_connection(stage: Stage) -> None:
    path, owner = stage.open(unchosen("fwd-passive"))
    path.start(Direction.DOWN)
    stage.counted(1, 60, 1, 40)
    path.settle()
    stage.quiet()
    assert owner.failures == ["no data connection came from the client"]


def test_too_late(stage: Stage) -> None:
    _, owner = stage.open(unchosen("fwd-passive"))
    stage.later(119)
    assert owner.failures == []
    stage.later(12)
    assert owner.failures == ["no data connection came from the client within 120 s"]


def test_too_quiet(stage: Stage) -> None:
    path, owner = stage.open(unchosen("fwd-passive"))
    path.start(Direction.DOWN)
    stage.counted(5, 400, 9, 12000)
    stage.later(2)
    stage.later(901)
    (tally,) = owner.tallies
    assert (tally.failed, tally.reason) == (Side.SERVER, "idle for 900 s")


def test_cut_short(stage: Stage) -> None:
    """What was seen last is what is told."""
    path, owner = stage.open(unchosen("fwd-passive"))
    path.start(Direction.DOWN)
    stage.counted(5, 400, 9, 12000)
    assert path.so_far() is None
    stage.later(2)
    seen = path.so_far()
    assert seen is not None
    tally = path.close()
    assert tally is not None
    assert (tally.octets_down, tally.reason) == (seen.octets_down, "cut short") == (11524, "cut short")
    stage.quiet()
    assert owner.tallies == []
    assert stage.on.pfctl.anchors == {}


def test_nobody_can_count(stage: Stage) -> None:
    """Then a transfer is taken for one, and ends when the server says so; nothing is known of its octets."""
    path, owner = stage.open(unchosen("fwd-passive"))
    path.start(Direction.DOWN)
    stage.on.pfctl.behave(denied=1)
    stage.later(2)
    assert owner.up == [Side.CLIENT, Side.SERVER]
    path.settle()
    stage.quiet()
    stage.later(3)
    (tally,) = owner.tallies
    assert (tally.octets_down, tally.exact, tally.failed) == (0, False, None)
    stage.on.pfctl.behave()


def test_a_running_transfer_is_seldom_asked_about(stage: Stage) -> None:
    path, _ = stage.open(unchosen("fwd-passive"))
    path.start(Direction.DOWN)
    before = len(stage.on.pfctl.calls)
    for number in range(60):
        stage.counted(5 + number, 400 + 52 * number, 9 + number, 12000 + 1500 * number)
        stage.later(1)
    assert 5 <= len(stage.on.pfctl.calls) - before <= 12


def test_the_plane_is_closed(stage: Stage) -> None:
    stage.open(unchosen("fwd-passive"))
    stage.ask(unchosen("fwd-active"))
    stage.plane.close()
    stage.quiet()
    assert stage.on.pfctl.anchors == {}
    assert isinstance(stage.plane.open(unchosen("rev-passive"), Owner()), Refused)
