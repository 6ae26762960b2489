"""`ftpproxy doctor`: is this gateway set up right?

Each check is a function that looks at the `Machine` from one side and yields a `Finding` for each fault: what it is,
why it hurts and the line that mends it.  A gateway that is set up right yields none.  Checks ask for effects rather
than for settings where the kernel can be asked (`ip route get` with the mark, `nft -c` with the rules), and report
what is certain rather than what is unusual: a warning that is there on every good machine is read by nobody.

Nothing is changed: rules are compared in a network namespace that is gone at once, and a server in reverse mode is
called and left again.  What may not be looked at, for want of privileges, is a finding of its own, because a doctor
who has not looked must not say "healthy".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from attrs import evolve

from .. import rules
from ..config.values import Config
from . import firewall, kernel, process, reach, redirect, rivals
from .finding import CannotLook, Finding, Severity, as_json, as_text
from .machine import Machine

__all__ = ["Finding", "Severity", "as_json", "as_text", "examine"]

CHECKS: tuple[tuple[str, Callable[[Machine], Iterator[Finding]]], ...] = (
    ("support in the kernel", redirect.kernel_support),
    ("the interception rules", redirect.present),
    ("the table of data connections", redirect.plane),
    ("the policy route", redirect.policy_routes),
    ("own addresses", reach.own_addresses),
    ("the listeners", redirect.listeners),
    ("loops", rivals.loops),
    ("rules of others", rivals.taken_before),
    ("the kernel's FTP helper", rivals.helpers),
    ("the rules that are loaded at boot", rivals.saved),
    ("forwarding", kernel.forwarding),
    ("the reverse path filter", kernel.reverse_path),
    ("the range of data ports", kernel.ports),
    ("who listens on data ports", firewall.taken_ports),
    ("the firewall's input chains", firewall.closed),
    ("the firewall's forward chains", firewall.forwarded),
    ("privileges", process.privileges),
    ("descriptors", process.descriptors),
    ("announced addresses", reach.announced),
    ("servers", reach.servers),
    ("the table of connections", kernel.conntrack),
    ("the clock", kernel.clock),
)


def examine(config: Config, file: str) -> list[Finding]:
    """Everything that is found; `file` is the configuration's name, for the lines that mend.

    Takes a second, and up to ten for each server that does not answer.  Raises `ConfigError` as `rules.text` does.
    """
    config = evolve(config, services=tuple(evolve(each, intercept=each.redirection) for each in config.services))
    rules.text(config)
    machine = Machine(config, file)
    found: list[Finding] = []
    blind: dict[str, list[str]] = {}
    for title, check in CHECKS:
        try:
            found += check(machine)
        except (CannotLook, OSError) as error:
            blind.setdefault(str(error), []).append(title)
    found += [
        Finding(Severity.NOT_SEEN, "not_seen", ", ".join(titles), f"{why[0].upper()}{why[1:]}.")
        for why, titles in blind.items()
    ]
    order = list(Severity)
    return sorted(found, key=lambda each: order.index(each.severity))
