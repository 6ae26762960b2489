"""Reason codes: why something ended, failed or was refused, in one word that never changes.

A reason is said twice: in a sentence for people, and as a code for scripts, alerts and statistics.  A `Reason` is the
sentence, and carries its code with it, so whatever passes a sentence on passes the code on.  The list is closed;
docs/logging.md says what each code means and what to look at, and a test holds the two together.

A code begins with whose matter it is: the `client` and the `server` of the control connection, the `data` connection,
the `policy` and the `limit`s of the service, the `plane` or we ourselves.
"""

from __future__ import annotations

import errno
from enum import Enum
from typing import Literal, Self

from .endpoints import Endpoint, Side

__all__ = ["Code", "Reason", "call_failed", "code_of", "fields"]


class Code(Enum):
    """All there are."""

    QUIT = "quit"
    IDLE = "idle"
    SHUTDOWN = "shutdown"
    OPERATOR = "operator"
    INTERNAL = "internal"
    LOOP = "loop"

    CLIENT_CLOSED = "client.closed"
    CLIENT_GONE = "client.gone"
    CLIENT_LOGIN_TIMEOUT = "client.login_timeout"
    CLIENT_LINE_TIMEOUT = "client.line_timeout"
    CLIENT_FAILED_LOGINS = "client.failed_logins"
    CLIENT_NONSENSE = "client.nonsense"
    CLIENT_FOREIGN = "client.foreign"
    CLIENT_PLAIN_TEXT = "client.plain_text"

    SERVER_CLOSED = "server.closed"
    SERVER_GONE = "server.gone"
    SERVER_DISMISSED = "server.dismissed"
    SERVER_REFUSED = "server.refused"
    SERVER_TIMEOUT = "server.timeout"
    SERVER_UNREACHABLE = "server.unreachable"
    SERVER_FIREWALL = "server.firewall"
    SERVER_UNKNOWN = "server.unknown"
    SERVER_GREETING_TIMEOUT = "server.greeting_timeout"
    SERVER_FOREIGN = "server.foreign"
    SERVER_PLAIN_TEXT = "server.plain_text"
    SERVER_DENIED = "server.denied"
    SERVER_UNANSWERED = "server.unanswered"

    DATA_REFUSED = "data.refused"
    DATA_TIMEOUT = "data.timeout"
    DATA_UNREACHABLE = "data.unreachable"
    DATA_FIREWALL = "data.firewall"
    DATA_MISSING = "data.missing"
    DATA_BROKEN = "data.broken"
    DATA_IDLE = "data.idle"
    DATA_CUT = "data.cut"
    DATA_UNASKED = "data.unasked"

    PROXY_DENIED = "proxy.denied"
    POLICY_CLIENT = "policy.client"
    POLICY_COMMAND = "policy.command"
    POLICY_PORT = "policy.port"
    POLICY_DESTINATION = "policy.destination"
    LIMIT_SESSIONS = "limit.sessions"
    LIMIT_PER_CLIENT = "limit.per_client"
    BALANCER_HEADER = "balancer.header"
    INTERCEPT_UNKNOWN = "intercept.unknown"

    PLANE_UNSUITED = "plane.unsuited"
    PLANE_PORTS = "plane.ports"
    PLANE_PERMISSION = "plane.permission"
    PLANE_FAILED = "plane.failed"

    __hash__ = object.__hash__

    def __str__(self) -> str:
        return self.value


class Reason(str):
    """A sentence with its code, and where one side or one endpoint failed, which."""

    __slots__ = ("at", "code", "side")

    code: Code
    side: Side | None
    at: Endpoint | None

    def __new__(cls, code: Code, text: str, *, side: Side | None = None, at: Endpoint | None = None) -> Self:
        reason = super().__new__(cls, text)
        reason.code, reason.side, reason.at = code, side, at
        return reason


def code_of(why: str, otherwise: Code) -> Code:
    """The code that the sentence carries, if any."""
    return why.code if isinstance(why, Reason) else otherwise


def fields(why: str, otherwise: Code) -> dict[str, object]:
    """Fields of an event: code, side and endpoint where they are known, and the sentence."""
    if not isinstance(why, Reason):
        why = Reason(otherwise, why)
    return {"code": why.code, "side": why.side, "at": why.at, "reason": why}


_CALLS = {
    errno.ECONNREFUSED: "refused",
    errno.ETIMEDOUT: "timeout",
    errno.EPERM: "firewall",
    errno.EACCES: "firewall",
}
"""What connect(2) says; EPERM is a packet filter of this machine, EACCES one on the way (ICMPv6, "administratively
prohibited")."""


def call_failed(number: int, whom: Literal["server", "data"]) -> Code:
    """The code for a call that failed with this errno."""
    return Code(f"{whom}.{_CALLS.get(number, 'unreachable')}")
