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
from .channels import MOST_UNSENT, Channel
from .dial import Dial
from .endpoints import Endpoint, Side
from .glance import Glance, load_of, text
from .log import event
from .metrics import counts
from .pi.actions import Action, Arm, Chunk, Denied, Hangup, LoginFailed, Need, Timer
from .pi.handover import HandOver
from .pi.insight import Insight, insight, probing
from .pi.interpreter import ProtocolInterpreter
from .reasons import Code, Reason, code_of
from .routes import Route
from .switchboard import READ, Switchboard
from .tap import Tap, Trace
from .terms import Terms
from .wire.reply import reply

__all__ = ["Session", "Terms"]

FAREWELL_SECONDS = 5.0
"""For a peer that does not read to take our last words."""

CLIENT, SERVER = Side.CLIENT, Side.SERVER

log = logging.getLogger(__name__)


class Session:
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
        "_terms",
        "carriage",
        "client",
        "number",
        "orig_server",
        "over",
        "server",
        "taps",
    )

    def __init__(
        self,
        number: int,
        client_sock: socket.socket,
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
        """Takes the socket and calls the server, or waits for `take_over`.  `ended` is called once, when everything
        is closed; `ours` tells whether a call to an endpoint would come back to us.

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
        self._channels = {
            CLIENT: Channel(client_sock, board, self._client_event, self.crashed, terms.timeouts.keepalive)
        }
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

    @property
    def terms(self) -> Terms:
        """What it began with, and keeps."""
        return self._terms

    @property
    def service(self) -> str:
        """The name of the service that it belongs to."""
        return self._terms.service

    # The call to the server

    def _unanswered(self, why: Reason) -> None:
        self._dial = None
        self.log(logging.WARNING, "server.unreachable", server=self.server, code=why.code, reason=why)
        self.dismiss(Reason(why.code, f"Cannot reach the server {self.server}: {why}."))

    def take_over(self, sock: socket.socket, handover: HandOver | None = None) -> None:
        """Go on with this connection to the server; `handover` tells what was said on it."""
        self._dial = None
        terms = self._terms
        keepalive = terms.timeouts.keepalive
        self._channels[SERVER] = Channel(sock, self._board, self._server_event, self.crashed, keepalive)
        proxy = Endpoint.from_sockaddr(sock.getsockname())
        announce = terms.announced(self.client.host, self.server.host)
        route = Route(self.client, self.orig_server, self.server, proxy, announce)
        self._interpreter = ProtocolInterpreter(
            route,
            terms.policy,
            terms.timeouts,
            active_source_port=terms.active_source_port,
            translate=terms.translate,
            handover=handover,
        )
        self.log(
            logging.INFO,
            "session.open",
            service=terms.service,
            orig_server=self.orig_server,
            server=self.server,
            proxy=proxy,
        )
        self._pump()

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
        if not self.over and self._vanished():
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

    def _vanished(self) -> bool:
        """Whether a side that is not read at present has reset its connection, which nobody else would tell us."""
        for side, channel in self._channels.items():
            if (error := channel.breach()) is not None:
                self._lost(side, error)
                return True
        return False

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
        needs = self._perform_all(interpreter)
        if self.over:
            return
        try:
            for side, channel in self._channels.items():
                if (chunks := interpreter.take_output(side)) or channel.unsent:
                    for tap in self.taps:
                        tap.told(side, chunks)
                    channel.send(chunks)
        except OSError as error:
            self._lost(side, error)
            return
        # What a client says makes both of them speak, what a server says only the client.
        client, server = self._channels[CLIENT], self._channels[SERVER]
        clear = client.unsent <= MOST_UNSENT
        client.want(read=needs[CLIENT] is Need.DATA and clear and server.unsent <= MOST_UNSENT)
        server.want(read=needs[SERVER] is Need.DATA and clear)

    def _perform_all(self, interpreter: ProtocolInterpreter) -> dict[Side, Need]:
        """Until neither side has an action.  The server first: its reply may be what a held command waits for."""
        needs = {CLIENT: Need.PEER, SERVER: Need.PEER}
        moved = True
        while moved:
            moved = False
            for side in (SERVER, CLIENT):
                while not isinstance(action := self._next_action(interpreter, side), Need):
                    moved = True
                    self._perform(interpreter, action)
                needs[side] = action
        return needs

    def _next_action(self, interpreter: ProtocolInterpreter, side: Side) -> Action | Need:
        """Nothing, while a plane makes up its mind: what is asked behind a set-up command depends on it."""
        return Need.PEER if self.carriage.undecided else interpreter.next_action(side)

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
        for channel in self._channels.values():
            channel.close()
        self._gone_if_done()

    def _gone_if_done(self) -> None:
        if self.over and not self._farewell_until and not self.carriage:
            self._ended(self)

    # The log

    def log(self, level: int, name: str, **fields: object) -> None:
        """An event of this session."""
        if log.isEnabledFor(level):
            event(log, level, name, session=self.number, client=self.client, **fields)
        for tap in self.taps:
            tap.happened(name, fields)

    # Those who look

    def _look(self) -> Insight | None:
        return insight(self._interpreter) if self._interpreter is not None else None

    def glance(self) -> Glance:
        """What it is doing at this moment."""
        now, view, carried = self._board.now, self._look(), self.carriage.foremost
        verb, _, file = (view.command if view is not None else b"").partition(b" ")
        return Glance(
            session=self.number,
            service=self.service,
            state="ending" if self.over else "calling" if view is None else "unread" if view.unread else "open",
            client=str(self.client),
            server=str(self.server),
            age=now - self._opened_at,
            idle=0.0 if self.carriage.busy else now - self._last_word,
            user=text(view.user) if view is not None else "",
            command=text(verb),
            file=text(file),
            load=load_of(carried) if carried is not None else None,
        )

    @property
    def quiet(self) -> bool:
        """Whether nothing is under way: no data connection, and no command that the server has to answer."""
        view = self._look()
        return not self.carriage and (view is None or not (view.command or view.unread))

    def tap(self, trace: Trace) -> None:
        """Show `trace` what is said from now on."""
        view = self._look()
        within_a_line = view is not None and view.within_a_line
        self.taps += (Tap(self.number, trace, self._look, within_a_line=within_a_line),)

    def untap(self, trace: Trace) -> None:
        """It is not wanted any more."""
        self.taps = tuple(tap for tap in self.taps if tap.trace is not trace)
