"""Looking at and reloading a proxy while the kernel carries."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from ftpproxy.control.caller import Caller, CallFailed
from ftpproxy.lab.network import Gateway, Lab, Topology
from ftpproxy.lab.peers import FtpServer
from ftpproxy.lab.proxy import Proxy, forward

from .clients import Site
from .deployments import until
from .dialogue import Control, call
from .test_restart import restarted

pytestmark = pytest.mark.netns

PATIENCE = 20.0
OCTETS = 64 << 20
"""More than the sockets at both ends hold."""


@pytest.fixture
def lab(namespaces: None) -> Iterator[Lab]:
    with Lab(Topology.CLIENT_NAT) as lab:
        yield lab


def load(proxy: Proxy) -> dict[str, Any]:
    """The data connection of the only session; nothing if there is none that carries."""
    with Caller(str(proxy.socket)) as caller:
        sessions = caller.ask("sessions")
    found: dict[str, Any] = sessions[0]["load"] if sessions and sessions[0]["load"] else {}
    return found if found.get("up") else {}


def grows_beyond(proxy: Proxy, octets: int) -> dict[str, Any]:
    deadline = time.monotonic() + PATIENCE
    while (found := load(proxy)).get("octets", 0) <= octets:
        assert time.monotonic() < deadline, f"{found}\n{proxy.log}"
        time.sleep(0.05)
    return found


def test_a_transfer_of_the_kernel_is_counted_and_survives_a_reload(lab: Lab, tmp_path: Path) -> None:
    gateway = lab.gateways["client"]
    config = forward(gateway, "tproxy", planes=("nft", "relay"))
    with ExitStack() as stack:
        server = stack.enter_context(FtpServer(lab.server, bytes(OCTETS)))
        proxy = stack.enter_context(Proxy(gateway, config))
        got = tmp_path / "got"
        url = f"ftp://lab:lab@{lab.server_address(4)}/sample"
        curl = lab.client.popen("curl", "-sS", "--limit-rate", "20M", "-o", str(got), url)
        stack.callback(curl.wait)
        stack.callback(curl.kill)
        before = grows_beyond(proxy, 0)
        assert (before["plane"], before["direction"], before["exact"]) == ("nft", "down", False)
        text = proxy.file.read_text()
        proxy.file.write_text(text.replace('planes = ["nft", "relay"]', 'planes = ["relay"]'))
        with Caller(str(proxy.socket)) as caller:
            caller.ask("reload")
            assert caller.ask("reload")["notes"] == []  # nothing is different now
        assert grows_beyond(proxy, before["octets"])["plane"] == "nft"
        proxy.file.write_text(text.replace('clients = ["10.77.1.0/24"', 'clients = ["10.77.1.0/25"'))
        with Caller(str(proxy.socket)) as caller:
            notes = caller.ask("reload")["notes"]
            assert notes == ["the redirect rules have changed: ftpproxy rules -c FILE --apply"]
        assert curl.wait(PATIENCE) == 0
        assert got.stat().st_size == OCTETS == len(server.content)
        assert proxy.carried(1)
        assert "plane=nft" in proxy.log


def test_what_needs_the_table_for_the_first_time_is_refused(lab: Lab) -> None:
    gateway = lab.gateways["client"]
    with Proxy(gateway, forward(gateway, "tproxy")) as proxy:
        text = proxy.file.read_text()
        proxy.file.write_text(text.replace('planes = ["relay"]', 'planes = ["nft", "relay"]'))
        with Caller(str(proxy.socket)) as caller, pytest.raises(CallFailed) as refused:
            caller.ask("reload")
        assert refused.value.code == 78
        (problem,) = refused.value.answer["problems"]
        assert problem.endswith('service "lan": the table in nftables is made at the start only: restart')


def tables(gateway: Gateway) -> set[str]:
    """Those of ours."""
    listed = gateway.run("nft", "list", "tables", check=True).stdout.split()
    return {name for name in listed if name.startswith("ftpproxy")}


def test_a_table_goes_when_nobody_needs_it_and_comes_again(lab: Lab) -> None:
    """The administrator's rules stay; a session keeps the table for as long as it lasts."""
    gateway = lab.gateways["client"]
    everything = {"ftpproxy_intercept", "ftpproxy", "ftpproxy_nat"}
    with FtpServer(lab.server, b"content"), Proxy(gateway, forward(gateway, "tproxy", planes=("nft",))) as proxy:
        kernels = proxy.file.read_text()
        relays = kernels.replace('planes = ["nft"]', 'planes = ["relay"]')
        site = Site(lab.server_address(4), 4)
        with Control(lab.client, site) as control, Caller(str(proxy.socket)) as caller:
            log_in(control)
            proxy.file.write_text(relays)
            caller.ask("reload")
            with call(lab.client, *control.passive()) as data:
                assert control.retrieve("sample", data) == b"content"
            assert tables(gateway) == everything
        until(lambda: tables(gateway) == {"ftpproxy_intercept"}, "nobody is in the services of before")
        with Control(lab.client, site) as control, Caller(str(proxy.socket)) as caller:
            proxy.file.write_text(kernels)
            caller.ask("reload")
            log_in(control)
        with Control(lab.client, site) as control:
            log_in(control)
            with call(lab.client, *control.passive()) as data:
                assert control.retrieve("sample", data) == b"content"
            until(lambda: tables(gateway) == everything, "it is there again")
            until(lambda: proxy.log.count(" transfer ") == 2, "what is carried is logged")
            proxy.file.write_text(relays)
            restarted(proxy)
            assert tables(gateway) == {"ftpproxy_intercept"}
            with call(lab.client, *control.passive()) as data:
                assert control.retrieve("sample", data) == b"content"
        until(lambda: proxy.log.count(" transfer ") == 3, "all are logged")
        assert re.findall(r" transfer .* plane=(\w+)", proxy.log) == ["nft", "nft", "relay"]


def test_without_a_table_that_nobody_can_flush(lab: Lab) -> None:
    """`keep_nat = false`, from the next process on."""
    gateway = lab.gateways["client"]
    with Proxy(gateway, forward(gateway, "tproxy", planes=("nft",))) as proxy:
        assert "ftpproxy_nat" in tables(gateway)
        proxy.file.write_text(proxy.file.read_text() + "[process]\nkeep_nat = false\n")
        restarted(proxy)
        until(lambda: tables(gateway) == {"ftpproxy_intercept", "ftpproxy"}, "it goes without")


def log_in(control: Control) -> None:
    """At the lab's server."""
    assert control.reply().code == 220
    control.say("USER lab", 331)
    control.say("PASS lab", 230)
    control.say("TYPE I", 200)
