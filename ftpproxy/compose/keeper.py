"""The keeper of our table: it is there as long as a service needs it, and no longer.

Looked at once a second.  A table that somebody flushed is loaded again, with all that stood in it (`Elements.check`).
One that no service needs any more since a reload, those included that sessions are still in, is removed, and comes
again when another reload calls for it.  What `ftpproxy rules --apply` has loaded is the administrator's, and stays.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from ..log import event
from ..nathook import NatHook
from ..netfilter import Elements, NetfilterError
from ..table import Claim

__all__ = ["Keeper"]

log = logging.getLogger(__name__)


class Keeper:
    """To be called once a second, for the first time when the table stands."""

    def __init__(self, claim: Claim, elements: Elements, hook: NatHook | None, needed: Callable[[], bool]) -> None:
        self._claim = claim
        self._elements = elements
        self._hook = hook
        self._needed = needed
        self._failing = False

    def __call__(self, _: float) -> None:
        failing, self._failing = self._failing, True
        try:
            if self._needed():
                if self._hook is not None:
                    self._hook.hold()
                self._elements.check()
            else:
                if self._hook is not None:
                    self._hook.close()
                self._claim.unload()
            self._failing = False
        except OSError as error:
            if not failing:
                event(log, logging.ERROR, "table.missing", reason=error.__cause__ or error.strerror)
        except NetfilterError as error:
            if not failing:
                event(log, logging.ERROR, "table.left", reason=error)

    def crashed(self, error: Exception) -> None:
        """It is tried again in the next sweep."""
