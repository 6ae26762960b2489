"""Dialogue scripts: one text says what the client and the server say, and what must come of it.

    # prose; "Item 41: ..." names the item of the checklist in docs/protocol.md
    route forward | reverse | forward6       the four addresses (below); forward if absent
    policy require_login=false ...           changes of `Policy`
    terms active_source_port=20              what the interpreter is made with
    C: PASV          the client sends a line          C* A\\r\\nB   octets as they are, escaped
    S> PASV          the server receives a line (\\xff is an octet)
    S: 227 ...       the server sends a line
    C> 227 ...       the client receives a line       S* ...       octets
    C. / S.          that side ends its stream
    open SPEC        a path is asked for
    opened [SIDE ENDPOINT ...] [ready] | refused      what the plane answers
    connected SIDE | failed | delivered | finished    what the path reports
    start DIRECTION LINE | settle | drop              what else is asked of the path
    timer NAME       a timer runs down
    hangup [drain]   the end

Nothing may happen that is not in the script.
"""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple

from attrs import define, evolve

from ftpproxy.endpoints import Endpoint, Side
from ftpproxy.paths import Await, Leg, PathSpec
from ftpproxy.pi.actions import (
    Action,
    Arm,
    Denied,
    DropPath,
    EndTransfer,
    Hangup,
    LoginFailed,
    OpenPath,
    SettlePath,
    StartPath,
)
from ftpproxy.pi.policy import Policy
from ftpproxy.routes import Route

STIMULI = {"opened", "refused", "connected", "failed", "delivered", "finished", "timer"}
"""Words that make something happen; what happened before must have been expected by then."""

DIALOGUES = sorted(Path(__file__).parent.joinpath("dialogues").glob("*.txt"))

ROUTES = {
    "forward": Route(
        client=Endpoint.parse("10.77.1.2:50000"),
        orig_server=Endpoint.parse("198.51.100.7:21"),
        server=Endpoint.parse("198.51.100.7:21"),
        proxy=Endpoint.parse("203.0.113.1:40000"),
    ),
    "forward6": Route(
        client=Endpoint.parse("[fd77:1::2]:50000"),
        orig_server=Endpoint.parse("[2001:db8::7]:21"),
        server=Endpoint.parse("[2001:db8::7]:21"),
        proxy=Endpoint.parse("[2001:db8::1]:40000"),
    ),
    "reverse": Route(
        client=Endpoint.parse("198.51.100.9:50000"),
        orig_server=Endpoint.parse("203.0.113.1:21"),
        server=Endpoint.parse("10.77.2.2:21"),
        proxy=Endpoint.parse("10.77.2.1:40000"),
    ),
    "announced": Route(
        client=Endpoint.parse("198.51.100.9:50000"),
        orig_server=Endpoint.parse("10.0.0.1:21"),
        server=Endpoint.parse("10.77.2.2:21"),
        proxy=Endpoint.parse("10.77.2.1:40000"),
        announce={Side.CLIENT: ip_address("203.0.113.99"), Side.SERVER: ip_address("10.99.0.1")},
    ),
    "reverse64": Route(
        client=Endpoint.parse("[2001:db8::9]:50000"),
        orig_server=Endpoint.parse("[2001:db8::1]:21"),
        server=Endpoint.parse("10.77.2.2:21"),
        proxy=Endpoint.parse("10.77.2.1:40000"),
    ),
}


class Line(NamedTuple):
    number: int
    word: str
    rest: str


@define
class Script:
    route: Route
    policy: Policy
    terms: dict[str, Any]
    lines: list[Line]


def read(path: Path) -> Script:
    script = Script(ROUTES["forward"], Policy(), {}, [])
    for number, text in enumerate(path.read_text().splitlines(), 1):
        word, _, rest = text.partition(" ")
        if not word or word == "#":
            continue
        if word == "route":
            script.route = ROUTES[rest]
        elif word in ("policy", "terms"):
            for setting in rest.split():
                key, _, value = setting.partition("=")
                parsed: Any = {"true": True, "false": False}.get(value, int(value) if value.isdigit() else value)
                if word == "policy":
                    script.policy = evolve(script.policy, **{key: parsed})
                else:
                    script.terms[key] = parsed
        else:
            script.lines.append(Line(number, word, rest))
    return script


def octets(line: Line) -> bytes:
    """What `C:`, `C*`, `S:` and `S*` send."""
    if line.word.endswith("*"):
        return line.rest.encode().decode("unicode_escape").encode("latin-1")
    return line.rest.encode() + b"\r\n"


def text(line: Line) -> str:
    """What `C>` and `S>` expect, one character an octet."""
    return line.rest.encode().decode("unicode_escape") if "\\x" in line.rest else line.rest


def _leg(leg: Leg) -> str:
    return f"await {leg.at} by {leg.peer}" if isinstance(leg, Await) else f"call {leg.to} from {leg.source}"


def spec(spec: PathSpec) -> str:
    return f"{_leg(spec.client)} / {_leg(spec.server)}"


def words(action: Action) -> str | None:
    """An action as the script writes it; None for timers, which need not be written down."""
    if isinstance(action, OpenPath):
        return "open " + spec(action.spec)
    if isinstance(action, StartPath):
        return f"start {action.direction} {action.what.decode()}"
    if isinstance(action, SettlePath):
        return "settle"
    if isinstance(action, DropPath):
        return "drop"
    if isinstance(action, Hangup):
        return "hangup drain" if action.drain else "hangup"
    # What the log says is tested with the log.
    assert isinstance(action, (Arm, EndTransfer, Denied, LoginFailed))
    return None


def opened(line: Line) -> tuple[dict[Side, Endpoint], bool]:
    words = line.rest.split()
    ready = words[-1:] == ["ready"]
    pairs = words[:-1] if ready else words
    return {Side(side): Endpoint.parse(at) for side, at in zip(pairs[::2], pairs[1::2], strict=True)}, ready
