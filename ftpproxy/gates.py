"""The gate of a service, by its `intercept` and the system that we run on."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from .config.values import ServiceConfig
from .doors import Doors
from .intercept.direct import DirectGate
from .intercept.interceptor import Gate
from .intercept.linux import AutoGate, RedirectGate, TproxyGate
from .log import event
from .netfilter import ELEMENT_SECONDS, Elements

if TYPE_CHECKING:
    from .intercept.leads import Leads, Rules
    from .intercept.pf import Lookup
    from .pf.natlook import DevPf

log = logging.getLogger(__name__)

__all__ = ["element_seconds", "gate_of", "least_data_port", "must_ask_pf", "needs_engine", "open_lookup"]


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
        if lookup is None:  # see `open_lookup`: then the socket's own name must do
            return DivertGate(doors, leads)
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


def least_data_port(services: Iterable[ServiceConfig]) -> int:
    """The lowest port, but 20, that data connections of theirs may have anywhere."""
    return min(
        port
        for service in services
        for port in (
            service.data_ports.first,
            *(policy.min_data_port for policy in (service.policy, *(rule.policy for rule in service.rules))),
        )
    )


def must_ask_pf(service: ServiceConfig) -> bool:
    """Whether it cannot do without pf's word about whom clients called."""
    return service.redirection_on(sys.platform) == "rdr" and (service.intercept == "rdr" or service.mode == "forward")


def open_lookup(services: Iterable[ServiceConfig]) -> DevPf | None:
    """What `rdr` needs, opened while we may; None where no service has it.  Raises `NatlookError`.

    In reverse mode "auto" does without where it must: clients may call the listener itself, as with inetd.
    """
    redirected = [service for service in services if service.redirection_on(sys.platform) == "rdr"]
    if not redirected:
        return None
    from .pf.natlook import DevPf, NatlookError, native_layout

    layout = native_layout(sys.platform)
    assert layout is not None  # the configuration was checked for this system
    try:
        return DevPf(layout)
    except NatlookError as error:
        if any(map(must_ask_pf, redirected)):
            raise
        event(log, logging.WARNING, "gate.pf_not_asked", reason=error)
        return None
