"""What is wrong with the service itself, its file, its ports and those it talks to."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ..netns.deployments import until
from .wards import Patient, Wards, started

pytestmark = [pytest.mark.netns, pytest.mark.usefixtures("operating_theatre")]

LISTENER = """
import socket, time
socks = []
for family, *at in {places!r}:
    sock = socket.socket(family)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(tuple(at))
    sock.listen()
    socks.append(sock)
print("ready", flush=True)
greeting = {greeting!r}
while greeting is None:
    time.sleep(1000)
while True:
    peer = socks[0].accept()[0]
    peer.sendall(greeting)
    peer.recv(100)
    peer.close()
"""


def listener(*places: tuple[int, str, int], greeting: bytes | None = None) -> str:
    return LISTENER.format(places=places, greeting=greeting)


def names(found: list[dict[str, str]]) -> list[tuple[str, str]]:
    return sorted({(each["name"], each["severity"]) for each in found})


@pytest.mark.parametrize("kind", ["tproxy", "redirect", "reverse"])
def test_nobody_listens(wards: Wards, kind: str) -> None:
    with wards.visit(kind) as patient, patient.stopped():
        (found,) = patient.findings()
        assert (found["name"], found["severity"]) == ("listener.absent", "hurts")
        assert ":8021" in found["what"] or ":21" in found["what"]
        assert found["mend"].startswith("ftpproxy serve -c /")
        places = [(2, "127.0.0.1", 8021), (10, "::1", 8021)]
        if kind == "tproxy":
            with patient.program(listener(*places)):
                assert names(patient.findings()) == [("listener.foreign", "hurts")]


def test_a_good_service_that_clients_call_by_name(wards: Wards) -> None:
    """Gateway mode."""
    config = """\
[[service]]
name = "named"
mode = "gateway"
intercept = "none"
listen = ["10.77.1.1:2121", "[fd77:1::1]:2121"]
clients = ["10.77.1.0/24", "fd77:1::/64"]
limits = { sessions = 100 }
[service.gateway]
destinations = ["198.51.100.0/24"]
"""
    with wards.visit("redirect") as patient, patient.serving(config) as file:
        assert patient.findings(file=file) == []
        patient.sh("nft insert rule inet filter input tcp dport 2121 drop")
        assert names(patient.findings(file=file)) == [("firewall", "hurts")]
        patient.proxy.make_way()


@pytest.mark.parametrize("kind", ["redirect", "nft"])
def test_the_maps_were_flushed(wards: Wards, kind: str) -> None:
    with wards.visit(kind) as patient:
        patient.proxy.process.send_signal(signal.SIGSTOP)  # or it would load them again within a second
        patient.sh("nft delete table inet ftpproxy")
        assert names(patient.findings()) == [("plane.missing", "hurts")]
        patient.proxy.process.send_signal(signal.SIGCONT)
        until(lambda: patient.findings() == [], "the proxy has loaded them again")


def test_the_rules_stand_elsewhere(wards: Wards) -> None:
    """Who has taken the rules over into tables of his own is not told that they are missing."""
    with wards.visit("tproxy") as patient:
        patient.sh("nft list table inet ftpproxy_intercept | sed s/ftpproxy_intercept/mine/ | nft -f -")
        patient.sh("nft delete table inet ftpproxy_intercept")
        assert names(patient.findings()) == [("rules.elsewhere", "worth knowing")]
        patient.sh("nft delete table inet mine")
        patient.proxy.command("rules", "-c", str(patient.proxy.file), "--apply")


def test_a_loop(wards: Wards) -> None:
    with wards.visit("reverse") as patient:
        config = patient.config.replace('listen = ["198.51.100.2:21"', 'listen = ["0.0.0.0:21"')
        config = config.replace("10.77.2.21:21", "198.51.100.2:21")
        with patient.serving(config) as file:
            found = patient.findings(file=file)
        assert names(found) == [("loop", "hurts")]
        assert "198.51.100.2:21 is this proxy itself" in found[0]["what"]


def test_data_ports_of_others(wards: Wards) -> None:
    with wards.visit("tproxy") as patient, patient.program(listener((2, "0.0.0.0", 25000), (10, "::1", 25000))):
        (found,) = patient.findings()
        assert names([found]) == [("data_ports.taken", "worth knowing")]
        assert found["what"].endswith(": 25000")
        file = patient.file(patient.config.replace("20000-29999", "25000-25000"))
        assert names(patient.findings(file=file)) == [("data_ports.taken", "hurts")]


def test_data_ports_that_the_kernel_gives_away(wards: Wards) -> None:
    with wards.visit("redirect") as patient:
        before = patient.sh("cat /proc/sys/net/ipv4/ip_local_port_range")
        patient.sh("echo 25000 60999 > /proc/sys/net/ipv4/ip_local_port_range")
        found = patient.findings()
        assert names(found) == [("data_ports.overlap", "worth knowing")]
        patient.follow([found[0] | {"mend": found[0]["mend"].replace("sysctl -w", "sysctl -q -w")}])
        assert patient.findings() == []
        patient.sh("echo > /proc/sys/net/ipv4/ip_local_reserved_ports")
        patient.sh(f"echo {before.strip()} > /proc/sys/net/ipv4/ip_local_port_range")


def test_privileges(wards: Wards) -> None:
    without = ("setpriv", "--bounding-set=-net_bind_service", "--inh-caps=-net_bind_service")
    with wards.visit("tproxy") as patient:
        with patient.serving(patient.config + "active_source_port = 20\n", *without) as file:
            (found,) = patient.findings(file=file)
        assert names([found]) == [("privileges", "hurts")]
        assert "CAP_NET_BIND_SERVICE" in found["what"]


def test_few_descriptors(wards: Wards) -> None:
    with wards.visit("reverse") as patient:
        process = str(patient.proxy.process.pid)
        soft = Path("/proc", process, "limits").read_text().split("Max open files")[1].split()[0]
        subprocess.run(["prlimit", "--pid", process, "--nofile=512:"], check=True)
        (found,) = patient.findings()
        assert names([found]) == [("descriptors", "worth knowing")]
        assert "512" in found["what"]
        subprocess.run(["prlimit", "--pid", process, f"--nofile={soft}:"], check=True)


def test_a_small_table_of_connections(wards: Wards) -> None:
    with wards.visit("reverse") as patient:
        most = int(Path("/proc/sys/net/netfilter/nf_conntrack_max").read_text())
        sessions = min(most // 10 + 1, 100_000)
        if 10 * sessions <= most:
            pytest.skip("this machine has a larger table than any service may want")
        file = patient.file(patient.config.replace("sessions = 100", f"sessions = {sessions}"))
        # So many sessions want more descriptors than the running proxy has, too.
        found = names(patient.findings(file=file))
        assert found == [("conntrack.small", "worth knowing"), ("descriptors", "worth knowing")]


FILL = """
import socket
from pathlib import Path
wanted = int(Path("/proc/sys/net/netfilter/nf_conntrack_max").read_text()) * 92 // 100
while wanted > 0:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_IP, 11, 0)  # IP_RECVERR: nobody there, and nobody to be told
        for port in range(1, min(wanted, 65000)):
            try:
                sock.sendto(b"", ("127.0.0.2", port))
            except OSError:
                pass
    wanted -= 65000
"""
FLUSH = """
from pyroute2.netlink.nfnetlink.nfctsocket import NFCTSocket
with NFCTSocket() as table:
    table.flush()
"""


def test_a_full_table_of_connections(wards: Wards) -> None:
    """For real: the largest that a program fills within seconds; UDP entries stay for thirty."""
    most = int(Path("/proc/sys/net/netfilter/nf_conntrack_max").read_text())
    if most > 300_000:
        pytest.skip("this machine has a larger table than a test should fill")
    with wards.visit("reverse") as patient:
        try:
            patient.gateway.run(sys.executable, "-c", FILL, check=True)
            (found,) = patient.findings()
        finally:
            patient.gateway.run(sys.executable, "-c", FLUSH, check=True)
        assert names([found]) == [("conntrack.full", "hurts")]
        assert patient.findings() == []


def test_a_clock_that_is_behind(wards: Wards) -> None:
    with wards.visit("tproxy") as patient:
        file = patient.file(patient.config)
        future = time.time() + 3 * 86400
        os.utime(file, (future, future))
        assert names(patient.findings(file=file)) == [("clock", "worth knowing")]


def test_addresses_that_are_not_there(wards: Wards) -> None:
    with wards.visit("reverse") as patient:
        strange = patient.config.replace("198.51.100.2:21", "192.0.2.9:21")
        assert names(patient.findings(file=patient.file(strange))) == [("address", "hurts")]
        file = patient.file(patient.config + 'source = "192.0.2.9"\n')
        (found,) = patient.findings(file=file)
        assert names([found]) == [("address", "hurts")]


@pytest.mark.parametrize(
    ("told", "severity"),
    [
        ("interface:none0", "hurts"),
        ("file:/nonexistent", "hurts"),
        ("127.0.0.1", "hurts"),
        ("10.9.9.9", "worth knowing"),
        ("interface:lan", None),
        ("203.0.113.5", None),
    ],
)
def test_announced_addresses(wards: Wards, told: str, severity: str | None) -> None:
    with wards.visit("reverse") as patient:
        file = patient.file(patient.config + f'announce = {{ client = "{told}" }}\n')
        found = patient.findings(file=file)
        assert names(found) == ([("announce", severity)] if severity else [])


def test_a_private_address_that_clients_are_told(wards: Wards) -> None:
    with wards.visit("reverse") as patient:
        patient.sh("ip address add 192.168.7.7/24 dev wan")
        with patient.program("import os; os.environ['x'] = 'ftpproxy'\n" + listener((2, "192.168.7.7", 21))) as process:
            del process
            file = patient.file(patient.config.replace("198.51.100.2:21", "192.168.7.7:21"))
            found = patient.findings(file=file)
        patient.sh("ip address del 192.168.7.7/24 dev wan")
        assert ("announce", "worth knowing") in names(found)


def unanswered(patient: Patient, port: int) -> list[dict[str, str]]:
    return patient.findings(file=patient.file(patient.config.replace("10.77.2.21:21", f"10.77.2.21:{port}")))


def test_a_server_that_does_not_run(wards: Wards) -> None:
    with wards.visit("reverse") as patient:
        (found,) = unanswered(patient, 2121)
        assert names([found]) == [("server", "hurts")]
        assert "cannot be called: Connection refused" in found["what"]


@pytest.mark.parametrize(
    ("greeting", "said"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "does not greet with 220: 'SSH-2.0-OpenSSH_9.2'"),
        (b"421 Too many users\r\n", "does not greet with 220: '421 Too many users'"),
        (None, "says nothing within 5 s"),
    ],
)
def test_a_server_that_does_not_greet(wards: Wards, greeting: bytes | None, said: str) -> None:
    with wards.visit("reverse") as patient:
        with started(patient.lab.server, listener((2, "10.77.2.21", 2121), greeting=greeting)):
            (found,) = unanswered(patient, 2121)
        assert names([found]) == [("server", "hurts")]
        assert said in found["what"]


def test_a_server_behind_a_firewall(wards: Wards) -> None:
    with wards.visit("reverse") as patient:
        drop = "table ip f { chain c { type filter hook input priority 0; tcp dport 2121 drop; }; }"
        patient.lab.server.run("nft", "-f", "-", input=drop, check=True)
        (found,) = unanswered(patient, 2121)
        patient.lab.server.run("nft", "delete table ip f", check=True)
        assert names([found]) == [("server", "hurts")]
        assert "does not answer within 5 s" in found["what"]


def test_without_nft(wards: Wards) -> None:
    with wards.visit("tproxy") as patient:
        hide = ("unshare", "--mount", "sh", "-c", 'mount --bind /dev/null "$(command -v nft)" && exec "$0" "$@"')
        done = patient.doctor("--json", before=hide)
        found = json.loads(done.stdout)
        assert (done.returncode, done.stderr) == (1, "")
        assert names(found) == [("kernel", "hurts"), ("not_seen", "not looked at")]
        assert found[0]["mend"] == "apt install nftables"
