"""The redirect rules: their text, their way into the kernel and out of it, and what they do to packets there."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from ipaddress import ip_address
from pathlib import Path

import pytest

from ftpproxy import rules
from ftpproxy.config import ConfigError, load, parse
from ftpproxy.endpoints import Endpoint
from ftpproxy.netfilter import TABLE as PLANE_TABLE
from ftpproxy.sockets import SO_ORIGINAL_DST, bound

from .intercept.namespaces import FAMILIES, Family, Namespace, World, accept, connect, listen, name, talk, world
from .tables import service_table

ROOT = Path(__file__).parent.parent
EXAMPLES = {
    ROOT / "docs" / "examples" / f"{kind}.toml": ROOT / "nft" / f"intercept-{kind}.nft"
    for kind in ("tproxy", "redirect")
}

CLIENTS, SERVERS = ["10.77.1.2/32", "fd77:1::2/128"], ["10.77.2.2:21", "[fd77:2::2]:21"]
TPROXY = service_table("lan", "forward", "tproxy", ["127.0.0.1:8021", "[::1]:8021"], clients=CLIENTS)
REDIRECT = service_table("red", "forward", "redirect", ["0.0.0.0:8022", "[::]:8022"], clients=CLIENTS)
REVERSE = service_table("rev", "reverse", "redirect", ["0.0.0.0:8023", "[::]:8023"], servers=SERVERS)
REVERSE_TPROXY = REVERSE.replace("redirect", "tproxy").replace("0.0.0.0", "127.0.0.1").replace("[::]", "[::1]")
PLAIN = service_table("plain", "reverse", "none", ["0.0.0.0:2121"], servers=SERVERS[:1])
ALL = TPROXY + REDIRECT + REVERSE + PLAIN


def rule_lines(text: str) -> list[str]:
    """The rules of `text` without comments and frame."""
    return [line.strip() for line in rules.text(parse(text)).splitlines() if " dport " in line or "transparent" in line]


@pytest.fixture
def gateway() -> Iterator[Namespace]:
    try:
        namespace = Namespace()
    except PermissionError:
        pytest.skip("needs root, or unshare -Urnm")
    with closing(namespace):
        namespace.ip("link set lo up\n")
        yield namespace


@pytest.fixture(scope="module")
def nets() -> Iterator[World]:
    with world() as made:
        yield made


def state(namespace: Namespace) -> str:
    """Everything in the kernel that the rules could change."""
    commands = ["nft list ruleset", "ip rule", "ip -6 rule", "ip -4 route show table all", "ip -6 route show table all"]
    return "\n".join(f"{command}:\n{namespace.run(*command.split())}" for command in commands)


def ftpproxy(namespace: Namespace, *argv: str, under: Sequence[str] = ()) -> tuple[int, str]:
    """Exit code and standard error of `ftpproxy ARGV` inside, run by the command `under`."""
    command = [*under, sys.executable, "-W", "error", "-m", "ftpproxy", *argv]
    with namespace.inside():
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    return done.returncode, done.stderr


# -- text -------------------------------------------------------------------------------------------------------------


def test_tproxy_text() -> None:
    mark = "meta mark set meta mark | 0x200000 accept"
    assert rule_lines(TPROXY) == [
        f"ip saddr {{ 10.77.1.2/32 }} tcp dport 21 fib daddr type != local tproxy ip to 127.0.0.1:8021 {mark}",
        f"ip6 saddr {{ fd77:1::2/128 }} tcp dport 21 fib daddr type != local tproxy ip6 to [::1]:8021 {mark}",
        f"meta l4proto tcp ct status & dnat == 0 socket transparent 1 {mark}",
    ]


def test_redirect_text() -> None:
    assert rule_lines(REDIRECT + REVERSE) == [
        "ip saddr { 10.77.1.2/32 } tcp dport 21 fib daddr type != local redirect to :8022",
        "ip6 saddr { fd77:1::2/128 } tcp dport 21 fib daddr type != local redirect to :8022",
        "meta nfproto ipv4 tcp dport 21 fib daddr type local redirect to :8023",
        "meta nfproto ipv6 tcp dport 21 fib daddr type local redirect to :8023",
    ]


def test_marks_for_the_firewall() -> None:
    """Only where asked for: on what TPROXY takes, and before `redirect`, where a SYN that is sent again is seen too."""
    marked = "firewall_mark = true\n"
    assert rule_lines(TPROXY + marked)[0].endswith("meta mark set meta mark | 0x600000 accept")
    assert [line for line in rule_lines(REDIRECT + marked + REVERSE) if "mark" in line] == [
        "ip saddr { 10.77.1.2/32 } tcp dport 21 fib daddr type != local meta mark set meta mark | 0x400000",
        "ip6 saddr { fd77:1::2/128 } tcp dport 21 fib daddr type != local meta mark set meta mark | 0x400000",
    ]
    assert "0x400000" not in rules.text(parse(ALL))


def test_lines_for_chains_of_the_administrator_are_printed() -> None:
    said = rules.text(parse(TPROXY + 'planes = ["nft"]\nfirewall_mark = true\n'))
    assert "#   forward: ct mark & 0x400000 == 0x400000 accept\n" in said
    assert "#   input: meta mark & 0x400000 == 0x400000 accept\n" in said
    assert "Chains of yours" not in rules.text(parse(ALL))
    both = TPROXY + 'planes = ["nft"]\nfirewall_mark = true\n' + REDIRECT + 'planes = ["nft"]\n'
    assert "#   forward: ct status dnat accept\n" in rules.text(parse(both)), "one of them has no mark"


def test_networks_are_merged_because_nft_refuses_overlaps() -> None:
    text = REDIRECT.replace('"10.77.1.2/32"', '"10.0.0.0/9", "10.128.0.0/9", "10.1.1.1", "192.0.2.0/24"')
    assert rule_lines(text)[0].startswith("ip saddr { 10.0.0.0/8, 192.0.2.0/24 } ")


def test_the_whole_world_must_be_asked_for() -> None:
    everybody = REDIRECT.replace('["10.77.1.2/32", "fd77:1::2/128"]', '["0.0.0.0/0"]')
    assert rule_lines(everybody) == ["meta nfproto ipv4 tcp dport 21 fib daddr type != local redirect to :8022"]
    assert "# No IPv6 clients." in rules.text(parse(everybody))

    nobody = TPROXY.replace('clients = ["10.77.1.2/32", "fd77:1::2/128"]', "")
    with pytest.raises(ConfigError) as caught:
        rules.text(parse(nobody))
    (problem,) = caught.value.problems
    assert problem.where == 'service "lan".clients'
    assert problem.reason.startswith("the rules need it in forward mode")


def test_services_without_interception_need_no_rules() -> None:
    text = rules.text(parse(PLAIN))
    assert "# Service plain is not intercepted and needs no rule." in text
    assert "chain" not in text


@pytest.mark.netns
@pytest.mark.parametrize("text", [TPROXY, REDIRECT, REVERSE, REVERSE_TPROXY, PLAIN, ALL])
def test_nft_understands_the_text(gateway: Namespace, text: str) -> None:
    gateway.run("nft", "-c", "-f", "-", text=rules.text(parse(text)))


@pytest.mark.netns
@pytest.mark.parametrize(("example", "printed"), EXAMPLES.items(), ids=[path.stem for path in EXAMPLES])
def test_the_readable_examples_are_what_is_printed(gateway: Namespace, example: Path, printed: Path) -> None:
    assert printed.read_text() == rules.text(load(example))
    gateway.run("nft", "-c", "-f", str(printed))


@pytest.mark.netns
def test_the_ip_commands_in_the_text_are_what_is_applied(gateway: Namespace, tmp_path: Path) -> None:
    file = tmp_path / "f.toml"
    file.write_text(TPROXY)
    assert ftpproxy(gateway, "rules", "-c", str(file), "--apply") == (0, "")
    applied = state(gateway)
    assert ftpproxy(gateway, "rules", "--remove") == (0, "")
    text = rules.text(parse(TPROXY))
    commands = [line[4:] for line in text.splitlines() if line.startswith("#   ip ")]
    assert len(commands) == 4
    for command in commands:
        gateway.run(*command.split())
    gateway.run("nft", "-f", "-", text=text)
    # the same but for the origin, which ip route writes as "boot" and pyroute2 as "static"
    assert state(gateway) == applied.replace(" proto static", "")


# -- into the kernel and out of it ------------------------------------------------------------------------------------


@pytest.mark.netns
def test_apply_is_idempotent_and_remove_leaves_nothing(gateway: Namespace, tmp_path: Path) -> None:
    gateway.run("nft", "-f", "-", text="table inet others { chain c { type filter hook input priority 0; }; }\n")
    gateway.ip("rule add priority 2121 fwmark 0x1/0x1 lookup 2122\nroute add local 192.0.2.0/24 dev lo table 2122\n")
    before = state(gateway)
    file = tmp_path / "f.toml"
    file.write_text(ALL)

    assert ftpproxy(gateway, "rules", "-c", str(file), "--apply") == (0, "")
    once = state(gateway)
    assert once.count("fwmark 0x200000/0x200000 lookup 2121") == 2
    assert once.count("local default dev lo table 2121") == 2
    assert "table inet ftpproxy_intercept" in once
    assert ftpproxy(gateway, "rules", "-c", str(file), "--apply") == (0, "")
    assert state(gateway) == once

    gateway.run("nft", "add", "table", "inet", PLANE_TABLE)  # as a killed proxy leaves it
    assert ftpproxy(gateway, "rules", "--remove") == (0, "")
    assert state(gateway) == before
    assert ftpproxy(gateway, "rules", "-c", str(file), "--remove") == (0, "")
    assert state(gateway) == before


@pytest.mark.netns
def test_apply_replaces_what_another_configuration_left(gateway: Namespace, tmp_path: Path) -> None:
    file = tmp_path / "f.toml"
    before = state(gateway)
    for text in (ALL, REDIRECT, TPROXY, PLAIN):
        file.write_text(text)
        assert ftpproxy(gateway, "rules", "-c", str(file), "--apply") == (0, "")
        now = state(gateway)
        assert now.count("lookup 2121") == (2 if TPROXY in text else 0)
        assert ("redirect to" in now) == (REDIRECT in text)
        assert ("tproxy ip to" in now) == (TPROXY in text)
    assert now == before


def test_the_name_of_the_plane_table_is_that_of_the_plane() -> None:
    assert rules.PLANE_TABLE == PLANE_TABLE


@pytest.mark.netns
@pytest.mark.parametrize("action", ["--apply", "--remove"])
def test_without_privilege(gateway: Namespace, action: str) -> None:
    before = state(gateway)
    argv = ["rules", "-c", "docs/examples/tproxy.toml", action]
    code, said = ftpproxy(gateway, *argv, under=["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"])
    assert (code, said) == (77, "ftpproxy rules: changing the rules needs CAP_NET_ADMIN: run this as root\n")
    assert state(gateway) == before


@pytest.mark.netns
def test_a_privilege_that_is_not_for_this_namespace() -> None:
    """In a new user namespace every capability is held, but not for the network namespace outside."""
    namespace_of_user = ["unshare", "-Ur", sys.executable, "-m", "ftpproxy", "rules", "--remove"]
    if subprocess.run(["unshare", "-Ur", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no user namespaces here")
    done = subprocess.run(namespace_of_user, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 77
    assert done.stderr.startswith("ftpproxy rules: changing the rules needs CAP_NET_ADMIN in this network namespace: ")


@pytest.mark.netns
def test_without_nft(gateway: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = state(gateway)
    monkeypatch.setattr(rules, "PATH", str(tmp_path))
    with gateway.inside(), pytest.raises(rules.Unavailable, match="in the package nftables"):
        rules.remove()
    assert state(gateway) == before


@pytest.mark.netns
def test_without_loopback(tmp_path: Path) -> None:
    file = tmp_path / "f.toml"
    file.write_text(TPROXY)
    with closing(Namespace()) as gateway:
        code, said = ftpproxy(gateway, "rules", "-c", str(file), "--apply")
        assert (code, said) == (1, "ftpproxy rules: policy routing needs the interface lo up: ip link set lo up\n")


# -- what they do to packets ------------------------------------------------------------------------------------------


@pytest.fixture
def applied(nets: World) -> Iterator[ExitStack]:
    """Sockets to be closed, and the gateway's rules to be removed, after the test."""
    with ExitStack() as stack:
        yield stack
    assert ftpproxy(nets.gateway, "rules", "--remove") == (0, "")


def load_rules(nets: World, folder: Path, text: str) -> None:
    file = folder / "f.toml"
    file.write_text(text)
    assert ftpproxy(nets.gateway, "rules", "-c", str(file), "--apply") == (0, "")


def transparent(nets: World, at: Endpoint) -> socket.socket:
    with nets.gateway.inside():
        sock = bound(at, transparent=True)
    sock.listen()
    return sock


LOOPBACK = {4: ip_address("127.0.0.1"), 6: ip_address("::1")}
ANY = {4: ip_address("0.0.0.0"), 6: ip_address("::")}
both = pytest.mark.parametrize("family", FAMILIES, ids=str)


@both
@pytest.mark.netns
def test_tproxy_brings_control_and_data(nets: World, tmp_path: Path, applied: ExitStack, family: Family) -> None:
    load_rules(nets, tmp_path, TPROXY)
    ours = applied.enter_context(transparent(nets, Endpoint(LOOPBACK[family.version], 8021)))
    server = Endpoint(family.server, 21)
    theirs = applied.enter_context(listen(nets.server, server))

    # a client of the service: the connection is ours and bears the name of whom it dialled
    client = applied.enter_context(connect(nets.client, server, family.client))
    control = applied.enter_context(accept(ours))
    assert name(control) == server
    talk(client, control)

    # its data connection to the same address, at a port where we listen in the server's name
    foreign = applied.enter_context(transparent(nets, Endpoint(family.server, 25021)))
    client = applied.enter_context(connect(nets.client, Endpoint(family.server, 25021), family.client))
    talk(client, applied.enter_context(accept(foreign)))

    # somebody who is no client goes straight through
    second = applied.enter_context(connect(nets.client, server, family.second))
    talk(second, applied.enter_context(accept(theirs)))


@both
@pytest.mark.netns
def test_redirect_brings_control(nets: World, tmp_path: Path, applied: ExitStack, family: Family) -> None:
    load_rules(nets, tmp_path, REDIRECT)
    ours = applied.enter_context(listen(nets.gateway, Endpoint(ANY[family.version], 8022)))
    server = Endpoint(family.server, 21)
    theirs = applied.enter_context(listen(nets.server, server))

    client = applied.enter_context(connect(nets.client, server, family.client))
    control = applied.enter_context(accept(ours))
    level = socket.IPPROTO_IP if family.version == 4 else socket.IPPROTO_IPV6
    dialled = control.getsockopt(level, SO_ORIGINAL_DST, 28)
    assert int.from_bytes(dialled[2:4], "big") == 21
    assert (dialled[4:8] if family.version == 4 else dialled[8:24]) == family.server.packed
    talk(client, control)

    second = applied.enter_context(connect(nets.client, server, family.second))
    talk(second, applied.enter_context(accept(theirs)))


@both
@pytest.mark.netns
@pytest.mark.parametrize("text", [TPROXY, REDIRECT], ids=["tproxy", "redirect"])
def test_forward_mode_leaves_this_machine_alone(
    nets: World, tmp_path: Path, applied: ExitStack, family: Family, text: str
) -> None:
    """Item 143: what is addressed to us, at port 21 too, is not led to the proxy, which would call us again."""
    load_rules(nets, tmp_path, text)
    applied.enter_context(transparent(nets, Endpoint(LOOPBACK[family.version], 8021)))
    applied.enter_context(listen(nets.gateway, Endpoint(ANY[family.version], 8022)))
    own = applied.enter_context(listen(nets.gateway, Endpoint(family.inside, 21)))
    client = applied.enter_context(connect(nets.client, Endpoint(family.inside, 21), family.client))
    talk(client, applied.enter_context(accept(own)))


@both
@pytest.mark.netns
@pytest.mark.parametrize("text", [REVERSE, REVERSE_TPROXY], ids=["redirect", "tproxy"])
def test_reverse_mode_takes_only_what_is_for_this_machine(
    nets: World, tmp_path: Path, applied: ExitStack, family: Family, text: str
) -> None:
    load_rules(nets, tmp_path, text)
    host = ANY[family.version] if text is REVERSE else LOOPBACK[family.version]
    ours = applied.enter_context(transparent(nets, Endpoint(host, 8023)))
    theirs = applied.enter_context(listen(nets.server, Endpoint(family.server, 21)))

    client = applied.enter_context(connect(nets.client, Endpoint(family.inside, 21), family.client))
    talk(client, applied.enter_context(accept(ours)))
    through = applied.enter_context(connect(nets.client, Endpoint(family.server, 21), family.client))
    talk(through, applied.enter_context(accept(theirs)))


@both
@pytest.mark.netns
def test_tproxy_and_redirect_together(nets: World, tmp_path: Path, applied: ExitStack, family: Family) -> None:
    """Overlapping services: what TPROXY took is not redirected as well."""
    load_rules(nets, tmp_path, ALL)
    ours = applied.enter_context(transparent(nets, Endpoint(LOOPBACK[family.version], 8021)))
    applied.enter_context(listen(nets.gateway, Endpoint(ANY[family.version], 8022)))
    client = applied.enter_context(connect(nets.client, Endpoint(family.server, 21), family.client))
    control = applied.enter_context(accept(ours))
    assert name(control) == Endpoint(family.server, 21)
    talk(client, control)
