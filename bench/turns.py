"""The same by several ways, turn by turn, within one process: transfers in slices, and single packets (`turns.c`).

What makes a transfer take longer or shorter by a third on a small machine is not the way it goes: it is on which core
the scheduler puts which end, what else runs there, and how large the bursts are that TCP falls into.  So all of it has
to meet all ways alike, and often:

* a turn takes a millisecond, and the ways take turns within it, in an order drawn by lot;
* slow start and buffers that grow are over when the first turn is counted, and so is PASV;
* both ends stay on one core, at real-time priority where that is allowed: the scheduler has no choice, and other
  processes do not interfere;
* data connections are new ones in each round, as each has its luck with hashes and bursts.

Transfers are measured in two arrangements.  In life the gateway is a machine of its own, so `own_core` gives it one:
what arrives at a gateway is handled on another core than the ends', while these do their part of what went before
(RPS).  That is the throughput that a client sees.  In `one_core` everything is done on one, one thing after the other,
so whatever the gateway's kernel does takes throughput away: that is what an octet costs all three together, and as
strict as it can be, for the data come from the cache and the packets are as large as they get.

A ratio is the median of those within the turns.  Its interval holds the true one in 95 of 100 runs: the bootstrap
percentile interval, drawing rounds, since turns on one data connection have its luck in common.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from attrs import frozen

from .measure import Progress
from .tools import BenchError
from .topology import (
    CLIENTS,
    GATEWAY_OUTSIDE,
    NULL,
    PLAIN,
    PLAIN_CLIENTS,
    PLAIN_OUTSIDE,
    PLAIN_SERVER,
    SERVER,
    Topology,
)

__all__ = ["VERBS", "Turns", "interval"]

VERBS = {"RETR": "-g", "STOR": "-u"}
SLICES = {"own_core": 1 << 20, "one_core": 256 << 10}
"""Octets.  The smaller ones stay in the cache, and TCP sends each as one burst: nothing is left to chance."""
TIMES = 20
"""Slices of one data connection."""
PACKETS = {"UDP": "-d", "TCP from the client": "-f", "TCP from the server": "-b"}
FLOOD = 200
FLOODS = 4
"""In one flow."""
DRAWS = 500
"""Of the bootstrap."""
PRIORITY = 10
"""Real-time; any."""

Rounds = Sequence[Sequence[float]]


def interval(rounds: Rounds) -> tuple[float, float]:
    """The 95 % bootstrap interval of the median of everything in `rounds`, which are drawn as a whole."""
    chance = random.Random(1)
    found = sorted(
        median([one for each in chance.choices(rounds, k=len(rounds)) for one in each]) for _ in range(DRAWS)
    )
    return found[DRAWS * 25 // 1000], found[DRAWS - 1 - DRAWS * 25 // 1000]


@frozen
class Turns:
    """Everything that a measurement needs."""

    topology: Topology
    program: Path
    server: int
    """The process."""
    proxied: Mapping[str, range]
    """The ways through the proxy, and the ports that it lends: what proves that a data connection was led by it."""
    null: bool
    copy: bool
    rounds: int
    progress: Progress

    def throughput(self) -> dict[str, Any]:
        """RETR and STOR in each arrangement: MB/s, and the ratio to the plain gateway."""
        result: dict[str, Any] = {}
        here, *others = sorted(os.sched_getaffinity(0))
        if others and self.topology.steer(here, others[0]):
            result["own_core"] = self._verbs("own_core")
            self.topology.steer(None, None)
        result["one_core"] = self._verbs("one_core")
        return result

    def _verbs(self, where: str) -> dict[str, Any]:
        result = {}
        size = SLICES[where]
        for verb, option in VERBS.items():
            slices = f"{self.rounds} x {TIMES} slices of {size >> 10} KiB"
            self.progress(f"{verb}, {where}: {slices} x {', '.join(self._ways())}")
            took = self._run([option, str(size), "-k", str(TIMES)], self._ways())
            result[verb] = self._compared(took, "mb_per_second", size * 1e3)
        return result

    def packets(self) -> dict[str, Any]:
        """The smallest packets on one core, one by one: thousands a second, and the ratio to the plain gateway."""
        result: dict[str, Any] = {}
        for name, option in PACKETS.items():
            ways = [way for way in self._ways() if name != "UDP" or way not in self.proxied]
            self.progress(f"{name}: {self.rounds} x {FLOODS} x {FLOOD} packets x {', '.join(ways)}")
            result[name] = self._compared(
                self._run([option, str(FLOOD), "-k", str(FLOODS)], ways), "thousands", FLOOD * 1e6
            )
        return result

    def _ways(self) -> list[str]:
        return [PLAIN, *([NULL] if self.null else []), "direct", *self.proxied]

    def _compared(self, took: Mapping[str, Rounds], unit: str, amount: float) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for way, rounds in took.items():
            result[way] = {unit: round(amount / median([one for each in rounds for one in each]), 1)}
            if way != PLAIN:
                ratios = [
                    [plain / one for plain, one in zip(*pair, strict=True)]
                    for pair in zip(took[PLAIN], rounds, strict=True)
                ]
                result[way]["ratio"] = round(median([one for each in ratios for one in each]), 4)
                result[way]["interval"] = [round(bound, 4) for bound in interval(ratios)]
        return result

    def _run(self, arguments: Sequence[str], ways: Sequence[str]) -> dict[str, Rounds]:
        """Nanoseconds, of each turn in each round."""
        core = min(os.sched_getaffinity(0))
        arguments = [*arguments, "-r", str(self.rounds), "-p", str(core), "-n", f"/run/netns/{self.topology.server}"]
        places = [
            f"{PLAIN_CLIENTS[way]},{PLAIN_SERVER}" if way in PLAIN_CLIENTS else f"{CLIENTS[way]},{SERVER}"
            for way in ways
        ]
        command = [str(self.program), *(["-c"] if self.copy else []), *arguments, *places]
        with _apart(self.server, core):
            done = subprocess.run(
                self.topology.inside(self.topology.client, command), capture_output=True, text=True, check=False
            )
        if done.returncode:
            raise BenchError(f"turns {' '.join(arguments)}: {done.stderr.strip()}\n{self.topology.evidence()}")
        took = {}
        for way, said in zip(ways, json.loads(done.stdout), strict=True):
            expected = PLAIN_OUTSIDE if way in PLAIN_CLIENTS else GATEWAY_OUTSIDE
            if said["seen_as"] != expected:
                raise BenchError(f"by way of {way} the server saw {said['seen_as']} instead of {expected}")
            if said["port"] and any(said["port"] in ports for ports in self.proxied.values()) != (way in self.proxied):
                raise BenchError(f"by way of {way} port {said['port']} was announced: not what that way would")
            took[way] = said["took_ns"]
        return took


@contextmanager
def _apart(pid: int, core: int) -> Iterator[None]:
    """That process stays on `core` meanwhile, at real-time priority where we may give it."""
    cores = os.sched_getaffinity(pid)
    os.sched_setaffinity(pid, {core})
    try:
        try:
            os.sched_setscheduler(pid, os.SCHED_FIFO, os.sched_param(PRIORITY))
        except PermissionError:
            yield
        else:
            yield
            os.sched_setscheduler(pid, os.SCHED_OTHER, os.sched_param(0))
    finally:
        os.sched_setaffinity(pid, cores)
