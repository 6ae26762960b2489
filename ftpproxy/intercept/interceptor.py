"""The gate: the one room that knows how addresses are made ours.

A control connection may reach us although it was addressed to somebody else (TPROXY, `redirect`, pf), and
the same must hold for the data connections that follow it: a client in passive mode calls the *server's*
address, and in active mode it expects the call to come *from* there.  What it takes to listen at, or to call
from, an address that is not ours differs by kernel and by kind of redirect; a `Gate` hides exactly that.

Contract of every gate:

* `listener` and `caller` do not block and do not wait.  They raise `GateError` with a sentence for the log.
* Ports come from the `PortRange` that the caller hands over, never from the kernel's ephemeral range:
  connect() skips ephemeral ports that carry bound sockets in TIME_WAIT, and binding to port 0 gets slow
  with thousands of them.
* When `listener` returns, somebody listens (`ftpproxy.doors`), and the kernel state that leads the peer there stands:
  **install, then announce**.
* `release` gives kernel state back.  It is idempotent and never raises.  That of a `Listener` ends the waiting as well,
  that of a `Caller` does not close the socket.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

from attrs import define

from ..doors import Expected
from ..endpoints import Endpoint
from ..paths import Await, Call, Leg

__all__ = [
    "Caller",
    "Gate",
    "GateError",
    "Lead",
    "LeadingGate",
    "Listener",
    "NoPortLeft",
    "PortRange",
    "nothing_to_release",
]


class GateError(Exception):
    """An address could not be made ours; the text says which, why, and what would mend it."""


class NoPortLeft(GateError):
    """All ports where somebody could be awaited are taken; one may be free again soon."""


def nothing_to_release() -> None:
    """For gates that install nothing beside the socket."""


@define
class Listener:
    """Somebody who is expected at a door, and the place where he finds it."""

    expected: Expected
    announced: Endpoint
    """The endpoint that the peer calls; differs from `expected.at` where the kernel redirects."""
    release: Callable[[], None]


@define
class Caller:
    """A bound, non-blocking socket that is not connected yet; `connect_ex` to the peer is the owner's."""

    socket: socket.socket
    release: Callable[[], None] = nothing_to_release


class PortRange:
    """Ports in a random order that does not repeat soon (RFC 2577 section 8; docs/protocol.md item 133).

    The order is one random permutation of the range that is walked round and round, so a port that was just
    used (and may sit in TIME_WAIT) comes again only after all the others.
    """

    def __init__(self, first: int, last: int, *, seed: int | None = None) -> None:
        if not 1 <= first <= last <= 65535:
            raise ValueError(f"{first}-{last} is not a range of ports")
        self._order = list(range(first, last + 1))
        chooser = random.Random(seed) if seed is not None else random.SystemRandom()
        chooser.shuffle(self._order)
        self._next = 0
        self._span = f"{first}-{last}"

    def __str__(self) -> str:
        return self._span

    def __len__(self) -> int:
        return len(self._order)

    def once_round(self, most: int | None = None) -> Iterator[int]:
        """Candidates, each at most once; a caller takes the first that can be had.  `most` bounds the tries."""
        for _ in range(len(self._order) if most is None else min(most, len(self._order))):
            port = self._order[self._next]
            self._next = (self._next + 1) % len(self._order)
            yield port


class Gate(Protocol):
    """How one kind of interception makes addresses ours."""

    def prepare(self, listener: socket.socket) -> None:
        """Set what a control listener needs before it is bound (IP_TRANSPARENT for TPROXY).  Raises `GateError`."""

    def original_destination(self, control: socket.socket) -> Endpoint:
        """Whom the client of this accepted control connection dialled.  Raises `GateError`."""

    def listener(self, leg: Await, ports: PortRange) -> Listener:
        """Listen so that `leg.peer` reaches us at `leg.at`, at one of `ports` where that is 0.  Raises `GateError`."""

    def caller(self, leg: Call, ports: PortRange) -> Caller:
        """A socket whose call arrives at `leg.to` as coming from `leg.source`.  Raises `GateError`."""

    def close(self) -> None:
        """Give everything back."""


class Lead(Protocol):
    """What has been asked for on behalf of one leg."""

    def close(self) -> None:
        """It is not wanted any more.  Idempotent; nothing is called afterwards."""


@runtime_checkable
class LeadingGate(Gate, Protocol):
    """A gate that has to ask somebody else before it can make some legs."""

    def lead(
        self, leg: Leg, ports: PortRange, answered: Callable[[str], None], on_crash: Callable[[Exception], None]
    ) -> Lead | None:
        """Ask for what `leg` needs, and call `answered` once, later: with "" when `listener` or `caller` may be called
        for such a leg, else with what went wrong.  None where nothing needs to be asked.  Raises `GateError`."""
