"""Whom a connection that pf redirected was addressed to: the ioctl DIOCNATLOOK on /dev/pf.

The kernel copies a `struct pfioc_natlook` in, looks the state up and copies it out again (pf(4)).  Three layouts of it
are in use; they differ in size, which is part of the request's number, _IOWR('D', 23, struct pfioc_natlook).  Read from
net/pfvar.h of FreeBSD 12 to 15, OpenBSD 7.6 and NetBSD, and bsd/net/pfvar.h of xnu 11417.  Addresses have 16 octets, an
IPv4 address the first four of them; ports are in network order.

The connection is given as this machine sees it: the source is the peer, the destination our end.  The direction is out,
because the kernel turns the two round for a lookup: so it searches the keys of this side of the translation, and tells
those of the other side.  rdaddr and rdport are the destination before it was rewritten.

A descriptor that was opened read-only is enough, at every securelevel, and the right to ask is checked when it is
opened: a process opens it as root and keeps it when it has become somebody else.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from ipaddress import ip_address
from struct import Struct

from ..endpoints import Endpoint

__all__ = ["LAYOUTS", "DevPf", "NatlookError", "answer", "native_layout", "question", "request"]

DEVICE = "/dev/pf"
PF_OUT = 2
UNKNOWN = errno.ENOENT
"""The answer where there is no state, because nothing was redirected or the interface is one that pf skips."""

# saddr daddr rsaddr rdaddr, sport dport rsport rdport, af proto direction
_FREEBSD = Struct("=16s16s16s16s HHHH BBBx")
# ... behind the addresses two routing domains
_OPENBSD = Struct("=16s16s16s16s 4x HHHH BBBx")
# ... each port in a union of four octets, and before direction a proto_variant
_MACOS = Struct("=16s16s16s16s H2xH2xH2xH2x BBxB")

LAYOUTS = {"freebsd": _FREEBSD, "netbsd": _FREEBSD, "openbsd": _OPENBSD, "darwin": _MACOS}
"""By how `sys.platform` begins.  What is padding here is zero there: routing domain 0, no proto_variant."""


class NatlookError(Exception):
    """pf cannot be asked, or does not know; the text says which, and what would mend it."""


def native_layout(platform: str) -> Struct | None:
    """That of the system that calls itself `platform` (a `sys.platform`); None where we know of none."""
    return next((layout for name, layout in LAYOUTS.items() if platform.startswith(name)), None)


def request(layout: Struct) -> int:
    """DIOCNATLOOK (sys/ioccom.h): both directions, size, group and number."""
    return 0xC0000000 | (layout.size & 0x1FFF) << 16 | ord("D") << 8 | 23


def question(layout: Struct, peer: Endpoint, here: Endpoint, family: int) -> bytes:
    """The struct that asks about the connection from `peer` that arrived at `here`; `family` is the system's AF_."""
    ports = socket.htons(peer.port), socket.htons(here.port), 0, 0
    return layout.pack(peer.host.packed, here.host.packed, b"", b"", *ports, family, socket.IPPROTO_TCP, PF_OUT)


def answer(layout: Struct, octets: bytes, version: int) -> Endpoint:
    """rdaddr and rdport of what the kernel gave back, as IP `version`."""
    _, _, _, rdaddr, _, _, _, rdport, *_ = layout.unpack(octets)
    return Endpoint(ip_address(rdaddr[: 4 if version == 4 else 16]), socket.ntohs(rdport))


def refusal(error: OSError) -> str:
    """Why pf does not tell."""
    if error.errno == errno.E2BIG:
        return "pf has more than one state of that connection"
    return f"pf does not tell (DIOCNATLOOK: {error.strerror})"


class DevPf:
    """An open /dev/pf, to ask about connections.  Open it before privileges are given up."""

    def __init__(self, layout: Struct, device: str = DEVICE) -> None:
        """Raises `NatlookError`; its cause is the `OSError`."""
        self._layout = layout
        try:
            self._descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
        except PermissionError as error:
            raise NatlookError(f"{device}, which knows whom clients called, can only be opened by root") from error
        except OSError as error:
            raise NatlookError(f"{device}: {error.strerror}; is pf in this kernel (FreeBSD: kldload pf)?") from error

    def original_destination(self, peer: Endpoint, here: Endpoint) -> Endpoint | None:
        """Whom `peer` called when it arrived at `here`; None if pf knows of no such connection.  Raises
        `NatlookError`."""
        family = socket.AF_INET if peer.host.version == 4 else socket.AF_INET6
        asked = question(self._layout, peer, here, family)
        try:
            told = fcntl.ioctl(self._descriptor, request(self._layout), asked)
        except OSError as error:
            if error.errno == UNKNOWN:
                return None
            raise NatlookError(refusal(error)) from error
        return answer(self._layout, told, peer.host.version)

    def close(self) -> None:
        os.close(self._descriptor)
