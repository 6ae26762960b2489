"""A gateway whose inetd starts the proxy, a process for each session: xinetd, as Debian has it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ftpproxy.lab.network import Gateway, Lab, Topology
from ftpproxy.lab.peers import FtpServer, Transfer, environment, run
from ftpproxy.lab.proxy import forward

from .conftest import unavailable
from .deployments import until

pytestmark = pytest.mark.netns

FTPPROXY = (sys.executable, "-m", "ftpproxy")
TRANSFERS = [Transfer("PORT", 4), Transfer("PASV", 4)] + [
    Transfer(verb, version, up) for verb in ("EPRT", "EPSV") for version in (4, 6) for up in (False, True)
]
SERVICE = """\
service ftpproxy
{{
    id          = ftpproxy{version}
    type        = UNLISTED
    flags       = IPv{version} NAMEINARGS
    socket_type = stream
    protocol    = tcp
    bind        = {address}
    port        = 8021
    wait        = no
    user        = root
    server      = {program}
    server_args = {program} -m ftpproxy serve --inetd -c {file}
    env         = PYTHONPATH={path}
    instances   = UNLIMITED
    per_source  = UNLIMITED
    log_type    = FILE {file}.xinetd
    log_on_success = PID EXIT
}}
"""


@contextmanager
def xinetd(gateway: Gateway, file: Path) -> Iterator[None]:
    """It listens at the gateway's inside addresses."""
    services = file.with_suffix(".xinetd")
    services.write_text(
        "\n".join(
            SERVICE.format(
                version=version,
                address=gateway.inside_address(version),
                program=sys.executable,
                file=file,
                path=environment()["PYTHONPATH"],
            )
            for version in (4, 6)
        )
    )
    pid = file.with_suffix(".pid")
    process = gateway.popen("xinetd", "-dontfork", "-f", str(services), "-pidfile", str(pid))
    try:
        until(lambda: gateway.run("ss", "-Hltn", "sport = :8021").stdout.count("\n") == 2, "xinetd listens")
        yield
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def lab(namespaces: None) -> Iterator[Lab]:
    os.environ["PATH"] += os.pathsep + "/usr/sbin"
    if shutil.which("xinetd") is None:
        unavailable("xinetd is not installed (tests/system-packages.sh peers)")
    with Lab(Topology.CLIENT_NAT) as lab:
        yield lab


@pytest.mark.parametrize("intercept", ["redirect", "auto"])
def test_sessions_through_xinetd(lab: Lab, tmp_path: Path, intercept: str) -> None:
    """Several at once, which share the table for their data connections."""
    gateway = lab.gateways["client"]
    file = tmp_path / "ftpproxy.toml"
    ruled = forward(gateway, "redirect")
    file.write_text(ruled)
    gateway.make_way()
    gateway.run(*FTPPROXY, "rules", "-c", str(file), "--apply", env=environment(), check=True)
    file.write_text(f"log.format = 'syslog'\n{ruled.replace('redirect', intercept)}")
    try:
        with FtpServer(lab.server, b"content" * 100_000) as server, xinetd(gateway, file):
            outcomes = run(lab.client, lab.dialled, server, TRANSFERS, timeout=20)
            assert {each: outcomes[each].error for each in TRANSFERS} == dict.fromkeys(TRANSFERS, "")

            def ended() -> list[str]:
                """`EXIT: ftpproxy4 status=0 pid=7 duration=0(sec)`"""
                lines = Path(f"{file}.xinetd").read_text().splitlines()
                return [line.split("status=")[1].split()[0] for line in lines if " EXIT: " in line]

            until(lambda: len(ended()) == len(TRANSFERS), "every process ends with its session")
            assert set(ended()) == {"0"}
    finally:
        gateway.run(*FTPPROXY, "rules", "--remove", env=environment(), check=True)
