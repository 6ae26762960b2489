"""A strict reader of the part of pf.conf(5) that an anchor of ours may consist of, written from the grammars of both
systems and knowing nothing of what renders it.

What it refuses, the pfctl of that system refuses (or reads as something else), and some more: a rule here says
everything that one data connection needs, once.

    OpenBSD    [pass|match] [in|out] [log] [quick] AF proto tcp from H to H port = N flags S/SA OPTIONS [rdr-to|nat-to]
    FreeBSD    nat AF proto tcp from H to H port = N -> H port [N|N:N]
               rdr AF proto tcp from H to H port = N -> H port N
               pass [in|out] [log] [quick] AF proto tcp from H to H port = N flags S/SA OPTIONS

with OPTIONS `keep state (max 1)`, `tag NAME`, `queue NAME`, `rtable N`, `label "TEXT"`, in any order.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address
from typing import Literal

from attrs import define, field

from ftpproxy.endpoints import IPAddress

__all__ = ["NotPf", "Rule", "parse"]

LONGEST = 63
WORDS = """
    all allow-opts anchor antispoof any bitmask block bridge cbq const counters debug divert-packet divert-reply
    divert-to drop dup-to fail-policy file fingerprints flags floating flush for fragment from global group hostid
    icmp-type icmp6-type if-bound in include inet inet6 interval keep label least-states limit linkshare load log
    loginterface match matches max max-mss max-pkt-rate max-pkt-size max-src-conn max-src-conn-rate max-src-nodes
    max-src-states min-ttl modulate nat nat-anchor nat-to no no-df no-route no-sync on once optimization os out
    overload parent pass pflow port prio priority probability proto qlimit queue quick random random-id rate
    realtime reassemble received-on rdr rdr-anchor rdr-to reply-to return return-icmp return-icmp6 return-rst
    round-robin route route-to rtable rule ruleset-optimization scrub self set set-tos skip sloppy source-hash
    source-track state state-defaults state-policy static-port sticky-address syncookies synproxy table tag tagged
    target timeout to tos ttl upperlimit urpf-failed user weight
"""
KEYWORDS = frozenset(WORDS.split())

_TOKEN = re.compile(r'"([^"]*)"|(->)|([=(),:])|([^\s"=(),]+)')


class NotPf(Exception):
    """The parser of that system would say `syntax error`, or worse."""


class Quoted(str):
    """A string that stood in quotes: never a keyword, never a number."""


@define
class Rule:
    action: str
    family: str
    peer: IPAddress
    to: IPAddress
    port: int
    direction: str = ""
    log: str = ""
    quick: bool = False
    state: bool = False
    options: dict[str, str] = field(factory=dict)
    translation: tuple[str, IPAddress, str] | None = None
    """rdr-to, nat-to or ->, the address, and its port or ports."""


class _Line:
    def __init__(self, text: str) -> None:
        self._tokens: list[str] = []
        at = 0
        for found in _TOKEN.finditer(text):
            if text[at : found.start()].strip(" "):
                raise NotPf(f"{text[at : found.start()]!r}")
            at = found.end()
            quoted = found.group(1)
            self._tokens.append(Quoted(quoted) if quoted is not None else found.group().strip())
        if text[at:]:
            raise NotPf(f"{text[at:]!r}")

    def next(self) -> str:
        if not self._tokens:
            raise NotPf("the rule ends too early")
        return self._tokens.pop(0)

    def take(self, *words: str) -> bool:
        """Whether these words come next, and then they are taken."""
        if self._tokens[: len(words)] == list(words) and not any(isinstance(t, Quoted) for t in self._tokens[:1]):
            del self._tokens[: len(words)]
            return True
        return False

    def need(self, *words: str) -> None:
        if not self.take(*words):
            raise NotPf(f"{' '.join(words)!r} is expected, not {' '.join(self._tokens[:4])!r}")

    def number(self, least: int, most: int) -> int:
        word = self.next()
        if isinstance(word, Quoted) or not re.fullmatch(r"0|[1-9][0-9]*", word) or not least <= int(word) <= most:
            raise NotPf(f"{word!r} is not a number from {least} to {most}")
        return int(word)

    def name(self) -> str:
        word = self.next()
        if not isinstance(word, Quoted):
            if word in KEYWORDS:
                raise NotPf(f"{word!r} is a keyword")
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", word):
                raise NotPf(f"{word!r} is not one word")
        if not 1 <= len(word) <= LONGEST or re.search(r"[^\x21-\x7e]|[\"\\$#{}]", word):
            raise NotPf(f"{word!r} is not a name")
        return str(word)

    def host(self, family: str) -> IPAddress:
        word, kind = self.next(), IPv4Address if family == "inet" else IPv6Address
        try:
            host = kind(word)
        except ValueError:
            raise NotPf(f"{word!r} is no address of {family}: pfctl would look the name up") from None
        if "%" in word or host.is_unspecified or host.is_multicast:
            raise NotPf(f"{word!r} is not a host")
        return host

    def done(self) -> None:
        if self._tokens:
            raise NotPf(f"{' '.join(self._tokens)!r} is too much")


def parse(text: str, dialect: Literal["openbsd", "freebsd"]) -> list[Rule]:
    """The rules of an anchor.  Raises `NotPf` where that system would not load them."""
    if not text.endswith("\n"):
        raise NotPf("the last line has no newline")  # FreeBSD 12.1 refuses that on its standard input
    if not text.isascii() or re.search(r"[^\n\x20-\x7e]|[\\$#{}!<>]", text.replace("->", "")):
        raise NotPf("a character that pf.conf reads as something else")
    rules = [_rule(_Line(line), dialect) for line in text[:-1].split("\n")]
    kinds = [rule.action in ("nat", "rdr") for rule in rules]
    if sorted(kinds, reverse=True) != kinds:
        raise NotPf("a filter rule before a translation rule")
    return rules


def _rule(line: _Line, dialect: str) -> Rule:
    action = line.next()
    if action not in (("pass", "match") if dialect == "openbsd" else ("pass", "nat", "rdr")):
        raise NotPf(f"{action!r} on {dialect}")
    filters = action in ("pass", "match")
    direction = log = ""
    quick = False
    if filters:
        direction = line.next()
        if direction not in ("in", "out"):
            raise NotPf(f"{direction!r} is no direction")
        if line.take("log"):
            log = "all" if line.take("(", "all", ")") else "log"
        quick = line.take("quick")
    family = line.next()
    if family not in ("inet", "inet6"):
        raise NotPf(f"{family!r} is no family")
    line.need("proto", "tcp", "from")
    peer = line.host(family)
    line.need("to")
    to = line.host(family)
    line.need("port", "=")
    rule = Rule(action, family, peer, to, line.number(1, 65535), direction, log, quick)
    if filters:
        line.need("flags", "S/SA")
        _options(line, rule, dialect)
    else:
        line.need("->")
        rule.translation = _translation(line, rule, "->", span=action == "nat")
    line.done()
    if action == "match" and (rule.state or quick):
        raise NotPf("keep state is only for pass rules, and match rules go on")
    if action == "pass" and not rule.state:
        raise NotPf("more than one connection")
    return rule


def _options(line: _Line, rule: Rule, dialect: str) -> None:
    while True:
        if line.take("keep", "state", "(", "max", "1", ")"):
            key, value = "state", "max 1"
            rule.state = True
        elif line.take("tag"):
            key, value = "tag", line.name()
        elif line.take("queue"):
            if dialect == "openbsd":
                raise NotPf("queue is not defined")
            key, value = "queue", line.name()
        elif line.take("rtable"):
            key, value = "rtable", str(line.number(0, 255))
        elif line.take("label"):
            key, value = "label", line.name()
        elif dialect == "openbsd" and (line.take(word := "rdr-to") or line.take(word := "nat-to")):
            key, value = "translation", word
            rule.translation = _translation(line, rule, word, span=word == "nat-to")
            if (word == "rdr-to") != (rule.direction == "in"):
                raise NotPf(f"{word} {rule.direction}")
        else:
            return
        if key in rule.options:
            raise NotPf(f"{key} is there twice")
        rule.options[key] = value


def _translation(line: _Line, rule: Rule, word: str, *, span: bool) -> tuple[str, IPAddress, str]:
    host = line.host(rule.family)
    line.need("port")
    if span and line.take("50001:65535"):
        return word, host, "50001:65535"
    return word, host, str(line.number(1, 65535))
