"""The hall: the guests of the control socket, one small task each, and what they may not do.

A guest says a line and gets a line.  Nobody is trusted: a line is at most `LONGEST_REQUEST` octets long and must come
in time, so must the reading of its answer; there are at most so many guests, of whom an ordinary user has a few and
root finds room; and what goes wrong with one guest ends that guest.

A trace is a guest that only listens.  What it does not read in time is lost (`ftpproxy.tap`), and it goes when it says
anything or hangs up.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Sequence

import trio
from attrs import define, field

from ..log import event
from ..tap import Record, Trace
from .address import Address
from .credentials import Peer, peer_of
from .desk import EX_NOPERM, Desk, Refusal, Watch

__all__ = ["Hall"]

EX_UNAVAILABLE = 69
LONGEST_REQUEST = 4096
MOST_GUESTS = 64
MOST_ORDINARY = 32
"""Guests that are neither root nor our own user."""
MOST_OF_A_USER = 8
FIRST_SECONDS = 10.0
"""To say the first request."""
NEXT_SECONDS = 300.0
"""To say the next one; `top` asks every few seconds."""
SEND_SECONDS = 10.0
"""To read an answer."""
WATCH_SECONDS = 600.0
"""To read on in a trace."""
PAUSE_SECONDS = 1.0

log = logging.getLogger(__name__)


@define
class Hall:
    """Whoever calls at `address` is led to `desk`."""

    address: Address
    desk: Desk
    _users: Counter[int] = field(factory=Counter)

    async def run(self) -> None:
        """Receive guests until cancelled."""
        listener = trio.socket.from_stdlib_socket(self.address.sock)
        async with trio.open_nursery() as nursery:
            while True:
                try:
                    sock, _ = await listener.accept()
                except OSError as error:
                    event(log, logging.WARNING, "control.paused", reason=error.strerror)
                    await trio.sleep(PAUSE_SECONDS)  # no descriptors left: others need them more
                    continue
                nursery.start_soon(self._receive, trio.SocketStream(sock))

    async def _receive(self, stream: trio.SocketStream) -> None:
        async with stream:
            try:
                peer = peer_of(stream.socket)
            except OSError:
                return
            self._users[peer.uid] += 1
            try:
                self._admit(peer)
                await self._serve(stream, peer)
            except Refusal as refusal:
                await _try_to_say(stream, refusal)
            except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
                pass  # gone, or does not read
            except Exception:
                log.exception("internal.error")  # this guest of the control socket is sent away
            finally:
                self._users[peer.uid] -= 1
                if not self._users[peer.uid]:
                    del self._users[peer.uid]

    def _admit(self, peer: Peer) -> None:
        """Raises `Refusal`."""
        total, ordinary = self._users.total(), sum(count for uid, count in self._users.items() if not _almighty(uid))
        if not peer.almighty:
            if self.address.group is None or self.address.group not in peer.groups:
                raise Refusal("only root and the members of the socket's group may look", EX_NOPERM)
            if self._users[peer.uid] > MOST_OF_A_USER or ordinary > MOST_ORDINARY:
                raise Refusal("too many ask already", EX_UNAVAILABLE)
        if total > MOST_GUESTS:
            raise Refusal("too many ask already", EX_UNAVAILABLE)

    async def _serve(self, stream: trio.SocketStream, peer: Peer) -> None:
        buffer = bytearray()
        seconds = FIRST_SECONDS
        while (line := await _line(stream, buffer, seconds)) is not None:
            seconds = NEXT_SECONDS
            try:
                result = await self.desk.answer(_request(line), peer)
            except Refusal as refusal:
                await _say(stream, refusal.answer)
                continue
            if isinstance(result, Watch):
                await self._show(stream, result)
                return
            await _say(stream, {"result": result})

    @staticmethod
    async def _show(stream: trio.SocketStream, watch: Watch) -> None:
        """Send records until the guest hangs up or nothing more can come."""
        something = trio.Event()
        trace = Trace(lambda: something.set())
        tapped = watch.begin(trace)
        try:
            await _say(stream, {"result": {"sessions": tapped}})
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_wait_for_the_end, stream, scope)
                    lasts = True
                    while lasts:
                        lasts = watch.lasts()  # before the look: what its end has left behind is still shown
                        something = trio.Event()
                        if records := trace.take():
                            if not await _said(stream, records):
                                break
                            lasts = True
                        elif lasts:
                            with trio.move_on_after(PAUSE_SECONDS):  # and see whether the session is still there
                                await something.wait()
                    scope.cancel()
        finally:
            watch.end(trace)


def _almighty(uid: int) -> bool:
    return Peer(uid, frozenset()).almighty


async def _wait_for_the_end(stream: trio.SocketStream, scope: trio.CancelScope) -> None:
    try:
        await stream.receive_some(1)
    except trio.BrokenResourceError:
        pass
    scope.cancel()


async def _line(stream: trio.SocketStream, buffer: bytearray, seconds: float) -> bytes | None:
    """The next line, without its end; None at the end.  Raises `Refusal` for one that is too long or too late."""
    with trio.move_on_after(seconds):
        while (end := buffer.find(b"\n")) < 0:
            if len(buffer) > LONGEST_REQUEST:
                raise Refusal(f"a request has at most {LONGEST_REQUEST} octets")
            octets = await stream.receive_some(LONGEST_REQUEST)
            if not octets:
                return None
            buffer += octets
        line = bytes(buffer[:end])
        del buffer[: end + 1]
        return line
    raise Refusal("the request did not come in time")


def _request(line: bytes) -> dict[str, object]:
    """Raises `Refusal`."""
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        raise Refusal("a request is a JSON object on a line of its own") from None
    if not isinstance(request, dict):
        raise Refusal("a request is a JSON object on a line of its own")
    return request


async def _say(stream: trio.SocketStream, *answers: Record, seconds: float = SEND_SECONDS) -> None:
    """Raises `trio.TooSlowError` where they are not read."""
    octets = b"".join(json.dumps(answer).encode() + b"\n" for answer in answers)
    with trio.fail_after(seconds):
        await stream.send_all(octets)


async def _said(stream: trio.SocketStream, records: Sequence[Record]) -> bool:
    """Whether the guest has taken them."""
    try:
        await _say(stream, *records, seconds=WATCH_SECONDS)
    except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
        return False
    return True


async def _try_to_say(stream: trio.SocketStream, refusal: Refusal) -> None:
    try:
        await _say(stream, refusal.answer, seconds=1.0)
    except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
        pass  # he would not have read it
