"""The terms of a service: what all its sessions have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from attrs import field, frozen

from .dtp.plane import DataPlane
from .endpoints import ANY_PORT, Endpoint, IPAddress, Side
from .lobby import Lobby
from .pi.negotiation import Translate
from .pi.policy import Policy, Timeouts
from .wire.proxyheader import build
from .xferlog import Xferlog

__all__ = ["Terms"]


@frozen(kw_only=True)
class Terms:
    """What all sessions of a service have in common."""

    service: str
    policy: Policy
    timeouts: Timeouts
    planes: Sequence[DataPlane]
    """In order of preference: the first that can carry a path gets it."""
    lobby: Lobby | None = None
    """Where a data connection waits for a port; None: it does not wait."""
    source: IPAddress | None = None
    """Our address towards the server; None lets the routing choose."""
    announce: Mapping[Side, Sequence[IPAddress]] = field(factory=dict)
    """What a side is told instead of our address: the first of its family."""
    active_source_port: int = ANY_PORT
    translate: Translate = "mirror"
    send_proxy: Literal["v1", "v2"] | None = None
    """Tell the server who called, by a PROXY header before everything else."""

    xferlog: Xferlog | None = None

    def announced(self, client: IPAddress, server: IPAddress) -> dict[Side, IPAddress]:
        """What the two sides of a session are told instead of our address, where they are."""
        announced = {}
        for side, like in ((Side.CLIENT, client), (Side.SERVER, server)):
            if same := [host for host in self.announce.get(side, ()) if host.version == like.version]:
                announced[side] = same[0]
        return announced

    def first_words(self, client: Endpoint, orig_server: Endpoint) -> bytes:
        """What a server hears before the session: a PROXY header or nothing."""
        return build(self.send_proxy, client, orig_server) if self.send_proxy is not None else b""
