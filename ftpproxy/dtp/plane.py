"""What a data plane is: the contract between a session and whatever carries its data connections.

A plane is asked `carries(spec)`, then `open(spec, owner)`; before, while the server is still thinking about PASV, it
may be told what it will probably be asked for (`foresee`).  `open` never waits.  It returns

* a `Path`, whose listener or kernel rule stands already, or
* `Refused`, with a sentence for the log, or
* `Pending`, where somebody else has to be asked: then the owner is told once, later,

    opened(pending, path)    it stands now
    refused(pending, why)    it cannot be carried

From then on the path talks to its owner through four calls, never from inside `open`, `start`, `settle` or `close`:

    connected(path, side)   the leg of that side is up (the peer called, or our call was answered)
    failed(path, why)       it never carried anything and never will: refused, timed out, peer gone
    delivered(path)         everything that the server sent was handed on, its end of file included
    finished(path, tally)   it carried and ended; `tally.failed` says which end broke, if one did

`failed` and `finished` exclude each other, come at most once, and nothing comes after them or after `close`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol

from attrs import frozen

from ..endpoints import Endpoint, Side
from ..estate import Estate, Inheritance
from ..paths import Direction, PathSpec, Tally
from ..reasons import Code, Reason

__all__ = ["CUT_SHORT", "DataPlane", "Foreseen", "Opener", "Path", "PathOwner", "Pending", "Refused"]

CUT_SHORT = Reason(Code.DATA_CUT, "cut short")
"""Of a tally: we ended it."""


@frozen
class Refused:
    """The plane cannot carry this path; `why` is a sentence for the log, mostly a `Reason` with its code."""

    why: str


class Foreseen(Protocol):
    """What was prepared for a path of which all is known but a port (see `DataPlane.foresee`)."""

    def open(self, spec: PathSpec, owner: Opener) -> Path | Refused | Pending:
        """As `DataPlane.open`; to be called at most once.  `spec` need not be what was foreseen."""

    def close(self) -> None:
        """It was not needed.  Idempotent, never blocks, nothing happens behind `open`."""


class Pending(ABC):
    """A path that is not decided yet; nothing may be announced."""

    @abstractmethod
    def close(self) -> None:
        """Nobody wants it any more.  Idempotent, never blocks, no owner call follows."""


class Path(Protocol):
    """One data connection being prepared or carried.  A session may have several alive."""

    @property
    def announced(self) -> Mapping[Side, Endpoint]:
        """For each awaited leg, where that side is to call."""

    @property
    def ready(self) -> bool:
        """Nothing more is awaited before it may be announced.  False while a server is being dialled:
        then `connected(path, SERVER)` or `failed` follows."""

    @property
    def reports_end(self) -> bool:
        """`delivered` will come, and `finished` as soon as it has ended.  False where the kernel carries and does not
        say: `finished` comes late, mostly after `settle`."""

    @property
    def counts_at_once(self) -> bool:
        """`close` knows at any time what was carried.  False where somebody else has to be asked: then `finished`,
        which comes soon after `settle`, knows more."""

    def start(self, direction: Direction) -> None:
        """The transfer verb was sent.  Octets may flow before it (a client may call early)."""

    def settle(self) -> None:
        """The server has said its last word about the transfer: nobody needs to call any more.  A path that carries
        goes to its own end, and reports it."""

    def so_far(self) -> Tally | None:
        """What it has carried until now; None as long as nothing is known to have been.

        Asked only while somebody looks, never within a transfer's own course.  Raises `OSError` where the kernel counts
        and cannot be asked.
        """

    def close(self) -> Tally | None:
        """End it now, with a reset where it still carries and this process can (the kernel's flows go on).  Idempotent,
        never blocks, no owner call follows.

        Returns what it had carried; None if it never did, or has ended before.
        """

    def leave(self, estate: Estate) -> Any:
        """Leave it to a successor: what `DataPlane.inherit` needs, as JSON can carry it; None where that cannot be.  It
        carries nothing any more and calls nobody, but what stands in the kernel for it stays."""


class PathOwner(Protocol):
    """Whom a path reports to: a session."""

    def connected(self, path: Path, side: Side) -> None: ...

    def failed(self, path: Path, why: str) -> None: ...

    def delivered(self, path: Path) -> None: ...

    def finished(self, path: Path, tally: Tally) -> None: ...


class Opener(PathOwner, Protocol):
    """Who asks planes for paths: also told what has become of those that were pending."""

    def opened(self, pending: Pending, path: Path) -> None: ...

    def refused(self, pending: Pending, why: str) -> None: ...


class DataPlane(Protocol):
    """A way to carry data connections: relay, nft, pf."""

    name: str

    def carries(self, spec: PathSpec) -> bool:
        """Whether this plane can carry such a path at all."""

    def open(self, spec: PathSpec, owner: Opener) -> Path | Refused | Pending:
        """Prepare it.  Never waits, never calls `owner` before it has returned."""

    def foresee(self, spec: PathSpec) -> Foreseen | None:
        """`open` will probably be called for `spec`, but with the port that its called leg lacks: do what can be done
        while nobody waits.  None where that is nothing, or would fail.  Never waits."""

    def inherit(self, left: Any, owner: PathOwner, inheritance: Inheritance) -> Path:
        """Go on with a path that a predecessor has left.  As `open` it never waits and never calls `owner`.

        Raises `Unthawable`, `OSError` or `GateError`: then the path is lost.
        """

    def close(self) -> None:
        """Give everything back; open paths are closed."""
