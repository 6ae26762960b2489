"""The sections of the file, one class each: the same as the values, laid out as an administrator reads them.

Two things stand elsewhere in the file than in the values below: `[service.tls]` becomes `Policy.tls`, and the times
of `Timeouts` share `[service.limits]` with the numbers of sessions.
"""

from __future__ import annotations

from typing import Any, Literal

import attrs
from attrs import evolve, frozen

from ..pi.policy import Policy, Timeouts
from .values import Announce, Limits, LogConfig, ServiceConfig

__all__ = ["CHOICES", "SECTIONS", "LimitsTable", "ServiceTable", "TlsTable", "keys"]


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
class ServiceTable(ServiceConfig):
    """`[[service]]` with its subtables."""

    limits: LimitsTable = LimitsTable()  # type: ignore[assignment]  # wider here, split up below
    tls: TlsTable = TlsTable()

    @classmethod
    def of(cls, service: ServiceConfig) -> ServiceTable:
        values = _fields(service)
        seconds: dict[str, Any] = {name: float(value) for name, value in _fields(service.timeouts).items()}
        values["limits"] = LimitsTable(**seconds, **_fields(service.limits))
        return cls(**values, tls=TlsTable(mode=service.policy.tls))  # type: ignore[arg-type]  # a Policy has any str

    def service(self) -> ServiceConfig:
        values = {name: getattr(self, name) for name in attrs.fields_dict(ServiceConfig)}
        values["policy"] = evolve(self.policy, tls=self.tls.mode)
        values["limits"] = Limits(**{name: getattr(self.limits, name) for name in attrs.fields_dict(Limits)})
        values["timeouts"] = Timeouts(**{name: getattr(self.limits, name) for name in attrs.fields_dict(Timeouts)})
        return ServiceConfig(**values)


ELSEWHERE = {ServiceTable: {"timeouts"}, Policy: {"tls"}, LimitsTable: {"announce"}}
"""Fields that are not keys of that table: the file has them in another one or not at all."""
CHOICES = {(Policy, "port_address"): ("same", "override"), (Policy, "greeting"): ("strict", "lenient")}
"""Words of fields that are plain strings below."""


def keys(table: type) -> list[str]:
    """The keys that the section of the file for `table` may have."""
    return [each.name for each in attrs.fields(table) if each.name not in ELSEWHERE.get(table, ())]


SECTIONS: dict[str, type] = {
    "[[service]]": ServiceTable,
    "announce": Announce,
    "[service.policy]": Policy,
    "[service.tls]": TlsTable,
    "[service.limits]": LimitsTable,
    "[log]": LogConfig,
}
"""The sections of a file and the class of each."""
