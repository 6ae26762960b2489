"""The place where metrics are asked for: a responder for `GET /metrics` and nothing else.

HTTP/1.0 as a scraper needs it: one request, one answer, the end.  A request is bounded in octets and in seconds and
there are few at a time, so whoever can reach the socket can cost us little.  Who comes when all places are taken gets
that of whoever has had his longest: a scraper's request is there at once and answered in milliseconds, so no one keeps
it out by holding connections.  It listens on loopback or on a Unix socket, since whoever can read metrics learns how
busy a firewall is.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
from collections.abc import Callable

import trio

from . import sockets
from .endpoints import Endpoint

__all__ = ["CannotServe", "Place", "Scrape"]

SECONDS = 5.0
"""For a request and its answer."""
LONGEST = 8192
"""Octets of a request."""
AT_ONCE = 32
BACKLOG = 128
TYPE = "text/plain; version=0.0.4; charset=utf-8"

log = logging.getLogger(__name__)

Place = Endpoint | str
"""Where to listen; a string is the path of a Unix socket."""


class CannotServe(Exception):
    """The place cannot be listened at; the text says why.  Its cause is an `OSError`."""


class Scrape:
    """Listens from the start.  `run` is the task; `close` gives the place back."""

    def __init__(self, place: Place, render: Callable[[], bytes], *, seconds: float = SECONDS) -> None:
        """`render` makes the text; a request and its answer may take `seconds`.  Raises `CannotServe`."""
        self._place = place
        self._render = render
        self._seconds = seconds
        self._present: dict[trio.CancelScope, None] = {}
        """Of each connection, the oldest first."""
        try:
            self._socket = _unix(place) if isinstance(place, str) else sockets.bound(place)
            self._socket.setblocking(False)
            self._socket.listen(BACKLOG)
        except OSError as error:
            raise CannotServe(f"metrics.listen: {place}: {error.strerror or error}") from error

    @property
    def at(self) -> Place:
        """Where it listens, port 0 replaced by the kernel's choice."""
        return self._place if isinstance(self._place, str) else Endpoint.from_sockaddr(self._socket.getsockname())

    async def run(self) -> None:
        """Answer until cancelled."""
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(self._socket.dup()))
        async with trio.open_nursery() as nursery, listener:
            while True:
                try:
                    stream = await listener.accept()
                except OSError:  # no descriptor is left: others need them more
                    await trio.sleep(1)
                    continue
                if len(self._present) == AT_ONCE:
                    oldest = next(iter(self._present))
                    del self._present[oldest]
                    oldest.cancel()
                scope = trio.move_on_after(self._seconds)
                self._present[scope] = None
                nursery.start_soon(self._serve, stream, scope)

    async def _serve(self, stream: trio.SocketStream, scope: trio.CancelScope) -> None:
        try:
            with scope:
                request = b""
                while b"\r\n\r\n" not in request and b"\n\n" not in request:
                    octets = await stream.receive_some(LONGEST)
                    request += octets
                    if not octets or len(request) > LONGEST:
                        return
                await stream.send_all(self._answer(request))
                await stream.send_eof()
                while await stream.receive_some(LONGEST):
                    pass  # a close with octets unread would be a reset, which may overtake the answer
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # it did not wait
        except Exception:
            log.exception("internal.error")  # whoever asked gets no answer
        finally:
            self._present.pop(scope, None)
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(stream)

    def _answer(self, request: bytes) -> bytes:
        words = request.split(b"\n", 1)[0].split()
        if len(words) != 3 or not words[2].startswith(b"HTTP/"):
            return _response("400 Bad Request", "text/plain", b"This is HTTP.\n")
        if words[0] not in (b"GET", b"HEAD"):
            return _response("405 Method Not Allowed", "text/plain", b"GET only.\n", "Allow: GET, HEAD\r\n")
        if words[1].split(b"?")[0] != b"/metrics":
            return _response("404 Not Found", "text/plain", b"There is /metrics and nothing else.\n")
        answer = _response("200 OK", TYPE, self._render())
        return answer if words[0] == b"GET" else answer[: answer.index(b"\r\n\r\n") + 4]

    def close(self) -> None:
        """Idempotent."""
        self._socket.close()
        if isinstance(self._place, str):
            try:
                os.unlink(self._place)
            except OSError:
                pass  # gone, or no longer ours to remove: the next start finds a dead socket


def _response(status: str, kind: str, body: bytes, more: str = "") -> bytes:
    head = (
        f"HTTP/1.0 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{more}Connection: close\r\n\r\n"
    )
    return head.encode() + body


def _unix(path: str) -> socket.socket:
    """A socket bound at `path`, which everybody on this machine may call.  What a dead process left there is removed.

    Raises `OSError`.
    """
    try:
        if stat.S_ISSOCK(os.stat(path, follow_symlinks=False).st_mode):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                probe.setblocking(False)
                if probe.connect_ex(path) == errno.ECONNREFUSED:
                    os.unlink(path)
    except FileNotFoundError:
        pass
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # By name (chmod) it might be something else meanwhile: the directory need not be ours.
        before = os.umask(0o111)
        try:
            sock.bind(path)
        finally:
            os.umask(before)
    except BaseException:
        sock.close()
        raise
    return sock
