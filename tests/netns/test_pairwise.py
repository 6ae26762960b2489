"""Real servers and clients, every pair of circumstances: a covering array of the product that `make matrix` runs."""

from __future__ import annotations

from itertools import combinations

import pytest

from .clients import CLIENTS
from .combinations import Combination, everything, pairwise, singles
from .conftest import Deployments
from .exercise import exercise, transfer_big

pytestmark = pytest.mark.netns

ROWS = pairwise(everything())


def test_every_pair_is_there() -> None:
    """The covering array covers: every two values that occur together at all occur together in a row."""
    assert {pair for row in ROWS for pair in combinations(enumerate(row), 2)} == {
        pair for row in everything() for pair in combinations(enumerate(row), 2)
    }


@pytest.mark.parametrize("row", ROWS, ids=str)
@pytest.mark.parametrize("plane", ["relay", "nft"])
def test_transfers(deployments: Deployments, plane: str, row: Combination) -> None:
    """Items 77, 81, 83, 95, 97: list, get, put, resume, ten in a session and two sessions at once, by checksum."""
    deployment = deployments(row.deployment, row.server, plane)
    seen = len(deployment.proxy.log)
    with deployment.explained():
        exercise(deployment, CLIENTS[row.client], row.mode, row.version)
    assert deployment.carried_by(seen) == {plane}


@pytest.mark.parametrize("row", singles(ROWS), ids=str)
def test_large_files(deployments: Deployments, row: Combination) -> None:
    """Items 92, 101: 256 MiB each way arrive as they were."""
    deployment = deployments(row.deployment, row.server)
    with deployment.explained():
        transfer_big(deployment, CLIENTS[row.client], row.mode, row.version)
