"""The desk: what may be asked for and what comes of it, over a running `Server`.

Each command is a method here.  Those that look answer from what is there; those that change something are for root and
the daemon's own user, and are said in the log with who asked.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import attrs
import trio
from attrs import define, frozen

from .. import __version__
from ..endpoints import IPAddress, parse_address
from ..log import event, level_wanted, set_level
from ..reasons import Code, Reason
from ..reception import Reception
from ..server import Server
from ..session import Session
from ..tap import Trace
from .credentials import Peer

__all__ = ["Answer", "Desk", "Facts", "Refusal", "Watch"]

EX_FAILURE, EX_USAGE, EX_NOPERM = 1, 64, 77
LEVELS = ("debug", "info", "notice", "warning", "error", "critical")
GLANCES_A_TURN = 50
"""Sessions that are looked at before everybody else has a turn."""

log = logging.getLogger(__name__)

Answer = dict[str, Any]


class Refusal(Exception):
    """The request is not fulfilled.  `code` is what the command line exits with; `details` go into the answer."""

    def __init__(self, text: str, code: int = EX_USAGE, **details: object) -> None:
        super().__init__(text)
        self.answer: Answer = {"error": text, "code": code, **details}


@define
class Facts:
    """What is known of the process, and changes with a reload."""

    file: str | None
    """The configuration; None where it came from the command line."""
    started: float
    """Seconds since the epoch."""
    reloads: int = 0
    reloaded: float | None = None
    """When it was the last time, in seconds since the epoch."""


@frozen
class Watch:
    """A trace that was asked for: the records of one session, or of all sessions of a client, later ones included."""

    server: Server
    number: int | None
    host: IPAddress | None

    def wants(self, guest: Session | Reception) -> bool:
        return guest.number == self.number or guest.client.host == self.host

    def begin(self, trace: Trace) -> list[int]:
        """Tap them; the numbers of those that are there."""
        tapped = [guest for guest in self.server.guests if self.wants(guest)]
        for guest in tapped:
            guest.tap(trace)
        self.server.newcomers[trace] = lambda guest: guest.tap(trace) if self.wants(guest) else None
        return [guest.number for guest in tapped]

    def lasts(self) -> bool:
        """Whether more may come: one session ends, a client may come again."""
        return self.number is None or any(map(self.wants, self.server.guests))

    def end(self, trace: Trace) -> None:
        self.server.newcomers.pop(trace, None)
        for guest in self.server.guests:
            guest.untap(trace)


@define
class Desk:
    """Answers requests."""

    server: Server
    facts: Facts
    reload: Callable[[], Awaitable[Answer]]
    """Raises `Refusal`."""

    async def answer(self, request: Mapping[str, object], peer: Peer) -> object:
        """The result for a request of somebody who may look; a `Watch` for a trace.  Raises `Refusal`."""
        arguments = dict(request)
        command = arguments.pop("command", None)
        if not isinstance(command, str) or command not in COMMANDS:
            raise Refusal(f"known commands are {', '.join(COMMANDS)}")
        takes, changes, method = COMMANDS[command]
        if unknown := arguments.keys() - set(takes):
            raise Refusal(f"{command} does not take {sorted(unknown)[0]!r}")
        if changes:
            if not peer.almighty:
                raise Refusal(f"only root may say {command}", EX_NOPERM)
            words = " ".join([command, *map(str, arguments.values())])
            event(log, logging.INFO, "control", command=words, uid=peer.uid)
        return await method(self, **arguments)

    async def status(self) -> Answer:
        planes: Counter[str] = Counter()
        for session in self.server.sessions:
            planes.update(session.carriage.planes())
        return {
            "version": __version__,
            "pid": os.getpid(),
            "state": "draining" if self.server.draining else "running",
            "started": round(self.facts.started, 3),
            "uptime": round(time.time() - self.facts.started, 1),
            "file": self.facts.file,
            "reloads": self.facts.reloads,
            "reloaded": self.facts.reloaded,
            "log_level": logging.getLevelName(level_wanted()).lower(),
            "sessions": len(self.server.sessions),
            "paths": dict(sorted(planes.items())),
            "services": self.server.survey(),
        }

    async def sessions(self) -> list[Answer]:
        found = []
        for number, guest in enumerate(self.server.guests, 1):
            glance = guest.glance()
            rate = round(glance.load.rate) if glance.load is not None else 0
            found.append({**attrs.asdict(glance), "rate": rate})
            if not number % GLANCES_A_TURN:
                await trio.lowlevel.checkpoint()
        return found

    async def trace(self, session: object = None, address: object = None) -> Watch:
        if (session is None) == (address is None):
            raise Refusal("trace takes a session or an address")
        if session is not None:
            return Watch(self.server, self._guest(session).number, None)
        try:
            return Watch(self.server, None, parse_address(str(address)))
        except ValueError:
            raise Refusal(f"{address!r} is not an IP address") from None

    async def kill(self, session: object = None) -> Answer:
        guest = self._guest(session)
        self.server.dismiss(guest, Reason(Code.OPERATOR, "Ended by the administrator."))
        return {"session": guest.number}

    async def drain(self) -> Answer:
        self.server.drain()
        return {"sessions": len(self.server.guests)}

    async def reload_(self) -> Answer:
        return await self.reload()

    async def log_level(self, level: object = None) -> Answer:
        if level not in LEVELS:
            raise Refusal(f"log-level takes one of {', '.join(LEVELS)}")
        set_level(logging.getLevelNamesMapping()[str(level).upper()])
        return {"level": level}

    def _guest(self, number: object) -> Session | Reception:
        if type(number) is not int:
            raise Refusal("a session is named by its number")
        for guest in self.server.guests:
            if guest.number == number:
                return guest
        raise Refusal(f"no session {number}", EX_FAILURE)


COMMANDS: dict[str, tuple[tuple[str, ...], bool, Callable[..., Awaitable[object]]]] = {
    "status": ((), False, Desk.status),
    "sessions": ((), False, Desk.sessions),
    "trace": (("session", "address"), False, Desk.trace),
    "kill": (("session",), True, Desk.kill),
    "drain": ((), True, Desk.drain),
    "reload": ((), True, Desk.reload_),
    "log-level": (("level",), True, Desk.log_level),
}
"""By their words: what they take, whether they change something, and how they are done."""
