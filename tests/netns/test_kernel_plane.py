"""Data connections that the kernel carries: real clients, real servers, and what must survive whom.

The administrator's forward chain drops what it does not know and has `ct status dnat accept`.
"""

from __future__ import annotations

import itertools
import json
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from ftpproxy.lab.demo import ROWS, configs
from ftpproxy.lab.hosts import DATA_PORTS
from ftpproxy.lab.network import Gateway, Host, Lab, Topology
from ftpproxy.lab.peers import FtpServer as LabServer
from ftpproxy.lab.peers import run
from ftpproxy.lab.proxy import Proxy, forward

from .clients import Site
from .deployments import KINDS, Deployment, state, until
from .dialogue import SECONDS, Control, call, drain, inside, listen
from .exercise import content, folder, make
from .servers import FtpServer

pytestmark = [pytest.mark.netns, pytest.mark.usefixtures("namespaces")]

NFT = ("nft",)
SERVER = "pyftpdlib"
BOTH_FAMILIES = pytest.mark.parametrize("version", [4, 6], ids=["ipv4", "ipv6"])


@pytest.fixture(scope="module")
def built() -> Iterator[dict[str, Deployment]]:
    with ExitStack() as stack:
        yield {kind: stack.enter_context(Deployment(kind, SERVER, planes=NFT)) for kind in KINDS}


@pytest.fixture(params=KINDS)
def deployment(request: pytest.FixtureRequest, built: dict[str, Deployment]) -> Iterator[Deployment]:
    found = built[request.param]
    with found.explained():
        yield found
    found.check_nothing_left()


def sets(gateway: Gateway) -> list[list[dict[str, Any]]]:
    """The elements of each map and set in our table, without the data that maps have."""
    listed = json.loads(gateway.run("nft", "-j", "list", "table", "inet", "ftpproxy", check=True).stdout)["nftables"]
    found = [item.get("map") or item.get("set") or {} for item in listed]
    return [[(each[0] if "map" in one else each)["elem"] for each in one.get("elem", [])] for one in found]


def elements(gateway: Gateway) -> int:
    """How many there are in our table."""
    return sum(map(len, sets(gateway)))


@BOTH_FAMILIES
def test_a_missing_file_leaves_the_data_connection(deployment: Deployment, version: int) -> None:
    """Item 75: a 550 without a 150 concerns the transfer; the endpoint serves the next one."""
    with folder(deployment.server, "here") as place:
        (place / "file").write_bytes(b"content" * 1000)
        with Control(deployment.client, deployment.site(version)).login() as control:
            port = control.extended_passive()
            control.say("RETR here/nothing", 550)
            with call(deployment.client, deployment.site(version).host, port) as data:
                assert control.retrieve("here/file", data) == b"content" * 1000
            control.quit()


@pytest.mark.parametrize("kind", KINDS)
def test_killed_in_the_middle(kind: str) -> None:
    """Items 93, 103: the proxy dies, the transfer does not; the next start takes over the table that was left.

    (The server decides whether it goes on when its control connection is gone: vsftpd does, pyftpdlib does not.)
    """
    size = 50_000_000
    with Deployment(kind, "vsftpd", planes=NFT) as deployment, ExitStack() as stack:
        make(deployment.server.files / "file", size)
        site = deployment.site(4)
        passive = stack.enter_context(Control(deployment.client, site).login())
        active = stack.enter_context(Control(deployment.client, site).login())
        streams = [stack.enter_context(call(deployment.client, *passive.passive()))]
        passive.say("RETR file", 125, 150)
        listener = stack.enter_context(listen(deployment.client, 4))
        active.port(listener)
        active.say("RETR file", 125, 150)
        streams.append(stack.enter_context(listener.accept()[0]))
        got = [stream.recv(1000) for stream in streams]
        deployment.proxy.process.send_signal(signal.SIGKILL)
        deployment.proxy.process.wait()
        expected = b"".join(content(size))
        for number, stream in enumerate(streams):
            stream.settimeout(SECONDS)
            assert got[number] + drain(stream) == expected
        left = [element for one in sets(deployment.gateway) for element in one]
        assert left
        assert all(0 < element["expires"] <= 300 for element in left), "it is gone in time"
        with Proxy(deployment.gateway, deployment.proxy.config):
            until(lambda: elements(deployment.gateway) == 0, "the table is taken over, empty")
            tables = deployment.gateway.run("nft", "list", "tables", check=True).stdout.split()
            assert tables.count("ftpproxy") == 1
            (deployment.server.files / "small").write_bytes(b"small")
            with Control(deployment.client, site).login() as control:
                with call(deployment.client, *control.passive()) as data:
                    assert control.retrieve("small", data) == b"small"
                control.quit()


@pytest.mark.parametrize("kind", KINDS)
def test_the_ruleset_is_flushed(kind: str) -> None:
    """Open sessions go on after `nft flush ruleset`: the endpoint that stood, and the next one."""
    with Deployment(kind, SERVER, planes=NFT) as deployment, deployment.explained():
        (deployment.server.files / "file").write_bytes(b"content")
        site = deployment.site(4)
        with Control(deployment.client, site).login() as control:
            place = control.passive()
            deployment.gateway.run("nft", "flush", "ruleset", check=True)
            deployment.proxy.make_way()
            deployment.proxy.command("rules", "-c", str(deployment.proxy.file), "--apply")
            until(lambda: "table.reloaded" in deployment.proxy.log, "it is noticed")
            with call(deployment.client, *place) as data:
                assert control.retrieve("file", data) == b"content"
            deployment.gateway.run("nft", "delete", "table", "inet", "ftpproxy")
            with call(deployment.client, *control.passive()) as data:
                assert control.retrieve("file", data) == b"content"
            control.quit()


@pytest.mark.parametrize("kind", KINDS)
def test_the_ruleset_is_flushed_in_the_middle(kind: str) -> None:
    """A firewall that is loaded anew in one transaction, as `nft -f` does it, costs no running transfer anything."""
    size = 50_000_000
    with Deployment(kind, "vsftpd", planes=NFT) as deployment, deployment.explained():
        make(deployment.server.files / "file", size)
        with Control(deployment.client, deployment.site(4)).login() as control:
            with call(deployment.client, *control.passive()) as data:
                control.say("RETR file", 125, 150)
                got = data.recv(1000)
                anew = "flush ruleset\n" + deployment.gateway.ruleset(proxied=True, carried=True)
                deployment.gateway.run("nft", "-f", "-", input=anew, check=True)
                deployment.proxy.command("rules", "-c", str(deployment.proxy.file), "--apply")
                assert got + drain(data) == b"".join(content(size))
            assert control.reply().code == 226
            control.quit()
        until(lambda: "session.close" in deployment.proxy.log, "the session ends")
        # What passed before the table was noticed to be gone, and loaded, is not in the count.
        assert re.search(r" transfer .* down=\d+ .* result=complete", deployment.proxy.log)


@pytest.mark.parametrize(("kind", "plane"), [*((kind, "nft") for kind in KINDS), ("redirect", "relay")])
def test_a_bare_flush_in_the_middle(kind: str, plane: str) -> None:
    """`nft flush ruleset` and nothing behind it takes all rules away, the administrator's too.  What is translated, a
    redirected control connection for instance, goes on; so do transfers, and the next ones."""
    size = 50_000_000
    with Deployment(kind, "vsftpd", planes=[plane]) as deployment, deployment.explained(), ExitStack() as stack:
        make(deployment.server.files / "file", size)
        idle, busy, running = (
            stack.enter_context(Control(deployment.client, deployment.site(4)).login()) for _ in range(3)
        )
        with call(deployment.client, *running.passive()) as data:
            running.say("RETR file", 125, 150)
            got = data.recv(1000)
            deployment.gateway.run("nft", "flush", "ruleset", check=True)
            busy.say("NOOP", 200)
            assert got + drain(data) == b"".join(content(size))
        assert running.reply().code == 226
        for control in (running, busy, idle):
            with call(deployment.client, *control.passive()) as data:
                assert control.retrieve("file", data) == b"".join(content(size))
            with listen(deployment.client, 4) as listener:
                control.port(listener)
                assert control.retrieve_active("file", listener)[0] == b"".join(content(size))
            control.quit()
        until(lambda: deployment.proxy.log.count("session.close") == 3, "the sessions end")
        log = deployment.proxy.log
        assert log.count("table.reloaded") == 1
        assert len(re.findall(r' transfer .*what="RETR file".* result=complete', log)) == 7, "each has its line"


INPUT = {
    "tproxy": "meta mark & 0x200000 == 0x200000 accept",
    "redirect": 'iifname "lan" tcp dport 8021 accept',
    "reverse": 'iifname "wan" tcp dport 21 accept',
}
"""What control connections need."""
DOCUMENT = Path(__file__).parents[2] / "docs" / "configuration.md"


@pytest.mark.parametrize("kind", KINDS)
def test_the_documented_line_is_enough(kind: str) -> None:
    """A forward chain with that line and nothing else, an input chain with no data port."""
    section = DOCUMENT.read_text().partition("\n## Planes\n")[2].partition("\n## ")[0]
    (line,) = re.findall(r"^```nft\n(.*?)\n```", section, re.MULTILINE | re.DOTALL)
    ruleset = f"""
        flush table inet filter
        table inet filter {{
            chain input {{
                ct state established,related accept
                iifname "lo" accept
                meta l4proto {{ icmp, ipv6-icmp }} accept
                {INPUT[kind]}
            }}
            chain forward {{
                ct state established,related accept
                {line}
            }}
        }}
    """
    topology = Topology.SERVER_NAT if kind == "reverse" else Topology.CLIENT_NAT
    transfers = [transfer for row in ROWS for transfer in row.transfers()]
    with Lab(topology) as lab, ExitStack() as stack:
        server = stack.enter_context(LabServer(lab.server, b"content" * 10_000))
        ((side, config),) = configs(lab, "tproxy" if kind == "reverse" else kind, NFT)
        proxy = stack.enter_context(Proxy(lab.gateways[side], config))
        lab.gateways[side].run("nft", "-f", "-", input=ruleset, check=True)
        outcomes = run(lab.client, lab.dialled, server, transfers)
        if failed := [f"{transfer}: {outcome}" for transfer, outcome in outcomes.items() if not outcome.ok]:
            evidence = "".join(host.evidence() for host in lab.hosts)
            pytest.fail("\n".join([*failed, "--- proxy", proxy.log, "--- server", server.log, evidence]))
        lab.gateways[side].run("nft", "flush", "chain", "inet", "filter", "forward", check=True)
        outcomes = run(lab.client, lab.dialled, server, transfers[:2], timeout=1.0)
        assert not any(outcome.ok for outcome in outcomes.values())


@pytest.mark.parametrize(("intercept", "plane"), [("tproxy", "nft"), ("tproxy", "relay"), ("redirect", "relay")])
def test_200_clients_on_4_ports(intercept: str, plane: str) -> None:
    """A port is one client's at a time, and every client's: 200 endpoints are offered on 4 ports, and all serve.

    Each client gets its own file; those who call last are those who were told first.
    """
    with Lab(Topology.CLIENT_NAT) as lab, ExitStack() as stack:
        gateway = lab.gateways["client"]
        server = stack.enter_context(FtpServer(SERVER, lab.server))
        config = forward(gateway, intercept, planes=[plane]).replace(DATA_PORTS, "20000-20003")
        proxy = stack.enter_context(Proxy(gateway, config + "[service.limits]\nsessions = 200\n"))
        sources = [f"10.77.1.{number}" for number in range(51, 251)]
        for source in sources:
            (server.files / source).write_text(f"for {source}")
        lines = "".join(f"address add {source}/24 dev eth0\n" for source in sources)
        lab.client.run("ip", "-batch", "-", input=lines, check=True)
        site = Site(lab.server_address(4), 4)
        before = state(gateway)
        with inside(lab.client), ExitStack() as clients:
            controls = [clients.enter_context(Numbered(lab.client, site, source)) for source in sources]
            places = [control.login().passive() for control in controls]
            assert {port for _, port in places} <= {20000, 20001, 20002, 20003}
            for control, place in reversed(list(zip(controls, places, strict=True))):
                data = socket.create_connection(place, timeout=SECONDS, source_address=(control.source, 0))
                assert control.retrieve(control.source, data) == f"for {control.source}".encode()
                control.quit()
        assert proxy.carried(200)
        until(lambda: state(gateway) == before, "nothing is left")


def test_both_planes_at_one_place() -> None:
    """One client of the relay and one of the kernel's, told the same address and port: neither gets into the other's
    way, nor cuts what runs there already."""
    size = 20_000_000
    with Lab(Topology.CLIENT_NAT) as lab, ExitStack() as stack:
        gateway = lab.gateways["client"]
        server = stack.enter_context(FtpServer(SERVER, lab.server))
        make(server.files / "file", size)
        services = [
            forward(gateway, "tproxy", planes=[plane])
            .replace(DATA_PORTS, "20000-20000")
            .replace('"lan"', f'"{plane}"')
            .replace(":8021", f":{port}")
            .replace('"10.77.1.0/24", "fd77:1::/64"', f'"{client}", "fd77:1::{port}"')
            for plane, port, client in (("nft", 8021, "10.77.1.2"), ("relay", 8022, "10.77.1.3"))
        ]
        proxy = stack.enter_context(Proxy(gateway, "\n".join(services)))
        lab.client.run("ip", "address", "add", "10.77.1.3/24", "dev", "eth0", check=True)
        site = Site(lab.server_address(4), 4)
        place = site.host, 20000
        with inside(lab.client):
            kernels, relays = (
                stack.enter_context(Numbered(lab.client, site, client)).login() for client in ("10.77.1.2", "10.77.1.3")
            )
            pairs = (kernels, relays), (relays, kernels)
            for number, (pair, together) in enumerate(itertools.product(pairs, (False, True))):
                assert proxy.carried(2 * number)  # a port is the same client's again when its transfer is over
                promised = [control.passive() for control in pair] if together else []
                streams = []
                for control in pair:  # the second is told while the first carries, or both are told before
                    promised += [] if together else [control.passive()]
                    data = socket.create_connection(place, timeout=SECONDS, source_address=(control.source, 0))
                    streams.append(stack.enter_context(data))
                    control.say("RETR file", 125, 150)
                assert promised == [place, place]
                for control, data in zip(pair, streams, strict=True):
                    assert drain(data) == b"".join(content(size))
                    data.close()
                    assert control.reply().code == 226
        assert proxy.carried(8)
        assert set(re.findall(r" transfer .* plane=(\w+)", proxy.log)) == {"nft", "relay"}


class Numbered(Control):
    """A control connection from one of many addresses, in whose namespace the thread is already."""

    def __init__(self, host: Host, site: Site, source: str) -> None:
        self.host = host
        self.site = site
        self.source = source
        self.socket = socket.create_connection((site.host, site.port), timeout=SECONDS, source_address=(source, 0))
        self._lines = self.socket.makefile("rb")


def test_it_costs_no_time_of_ours() -> None:
    """A GiB is a few milliseconds of this process, most of them for its dialogue; the relay needs 300 and more."""
    with Deployment("redirect", SERVER, planes=NFT) as deployment, deployment.explained():
        with (deployment.server.files / "gibibyte").open("wb") as file:
            file.truncate(1 << 30)
        with Control(deployment.client, deployment.site(4)).login() as control:
            place = control.passive()
            before = cpu(deployment.proxy.process.pid)
            with call(deployment.client, *place) as data:
                control.say("RETR gibibyte", 125, 150)
                got = 0
                while octets := data.recv(1 << 24, socket.MSG_TRUNC):  # tcp(7): thrown away unseen
                    got += len(octets)
            assert control.reply().code == 226
            spent = cpu(deployment.proxy.process.pid) - before
            control.quit()
        assert got == 1 << 30
        assert spent < 0.010  # 1 to 2 ms on an idle machine


def cpu(pid: int) -> float:
    """Seconds of processor time (proc_pid_schedstat: nanoseconds on the processor)."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def test_what_the_kernel_cannot_carry_is_relayed() -> None:
    """Two awaited legs: the relay gets them, and the reason is said once a session."""
    with Deployment("tproxy", SERVER, 'translate = "active"', planes=("nft", "relay")) as deployment:
        (deployment.server.files / "file").write_bytes(b"content")
        with Control(deployment.client, deployment.site(4)).login() as control:
            for _ in range(2):
                with call(deployment.client, *control.passive()) as data:
                    assert control.retrieve("file", data) == b"content"
            with listen(deployment.client, 4) as listener:
                control.port(listener)
                assert control.retrieve_active("file", listener)[0] == b"content"
            control.quit()
        until(lambda: "session.close" in deployment.proxy.log, "the session ends")
        log = deployment.proxy.log
        assert re.findall(r" transfer .* plane=(\w+)", log) == ["relay", "relay", "nft"]
        assert len(re.findall(r"info data\.refused .* plane=nft .*reason=", log)) == 1
        deployment.check_nothing_left()
