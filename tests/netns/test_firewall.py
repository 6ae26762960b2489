"""What docs/configuration.md says under "Firewall", loaded into gateways whose chains drop everything else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from ftpproxy.lab.demo import configs
from ftpproxy.lab.network import Gateway, Lab, Topology
from ftpproxy.lab.peers import FtpServer, Transfer, run
from ftpproxy.lab.proxy import Proxy

pytestmark = [pytest.mark.netns, pytest.mark.usefixtures("namespaces")]

DOCUMENT = Path(__file__).parents[2] / "docs" / "configuration.md"
KINDS = ("tproxy", "redirect", "none")
"""The order of the blocks there."""
ACTIVE = [Transfer("PORT", 4), Transfer("EPRT", 4), Transfer("EPRT", 6)]
PASSIVE = [Transfer("PASV", 4), Transfer("EPSV", 4), Transfer("EPSV", 6)]
SECONDS = 3.0


def documented(kind: str) -> list[str]:
    """The lines for the input chain: what the clients need, what the servers need."""
    section = DOCUMENT.read_text().partition("\n## Firewall\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```nft\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    assert len(blocks) == len(KINDS)
    clients, servers = blocks[KINDS.index(kind)].splitlines()
    return [clients, servers]


def drop_all_but(gateway: Gateway, lines: list[str]) -> None:
    ruleset = "\n".join(
        [
            "table inet filter",
            "delete table inet filter",
            "table inet filter {",
            "chain input {",
            "type filter hook input priority filter; policy drop;",
            "ct state established,related accept",
            'iifname "lo" accept',
            "meta l4proto { 1, 58 } accept",  # ICMP of both families
            *lines,
            "}",
            "chain forward { type filter hook forward priority filter; policy drop; }",
            "}\n",
        ]
    )
    gateway.run("nft", "-f", "-", input=ruleset, check=True)


@contextmanager
def stage(kind: str, lines: list[str]) -> Iterator[tuple[Lab, FtpServer]]:
    side = "server" if kind == "none" else "client"
    with ExitStack() as stack:
        lab = stack.enter_context(Lab(Topology.SERVER_NAT if kind == "none" else Topology.CLIENT_NAT))
        server = stack.enter_context(FtpServer(lab.server, b"content" * 10_000))
        gateway = lab.gateways[side]
        stack.enter_context(Proxy(gateway, configs(lab, "tproxy" if kind == "none" else kind)[0][1]))
        drop_all_but(gateway, lines)
        yield lab, server


@pytest.mark.parametrize("kind", KINDS)
def test_the_documented_lines_are_enough(kind: str) -> None:
    with stage(kind, documented(kind)) as (lab, server):
        outcomes = run(lab.client, lab.dialled, server, ACTIVE + PASSIVE)
    assert [outcomes[transfer].error for transfer in ACTIVE + PASSIVE] == [""] * 6


@pytest.mark.parametrize("kind", KINDS)
def test_without_the_line_for_servers_active_mode_fails(kind: str) -> None:
    """The mark of "tproxy", for one, is not enough: what servers call is the gateway's own address."""
    with stage(kind, documented(kind)[:1]) as (lab, server):
        outcomes = run(lab.client, lab.dialled, server, ACTIVE + PASSIVE, timeout=SECONDS)
    assert [outcomes[transfer].ok for transfer in ACTIVE + PASSIVE] == [False] * 3 + [True] * 3
