"""A terminal of 80 columns and 24 lines with a program on it, and what stands on its screen."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from typing import Any, Self

import pyte

from ftpproxy.lab.peers import environment

__all__ = ["Terminal"]

PATIENCE = 15.0


class Terminal:
    """Between `with` and the end of the block; a program that is still there then is killed."""

    def __init__(self, *argv: str, columns: int = 80, lines: int = 24) -> None:
        """`ftpproxy ARGV` on it."""
        self.screen = pyte.Screen(columns, lines)
        self.octets = b""
        """All that the program has written."""
        self._stream = pyte.ByteStream(self.screen)
        self._ours, theirs = pty.openpty()
        self._size(columns, lines)
        self.modes_before = termios.tcgetattr(theirs)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ftpproxy", *argv],
            env={**environment(), "TERM": "xterm-256color"},
            preexec_fn=lambda: os.login_tty(theirs),
        )
        self._theirs = theirs  # kept open, to ask for its modes afterwards

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)
        os.close(self._theirs)

    def _size(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def resize(self, columns: int, lines: int) -> None:
        """The window is dragged; the kernel tells the program (SIGWINCH)."""
        self._size(columns, lines)
        self.screen.resize(lines, columns)

    def type(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def look(self, seconds: float = 0.05) -> None:
        """Take what the program has written, for at most so long."""
        if select.select([self._ours], [], [], seconds)[0]:
            octets = os.read(self._ours, 65536)
            self.octets += octets
            self._stream.feed(octets)

    def until(self, condition: Callable[[str], bool]) -> str:
        """The screen as text, once it satisfies `condition`."""
        deadline = time.monotonic() + PATIENCE
        while not condition(self.text):
            assert time.monotonic() < deadline, f"it does not appear:\n{self.text}"
            self.look()
        return self.text

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.screen.display)

    @property
    def last(self) -> str:
        return self.screen.display[-1]

    def marked(self, row: int) -> str:
        """What stands out in a line: in reverse video."""
        cells = self.screen.buffer[row]
        return "".join(cells[column].data for column in range(self.screen.columns) if cells[column].reverse).strip()

    def ends(self) -> int:
        """The exit code."""
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"it does not end:\n{self.text}"
            self.look()
        self.look(0)
        return self.process.returncode

    def is_as_before(self) -> bool:
        """Its modes are, the cursor is seen, and the other screen was left."""
        modes: list[Any] = termios.tcgetattr(self._theirs)
        entered, left = self.octets.count(b"\x1b[?1049h"), self.octets.count(b"\x1b[?1049l")
        return modes == self.modes_before and entered == left == 1 and not self.screen.cursor.hidden

    def kill(self, number: signal.Signals) -> None:
        self.process.send_signal(number)
