"""The intake: what a client sends, up to whole commands, and the limits of what it may send.

    octets -> Telnet -> lines -> commands        take(): a command, an answer of ours, the end, or nothing yet

Limits end a session: a second line that is too long, empty lines, verbs that nobody knows before login, a first line in
another protocol, and a line that does not end.  That last one needs a clock: `clock_due` says when one is to be
started, and `overdue`, when it has run down, whether the line that it was started for has still not ended.
"""

from __future__ import annotations

from typing import NamedTuple

from attrs import define, field

from ..freezing import GIVEN
from ..reasons import Reason
from ..wire.command import Command, parse_command
from ..wire.lines import OVERLONG, LineBuffer
from ..wire.telnet import TelnetFilter
from . import endings
from .filter import Patience, Refusal, foreign_command, foreign_octets
from .policy import Policy

__all__ = ["LONGEST_COMMAND", "Ending", "Intake"]

LONGEST_COMMAND = 8192
"""Octets; PATH_MAX is 4096 and Telnet escaping may double it."""
MOST_EMPTY_LINES = 10


class Ending(NamedTuple):
    """The session is to end."""

    reason: Reason
    silent: bool = False
    """Without a reply; else with a 421."""


@define(eq=False)
class Intake:
    """Feed octets, take commands."""

    _policy: Policy = field(metadata=GIVEN)
    _commands_seen: int = 0
    """One to begin with where the client has said something that was FTP already."""
    patience: Patience = field(init=False)
    _telnet: TelnetFilter = field(init=False, factory=TelnetFilter)
    _lines: LineBuffer = field(init=False)
    _empty_lines: int = field(init=False, default=0)
    _overlong_lines: int = field(init=False, default=0)
    _taken: int = field(init=False, default=0)
    """Lines."""
    _timed: int = field(init=False, default=-1)
    """`_taken` when the clock was started."""

    @patience.default
    def _all_patience(self) -> Patience:
        return Patience(self._policy)

    @_lines.default
    def _no_lines(self) -> LineBuffer:
        return LineBuffer(LONGEST_COMMAND)

    def feed(self, octets: bytes, *, telnet: bool = True) -> bytes:
        """Take octets, as they are if not `telnet`; returns the Telnet answer that the client is due."""
        answer = b""
        if telnet:
            octets, answer = self._telnet.feed(octets)
        self._lines.feed(octets)
        return answer

    def take(self, *, logged_in: bool) -> Command | Refusal | Ending | None:
        """The next command that is not empty; what is to be answered or ended in its place; None for "not yet"."""
        while True:
            if not self._commands_seen and (reason := foreign_octets(self._lines.head(2), self._policy)):
                return Ending(reason, silent=True)
            line = self._lines.next_line()
            if line is None:
                return None
            self._taken += 1
            if line is OVERLONG:
                self._overlong_lines += 1
                if self._overlong_lines > 1:
                    return Ending(endings.LONG_LINES)
                return Refusal(500, "The command line is too long.")
            command = parse_command(line)
            if command.verb:
                return self._ending(command, logged_in) or command
            self._empty_lines += 1
            if self._empty_lines > MOST_EMPTY_LINES:
                return Ending(endings.EMPTY_LINES)

    def _ending(self, command: Command, logged_in: bool) -> Ending | None:
        self._empty_lines = 0
        self._commands_seen += 1
        if self._commands_seen == 1 and (reason := foreign_command(command)):
            return Ending(reason, silent=True)
        reason = self.patience.command(command.verb, logged_in=logged_in)
        return Ending(reason) if reason else None

    def clock_due(self) -> bool:
        """Whether a line has begun and no clock was started for it: one is to be started now."""
        if not self._lines.begun or self._timed == self._taken:
            return False
        self._timed = self._taken
        return True

    @property
    def overdue(self) -> bool:
        """Whether the line that the clock was started for has not ended."""
        return self._lines.begun and self._timed == self._taken

    def take_rest(self) -> bytes:
        """Everything that is buffered, uncut."""
        return self._lines.take_rest()

    def __len__(self) -> int:
        return len(self._lines)
