"""Command lines as a log may show them: without passwords (RFC 2577 section 5, docs/protocol.md, "logging").

A line is looked at as the most lenient server would read it: Telnet commands taken out, noise before and inside the
verb ignored.  In doubt it is masked: a log that says too
little is a nuisance, a log with a password is a breach.  What is masked:

* the arguments of PASS, ACCT, ADAT, MIC, CONF, ENC and XAUT, also where the verb is only part of the first word, and
  those of SITE commands that set passwords;
* the password in `USER name:password@host`, and in the same form behind SITE and OPEN;
* before login, whole lines with a verb that nobody knows: a password typed at the wrong time.

Control characters are not escaped here but where lines are written (`log`).
"""

from __future__ import annotations

import re

from .filter import KNOWN

__all__ = ["LONGEST_LOGGED", "MASK", "loggable", "user_name"]

LONGEST_LOGGED = 300
"""Octets."""
MASK = b"****"

_TELNET = re.compile(rb"\xff(?:\xfa.*?(?:\xff\xf0|\Z)|[\xfb-\xfe](?:.|\Z)|[\xf0-\xf9]|\Z)|(\xff)\xff", re.DOTALL)
"""Telnet commands (RFC 854); the group is an escaped octet 255, which is data."""
_LINE = re.compile(rb"[\0-\x20\x7f-\xff]*([^ \t]*)(.*)", re.DOTALL)
"""What may stand before a verb, the verb with whatever noise is in it, and the rest from the first blank on."""
_NOISE = bytes([*range(0x20), *range(0x7F, 0x100)])
_SECRET = re.compile(rb"PASS|ACCT|ADAT|CONF|MIC|ENC|XAUT")
_SECRET_WORD = re.compile(rb"PSWD|CPWD|PASS|PASW|PWD")
"""Second words of SITE: Serv-U, wu-ftpd, Windows and others."""
_HOST = re.compile(rb"(?:\[[^\]]*\]|[^:]*)(?::[0-9]{0,5})?\s*", re.DOTALL)


def loggable(command_line: bytes, *, logged_in: bool = False) -> bytes:
    """`command_line` (any octets, without line end) without what is secret; at most 300 octets.

    Linear in the length of the line.
    """
    text = _TELNET.sub(rb"\1", command_line)
    shown = _masked(text, logged_in)
    if text != command_line and shown == text and _masked(command_line, True) != command_line:
        shown = MASK  # only by another reading of the Telnet in it is there a secret
    return shown if len(shown) <= LONGEST_LOGGED else shown[: LONGEST_LOGGED - 3] + b"..."


def user_name(argument: bytes) -> bytes:
    """The argument of USER without what is secret; at most 300 octets."""
    return loggable(b"USER " + argument)[5:].strip()


def _masked(text: bytes, logged_in: bool) -> bytes:
    match = _LINE.fullmatch(text)
    assert match is not None  # every part of the pattern may be empty
    verb, rest = match[1].translate(None, _NOISE).upper(), match[2]
    if secret := _SECRET.search(verb):
        return secret[0] + b" " + MASK if rest or secret.end() < len(verb) else verb
    noisy = match.start(1) > 0 or len(verb) < len(match[1])
    if (noisy or not logged_in) and verb and verb not in KNOWN and verb != b"OPEN":
        return MASK
    if verb == b"SITE" and _SECRET_WORD.search(rest.translate(None, _NOISE).upper()):
        return b"SITE " + MASK
    if verb == b"USER" or (verb in (b"SITE", b"OPEN") and b"@" in rest):
        return text[: match.end(1)] + _without_password(rest)
    return text


def _without_password(name: bytes) -> bytes:
    """`user:password@host:port` without the password; a name without one as it is."""
    before, at, host = name.rpartition(b"@")
    if not at or _HOST.fullmatch(host) is None:
        user, colon, _ = name.partition(b":")
        return user + colon + MASK if colon else name
    user, colon, _ = before.partition(b":")
    return (user + colon + MASK if colon else user) + at + host
