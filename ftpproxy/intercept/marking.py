"""`firewall_mark`: calls that are expected carry a mark, by which a firewall that drops the rest lets them in.

What ends at a socket of ours passes the administrator's input chain, where neither we nor a rule of his can know which
port is told to whom just now: he would have to open all of `data_ports` to everybody.  So whoever is expected stands in
a set of our table, as caller, address and port, for as long as he is; his first packets get the mark there in
prerouting (`ftpproxy.table`), before any translation, and the line in the input chain is

    meta mark & 0x400000 == 0x400000 accept

Those that follow belong to an established connection.  (What the kernel carries passes the forward chain, and is marked
by its own elements: `dtp.nft`.)  It is the same under every gate: the address and port are those
that the caller was told, whoever answers there.
"""

from __future__ import annotations

import socket
from contextlib import ExitStack

from attrs import evolve

from ..endpoints import Endpoint
from ..netfilter import ELEMENT_SECONDS, Elements, of_path
from ..paths import Await, Call
from .installed import Installed
from .interceptor import Caller, Gate, GateError, Listener, PortRange

__all__ = ["MarkingGate"]


class MarkingGate:
    """Another gate, whose callers are marked.  Needs our table and CAP_NET_ADMIN; `seconds` as for `RedirectGate`."""

    def __init__(self, gate: Gate, elements: Elements, *, seconds: float = ELEMENT_SECONDS) -> None:
        self._gate = gate
        self._installed = Installed(elements)
        self._seconds = seconds

    def prepare(self, listener: socket.socket) -> None:
        """As the other gate."""
        self._gate.prepare(listener)

    def original_destination(self, control: socket.socket) -> Endpoint:
        """As the other gate."""
        return self._gate.original_destination(control)

    def listener(self, leg: Await, ports: PortRange) -> Listener:
        """As the other gate, and the first packet of `leg.peer` is marked.  Raises `GateError`."""
        with ExitStack() as stack:
            listener = self._gate.listener(leg, ports)
            stack.callback(listener.release)
            try:
                element = of_path("expected", leg.peer, listener.announced, seconds=self._seconds)
                stack.callback(self._installed.add(element))
            except OSError as error:
                raise GateError(f"cannot mark the calls to {listener.announced}: {error.strerror}") from error
            return evolve(listener, release=stack.pop_all().close)

    def caller(self, leg: Call, ports: PortRange) -> Caller:
        """As the other gate."""
        return self._gate.caller(leg, ports)

    def close(self) -> None:
        """Take away every element that was not released, here and there."""
        self._installed.close()
        self._gate.close()
