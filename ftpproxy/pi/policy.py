"""What a service allows, and how long it waits: plain values that the administrator sets.

`active_refusal` and `passive_refusal` are the gate-keepers of every data connection (RFC 2577 sections 3 and
4): nothing that a peer writes selects a host, and only ports that pass here are ever named to a plane.  What the
rules on commands mean is `filter`'s; `Policies` is what a service has: one policy, and others for certain networks.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Network, IPv6Network
from typing import NewType

from attrs import frozen

from ..endpoints import Endpoint, IPAddress

__all__ = [
    "DEFAULT_DENIED_PORTS",
    "CommandName",
    "CommandRule",
    "IPNetwork",
    "NetworkRule",
    "Policies",
    "Policy",
    "Timeouts",
    "active_refusal",
    "passive_refusal",
]

IPNetwork = IPv4Network | IPv6Network

DEFAULT_DENIED_PORTS = frozenset(
    {1433, 1521, 3128, 3306, 3389, 5432, 5900, *range(6000, 6064), 6379, 8080, 9200, 11211, 27017}
)
"""Ports of services that a browser or a confused deputy could be aimed at (docs/protocol.md, "bad ports")."""

CommandName = NewType("CommandName", str)
"""`RETR`; `SITE EXEC`, a verb and the first word of its argument; `@write`, a group of verbs; `*`, every verb.
Verbs and second words in upper case, groups in lower case."""


@frozen(kw_only=True)
class CommandRule:
    """Commands that are let through or refused."""

    allow: bool
    command: CommandName
    argument: re.Pattern[bytes] | None = None
    """Concerns only commands in whose argument this is found, behind the second word where `command` has two."""


@frozen(kw_only=True)
class Policy:
    """What one service allows."""

    commands: tuple[CommandRule, ...] = ()
    """The first that concerns a command decides, also about what is denied by default."""
    deny: tuple[CommandName, ...] = ()
    """Commands refused, behind `commands`."""
    read_only: bool = False
    """Nothing on the server may be changed."""
    anonymous_only: bool = False
    """USER may name `anonymous` and `ftp` only."""
    login_attempts: int = 5
    """Refused logins that end a session (RFC 2577 section 5)."""
    unknown_verbs: int = 10
    """Verbs that nobody knows, before login, that end a session."""
    min_data_port: int = 1024
    """Lowest port that PORT, EPRT, 227 and 229 may name (RFC 2577 section 3)."""
    deny_data_ports: frozenset[int] = DEFAULT_DENIED_PORTS
    """Further ports that PORT and EPRT may not name."""
    port_address: str = "same"
    """`same`: PORT and EPRT must carry the client's own address, else 501.  `override`: any address is accepted
    and the client's own is used (clients behind a second NAT)."""
    require_login: bool = True
    """No data connection before a login reply (230, 232)."""
    greeting: str = "strict"
    """`strict`: a server that does not greet with a reply is no FTP server.  `lenient`: its words are passed on."""
    tls: str = "pass"
    """`pass`: AUTH goes to the server and, if it accepts, the session is carried unread.  `refuse`: 502."""


@frozen
class NetworkRule:
    """Clients with a policy of their own."""

    clients: tuple[IPNetwork, ...]
    policy: Policy


@frozen
class Policies:
    """What a service allows to whom."""

    default: Policy = Policy()
    rules: tuple[NetworkRule, ...] = ()
    """In order: the first with a network that `client` is in decides."""

    def policy_for(self, client: IPAddress) -> Policy:
        """The policy for sessions of `client`, an address without IPv4 mapping as in `Endpoint`."""
        for rule in self.rules:
            if any(client in network for network in rule.clients):
                return rule.policy
        return self.default


@frozen(kw_only=True)
class Timeouts:
    """Seconds; see docs/configuration.md for the reasons."""

    connect: float = 30
    """To reach the server."""
    greeting: float = 120
    """For the server's first reply."""
    login: float = 120
    """From the greeting to a successful login."""
    line: float = 60
    """From the first octet of a command line to its end."""
    idle: float = 3600
    """Without a command or a reply, while no data connection carries."""
    data_setup: float = 120
    """For a data connection that was announced to come up."""
    data_idle: float = 900
    """Without an octet on a data connection."""
    keepalive: float = 60
    """Of silence on a control connection before TCP asks whether the peer is alive."""
    noop: float | None = None
    """Of silence before a NOOP to the server; None: never."""
    announce: float = 1
    """How long a 227 waits for our own call to the server's data port to be answered."""


def active_refusal(policy: Policy, named: Endpoint, client: IPAddress) -> tuple[int, str, str] | None:
    """Why `named`, the argument of PORT or EPRT of a client at `client`, is refused: code, text and rule; else None."""
    if policy.port_address == "same" and named.host != client:
        return 501, "The address is not that of the control connection.", "port_address"
    if named.port < policy.min_data_port:
        return 504, "Data connections to that port are not allowed.", "min_data_port"
    if named.port in policy.deny_data_ports:
        return 504, "Data connections to that port are not allowed.", "deny_data_ports"
    return None


def passive_refusal(policy: Policy, port: int) -> str | None:
    """Why `port`, which a server named in a 227 or 229, is refused; else None."""
    if port < policy.min_data_port:
        return f"the server named port {port}, below the lowest allowed ({policy.min_data_port})"
    return None
