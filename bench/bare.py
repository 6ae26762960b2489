"""The least that a process adds: a proxy in Python that hands octets on and does nothing else.

Its control connections come by a `redirect` rule, as the real one's do; the data goes by the gateway's masquerade, for
what the server says reaches the client as it is.  What is measured of the real proxy beyond this is its own; what is
measured of this one is the machine's, and Python's.
"""

from __future__ import annotations

import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from .tools import BenchError
from .topology import BARE, CLIENTS, GATEWAY_INSIDE, SERVER, Topology, run

__all__ = ["bare"]

PORT = 8023
MOST = 16384

RULES = f"""
table ip bench_bare {{
    chain prerouting {{
        type nat hook prerouting priority dstnat; policy accept;
        ip saddr {CLIENTS[BARE]} tcp dport 21 redirect to :{PORT}
    }}
}}
"""


@contextmanager
def bare(topology: Topology) -> Iterator[None]:
    """It runs on the gateway.  Raises `BenchError` if it does not start."""
    run(*topology.inside(topology.gateway, ["nft", "-f", "-"]), text=RULES)
    command = topology.inside(topology.gateway, [sys.executable, "-m", "bench.bare"])
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            if not process.stdout.readline():
                raise BenchError("the bare proxy does not start")
            yield
        finally:
            process.kill()


def serve() -> None:
    """One client after another, until killed."""
    listener = socket.create_server((GATEWAY_INSIDE, PORT))
    print("listening", flush=True)
    poll = select.epoll()
    while True:
        client, _ = listener.accept()
        with client, socket.create_connection((SERVER, 21)) as server:
            peers = {client.fileno(): (client, server), server.fileno(): (server, client)}
            for number, (sock, _) in peers.items():
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                poll.register(number, select.EPOLLIN)
            open_ = True
            while open_:
                for number, _ in poll.poll():
                    here, there = peers[number]
                    if octets := here.recv(MOST):
                        there.send(octets)
                    else:
                        open_ = False
            for number in peers:
                poll.unregister(number)


if __name__ == "__main__":
    serve()
