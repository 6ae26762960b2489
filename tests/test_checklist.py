"""Every item of docs/protocol.md that is built is named by a test: `Item 41: ...` or `Items 41, 42: ...`."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent
BUILT = {*range(1, 104), *range(114, 118), *range(130, 151)}
"""Groups A to F, I and J, and what of group H concerns sessions that are passed through or refused."""
_MENTION = re.compile(r"\bItems? (\d+(?:(?:, | and |-)\d+)*)")


def mentions(text: str) -> set[int]:
    items: set[int] = set()
    for match in _MENTION.finditer(text):
        for part in re.split(r", | and ", match[1]):
            first, _, last = part.partition("-")
            items |= set(range(int(first), int(last or first) + 1))
    return items


def test_every_item_is_named_by_a_test() -> None:
    named: set[int] = set()
    for path in [*TESTS.rglob("test_*.py"), *TESTS.joinpath("dialogues").glob("*.txt")]:
        if path != Path(__file__):
            named |= mentions(path.read_text())
    assert sorted(BUILT - named) == []


def test_the_checklist_has_them_all() -> None:
    checklist = (TESTS.parent / "docs" / "protocol.md").read_text()
    numbers = [int(number) for number in re.findall(r"^(\d+)\. \*\*(?:MUST|SHOULD)\*\* ", checklist, re.MULTILINE)]
    assert numbers == list(range(1, 151))
