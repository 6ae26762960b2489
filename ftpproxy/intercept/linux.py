"""Linux: `tproxy`, where the socket table is the map, `redirect`, where nftables maps to sockets of ours, and `auto`.

**tproxy.**  Two prerouting rules and a policy route (see `ftpproxy rules`) hand packets to sockets of this machine
whatever address they are sent to, if there is such a socket with IP_TRANSPARENT (Documentation/networking/tproxy.rst):

    ip saddr @clients tcp dport 21 tproxy ip to 127.0.0.1:8021 meta mark set M accept
    meta l4proto tcp socket transparent 1 meta mark set M accept

So a data connection needs no kernel state of its own: we listen at the *server's* address and call from the
server's address and port 20.  What the gate needs for addresses that are not ours is CAP_NET_RAW.

**redirect.**  The control connection was rewritten to our address; conntrack knows the original one.  Data
connections stay foreign, so each gets a map element (`ftpproxy.netfilter`), which leads the one client that was told
to a socket at our own address *towards that client*, the address that `redirect` itself uses.  (A loopback
address would not do: 127.0.0.1 needs route_localnet and ::1 cannot be reached from outside.)  A call from a foreign
address is made from ours, and a source NAT element gives it the foreign one on the way out.

A socket at an address of ours is an ordinary one under both.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import os
import socket
import struct
from contextlib import ExitStack
from functools import partial

from ..doors import Doors
from ..endpoints import Endpoint
from ..log import event
from ..netfilter import ELEMENT_SECONDS, Elements, awaited, called
from ..paths import Await, Call
from ..sockets import IP_TRANSPARENT, IPV6_TRANSPARENT, SO_ORIGINAL_DST, bound, is_ours
from .direct import DirectGate, at_any_port, bind_to_call, expecting, first_free, refusal, towards
from .installed import Installed
from .interceptor import Caller, GateError, Listener, PortRange

__all__ = ["AutoGate", "RedirectGate", "TproxyGate"]

log = logging.getLogger(__name__)

_sockaddr_in = struct.Struct("!2xH4s8x")
_sockaddr_in6 = struct.Struct("!2xH4x16s4x")


class TproxyGate:
    """Foreign addresses by IP_TRANSPARENT.  Needs the rules and the policy route, and CAP_NET_RAW."""

    def __init__(self, doors: Doors) -> None:
        self._doors = doors

    def prepare(self, listener: socket.socket) -> None:
        """Make a control listener one that `tproxy` may use.  Raises `GateError` without CAP_NET_RAW, unless it is one
        already (`Transparent=yes` in systemd.socket(5))."""
        level, option = (
            (socket.IPPROTO_IPV6, IPV6_TRANSPARENT)
            if listener.family == socket.AF_INET6
            else (socket.IPPROTO_IP, IP_TRANSPARENT)
        )
        with refusal("make the listener transparent"):
            if not listener.getsockopt(level, option):
                listener.setsockopt(level, option, 1)

    def original_destination(self, control: socket.socket) -> Endpoint:
        """The packets were never rewritten: the socket's own name is what the client dialled."""
        return Endpoint.from_sockaddr(control.getsockname())

    def listener(self, leg: Await, ports: PortRange) -> Listener:
        """Listen at `leg.at`, ours or not.  Raises `GateError`: no CAP_NET_RAW, no port left.

        A port at which this gateway itself listens on the wildcard address counts as taken.
        """
        with refusal(f"listen at {leg.at}"):
            return expecting(leg, ports, self._doors, transparent=not is_ours(leg.at.host))

    def caller(self, leg: Call, ports: PortRange) -> Caller:
        """A socket bound to `leg.source`, ours or not, if need be to another port of it.  Raises `GateError` as
        `listener`; for EADDRNOTAVAIL from connect see `DirectGate.caller`."""
        with refusal(f"call {leg.to} from {leg.source}"):
            bind = partial(bound, transparent=not is_ours(leg.source.host))
            return Caller(bind_to_call(leg.source, ports, bind))

    def close(self) -> None:
        """Nothing was installed."""


class AutoGate:
    """`intercept = "auto"`: rules that are not ours may bring connections by `tproxy` or `redirect`, and both are
    understood: where conntrack knows of no rewriting, the socket's own name is what the client dialled.

    With `elements` data connections are led by elements, which works under both.  Without (no CAP_NET_ADMIN) they are
    made by IP_TRANSPARENT, which works under `tproxy` only.
    """

    def __init__(self, elements: Elements | None, doors: Doors, *, seconds: float = ELEMENT_SECONDS) -> None:
        self._transparent = TproxyGate(doors)
        self._data = self._transparent if elements is None else RedirectGate(elements, doors, seconds=seconds)

    def prepare(self, listener: socket.socket) -> None:
        """Make it a listener that `tproxy` may use, if we may."""
        try:
            self._transparent.prepare(listener)
        except GateError as error:
            event(log, logging.DEBUG, "gate.not_transparent", reason=error)

    def original_destination(self, control: socket.socket) -> Endpoint:
        """As `RedirectGate`."""
        return _tracked_destination(control)

    def listener(self, leg: Await, ports: PortRange) -> Listener:
        """As `RedirectGate` or `TproxyGate`."""
        return self._data.listener(leg, ports)

    def caller(self, leg: Call, ports: PortRange) -> Caller:
        """As `RedirectGate` or `TproxyGate`."""
        return self._data.caller(leg, ports)

    def close(self) -> None:
        """Take away every element that was not released."""
        self._data.close()


def _tracked_destination(control: socket.socket) -> Endpoint:
    here = Endpoint.from_sockaddr(control.getsockname())
    try:
        if here.host.version == 4:
            raw = control.getsockopt(socket.SOL_IP, SO_ORIGINAL_DST, _sockaddr_in.size)
            port, host = _sockaddr_in.unpack(raw)
        else:
            raw = control.getsockopt(socket.IPPROTO_IPV6, SO_ORIGINAL_DST, _sockaddr_in6.size)
            port, host = _sockaddr_in6.unpack(raw)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOPROTOOPT):
            return here
        raise GateError(f"cannot find whom {control!r} was dialled as: {error.strerror}") from error
    return Endpoint(ipaddress.ip_address(host), port)


class RedirectGate:
    """Foreign addresses by elements of our table, which must be loaded.  Needs CAP_NET_ADMIN.

    `elements` may be shared with other gates and planes of this process; it stays its maker's to close.  An element
    that nobody releases lives `seconds`: more than a data connection may take to come up (`data_setup`).
    """

    def __init__(self, elements: Elements, doors: Doors, *, seconds: float = ELEMENT_SECONDS) -> None:
        self._installed = Installed(elements)
        self._doors = doors
        self._seconds = seconds
        self._direct = DirectGate(doors)

    def prepare(self, listener: socket.socket) -> None:
        """`redirect` needs an ordinary listener, at the address of the clients' interface or at the wildcard."""

    def original_destination(self, control: socket.socket) -> Endpoint:
        """What conntrack has as the destination before any rewriting; the socket's own name where it was not
        redirected, or where this kernel tracks no connections.  Raises `GateError`."""
        return _tracked_destination(control)

    def listener(self, leg: Await, ports: PortRange) -> Listener:
        """Listen at `leg.at` if it is ours, else at our address towards the peer, at the same port, with an element
        that leads the peer there.  Raises `GateError`: no route to the peer, no CAP_NET_ADMIN, table gone, no
        port left."""
        with refusal(f"listen at {leg.at}"):
            if is_ours(leg.at.host):
                return self._direct.listener(leg, ports)
        local = towards(leg.peer)

        def attempt(port: int) -> Listener:
            at, here = leg.at.at(port), Endpoint(local, port)
            if self._doors.taken(at, leg.peer):
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
            with ExitStack() as stack:
                expected = self._doors.expect(here, leg.peer)
                stack.callback(expected.close)
                stack.callback(self._doors.reserve(at, leg.peer))
                stack.callback(self._installed.add(awaited(leg.peer, at, here, seconds=self._seconds)))
                return Listener(expected, at, stack.pop_all().close)

        with refusal(f"listen at {leg.at}"):
            return first_free(leg.at.port, ports, attempt)

    def caller(self, leg: Call, ports: PortRange) -> Caller:
        """A socket at `leg.source` if that is ours, else at our address towards `leg.to`, with an element that
        makes the call come from `leg.source`; port 0 there leaves our own port.  Release it once connected: it
        stands in the way of another call to `leg.to`.  Raises `GateError`: as `listener`, or such a call is being made.
        """
        with refusal(f"call {leg.to} from {leg.source}"):
            if is_ours(leg.source.host):
                return self._direct.caller(leg, ports)
        local = towards(leg.to.host)
        with refusal(f"call {leg.to} from {leg.source}"):
            sock = at_any_port(local, ports, bound)
            try:
                return Caller(sock, self._installed.add(called(local, leg.to, leg.source, seconds=self._seconds)))
            except BaseException:
                sock.close()
                raise

    def close(self) -> None:
        """Take away every element that was not released."""
        self._installed.close()
