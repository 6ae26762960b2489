"""A call by name: look a host up, keep the addresses that may be called, and call one after the other.

What is checked is what is called: the addresses are looked up once, and a name that points elsewhere a moment later
changes nothing.  An address needs no looking up and no thread.
"""

from __future__ import annotations

import encodings.idna  # noqa: F401  getaddrinfo looks for it at its first call, and may not find it without privileges
import errno
import os
import socket
from collections.abc import Callable
from functools import partial

from .dial import Dial
from .endpoints import Endpoint, IPAddress, parse_address
from .errands import Errand, Errands
from .reasons import Code, Reason
from .switchboard import Switchboard

__all__ = ["CallByName", "look_up"]

MOST_ADDRESSES = 4
"""Of one name; the time to connect is shared out among them."""

_UNREACHABLE = Reason(Code.SERVER_UNREACHABLE, os.strerror(errno.ENETUNREACH))


def look_up(host: str, port: int) -> list[Endpoint] | str:
    """The endpoints of a name, or why there are none.  Blocks."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        return error.strerror or "the name cannot be looked up"
    except (UnicodeError, OSError):
        return "the name cannot be looked up"
    return list(dict.fromkeys(Endpoint.from_sockaddr(each[4]) for each in found if "%" not in str(each[4][0])))


class CallByName:
    """Call `host` and `port` at one of its addresses that `admits` admits.

    Exactly one of `answered(socket)` and `unanswered(reason)` is called, later and never from here, unless `close`
    comes first.  `sweep(now)` has to be called about once a second: the call fails after `seconds` and the time for
    looking up.
    """

    def __init__(
        self,
        board: Switchboard,
        errands: Errands,
        host: str,
        port: int,
        seconds: float,
        *,
        source: IPAddress | None,
        first: bytes = b"",
        admits: Callable[[Endpoint], bool],
        answered: Callable[[socket.socket], None],
        unanswered: Callable[[Reason], None],
        on_crash: Callable[[Exception], None],
    ) -> None:
        self._board = board
        self._seconds = seconds
        self._source = source
        self._first = first
        self._admits = admits
        self._answered = answered
        self._unanswered = unanswered
        self._on_crash = on_crash
        self._left: list[Endpoint] = []
        self._step: Dial | Errand[list[Endpoint] | str]
        try:
            endpoints = [Endpoint(parse_address(host), port)]
        except ValueError:
            self._step = errands.send(partial(look_up, host, port), self._found, on_crash)
        else:
            errand = self._step = Errand(board, lambda: endpoints, self._found, on_crash)
            errand.finish(endpoints)

    def _found(self, endpoints: list[Endpoint] | str | None) -> None:
        if endpoints is None:
            self._unanswered(Reason(Code.SERVER_UNKNOWN, "looking the name up takes too long"))
        elif isinstance(endpoints, str):
            self._unanswered(Reason(Code.SERVER_UNKNOWN, endpoints))
        else:
            usable = [each for each in endpoints if self._source is None or self._like_source(each)]
            self._left = [each for each in usable if self._admits(each)][:MOST_ADDRESSES]
            if self._left:
                self._seconds /= len(self._left)
                self._call_next(_UNREACHABLE)
            elif usable or not endpoints:
                self._unanswered(Reason(Code.POLICY_DESTINATION, "it is not allowed here"))
            else:
                self._unanswered(_UNREACHABLE)

    def _like_source(self, endpoint: Endpoint) -> bool:
        return self._source is not None and endpoint.host.version == self._source.version

    def _call_next(self, reason: Reason) -> None:
        if not self._left:
            self._unanswered(reason)
            return
        self._step = Dial(
            self._board,
            self._left.pop(0),
            self._source,
            self._seconds,
            first=self._first,
            answered=self._answered,
            unanswered=self._call_next,
            on_crash=self._on_crash,
        )

    def sweep(self, now: float) -> None:
        self._step.sweep(now)

    def close(self) -> None:
        """Hang up before it is decided.  Idempotent; nothing is called afterwards."""
        self._step.close()
