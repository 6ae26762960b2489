"""The result as a table: a row for each measurement, a column for each way, the ratio to the direct path behind it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["summary"]

NOT_A_LIMIT = ("bare", "found", "interval", "met", "where")
Row = tuple[str, list[str]]


def _rows(
    title: str, found: Mapping[str, Mapping[str, Any]], fields: Mapping[str, str], ways: Sequence[str]
) -> Iterator[Row]:
    for field, words in fields.items():
        cells = []
        for way in ways:
            value = found[way].get(field)
            cell = "" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.2f}"
            if "ratio" in found[way] and field == next(iter(fields)):
                cell += f" ({found[way]['ratio']:.2f})"
            cells.append(cell)
        if any(cells):
            yield f"{title} {words}", cells


def _between(found: Mapping[str, Any]) -> str:
    """The interval, if there is one."""
    return " [{:.3f}, {:.3f}]".format(*found["interval"]) if "interval" in found else ""


def summary(result: Mapping[str, Any], ways: Sequence[str]) -> str:
    """`result` as text, without a line feed at the end."""
    rows: list[Row] = [("", list(ways))]
    throughput = result.get("throughput", {})
    for verb in ("RETR", "STOR"):
        if verb in throughput:
            fields = {"mb_per_second": "MB/s", "proxy_cpu_seconds_per_gib": "proxy CPU s/GiB"}
            rows += _rows(verb, throughput[verb], fields, ways)
    for clients, found in result.get("sessions", {}).items():
        fields = {
            "per_second": "sessions/s",
            "p50_ms": "p50 ms",
            "p99_ms": "p99 ms",
            "proxy_cpu_ms_per_session": "proxy CPU ms/session",
        }
        rows += _rows(f"{clients} clients", found, fields, ways)
    widths = [max(len(row[0]) for row in rows), *(max(len(row[1][i]) for row in rows) for i in range(len(ways)))]
    lines = (
        [
            "  ".join([title.ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells, widths[1:], strict=True))]).rstrip()
            for title, cells in rows
        ]
        if len(rows) > 1
        else []
    )
    kernel = result.get("kernel", {})
    compared = {
        f"{verb}, {where.replace('_', ' ')}": found
        for where, verbs in kernel.get("throughput", {}).items()
        for verb, found in verbs.items()
    }
    for title, found in (compared | kernel.get("packets", {})).items():
        cells = [f"{way} {each['ratio']:.3f}{_between(each)}" for way, each in found.items() if "ratio" in each]
        lines.append(f"{title}, ratio to a plain gateway: {', '.join(cells)}")
    if memory := result.get("memory"):
        lines.append(f"memory of an idle session ({memory['way']}): {memory['kib_per_idle_session']} KiB")
    for name, target in kernel.get("targets", {}).items():
        ((limit, value),) = [(key, target[key]) for key in target if key not in NOT_A_LIMIT]
        verdict = "met" if target["met"] else "MISSED"
        found = f"{target['found']}{_between(target)}"
        if "bare" in target:
            found += f", a bare proxy {target['bare']}"
        lines.append(f"kernel plane, {name}: {found} ({limit.replace('_', ' ')} {value}: {verdict})")
    return "\n".join(lines)
