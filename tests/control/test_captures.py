"""The captures in docs/operations.md look as what is printed now; `python -m tests.control.captures` makes them."""

from __future__ import annotations

import html
import re
from typing import Any

from rich.console import Console

from ftpproxy import top, trace

from .captures import PAGE, block

PAGE_TEXT = PAGE.read_text()
TOP = html.unescape(block("top", PAGE_TEXT)).splitlines()
TRACE = block("trace", PAGE_TEXT).splitlines()


def printed(sessions: list[dict[str, Any]]) -> list[str]:
    """What `top --once` prints of them on 80 columns."""
    status = {"version": "0.1.0", "state": "running", "uptime": 5.0, "paths": {"nft": 2, "relay": 1}}
    console = Console(width=80, highlight=False, color_system=None)
    with console.capture() as capture:
        console.print(top.picture(top.Look(status, sessions, 0.0), "rate", note=""), end="")
    return [line.rstrip() for line in capture.get().splitlines()]


def cells(line: str) -> tuple[str, ...]:
    """A row by the columns of the head."""
    ends = [5, 16, 32, 38, 55, 66, 72, 80]
    return tuple(line[start:end].strip() for start, end in zip([0, *ends], ends, strict=False))


def test_top_is_laid_out_as_it_is_printed() -> None:
    head = printed([])
    assert TOP[3] == head[3]
    for shown, now in zip(TOP[:3], head[:3], strict=True):
        assert (
            re.sub(r"[\d.:]+|[kMG]?B/s|[ms]\b", "", shown).split()[:2]
            == (re.sub(r"[\d.:]+|[kMG]?B/s|[ms]\b", "", now).split()[:2])
        )
    assert all(len(line) <= 80 for line in TOP)
    rows = [cells(line) for line in TOP[4:]]
    assert {row[6] for row in rows} == {"nft", "relay", ""}
    assert {row[3] for row in rows} == {"RETR", "STOR", "idle"}


def test_each_row_of_top_can_be_printed_again() -> None:
    """The same values give the same line."""
    for line in TOP[4:]:
        number, user, client, command, file, rate, plane, age = cells(line)
        figure, _, unit = rate.partition(" ")
        scale = {"": 0, "B/s": 1, "kB/s": 1e3, "MB/s": 1e6}[unit]
        minutes, _, seconds = age.rstrip("s").rpartition(":")
        session = {
            "session": int(number),
            "user": user,
            "client": f"{client}:40000",
            "command": "" if command == "idle" else command,
            "state": "open",
            "file": file,
            "rate": float(figure or 0) * scale,
            "idle": 0.0,
            "age": int(minutes or 0) * 60 + int(seconds),
            "load": {"up": True, "plane": plane, "direction": None} if plane else None,
        }
        assert printed([session])[4] == line


def test_trace_is_laid_out_as_it_is_printed() -> None:
    assert html.unescape(TRACE[0]) == trace.LEGEND
    signs = set()
    for line in TRACE[1:]:
        plain = html.unescape(re.sub("</?b>", "", line))
        match = re.fullmatch(r"\d\d:\d\d:\d\d\.\d\d\d #(\d+) ([CS][:>]|\*) (.+)", plain)
        assert match is not None, line
        signs.add(match[2])
        assert ("<b>" in line) == (match[2] in ("C>", "S>"))
        record: dict[str, Any] = {"at": 0.0, "session": int(match[1])}
        side = {"C": "client", "S": "server"}.get(match[2][0], "")
        if match[2] == "*":
            continue  # an event and its fields
        record |= {("from" if match[2][1] == ":" else "to"): side, "line": match[3]}
        assert trace.line(record, colour=False).partition(" ")[2] == plain.partition(" ")[2]
    assert signs == {"C:", "S:", "S>", "*"}
    assert any("PASS ****" in line for line in TRACE)
