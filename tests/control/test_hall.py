"""The hall's clocks, on a clock that jumps."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from ftpproxy.control.desk import Refusal
from ftpproxy.control.hall import FIRST_SECONDS, NEXT_SECONDS, SEND_SECONDS, _line, _say


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        yield ours, theirs


def stream_of(sock: socket.socket) -> trio.SocketStream:
    return trio.SocketStream(trio.socket.from_stdlib_socket(sock.dup()))


@pytest.mark.parametrize("seconds", [FIRST_SECONDS, NEXT_SECONDS])
async def test_a_guest_who_does_not_speak(
    pair: tuple[socket.socket, socket.socket], autojump_clock: trio.testing.MockClock, seconds: float
) -> None:
    """Half a line is no line."""
    ours, theirs = pair
    theirs.sendall(b'{"command": ')
    begun = trio.current_time()
    async with stream_of(ours) as stream:
        with pytest.raises(Refusal, match="did not come in time"):
            await _line(stream, bytearray(), seconds)
    assert trio.current_time() - begun == pytest.approx(seconds)


async def test_a_guest_who_does_not_read(
    pair: tuple[socket.socket, socket.socket], autojump_clock: trio.testing.MockClock
) -> None:
    ours, _ = pair
    begun = trio.current_time()
    async with stream_of(ours) as stream:
        with pytest.raises(trio.TooSlowError):
            await _say(stream, {"result": "x" * 10_000_000})
    assert trio.current_time() - begun == pytest.approx(SEND_SECONDS)
