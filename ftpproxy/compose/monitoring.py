"""Metrics of a composed process: what is counted, what stands, and the place where it is asked for.

prometheus-client is needed for this and for nothing else, and imported only where the configuration asks for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sized

from ..advice import exposition_missing
from ..config import MetricsConfig, UnixPath
from ..metrics import counts
from ..netfilter import Elements
from ..scrape import CannotServe, Scrape
from ..server import Server

__all__ = ["CannotServe", "scrape"]


def scrape(config: MetricsConfig, server: Server, elements: Elements | None) -> Scrape | None:
    """Where `config` says, None where it names no place.  Raises `CannotServe`."""
    if config.listen is None:
        return None
    if missing := exposition_missing(config):
        raise CannotServe(f"metrics.listen: {missing}")
    from ..exposition import Exposition, Present

    def paths() -> dict[tuple[str, str], int]:
        found: Counter[tuple[str, str]] = Counter()
        for service in server.occupied:
            for plane in service.terms.planes:
                if isinstance(plane, Sized):
                    found[service.name, plane.name] += len(plane)
        return found

    present = Present(
        sessions=server.present, paths=paths, elements=lambda: elements.alive if elements is not None else 0
    )
    place = config.listen.path if isinstance(config.listen, UnixPath) else config.listen
    return Scrape(place, Exposition(counts, present).text)
