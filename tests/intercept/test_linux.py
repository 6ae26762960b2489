"""TPROXY and redirect on the real kernel: what the peers of a gateway see of its sockets."""

from __future__ import annotations

import errno
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from ftpproxy.doors import Doors
from ftpproxy.endpoints import Endpoint, unspecified
from ftpproxy.intercept.interceptor import Gate, GateError, PortRange
from ftpproxy.intercept.linux import RedirectGate, TproxyGate
from ftpproxy.netfilter import Elements
from ftpproxy.paths import Await, Call
from ftpproxy.sockets import is_ours
from ftpproxy.table import load_table, remove_table

from ..waiting import open_descriptors
from .namespaces import (
    FAMILIES,
    Family,
    Namespace,
    World,
    accept,
    call,
    connect,
    connected,
    listen,
    name,
    peer,
    talk,
    world,
)

pytestmark = pytest.mark.netns

MARK, TABLE = "0x2121", "2121"
CONTROL = 8021

# The minimum that interception asks for.  The data connections of TPROXY need the rule with `socket transparent`,
# for they arrive for sockets that are bound to somebody else's address.
TPROXY_RULES = f"""
table inet interception {{
    chain prerouting {{
        type filter hook prerouting priority mangle; policy accept;
        iifname "lan" tcp dport 21 meta nfproto ipv4 tproxy ip to 127.0.0.1:{CONTROL} meta mark set {MARK} accept
        iifname "lan" tcp dport 21 meta nfproto ipv6 tproxy ip6 to [::1]:{CONTROL} meta mark set {MARK} accept
        meta l4proto tcp socket transparent 1 meta mark set {MARK} accept
    }}
}}
"""
REDIRECT_RULES = f"""
table inet interception {{
    chain prerouting {{
        type nat hook prerouting priority dstnat; policy accept;
        iifname "lan" tcp dport 21 redirect to :{CONTROL}
    }}
}}
"""


@pytest.fixture(scope="module")
def three() -> Iterator[World]:
    with world() as made:
        yield made


@pytest.fixture(params=FAMILIES, ids=str)
def family(request: pytest.FixtureRequest) -> Family:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def tproxy(three: World, doors: Doors) -> Iterator[TproxyGate]:
    routes = [(v, "default" if v == "-4" else "::/0") for v in ("-4", "-6")]
    for version, everything in routes:
        three.gateway.run("ip", version, "rule", "add", "fwmark", MARK, "lookup", TABLE)
        three.gateway.run("ip", version, "route", "add", "local", everything, "dev", "lo", "table", TABLE)
    three.gateway.run("nft", "-f", "-", text=TPROXY_RULES)
    yield TproxyGate(doors)
    three.gateway.run("nft", "flush", "ruleset")
    for version, _ in routes:
        three.gateway.run("ip", version, "rule", "del", "fwmark", MARK, "lookup", TABLE)
        three.gateway.run("ip", version, "route", "flush", "table", TABLE)


@pytest.fixture
def redirect(three: World, doors: Doors) -> Iterator[RedirectGate]:
    with three.gateway.inside():
        load_table()
        elements = Elements()
    three.gateway.run("nft", "-f", "-", text=REDIRECT_RULES)
    with elements:
        yield RedirectGate(elements, doors)
    left = in_maps(three.gateway)
    with three.gateway.inside():
        remove_table()
    three.gateway.run("nft", "flush", "ruleset")
    assert left == []


@pytest.fixture(params=["tproxy", "redirect"])
def gate(request: pytest.FixtureRequest) -> Gate:
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]


@pytest.fixture
def ports() -> PortRange:
    return PortRange(20000, 20999)


def in_maps(gateway: Namespace) -> list[str]:
    """The names of our maps, once for each element in them."""
    listed = json.loads(gateway.run("nft", "-j", "list", "table", "inet", "ftpproxy"))["nftables"]
    maps = [item["map"] for item in listed if "map" in item]
    assert len(maps) == 8
    return [one["name"] for one in maps for _ in one.get("elem", [])]


def control_listener(three: World, gate: Gate, family: Family) -> socket.socket:
    """A control listener of the gateway: on loopback for TPROXY, at its inside address for redirect."""
    loopback = ip_address("127.0.0.1" if family.version == 4 else "::1")
    host = loopback if isinstance(gate, TproxyGate) else family.inside
    with three.gateway.inside():
        sock = socket.socket(socket.AF_INET if family.version == 4 else socket.AF_INET6)
        gate.prepare(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((str(host), CONTROL))
        sock.listen()
        return sock


def test_original_destination(three: World, gate: Gate, family: Family) -> None:
    """Item 80: whom the client dialled is known, whatever the kernel did to the packets."""
    dialled = Endpoint(family.server, 21)
    with (
        control_listener(three, gate, family) as listener,
        connect(three.client, dialled, family.client) as client,
        accept(listener) as control,
    ):
        assert gate.original_destination(control) == dialled
        assert peer(control).host == family.client
        assert peer(client) == dialled
        talk(client, control)


def test_a_connection_to_ourselves_is_its_own_destination(three: World, redirect: RedirectGate, family: Family) -> None:
    """Not redirected: the reverse mode and the flags of ftp-proxy(8), where the gate is found out by asking."""
    with (
        control_listener(three, redirect, family) as listener,
        connect(three.client, Endpoint(family.inside, CONTROL), family.client) as client,
        accept(listener) as control,
    ):
        assert redirect.original_destination(control) == peer(client)


def test_redirected_to_a_dual_stack_listener(three: World, redirect: RedirectGate) -> None:
    """IPv4 on an IPv6 socket (a listener that was handed to us): conntrack is asked about IPv4."""
    family = FAMILIES[0]
    dialled = Endpoint(family.server, 21)
    with three.gateway.inside():
        listener = socket.create_server(("::", CONTROL), family=socket.AF_INET6, dualstack_ipv6=True)
    with listener, connect(three.client, dialled, family.client), accept(listener) as control:
        assert redirect.original_destination(control) == dialled


def test_foreign_listener(three: World, gate: Gate, doors: Doors, family: Family, ports: PortRange) -> None:
    """Items 72 and 81: once `listener` returned, a client that calls the server's address reaches us there."""
    with three.gateway.inside():
        listener = gate.listener(Await(Endpoint(family.server, 0), family.client), ports)
    assert listener.announced.host == family.server
    assert 20000 <= listener.announced.port <= 20999
    if isinstance(gate, RedirectGate):
        assert in_maps(three.gateway) == [f"awaited{family.version}"]
    with connect(three.client, listener.announced, family.client) as client, call(doors, listener) as data:
        own = listener.announced if isinstance(gate, TproxyGate) else Endpoint(family.inside, name(data).port)
        assert name(data) == own
        assert peer(data) == name(client)
        assert peer(client) == listener.announced
        listener.release()
        listener.release()
        talk(client, data)
    if isinstance(gate, RedirectGate):
        assert in_maps(three.gateway) == []


def test_only_the_client_that_was_told_is_mapped(
    three: World, redirect: RedirectGate, doors: Doors, family: Family, ports: PortRange
) -> None:
    """Items 86 and 132: another client's call to the same port goes where it would have gone without us."""
    with three.gateway.inside():
        listener = redirect.listener(Await(Endpoint(family.server, 0), family.client), ports)
    with pytest.raises(ConnectionRefusedError):  # by the server, where nothing listens
        connect(three.client, listener.announced, family.second)
    with (
        listen(three.server, listener.announced) as real,
        connect(three.client, listener.announced, family.second) as second,
        accept(real) as at_server,
    ):
        talk(second, at_server)
    with connect(three.client, listener.announced, family.client) as client, call(doors, listener) as data:
        talk(client, data)
    listener.release()
    with pytest.raises(ConnectionRefusedError):
        connect(three.client, listener.announced, family.client)


@pytest.mark.parametrize("pinned", [20, 0])
def test_foreign_caller(three: World, gate: Gate, family: Family, ports: PortRange, pinned: int) -> None:
    """Items 84 and 85: active data reaches the client from the address that it dialled, port 20 where asked for."""
    told = Endpoint(family.client, 40000)
    with listen(three.client, told) as listener:
        with three.gateway.inside():
            caller = gate.caller(Call(told, Endpoint(family.server, pinned)), ports)
        if isinstance(gate, RedirectGate):
            assert in_maps(three.gateway) == [f"{'pinned' if pinned else 'called'}{family.version}"]
        with caller.socket:
            assert not caller.socket.getblocking()
            connected(caller.socket, told)
            with accept(listener) as at_client:
                assert peer(at_client).host == family.server
                assert peer(at_client).port == (pinned or name(caller.socket).port)
                caller.release()
                talk(at_client, caller.socket)
    if isinstance(gate, RedirectGate):
        assert in_maps(three.gateway) == []


def test_legs_towards_the_server_are_ordinary(
    three: World, gate: Gate, doors: Doors, family: Family, ports: PortRange
) -> None:
    """Item 83: what the server sees is an address of the gateway, and nothing is installed for it."""
    told = Endpoint(family.server, 40001)
    with three.gateway.inside():
        listener = gate.listener(Await(Endpoint(family.outside, 0), family.server), ports)
        caller = gate.caller(Call(told, Endpoint(family.outside, 0)), ports)
    if isinstance(gate, RedirectGate):
        assert in_maps(three.gateway) == []
    with caller.socket, listen(three.server, told) as real:
        connected(caller.socket, told)
        with accept(real) as data:
            assert peer(data).host == family.outside
        with connect(three.server, listener.announced, family.server) as server, call(doors, listener) as data:
            assert listener.announced.host == family.outside
            talk(server, data)
    listener.release()
    caller.release()


def test_where_any_address_can_be_bound(
    three: World, gate: Gate, doors: Doors, family: Family, ports: PortRange
) -> None:
    """With ip_nonlocal_bind (keepalived and load balancers set it) bind() says nothing of whose an address is."""
    switch = f"net.ipv{family.version}.ip_nonlocal_bind"
    three.gateway.run("sysctl", "-qw", f"{switch}=1")
    try:
        with three.gateway.inside():
            with socket.socket(socket.AF_INET if family.version == 4 else socket.AF_INET6) as any_address:
                any_address.bind((str(family.server), 0))
            ours = [is_ours(host) for host in (family.inside, family.outside, unspecified(family.server))]
            assert (ours, is_ours(family.server), is_ours(family.client)) == ([True] * 3, False, False)
        test_foreign_listener(three, gate, doors, family, ports)
        test_foreign_caller(three, gate, family, ports, pinned=0)
        test_legs_towards_the_server_are_ordinary(three, gate, doors, family, ports)
    finally:
        three.gateway.run("sysctl", "-qw", f"{switch}=0")


def test_a_port_that_the_gateway_uses_itself_is_passed_over(three: World, gate: Gate, family: Family) -> None:
    """The gateway's own wildcard listener and a foreign one cannot share a port; the next one is taken."""
    leg = Await(Endpoint(family.server, 0), family.client)
    ports = PortRange(20000, 20001)
    first, second = ports.once_round()
    with listen(three.gateway, Endpoint(unspecified(family.server), first)):
        with three.gateway.inside():
            listener = gate.listener(leg, ports)
        assert listener.announced.port == second
        with three.gateway.inside(), pytest.raises(GateError, match="no port is left in 20000-20001"):
            gate.listener(leg, ports)
        with three.gateway.inside(), pytest.raises(GateError, match=f"port {first} is taken"):
            gate.listener(Await(leg.at.at(first), leg.peer), ports)
        listener.release()


def test_elements_arbitrate(three: World, redirect: RedirectGate, doors: Doors, family: Family) -> None:
    """Two gates that pick one port: for a listener the loser takes the next one, a call is refused to him."""
    with three.gateway.inside(), Elements() as elements:
        theirs_too = Doors(doors.board)
        other = RedirectGate(elements, theirs_too)
        leg = Await(Endpoint(family.server, 0), family.client)
        ours, theirs = PortRange(20000, 20001, seed=1), PortRange(20000, 20001, seed=1)
        one = redirect.listener(leg, ours)
        doors.close()  # the port is free again, the element stands
        two = other.listener(leg, theirs)
        theirs_too.close()
        assert {one.announced.port, two.announced.port} == {20000, 20001}
        with pytest.raises(GateError, match="no port is left"):
            RedirectGate(elements, Doors(doors.board)).listener(leg, theirs)

        call = Call(Endpoint(family.client, 40000), Endpoint(family.server, 20))
        first = redirect.caller(call, ours)
        first.socket.close()
        with pytest.raises(GateError, match="another connection of the same kind"):
            other.caller(call, theirs)
        for gone in (one, two, first):
            gone.release()
        again = other.caller(call, theirs)
        again.socket.close()
        again.release()


def test_without_a_table_or_a_route(three: World, redirect: RedirectGate, ports: PortRange) -> None:
    """What the administrator's flush, or a missing route, looks like in the log; no socket stays open."""
    family = FAMILIES[0]
    here = open_descriptors()
    with three.gateway.inside():
        with pytest.raises(GateError, match=r"find our address towards 203\.0\.113\.1: Network is unreachable"):
            redirect.listener(Await(Endpoint(family.server, 0), ip_address("203.0.113.1")), ports)
        remove_table()
        with pytest.raises(GateError, match="table inet ftpproxy is gone"):
            redirect.listener(Await(Endpoint(family.server, 0), family.client), ports)
        with pytest.raises(GateError, match="table inet ftpproxy is gone"):
            redirect.caller(Call(Endpoint(family.client, 40000), Endpoint(family.server, 0)), ports)
        load_table()
    assert open_descriptors() == here


def test_what_nobody_releases_goes_by_itself(
    three: World, redirect: RedirectGate, doors: Doors, family: Family
) -> None:
    """Item 103: elements of a killed process time out; a late release leaves alone what is somebody else's by then."""
    with three.gateway.inside(), Elements() as elements:
        gone = Doors(doors.board)
        killed = RedirectGate(elements, gone, seconds=0.2)
        leg, ports = Await(Endpoint(family.server, 20000), family.client), PortRange(20000, 20000)
        lost = killed.listener(leg, ports)
        gone.close()
        while in_maps(three.gateway):
            pass
        heir = redirect.listener(leg, ports)
        lost.release()
        killed.close()
        with connect(three.client, heir.announced, family.client) as client, call(doors, heir) as data:
            talk(client, data)
        heir.release()


def test_closing_the_gate_gives_everything_back(
    three: World, redirect: RedirectGate, family: Family, ports: PortRange
) -> None:
    """Item 77: also what no path released; releasing afterwards does nothing."""
    with three.gateway.inside():
        listener = redirect.listener(Await(Endpoint(family.server, 0), family.client), ports)
        caller = redirect.caller(Call(Endpoint(family.client, 40000), Endpoint(family.server, 0)), ports)
    with caller.socket:
        assert len(in_maps(three.gateway)) == 2
        redirect.close()
        assert in_maps(three.gateway) == []
        listener.release()
        redirect.close()


def test_release_never_raises(three: World, doors: Doors, family: Family, ports: PortRange) -> None:
    """Also when table or netlink socket are gone, as at the end of a service."""
    with three.gateway.inside():
        load_table()
        elements = Elements()
        gate = RedirectGate(elements, doors)
        flushed, closed = (gate.listener(Await(Endpoint(family.server, 0), family.client), ports) for _ in range(2))
        remove_table()
        flushed.release()
        elements.close()
        closed.release()
    assert len(doors) == 0


UNPRIVILEGED = """
import socket, sys
from ftpproxy.doors import Doors
from ftpproxy.endpoints import Endpoint
from ftpproxy.intercept.interceptor import GateError, PortRange
from ftpproxy.intercept.linux import RedirectGate, TproxyGate
from ftpproxy.netfilter import Elements
from ftpproxy.paths import Await, Call
from ftpproxy.switchboard import Switchboard

foreign, client = Endpoint.parse("192.0.2.1:0"), Endpoint.parse("10.77.1.2:40000")
ports = PortRange(20000, 20999)
with Elements() as elements, socket.socket() as sock:
    doors = Doors(Switchboard())
    for gate in (TproxyGate(doors), RedirectGate(elements, doors)):
        for attempt in (
            lambda: gate.prepare(sock),
            lambda: gate.listener(Await(foreign, client.host), ports),
            lambda: gate.caller(Call(client, foreign), ports),
            lambda: gate.caller(Call(client, foreign.at(20)), ports),
        ):
            try:
                attempt()
                print("granted")
            except GateError as error:
                print(error)
"""


def test_missing_capabilities_are_named(three: World) -> None:
    """A user namespace of its own has no capability over the gateway's network."""
    load = [sys.executable, "-W", "error", "-c", UNPRIVILEGED]
    with three.gateway.inside():
        done = subprocess.run(["unshare", "-U", *load], capture_output=True, text=True, check=True)
    tproxy, redirect = done.stdout.splitlines()[:4], done.stdout.splitlines()[4:]
    assert all("CAP_NET_RAW" in line for line in tproxy), done.stdout
    assert redirect[0] == "granted"
    assert len(redirect) == 4
    assert all("CAP_NET_ADMIN" in line for line in redirect[1:]), done.stdout


def test_a_clash_of_all_four_numbers_is_seen_by_connect(three: World, tproxy: TproxyGate, ports: PortRange) -> None:
    """Port 20 to one client port twice: the second bind succeeds, its connect says EADDRNOTAVAIL; port 0 helps."""
    family = FAMILIES[0]
    call = Call(Endpoint(family.client, 40000), Endpoint(family.server, 20))
    with listen(three.client, call.to) as listener, three.gateway.inside():
        one, two = tproxy.caller(call, ports), tproxy.caller(call, ports)
        with one.socket, two.socket:
            assert name(one.socket) == name(two.socket) == call.source
            connected(one.socket, call.to)
            assert two.socket.connect_ex(call.to.sockaddr()) == errno.EADDRNOTAVAIL
            other = tproxy.caller(Call(call.to, call.source.at(0)), ports)
            with other.socket, accept(listener), accept_after(other.socket, call.to, listener) as at_client:
                assert peer(at_client) == name(other.socket)


def accept_after(caller: socket.socket, to: Endpoint, listener: socket.socket) -> socket.socket:
    connected(caller, to)
    return accept(listener)
