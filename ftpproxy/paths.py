"""Data connections without active and passive: two legs, each awaited or called.

| client says / server gets | client leg                     | server leg             |
| ------------------------- | ------------------------------ | ---------------------- |
| passive / passive         | Await(orig_server:?, client)   | Call(server:p, proxy)  |
| active / active           | Call(client:p, orig_server:20) | Await(proxy:?, server) |
| active / passive          | Call(client:p, orig_server:20) | Call(server:p', proxy) |
| passive / active          | Await(orig_server:?, client)   | Await(proxy:?, server) |

A data plane gets a `PathSpec` and knows nothing else of FTP.
"""

from __future__ import annotations

from enum import Enum

from attrs import frozen

from .endpoints import ANY_PORT, Endpoint, IPAddress, Side

__all__ = ["Await", "Call", "Direction", "Leg", "PathSpec", "Tally"]


@frozen
class Await:
    """A leg on which `peer`, and nobody else, will call `at`; port 0 lets the plane choose."""

    at: Endpoint
    peer: IPAddress

    def __str__(self) -> str:
        port = "" if self.at.port == ANY_PORT else f":{self.at.port}"
        return f"awaited from {self.peer} at {self.at.host}{port}"


@frozen
class Call:
    """A leg that we dial: to `to`, from `source`; source port 0 means any."""

    to: Endpoint
    source: Endpoint

    def __str__(self) -> str:
        return f"called at {self.to}"


Leg = Await | Call


@frozen
class PathSpec:
    """One data connection to be carried."""

    client: Leg
    server: Leg

    def __str__(self) -> str:
        return f"client {self.client}, server {self.server}"

    def leg(self, side: Side) -> Leg:
        return self.client if side is Side.CLIENT else self.server

    @property
    def halves(self) -> tuple[Side, Await, Call] | None:
        """The awaited leg with its side, and the called one; None if they are not one each."""
        client, server = self.client, self.server
        if isinstance(client, Await) and isinstance(server, Call):
            return Side.CLIENT, client, server
        if isinstance(server, Await) and isinstance(client, Call):
            return Side.SERVER, server, client
        return None


class Direction(Enum):
    """Which way the octets of a transfer go (RFC 959 section 2.2, "data connection")."""

    DOWN = "down"
    """Server to client: RETR, LIST, NLST, MLSD."""
    UP = "up"
    """Client to server: STOR, STOU, APPE."""

    __hash__ = object.__hash__

    def __str__(self) -> str:
        return self.value

    @property
    def sender(self) -> Side:
        """The side whose end of file ends the transfer in stream mode (RFC 959 section 3.4.1)."""
        return Side.SERVER if self is Direction.DOWN else Side.CLIENT


@frozen
class Tally:
    """What one data connection carried."""

    octets_down: int
    """Payload octets delivered to the client."""
    octets_up: int
    """Payload octets delivered to the server."""
    seconds: float
    """From both legs up to both legs ended."""
    exact: bool = True
    """False where the kernel counted packets and the octets are an estimate."""
    failed: Side | None = None
    """The side whose leg failed first; None after a clean end."""
    reason: str = ""
    """Why it failed, in words for a log line; mostly a `Reason`, which has its code."""
