"""ftpproxy as a service of a booted Debian 12 with systemd, on the gateway of a lab.

One machine and one network for all tests, which take the service up and down.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from ftpproxy.lab.network import Lab, Topology
from ftpproxy.lab.peers import FtpServer, Transfer, environment, run

from .load import content_of
from .machine import CannotBoot, Machine, prepare, wheels

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

HERE = Path(__file__).parent
OCTETS = 32 << 20
IDLE, DOWN, UP = 200, 10, 10
FILES = """
[[service]]
name = "files"
mode = "reverse"
listen = ["10.77.1.1:21", "[fd77:1::1]:21"]
intercept = "none"
servers = ["198.51.100.21:21", "[2001:db8:100::21]:21"]
planes = ["relay"]
[service.limits]
per_client = 1000
"""
LAN = """
[[service]]
name = "lan"
mode = "forward"
listen = ["127.0.0.1:8021", "[::1]:8021"]
intercept = "tproxy"
clients = ["10.77.1.0/24", "fd77:1::/64"]
planes = [{planes}]
[service.limits]
per_client = 1000
"""
CONFIG = "/etc/ftpproxy.toml"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(Topology.CLIENT_NAT) as lab:
        yield lab


@pytest.fixture(scope="module")
def server(lab: Lab) -> Iterator[FtpServer]:
    with FtpServer(lab.server, content_of(OCTETS)) as server:
        yield server


@pytest.fixture(scope="module")
def machine(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    gateway = lab.gateways["client"]
    gateway.make_way()
    with ExitStack() as stack:
        try:
            prepare()
            machine = stack.enter_context(Machine(gateway, wheels(tmp_path_factory.mktemp("wheels"))))
        except CannotBoot as error:
            if "MUST_BOOT" in os.environ:
                raise
            pytest.skip(f"no machine can be booted here: {error}")
        yield machine


@contextmanager
def started(machine: Machine, config: str, *units: str) -> Iterator[None]:
    """`units` with that configuration, until the end of the block."""
    machine.write(CONFIG, config)
    machine.run("systemctl", "reset-failed")
    try:
        for unit in units:
            machine.run("systemctl", "start", unit)
        yield
    except BaseException:
        print(machine.run("journalctl", "--no-pager", "-n", "200", check=False))
        raise
    finally:
        for unit in reversed(units):
            machine.run("systemctl", "stop", unit, check=False)
        machine.run("systemctl", "stop", "ftpproxy-rules.service", check=False)


@contextmanager
def relay(machine: Machine) -> Iterator[str]:
    """The profile without privileges behind its socket unit; yields the unit's name."""
    with started(machine, FILES, "ftpproxy-relay.socket", "ftpproxy-relay.service"):
        yield "ftpproxy-relay.service"


@contextmanager
def kernel(machine: Machine, planes: str = '"nft"') -> Iterator[str]:
    """The profile with CAP_NET_ADMIN, TPROXY and the kernel's plane."""
    with started(machine, LAN.format(planes=planes), "ftpproxy.service"):
        yield "ftpproxy.service"


TRANSFERS = [Transfer(verb, version, up) for verb in ("EPRT", "EPSV") for version in (4, 6) for up in (False, True)]
INSIDE = {4: "10.77.1.1", 6: "fd77:1::1"}


def transfers_work(lab: Lab, server: FtpServer, *, inside: bool) -> None:
    """`inside`: the client calls the gateway, and not the server."""
    dialled = dict(lab.dialled)
    if inside:
        gateway = lab.gateways["client"]
        dialled = {
            version: at._replace(host=type(at.host)(gateway.inside_address(version))) for version, at in dialled.items()
        }
    outcomes = run(lab.client, dialled, server, TRANSFERS, timeout=30)
    assert {transfer: outcome.error for transfer, outcome in outcomes.items() if not outcome.ok} == {}


def test_without_any_privilege_behind_a_socket_unit(lab: Lab, server: FtpServer, machine: Machine) -> None:
    """Port 21 comes from systemd by the service's name; the process has no capability at all."""
    with relay(machine) as unit:
        status = machine.run("cat", f"/proc/{machine.show(unit, 'MainPID')}/status")
        assert "CapEff:\t0000000000000000" in status
        assert "NoNewPrivs:\t1" in status
        transfers_work(lab, server, inside=True)
        assert machine.show(unit, "StatusText").startswith("1 service, ")


def test_with_the_kernel_plane_and_rules(lab: Lab, server: FtpServer, machine: Machine) -> None:
    """The rules come with the service, and come back when the firewall is loaded again."""
    with kernel(machine) as unit:
        status = machine.run("cat", f"/proc/{machine.show(unit, 'MainPID')}/status")
        assert "CapEff:\t0000000000001000" in status  # CAP_NET_ADMIN
        transfers_work(lab, server, inside=False)
        assert "inet ftpproxy_intercept" in machine.run("nft", "list", "tables")


def main_pid(machine: Machine, unit: str) -> int:
    return int(machine.show(unit, "MainPID"))


def test_a_process_that_stands_still_is_replaced(lab: Lab, server: FtpServer, machine: Machine) -> None:
    machine.write("/etc/systemd/system/ftpproxy-relay.service.d/watchdog.conf", "[Service]\nWatchdogSec=3s\n")
    machine.run("systemctl", "daemon-reload")
    try:
        with relay(machine) as unit:
            before = main_pid(machine, unit)
            machine.run("kill", "-STOP", str(before))
            machine.until(lambda: main_pid(machine, unit) not in (0, before), "there is another process")
            machine.until(lambda: machine.show(unit, "ActiveState") == "active", "it is ready")
            assert "watchdog" in machine.journal(unit).lower()
            transfers_work(lab, server, inside=True)
    finally:
        machine.run("rm", "-r", "/etc/systemd/system/ftpproxy-relay.service.d")
        machine.run("systemctl", "daemon-reload")


KNOCKING = """
import json, socket, sys, time
failed, knocked, until = [], 0, None
import threading
go = threading.Event()
threading.Thread(target=lambda: (sys.stdin.readline(), go.set()), daemon=True).start()
print("knocking", flush=True)
while not go.is_set():
    try:
        with socket.create_connection((sys.argv[1], 21), 10) as sock:
            greeting = sock.recv(1000)
            if not greeting.startswith(b"220"):
                failed.append(repr(greeting))
    except OSError as error:
        failed.append(repr(error))
    knocked += 1
print(json.dumps([knocked, failed]))
"""


def test_reload_under_load(lab: Lab, server: FtpServer, machine: Machine) -> None:
    """Nobody is refused across reloads; a file with a mistake changes nothing and is named."""
    with relay(machine) as unit:
        pid = main_pid(machine, unit)
        client = lab.client.popen(
            sys.executable, "-c", KNOCKING, INSIDE[4], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert client.stdout is not None
        assert client.stdout.readline() == "knocking\n"
        for number in range(5):
            machine.write(CONFIG, FILES + f"sessions = {500 + number}\n")
            machine.run("systemctl", "reload", unit)
        machine.write(CONFIG, FILES + "sesions = 1\n")
        machine.run("systemctl", "reload", unit, check=False)
        machine.until(lambda: "did you mean sessions" in machine.journal(unit), "the mistake is in the log")
        out, _ = client.communicate("enough\n", timeout=60)
        knocked, failed = json.loads(out)
        assert failed == []
        assert knocked > 5
        assert main_pid(machine, unit) == pid
        assert machine.show(unit, "ActiveState") == "active"


@pytest.mark.parametrize("plane", ["relay", "nft"])
def test_restart_drops_nobody(lab: Lab, server: FtpServer, machine: Machine, plane: str) -> None:
    """`systemctl restart` amid 200 idle sessions and 20 running transfers: no control connection is closed, and every
    checksum is right."""
    with relay(machine) if plane == "relay" else kernel(machine) as unit:
        host = INSIDE[4] if plane == "relay" else str(lab.dialled[4].host)
        argv = [sys.executable, str(HERE / "load.py"), host, *map(str, (OCTETS, IDLE, DOWN, UP))]
        client = lab.client.popen(*argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment())
        assert client.stdout is not None
        assert client.stdout.readline() == "running\n"
        before = main_pid(machine, unit)
        machine.run("systemctl", "restart", unit)
        assert main_pid(machine, unit) not in (0, before)
        out, _ = client.communicate("go on\n", timeout=240)
        assert json.loads(out) == []


def test_one_process_a_session(lab: Lab, server: FtpServer, machine: Machine) -> None:
    """`Accept=yes`: systemd accepts, and each session is a process of its own."""
    machine.write("/etc/systemd/system/ftpproxy-inetd.socket.d/port.conf", "[Socket]\nListenStream=\nListenStream=21\n")
    machine.run("systemctl", "daemon-reload")
    try:
        with started(machine, FILES, "ftpproxy-inetd.socket"):
            transfers_work(lab, server, inside=True)
            machine.until(
                lambda: (
                    "ftpproxy-inetd@" not in machine.run("systemctl", "--no-legend", "list-units", "ftpproxy-inetd@*")
                ),
                "no process outlives its session",
            )
    finally:
        machine.run("rm", "-r", "/etc/systemd/system/ftpproxy-inetd.socket.d")
        machine.run("systemctl", "daemon-reload")
