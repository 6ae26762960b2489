"""Socket options that Python has no names for, and the few things that we do to every socket.

Sources: ip(7), ipv6(7), tcp(7); linux/netfilter_ipv4.h and linux/netfilter_ipv6/ip6_tables.h for the original
destination; linux/in.h and linux/in6.h for the transparent options; those of BSD stand with them; rtnetlink(7).
"""

from __future__ import annotations

import errno
import socket
import struct
import sys

from .endpoints import Endpoint, IPAddress

__all__ = [
    "IPV6_TRANSPARENT",
    "IP_TRANSPARENT",
    "SO_ORIGINAL_DST",
    "bound",
    "close_cleanly",
    "close_with_reset",
    "control",
    "family",
    "foreign_option",
    "is_ours",
    "reset_on_close",
]

SO_ORIGINAL_DST = 80
"""Also IP6T_SO_ORIGINAL_DST: the same number at level IPPROTO_IPV6."""
IP_TRANSPARENT = getattr(socket, "IP_TRANSPARENT", 19)
IPV6_TRANSPARENT = 75

# Level and number of what allows foreign addresses, for IPv4 and for IPv6.
# OpenBSD: sys/socket.h, SO_BINDANY.  FreeBSD: netinet/in.h, IP_BINDANY; netinet6/in6.h, IPV6_BINDANY.
_FOREIGN = {
    "linux": ((socket.IPPROTO_IP, IP_TRANSPARENT), (socket.IPPROTO_IPV6, IPV6_TRANSPARENT)),
    "openbsd": ((socket.SOL_SOCKET, 0x1000), (socket.SOL_SOCKET, 0x1000)),
    "freebsd": ((socket.IPPROTO_IP, 24), (socket.IPPROTO_IPV6, 64)),
}

_RESET = struct.pack("ii", 1, 0)
_GRACEFUL = struct.pack("ii", 0, 0)

KEEPALIVE = 60.0
"""Seconds of silence before the first probe; the next ones come in half the time."""
KEEPALIVE_PROBES = 8
"""Unanswered probes after which the peer is gone: five minutes after its last word."""


def family(host: IPAddress) -> socket.AddressFamily:
    return socket.AF_INET if host.version == 4 else socket.AF_INET6


def foreign_option(version: int, platform: str = sys.platform) -> tuple[int, int]:
    """Level and number of the socket option that lets a socket be bound to an address that is not ours.

    Raises `OSError` (ENOPROTOOPT) where the system has none that we know.
    """
    for system, options in _FOREIGN.items():
        if platform.startswith(system):
            return options[version == 6]
    raise OSError(errno.ENOPROTOOPT, f"{platform} has no foreign addresses for sockets")


def bound(at: Endpoint, *, transparent: bool = False) -> socket.socket:
    """A non-blocking TCP socket bound to `at`, not listening.

    SO_REUSEADDR is set: on Linux two such binds to one address and port both succeed and `listen` arbitrates
    (the second fails with EADDRINUSE).  IPv6 sockets are IPv6 only.  `transparent` allows an address that is
    not ours (`foreign_option`; needs CAP_NET_RAW or CAP_NET_ADMIN, on BSD root, else `PermissionError`).  Raises
    `OSError`.
    """
    sock = socket.socket(family(at.host), socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if at.host.version == 6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if transparent:
            sock.setsockopt(*foreign_option(at.host.version), 1)
        sock.bind(at.sockaddr())
    except BaseException:
        sock.close()
        raise
    return sock


def control(sock: socket.socket, keepalive: float = KEEPALIVE) -> None:
    """Options of every control connection, before its first read.

    TCP_NODELAY: a reply that waits for the peer's delayed ACK costs 40 ms a turn.  SO_OOBINLINE: without it the
    urgent octet of a Telnet Synch is lost from the stream (RFC 959 section 4.1.3).  Keepalive: a control connection is
    silent through a long transfer, and NAT boxes forget silent connections; so after `keepalive` seconds TCP says
    something on it, and notices a peer that is gone (tcp(7); macOS has TCP_KEEPALIVE for the first, OpenBSD neither).
    """
    sock.setblocking(False)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (
            ("TCP_KEEPIDLE" if hasattr(socket, "TCP_KEEPIDLE") else "TCP_KEEPALIVE", max(1, round(keepalive))),
            ("TCP_KEEPINTVL", max(1, round(keepalive / 2))),
            ("TCP_KEEPCNT", KEEPALIVE_PROBES),
        ):
            if (option := getattr(socket, name, None)) is not None:
                sock.setsockopt(socket.IPPROTO_TCP, option, value)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ECONNRESET):
            raise
        # BSD says so of a connection that the peer has reset already; the first read will say it to whom it concerns.


def reset_on_close(sock: socket.socket) -> None:
    """From now on the peer sees a reset, however the socket ends: also when the process is killed."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


def close_with_reset(sock: socket.socket) -> None:
    """End a connection so that the peer cannot take it for an end of file."""
    try:
        reset_on_close(sock)
    except OSError:
        pass  # already reset by the peer (EINVAL on BSD): there is nobody left to tell
    sock.close()


def close_cleanly(sock: socket.socket) -> None:
    """End a connection after everything was said: what the kernel still holds is delivered."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _GRACEFUL)
    except OSError:
        pass  # as above
    sock.close()


def is_ours(host: IPAddress) -> bool:
    """Whether `host` is an address of this machine: whether what is sent there ends here.

    Linux is asked for the route (rtnetlink(7), `ip route get`; 13 to 16 us, as long as the other way): with the sysctl
    `ip_nonlocal_bind` any address can be bound there.  Elsewhere, an address is ours if an ordinary socket can be bound
    to it.
    """
    if host.is_unspecified:
        return True
    if (found := _ends_here(host)) is not None:
        return found
    with socket.socket(family(host), socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((str(host), 0))
        except OSError as error:
            if error.errno in (errno.EADDRNOTAVAIL, errno.EINVAL):
                return False
            raise
        return True


# linux/netlink.h, linux/rtnetlink.h: struct nlmsghdr, struct rtmsg, struct rtattr
_route_question = struct.Struct("=IHHII BBBBBBBBI HH")
_route_answer = struct.Struct("=IHHII BBBBBBBBI")
_REQUEST, _NEW_ROUTE, _GET_ROUTE, _DESTINATION, _LOCAL = 1, 24, 26, 1, 2  # NLM_F_, RTM_, RTM_, RTA_, RTN_


def _ends_here(host: IPAddress) -> bool | None:
    """Whether the route to `host` is local; None where there is nobody to ask."""
    address = host.packed
    size = _route_question.size + len(address)
    header = size, _GET_ROUTE, _REQUEST, 1, 0
    route = family(host), host.max_prefixlen, 0, 0, 0, 0, 0, 0, 0
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC) as sock:  # NETLINK_ROUTE
            sock.send(_route_question.pack(*header, *route, 4 + len(address), _DESTINATION) + address)
            answer = sock.recv(4096)
    except (AttributeError, OSError):  # another system, or no netlink for this process (seccomp)
        return None
    fields = _route_answer.unpack_from(answer)  # an error quotes the question, so it is long enough
    return bool(fields[1] == _NEW_ROUTE and fields[12] == _LOCAL)
