"""Sessions that last while somebody does something to the proxy:

    python load.py HOST SERVER-FILE-OCTETS IDLE DOWN UP

opens IDLE sessions that do nothing, DOWN running downloads of `sample` and UP running uploads, prints `running` when
each has moved a part of its octets, and goes on when a line comes on standard input: it ends the transfers, speaks on
every session, transfers once more, and prints what went wrong as a JSON list.
"""

from __future__ import annotations

import ftplib
import hashlib
import json
import socket
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

PIECE = 1 << 20
SECONDS = 60.0


class Running:
    """A transfer that has begun."""

    def __init__(self, ftp: ftplib.FTP, verb: str, name: str, content: bytes) -> None:
        self.ftp, self.verb, self.name, self.content = ftp, verb, name, content
        self.received = bytearray()
        self.sock: socket.socket = ftp.transfercmd(f"{verb} {name}")
        if verb == "RETR":
            self._read(PIECE)
        else:
            self.sock.sendall(content[:PIECE])

    def _read(self, most: int | None) -> None:
        while most is None or len(self.received) < most:
            octets = self.sock.recv(65536)
            if not octets:
                return
            self.received += octets

    def end(self) -> None:
        if self.verb == "RETR":
            self._read(None)
            if hashlib.sha256(self.received).digest() != hashlib.sha256(self.content).digest():
                raise AssertionError(f"{len(self.received)} of {len(self.content)} octets came, or others")
        else:
            self.sock.sendall(self.content[PIECE:])
        self.sock.close()
        self.ftp.voidresp()


def content_of(octets: int) -> bytes:
    """What the server has as `sample`: the same for everybody who asks for that many."""
    return (hashlib.sha256(b"sample").digest() * (octets // 32 + 1))[:octets]


def session(host: str) -> ftplib.FTP:
    ftp = ftplib.FTP(timeout=SECONDS)
    ftp.connect(host)
    ftp.login("lab", "lab")
    ftp.voidcmd("TYPE I")
    return ftp


def again(ftp: ftplib.FTP, content: bytes) -> None:
    Running(ftp, "RETR", "sample", content).end()


def main(host: str, octets: int, idle: int, down: int, up: int) -> None:
    content = content_of(octets)
    sessions = [session(host) for _ in range(idle)]
    running = [Running(session(host), "RETR", "sample", content) for _ in range(down)]
    running += [Running(session(host), "STOR", f"stored-{number}", content) for number in range(up)]
    print("running", flush=True)
    sys.stdin.readline()
    wrong: list[str] = []

    def attempt(what: str, act: Callable[[], Any]) -> None:
        try:
            act()
        except Exception as error:
            wrong.append(f"{what}: {error!r}")

    for number, transfer in enumerate(running):
        attempt(f"{transfer.verb} {number}", transfer.end)
    for number, ftp in enumerate(sessions):
        attempt(f"idle session {number}", ftp.pwd)
    for number, ftp in enumerate([*sessions[:5], *(transfer.ftp for transfer in running)]):
        attempt(f"another transfer {number}", partial(again, ftp, content))
    print(json.dumps(wrong), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
