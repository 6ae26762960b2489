"""From one process to the next: how an estate gets there, and who gets what of it.

    systemd     `systemctl restart` ends us with SIGUSR2 (RestartKillSignal=) and keeps our one descriptor in its store
                (FDSTORE=1) until the next process finds it among those that it is passed
    by itself   without a supervisor SIGUSR2 starts the program anew in this process (execve(2)), with the descriptor,
                if its configuration can be read

Who starts takes the estate in the order in which things are needed: the listeners when it listens, the table before it
would load one, sessions and all others last, when everything stands that serves them.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Callable, MutableMapping
from typing import Any

from .. import netfilter
from ..activation import Inherited, NotifyError, Supervisor
from ..config import Config, ConfigError
from ..doors import DoorRecord, Doors
from ..endpoints import Endpoint
from ..estate import Estate, EstateError, Inheritance, Unreadable
from ..freezing import Unthawable, thaw
from ..log import event
from ..records import ListenerRecord
from ..server import Server
from ..succession import FAREWELL, inherit, leave
from ..switchboard import Switchboard
from ..table import Claim
from ..wire.reply import reply

__all__ = ["ESTATE", "Heritage", "Successor"]

ESTATE = "ftpproxy-estate"
"""Its name in a descriptor store."""
VARIABLE = "FTPPROXY_ESTATE"
"""Its number, for a process that goes on as another program."""

PROGRAM = __file__
"""One file of the program, for all: whether its successor can be started at all."""

log = logging.getLogger(__name__)


class Heritage:
    """What a predecessor has left, if there was one."""

    def __init__(self, supervisor: Supervisor, inheritance: Inheritance | None = None) -> None:
        self._supervisor = supervisor
        self._inheritance = inheritance
        self._records: list[tuple[str, Any]] = []
        self._listeners: dict[Endpoint, socket.socket] = {}
        if inheritance is not None:
            try:
                self._records = inheritance.read()
            except Unreadable as error:
                event(log, logging.ERROR, "restart.unreadable", reason=error)

    @classmethod
    def found(
        cls,
        passed: list[Inherited],
        supervisor: Supervisor,
        environment: MutableMapping[str, str] = os.environ,
    ) -> Heritage:
        """The estate among what was `passed` to us, from which it goes, or in our environment."""
        descriptors = [each.descriptor for each in passed if each.name == ESTATE]
        passed[:] = [each for each in passed if each.name != ESTATE]
        number = environment.pop(VARIABLE, "")
        if number.isdecimal():
            descriptors.append(int(number))
        for descriptor in descriptors[1:]:
            os.close(descriptor)  # nobody takes up two
        if not descriptors:
            return cls(supervisor)
        try:
            queue = socket.socket(fileno=os.dup(descriptors[0]))
            os.close(descriptors[0])
            return cls(supervisor, Inheritance(queue))
        except (Unreadable, OSError) as error:
            event(log, logging.ERROR, "restart.unreadable", reason=error)
        heritage = cls(supervisor)
        heritage._forget()
        return heritage

    def listeners(self) -> dict[Endpoint, socket.socket]:
        """Listening sockets by where the configuration had them; who needs one takes it out."""
        found = self._listeners
        for left in self._of("listener"):
            try:
                record = thaw(left, ListenerRecord)
                assert self._inheritance is not None
                found[record.wanted] = self._inheritance.take(record.descriptor)
            except Unthawable as error:
                event(log, logging.ERROR, "restart.damaged", what="listener", reason=error)
        return found

    def table(self, elements: netfilter.Elements) -> bool:
        """Let `elements` know what stands in our table; whether there is one."""
        for left in self._of("table"):
            try:
                record = thaw(left, netfilter.TableRecord)
            except Unthawable as error:
                event(log, logging.ERROR, "restart.damaged", what="table", reason=error)
            else:
                elements.inherit(record)
                return True
        return False

    def clear_table(self) -> None:
        """Remove the table that a predecessor has left, as nobody here needs one."""
        if not self._of("table"):
            return
        claim = Claim(share=True)
        try:
            claim.adopt()  # where another process has it, it stays
            claim.close()
        except netfilter.NetfilterError as error:
            event(log, logging.ERROR, "table.left", reason=error)

    def sessions(self, server: Server, doors: Doors, elements: netfilter.Elements | None) -> None:
        """Go on with everybody, tell those who cannot go on, and close and remove the rest."""
        if (inheritance := self._inheritance) is None:
            return
        self._inheritance = None
        for left in self._of("door"):
            try:
                doors.inherit(thaw(left, DoorRecord), inheritance)
            except Unthawable as error:
                event(log, logging.ERROR, "restart.damaged", what="door", reason=error)
        heirs = inherit(server, self._records, inheritance)
        doors.drop_left()
        if elements is not None:
            try:
                elements.drop_left()
            except OSError as error:  # they time out
                event(log, logging.WARNING, "restart.damaged", what="element", reason=error)
        for why in inheritance.damaged:
            event(log, logging.ERROR, "restart.damaged", what="record", reason=why)
        event(
            log,
            logging.INFO,
            "restart.inherited",
            sessions=heirs.sessions,
            others=heirs.others or None,
            lost=heirs.lost + len(inheritance.damaged) or None,
            told=inheritance.refuse(reply(421, FAREWELL)) or None,
            program=inheritance.program or None,
        )
        inheritance.close()
        self._records.clear()
        self._close_listeners()
        self._forget()

    def close(self) -> None:
        """The start has failed: tell everybody.  Nothing happens when it has not."""
        self._close_listeners()
        if self._inheritance is not None:
            self._inheritance.refuse(reply(421, FAREWELL))
            self._inheritance.close()
            self._inheritance = None

    def _forget(self) -> None:
        """It need not be kept any more."""
        try:
            self._supervisor.forget(ESTATE)
        except NotifyError as error:  # then it will be found empty
            event(log, logging.WARNING, "supervisor.deaf", reason=error)

    def _close_listeners(self) -> None:
        for sock in self._listeners.values():
            sock.close()
        self._listeners.clear()

    def _of(self, kind: str) -> list[Any]:
        return [left for name, left in self._records if name == kind]


class Successor:
    """The process that comes next, once somebody has asked for it."""

    def __init__(self, supervisor: Supervisor, read: Callable[[], Config], file: str | None = None) -> None:
        """`read` reads the configuration again; `file` is where it was read, if it is a file's."""
        self._supervisor = supervisor
        self._read = read
        self._file = file
        self._queue: socket.socket | None = None
        self.left = False
        """Everything has gone to it: nothing is to be closed, removed or said any more."""

    def possible(self) -> bool:
        """Whether it would start; said in the log if not.  (Before systemd ends us it asks the same: ExecStartPre=.)"""
        if self._supervisor:
            return True
        try:
            self._read()
        except ConfigError as error:
            for problem in error.problems:
                event(log, logging.ERROR, "restart.refused", file=self._file, reason=problem)
            return False
        for path, needed in ((sys.executable, os.X_OK), (PROGRAM, os.R_OK)):
            if not os.access(path, needed, effective_ids=os.access in os.supports_effective_ids):
                why = f"the user of this process may not use {path}; install it where everybody may, such as /opt"
                event(log, logging.ERROR, "restart.refused", reason=why)
                return False
        return True

    def provide(self, server: Server, board: Switchboard, doors: Doors, elements: netfilter.Elements | None) -> None:
        """Leave it everything that is here; the others have nothing of it afterwards.

        Where that cannot be, clients are told, and sessions end.
        """
        estate = Estate()
        sessions = len(server.sessions)
        leave(server, board, estate)
        doors.leave(estate)
        if elements is not None:
            estate.note("table", elements.leave())
        try:
            self._queue = estate.sealed()
            if self._supervisor:
                self._supervisor.store(ESTATE, self._queue.fileno())
                self._supervisor.barrier()
        except (EstateError, NotifyError) as error:
            told = estate.refuse(reply(421, FAREWELL))
            event(log, logging.ERROR, "restart.failed", sessions=sessions, told=told, reason=error)
        else:
            self.left = True
            event(log, logging.INFO, "restart.left", sessions=sessions)

    def begin(self) -> int:
        """Become it, unless somebody else starts it; then it is for us to end, with the exit code that is returned."""
        assert self._queue is not None
        if self._supervisor:
            return os.EX_OK
        os.set_inheritable(self._queue.fileno(), True)
        sys.stdout.flush()
        sys.stderr.flush()
        try:
            os.execve(sys.executable, sys.orig_argv, {**os.environ, VARIABLE: str(self._queue.fileno())})
        except OSError as error:
            event(log, logging.CRITICAL, "restart.failed", reason=error)
            return 1
