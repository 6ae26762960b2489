"""A session: one control connection, the only place where sockets, the interpreter and a data plane meet.

It holds no knowledge of FTP and never awaits.  The switchboard calls it for each event of its two sockets, a plane
calls it for each event of its paths, the sweep calls it once a second; each call is handled to its end by the
same loop (`_pump`): ask the interpreter for actions, perform them, until it needs octets; then write
what there is to write and say what to wait for.

                 readable            connected, failed, finished
    channels ----------------+  +---------------------------------  paths
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

from .carried import Carried
from .channels import MOST_UNSENT, Channel
from .dial import Dial
from .dtp.plane import Path, Refused
from .endpoints import Endpoint, Side
from .log import event
from .paths import Call, Tally
from .pi.actions import Action, Arm, Chunk, DropPath, EndTransfer, Hangup, Need, OpenPath, SettlePath, StartPath, Timer
from .pi.handover import HandOver
from .pi.interpreter import ProtocolInterpreter
from .routes import Route
from .switchboard import READ, Switchboard
from .terms import Terms
from .wire.reply import reply

__all__ = ["Session", "Terms"]

MOST_PATHS = 8
"""Data connections alive at once: the next transfer's, and those that are on the way to their own end."""
FAREWELL_SECONDS = 5.0
"""For a peer that does not read to take our last words."""

CLIENT, SERVER = Side.CLIENT, Side.SERVER

log = logging.getLogger(__name__)


def _already_logged(_: Exception) -> None:
    """What went wrong while something was closed: the switchboard has logged it."""


class Session:
    """From the accepted client to the last octet of its last data connection."""

    __slots__ = (
        "_board",
        "_carried",
        "_channels",
        "_deadlines",
        "_dial",
        "_ended",
        "_farewell_until",
        "_interpreter",
        "_last_word",
        "_open",
        "_opened_at",
        "_ours",
        "_terms",
        "_transfer",
        "_transfers",
        "client",
        "number",
        "orig_server",
        "over",
        "server",
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
        self._terms = terms
        self._board = board
        self._ended = ended
        self._ours = ours
        self._channels = {CLIENT: Channel(client_sock, board, self._client_event, self.crashed)}
        self._interpreter: ProtocolInterpreter | None = None
        self._open: Carried | None = None
        """What the next transfer will use."""
        self._transfer: Carried | None = None
        """What the server owes its word about."""
        self._carried: dict[Path, Carried] = {}
        self._deadlines: dict[Timer, float] = {}
        self._farewell_until = 0.0
        self._last_word = self._opened_at = board.now
        self._transfers = 0
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
    def service(self) -> str:
        """The name of the service that it belongs to."""
        return self._terms.service

    # The call to the server

    def _unanswered(self, reason: str) -> None:
        self._dial = None
        self._log(logging.WARNING, "server.unreachable", client=self.client, server=self.server, reason=reason)
        self.dismiss(f"Cannot reach the server {self.server}: {reason}.")

    def take_over(self, sock: socket.socket, handover: HandOver | None = None) -> None:
        """Go on with this connection to the server; `handover` tells what was said on it."""
        self._dial = None
        self._channels[SERVER] = Channel(sock, self._board, self._server_event, self.crashed)
        terms = self._terms
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
        self._log(
            logging.INFO,
            "session.open",
            service=terms.service,
            client=self.client,
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
            self._last_word = self._board.now
            assert self._interpreter is not None
            self._interpreter.receive(side, octets)
        self._pump()

    def connected(self, path: Path, side: Side) -> None:
        """`PathOwner`."""
        if carried := self._carried.get(path):
            carried.up.add(side)
            if carried is self._open and self._interpreter is not None:
                self._interpreter.path_connected(side)
                self._board.guard(self._pump, None, self.crashed)

    def failed(self, path: Path, why: str) -> None:
        """`PathOwner`."""
        if carried := self._carried.pop(path, None):
            self._log(logging.WARNING, "data.failed", plane=carried.plane, what=carried.what, reason=why)
            if carried is self._open and self._interpreter is not None:
                self._open = None
                self._interpreter.path_failed()
                self._board.guard(self._pump, None, self.crashed)
            self._gone_if_done()

    def delivered(self, path: Path) -> None:
        """`PathOwner`."""
        if (carried := self._carried.get(path)) and carried is self._open and self._interpreter is not None:
            self._interpreter.path_delivered()
            self._board.guard(self._pump, None, self.crashed)

    def finished(self, path: Path, tally: Tally) -> None:
        """`PathOwner`."""
        if carried := self._carried.pop(path, None):
            self._last_word = self._board.now
            if carried is self._open and self._interpreter is not None:
                self._open = None
                self._interpreter.path_finished()
                self._board.guard(self._pump, None, self.crashed)
            carried.tally = tally
            if carried.settled or self.over:
                self._account(carried)
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
            for timer in due:
                del self._deadlines[timer]
                self._interpreter.timer(timer)
            if any(len(carried.up) == 2 for carried in self._carried.values()):
                self._last_word = now
            if now - self._last_word >= self._terms.timeouts.idle:
                self.dismiss("Idle for too long.")
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
        """End it; the client is told why."""
        if self.over:
            return
        if self._interpreter is not None:
            self._interpreter.dismiss(text)
            self._pump()
            return
        try:
            self._channels[CLIENT].send([Chunk(reply(421, text))])
        except OSError:
            pass  # the client is gone as well
        self._end(text)

    def close(self) -> None:
        """End it now, whatever is unsent."""
        self._end("closed")
        for carried in list(self._carried.values()):
            self._drop(carried)
        self._close_channels()

    def crashed(self, error: Exception) -> None:
        """Something in here went wrong; the switchboard has logged it."""
        self._end(f"internal error: {type(error).__name__}")

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
                while not isinstance(action := interpreter.next_action(side), Need):
                    moved = True
                    self._perform(interpreter, action)
                needs[side] = action
        return needs

    def _perform(self, interpreter: ProtocolInterpreter, action: Action) -> None:
        if isinstance(action, OpenPath):
            self._open_path(interpreter, action)
        elif isinstance(action, StartPath):
            if self._open is not None:
                self._transfer = self._open
                self._open.begin(action)
        elif isinstance(action, EndTransfer):
            if (carried := self._transfer) is not None:
                self._transfer = None
                carried.positive = action.positive
                if carried.settled:
                    self._account(carried)
        elif isinstance(action, SettlePath):
            self._open = None
        elif isinstance(action, DropPath):
            if self._open is not None:
                self._drop(self._open)
        elif isinstance(action, Arm):
            self._deadlines[action.timer] = self._board.now + action.seconds
        else:
            self._hang_up(interpreter, action)

    def _open_path(self, interpreter: ProtocolInterpreter, action: OpenPath) -> None:
        spec = action.spec
        if any(isinstance(leg, Call) and self._ours(leg.to) for leg in (spec.client, spec.server)):
            self._log(logging.WARNING, "data.refused", reason="the way leads back to this proxy", spec=spec)
            interpreter.path_refused()
            return
        if len(self._carried) >= MOST_PATHS:  # whoever never closes a data connection holds descriptors of ours
            self._drop(next(iter(self._carried.values())))
        for plane in self._terms.planes:
            if not plane.carries(spec):
                continue
            path = plane.open(spec, self)
            if isinstance(path, Refused):
                self._log(logging.WARNING, "data.refused", plane=plane.name, reason=path.why)
                continue
            self._open = self._carried[path] = Carried(path, plane.name)
            self._log(logging.DEBUG, "data.open", plane=plane.name, spec=spec)
            interpreter.path_opened(path.announced, ready=path.ready, reports_end=path.reports_end)
            return
        interpreter.path_refused()

    def _drop(self, carried: Carried) -> None:
        if self._carried.pop(carried.path, None) is not None and len(carried.up) < 2:
            self._log(logging.WARNING if carried.what else logging.DEBUG, "data.missing", **carried.missing())
        self._board.guard(Carried.close, carried, _already_logged)
        if carried.tally is not None:
            self._account(carried)
        if carried is self._open:
            self._open = None

    # The end

    def _account(self, carried: Carried) -> None:
        """A data connection has carried, and all is known of it."""
        if self._transfer is carried:
            self._transfer = None
        self._transfers += 1
        self._log(logging.INFO, "transfer", client=self.client, server=self.server, **carried.account())
        if self._terms.xferlog is not None:
            self._terms.xferlog.write(self.client.host, carried)

    def _hang_up(self, interpreter: ProtocolInterpreter, action: Hangup) -> None:
        for side, channel in self._channels.items():
            try:
                channel.send(interpreter.take_output(side))
            except OSError:
                pass  # it is the end anyway
        self._end(action.reason, drain=action.drain)

    def _lost(self, side: Side, error: OSError) -> None:
        """A control connection broke.  What a server has sent in full may still reach its client."""
        self._end(f"the {side} is gone: {error.strerror}", drain=side is SERVER)

    def _end(self, reason: str, *, drain: bool = False) -> None:
        """Close both control connections, and the paths unless they may `drain`."""
        if self.over:
            return
        self.over = True
        if self._dial is not None:
            self._dial.close()
            self._dial = None
        for carried in list(self._carried.values()):
            if not drain or carried is self._open:
                self._drop(carried)
        if self._transfer is not None and self._transfer.tally is not None:
            self._account(self._transfer)  # the server did not say its word
        seconds = f"{self._board.now - self._opened_at:.1f}"
        self._log(logging.INFO, "session.close", reason=reason, transfers=self._transfers, seconds=seconds)
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
        if self.over and not self._farewell_until and not self._carried:
            self._ended(self)

    # The log

    def _log(self, level: int, name: str, **fields: object) -> None:
        if log.isEnabledFor(level):
            event(log, level, name, session=self.number, **fields)
