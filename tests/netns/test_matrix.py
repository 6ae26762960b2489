"""Every real server with every real client, in every mode, family and deployment: `make matrix`."""

from __future__ import annotations

import pytest

from .clients import CLIENTS
from .combinations import Combination, everything
from .conftest import Deployments
from .exercise import exercise, transfer_big

pytestmark = [pytest.mark.netns, pytest.mark.matrix]


@pytest.mark.parametrize("row", everything(), ids=str)
@pytest.mark.parametrize("plane", ["relay", "nft"])
def test_transfers(deployments: Deployments, plane: str, row: Combination) -> None:
    """Items 77, 81, 83, 92, 95, 97, 101: as in `make test`, 256 MiB each way included."""
    deployment = deployments(row.deployment, row.server, plane)
    seen = len(deployment.proxy.log)
    with deployment.explained():
        exercise(deployment, CLIENTS[row.client], row.mode, row.version)
        transfer_big(deployment, CLIENTS[row.client], row.mode, row.version)
    assert deployment.carried_by(seen) == {plane}
