"""What every combination of deployment, family, server, client and mode is put through, and what carried it.

Content is pseudo-random but the same in every run, so a file that differs can be looked into.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from attrs import define

from .clients import Client, Mode, complete
from .deployments import Deployment, until
from .servers import UID, FtpServer, roomy_directory

__all__ = ["BIG", "SIZES", "Load", "all_carried", "exercise", "scratch", "transfer_big"]

SIZES = {"empty": 0, "one": 1, "middle": 65536}
BIG = 256 << 20
TEN = 10
_PIECE = random.Random(959).randbytes(1 << 20)


def content(size: int) -> Iterator[bytes]:
    """`size` octets in pieces; no two pieces are alike, so a lost or doubled one shows."""
    for number in range(0, size, len(_PIECE)):
        piece = number.to_bytes(8, "big") + _PIECE[8:]
        yield piece[: size - number]


def make(path: Path, size: int) -> str:
    """Write a file of `size` octets and return its SHA-256."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for piece in content(size):
            file.write(piece)
            digest.update(piece)
    return digest.hexdigest()


def write(path: Path, size: int) -> None:
    """Write a file of `size` octets."""
    with path.open("wb") as file:
        for piece in content(size):
            file.write(piece)


def check(path: Path, size: int) -> None:
    """Hold a file against what `write` wrote, octet by octet: a quarter of the time that a checksum takes."""
    with path.open("rb", buffering=0) as file:
        for number, piece in enumerate(content(size)):
            assert file.read(len(piece)) == piece, f"{path.name} differs in MiB {number}"
        assert not file.read(1), f"{path.name} is too long"


def checksum(path: Path) -> str:
    if not path.exists():
        return "not there"
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory for a client's files."""
    place = roomy_directory()
    try:
        yield place
    finally:
        shutil.rmtree(place)


@contextmanager
def folder(server: FtpServer, name: str) -> Iterator[Path]:
    """A directory of the server that its login may write to."""
    place = server.files / name
    place.mkdir()
    os.chown(place, UID, UID)
    try:
        yield place
    finally:
        shutil.rmtree(place)


def same(sums: dict[str, str], place: Path) -> None:
    """Hold the files in `place` against `sums`, by name."""
    assert {name: checksum(place / name) for name in sums} == sums


def exercise(deployment: Deployment, client: Client, mode: Mode, version: int) -> None:
    """List, get, put, resume, ten transfers in one session, two sessions at once; each by checksum.

    The proxy's log must show that every session went through it, and that ten transfers were one session.
    """
    host, server, site = deployment.client, deployment.server, deployment.site(version)
    logged = len(deployment.proxy.log)
    with folder(server, "down") as down, scratch() as local:
        sums = {name: make(down / name, size) for name, size in SIZES.items()}

        (listing,) = complete(host, client.list(site, mode, "down"))
        assert all(name in listing for name in sums), listing

        # A session each and, for those that upload, one session for all.
        for name in sums:
            complete(host, client.get(site, mode, "down", [name], local))
        same(sums, local)

        if client.uploads:
            with folder(server, "up") as up:
                complete(host, client.put(site, mode, [local / name for name in sums], "up"))
                same(sums, up)

        (local / "middle").write_bytes((down / "middle").read_bytes()[:12345])
        complete(host, client.resume(site, mode, "down", "middle", local))
        same(sums, local)

    with folder(server, "ten") as ten, scratch() as local, scratch() as other:
        sums = {f"file{number}": make(ten / f"file{number}", 1000 + number) for number in range(TEN)}
        names: Sequence[str] = list(sums)
        complete(host, client.get(site, mode, "ten", names, local))
        same(sums, local)
        for name in names:
            (local / name).unlink()
        complete(host, *(client.get(site, mode, "ten", names, place) for place in (local, other)))
        same(sums, local)
        same(sums, other)

    until(lambda: len(deployment.ended(logged)) >= 8 + client.uploads, "all sessions were the proxy's")
    transfers = deployment.ended(logged)
    assert len(transfers) == 8 + client.uploads, "more sessions than there were clients"
    assert len([count for count in transfers if count >= TEN]) == 3


def transfer_big(deployment: Deployment, client: Client, mode: Mode, version: int, size: int = BIG) -> None:
    """A large file down and, where the client can, up again."""
    host, server, site = deployment.client, deployment.server, deployment.site(version)
    logged = len(deployment.proxy.log)
    with folder(server, "big") as big, scratch() as local:
        write(big / "big", size)
        complete(host, client.get(site, mode, "big", ["big"], local))
        check(local / "big", size)
        if client.uploads:
            (big / "big").unlink()
            complete(host, client.put(site, mode, [local / "big"], "big"))
            check(big / "big", size)
    until(lambda: len(deployment.ended(logged)) == 1 + client.uploads, "all sessions were the proxy's")


@define
class Load:
    """What went through the proxy in a block of `all_carried`, known at its end."""

    transfers: int = 0
    octets: int = 0
    calls: int | None = None
    """The data connections that the gateway's firewall let through, on the kernel's plane."""


@contextmanager
def all_carried(deployment: Deployment, plane: str) -> Iterator[Load]:
    """Everything that is transferred in the block must have been carried by `plane`.

    The proxy's log must say so.  Where it is to be the kernel, the gateway's firewall lets nothing else through and
    must have counted as many data connections and octets as the log has.
    """
    since, before, load = len(deployment.proxy.log), deployment.proxy.passed(), Load()
    assert (before is not None) == (plane == "nft")
    yield load
    found = deployment.transfers(since)
    assert {each.plane for each in found} == {plane}
    assert {each.result for each in found} == {"complete"}
    load.transfers, load.octets = len(found), sum(each.octets for each in found)
    if before is not None and (after := deployment.proxy.passed()) is not None:
        load.calls = (after - before).calls
        assert load.calls >= load.transfers, "not all data connections went by the kernel"
        assert (after - before).octets >= load.octets, "not all octets went by the kernel"
