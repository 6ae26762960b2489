"""An FTP client in the hands of the test: sockets of a lab's host, and one control connection.

A socket belongs for ever to the namespace that its thread was in when it made it, so the test's thread goes there,
makes the socket, and comes back; everything else is ordinary sockets (setns(2), network_namespaces(7)).
"""

from __future__ import annotations

import ctypes
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import NamedTuple, Self

from ftpproxy.lab.network import Host

from .clients import Site
from .servers import PASSWORD, USER

__all__ = ["Control", "Reply", "call", "inside", "listen"]

CLONE_NEWNET = 0x40000000
SECONDS = 10.0
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def inside(host: Host) -> Iterator[None]:
    """Sockets made in this block, by this thread, are the host's."""
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    there = os.open(f"/run/netns/{host.namespace}", os.O_RDONLY)
    try:
        _enter(there)
        try:
            yield
        finally:
            _enter(own)
    finally:
        os.close(own)
        os.close(there)


def _enter(namespace: int) -> None:
    if _libc.setns(namespace, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def call(host: Host, address: str, port: int) -> socket.socket:
    """A connection from `host`.  Raises `OSError`."""
    with inside(host):
        return socket.create_connection((address, port), timeout=SECONDS)


def listen(host: Host, version: int) -> socket.socket:
    """A listener on `host`'s own address, at a port of the kernel's choice."""
    with inside(host):
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        listener = socket.create_server((host.address(version), 0), family=family)
    listener.settimeout(SECONDS)
    return listener


class Reply(NamedTuple):
    """One reply, all its lines."""

    code: int
    text: str


class Control:
    """A control connection from the client of a lab.  A context manager."""

    def __init__(self, host: Host, site: Site) -> None:
        self.host = host
        self.site = site
        self.socket = call(host, site.host, site.port)
        self._lines = self.socket.makefile("rb")

    def reply(self) -> Reply:
        """The next reply.  Raises `EOFError`, and `OSError` when none comes."""
        lines: list[str] = []
        while not lines or not re.match(rf"{lines[0][:3]}( |$)", lines[-1]):
            line = self._lines.readline()
            if not line:
                raise EOFError(f"the control connection ended after {lines}")
            lines.append(line.decode().rstrip("\r\n"))
        return Reply(int(lines[0][:3]), "\n".join(lines))

    def send(self, line: str) -> None:
        self.socket.sendall(line.encode() + b"\r\n")

    def say(self, line: str, *expected: int) -> Reply:
        """Send `line` and return its reply, which must have one of the codes `expected` where any are given."""
        self.send(line)
        reply = self.reply()
        assert not expected or reply.code in expected, f"{line}: {reply.text}"
        return reply

    def login(self) -> Self:
        assert self.reply().code == 220
        self.say(f"USER {USER}", 331)
        self.say(f"PASS {PASSWORD}", 230)
        self.say("TYPE I", 200)
        return self

    def passive(self) -> tuple[str, int]:
        """PASV: the address and port of the 227, to be obeyed."""
        reply = self.say("PASV", 227)
        # RFC 1123 section 4.1.2.6; docs/protocol.md item 63.
        match = re.fullmatch(r"227 [^(]*\((\d+),(\d+),(\d+),(\d+),(\d+),(\d+)\)\.?", reply.text)
        assert match, reply.text
        *host, high, low = map(int, match.groups())
        return ".".join(map(str, host)), high * 256 + low

    def extended_passive(self) -> int:
        """EPSV: the port of the 229, at the address that was dialled (RFC 2428 section 3)."""
        reply = self.say("EPSV", 229)
        match = re.search(r"\(\|\|\|(\d+)\|\)", reply.text)
        assert match, reply.text
        return int(match[1])

    def port(self, listener: socket.socket) -> None:
        """PORT with the address of `listener`."""
        host, port = listener.getsockname()[:2]
        self.say(f"PORT {host.replace('.', ',')},{port >> 8},{port & 255}", 200)

    def extended_port(self, listener: socket.socket) -> None:
        """EPRT with the address of `listener`."""
        host, port = listener.getsockname()[:2]
        self.say(f"EPRT |{2 if ':' in host else 1}|{host}|{port}|", 200)

    def retrieve(self, name: str, data: socket.socket) -> bytes:
        """RETR over a passive data connection that is up."""
        with data:
            self.say(f"RETR {name}", 125, 150)
            got = drain(data)
        assert self.reply().code == 226
        return got

    def retrieve_active(self, name: str, listener: socket.socket) -> tuple[bytes, tuple[str, int]]:
        """RETR in active mode: what came, and from where."""
        self.say(f"RETR {name}", 125, 150)
        data, _ = listener.accept()
        with data:
            data.settimeout(SECONDS)
            peer = data.getpeername()[:2]
            got = drain(data)
        assert self.reply().code == 226
        return got, peer

    def quit(self) -> None:
        self.say("QUIT", 221)

    def close(self) -> None:
        self._lines.close()
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def drain(data: socket.socket) -> bytes:
    """Everything up to the end of file.  Raises `ConnectionResetError` where it ends otherwise."""
    pieces = []
    while piece := data.recv(1 << 20):
        pieces.append(piece)
    return b"".join(pieces)
