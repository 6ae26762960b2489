"""Where the log goes: standard error, the journal, syslog.  None of them is ever waited for.

A reader that is stopped, a daemon that is gone or a disk that is full loses lines: `lost` counts them, and the first
line that can be written again is followed by `log.lost`.

**Standard error** may be a pipe or a terminal, and its blocking mode belongs to whoever shares it with us.  So it is
asked before each write: poll(2) promises room for PIPE_BUF octets in a pipe, and longer texts go in such pieces.

**The journal** takes an entry as one datagram (systemd, "Native Journal Protocol"): `NAME=value` and a newline, or
where a value has a newline in it `NAME`, newline, its length in 64 bits little-endian, the value, newline.  So no
value can begin another field.

**syslog** takes `<facility * 8 + priority>Mmm dd hh:mm:ss ident[pid]: text` (RFC 3164 section 4.1, without the host
name, as the C library sends it) as a datagram to `/dev/log`.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
import struct
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping

from .log import STDERR, Format, event
from .logforms import (
    IDENTIFIER,
    JsonFormatter,
    KeyValueFormatter,
    journal_fields,
    priority,
    sentence,
    traceback_lines,
)

__all__ = ["JournalSink", "StandardError", "SyslogSink", "lost", "sink"]

JOURNAL = "/run/systemd/journal/socket"
SYSLOG = "/dev/log"
DAEMON = 3
"""The facility (RFC 3164 section 4.1.1)."""
LONGEST_SYSLOG = 8000
"""Octets; rsyslog's default limit is 8 KiB."""

_log = logging.getLogger(__name__)


class Lost:
    """Lines that could not be written."""

    def __init__(self) -> None:
        self.lines = 0
        """Since the start."""
        self._untold = 0

    def one(self) -> None:
        self.lines += 1
        self._untold += 1

    def tell(self) -> None:
        """Log how many there were since the last time."""
        if not self._untold:
            return
        before = self.lines
        event(_log, logging.WARNING, "log.lost", count=self._untold)
        if self.lines == before:
            self._untold = 0


lost = Lost()


class _Sink(logging.Handler, ABC):
    """Writes a record, or loses it."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.write(record)
        except OSError:
            lost.one()
        except Exception:  # a value whose text cannot be had: a fault of ours, but not worth a session
            lost.one()
        else:
            if record.name != __name__:
                lost.tell()

    @abstractmethod
    def write(self, record: logging.LogRecord) -> None:
        """Raises `OSError`."""


class StandardError(_Sink):
    """A line of text to a descriptor."""

    def __init__(self, formatter: logging.Formatter, descriptor: int = STDERR) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self._descriptor = descriptor
        self._poll = select.poll()
        self._poll.register(self._descriptor, select.POLLOUT)
        self._broken = False
        """The last line was cut short: the next begins on a line of its own."""

    def write(self, record: logging.LogRecord) -> None:
        octets = (self.format(record) + "\n").encode("ascii", "backslashreplace")
        if self._broken:
            octets = b"\n" + octets
        begun = False
        while octets:
            try:
                if not self._poll.poll(0):
                    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
                sent = os.write(self._descriptor, octets[: select.PIPE_BUF])
            except OSError:
                self._broken = self._broken or begun
                raise
            octets, begun = octets[sent:], True
        self._broken = False


class _Datagrams(_Sink):
    """A datagram to a daemon's socket, which may come and go."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def write(self, record: logging.LogRecord) -> None:
        self._socket.sendto(self.datagram(record), self._path)

    @abstractmethod
    def datagram(self, record: logging.LogRecord) -> bytes: ...

    def close(self) -> None:
        self._socket.close()
        super().close()


class JournalSink(_Datagrams):
    """An entry with fields of its own."""

    def __init__(self, path: str = JOURNAL) -> None:
        super().__init__(path)

    def datagram(self, record: logging.LogRecord) -> bytes:
        return b"".join(_journal_field(name.encode(), value.encode()) for name, value in journal_fields(record))


def _journal_field(name: bytes, value: bytes) -> bytes:
    if b"\n" in value:
        return name + b"\n" + struct.pack("<Q", len(value)) + value + b"\n"
    return name + b"=" + value + b"\n"


class SyslogSink(_Datagrams):
    """A line for syslogd; `formatter` writes the text of it, without time and level."""

    def __init__(self, path: str = SYSLOG, formatter: logging.Formatter | None = None) -> None:
        super().__init__(path)
        self.setFormatter(formatter)

    def datagram(self, record: logging.LogRecord) -> bytes:
        if self.formatter is not None:
            text = self.format(record)
        else:  # one line, whatever it is about
            text = " | ".join((sentence(record), *traceback_lines(record)))
        stamp = time.strftime("%b %e %H:%M:%S", time.localtime(record.created))
        line = f"<{DAEMON * 8 + priority(record)}>{stamp} {IDENTIFIER}[{os.getpid()}]: {text}"
        return line.encode("ascii", "backslashreplace")[:LONGEST_SYSLOG]


def sink(form: Format, most_sessions: Mapping[str, int]) -> logging.Handler:
    """The handler for a form; `auto` has been decided.  `most_sessions` by service are said by `classic`."""
    if form in ("journald", "syslog", "classic-syslog"):
        path = JOURNAL if form == "journald" else SYSLOG
        if not os.path.exists(path):
            print(f"ftpproxy: log.format is {form}, but there is no {path}; nothing is logged before", file=sys.stderr)
    if form == "journald":
        return JournalSink()
    if form == "syslog":
        return SyslogSink()
    if form in ("classic", "classic-syslog"):
        from .classic import ClassicFormatter

        sentences = ClassicFormatter(most_sessions)
        return StandardError(sentences) if form == "classic" else SyslogSink(formatter=sentences)
    return StandardError(JsonFormatter() if form == "json" else KeyValueFormatter())
