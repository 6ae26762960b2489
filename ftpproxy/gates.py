"""The gate of a service, by its `intercept` and the system that we run on."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from .config.values import ServiceConfig
from .doors import Doors
from .intercept.direct import DirectGate
from .intercept.interceptor import Gate
from .intercept.linux import AutoGate, RedirectGate, TproxyGate
from .netfilter import ELEMENT_SECONDS, Elements

if TYPE_CHECKING:
    from .intercept.leads import Leads, Rules
    from .intercept.pf import Lookup
    from .pf.natlook import DevPf

__all__ = ["element_seconds", "gate_of", "needs_engine", "open_lookup"]


def element_seconds(config: ServiceConfig) -> float:
    """An element must outlive the longest that a data connection may take to come up: once before its transfer command,
    once behind it."""
    return max(ELEMENT_SECONDS, 2 * config.timeouts.data_setup + 60)


def gate_of(
    config: ServiceConfig,
    doors: Doors,
    elements: Elements | None,
    lookup: Lookup | None,
    engine: Rules | None = None,
) -> Gate:
    """`elements` where the service needs our table, `lookup` where it needs to ask pf, `engine` where it has rules in
    pf: without, its relay has only our own addresses."""
    gate = _unmarked(config, doors, elements, lookup, engine)
    if not config.firewall_mark:
        return gate
    from .intercept.marking import MarkingGate

    assert elements is not None
    return MarkingGate(gate, elements, seconds=element_seconds(config))


def _unmarked(
    config: ServiceConfig, doors: Doors, elements: Elements | None, lookup: Lookup | None, engine: Rules | None
) -> Gate:
    redirection = config.redirection_on(sys.platform)
    if config.intercept == "auto" and sys.platform == "linux":
        return AutoGate(elements, doors, seconds=element_seconds(config))
    if redirection == "tproxy":
        return TproxyGate(doors)
    if redirection == "redirect":
        assert elements is not None
        return RedirectGate(elements, doors, seconds=element_seconds(config))
    if redirection in ("rdr", "divert"):
        from .intercept.pf import DivertGate, RdrGate

        leads = _leads(config, doors, engine)
        if redirection == "divert":
            return DivertGate(doors, leads)
        assert lookup is not None
        return RdrGate(lookup, doors, leads, called_directly=config.mode == "reverse")
    return DirectGate(doors)


def _leads(config: ServiceConfig, doors: Doors, engine: Rules | None) -> Leads | None:
    from .intercept.leads import Leads

    if engine is None or (rules := config.pf.rules) is None:
        return None
    return Leads(engine, rules, doors, seconds=element_seconds(config))


def needs_engine(services: Iterable[ServiceConfig]) -> bool:
    """Whether one of them has rules in pf: for its plane, or because its relay has to answer for servers."""
    return any(
        "pf" in service.planes
        or (
            service.mode == "forward"
            and service.pf.rules is not None
            and service.redirection_on(sys.platform) in ("rdr", "divert")
        )
        for service in services
    )


def open_lookup(services: Iterable[ServiceConfig]) -> DevPf | None:
    """What `rdr` needs, opened while we may; None where no service has it.  Raises `NatlookError`."""
    if all(service.redirection_on(sys.platform) != "rdr" for service in services):
        return None
    from .pf.natlook import DevPf, native_layout

    layout = native_layout(sys.platform)
    return None if layout is None else DevPf(layout)
