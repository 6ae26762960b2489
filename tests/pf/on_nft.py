"""A pfctl that does what it is told, with nftables: so that data connections really are carried, on a Linux kernel.

It reads the anchors in both dialects, and makes of each a table of its own with the same two translations, for one
connection (`max 1`), and with counters for `-s labels`.  What pf would do with the filter rules it does not do; the
gateway of the lab lets translated connections through.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from .standin import StandIn

__all__ = ["NftStandIn"]

SCRIPT = r'''#!@PYTHON@ -IS
import os, re, subprocess, sys
here = os.path.dirname(os.path.abspath(__file__))
arguments = sys.argv[1:]
HOST, PORT = r"(\S+)", r"port (?:= )?(\S+)"
OPENBSD = re.compile(
    rf"pass in quick (inet6?) proto tcp from {HOST} to {HOST} {PORT} .*rdr-to {HOST} {PORT}\n"
    rf"pass out quick \1 proto tcp from \2 to \5 port = \6 .*nat-to {HOST} {PORT}\n\Z"
)
FREEBSD = re.compile(
    rf"nat (?P<f>inet6?) proto tcp from (?P<p>\S+) to (?P<t>\S+) port = (?P<m>\d+) -> {HOST} {PORT}\n"
    rf"rdr (?P=f) proto tcp from (?P=p) to {HOST} {PORT} -> (?P=t) port (?P=m)\n"
    rf"pass in quick (?P=f) .*\npass out quick (?P=f) .*\n\Z"
)
TABLE = """
table inet {name} {{
    set once {{
        type {kind} . {kind} . inet_service; flags dynamic; elements = {{ {peer} . {at} . {n} }}
    }}
    counter forth {{ }}
    counter back {{ }}
    chain before {{
        type filter hook prerouting priority mangle - 1;
        {ip} saddr {peer} {ip} daddr {at} tcp dport {n} counter name forth
    }}
    chain way_in {{
        type nat hook prerouting priority dstnat - 1;
        {ip} saddr . {ip} daddr . tcp dport @once delete @once {{ {ip} saddr . {ip} daddr . tcp dport }} \\
            dnat {ip} to {inside}:{m}
    }}
    chain way_out {{
        type nat hook postrouting priority srcnat - 1;
        {ip} saddr {peer} {ip} daddr {to} tcp dport {m} snat {ip} to {source}
    }}
    chain after {{
        type filter hook postrouting priority srcnat + 1;
        {ip} daddr {peer} {ip} saddr {at} tcp sport {n} counter name back
    }}
}}
"""

def nft(text):
    done = subprocess.run(["@NFT@", "-f", "-"], input=text, text=True, capture_output=True)
    if done.returncode:
        sys.exit("pfctl: " + done.stderr)

def counted(table, counter):
    said = subprocess.run(["@NFT@", "list", "counter", "inet", table, counter], text=True, capture_output=True).stdout
    return re.search(r"packets (\d+) bytes (\d+)", said).groups()

name = "pf_" + arguments[1].split("/")[-1].replace(".", "_") if arguments[0] == "-a" else ""
path = here + "/anchors/" + (arguments[1].replace("/", ":") if name else "")
if arguments == ["-s", "info"]:
    print("Status: Enabled")
elif arguments == ["-a", "ftp-proxy", "-s", "Anchors"]:
    for each in sorted(os.listdir(here + "/anchors")):
        print("  " + each.replace(":", "/"))
elif arguments[2:] == ["-s", "labels"]:
    numbers = [*counted(name, "forth"), *counted(name, "back")]
    print("ftp", 1, 0, 0, *numbers, 1)
elif arguments[2:] == ["-f", "-"]:
    text = sys.stdin.read()
    nft(f"table inet {name} {{}}\ndelete table inet {name}\n")
    if not text:
        if os.path.exists(path):
            os.unlink(path)
    elif found := OPENBSD.match(text):
        family, peer, at, n, to, m, source, ports = found.groups()
    elif found := FREEBSD.match(text):
        family, peer, to, m, source, ports, at, n = found.groups()
    else:
        sys.exit("pfctl: stdin:1: syntax error")
    if text:
        inside = f"[{to}]" if family == "inet6" else to
        if ports != "50001:65535":
            source = (f"[{source}]" if family == "inet6" else source) + ":" + ports
        ip, kind = ("ip", "ipv4_addr") if family == "inet" else ("ip6", "ipv6_addr")
        nft(TABLE.format(**globals()))
        with open(path, "w") as file:
            file.write(text)
else:
    sys.exit("usage: pfctl ...")
'''


class NftStandIn(StandIn):
    """The same folder, another program."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        nft = shutil.which("nft", path="/usr/sbin:/sbin:/usr/bin:/bin")
        assert nft is not None
        self.program.write_text(SCRIPT.replace("@PYTHON@", sys.executable).replace("@NFT@", nft))
