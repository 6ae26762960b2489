"""The kernel plane against plain masquerading, and the three targets that it must meet.

Two gateways stand side by side between client and server.  One only masquerades, and knows nothing of a proxy: `plain`.
On the other one, which masquerades as well, the proxy runs: `kernel` is a client of it, whose data the kernel carries
(`planes = ["nft"]`), and `direct` is anybody else who goes through that gateway, past the hooks of its tables.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from attrs import frozen

from .bare import bare
from .measure import Bench, Progress
from .proxy import data_ports, running
from .tools import build
from .topology import BARE, DIRECT, Topology
from .turns import VERBS, Turns

__all__ = ["Plan", "kernel"]

WAY = "kernel"
LEAST_RATIO = 0.98
MOST_CPU_MS = 1.0
"""Of the proxy, for each GiB that the kernel carries."""
MOST_ADDED_US = 120.0
"""To the median of PASV to 227, by the whole proxy; `bare` tells what any process would add."""

SET_UPS = 500
OFTEN = 4
"""What is short is measured as many times as often, so that both ways meet the same disturbances."""
TURNS = 16
"""Likewise."""


@frozen
class Plan:
    """What is measured, and how."""

    only_pasv: bool
    intercept: str
    null: bool
    cores: Sequence[int]
    copy: bool
    rounds: int
    size: int
    """Octets of one transfer."""
    profile: Path | None
    progress: Progress


def kernel(serving: Callable[[Topology], AbstractContextManager[int]], plan: Plan) -> dict[str, Any]:
    """Everything, or what is added to PASV alone."""
    result: dict[str, Any] = {"intercept": plan.intercept, "targets": {}}
    targets = result["targets"]
    ways = [DIRECT, WAY]
    load = build("load")
    with (
        tempfile.TemporaryDirectory(prefix="ftpproxy-bench-") as folder,
        Topology(nat=True, plain=not plan.only_pasv, cores=plan.cores) as topology,
        serving(topology) as server,
        running(topology, [WAY], Path(folder), plan.profile, plan.intercept) as usage,
    ):
        with bare(topology):
            three = [DIRECT, BARE, WAY]
            short = Bench(topology, load, usage, three, True, plan.copy, plan.rounds * OFTEN, plan.progress)
            set_ups = result["set_ups"] = short.set_ups(SET_UPS)
        if not plan.only_pasv:
            rounds = plan.rounds * TURNS
            ports = {WAY: data_ports(WAY)}
            turns = Turns(topology, build("turns"), server, ports, plan.null, plan.copy, rounds, plan.progress)
            throughput = result["throughput"] = turns.throughput()
            result["packets"] = turns.packets()
            long = Bench(topology, load, usage, ways, True, plan.copy, plan.rounds, plan.progress)
            octets = result["cpu_of_octets"] = long.cpu_of_octets(4 * plan.size)
            where, found = next(iter(throughput.items()))
            worse = min((found[verb][WAY] for verb in VERBS), key=lambda each: each["ratio"])
            targets["throughput_ratio"] = {
                "at_least": LEAST_RATIO,
                "found": worse["ratio"],
                "interval": worse["interval"],
                "met": worse["ratio"] >= LEAST_RATIO,
                "where": where,
            }
            targets["proxy_cpu_ms_per_gib"] = {
                "less_than": MOST_CPU_MS,
                "found": octets["ms_per_gib"],
                "met": octets["ms_per_gib"] < MOST_CPU_MS,
            }
        result["conntrack_drops"] = topology.conntrack_drops()
    added, least = (round(set_ups[way]["p50_us"] - set_ups[DIRECT]["p50_us"], 1) for way in (WAY, BARE))
    targets["added_to_pasv_us"] = {
        "at_most": MOST_ADDED_US,
        "found": added,
        "met": added <= MOST_ADDED_US,
        "bare": least,
    }
    return result
