"""The demonstration: with the proxy everything works, and it would tell if not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ftpproxy.lab.demo import (
    OCTETS,
    ROWS,
    Cell,
    Survey,
    _carried,
    _summary,
    brief,
    configs,
    demonstrate_on_loopback,
    must_fail,
    survey,
)
from ftpproxy.lab.hosts import Passed
from ftpproxy.lab.network import Lab, LabError, Topology
from ftpproxy.lab.peers import FtpServer, Outcome, Transfer, environment, run
from ftpproxy.lab.proxy import Proxy

from .test_network import namespaces

netns = pytest.mark.netns
root = pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces as root")


@netns
@root
@pytest.mark.parametrize(
    ("topology", "intercept"),
    [
        (Topology.CLIENT_NAT, "tproxy"),
        (Topology.CLIENT_NAT, "redirect"),
        (Topology.SERVER_NAT, "tproxy"),
        (Topology.BOTH_NAT, "tproxy"),
        (Topology.BOTH_NAT, "redirect"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
@pytest.mark.parametrize("plane", ["relay", "nft"])
def test_with_the_proxy_every_mode_works_through_every_nat(topology: Topology, intercept: str, plane: str) -> None:
    """All that `ftpproxy lab demo` shows with the proxy; on the kernel's plane behind forward chains that drop all that
    it does not carry, and by their count."""
    found = survey(topology, intercept, planes=[plane])
    assert {(row.title, row.version): str(cell) for row, cell in found.cells.items()} == {
        (row.title, row.version): "ok" for row in ROWS
    }
    gateways = 2 if topology is Topology.BOTH_NAT else 1
    assert found.log.count("--- ") == gateways
    assert len(found.passed) == (gateways if plane == "nft" else 0)
    for each in found.passed:
        assert each.calls >= 2 * len(ROWS)
        assert each.octets >= 2 * len(ROWS) * OCTETS


@netns
@root
def test_what_is_relayed_does_not_count_as_carried() -> None:
    """Behind the firewall that lets through only what the kernel carries, with a log that says so: what is called from
    outside does not arrive, and what arrives is not counted."""
    with Lab(Topology.CLIENT_NAT) as lab, FtpServer(lab.server, b"content") as server:
        gateway = lab.gateways["client"]
        with Proxy(gateway, configs(lab, "tproxy")[0][1]) as proxy:
            with pytest.raises(LabError, match="lets through more"):
                gateway.passed()
            assert proxy.passed() is None
            gateway.make_way(carried=True)
            passive, active = Transfer("EPSV", 4), Transfer("EPRT", 4)
            outcomes = run(lab.client, lab.dialled, server, [passive, active], timeout=1.0)
            assert (outcomes[passive].ok, outcomes[active].ok) == (True, False)
            assert gateway.passed() == Passed(0, 0)
            assert proxy.carried(1)
            proxy.config = proxy.config.replace("relay", "nft")
            assert not proxy.carried(1)


@netns
@root
def test_what_fails_is_told_with_all_there_is_to_know() -> None:
    """No client waits long enough here."""
    log = survey(Topology.CLIENT_NAT, "redirect", timeout=0.001, planes=("nft",)).log
    parts = [part.partition("\n") for part in log.split("--- ")[1:]]
    assert [title for title, _, _ in parts] == [
        "client-gateway",
        "server",
        *(f"evidence of {host}" for host in ("client", "client-gateway", "server")),
    ]
    evidence = parts[3][2]
    for known in ("\ntable inet ftpproxy {\n", "insert_failed", "\nState ", "\nLISTEN ", '{"kernel":{'):
        assert known in evidence


@netns
def test_without_namespaces_loopback_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert demonstrate_on_loopback("No namespaces here.") == 0
    said = capsys.readouterr().out
    assert said.startswith("No namespaces here.\n")
    assert "  active PORT           v4  ok\n" in said
    assert "cases are as they must be.\n" in said


@netns
@root
def test_the_gateway_is_left_as_it_was() -> None:
    with Lab(Topology.CLIENT_NAT) as lab:
        gateway = lab.gateways["client"]

        def state() -> str:
            commands = (
                "nft list tables",
                "ip rule",
                "ip -6 rule",
                "ip route show table all",
                "ip -6 route show table all",
            )
            return gateway.run("sh", "-c", "; ".join(commands)).stdout

        before = state()
        for intercept in ("tproxy", "redirect"):
            with Proxy(gateway, configs(lab, intercept)[0][1]):
                assert state() != before
            assert state() == before


@netns
@root
def test_a_proxy_that_is_refused_says_why() -> None:
    with (
        Lab(Topology.CLIENT_NAT) as lab,
        pytest.raises(LabError, match=r"check on client-gateway ended with 78: .*modus"),
    ):
        Proxy(lab.gateways["client"], configs(lab, "tproxy")[0][1] + 'modus = "x"\n').__enter__()


@netns
@root
def test_sigterm_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "ftpproxy", "lab", "--topology", "both", "--", "sh", "-c", "echo up; sleep 1000"]
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, text=True, env=environment() | {"TMPDIR": str(tmp_path)}
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        assert len(namespaces(process.pid)) == 4
        assert list(tmp_path.iterdir()) != []
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM
        assert process.stdout.read() == ""  # end of file: nobody who had inherited it is alive
    assert namespaces(process.pid) == []
    assert list(tmp_path.iterdir()) == []


@netns
@root
def test_an_interrupt_in_the_middle_is_no_traceback(tmp_path: Path) -> None:
    """Ctrl-C goes to every process of the terminal's group."""
    argv = [sys.executable, "-m", "ftpproxy", "lab", "demo"]
    with subprocess.Popen(
        argv,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment() | {"TMPDIR": str(tmp_path)},
        start_new_session=True,
    ) as process:

        def busy() -> bool:
            names = [name for name in namespaces(process.pid) if name.endswith("-client")]
            pids = [subprocess.run(["ip", "netns", "pids", name], text=True, capture_output=True) for name in names]
            return any(each.stdout.strip() for each in pids)

        deadline = time.monotonic() + 30
        while not busy():
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (130, "\nftpproxy lab: interrupted; clearing away\n")
    assert namespaces(process.pid) == []
    assert list(tmp_path.iterdir()) == []


GOOD = Outcome(True, "", 1, 0.1, "")
BAD = Outcome(False, "", 0, 5.0, "timed out")
REFUSED = Outcome(False, "", 0, 0.1, "501 Rejected data connection to foreign address 10.77.1.2:37385.")


@pytest.mark.parametrize(
    ("cell", "as_expected", "text"),
    [
        (Cell(GOOD, GOOD, True), True, "ok"),
        (Cell(BAD, BAD, False), True, "fails: timed out"),
        (Cell(REFUSED, REFUSED, False), True, "fails: reply 501"),
        (Cell(GOOD, GOOD, False), False, "ok (UNEXPECTED)"),
        (Cell(BAD, BAD, True), False, "fails: timed out (UNEXPECTED)"),
        (Cell(GOOD, BAD, True), False, "only RETR: timed out (UNEXPECTED)"),
        (Cell(BAD, GOOD, False), False, "only STOR: timed out (UNEXPECTED)"),
    ],
)
def test_a_cell_is_judged(cell: Cell, as_expected: bool, text: str) -> None:
    assert cell.as_expected is as_expected
    assert str(cell) == text


class Bystander:
    """A proxy through which only some of the transfers went."""

    def carried(self, transfers: int, octets: int) -> bool:
        return transfers <= 1


def test_what_went_past_the_proxy_does_not_count() -> None:
    down, up = ROWS[0].transfers()
    assert not any(outcome.ok for outcome in _carried({down: GOOD, up: GOOD}, [Bystander()]).values())
    assert _carried({down: GOOD, up: BAD}, [Bystander()]) == {down: GOOD, up: BAD}


def test_a_step_is_told_in_a_line() -> None:
    good, bad = Cell(GOOD, GOOD, True), Cell(BAD, BAD, True)
    found = Survey({ROWS[0]: good, ROWS[1]: bad}, "", [])
    assert _summary(found, 1.25) == "1 of 2 modes work, 1 UNEXPECTED (1.2 s)"
    found = Survey({ROWS[0]: good}, "", [Passed(2, 2 << 20), Passed(3, 5 << 20)])
    assert _summary(found, 2.0) == (
        "1 of 1 modes work, as expected (2.0 s)\n"
        "    carried by the kernel: 2 connections with 2 MiB and 3 connections with 5 MiB"
    )


def test_what_nat_breaks_follows_from_who_calls_whom() -> None:
    broken = {
        topology: {verb for verb in ("PORT", "EPRT", "PASV", "EPSV") if must_fail(topology, verb)}
        for topology in Topology
    }
    assert broken == {
        Topology.CLIENT_NAT: {"PORT", "EPRT"},
        Topology.SERVER_NAT: {"PASV", "EPSV"},
        Topology.BOTH_NAT: {"PORT", "EPRT", "PASV", "EPSV"},
        Topology.PLAIN: set(),
    }


def test_errors_are_told_briefly() -> None:
    assert brief("[Errno 101] Network is unreachable") == "unreachable"
    assert brief("425 Can't connect.") == "reply 425"
