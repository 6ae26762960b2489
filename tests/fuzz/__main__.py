"""Throw hostile octets at the parsers and at the interpreter.

    python -m tests.fuzz --seconds 60              with atheris (libFuzzer), the time shared by all targets
    python -m tests.fuzz --count 1000000           without: so many generated inputs for the interpreter
    python -m tests.fuzz --target telnet --count N for that target
    python -m tests.fuzz --target telnet FILE...   what libFuzzer or a run before left in .cache/fuzz, again

An input that fails is kept there.  Exit codes: 0, 1 for a failure, 64 for usage, 69 where atheris is missing.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import subprocess
import sys
import time
from pathlib import Path

from .ends import Ends
from .mutations import Mutator
from .seeds import seeds
from .targets import TARGETS

CACHE = Path(__file__).parents[2] / ".cache" / "fuzz"
EX_UNAVAILABLE = 69
SHARE = {"interpreter": 10}
"""Parts of the time; everything else has one."""
START_SECONDS = 2.0
"""What it takes to instrument a target and to run its corpus."""
LONGEST_INPUT = 4096
REPORT_SECONDS = 10.0
_UNITS = re.compile(r"stat::number_of_executed_units: *(\d+)")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="throw hostile octets at ftpproxy")
    parser.add_argument("--target", choices=TARGETS, action="append", help="default: all, or interpreter with --count")
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument("--seconds", type=int, help="with atheris, for so long in all")
    amount.add_argument("--count", type=int, help="without, so many inputs a target")
    parser.add_argument("--seed", type=int, default=0, help="of the generated inputs (0)")
    parser.add_argument("files", nargs="*", type=Path, help="inputs to run once")
    args = parser.parse_args()
    if args.files:
        for name in args.target or ["interpreter"]:
            for file in args.files:
                TARGETS[name](file.read_bytes())
        return 0
    if args.count is not None:
        return max(_generated(name, args.count, args.seed) for name in args.target or ["interpreter"])
    if args.seconds is None:
        parser.error("one of --seconds, --count and files")
    return _instrumented(args.target or list(TARGETS), args.seconds)


def _generated(name: str, count: int, seed: int) -> int:
    """Run `count` inputs and print one line of JSON."""
    mutator = Mutator(seeds(name), records=name == "interpreter", seed=seed)
    most_held = octets = 0
    started = reported = time.monotonic()
    for number in range(1, count + 1):
        data = mutator.next()
        octets += len(data)
        try:
            if name == "interpreter":
                ends = Ends()
                ends.feed(data)
                most_held = max(most_held, ends.most_held)
            else:
                TARGETS[name](data)
        except Exception:
            print(f"{name}: input {number} fails; it is kept in {_keep(name, data)}", file=sys.stderr)
            raise
        if (now := time.monotonic()) - reported > REPORT_SECONDS:
            reported = now
            print(f"{name}: {number} inputs, {number / (now - started):.0f} a second", file=sys.stderr, flush=True)
    seconds = time.monotonic() - started
    print(
        json.dumps(
            {
                "target": name,
                "seed": seed,
                "inputs": count,
                "octets": octets,
                "seconds": round(seconds, 1),
                "inputs_per_second": round(count / seconds),
                **({"most_octets_held": most_held} if name == "interpreter" else {}),
            }
        )
    )
    return 0


def _keep(name: str, data: bytes) -> Path:
    CACHE.mkdir(parents=True, exist_ok=True)
    kept = CACHE / f"{name}-{abs(hash(data)):x}"
    kept.write_bytes(data)
    return kept


def _instrumented(names: list[str], seconds: int) -> int:
    """Each target in a process of its own, one after the other."""
    if importlib.util.find_spec("atheris") is None:
        print("tests.fuzz: atheris is missing: pip install -e '.[fuzz]', or use --count", file=sys.stderr)
        return EX_UNAVAILABLE
    deadline = time.monotonic() + seconds
    parts = sum(SHARE.get(name, 1) for name in names)
    for name in names:
        corpus = CACHE / "corpus" / name
        corpus.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(seeds(name)):
            (corpus / f"seed-{number:03}").write_bytes(seed)
        share = SHARE.get(name, 1)
        budget = max(1, round((deadline - time.monotonic()) * share / parts - START_SECONDS))
        parts -= share
        limits = [f"-max_total_time={budget}", f"-max_len={LONGEST_INPUT}", "-timeout=10", "-rss_limit_mb=1024"]
        done = subprocess.run(
            [sys.executable, "-m", "tests.fuzz.instrumented", name, *limits, "-verbosity=0", "-print_final_stats=1",
             f"-artifact_prefix={CACHE}/{name}-", str(corpus)],
            capture_output=True, text=True, errors="replace", check=False,
        )  # fmt: skip
        if done.returncode:
            print(f"{done.stdout}{done.stderr}\n{name}: failed; the input is in {CACHE}", file=sys.stderr)
            return 1
        units = _UNITS.search(done.stderr)
        print(f"{name}: {units[1] if units else 'no'} inputs in {budget} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
