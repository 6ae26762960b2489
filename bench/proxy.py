"""The proxy under test, started as an administrator starts it: a file, `rules --apply`, `serve`.

What it uses is read from /proc: processor time from `schedstat` (nanoseconds, all threads of it), memory from
`smaps_rollup` (Pss).  Kernel memory of sockets and the interrupt side of networking are in neither.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .tools import BenchError
from .topology import CLIENTS, GATEWAY_INSIDE, SERVER, Topology, run

__all__ = ["INTERCEPT", "Usage", "configuration", "data_ports", "running", "server_address"]

PATIENCE = 15.0
INCOMPLETE = " result=incomplete "
MOST_COMPLAINTS = 20
LISTEN = {
    "tproxy": "127.0.0.1:8021",
    "redirect": f"{GATEWAY_INSIDE}:8022",
    "none": f"{GATEWAY_INSIDE}:21",
    "kernel": f"{GATEWAY_INSIDE}:8021",
}
DATA_PORTS = {"tproxy": "10000-16666", "redirect": "16667-23333", "none": "23334-29999", "kernel": "10000-29999"}

INTERCEPT = "redirect"
"""How the proxy of the way `kernel` comes by its clients unless told otherwise: what costs other packets nothing."""

SERVICE = """
[[service]]
name = "{name}"
mode = "{mode}"
listen = ["{listen}"]
intercept = "{intercept}"
clients = ["{client}/32"]
{servers}planes = ["{plane}"]
data_ports = "{data_ports}"
[service.limits]
sessions = 10000
per_client = 10000
"""


def data_ports(way: str) -> range:
    """Those that the proxy lends to clients that go this way."""
    first, last = DATA_PORTS[way].split("-")
    return range(int(first), int(last) + 1)


def configuration(ways: Sequence[str], kernel: str = INTERCEPT) -> str:
    """A file with one service for each of `ways`: `tproxy`, `redirect`, `none`, all three relayed, and `kernel`, whose
    interception is the argument."""
    return "".join(
        SERVICE.format(
            name=way,
            mode="reverse" if way == "none" else "forward",
            listen=LISTEN[way],
            intercept=kernel if way == "kernel" else way,
            plane="nft" if way == "kernel" else "relay",
            client=CLIENTS[way],
            servers=f'servers = ["{SERVER}:21"]\n' if way == "none" else "",
            data_ports=DATA_PORTS[way],
        )
        for way in ways
    )


def server_address(way: str) -> str:
    """Whom a client that goes this way dials."""
    return GATEWAY_INSIDE if way == "none" else SERVER


class Usage:
    """What a process and its descendants use."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def _family(self) -> list[int]:
        family = [self._pid]
        for pid in family:
            for task in Path(f"/proc/{pid}/task").iterdir():
                family += [int(child) for child in (task / "children").read_text().split()]
        return family

    def cpu_seconds(self) -> float:
        """Time on a processor so far, of threads that still live (proc_pid_schedstat(5))."""
        threads = [task for pid in self._family() for task in Path(f"/proc/{pid}/task").iterdir()]
        return sum(int((task / "schedstat").read_text().split()[0]) for task in threads) / 1e9

    def pss_kib(self) -> int:
        """Proportional set size now: private memory, and shared memory divided by its users."""
        return sum(
            int(line.split()[1])
            for pid in self._family()
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            if line.startswith("Pss:")
        )


@contextmanager
def running(
    topology: Topology, ways: Sequence[str], folder: Path, profile: Path | None = None, kernel: str = INTERCEPT
) -> Iterator[Usage]:
    """The proxy on the gateway, serving all of `ways`.  Raises `BenchError` with its log if it does not serve; to one
    that is raised inside, what the proxy complained of is added."""
    file, log = folder / "ftpproxy.toml", folder / "ftpproxy.log"
    file.write_text(configuration(ways, kernel))
    python = [sys.executable, "-m"]
    if profile is not None:
        profile.unlink(missing_ok=True)
    command = [
        *python,
        *(["cProfile", "-o", str(profile), "-m"] if profile else []),
        "ftpproxy",
        "serve",
        "-c",
        str(file),
    ]
    run(*topology.inside(topology.gateway, [*python, "ftpproxy", "rules", "-c", str(file), "--apply"]))
    topology.shorten_conntrack()
    with log.open("w") as output:
        process = subprocess.Popen(topology.inside(topology.gateway, command), stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + PATIENCE
        while " info ready " not in log.read_text():  # it listens first, and loads its table then
            if process.poll() is not None or time.monotonic() > deadline:
                raise BenchError(f"the proxy does not serve:\n{log.read_text()[-3000:]}")
            time.sleep(0.02)
        try:
            yield Usage(process.pid)
        except BenchError as error:
            complaints = [line for line in log.read_text().splitlines() if " info " not in line or INCOMPLETE in line]
            raise BenchError("\n".join([str(error), "the proxy:", *complaints[-MOST_COMPLAINTS:]])) from error
        if process.poll() is not None:
            raise BenchError(f"the proxy ended with {process.returncode}:\n{log.read_text()[-3000:]}")
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)  # at once: SIGTERM lets transfers finish
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                print("bench: the proxy had to be killed", file=sys.stderr)
        run(*topology.inside(topology.gateway, [*python, "ftpproxy", "rules", "-c", str(file), "--remove"]))
