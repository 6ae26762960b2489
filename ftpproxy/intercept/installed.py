"""Elements of our nftables table that a gate has added, until they are released or the kernel drops them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial

from attrs import frozen

from ..log import event
from ..netfilter import TABLE, Element, Elements
from .interceptor import GateError

__all__ = ["Installed"]

log = logging.getLogger(__name__)

TICKS = 0.05
"""Seconds by which the kernel, which counts in jiffies, may drop an element early.  Not to be removed in that time:
it goes by itself."""


@frozen(eq=False)
class _Standing:
    """An element that we added, until (by the monotonic clock) the kernel drops it."""

    element: Element
    until: float


class Installed:
    """The elements of one gate; `elements` may be shared, and stays its maker's to close."""

    def __init__(self, elements: Elements) -> None:
        self._elements = elements
        self._standing: set[_Standing] = set()

    def add(self, element: Element) -> Callable[[], None]:
        """Add `element`; what is returned takes it away, is idempotent and never raises.

        Raises `FileExistsError` where its key is taken, `GateError` without CAP_NET_ADMIN or our table, other `OSError`
        as the kernel has it.
        """
        until = time.monotonic() + element.seconds - TICKS
        try:
            self._elements.add(element)
        except PermissionError as error:
            raise GateError(
                "changing nftables needs CAP_NET_ADMIN: run this as root, or give it the capability"
            ) from error
        except FileNotFoundError as error:
            raise GateError(f"table inet {TABLE} is gone and cannot be loaded again: {error.__cause__}") from error
        standing = _Standing(element, until)
        self._standing.add(standing)
        return partial(self._remove, standing)

    def close(self) -> None:
        """Take away every element that was not released."""
        for standing in tuple(self._standing):
            self._remove(standing)

    def _remove(self, standing: _Standing) -> None:
        if standing not in self._standing:
            return
        self._standing.remove(standing)
        if time.monotonic() < standing.until:  # later it is gone, and its key may be somebody else's
            try:
                self._elements.remove(standing.element)
            except OSError as error:
                event(log, logging.WARNING, "gate.element_left", map=standing.element.map, reason=error.strerror)
