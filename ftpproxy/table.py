"""Our nftables table as text: what its rules say, and how it comes and goes.

The rules never change while a process runs, so the table is loaded once, by the `nft` program; what comes and goes with
every transfer are elements (`ftpproxy.netfilter`).  nft/plane.nft has the same text to be read.

**Sockets of ours** (`awaited`, `called`, `pinned`): a peer is led to a listener, a call gets a foreign address.

**Carried by the kernel** (`dtp/nft.py`): a data connection is destination NAT for its caller, `carried`, and source
NAT, `called` or `pinned`, on the way out.  The caller may call once: its first packet takes the element of `once` away,
and without that there is no `carried`.  It leaves its port in `calling`, until its call is answered, for its SYN may
have to come again as the first packet of a connection: where a filter dropped it, or where it met a connection of the
same numbers in TIME_WAIT at the server, whose answer to that makes the caller reset what conntrack knew.  (NAT chains
see the first packet of a connection only, so none of this stands in the way of octets.)  That packet loses `MARK`,
which it has where a door of ours stands at the same place for somebody else (`ftpproxy.rules`): the mark would lead it
to this machine.  It also makes `forth` and `back`, which have it counted.  What follows is counted when the three-way
handshake is done (ct status assured), by caller and called address:

* `forth`, what the caller sends, in prerouting before destination NAT;
* `back`, what it is sent, in postrouting behind source NAT, when the addresses are again those that it called;
* `forth_end` and `back_end` are there when one of them had FIN or RST.

There the key is that of `carried`, which no two connections share; in a forward chain it would be the server's port,
which servers with few ports give to several connections at once.  (nft 1.0 has no name for "the original destination
port" in a key.)  Packets of flows that were answered, and that nobody gave another destination, pay for one look at
their conntrack status at each of the two places; what that is, docs/benchmarks.md tells.

**Let in by a firewall** (`expected`, `marked`): what ends at a socket of ours is known to an input chain by
`FIREWALL_MARK` on the first packets of a caller to the place that he was told.  What is carried is known to a forward
chain by the same bit of the *connection's* mark (ct mark): it is set once, where the first packet is led, and conntrack
shows it to every packet that follows, in both directions and whatever the priority of that chain.

* The priorities are one before the administrator's own dstnat and srcnat chains: in NAT hooks the first match
  wins, and his masquerade would otherwise give our calls the wrong address.
* The table holds no policy.  Where the administrator drops what he does not know, `ct status dnat accept` in his
  forward chain lets mapped connections through, or the mark; what ends at a socket of ours passes his input chain.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from hashlib import sha256
from pathlib import Path

from .netfilter import TABLE, NetfilterError, NoPermission, has_table

__all__ = ["FIREWALL_MARK", "MARK", "PLANE_TABLE", "Claim", "load_table", "may_load", "remove_table"]

NEEDED = "nftables 0.9.5, and Linux 5.7,"
"""For counters of set elements, the youngest of what our rules use."""
MOST_SAID = 300
"""Characters of what nft said: one word that it does not know is followed by many complaints."""
CAP_NET_ADMIN = 12
"""linux/capability.h"""
MARK = 0x200000
"""The bit of the packet mark that leads to sockets with foreign addresses; the others are the administrator's."""
FIREWALL_MARK = 0x400000
"""The bit that his chains may accept: in the mark of first packets of callers who are expected, and in that of
connections that the kernel carries."""

# The first two lines make loading idempotent: whatever a killed process left is taken over, in one transaction.
PLANE_TABLE = """\
table inet ftpproxy {}
delete table inet ftpproxy
table inet ftpproxy {
	# Peers led to sockets of ours, and calls of ours in another's name.
	map awaited4 { type ipv4_addr . ipv4_addr . inet_service : ipv4_addr . inet_service; flags timeout; }
	map awaited6 { type ipv6_addr . ipv6_addr . inet_service : ipv6_addr . inet_service; flags timeout; }
	map called4 { type ipv4_addr . ipv4_addr . inet_service : ipv4_addr; flags timeout; }
	map called6 { type ipv6_addr . ipv6_addr . inet_service : ipv6_addr; flags timeout; }
	map pinned4 { type ipv4_addr . ipv4_addr . inet_service : ipv4_addr . inet_service; flags timeout; }
	map pinned6 { type ipv6_addr . ipv6_addr . inet_service : ipv6_addr . inet_service; flags timeout; }

	# Data connections that the kernel carries: caller . called address . called port.
	map carried4 { type ipv4_addr . ipv4_addr . inet_service : ipv4_addr . inet_service; flags timeout; }
	map carried6 { type ipv6_addr . ipv6_addr . inet_service : ipv6_addr . inet_service; flags timeout; }
	set once4 { type ipv4_addr . ipv4_addr . inet_service; flags dynamic, timeout; size 65535; }
	set once6 { type ipv6_addr . ipv6_addr . inet_service; flags dynamic, timeout; size 65535; }
	set calling4 {
		type ipv4_addr . ipv4_addr . inet_service . inet_service; flags dynamic, timeout; timeout 1m; size 65535;
	}
	set calling6 {
		type ipv6_addr . ipv6_addr . inet_service . inet_service; flags dynamic, timeout; timeout 1m; size 65535;
	}
	set forth4 {
		type ipv4_addr . ipv4_addr . inet_service; flags dynamic, timeout; timeout 5m; size 65535; counter;
	}
	set forth6 {
		type ipv6_addr . ipv6_addr . inet_service; flags dynamic, timeout; timeout 5m; size 65535; counter;
	}
	set back4 {
		type ipv4_addr . ipv4_addr . inet_service; flags dynamic, timeout; timeout 5m; size 65535; counter;
	}
	set back6 {
		type ipv6_addr . ipv6_addr . inet_service; flags dynamic, timeout; timeout 5m; size 65535; counter;
	}
	set forth_end4 { type ipv4_addr . ipv4_addr . inet_service; flags dynamic, timeout; timeout 5m; size 65535; }
	set back_end4 { type ipv4_addr . ipv4_addr . inet_service; flags dynamic, timeout; timeout 5m; size 65535; }
	set forth_end6 { type ipv6_addr . ipv6_addr . inet_service; flags dynamic, timeout; timeout 5m; size 65535; }
	set back_end6 { type ipv6_addr . ipv6_addr . inet_service; flags dynamic, timeout; timeout 5m; size 65535; }

	# Calls, and connections that the kernel carries, that a firewall lets in by their mark: the same key.
	set expected4 { type ipv4_addr . ipv4_addr . inet_service; flags timeout; }
	set expected6 { type ipv6_addr . ipv6_addr . inet_service; flags timeout; }
	set marked4 { type ipv4_addr . ipv4_addr . inet_service; flags timeout; }
	set marked6 { type ipv6_addr . ipv6_addr . inet_service; flags timeout; }

	chain prerouting {
		type nat hook prerouting priority dstnat - 1; policy accept;
		ip saddr . ip daddr . tcp dport @once4 delete @once4 { ip saddr . ip daddr . tcp dport } \\
			update @calling4 { ip saddr . ip daddr . tcp dport . tcp sport } jump begin
		ip saddr . ip daddr . tcp dport . tcp sport @calling4 jump lead
		ip6 saddr . ip6 daddr . tcp dport @once6 delete @once6 { ip6 saddr . ip6 daddr . tcp dport } \\
			update @calling6 { ip6 saddr . ip6 daddr . tcp dport . tcp sport } jump begin
		ip6 saddr . ip6 daddr . tcp dport . tcp sport @calling6 jump lead
		dnat ip to ip saddr . ip daddr . tcp dport map @awaited4
		dnat ip6 to ip6 saddr . ip6 daddr . tcp dport map @awaited6
	}
	chain begin {
		delete @forth4 { ip saddr . ip daddr . tcp dport } add @forth4 { ip saddr . ip daddr . tcp dport } \\
			delete @back4 { ip saddr . ip daddr . tcp dport } add @back4 { ip saddr . ip daddr . tcp dport }
		delete @forth_end4 { ip saddr . ip daddr . tcp dport }
		delete @back_end4 { ip saddr . ip daddr . tcp dport }
		delete @forth6 { ip6 saddr . ip6 daddr . tcp dport } add @forth6 { ip6 saddr . ip6 daddr . tcp dport } \\
			delete @back6 { ip6 saddr . ip6 daddr . tcp dport } add @back6 { ip6 saddr . ip6 daddr . tcp dport }
		delete @forth_end6 { ip6 saddr . ip6 daddr . tcp dport }
		delete @back_end6 { ip6 saddr . ip6 daddr . tcp dport }
		goto lead
	}
	chain lead {
		meta mark set meta mark & 0xffdfffff
		ip saddr . ip daddr . tcp dport @marked4 ct mark set ct mark | 0x400000
		ip6 saddr . ip6 daddr . tcp dport @marked6 ct mark set ct mark | 0x400000
		dnat ip to ip saddr . ip daddr . tcp dport map @carried4
		dnat ip6 to ip6 saddr . ip6 daddr . tcp dport map @carried6
	}
	chain postrouting {
		type nat hook postrouting priority srcnat - 1; policy accept;
		snat ip to ip saddr . ip daddr . tcp dport map @pinned4
		snat ip to ip saddr . ip daddr . tcp dport map @called4
		snat ip6 to ip6 saddr . ip6 daddr . tcp dport map @pinned6
		snat ip6 to ip6 saddr . ip6 daddr . tcp dport map @called6
	}

	# Marking and counting, at the two places where a packet has the addresses that the caller knows.  What belongs to
	# others is let go at the first look, and where octets pass each rule costs them: the fewest come first.
	chain forth {
		type filter hook prerouting priority mangle - 1; policy accept;
		ct status & (seen-reply | dnat) == seen-reply accept
		ct direction reply accept
		ct status & (assured | dnat) == (assured | dnat) jump count_forth
		meta l4proto tcp tcp flags & (fin | syn | rst | ack) == syn jump mark_expected
	}
	chain back {
		type filter hook postrouting priority srcnat + 1; policy accept;
		ct status dnat ct direction reply jump count_back
	}
	chain mark_expected {
		ip saddr . ip daddr . tcp dport @expected4 meta mark set meta mark | 0x400000
		ip6 saddr . ip6 daddr . tcp dport @expected6 meta mark set meta mark | 0x400000
	}
	chain count_forth {
		ip saddr . ip daddr . tcp dport @forth4 \\
			tcp flags & (fin | rst) != 0 add @forth_end4 { ip saddr . ip daddr . tcp dport }
		ip6 saddr . ip6 daddr . tcp dport @forth6 \\
			tcp flags & (fin | rst) != 0 add @forth_end6 { ip6 saddr . ip6 daddr . tcp dport }
	}
	chain count_back {
		ct status & assured == 0 goto answered
		ip daddr . ip saddr . tcp sport @back4 \\
			tcp flags & (fin | rst) != 0 add @back_end4 { ip daddr . ip saddr . tcp sport }
		ip6 daddr . ip6 saddr . tcp sport @back6 \\
			tcp flags & (fin | rst) != 0 add @back_end6 { ip6 daddr . ip6 saddr . tcp sport }
	}
	chain answered {
		tcp flags & (syn | rst) != 0 delete @calling4 { ip daddr . ip saddr . tcp sport . tcp dport }
		tcp flags & (syn | rst) != 0 delete @calling6 { ip6 daddr . ip6 saddr . tcp sport . tcp dport }
	}
}
"""


FORM = sha256(PLANE_TABLE.encode()).hexdigest()[:16]
"""Tells this text from that of another version."""


class Claim:
    """The right to our table, which one process in a network namespace has: a second one would wipe out the elements
    of the first, and with the table its data connections.

    It is a bound socket with an abstract name (unix(7)): the kernel scopes such names to the network namespace, as it
    does tables, and forgets them when their process ends in whatever way.  Raises `NetfilterError` where another
    process has it, unless it may `share`: then it uses that one's table, and takes the right over when that one ends.
    Element keys arbitrate between the two (NLM_F_EXCL), and who finds the table replaced adds its own elements again.
    """

    NAME = b"\0ftpproxy"

    def __init__(self, *, share: bool = False, leave: bool = False) -> None:
        """`leave` is for processes of one session: the table of an earlier one is used, and left to the next."""
        self._loaded = False
        self._leave = leave
        self._lock: socket.socket | None = None
        if not self._taken() and not share:
            raise NetfilterError(
                'another ftpproxy with a "redirect" service or the plane "nft" runs in this network namespace;'
                " put the services into one file, or stop it first"
            )

    def _taken(self) -> bool:
        """Take it, if nobody else has it; whether it is ours."""
        if self._lock is not None:
            return True
        lock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            lock.bind(self.NAME)
        except OSError as error:
            lock.close()
            if error.errno != errno.EADDRINUSE:
                raise
            return False
        self._lock = lock
        return True

    def load(self, patience: float = 0.0) -> None:
        """`load_table`, and remember to remove it; or see that another process has loaded it, within `patience` seconds
        if it is just starting.  Raises `NetfilterError`."""
        until = time.monotonic() + patience
        while not self._taken():
            if has_table(TABLE):
                return
            if time.monotonic() >= until:
                raise NetfilterError(f"table inet {TABLE} belongs to another ftpproxy, which has not loaded it")
            time.sleep(0.02)
        if self._leave and has_table(TABLE):
            return
        load_table()
        self._loaded = not self._leave

    def adopt(self) -> bool:
        """Take over the table that a predecessor has left, as if we had loaded it; False where it belongs to another
        process."""
        self._loaded = self._taken()
        return self._loaded

    def unload(self) -> None:
        """Remove the table if we loaded it; `load` brings it back.  Raises `NetfilterError`."""
        if self._loaded:
            remove_table()
            self._loaded = False

    def leave(self) -> None:
        """Leave the table to a successor: `close` gives back the right and nothing else."""
        self._loaded = False

    def close(self) -> None:
        """Remove the table if we loaded it, and give the right back.  Raises `NetfilterError`."""
        try:
            self.unload()
        finally:
            if self._lock is not None:
                self._lock.close()


def may_load() -> bool:
    """Whether this process may change nftables at all (CAP_NET_ADMIN); never elsewhere than on Linux."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return False
    effective = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:"))
    return bool(effective >> CAP_NET_ADMIN & 1)


def load_table() -> None:
    """Load our table, empty; one that is there already (a killed process's) is replaced.

    Runs `nft`, some 30 ms: for the start of a process only, which must have the `Claim`.  Raises `NetfilterError`.
    """
    _nft(PLANE_TABLE)


def remove_table() -> None:
    """Remove our table with all its elements; nothing happens where there is none.  Raises `NetfilterError`."""
    _nft(f"table inet {TABLE} {{}}\ndelete table inet {TABLE}\n")


def _nft(text: str) -> None:
    import shutil  # seldom needed by a process of one session, which has to start fast
    import subprocess

    program = shutil.which("nft", path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin")
    if program is None:
        raise NetfilterError("the program nft was not found; install nftables (Debian: apt install nftables)")
    done = subprocess.run(
        [program, "-f", "-"],
        input=text,
        capture_output=True,
        text=True,
        env={**os.environ, "LC_ALL": "C"},
        check=False,
    )
    if done.returncode == 0:
        return
    said = " / ".join(line.strip() for line in done.stderr.splitlines() if line.strip(" \t^~"))
    if "Operation not permitted" in said:
        raise NoPermission("changing nftables needs CAP_NET_ADMIN: run this as root, or give it the capability")
    if "cache initialization failed" in said or "Protocol not supported" in said:
        raise NetfilterError(f"this kernel has no nftables (CONFIG_NF_TABLES, CONFIG_NF_TABLES_INET; nft: {said})")
    if "syntax error" in said:
        raise NetfilterError(
            f"{_version(program)} does not understand our table; {NEEDED} or newer is needed (nft: {said[:MOST_SAID]})"
        )
    if "No such file or directory" in said or "not supported" in said:
        raise NetfilterError(
            "this kernel lacks a part of nftables"
            f" (CONFIG_NFT_NAT, CONFIG_NF_NAT, CONFIG_NF_CONNTRACK_MARK; nft: {said})"
        )
    raise NetfilterError(f"nft failed with exit code {done.returncode}: {said}")


def _version(program: str) -> str:
    """How `nft` calls itself."""
    import subprocess

    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "this nft"
