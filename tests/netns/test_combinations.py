"""Real servers and clients: covering arrays of the product that `make matrix` runs.

On the relay every two circumstances meet, on the kernel's plane, where each has rules of its own, every three.
"""

from __future__ import annotations

from itertools import combinations

import pytest

from .clients import CLIENTS
from .combinations import PLANES, Combination, covering, everything
from .conftest import Deployments
from .exercise import all_carried, exercise, transfer_big

pytestmark = pytest.mark.netns

TOGETHER = {"relay": 2, "nft": 3}
"""How many circumstances meet in some row."""
ROWS = [
    pytest.param(plane, row, id=f"{plane}-{row}") for plane in PLANES for row in covering(everything(), TOGETHER[plane])
]
LARGE = [pytest.param(plane, row, id=f"{plane}-{row}") for plane in PLANES for row in covering(everything(), 1)]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_what_is_to_meet_meets(size: int) -> None:
    """Values that occur together at all occur together in a row."""
    assert {some for row in covering(everything(), size) for some in combinations(enumerate(row), size)} == {
        some for row in everything() for some in combinations(enumerate(row), size)
    }


@pytest.mark.parametrize(("plane", "row"), ROWS)
def test_transfers(deployments: Deployments, plane: str, row: Combination) -> None:
    """Items 77, 81, 83, 95, 97: list, get, put, resume, ten in a session and two sessions at once, by checksum."""
    deployment = deployments(row.deployment, row.server, plane)
    with deployment.explained(), all_carried(deployment, plane):
        exercise(deployment, CLIENTS[row.client], row.mode, row.version)


@pytest.mark.parametrize(("plane", "row"), LARGE)
def test_large_files(deployments: Deployments, plane: str, row: Combination) -> None:
    """Items 92, 101: 256 MiB each way arrive as they were."""
    deployment = deployments(row.deployment, row.server, plane)
    with deployment.explained(), all_carried(deployment, plane):
        transfer_big(deployment, CLIENTS[row.client], row.mode, row.version)
