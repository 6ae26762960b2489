"""Firewalls that drop everything they do not know, and the one line of `ftpproxy rules --chain` that lets data in."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from ftpproxy.holes import COMMENT
from ftpproxy.lab.hosts import LabError

from .deployments import KINDS, Deployment, until
from .dialogue import Control, inside, listen
from .test_kernel_plane import elements
from .test_restart import restart

pytestmark = [pytest.mark.netns, pytest.mark.usefixtures("namespaces")]

CONTROL = {
    "tproxy": "meta mark & 0x200000 == 0x200000 accept",
    "redirect": 'iifname "lan" tcp dport 8021 accept',
    "reverse": 'iifname "wan" tcp dport 21 accept',
}
"""What control connections need."""
NOT_LET_IN = 1.0
"""Seconds in which a call that is let in has been answered."""


@contextmanager
def walled(kind: str, plane: str, lines: str, *more: str) -> Iterator[Deployment]:
    """The proxy behind chains that drop all but `lines` in input, and answers."""
    with Deployment(kind, "pyftpdlib", *more, planes=[plane]) as deployment, deployment.explained():
        (deployment.server.files / "file").write_bytes(b"content" * 1000)
        wall = f"""
            flush table inet filter
            table inet filter {{
                chain input {{
                    ct state established,related accept
                    iifname "lo" accept
                    meta l4proto {{ 1, 58 }} accept
                    {lines}
                }}
                chain forward {{
                    ct state established,related accept
                }}
            }}
        """
        deployment.gateway.run("nft", "-f", "-", input=wall, check=True)
        yield deployment


def rules(deployment: Deployment, *options: str) -> None:
    deployment.proxy.command("rules", "-c", str(deployment.proxy.file), *options)


def ours(deployment: Deployment, chain: str) -> list[int]:
    """Where in the chain lines of ours stand, the first is 0."""
    listed = deployment.gateway.run("nft", "list", "chain", "inet", "filter", chain, check=True).stdout
    lines = listed.partition("policy drop;\n")[2].splitlines()
    return [number for number, line in enumerate(lines) if COMMENT in line]


def reached(deployment: Deployment, place: tuple[str, int], source: str = "") -> socket.socket | None:
    """A call of the client's, from one of its addresses perhaps; None if nobody answers it in time."""
    with inside(deployment.client):
        try:
            return socket.create_connection(place, timeout=NOT_LET_IN, source_address=(source, 0) if source else None)
        except TimeoutError:
            return None


def transfers(deployment: Deployment, version: int) -> None:
    """One passive, one active."""
    site = deployment.site(version)
    with Control(deployment.client, site).login() as control:
        data = reached(deployment, (site.host, control.extended_passive()))
        assert data is not None
        assert control.retrieve("file", data) == b"content" * 1000
        with listen(deployment.client, version) as listener:
            control.extended_port(listener)
            assert control.retrieve_active("file", listener)[0] == b"content" * 1000
        control.quit()


def opened(deployment: Deployment) -> None:
    """Nothing passes without the line; with it both modes of both families do, and it stands once."""
    with Control(deployment.client, deployment.site(4)).login() as control:
        assert reached(deployment, control.passive()) is None
    for _ in range(2):
        rules(deployment, "--apply", "--chain", "inet/filter/forward")
        assert ours(deployment, "forward") == [0]
    for version in (4, 6):
        transfers(deployment, version)


@pytest.mark.parametrize("kind", ["tproxy", "reverse"])
def test_the_kernels_connections_pass_a_forward_chain(kind: str) -> None:
    """Without the line nothing, with it both modes of both families; it stands once, and goes as it came."""
    with walled(kind, "nft", CONTROL[kind]) as deployment:
        before = deployment.gateway.run("nft", "list", "chain", "inet", "filter", "forward", check=True).stdout
        opened(deployment)
        rules(deployment, "--remove", "--chain", "inet/filter/forward")
        assert deployment.gateway.run("nft", "list", "chain", "inet", "filter", "forward", check=True).stdout == before
        assert "table inet ftpproxy\n" in deployment.gateway.run("nft", "list", "tables", check=True).stdout


@pytest.mark.parametrize("kind", KINDS)
def test_the_kernels_connections_pass_by_their_mark(kind: str) -> None:
    """With nothing else in the chain; and what others translate does not."""
    with walled(kind, "nft", CONTROL[kind], "firewall_mark = true") as deployment:
        gateway = deployment.gateway
        gateway.run("nft", "flush", "chain", "inet", "filter", "forward", check=True)
        opened(deployment)
        elsewhere = f"""
            table inet other {{
                chain prerouting {{
                    type nat hook prerouting priority dstnat; policy accept;
                    tcp dport 99 dnat ip to {deployment.lab.server.address(4)}:21
                }}
            }}
        """
        gateway.run("nft", "-f", "-", input=elsewhere, check=True)
        other = gateway.address(4) if kind == "reverse" else gateway.inside_address(4)
        assert reached(deployment, (other, 99)) is None
        gateway.run("nft", "add", "rule", "inet", "filter", "forward", "ct", "status", "dnat", "accept", check=True)
        called = reached(deployment, (other, 99))
        assert called is not None
        called.close()
        rules(deployment, "--remove", "--chain", "inet/filter/forward")
        assert ours(deployment, "forward") == []


@pytest.mark.parametrize("kind", KINDS)
def test_expected_calls_pass_an_input_chain(kind: str) -> None:
    """And no others: no stranger's to a port where somebody is expected, and not the same caller's to another port."""
    with walled(kind, "relay", CONTROL[kind] if kind == "reverse" else "", "firewall_mark = true") as deployment:
        site = deployment.site(4)
        if kind == "reverse":
            with Control(deployment.client, site).login() as control:
                assert reached(deployment, control.passive()) is None
        else:
            assert reached(deployment, (site.host, 21)) is None
        for _ in range(2):
            rules(deployment, "--apply", "--chain", "inet/filter/input")
            assert ours(deployment, "input") == [0]
        for version in (4, 6):
            transfers(deployment, version)
        second = re.sub(r"\d+$", "77", deployment.client.address(4))
        deployment.client.run("ip", "address", "add", f"{second}/24", "dev", "eth0", check=True)
        with Control(deployment.client, site).login() as control:
            host, port = control.passive()
            assert reached(deployment, (host, port), second) is None
            assert reached(deployment, (host, port ^ 1)) is None
            data = reached(deployment, (host, port))
            assert data is not None
            assert control.retrieve("file", data) == b"content" * 1000
            assert reached(deployment, (host, port)) is None
            control.quit()
        rules(deployment, "--remove", "--chain", "inet/filter/input")
        assert ours(deployment, "input") == []


@pytest.mark.parametrize(("kind", "plane"), [("tproxy", "relay"), ("redirect", "relay"), ("redirect", "nft")])
def test_marks_survive_a_restart(kind: str, plane: str) -> None:
    """Whoever was expected is still let in, where nothing but the marks lets anybody in; and what is left over goes."""
    with walled(kind, plane, "", "firewall_mark = true") as deployment:
        rules(deployment, "--apply", "--chain", "inet/filter/forward" if plane == "nft" else "inet/filter/input")
        if plane == "nft":
            rules(deployment, "--apply", "--chain", "inet/filter/input")
            deployment.gateway.run(
                "nft", "delete", "rule", "inet", "filter", "forward", "handle", established(deployment), check=True
            )
        site = deployment.site(4)
        with ExitStack() as stack:
            passive, active, given_up = (
                stack.enter_context(Control(deployment.client, site).login()) for _ in range(3)
            )
            place = passive.passive()
            listener = stack.enter_context(listen(deployment.client, 4))
            active.port(listener)
            given_up.passive()
            restart(deployment)
            data = reached(deployment, place)
            assert data is not None
            assert passive.retrieve("file", data) == b"content" * 1000
            assert active.retrieve_active("file", listener)[0] == b"content" * 1000
        transfers(deployment, 6)
        until(lambda: elements(deployment.gateway) == 0, "no element is left")


def established(deployment: Deployment) -> str:
    """The handle of that line in the forward chain."""
    listed = deployment.gateway.run("nft", "-a", "list", "chain", "inet", "filter", "forward", check=True).stdout
    match = re.search(r"ct state established,related accept # handle (\d+)", listed)
    assert match
    return match[1]


def test_removal_of_everything_leaves_no_line() -> None:
    with walled("redirect", "nft", CONTROL["redirect"], "firewall_mark = true") as deployment:
        before = deployment.gateway.run("nft", "list", "table", "inet", "filter", check=True).stdout
        rules(deployment, "--apply", "--chain", "inet/filter/forward", "--chain", "inet/filter/input")
        assert (ours(deployment, "forward"), ours(deployment, "input")) == ([0], [0])
        rules(deployment, "--remove")
        assert deployment.gateway.run("nft", "list", "table", "inet", "filter", check=True).stdout == before


@pytest.mark.parametrize(
    ("chain", "said"),
    [
        ("ip6/filter/INPUT", "there is no such chain"),
        ("forward", "it is FAMILY/TABLE/CHAIN, as in inet/filter/forward"),
        ("bridge/filter/forward", "it is FAMILY/TABLE/CHAIN, as in inet/filter/forward"),
        ("inet/filter/forwards", "there is no such chain; `nft list chains` shows them all"),
        ("inet/nat/postrouting", "hangs at the hook postrouting; name the one with `hook forward` or `hook input`"),
        ("inet/filter/other", "has no hook; name"),
        ("ip/filter/FORWARD", "iptables' own; say it so: iptables -I FORWARD -m conntrack --ctstate DNAT -j ACCEPT"),
        ("inet/filter/input", "no service has `firewall_mark = true`"),
    ],
)
def test_wrong_chains(chain: str, said: str, shared: Deployment) -> None:
    """Each gets a sentence, and nothing is changed."""
    before = shared.gateway.run("nft", "list", "ruleset", check=True).stdout
    with pytest.raises(LabError) as complaint:
        rules(shared, "--apply", "--chain", "inet/filter/forward", "--chain", chain)
    assert said in str(complaint.value)
    assert chain in str(complaint.value)
    assert shared.gateway.run("nft", "list", "ruleset", check=True).stdout == before


@pytest.fixture(scope="module")
def shared() -> Iterator[Deployment]:
    with walled("redirect", "nft", CONTROL["redirect"]) as deployment:
        deployment.gateway.run("nft", "add", "chain", "inet", "filter", "other", check=True)
        yield deployment
