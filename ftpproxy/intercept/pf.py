"""pf, the packet filter of the BSDs: `divert` and `rdr`.

**divert** (OpenBSD).  The packets are not rewritten, so the socket's own name is what the client dialled, and nobody
needs to be asked:

    pass in quick on $int_if inet proto tcp to port 21 divert-to 127.0.0.1 port 8021

pf looks for a listener at exactly that address and port (in_pcblookup_listen); one at 0.0.0.0 or :: is not found.
FreeBSD's rule of that name is another thing (divert(4)): it hands packets, not connections, to a process.

**rdr** (FreeBSD, NetBSD, macOS, and `rdr-to` of OpenBSD).  The destination is rewritten to our listener, and pf is
asked for the original one (`ftpproxy.pf.natlook`), at once, while the state is there:

    rdr pass on $int_if inet proto tcp from any to any port 21 -> 127.0.0.1 port 8021

It cannot lead to ::1: a packet to ::1 that came from a real interface is dropped behind pf (ip6_input, in6_setscope).

Data connections that the relay carries are addressed to the server, too, and have rules of their own (`leads`).
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Protocol

from ..doors import Doors
from ..endpoints import Endpoint
from ..paths import Await, Call, Leg
from ..pf.natlook import NatlookError
from ..sockets import bound, is_ours
from .direct import DirectGate, at_any_port, refusal, towards
from .interceptor import Caller, GateError, Lead, Listener, PortRange
from .leads import Leads

__all__ = ["DivertGate", "Lookup", "RdrGate"]


class Lookup(Protocol):
    """`pf.natlook.DevPf`, as gates need it."""

    def original_destination(self, peer: Endpoint, here: Endpoint) -> Endpoint | None: ...


class _PfGate:
    """What the two have in common: foreign legs by `leads`; without, addresses must be ours."""

    def __init__(self, doors: Doors, leads: Leads | None) -> None:
        self._leads = leads
        self._direct = DirectGate(doors)

    def prepare(self, listener: socket.socket) -> None:
        """An ordinary listener will do."""

    def lead(
        self, leg: Leg, ports: PortRange, answered: Callable[[str], None], on_crash: Callable[[Exception], None]
    ) -> Lead | None:
        """As `LeadingGate`."""
        return None if self._leads is None else self._leads.ask(leg, ports, answered, on_crash)

    def listener(self, leg: Await, ports: PortRange) -> Listener:
        """As `DirectGate` where the address is ours, else what `lead` has made.  Raises `GateError`."""
        if self._leads is None or _ours(leg.at):
            return self._direct.listener(leg, ports)
        lead = self._leads.take(leg)
        assert lead.expected is not None
        assert lead.announced is not None
        return Listener(lead.expected, lead.announced, lead.release)

    def caller(self, leg: Call, ports: PortRange) -> Caller:
        """The same for a call, from our address towards `leg.to`.  Raises `GateError`."""
        if self._leads is None or _ours(leg.source):
            return self._direct.caller(leg, ports)
        lead = self._leads.take(leg)
        try:
            with refusal(f"call {leg.to} from {leg.source}"):
                return Caller(at_any_port(towards(leg.to.host), ports, bound), lead.release)
        except BaseException:
            lead.release()
            raise

    def close(self) -> None:
        """Take back the leads that nobody has taken."""
        if self._leads is not None:
            self._leads.close()


def _ours(at: Endpoint) -> bool:
    with refusal(f"look at {at}"):
        return is_ours(at.host)


class DivertGate(_PfGate):
    """`divert-to` of OpenBSD."""

    def __init__(self, doors: Doors, leads: Leads | None = None) -> None:
        super().__init__(doors, leads)

    def original_destination(self, control: socket.socket) -> Endpoint:
        """The packets were never rewritten: the socket's own name is what the client dialled."""
        return Endpoint.from_sockaddr(control.getsockname())


class RdrGate(_PfGate):
    """`rdr` and `rdr-to`.  With `called_directly` clients may also call the listener itself, as in reverse mode."""

    def __init__(
        self, lookup: Lookup, doors: Doors, leads: Leads | None = None, *, called_directly: bool = False
    ) -> None:
        super().__init__(doors, leads)
        self._lookup = lookup
        self._called_directly = called_directly

    def original_destination(self, control: socket.socket) -> Endpoint:
        """What pf has as the destination before it was rewritten.  Raises `GateError`: it was not, or pf does not
        answer."""
        here, peer = (Endpoint.from_sockaddr(name) for name in (control.getsockname(), control.getpeername()))
        try:
            called = self._lookup.original_destination(peer, here)
        except NatlookError as error:
            raise GateError(f"cannot find whom {peer} called: {error}") from error
        if called is not None:
            return called
        if self._called_directly:
            return here
        raise GateError(
            f"pf did not redirect the connection from {peer} to {here}: clients call servers, not this listener, and"
            " their interface is not one that pf skips (`set skip`)"
        )
