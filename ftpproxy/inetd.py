"""One session for inetd(8), xinetd or systemd (`Accept=yes`): the client is descriptor 0, and we end with it.

    take     descriptor 0 becomes a socket of ours; 0, 1 and 2 lead to /dev/null, before anything else is done
    apart    complaints go to syslog, and a client that cannot be served is told 421
    serve    runs its session (`single`), and writes the log where it can be read

**Nothing is written to descriptor 2** if it is the client's connection, as inetd makes it: a line of a log would be
read as a reply.  Where it is something else, a unit's journal for instance, it is what it was.

**It must start fast**: for the client this is the time to the greeting.  There are no tasks here, so trio is imported
only if somebody asks for a part of it (`_Later`), and of our own modules only those of a session.
"""

from __future__ import annotations

import errno
import fcntl
import gc
import importlib
import io
import logging
import os
import socket
import sys
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .daemon import point_at_nothing

if TYPE_CHECKING:
    from .config.values import Config
    from .log import Format

__all__ = ["apart", "serve"]

SORRY = b"421 Service not available, closing control connection.\r\n"


class _Taken:
    """What inetd gave us."""

    client: socket.socket | None = None
    stderr_is_ours: bool = False
    """Descriptor 2 is not the client's connection."""


class _Later(ModuleType):
    """A module that is imported when something of it is used."""

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


class _Complaints(io.TextIOBase):
    """What would be said on standard error, as lines in syslog."""

    def __init__(self) -> None:
        self._begun = ""

    def write(self, text: str) -> int:
        import syslog

        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            if line:
                syslog.syslog(syslog.LOG_ERR, line)
        return len(text)


def apart(run: Callable[[], int]) -> int:
    """Take the client, then `run`, which may call `serve`.  Returns its exit code; a client that was not served by
    then is told that it will not be."""
    wrong = _take()
    gc.disable()  # until we serve: what is imported lives for ever
    if not _Taken.stderr_is_ours:
        import syslog

        syslog.openlog("ftpproxy", syslog.LOG_PID, syslog.LOG_DAEMON)
        sys.stderr = _Complaints()
    if wrong:
        print(f"ftpproxy: {wrong}", file=sys.stderr)
        return os.EX_USAGE
    sys.modules.setdefault("trio", _Later("trio"))
    try:
        return run()
    finally:
        if _Taken.client is not None:
            try:
                _Taken.client.send(SORRY, socket.MSG_DONTWAIT)
            except OSError:
                pass  # it has left already
            _Taken.client.close()


def _take() -> str:
    """Descriptor 0 as `_Taken.client`; why that cannot be, or nothing."""
    try:
        client, stderr = os.fstat(0), os.fstat(2)
        _Taken.stderr_is_ours = not os.path.samestat(client, stderr)
        own = fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, 3)
        kept = fcntl.fcntl(2, fcntl.F_DUPFD_CLOEXEC, 3) if _Taken.stderr_is_ours else None
    except OSError:
        return "--inetd: descriptor 0 or 2 is closed; inetd(8) starts this"
    point_at_nothing()
    if kept is not None:
        os.dup2(kept, 2)
        os.close(kept)
    try:
        sock = socket.socket(fileno=own)
        if sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.type != socket.SOCK_STREAM:
            return "--inetd: descriptor 0 is no TCP connection"
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return '--inetd: descriptor 0 listens; say "nowait" in inetd.conf ("wait = no", "Accept=yes")'
        sock.getpeername()
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            return "--inetd: the client has left already"
        return f"--inetd: descriptor 0 is no TCP connection ({error.strerror})"
    _Taken.client = sock
    return ""


def serve(config: Config, name: str | None = None) -> int:
    """The session of the client that was taken, as the service called `name` says, or else the first.
    Returns an exit code.  Raises `ConfigError` where that service cannot be had this way."""
    from . import log as logs
    from .single import chosen, serve_one

    service = chosen(config, name)
    level = logging.getLevelNamesMapping()[config.log.level.upper()]
    logs.set_up(level, _form(config.log.format), {service.name: service.limits.sessions})
    gc.freeze()
    gc.enable()
    client, _Taken.client = _Taken.client, None
    assert client is not None
    return serve_one(config, service, client, SORRY)


def _form(form: Format) -> Format:
    """Where the log can go."""
    if _Taken.stderr_is_ours:
        return form
    if form == "classic":
        return "classic-syslog"
    return form if form in ("journald", "classic-syslog") else "syslog"
