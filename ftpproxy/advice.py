"""What a right file can meet on the wrong machine: reasons for a warning, never for an error.

`check` and `serve` say them.  What is asked of the kernel is Linux's; elsewhere, and where we may not look, there is
nothing to say.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from attrs import frozen

from . import netfilter, rules
from .config.values import Config, MetricsConfig

__all__ = ["PortOverlap", "exposition_missing", "port_overlaps", "rules_missing"]

LOCAL_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
"""ip(7); it holds for IPv6 as well."""


@frozen
class PortOverlap:
    """The `data_ports` of a service meet the range that the kernel gives to connections of its own choice."""

    service: str
    data_ports: str
    local: str

    def __str__(self) -> str:
        return (
            f"{self.data_ports} overlaps net.ipv4.ip_local_port_range ({self.local}), which other programs of this"
            " machine use; choose ports outside it"
        )


def port_overlaps(config: Config, local_ports: Path = LOCAL_PORTS) -> Iterator[PortOverlap]:
    """One for each service whose `data_ports` are not outside the ephemeral range."""
    try:
        first, last = map(int, local_ports.read_text().split())
    except OSError:
        return
    for service in config.services:
        low, high = service.data_ports
        if low <= last and first <= high:
            yield PortOverlap(service.name, f"{low}-{high}", f"{first}-{last}")


def exposition_missing(config: MetricsConfig) -> str | None:
    """What to install for the metrics that are asked for; None where nothing is missing."""
    if config.listen is None or find_spec("prometheus_client") is not None:
        return None
    return f"prometheus-client is missing: {sys.executable} -m pip install prometheus-client"


def rules_missing(config: Config) -> bool:
    """Whether a service needs our table with its rules, and it is not loaded.  With "auto" they may be anybody's."""
    if not any(service.intercept in ("tproxy", "redirect") for service in config.services):
        return False
    return netfilter.has_table(rules.TABLE) is False
