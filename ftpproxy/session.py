"""A session: one control connection, the only place where sockets, the interpreter and a data plane meet.

It holds no knowledge of FTP and never awaits.  The switchboard calls it for each event of its two sockets, its
carriage (carriage.py) for each event of its data connections, the sweep once a second; each call is handled to its end
by the same loop (`_pump`): ask the interpreter for actions, perform them, until it needs octets; then write what there
is to write and say what to wait for.

                 readable            connected, failed, finished
    channels ----------------+  +---------------------------------  carriage
                             v  v
                            _pump  <------------------------------  sweep (timers)
                             |  next_action -> _perform
                             v
                             send  ->  channels

Backpressure: while more than `MOST_UNSENT` octets wait for the client, neither side is read; while they wait for the
server, the client is not.  Idle time stands still while a data connection carries.  Whatever goes wrong in here
ends this session and nothing else.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable

from .carriage import Carriage
from .channels import Channel, Channels
from .dial import Dial
from .endpoints import Endpoint, Side
from .estate import Estate, Inheritance
from .freezing import Unthawable, freeze, restore
from .metrics import counts
from .pi.actions import Action, Arm, Chunk, Denied, Hangup, LoginFailed, Need, Timer
from .pi.handover import HandOver
from .pi.insight import probing
from .pi.interpreter import ProtocolInterpreter
from .reasons import Code, Reason, code_of
from .records import End, SessionRecord
from .routes import Route
from .switchboard import READ, Switchboard
from .tap import Tap
from .terms import Terms
from .watched import Watched
from .wire.reply import reply

__all__ = ["Session", "Terms"]

FAREWELL_SECONDS = 5.0
"""For a peer that does not read to take our last words."""

CLIENT, SERVER = Side.CLIENT, Side.SERVER

log = logging.getLogger(__name__)


class Session(Watched):
    """From the accepted client to the last octet of its last data connection."""

    __slots__ = (
        "_board",
        "_channels",
        "_deadlines",
        "_dial",
        "_ended",
        "_farewell_until",
        "_interpreter",
        "_last_word",
        "_opened_at",
        "_route",
        "_terms",
        "carriage",
        "client",
        "number",
        "orig_server",
        "over",
        "server",
    )

    def __init__(
        self,
        number: int,
        client_sock: socket.socket | None,
        *,
        client: Endpoint,
        orig_server: Endpoint,
        server: Endpoint,
        terms: Terms,
        board: Switchboard,
        ended: Callable[[Session], None],
        ours: Callable[[Endpoint], bool] = lambda _: False,
        call: bool = True,
    ) -> None:
        """Takes the socket and calls the server, or waits for `take_over` or `inherit`.  `ended` is called once, when
        everything is closed; `ours` tells whether a call to an endpoint would come back to us.

        Never raises for what a network can do: then the client is told 421.
        """
        self.number = number
        self.client = client
        self.orig_server = orig_server
        self.server = server
        self.over = False
        self.taps: tuple[Tap, ...] = ()
        """Who watches what is said."""
        self._terms = terms
        self._board = board
        self._ended = ended
        self._channels = Channels()
        if client_sock is not None:
            self._open_channel(CLIENT, client_sock)
        self._route: Route | None = None
        """Once there is a server."""
        self._interpreter: ProtocolInterpreter | None = None
        self.carriage = Carriage(self, terms, board, ours)
        """Its data connections."""
        self._deadlines: dict[Timer, float] = {}
        self._farewell_until = 0.0
        self._last_word = self._opened_at = board.now
        self._dial: Dial | None = None
        if call:
            source = terms.source if terms.source and terms.source.version == server.host.version else None
            self._dial = Dial(
                board,
                server,
                source,
                terms.timeouts.connect,
                first=terms.first_words(client, orig_server),
                answered=self.take_over,
                unanswered=self._unanswered,
                on_crash=self.crashed,
            )

    # The call to the server

    def _unanswered(self, why: Reason) -> None:
        self._dial = None
        self.log(logging.WARNING, "server.unreachable", server=self.server, code=why.code, reason=why)
        self.dismiss(Reason(why.code, f"Cannot reach the server {self.server}: {why}."))

    def take_over(self, sock: socket.socket, handover: HandOver | None = None) -> None:
        """Go on with this connection to the server; `handover` tells what was said on it."""
        self._dial = None
        terms = self._terms
        self._open_channel(SERVER, sock)
        proxy = Endpoint.from_sockaddr(sock.getsockname())
        announce = terms.announced(self.client.host, self.server.host)
        self._route = Route(self.client, self.orig_server, self.server, proxy, announce)
        self._interpreter = self._interpreter_for(self._route, handover)
        self.log(
            logging.INFO,
            "session.open",
            service=terms.service,
            orig_server=self.orig_server,
            server=self.server,
            proxy=proxy,
        )
        self._pump()

    def _interpreter_for(self, route: Route, handover: HandOver | None = None) -> ProtocolInterpreter:
        return ProtocolInterpreter(
            route,
            self._terms.policy,
            self._terms.timeouts,
            active_source_port=self._terms.active_source_port,
            translate=self._terms.translate,
            handover=handover,
        )

    # To a successor, and from a predecessor

    def leave(self, estate: Estate) -> SessionRecord:
        """Write it down for a successor; it is of no further use here."""
        now = self._board.now
        view = self._look()
        told = view is None or not view.unread
        if self._farewell_until:  # last words that nobody reads are not worth a process
            self._channels[CLIENT].close()
        ends = {side: channel.leave(estate, client=told and side is CLIENT) for side, channel in self._channels.items()}
        return SessionRecord(
            number=self.number,
            service=self.service,
            client=self.client,
            orig_server=self.orig_server,
            server=self.server,
            ends={side: End(*end) for side, end in ends.items() if end is not None},
            route=self._route,
            announce={side: tuple(hosts) for side, hosts in self._terms.announce.items()},
            interpreter=self._interpreter and freeze(self._interpreter),
            carriage=self.carriage.leave(estate),
            deadlines={timer: deadline - now for timer, deadline in self._deadlines.items()},
            quiet=now - self._last_word,
            age=now - self._opened_at,
            over=self.over,
        )

    def inherit(self, record: SessionRecord, inheritance: Inheritance) -> None:
        """Go on where a predecessor has left off, with a server.  Raises `Unthawable`, `OSError`: then it is to be
        closed."""
        now = self._board.now
        self.over = record.over
        if (end := record.ends.get(SERVER)) is not None:
            self._open_channel(SERVER, inheritance.take(end.descriptor))
        elif not self.over:
            raise Unthawable("there is no connection to the server")
        for side, channel in self._channels.items():
            channel.inherit(record.ends[side].unsent)
        interpreter = None
        if record.route is not None:
            self._route = record.route
            interpreter = self._interpreter_for(record.route)
            restore(interpreter, record.interpreter)
        self._deadlines = {timer: now + seconds for timer, seconds in record.deadlines.items()}
        self._last_word, self._opened_at = now - record.quiet, now - record.age
        carriage_goes_on = self.carriage.inherit(record.carriage, inheritance)
        self._interpreter = interpreter

        def go_on(_: float) -> None:
            carriage_goes_on(interpreter)
            if not self.over:
                self._pump()
            self._gone_if_done()

        self._board.soon(go_on, self.crashed)

    def _open_channel(self, side: Side, sock: socket.socket) -> None:
        happened = self._client_event if side is CLIENT else self._server_event
        self._channels[side] = Channel(sock, self._board, happened, self.crashed, self._terms.timeouts.keepalive)

    # Events

    def _client_event(self, events: int) -> None:
        self._channel_event(CLIENT, events)

    def _server_event(self, events: int) -> None:
        self._channel_event(SERVER, events)

    def _channel_event(self, side: Side, events: int) -> None:
        channel = self._channels[side]
        if self._farewell_until:
            self._say_farewell()
            return
        try:
            octets = channel.receive() if events & READ else None
        except OSError as error:
            self._lost(side, error)
            return
        if octets is not None:
            assert self._interpreter is not None
            if side is CLIENT or not probing(self._interpreter):
                self._last_word = self._board.now
            for tap in self.taps:
                tap.heard(side, octets)
            self._interpreter.receive(side, octets)
        self._pump()

    # From the carriage

    def tell(self, what: Callable[[ProtocolInterpreter], None]) -> None:
        """Something of a data connection that the interpreter must know."""
        if self._interpreter is not None:
            what(self._interpreter)
            self._board.guard(self._pump, None, self.crashed)

    def carried(self, *, nothing_left: bool) -> None:
        """A data connection has come to its end."""
        self._last_word = self._board.now
        if nothing_left:
            self._gone_if_done()

    def sweep(self, now: float) -> None:
        """Look at the deadlines; called once a second."""
        if not self.over and (breach := self._channels.breach()) is not None:
            self._lost(*breach)
            return
        if self._dial is not None:
            self._dial.sweep(now)
        elif self._farewell_until and now >= self._farewell_until:
            self._close_channels()
        elif self._interpreter is not None and not self.over:
            due = [timer for timer, deadline in self._deadlines.items() if now >= deadline]
            if self.carriage.undecided:  # soon; until then the interpreter's clocks stand still
                due.clear()
            for timer in due:
                del self._deadlines[timer]
                self._interpreter.timer(timer)
            if self.carriage.busy:
                self._last_word = now
            if now - self._last_word >= self._terms.timeouts.idle:
                self.dismiss(Reason(Code.IDLE, "Idle for too long."))
            elif due:
                self._pump()

    def dismiss(self, text: str) -> None:
        """End it; the client is told why.  `text` is mostly a `Reason`; without one it was an operator's wish."""
        if self.over:
            return
        if self._interpreter is not None:
            self.carriage.stop_opening()
            self._interpreter.dismiss(text)
            self._pump()
            return
        farewell = [Chunk(reply(421, text))]
        for tap in self.taps:
            tap.told(CLIENT, farewell)
        try:
            self._channels[CLIENT].send(farewell)
        except OSError:
            pass  # the client is gone as well
        self._end(text)

    def close(self) -> None:
        """End it now, whatever is unsent."""
        self._end(Reason(Code.SHUTDOWN, "closed"))
        self.carriage.close()
        self._close_channels()

    def crashed(self, error: Exception) -> None:
        """Something in here went wrong; the switchboard has logged it."""
        self._end(Reason(Code.INTERNAL, f"internal error: {type(error).__name__}"))

    # The loop

    def _pump(self, _: None = None) -> None:
        """Ask and perform until the interpreter waits for octets, then write, then wait."""
        interpreter = self._interpreter
        assert interpreter is not None
        of_client, of_server = self._perform_all(interpreter)
        if self.over:
            return
        if not self._write(interpreter):
            return
        if (spec := interpreter.foresee()) is not None:  # while the server thinks about PASV
            self.carriage.foresee(spec)
        self._channels.read(client=of_client is Need.DATA, server=of_server is Need.DATA)

    def _write(self, interpreter: ProtocolInterpreter) -> bool:
        """Write what there is; False if a side is gone."""
        try:
            for side, channel in self._channels.items():
                if (chunks := interpreter.take_output(side)) or channel.unsent:
                    for tap in self.taps:
                        tap.told(side, chunks)
                    channel.send(chunks)
        except OSError as error:
            self._lost(side, error)
            return False
        return True

    def _perform_all(self, interpreter: ProtocolInterpreter) -> tuple[Need, Need]:
        """Until neither the client's side nor the server's has an action; what they need.  The server first: its reply
        may be what a held command waits for."""
        while True:
            server, _ = self._perform_for(interpreter, SERVER)
            client, moved = self._perform_for(interpreter, CLIENT)
            if not moved:
                return client, server

    def _perform_for(self, interpreter: ProtocolInterpreter, side: Side) -> tuple[Need, bool]:
        """Until `side` has no action; whether it had one.  Nothing is asked while a plane makes up its mind: what comes
        behind a set-up command depends on that."""
        moved = False
        while not self.carriage.undecided:
            action = interpreter.next_action(side)
            if isinstance(action, Need):
                return action, moved
            moved = True
            self._perform(interpreter, action)
        return Need.PEER, moved

    def _perform(self, interpreter: ProtocolInterpreter, action: Action) -> None:
        if isinstance(action, Arm):
            self._deadlines[action.timer] = self._board.now + action.seconds
        elif isinstance(action, Hangup):
            self._hang_up(interpreter, action)
        elif isinstance(action, Denied):
            counts.denials[self.service, action.rule] += 1
            self.log(logging.INFO, "command.denied", code=action.code, rule=action.rule, what=action.what)
        elif isinstance(action, LoginFailed):
            counts.failed_logins[self.service, Code.SERVER_DENIED] += 1
            self.log(logging.INFO, "login.failed", code=Code.SERVER_DENIED, user=action.user)
        else:
            self.carriage.perform(interpreter, action)

    # The end

    def _hang_up(self, interpreter: ProtocolInterpreter, action: Hangup) -> None:
        for side, channel in self._channels.items():
            chunks = interpreter.take_output(side)
            for tap in self.taps:
                tap.told(side, chunks)
            try:
                channel.send(chunks)
            except OSError:
                pass  # it is the end anyway
        self._end(action.reason, drain=action.drain)

    def _lost(self, side: Side, error: OSError) -> None:
        """A control connection broke.  What a server has sent in full may still reach its client."""
        code = Code.CLIENT_GONE if side is CLIENT else Code.SERVER_GONE
        self._end(Reason(code, f"the {side} is gone: {error.strerror}"), drain=side is SERVER)

    def _end(self, reason: str, *, drain: bool = False) -> None:
        """Close both control connections, and the paths unless they may `drain`."""
        if self.over:
            return
        self.over = True
        if self._dial is not None:
            self._dial.close()
            self._dial = None
        self.carriage.end(drain=drain)
        seconds = f"{self._board.now - self._opened_at:.1f}"
        code = code_of(reason, Code.OPERATOR)
        counts.sessions[self.service, code] += 1
        self.log(
            logging.INFO,
            "session.close",
            code=code,
            reason=reason,
            transfers=self.carriage.transfers,
            seconds=seconds,
        )
        if self._channels[CLIENT].unsent:
            self._farewell_until = self._board.now + FAREWELL_SECONDS
            if (server := self._channels.get(SERVER)) is not None:
                server.close()
            self._channels[CLIENT].want(read=False)
        else:
            self._close_channels()

    def _say_farewell(self) -> None:
        """The client has taken some of our last words."""
        try:
            self._channels[CLIENT].flush()
        except OSError:
            pass  # it will not hear the rest, and flush would be tried again and again
        else:
            if self._channels[CLIENT].unsent:
                return
        self._close_channels()

    def _close_channels(self) -> None:
        self._farewell_until = 0.0
        self._channels.close()
        self._gone_if_done()

    def _gone_if_done(self) -> None:
        if self.over and not self._farewell_until and not self.carriage:
            self._ended(self)
