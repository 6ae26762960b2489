"""One target under atheris: `python -m tests.fuzz.instrumented TARGET [libFuzzer's options] CORPUS`."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["ftpproxy"]):
    from .targets import TARGETS


def main() -> None:
    program, name, *rest = sys.argv
    atheris.Setup([program, *rest], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
