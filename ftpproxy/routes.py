"""The four addresses of one control connection, named as in ftp-proxy(8).

    client ----------> orig_server            what the client believes
    client --> [ us ] proxy ------> server    what happens

In forward mode `server` equals `orig_server`; in reverse mode `server` is the configured one and
`orig_server` is the address of ours that the client dialled.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from attrs import field, frozen

from .endpoints import Endpoint, IPAddress, Side

__all__ = ["Route"]

_NOTHING: Mapping[Side, IPAddress] = MappingProxyType({})


@frozen
class Route:
    """One control connection's addresses.  Hosts of data connections come from here and never from the wire."""

    client: Endpoint
    """Who called us."""
    orig_server: Endpoint
    """Whom the client dialled: data must work at this address (RFC 2428 section 3)."""
    server: Endpoint
    """Whom we call."""
    proxy: Endpoint
    """Our end of the connection to the server: the address that the server sees."""
    announce: Mapping[Side, IPAddress] = field(default=_NOTHING)
    """What a side is told instead of the address above, where another NAT stands between us and that side."""

    def told(self, side: Side) -> IPAddress:
        """The host that PORT (to the server) or 227 (to the client) carries."""
        own = self.orig_server.host if side is Side.CLIENT else self.proxy.host
        return self.announce.get(side, own)
