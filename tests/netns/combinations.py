"""The product of deployments, families, servers, clients and modes, and small parts that have every pair or triple."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product
from typing import NamedTuple

from .clients import CLIENTS, Mode
from .deployments import KINDS
from .servers import SERVERS

__all__ = ["PLANES", "Combination", "covering", "everything"]

PLANES = ("nft", "relay")


class Combination(NamedTuple):
    """One way in which somebody uses the proxy."""

    deployment: str
    version: int
    server: str
    client: str
    mode: Mode

    def __str__(self) -> str:
        return f"{self.deployment}-ipv{self.version}-{self.server}-{self.client}-{self.mode}"


def everything() -> list[Combination]:
    """All combinations that exist; a client may lack a mode.  Those of one deployment and server stand together."""
    return [
        Combination(deployment, version, server, client, mode)
        for deployment, server, version, client in product(KINDS, SERVERS, (4, 6), CLIENTS)
        for mode in CLIENTS[client].modes(version)
    ]


def covering(rows: Sequence[Combination], size: int) -> list[Combination]:
    """Rows such that any `size` values that stand together in a row of `rows` stand together in one of them.

    Greedy: the row that adds most, the first of equals, until nothing is missing.
    """
    parts = {row: set(combinations(enumerate(row), size)) for row in rows}
    missing = set().union(*parts.values())
    chosen = []
    while missing:
        best = max(rows, key=lambda row: len(parts[row] & missing))
        missing -= parts[best]
        chosen.append(best)
    return sorted(chosen, key=rows.index)
