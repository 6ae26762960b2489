"""A kernel plane in a process of its own, to be killed: `SECONDS CLIENT AT SERVER SEEN`.

It leads the passive CLIENT, which is told AT, to the endpoint SERVER, where it is SEEN as that address; elements live
SECONDS.  It says where the client is to call, and waits.
"""

from __future__ import annotations

import signal
import sys

from ftpproxy import table
from ftpproxy.doors import Doors
from ftpproxy.dtp.nft import NftPath, NftPlane
from ftpproxy.endpoints import Endpoint, Side, parse_address
from ftpproxy.intercept.interceptor import PortRange
from ftpproxy.netfilter import Elements
from ftpproxy.paths import Await, Call, Direction, PathSpec
from ftpproxy.switchboard import Switchboard

from .owner import KernelOwner as Owner


def main(seconds: str, client: str, at: str, server: str, seen: str) -> None:
    table.PLANE_TABLE = table.PLANE_TABLE.replace("timeout 5m", f"timeout {float(seconds) * 1000:.0f}ms")
    table.load_table()
    board = Switchboard()
    plane = NftPlane(Elements(), PortRange(20000, 20099), board, Doors(board), seconds=float(seconds))
    spec = PathSpec(
        client=Await(Endpoint(parse_address(at), 0), parse_address(client)),
        server=Call(Endpoint.parse(server), Endpoint(parse_address(seen), 0)),
    )
    path = plane.open(spec, Owner())
    assert isinstance(path, NftPath), path
    path.start(Direction.DOWN)
    print(path.announced[Side.CLIENT], flush=True)
    signal.pause()


if __name__ == "__main__":
    main(*sys.argv[1:])
