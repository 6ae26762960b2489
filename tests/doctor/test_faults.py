"""A gateway that is set up right and then broken in one way: the doctor names that and nothing else, and doing what
it says makes it silent again."""

from __future__ import annotations

import pytest

from ..netns.deployments import until
from ..netns.test_firewall import KINDS as FIREWALLS
from ..netns.test_firewall import documented, drop_all_but
from .wards import KINDS, MORE_KINDS, Wards

pytestmark = [pytest.mark.netns, pytest.mark.usefixtures("operating_theatre")]

HELPER = """\
nft -f - <<'END'
table inet other {{
    ct helper ftp-standard {{
        type "ftp" protocol tcp
    }}
    chain {hook} {{
        type filter hook {hook} priority filter;
        tcp dport 21 ct helper set "ftp-standard"
    }}
}}
END
"""
CHAIN = """\
nft -f - <<'END'
table inet other {{
    chain other {{
        type {type} hook {hook} priority {priority};
        {rule}
    }}
}}
END
"""
NO_WELCOME = r"""
handle=$(nft -a list chain inet filter input | sed -n 's/.*tcp dport.*20000-29999.*handle //p')
nft delete rule inet filter input handle $handle
"""
NO_DNAT = r"""
handle=$(nft -a list chain inet filter forward | sed -n 's/.*ct status dnat.* accept.*handle //p')
nft delete rule inet filter forward handle $handle
"""
BY_MARK = "nft add rule inet filter forward ct mark \\& 0x400000 == 0x400000 accept\n"
STRANGERS = """\
nft add chain inet filter strangers
nft add rule inet filter strangers meta l4proto tcp reject with tcp reset
nft insert rule inet filter input iifname != lo tcp dport vmap { 20000-29999 : jump strangers }
"""
CLOSE_LAN = r"""
handle=$(nft -a list chain inet filter input | sed -n 's/.*iifname { "lo", "lan" }.*handle //p')
nft replace rule inet filter input handle $handle iifname lo accept
"""


def chain(type: str, hook: str, priority: str, rule: str) -> str:
    return CHAIN.format(type=type, hook=hook, priority=priority, rule=rule)


@pytest.mark.parametrize("kind", [*KINDS, *MORE_KINDS])
def test_a_good_gateway_has_nothing(wards: Wards, kind: str) -> None:
    with wards.visit(kind) as patient:
        assert patient.findings() == []
        done = patient.doctor()
        assert (done.returncode, done.stdout) == (0, f"{patient.proxy.file}: 1 service, nothing found\n")


@pytest.mark.parametrize("kind", KINDS)
def test_a_look_changes_nothing(wards: Wards, kind: str) -> None:
    everything = "nft -a list ruleset; for f in -4 -6; do ip $f rule; ip $f route show table all | sort; done; ss -Hltn"
    everything += "; cat /proc/sys/net/ipv4/conf/*/rp_filter"
    with wards.visit(kind) as patient:
        before = patient.sh(everything)
        patient.doctor()
        assert patient.sh(everything) == before


def sysctl(name: str, value: int) -> str:
    return f"echo {value} > /proc/sys/net/{name}"


FAULTS = {
    "rules missing": ("tproxy", "nft delete table inet ftpproxy_intercept", "rules.missing"),
    "rules missing, redirect": ("redirect", "nft delete table inet ftpproxy_intercept", "rules.missing"),
    "rules differ": ("tproxy", "nft flush chain inet ftpproxy_intercept prerouting_mangle", "rules.differ"),
    "rules differ, redirect": ("redirect", "nft add rule inet ftpproxy_intercept prerouting_dstnat drop", "rules.differ"),  # noqa: E501
    "no ip rule": ("tproxy", "ip rule del priority 2121", "policy_route"),
    "no ip rule, IPv6": ("tproxy", "ip -6 rule del priority 2121", "policy_route"),
    "no route": ("tproxy", "ip route flush table 2121", "policy_route"),
    "no route, IPv6": ("tproxy", "ip -6 route flush table 2121", "policy_route"),
    "no forwarding": ("tproxy", sysctl("ipv4/ip_forward", 0), "forwarding"),
    "no forwarding, IPv6": ("redirect", sysctl("ipv6/conf/all/forwarding", 0), "forwarding"),
    "source routes by mark": ("tproxy", sysctl("ipv4/conf/lan/src_valid_mark", 1), "reverse_path"),
    "source routes by mark, all": ("tproxy", sysctl("ipv4/conf/all/src_valid_mark", 1), "reverse_path"),
    "source test by mark": (
        "tproxy",
        chain("filter", "prerouting", "filter + 10", "meta nfproto ipv6 fib saddr . mark . iif oif missing drop"),
        "reverse_path",
    ),
    "helper, forwarded": ("tproxy", HELPER.format(hook="prerouting"), "helper"),
    "helper, our calls": ("redirect", HELPER.format(hook="output"), "helper"),
    "helper, reverse": ("reverse", HELPER.format(hook="prerouting"), "helper"),
    "loop by redirect": ("tproxy", chain("nat", "output", "-100", "tcp dport 21 redirect to :8021"), "loop"),
    "loop by dnat": ("redirect", chain("nat", "output", "-100", "tcp dport 21 dnat ip to 10.77.1.1:8021"), "loop"),
    "taken, redirect": (
        "redirect",
        chain("nat", "prerouting", "dstnat - 1", 'iifname "lan" tcp dport 21 dnat ip to 198.51.100.21'),
        "taken",
    ),
    "taken, reverse": (
        "reverse",
        chain("nat", "prerouting", "dstnat", 'iifname "wan" tcp dport { 21, 80 } dnat ip to 10.77.2.21'),
        "taken",
    ),
    "firewall, active data": ("tproxy", NO_WELCOME, "firewall"),
    "firewall, active data, redirect": ("redirect", NO_WELCOME, "firewall"),
    "firewall, mark": ("tproxy", CLOSE_LAN, "firewall"),
    "firewall, clients": ("redirect", CLOSE_LAN, "firewall"),
    "firewall, reverse": ("reverse", CLOSE_LAN, "firewall"),
    "firewall, the kernel's connections": ("nft", NO_DNAT, "firewall.forward"),
    "firewall, all of the kernel's connections": ("nft", "nft flush chain inet filter forward", "firewall.forward"),
    "firewall, the kernel's connections, none marked": ("nft", NO_DNAT + BY_MARK, "firewall.forward"),
    "firewall, marked connections": ("marked nft", NO_DNAT, "firewall.forward"),
    "firewall, marked calls": ("marked", NO_WELCOME, "firewall"),
    "firewall, marked clients": ("marked", CLOSE_LAN, "firewall"),
    "firewall, in a chain of its own": (
        "reverse",
        STRANGERS,
        "firewall",
    ),
}  # fmt: skip
CLEAN = "nft list tables | grep -q 'inet other' && nft delete table inet other || true"
"""What a line that mends leaves of our breaking: an empty chain."""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_alone_and_its_line_mends_it(wards: Wards, fault: str) -> None:
    kind, breaking, name = FAULTS[fault]
    with wards.visit(kind) as patient:
        patient.sh(breaking)
        found = patient.findings()
        assert {each["name"] for each in found} == {name}, found
        assert {each["severity"] for each in found} == {"hurts"}
        patient.follow(found)
        assert patient.findings() == []
        patient.sh(CLEAN)
        patient.proxy.make_way()


def test_a_forward_chain_that_goes_by_the_mark(wards: Wards) -> None:
    """It is what the doctor asks for where there is a mark, and enough."""
    with wards.visit("marked nft") as patient:
        patient.sh(NO_DNAT)
        assert all("`ct mark & 0x400000 == 0x400000 accept`" in each["why"] for each in patient.findings())
        patient.sh(BY_MARK)
        assert patient.findings() == []
        patient.gateway.make_way()


@pytest.mark.parametrize(("kind", "documented_for"), list(zip(KINDS, FIREWALLS, strict=True)))
def test_the_documented_firewall_is_enough_and_half_of_it_is_not(wards: Wards, kind: str, documented_for: str) -> None:
    with wards.visit(kind) as patient:
        both = documented(documented_for)
        drop_all_but(patient.gateway, both)
        assert patient.findings() == []
        for lines, who in ((both[:1], "servers"), (both[1:], "clients")):
            drop_all_but(patient.gateway, lines)
            found = patient.findings()
            assert {each["name"] for each in found} == {"firewall"}
            assert all(f"connections of {who} (IPv4 and IPv6)" in each["what"] for each in found)
            patient.follow(found)
            assert patient.findings() == []
        patient.proxy.make_way()


def test_half_a_range_is_not_enough(wards: Wards) -> None:
    with wards.visit("redirect") as patient:
        drop_all_but(patient.gateway, ["tcp dport 8021 accept", "tcp dport 20000-25000 accept"])
        assert {(each["name"], each["what"].rpartition(" of ")[2]) for each in patient.findings()} == {
            ("firewall", "clients (IPv4 and IPv6)"),
            ("firewall", "servers (IPv4 and IPv6)"),
        }
        patient.proxy.make_way()


def test_another_policy_rule_that_comes_first(wards: Wards) -> None:
    with wards.visit("tproxy") as patient:
        patient.sh("ip rule add priority 100 fwmark 0x200000/0x200000 unreachable")
        (found,) = patient.findings()
        assert found["name"] == "policy_route"
        assert "another `ip rule` comes first" in found["what"]
        patient.sh("ip rule del priority 100")


def test_drops_of_a_strict_reverse_path_filter(wards: Wards) -> None:
    """Strict alone is no fault: where the ways are the same in both directions it drops nothing."""
    source = "import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('192.0.2.77', 0))"
    source += "; s.sendto(b'x', ('10.77.1.1', 9))"
    with wards.visit("tproxy") as patient:
        patient.sh(sysctl("ipv4/conf/lan/rp_filter", 1))
        assert patient.findings() == []
        client = patient.lab.client
        lan = patient.sh("cat /sys/class/net/lan/address").strip()
        # The gateway does not answer such an address that asks for its own (ARP).
        client.run("ip", "neigh", "replace", "10.77.1.1", "lladdr", lan, "dev", "eth0", "nud", "permanent", check=True)
        client.run("ip", "address", "add", "192.0.2.77/32", "dev", "eth0", check=True)
        client.run("python3", "-c", source, check=True)
        until(lambda: patient.findings() != [], "the datagram has arrived, and was dropped")
        client.run("ip", "address", "del", "192.0.2.77/32", "dev", "eth0", check=True)
        client.run("ip", "neigh", "del", "10.77.1.1", "dev", "eth0", check=True)
        (found,) = patient.findings()
        assert (found["name"], found["severity"]) == ("reverse_path.drops", "worth knowing")
        patient.follow([found])
        assert patient.findings() == []
        patient.sh(sysctl("ipv4/conf/lan/rp_filter", 0))
