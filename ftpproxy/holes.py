"""Lines of ours in the administrator's own chains: the holes in his firewall that data connections need.

An accept in our table does not override a drop in his, so a chain of his that drops what it does not know needs one
line, which depends on its hook (`rules.openings`).  `ftpproxy rules --apply --chain FAMILY/TABLE/CHAIN` inserts it at
the head of the chain, with a comment by which it is known again: repeating that leaves one such line, and removal takes
that one away and nothing else.  His next `flush ruleset` takes it along; what is to last belongs into his file.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from attrs import frozen

from . import rules
from .config.values import Config
from .nathook import UNREADABLE, without
from .rules import NoPermission, RulesError

__all__ = ["COMMENT", "Chain", "check", "close", "close_all", "find", "of_iptables", "open_in"]

COMMENT = "ftpproxy: data connections"
"""Of each line of ours."""

FORM = re.compile(r"(inet|ip|ip6)/([A-Za-z_][\w.-]*)/([A-Za-z_][\w.-]*)")

OF_IPTABLES = {
    rules.TRANSLATED: "conntrack --ctstate DNAT",
    rules.MARKED_CONNECTION: f"connmark --mark {rules.FIREWALL_MARK:#x}/{rules.FIREWALL_MARK:#x}",
    rules.MARKED_PACKET: f"mark --mark {rules.FIREWALL_MARK:#x}/{rules.FIREWALL_MARK:#x}",
}
"""The same lines for iptables, which does not understand its tables any more when others have written in them."""


@frozen
class Chain:
    """A chain of the administrator's with a hook that data connections pass."""

    family: str
    table: str
    name: str
    hook: str
    """`forward` or `input`."""
    ours: Sequence[int]
    """The handles of lines of ours in it."""

    def __str__(self) -> str:
        return f"{self.family}/{self.table}/{self.name}"

    @property
    def removals(self) -> str:
        """For nft."""
        return "".join(f"delete rule {self.family} {self.table} {self.name} handle {handle}\n" for handle in self.ours)


def find(name: str, config: Config | None) -> Chain:
    """The chain `name`, "FAMILY/TABLE/CHAIN".  Raises `RulesError`: no such form, no such chain, no hook of use; and
    for one of iptables, with the command that would insert what `config` needs (None: remove it)."""
    match = FORM.fullmatch(name)
    if match is None:
        raise RulesError(f"--chain {name}: it is FAMILY/TABLE/CHAIN, as in inet/filter/forward (or ip, ip6)")
    family, table, chain = match.groups()
    if (command := of_iptables(family, table, chain, config)) is not None:
        raise RulesError(f"--chain {name} is iptables' own; say it so: {command}")
    try:
        entries = _listed("list", "chain", family, table, chain)
    except _Absent:
        raise RulesError(f"--chain {name}: there is no such chain; `nft list chains` shows them all") from None
    hook = next((entry["chain"].get("hook", "") for entry in entries if "chain" in entry), "")
    if hook not in ("forward", "input"):
        kind = f"hangs at the hook {hook}" if hook else "has no hook"
        raise RulesError(f"--chain {name} {kind}; name the one with `hook forward` or `hook input`")
    return Chain(family, table, chain, hook, [rule["handle"] for rule in _ours(entries)])


def of_iptables(family: str, table: str, chain: str, config: Config | None) -> str | None:
    """The command that inserts the line that `config` needs into a chain of iptables, or without one those that remove
    it; None where the chain is none of iptables', or needs no line."""
    hook = chain.lower()
    if family == "inet" or table != "filter" or chain not in ("FORWARD", "INPUT"):
        return None
    program = "iptables" if family == "ip" else "ip6tables"
    if config is not None:
        line = rules.openings(config).get(hook)
        return f"{program} -I {chain} -m {OF_IPTABLES[line]} -j ACCEPT" if line is not None else None
    return " or ".join(f"{program} -D {chain} -m {OF_IPTABLES[line]} -j ACCEPT" for line in rules.LINES[hook])


def check(chains: Iterable[Chain], config: Config) -> None:
    """Raises `RulesError` where `config` needs no line in one of them."""
    for chain in chains:
        if chain.hook not in rules.openings(config):
            raise RulesError(f"--chain {chain}: {rules.NO_OPENING[chain.hook]}")


def open_in(chains: Iterable[Chain], config: Config) -> None:
    """Insert in each chain the line that `config` needs there, after a `check`.  Raises `RulesError`."""
    openings = rules.openings(config)
    text = ""
    for chain in chains:
        text += chain.removals
        place = f"{chain.family} {chain.table} {chain.name}"
        text += f'insert rule {place} {openings[chain.hook]} comment "{COMMENT}"\n'
    rules.load(rules.tools(), text)


def close(chains: Iterable[Chain]) -> None:
    """Remove our lines from these chains.  Raises `RulesError`."""
    rules.load(rules.tools(), "".join(chain.removals for chain in chains))


def close_all() -> None:
    """Remove our lines from all chains there are.  Raises `RulesError`."""
    text = ""
    for listed in without(_nft("list", "tables")):
        with suppress(_Absent):  # it went this moment
            for rule in _ours(_listed(*listed)):
                text += f"delete rule {rule['family']} {rule['table']} {rule['chain']} handle {rule['handle']}\n"
    if text:
        rules.load(rules.tools(), text)


class _Absent(Exception):
    """There is no such thing."""


def _ours(entries: Iterable[Any]) -> list[Any]:
    return [entry["rule"] for entry in entries if "rule" in entry and entry["rule"].get("comment") == COMMENT]


def _listed(*what: str) -> list[Any]:
    """What nft lists of it, without elements of sets.  Raises `_Absent`, `RulesError`."""
    try:
        entries: list[Any] = json.loads(_nft("-j", "-t", *what))["nftables"]
    except ValueError:
        raise RulesError(UNREADABLE) from None
    return entries


def _nft(*options: str) -> str:
    """What nft says.  Raises `_Absent`, `RulesError`."""
    done = subprocess.run(
        [rules.tools(), *options],
        capture_output=True,
        text=True,
        errors="replace",
        env={**os.environ, "LC_ALL": "C"},
        check=False,
    )
    if done.returncode == 0:
        return done.stdout
    if "No such file or directory" in done.stderr:
        raise _Absent
    if "Operation not permitted" in done.stderr:
        said = " ".join(done.stderr.split())
        raise NoPermission(f"changing the rules needs CAP_NET_ADMIN in this network namespace: {said}")
    raise RulesError(f"nft: {' '.join(done.stderr.split())}")
