"""How an event is written down: `key=value`, JSON, and the fields of the journal.

Values that a peer can choose may hold anything.  What becomes of them:

    key=value   every octet that is not printable ASCII is `\\xNN`, and what is not plain stands in quotes
    JSON        characters as JSON escapes them, all ASCII; octets that are no UTF-8 are `\\xNN`
    journal     printable characters as they are, everything else as Python escapes it (`\\x1b`, `\\u2028`)

A traceback (of an internal error) may quote what a peer wrote: its lines are escaped likewise, and each stands behind
four blanks and a bar, which no event does.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Iterator
from functools import lru_cache

from .log import NOTICE

__all__ = ["IDENTIFIER", "JsonFormatter", "KeyValueFormatter", "journal_fields", "priority", "quote", "readable"]

IDENTIFIER = "ftpproxy"
"""What syslog and the journal know us by."""
LONGEST_VALUE = 300

_PLAIN = re.compile(r"[A-Za-z0-9_.:/@+,\[\]()|<>*-]+\Z")
_UNSAFE = re.compile(r"[^\x20-\x7e]|[\\\"]")


def _escape(match: re.Match[str]) -> str:
    character = match.group()
    if character in '\\"':
        return "\\" + character
    return "".join(f"\\x{octet:02x}" for octet in character.encode("utf-8", "surrogateescape"))


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_VALUE else text[:LONGEST_VALUE] + "..."


def quote(value: object) -> str:
    """`value` as it stands behind `key=`: bare if harmless, else quoted and escaped, at most 300 characters."""
    text = _shortened(value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value))
    if _PLAIN.match(text):
        return text
    return '"' + _UNSAFE.sub(_escape, text) + '"'


def readable(value: object) -> str:
    """`value` as printable characters, of any script."""
    text = _shortened(value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value))
    return text if text.isprintable() else "".join(_visible(each) for each in text)


def _visible(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()


def fields_of(record: logging.LogRecord) -> Iterator[tuple[str, object]]:
    """The fields that have a value."""
    fields: dict[str, object] = getattr(record, "fields", {})
    return ((key, value) for key, value in fields.items() if value is not None)


def sentence(record: logging.LogRecord) -> str:
    """`session.open session=1 client=192.0.2.1:40000 ...`"""
    return " ".join((record.getMessage(), *(f"{key}={quote(value)}" for key, value in fields_of(record))))


def traceback_lines(record: logging.LogRecord) -> list[str]:
    """What went wrong in here, for a bug report; none mostly."""
    if not record.exc_info:
        return []
    return [_UNSAFE.sub(_escape, line) for line in logging.Formatter().formatException(record.exc_info).split("\n")]


@lru_cache(maxsize=2)
def _second(clock: int) -> tuple[str, str]:
    moment = time.localtime(clock)
    return time.strftime("%Y-%m-%dT%H:%M:%S", moment), time.strftime("%z", moment)


def _stamp(record: logging.LogRecord) -> str:
    stamp, zone = _second(int(record.created))
    return f"{stamp}.{int(record.msecs):03d}{zone}"


class KeyValueFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.123+0000 info session.open session=1 client=192.0.2.1:40000 ...`"""

    def format(self, record: logging.LogRecord) -> str:
        lines = [f"{_stamp(record)} {record.levelname.lower()} {sentence(record)}"]
        lines += [f"    | {line}" for line in traceback_lines(record)]
        return "\n".join(lines)


class JsonFormatter(logging.Formatter):
    """`{"time": "...", "level": "info", "event": "session.open", "session": 1, "client": "192.0.2.1:40000", ...}`"""

    def format(self, record: logging.LogRecord) -> str:
        values: dict[str, object] = {
            "time": _stamp(record),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        for key, value in fields_of(record):
            if isinstance(value, int):
                values[key] = value
            else:
                text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
                # A lone surrogate is no character, and strict readers refuse it.
                values[key] = _shortened(text).encode("utf-8", "backslashreplace").decode()
        if lines := traceback_lines(record):
            values["traceback"] = "\n".join(lines)
        return json.dumps(values)


_PRIORITIES = {
    logging.DEBUG: 7,
    logging.INFO: 6,
    NOTICE: 5,
    logging.WARNING: 4,
    logging.ERROR: 3,
    logging.CRITICAL: 2,
}


def priority(record: logging.LogRecord) -> int:
    """The level as syslog(3) numbers it, or what a filter has set as `priority`."""
    rank: int | None = getattr(record, "priority", None)
    return _PRIORITIES.get(record.levelno, 6) if rank is None else rank


def journal_fields(record: logging.LogRecord) -> Iterator[tuple[str, str]]:
    """The fields of an entry in the journal (systemd.journal-fields(7)); ours begin with `FTPPROXY_`."""
    yield "MESSAGE", sentence(record)
    yield "PRIORITY", str(priority(record))
    yield "SYSLOG_IDENTIFIER", IDENTIFIER
    yield "FTPPROXY_EVENT", record.getMessage()
    for key, value in fields_of(record):
        yield f"FTPPROXY_{key.upper()}", readable(value)
    if lines := traceback_lines(record):
        yield "FTPPROXY_TRACEBACK", "\n".join(lines)
