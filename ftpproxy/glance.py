"""A glance: what one session is doing at this moment, in plain values for whoever asks.

Made only when somebody asks, from what the session and its parts keep anyway.  Names are text that anything can be in,
control characters too: who prints it escapes it.
"""

from __future__ import annotations

from typing import Literal

from attrs import frozen

from .carried import Carried

__all__ = ["Glance", "Load", "load_of", "text"]


def text(octets: bytes) -> str:
    """Octets of a peer as text: UTF-8, and what is not becomes `\\xNN`."""
    return octets.decode("utf-8", "backslashreplace")


@frozen(kw_only=True)
class Load:
    """One data connection."""

    plane: str
    direction: str | None = None
    """`down` or `up`; None before the transfer command."""
    up: bool = False
    """Both its legs are."""
    octets: int = 0
    """Payload so far, in the transfer's direction; in both together where none is known."""
    seconds: float = 0.0
    exact: bool = True
    """False where the kernel counts packets."""

    @property
    def rate(self) -> float:
        """Octets a second, from the beginning."""
        return self.octets / self.seconds if self.seconds > 0 else 0.0


@frozen(kw_only=True)
class Glance:
    """One session.  Times are in seconds."""

    session: int
    service: str
    state: Literal["login", "calling", "open", "unread", "ending"]
    """Naming a server (gateway mode), calling it, talking to it, carrying TLS unread, delivering the rest."""
    client: str
    server: str | None
    age: float
    idle: float = 0.0
    """Since either side spoke or a data connection carried."""
    user: str = ""
    command: str = ""
    """The verb that the server owes a reply to, else that of a transfer that is still on its way; nothing if there is
    neither."""
    file: str = ""
    """What stands behind it."""
    load: Load | None = None
    """The data connection of the transfer, or the one that is being prepared."""


def load_of(carried: Carried) -> Load:
    """What a data connection has carried until now."""
    try:
        tally = carried.tally or carried.path.so_far()
    except OSError:  # the kernel counts, and cannot be asked
        tally = None
    direction = None if carried.direction is None else str(carried.direction)
    up = len(carried.up) == 2 or tally is not None
    if tally is None:
        return Load(plane=carried.plane, direction=direction, up=up)
    octets = {"down": tally.octets_down, "up": tally.octets_up, None: tally.octets_down + tally.octets_up}[direction]
    return Load(
        plane=carried.plane, direction=direction, up=up, octets=octets, seconds=tally.seconds, exact=tally.exact
    )
