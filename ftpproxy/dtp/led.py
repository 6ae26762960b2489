"""The relay behind a gate that has to ask for its legs: on pf, where the engine loads a rule for each foreign one.

    open -> Pending -> every leg that needs something has it -> the relay opens the path, as anywhere

Nothing is announced before, and what was asked for is given back where the path does not come about.
"""

from __future__ import annotations

from ..estate import Inheritance
from ..intercept.interceptor import GateError, Lead, LeadingGate, PortRange
from ..paths import PathSpec
from ..reasons import Code, Reason
from ..switchboard import Switchboard
from .plane import Opener, PathOwner, Pending, Refused
from .relay import RelayPath, RelayPlane

__all__ = ["LedPending", "LedRelay"]

PATIENCE = 10.0
"""Seconds for an answer: more than one stalled pfctl takes."""


class LedPending(Pending):
    """Leads that were asked for.  Made by `LedRelay.open`."""

    def __init__(self, plane: LedRelay, spec: PathSpec, owner: Opener) -> None:
        self._plane = plane
        self._spec = spec
        self._owner = owner
        self._leads: list[Lead] = []
        self._missing = 0
        self._since = plane.board.now
        self._over = False

    def ask(self) -> bool:
        """Ask for what the legs need; whether there is anything to wait for.  Raises `GateError`."""
        try:
            for leg in (self._spec.client, self._spec.server):
                lead = self._plane.gate.lead(leg, self._plane.ports, self._answered, self._crashed)
                if lead is not None:
                    self._leads.append(lead)
        except BaseException:
            self.close()
            raise
        self._missing = len(self._leads)
        return bool(self._leads)

    def _answered(self, error: str) -> None:
        if self._over:
            return
        self._missing -= 1
        if error:
            self._refuse(Reason(Code.PLANE_FAILED, error))
        elif not self._missing:
            self._over = True
            self._plane.pending.discard(self)
            path = self._plane.relay.open(self._spec, self._owner)
            if isinstance(path, Refused):
                self._give_back()
                self._owner.refused(self, path.why)
            else:
                self._owner.opened(self, path)

    def sweep(self, now: float) -> None:
        if now - self._since > PATIENCE:
            self._refuse(Reason(Code.PLANE_FAILED, f"the pf engine did not answer within {PATIENCE:g} s"))

    def _crashed(self, error: Exception) -> None:
        if not self._over:
            self._refuse(Reason(Code.INTERNAL, f"internal error: {error!r}"))

    def _refuse(self, why: Reason) -> None:
        self.close()
        self._owner.refused(self, why)

    def _give_back(self) -> None:
        for lead in self._leads:
            lead.close()

    def close(self) -> None:
        if not self._over:
            self._over = True
            self._plane.pending.discard(self)
            self._give_back()


class LedRelay:
    """Carries what the relay carries, with legs that `gate`, the relay's own, is asked for first."""

    name = "relay"

    def __init__(self, relay: RelayPlane, gate: LeadingGate) -> None:
        self.relay = relay
        self.gate = gate
        self.pending: set[LedPending] = set()
        relay.board.sweep(self._sweep, self._crashed)

    @property
    def board(self) -> Switchboard:
        return self.relay.board

    @property
    def ports(self) -> PortRange:
        return self.relay.ports

    def __len__(self) -> int:
        return len(self.relay) + len(self.pending)

    def carries(self, spec: PathSpec) -> bool:
        return self.relay.carries(spec)

    def foresee(self, spec: PathSpec) -> None:
        """Nothing is done beforehand."""

    def open(self, spec: PathSpec, owner: Opener) -> RelayPath | LedPending | Refused:
        pending = LedPending(self, spec, owner)
        try:
            if not pending.ask():
                return self.relay.open(spec, owner)
        except GateError as error:
            return Refused(str(error))
        self.pending.add(pending)
        return pending

    def inherit(self, left: object, owner: PathOwner, inheritance: Inheritance) -> RelayPath:
        """What carries goes on; who was awaited where pf led him to us is not, since those rules are gone."""
        return self.relay.inherit(left, owner, inheritance)

    def _sweep(self, now: float) -> None:
        for pending in list(self.pending):
            pending.sweep(now)

    def _crashed(self, error: Exception) -> None:
        """The next sweep goes on with the others."""

    def close(self) -> None:
        self.relay.board.unsweep(self._sweep)
        for pending in list(self.pending):
            pending.close()
        self.relay.close()
