"""What an onlooker may know of an interpreter.

It stands beside the interpreter and reads what that keeps anyway, so that a session which nobody looks at pays
nothing: no copy of a name, no note of a command.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from .interpreter import ProtocolInterpreter
from .masking import loggable
from .verbs import Kind

if TYPE_CHECKING:  # only the gateway mode needs to load it
    from .login import LoginInterpreter

__all__ = ["Insight", "insight", "probing", "within_a_line"]


class Insight(NamedTuple):
    """A moment of one control connection.  Octets are as a log may show them: without passwords."""

    user: bytes
    """The last USER that the server has answered; empty before."""
    command: bytes
    """The command line that the server owes a reply to; empty if it owes none."""
    logged_in: bool
    unread: bool
    """After AUTH: the octets pass as they are, and nobody here knows what they mean."""
    within_a_line: bool
    """The client has sent a part of a line."""


def insight(interpreter: ProtocolInterpreter) -> Insight:
    """Look at `interpreter` and change nothing."""
    logged_in = interpreter._logged_in
    turn = interpreter._dialogue.ledger.head
    return Insight(
        user=loggable(b"USER " + interpreter._transfers.user, logged_in=True)[5:],
        command=loggable(turn.command.line, logged_in=logged_in) if turn is not None else b"",
        logged_in=logged_in,
        unread=interpreter._passage is not None,
        within_a_line=len(interpreter._intake) > 0,
    )


def probing(interpreter: ProtocolInterpreter) -> bool:
    """Whether what the server says next answers a NOOP of ours, and is no sign of life of anybody."""
    head = interpreter._dialogue.ledger.head
    return head is not None and head.kind is Kind.PROBE


def within_a_line(login: LoginInterpreter) -> bool:
    """Whether the client of a gateway has sent a part of a line."""
    return len(login._commands) > 0
