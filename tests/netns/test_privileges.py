"""A proxy that gives its privileges up still does everything that its configuration says."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ftpproxy.lab.demo import configs
from ftpproxy.lab.network import Lab, Topology
from ftpproxy.lab.peers import FtpServer, Transfer, run
from ftpproxy.lab.proxy import Proxy
from ftpproxy.privileges import Capability, find, has_other_users

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0 or not has_other_users(), reason="needs root with other users to become"),
]

USER = "nobody"
PATIENCE = 10
TRANSFERS = [Transfer(verb, version) for verb in ("EPRT", "EPSV") for version in (4, 6)]


@pytest.fixture
def lab(namespaces: None) -> Iterator[Lab]:
    with Lab(Topology.CLIENT_NAT) as lab:
        yield lab


@pytest.mark.parametrize(
    ("intercept", "planes", "kept"),
    [
        ("tproxy", ["relay"], {Capability.CAP_NET_RAW}),
        ("redirect", ["relay"], {Capability.CAP_NET_ADMIN}),
        ("tproxy", ["nft"], {Capability.CAP_NET_RAW, Capability.CAP_NET_ADMIN}),
    ],
    ids=["tproxy", "redirect", "nft"],
)
def test_as_an_ordinary_user(lab: Lab, intercept: str, planes: list[str], kept: set[Capability]) -> None:
    config = configs(lab, intercept, planes)[0][1] + f'\n[process]\nuser = "{USER}"\n'
    with FtpServer(lab.server, b"content" * 1000) as server, Proxy(lab.gateways["client"], config) as proxy:
        status = Path(f"/proc/{proxy.process.pid}/status").read_text()
        outcomes = run(lab.client, lab.dialled, server, TRANSFERS)
        assert [outcomes[transfer].error for transfer in TRANSFERS] == [""] * len(TRANSFERS)
        lines = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        account = find(USER)
        assert account is not None
        assert lines["Uid"].split() == [str(account.uid)] * 4
        assert int(lines["CapEff"], 16) == int(lines["CapBnd"], 16) == sum(1 << each for each in kept)
        if Capability.CAP_NET_ADMIN in kept:  # who may load the table again, if the administrator has flushed it
            lab.gateways["client"].run("nft", "delete", "table", "inet", "ftpproxy")
            deadline = time.monotonic() + PATIENCE
            while "table.reloaded" not in proxy.log:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            outcomes = run(lab.client, lab.dialled, server, TRANSFERS)
            assert [outcomes[transfer].error for transfer in TRANSFERS] == [""] * len(TRANSFERS)
