"""What a supervisor hands over and is told: socket activation and notification, as systemd does both.

**Descriptors** (sd_listen_fds(3)).  A process finds descriptors from number 3 on, as many as LISTEN_FDS says and with
the names of LISTEN_FDNAMES, if LISTEN_PID is its own number.  A listening socket whose name is that of a service is a
listener of that service.  `inherited` takes them once: the variables go, so that no program that we run takes them for
its own.

**Notification** (sd_notify(3)).  One datagram says one or more `NAME=value` lines to the socket in NOTIFY_SOCKET.  It
may carry descriptors: `FDSTORE=1` puts them into the service's descriptor store, from which the next process inherits
them; FDPOLL=0 keeps them there although their peers hang up meanwhile.  `BARRIER=1` carries one end of a pipe: when
systemd has closed it, everything that was said before has been understood.

**Watchdog.**  With WATCHDOG_USEC we must say `WATCHDOG=1` at least that often, and it is said twice as often, from the
sweep of the switchboard: an event loop that stands still is found out.

Where there is no supervisor nothing is said, and every function here does nothing.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import MutableMapping, Sequence

from attrs import define, frozen

__all__ = ["Inherited", "NotifyError", "Supervisor", "inherited"]

FIRST = 3
"""SD_LISTEN_FDS_START."""
MOST_STATUS = 200
BARRIER_SECONDS = 10.0


class NotifyError(Exception):
    """The supervisor did not take what it was told; the text says what and why."""


@frozen
class Inherited:
    """A descriptor that was passed to this process, and its name (`unknown` where it has none)."""

    name: str
    descriptor: int

    def listener(self) -> socket.socket | None:
        """It as a non-blocking socket that listens for TCP; None if it is none, and then it stays open."""
        try:
            sock = socket.socket(fileno=os.dup(self.descriptor))
        except OSError:
            return None  # not a socket at all
        try:
            internet = sock.family in (socket.AF_INET, socket.AF_INET6) and sock.type == socket.SOCK_STREAM
            if internet and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                sock.setblocking(False)
                os.close(self.descriptor)
                return sock
        except OSError:
            pass
        sock.close()
        return None

    def close(self) -> None:
        os.close(self.descriptor)


def inherited(environment: MutableMapping[str, str] = os.environ) -> list[Inherited]:
    """The descriptors that were passed to this process; nothing at the second call.

    They are not passed on to programs that we run.  Numbers that are not open are left out.
    """
    count, pid = environment.pop("LISTEN_FDS", ""), environment.pop("LISTEN_PID", "")
    names = environment.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    found = []
    for index in range(int(count)):
        name = names[index] if index < len(names) and names[index] else "unknown"
        try:
            os.set_inheritable(FIRST + index, False)
        except OSError:
            continue
        found.append(Inherited(name, FIRST + index))
    return found


@define
class Supervisor:
    """Whoever started us and wants to hear from us; by default nobody."""

    address: str = ""
    """Of its datagram socket; a leading @ stands for an abstract name.  Empty: there is none."""
    watchdog: float = 0.0
    """Seconds within which it wants a sign of life; 0: it does not."""
    _next_sign: float = 0.0

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str] = os.environ) -> Supervisor:
        """The one that NOTIFY_SOCKET names, if any.  The variables go."""
        address = environment.pop("NOTIFY_SOCKET", "")
        interval, pid = environment.pop("WATCHDOG_USEC", ""), environment.pop("WATCHDOG_PID", "")
        meant = not pid or pid == str(os.getpid())
        return cls(address, int(interval) / 1e6 if interval.isdecimal() and meant else 0.0)

    def __bool__(self) -> bool:
        return bool(self.address)

    def say(self, *lines: str, descriptors: Sequence[int] = ()) -> None:
        """One message.  Raises `NotifyError`."""
        if not self.address:
            return
        name = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.connect(name)
                socket.send_fds(sock, ["\n".join(lines).encode()], list(descriptors))
        except OSError as error:
            raise NotifyError(f"the supervisor at {self.address} was not told {lines[0]}: {error.strerror}") from error

    def ready(self, status: str) -> None:
        """The start, or a reload, is done.  Raises `NotifyError`."""
        self.say("READY=1", f"STATUS={_one_line(status)}", f"MAINPID={os.getpid()}")

    def reloading(self) -> None:
        """A reload has begun.  Raises `NotifyError`."""
        self.say("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, status: str) -> None:
        """The end has begun.  Raises `NotifyError`."""
        self.say("STOPPING=1", f"STATUS={_one_line(status)}")

    def status(self, text: str) -> None:
        """A line for `systemctl status`.  Raises `NotifyError`."""
        self.say(f"STATUS={_one_line(text)}")

    def sign_of_life(self, now: float) -> None:
        """Called at least once a second, `now` in seconds of a monotonic clock.  Raises `NotifyError`."""
        if self.watchdog and now >= self._next_sign:
            self._next_sign = now + self.watchdog / 2 - 1.0
            self.say("WATCHDOG=1")

    def store(self, name: str, descriptor: int) -> None:
        """Keep `descriptor` under `name` (printable ASCII without a colon, at most 255 characters) for the next
        process.  Raises `NotifyError`."""
        self.say("FDSTORE=1", f"FDNAME={name}", "FDPOLL=0", descriptors=[descriptor])

    def forget(self, name: str) -> None:
        """Drop from the store what has that name.  Raises `NotifyError`."""
        self.say("FDSTOREREMOVE=1", f"FDNAME={name}")

    def barrier(self, seconds: float = BARRIER_SECONDS) -> None:
        """Wait until everything that was said has been taken.  Raises `NotifyError` after `seconds`."""
        if not self.address:
            return
        ours, theirs = os.pipe()
        try:
            try:
                self.say("BARRIER=1", descriptors=[theirs])
            finally:
                os.close(theirs)
            poll = select.poll()
            poll.register(ours, 0)  # only that the other end was closed
            if not poll.poll(seconds * 1000):
                raise NotifyError(f"the supervisor at {self.address} did not take everything within {seconds:g} s")
        finally:
            os.close(ours)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:MOST_STATUS]
