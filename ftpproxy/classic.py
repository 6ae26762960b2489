"""The log of ftp-proxy(8), for whoever greps for its sentences: the same events, in its words and at its priorities.

    #17 FTP session 3/100 started: client 10.77.1.2 to server 192.0.2.7 via proxy 198.51.100.1
    #17 passive: client to server port 50123 via port 21877
    #17 active: server to client port 40001 via port 24810

Both kinds are LOG_INFO there, and its default shows LOG_NOTICE, so events have another rank here than their level says:
`Ranks` knows it, drops what is beyond, and lets the loggers make no more than what may be read.  An event that the
original has no sentence for is its name with its fields, as in syslog otherwise.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from .endpoints import Endpoint
from .logforms import fields_of, priority, quote, traceback_lines
from .paths import Await, Call, PathSpec

__all__ = ["ClassicFormatter", "Ranks"]

ERR, NOTICE, INFO = 3, 5, 6
"""Of syslog(3)."""
RANKS = {
    "data.open": INFO,
    "listening": NOTICE,
    "session.refused": ERR,
    "stopping": ERR,
}
"""By event, where it is not the rank of its level."""


class Ranks:
    """A filter for a handler: what ftp-proxy(8) would log up to a priority."""

    def __init__(self) -> None:
        self._most = INFO

    def let_through(self, level: int) -> int:
        """From now on as much as `level` (of logging) says.  Returns the level that the loggers need for that."""
        self._most = priority(logging.LogRecord("", level, "", 0, "", (), None))
        if self._most >= INFO:
            return logging.DEBUG
        return logging.INFO if self._most >= ERR else logging.ERROR

    def filter(self, record: logging.LogRecord) -> bool:
        rank = RANKS.get(str(record.msg))
        if rank is not None:
            record.priority = rank
        return priority(record) <= self._most


class ClassicFormatter(logging.Formatter):
    """Sentences, each with the number of its session in front."""

    def __init__(self, most_sessions: Mapping[str, int]) -> None:
        """`most_sessions` of each service, by its name."""
        super().__init__()
        self._most = most_sessions
        self._sessions: dict[object, str] = {}
        """The service of each session that has started and not ended."""

    def format(self, record: logging.LogRecord) -> str:
        fields = dict(fields_of(record))
        session = fields.pop("session", None)
        sentence = SENTENCES.get(record.getMessage())
        if record.msg == "session.open":
            text = self._started(session, fields)
        elif sentence is not None:
            text = sentence(fields)
        else:
            text = " ".join((record.getMessage(), *(f"{key}={quote(value)}" for key, value in fields.items())))
        if record.msg == "session.close":
            self._sessions.pop(session, None)
        if session is not None:
            text = f"#{session} {text}"
        return " | ".join((text, *traceback_lines(record)))

    def _started(self, session: object, fields: Mapping[str, object]) -> str:
        service = str(fields["service"])
        self._sessions[session] = service
        count = sum(each == service for each in self._sessions.values())
        client, server, proxy = (_host(fields[name]) for name in ("client", "server", "proxy"))
        return (
            f"FTP session {count}/{self._most.get(service, count)} started:"
            f" client {client} to server {server} via proxy {proxy}"
        )


def _host(endpoint: object) -> str:
    return str(endpoint.host) if isinstance(endpoint, Endpoint) else quote(endpoint)


def _port(endpoint: object) -> str:
    return str(endpoint.port) if isinstance(endpoint, Endpoint) else "?"


def _data_connection(fields: Mapping[str, object]) -> str:
    spec = fields["spec"]
    assert isinstance(spec, PathSpec)
    client, server = spec.client, spec.server
    client_calls, server_calls = _port(fields.get("client_calls")), _port(fields.get("server_calls"))
    if isinstance(server, Call):
        if isinstance(client, Await):
            return f"passive: client to server port {server.to.port} via port {client_calls}"
        return f"active to passive: to client port {client.to.port}, to server port {server.to.port}"
    if isinstance(client, Call):
        return f"active: server to client port {client.to.port} via port {server_calls}"
    return f"passive to active: client via port {client_calls}, server via port {server_calls}"


def _listening(fields: Mapping[str, object]) -> str:
    return f"listening on {_host(fields['at'])} port {_port(fields['at'])}"


def _ended(fields: Mapping[str, object]) -> str:
    return f"FTP session ended: {quote(fields.get('reason'))}"


SENTENCES: dict[str, Callable[[Mapping[str, object]], str]] = {
    "data.open": _data_connection,
    "listening": _listening,
    "session.close": _ended,
}
