"""Whatever two peers do, in whatever order: the octets are the same, and a broken connection never looks complete."""

from __future__ import annotations

import socket
from collections import defaultdict
from contextlib import suppress

import trio
import trio.testing
from attrs import define, frozen
from hypothesis import given, settings
from hypothesis import strategies as st

from ftpproxy.endpoints import Side
from ftpproxy.switchboard import Switchboard

from .stage import PATIENCE, Joined, Stage, reset

END, RESET = "end", "reset"


@frozen
class Step:
    """One thing that a peer does: send so many octets, read so many, end its sending, or reset."""

    side: Side
    send: int = 0
    read: int = 0
    last: str = ""


@define
class Peer:
    """What one peer has done and seen so far."""

    sent: bytearray
    got: bytearray
    closed: str = ""
    ended: bool = False
    saw_end: bool = False
    saw_reset: bool = False


sizes = st.sampled_from([1, 2, 1000, 65_536, 300_000, 2_000_000])
steps = st.lists(
    st.one_of(
        st.builds(Step, st.sampled_from(Side), send=sizes),
        st.builds(Step, st.sampled_from(Side), read=sizes),
        st.builds(Step, st.sampled_from(Side), last=st.sampled_from([END, END, RESET])),
    ),
    max_size=14,
)


def octets(side: Side, start: int, size: int) -> bytes:
    """A piece of a stream that repeats late and differs from the other side's."""
    period = bytes(range(251)) if side is Side.CLIENT else bytes(range(250, -1, -1))
    offset = start % 251
    return (period * (size // 251 + 2))[offset : offset + size]


async def play(stage: Stage, joined: Joined, script: list[Step], peers: dict[Side, Peer]) -> None:
    for step in script:
        peer, sock = peers[step.side], joined[step.side]
        if peer.closed == RESET:
            continue
        if step.send and not peer.closed:
            with suppress(BrokenPipeError, ConnectionResetError), trio.move_on_after(0):
                piece = octets(step.side, len(peer.sent), step.send)
                peer.sent += piece[: await sock.send(piece)]
        if step.read:
            with trio.move_on_after(0):
                await see(sock, peer, step.read)
        if step.last == END and not peer.closed:
            peer.closed, peer.ended = END, True
            with suppress(OSError):  # it was reset by the relay
                sock.shutdown(socket.SHUT_WR)
        if step.last == RESET:
            peer.closed = RESET
            reset(sock)
        await trio.lowlevel.checkpoint()


async def see(sock: trio.socket.SocketType, peer: Peer, size: int) -> None:
    """Read once."""
    if peer.saw_end or peer.saw_reset:
        return
    try:
        piece = await sock.recv(size)
    except ConnectionResetError:
        peer.saw_reset = True
    else:
        peer.got += piece
        peer.saw_end = not piece


async def finish(sock: trio.socket.SocketType, peer: Peer) -> None:
    """End it, read what there is to read."""
    if peer.closed == RESET:
        return
    if not peer.closed:
        with suppress(OSError):
            sock.shutdown(socket.SHUT_WR)
        peer.closed, peer.ended = END, True
    while not (peer.saw_end or peer.saw_reset):
        await see(sock, peer, 1 << 20)


@given(script=steps, splice_after=st.sampled_from([None, 1, 100_000]))
@settings(max_examples=120, deadline=None)
def test_any_order(script: list[Step], splice_after: int | None) -> None:
    """Items 92 to 95: what arrives is a prefix of what was sent, whole after a clean end; a reset is no end."""

    async def main() -> None:
        board = Switchboard()
        peers: dict[Side, Peer] = defaultdict(lambda: Peer(bytearray(), bytearray()))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(board.run)
            await trio.testing.wait_all_tasks_blocked()
            stage = Stage(board, splice_after=splice_after)
            joined = await stage.joined()
            with trio.fail_after(PATIENCE):
                await play(stage, joined, script, peers)
                async with trio.open_nursery() as both:
                    for side in Side:
                        both.start_soon(finish, joined[side], peers[side])
                tally = await joined.owner.end()
            left = len(stage.plane), stage.gate.held, len(board.selector.get_map())
            stage.close()
            nursery.cancel_scope.cancel()
        board.close()
        assert left == (0, 0, 0)
        broken = [side for side in Side if peers[side].closed == RESET]
        for side in Side:
            mine, other = peers[side], peers[side.peer]
            assert other.sent.startswith(mine.got)
            if not broken:
                assert mine.got == other.sent
            elif side not in broken and not other.ended:
                assert mine.saw_reset
                assert not mine.saw_end
            elif side not in broken and mine.saw_end:
                assert mine.got == other.sent  # it had ended before it reset
        delivered = {Side.CLIENT: tally.octets_down, Side.SERVER: tally.octets_up}
        if tally.failed is None:
            assert tally.reason == ""
            for side in Side:
                assert delivered[side] == len(peers[side.peer].sent)
                if side not in broken:
                    assert peers[side].saw_end
        else:
            assert broken
            assert tally.failed in broken
            assert tally.reason
        for side in Side:
            assert len(peers[side].got) <= delivered[side] <= len(peers[side.peer].sent)

    trio.run(main)
