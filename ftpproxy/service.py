"""A service: one configured listener, perhaps of several addresses, with its policy, and who is in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network
from typing import Any

from attrs import define, evolve, field, frozen

from .announce import Announcements
from .arrival import Arrival
from .endpoints import Endpoint, IPAddress
from .intercept.interceptor import Gate
from .pi.policy import Policies
from .reception import Gateway, Reception
from .session import Session
from .terms import Terms

__all__ = ["Census", "Service"]


@frozen(kw_only=True)
class Service:
    """One `[[service]]`, composed."""

    terms: Terms
    gate: Gate
    listen: Sequence[Endpoint]
    clients: Sequence[IPv4Network | IPv6Network] = ()
    """Who may use it; empty: everybody."""
    needs_table: bool = False
    """Our table in nftables must stand while somebody is in it."""
    policies: Policies | None = None
    """By client; None: the policy of `terms` for everybody."""
    announcements: Announcements | None = None
    """By client; None: what `terms` announce to everybody."""
    servers: Sequence[Endpoint] | None = None
    """Reverse mode: whom to call, one a family at most.  None: whom the client dialled."""
    gateway: Gateway | None = None
    """Gateway mode: the client names the server."""
    proxy_protocol: Sequence[IPv4Network | IPv6Network] = ()
    """Load balancers, whose connections begin with a PROXY header."""
    most_sessions: int = 1000
    most_per_client: int = 100

    @property
    def name(self) -> str:
        return self.terms.service

    def terms_for(self, client: IPAddress) -> Terms:
        """What holds for a session of `client`."""
        policy = self.policies.policy_for(client) if self.policies is not None else self.terms.policy
        announce = self.announcements.addresses(client) if self.announcements is not None else self.terms.announce
        if policy is self.terms.policy and announce is self.terms.announce:
            return self.terms
        return evolve(self.terms, policy=policy, announce=announce)

    @property
    def intercepts(self) -> bool:
        """Forward mode: clients call servers and reach us."""
        return self.servers is None and self.gateway is None

    def serves(self, guest: Session | Reception) -> bool:
        """Whether its planes and its gate are those of this very service, and not of one with its name."""
        return guest.terms.planes is self.terms.planes

    def close(self) -> None:
        """Give planes and gate back, which cuts what they carry."""
        for plane in self.terms.planes:
            plane.close()
        self.gate.close()

    def server_for(self, orig_server: Endpoint) -> Endpoint:
        """Whom to call for a client that dialled `orig_server`; a server of its own family is preferred."""
        if self.servers is None:
            return orig_server
        same = [server for server in self.servers if server.host.version == orig_server.host.version]
        return (same or list(self.servers))[0]


@define
class Census:
    """Who is in."""

    sessions: set[Session] = field(factory=set)
    receptions: set[Reception] = field(factory=set)
    arrivals: set[Arrival] = field(factory=set)
    of_client: Counter[IPAddress] = field(factory=Counter)
    """Sessions and receptions."""

    def __len__(self) -> int:
        return len(self.sessions) + len(self.receptions) + len(self.arrivals)

    def clear(self) -> None:
        for guests in (self.sessions, self.receptions, self.arrivals, self.of_client):
            guests.clear()

    def enter(self, guest: Session | Reception) -> None:
        self._such(guest).add(guest)
        self.of_client[guest.client.host] += 1

    def _such(self, guest: Session | Reception) -> set[Any]:
        return self.sessions if isinstance(guest, Session) else self.receptions

    def leave(self, guest: Session | Reception) -> None:
        """Nothing happens when it has left already."""
        if guest in self._such(guest):
            self._such(guest).remove(guest)
            client = guest.client.host
            self.of_client[client] -= 1
            if not self.of_client[client]:
                del self.of_client[client]
