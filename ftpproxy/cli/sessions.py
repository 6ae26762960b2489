"""`ftpproxy sessions`."""

from __future__ import annotations

import argparse
from typing import Any

from .control import add_json, add_socket, answered
from .parser import Parser

SUMMARY = "the sessions of a running process, a line each"
DESCRIPTION = """\
Print a line for each session: its number, service, client, server, user, what the server owes an answer to or
still flows, the file, who carries its data connection, how fast, since when the session is there and since when
it is idle."""
EXAMPLES = """\
  ftpproxy sessions
  ftpproxy sessions --json | jq '.[] | select(.user == "alice").session'"""

COLUMNS = ("ID", "SERVICE", "STATE", "CLIENT", "SERVER", "USER", "COMMAND", "FILE", "PLANE", "RATE", "AGE", "IDLE")


def add_arguments(parser: Parser) -> None:
    add_socket(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    return answered(arguments, "sessions", _lines)


def _row(session: dict[str, Any]) -> tuple[str, ...]:
    from ..show import duration, printable, speed

    load = session["load"] or {}
    cells = (
        str(session["session"]),
        session["service"],
        session["state"],
        session["client"],
        session["server"] or "",
        session["user"],
        session["command"],
        session["file"],
        load.get("plane", ""),
        speed(session["rate"]).replace(" ", "") if load.get("up") else "",
        duration(session["age"]).replace(" ", ""),
        duration(session["idle"]).replace(" ", ""),
    )
    return tuple(printable(cell).replace(" ", "\\x20") or "-" for cell in cells)  # one word each, for awk(1)


def _lines(sessions: list[dict[str, Any]]) -> list[str]:
    rows = [COLUMNS, *map(_row, sorted(sessions, key=lambda each: each["session"]))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
