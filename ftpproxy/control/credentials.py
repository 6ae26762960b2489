"""Who is at the other end of a unix socket, as the kernel knows it.

Linux: SO_PEERCRED (struct ucred: pid, uid, gid) and SO_PEERGROUPS, the supplementary groups (unix(7), Linux 4.13), all
as they were when the peer connected.  FreeBSD: LOCAL_PEERCRED gives struct xucred (unix(4); sys/ucred.h).  OpenBSD:
SO_PEERCRED gives struct sockpeercred, uid, gid, pid (unix(4)); supplementary groups are then looked up by the uid.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import socket
import struct
import sys
from typing import Protocol

from attrs import frozen

__all__ = ["Peer", "peer_of"]

SO_PEERGROUPS = 59
"""asm-generic/socket.h."""
LOCAL_PEERCRED = 1
"""sys/un.h of FreeBSD, at level 0 (SOL_LOCAL)."""
OPENBSD_SO_PEERCRED = 0x1022
MOST_GROUPS = 65536
"""NGROUPS_MAX of Linux (limits.h)."""


class HasOptions(Protocol):
    """A socket, of the standard library or of trio."""

    def getsockopt(self, level: int, option: int, size: int, /) -> bytes: ...


@frozen
class Peer:
    """A user, with all his groups."""

    uid: int
    groups: frozenset[int]

    @property
    def almighty(self) -> bool:
        """Root, or the user that this process runs as."""
        return self.uid in (0, os.geteuid())


def peer_of(sock: HasOptions) -> Peer:
    """The user who has connected to this end.  Raises `OSError`."""
    if sys.platform == "linux":
        _, uid, gid = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        groups = {gid, *_peer_groups(sock)}
    elif sys.platform.startswith("openbsd"):
        uid, gid, _ = struct.unpack("IIi", sock.getsockopt(socket.SOL_SOCKET, OPENBSD_SO_PEERCRED, 12))
        groups = {gid, *_groups_of(uid)}
    else:
        # struct xucred: u_int cr_version; uid_t cr_uid; short cr_ngroups; gid_t cr_groups[16]; a pointer
        octets = sock.getsockopt(0, LOCAL_PEERCRED, 88)
        _, uid, count = struct.unpack_from("IIh", octets)
        groups = set(struct.unpack_from(f"{min(count, 16)}I", octets, 12))
    return Peer(uid, frozenset(groups))


def _peer_groups(sock: HasOptions) -> tuple[int, ...]:
    room = 256
    while room <= MOST_GROUPS:
        try:
            octets = sock.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, 4 * room)
        except OSError as error:
            if error.errno != errno.ERANGE:
                raise
            room *= 16
        else:
            return struct.unpack(f"{len(octets) // 4}I", octets)
    return ()


def _groups_of(uid: int) -> list[int]:
    try:
        user = pwd.getpwuid(uid)
    except KeyError:
        return []
    return [group.gr_gid for group in grp.getgrall() if user.pw_name in group.gr_mem]
