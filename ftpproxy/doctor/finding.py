"""A finding: what is wrong, why it hurts, and the line that mends it."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable
from enum import Enum
from typing import Any

from attrs import frozen

__all__ = ["CannotLook", "Finding", "Severity", "as_json", "as_text"]

WIDTH = 80


class Severity(Enum):
    """How much it matters."""

    HURTS = "hurts"
    """FTP fails, or will, or takes another way than it should."""
    WORTH_KNOWING = "worth knowing"
    """It may be meant so."""
    NOT_SEEN = "not looked at"
    """We may not look, or cannot: nobody knows whether it hurts."""

    def __str__(self) -> str:
        return self.value


@frozen
class Finding:
    """What one look has found."""

    severity: Severity
    name: str
    """One of docs/doctor.md, the same for the same fault everywhere: for scripts."""
    what: str
    why: str
    mend: str = ""
    """A line for a shell, for the configuration or for an nftables file; empty where no line could."""
    service: str = ""
    """The service that it concerns; empty: all of them."""


class CannotLook(Exception):
    """Something cannot be seen from here; the text says what, and why."""


def as_json(findings: Iterable[Finding]) -> str:
    """A list of objects, all of whose values are strings."""
    rows = [
        {
            "severity": each.severity.value,
            "name": each.name,
            "service": each.service,
            "what": each.what,
            "why": each.why,
            "mend": each.mend,
        }
        for each in findings
    ]
    return json.dumps(rows, indent=2, ensure_ascii=False) + "\n"


def as_text(findings: Iterable[Finding]) -> str:
    """A paragraph for each.  Lines that mend are to be copied, so they alone are never broken."""
    return "\n".join(map(_paragraph, findings))


def _paragraph(finding: Finding) -> str:
    where = f" (service {finding.service})" if finding.service else ""
    head = textwrap.fill(f"{finding.severity}: {finding.what}{where}", WIDTH, subsequent_indent="    ", **_WORDS)
    lines = [head, textwrap.fill(finding.why, WIDTH, initial_indent="    ", subsequent_indent="    ", **_WORDS)]
    lines += [f"    -> {line}" for line in finding.mend.splitlines()]
    return "\n".join(lines) + "\n"


_WORDS: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}
