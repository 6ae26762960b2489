"""The packet filter of this machine, read and followed: what would become of the first packet of a connection?

`nft -j list ruleset` (libnftables-json(5)) has every table, also those of iptables-nft, but not the rules of the old
iptables.  A packet is walked through the rules with three answers, yes, no and perhaps (None): what we do not know of
a packet, and expressions that we do not understand, are "perhaps".  So what is said to be shut is shut, and what is
said to be open may be.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from attrs import field, frozen

from .packet import NEVER, Answer, Packet, known_of, only, same

__all__ = ["Rule", "Ruleset"]

STOPS = {"accept", "drop", "reject", "queue"}
TRANSLATES = {"dnat", "redirect", "tproxy"}
SILENT = {"counter", "log", "mangle", "notrack", "comment", "set", "map", "meter"} | {
    f"ct {kind}" for kind in ("helper", "timeout", "expectation")
}
"""Statements behind which the rule goes on."""
KNOWN = {"match", "vmap", "jump", "goto", "return", "continue"} | SILENT | STOPS | TRANSLATES


@frozen
class Rule:
    """One rule as it stands in the kernel."""

    table: str
    """Family and name."""
    chain: str
    handle: int
    statements: Sequence[dict[str, Any]] = field(repr=False, eq=False)

    @property
    def place(self) -> str:
        return f"{self.table}, chain {self.chain}, handle {self.handle}"

    @property
    def removal(self) -> str:
        return f"nft delete rule {self.table} {self.chain} handle {self.handle}"


class Ruleset:
    """All tables of a network namespace, from the JSON of nft."""

    def __init__(self, *texts: str) -> None:
        """Raises `ValueError` for what is no JSON."""
        self.bases: list[dict[str, Any]] = []
        """Chains with a hook, in the order in which packets meet them."""
        self._rules: dict[tuple[str, str], list[Rule]] = {}
        self._sets: dict[tuple[str, str], list[Any]] = {}
        self._ftp: set[tuple[str, str]] = set()
        for entry in [entry for text in texts for entry in json.loads(text)["nftables"]]:
            for kind, each in entry.items():
                self._take(kind, each)
        self.bases.sort(key=lambda chain: int(chain["prio"]))

    def _take(self, kind: str, each: dict[str, Any]) -> None:
        if kind == "metainfo" or kind == "table":
            return
        table = f"{each['family']} {each['table']}" if "table" in each else ""
        if kind == "chain" and "hook" in each:
            self.bases.append(each)
        elif kind == "rule":
            rules = self._rules.setdefault((table, each["chain"]), [])
            rules.append(Rule(table, each["chain"], each["handle"], each.get("expr", [])))
        elif kind in ("set", "map"):
            self._sets[table, each["name"]] = each.get("elem", [])
        elif kind == "ct helper" and each["type"] == "ftp":
            self._ftp.add((table, each["name"]))

    @property
    def rules(self) -> Iterator[Rule]:
        """Every rule, wherever it stands."""
        for rules in self._rules.values():
            yield from rules

    def has_table(self, name: str) -> bool:
        """Whether there is a chain or a map in the table `inet NAME`."""
        table = f"inet {name}"
        chains = (f"{each['family']} {each['table']}" for each in self.bases)
        return table in chains or any(key[0] == table for key in (*self._rules, *self._sets))

    def priority(self, rule: Rule) -> int:
        """Of the rule's chain; that of the last hook for a chain without one, which may be met anywhere."""
        found = [
            base
            for base in self.bases
            if (f"{base['family']} {base['table']}", base["name"]) == (rule.table, rule.chain)
        ]
        return int(found[0]["prio"]) if found else 2**31 - 1

    # -- questions ------------------------------------------------------------------------------------------------

    def closed(self, hook: str, packet: Packet) -> str:
        """The chain of that hook that is certain not to let `packet` through; empty where none is."""
        for base in self._bases(hook, packet, "filter"):
            verdict: str | None = None
            for _, kind, _, sure in self._reached(base, packet):
                if kind == "accept" or kind == "queue":
                    verdict = "accept"  # at least perhaps
                    break
                if sure and kind in STOPS:
                    verdict = kind
                    break
            if verdict is None:
                verdict = base.get("policy", "accept")
            if verdict != "accept":
                return f"{base['family']} {base['table']}, chain {base['name']}"
        return ""

    def translated(self, hook: str, packet: Packet, *, before: str = "") -> Iterator[tuple[Rule, bool]]:
        """Rules that may send `packet` elsewhere before the table `inet BEFORE` sees it, and whether they surely do."""
        for base in self._bases(hook, packet):
            if base["family"] == "inet" and base["table"] == before:
                return
            certain = True
            for rule, kind, _, sure in self._reached(base, packet):
                if kind in TRANSLATES:
                    yield rule, sure and certain
                certain = certain and kind not in STOPS  # where it perhaps ended before

    def helped(self, packet: Packet) -> Iterator[Rule]:
        """Rules that may give the kernel's FTP helper to the connection of `packet`."""
        for hook in ("prerouting", "output", "input", "forward", "postrouting"):
            for base in self._bases(hook, packet):
                for rule, kind, value, _ in self._reached(base, packet):
                    if kind == "ct helper" and (rule.table, value) in self._ftp:
                        yield rule

    def _bases(self, hook: str, packet: Packet, kind: str = "") -> Iterator[dict[str, Any]]:
        families = {"inet", "ip" if packet.version == 4 else "ip6"}
        for base in self.bases:
            if base["hook"] == hook and base["family"] in families and kind in ("", base["type"]):
                yield base

    # -- the walk -------------------------------------------------------------------------------------------------

    def _reached(self, base: dict[str, Any], packet: Packet) -> Iterator[tuple[Rule, str, Any, bool]]:
        """Statements that the packet may meet: rule, kind, value, and whether it is certain to."""
        for step in self._walk(f"{base['family']} {base['table']}", base["name"], packet, True):
            yield step
            _, kind, _, sure = step
            if sure and (kind in STOPS or kind in ("dnat", "redirect")):
                return

    def _walk(self, table: str, chain: str, packet: Packet, sure: bool) -> Iterator[tuple[Rule, str, Any, bool]]:
        other = "ip6" if packet.version == 4 else "ip"
        for rule in self._rules.get((table, chain), ()):
            certain = sure
            for kind, value in _flat(rule.statements):
                if kind == "match":
                    answer = self._match(table, value, packet)
                    if answer is False:
                        break
                    certain = certain and answer is True
                elif kind == "vmap":
                    for key, verdict in self._elements(table, value["data"]):
                        answer = self._equal(table, known_of(value["key"], packet), key)
                        if answer is not False:
                            yield from self._verdict(rule, *only(verdict), packet, certain and answer is True)
                elif kind in TRANSLATES and isinstance(value, dict) and value.get("family") == other:
                    break  # "dnat ip to" leaves IPv6 alone
                elif kind in SILENT:
                    yield rule, kind, value, certain
                elif kind in ("jump", "goto") or kind in STOPS or kind in TRANSLATES:
                    yield from self._verdict(rule, kind, value, packet, certain)
                if kind in ("return", "goto"):
                    if certain:
                        return
                    sure = False  # whatever follows
                elif kind not in KNOWN:
                    certain = False  # limit, xt, ...: who knows

    def _verdict(
        self, rule: Rule, kind: str, value: Any, packet: Packet, sure: bool
    ) -> Iterator[tuple[Rule, str, Any, bool]]:
        if kind in ("jump", "goto"):
            yield from self._walk(rule.table, value["target"], packet, sure)
        elif kind not in ("return", "continue"):
            yield rule, kind, value, sure

    def _match(self, table: str, match: dict[str, Any], packet: Packet) -> Answer:
        known = known_of(match["left"], packet)
        if known is NEVER:
            return False
        op, right = match["op"], match["right"]
        if op == "in":
            wanted = right if isinstance(right, list) else [right]
            return any(flag in wanted for flag in known) if isinstance(known, frozenset) else None
        if op not in ("==", "!="):
            return None
        if isinstance(known, frozenset):
            known = next(iter(known)) if len(known) == 1 else None
        answer = self._equal(table, known, right)
        return answer if op == "==" or answer is None else not answer

    def _equal(self, table: str, known: Any, right: Any) -> Answer:
        if known is None:
            return None
        if known is NEVER:
            return False
        if (isinstance(right, str) and right.startswith("@")) or (isinstance(right, dict) and "set" in right):
            return _any(self._equal(table, known, each) for each in self._elements(table, right))
        if isinstance(right, dict) and "elem" in right:
            return self._equal(table, known, right["elem"]["val"])
        if isinstance(known, list):
            parts = right.get("concat") if isinstance(right, dict) else None
            if parts is None or len(parts) != len(known):
                return None
            answers = [self._equal(table, one, other) for one, other in zip(known, parts, strict=True)]
            return False if False in answers else None if None in answers else True
        return same(known, right)

    def _elements(self, table: str, named: Any) -> list[Any]:
        if isinstance(named, str):
            return self._sets.get((table, named.removeprefix("@")), [])
        found = named["set"]
        return found if isinstance(found, list) else [found]


def _flat(statements: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    for each in statements:
        yield only(each)


def _any(answers: Iterable[Answer]) -> Answer:
    found = set(answers)
    return True if True in found else None if None in found else False
