"""The relay on pf where one end is called by, or calls as, somebody else: a real engine, a stand-in for pfctl, and real
sockets in namespaces.  What the rules would do to packets is done by hand: peers call where `rdr` would lead them."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import define

from ftpproxy.doors import Doors
from ftpproxy.dtp.led import PATIENCE, LedPending, LedRelay
from ftpproxy.dtp.plane import Refused
from ftpproxy.dtp.relay import RelayPath, RelayPlane
from ftpproxy.endpoints import Endpoint, Side
from ftpproxy.intercept.interceptor import PortRange
from ftpproxy.intercept.leads import Leads
from ftpproxy.intercept.pf import DivertGate
from ftpproxy.paths import Await, Call, PathSpec
from ftpproxy.pf.anchor import Dialect, RuleOptions

from ..dtp.owner import Owner
from ..intercept.namespaces import FAMILIES, Family, World, accept, connect, listen, world
from .grammar import parse
from .stage import Stage as EngineStage

pytestmark = pytest.mark.netns

SECONDS = 300.0
PORTS = PortRange(20000, 20003)


@define
class Stage:
    on: EngineStage
    doors: Doors
    leads: Leads
    plane: LedRelay
    dialect: Dialect

    def pending(self, spec: PathSpec) -> tuple[LedPending, Owner]:
        owner = Owner()
        pending = self.plane.open(spec, owner)
        assert isinstance(pending, LedPending), pending
        return pending, owner

    def open(self, spec: PathSpec) -> tuple[RelayPath, Owner]:
        _, owner = self.pending(spec)
        self.on.until(lambda: owner.paths or owner.refusals, "nothing was decided")
        (path,) = owner.paths
        assert isinstance(path, RelayPath)
        return path, owner

    def rules(self) -> set[str]:
        """The lines of all anchors that stand, all of which this system reads."""
        texts = self.on.pfctl.anchors.values()
        for text in texts:
            parse(text, self.dialect)
        return {line for text in texts for line in text.splitlines()}

    def nothing_is_left(self) -> None:
        self.on.until(lambda: not self.on.engine._owed, "the engine does not answer")
        assert self.on.pfctl.anchors == {}
        assert (len(self.leads), len(self.doors), len(self.plane)) == (0, 0, 0)
        assert not self.doors._reserved


@pytest.fixture(scope="module")
def nets() -> Iterator[World]:
    with world() as made:
        yield made


@pytest.fixture(params=FAMILIES, ids=str)
def family(request: pytest.FixtureRequest) -> Family:
    found: Family = request.param
    return found


@pytest.fixture
def stage(nets: World, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Stage]:
    """In the namespace of the gateway."""
    dialect: Dialect = getattr(request, "param", "openbsd")
    with nets.gateway.inside():
        on = EngineStage.at(tmp_path / "pf")
        doors = Doors(on.board)
        leads = Leads(on.engine, RuleOptions(dialect=dialect), doors, seconds=SECONDS)
        gate = DivertGate(doors, leads)
        plane = LedRelay(RelayPlane(gate, PORTS, on.board), gate)
        stage = Stage(on, doors, leads, plane, dialect)
        yield stage
        plane.close()
        gate.close()
        doors.close()
        on.close()
        assert on.pfctl.anchors == {}


both_dialects = pytest.mark.parametrize("stage", ["openbsd", "freebsd"], indirect=True)


def carried(stage: Stage, client: socket.socket, server: socket.socket) -> None:
    """One octet each way."""
    for source, sink in ((client, server), (server, client)):
        source.send(b"x")
        sink.setblocking(False)

        def came(sink: socket.socket = sink) -> bool:
            try:
                return sink.recv(1) == b"x"
            except BlockingIOError:
                return False

        stage.on.until(came, "nothing is carried")


@both_dialects
def test_a_client_is_led_to_our_door(nets: World, stage: Stage, family: Family) -> None:
    """Passive: the client calls the server, at a port where nobody listens but us, elsewhere."""
    with listen(nets.server, Endpoint(family.server, 0)) as theirs:
        path, owner = stage.open(family.passive(Endpoint.from_sockaddr(theirs.getsockname())))
        announced = path.announced[Side.CLIENT]
        assert announced.host == family.server
        here = Endpoint(family.inside, announced.port)
        inet, flags = f"inet{'6' * (family.version == 6)} proto tcp", "flags S/SA keep state (max 1)"
        dialled = f"from {family.client} to {announced.host} port = {announced.port}"
        assert stage.rules() >= (
            {f"pass in quick {inet} {dialled} {flags} rdr-to {here.host} port {here.port}"}
            if stage.dialect == "openbsd"
            else {
                f"rdr {inet} {dialled} -> {here.host} port {here.port}",
                f"pass in quick {inet} from {family.client} to {here.host} port = {here.port} {flags}",
            }
        )
        with connect(nets.client, here, family.client) as client, accept(theirs) as server:
            stage.on.until(lambda: len(owner.up) == 2, "the legs do not come up")
            carried(stage, client, server)
        stage.on.until(lambda: not stage.on.pfctl.anchors, "the rules stay behind the call")
    path.close()
    stage.nothing_is_left()


@both_dialects
def test_a_call_gets_the_address_of_the_server(nets: World, stage: Stage, family: Family) -> None:
    """Active: the server has called us, we call the client, and pf makes it the server's call, from port 20."""
    with listen(nets.client, Endpoint(family.client, 0)) as theirs:
        to = Endpoint.from_sockaddr(theirs.getsockname())
        path, owner = stage.open(family.active(to))
        inet, flags = f"inet{'6' * (family.version == 6)} proto tcp", "flags S/SA keep state (max 1)"
        ours = f"from {family.inside} to {to.host} port = {to.port}"
        assert stage.rules() >= (
            {f"pass out quick {inet} {ours} {flags} nat-to {family.server} port 20"}
            if stage.dialect == "openbsd"
            else {
                f"nat {inet} {ours} -> {family.server} port 20",
                f"pass out quick {inet} from {family.server} to {to.host} port = {to.port} {flags}",
            }
        )
        with connect(nets.server, path.announced[Side.SERVER], family.server) as server:
            stage.on.until(lambda: len(owner.up) == 2, "the legs do not come up")
            with accept(theirs) as client:
                assert Endpoint.from_sockaddr(client.getpeername()).host == family.inside
                carried(stage, client, server)
        stage.on.until(lambda: not stage.on.pfctl.anchors, "the rules stay behind the call")
    path.close()
    stage.nothing_is_left()


def test_nothing_is_announced_before_the_rules_stand(nets: World, stage: Stage) -> None:
    family = FAMILIES[0]
    stage.on.pfctl.behave(slow=0.3)
    _, owner = stage.pending(family.passive(Endpoint(family.server, 9)))
    stage.on.until(lambda: stage.on.pfctl.loads, "nothing is loaded")
    assert not stage.on.pfctl.anchors
    assert not owner.paths
    stage.on.until(lambda: owner.paths, "no path")
    assert len(stage.on.pfctl.anchors) == 1
    owner.paths[0].close()
    stage.nothing_is_left()


@pytest.mark.parametrize("mood", [{"fail": "syntax error"}, {"die": 9}], ids=["fail", "die"])
def test_rules_that_are_not_loaded(nets: World, stage: Stage, mood: dict[str, Any]) -> None:
    family = FAMILIES[0]
    stage.on.pfctl.behave(**mood)
    _, owner = stage.pending(family.passive(Endpoint(family.server, 9)))
    stage.on.until(lambda: owner.refusals, "nothing was decided")
    assert not owner.paths
    stage.on.pfctl.behave()
    stage.nothing_is_left()


def test_an_engine_that_does_not_answer(nets: World, stage: Stage) -> None:
    family = FAMILIES[0]
    stage.on.pfctl.behave(slow=0.5)
    _, owner = stage.pending(family.active(Endpoint(family.client, 40001)))
    stage.on.board.sweep_now(stage.on.board.now + PATIENCE + 1)
    assert [f"{PATIENCE:g} s" in why for why in owner.refusals] == [True]
    stage.nothing_is_left()


def test_a_path_that_is_not_wanted_any_more(nets: World, stage: Stage) -> None:
    family = FAMILIES[0]
    pending, owner = stage.pending(family.passive(Endpoint(family.server, 9)))
    pending.close()
    pending.close()
    stage.nothing_is_left()
    assert owner == Owner()


def test_a_lead_that_nobody_takes(nets: World, stage: Stage) -> None:
    """The client of an active path is called when the server has called; this server never does."""
    family = FAMILIES[0]
    path, _ = stage.open(family.active(Endpoint(family.client, 40001)))
    path.close()
    assert len(stage.leads) == 1
    stage.on.board.sweep_now(stage.on.board.now + SECONDS + 1)
    stage.nothing_is_left()


def test_addresses_of_ours_need_nothing(nets: World, stage: Stage) -> None:
    family = FAMILIES[0]
    owner = Owner()
    spec = PathSpec(
        Await(Endpoint(family.inside, 0), family.client),
        Call(Endpoint(family.server, 9), Endpoint(family.outside, 0)),
    )
    path = stage.plane.open(spec, owner)
    assert isinstance(path, RelayPath)
    path.close()
    assert not stage.on.pfctl.loads
    stage.nothing_is_left()


def test_each_caller_has_a_port_of_its_own(nets: World, stage: Stage) -> None:
    """Two paths of one client never share a port, and two clients may."""
    family = FAMILIES[0]
    with listen(nets.server, Endpoint(family.server, 0)) as theirs:
        spec = family.passive(Endpoint.from_sockaddr(theirs.getsockname()))
        paths = [stage.open(spec)[0] for _ in range(len(PORTS))]
        assert len({path.announced[Side.CLIENT].port for path in paths}) == len(paths)
        assert isinstance(stage.plane.open(spec, Owner()), Refused)
        paths.append(stage.open(PathSpec(Await(Endpoint(family.server, 0), family.second), spec.server))[0])
        for path in paths:
            path.close()
    stage.nothing_is_left()


def test_without_an_engine(nets: World, stage: Stage) -> None:
    family = FAMILIES[0]
    gate = DivertGate(stage.doors)
    relay = LedRelay(RelayPlane(gate, PortRange(20000, 20009), stage.on.board), gate)
    refused = relay.open(family.passive(Endpoint(family.server, 9)), Owner())
    assert isinstance(refused, Refused)
    assert "it is not an address of this machine" in refused.why
    relay.close()
