"""The lab's network: honest without the proxy, and nothing left of it afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ftpproxy.lab.demo import ROWS, must_fail, survey
from ftpproxy.lab.hosts import Passed
from ftpproxy.lab.network import Gateway, Lab, LabError, Topology, sweep
from ftpproxy.lab.peers import FtpServer, Transfer, environment, run

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces as root"),
]

NETNS = Path("/run/netns")


def namespaces(pid: int) -> list[str]:
    return sorted(path.name for path in NETNS.glob(f"ftpx-{pid}-*"))


def root_namespace() -> str:
    """What a lab could leave in the namespace that we are in."""
    commands = (["ip", "-o", "link"], ["ip", "rule"], ["nft", "list", "tables"])
    return "".join(subprocess.run(command, text=True, capture_output=True, check=True).stdout for command in commands)


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    before = namespaces(os.getpid()), root_namespace()
    yield
    assert (namespaces(os.getpid()), root_namespace()) == before


@pytest.mark.parametrize(
    "topology", [Topology.CLIENT_NAT, Topology.SERVER_NAT, Topology.BOTH_NAT], ids=lambda t: t.name
)
def test_nat_breaks_what_it_breaks_in_the_field(topology: Topology) -> None:
    cells = survey(topology, None, timeout=3).cells
    assert {(row.title, row.version): str(cell) for row, cell in cells.items() if not cell.as_expected} == {}
    broken = {row for row, cell in cells.items() if not cell.down.ok and not cell.up.ok}
    assert broken == {row for row in ROWS if must_fail(topology, row.verb)}


def test_without_nat_everything_works() -> None:
    with Lab(Topology.PLAIN) as lab, FtpServer(lab.server, b"plain" * 1000) as server:
        transfers = [transfer for row in ROWS for transfer in row.transfers()]
        outcomes = run(lab.client, lab.dialled, server, transfers)
        assert {transfer: outcome.error for transfer, outcome in outcomes.items() if not outcome.ok} == {}


@pytest.mark.parametrize("version", [4, 6])
def test_active_mode_through_nat_fails_by_the_network_too(version: int) -> None:
    """Not only because this server refuses addresses that are not the client's."""
    with Lab(Topology.CLIENT_NAT) as lab, FtpServer(lab.server, b"x", "--permit-foreign") as server:
        transfer = Transfer("EPRT", version)
        outcome = run(lab.client, lab.dialled, server, [transfer], timeout=3)[transfer]
        assert not outcome.ok
        assert not outcome.error.startswith("501")


def test_a_firewall_is_silent_and_a_host_refuses() -> None:
    probe = (
        "import socket, sys; s = socket.socket(); s.settimeout(1)\n"
        "try: s.connect((sys.argv[1], 5))\nexcept OSError as error: print(type(error).__name__)"
    )
    with Lab(Topology.CLIENT_NAT) as lab:
        gateway = lab.gateways["client"]
        assert lab.server.run(sys.executable, "-c", probe, gateway.address(4)).stdout.strip() == "TimeoutError"
        assert (
            lab.client.run(sys.executable, "-c", probe, lab.server.address(4)).stdout.strip()
            == "ConnectionRefusedError"
        )


LISTENER = """
import socket, sys
with socket.create_server(("::", 2100), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
    print("ready", flush=True)
    for _ in range(2):
        with listener.accept()[0] as control:
            print(control.getpeername()[0].removeprefix("::ffff:"), flush=True)
"""


def test_the_server_sees_the_clients_gateway() -> None:
    with Lab(Topology.CLIENT_NAT) as lab:
        listener = lab.server.popen(sys.executable, "-c", LISTENER, stdout=subprocess.PIPE)
        assert listener.stdout is not None
        assert listener.stdout.readline() == "ready\n"
        for version in (4, 6):
            call = "import socket, sys; socket.create_connection((sys.argv[1], 2100), 5)"
            lab.client.run(sys.executable, "-Wignore", "-c", call, lab.server_address(version), check=True)
            assert listener.stdout.readline().strip() == lab.gateways["client"].address(version)


def test_make_way_closes_the_mapping_and_opens_the_ports() -> None:
    with Lab(Topology.SERVER_NAT) as lab:
        gateway = lab.gateways["server"]
        before = gateway.run("nft", "list", "ruleset").stdout
        assert "dnat ip to 10.77.2.21" in before
        assert "dnat ip6 to fd77:2::21" in before
        gateway.make_way("20000-20009")
        after = gateway.run("nft", "list", "ruleset").stdout
        assert "dnat ip" not in after
        assert "{ 21, 20000-20009 } accept" in after
        assert "masquerade" in after


@pytest.mark.parametrize("topology", [Topology.CLIENT_NAT, Topology.SERVER_NAT], ids=lambda t: t.name)
def test_nothing_is_forwarded_but_what_the_kernel_carries(topology: Topology) -> None:
    """Nor in either family what the inside calls, which the ordinary firewall lets through; and nothing is counted."""
    probe = (
        "import socket, sys\nfor host in sys.argv[1:]:\n"
        "    try: socket.create_connection((host, 5), 1)\n    except OSError as error: print(type(error).__name__)"
    )
    with Lab(topology) as lab:
        (gateway,) = lab.gateways.values()
        inside, outside = (lab.client, lab.server) if "client" in lab.gateways else (lab.server, lab.client)
        call = [sys.executable, "-c", probe, outside.address(4), outside.address(6)]
        assert inside.run(*call).stdout.split() == ["ConnectionRefusedError"] * 2
        gateway.make_way(carried=True)
        assert inside.run(*call).stdout.split() == ["TimeoutError"] * 2
        assert gateway.passed() == Passed(0, 0)
        chain = gateway.run("nft", "list", "chain", "inet", "filter", "forward", check=True).stdout
        assert "type filter hook forward priority filter; policy drop;" in chain


def test_an_exception_leaves_nothing() -> None:
    before = set(namespaces(os.getpid()))  # of fixtures that last longer than a test

    def fail() -> None:
        with Lab(Topology.BOTH_NAT) as lab:
            lab.client.popen("sleep", "1000")
            assert len(set(namespaces(os.getpid())) - before) == 4
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert set(namespaces(os.getpid())) == before


def test_a_lab_that_cannot_be_built_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Gateway, "ruleset", lambda self, **_: "table inet nat { nonsense }")
    with pytest.raises(LabError, match="client-gateway"), Lab(Topology.BOTH_NAT):
        pass


SLEEPER = """
import sys
from ftpproxy.lab.network import Lab, Topology
with Lab(Topology.CLIENT_NAT) as lab:
    child = lab.client.popen("sleep", "1000")
    print(child.pid, flush=True)
    sys.stdin.read()
"""


def sleeper() -> tuple[subprocess.Popen[str], int]:
    """A process with a lab, and a process in its lab."""
    maker = subprocess.Popen(
        [sys.executable, "-c", SLEEPER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
    )
    assert maker.stdout is not None
    return maker, int(maker.stdout.readline())


def ended(pid: int) -> bool:
    """Whether the orphan ends within a second; who adopted it may not have waited for it yet."""
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline:
        try:
            state = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state in "ZX":
            return True
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_leaves_nothing(number: signal.Signals) -> None:
    maker, inside = sleeper()
    with maker:
        assert namespaces(maker.pid) != []
        maker.send_signal(number)
        assert maker.wait(10) != 0
    assert namespaces(maker.pid) == []
    assert ended(inside)


def test_what_a_killed_lab_left_is_swept() -> None:
    maker, inside = sleeper()
    with maker:
        maker.kill()
    left = namespaces(maker.pid)
    assert len(left) == 3
    assert set(left) <= set(sweep())
    assert namespaces(maker.pid) == []
    assert ended(inside)
