"""The asking side of the control socket: what `ftpproxy status` and the others use.

Plain blocking sockets and the standard library, so that a command is there at once.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

__all__ = ["CallFailed", "Caller"]

EX_UNAVAILABLE, EX_NOPERM = 69, 77
SECONDS = 30.0
"""For an answer: the process may be busy, and a reload takes its time."""


class CallFailed(Exception):
    """There is no answer, or it is a refusal; the text says what would mend it.  `code` is for the command line,
    `answer` what was answered."""

    def __init__(self, text: str, code: int, answer: dict[str, Any] | None = None) -> None:
        super().__init__(text)
        self.code = code
        self.answer = answer or {}


class Caller:
    """A connection to the process whose control socket is at `path`.  Raises `CallFailed` where there is none."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._buffer = bytearray()
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # A non-blocking connect would fail at once where the backlog is full (unix(7), EAGAIN).
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(SECONDS), 0))
        try:
            self._sock.connect(path)
            self._sock.settimeout(SECONDS)
        except OSError as error:
            self._sock.close()
            raise self._unreachable(error) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._sock.close()

    def fileno(self) -> int:
        return self._sock.fileno()

    def ask(self, command: str, **arguments: object) -> Any:
        """The result of `command`.  Raises `CallFailed`."""
        request = {"command": command, **{key: value for key, value in arguments.items() if value is not None}}
        try:
            self._sock.sendall(json.dumps(request).encode() + b"\n")
        except (BrokenPipeError, ConnectionResetError):
            pass  # it says why before it hangs up
        except OSError as error:
            raise self._unreachable(error) from None
        answer = self.next()
        if answer is None:
            raise CallFailed(f"the process at {self.path} has hung up", EX_UNAVAILABLE)
        if "error" in answer:
            raise CallFailed(answer["error"], answer.get("code", 1), answer)
        return answer["result"]

    def next(self) -> dict[str, Any] | None:
        """The next line; None at the end.  Raises `CallFailed`."""
        while (end := self._buffer.find(b"\n")) < 0:
            try:
                octets = self._sock.recv(65536)
            except OSError as error:
                raise self._unreachable(error) from None
            if not octets:
                return None
            self._buffer += octets
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        answer = json.loads(line)
        assert isinstance(answer, dict)
        return answer

    def records(self) -> Iterator[dict[str, Any]]:
        """What comes behind the answer to `trace`, until the end; waits as long as it takes.  Raises `CallFailed`."""
        self._sock.settimeout(None)
        while (record := self.next()) is not None:
            yield record

    def _unreachable(self, error: OSError) -> CallFailed:
        if isinstance(error, PermissionError):
            return CallFailed(
                f"{self.path}: permission denied; be root, or a member of the group of that socket", EX_NOPERM
            )
        if isinstance(error, TimeoutError | BlockingIOError):
            return CallFailed(f"{self.path}: no answer within {SECONDS:g} seconds", EX_UNAVAILABLE)
        if isinstance(error, FileNotFoundError | ConnectionRefusedError | NotADirectoryError):
            why = "no ftpproxy is running there; start it, or name its socket with --socket or its file with -c"
            return CallFailed(f"{self.path}: {why}", EX_UNAVAILABLE)
        return CallFailed(f"{self.path}: {error.strerror or error}", EX_UNAVAILABLE)
