"""The kernel carries: paths of the nft plane on a real kernel, in front of a forward chain that drops the rest."""

from __future__ import annotations

import errno
import json
import re
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve, frozen

from ftpproxy.carriage import Carriage
from ftpproxy.doors import Doors
from ftpproxy.dtp.nft import NftPath, NftPlane
from ftpproxy.dtp.nftcount import COUNTERS
from ftpproxy.dtp.plane import Refused
from ftpproxy.endpoints import Endpoint, IPAddress, Side, parse_address
from ftpproxy.intercept.interceptor import PortRange
from ftpproxy.netfilter import Elements
from ftpproxy.paths import Call, Direction, PathSpec
from ftpproxy.pi.actions import OpenPath, StartPath
from ftpproxy.pi.policy import Policy, Timeouts
from ftpproxy.sockets import bound, close_with_reset
from ftpproxy.switchboard import Switchboard
from ftpproxy.table import PLANE_TABLE, load_table, remove_table
from ftpproxy.terms import Terms

from ..intercept.namespaces import FAMILIES, Family, Namespace, World, accept, connect, listen, peer, talk, world
from .owner import KernelOwner as Owner

ADMINISTRATOR = """
table inet filter {
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state established,related accept
        ct status dnat accept
    }
}
"""
MARKS_ONLY = """
flush chain inet filter forward
table inet filter {
    chain forward {
        ct mark & 0x400007 == 0x400005 accept
    }
    chain own {
        type filter hook prerouting priority mangle; policy accept;
        ct state new ct mark set 0x5
    }
}
"""
"""A forward chain that goes by our bit and some of the administrator's own, which he sets before."""
OTHERS = f"""
table inet other {{
    chain prerouting {{
        type nat hook prerouting priority dstnat; policy accept;
        tcp dport 99 dnat ip to {FAMILIES[0].server}:50021
        tcp dport 99 dnat ip6 to [{FAMILIES[1].server}]:50021
    }}
}}
"""
"""What the administrator translates for himself."""
PROMISED = 50021
"""Where the called side listens."""
WAIT = 5.0


def test_the_file_to_be_read_is_what_is_loaded() -> None:
    text = (Path(__file__).parents[2] / "nft" / "plane.nft").read_text()
    assert "".join(line for line in text.splitlines(True) if not line.startswith("#")) == PLANE_TABLE


@frozen
class Stage:
    """The plane on the gateway."""

    world: World
    elements: Elements
    board: Switchboard
    doors: Doors
    plane: NftPlane

    def later(self, seconds: float) -> None:
        """The sweep, so much later."""
        self.board.sweep_now(self.board.now + seconds)
        self.board.turn()

    def open(self, spec: PathSpec) -> tuple[NftPath, Owner]:
        owner = Owner()
        path = self.plane.open(spec, owner)
        assert isinstance(path, NftPath), path
        self.board.turn()
        return path, owner

    def left(self) -> list[str]:
        return in_table(self.world.gateway)


def in_table(gateway: Namespace) -> list[str]:
    """The maps and sets of our table, once for each element."""
    listed = json.loads(gateway.run("nft", "-j", "list", "table", "inet", "ftpproxy"))["nftables"]
    sets = [item.get("map") or item.get("set") for item in listed if "map" in item or "set" in item]
    assert len(sets) == 24
    return [one["name"] for one in sets for _ in one.get("elem", [])]


@pytest.fixture(scope="module")
def three() -> Iterator[World]:
    with world() as made:
        yield made


@pytest.fixture
def stage(three: World) -> Iterator[Stage]:
    three.gateway.run("nft", "-f", "-", text=ADMINISTRATOR)
    with three.gateway.inside():
        load_table()
        elements = Elements(load_table)
        elements.check()
        board = Switchboard()
        doors = Doors(board)
        plane = NftPlane(elements, PortRange(20000, 20099), board, doors)
        yield Stage(three, elements, board, doors, plane)
        plane.close()
        elements.close()
        board.close()
        left = in_table(three.gateway)
        remove_table()
    three.gateway.run("nft", "flush", "ruleset")
    assert left == []


@pytest.fixture(params=FAMILIES, ids=str)
def family(request: pytest.FixtureRequest) -> Family:
    return request.param  # type: ignore[no-any-return]


def passive(family: Family, at: IPAddress | None = None, client: IPAddress | None = None) -> PathSpec:
    """Forward mode, or with `at` of the gateway's reverse mode."""
    return family.passive(Endpoint(family.server, PROMISED), at=at, client=client)


def active(family: Family, port: int = 0) -> PathSpec:
    return family.active(Endpoint(family.client, PROMISED), port)


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline, what


def until_over(stage: Stage, owner: Owner) -> None:
    """A busy machine takes a moment to pass on a FIN."""

    def over() -> bool:
        stage.later(1)
        return bool(owner.tallies)

    until(over, "its end")


def refused(namespace: Namespace, to: Endpoint, source: IPAddress) -> bool:
    """Whether nobody takes that call; what a firewall swallows counts."""
    with namespace.inside():
        try:
            socket.create_connection(to.sockaddr(), timeout=0.3, source_address=(str(source), 0)).close()
        except OSError:
            return True
    return False


def carry(source: socket.socket, sink: socket.socket, octets: int) -> None:
    """So many octets and the end, without a thread: what the sink has not read waits in its own buffer."""
    chunk = memoryview(bytes(1 << 16))
    source.setblocking(False)
    sent = got = 0
    while got < octets:
        if sent < octets:
            try:
                sent += source.send(chunk[: octets - sent])
            except BlockingIOError:
                pass
            if sent == octets:
                source.shutdown(socket.SHUT_WR)
        got += len(sink.recv(1 << 20))
    if not octets:
        source.shutdown(socket.SHUT_WR)
    assert sink.recv(1) == b""


@pytest.mark.netns
@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_a_passive_client_is_carried(stage: Stage, family: Family, mode: str) -> None:
    """Item 82: the client calls the address it knows, the server sees the proxy's; both addresses as promised."""
    path, owner = stage.open(passive(family, at=family.inside if mode == "reverse" else None))
    at = path.announced[Side.CLIENT]
    assert at.host == (family.inside if mode == "reverse" else family.server)
    assert path.ready
    assert not path.reports_end
    with (
        listen(stage.world.server, Endpoint(family.server, PROMISED)) as listener,
        connect(stage.world.client, at, family.client) as client,
        accept(listener) as server,
    ):
        assert peer(client) == at
        assert peer(server).host == family.outside
        talk(client, server)
        stage.later(11)
        assert owner.up == [Side.CLIENT, Side.SERVER]
        assert sorted(stage.left()) == sorted(f"{name}{family.version}" for name in COUNTERS[:2])
        path.close()
        assert stage.left() == []
        talk(client, server)  # a running connection goes on


@pytest.mark.netns
@pytest.mark.parametrize("port", [0, 20])
def test_an_active_client_is_carried(stage: Stage, family: Family, port: int) -> None:
    """Items 84, 85: the client is called from the dialled address, from port 20 where that is asked for."""
    path, _ = stage.open(active(family, port))
    at = path.announced[Side.SERVER]
    assert at.host == family.outside
    with (
        listen(stage.world.client, Endpoint(family.client, PROMISED)) as listener,
        connect(stage.world.server, at, family.server) as server,
        accept(listener) as client,
    ):
        assert peer(client).host == family.server
        assert peer(client).port == 20 or not port
        talk(client, server)


@pytest.mark.netns
@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_one_call_and_no_second(stage: Stage, family: Family, mode: str) -> None:
    """Item 132: the first call takes the way in with it, while the path stands and afterwards."""
    path, _ = stage.open(passive(family, at=family.inside if mode == "reverse" else None))
    at = path.announced[Side.CLIENT]
    with (
        listen(stage.world.server, Endpoint(family.server, PROMISED)) as listener,
        connect(stage.world.client, at, family.client),
        accept(listener),
    ):
        assert refused(stage.world.client, at, family.client)
        path.close()
        assert refused(stage.world.client, at, family.client)


@pytest.mark.netns
def test_an_end_that_comes_by_late_leaves_nothing(stage: Stage, family: Family) -> None:
    """Packets make elements themselves: one that nobody had seen when the path ended goes all the same."""
    path, owner = stage.open(passive(family))
    with (
        listen(stage.world.server, Endpoint(family.server, PROMISED)) as listener,
        connect(stage.world.client, path.announced[Side.CLIENT], family.client) as client,
        accept(listener) as server,
    ):
        talk(client, server)
        stage.later(20)
        assert set(owner.up) == set(Side)
        client.close()
        assert server.recv(1) == b""
        path.crashed(RuntimeError())  # which looks at nothing
        assert f"forth_end{family.client.version}" in stage.left()
        until(lambda: stage.board.turn() or stage.left() == [], "nothing is left")


@pytest.mark.netns
def test_a_stranger_is_not_carried(stage: Stage, family: Family) -> None:
    """Item 132: the key has the caller's address; who is not expected does not use up the call of who is."""
    path, _ = stage.open(passive(family))
    at = path.announced[Side.CLIENT]
    with listen(stage.world.server, Endpoint(family.server, PROMISED)) as listener:
        assert refused(stage.world.client, at, family.second)
        with connect(stage.world.client, at, family.client) as client, accept(listener) as server:
            talk(client, server)


@pytest.mark.netns
@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("octets", [0, 1, 1000, 1 << 20, 64 << 20])
def test_octets_are_counted(stage: Stage, family: Family, direction: Direction, octets: int) -> None:
    """The tally of a settled path is what was carried, retransmitted segments aside, and nothing the other way."""
    for spec in (passive(family), active(family)):
        path, owner = stage.open(spec)
        path.start(direction)
        (caller_side,) = path.announced
        calling, called = (Side.CLIENT, Side.SERVER)[:: 1 if caller_side is Side.CLIENT else -1]
        hosts = {Side.CLIENT: (stage.world.client, family.client), Side.SERVER: (stage.world.server, family.server)}
        before = retransmitted(stage.world)
        with (
            listen(hosts[called][0], Endpoint(hosts[called][1], PROMISED)) as listener,
            connect(hosts[calling][0], path.announced[calling], hosts[calling][1]) as first,
            accept(listener) as second,
        ):
            ends = {calling: first, called: second}
            carry(ends[direction.sender], ends[direction.sender.peer], octets)
        path.settle()
        for _ in range(3):
            stage.later(1)
        (tally,) = owner.tallies
        assert stage.left() == []
        got = tally.octets_down if direction is Direction.DOWN else tally.octets_up
        more = (retransmitted(stage.world) - before) * 65536  # a segment of a veth may be that large
        assert octets * 0.99 <= got <= octets * 1.01 + more
        assert tally.octets_down + tally.octets_up == got
        assert (tally.exact, tally.failed, tally.reason) == (False, None, "")
        assert owner.failures == []


def retransmitted(world: World) -> int:
    """Segments that the two ends have sent again."""
    return sum(
        int(re.findall(r"TcpRetransSegs +(\d+)", end.run("nstat", "-asz", "TcpRetransSegs"))[0])
        for end in (world.client, world.server)
    )


@pytest.mark.netns
def test_what_was_foreseen_is_led_on(stage: Stage, family: Family) -> None:
    """The place stands before the server has named its port, and leads nowhere until then."""
    spec = passive(family)
    assert isinstance(spec.server, Call)
    foreseen = stage.plane.foresee(evolve(spec, server=evolve(spec.server, to=spec.server.to.at(0))))
    assert foreseen is not None
    assert stage.left() == [f"once{family.version}"]
    owner = Owner()
    path = foreseen.open(spec, owner)
    assert isinstance(path, NftPath)
    foreseen.close()
    with (
        listen(stage.world.server, Endpoint(family.server, PROMISED)) as listener,
        connect(stage.world.client, path.announced[Side.CLIENT], family.client) as client,
        accept(listener) as server,
    ):
        talk(client, server)
        assert peer(server).host == family.outside
    path.close()


@pytest.mark.netns
def test_what_was_foreseen_and_is_not_wanted(stage: Stage, family: Family) -> None:
    """It is taken away; also where something else is wanted in its place."""
    foreseen = stage.plane.foresee(passive(family))
    other = stage.plane.foresee(passive(family))
    late = stage.plane.foresee(passive(family))
    assert foreseen is not None
    assert other is not None
    assert late is not None
    assert len(stage.left()) == 3
    foreseen.close()
    foreseen.close()
    path = other.open(active(family), Owner())
    assert isinstance(path, NftPath)
    path.close()
    stage.later(200)  # it may be gone when it is needed
    path = late.open(passive(family), Owner())
    assert isinstance(path, NftPath)
    assert len(stage.left()) == 3
    path.close()
    assert stage.left() == []


def only_port(stage: Stage, family: Family) -> int:
    """Of the one call that is awaited."""
    once = stage.world.gateway.run("nft", "list", "set", "inet", "ftpproxy", f"once{family.version}")
    (port,) = re.findall(r" \. (\d+) timeout", once)
    return int(port)


@pytest.mark.netns
def test_a_call_before_it_is_known_where_to(stage: Stage, family: Family) -> None:
    """Somebody guesses the port: he is led nowhere, and leaves nothing."""
    foreseen = stage.plane.foresee(passive(family))
    assert foreseen is not None
    at = Endpoint(family.server, only_port(stage, family))
    with stage.world.client.inside(), socket.socket(socket.AF_INET if family.version == 4 else socket.AF_INET6) as call:
        call.bind((str(family.client), 0))
        call.setblocking(False)
        call.connect_ex(at.sockaddr())
        until(lambda: f"forth{family.version}" in stage.left(), "a call")
        foreseen.close()
    until(lambda: stage.left() in ([], [f"calling{family.version}"]), "its end")
    stage.world.gateway.run("nft", "flush", "set", "inet", "ftpproxy", f"calling{family.version}")


@pytest.mark.netns
def test_a_guess_is_not_let_in(stage: Stage, marking: NftPlane, family: Family) -> None:
    """A firewall that goes by the mark does not see it before it is known where the call leads: who guesses the port
    would reach the server itself there."""
    foreseen = marking.foresee(passive(family))
    assert foreseen is not None
    at = Endpoint(family.server, only_port(stage, family))
    with listen(stage.world.server, at):
        assert refused(stage.world.client, at, family.client)
        path = foreseen.open(passive(family), Owner())
        assert isinstance(path, NftPath)
        assert f"marked{family.version}" in stage.left()
        path.close()
    stage.world.gateway.run("nft", "flush", "set", "inet", "ftpproxy", f"calling{family.version}")


@pytest.mark.netns
def test_what_cannot_be_foreseen(stage: Stage) -> None:
    """Who is this machine itself is not carried; `open` says so."""
    family = FAMILIES[0]
    assert stage.plane.foresee(passive(family, client=family.inside)) is None
    stage.world.gateway.run("nft", "flush", "ruleset")
    remove = Elements()
    plane = NftPlane(remove, PortRange(20500, 20501), stage.board, stage.doors)
    assert plane.foresee(passive(family)) is None
    plane.close()
    remove.close()
    load_table()


@pytest.mark.netns
def test_a_call_that_a_firewall_drops(stage: Stage, family: Family) -> None:
    """It has come, in vain: nothing was carried, and nothing is left of it."""
    path, owner = stage.open(passive(family))
    stage.world.gateway.run("nft", "flush", "chain", "inet", "filter", "forward")
    path.start(Direction.DOWN)
    with stage.world.client.inside(), socket.socket(socket.AF_INET if family.version == 4 else socket.AF_INET6) as call:
        call.bind((str(family.client), 0))
        call.setblocking(False)
        call.connect_ex(path.announced[Side.CLIENT].sockaddr())
        until(lambda: f"forth{family.version}" in stage.left(), "a call")
    path.settle()
    stage.board.turn()
    assert len(owner.failures) == 1
    assert owner.tallies == []
    assert stage.left() == [f"calling{family.version}"]  # it may come again, and is forgotten within a minute
    stage.world.gateway.run("nft", "flush", "set", "inet", "ftpproxy", f"calling{family.version}")


@pytest.mark.netns
def test_a_port_serves_many(three: World, stage: Stage) -> None:
    """RFC 6056 section 2.3: what tells connections apart is all four numbers; one port is enough for any number of
    clients, and taken for one that is awaited there already."""
    family = FAMILIES[0]
    plane = NftPlane(stage.elements, PortRange(20500, 20501), stage.board, stage.doors)
    paths = []
    for client in (family.client, family.second):
        ports = set()
        for _ in range(2):
            path = plane.open(passive(family, client=client), Owner())
            assert isinstance(path, NftPath), path
            paths.append(path)
            ports.add(path.announced[Side.CLIENT].port)
        assert ports == {20500, 20501}
        full = plane.open(passive(family, client=client), Owner())
        assert isinstance(full, Refused)
        assert "no port is left" in full.why
    # Both paths of a client lead to one port of the server: they share the way out, until the last is closed.
    with listen(three.server, Endpoint(family.server, PROMISED)) as listener:
        for number, path in enumerate(paths):
            client = (family.client, family.second)[number // 2]
            with connect(three.client, path.announced[Side.CLIENT], client) as one, accept(listener) as other:
                assert peer(other).host == family.outside
                talk(one, other)
            path.close()
    plane.close()
    assert stage.left() == []


@pytest.mark.netns
def test_services_share_a_way_out(three: World, stage: Stage) -> None:
    """Two services may lead one client to one port of a server; the way out stands until the last has done with it."""
    family = FAMILIES[0]
    other = NftPlane(stage.elements, PortRange(20500, 20501), stage.board, stage.doors)
    first, _ = stage.open(passive(family))
    second = other.open(passive(family), Owner())
    assert isinstance(second, NftPath), second
    first.close()
    with (
        listen(three.server, Endpoint(family.server, PROMISED)) as listener,
        connect(three.client, second.announced[Side.CLIENT], family.client) as client,
        accept(listener) as server,
    ):
        assert peer(server).host == family.outside
        talk(client, server)
    other.close()
    assert stage.left() == []


@pytest.mark.netns
def test_another_process_has_most(stage: Stage, family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """It shares the table and the ports: whatever of it stands in the way, few batches fail, for each costs
    milliseconds."""
    undone, exchange = [0], Elements._exchange

    def counting(*what: Any, **how: Any) -> None:
        try:
            exchange(*what, **how)
        except FileExistsError:
            undone[0] += 1
            raise

    monkeypatch.setattr(Elements, "_exchange", counting)
    with ExitStack() as stack:
        doors, ports = Doors(stage.board), PortRange(20900, 20919)
        one, another = stack.enter_context(Elements()), stack.enter_context(Elements())
        mine = NftPlane(one, ports, stage.board, stage.doors)
        other = NftPlane(another, ports, stage.board, doors)
        for plane in (mine, other):
            stack.callback(plane.close)
        specs = [family.passive(Endpoint(family.server, port)) for port in range(50001, 50021)]
        theirs = [other.open(spec, Owner()) for spec in specs[1:]]
        assert undone == [0]
        assert isinstance(mine.open(specs[0], Owner()), NftPath)
        assert mine.foresee(specs[0]) is None
        refused = mine.open(family.passive(Endpoint(family.server, 50021)), Owner())
        assert isinstance(refused, Refused)
        assert refused.why.startswith("no port is left")
        for path in theirs[:-1]:
            assert isinstance(path, NftPath)
            path.close()
        refused = mine.open(specs[-1], Owner())
        assert isinstance(refused, Refused)
        assert refused.why.endswith("already, by another process")
        assert undone[0] <= 5


@pytest.mark.netns
def test_a_way_out_that_is_shared_outlives_a_full_table(three: World, stage: Stage) -> None:
    """Another path to the same place that finds no room takes nothing from the first; nor does one whose elements live
    less long."""
    family = FAMILIES[0]
    three.gateway.run("nft", "-f", "-", text=PLANE_TABLE.replace("size 65535", "size 2"))
    longer = NftPlane(stage.elements, PortRange(20500, 20599), stage.board, stage.doors, seconds=400)
    second = longer.open(passive(family), Owner())
    assert isinstance(second, NftPath), second
    first, _ = stage.open(passive(family))
    assert [out.seconds for out, _ in stage.elements.ways_out.values()] == [400]
    third = longer.open(passive(family), Owner())
    assert third == Refused("[Errno 23] nftables, table inet ftpproxy: one of its sets is full")
    second.close()
    assert sorted(stage.left()) == ["called4", "carried4", "once4"]
    first.close()


@pytest.mark.netns
def test_a_place_that_is_used_again(stage: Stage, family: Family) -> None:
    """What one path has left behind, or is still to clear up, is not taken for another's end, nor the other way
    round."""
    gateway, at = stage.world.gateway, Endpoint(family.server, 20900)
    plane = NftPlane(stage.elements, PortRange(at.port, at.port), stage.board, stage.doors)
    first, owner = plane.open(passive(family), Owner()), Owner()
    assert isinstance(first, NftPath)
    first.close()
    path = plane.open(passive(family), owner)
    assert isinstance(path, NftPath), path
    left = f"{{ {family.client} . {family.server} . {at.port} }}"
    for name in ("forth_end", "back_end"):
        gateway.run("nft", "add", "element", "inet", "ftpproxy", f"{name}{family.version}", left)
    path.start(Direction.DOWN)
    stage.board.sweep_now(stage.board.now + 1)  # it looks
    with (
        listen(stage.world.server, Endpoint(family.server, PROMISED)) as listener,
        connect(stage.world.client, at, family.client) as client,
        accept(listener) as server,
    ):
        talk(client, server)
        stage.board.turn()  # the first is cleared up
        stage.later(1)
        assert owner.up == [Side.CLIENT, Side.SERVER]
        assert not owner.tallies
        path.settle()
        server.close()
        assert client.recv(1) == b""
    until_over(stage, owner)
    plane.close()


@pytest.mark.netns
def test_what_it_does_not_carry(stage: Stage) -> None:
    """Two awaited legs, two called ones, two families: those are for the relay.  And what is not forwarded at all."""
    v4, v6 = FAMILIES
    both = PathSpec(passive(v4).client, active(v4).server)
    neither = PathSpec(active(v4).client, passive(v4).server)
    mixed = PathSpec(passive(v4).client, passive(v6).server)
    for spec in (both, neither, mixed):
        assert not stage.plane.carries(spec)
        assert isinstance(stage.plane.open(spec, Owner()), Refused)
    local = Call(Endpoint(v4.outside, PROMISED), Endpoint(v4.outside, 0))
    answer = stage.plane.open(PathSpec(passive(v4).client, local), Owner())
    assert isinstance(answer, Refused)
    assert "10.77.2.1 is this machine itself" in answer.why
    assert stage.left() == []


@pytest.mark.netns
def test_nobody_calls(stage: Stage, family: Family) -> None:
    """Item 98: a path that is not used fails in time, and leaves nothing."""
    path, owner = stage.open(passive(family))
    path.start(Direction.DOWN)
    stage.later(119)
    assert owner.failures == []
    stage.later(130)
    (why,) = owner.failures
    assert why == "no data connection came from the client within 120 s"
    assert stage.left() == []


@pytest.mark.netns
def test_a_transfer_that_is_cut(stage: Stage, family: Family) -> None:
    """A path that is closed while it carries says what it has carried so far; nobody is called any more."""
    path, owner = stage.open(passive(family))
    path.start(Direction.UP)
    assert path.so_far() is None
    with (
        listen(stage.world.server, Endpoint(family.server, PROMISED)) as listener,
        connect(stage.world.client, path.announced[Side.CLIENT], family.client) as client,
        accept(listener) as server,
    ):
        client.sendall(b"x" * 1000)
        assert server.recv(2000) == b"x" * 1000
        assert path.so_far() is None  # it has looked a moment ago
        stage.board.now += 1
        until_now = path.so_far()
        assert until_now is not None
        assert (until_now.octets_up, until_now.octets_down, until_now.exact) == (1000, 0, False)
        tally = path.close()
        assert tally is not None
        assert (tally.octets_up, tally.reason) == (1000, "cut short")
        assert path.close() is None
        stage.later(100)
    assert (owner.tallies, owner.failures) == ([], [])


@pytest.mark.netns
@pytest.mark.parametrize("direction", Direction)
def test_a_client_resets_it(stage: Stage, family: Family, direction: Direction) -> None:
    """Item 93: nobody answers a reset, so the receiver's end is enough when nothing moves any more."""
    path, owner = stage.open(passive(family))
    with (
        listen(stage.world.server, Endpoint(family.server, PROMISED)) as listener,
        connect(stage.world.client, path.announced[Side.CLIENT], family.client) as client,
        accept(listener),
    ):
        path.start(direction)
        close_with_reset(client)
    path.settle()
    stage.board.turn()
    assert len(owner.tallies) == (direction is Direction.UP)
    stage.later(1)
    stage.later(2)
    assert len(owner.tallies) == 1


@pytest.mark.netns
def test_a_long_transfer_outlives_its_elements(three: World, stage: Stage) -> None:
    """Counters are renewed before they time out, and what they had counted is kept."""
    family = FAMILIES[0]
    plane = NftPlane(stage.elements, PortRange(20500, 20509), stage.board, stage.doors, seconds=600)
    owner = Owner()
    path = plane.open(passive(family), owner)
    assert isinstance(path, NftPath)
    path.start(Direction.DOWN)
    with (
        listen(three.server, Endpoint(family.server, PROMISED)) as listener,
        connect(three.client, path.announced[Side.CLIENT], family.client) as client,
        accept(listener) as server,
    ):
        for _ in range(4):
            server.sendall(b"x" * 1000)
            assert client.recv(2000) == b"x" * 1000
            stage.later(301)
            (expires,) = re.findall(
                r"expires (\d+)m", three.gateway.run("nft", "list", "set", "inet", "ftpproxy", "back4")
            )
            assert int(expires) >= 9
    path.settle()
    until_over(stage, owner)
    assert owner.tallies[0].octets_down == 4000
    plane.close()


@pytest.mark.netns
def test_an_end_that_the_kernel_does_not_take(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner is told all the same: a session waits for it."""
    family = FAMILIES[0]
    path, owner = stage.open(passive(family))

    def fails(*_: object) -> None:
        raise OSError(errno.ENOBUFS, "no room")

    with monkeypatch.context() as patch:
        patch.setattr(stage.elements, "remove", fails)
        path.settle()
        stage.board.turn()
    assert len(owner.failures) == 1
    stage.world.gateway.run("nft", "flush", "ruleset")
    load_table()


@pytest.mark.netns
def test_idle_for_too_long(stage: Stage, family: Family) -> None:
    """Item 100: a transfer in which nothing moves keeps its session busy for a while, not for ever."""
    path, owner = stage.open(passive(family))
    path.start(Direction.DOWN)
    with (
        listen(stage.world.server, Endpoint(family.server, PROMISED)) as listener,
        connect(stage.world.client, path.announced[Side.CLIENT], family.client),
        accept(listener),
    ):
        stage.later(1)
        stage.later(890)
        assert owner.tallies == []
        stage.later(20)
    (tally,) = owner.tallies
    assert (tally.failed, tally.reason) == (Side.SERVER, "idle for 900 s")


@pytest.mark.netns
@pytest.mark.parametrize("noticed_by", ["sweep", "open"])
def test_a_flush_is_mended(stage: Stage, family: Family, noticed_by: str) -> None:
    """`nft flush ruleset` takes our table along; it comes back with every path that stood in it."""
    path, owner = stage.open(passive(family))
    stage.world.gateway.run("nft", "flush", "ruleset")
    stage.world.gateway.run("nft", "-f", "-", text=ADMINISTRATOR)
    if noticed_by == "sweep":
        stage.elements.check()
    else:
        stage.open(passive(family, client=parse_address("10.9.9.9" if family.version == 4 else "fd99::9")))
    assert stage.elements.reloads == 1
    with (
        listen(stage.world.server, Endpoint(family.server, PROMISED)) as listener,
        connect(stage.world.client, path.announced[Side.CLIENT], family.client) as client,
        accept(listener) as server,
    ):
        talk(client, server)
    assert owner.failures == []


@pytest.mark.netns
def test_another_table_of_our_name(stage: Stage, family: Family) -> None:
    """A ruleset that was saved with our table in it, and loaded again, is no table of ours: its elements are old."""
    gateway = stage.world.gateway
    saved = gateway.run("nft", "list", "ruleset")
    path, _ = stage.open(passive(family))
    gateway.run("nft", "flush", "ruleset")
    gateway.run("nft", "-f", "-", text=saved)
    stage.elements.check()
    stage.elements.check()
    assert stage.elements.reloads == 1
    assert len(stage.left()) == 3
    path.close()


@pytest.mark.netns
def test_everything_has_a_time(stage: Stage, family: Family) -> None:
    """Item 103: what a killed process leaves is gone by itself."""
    plane = NftPlane(stage.elements, PortRange(20500, 20509), stage.board, stage.doors, seconds=0.3)
    assert isinstance(plane.open(passive(family), Owner()), NftPath)
    stage.board.turn()
    assert len(stage.left()) == 3
    until(lambda: stage.left() == [], "elements that outlive their time")
    plane.close()


@pytest.mark.netns
def test_killed_in_the_middle(stage: Stage, family: Family) -> None:
    """Item 103: nobody takes anything down; the transfer is completed, and in time nothing is left of it."""
    seconds = 1.5
    words = (seconds, family.client, family.server, Endpoint(family.server, PROMISED), family.outside)
    command = [sys.executable, "-m", "tests.dtp.nft_process", *map(str, words)]
    with stage.world.gateway.inside():
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    with process, listen(stage.world.server, Endpoint(family.server, PROMISED)) as listener:
        try:
            assert process.stdout is not None
            at = Endpoint.parse(process.stdout.readline().strip())
            client = connect(stage.world.client, at, family.client)
            with client, accept(listener) as server:
                talk(client, server)
                assert stage.left() != []
                process.kill()
                process.wait()
                carry(server, client, 8 << 20)
                until(lambda: stage.left() == [], "elements that outlive their time")
                client.sendall(b"and on")
                assert server.recv(100) == b"and on"
        finally:
            process.kill()


@pytest.mark.netns
def test_a_call_may_have_to_come_again(stage: Stage, family: Family) -> None:
    """A SYN that a filter drops, or that meets a connection of old at the server, comes again as a new connection."""
    gateway = stage.world.gateway
    path, owner = stage.open(passive(family))
    at = path.announced[Side.CLIENT]
    gateway.run("nft", "insert", "rule", "inet", "filter", "forward", "ct", "status", "dnat", "drop")
    with listen(stage.world.server, Endpoint(family.server, PROMISED)) as listener:
        with stage.world.client.inside():
            client = bound(Endpoint(family.client, 0))
        with client:
            assert client.connect_ex(at.sockaddr()) == errno.EINPROGRESS
            until(lambda: f"once{family.version}" not in stage.left(), "the call takes its element")
            gateway.run("nft", "flush", "chain", "inet", "filter", "forward")
            gateway.run("nft", "-f", "-", text=ADMINISTRATOR)
            with accept(listener) as server:  # when the SYN has come again, after a second
                server.sendall(b"x")
                until(lambda: select.select([client], [], [], WAIT)[0], "it is up")
                assert client.recv(10) == b"x"
                until(lambda: f"calling{family.version}" not in stage.left(), "an answered call is forgotten")
                assert refused(stage.world.client, at, family.client), "another call is a second one"
    path.close()
    assert owner.failures == []


@pytest.fixture
def marking(stage: Stage) -> Iterator[NftPlane]:
    """A plane whose connections are marked, before a firewall that goes by that alone."""
    stage.world.gateway.run("nft", "-f", "-", text=MARKS_ONLY)
    plane = NftPlane(stage.elements, PortRange(20000, 20099), stage.board, stage.doors, mark=True)
    yield plane
    plane.close()


@pytest.mark.netns
def test_a_mark_lets_in_what_is_carried(stage: Stage, marking: NftPlane, family: Family) -> None:
    """Every packet of it, in both directions and modes; no second call, and not what others translate.  The
    administrator's bits of the mark stay."""
    client, server = stage.world.client, stage.world.server
    for spec, caller, called in ((passive(family), client, server), (active(family), server, client)):
        path, _ = Stage(stage.world, stage.elements, stage.board, stage.doors, marking).open(spec)
        ((side, at),) = path.announced.items()
        here, there = (family.client, family.server) if side is Side.CLIENT else (family.server, family.client)
        with listen(called, Endpoint(there, PROMISED)) as listener, connect(caller, at, here) as one:
            with accept(listener) as other:
                for _ in range(3):
                    talk(one, other)
                    talk(other, one)
            if at.host == there:
                with listen(called, at):
                    assert refused(caller, at, here)
        path.close()
    gateway = stage.world.gateway
    gateway.run("nft", "-f", "-", text=OTHERS)
    with listen(server, Endpoint(family.server, PROMISED)):
        assert refused(client, Endpoint(family.inside, 99), family.client)
        gateway.run("nft", "add", "rule", "inet", "filter", "forward", "ct", "status", "dnat", "accept")
        assert not refused(client, Endpoint(family.inside, 99), family.client)


@pytest.mark.netns
def test_a_path_without_a_mark(stage: Stage, marking: NftPlane, family: Family) -> None:
    """Only those of a plane that was told to have it."""
    stage.world.gateway.run("nft", "add", "rule", "inet", "filter", "forward", "ct", "mark", "0x5", "accept")
    path, _ = stage.open(passive(family))
    with (
        listen(stage.world.server, Endpoint(family.server, PROMISED)) as listener,
        connect(stage.world.client, path.announced[Side.CLIENT], family.client) as client,
        accept(listener) as server,
    ):
        talk(client, server)
    path.close()


class Principal:
    """A session as its carriage sees it."""

    over = False

    def __init__(self, family: Family) -> None:
        self.client = self.server = Endpoint(family.client, 40000)

    def tell(self, what: object) -> None: ...

    def carried(self, *, nothing_left: bool) -> None: ...

    def log(self, level: int, name: str, **fields: object) -> None: ...


class Opened:
    """An interpreter that is told that its path stands."""

    def path_opened(self, announced: object, **_: object) -> None: ...


@pytest.mark.netns
def test_a_session_is_busy_through_a_long_transfer(stage: Stage, family: Family) -> None:
    """Item 101: what the kernel carries for hours keeps the session's idle clock from running."""
    terms = Terms(service="test", policy=Policy(), timeouts=Timeouts(), planes=[stage.plane])
    carriage = Carriage(Principal(family), terms, stage.board, lambda _: False)
    interpreter: Any = Opened()
    carriage.perform(interpreter, OpenPath(passive(family)))
    carriage.perform(interpreter, StartPath(Direction.DOWN, b"RETR x"))
    (path,) = carriage._carried
    with (
        listen(stage.world.server, Endpoint(family.server, PROMISED)) as listener,
        connect(stage.world.client, path.announced[Side.CLIENT], family.client) as client,
        accept(listener) as server,
    ):
        stage.later(1)
        for _ in range(12):
            server.sendall(b"x" * 1000)
            assert client.recv(2000) == b"x" * 1000
            stage.later(600)
            assert carriage.busy
    carriage.close()
    assert not carriage.busy
