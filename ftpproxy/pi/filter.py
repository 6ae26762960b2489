"""The command filter: which commands of a client a policy lets through, and when its patience ends.

A `CommandFilter` is made once for a policy (`filter_of`), all its sessions share it.  The rules are looked through in
this order, and the first that concerns a command decides:

1. commands that carry endpoints which nobody translates, and AUTH with what belongs to it where the policy refuses TLS;
2. `commands`, then `deny`: what the administrator wrote;
3. the profiles `anonymous_only` and `read_only`;
4. what is denied by default (docs/protocol.md): old holes (RFC 2577 section 9), mounts, protected commands outside
   a security session (RFC 2228).

They are sorted by verb beforehand, so that `judge` costs one look into a dictionary for a verb without conditions.

The refusals: 502 for a command as a whole, as from a server that lacks it, since clients fall back on that (MLSD to
LIST, EPSV to PASV); 550 for an argument, and for whatever changes a read-only server; 530 for a user name.

`Patience` counts for one session what only an attack repeats (RFC 2577 section 5, docs/protocol.md, "patience").
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from attrs import define, field

from ..freezing import GIVEN
from ..reasons import Code, Reason
from ..wire.command import Command
from . import endings
from .policy import CommandName, Policy
from .verbs import HTTP_VERBS

__all__ = [
    "GROUPS",
    "KNOWN",
    "LONGEST_ARGUMENT",
    "UNTRANSLATED",
    "CommandFilter",
    "Patience",
    "Refusal",
    "filter_of",
    "foreign_command",
    "foreign_octets",
    "refuses_login",
    "verbs_of",
]

LONGEST_ARGUMENT = 1024
"""Octets of an argument that a pattern is matched against; a longer one is refused where patterns concern its verb."""

GROUPS: dict[str, frozenset[bytes]] = {
    name: frozenset(verbs.encode().split())
    for name, verbs in {
        "@login": "USER PASS ACCT REIN QUIT HOST AUTH ADAT PBSZ PROT CCC NOOP HELP SYST FEAT OPTS LANG CLNT CSID XAUT",
        "@navigation": "CWD CDUP PWD XCWD XCUP XPWD LIST NLST MLSD MLST STAT SIZE MDTM DSIZ AVBL",
        "@transfer": "PASV EPSV PORT EPRT TYPE MODE STRU REST RANG ALLO PRET ABOR SBUF DCAU",
        "@read": "RETR HASH XCRC XMD5 XSHA XSHA1 XSHA256 XSHA512 MD5 MMD5 CKSM THMB",
        "@write": "STOR STOU APPE DELE RMD MKD XRMD XMKD RNFR RNTO MFMT MFCT MFF COMB SCKS",
        "@extension": "SITE ALGS",
    }.items()
}
"""Groups of verbs: RFC 775, 959, 2228, 2389, 2428, 2640, 3659, 6384, 7151, drafts, and vendors' own."""

UNTRANSLATED = frozenset(b"LPRT LPSV SPSV ESTA ESTP CPSV SSCN SPAS SPOR ERET ESTO".split())
"""Verbs that carry endpoints in forms that are not rewritten, or need another server's: never let through."""

KNOWN = frozenset[bytes]().union(*GROUPS.values()) | UNTRANSLATED | set(b"SMNT MIC CONF ENC".split())

_DEFAULT_DENIED = ["SITE EXEC", "SITE INDEX", "SITE CPFR", "SITE CPTO", "SMNT", "MIC", "CONF", "ENC"]
_TLS = {b"AUTH", b"ADAT"}
_IN_TLS = {b"PBSZ", b"PROT", b"CCC"}

_ANONYMOUS = re.compile(rb"\A\s*(?:ftp|anonymous)\s*\Z", re.IGNORECASE)
_SETS_TIME = re.compile(rb"\A\s*[0-9]{14}")
"""MDTM with a time before the name sets it on some servers; RFC 3659 section 3 has the name only."""
_NOISE = bytes([*range(0x20), 0x7F, *range(0xF0, 0x100)])
"""What a server with a Telnet layer of its own may drop from a word."""


class Refusal(NamedTuple):
    """A reply of ours in place of the server's."""

    code: int
    text: str
    rule: str = ""
    """What refuses: the key of the configuration and, where there are several rules, whom it names."""
    by: Code = Code.POLICY_COMMAND


_NOT_HERE = Refusal(502, "Command not implemented.")
_NO_TLS = Refusal(502, "TLS is not available here.", "tls")
_NOT_SECURED = Refusal(503, "There is no security session.", "tls")
_FORBIDDEN = Refusal(550, "Not allowed here.")
_READ_ONLY = Refusal(550, "This service is read-only.", "read_only")
_NOT_ANONYMOUS = Refusal(530, "Only anonymous FTP is allowed.", "anonymous_only")
_TOO_LONG = Refusal(550, "The argument is too long.", "commands: argument")


class _Rule(NamedTuple):
    """One rule in the form that is applied: `refusal` for these verbs, if the conditions hold."""

    verbs: frozenset[bytes] | None
    """None: every verb."""
    word: bytes
    """The first word of the argument; empty for any."""
    argument: re.Pattern[bytes] | None
    refusal: Refusal | None


def verbs_of(command: CommandName) -> frozenset[bytes] | None:
    """The verbs that a name in a rule stands for; None for every verb.  Raises `KeyError` for an unknown group."""
    if command == "*":
        return None
    if command.startswith("@"):
        return GROUPS[command]
    return frozenset({command.partition(" ")[0].encode()})


def _rule(command: str, refusal: Refusal | None, argument: re.Pattern[bytes] | None = None) -> _Rule:
    return _Rule(verbs_of(CommandName(command)), command.partition(" ")[2].encode(), argument, refusal)


def _rules(policy: Policy) -> Iterable[_Rule]:
    yield _Rule(UNTRANSLATED, b"", None, _NOT_HERE._replace(rule="untranslated"))
    if policy.tls == "refuse":
        yield _Rule(frozenset(_TLS), b"", None, _NO_TLS)
        yield _Rule(frozenset(_IN_TLS), b"", None, _NOT_SECURED)
    for each in policy.commands:
        refusal = (
            None
            if each.allow
            else (_FORBIDDEN if each.argument else _NOT_HERE)._replace(rule=f"commands: {each.command}")
        )
        yield _rule(each.command, refusal, each.argument)
    for command in policy.deny:
        yield _rule(command, _NOT_HERE._replace(rule=f"deny: {command}"))
    if policy.anonymous_only:
        yield _rule("USER", None, _ANONYMOUS)
        yield _rule("USER", _NOT_ANONYMOUS)
    if policy.read_only:
        yield _rule("@write", _READ_ONLY)
        yield _rule("MDTM", _READ_ONLY, _SETS_TIME)
        yield _rule("SITE HELP", None)
        yield _rule("SITE", _READ_ONLY)
    for name in _DEFAULT_DENIED:
        yield _rule(name, _NOT_HERE._replace(rule="default"))
    if policy.read_only:  # a verb that nobody knows may change things
        yield _Rule(KNOWN, b"", None, None)
        yield _rule("*", _NOT_HERE._replace(rule="read_only"))


_Verdict = Refusal | list[_Rule] | None


def _settled(rules: Iterable[_Rule]) -> _Verdict:
    """What can be said of a verb that `rules` concern: a refusal, None if it is allowed, or conditions to look at."""
    open_rules: list[_Rule] = []
    for rule in rules:
        if not rule.word and rule.argument is None:
            if not open_rules:
                return rule.refusal
            open_rules.append(rule)
            break
        open_rules.append(rule)
    return open_rules or None


class CommandFilter:
    """The rules of a policy, sorted by verb.  Immutable."""

    __slots__ = ("_otherwise", "_refused", "_verdicts")

    def __init__(self, policy: Policy) -> None:
        rules = list(_rules(policy))
        verbs = KNOWN.union(*(rule.verbs for rule in rules if rule.verbs is not None))
        self._verdicts = {
            verb: _settled(each for each in rules if each.verbs is None or verb in each.verbs) for verb in verbs
        }
        self._refused = frozenset(verb for verb, verdict in self._verdicts.items() if isinstance(verdict, Refusal))
        self._otherwise = _settled(rule for rule in rules if rule.verbs is None)

    def judge(self, command: Command) -> Refusal | None:
        """Why `command` is not to reach the server; None if it may.  Never raises."""
        verdict = self._verdicts.get(command.verb, self._otherwise)
        if verdict is None or isinstance(verdict, Refusal):
            return verdict
        return _weigh(verdict, command.argument)

    @property
    def refused(self) -> frozenset[bytes]:
        """Known verbs of which no command is let through: they have no place in FEAT."""
        return self._refused


def _weigh(rules: list[_Rule], argument: bytes) -> Refusal | None:
    word, rest = _first_word(argument)
    for rule in rules:
        if rule.word and rule.word != word:
            continue
        if rule.argument is not None:
            seen = (rest if rule.word else argument).replace(b"\xff\xff", b"\xff")
            if len(seen) > LONGEST_ARGUMENT:
                return _TOO_LONG
            if rule.argument.search(seen) is None:
                continue
        return rule.refusal
    return None


def _first_word(argument: bytes) -> tuple[bytes, bytes]:
    """The first word, as the most lenient server would read it, and what stands behind it."""
    words = argument.lstrip(_NOISE + b" ").split(None, 1)
    word = words[0].translate(None, _NOISE).upper() if words else b""
    return word, words[1] if len(words) > 1 else b""


@lru_cache(maxsize=256)
def filter_of(policy: Policy) -> CommandFilter:
    """The filter of `policy`; the same for every session."""
    return CommandFilter(policy)


def refuses_login(verb: bytes, code: int) -> bool:
    """Whether `code`, in answer to `verb`, refuses a login."""
    return code in (430, 530) and verb in (b"USER", b"PASS", b"ACCT")


@define(eq=False)
class Patience:
    """What one session has done that only an attack does often.  Each method is asked once for each event and
    returns the reason when the session is to end."""

    _policy: Policy = field(metadata=GIVEN)
    _refused_logins: int = field(init=False, default=0)
    _unknown_verbs: int = field(init=False, default=0)

    def login_failed(self) -> Reason | None:
        """USER, PASS or ACCT was refused (see `refuses_login`), by the server or by us."""
        self._refused_logins += 1
        return endings.FAILED_LOGINS if self._refused_logins >= self._policy.login_attempts else None

    def command(self, verb: bytes, *, logged_in: bool) -> Reason | None:
        """A command came."""
        if not logged_in and verb not in KNOWN:
            self._unknown_verbs += 1
            if self._unknown_verbs >= self._policy.unknown_verbs:
                return endings.UNKNOWN_COMMANDS
        return None


_TLS_RECORD = b"\x16\x03"
"""ContentType handshake and the major version (RFC 8446 section 5.1)."""


def foreign_octets(first: bytes, policy: Policy) -> Reason | None:
    """Whether a client whose stream begins with `first` speaks TLS where that is not wanted: then the reason to close
    without a word (docs/protocol.md, "no FTP client").

    To be asked of what is buffered as long as the first line is not complete, since a TLS record need not contain a
    line end, and then of the first line; what it says of some octets holds for more of them.
    """
    return endings.SPEAKS_TLS if policy.tls == "refuse" and first.startswith(_TLS_RECORD) else None


def foreign_command(command: Command) -> Reason | None:
    """Whether a client whose first command is `command` is a browser that somebody aimed at us (NAT slipstreaming,
    ALPACA: docs/protocol.md, "no FTP client"): then the reason to close without a word."""
    return endings.SPEAKS_HTTP if command.verb in HTTP_VERBS else None
