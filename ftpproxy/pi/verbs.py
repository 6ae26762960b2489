"""What each verb means to a proxy: one table.

Most verbs mean nothing: their lines pass.  A *barrier* verb is forwarded only when no reply is owed, and nothing
is forwarded behind it until its final reply was handled; this is what makes it certain which reply belongs to a
PASV, while ordinary commands may still be pipelined.
"""

from __future__ import annotations

from enum import Enum, auto

from ..paths import Direction

__all__ = ["BARRIERS", "HTTP_VERBS", "REFUSED_FEATURES", "TRANSFERS", "Kind", "kind_of"]


class Kind(Enum):
    """Classes of verbs, in the order of how much we care."""

    ORDINARY = auto()
    GREETING = auto()
    """Not a verb: the server's first reply, which is awaited as if it answered one."""
    LOGIN = auto()
    """USER, PASS, ACCT: their replies tell whether somebody is logged in."""
    ABORT = auto()
    PASSIVE = auto()
    """PASV, EPSV: the reply carries an endpoint."""
    ACTIVE = auto()
    """PORT, EPRT: the command carries an endpoint."""
    TRANSFER = auto()
    SECURITY = auto()
    """AUTH: may end our understanding of what follows (RFC 4217)."""
    RESET = auto()
    """REIN: back to the state before login (RFC 959 section 4.1.1)."""
    ENDING = auto()
    """QUIT."""
    FEATURES = auto()
    """FEAT: the reply is filtered."""
    MODE = auto()
    """MODE: in some modes a data connection carries several files."""
    TYPE = auto()
    """TYPE: what the log says of a transfer."""
    BARRIER = auto()
    """Ordinary, but alone in flight: CCC, PBSZ, PROT."""
    PROBE = auto()
    """NOOP of ours: nobody waits for its reply."""
    REFUSED = auto()
    """Verbs that carry endpoints in forms we do not rewrite: passed on they would name hosts behind our back."""

    __hash__ = object.__hash__


TRANSFERS = {
    b"RETR": Direction.DOWN,
    b"LIST": Direction.DOWN,
    b"NLST": Direction.DOWN,
    b"MLSD": Direction.DOWN,
    b"STOR": Direction.UP,
    b"STOU": Direction.UP,
    b"APPE": Direction.UP,
}

_KINDS = {
    **dict.fromkeys((b"USER", b"PASS", b"ACCT"), Kind.LOGIN),
    **dict.fromkeys((b"PASV", b"EPSV"), Kind.PASSIVE),
    **dict.fromkeys((b"PORT", b"EPRT"), Kind.ACTIVE),
    **dict.fromkeys(TRANSFERS, Kind.TRANSFER),
    **dict.fromkeys((b"CCC", b"PBSZ", b"PROT"), Kind.BARRIER),
    # LPRT and LPSV RFC 1639; pure-ftpd; pure-ftpd; FXP with TLS roles swapped; GridFTP striping
    **dict.fromkeys(
        (b"LPRT", b"LPSV", b"SPSV", b"ESTA", b"ESTP", b"CPSV", b"SSCN", b"SPAS", b"SPOR", b"ERET", b"ESTO"),
        Kind.REFUSED,
    ),
    b"AUTH": Kind.SECURITY,
    b"REIN": Kind.RESET,
    b"QUIT": Kind.ENDING,
    b"ABOR": Kind.ABORT,
    b"FEAT": Kind.FEATURES,
    b"MODE": Kind.MODE,
    b"TYPE": Kind.TYPE,
}

BARRIERS = frozenset({Kind.PASSIVE, Kind.ACTIVE, Kind.TRANSFER, Kind.SECURITY, Kind.RESET, Kind.BARRIER})

REFUSED_FEATURES = frozenset(verb for verb, kind in _KINDS.items() if kind is Kind.REFUSED) | {b"ALGS"}
"""Labels of FEAT that promise what we refuse (ALGS: RFC 6384 section 13)."""

HTTP_VERBS = frozenset(
    {b"GET", b"POST", b"PUT", b"HEAD", b"OPTIONS", b"CONNECT", b"DELETE", b"PATCH", b"TRACE", b"PRI"}
)
"""A first line that begins so comes from a browser that was aimed at us."""


def kind_of(verb: bytes) -> Kind:
    return _KINDS.get(verb, Kind.ORDINARY)
