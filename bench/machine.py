"""What a figure must be read with: the machine, the versions, the commit."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ftpproxy import __version__

__all__ = ["facts"]


def _said(*command: str) -> str | None:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str | None:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return None


def facts() -> dict[str, object]:
    compiler = _said("gcc", "--version")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "kernel": platform.release(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        "trio": _version("trio"),
        "ftpproxy": __version__,
        "gcc": compiler.splitlines()[0] if compiler else None,
        "commit": _said("git", "rev-parse", "HEAD"),
        "modified": bool(_said("git", "status", "--porcelain", "--", "../ftpproxy", ".")),
    }
