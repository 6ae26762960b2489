"""Events in the log: one line each, `event key=value ...`, safe to read and safe to parse.

Standard `logging` carries them; what is ours is the formatter.  An event is a constant message (the event's
name) with its fields in `extra`, so other formatters (JSON, journald) need no parsing.  Fields that a peer can
choose (user and file names, error texts) may hold anything; here every octet that is not printable ASCII
leaves as `\\xNN`, so a peer can neither forge a line nor move a terminal's cursor.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from functools import lru_cache

__all__ = ["KeyValueFormatter", "event", "set_up"]

LONGEST_VALUE = 300

_PLAIN = re.compile(r"[A-Za-z0-9_.:/@+,\[\]()|<>*-]+\Z")
_UNSAFE = re.compile(r"[^\x20-\x7e]|[\\\"]")


def event(logger: logging.Logger, level: int, name: str, **fields: object) -> None:
    """Log event `name`.  Costs one comparison where nobody reads this level."""
    if logger.isEnabledFor(level):
        # Logger.log would walk the stack for the caller's place, which no event needs.
        logger.handle(logger.makeRecord(logger.name, level, "", 0, name, (), None, extra={"fields": fields}))


def _escape(match: re.Match[str]) -> str:
    character = match.group()
    if character in '\\"':
        return "\\" + character
    return "".join(f"\\x{octet:02x}" for octet in character.encode("utf-8", "surrogateescape"))


def quote(value: object) -> str:
    """`value` as it stands behind `key=`: bare if harmless, else quoted and escaped, at most 300 characters."""
    text = value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)
    if len(text) > LONGEST_VALUE:
        text = text[:LONGEST_VALUE] + "..."
    if _PLAIN.match(text):
        return text
    return '"' + _UNSAFE.sub(_escape, text) + '"'


@lru_cache(maxsize=2)
def _second(clock: int) -> tuple[str, str]:
    moment = time.localtime(clock)
    return time.strftime("%Y-%m-%dT%H:%M:%S", moment), time.strftime("%z", moment)


class KeyValueFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.123+0000 info session.open session=1 client=192.0.2.1:40000 ...`"""

    def format(self, record: logging.LogRecord) -> str:
        stamp, zone = _second(int(record.created))
        parts = [f"{stamp}.{int(record.msecs):03d}{zone}", record.levelname.lower(), record.getMessage()]
        fields: dict[str, object] = getattr(record, "fields", {})
        parts += [f"{key}={quote(value)}" for key, value in fields.items() if value is not None]
        line = " ".join(parts)
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def set_up(level: int = logging.INFO) -> None:
    """Send our events to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(KeyValueFormatter())
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.basicConfig(level=level, handlers=[handler], force=True)
