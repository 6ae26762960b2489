"""What is said over the pipes of the pf engine: one JSON object a line.  Pure.

    {"ask": 7, "load": 3, "spec": {"client": {...}, "server": {...}}, "options": {...}}
    {"ask": 8, "count": 3}                    {"ask": 9, "flush": 3}
    {"ask": 1, "bind": "203.0.113.9:20"}      on the other pipe
    {"answer": 7, "error": "", "errno": 0, "counts": [], "notes": []}

with legs {"at": ENDPOINT, "peer": ADDRESS} and {"to": ENDPOINT, "source": ENDPOINT}.  A line must have exactly these
keys with values of exactly these kinds; everything else is a `BadMessage`, after which nobody can be trusted to mean
what he says.  Whether what a message asks for is reasonable is judged elsewhere (`anchor.render`).
"""

from __future__ import annotations

import json
from typing import Any

from attrs import asdict, fields_dict, frozen

from ..endpoints import Endpoint, parse_address
from ..paths import Await, Call, Leg, PathSpec
from .anchor import RuleOptions

__all__ = [
    "LONGEST",
    "Answer",
    "BadMessage",
    "Bind",
    "Count",
    "Flush",
    "Load",
    "Request",
    "read_answer",
    "read_request",
]

LONGEST = 4096
"""Octets of one line with its newline."""


class BadMessage(Exception):
    """The other end of the pipe does not speak our language."""


@frozen
class Load:
    """Load the rules of path number `path`, which is higher than that of any path before."""

    ask: int
    path: int
    spec: PathSpec
    options: RuleOptions

    def line(self) -> bytes:
        spec = {"client": _written(self.spec.client), "server": _written(self.spec.server)}
        return _line({"ask": self.ask, "load": self.path, "spec": spec, "options": asdict(self.options)})


@frozen
class Count:
    """Say what the rules of that path have counted."""

    ask: int
    path: int

    def line(self) -> bytes:
        return _line({"ask": self.ask, "count": self.path})


@frozen
class Flush:
    """Take the rules of that path down."""

    ask: int
    path: int

    def line(self) -> bytes:
        return _line({"ask": self.ask, "flush": self.path})


@frozen
class Bind:
    """Make a TCP socket that is bound to `at`, whether that is an address of this machine or not."""

    ask: int
    at: Endpoint

    def line(self) -> bytes:
        return _line({"ask": self.ask, "bind": str(self.at)})


Request = Load | Count | Flush | Bind


@frozen
class Answer:
    """What has come of a request.  `error` is a sentence; empty if it was done.  Number 0 is said once, at the start,
    with `notes`: the lines that pf.conf lacks.

    `counts`: packets and octets that the caller has sent, then those that it was sent, with all headers.  A socket
    comes along with the answer to `Bind`.
    """

    answer: int
    error: str = ""
    errno: int = 0
    counts: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    def line(self) -> bytes:
        return _line(asdict(self))


def read_request(line: bytes) -> Request:
    """Raises `BadMessage`."""
    said = _object(line)
    ask = _number(said.pop("ask", None))
    try:
        match said:
            case {"load": path, "spec": dict(spec), "options": dict(options), **rest} if not rest:
                if spec.keys() != {"client", "server"} or options.keys() != fields_dict(RuleOptions).keys():
                    raise BadMessage(f"load: {sorted(spec)} and {sorted(options)}")
                read = PathSpec(_leg(spec["client"]), _leg(spec["server"]))
                return Load(ask, _number(path), read, RuleOptions(**options))
            case {"count": path, **rest} if not rest:
                return Count(ask, _number(path))
            case {"flush": path, **rest} if not rest:
                return Flush(ask, _number(path))
            case {"bind": str(at), **rest} if not rest:
                return Bind(ask, Endpoint.parse(at))
    except ValueError as error:
        raise BadMessage(str(error)) from None
    raise BadMessage(f"{sorted(said)} is nothing that can be asked")


def read_answer(line: bytes) -> Answer:
    """Raises `BadMessage`."""
    said = _object(line)
    if said.keys() == fields_dict(Answer).keys():
        match said:
            case {"answer": int(answer), "error": str(error), "errno": int(errno), "counts": list(counts), **rest}:
                notes = rest["notes"]
                numbers = all(type(count) is int and count >= 0 for count in counts) and len(counts) in (0, 4)
                if numbers and isinstance(notes, list) and all(isinstance(note, str) for note in notes):
                    return Answer(answer, error, errno, tuple(counts), tuple(notes))
    raise BadMessage("this is no answer")


def _line(said: dict[str, Any]) -> bytes:
    return json.dumps(said, separators=(",", ":")).encode() + b"\n"


def _object(line: bytes) -> dict[str, Any]:
    try:
        said = json.loads(line)
    except (ValueError, RecursionError):
        raise BadMessage("this is no JSON") from None
    if not isinstance(said, dict):
        raise BadMessage("this is no object")
    return said


def _number(value: object) -> int:
    if type(value) is not int or not 0 < value < 1 << 63:
        raise BadMessage(f"{value!r} is not a number from 1 on")
    return value


def _written(leg: Leg) -> dict[str, str]:
    if isinstance(leg, Await):
        return {"at": str(leg.at), "peer": str(leg.peer)}
    return {"to": str(leg.to), "source": str(leg.source)}


def _leg(said: object) -> Leg:
    match said:
        case {"at": str(at), "peer": str(peer), **rest} if not rest:
            return Await(Endpoint.parse(at), parse_address(peer))
        case {"to": str(to), "source": str(source), **rest} if not rest:
            return Call(Endpoint.parse(to), Endpoint.parse(source))
    raise BadMessage(f"{said!r} is no leg")
