"""ftp-proxy(8)'s line on a gateway: it finds out by itself how connections come, and shares the gateway with others."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from ftpproxy.lab.demo import configs
from ftpproxy.lab.network import Gateway, Lab, Topology
from ftpproxy.lab.peers import FtpServer, Transfer, environment, run

from .deployments import until

pytestmark = pytest.mark.netns

SECONDS = 30
FTPPROXY = (sys.executable, "-m", "ftpproxy")
TRANSFERS = [Transfer("PORT", 4), Transfer("PASV", 4)] + [
    Transfer(verb, version) for verb in ("EPRT", "EPSV") for version in (4, 6)
]


@pytest.fixture
def lab(namespaces: None) -> Iterator[Lab]:
    with Lab(Topology.CLIENT_NAT) as lab:
        yield lab


@contextmanager
def rules(gateway: Gateway, lab: Lab, kind: str, file: Path) -> Iterator[None]:
    """The rules that an administrator has, whatever the proxy knows of them."""
    file.write_text(configs(lab, kind)[0][1])
    gateway.make_way()
    gateway.run(*FTPPROXY, "rules", "-c", str(file), "--apply", env=environment(), check=True)
    try:
        yield
    finally:
        gateway.run(*FTPPROXY, "rules", "--remove", env=environment(), check=True)


@contextmanager
def daemon(gateway: Gateway, *flags: str, by: Sequence[str] = ()) -> Iterator[int]:
    """It in the background, started `by` a program, and its process id; the line has returned, so it is ready."""
    before = _pids(gateway)
    done = gateway.run(*by, *FTPPROXY, *flags, env=environment(), timeout=SECONDS)
    started = _pids(gateway) - before
    try:
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        (pid,) = started
        yield pid
    finally:
        for each in started & _pids(gateway):
            os.kill(each, signal.SIGTERM)
        until(lambda: not started & _pids(gateway), "the daemon ends at SIGTERM")


def _pids(gateway: Gateway) -> set[int]:
    found = set()
    wanted = Path("/run/netns", gateway.namespace).stat().st_ino
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and (entry / "ns/net").stat().st_ino == wanted:
                found.add(int(entry.name))
        except OSError:
            continue  # it has ended
    return found


@pytest.mark.parametrize("kind", ["tproxy", "redirect"])
def test_both_families_at_once_by_flags_alone(lab: Lab, tmp_path: Path, kind: str) -> None:
    gateway = lab.gateways["client"]
    at = ["127.0.0.1", "::1"] if kind == "tproxy" else [gateway.inside_address(4), gateway.inside_address(6)]
    flags = [word for address in at for word in ("-b", address)]
    with rules(gateway, lab, kind, tmp_path / "rules.toml"), FtpServer(lab.server, b"content" * 1000) as server:
        with daemon(gateway, *flags) as pid:
            outcomes = run(lab.client, lab.dialled, server, TRANSFERS)
            assert {transfer: outcomes[transfer].error for transfer in TRANSFERS} == dict.fromkeys(TRANSFERS, "")
            descriptors = {os.readlink(f"/proc/{pid}/fd/{number}") for number in (0, 1, 2)}
            assert (os.getsid(pid), descriptors, os.readlink(f"/proc/{pid}/cwd")) == (pid, {"/dev/null"}, "/")
        assert "table inet ftpproxy\n" not in gateway.run("nft", "list", "tables").stdout, "nothing is left"


def test_a_process_for_each_family_and_the_first_one_goes(lab: Lab, tmp_path: Path) -> None:
    """They share the table of data connections, and the one that stays takes it over."""
    gateway = lab.gateways["client"]
    four, six = gateway.inside_address(4), gateway.inside_address(6)
    with rules(gateway, lab, "redirect", tmp_path / "rules.toml"), FtpServer(lab.server, b"content" * 1000) as server:
        with daemon(gateway, "-p", "8021", "-b", four) as first, daemon(gateway, "-6", "-b", six):
            outcomes = run(lab.client, lab.dialled, server, TRANSFERS)
            assert [outcome.error for outcome in outcomes.values()] == [""] * len(TRANSFERS)
            os.kill(first, signal.SIGTERM)
            until(lambda: first not in _pids(gateway), "it ends")
            left = [transfer for transfer in TRANSFERS if transfer.version == 6]
            outcomes = run(lab.client, lab.dialled, server, left)
            assert [outcome.error for outcome in outcomes.values()] == [""] * len(left)
        assert "table inet ftpproxy\n" not in gateway.run("nft", "list", "tables").stdout


def test_without_the_right_to_nftables(lab: Lab, tmp_path: Path) -> None:
    """CAP_NET_RAW is enough where `tproxy` brings the connections."""
    gateway = lab.gateways["client"]
    with (
        rules(gateway, lab, "tproxy", tmp_path / "rules.toml"),
        FtpServer(lab.server, b"content" * 1000) as server,
        daemon(gateway, "-b", "127.0.0.1", "-b", "::1", by=["setpriv", "--bounding-set=-net_admin"]),
    ):
        assert "table inet ftpproxy\n" not in gateway.run("nft", "list", "tables").stdout
        outcomes = run(lab.client, lab.dialled, server, TRANSFERS)
        assert {transfer: outcomes[transfer].error for transfer in TRANSFERS} == dict.fromkeys(TRANSFERS, "")


def test_a_start_that_fails_is_told_on_the_terminal(lab: Lab) -> None:
    gateway = lab.gateways["client"]
    with daemon(gateway):
        done = gateway.run(*FTPPROXY, env=environment(), timeout=SECONDS)
        assert done.returncode == 69
        assert done.stderr.splitlines()[-1] == (
            'ftpproxy: service "ftp-proxy", 127.0.0.1:8021: another process listens there already'
            " (ss -ltnp 'sport = :8021')"
        )
