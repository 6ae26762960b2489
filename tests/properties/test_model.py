"""A client, the interpreter and a server that do everything they may in any order, and what must hold of it.

    Client  --wire-->  proxy  --wire-->  Server        every wire delivers any number of octets at any time
            <--wire--         <--wire--                the plane opens, connects, fails and finishes paths at any time

The client pipelines as it likes and believes what it reads; the server is correct, in each of the ways in which servers
are: it refuses, it answers ABOR with one reply or with two, it leaves 150 out.  Now and then, and in the end, everybody
gets on with what is to be done until nothing moves; then nothing may be owed to anybody.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping
from typing import get_args

from attrs import Factory, define
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ftpproxy.endpoints import Endpoint, Side
from ftpproxy.paths import Await, Call, PathSpec
from ftpproxy.pi.actions import Action, Arm, DropPath, Hangup, Need, OpenPath, SettlePath, StartPath, Timer
from ftpproxy.pi.interpreter import ProtocolInterpreter
from ftpproxy.pi.negotiation import Translate
from ftpproxy.pi.policy import Policy
from ftpproxy.wire import hostport

from ..fuzz.ends import MOST_HELD, held
from ..script import ROUTES

CLIENT, SERVER = Side.CLIENT, Side.SERVER
MOST_OUTSTANDING = 12
MOST_ROUNDS = 500

SET_UPS = ("PASV", "EPSV", "PORT", "EPRT")
TRANSFERS = ("RETR", "STOR", "LIST")
BARRIERS = (*SET_UPS, *TRANSFERS, "REIN")
OUT_OF_BAND = ("ABOR", "STAT", "NOOP", "QUIT")
"""What may overtake a transfer."""
LOCAL = (*SET_UPS, *TRANSFERS, "LPSV")
"""What the proxy may answer by itself."""
CLOCKS = (Timer.ANNOUNCE, Timer.HOLD, Timer.ABORT, Timer.ABORTED)
"""Those that end no session."""
COMMANDS = ("NOOP", "STAT", "FEAT", "TYPE I", "CWD a", "USER a", "PASS b", "LPSV", "ABOR", "REIN", "MODE B", "MODE S")

_FINAL = re.compile(r"([2-6]\d\d) (.*)")
_ANSWERS = re.compile(r"re:([A-Z]+)")


@define(eq=False)
class Path:
    """What the plane has open."""

    spec: PathSpec
    up: set[Side] = Factory(set)
    told: set[Side] = Factory(set)
    """Who knows where to call."""
    delivered: bool = False
    ended: bool = False

    def may_come_up(self, side: Side) -> bool:
        leg, other = self.spec.leg(side), self.spec.leg(side.peer)
        if self.ended or side in self.up:
            return False
        # An awaited peer must have been told; the client is called when the server has called, or at once.
        return side in self.told if isinstance(leg, Await) else isinstance(other, Call) or other_called(self, side)


def other_called(path: Path, side: Side) -> bool:
    return side is SERVER or SERVER in path.up


@define(eq=False)
class Transfer:
    verb: str
    path: Path | None
    preliminary: bool = False


def announced(line: bytes) -> int:
    """The port in a line that names one."""
    verb, _, text = line.strip().partition(b" ")
    if verb in (b"PORT", b"EPRT"):
        return (hostport.parse_port if verb == b"PORT" else hostport.parse_eprt)(text).port
    named = hostport.parse_227(text) if verb == b"227" else hostport.parse_229(text)
    assert named is not None
    return named[1]


class Client:
    """Counts what it is owed."""

    def __init__(self, paths: Mapping[int, Path]) -> None:
        self.outstanding: deque[str] = deque(["GREETING"])
        self._paths = paths
        self._read = b""

    def receive(self, octets: bytes) -> None:
        self._read += octets
        while b"\r\n" in self._read:
            line, _, self._read = self._read.partition(b"\r\n")
            if final := _FINAL.fullmatch(line.decode()):
                self._reply(int(final[1]), final[2])

    def _reply(self, code: int, text: str) -> None:
        assert self.outstanding, f"nobody asked: {code} {text}"
        head = self.outstanding[0]
        if code in (227, 229):
            assert head in ("PASV", "EPSV")
            named = hostport.parse_227(text.encode()) if code == 227 else hostport.parse_229(text.encode())
            assert named is not None
            self._paths[named[1]].told.add(CLIENT)
        answered = _ANSWERS.findall(text)
        if not answered:
            assert head in LOCAL, f"{code} {text} answers {head}"
            answered = [head]
        for verb in answered:
            at = 1 if head in TRANSFERS and verb in OUT_OF_BAND and head == self.outstanding[0] else 0
            assert self.outstanding[at] == verb or self.outstanding[0] in SET_UPS, (verb, self.outstanding)
            del self.outstanding[at]
        if text.endswith("is forgotten"):
            self.outstanding.popleft()


class Server:
    """Answers in order, one thing at a time, and is in the middle of a transfer or not."""

    def __init__(self, paths: Mapping[int, Path]) -> None:
        self.todo: deque[str] = deque()
        self.transfer: Transfer | None = None
        self.gone = False
        self._paths = paths
        self._read = b""
        self._port = 50000

    def receive(self, octets: bytes, path: Path | None) -> None:
        self._read += octets
        while b"\r\n" in self._read:
            line, _, self._read = self._read.partition(b"\r\n")
            self._command(line.removeprefix(b"\xff\xf4\xff\xf2").decode(), path)

    def _command(self, line: str, path: Path | None) -> None:
        verb, _, argument = line.partition(" ")
        if self.transfer is not None:
            assert verb in OUT_OF_BAND, f"{line} while {self.transfer.verb} runs"
        elif verb in BARRIERS or any(each in BARRIERS for each in self.todo):
            assert not self.todo, f"{line} while {self.todo} are unanswered"
        if verb in ("PORT", "EPRT"):
            named = (hostport.parse_port if verb == "PORT" else hostport.parse_eprt)(argument.encode())
            self._paths[named.port].told.add(SERVER)
        if verb in TRANSFERS:
            self.transfer = Transfer(verb, path)
        else:
            self.todo.append(verb)

    def act(self, style: int, *, late: bool = False) -> str:
        """The next thing that it says; nothing if it has nothing to say.  `late`: it waits for data no longer."""
        if self.transfer is not None:
            if self.todo and self.todo[0] != "QUIT" and (style % 2 or late):
                return self._beside(self.todo.popleft(), self.transfer, style)
            return self._go_on(self.transfer, style, late=late)
        return self._answer(self.todo.popleft(), style) if self.todo else ""

    def _beside(self, verb: str, transfer: Transfer, style: int) -> str:
        if verb != "ABOR":
            return f"{213 if verb == 'STAT' else 200} re:{verb}\r\n"
        self.transfer = None
        if transfer.path is None or not transfer.path.up:
            # As pyftpdlib: of the transfer nothing more is heard.
            return (
                "225 re:ABOR, the transfer is forgotten\r\n"
                if style % 3 == 0
                else f"426 re:{transfer.verb}\r\n226 re:ABOR\r\n"
            )
        return (
            f"226 ABOR re:{transfer.verb} re:ABOR\r\n"
            if style % 3 == 0
            else f"426 re:{transfer.verb}\r\n225 re:ABOR\r\n"
        )

    def _go_on(self, transfer: Transfer, style: int, *, late: bool) -> str:
        if not transfer.preliminary and style % 8 < 6:
            transfer.preliminary = True
            return f"150 re:{transfer.verb}\r\n"
        if not transfer.preliminary and style % 8 == 6:
            code = 550
        elif transfer.path is not None and SERVER in transfer.path.up:
            code = 451 if style % 8 == 7 else 226
        elif late or transfer.path is None or transfer.path.ended:
            code = 425
        else:
            return ""
        self.transfer = None
        return f"{code} re:{transfer.verb}\r\n"

    def _answer(self, verb: str, style: int) -> str:
        if verb in SET_UPS and style % 4 == 3:
            return f"{(502, 500, 425)[style % 3]} re:{verb}\r\n"
        if verb == "PASV":
            self._port += 1
            return f"227 re:PASV (1,2,3,4,{self._port >> 8},{self._port & 255})\r\n"
        if verb == "EPSV":
            self._port += 1
            return f"229 re:EPSV (|||{self._port}|)\r\n"
        if verb == "QUIT":
            self.gone = True
        if verb in ("FEAT", "STAT"):
            return f"211-all of it\r\n 227 (1,2,3,4,5,6)\r\n226 not yet\r\n211 re:{verb}\r\n"
        code = {"USER": 331, "PASS": 230, "REIN": 220, "QUIT": 221, "ABOR": 226}.get(verb, 200)
        return f"{code} re:{verb}\r\n"


class Dialogue(RuleBasedStateMachine):
    """The three of them."""

    def __init__(self) -> None:
        super().__init__()
        self.paths: dict[int, Path] = {}
        """By port: what was ever opened."""
        self.client = Client(self.paths)
        self.server = Server(self.paths)
        self.wires: dict[tuple[Side, bool], bytearray] = {
            (side, inward): bytearray() for side in Side for inward in (True, False)
        }
        """By side, towards the proxy or from it."""
        self.path: Path | None = None
        self.started: Path | None = None
        """What the last transfer verb went by."""
        self.armed: set[Timer] = set()
        self.needs: dict[Side, Need] = dict.fromkeys(Side, Need.PEER)
        self.plane = 0
        self.port = 20000
        self.over = self.quitting = False
        self.interpreter: ProtocolInterpreter

    @initialize(
        route=st.sampled_from(sorted(ROUTES)),
        translate=st.sampled_from(get_args(Translate)),
        address=st.sampled_from(["same", "override"]),
    )
    def begin(self, route: str, translate: Translate, address: str) -> None:
        self.route = ROUTES[route]
        self.interpreter = ProtocolInterpreter(
            self.route, Policy(require_login=False, port_address=address), translate=translate
        )
        self.say(SERVER, "220 re:GREETING\r\n")
        self.pump()

    # What the ends do

    def say(self, side: Side, text: str) -> None:
        self.wires[side, True] += text.encode()

    def command(self, line: str) -> None:
        self.client.outstanding.append(line.split(" ")[0])
        self.say(CLIENT, line + "\r\n")

    def free(self) -> bool:
        return not (self.over or self.quitting) and len(self.client.outstanding) < MOST_OUTSTANDING

    @precondition(free)
    @rule(lines=st.lists(st.sampled_from(COMMANDS), min_size=1, max_size=4))
    def client_says(self, lines: list[str]) -> None:
        for line in lines:
            self.command(line)

    @precondition(free)
    @rule(verb=st.sampled_from(SET_UPS), port=st.integers(2000, 5000))
    def client_sets_up(self, verb: str, port: int) -> None:
        here = Endpoint(self.route.client.host, port)
        if verb == "PORT" and here.host.version == 6:
            verb = "EPRT"
        if verb == "PORT":
            self.command(hostport.port(here).decode().rstrip())
        elif verb == "EPRT":
            self.command(hostport.eprt(here).decode().rstrip())
        else:
            self.command(verb)

    @precondition(free)
    @rule(verb=st.sampled_from(TRANSFERS))
    def client_transfers(self, verb: str) -> None:
        self.command(f"{verb} x")

    @precondition(free)
    @rule(verb=st.sampled_from(SET_UPS), steps=st.integers(0, 6))
    def client_is_served(self, verb: str, steps: int) -> None:
        """Up to somewhere in the middle of a transfer."""
        self.everything_settles(0)
        self.client_sets_up(verb, 4000)
        self.things_go_on(0, MOST_ROUNDS)
        self.client_transfers("RETR")
        self.things_go_on(0, steps)

    @precondition(free)
    @rule(verb=st.sampled_from(["PASV", "EPSV"]), abort=st.booleans())
    def client_pipelines(self, verb: str, abort: bool) -> None:
        for line in (verb, "RETR x", *(["ABOR"] if abort else []), "NOOP"):
            self.command(line)

    @precondition(lambda self: self.free() and self.server.transfer is not None)
    @rule(lines=st.lists(st.sampled_from(["ABOR", "STAT", "NOOP"]), min_size=1, max_size=3))
    def client_interrupts(self, lines: list[str]) -> None:
        for line in lines:
            self.command(line)

    @precondition(lambda self: self.free() and len(self.client.outstanding) > 2)
    @rule()
    def client_quits(self) -> None:
        self.quitting = True
        self.command("QUIT")

    @precondition(lambda self: self.server.todo or self.server.transfer)
    @rule(style=st.integers(0, 23))
    def server_acts(self, style: int) -> None:
        self.say(SERVER, self.server.act(style))

    # What the network does

    @precondition(lambda self: any(self.wires.values()))
    @rule(side=st.sampled_from(Side), inward=st.booleans(), octets=st.one_of(st.integers(1, 12), st.just(10_000)))
    def deliver(self, side: Side, inward: bool, octets: int) -> None:
        self.carry(side, inward, octets)

    def carry(self, side: Side, inward: bool, octets: int) -> bool:
        wire = self.wires[side, inward]
        if not wire or (inward and self.needs[side] is not Need.DATA) or (inward and self.over):
            return False
        piece = bytes(wire[:octets])
        del wire[:octets]
        if inward:
            self.interpreter.receive(side, piece)
            self.pump()
        elif side is CLIENT:
            self.client.receive(piece)
        else:
            self.server.receive(piece, self.started)
        return True

    @rule(answer=st.integers(0, 5))
    def plane_will(self, answer: int) -> None:
        self.plane = answer

    @precondition(lambda self: self.path is not None)
    @rule(side=st.sampled_from(Side))
    def leg_comes_up(self, side: Side) -> None:
        self.connect(side)

    def connect(self, side: Side) -> bool:
        if self.path is None or not self.path.may_come_up(side):
            return False
        self.path.up.add(side)
        self.interpreter.path_connected(side)
        self.pump()
        return True

    @precondition(lambda self: self.path is not None and len(self.path.up) < 2)
    @rule()
    def path_fails(self) -> None:
        assert self.path is not None
        self.path.ended = True
        self.path = None
        self.interpreter.path_failed()
        self.pump()

    @precondition(lambda self: self.path is not None and len(self.path.up) == 2 and not self.path.delivered)
    @rule()
    def path_delivers(self) -> None:
        assert self.path is not None
        self.path.delivered = True
        self.interpreter.path_delivered()
        self.pump()

    @precondition(lambda self: self.path is not None and len(self.path.up) == 2)
    @rule()
    def path_finishes(self) -> None:
        assert self.path is not None
        self.path.ended = True
        self.path = None
        self.interpreter.path_finished()
        self.pump()

    @precondition(lambda self: self.armed.intersection(CLOCKS))
    @rule(timer=st.sampled_from(CLOCKS))
    def time_passes(self, timer: Timer) -> None:
        self.run_down(timer)

    def run_down(self, timer: Timer) -> bool:
        if timer not in self.armed or self.over:
            return False
        self.armed.remove(timer)
        self.interpreter.timer(timer)
        self.pump()
        return True

    # What the session does

    def pump(self) -> None:
        moved = True
        while moved and not self.over:
            moved = False
            for side in (SERVER, CLIENT):
                while not isinstance(action := self.interpreter.next_action(side), Need):
                    moved = True
                    self.perform(action)
                self.needs[side] = action
        for side in Side:
            for chunk in self.interpreter.take_output(side):
                if chunk.alone:
                    assert announced(chunk.octets) in self.paths, "a port is named that was not opened"
                self.wires[side, False] += chunk.octets

    def perform(self, action: Action) -> None:
        if isinstance(action, OpenPath):
            assert self.path is None, "two paths"
            self.open(action.spec)
        elif isinstance(action, StartPath):
            self.started = self.path
        elif isinstance(action, (SettlePath, DropPath)):
            if self.path is not None:
                self.path.ended |= isinstance(action, DropPath)
            self.path = None
        elif isinstance(action, Arm):
            self.armed.add(action.timer)
        elif isinstance(action, Hangup):
            self.over = True

    def open(self, spec: PathSpec) -> None:
        if self.plane == 5:
            self.interpreter.path_refused()
            return
        self.port += 1
        self.path = self.paths[self.port] = Path(spec)
        at = {side: leg.at.at(self.port) for side in Side if isinstance(leg := spec.leg(side), Await)}
        self.interpreter.path_opened(at, ready=len(at) == 2, reports_end=self.plane != 4)

    # What must hold

    @invariant()
    def little_is_held(self) -> None:
        if hasattr(self, "interpreter"):
            assert held(self.interpreter) <= MOST_HELD

    @invariant()
    def who_is_owed_nothing_is_read(self) -> None:
        if hasattr(self, "interpreter") and not self.over and not self.interpreter._dialogue.ledger:
            assert self.needs == {CLIENT: Need.DATA, SERVER: Need.DATA}

    @rule(style=st.integers(0, 23), steps=st.integers(2, 12))
    def things_go_on(self, style: int, steps: int) -> None:
        for _ in range(steps):
            if not self.move(style):
                break

    @rule(style=st.integers(0, 23))
    def everything_settles(self, style: int) -> None:
        for _ in range(MOST_ROUNDS):
            if not (self.move(style) or self.wait(style)):
                break
        else:
            raise AssertionError("it never comes to rest")
        if self.quitting:
            assert self.over
        else:
            assert not self.over
            assert not self.interpreter._dialogue.ledger
            assert self.needs == {CLIENT: Need.DATA, SERVER: Need.DATA}
        assert not self.server.todo
        assert not any(self.wires.values())
        assert not self.client.outstanding

    def move(self, style: int) -> bool:
        """Something that can happen now."""
        if any(self.carry(side, inward, 10_000) for side in Side for inward in (False, True)):
            return True
        if said := self.server.act(style):
            self.say(SERVER, said)
            return True
        if self.server.gone and not self.over and self.needs[SERVER] is Need.DATA:
            self.interpreter.receive(SERVER, b"")
            self.pump()
            return True
        return any(self.connect(side) for side in (SERVER, CLIENT))

    def wait(self, style: int) -> bool:
        """What only time can bring."""
        if self.path is not None and len(self.path.up) == 2:
            self.path_finishes()
            return True
        if any(self.run_down(timer) for timer in CLOCKS):
            return True
        if self.path is not None and self.interpreter._dialogue.ledger:
            self.path_fails()
            return True
        if said := self.server.act(style | 1, late=True):
            self.say(SERVER, said)
            return True
        return False

    def teardown(self) -> None:
        if hasattr(self, "interpreter"):
            self.everything_settles(0)


TestDialogue = Dialogue.TestCase
TestDialogue.settings = settings(stateful_step_count=60)
