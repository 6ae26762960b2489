"""Interpreters that are written down, as JSON, and made anew from that: nobody can tell."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftpproxy.endpoints import Side
from ftpproxy.freezing import Unthawable, freeze, restore
from ftpproxy.pi.destinations import Target
from ftpproxy.pi.handover import HandOver
from ftpproxy.pi.interpreter import ProtocolInterpreter
from ftpproxy.pi.login import LoginInterpreter
from ftpproxy.pi.wishes import LoginSettings
from ftpproxy.wire.command import parse_command

from .. import script as scripts
from ..properties.test_interpreter import OPEN_TO_ALL, Message, cut, messages
from ..properties.test_interpreter import Stage as PropertyStage
from . import test_dialogues, test_login

CLIENT, SERVER = Side.CLIENT, Side.SERVER


class Successive:
    """Makes an interpreter anew from what JSON can carry of it before each call."""

    def __init__(self, interpreter: Any, anew: Callable[[], Any]) -> None:
        self._interpreter = interpreter
        self._anew = anew

    def __getattr__(self, name: str) -> Any:
        successor = self._anew()
        restore(successor, json.loads(json.dumps(freeze(self._interpreter))))
        self._interpreter = successor
        return getattr(successor, name)


@pytest.mark.parametrize("path", scripts.DIALOGUES, ids=lambda path: path.stem)
def test_dialogue(path: Path) -> None:
    script = scripts.read(path)
    stage = test_dialogues.Stage(script)

    def anew() -> ProtocolInterpreter:
        return ProtocolInterpreter(script.route, script.policy, **script.terms)

    stage.interpreter = Successive(stage.interpreter, anew)  # type: ignore[assignment]
    for line in script.lines:
        try:
            stage.play(line)
        except AssertionError as error:
            raise AssertionError(f"{path.name}:{line.number}: {error}") from error
    assert not stage.actions
    assert not any(stage.said.values()), stage.said


@given(messages, st.lists(st.integers(0, 10_000), max_size=20))
def test_any_dialogue(said: list[Message], places: list[int]) -> None:
    plain, successive = PropertyStage(), PropertyStage()
    successive.interpreter = Successive(  # type: ignore[assignment]
        successive.interpreter, lambda: ProtocolInterpreter(successive.route, OPEN_TO_ALL)
    )
    for side, octets in [(SERVER, b"220 ready\r\n"), *said]:
        for stage in (plain, successive):
            stage.say(side, cut(octets, places))
    assert successive.said == plain.said
    assert successive.specs == plain.specs
    assert (successive.over, successive.needs) == (plain.over, plain.needs)


class LoginStage(test_login.Stage):
    """A login that is made anew before each call, and the interpreter that goes on from it."""

    def __init__(self, settings: LoginSettings) -> None:
        super().__init__(settings)
        self.login = Successive(self.login, lambda: LoginInterpreter(settings))  # type: ignore[assignment]


def test_a_login_in_three_parts() -> None:
    stage = LoginStage(test_login.CLOSED)
    assert stage.says("FEAT").startswith("211-")
    assert stage.says("USER joe@h.example pu") == "331 Password required."
    assert stage.says("PASS secret").startswith("332 ")
    assert stage.says("ACCT mine") == ""
    assert stage.verifies(b"pu", b"mine") == ""
    stage.dials(Target("h.example"))
    assert stage.server("220-hello\r\n331 x\r\n220 rea") == ("", "")
    assert stage.server("dy\r\n") == ("", "USER joe\r\n")
    stage.login.receive(CLIENT, b"SYST\r\nFE")
    assert stage.server("331 go on\r\n") == ("", "")
    over = stage.over()
    assert (test_login.first(over), over.client, over.proxy_user) == (b"PASS secret", b"SYST\r\nFE", b"pu")


def test_failed_logins_are_remembered() -> None:
    stage = LoginStage(test_login.CLOSED)
    for _ in range(4):
        stage.says("USER pu")
        stage.says("PASS wrong")
        assert stage.verifies(b"pu", b"wrong", right=False).startswith("530 ")
    stage.says("USER pu")
    stage.says("PASS wrong")
    assert stage.verifies(b"pu", b"wrong", right=False).startswith("421 ")


def test_what_a_login_has_left() -> None:
    """Only the first USER is the one that the login had said for the client."""
    route = scripts.ROUTES["forward"]
    stage = LoginStage(test_login.OPEN)
    stage.says("USER joe@h.example")
    stage.dials(Target("h.example"))
    stage.server("220 ready\r\n")
    interpreter: Any = Successive(ProtocolInterpreter(route, handover=stage.over()), lambda: ProtocolInterpreter(route))
    heard = dict.fromkeys(Side, b"")

    def pump() -> None:
        for side in (SERVER, CLIENT, SERVER, CLIENT):
            interpreter.next_action(side)
        for side in Side:
            heard[side] += b"".join(chunk.octets for chunk in interpreter.take_output(side))

    pump()
    interpreter.receive(SERVER, b"331 go on\r\n")
    pump()
    interpreter.receive(CLIENT, b"USER joe\r\n")
    pump()
    interpreter.receive(CLIENT, b"USER ann@elsewhere.example\r\n")
    interpreter.receive(SERVER, b"331 again\r\n")
    pump()
    assert heard[SERVER] == b"USER joe\r\nUSER joe\r\n"
    assert heard[CLIENT].splitlines()[2:] == [b"503 Log in to another server on another connection."]


def test_passwords_of_a_login_do_not_stay() -> None:
    handover = HandOver(220, Target("h.example"), first=parse_command(b"PASS secret"))
    interpreter = ProtocolInterpreter(scripts.ROUTES["forward"], handover=handover)
    interpreter.next_action(CLIENT)
    interpreter.next_action(CLIENT)
    interpreter.take_output(SERVER)
    interpreter.receive(SERVER, b"230 in\r\n")
    interpreter.next_action(SERVER)
    assert "secret" not in json.dumps(freeze(interpreter))


state = freeze(ProtocolInterpreter(scripts.ROUTES["forward"]))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container in there, with each of its keys."""
    pairs = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    return [(value, key) for key, _ in pairs] + [place for _, each in pairs for place in places(each)]


@given(st.data())
def test_a_damaged_state_is_refused_or_holds(data: st.DataObject) -> None:
    """One thing in it replaced by another: either it cannot be, or it is an interpreter as any."""
    damaged = json.loads(json.dumps(state))
    container, key = data.draw(st.sampled_from(places(damaged)))
    container[key] = data.draw(json_values)
    interpreter = ProtocolInterpreter(scripts.ROUTES["forward"])
    try:
        restore(interpreter, damaged)
    except Unthawable:
        return
    assert freeze(interpreter).keys() == state.keys()


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        ({"nonsense": 1}, "a field is there that no ProtocolInterpreter has"),
        ({"logged_in": 1}, "logged_in: a number is not a bool"),
        ({"dialogue": []}, "dialogue: a list of 0 is not an object, for a Dialogue"),
        ({"dialogue": {"ledger": {"turns": [{}]}}}, "dialogue: ledger: turns: a field of a Turn is missing"),
        ({"held": ["Popen", {}]}, "held: a string of 5 characters is none of Command, Refusal"),
        ({"intake": {"telnet": {"state": "_class"}}}, "intake: telnet: state: a string of 6 characters is no _State"),
        ({"replies": {"held": "\u0100"}}, "replies: held: a string of 1 characters is not octets"),
        ({"policy": {}}, "a field is there that no ProtocolInterpreter has"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(damage: dict[str, Any], why: str) -> None:
    with pytest.raises(Unthawable) as caught:
        restore(ProtocolInterpreter(scripts.ROUTES["forward"]), damage)
    assert str(caught.value) == why


@pytest.mark.parametrize("shape", ["itself", "in a list", "as a key"])
def test_what_a_state_says_is_not_told(shape: str) -> None:
    """It goes into the log, and a state may hold a password."""
    secret: Any = "\x1b]hunter2"
    said = []
    secret = {"itself": secret, "in a list": [secret, secret], "as a key": {secret: secret}}[shape]
    for number in range(len(places(state))):
        damaged = json.loads(json.dumps(state))
        container, key = places(damaged)[number]
        container[key] = secret
        try:
            restore(ProtocolInterpreter(scripts.ROUTES["forward"]), damaged)
        except Unthawable as error:
            said.append(str(error))
    assert len(said) > 50
    assert not [each for each in said if "hunter2" in each]


def test_an_older_state_lacks_what_was_added_since() -> None:
    interpreter = ProtocolInterpreter(scripts.ROUTES["forward"])
    fresh = freeze(interpreter)
    restore(interpreter, {"logged_in": True})
    assert freeze(interpreter) == {**fresh, "logged_in": True}
