"""A connection from a load balancer, before its PROXY header is complete.

The header is read and nothing behind it: what lies in the socket is peeked at, and only what certainly belongs to
the header is taken.  So nothing has to be handed on, and a partial header leaves nothing behind that would wake the
switchboard again and again.  Missing, malformed or slow: the connection is closed without a word, since it is not
known to whom one would speak.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from .endpoints import Endpoint
from .estate import Estate
from .freezing import freeze, thaw
from .reasons import Code, Reason
from .records import ArrivalRecord
from .switchboard import READ, Switchboard
from .wire.proxyheader import BadHeader, HeaderReader, ProxyHeader

__all__ = ["SECONDS", "Arrival"]

SECONDS = 5.0
"""For the whole header (docs/protocol.md, "PROXY headers")."""
MOST_PEEKED = 4096

_CODE = Code.BALANCER_HEADER


class Arrival:
    """One such connection.  Exactly one of `arrived(socket, header)` and `strayed(reason)` is called, unless `close`
    comes first; after `strayed` and `close` the socket is closed."""

    def __init__(
        self,
        sock: socket.socket,
        board: Switchboard,
        service: str,
        peer: Endpoint,
        *,
        arrived: Callable[[socket.socket, ProxyHeader], None],
        strayed: Callable[[Reason], None],
        seconds: float = SECONDS,
        reader: Any = None,
    ) -> None:
        """`seconds` are left for the header, of which `reader` is the state of a predecessor's.  Raises `Unthawable`
        for a state that is none."""
        sock.setblocking(False)
        self._sock = sock
        self._service = service
        self._peer = peer
        self._arrived = arrived
        self._strayed = strayed
        self._board = board
        self._reader = HeaderReader() if reader is None else thaw(reader, HeaderReader)
        self._deadline = board.now + seconds
        self._watch = board.watch(sock, self._readable, self.crashed)
        self._watch.want(READ)

    def _readable(self, _: int) -> None:
        try:
            octets = self._sock.recv(MOST_PEEKED, socket.MSG_PEEK)
            if not octets:
                self._stray(Reason(_CODE, "closed before its PROXY header was complete"))
                return
            self._sock.recv(self._reader.take(octets))
        except BlockingIOError:
            return
        except BadHeader as error:
            self._stray(Reason(_CODE, str(error)))
            return
        except OSError as error:
            self._stray(Reason(_CODE, error.strerror or str(error)))
            return
        if self._reader.header is not None:
            self._watch.close()
            self._arrived(self._sock, self._reader.header)

    def sweep(self, now: float) -> None:
        if self._watch.alive and now >= self._deadline:
            self._stray(Reason(_CODE, "the PROXY header did not come in time"))

    def crashed(self, error: Exception) -> None:
        """Something in here went wrong; the switchboard has logged it."""
        self._stray(Reason(Code.INTERNAL, f"internal error: {type(error).__name__}"))

    def _stray(self, reason: Reason) -> None:
        self.close()
        self._strayed(reason)

    def leave(self, estate: Estate) -> ArrivalRecord:
        """Write it down for a successor; it is of no further use here."""
        self._watch.close()
        return ArrivalRecord(
            service=self._service,
            descriptor=estate.descriptor(self._sock),
            peer=self._peer,
            reader=freeze(self._reader),
            seconds=self._deadline - self._board.now,
        )

    def close(self) -> None:
        """Idempotent."""
        self._watch.close()
        self._sock.close()
