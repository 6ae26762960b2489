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
_SEPARATOR = re.compile(rb"[ \t]")
_PLAIN = re.compile(rb"[A-Z0-9@._-]+")
_ALIASES = {b"P@SW": b"PASV"}
"""Spellings that servers take for another verb: vsftpd and pure-ftpd know this one for the sake of old routers."""
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
    def plain(self) -> bool:
        """Whether the verb is made of what verbs are made of.  A control character or a letter of another alphabet in
        it may be dropped or folded by a server, which then understands a verb that we did not see."""
        return _PLAIN.fullmatch(self.verb) is not None

    @property
    def unclean(self) -> bool:
        """Whether a CR or NUL stands where it could end the line for the server: CR NUL is an escaped CR in a path
        name (RFC 2640 section 3.1), everything else is either damage or an attempt to smuggle a second command."""
        line = self.line
        return (b"\r" in line or b"\0" in line) and _UNCLEAN.search(line) is not None


_BARE = {verb: Command(verb, b"", verb) for verb in b"ABOR CDUP EPSV FEAT LIST NLST NOOP PASV PWD QUIT SYST".split()}
"""Command lines that mostly have no argument, as they are mostly written."""


def parse_command(line: bytes) -> Command:
    """Parse a line as `LineBuffer` gives it.  Any octets parse."""
    if (bare := _BARE.get(line)) is not None:
        return bare
    line = line.lstrip(_BEFORE_VERB)
    separator = _SEPARATOR.search(line)
    if separator is None:
        verb, argument = line.upper(), b""
    else:
        at = separator.start()
        verb, argument = line[:at].upper(), line[at + 1 :]
    return Command(_ALIASES.get(verb, verb), argument, line)
