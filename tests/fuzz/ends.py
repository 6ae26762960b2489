"""Two hostile ends, a plane that does anything it may, and the interpreter between them.

An input is a list of records, separated by RS (octet 30), of which the first says how the interpreter is made.  Of
every other record the first octet says what happens, by its letter or else by its value:

    C octets, S octets     the client, the server says something
    K n                    from now on what is said arrives in pieces of n octets
    L side n octets        the octets are said many times over: lines and replies that do not end
    E side                 that side ends its stream
    P how                  what the plane answers from now on: ready, undecided, refused, no report of the end
    U, V                   the client's, the server's leg of the open path is up
    F, D, X                the path fails, has delivered everything, finishes
    T n                    one of the armed timers runs down

What a session would never do is not done either: octets are handed over only when they are asked for, in reads of
`MOST_READ`, a path is reported connected, failed or finished only in an order in which a plane can report it, and only
armed timers run down.  Everything else is allowed.

After each step: nothing was raised, at most one path is open, output is whole lines, and no more than `MOST_HELD`
octets are held, whatever they are held in.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from typing import get_args

from ftpproxy.channels import MOST_READ
from ftpproxy.endpoints import Side
from ftpproxy.paths import Await, PathSpec
from ftpproxy.pi.actions import Action, Arm, Chunk, DropPath, Hangup, Need, OpenPath, SettlePath, Timer
from ftpproxy.pi.filter import CommandFilter
from ftpproxy.pi.interpreter import ProtocolInterpreter
from ftpproxy.pi.negotiation import Translate
from ftpproxy.pi.policy import Policy, Timeouts
from ftpproxy.routes import Route
from ftpproxy.wire.telnet import SYNCH

from ..script import ROUTES

__all__ = ["MOST_HELD", "POLICIES", "RECORD", "ROUTE_NAMES", "Ends", "held"]

CLIENT, SERVER = Side.CLIENT, Side.SERVER
RECORD = b"\x1e"
MOST_HELD = 512 * 1024
MOST_ACTIONS = 1000
"""In one go without anything new: more is a loop without an end."""
MEASURE_EVERY = 1024
"""Octets taken, after which what is held is looked at again."""
LONGEST_SAID = 1024 * 1024
MOST_LINES = 2048

ROUTE_NAMES = sorted(ROUTES)
TRANSLATIONS: tuple[Translate, ...] = get_args(Translate)
POLICIES = [
    Policy(require_login=False),
    Policy(),
    Policy(require_login=False, greeting="lenient", port_address="override"),
    Policy(require_login=False, tls="refuse", read_only=True),
]
TIMERS = list(Timer)

_COMMAND = re.compile(rb"(?:[^\r\n\0]|\r\0)*\r\n")
_REPLY = re.compile(rb"(?:[^\r\n\0]*\r\n)+")
_TELNET = re.compile(rb"(?:\xff[\xfc\xfe].)+", re.DOTALL)
_OWN = ("ftpproxy.pi.", "ftpproxy.wire.")
_SHARED = (Policy, Timeouts, Route, CommandFilter)


def held(root: object) -> int:
    """Octets that are reachable from `root` through what the interpreter is made of."""
    total, stack = 0, [root]
    seen: set[int] = set()
    while stack:
        each = stack.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, (bytes, bytearray)):
            total += len(each)
        elif isinstance(each, (list, tuple, deque, set)):
            stack.extend(each)
        elif isinstance(each, dict):
            stack.extend(each.values())
        elif type(each).__module__.startswith(_OWN) and not isinstance(each, _SHARED):
            stack.extend(getattr(each, "__dict__", {}).values())
            for kind in type(each).__mro__:
                stack.extend(getattr(each, name, None) for name in getattr(kind, "__slots__", ()))
    return total


class _Path:
    """The path that the session has open."""

    def __init__(self, spec: PathSpec, reports_end: bool) -> None:
        self.spec = spec
        self.reports_end = reports_end
        self.up: set[Side] = set()
        self.delivered = False


class Ends:
    """One input is one life of it: `feed`, once."""

    def __init__(self) -> None:
        self.most_held = 0
        self._interpreter: ProtocolInterpreter
        self._waiting: dict[Side, deque[bytes]] = {side: deque() for side in Side}
        self._ended = dict.fromkeys(Side, False)
        self._piece = MOST_READ
        self._answer = 0
        self._path: _Path | None = None
        self._armed: set[Timer] = set()
        self._port = 20000
        self._fed = 0
        self._over = False

    def feed(self, data: bytes) -> None:
        """Do all that `data` says.  Raises what the interpreter raises, and `AssertionError`."""
        how, *records = data.split(RECORD)
        choice = [*how[:3], 0, 0, 0]
        self._interpreter = ProtocolInterpreter(
            ROUTES[ROUTE_NAMES[choice[0] % len(ROUTE_NAMES)]],
            POLICIES[choice[1] % len(POLICIES)],
            translate=TRANSLATIONS[choice[2] % len(TRANSLATIONS)],
        )
        self._pump()
        for record in records:
            if self._over:
                break
            if record:
                STEPS.get(record[0], LISTED[record[0] % len(LISTED)])(self, record[1:])
                self._pump()

    # What happens

    def _client_says(self, octets: bytes) -> None:
        self._say(CLIENT, octets)

    def _server_says(self, octets: bytes) -> None:
        self._say(SERVER, octets)

    def _say(self, side: Side, octets: bytes) -> None:
        if not self._ended[side]:
            size = self._piece
            self._waiting[side].extend(octets[start : start + size] for start in range(0, len(octets), size))

    def _cut(self, octets: bytes) -> None:
        self._piece = octets[0] or MOST_READ if octets else MOST_READ

    def _say_much(self, octets: bytes) -> None:
        if len(octets) > 3:
            side = CLIENT if octets[0] % 2 else SERVER
            size, self._piece = self._piece, MOST_READ
            many = min(int.from_bytes(octets[1:3], "big"), LONGEST_SAID // len(octets[3:]))
            self._say(side, octets[3:] * (min(many, MOST_LINES) if b"\n" in octets else many))
            self._piece = size

    def _end(self, octets: bytes) -> None:
        side = CLIENT if octets[:1] == b"C" else SERVER
        if not self._ended[side]:
            self._ended[side] = True
            self._waiting[side].append(b"")

    def _decide(self, octets: bytes) -> None:
        self._answer = octets[0] % 4 if octets else 0

    def _client_up(self, _: bytes) -> None:
        self._up(CLIENT)

    def _server_up(self, _: bytes) -> None:
        self._up(SERVER)

    def _up(self, side: Side) -> None:
        if self._path is not None and side not in self._path.up:
            self._path.up.add(side)
            self._interpreter.path_connected(side)

    def _fail(self, _: bytes) -> None:
        if self._path is not None and len(self._path.up) < 2:
            self._path = None
            self._interpreter.path_failed()

    def _deliver(self, _: bytes) -> None:
        if self._path is not None and len(self._path.up) == 2 and not self._path.delivered:
            self._path.delivered = True
            if self._path.reports_end:
                self._interpreter.path_delivered()

    def _finish(self, _: bytes) -> None:
        if self._path is not None and len(self._path.up) == 2:
            reports, self._path = self._path.reports_end, None
            if reports:
                self._interpreter.path_finished()

    def _time(self, octets: bytes) -> None:
        if octets and (timer := TIMERS[octets[0] % len(TIMERS)]) in self._armed:
            self._armed.remove(timer)
            self._interpreter.timer(timer)

    # What comes of it

    def _pump(self) -> None:
        """As a session does it."""
        moved = True
        while moved and not self._over:
            moved = False
            for side in (SERVER, CLIENT):
                actions = 0
                while not isinstance(action := self._interpreter.next_action(side), Need):
                    actions += 1
                    assert actions < MOST_ACTIONS, "it never comes to rest"
                    moved = True
                    self._perform(action)
                if action is Need.DATA and self._waiting[side]:
                    octets = self._waiting[side].popleft()
                    self._fed += len(octets)
                    self._interpreter.receive(side, octets)
                    moved = True
            if self._fed > MEASURE_EVERY:
                self._measure()
            for side in Side:
                self._look(side, self._interpreter.take_output(side))

    def _perform(self, action: Action) -> None:
        if isinstance(action, OpenPath):
            assert self._path is None, "one path at a time"
            self._open(action.spec)
        elif isinstance(action, (SettlePath, DropPath)):
            self._path = None
        elif isinstance(action, Arm):
            self._armed.add(action.timer)
        elif isinstance(action, Hangup):
            self._over = True

    def _open(self, spec: PathSpec) -> None:
        if self._answer == 2:
            self._interpreter.path_refused()
            return
        self._port += 1
        announced = {side: leg.at.at(self._port) for side in Side if isinstance(leg := spec.leg(side), Await)}
        self._path = _Path(spec, reports_end=self._answer != 3)
        # Nothing is undecided where nobody is called.
        ready = self._answer != 1 or len(announced) == 2
        self._interpreter.path_opened(announced, ready=ready, reports_end=self._path.reports_end)

    def _look(self, side: Side, chunks: list[Chunk]) -> None:
        if self._interpreter._passage is not None:
            return
        whole = _REPLY if side is CLIENT else _COMMAND
        for chunk in chunks:
            assert whole.fullmatch(chunk.octets) or chunk.octets == SYNCH or _TELNET.fullmatch(chunk.octets), (
                f"to the {side}: {chunk.octets[:200]!r}"
            )

    def _measure(self) -> None:
        self._fed = 0
        self.most_held = max(self.most_held, held(self._interpreter))
        assert self.most_held <= MOST_HELD, f"{self.most_held} octets are held"


LISTED: list[Callable[[Ends, bytes], None]] = [
    Ends._client_says,
    Ends._server_says,
    Ends._cut,
    Ends._say_much,
    Ends._end,
    Ends._decide,
    Ends._client_up,
    Ends._server_up,
    Ends._fail,
    Ends._finish,
    Ends._time,
    Ends._deliver,
]
STEPS = dict(zip(b"CSKLEPUVFXTD", LISTED, strict=True))
