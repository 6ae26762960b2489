"""Channels: the two non-blocking sockets of a control connection, each with what could not be written to it yet."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable

from . import sockets
from .endpoints import Side
from .estate import Estate
from .switchboard import READ, WRITE, Switchboard

__all__ = ["MOST_UNSENT", "Channel", "Channels"]

MOST_READ = 16 * 1024
"""Octets that one `receive` takes: everybody gets a turn."""
MOST_UNSENT = 64 * 1024
"""With more unsent octets than this, whatever produces them should not be read."""


class Channel:
    """One end of a control connection.  The socket is the channel's from now on."""

    __slots__ = ("_sock", "_unsent", "_watch")

    def __init__(
        self,
        sock: socket.socket,
        board: Switchboard,
        callback: Callable[[int], None],
        on_crash: Callable[[Exception], None],
        keepalive: float = sockets.KEEPALIVE,
    ) -> None:
        """`keepalive` is the silence in seconds before TCP asks whether the peer is alive."""
        sockets.control(sock, keepalive)
        self._sock = sock
        self._unsent = bytearray()
        self._watch = board.watch(sock, callback, on_crash)

    @property
    def unsent(self) -> int:
        """Octets that wait for the peer to read."""
        return len(self._unsent)

    @property
    def reading(self) -> bool:
        return bool(self._watch.events & READ)

    def want(self, *, read: bool) -> None:
        """Be called when there is something to read (or not), and when what is unsent may be tried again."""
        events = (READ if read else 0) | (WRITE if self._unsent else 0)
        if events != self._watch.events:
            self._watch.want(events)

    def receive(self) -> bytes | None:
        """What has arrived; empty at the end of the stream, None for nothing yet.  Raises `OSError` if it broke."""
        try:
            return self._sock.recv(MOST_READ)
        except BlockingIOError:
            return None

    def breach(self) -> OSError | None:
        """The error of a connection that broke while it was not read."""
        if self.reading:
            return None  # then `receive` will raise it
        try:
            self._sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return None
        except OSError as error:
            return error
        return None

    def send(self, chunks: Iterable[tuple[bytes, bool, bool]]) -> None:
        """Queue octets and write what the socket takes.

        A chunk is octets, whether they go in a segment of their own, and whether the last of them is urgent.

        Raises `OSError` if the connection is broken.
        """
        for octets, alone, urgent in chunks:
            if (alone or urgent) and self._unsent:
                self.flush()
            self._unsent += self._send_urgent(octets) if urgent else octets
            if alone:
                self.flush()
        if self._unsent:
            self.flush()

    def _send_urgent(self, octets: bytes) -> bytes:
        """Send all but the last octet, then the last as urgent data.  Returns what could not be sent, which will go as
        ordinary data: behind others the urgent mark would stand in the wrong place."""
        if self._unsent:
            return octets
        try:
            sent = self._sock.send(octets[:-1])
            octets = octets[sent:]
            if len(octets) == 1:
                self._sock.send(octets, socket.MSG_OOB)
                octets = b""
        except BlockingIOError:
            pass
        return octets

    def flush(self) -> None:
        """Write what the socket takes now.  Raises `OSError` if the connection is broken."""
        try:
            unsent = self._unsent
            while unsent:
                sent = self._sock.send(unsent)
                if sent == len(unsent):
                    unsent.clear()
                else:
                    del unsent[:sent]
        except BlockingIOError:
            pass

    def release(self) -> socket.socket:
        """Give the socket away, with what can be read from it; the channel is of no further use."""
        self._watch.close()
        return self._sock

    def leave(self, estate: Estate, *, client: bool) -> tuple[int, bytes] | None:
        """Leave the socket to a successor, which is to send the octets; None if it is closed.  `client`: who is at its
        other end may be told 421.  The channel is of no further use."""
        if not self._watch.alive:
            return None
        self._watch.close()
        return estate.descriptor(self._sock, client=client), bytes(self._unsent)

    def inherit(self, unsent: bytes) -> None:
        """Send first what a predecessor had still to send."""
        self._unsent[:0] = unsent

    def close(self) -> None:
        """Idempotent.  What the kernel has taken is still delivered; what is unsent is lost."""
        self._watch.close()
        self._unsent.clear()
        try:
            # Unread octets would turn our close into a reset, which may overtake our last words.
            self._sock.recv(4 * MOST_READ)
        except OSError:
            pass  # nothing there, closed already, or the peer is gone: all fine
        self._sock.close()


class Channels(dict[Side, Channel]):
    """Of one session: the client's, and the server's once there is one."""

    def read(self, *, client: bool, server: bool) -> None:
        """Whom to read, unless too much is unsent: what a client says makes both of them speak, what a server says only
        the client."""
        to_client, to_server = self[Side.CLIENT], self[Side.SERVER]
        clear = to_client.unsent <= MOST_UNSENT
        to_client.want(read=client and clear and to_server.unsent <= MOST_UNSENT)
        to_server.want(read=server and clear)

    def breach(self) -> tuple[Side, OSError] | None:
        """A side that is not read at present and has reset its connection, which nobody else would tell us."""
        for side, channel in self.items():
            if (error := channel.breach()) is not None:
                return side, error
        return None

    def close(self) -> None:
        """Close what there is."""
        for channel in self.values():
            channel.close()
