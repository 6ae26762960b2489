"""The kernel plane against plain masquerading, and the three targets that it must meet.

One client, one server, one gateway that masquerades.  Either the proxy has the control connection and the kernel
carries the data (`planes = ["nft"]`), or the gateway masquerades both and the proxy is not involved; in turn, within
one run.  The direct path passes the hooks of the proxy's table as well, since that is loaded all the time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from .measure import Bench, Progress
from .proxy import running
from .topology import DIRECT, Topology

__all__ = ["kernel"]

WAY = "kernel"
LEAST_RATIO = 0.98
MOST_CPU_MS = 1.0
"""Of the proxy, for each GiB that the kernel carries."""
MOST_ADDED_US = 120.0
"""To the median of PASV to 227, by the whole proxy."""

SET_UPS = 500
OFTEN = 4
"""What is short is measured as many times as often, so that both ways meet the same disturbances."""


def kernel(
    load: Path,
    serving: Callable[[Topology], AbstractContextManager[None]],
    *,
    only_pasv: bool,
    cores: Sequence[int],
    copy: bool,
    rounds: int,
    size: int,
    profile: Path | None,
    progress: Progress,
) -> dict[str, Any]:
    """Everything, or what is added to PASV alone, in `rounds`; `size` octets are what one round transfers each way."""
    result: dict[str, Any] = {"targets": {}}
    targets = result["targets"]
    with (
        tempfile.TemporaryDirectory(prefix="ftpproxy-bench-") as folder,
        Topology(nat=True, cores=cores) as topology,
        serving(topology),
        running(topology, [WAY], Path(folder), profile) as usage,
    ):
        ways = [DIRECT, WAY]
        short = Bench(topology, load, usage, ways, True, copy, rounds * OFTEN, progress)
        set_ups = result["set_ups"] = short.set_ups(SET_UPS)
        if not only_pasv:
            long = Bench(topology, load, usage, ways, True, copy, rounds, progress)
            throughput = result["throughput"] = short.throughput(size // OFTEN)
            octets = result["cpu_of_octets"] = long.cpu_of_octets(4 * size)
            ratio = min(throughput[verb][WAY]["ratio"] for verb in ("RETR", "STOR"))
            targets["throughput_ratio"] = {"at_least": LEAST_RATIO, "found": ratio, "met": ratio >= LEAST_RATIO}
            targets["proxy_cpu_ms_per_gib"] = {
                "less_than": MOST_CPU_MS,
                "found": octets["ms_per_gib"],
                "met": octets["ms_per_gib"] < MOST_CPU_MS,
            }
        result["conntrack_drops"] = topology.conntrack_drops()
    added = round(set_ups[WAY]["p50_us"] - set_ups[DIRECT]["p50_us"], 1)
    targets["added_to_pasv_us"] = {"at_most": MOST_ADDED_US, "found": added, "met": added <= MOST_ADDED_US}
    return result
