"""The live view: what the sessions of a running process do, on a terminal of 80 columns and 24 lines or any other.

    Looks     asks the control socket and turns two looks into rates
    picture   a look as lines of a given size; nothing else decides what is where
    live      keys, clock and window size, each of which leads to another picture

A process that restarts is away for a moment: the view stands still and says so, and goes on with the next process that
answers at the same place.  After `AWAY_SECONDS` it ends.

The terminal is given back as it was, whatever ends the view: a key, an interrupt, a signal, an error.  Rates are those
since the look before; in the first look, and for a transfer that began since, those since it began.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any, NoReturn

from attrs import define, evolve, field, frozen
from rich.console import Console, Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from .control.caller import Caller, CallFailed
from .show import duration, fit, speed

__all__ = ["Look", "Looks", "live", "once", "picture", "stream"]

HEADER, FOOTER = 3, 1
"""Lines above the table's own head, and below."""
KEYS = "q quit   s sort   r reverse   k kill   blank look now"
AWAY_SECONDS = 60.0
"""How long the view waits for a process that has ended: a restart takes a second, an upgrade some more."""
STATES = {"login": "login", "calling": "call", "unread": "tls", "ending": "end"}
"""What stands for a command where there is none."""

Session = dict[str, Any]


@frozen
class Look:
    """One moment."""

    status: dict[str, Any]
    sessions: list[Session]
    clock: float
    """Seconds since the epoch."""


@define
class Looks:
    """Looks at the process behind `caller`, with `rate` (octets a second) by comparison."""

    caller: Caller
    away: float | None = None
    """Since when (seconds of a monotonic clock) nobody answers."""
    _before: dict[int, tuple[float, int]] = field(factory=dict)

    def close(self) -> None:
        self.caller.close()

    def take_again(self, last: Look) -> Look:
        """A look at whoever answers there now; the `last` one, as of a process that is away, where nobody does.

        Raises `CallFailed` once that has lasted for `AWAY_SECONDS`.
        """
        try:
            if self.away is not None:
                self.close()
                self.caller = Caller(self.caller.path)
            look = self.take()
        except CallFailed:
            now = time.monotonic()
            self.away = self.away or now
            if now - self.away >= AWAY_SECONDS:
                raise
            return evolve(last, status={**last.status, "state": "away"})
        self.away = None
        return look

    def take(self) -> Look:
        """Raises `CallFailed`."""
        status, sessions = self.caller.ask("status"), self.caller.ask("sessions")
        now, before, self._before = time.monotonic(), self._before, {}
        for session in sessions:
            if (load := session["load"]) is None:
                continue
            number, octets = session["session"], load["octets"]
            self._before[number] = now, octets
            then, so_far = before.get(number, (now, 0))
            if now > then and octets >= so_far > 0:
                session["rate"] = round((octets - so_far) / (now - then))
        return Look(status, sessions, time.time())


_ORDERS: dict[str, Callable[[Session], Any]] = {
    "rate": lambda each: (-each["rate"], each["idle"], each["session"]),
    "age": lambda each: (-each["age"], each["session"]),
    "idle": lambda each: (-each["idle"], each["session"]),
    "id": lambda each: each["session"],
    "user": lambda each: (each["user"], each["session"]),
}


def picture(
    look: Look, sort: str, *, backwards: bool = False, size: tuple[int, int | None] = (80, None), note: str = KEYS
) -> RenderableType:
    """`look` within `size`: columns and lines, None for as many as it takes.  `note` is the last line."""
    width, height = size
    sessions = sorted(look.sessions, key=_ORDERS[sort], reverse=backwards)
    rows = len(sessions) if height is None else max(0, height - HEADER - FOOTER - 1)
    lines = [Text(fit(line, width), no_wrap=True) for line in _head(look, sort, len(sessions), rows)]
    lines[0].stylize("bold")
    padding = [] if height is None else [Text("")] * (rows - len(sessions[:rows]))
    foot = [Text(fit(note, width), style="reverse", no_wrap=True)] if note else []
    return Group(*lines, _table(sessions[:rows], width), *padding, *foot)


def _head(look: Look, sort: str, sessions: int, rows: int) -> Iterator[str]:
    status = look.status
    clock = time.strftime("%H:%M:%S", time.localtime(look.clock))
    yield f"ftpproxy {status['version']}   {status['state']}   up {duration(status['uptime'])}   {clock}"
    flowing = {"down": 0, "up": 0}
    for session in look.sessions:
        load = session["load"]
        if load is not None and load["direction"] is not None:
            flowing[load["direction"]] += session["rate"]
    carrying = ", ".join(f"{count} on {plane}" for plane, count in status["paths"].items()) or "none"
    yield f"down {speed(flowing['down'])}   up {speed(flowing['up'])}   data connections: {carrying}"
    shown = f"{sessions}" if sessions <= rows else f"{sessions}, {rows} of them shown,"
    yield f"sessions: {shown} by {sort}"


def _table(sessions: list[Session], width: int) -> Table:
    # File has what the others leave.
    widths = {"ID": 5, "USER": 10, "CLIENT": 15, "CMD": 5, "FILE": 0, "RATE": 10, "PLANE": 5, "AGE": 7}
    widths["FILE"] = max(4, width - sum(widths.values()) - len(widths) + 1)
    right = {"ID", "RATE", "AGE"}
    columns = [
        Column(head, width=each, no_wrap=True, justify="right" if head in right else "left")
        for head, each in widths.items()
    ]
    table = Table(*columns, box=None, padding=(0, 1, 0, 0), pad_edge=False, collapse_padding=True, header_style="bold")
    for session in sessions:
        cells = zip(_row(session), widths.values(), strict=True)
        table.add_row(*(Text(fit(cell, room)) for cell, room in cells))
    return table


def _row(session: Session) -> tuple[str, ...]:
    load = session["load"]
    return (
        str(session["session"]),
        session["user"] or "-",
        _host(session["client"]),
        session["command"] or STATES.get(session["state"], "idle"),
        session["file"],
        speed(session["rate"]) if load is not None and load["up"] else "",
        load["plane"] if load is not None else "",
        duration(session["age"]),
    )


def _host(endpoint: str) -> str:
    return endpoint.rpartition(":")[0].strip("[]")


def once(caller: Caller, sort: str) -> None:
    """Print it once, as wide as the terminal."""
    console = Console(highlight=False)
    console.print(picture(Looks(caller).take(), sort, size=(console.width, None), note=""), end="")


def stream(caller: Caller, write: Callable[[object], None], *, once: bool, seconds: float) -> None:
    """Write looks as objects."""
    looks = Looks(caller)
    while True:
        look = looks.take()
        write({"at": round(look.clock, 3), "status": look.status, "sessions": look.sessions})
        sys.stdout.flush()
        if once:
            return
        time.sleep(seconds)


# Live


@contextmanager
def _terminal() -> Iterator[int | None]:
    """Keys come one by one and unseen; the descriptor to read them from, None without a keyboard."""
    keyboard = sys.stdin.fileno()
    if not os.isatty(keyboard):
        yield None
        return
    before = termios.tcgetattr(keyboard)
    try:
        tty.setcbreak(keyboard)
        yield keyboard
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)


@contextmanager
def _signals() -> Iterator[int]:
    """A descriptor that is readable when the window has changed.  SIGTERM and SIGHUP end the view in good order."""

    def leave(number: int, _: object) -> NoReturn:
        raise SystemExit(128 + number)

    def nothing(*_: object) -> None:
        """The descriptor is told."""

    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    os.set_blocking(reader, False)
    handlers: dict[signal.Signals, Any] = {
        signal.SIGWINCH: nothing,
        signal.SIGTERM: leave,
        signal.SIGHUP: leave,
        signal.SIGTSTP: signal.SIG_IGN,  # would leave the other screen to the shell
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)


@define
class _View:
    """What the keys have said."""

    looks: Looks
    sort: str
    backwards: bool = False
    victim: str | None = None
    """The number that is being typed behind `k`."""
    said: str = ""
    """What became of the last kill."""
    over: bool = False

    @property
    def note(self) -> str:
        if self.victim is not None:
            return f"kill session: {self.victim}_   (Enter; Esc for none)"
        if self.looks.away is not None:
            left = AWAY_SECONDS - (time.monotonic() - self.looks.away)
            return f"q quit   nobody answers: restarting, or ended; another {duration(left)} are waited"
        return self.said or KEYS

    def key(self, key: str) -> None:
        self.said = ""
        if self.victim is not None:
            self._type(key)
        elif key == "q":
            self.over = True
        elif key == "s":
            names = list(_ORDERS)
            self.sort = names[(names.index(self.sort) + 1) % len(names)]
        elif key == "r":
            self.backwards = not self.backwards
        elif key == "k":
            self.victim = ""

    def _type(self, key: str) -> None:
        assert self.victim is not None
        if key.isdecimal() and len(self.victim) < 9:
            self.victim += key
        elif key in ("\x7f", "\b"):
            self.victim = self.victim[:-1]
        elif key in ("\r", "\n"):
            victim, self.victim = self.victim, None
            if victim:
                self._kill(int(victim))
        elif key == "\x1b":
            self.victim = None

    def _kill(self, number: int) -> None:
        try:
            self.looks.caller.ask("kill", session=number)
        except CallFailed as error:
            self.said = str(error)
        else:
            self.said = f"session {number} has ended"


def live(caller: Caller, sort: str, seconds: float) -> None:
    """Until `q`.  Raises `CallFailed` when the process has ended, and none has taken its place for `AWAY_SECONDS`."""
    console = Console(highlight=False)
    looks = Looks(caller)
    view = _View(looks, sort)
    with closing(looks), _signals() as woken, _terminal() as keyboard, console.screen() as screen:
        look, next_look = looks.take(), time.monotonic() + seconds
        while not view.over:
            size = os.get_terminal_size(sys.stdout.fileno())
            console.size = (size.columns, size.lines)
            screen.update(picture(look, view.sort, backwards=view.backwards, size=size, note=view.note))
            waiting = [woken] if keyboard is None else [woken, keyboard]
            ready, _, _ = select.select(waiting, [], [], max(0.0, next_look - time.monotonic()))
            if woken in ready:
                os.read(woken, 4096)
            keys = (
                os.read(keyboard, 64).decode("ascii", "replace") if keyboard in ready and keyboard is not None else ""
            )
            for key in keys:
                view.key(key)
            if keys == "" and keyboard in ready:
                return  # the terminal is gone
            if " " in keys or time.monotonic() >= next_look or view.said:
                look, next_look = looks.take_again(look), time.monotonic() + seconds
