"""One command line: a verb and an argument (RFC 959 section 5.3).

The verb is matched without regard to ASCII case and to leading blanks, because servers are as lenient: a command
that the server would understand and we would not is a hole.  The argument keeps every octet behind the one
separating blank, since file names may begin and end with blanks (RFC 2640 section 3.1).
"""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["Command", "parse_command"]

_BEFORE_VERB = b" \t" + bytes(range(0xF0, 0x100))
"""Blanks, and what a damaged Telnet Synch leaves behind: no verb begins so."""
_COMMAND = re.compile(rb"([^ \t]*)(?:[ \t](.*))?", re.DOTALL)
_UNCLEAN = re.compile(rb"\r(?!\0)|(?<!\r)\0")


class Command(NamedTuple):
    """A parsed command line."""

    verb: bytes
    """Upper case; empty for an empty line."""
    argument: bytes
    """Octets behind the separating blank; empty if there is none."""
    line: bytes
    """The line as received, without its line end and what stands before the verb."""

    @property
    def unclean(self) -> bool:
        """Whether a CR or NUL stands where it could end the line for the server: CR NUL is an escaped CR in a path
        name (RFC 2640 section 3.1), everything else is either damage or an attempt to smuggle a second command."""
        return _UNCLEAN.search(self.line) is not None


def parse_command(line: bytes) -> Command:
    """Parse a line as `LineBuffer` gives it.  Any octets parse."""
    line = line.lstrip(_BEFORE_VERB)
    match = _COMMAND.fullmatch(line)
    assert match is not None  # every part of the pattern may be empty
    return Command(match[1].upper(), match[2] or b"", line)
