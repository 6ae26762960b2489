"""pyftpdlib on port 21: `pyftpdlib_server.py USER PASSWORD ROOT`, with the defaults of its `FTPHandler`.

A process a session: two active sessions in one of its event loops (2.2.0) can hang, because `ActiveDTP.close`
unregisters a descriptor number that by then belongs to the other session.
"""

from __future__ import annotations

import logging
import socket
import sys

from pyftpdlib.authorizers import DummyAuthorizer
from pyftpdlib.handlers import FTPHandler
from pyftpdlib.ioloop import IOLoop
from pyftpdlib.servers import MultiprocessFTPServer


def main(user: str, password: str, root: str) -> None:
    logging.basicConfig(level=logging.DEBUG)
    FTPHandler.authorizer = DummyAuthorizer()
    FTPHandler.authorizer.add_user(user, password, root, perm="elradfmwMT")
    listeners = [socket.create_server(("", 21), family=family) for family in (socket.AF_INET, socket.AF_INET6)]
    servers = [MultiprocessFTPServer(listener, FTPHandler, ioloop=IOLoop.instance()) for listener in listeners]
    servers[0].serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
