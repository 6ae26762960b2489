"""What a start does to a proxy that runs already, and what it says about a machine that is not ready."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ftpproxy.lab.demo import configs
from ftpproxy.lab.network import Gateway, Lab, Topology
from ftpproxy.lab.peers import FtpServer, Transfer, environment, run
from ftpproxy.lab.proxy import Proxy

pytestmark = pytest.mark.netns

SECONDS = 30


@pytest.fixture
def lab(namespaces: None) -> Iterator[Lab]:
    with Lab(Topology.CLIENT_NAT) as lab:
        yield lab


def serve(gateway: Gateway, file: Path, config: str) -> subprocess.CompletedProcess[str]:
    """A `serve` that is expected to end by itself."""
    file.write_text(config)
    argv = [sys.executable, "-m", "ftpproxy", "serve", "-c", str(file)]
    return gateway.run(*argv, env=environment(), timeout=SECONDS)


def log_of_a_start(gateway: Gateway, file: Path, config: str) -> str:
    """What `serve` logs until it is ready."""
    file.write_text(config)
    argv = [sys.executable, "-m", "ftpproxy", "serve", "-c", str(file)]
    log = file.with_suffix(".log")
    with log.open("w") as stream:
        process = gateway.popen(*argv, stderr=stream, env=environment())
        deadline = time.monotonic() + SECONDS
        while " ready " not in log.read_text():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        process.wait(SECONDS)
    return log.read_text()


def test_a_second_start_leaves_the_first_in_peace(lab: Lab, tmp_path: Path) -> None:
    """Two services with `redirect` in two processes: one of them would flush the table of the other."""
    gateway = lab.gateways["client"]
    config = configs(lab, "redirect")[0][1]
    transfers = [Transfer(verb, version) for verb in ("EPRT", "EPSV") for version in (4, 6)]
    with FtpServer(lab.server, b"content" * 1000) as server, Proxy(gateway, config):
        for other in (config, config.replace(":8021", ":8022")):
            done = serve(gateway, tmp_path / "second.toml", other)
            assert done.returncode == 69
            assert done.stderr == (
                'ftpproxy: another ftpproxy with a "redirect" service or the plane "nft" runs in this network'
                " namespace; put the services into one file, or stop it first\n"
            )
        outcomes = run(lab.client, lab.dialled, server, transfers)
        assert [outcomes[transfer].error for transfer in transfers] == [""] * len(transfers)


def test_a_start_that_fails_leaves_no_table(lab: Lab, tmp_path: Path) -> None:
    gateway = lab.gateways["client"]
    config = configs(lab, "redirect")[0][1].replace("10.77.1.1:8021", "192.0.2.1:8021")
    done = serve(gateway, tmp_path / "ftpproxy.toml", config)
    assert done.returncode == 69
    assert "192.0.2.1 is not an address of this machine" in done.stderr
    assert "ftpproxy" not in gateway.run("nft", "list", "tables").stdout


@pytest.mark.parametrize("intercept", ["tproxy", "redirect"])
def test_missing_rules_are_a_warning(lab: Lab, tmp_path: Path, intercept: str) -> None:
    gateway = lab.gateways["client"]
    file, config = tmp_path / "ftpproxy.toml", configs(lab, intercept)[0][1]
    warning = 'warning rules.missing table="inet ftpproxy_intercept" hint="ftpproxy rules -c FILE --apply"'
    assert warning in log_of_a_start(gateway, file, config)
    gateway.run(sys.executable, "-m", "ftpproxy", "rules", "-c", str(file), "--apply", env=environment(), check=True)
    assert "rules.missing" not in log_of_a_start(gateway, file, config)


def test_shared_ports_are_a_warning(lab: Lab, tmp_path: Path) -> None:
    config = configs(lab, "tproxy")[0][1].replace("20000-29999", "20000-40000")
    log = log_of_a_start(lab.gateways["client"], tmp_path / "ftpproxy.toml", config)
    assert "warning data_ports.overlap service=lan data_ports=20000-40000 ip_local_port_range=32768-60999" in log
