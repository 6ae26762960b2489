"""What `nft flush ruleset` would take along with all rules: address translation itself.

Which connections are translated, and how, is in conntrack and needs no rule.  But the kernel follows connections, and
translates them, in hooks that stand only as long as a rule asks for conntrack and a chain is of the type nat
(net/netfilter/nf_conntrack_proto.c, nf_nat_core.c).  When the last are flushed, packets of running connections go out
as they came in.  The client of a redirected control connection hears from an address that it never called, and resets
that; its own connection has nobody at the other end any more, and it waits for ever.

A table with an owner (NFT_TABLE_F_OWNER, Linux 5.12) is left alone by everybody's flush, and goes with the socket that
made it, whatever becomes of the process.  So we keep one, with both:

    table inet ftpproxy_nat {
        flags owner
        chain prerouting { type nat hook prerouting priority 0; policy accept; ct direction original }
    }

The first packet of each connection pays for a look at that rule, which decides nothing, and no other packet does.

nft before 1.1.0 prints the flags of a table from memory that it has freed when it is asked for JSON: an owner makes
that anything, mostly no JSON at all.  So whoever wants the ruleset as JSON lists it `without` our table.
"""

from __future__ import annotations

import errno
import socket

from .netfilter import all_answers, open_netlink
from .nfmessages import pack_nat_chain, pack_table_question

__all__ = ["TABLE", "UNREADABLE", "NatHook", "without"]

TABLE = "ftpproxy_nat"
"""Of the family inet."""

UNREADABLE = "nft prints JSON that is none; before 1.1.0 it does so where a table has an owner"
"""For whoever has to say so."""

_OF_ANOTHER = (errno.EEXIST, errno.EPERM)


class NatHook:
    """Keeps the hooks of address translation in this network namespace, from `hold` until `close`."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._settled = False
        self.held = False

    def hold(self) -> None:
        """Begin, and be `held`.  Nothing happens where that is so, or an older kernel cannot; where another process
        does it, or CAP_NET_ADMIN is missing, it may be tried again.  Raises `OSError` where the kernel has no nftables.
        """
        if self._settled:
            return
        if self._socket is None:  # it stays open
            self._socket = open_netlink()
        # Looked for first: a transaction that fails costs 16 ms, and this one may be tried every second.
        if self._said(pack_table_question(TABLE)) != {errno.ENOENT}:
            return
        said = self._said(pack_nat_chain(TABLE))
        self.held = said == {0}
        self._settled = self.held or not said.intersection(_OF_ANOTHER)

    def _said(self, question: bytes) -> set[int | None]:
        """The errors that the kernel answers, 0 for none and None for what is no acknowledgement."""
        assert self._socket is not None
        self._socket.send(question)
        return {answer.error for answer in all_answers(self._socket)}  # there when send(2) returns

    def close(self) -> None:
        """End: the kernel removes the table with its owner.  It may be held again."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self.held = self._settled = False


def without(tables: str) -> list[tuple[str, ...]]:
    """What to have nft list, one after the other, for the ruleset without our table; `tables` is what `nft list tables`
    has said."""
    names = [line.split()[1:] for line in tables.splitlines()]
    if ["inet", TABLE] not in names:
        return [("list", "ruleset")]
    return [("list", "table", family, name) for family, name in names if name != TABLE]
