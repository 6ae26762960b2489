"""`python -m bench`: JSON on standard output, progress and a summary on standard error."""

from __future__ import annotations

import argparse
import json
import os
import pstats
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from .kernel import Plan, kernel
from .machine import facts
from .measure import Bench
from .proxy import INTERCEPT, Usage, running
from .summary import summary
from .tools import BenchError, build
from .topology import DIRECT, Topology

WAYS = ("tproxy", "redirect", "none")
PARTS = ("memory", "throughput", "sessions", "kernel")
PASV = "pasv"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round: about 20 s, good for a look only")
    parser.add_argument("--only", choices=[*PARTS, PASV], help="one of the measurements; pasv is a part of kernel")
    parser.add_argument(
        "--ways",
        type=lambda text: text.split(","),
        default=list(WAYS),
        metavar="WAY,...",
        help="interceptions to measure besides the direct path: tproxy,redirect,none (default: all)",
    )
    parser.add_argument("--direct", action="store_true", help="the direct path alone: what the load generator can do")
    parser.add_argument("--nat", action="store_true", help="masquerade on the gateway, also for the direct path")
    parser.add_argument(
        "--discard",
        action="store_true",
        help="the ends do not copy file data into user space: the largest throughput they can offer",
    )
    parser.add_argument("--rounds", type=int, help="rounds to take the median of (default: 5; --quick: 1)")
    parser.add_argument("--seconds", type=float, help="length of one run of sessions (default: 2; --quick: 1)")
    parser.add_argument("--size", type=int, default=1024, metavar="MIB", help="of one transfer (default: 1024)")
    parser.add_argument(
        "--clients",
        type=lambda text: [int(n) for n in text.split(",")],
        default=[1, 16, 64],
        metavar="N,...",
        help="concurrent clients (default: 1,16,64)",
    )
    parser.add_argument(
        "--cores",
        type=lambda text: [int(n) for n in text.split(",")],
        default=[],
        metavar="CLIENT,GATEWAY,SERVER",
        help="kernel and pasv: the core that each of the three processes stays on (default: where the scheduler likes)",
    )
    parser.add_argument(
        "--intercept",
        choices=["redirect", "tproxy"],
        default=INTERCEPT,
        help="kernel and pasv: how control connections come to the proxy (default: %(default)s)",
    )
    parser.add_argument(
        "--null",
        action="store_true",
        help="kernel: the plain gateway against itself as well; the ratio must be 1 within its interval",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the JSON there instead")
    parser.add_argument(
        "--profile",
        type=Path,
        metavar="FILE",
        help="run the proxy under cProfile; its figures are worth nothing then, the profile is",
    )
    options = parser.parse_args(arguments)
    unknown = set(options.ways) - set(WAYS)
    if unknown:
        parser.error(f"--ways: {', '.join(sorted(unknown))}: choose from {', '.join(WAYS)}")
    if options.direct:
        options.ways = []
    if len(options.cores) not in (0, 3):
        parser.error("--cores: three numbers, of client, gateway and server, as in 0,1,0")
    options.rounds = options.rounds or (1 if options.quick else 5)
    options.seconds = options.seconds or (1.0 if options.quick else 2.0)
    return options


@contextmanager
def serving(topology: Topology, copy: bool) -> Iterator[int]:
    """The FTP server in its namespace; its process."""
    command = [str(build("server")), "-p", "21", "-l", "40000", *(["-c"] if copy else [])]
    with subprocess.Popen(topology.inside(topology.server, command), stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            if not process.stdout.readline().startswith("listening"):
                raise BenchError("the FTP server does not start")
            yield process.pid
        finally:
            process.terminate()


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    copy = not options.discard
    result: dict[str, Any] = {
        "machine": facts(),
        "options": {name: value for name, value in vars(options).items() if name not in ("json", "profile")},
    }
    wanted = [options.only] if options.only else list(PARTS)
    if wanted[-1] in ("kernel", PASV) and not options.direct:
        part = wanted.pop()
        plan = Plan(
            only_pasv=part == PASV,
            intercept=options.intercept,
            null=options.null,
            cores=options.cores,
            copy=copy,
            rounds=options.rounds,
            size=options.size << 20,
            profile=options.profile,
            progress=say,
        )
        result["kernel"] = kernel(lambda topology: serving(topology, copy), plan)
    if not wanted:
        return result
    with (
        tempfile.TemporaryDirectory(prefix="ftpproxy-bench-") as folder,
        Topology(nat=options.nat) as topology,
        serving(topology, copy),
    ):
        proxy = running(topology, options.ways, Path(folder), options.profile) if options.ways else nullcontext()
        with proxy as usage:
            ways = [DIRECT, *options.ways]
            bench = Bench(topology, build("load"), usage, ways, options.nat, copy, options.rounds, say)
            if "memory" in wanted and isinstance(usage, Usage):
                result["memory"] = bench.memory(500)
            if "throughput" in wanted:
                result["throughput"] = bench.throughput(options.size << 20)
            if "sessions" in wanted:
                result["sessions"] = bench.sessions(options.clients, options.seconds)
            result["conntrack_drops"] = topology.conntrack_drops()
    return result


def stop(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def main() -> int:
    options = parse()
    signal.signal(signal.SIGTERM, stop)
    if os.geteuid() != 0:
        # A user and a mount namespace of our own, and a /run to keep the names of network namespaces in.
        inner = [
            "sh",
            "-c",
            'mount -t tmpfs none /run && exec "$@"',
            "sh",
            sys.executable,
            "-m",
            "bench",
            *sys.argv[1:],
        ]
        return subprocess.run(["unshare", "-Urnm", *inner]).returncode
    try:
        result = measure(options)
    except BenchError as error:
        say(f"bench: {error}")
        return 1
    say(summary(result, [DIRECT, *options.ways]))
    text = json.dumps(result, indent=2)
    if options.json:
        options.json.write_text(text + "\n")
    else:
        print(text)
    if options.profile:
        pstats.Stats(str(options.profile), stream=sys.stderr).sort_stats("tottime").print_stats(30)
    return 0


if __name__ == "__main__":
    sys.exit(main())
