"""NAT on both sides and a proxy on one of them: what the classic proxies cannot do, by checksum."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from ftpproxy.lab.hosts import Gateway
from ftpproxy.lab.network import Lab, Topology
from ftpproxy.lab.peers import FtpServer, Transfer, run
from ftpproxy.lab.proxy import Proxy, forward

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces as root"),
]

CONTENT = os.urandom(300_000)
PASSIVE_PORTS = "40000-40009"


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(Topology.BOTH_NAT) as lab:
        yield lab


def carried(lab: Lab, server: FtpServer, transfers: list[Transfer]) -> dict[str, str]:
    """The errors of transfers, by their names; empty for those that came through whole."""
    outcomes = run(lab.client, lab.dialled, server, transfers)
    return {f"{each.verb} {each.version} {'up' if each.up else 'down'}": outcomes[each].error for each in transfers}


def both_ways(verb: str, *versions: int) -> list[Transfer]:
    return [Transfer(verb, version, up) for version in versions for up in (False, True)]


def test_a_passive_client_and_a_server_that_only_calls(lab: Lab) -> None:
    """Item 90: in front of the server is a plain NAT that forwards port 21 and nothing else, so the server must call.
    The client is passive; without conversion it gets nowhere."""
    gateway = lab.gateways["client"]
    transfers = both_ways("PASV", 4) + both_ways("EPSV", 4, 6)
    with FtpServer(lab.server, CONTENT) as server:
        with Proxy(gateway, forward(gateway, "tproxy")):
            assert all(carried(lab, server, transfers[:1]).values())
        with Proxy(gateway, forward(gateway, "tproxy", 'translate = "active"')) as proxy:
            assert not any(carried(lab, server, transfers).values())
            assert proxy.carried(len(transfers))


def forbid_calls(gateway: Gateway, server_v4: str, server_v6: str) -> None:
    """The administrator of the server's gateway forwards a range of passive ports, and lets the server call nobody."""
    gateway.run(
        "nft",
        "-f",
        "-",
        check=True,
        input=f"""
table inet strict {{
    chain prerouting {{
        type nat hook prerouting priority dstnat - 10; policy accept;
        meta nfproto ipv4 iifname "wan" tcp dport {PASSIVE_PORTS} dnat ip to {server_v4}
        meta nfproto ipv6 iifname "wan" tcp dport {PASSIVE_PORTS} dnat ip6 to {server_v6}
    }}
    chain forward {{
        type filter hook forward priority filter - 10; policy accept;
        iifname "lan" ct state new tcp flags syn reject with tcp reset
    }}
}}
""",
    )


def test_an_active_client_and_a_server_that_must_not_call(lab: Lab) -> None:
    """Items 88, 91: the server's gateway forwards passive ports and lets the server call nobody; the client, behind
    another NAT, can only be active.  The server's 227 names its private address, which nobody needs."""
    forbid_calls(lab.gateways["server"], lab.server.address(4), lab.server.address(6))
    gateway = lab.gateways["client"]
    transfers = both_ways("PORT", 4) + both_ways("EPRT", 4, 6)
    with FtpServer(lab.server, CONTENT, "--passive-ports", PASSIVE_PORTS) as server:
        with Proxy(gateway, forward(gateway, "tproxy")):
            assert all(carried(lab, server, transfers[:1]).values())
        with Proxy(gateway, forward(gateway, "tproxy", 'translate = "passive"')) as proxy:
            assert not any(carried(lab, server, transfers).values())
            assert proxy.carried(len(transfers))
