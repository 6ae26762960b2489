"""The lab's FTP server: pyftpdlib with one directory that anonymous and `lab` (password `lab`) may read and write.

    python -m ftpproxy.lab.ftpd --root DIR [--listen ADDRESS:PORT ...]

When it accepts connections it prints one line, `ready` and its addresses.  It keeps pyftpdlib's defaults, above all
the refusal of PORT and EPRT to any address but the client's (RFC 2577 section 3): servers in the field refuse too.
"""

from __future__ import annotations

import argparse
import logging
import socket
import sys
import warnings
from contextlib import suppress

from ..endpoints import Endpoint
from ..sockets import bound

__all__ = ["main"]

PERMISSIONS = "elradfmwMT"


def main(argv: list[str] | None = None) -> int:
    """Serve until killed."""
    parser = argparse.ArgumentParser(prog="python -m ftpproxy.lab.ftpd", description="the lab's FTP server")
    parser.add_argument("--root", required=True, metavar="DIR", help="what is served")
    parser.add_argument("--listen", action="append", metavar="ADDRESS:PORT", help="default: port 21 of both families")
    parser.add_argument("--passive-ports", metavar="FIRST-LAST", help="ports of passive data connections")
    parser.add_argument("--permit-foreign", action="store_true", help="call any address that PORT or EPRT names")
    args = parser.parse_args(argv)

    warnings.simplefilter("ignore")  # pyftpdlib warns of what we want: an anonymous user who may write
    from pyftpdlib.authorizers import DummyAuthorizer
    from pyftpdlib.handlers import FTPHandler
    from pyftpdlib.ioloop import IOLoop
    from pyftpdlib.servers import ThreadedFTPServer

    class Conversation(FTPHandler):  # type: ignore[misc]
        authorizer = DummyAuthorizer()
        banner = "the lab's server"
        permit_foreign_addresses = args.permit_foreign

    class Loop(IOLoop):  # type: ignore[misc]
        def unregister(self, descriptor: int) -> None:
            """Where pyftpdlib (2.2.0) closes a socket first and unregisters it then, as for each EPSV over IPv6, the
            thread of another session may have opened a file meanwhile that got its number.  Of a file epoll_ctl(2) says
            EPERM; pyftpdlib expects ENOENT and EBADF only, and the control connection would end without a word."""
            with suppress(PermissionError):
                super().unregister(descriptor)

    Conversation.authorizer.add_anonymous(args.root, perm=PERMISSIONS)
    Conversation.authorizer.add_user("lab", "lab", args.root, perm=PERMISSIONS)
    if args.passive_ports:
        first, last = map(int, args.passive_ports.split("-"))
        Conversation.passive_ports = range(first, last + 1)
    logging.getLogger("pyftpdlib").setLevel(logging.WARNING)

    sockets: list[socket.socket] = []
    for text in args.listen or ["0.0.0.0:21", "[::]:21"]:
        sock = bound(Endpoint.parse(text))
        sock.listen(128)
        sockets.append(sock)
    # A thread for each session: pyftpdlib's own loop mixes up sessions whose descriptors are closed and opened in one
    # round, and with a dozen sessions at once some of them are never read again.
    loop = Loop()
    servers = [ThreadedFTPServer(sock, Conversation, ioloop=loop) for sock in sockets]
    print("ready", *(Endpoint.from_sockaddr(sock.getsockname()) for sock in sockets), flush=True)
    servers[0].serve_forever(handle_exit=False)  # one loop accepts for both
    return 0


if __name__ == "__main__":
    sys.exit(main())
