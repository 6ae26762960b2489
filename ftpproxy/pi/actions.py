"""What the interpreter asks of its session: rare things only; ordinary lines just appear in the output."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from attrs import frozen

from ..paths import Direction, PathSpec
from ..reasons import Code

__all__ = [
    "Action",
    "Arm",
    "Chunk",
    "Denied",
    "DropPath",
    "EndTransfer",
    "Hangup",
    "LoginFailed",
    "Need",
    "OpenPath",
    "SettlePath",
    "StartPath",
    "Timer",
]


class Need(Enum):
    """Why there is no action now."""

    DATA = "data"
    """Read more from this side."""
    PEER = "peer"
    """The other side, a path or a timer has to move first: do not read from this side."""


class Timer(Enum):
    """What may be timed; one clock each, and arming it again replaces it."""

    GREETING = "greeting"
    LOGIN = "login"
    LINE = "line"
    ANNOUNCE = "announce"
    HOLD = "hold"
    ABORT = "abort"
    ABORTED = "aborted"
    ENDING = "ending"
    NOOP = "noop"

    __hash__ = object.__hash__


class Chunk(NamedTuple):
    """Octets for a control connection."""

    octets: bytes
    alone: bool = False
    """In a segment of its own: boxes on the way look for PORT and 227 at the start of a segment only."""
    urgent: bool = False
    """The last octet is to be sent as TCP urgent data (RFC 959 section 4.1.3)."""


@frozen
class OpenPath:
    """Prepare this data connection, then call `path_opened` or `path_refused`."""

    spec: PathSpec


@frozen
class StartPath:
    """The transfer verb of the open path was sent."""

    direction: Direction
    what: bytes
    """The command line, for the log."""
    user: bytes = b""
    """Who asks for it: the last USER."""
    text: bool = True
    """TYPE A or E; else I or L (RFC 959 section 3.1.1)."""


@frozen
class EndTransfer:
    """The server's final reply to the transfer command has come."""

    positive: bool


@frozen
class SettlePath:
    """The server has declared the transfer complete: the open path goes on to its own end, whatever comes next."""


@frozen
class DropPath:
    """The open path is void: close it."""

    reason: str


@frozen
class Arm:
    """Call `timer(timer)` in so many seconds."""

    timer: Timer
    seconds: float


@frozen
class Hangup:
    """Send what is in the output, then close both control connections."""

    reason: str
    """Mostly a `Reason`, which has its code."""
    drain: bool
    """Settled data connections may go on to their end; otherwise they are cut as well."""


@frozen
class Denied:
    """For the log: something was refused here, by a rule of the service."""

    what: bytes
    """The line that was refused, without what is secret."""
    rule: str
    """The rule, as the administrator names it."""
    code: Code = Code.POLICY_COMMAND


@frozen
class LoginFailed:
    """For the log: a login was refused, by the server or here."""

    user: bytes


Action = OpenPath | StartPath | EndTransfer | SettlePath | DropPath | Arm | Hangup | Denied | LoginFailed
