"""The pf engine: the small process that stays root when the proxy does not, and what little it can be asked for.

It is a program of its own, started before privileges drop (`client.start`), and does three things for whoever holds the
other ends of its two pipes:

    rules     load, read the counters of, or flush an anchor `ftp-proxy/PID.ID`, where PID is the engine's own number
    sockets   make TCP sockets that are bound to foreign addresses (SO_BINDANY, IP_BINDANY), for a proxy that relays

Whoever takes the proxy over has these two, and with them nothing that the rules of one data connection cannot say:
`anchor.render` checks again whatever is to be loaded, numbers of anchors only rise and not more than `MOST_STANDING`
stand, sockets are refused for addresses that are no host's, and ports that are no data port's are refused everywhere:
what is below the lowest that the configuration names, but 20.  What is said in any other form ends the engine.

Rules are loaded by `pfctl -a ANCHOR -f -`, which replaces an anchor in one transaction, one at a time, because on
FreeBSD loaders disturb each other (EBUSY); that is tried again a few times.  Each call has a time limit.  Requests of
a pipe are answered in their order; the two pipes have a thread each, because whoever asks for a socket waits.

Nothing is left behind: anchors are flushed when they are closed, and at the end, which is the end of the rules pipe,
however the proxy has ended.  The engine consists of two processes: one works, the other waits, and flushes what the
first one leaves if it is killed.  The anchors of engines that were killed altogether go at the next start; whether a
process lives is asked of kill(2), so engines and ftp-proxy(8)s may run beside each other.

    ftpproxy (unprivileged) --- rules, sockets --- engine: worker --- pfctl
                                                   engine: watcher, the worker's parent
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence

from ..endpoints import Endpoint
from ..paths import Await, PathSpec
from ..sockets import bound
from .anchor import ROOT, RuleError, anchor_name, render
from .messages import LONGEST, Answer, BadMessage, Bind, Count, Flush, Load, read_request

__all__ = ["SECONDS", "Anchors", "Pfctl", "PfctlError", "main"]

SECONDS = 5.0
"""For one pfctl."""
LAST_SECONDS = 20.0
"""For everything that is flushed at the end."""
PAUSES = (0.005, 0.01, 0.02, 0.04, 0.08)
"""Seconds before each further attempt where pf was busy."""
MOST_SAID = 300
"""Characters of pfctl's that are passed on."""
LEAST_DATA_PORT = 1024
"""Where the configuration names no lower one."""
FTP_DATA = 20
MOST_STANDING = 10_000
"""Anchors; a proxy in wrong hands could fill the kernel's memory with them."""

_BUSY = re.compile(r"(Device|resource) busy")
_NOISE = re.compile(r"ALTQ|^$")
"""What pfctl says on FreeBSD without ALTQ, whatever it is asked for."""


class PfctlError(Exception):
    """pfctl has failed; the text is what it said.  `stalled`: it was killed, and may have done its work."""

    def __init__(self, why: str, *, stalled: bool = False) -> None:
        super().__init__(why)
        self.stalled = stalled


class Pfctl:
    """pfctl(8), called with a time limit.  `lifeline` is held open by each of them as long as it runs."""

    def __init__(self, program: str, *, seconds: float = SECONDS, lifeline: int | None = None) -> None:
        self._program = program
        self._seconds = seconds
        self._lifeline = () if lifeline is None else (lifeline,)

    def __call__(self, *arguments: str, text: str = "") -> str:
        """What it printed.  Raises `PfctlError`."""
        for pause in (*PAUSES, None):
            try:
                done = subprocess.run(
                    [self._program, *arguments],
                    input=text,
                    capture_output=True,
                    encoding="utf-8",
                    errors="replace",
                    timeout=self._seconds,
                    env={"PATH": "/sbin:/usr/sbin:/bin:/usr/bin", "LC_ALL": "C"},
                    cwd="/",
                    pass_fds=self._lifeline,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                raise PfctlError(f"pfctl did not end within {self._seconds:g} s", stalled=True) from None
            except OSError as error:
                raise PfctlError(f"{self._program}: {error.strerror}") from None
            if done.returncode == 0:
                return done.stdout
            said = " / ".join(line.strip() for line in done.stderr.splitlines() if not _NOISE.search(line))
            if pause is None or not _BUSY.search(said):
                break
            time.sleep(pause)
        if done.returncode < 0:
            raise PfctlError(f"pfctl was killed by signal {-done.returncode}", stalled=True)
        raise PfctlError(said or f"pfctl failed with exit code {done.returncode}")


class Anchors:
    """The anchors of one process.  Their data connections have ports from `least` on."""

    def __init__(self, pfctl: Pfctl, process: int, least: int = LEAST_DATA_PORT) -> None:
        self._pfctl = pfctl
        self._process = process
        self._least = least
        self._standing: set[int] = set()
        self._last = 0

    def load(self, request: Load) -> None:
        """Raises `RuleError` for what cannot be, `PfctlError` where it is not loaded."""
        text = render(request.spec, request.options)
        for port in _ports(request.spec):
            _check_port(port, self._least)
        if len(self._standing) >= MOST_STANDING:
            raise RuleError(f"the rules of {len(self._standing)} data connections stand already")
        if request.path <= self._last:
            raise RuleError(f"path {request.path} has been")
        self._last = request.path
        self._standing.add(request.path)
        try:
            # pfctl -a ftp-proxy/PID.ID -f -
            self._pfctl("-a", anchor_name(self._process, request.path), "-f", "-", text=text)
        except PfctlError as error:
            if not error.stalled:  # it was refused as a whole
                self._standing.remove(request.path)
            raise

    def flush(self, path: int) -> None:
        """Take these rules down; nothing happens where there are none.  Raises `PfctlError`."""
        if path in self._standing:
            # pfctl -a ftp-proxy/PID.ID -f - </dev/null: an anchor without rules vanishes
            self._pfctl("-a", anchor_name(self._process, path), "-f", "-")
            self._standing.remove(path)

    def count(self, path: int) -> tuple[int, ...]:
        """Packets and octets in, then out, of the connection of the caller.  Raises `PfctlError`.

        `pfctl -s labels` prints for each rule with a label: label, evaluations, packets, octets, packets in, octets in,
        packets out, octets out, and states (pfctl(8)).  The first of ours is `pass in`, whose state has what the
        caller sends as in, and what it is sent as out.
        """
        if path not in self._standing:
            raise PfctlError("these rules are gone")
        for line in self._pfctl("-a", anchor_name(self._process, path), "-s", "labels").splitlines():
            numbers = line.split()[1:]
            if len(numbers) >= 7 and all(number.isascii() and number.isdigit() for number in numbers):
                return tuple(map(int, numbers[3:7]))
        raise PfctlError("pfctl shows no counters")

    def flush_all(self) -> None:
        """Everything that stands, as far as it can be had in `LAST_SECONDS`."""
        until = time.monotonic() + LAST_SECONDS
        for path in sorted(self._standing):
            if time.monotonic() < until:
                with contextlib.suppress(PfctlError):
                    self.flush(path)
        if self._standing:
            _complain(f"rules of {len(self._standing)} data connections are left in {ROOT}/{self._process}.*")


def _ports(spec: PathSpec) -> Iterator[int]:
    """Those that rules name; 0 as the source is any of pf's own range."""
    for leg in (spec.client, spec.server):
        if isinstance(leg, Await):
            yield leg.at.port
        else:
            yield leg.to.port
            if leg.source.port:
                yield leg.source.port


def _check_port(port: int, least: int) -> None:
    """Raises `RuleError` for one that no data connection has."""
    if port < least and port != FTP_DATA:
        raise RuleError(f"{port} is not the port of a data connection: those are {FTP_DATA}, and from {least} on")


def flush_left_behind(pfctl: Pfctl, *processes: int) -> None:
    """Flush the anchors of these processes, and of those that live no more.  Raises `PfctlError`."""
    try:
        listed = pfctl("-a", ROOT, "-s", "Anchors")
    except PfctlError as error:
        if error.stalled:
            raise
        return  # there is no such anchor yet
    for name in listed.split():
        found = re.fullmatch(rf"(?:{ROOT}/)?([1-9][0-9]{{0,9}})\.([1-9][0-9]{{0,18}})", name)
        if found and (int(found[1]) in processes or not _lives(int(found[1]))):
            pfctl("-a", anchor_name(int(found[1]), int(found[2])), "-f", "-")


def missing_lines(pfctl: Pfctl) -> tuple[str, ...]:
    """Lines of pf.conf without which pf does not look into our anchors.  None are missing where pfctl does not tell."""
    wanted = ("anchor",) if sys.platform.startswith("openbsd") else ("nat-anchor", "rdr-anchor", "anchor")
    try:
        # pfctl -s rules; pfctl -s nat, which only translation rules apart from others need
        shown = "".join(pfctl("-s", what) for what in (("rules",) if len(wanted) == 1 else ("nat", "rules")))
    except PfctlError:
        return ()
    called = set(re.findall(rf'^\s*([a-z-]+) "{ROOT}/\*"', shown, re.MULTILINE))
    return tuple(f'{word} "{ROOT}/*"' for word in wanted if word not in called)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


# What is asked


def _lines(channel: socket.socket) -> Iterator[bytes]:
    """Lines, until the other end is closed.  Raises `BadMessage` for one that is too long."""
    buffer = b""
    while True:
        line, newline, rest = buffer.partition(b"\n")
        if newline:
            buffer = rest
            yield line
        elif len(buffer) > LONGEST:
            raise BadMessage("a line is too long")
        else:
            try:
                octets = channel.recv(LONGEST)
            except ConnectionError:
                octets = b""
            if not octets:
                return
            buffer += octets


def serve_rules(channel: socket.socket, anchors: Anchors) -> None:
    """Answer what is asked about anchors until `channel` ends.  Raises `BadMessage`."""
    for line in _lines(channel):
        request = read_request(line)
        if isinstance(request, Bind):
            raise BadMessage("this pipe is about rules")
        answer, doubtful = _of_rules(request, anchors)
        channel.sendall(answer.line())
        if doubtful:
            with contextlib.suppress(PfctlError):
                anchors.flush(request.path)


def _of_rules(request: Load | Count | Flush, anchors: Anchors) -> tuple[Answer, bool]:
    """What has come of it, and whether the rules may stand although they should not."""
    try:
        if isinstance(request, Load):
            anchors.load(request)
        elif isinstance(request, Count):
            return Answer(request.ask, counts=anchors.count(request.path)), False
        else:
            anchors.flush(request.path)
    except RuleError as refusal:
        return Answer(request.ask, str(refusal)), False
    except PfctlError as failure:
        return Answer(request.ask, str(failure)[:MOST_SAID]), failure.stalled and isinstance(request, Load)
    return Answer(request.ask), False


def serve_sockets(channel: socket.socket, least: int) -> None:
    """Make the sockets that are asked for until `channel` ends.  Raises `BadMessage`."""
    for line in _lines(channel):
        request = read_request(line)
        if not isinstance(request, Bind):
            raise BadMessage("this pipe is about sockets")
        try:
            sock = _foreign(request.at, least)
        except RuleError as refusal:
            channel.sendall(Answer(request.ask, str(refusal)).line())
        except OSError as error:
            channel.sendall(Answer(request.ask, error.strerror or str(error), error.errno or 0).line())
        else:
            with sock:
                socket.send_fds(channel, [Answer(request.ask).line()], [sock.fileno()])


def _foreign(at: Endpoint, least: int) -> socket.socket:
    """Raises `RuleError` for what is no place of a data connection, else `OSError`."""
    if at.host.is_unspecified or at.host.is_multicast or at.host.is_loopback or getattr(at.host, "scope_id", None):
        raise RuleError(f"{at.host} is not the address of another host")
    _check_port(at.port, least)
    return bound(at, transparent=True)


# The two processes


def _complain(text: str) -> None:
    print(f"ftpproxy: pf engine: {text}", file=sys.stderr, flush=True)


def _work(pfctl: Pfctl, least: int, rules: socket.socket, sockets: socket.socket) -> int:
    """The life of the worker; its exit code."""
    anchors = Anchors(pfctl, os.getpid(), least)
    try:
        # pfctl -s info: is there a pf, may we use it, and does it run?
        if "Status: Disabled" in pfctl("-s", "info"):
            raise PfctlError("pf is disabled; enable it with: pfctl -e")
        flush_left_behind(pfctl, os.getpid())
    except PfctlError as error:
        rules.sendall(Answer(0, str(error)[:MOST_SAID]).line())
        return 0
    rules.sendall(Answer(0, notes=missing_lines(pfctl)).line())

    def serve_sockets_too() -> None:
        try:
            serve_sockets(sockets, least)
        except (BadMessage, OSError) as error:
            _complain(f"no more sockets: {error}")
            sockets.shutdown(socket.SHUT_RDWR)

    threading.Thread(target=serve_sockets_too, daemon=True).start()
    code = 0
    try:
        serve_rules(rules, anchors)
    except BadMessage as error:
        _complain(f"ends because of a message that it does not understand: {error}")
        code = 1
    except OSError:
        pass  # the proxy is gone, in the middle of an answer
    anchors.flush_all()
    return code


def _watch(worker: int, pfctl: Pfctl, lifeline: int) -> int:
    """Wait for the worker, and tidy up behind it if it was killed; its exit code."""
    _, status = os.waitpid(worker, 0)
    code = os.waitstatus_to_exitcode(status)
    if code:
        select.select([lifeline], [], [], SECONDS)  # its last pfctl may still be loading
        try:
            flush_left_behind(pfctl, worker)
        except PfctlError as error:
            _complain(f"rules are left in {ROOT}/{worker}.*: {error}")
    return code if code >= 0 else 128 - code


def main(arguments: Sequence[str] | None = None) -> int:
    """PFCTL SECONDS PORT RULES SOCKETS: the program, what a call of it may take, the lowest port of data connections
    but 20, and our ends of the pipes."""
    program, limit, least, *descriptors = sys.argv[1:] if arguments is None else arguments
    seconds = float(limit)
    rules, sockets = (socket.socket(fileno=int(descriptor)) for descriptor in descriptors)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the end of the engine is the end of its pipe
    read_end, write_end = os.pipe()
    worker = os.fork()
    if worker == 0:
        os.close(read_end)
        os._exit(_work(Pfctl(program, seconds=seconds, lifeline=write_end), int(least), rules, sockets))
    os.close(write_end)
    rules.close()  # so that its end is the worker's; that of `sockets` is ours
    return _watch(worker, Pfctl(program, seconds=seconds), read_end)


if __name__ == "__main__":
    sys.exit(main())
