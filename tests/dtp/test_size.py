"""Big transfers, slow receivers, the two carriers, and a relay that is killed."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
import trio
import trio.testing

from ftpproxy.dtp import carriers
from ftpproxy.endpoints import Endpoint, Side
from ftpproxy.paths import Direction

from .stage import MIB, Stage, both_carriers, clean, receive, rest, send

CLIENT, SERVER = Side.CLIENT, Side.SERVER


async def blocked(sock: trio.socket.SocketType, file: memoryview) -> int:
    """Push until the other end takes no more; the octets it took."""
    pushed = 0
    while pushed < len(file):
        with trio.move_on_after(1) as scope:
            pushed += await sock.send(file[pushed : pushed + MIB])
        if scope.cancelled_caught:
            break
    return pushed


@both_carriers
@pytest.mark.parametrize("direction", Direction, ids=str)
async def test_a_slow_receiver_does_not_grow_memory(stage: Stage, direction: Direction) -> None:
    """Item 100: the relay holds at most one buffer; the sender is held up, and everything arrives in the end."""
    joined = await stage.joined()
    sender, receiver = joined[direction.sender], joined[direction.sender.peer]
    file = memoryview(os.urandom(MIB) * 64)
    tracemalloc.start()
    try:
        pushed = await blocked(sender, file)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    flow = joined.path._flows[direction.sender]
    assert pushed < len(file)
    assert 0 < flow.held <= max(carriers.PIPE_SIZES)
    assert peak < 2 * MIB
    assert not flow.wants_read

    found = hashlib.sha256()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: send(sender, file[pushed:], end=True))
        while octets := await receiver.recv(MIB):
            found.update(octets)
    assert found.digest() == hashlib.sha256(file).digest()
    receiver.close()
    tally = await joined.owner.end()
    assert tally.octets_down + tally.octets_up == len(file)
    assert tally.failed is None


@pytest.mark.parametrize(
    "splicing",
    [pytest.param(True, marks=pytest.mark.linux("splice(2)"), id="splice"), pytest.param(False, id="no splice")],
)
@pytest.mark.parametrize("stage", [{"version": 4}, {"version": 6}], ids=["ipv4", "ipv6"], indirect=True)
async def test_big_transfers_both_ways_at_once(stage: Stage, splicing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 2.4: 64 MiB each way across the change of carriers, and on systems that cannot splice."""
    if not splicing:
        monkeypatch.delattr(os, "splice", raising=False)
    joined = await stage.joined()
    file = os.urandom(MIB) * 64
    digests: dict[Side, bytes] = {}

    async def receiving(side: Side) -> None:
        found = hashlib.sha256()
        while octets := await joined[side].recv(MIB):
            found.update(octets)
        digests[side] = found.digest()

    spliced = False
    async with trio.open_nursery() as nursery:
        for side in Side:
            nursery.start_soon(receiving, side)
            nursery.start_soon(lambda side: send(joined[side], file, end=True), side)
        await stage.settled(lambda: joined.owner.over or joined.path._flows[SERVER].octets > 2 * MIB)
        spliced = all(isinstance(flow._carrier, carriers.Splice) for flow in joined.path._flows.values())
    assert digests == dict.fromkeys(Side, hashlib.sha256(file).digest())
    assert clean(await joined.owner.end(), down=len(file), up=len(file))
    if not splicing:
        assert not spliced


@pytest.mark.parametrize("stage", [{"splice_after": 1}], indirect=True)
async def test_no_pipe_no_splice(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without descriptors for a pipe, or with a pipe that is too small, copying goes on."""
    monkeypatch.setattr(carriers, "SMALLEST_PIPE", 1 << 40)
    joined = await stage.joined()
    await send(joined.server, b"small", end=True)
    assert await rest(joined.client) == b"small"
    assert isinstance(joined.path._flows[SERVER]._carrier, carriers.Copy)
    joined.client.close()
    assert clean(await joined.owner.end(), down=5, up=0)


@pytest.mark.linux("splice(2)")
@pytest.mark.parametrize("stage", [{"splice_after": 1}], indirect=True)
async def test_urgent_data_is_no_end_of_file(stage: Stage) -> None:
    """splice(2) stops at an urgent octet and may say 0; a file must not end there."""
    joined = await stage.joined()
    await send(joined.server, b"begin")
    assert await receive(joined.client, 5) == b"begin"
    flow = joined.path._flows[SERVER]
    assert isinstance(flow._carrier, carriers.Splice)
    with socket.socket(fileno=os.dup(joined.server.fileno())) as plain:
        plain.send(b"!", socket.MSG_OOB)
        plain.send(b"end")
    joined.server.shutdown(trio.socket.SHUT_WR)
    assert await rest(joined.client) == b"end"
    joined.client.close()
    assert clean(await joined.owner.end(), down=8, up=0)


@pytest.mark.parametrize("megabytes", [0, 4], ids=["at once", "mid-transfer"])
async def test_a_killed_relay_is_a_reset(stage: Stage, megabytes: int) -> None:
    """`kill -9` in the middle of a transfer: both peers see a reset, not the end of a file."""
    listener, at = await stage.listening()
    root = Path(__file__).parent.parent.parent
    command = [sys.executable, "-m", "tests.dtp.relay_process", str(at)]
    process = await trio.lowlevel.open_process(command, cwd=root, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        announced = Endpoint.parse((await process.stdout.receive_some()).decode().strip())
        client, server = await stage.call(announced), await stage.accept(listener)
        await send(server, b"x")
        assert await receive(client, 1) == b"x"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, server, bytes(megabytes * MIB))
            await receive(client, megabytes * MIB)
        process.send_signal(signal.SIGKILL)
        await process.wait()
        for peer in (client, server):
            with pytest.raises(ConnectionResetError):
                await rest(peer)
    finally:
        process.kill()
        await process.wait()
        if process.stdout is not None:
            await process.stdout.aclose()
