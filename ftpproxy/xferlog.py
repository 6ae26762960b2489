"""The transfer log of wu-ftpd, which statistics and fail2ban have read for thirty years (xferlog(5)).

One line a file, 14 fields with single blanks between them:

    current-time transfer-time remote-host file-size filename transfer-type special-action direction access-mode
    username service-name authentication-method authenticated-user-id completion-status

What a proxy cannot know is said as little as possible: the size is of the octets relayed (with REST or MODE Z that
is not the file's), the name is what the client asked for, and nobody is authenticated by ident.
"""

from __future__ import annotations

import logging
import re
import time
from logging.handlers import WatchedFileHandler

from .carried import Carried
from .endpoints import IPAddress
from .paths import Direction

__all__ = ["FILE_VERBS", "Xferlog", "line"]

FILE_VERBS = frozenset({b"RETR", b"STOR", b"STOU", b"APPE"})
"""Listings are no files."""
ANONYMOUS = frozenset({b"ftp", b"anonymous"})

_UNSAFE = re.compile(rb"[\x00-\x20\x7f-\xff]")


def _word(octets: bytes, otherwise: str) -> str:
    """Octets as one field: blanks, controls and what is no ASCII become `_`."""
    return _UNSAFE.sub(b"_", octets).decode("ascii") or otherwise


def line(client: IPAddress, carried: Carried, ended: float) -> str | None:
    """The line for a transfer that `ended` (seconds since the epoch); None if it was no file's."""
    verb, _, name = carried.what.partition(b" ")
    if verb.upper() not in FILE_VERBS:
        return None
    octets, seconds = 0, 0.0
    if carried.tally is not None:
        up = carried.direction is Direction.UP
        octets = carried.tally.octets_up if up else carried.tally.octets_down
        seconds = carried.tally.seconds
    return " ".join(
        (
            time.strftime("%a %b %e %H:%M:%S %Y", time.localtime(ended)),
            str(max(1, round(seconds))),
            str(client),
            str(octets),
            _word(name, "_"),
            "a" if carried.text else "b",
            "_",
            "i" if carried.direction is Direction.UP else "o",
            "a" if carried.user.lower() in ANONYMOUS else "r",
            _word(carried.user, "*"),
            "ftp",
            "0",
            "*",
            "c" if carried.complete else "i",
        )
    )


class Xferlog:
    """Lines to a file, which may be moved away at any time (logrotate): the next line finds or makes it anew.

    Raises `OSError` if the file cannot be opened.
    """

    def __init__(self, path: str) -> None:
        self._handler = WatchedFileHandler(path, encoding="ascii")

    def write(self, client: IPAddress, carried: Carried) -> None:
        """Log a transfer that has just ended.  A file that cannot be written loses the line, not the session."""
        if (text := line(client, carried, time.time())) is not None:
            self._handler.handle(logging.makeLogRecord({"msg": text}))

    def close(self) -> None:
        self._handler.close()
