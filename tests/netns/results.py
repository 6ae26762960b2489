"""The matrix as a table: `pytest -p tests.netns.results --results STEM` writes STEM.json and STEM.md.

A plugin of pytest, for `make matrix`.  The rows of the table are those that there are (`combinations.everything`); what
a run did not get to, or left out, stands there as such.  A row is what `test_matrix.py` reports of it, the check that
nothing is left behind included.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

import pyftpdlib
import pytest
from attrs import asdict, define

from bench.machine import facts

from .clients import CLIENTS
from .combinations import PLANES, Combination, everything
from .deployments import KINDS
from .peers import libraries, unpacked
from .servers import SERVERS

__all__ = ["Result", "markdown", "skeleton"]

NOT_RUN, OK, FAILED = "not run", "ok", "failed"

TITLE = """\
# What was tried with what

Every server below with every client, in every mode that the client has, over both families, through the proxy with NAT:
in front of the clients (`tproxy`, `redirect`) and in front of the server (`reverse`, where nothing is intercepted). A
row is: list a directory; get and put files of 0, 1 and 65536 octets; resume one; ten files in one session; the same in
two sessions at once; 256 MiB each way. Each file is compared, the log must show each session, and afterwards nothing
may be left on the gateway: no socket, no rule, no element.

On the plane `nft` the gateway's forward chain has the policy drop and lets through nothing but `ct state
established,related` and `ct status dnat`; its input chain lets in no data port from outside. Counters in the forward
chain must tell of as many data connections and octets as were transferred, so nothing of it can have been relayed, or
have gone past.

`passive` is what each client does by itself. `active` is EPRT with curl, and with the others PORT over IPv4 and EPRT
over IPv6; `port` is `curl --disable-eprt`. A dash stands for what does not exist: PORT has no form for IPv6. wget does
not upload, so its rows are half as long. All four servers speak both families.

This page is what

    make matrix

wrote to .cache/matrix.md (and .cache/matrix.json has all figures). `make matrix ROWS=nft` does one plane, `ROWS="nft
and vsftpd"` less: any words in the names of the rows. `make test` has a part of the rows: any two circumstances meet in
one of them on the relay, any three on the kernel's plane.
"""


@define
class Result:
    """What became of one row."""

    plane: str
    deployment: str
    version: int
    server: str
    client: str
    mode: str
    outcome: str = NOT_RUN
    seconds: float = 0.0
    transfers: int = 0
    octets: int = 0
    calls: int | None = None
    why: str = ""

    @classmethod
    def of(cls, plane: str, row: Combination) -> Result:
        return cls(plane, row.deployment, row.version, row.server, row.client, str(row.mode))


def skeleton() -> dict[str, Result]:
    """A result for each row, by the name that the row has among the tests."""
    return {f"{plane}-{row}": Result.of(plane, row) for plane in PLANES for row in everything()}


def versions() -> dict[str, str]:
    """Of the programs that are tried with each other, as they say it themselves."""
    vsftpd, pure, proftpd = (unpacked(name) for name in ("vsftpd", "pure-ftpd", "proftpd-core"))
    asked = {
        "vsftpd": ["sh", "-c", f"exec {vsftpd / 'usr/sbin/vsftpd'} -v 0>&1"],  # it speaks on descriptor 0
        "pure-ftpd": [str(pure / "usr/sbin/pure-ftpd"), "--help"],
        "proftpd": [str(proftpd / "usr/sbin/proftpd"), "--version"],
        "curl": ["curl", "--version"],
        "lftp": ["lftp", "--version"],
        "wget": ["wget", "--version"],
    }
    found = {"pyftpdlib": pyftpdlib.__ver__, "ftplib": f"of Python {facts()['python']}"}
    environment = {"LD_LIBRARY_PATH": ":".join(map(libraries, (vsftpd, pure, proftpd))), "PATH": "/usr/bin:/bin"}
    for name, argv in asked.items():
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
        match = re.search(r"\d+\.\d+(\.\d+)?\w*", done.stdout + done.stderr)
        found[name] = match[0] if match else "of unknown version"
    return {name: found[name] for name in (*SERVERS, *CLIENTS)}


def markdown(results: Sequence[Result], made: Mapping[str, object], peers: Mapping[str, str]) -> str:
    """The page; `made` are the facts of the machine, `peers` the versions."""
    programs = ", ".join(f"{name} {version}" for name, version in peers.items())
    when = f"{str(made['date'])[:10]}, Linux {made['kernel']}, Python {made['python']}; {programs}."
    load = f"{made['load_before']:.1f}"
    took = f"It took {made['minutes']} minutes on {made['cores']} cores, whose load had been {load} before."
    lines = [TITLE, when, took, ""]
    for plane in PLANES:
        lines += [*_table(plane, [each for each in results if each.plane == plane]), ""]
    failed = [each for each in results if each.outcome == FAILED]
    if failed:
        lines += ["## What failed", ""]
        names = (f"{each.plane} {each.deployment} IPv{each.version} {each.server} {each.client}" for each in failed)
        lines += [f"- {name} {each.mode}: {each.why}" for name, each in zip(names, failed, strict=True)] + [""]
    return "\n".join(lines)


def _table(plane: str, results: Sequence[Result]) -> Iterator[str]:
    ok = [each for each in results if each.outcome == OK]
    transfers, octets = sum(each.transfers for each in ok), sum(each.octets for each in ok)
    calls = sum(each.calls or 0 for each in ok)
    counted = f"; the firewall counted {calls:,} data connections" if plane == "nft" else ""
    yield f'## `planes = ["{plane}"]`: {len(ok)} of {len(results)} rows'
    yield ""
    if all(each.outcome == NOT_RUN for each in results):
        yield "Not run."
        return
    yield f"{transfers:,} transfers, {octets / 2**30:.1f} GiB{counted}."
    yield ""
    columns = [(kind, version) for kind in KINDS for version in (4, 6)]
    yield "| server | client | mode | " + " | ".join(f"{kind} IPv{version}" for kind, version in columns) + " |"
    yield "| --- " * (3 + len(columns)) + "|"
    ordered = sorted(results, key=lambda each: (list(SERVERS).index(each.server), list(CLIENTS).index(each.client)))
    for (server, client), group in groupby(ordered, key=lambda each: (each.server, each.client)):
        found = list(group)
        for mode in dict.fromkeys(each.mode for each in found):
            cells = {(each.deployment, each.version): each for each in found if each.mode == mode}
            words = [_cell(cells.get(column)) for column in columns]
            yield f"| {server} | {client} | {mode.replace('default', 'passive')} | {' | '.join(words)} |"


def _cell(result: Result | None) -> str:
    if result is None:
        return "-"
    return "**failed**" if result.outcome == FAILED else result.outcome


class Collector:
    """Gathers what the tests report, in the process that started the run."""

    def __init__(self, stem: Path) -> None:
        self.stem = stem
        self.results = skeleton()
        self.made = facts()
        self.began = time.monotonic()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        match = re.search(r"::test_transfers\[(.*?)\]", report.nodeid)
        if match is None or match[1] not in self.results:
            return
        result = self.results[match[1]]
        result.seconds = round(result.seconds + report.duration, 2)
        if report.failed:
            result.outcome = FAILED
            result.why = result.why or str(report.longrepr).strip().splitlines()[-1]
        elif report.skipped:
            result.why = str(report.longrepr)
        elif report.when == "call":
            result.outcome = OK
            for name, value in report.user_properties:
                setattr(result, name, value)

    def pytest_sessionfinish(self) -> None:
        results = list(self.results.values())
        made = self.made | {"minutes": round((time.monotonic() - self.began) / 60, 1)}
        peers = versions() if any(each.outcome != NOT_RUN for each in results) else {}
        self.stem.parent.mkdir(parents=True, exist_ok=True)
        whole = {"made": made, "versions": peers, "rows": [asdict(each) for each in results]}
        self.stem.with_suffix(".json").write_text(json.dumps(whole, indent=1) + "\n")
        self.stem.with_suffix(".md").write_text(markdown(results, made, peers))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.write_line(f"{self.stem}.md and {self.stem}.json have the results")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--results", type=Path, metavar="STEM", help="write the matrix to STEM.json and STEM.md")


def pytest_configure(config: pytest.Config) -> None:
    stem = config.getoption("--results")
    if stem is not None and not hasattr(config, "workerinput"):  # which only xdist's workers have
        config.pluginmanager.register(Collector(stem))
