"""What is written down of a session, and of who is not in a session yet, for a successor (`ftpproxy.estate`).

Plain values: addresses, octets, numbers of descriptors, and what interpreters and planes say of themselves.  Times are
seconds relative to the moment of writing, since clocks of two processes have nothing in common; what passes between the
two is counted as nothing.  A password may stand in here (of a login that is under way), which is why an estate is
memory and never a file.
"""

from __future__ import annotations

from typing import Any

from attrs import frozen

from .endpoints import Endpoint, IPAddress, Side
from .paths import PathSpec, Tally
from .pi.actions import Timer
from .pi.login import Dial
from .pi.wishes import Verify
from .routes import Route

__all__ = [
    "ArrivalRecord",
    "CarriageRecord",
    "CarriedRecord",
    "End",
    "ListenerRecord",
    "ReceptionRecord",
    "SessionRecord",
]


@frozen
class End:
    """A control connection to one side."""

    descriptor: int
    unsent: bytes


@frozen(kw_only=True)
class CarriedRecord:
    """One data connection of a session."""

    spec: PathSpec
    carried: Any
    """What the carriage knows of it."""
    age: float
    path: Any = None
    """What its plane knows of it; None where it is over, or cannot move."""
    so_far: Tally | None = None
    open: bool = False
    """The next transfer will use it."""
    transfer: bool = False
    """The server owes its word about it."""


@frozen(kw_only=True)
class CarriageRecord:
    """All of them."""

    carried: tuple[CarriedRecord, ...] = ()
    opening: PathSpec | None = None
    """What a plane has not opened yet; it is asked once more."""
    fell_back: bool = False
    accounted: int = 0


@frozen(kw_only=True)
class SessionRecord:
    """A session."""

    number: int
    service: str
    client: Endpoint
    orig_server: Endpoint
    server: Endpoint
    ends: dict[Side, End]
    """None where only data connections are left."""
    route: Route | None = None
    """None while the server is being called."""
    interpreter: Any = None
    carriage: CarriageRecord
    announce: dict[Side, tuple[IPAddress, ...]]
    """What the service would have told; for a session without a route."""
    deadlines: dict[Timer, float]
    """In so many seconds."""
    quiet: float
    """Since the last word."""
    age: float
    over: bool = False


@frozen(kw_only=True)
class ReceptionRecord:
    """A client of the gateway mode without a server."""

    number: int
    service: str
    client: Endpoint
    orig_server: Endpoint
    ends: dict[Side, End]
    server: Endpoint | None
    login: Any
    errand: Dial | Verify | None
    """What was being done for it, and is done once more."""
    announce: dict[Side, tuple[IPAddress, ...]]
    deadlines: dict[Timer, float]


@frozen(kw_only=True)
class ArrivalRecord:
    """A load balancer's connection."""

    service: str
    descriptor: int
    peer: Endpoint
    reader: Any
    seconds: float
    """Left for the header."""


@frozen
class ListenerRecord:
    """A listening socket."""

    wanted: Endpoint
    """As the configuration has it."""
    descriptor: int
