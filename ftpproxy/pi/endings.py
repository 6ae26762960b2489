"""Why the interpreter ends a session: the sentences that a client reads in a 421 or an administrator in the log."""

from __future__ import annotations

from ..endpoints import Side
from ..reasons import Code, Reason

__all__ = ["closed", "plain_text"]

QUIT = Reason(Code.QUIT, "the client quit")
LOGIN_TIMEOUT = Reason(Code.CLIENT_LOGIN_TIMEOUT, "Login took too long.")
LINE_TIMEOUT = Reason(Code.CLIENT_LINE_TIMEOUT, "The command line took too long.")
FAILED_LOGINS = Reason(Code.CLIENT_FAILED_LOGINS, "Too many failed logins.")
UNKNOWN_COMMANDS = Reason(Code.CLIENT_NONSENSE, "Too many unknown commands.")
SENSELESS_COMMANDS = Reason(Code.CLIENT_NONSENSE, "Too many commands that make no sense here.")
LONG_LINES = Reason(Code.CLIENT_NONSENSE, "Command lines are too long.")
EMPTY_LINES = Reason(Code.CLIENT_NONSENSE, "Too many empty lines.")
SPEAKS_TLS = Reason(Code.CLIENT_FOREIGN, "the client speaks TLS")
SPEAKS_HTTP = Reason(Code.CLIENT_FOREIGN, "the client speaks HTTP")

GREETING_TIMEOUT = Reason(Code.SERVER_GREETING_TIMEOUT, "The server did not greet in time.")
NOT_CLOSED = Reason(Code.SERVER_DISMISSED, "the server said 421 and did not close")
DISMISSED = Reason(Code.SERVER_DISMISSED, "the server said 421 and closed")
NO_FTP = Reason(Code.SERVER_FOREIGN, "The server does not speak FTP.")
LONG_LINE = Reason(Code.SERVER_FOREIGN, "The server sent a line that is too long.")
LONG_REPLY = Reason(Code.SERVER_FOREIGN, "The server sent a reply that is too long.")


def closed(side: Side, *, quit: bool, dismissed: bool) -> Reason:
    """A side ended its stream, perhaps after the client's QUIT, or the server's 421."""
    if quit:
        return QUIT
    if dismissed and side is Side.SERVER:
        return DISMISSED
    return Reason(Code.CLIENT_CLOSED if side is Side.CLIENT else Code.SERVER_CLOSED, f"the {side} closed")


def plain_text(side: Side) -> Reason:
    """A side went on in clear behind AUTH."""
    code = Code.CLIENT_PLAIN_TEXT if side is Side.CLIENT else Code.SERVER_PLAIN_TEXT
    return Reason(code, f"the {side} sent plain text behind AUTH")
