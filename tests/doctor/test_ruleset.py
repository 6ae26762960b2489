"""Rules as nft itself lists them, and packets that are walked through them."""

from __future__ import annotations

import subprocess
from ipaddress import ip_network
from pathlib import Path

import pytest
from attrs import evolve

from ftpproxy.doctor.finding import CannotLook
from ftpproxy.doctor.machine import Machine
from ftpproxy.doctor.packet import Packet
from ftpproxy.doctor.redirect import kernel_refuses
from ftpproxy.doctor.rivals import helper_of_iptables, saved_in
from ftpproxy.doctor.ruleset import Ruleset

pytestmark = [pytest.mark.netns, pytest.mark.usefixtures("operating_theatre")]

PACKET = Packet(
    version=4,
    port=20000,
    source=ip_network("10.77.1.0/24"),
    destination=ip_network("198.51.100.1"),
    local=True,
    interface="lan",
    unmarked=0x200000,
    connection_mark=0x400000,
)


def listed(lines: str, more: str = "", policy: str = "drop") -> Ruleset:
    """An input chain of these lines, loaded into a network namespace that is gone at once."""
    text = f"""
table inet t {{
    {more}
    chain input {{
        type filter hook input priority filter; policy {policy};
        {lines}
    }}
}}
"""
    done = subprocess.run(
        ["unshare", "--net", "sh", "-e", "-c", "nft -f -; nft -j list ruleset"],
        input=text, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return Ruleset(done.stdout)


OPEN = [
    "tcp dport 20000 accept",
    "tcp dport { 21, 20000-29999 } accept",
    "ip saddr 10.0.0.0/8 tcp dport 20000-29999 accept",
    'iifname "la*" accept',
    'iifname { "lo", "lan" } accept',
    'iifname . tcp dport { "lan" . 20000-30000 } accept',
    "meta l4proto { tcp, udp } th dport 20000 accept",
    "ct state new,established accept",
    "ct state vmap { established : accept, new : jump good }",
    "tcp dport != 22 accept",
    "ip daddr @mine accept",
    "tcp dport @ports accept",
    "fib daddr type local accept",
    "meta mark & 0x200000 == 0x0 accept",
    "ct mark & 0x400000 == 0x400000 accept",
    "meta nfproto ipv4 jump good",
    "goto good",
    "jump back\n accept",
    "tcp dport vmap { 21 : drop, 20000 : accept }",
    "counter log prefix \"x\" accept",
    # Perhaps open: nobody knows.
    "meta mark 5 accept",
    "ct mark 5 accept",
    "ct mark & 0xff == 5 accept",
    "ip saddr 10.77.1.7 accept",
    "ip saddr 10.77.1.7 drop\n accept",
    "limit rate 3/second accept",
    "tcp sport 20 accept",
    "tcp flags syn accept",
    "socket transparent 1 accept",
    "ip saddr @others accept",
    "jump perhaps\n tcp dport 20000 accept",
]  # fmt: skip
SHUT = [
    "",
    "tcp dport 21 accept",
    "udp dport 20000 accept",
    "ip6 saddr ::/0 tcp dport 20000 accept",
    'iifname "wan" accept',
    'iifname != "lan" accept',
    "ct state established,related accept",
    "ct status dnat accept",
    "ip protocol icmp accept",
    "icmp type echo-request accept",
    "meta mark & 0x200000 == 0x200000 accept",
    "ct mark & 0x400000 == 0 accept",
    "ip saddr != 10.0.0.0/8 accept",
    "ip daddr 198.51.100.2 accept",
    "ip saddr 10.77.1.0/24 reject\n accept",
    "tcp dport vmap { 20000-29999 : drop }\n accept",
    "jump bad\n accept",
    "fib daddr type != local accept",
    'iifname . tcp dport { "wan" . 20000-30000 } accept',
    "return\n accept",
    "goto back\n accept",
    "ip saddr 10.77.1.7 drop\n meta l4proto tcp drop\n accept",
]
MORE = (
    """
    set mine { type ipv4_addr; flags interval; elements = { 198.51.100.0/30 } }
    set others { type ipv4_addr; elements = { 10.77.1.9 } }
    set ports { type inet_service; elements = { 20000, 21 } }
    chain good { accept; }
    chain bad { meta l4proto tcp drop; }
    chain back { return; }
    chain perhaps { ip saddr 10.77.1.7 return; drop; }
""".replace("; ", "\n ")
    .replace("type ipv4_addr\n", "type ipv4_addr;")
    .replace("interval\n", "interval;")
)


@pytest.mark.parametrize("lines", OPEN)
def test_may_be_open(lines: str) -> None:
    assert listed(lines, MORE).closed("input", PACKET) == ""


@pytest.mark.parametrize("lines", SHUT)
def test_is_certainly_shut(lines: str) -> None:
    assert listed(lines, MORE).closed("input", PACKET) == "inet t, chain input"


def taken(lines: str) -> list[bool]:
    """Whether the rules that translate are certain to, behind `lines` in a chain for destination NAT."""
    nat = f"""
    chain nat {{
        type nat hook prerouting priority dstnat; policy accept;
        {lines}
        tcp dport 20000 dnat ip to 10.0.0.1
    }}
"""
    return [sure for _, sure in listed("", nat).translated("prerouting", PACKET)]


def test_what_was_decided_before_counts() -> None:
    assert taken("") == [True]
    assert taken("ip saddr 10.0.0.0/8 accept") == []
    assert taken("ip saddr 10.77.1.7 accept") == [False]
    assert taken("ip saddr 10.77.1.7 return") == [False]
    assert taken("tcp dport 20000 redirect to :1") == [True]
    assert taken("tcp dport 20000 dnat ip6 to [::1]:1") == [True]


def test_what_policy_and_family_say() -> None:
    assert listed("", policy="accept").closed("input", PACKET) == ""
    six = evolve(PACKET, version=6, source=ip_network("fd77:1::/64"), destination=ip_network("2001:db8::1"))
    ruleset = listed("ip6 saddr fd77::/16 accept")
    assert ruleset.closed("input", six) == ""
    assert ruleset.closed("input", PACKET) != ""
    assert ruleset.closed("forward", PACKET) == ""


def test_a_refusal_of_the_kernel() -> None:
    """In its own words: this kernel or that lacks one of these."""
    machine = Machine.__new__(Machine)
    for statement in ("queue num 1", "meta secmark set 1", "xfrm", "synproxy mss 1460", "osf name Linux"):
        text = f"table ip scratch {{\n chain c {{\n type filter hook prerouting priority 0\n {statement}\n }}\n}}\n"
        try:
            refusal = kernel_refuses(machine, text)
        except CannotLook:
            continue  # nft does not know it
        if refusal:
            assert refusal.startswith("the kernel lacks a part of nftables (")
            return
    pytest.skip("this kernel has everything")


def test_the_helper_in_iptables() -> None:
    saved = """\
*raw
:PREROUTING ACCEPT [0:0]
-A PREROUTING -p tcp -m tcp --dport 21 -j CT --helper ftp
-A PREROUTING -p udp -m udp --dport 69 -j CT --helper tftp
-A OUTPUT -p tcp -m tcp --dport 25 -j CT --notrack
COMMIT
"""
    assert helper_of_iptables(saved) == ["-A PREROUTING -p tcp -m tcp --dport 21 -j CT --helper ftp"]


def test_our_table_in_the_rules_of_the_boot(tmp_path: Path) -> None:
    """Whoever saves all rules while the proxy runs saves one that nobody else may load."""
    file, absent = tmp_path / "nftables.conf", tmp_path / "absent"
    file.write_text("flush ruleset\ntable inet filter {\n}\n# table inet ftpproxy_nat\n")
    assert list(saved_in([absent, file])) == []
    rest = "flush ruleset\ntable inet filter {\n}\n"
    file.write_text(rest + "table inet ftpproxy_nat { # progname python\n\tflags owner\n\n\tchain x {\n\t}\n}\n")
    (found,) = saved_in([absent, file])
    assert str(file) in found.what
    subprocess.run(found.mend, shell=True, check=True)
    assert file.read_text() == rest
    assert list(saved_in([file])) == []
