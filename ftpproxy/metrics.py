"""What is counted: plain integers, added to where things happen and read when somebody asks.

Counting costs an addition, so it is always done.  Nothing here knows of Prometheus; `exposition` turns the numbers into
its text, and is only there if the configuration asks for it.  Keys are words of ours (services, planes, codes, rules of
the configuration), never what a peer can choose, so there are as many as the configuration has.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Sequence

from .paths import Await, Call, Direction, PathSpec, Tally
from .reasons import Code

__all__ = ["DURATIONS", "SET_UPS", "Counts", "Histogram", "counts"]

DURATIONS = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0)
"""Seconds that transfers take: bounds of buckets."""
SET_UPS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0)
"""Seconds from the preparation of a data connection until both ends are connected."""


class Histogram:
    """How many values lie up to each bound, and behind the last."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """Of each bucket by itself."""
        self.total = 0.0
        """The sum of all values."""

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class Counts:
    """Since the start of the process."""

    def __init__(self) -> None:
        self.sessions: Counter[tuple[str, Code]] = Counter()
        """That ended, by service and reason."""
        self.refused: Counter[tuple[str, Code]] = Counter()
        """Clients that were not let in, by service and reason."""
        self.denials: Counter[tuple[str, str]] = Counter()
        """Commands, ports and servers that were refused, by service and rule."""
        self.failed_logins: Counter[tuple[str, Code]] = Counter()
        """By service and who refused."""
        self.transfers: Counter[tuple[str, str, str, str, str, str]] = Counter()
        """By service, mode of the client and of the server, plane, direction and outcome."""
        self.octets: Counter[tuple[str, str, str]] = Counter()
        """Of data, by service, plane and direction."""
        self.data_failures: Counter[tuple[str, str, Code]] = Counter()
        """Data connections that never carried, by service, plane and reason."""
        self.fallbacks: Counter[tuple[str, str, Code]] = Counter()
        """Planes that did not carry a data connection, by service, plane and reason."""
        self.strangers = 0
        """Calls at data ports by somebody who was not expected there."""
        self.durations: defaultdict[tuple[str, str], Histogram] = defaultdict(lambda: Histogram(DURATIONS))
        """Of transfers, by plane and direction."""
        self.set_ups: defaultdict[str, Histogram] = defaultdict(lambda: Histogram(SET_UPS))
        """Of data connections, by plane."""

    def transfer(
        self, service: str, spec: PathSpec, plane: str, direction: Direction | None, tally: Tally, code: Code | None
    ) -> None:
        """A data connection has carried; `code` says why the transfer is not complete, if it is not."""
        client = "passive" if isinstance(spec.client, Await) else "active"
        server = "passive" if isinstance(spec.server, Call) else "active"
        way = str(direction or "none")
        self.transfers[service, client, server, plane, way, str(code or "complete")] += 1
        self.octets[service, plane, "down"] += tally.octets_down
        self.octets[service, plane, "up"] += tally.octets_up
        self.durations[plane, way].observe(tally.seconds)


counts = Counts()
"""Those of this process."""
