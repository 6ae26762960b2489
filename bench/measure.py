"""The three measurements.  Each goes through all ways in turn, round by round, beginning with another one each time.

A ratio is taken within a round, to the direct path measured seconds before or after; medians are taken over rounds.
Every run of the load generator proves which way it went: the server told it whose call it saw.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from attrs import frozen

from .proxy import Usage, server_address
from .tools import BenchError
from .topology import BARE, CLIENTS, DIRECT, GATEWAY_OUTSIDE, Topology

__all__ = ["Bench"]

GIB = 1 << 30
SMALL = 1024
SETTLING_SESSIONS = 20

Round = dict[str, float]
Progress = Callable[[str], None]


@frozen
class Bench:
    """Everything a measurement needs."""

    topology: Topology
    load: Path
    usage: Usage | None
    ways: Sequence[str]
    """`direct` first, then those through the proxy."""
    nat: bool
    copy: bool
    rounds: int
    progress: Progress

    def throughput(self, size: int) -> dict[str, Any]:
        """One transfer of `size` octets each time, RETR and STOR."""
        result: dict[str, Any] = {"octets": size}
        for verb, what in (("RETR", ["-g", f"/{size}", "-w", str(size)]), ("STOR", ["-u", str(size)])):

            def once(way: str, what: list[str] = what) -> Round:
                said, cpu = self._run(way, ["-n", "1", *what])
                found = {"mb_per_second": size / 1e6 / said["transfer_seconds"]}
                return found | ({} if cpu is None else {"proxy_cpu_seconds_per_gib": cpu * GIB / size})

            result[verb] = self._compare(f"{verb} {size >> 20} MiB", once, "mb_per_second")
        return result

    def sessions(self, clients: Sequence[int], seconds: float) -> dict[str, Any]:
        """Complete sessions with a RETR of 1 KiB, for `seconds`, with each number of clients."""
        result: dict[str, Any] = {}
        for number in clients:

            def once(way: str, number: int = number) -> Round:
                said, cpu = self._run(way, ["-j", str(number), "-t", str(seconds), "-g", f"/{SMALL}", "-w", str(SMALL)])
                latency = said["latency_ms"]
                found = {"per_second": said["rate"], "p50_ms": latency["p50"], "p99_ms": latency["p99"]}
                return found | ({} if cpu is None else {"proxy_cpu_ms_per_session": cpu * 1000 / said["sessions"]})

            result[str(number)] = self._compare(f"sessions, {number} clients", once, "per_second")
        return result

    def set_ups(self, transfers: int) -> dict[str, Any]:
        """PASV to 227 in one session of so many transfers of nothing, each of which uses what was set up."""
        what = ["-n", "1", "-r", str(transfers), "-g", "/0", "-w", "0"]

        def once(way: str) -> Round:
            said, cpu = self._run(way, what)
            found = {"p50_us": said["setup_ms"]["p50"] * 1000, "p90_us": said["setup_ms"]["p90"] * 1000}
            return found | ({} if cpu is None else {"proxy_cpu_us_per_transfer": cpu * 1e6 / transfers})

        result = self._compare(f"{transfers} set-ups", once, "p50_us")
        return {"transfers": transfers} | result

    def cpu_of_octets(self, size: int) -> dict[str, Any]:
        """What the proxy spends on the octets alone: a session with `size` less one with nothing, for each GiB."""
        way = self.ways[-1]
        rounds = []
        self.progress(f"processor time for octets: {self.rounds} x {size >> 20} MiB and none, {way}")
        for _ in range(self.rounds):
            nothing, much = (
                self._run(way, ["-n", "1", "-g", f"/{octets}", "-w", str(octets)])[1] for octets in (0, size)
            )
            assert nothing is not None
            assert much is not None
            rounds.append((much - nothing) * 1000 * GIB / size)
        return {"octets": size, "ms_per_gib": round(median(rounds), 4), "rounds": [round(one, 4) for one in rounds]}

    def memory(self, connections: int) -> dict[str, Any]:
        """Growth of the proxy with that many sessions that are logged in and idle.  The first thing to be measured:
        memory that earlier sessions left free would hide it."""
        assert self.usage is not None
        way = self.ways[1]
        self.progress(f"memory of {connections} idle sessions: {way}")
        self._run(way, ["-n", str(SETTLING_SESSIONS), "-g", f"/{SMALL}", "-w", str(SMALL)])
        before = self.usage.pss_kib()
        with subprocess.Popen(
            self._command(way, ["-i", str(connections)]), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as held:
            assert held.stdin is not None
            assert held.stdout is not None
            if held.stdout.readline() != "ready\n":
                raise BenchError(f"{connections} sessions could not be held open by way of {way}")
            during = self.usage.pss_kib()
            held.stdin.close()
        each = (during - before) / connections
        return {
            "way": way,
            "sessions": connections,
            "pss_kib_before": before,
            "pss_kib_with_sessions": during,
            "kib_per_idle_session": round(each, 2),
        }

    def _compare(self, title: str, once: Callable[[str], Round], key: str) -> dict[str, Any]:
        rounds: list[dict[str, Round]] = []
        self.progress(f"{title}: {self.rounds} x {', '.join(self.ways)}")
        for number in range(self.rounds):
            shift = number % len(self.ways)
            rounds.append({way: once(way) for way in [*self.ways[shift:], *self.ways[:shift]]})
        result: dict[str, Any] = {}
        for way in self.ways:
            result[way] = {field: round(median(r[way][field] for r in rounds), 4) for field in rounds[0][way]}
            result[way]["rounds"] = [round(r[way][key], 1) for r in rounds]
            if way != DIRECT and DIRECT in self.ways:
                result[way]["ratio"] = round(median(r[way][key] / r[DIRECT][key] for r in rounds), 4)
        return result

    def _command(self, way: str, arguments: list[str]) -> list[str]:
        return self.topology.inside(
            self.topology.client,
            [str(self.load), "-a", server_address(way), "-s", CLIENTS[way], *(["-c"] if self.copy else []), *arguments],
        )

    def _run(self, way: str, arguments: list[str]) -> tuple[dict[str, Any], float | None]:
        """What the load generator said, and the processor seconds that the proxy took meanwhile."""
        usage = self.usage if way not in (BARE, DIRECT) else None
        before = usage.cpu_seconds() if usage else 0.0
        done = subprocess.run(self._command(way, arguments), capture_output=True, text=True)
        if done.returncode:
            failure = f"load {' '.join(arguments)} by way of {way}: {done.stderr.strip()}"
            raise BenchError(f"{failure}\n{self.topology.evidence()}")
        said: dict[str, Any] = json.loads(done.stdout)
        expected = CLIENTS[way] if way == DIRECT and not self.nat else GATEWAY_OUTSIDE
        if said["seen_as"] != expected:
            raise BenchError(f"by way of {way} the server saw {said['seen_as']} instead of {expected}")
        return said, usage.cpu_seconds() - before if usage else None
