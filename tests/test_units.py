"""The units for systemd: what systemd itself thinks of them.  Whether they work is shown in tests/system."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from ftpproxy.cli import COMMANDS

UNITS = Path(__file__).parent.parent / "systemd"
NAMES = sorted(path.name for path in UNITS.glob("*.service"))

pytestmark = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")


def analyze(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", "--no-pager", *argv], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("unit", "most"),
    [
        ("ftpproxy-relay.service", 1.3),
        ("ftpproxy-inetd@.service", 1.3),
        ("ftpproxy.service", 1.8),
        ("ftpproxy@.service", 1.8),
    ],
)
def test_the_exposure_is_small(unit: str, most: float) -> None:
    """`systemd-analyze security`, from 0 (safe) to 10."""
    done = analyze("security", "--offline=yes", f"--threshold={most * 10:.0f}", str(UNITS / unit))
    assert done.returncode == 0, done.stdout
    level = re.search(r"Overall exposure level for .*: ([0-9.]+)", done.stdout)
    assert level is not None
    assert 0 < float(level[1]) <= most


def test_the_threshold_can_fail() -> None:
    done = analyze("security", "--offline=yes", "--threshold=1", str(UNITS / "ftpproxy.service"))
    assert done.returncode != 0


@pytest.mark.parametrize("unit", NAMES + sorted(path.name for path in UNITS.glob("*.socket")))
def test_systemd_understands_every_line(unit: str, tmp_path: Path) -> None:
    """`systemd-analyze verify`, with programs and manual pages that this machine has."""
    for path in UNITS.iterdir():
        text = re.sub(r"(?m)^(Exec\w+=)ftpproxy ", r"\1/bin/true ", path.read_text())
        (tmp_path / path.name).write_text(re.sub(r"(?m)^Documentation=.*\n", "", text))
    done = analyze("verify", "--recursive-errors=one", str(tmp_path / unit))
    assert [line for line in done.stderr.splitlines() if "ftpproxy" in line] == []
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("unit", NAMES)
def test_the_commands_exist(unit: str) -> None:
    for command in re.findall(r"(?m)^Exec\w+=ftpproxy (\S+)", (UNITS / unit).read_text()):
        assert command in COMMANDS, json.dumps(command)
