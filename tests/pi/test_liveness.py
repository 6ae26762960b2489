"""NOOP of ours: said only where it disturbs nothing, and heard by nobody but the server."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftpproxy.endpoints import Side
from ftpproxy.paths import Await
from ftpproxy.pi.actions import Action, Arm, Hangup, Need, OpenPath, Timer
from ftpproxy.pi.insight import probing
from ftpproxy.pi.interpreter import ProtocolInterpreter
from ftpproxy.pi.policy import Policy, Timeouts

from ..script import ROUTES

C, S = Side.CLIENT, Side.SERVER


class Stage:
    """An interpreter with `noop`, whose paths are opened; the server has greeted with `greeting`."""

    def __init__(self, greeting: bytes = b"230 in", interval: float | None = 60.0) -> None:
        self.interpreter = ProtocolInterpreter(ROUTES["forward"], Policy(require_login=False), Timeouts(noop=interval))
        self.armed: list[float] = []
        self.actions: list[Action] = []
        self.said = {side: bytearray() for side in Side}
        self.needs = dict.fromkeys(Side, Need.PEER)
        self.pump()
        self.server(greeting)
        self.said[C].clear()

    def pump(self) -> None:
        moved = True
        while moved:
            moved = False
            for side in (S, C):
                while not isinstance(action := self.interpreter.next_action(side), Need):
                    moved = True
                    self.actions.append(action)
                    if isinstance(action, Arm) and action.timer is Timer.NOOP:
                        self.armed.append(action.seconds)
                    if isinstance(action, OpenPath):
                        (leg,) = [
                            (each, action.spec.leg(each)) for each in Side if isinstance(action.spec.leg(each), Await)
                        ]
                        assert isinstance(leg[1], Await)
                        self.interpreter.path_opened({leg[0]: leg[1].at.at(20001)}, ready=True)
                self.needs[side] = action
            for side in Side:
                for chunk in self.interpreter.take_output(side):
                    self.said[side] += chunk.octets

    def client(self, line: bytes) -> None:
        self.interpreter.receive(C, line + b"\r\n")
        self.pump()

    def server(self, line: bytes) -> None:
        self.interpreter.receive(S, line + b"\r\n")
        self.pump()

    def clock(self) -> bytes:
        """The clock runs down; what the server hears because of it."""
        before = len(self.said[S])
        self.interpreter.timer(Timer.NOOP)
        self.pump()
        return bytes(self.said[S][before:])


@pytest.mark.parametrize(
    "reply",
    [b"200 ok", b"200-two\r\n lines\r\n200 ok", b"120 wait\r\n200 ok", b"226 odd", b"227 (1,2,3,4,5,6)", b"530 no"],
)
def test_nobody_hears_of_it(reply: bytes) -> None:
    stage = Stage()
    assert stage.armed == [60.0]
    assert stage.clock() == b"NOOP\r\n"
    assert probing(stage.interpreter)
    stage.server(reply)
    assert not probing(stage.interpreter)
    assert stage.said[C] == b""
    stage.client(b"PWD")
    stage.server(b"257 here")
    assert stage.said[C] == b"257 here\r\n"


def test_the_clock_goes_on() -> None:
    stage = Stage()
    for number in range(2, 5):
        assert stage.clock() == b"NOOP\r\n"
        stage.server(b"200 ok")
        assert stage.armed == [60.0] * number


def test_a_server_that_does_not_know_it_is_not_asked_again() -> None:
    stage = Stage()
    assert stage.clock() == b"NOOP\r\n"
    stage.server(b"502 what")
    assert stage.clock() == b""
    assert len(stage.armed) == 2


def test_never_is_the_default() -> None:
    assert Timeouts().noop is None
    assert Stage(interval=None).armed == []


def test_a_421_is_heard() -> None:
    stage = Stage()
    stage.clock()
    stage.server(b"421-idle\r\n421 bye")
    assert stage.said[C] == b"421-idle\r\n421 bye\r\n"
    assert stage.clock() == b""


def test_a_client_that_speaks_needs_none() -> None:
    """The clock begins anew: at least one interval without a command has passed."""
    stage = Stage()
    stage.client(b"PWD")
    stage.server(b"257 here")
    assert stage.clock() == b""
    assert stage.clock() == b"NOOP\r\n"


@pytest.mark.parametrize(
    "said",
    [
        [b"C PWD"],
        [b"C RNFR a", b"S 350 to?"],
        [b"C REST 5", b"S 350 from there"],
        [b"C USER a", b"S 331 and?"],
        [b"C PASV", b"S 227 (198,51,100,7,160,99)"],
        [b"C PASV", b"S 227 (198,51,100,7,160,99)", b"C RETR x", b"S 150 here"],
        [b"C AUTH TLS"],
        [b"C AUTH TLS", b"S 234 go"],
        [b"C QUIT"],
        [b"S 421 bye"],
    ],
    ids=lambda said: said[-1].decode(),
)
def test_where_it_could_disturb(said: list[bytes]) -> None:
    """Amid a command, a sequence, a transfer or TLS, and at the end."""
    stage = Stage()
    for each in said:
        (stage.client if each.startswith(b"C ") else stage.server)(each[2:])
    assert stage.clock() == b""
    assert stage.clock() == b""


def test_not_before_a_login() -> None:
    stage = Stage(b"220 ready")
    assert stage.clock() == b""
    stage.client(b"USER ftp")
    stage.server(b"230 in")
    stage.clock()
    assert stage.clock() == b"NOOP\r\n"


def test_a_transfer_waits_for_its_answer() -> None:
    """Set-up commands are forwarded when nothing is owed, our own NOOP included; others are not kept waiting."""
    stage = Stage()
    stage.clock()
    stage.client(b"PWD")
    stage.client(b"PASV")
    assert stage.said[S] == b"NOOP\r\nPWD\r\n"
    stage.server(b"200 ok")
    stage.server(b"257 here")
    assert stage.said[S] == b"NOOP\r\nPWD\r\nPASV\r\n"
    assert stage.said[C] == b"257 here\r\n"


REPLIES = {
    b"PWD": [b"257 here"],
    b"NOOP": [b"200 theirs"],
    b"RNFR": [b"350 to"],
    b"RNTO": [b"250 renamed"],
    b"STAT": [b"211-state\r\n more\r\n211 end"],
    b"FEAT": [b"211-Features:\r\n SIZE\r\n211 End"],
    b"PASV": [b"227 Entering Passive Mode (198,51,100,7,160,99)"],
    b"STOR": [b"550 no"],
    b"XYZZY": [b"500 what"],
    b"TYPE": [b"200 type"],
}
OURS = [[b"200 ours"], [b"250-ours\r\n250 ours"], [b"120 ours", b"200 ours"], [b"500 ours"]]
COMMANDS = [
    b"PWD",
    b"NOOP",
    b"RNFR a",
    b"RNTO b",
    b"STAT",
    b"FEAT",
    b"PASV",
    b"STOR x",
    b"XYZZY",
    b"TYPE I",
    b"LPSV",
    b"SITE EXEC x",
]


def conversation(steps: list[bytes], ours: list[bytes]) -> tuple[bytes, bytes, int]:
    """What client and server have heard after `steps`: a command, `clock`, or `server` (which gives its next reply).

    The server answers every line that it gets, in order; NOOPs that are not the client's with `ours`.
    """
    stage = Stage()
    heard, owed, noops = 0, deque[bytes](), 0

    def listen() -> None:
        nonlocal heard, noops
        for line in bytes(stage.said[S][heard:]).split(b"\r\n")[:-1]:
            heard += len(line) + 2
            if line == b"NOOP":
                noops += 1
                owed.extend(ours)
            else:
                owed.extend(REPLIES[line.split()[0].upper()])

    for step in steps + [b"server"] * (4 * len(steps)):
        if step == b"clock":
            stage.clock()
        elif step != b"server":
            stage.client(step)
        elif owed:
            stage.server(owed.popleft())
        listen()
    assert not owed
    return bytes(stage.said[C]), bytes(stage.said[S]).replace(b"NOOP\r\n", b""), noops


STEPS = st.lists(
    st.sampled_from([*(each for each in COMMANDS if each != b"NOOP"), b"server", b"server", b"clock", b"clock"])
)


@given(STEPS, st.sampled_from(OURS))
def test_replies_never_get_out_of_order(steps: list[bytes], ours: list[bytes]) -> None:
    """Whenever the clock runs down: both sides hear what they hear without it, in the same order."""
    client, server, _ = conversation(steps, ours)
    without = conversation([step for step in steps if step != b"clock"], ours)
    assert (client, server) == without[:2]
    assert b"ours" not in client


def test_the_property_has_something_to_say() -> None:
    steps = [b"clock", b"PWD", b"clock", b"server", b"server", b"clock", b"clock", b"PASV", b"server"]
    assert conversation(steps, OURS[0])[2] == 2


def test_it_does_not_end_a_session() -> None:
    stage = Stage()
    stage.clock()
    stage.server(b"200 ok")
    assert not any(isinstance(action, Hangup) for action in stage.actions)
