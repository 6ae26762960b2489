"""The sections of the file, one class each: the same as the values, laid out as an administrator reads them.

Some things stand elsewhere in the file than in the values below: `[service.tls]` becomes `Policy.tls`, the times
of `Timeouts` share `[service.limits]` with the numbers of sessions, and a `[[service.rule]]` says only what it
changes in the policy of its service.
"""

from __future__ import annotations

import re
from typing import Any, Literal

import attrs
from attrs import evolve, frozen

from ..pi.policy import CommandName, CommandRule, IPNetwork, NetworkRule, Policy, Timeouts
from .values import (
    Announce,
    AnnounceTo,
    ControlConfig,
    GatewayConfig,
    Limits,
    LogConfig,
    MetricsConfig,
    PfConfig,
    ProcessConfig,
    ServiceConfig,
)

__all__ = [
    "CHOICES",
    "GENERAL",
    "SECTIONS",
    "CommandRuleTable",
    "LimitsTable",
    "RuleTable",
    "ServiceTable",
    "TlsTable",
    "keys",
]


def _fields(value: Any) -> dict[str, Any]:
    """The fields of a value by name."""
    return attrs.asdict(value, recurse=False)


@frozen(kw_only=True)
class TlsTable:
    """`[service.tls]`; becomes `Policy.tls`."""

    mode: Literal["pass", "refuse"] = "pass"


@frozen(kw_only=True)
class LimitsTable(Timeouts):
    """`[service.limits]`: `Limits` and `Timeouts` in one."""

    sessions: int = Limits().sessions
    per_client: int = Limits().per_client


@frozen(kw_only=True)
class CommandRuleTable:
    """An element of `commands`; becomes a `CommandRule`."""

    allow: CommandName | None = None
    deny: CommandName | None = None
    argument: re.Pattern[bytes] | None = None

    @classmethod
    def of(cls, rule: CommandRule) -> CommandRuleTable:
        if rule.allow:
            return cls(allow=rule.command, argument=rule.argument)
        return cls(deny=rule.command, argument=rule.argument)

    def rule(self) -> CommandRule:
        """Raises `ValueError` if it does not have exactly one of `allow` and `deny`."""
        command = self.allow or self.deny
        if command is None or (self.allow and self.deny):
            raise ValueError('has one of allow and deny, as in { deny = "RETR", argument = "[.]exe$" }')
        return CommandRule(allow=self.allow is not None, command=command, argument=self.argument)


@frozen(kw_only=True)
class RuleTable(Policy):
    """`[[service.rule]]`: some keys of a policy for some clients."""

    clients: tuple[IPNetwork, ...]
    given: frozenset[str] = frozenset()
    """The keys that are written there; the others are those of the service."""

    @classmethod
    def of(cls, rule: NetworkRule) -> RuleTable:
        return cls(clients=rule.clients, given=frozenset(attrs.fields_dict(Policy)), **_fields(rule.policy))

    def rule(self, of_service: Policy) -> NetworkRule:
        changes = {name: getattr(self, name) for name in self.given & attrs.fields_dict(Policy).keys()}
        return NetworkRule(self.clients, evolve(of_service, **changes))


@frozen(kw_only=True)
class ServiceTable(ServiceConfig):
    """`[[service]]` with its subtables."""

    limits: LimitsTable = LimitsTable()  # type: ignore[assignment]  # wider here, split up below
    tls: TlsTable = TlsTable()
    rule: tuple[RuleTable, ...] = ()

    @classmethod
    def of(cls, service: ServiceConfig) -> ServiceTable:
        values = _fields(service)
        seconds: dict[str, Any] = {
            name: value if value is None else float(value) for name, value in _fields(service.timeouts).items()
        }
        values["limits"] = LimitsTable(**seconds, **_fields(service.limits))
        values["rule"] = tuple(map(RuleTable.of, service.rules))
        return cls(**values, tls=TlsTable(mode=service.policy.tls))  # type: ignore[arg-type]  # a Policy has any str

    def service(self) -> ServiceConfig:
        values = {name: getattr(self, name) for name in attrs.fields_dict(ServiceConfig)}
        values["policy"] = policy = evolve(self.policy, tls=self.tls.mode)
        values["rules"] = tuple(rule.rule(policy) for rule in self.rule)
        values["limits"] = Limits(**{name: getattr(self.limits, name) for name in attrs.fields_dict(Limits)})
        values["timeouts"] = Timeouts(**{name: getattr(self.limits, name) for name in attrs.fields_dict(Timeouts)})
        return ServiceConfig(**values)


ELSEWHERE = {
    ServiceTable: {"timeouts", "rules"},
    Policy: {"tls"},
    RuleTable: {"tls", "given"},
    LimitsTable: {"announce"},
}
"""Fields that are not keys of that table: the file has them in another one or not at all."""
CHOICES = {"port_address": ("same", "override"), "greeting": ("strict", "lenient")}
"""Words of a policy that are plain strings below."""


def keys(table: type) -> list[str]:
    """The keys that the section of the file for `table` may have."""
    return [each.name for each in attrs.fields(table) if each.name not in ELSEWHERE.get(table, ())]


GENERAL: dict[str, type] = {
    "log": LogConfig,
    "metrics": MetricsConfig,
    "process": ProcessConfig,
    "control": ControlConfig,
}
"""The tables that stand beside the services: each is the field of `Config` with its name."""

SECTIONS: dict[str, type] = {
    "[[service]]": ServiceTable,
    "announce": Announce,
    "[[service.announce_to]]": AnnounceTo,
    "[service.gateway]": GatewayConfig,
    "[service.pf]": PfConfig,
    "[service.policy]": Policy,
    "[[service.rule]]": RuleTable,
    "[service.tls]": TlsTable,
    "[service.limits]": LimitsTable,
    **{f"[{name}]": table for name, table in GENERAL.items()},
}
"""The sections of a file and the class of each."""
