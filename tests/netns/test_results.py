"""The matrix as a table: each row has its cell, what failed or was not run stands out, the page is no older."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from .results import Collector, markdown, skeleton
from .test_matrix import ROWS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "matrix.md"
MADE = {
    "date": "2026-11-22T10:00:00+00:00",
    "kernel": "6.1",
    "cores": 2,
    "python": "3.11.7",
    "load_before": 0.5,
    "minutes": 7.5,
}

Word = Literal["passed", "failed", "skipped"]


def page(collector: Collector) -> str:
    return markdown(list(collector.results.values()), MADE, {"vsftpd": "3.0.3", "curl": "7.88.1"})


def cells(text: str) -> list[list[str]]:
    """The tables, line by line."""
    return [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]


def report(collector: Collector, row: str, setup: Word, call: Word | None, teardown: Word, **found: int) -> None:
    """What pytest says of a row, from a worker of xdist's."""
    name = f"tests/netns/test_matrix.py::test_transfers[{row}]@group"
    phases: list[tuple[Literal["setup", "call", "teardown"], Word | None]]
    phases = [("setup", setup), ("call", call), ("teardown", teardown)]
    for when, outcome in phases:
        if outcome is not None:
            why = "" if outcome == "passed" else f"E   in {when}\nE   AssertionError: why in {when}"
            said = pytest.TestReport(
                name, ("", 0, ""), {}, outcome, why, when, user_properties=found.items(), duration=1.0
            )
            collector.pytest_runtest_logreport(said)


def test_every_row_has_its_place() -> None:
    assert [param.id for param in ROWS] == list(skeleton())
    assert len(ROWS) == 408


@pytest.mark.netns
@pytest.mark.usefixtures("namespaces")
def test_a_run_of_one_row(tmp_path: Path) -> None:
    """As `make matrix` does it, from a worker to the page."""
    row = "nft-reverse-ipv6-vsftpd-wget-active"
    options = ["-q", "-m", "matrix", "-k", row, "-n", "1", "-p", "no:cacheprovider", "-p", "tests.netns.results"]
    argv = [
        sys.executable,
        "-m",
        "pytest",
        *options,
        "--results",
        str(tmp_path / "matrix"),
        "tests/netns/test_matrix.py",
    ]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    written = json.loads((tmp_path / "matrix.json").read_text())
    (found,) = [each for each in written["rows"] if each["outcome"] != "not run"]
    assert (
        "-".join([found["plane"], found["deployment"], "ipv6", found["server"], found["client"], found["mode"]]) == row
    )
    assert (found["version"], found["outcome"]) == (6, "ok")
    assert found["calls"] >= found["transfers"] >= 36
    assert found["octets"] >= 256 << 20
    assert re.fullmatch(r"\d+\.\d+\.\d+", written["versions"]["vsftpd"])
    assert "1 of 204 rows" in (tmp_path / "matrix.md").read_text()


def test_only_what_went_well_to_the_end_is_ok() -> None:
    collector = Collector(Path("unused"))
    assert page(collector).count("Not run.") == 2
    report(
        collector,
        "nft-tproxy-ipv4-vsftpd-curl-default",
        "passed",
        "passed",
        "passed",
        transfers=40,
        octets=1 << 30,
        calls=41,
    )
    report(collector, "nft-tproxy-ipv4-vsftpd-curl-active", "passed", "failed", "passed")
    report(collector, "nft-tproxy-ipv4-vsftpd-lftp-default", "passed", "passed", "failed", transfers=40, octets=1 << 30)
    report(collector, "nft-tproxy-ipv4-vsftpd-lftp-active", "failed", None, "passed")
    report(collector, "nft-tproxy-ipv4-vsftpd-wget-default", "skipped", None, "passed")
    text = page(collector)
    found = {tuple(line[:3]): line[3] for line in cells(text) if line[0] == "vsftpd"}
    assert found == {
        ("vsftpd", "curl", "passive"): "ok",
        ("vsftpd", "curl", "active"): "**failed**",
        ("vsftpd", "curl", "port"): "not run",
        ("vsftpd", "lftp", "passive"): "**failed**",
        ("vsftpd", "lftp", "active"): "**failed**",
        ("vsftpd", "wget", "passive"): "not run",
        ("vsftpd", "wget", "active"): "not run",
        ("vsftpd", "ftplib", "passive"): "not run",
        ("vsftpd", "ftplib", "active"): "not run",
    }
    assert '## `planes = ["nft"]`: 1 of 204 rows\n\n40 transfers, 1.0 GiB; the firewall counted 41 data' in text
    assert "2026-11-22, Linux 6.1, Python 3.11.7; vsftpd 3.0.3, curl 7.88.1.\nIt took 7.5 minutes on 2 cores" in text
    assert re.findall(r"^- (.*)$", text, re.MULTILINE) == [
        "nft tproxy IPv4 vsftpd curl active: E   AssertionError: why in call",
        "nft tproxy IPv4 vsftpd lftp default: E   AssertionError: why in teardown",
        "nft tproxy IPv4 vsftpd lftp active: E   AssertionError: why in setup",
    ]


def test_what_does_not_exist_has_a_dash() -> None:
    collector = Collector(Path("unused"))
    for row in skeleton():
        report(collector, row, "passed", "passed", "passed")
    text = page(collector)
    body = [cell for line in cells(text) for cell in line[3:]]
    assert (body.count("ok"), body.count("-")) == (408, 2 * 4 * 3), "PORT over IPv6: planes, servers, deployments"
    assert "What failed" not in text


def test_the_page_has_all_rows_that_there_are() -> None:
    """And all of them were run when it was made: with `make matrix`."""
    collector = Collector(Path("unused"))
    for row in skeleton():
        report(collector, row, "passed", "passed", "passed")
    there = PAGE.read_text()
    assert "not run" not in there.lower()

    def shape(text: str) -> list[list[str]]:
        return [line[:3] + ["-" if cell == "-" else "" for cell in line[3:]] for line in cells(text)]

    assert shape(there) == shape(page(collector))
