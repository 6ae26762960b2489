"""The transfer log of wu-ftpd, which statistics and fail2ban have read for thirty years (xferlog(5)).

One line a file, 14 fields with single blanks between them:

    current-time transfer-time remote-host file-size filename transfer-type special-action direction access-mode
    username service-name authentication-method authenticated-user-id completion-status

What a proxy cannot know is said as little as possible: the size is of the octets relayed (with REST or MODE Z that
is not the file's), the name is what the client asked for, and nobody is authenticated by ident.

At the start the file is opened, and made, by root, in a directory that may be somebody else's.  So no link is followed,
and nothing but a regular file with one name is taken; it then becomes the user's whom the process becomes, who may open
it again.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import time

from .carried import Carried
from .endpoints import IPAddress
from .files import check_regular
from .log import event
from .paths import Direction

__all__ = ["FILE_VERBS", "Xferlog", "line"]

FILE_VERBS = frozenset({b"RETR", b"STOR", b"STOU", b"APPE"})
"""Listings are no files."""
ANONYMOUS = frozenset({b"ftp", b"anonymous"})

log = logging.getLogger(__name__)

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
        self.path = path
        self._file = -1
        self._torn = False
        """The last line is not whole: the next begins on a line of its own."""
        self.reopen()

    def reopen(self) -> None:
        """Write to the file that has the name now, which is made if need be.  Raises `OSError`; then all is as before.

        `write` does so by itself where the file was moved away; this is for SIGHUP, and for who has made it anew.
        """
        how = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            fresh = os.open(self.path, how, 0o640)
        except OSError:
            if os.path.islink(self.path):  # each system has a code of its own for that
                raise OSError(errno.ELOOP, "it is a symbolic link, which is not followed: name the file") from None
            raise
        try:
            if check_regular(fresh).st_nlink > 1:
                raise OSError(errno.EMLINK, "it is another file as well, by a hard link: name a file of its own")
        except OSError:
            os.close(fresh)
            raise
        self.close()
        self._file = fresh

    def give(self, user: int) -> None:
        """Make it the file of the user with this number.  Raises `OSError`."""
        os.chown(self._file, user, -1)

    def write(self, client: IPAddress, carried: Carried) -> None:
        """Log a transfer that has just ended.  A file that cannot be written loses the line, not the session."""
        if (text := line(client, carried, time.time())) is None:
            return
        octets = f"{text}\n".encode("ascii")
        try:
            if self._moved():
                self.reopen()
            if self._torn:
                octets = b"\n" + octets
            sent = os.write(self._file, octets)
            self._torn = sent < len(octets)
            if self._torn:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            event(log, logging.ERROR, "xferlog.failed", path=self.path, reason=error.strerror)

    def _moved(self) -> bool:
        try:
            named, ours = os.stat(self.path, follow_symlinks=False), os.fstat(self._file)
        except FileNotFoundError:
            return True
        return (named.st_dev, named.st_ino) != (ours.st_dev, ours.st_ino)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
