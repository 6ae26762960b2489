"""`intercept = "none"`: clients dial us, so every address is ours and ordinary sockets do.

The other gates use what stands here for the legs whose addresses are ours (towards the server, mostly).

Why a data socket is bound to a port of our own range, also where any port would do:  left to itself, connect() takes
ports of the ephemeral range, which all other programs of the gateway live on, and skips there every port that carries
a bound socket, TIME_WAIT included; a firewall cannot name such ports either.  Ports of a range of ours that is walked
round come again as late as can be.  SO_REUSEADDR makes TIME_WAIT no obstacle to binding, and several callers may share
a port: connections are told apart by all four numbers.  Only connect() sees a clash of all four (EADDRNOTAVAIL), and a
second `caller` has the next port.  Bind and connect cost 23 us this way, 20 us with IP_BIND_ADDRESS_NO_PORT, and with
bind to port 0 once 10,000 sockets are in TIME_WAIT 2.5 ms and growing.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from ..doors import Doors
from ..endpoints import ANY_PORT, Endpoint, IPAddress
from ..log import event
from ..paths import Await, Call
from ..sockets import bound, family
from .interceptor import Caller, GateError, Listener, NoPortLeft, PortRange

__all__ = ["MOST_TRIES", "DirectGate", "at_any_port", "bind_to_call", "expecting", "first_free", "refusal", "towards"]

log = logging.getLogger(__name__)

MOST_TRIES = 500
"""How many ports one leg tries before it gives up: 12 ms, and with 98 of 100 ports taken one is found all the same."""

_WHY = {
    errno.EADDRNOTAVAIL: "it is not an address of this machine",
    errno.EEXIST: "another connection of the same kind is being set up",
    errno.EACCES: "a port below 1024 needs CAP_NET_BIND_SERVICE: run this as root, or give it the capability",
    errno.EPERM: "an address that is not ours (IP_TRANSPARENT) needs CAP_NET_RAW or CAP_NET_ADMIN: run this as root,"
    " or give it the capability",
}

T = TypeVar("T")


@contextmanager
def refusal(what: str) -> Iterator[None]:
    """Turn an `OSError` into the `GateError` that says that `what` cannot be done, and why."""
    try:
        yield
    except OSError as error:
        why = _WHY.get(error.errno or 0) or error.strerror or str(error)
        raise GateError(f"cannot {what}: {why}") from error


def first_free(wanted: int, ports: PortRange, attempt: Callable[[int], T]) -> T:
    """What `attempt(port)` returns for `wanted`, or if that is 0 for the first of `ports` that is free.

    A port is not free if `attempt` raises EADDRINUSE or EEXIST; any other `OSError` is raised.  Raises `NoPortLeft`.
    """
    for port in (wanted,) if wanted != ANY_PORT else ports.once_round(MOST_TRIES):
        try:
            return attempt(port)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EEXIST):
                raise
    if wanted != ANY_PORT:
        raise NoPortLeft(f"port {wanted} is taken")
    raise NoPortLeft(f"no port is left in {ports} ({min(len(ports), MOST_TRIES)} tried); more data_ports are needed")


def bind_to_call(source: Endpoint, ports: PortRange, bind: Callable[[Endpoint], socket.socket]) -> socket.socket:
    """A socket bound to `source`; where its port is 0, or cannot be had, to another port of the same host.

    Port 20 as the source is a courtesy (RFC 959 section 3.2), a data connection from elsewhere is better than none.
    Raises `OSError`.
    """
    if source.port != ANY_PORT:
        try:
            return bind(source)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EADDRINUSE):
                raise
            event(log, logging.DEBUG, "gate.source_port_denied", source=source, reason=os.strerror(error.errno))
    return at_any_port(source.host, ports, bind)


def at_any_port(host: IPAddress, ports: PortRange, bind: Callable[[Endpoint], socket.socket]) -> socket.socket:
    """A socket bound to one of `ports`, or where others listen at all of them to one that the kernel chooses: a service
    with few ports may have a door at each.  Raises `OSError`."""
    try:
        return first_free(ANY_PORT, ports, lambda port: bind(Endpoint(host, port)))
    except NoPortLeft:
        return bind(Endpoint(host, ANY_PORT))


def expecting(leg: Await, ports: PortRange, doors: Doors, *, transparent: bool = False) -> Listener:
    """Expect `leg.peer` at `leg.at` itself.  Raises `GateError`, `OSError`."""
    expected = first_free(
        leg.at.port, ports, lambda port: doors.expect(leg.at.at(port), leg.peer, transparent=transparent)
    )
    return Listener(expected, expected.at, expected.close)


def towards(peer: IPAddress) -> IPAddress:
    """The address of ours from which packets to `peer` leave.  Raises `GateError`."""
    with refusal(f"find our address towards {peer}"), socket.socket(family(peer), socket.SOCK_DGRAM) as probe:
        probe.connect((str(peer), 9))  # connecting sends nothing; any port will do
        local = Endpoint.from_sockaddr(probe.getsockname()).host
    if local.is_loopback and not peer.is_loopback:
        raise GateError(f"{peer} is not reached from any address but loopback")
    return local


class DirectGate:
    """Ordinary sockets at addresses of this machine."""

    def __init__(self, doors: Doors) -> None:
        self._doors = doors

    def prepare(self, listener: socket.socket) -> None:
        """An ordinary listener needs nothing."""

    def original_destination(self, control: socket.socket) -> Endpoint:
        """Where the connection arrived is where it was sent."""
        return Endpoint.from_sockaddr(control.getsockname())

    def listener(self, leg: Await, ports: PortRange) -> Listener:
        """Listen at `leg.at`.  Raises `GateError`: not our address, no port left, no right to that port."""
        with refusal(f"listen at {leg.at}"):
            return expecting(leg, ports, self._doors)

    def caller(self, leg: Call, ports: PortRange) -> Caller:
        """A socket bound to `leg.source`, if need be to another port of it.  Raises `GateError`: not our address.
        EADDRNOTAVAIL from the owner's connect means that this very connection exists (or sits in
        TIME_WAIT): another call of `caller`, with `leg.source` at port 0, gives another port."""
        with refusal(f"call {leg.to} from {leg.source}"):
            return Caller(bind_to_call(leg.source, ports, bound))

    def close(self) -> None:
        """Nothing was installed."""
