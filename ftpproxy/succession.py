"""Succession: everybody who is here goes on in another process, and everybody who was there in this one.

    leave     who stops for a restart writes each session down, with its sockets, and serves nobody any more
    inherit   who starts makes each session anew on the same sockets, and goes on in the middle of whatever it was

Sessions live under the configuration of the process that they are in: policy, timeouts and planes are those of the new
one, by the name of the service.  Whoever cannot go on (its service is gone, its record is damaged) is told 421, and
the log says why; nobody else is disturbed.  Limits and lists of clients are not asked once more: who is in stays in.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from attrs import evolve, frozen

from .arrival import Arrival
from .endpoints import Side
from .estate import Estate, Inheritance
from .freezing import Unthawable, thaw
from .intercept.interceptor import GateError
from .log import event
from .reception import Reception
from .records import ArrivalRecord, ReceptionRecord, SessionRecord
from .server import Server
from .service import Service
from .session import Session
from .switchboard import Switchboard

__all__ = ["FAREWELL", "Heirs", "inherit", "leave"]

FAREWELL = "The proxy was restarted and this session could not go on."

log = logging.getLogger(__name__)


def leave(server: Server, board: Switchboard, estate: Estate) -> None:
    """Leave everybody, and the listeners, to a successor.  `server` has nobody any more then, and nothing happens on
    the board until the process ends."""

    def write_down(guest: Session | Reception | Arrival) -> None:
        if (record := guest.leave(estate)) is not None:
            estate.note(_KINDS[type(guest)], record)

    server.listeners.leave(estate)
    for guest in server.everybody:
        board.guard(write_down, guest, guest.crashed)
    server.forget()


_KINDS: dict[type, str] = {Session: "session", Reception: "reception", Arrival: "arrival"}


@frozen
class Heirs:
    """What became of those whom a predecessor had left."""

    sessions: int
    others: int
    """Clients on their way to a session."""
    lost: int


def inherit(server: Server, records: Iterable[tuple[str, Any]], inheritance: Inheritance) -> Heirs:
    """Go on with everybody among `records`; records of other kinds are somebody else's."""
    count = dict.fromkeys(_KINDS.values(), 0)
    wanted = [record for record in records if record[0] in count]

    def take_up(record: tuple[str, Any]) -> None:
        kind, left = record
        try:
            _INHERIT[kind](server, left, inheritance)
            count[kind] += 1
        except (Unthawable, GateError, OSError) as error:
            event(log, logging.ERROR, "session.lost", session=_number(left), reason=error)

    for record in wanted:
        Switchboard.guard(take_up, record, _already_logged)
    return Heirs(count["session"], count["reception"] + count["arrival"], len(wanted) - sum(count.values()))


def _already_logged(_: Exception) -> None:
    """What was left of a session cannot be used."""


def _number(left: Any) -> int | None:
    number = left.get("number") if isinstance(left, dict) else None
    return number if type(number) is int else None


def _service(server: Server, name: str) -> Service:
    for service in server.services:
        if service.name == name:
            return service
    raise Unthawable(f'there is no service "{name}" any more')


def _session(server: Server, left: Any, inheritance: Inheritance) -> None:
    record = thaw(left, SessionRecord)
    terms = _service(server, record.service).terms_for(record.client.host)
    end = record.ends.get(Side.CLIENT)
    if end is None and not record.over:
        raise Unthawable("there is no connection to the client")
    calling = record.route is None and not record.over
    if calling:
        terms = evolve(terms, announce=record.announce)
    sock = inheritance.take(end.descriptor) if end is not None else None
    server.count_from(record.number + 1)
    session = server.begin(sock, record.client, record.orig_server, record.server, terms, record.number, call=calling)
    if not calling:
        try:
            session.inherit(record, inheritance)
        except BaseException:
            session.dismiss(FAREWELL)
            session.close()
            raise


def _reception(server: Server, left: Any, inheritance: Inheritance) -> None:
    record = thaw(left, ReceptionRecord)
    service = _service(server, record.service)
    if service.gateway is None:
        raise Unthawable(f'the service "{record.service}" is in gateway mode no more')
    end = record.ends.get(Side.CLIENT)
    if end is None:
        raise Unthawable("there is no connection to the client")
    terms = evolve(service.terms_for(record.client.host), announce=record.announce)
    server.count_from(record.number + 1)
    sock = inheritance.take(end.descriptor)
    reception = server.receive(service.gateway, sock, record.client, record.orig_server, terms, record.number)
    try:
        reception.inherit(record, inheritance)
    except BaseException:
        reception.close()
        raise


def _arrival(server: Server, left: Any, inheritance: Inheritance) -> None:
    record = thaw(left, ArrivalRecord)
    service = _service(server, record.service)
    sock = inheritance.take(record.descriptor)
    server.expect_header(service, sock, record.peer, reader=record.reader, seconds=record.seconds)


_INHERIT = {"session": _session, "reception": _reception, "arrival": _arrival}
