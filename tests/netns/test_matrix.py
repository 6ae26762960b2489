"""Every real server with every real client, in every mode, family, deployment and on either plane: `make matrix`.

xdist gives each process rows that stand together, so few deployments are built more than once.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from .clients import CLIENTS
from .combinations import PLANES, Combination, everything
from .conftest import Deployments
from .exercise import BIG, all_carried, exercise, transfer_big

pytestmark = [pytest.mark.netns, pytest.mark.matrix]

ROWS = [pytest.param(plane, row, id=f"{plane}-{row}") for plane in PLANES for row in everything()]


@pytest.mark.parametrize(("plane", "row"), ROWS)
def test_transfers(
    deployments: Deployments, record_property: Callable[[str, object], None], plane: str, row: Combination
) -> None:
    """Items 77, 81, 83, 92, 95, 97, 101: as in `make test`, 256 MiB each way included."""
    deployment, client = deployments(row.deployment, row.server, plane), CLIENTS[row.client]
    with deployment.explained(), all_carried(deployment, plane) as load:
        exercise(deployment, client, row.mode, row.version)
        transfer_big(deployment, client, row.mode, row.version)
    assert load.octets >= BIG * (1 + client.uploads)
    record_property("transfers", load.transfers)
    record_property("octets", load.octets)
    record_property("calls", load.calls)
