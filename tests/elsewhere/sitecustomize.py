"""Linux without what only Linux has: as near to a BSD as this machine gets, for `tests/test_elsewhere.py`.

Python runs a module of this name at its start, if its folder is on PYTHONPATH; so child processes are in the same
place.  What is taken away: the names in the standard library, the package pyroute2, /proc, abstract
names of Unix sockets, all of 127/8 but its first address, and the word "linux".  What stays is the kernel below, and
with it all other behaviour: a selector is poll(2) here, where a BSD has kqueue(2).
"""

import errno
import fcntl
import os
import resource
import select
import selectors
import signal
import socket
import sys
import sysconfig
import types
from typing import Any

import trio  # has nothing to stand on but epoll or kqueue, so it keeps its own

ONLY_LINUX = {
    socket: (
        "AF_ALG AF_CAN AF_NETLINK AF_PACKET AF_TIPC AF_VSOCK IP_TRANSPARENT IP_FREEBIND SO_ORIGINAL_DST SO_MARK"
        " SO_DOMAIN SO_BINDTODEVICE SO_INCOMING_CPU SO_PASSCRED SO_PASSSEC SO_PEERCRED SO_PEERSEC SO_PRIORITY"
        " SO_PROTOCOL SOCK_NONBLOCK SOCK_CLOEXEC TCP_CORK TCP_DEFER_ACCEPT TCP_LINGER2 TCP_QUICKACK TCP_SYNCNT"
        " TCP_USER_TIMEOUT TCP_WINDOW_CLAMP MSG_CONFIRM MSG_ERRQUEUE MSG_FASTOPEN MSG_MORE"
    ),
    os: (
        "splice SPLICE_F_MORE SPLICE_F_MOVE SPLICE_F_NONBLOCK copy_file_range eventfd eventfd_read eventfd_write"
        " getrandom memfd_create pidfd_open sched_getaffinity sched_setaffinity O_PATH"
    ),
    fcntl: "F_GETPIPE_SZ F_SETPIPE_SZ F_ADD_SEALS F_GET_SEALS F_NOTIFY F_GETSIG F_SETSIG",
    resource: "prlimit RLIMIT_MSGQUEUE RLIMIT_NICE RLIMIT_RTPRIO RLIMIT_RTTIME RLIMIT_SIGPENDING",
    select: " ".join(name for name in vars(select) if name.lower().startswith("epoll")),
    selectors: "EpollSelector",
    signal: "SIGCLD SIGPOLL SIGPWR SIGSTKFLT sigtimedwait sigwaitinfo",
}


def _take_away() -> None:
    trios = types.ModuleType("select")
    vars(trios).update(vars(select))
    sys.modules["trio._core._io_epoll"].select = trios  # type: ignore[attr-defined]
    for module, names in ONLY_LINUX.items():
        for name in names.split():
            if hasattr(module, name):
                delattr(module, name)
    selectors.DefaultSelector = selectors.PollSelector  # type: ignore[assignment, misc]
    sys.modules["pyroute2"] = None  # type: ignore[assignment]  # importing it raises ModuleNotFoundError
    sys.addaudithook(_refuse)
    sysconfig.get_config_vars()  # of this Python, which is kept under this platform's name
    sys.platform = "freebsd15"


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event in {"open", "os.listdir", "os.scandir"} and str(arguments[0]).startswith("/proc"):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), arguments[0])
    if event == "socket.bind":
        sock, address = arguments
        if sock.family == socket.AF_UNIX and address[:1] in ("\0", b"\0"):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        if sock.family == socket.AF_INET and address[0].startswith("127.") and address[0] != "127.0.0.1":
            raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))


assert trio.lowlevel
_take_away()
