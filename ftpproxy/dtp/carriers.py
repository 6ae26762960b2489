"""How the octets of one direction get from one socket to the other.

A `Flow` is one direction of a data connection: it reads `source` and writes `sink`, never waits, and is driven by
the events of the switchboard.  It moves octets with a carrier, of which there are two:

* `Copy` reads into one buffer that all flows of the process share and writes from it at once.  Cheap to begin
  with, which is all that counts for listings and small files.
* `Splice` (Linux) moves pages through a pipe, splice(2), without copying them to user space.  A pipe costs two
  descriptors and up to 1 MiB of kernel memory, so a flow changes to it once it has shown that it is big.

**Bounded memory.**  A flow reads only when everything it read before has been written.  What a slow sink did not
take (at most one buffer or one pipe) is held, the source is left alone until the sink is writable, and the
source's sender is slowed down by TCP itself.

**Ends.**  End of file on the source, once everything is written, becomes a half-close of the sink (RFC 959 section
3.2: the sender closes to say that the file is complete; only the sender may).  Anything else is `Broken`, with
the side whose socket said so, and must never look like an end of file.  Details, from net/ipv4/tcp.c:

* After a FIN has arrived, Linux answers reads with the remaining octets and then 0 even if a reset followed:
  that stream was complete.  Without a FIN a reset is an error (ECONNRESET), with octets before it or not.
* splice(2) from a socket may return 0 although the stream has not ended (urgent data at the head of the queue).
  So 0 ends only the splicing: `Copy` takes over, and what its recv(2) says is true.
* shutdown(2) fails with ENOTCONN when the sink's connection is gone.  If the sink itself had ended its sending before
  and nothing was ever to be delivered to it, that is a client which closed after an upload, and a clean end.
"""

from __future__ import annotations

import fcntl
import os
import socket
from typing import Protocol

from attrs import frozen

from ..endpoints import Side
from ..estate import Estate, Inheritance, Octets

__all__ = ["BUFFER", "Broken", "Carrier", "Copy", "Flow", "FlowRecord", "Splice"]

BUFFER = 1 << 20
"""Octets of the shared buffer: the most that `Copy` reads at once, and the most that it holds.  A big transfer costs
1.2 times the CPU time of splicing with it, 1.4 times with a quarter of it, and 1.8 times with 64 KiB."""

PIPE_SIZES = (1 << 20, 256 << 10)
"""What `Splice` asks for, in this order; an unprivileged process may be refused (pipe(7), pipe-user-pages-soft)."""

SMALLEST_PIPE = 64 << 10
"""Octets; below it (a process over its limit gets pipes of 8 KiB) splicing costs more than copying."""

_scratch = memoryview(bytearray(BUFFER))


class Broken(Exception):
    """A leg broke: reset, timed out, unreachable.  `side` is the one whose socket said so."""

    def __init__(self, side: Side, error: OSError) -> None:
        super().__init__(error.strerror or str(error))
        self.side = side


class Carrier(Protocol):
    """Moves octets from a source to a sink.  `pull` only when nothing is held."""

    held: int
    """Octets read and not written yet."""

    def pull(self) -> int:
        """Read once; the octets that are held now, 0 at the end.  Raises `BlockingIOError` or another `OSError`."""

    def push(self) -> int:
        """Write what is held; the octets that the sink took.  Raises as `pull`."""

    def take_back(self) -> bytes:
        """What is held, which is held no more.  Raises `OSError`."""

    def close(self) -> None: ...


class Copy:
    """recv(2) and send(2) by way of the shared buffer, which nobody keeps past one call of `Flow.move`."""

    def __init__(self, source: socket.socket, sink: socket.socket, held: bytes = b"") -> None:
        self._source = source
        self._sink = sink
        self._rest = memoryview(held)
        self._ours = bool(held)  # whether `_rest` is a copy, not the shared buffer
        self.held = len(held)

    def pull(self) -> int:
        self.held = self._source.recv_into(_scratch)
        self._rest = _scratch[: self.held]
        self._ours = False
        return self.held

    def push(self) -> int:
        sent = 0
        try:
            sent = self._sink.send(self._rest)
        finally:
            self.held -= sent
            self._rest = self._rest[sent:]
            if self.held and not self._ours:
                self._rest = memoryview(bytes(self._rest))
                self._ours = True
        return sent

    def take_back(self) -> bytes:
        self.held = 0
        return bytes(self._rest)

    def close(self) -> None:
        self._rest = memoryview(b"")


class Splice:
    """splice(2) through a pipe.  Raises `OSError` where there is no pipe to be had that is worth it."""

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self._source = source.fileno()
        self._sink = sink.fileno()
        self.held = 0
        self._flags = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
        self._out, self._in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for size in PIPE_SIZES:
            try:
                fcntl.fcntl(self._in, fcntl.F_SETPIPE_SZ, size)
                break
            except OSError:
                pass  # over this user's limit: less will do
        self._size = fcntl.fcntl(self._in, fcntl.F_GETPIPE_SZ)
        if self._size < SMALLEST_PIPE:
            self.close()
            raise OSError(f"the pipe has only {self._size} octets")

    def pull(self) -> int:
        # The pipe is empty, hence EAGAIN is about the source and not about a full pipe.
        self.held = os.splice(self._source, self._in, self._size, flags=self._flags)
        return self.held

    def push(self) -> int:
        sent = os.splice(self._out, self._sink, self.held, flags=self._flags)
        self.held -= sent
        return sent

    def take_back(self) -> bytes:
        pieces = []
        while self.held:
            pieces.append(os.read(self._out, self.held))
            self.held -= len(pieces[-1])
        return b"".join(pieces)

    def close(self) -> None:
        if self._out >= 0:
            os.close(self._out)
            os.close(self._in)
            self._out = self._in = -1


@frozen
class FlowRecord:
    """What a successor must know of a flow."""

    octets: int
    ended: bool
    held: Octets | None


class Flow:
    """One direction of a data connection.

    `splice_after` is the number of octets after which it splices, where the system can; None means never.
    `back` is the flow the other way, set by `pair`.
    """

    def __init__(
        self, source_side: Side, source: socket.socket, sink: socket.socket, *, splice_after: int | None
    ) -> None:
        self.source_side = source_side
        self.back = self
        self.octets = 0
        """Octets that the sink's socket took."""
        self.ended = False
        """The source's end of file has come and was passed on."""
        self._source = source
        self._sink = sink
        self._carrier: Carrier = Copy(source, sink)
        self._splice_after = splice_after
        self._splicing = False

    @classmethod
    def pair(cls, client: socket.socket, server: socket.socket, *, splice_after: int | None) -> tuple[Flow, Flow]:
        """The two flows of a data connection: down (server to client) and up."""
        down = cls(Side.SERVER, server, client, splice_after=splice_after)
        up = cls(Side.CLIENT, client, server, splice_after=splice_after)
        down.back, up.back = up, down
        return down, up

    @property
    def sink_side(self) -> Side:
        return self.source_side.peer

    @property
    def held(self) -> int:
        """Octets read that the sink has not taken."""
        return self._carrier.held

    @property
    def wants_read(self) -> bool:
        return not self.ended and not self._carrier.held

    @property
    def wants_write(self) -> bool:
        return self._carrier.held > 0

    def move(self, budget: int) -> bool:
        """Carry about `budget` octets, fewer if a socket would block; whether anything happened.  Raises `Broken`."""
        before = self.octets
        while not self.ended and self.octets - before < budget:
            if not self._carrier.held:
                try:
                    got = self._carrier.pull()
                except BlockingIOError:
                    break
                except OSError as error:
                    raise Broken(self.source_side, error) from error
                if not got:
                    if self._splicing:
                        self._copy_again()
                        continue
                    self._pass_on_the_end()
                    break
            try:
                self.octets += self._carrier.push()
            except BlockingIOError:
                break
            except OSError as error:
                raise Broken(self.sink_side, error) from error
            if self._splice_after is not None and self.octets >= self._splice_after and not self._carrier.held:
                self._splice()
        return self.ended or self.octets != before

    def leave(self, estate: Estate) -> FlowRecord:
        """Leave it to a successor: what a pipe still holds as well.  It carries nothing any more.  Raises `OSError`."""
        held = estate.octets(self._carrier.take_back()) if self.held else None
        self._carrier.close()
        return FlowRecord(self.octets, self.ended, held)

    def inherit(self, record: FlowRecord, inheritance: Inheritance) -> None:
        """Go on where a predecessor has left off.  Raises `Unthawable`."""
        self.octets, self.ended = record.octets, record.ended
        if record.held is not None:
            self._carrier = Copy(self._source, self._sink, inheritance.octets(record.held))

    def close(self) -> None:
        """Give back what the carrier holds; the sockets are somebody else's."""
        self._carrier.close()

    def _splice(self) -> None:
        self._splice_after = None  # one attempt
        if not hasattr(os, "splice"):
            return  # BSD
        try:
            carrier = Splice(self._source, self._sink)
        except OSError:
            return  # no descriptors or no pipe pages left: copying works as well
        self._carrier.close()
        self._carrier = carrier
        self._splicing = True

    def _copy_again(self) -> None:
        self._carrier.close()
        self._carrier = Copy(self._source, self._sink)
        self._splicing = False

    def _pass_on_the_end(self) -> None:
        try:
            self._sink.shutdown(socket.SHUT_WR)
        except OSError as error:
            if self.octets or not self.back.ended:
                raise Broken(self.sink_side, error) from error
        self.ended = True
