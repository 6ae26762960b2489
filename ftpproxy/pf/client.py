"""The unprivileged end of the pf engine's pipes.

    start()              before privileges drop: the engine runs, pf is there, what dead engines left is gone
    engine.attach(...)   once there is a switchboard; then, from its callbacks,
    engine.load(spec, options, answered)         -> number of the path; later `answered(error, counts)`
    engine.count(number, answered), flush(number)
    engine.bound(at)     -> a socket that is bound to an address that is not ours; waits for it
    engine.close()       waits until nothing of ours is left in pf

Requests about rules are sent as the pipe takes them, and each is answered once, in a turn of the board, in their order;
where the engine dies first, with an error.  That is the end of a service that needs it: nothing could be opened, and
nobody would take away what stands.  `attach` is told, once.

`bound` is for gates, which do not wait: the engine has a thread for nothing else, and answers in 100 us.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from attrs import frozen

from ..endpoints import Endpoint
from ..log import event
from ..paths import PathSpec
from ..switchboard import READ, WRITE, Switchboard, Watch
from . import EngineError
from .anchor import RuleOptions
from .engine import LEAST_DATA_PORT, SECONDS
from .messages import LONGEST, Answer, BadMessage, Bind, Count, Flush, Load, read_answer

__all__ = ["Answered", "Engine", "start"]

START_SECONDS = 60.0
"""For the engine to be ready: it may have many anchors to flush, and pfctl may stall."""
END_SECONDS = 30.0
"""For it to flush what stands."""
SILENT_SECONDS = 60.0
"""Without an answer that is owed: then it is as good as dead."""
SOCKET_SECONDS = 2.0
MOST_OWED = 4096
"""Requests that wait for an answer."""

Answered = Callable[[str, tuple[int, ...]], None]
"""Is called with what went wrong, or "", and with what was counted."""

log = logging.getLogger(__name__)


@frozen
class _Owed:
    answered: Answered
    on_crash: Callable[[Exception], None]
    since: float


def start(program: str | None = None, *, seconds: float = SECONDS, least_port: int = LEAST_DATA_PORT) -> Engine:
    """Start the engine, as the user that we are now, and wait until it is ready.

    `program` is the path of pfctl, by default where the system has it; `seconds` is what each call of it may take, and
    `least_port` the lowest that it opens, but 20.  Raises `EngineError`.
    """
    if program is None:
        program = shutil.which("pfctl", path=os.environ.get("PATH", os.defpath) + ":/sbin:/usr/sbin")
    if program is None:
        raise EngineError("the program pfctl was not found; OpenBSD and FreeBSD have it")
    ours, theirs = zip(socket.socketpair(), socket.socketpair(), strict=True)
    # The very package that we are, and nothing from the working directory, which is another one there.
    paths = [str(Path(__file__).parents[2]), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    descriptors = [end.fileno() for end in theirs]
    try:
        process = subprocess.Popen(
            [
                *(sys.executable, "-P", "-m", "ftpproxy.pf.engine", os.path.abspath(program)),
                *map(str, (seconds, least_port, *descriptors)),
            ],
            pass_fds=descriptors,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            cwd="/",
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, paths))},
            start_new_session=True,  # a terminal's signals are for the proxy
        )
    except OSError as error:
        for end in ours:
            end.close()
        raise EngineError(f"the pf engine cannot be started: {error.strerror}") from error
    finally:
        for end in theirs:
            end.close()
    engine = Engine(process, *ours, least_port)
    try:
        engine.wait_until_ready()
    except EngineError:
        engine.close()
        raise
    return engine


class Engine:
    """The pf engine, as its client sees it.  Made by `start`."""

    def __init__(
        self, process: subprocess.Popen[bytes], rules: socket.socket, sockets: socket.socket, least_port: int
    ) -> None:
        self.least_port = least_port
        """Of data connections that it opens, but 20."""
        self._process = process
        self._rules = rules
        self._sockets = sockets
        sockets.settimeout(SOCKET_SECONDS)
        self._received = b""
        self._unsent = bytearray()
        self._owed: dict[int, _Owed] = {}
        self._asked = self._asked_for_sockets = 0
        self._paths = 0
        self._board: Switchboard | None = None
        self._watch: Watch | None = None
        self._lost: Callable[[str], None] | None = None
        self._closed = False
        self.missing_lines: tuple[str, ...] = ()
        """Of pf.conf: without them pf does not look into our anchors."""
        self.over = ""
        """Why there is no engine any more."""

    @property
    def pid(self) -> int:
        """Of the process that watches the one that works."""
        return self._process.pid

    def wait_until_ready(self) -> None:
        """Raises `EngineError`: no pf, no privileges, or no engine."""
        self._rules.settimeout(START_SECONDS)
        try:
            while b"\n" not in self._received:
                octets = self._rules.recv(LONGEST)
                if not octets:
                    raise EngineError("the pf engine has died at its start")
                self._received += octets
            line, _, self._received = self._received.partition(b"\n")
            answer = read_answer(line)
        except (OSError, BadMessage) as error:
            raise EngineError(f"the pf engine does not answer: {error}") from error
        if answer.error:
            raise EngineError(answer.error)
        self.missing_lines = answer.notes

    def attach(self, board: Switchboard, lost: Callable[[str], None]) -> None:
        """From now on answers come in turns of `board`.  `lost(why)` is called once if the engine dies."""
        self._rules.setblocking(False)
        self._board = board
        self._lost = lost
        self._watch = board.watch(self._rules, self._event, self._crashed)
        self._watch.want(READ)
        board.sweep(self._sweep, self._crashed)

    # Requests

    def load(
        self, spec: PathSpec, options: RuleOptions, answered: Answered, on_crash: Callable[[Exception], None]
    ) -> int:
        """Load the rules of this data connection.  Returns the number of the path, which none has had before."""
        self._paths += 1
        path = self._paths
        self._ask(lambda ask: Load(ask, path, spec, options).line(), answered, on_crash)
        return path

    def count(self, path: int, answered: Answered, on_crash: Callable[[Exception], None]) -> None:
        """Ask for packets and octets of the caller: sent, and received, headers included."""
        self._ask(lambda ask: Count(ask, path).line(), answered, on_crash)

    def flush(self, path: int) -> None:
        """Take the rules of that path down.  What was asked about it before is done before."""

        def answered(error: str, _: tuple[int, ...]) -> None:
            if error and not self.over:
                event(log, logging.WARNING, "pf.rules_left", path=path, reason=error)

        self._ask(lambda ask: Flush(ask, path).line(), answered, self._crashed)

    @property
    def full(self) -> bool:
        """So many answers are owed that nothing more should be opened."""
        return len(self._owed) >= MOST_OWED

    def _ask(self, line: Callable[[int], bytes], answered: Answered, on_crash: Callable[[Exception], None]) -> None:
        assert self._board is not None
        if self.over:
            self._board.soon(lambda _: answered(self.over, ()), on_crash)
            return
        self._asked += 1
        self._owed[self._asked] = _Owed(answered, on_crash, self._board.now)
        self._unsent += line(self._asked)
        self._send()

    def bound(self, at: Endpoint) -> socket.socket:
        """A TCP socket that is bound to `at`, which need not be an address of this machine; not blocking, not
        listening, not connected.  Raises `OSError`: as bind(2) does, or `BrokenPipeError` without an engine."""
        self._asked_for_sockets += 1
        ask = self._asked_for_sockets
        received, descriptors = b"", []
        try:
            self._sockets.sendall(Bind(ask, at).line())
            while not received.endswith(b"\n"):
                octets, more, _, _ = socket.recv_fds(self._sockets, LONGEST, 1)
                descriptors += more
                if not octets:
                    raise BrokenPipeError("the pf engine is gone")
                received += octets
            answer = read_answer(received)
            if answer.answer != ask or len(descriptors) != (0 if answer.error else 1):
                raise BadMessage("not what was asked for")
        except (OSError, BadMessage) as error:
            for descriptor in descriptors:
                os.close(descriptor)
            # What comes later would be taken for the answer to something else.
            self._sockets.close()
            why = f"the pf engine makes no more sockets: {error}"
            if self._board is not None:
                self._board.soon(lambda _: self._die(why), self._crashed)
            raise BrokenPipeError(why) from error
        if answer.error:
            raise OSError(answer.errno, answer.error) if answer.errno else PermissionError(answer.error)
        sock = socket.socket(fileno=descriptors[0])
        sock.set_inheritable(False)  # descriptors that were passed are
        sock.setblocking(False)
        return sock

    # Answers

    def _event(self, events: int) -> None:
        if events & WRITE:
            self._send()
        if events & READ and not self.over:
            try:
                octets = self._rules.recv(1 << 16)
            except BlockingIOError:
                return
            except OSError:
                octets = b""
            if not octets:
                self._die(f"the pf engine (process {self.pid}) has died")
                return
            *lines, self._received = (self._received + octets).split(b"\n")
            try:
                answers = [read_answer(line) for line in lines]
                if len(self._received) > LONGEST:
                    raise BadMessage("a line is too long")
            except BadMessage as error:
                self._die(f"the pf engine (process {self.pid}) does not make sense: {error}")
                return
            for answer in answers:
                self._answer(answer)

    def _answer(self, answer: Answer) -> None:
        owed = self._owed.pop(answer.answer, None)
        if owed is None:
            self._die(f"the pf engine (process {self.pid}) answers what was not asked")
            return
        Switchboard.guard(lambda _: owed.answered(answer.error, answer.counts), None, owed.on_crash)

    def _send(self) -> None:
        while self._unsent:
            try:
                sent = self._rules.send(self._unsent)
            except BlockingIOError:
                break
            except OSError:
                self._unsent.clear()  # its end will be read
                break
            del self._unsent[:sent]
        if self._watch is not None:
            self._watch.want(READ | WRITE if self._unsent else READ)

    def _sweep(self, now: float) -> None:
        oldest = next(iter(self._owed.values()), None)
        if oldest is not None and now - oldest.since > SILENT_SECONDS:
            self._die(f"the pf engine (process {self.pid}) does not answer")

    def _crashed(self, error: Exception) -> None:
        self._die(f"internal error: {error!r}")

    def _die(self, why: str) -> None:
        if self.over:
            return
        self.over = why
        self._let_go()
        owed, self._owed = self._owed, {}
        for each in owed.values():
            Switchboard.guard(lambda _, each=each: each.answered(why, ()), None, each.on_crash)  # type: ignore[misc]
        if self._lost is not None:
            self._lost(why)

    def _let_go(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        if self._board is not None:
            self._board.unsweep(self._sweep)

    def close(self) -> None:
        """Let the engine flush what stands, and end; waits for it.  Idempotent."""
        if self._closed:
            return
        self._closed = True
        self.over = self.over or "the pf engine is closed"
        self._let_go()
        until = time.monotonic() + END_SECONDS
        try:
            self._rules.settimeout(END_SECONDS)
            with contextlib.suppress(OSError):
                self._rules.sendall(self._unsent)  # in the middle of a line it would be misunderstood
                self._rules.shutdown(socket.SHUT_WR)
            # The watcher, the last to go, holds the other end of `sockets`.
            with contextlib.suppress(OSError):
                self._sockets.shutdown(socket.SHUT_WR)
                while (left := until - time.monotonic()) > 0:
                    self._sockets.settimeout(left)
                    if not self._sockets.recv(LONGEST):
                        break
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(max(0.0, until - time.monotonic()))
        finally:
            self._rules.close()
            self._sockets.close()
