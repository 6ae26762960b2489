"""The two C programs: built where they are missing or older than their source."""

from __future__ import annotations

import subprocess
from pathlib import Path

__all__ = ["BUILD", "BenchError", "build"]

SOURCES = Path(__file__).parent
BUILD = SOURCES / "build"
FLAGS = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror"]


class BenchError(Exception):
    """The benchmark cannot go on, or measured something else than it should; the text says what."""


def build(name: str, into: Path = BUILD) -> Path:
    """Compile `name`.c with gcc and return the program.  Raises `BenchError` with what the compiler said."""
    source, program = SOURCES / f"{name}.c", into / name
    newest = max(file.stat().st_mtime for file in (source, *SOURCES.glob("*.h")))
    if program.exists() and program.stat().st_mtime >= newest:
        return program
    into.mkdir(parents=True, exist_ok=True)
    try:
        done = subprocess.run(["gcc", *FLAGS, "-o", program, source], capture_output=True, text=True)
    except FileNotFoundError:
        raise BenchError("gcc is missing: the load generator and the server are written in C") from None
    if done.returncode:
        raise BenchError(f"gcc does not compile {source.name}:\n{done.stderr}")
    return program
