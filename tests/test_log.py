"""The log: one event, one line, in every form, whatever a peer wrote."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftpproxy.log import MOST_ALIKE, Flood, event
from ftpproxy.logforms import JsonFormatter, KeyValueFormatter, journal_fields

HOSTILE = (
    b"RETR x\r\n2026-01-31T12:00:00.123+0000 info session.open session=9",
    b"a\nMESSAGE=forged\nPRIORITY=0\n",
    b"\x1b[2J\x1b]0;title\x07\x9b31m",
    "\u2028\u2029\u202e\x85\x00".encode(),
    b"\xff\xfe\x80\xc3",
    b'" client=192.0.2.66:1 x="\\',
    b"=",
    b" ",
    b"",
)
"""Names of files and users: new lines, terminal sequences, separators, NUL, no UTF-8, quotes and fields."""
ANYTHING = st.binary(max_size=400) | st.text(max_size=400) | st.sampled_from(HOSTILE)


def record(value: object, name: str = "transfer", level: int = logging.INFO) -> logging.LogRecord:
    made = logging.LogRecord("ftpproxy", level, __file__, 1, name, None, None)
    made.fields = {"what": value, "after": 1}
    return made


def line(value: object) -> str:
    return KeyValueFormatter().format(record(value))


def test_control_characters_are_escaped() -> None:
    """Item 138: nothing that a peer writes forges a line or moves a cursor."""
    assert line(b'RETR a\x1b[2J\r\n\xc3\xa9\x7f\xff"').endswith(
        ' info transfer what="RETR a\\x1b[2J\\x0d\\x0a\\xc3\\xa9\\x7f\\xff\\"" after=1'
    )


@given(ANYTHING)
def test_a_line_is_printable_ascii(value: object) -> None:
    """Item 138: for any octets."""
    assert all(" " <= character <= "~" for character in line(value))


FIELD = re.compile(r' ([a-z]+)=("(?:[^"\\]|\\.)*"|[^\s"=]*)')


@given(ANYTHING)
def test_a_line_has_the_fields_that_were_given(value: object) -> None:
    """Item 138: no value begins another field."""
    text = line(value).partition(" info transfer")[2]
    assert [match[1] for match in FIELD.finditer(text)] == ["what", "after"]
    assert "".join(match[0] for match in FIELD.finditer(text)) == text


@given(ANYTHING)
def test_json_is_one_line_with_the_fields_that_were_given(value: object) -> None:
    """Item 138: strict readers take it, and get no lone surrogates."""
    text = JsonFormatter().format(record(value))
    assert all(" " <= character <= "~" for character in text)
    read = json.loads(text)
    assert list(read) == ["time", "level", "event", "what", "after"]
    assert (read["event"], read["after"]) == ("transfer", 1)
    read["what"].encode()


def test_json_keeps_names_readable() -> None:
    assert json.loads(JsonFormatter().format(record("RETR größe".encode() + b"\xff")))["what"] == "RETR größe\\xff"


@given(ANYTHING)
def test_journal_fields_are_printable(value: object) -> None:
    """Item 138: a terminal that shows a field is not moved either."""
    fields = dict(journal_fields(record(value)))
    assert list(fields) == [
        *("MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER"),
        *("FTPPROXY_EVENT", "FTPPROXY_WHAT", "FTPPROXY_AFTER"),
    ]
    assert all(text.isprintable() for text in fields.values())


def crash(text: str) -> logging.LogRecord:
    try:
        raise ValueError(text)
    except ValueError as error:
        made = record(b"x", "internal.error", logging.ERROR)
        made.exc_info = (type(error), error, error.__traceback__)
        return made


@pytest.mark.parametrize("text", [text.decode("utf-8", "backslashreplace") for text in HOSTILE])
def test_a_traceback_forges_no_line(text: str) -> None:
    """Item 138: an internal error may quote what a peer wrote."""
    first, *others = KeyValueFormatter().format(crash(text)).split("\n")
    assert " error internal.error what=x" in first
    assert others
    assert all(each.startswith("    | ") and each.isascii() and each.isprintable() for each in others)
    assert "\n" not in JsonFormatter().format(crash(text))


# Saying the same too often


class Sink(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def limited() -> Iterator[tuple[logging.Logger, Flood, Sink]]:
    sink, flood = Sink(), Flood()
    sink.addFilter(flood)
    ours = logging.getLogger("ftpproxy")
    ours.addHandler(sink)
    before, ours.level = ours.level, logging.INFO
    yield logging.getLogger("ftpproxy.test"), flood, sink
    ours.removeHandler(sink)
    ours.setLevel(before)


def names(sink: Sink) -> list[str]:
    return [each.getMessage() for each in sink.records if each.getMessage() != "log.suppressed"]


def suppressed(sink: Sink) -> list[dict[str, object]]:
    return [vars(each)["fields"] for each in sink.records if each.getMessage() == "log.suppressed"]


def test_the_same_is_said_so_often(
    limited: tuple[logging.Logger, Flood, Sink], monkeypatch: pytest.MonkeyPatch
) -> None:
    log, flood, sink = limited
    monkeypatch.setattr("time.time", lambda: 1000.25)
    for number in range(MOST_ALIKE + 5):
        event(log, logging.WARNING, "session.refused", client=f"192.0.2.{number % 2}", code="limit")
        event(log, logging.WARNING, "session.refused", client="192.0.2.1", code=f"other{number}")
    assert len(names(sink)) == 2 * (MOST_ALIKE + 5)  # none of which is the same more than eight times
    for _ in range(MOST_ALIKE + 5):
        event(log, logging.WARNING, "data.stranger", caller="192.0.2.3")
    assert names(sink).count("data.stranger") == MOST_ALIKE
    flood.sweep(1000.9)
    assert not suppressed(sink)
    flood.sweep(1001.0)
    assert suppressed(sink) == [{"of": "data.stranger", "code": None, "client": "192.0.2.3", "count": 5}]
    assert flood.suppressed == 5
    flood.sweep(1002.0)
    assert len(suppressed(sink)) == 1


def test_a_later_line_tells_what_was_left_out(
    limited: tuple[logging.Logger, Flood, Sink], monkeypatch: pytest.MonkeyPatch
) -> None:
    log, _, sink = limited
    clock = iter([*[1000.0] * (MOST_ALIKE + 1), *[1001.0] * 3])
    monkeypatch.setattr("time.time", lambda: next(clock))
    for _ in range(MOST_ALIKE + 2):
        event(log, logging.WARNING, "session.refused", client="192.0.2.1")
    assert names(sink).count("session.refused") == MOST_ALIKE + 1
    assert [fields["count"] for fields in suppressed(sink)] == [1]


@pytest.mark.parametrize("name", ["session.open", "session.close", "transfer"])
def test_sessions_and_transfers_are_always_logged(limited: tuple[logging.Logger, Flood, Sink], name: str) -> None:
    log, flood, sink = limited
    for _ in range(100):
        event(log, logging.INFO, name, client="192.0.2.1")
    assert len(sink.records) == 100
    assert not flood.suppressed


def test_clients_without_number_take_no_memory_without_end(
    limited: tuple[logging.Logger, Flood, Sink], monkeypatch: pytest.MonkeyPatch
) -> None:
    log, flood, _ = limited
    monkeypatch.setattr("time.time", lambda: 1000.0)
    for number in range(3000):
        event(log, logging.WARNING, "data.stranger", caller=f"2001:db8::{number:x}")
    assert len(flood._seen) == 1001
    assert flood.suppressed == 2000 - MOST_ALIKE
