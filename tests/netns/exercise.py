"""What every combination of deployment, family, server, client and mode is put through.

Content is pseudo-random but the same in every run, so a checksum that differs can be looked into.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .clients import Client, Mode, complete
from .deployments import Deployment, until
from .servers import UID, FtpServer, roomy_directory

__all__ = ["BIG", "SIZES", "exercise", "scratch", "transfer_big"]

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
        sums = {"big": make(big / "big", size)}
        complete(host, client.get(site, mode, "big", ["big"], local))
        same(sums, local)
        if client.uploads:
            (big / "big").unlink()
            complete(host, client.put(site, mode, [local / "big"], "big"))
            same(sums, big)
    until(lambda: len(deployment.ended(logged)) == 1 + client.uploads, "all sessions were the proxy's")
