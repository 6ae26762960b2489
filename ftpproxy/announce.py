"""What each side is told instead of our own address, where that is not written in the configuration itself.

A gateway behind another NAT is reached at an address that it does not have, and often that address changes.  It
can come from a `Source`: an interface, a host name, or a file that somebody else keeps up to date.  The `Announcer`
looks at every source again and again, one small task each, and remembers what it said; `Announcements` are what one
service says to whom, and asking them is a look-up in memory.  So no session ever waits for a resolver, and a session
that has been told an address keeps it: its paths and its log agree until it ends.

What the last good look has found stands until a better one.  A source that has never had an answer says nothing, and
the service announces its own address meanwhile: that is right for EPSV and for every client that ignores the address
in 227, and wrong only for those that a refusal would fail as well.  Either is one line in the log, not one a minute.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Mapping, Sequence
from ipaddress import IPv6Network
from typing import ClassVar, Protocol

import trio
from attrs import frozen

from . import files
from .endpoints import IPAddress, Side, parse_address
from .log import event
from .pi.policy import IPNetwork

__all__ = ["OWN", "Addresses", "Announcements", "Announcer", "File", "Interface", "Name", "Source", "Told", "Unknown"]

FILE_SECONDS = 1.0
"""Between two readings of a file.  Reading one line costs as much as asking whether it has changed."""
RETRY_SECONDS = 5.0
"""Until a source that had no answer is asked again, unless it is asked more often anyway."""
NAME_SECONDS = 5.0
"""For a name to be looked up; so long may the start of the service take."""
LARGEST_FILE = 4096

UNIQUE_LOCAL = IPv6Network("fc00::/7")

# linux/if_addr.h
IFA_F_TEMPORARY, IFA_F_DADFAILED, IFA_F_DEPRECATED, IFA_F_TENTATIVE = 0x01, 0x08, 0x20, 0x40
IFA_F_UNFIT = IFA_F_TEMPORARY | IFA_F_DADFAILED | IFA_F_DEPRECATED | IFA_F_TENTATIVE
RT_SCOPE_UNIVERSE = 0

log = logging.getLogger(__name__)

Addresses = tuple[IPAddress, ...]
"""In order of preference; of each family the first counts."""


class Unknown(Exception):
    """A source has no address now; the text says why."""


class Source(Protocol):
    """Where addresses come from.  Equal sources are looked at once; the text is what the log calls it."""

    seconds: ClassVar[float | None]
    """Between two looks; None: as configured."""

    async def look(self) -> Addresses:
        """At least one address.  Raises `Unknown`."""


Told = Addresses | Source
"""What a side is told: addresses that are known for good, or a source."""
OWN: Addresses = ()
"""Our own address: what a side would be told without any `announce`."""


def _of_a_host(host: IPAddress) -> bool:
    """Whether another machine could call it."""
    return not (host.is_unspecified or host.is_multicast or host.is_loopback or host.is_link_local)


@frozen
class Interface:
    """The first global address of each family that a network interface has.

    Not those that IPv6 changes by itself (RFC 8981) or is giving up; unique local ones (RFC 4193) come last.
    """

    name: str
    seconds: ClassVar[float | None] = None

    async def look(self) -> Addresses:
        """One exchange with the kernel, about a millisecond.  Raises `Unknown`."""
        from pyroute2 import IPRoute  # a quarter of a second to import, for the services that need it
        from pyroute2.netlink.exceptions import NetlinkError

        try:
            index = socket.if_nametoindex(self.name)
            with IPRoute() as ip:
                messages = list(ip.get_addr(index=index))
        except (OSError, NetlinkError):
            raise Unknown("there is no such interface") from None
        found = []
        for message in messages:
            if message["scope"] == RT_SCOPE_UNIVERSE and not message.get_attr("IFA_FLAGS", 0) & IFA_F_UNFIT:
                # On point-to-point links IFA_ADDRESS is the peer's (linux/if_addr.h).
                host = parse_address(message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS"))
                if _of_a_host(host):
                    found.append(host)
        if not found:
            raise Unknown("the interface has no global address")
        return tuple(sorted(found, key=lambda host: host in UNIQUE_LOCAL))

    def __str__(self) -> str:
        return f"interface:{self.name}"


@frozen
class Name:
    """The addresses of a host name, as the resolver of this machine finds them.

    Of several the lowest counts, because nameservers turn their order with every answer.  Loopback addresses do not:
    /etc/hosts often gives one to the machine's own name.
    """

    name: str
    seconds: ClassVar[float | None] = None

    async def look(self) -> Addresses:
        """Raises `Unknown`, after `NAME_SECONDS` at the latest."""
        try:
            with trio.fail_after(NAME_SECONDS):
                answers = await trio.socket.getaddrinfo(self.name, None, type=socket.SOCK_STREAM)
        except trio.TooSlowError:
            raise Unknown(f"no answer within {NAME_SECONDS:g} seconds") from None
        except OSError as error:
            raise Unknown(error.strerror or "it cannot be looked up") from None
        except UnicodeError:
            raise Unknown("it is not a host name") from None
        found = {parse_address(str(answer[4][0])) for answer in answers}
        if usable := sorted(filter(_of_a_host, found), key=lambda host: (host.version, int(host))):
            return tuple(usable)
        raise Unknown("it has no address that others could call: " + ", ".join(sorted(map(str, found))))

    def __str__(self) -> str:
        return f"name:{self.name}"


@frozen
class File:
    """One address a line, comments from `#` on; of each family the first counts.

    Who writes it should write it under another name and rename it, so that no half of it is ever read.
    """

    path: str
    seconds: ClassVar[float | None] = FILE_SECONDS

    async def look(self) -> Addresses:
        """Raises `Unknown`, also if a single line is not an address."""
        try:
            octets = files.read(self.path, LARGEST_FILE + 1)
        except OSError as error:
            raise Unknown(error.strerror) from None
        if len(octets) > LARGEST_FILE:
            raise Unknown(f"it is longer than {LARGEST_FILE} octets")
        found = []
        for number, line in enumerate(octets.decode(errors="replace").splitlines(), 1):
            if text := line.partition("#")[0].strip():
                try:
                    host = parse_address(text)
                except ValueError:
                    raise Unknown(f"line {number}: {text!r} is not an IP address") from None
                if not _of_a_host(host):
                    raise Unknown(f"line {number}: {host} is not an address that others could call")
                found.append(host)
        if not found:
            raise Unknown("it has no address")
        return tuple(found)

    def __str__(self) -> str:
        return f"file:{self.path}"


class Announcer:
    """What all sources of a process have said.  `keep` each, then `run`."""

    def __init__(self) -> None:
        self._seconds: dict[Source, float] = {}
        self._known: dict[Source, Addresses] = {}
        self._scope = trio.CancelScope()

    def keep(self, source: Source, seconds: float) -> None:
        """Look at `source` every so many `seconds`, if it leaves that to us.  Asked twice, the shorter time counts."""
        seconds = min(seconds, self._seconds.get(source, seconds))
        self._seconds[source] = seconds if source.seconds is None else source.seconds

    def known(self, told: Told) -> Addresses:
        """What is known now; nothing if a source has never had an answer."""
        return told if isinstance(told, tuple) else self._known.get(told, ())

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look at the sources until `stop`.  Reports as started when each was looked at once."""
        async with trio.open_nursery() as nursery:
            self._scope = nursery.cancel_scope
            first = [trio.Event() for _ in self._seconds]
            for (source, seconds), looked in zip(self._seconds.items(), first, strict=True):
                nursery.start_soon(self._keep, source, seconds, looked)
            for looked in first:
                await looked.wait()
            task_status.started()
            await trio.sleep_forever()

    def stop(self) -> None:
        """`run` returns; what is known stays known."""
        self._scope.cancel()

    async def _keep(self, source: Source, seconds: float, looked: trio.Event) -> None:
        failure = ""
        while True:
            before = self._known.get(source, ())
            try:
                found = await source.look()
            except Exception as error:  # what goes wrong in a look must not end the service
                reason = str(error) if isinstance(error, Unknown) else f"{type(error).__name__}: {error}"
                if failure != (failure := reason):
                    level = logging.WARNING if before else logging.ERROR
                    instead = _text(before) or "our own address"
                    event(log, level, "announce.failed", source=source, reason=failure, announced=instead)
            else:
                self._known[source] = found
                if failure or found != before:
                    event(log, logging.INFO, "announce.changed", source=source, announced=_text(found))
                failure = ""
            looked.set()
            await trio.sleep(min(seconds, RETRY_SECONDS) if failure else seconds)


def _text(addresses: Addresses) -> str:
    return ",".join(map(str, addresses))


@frozen
class Announcements:
    """What one service tells whom."""

    announcer: Announcer
    general: Mapping[Side, Told]
    networks: Sequence[tuple[Sequence[IPNetwork], Mapping[Side, Told]]] = ()
    """Clients that are told something else.  The first that has the client counts; a side that it does not name is told
    what is told in general."""

    def addresses(self, client: IPAddress) -> Mapping[Side, Addresses]:
        """What the two sides of a session of `client` are to be told; nothing for a side that is told our own."""
        told = dict(self.general)
        for networks, instead in self.networks:
            if any(client in network for network in networks):
                told |= instead
                break
        return {side: known for side, each in told.items() if (known := self.announcer.known(each))}
