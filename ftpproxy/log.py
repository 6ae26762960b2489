"""Events in the log: one line each, with fields, whoever reads it.

Standard `logging` carries them.  An event is a constant message (the event's name) with its fields in `extra`, so no
reader has to parse a sentence; `logforms` writes it down and `logsinks` takes it to where it is read.  Both are
imported when they are used.  What a peer can choose (user and file names, error texts) may hold anything: each
form keeps it from forging a line or a field, and from moving a terminal's cursor.

Three things must never happen because of the log: that the service waits for it, that it ends the service, and
that one peer fills it.  Sinks lose lines rather than wait (`lost`); `Flood` lets no peer say the same more than
`MOST_ALIKE` times a second.  Sessions and transfers are always logged, a line each.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal

__all__ = [
    "MOST_ALIKE",
    "Flood",
    "Format",
    "event",
    "flood",
    "level_wanted",
    "set_level",
    "set_up",
    "started_by_journald",
    "sweep",
    "sweep_crashed",
]

Format = Literal["auto", "kv", "json", "journald", "syslog", "classic", "classic-syslog"]
"""Of `[log]`; `auto` is `journald` where the journal reads our standard error, else `kv`."""

STDERR = 2
MOST_ALIKE = 10
"""Lines a second with the same event, code and client's address."""
MOST_KEYS = 1000
"""Different ones that are counted in a second; further clients are counted together."""
ALWAYS = frozenset({"session.open", "session.close", "transfer"})
"""Events that are never left out."""

NOTICE = 25
"""Between info and warning, as in syslog.  No event of ours has it; `classic` knows by their names which had."""
logging.addLevelName(NOTICE, "NOTICE")

_log = logging.getLogger(__name__)


def event(logger: logging.Logger, level: int, name: str, **fields: object) -> None:
    """Log event `name`.  Costs one comparison where nobody reads this level."""
    if logger.isEnabledFor(level):
        # Logger.log would walk the stack for the caller's place, which no event needs.
        logger.handle(logger.makeRecord(logger.name, level, "", 0, name, (), None, extra={"fields": fields}))


class Flood:
    """A filter for a handler: what is said too often in one second is counted and not said.

    The counts are logged as `log.suppressed` with the first line of a later second, or by `sweep`.
    """

    def __init__(self) -> None:
        self.suppressed = 0
        """Lines left out since the start."""
        self._second = 0.0
        self._seen: dict[tuple[str, str, str], int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name == __name__ or record.msg in ALWAYS:
            return True
        self.sweep(record.created)
        fields: Mapping[str, object] = getattr(record, "fields", {})
        client = fields.get("client") or fields.get("caller") or ""
        key = str(record.msg), str(fields.get("code") or ""), str(getattr(client, "host", client))
        if key not in self._seen and len(self._seen) >= MOST_KEYS:
            key = *key[:2], ""
        count = self._seen[key] = self._seen.get(key, 0) + 1
        if count > MOST_ALIKE:
            self.suppressed += 1
        return count <= MOST_ALIKE

    def sweep(self, clock: float) -> None:
        """A moment has come (seconds since the epoch): say what was left out in an earlier second."""
        if (second := clock // 1) == self._second:
            return
        self._second = second
        seen, self._seen = self._seen, {}
        for (name, code, client), count in seen.items():
            if count > MOST_ALIKE:
                event(
                    _log,
                    logging.WARNING,
                    "log.suppressed",
                    of=name,
                    code=code or None,
                    client=client or None,
                    count=count - MOST_ALIKE,
                )


flood = Flood()
"""The one of this process."""


def sweep(_: float) -> None:
    """To be called once a second (of the board), so that counts are told although nobody logs."""
    flood.sweep(time.time())


def sweep_crashed(_: Exception) -> None:
    """Tried again in the next sweep."""


def started_by_journald() -> bool:
    """Whether standard error leads to the journal (systemd.exec(5), `$JOURNAL_STREAM`: device and inode)."""
    try:
        device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
        status = os.fstat(STDERR)
        return (int(device), int(inode)) == (status.st_dev, status.st_ino)
    except (ValueError, OSError):
        return False  # not set, or closed


_needed: Callable[[int], int] = int
"""The level that the loggers need to have, by the one that is wanted."""
_wanted = logging.WARNING


def set_up(
    level: int = logging.INFO, form: Format = "auto", most_sessions: Mapping[str, int] = MappingProxyType({})
) -> None:
    """Send our events to where `form` says, and nowhere else.  `most_sessions` by service are said by `classic`."""
    global _needed
    from . import logsinks

    if form == "auto":
        # In a file system of its own a service may have the one and not the other.
        form = "journald" if started_by_journald() and os.path.exists(logsinks.JOURNAL) else "kv"
    handler = logsinks.sink(form, most_sessions)
    _needed = int
    if form in ("classic", "classic-syslog"):
        from .classic import Ranks

        ranks = Ranks()
        handler.addFilter(ranks)
        _needed = ranks.let_through
    handler.addFilter(flood)
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.raiseExceptions = False  # a log that cannot be written is no reason to write about it
    logging.basicConfig(handlers=[handler], force=True)
    set_level(level)


def set_level(level: int) -> None:
    """Log what is at least as grave as `level` from now on."""
    global _wanted
    _wanted = level
    logging.getLogger().setLevel(_needed(level))


def level_wanted() -> int:
    """What `set_up` or `set_level` was told last; the loggers may have another level, for `classic`."""
    return _wanted
