"""What the login of the gateway mode leaves to the interpreter: the server has greeted, and who asked for it how."""

from __future__ import annotations

from enum import Enum

from attrs import field, frozen

from ..wire.command import Command
from .destinations import Target, parse_target

__all__ = ["HandOver", "Naming"]


class Naming(Enum):
    """What a USER of this client means once it has its server."""

    PLAIN = "plain"
    """A user of the server (after SITE, OPEN, HOST)."""
    AT_HOST = "user@host"
    """A user of the server, with the server's name behind the last @."""
    PROXY_USER = "proxyuser@host"
    """A user of the server, unless it is the proxy user's name."""
    COMBINED = "combined"
    """A user of the server, but with an @ the whole login, for the server and the proxy, once more."""


@frozen
class HandOver:
    """The two ends are connected; an interpreter takes them from here."""

    greeting: int
    """The code of the server's greeting, or of its reply to USER: 230 if somebody is logged in already, else 220."""
    target: Target
    """The server, as the client named it."""
    naming: Naming = Naming.PLAIN
    proxy_user: bytes = b""
    """Who logged in to the proxy."""
    first: Command | None = field(default=None, repr=False)
    """What the client has said to us and means for the server: USER or PASS, whose reply it waits for."""
    client: bytes = field(default=b"", repr=False)
    """What has come from the client behind that."""
    server: bytes = field(default=b"", repr=False)
    """What the server has said beyond its replies so far."""

    def user(self, command: Command) -> Command | None:
        """A later USER as the server is to hear it; None if it is not meant for this server (503).

        Another server needs another control connection: this one's data connections, security and pending replies
        belong to the server it has, and closing them behind the client's back is worse than saying 503.  The same
        holds for a client that begins the login to the proxy anew: the PASS that follows is not the server's to see.
        """
        name, at, host = command.argument.rpartition(b"@")
        if self.naming is Naming.PLAIN:
            return command
        if not at:
            anew = self.naming is Naming.AT_HOST and self.proxy_user and command.argument == self.proxy_user
            return None if anew else command
        if self.naming is Naming.PROXY_USER:
            return None if name == self.proxy_user else command
        try:
            same = self.naming is Naming.AT_HOST and bool(name) and parse_target(host) == self.target
        except ValueError:
            same = False
        return Command(command.verb, name, command.verb + b" " + name) if same else None
