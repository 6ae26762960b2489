"""The reception: a client of the gateway mode, from its arrival until it has a server.

As a session is to the `ProtocolInterpreter`, so is the reception to the `LoginInterpreter`: it has the control
connections, performs what the interpreter asks for and knows no FTP.  When the interpreter says `HandOver`, both
sockets go to a session, and nothing of the reception remains.

Names are looked up and passwords are checked as errands; until one comes back the client is not read.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

from attrs import frozen

from .channels import Channel
from .endpoints import Endpoint, Side
from .errands import Errand, Errands
from .estate import Estate, Inheritance
from .freezing import freeze, restore
from .glance import Glance
from .log import event
from .metrics import counts
from .passwords import Users
from .pi.actions import Arm, Denied, Need, Timer
from .pi.handover import HandOver
from .pi.insight import within_a_line
from .pi.login import Dial, LetGo, LoginAction, LoginInterpreter
from .pi.wishes import LoginSettings, Verify
from .reasons import Code, Reason, code_of
from .records import End, ReceptionRecord
from .resolver import CallByName
from .switchboard import READ, Switchboard
from .tap import Tap, Trace
from .terms import Terms

__all__ = ["Ends", "Gateway", "Reception"]

FAREWELL_SECONDS = 5.0
"""For a client that does not read to take our last words."""

CLIENT, SERVER = Side.CLIENT, Side.SERVER

log = logging.getLogger(__name__)


@frozen(kw_only=True)
class Gateway:
    """What all receptions of a service have in common."""

    settings: LoginSettings
    errands: Errands
    users: Users | None = None
    """Who may log in to the proxy; None where nobody has to."""


class Ends(NamedTuple):
    """The two control connections, and where the server's leads."""

    client: socket.socket
    server: socket.socket
    at: Endpoint


class Reception:
    """One client on its way to a server."""

    def __init__(
        self,
        number: int,
        client_sock: socket.socket,
        *,
        client: Endpoint,
        orig_server: Endpoint,
        terms: Terms,
        gateway: Gateway,
        board: Switchboard,
        ours: Callable[[Endpoint], bool],
        connected: Callable[[Reception, Ends, HandOver], None],
        ended: Callable[[Reception], None],
    ) -> None:
        """Takes the socket and greets.  Exactly one of `connected(self, ends, handover)` and `ended(self)` is called,
        later.  `ours` tells whether a call to an endpoint would come back to us."""
        self.number = number
        self.client = client
        self.orig_server = orig_server
        self.terms = terms
        self.over = False
        self.taps: tuple[Tap, ...] = ()
        """Who watches what is said."""
        self._opened_at = board.now
        self._gateway = gateway
        self._board = board
        self._ours = ours
        self._connected = connected
        self._ended = ended
        self._login = LoginInterpreter(gateway.settings, terms.policy, terms.timeouts)
        self._keepalive = terms.timeouts.keepalive
        watched = Channel(client_sock, board, partial(self._event, CLIENT), self.crashed, self._keepalive)
        self._channels = {CLIENT: watched}
        self._errand: CallByName | Errand[bool] | None = None
        self._errand_for: Dial | Verify | None = None
        self._server: Endpoint | None = None
        self._deadlines: dict[Timer, float] = {}
        self._farewell_until = 0.0
        board.soon(self._pump, self.crashed)

    @property
    def service(self) -> str:
        return self.terms.service

    # Events

    def _event(self, side: Side, events: int) -> None:
        channel = self._channels[side]
        try:
            if self._farewell_until:
                channel.flush()
                if not channel.unsent:
                    self._close_channels()
                return
            octets = channel.receive() if events & READ else None
        except OSError as error:
            self._broken(side, error)
            return
        if octets is not None:
            for tap in self.taps:
                tap.heard(side, octets)
            self._login.receive(side, octets)
        self._pump()

    def _broken(self, side: Side, error: OSError) -> None:
        if side is CLIENT:
            self._end(Reason(Code.CLIENT_GONE, f"the client is gone: {error.strerror}"))
        else:
            self._login.receive(SERVER, b"")
            self._pump()

    def sweep(self, now: float) -> None:
        """Look at the deadlines; called once a second."""
        if self._errand is not None:
            self._errand.sweep(now)
        if self._farewell_until:
            if now >= self._farewell_until:
                self._close_channels()
            return
        due = [timer for timer, deadline in self._deadlines.items() if now >= deadline]
        for timer in due:
            del self._deadlines[timer]
            self._login.timer(timer)
        if due:
            self._pump()

    def dismiss(self, text: str) -> None:
        """End it; the client is told why."""
        if not self.over:
            self._login.dismiss(text)
            self._pump()

    def close(self) -> None:
        """End it now, whatever is unsent."""
        self._end(Reason(Code.SHUTDOWN, "closed"))
        if self._farewell_until:
            self._close_channels()

    def crashed(self, error: Exception) -> None:
        """Something in here went wrong; the switchboard has logged it."""
        self._end(Reason(Code.INTERNAL, f"internal error: {type(error).__name__}"))

    # The loop

    def _pump(self, _: float = 0) -> None:
        """Ask and perform until the interpreter waits, then write, then wait."""
        needs = dict.fromkeys(Side, Need.PEER)
        moved = not self.over
        while moved:
            moved = False
            for side in (SERVER, CLIENT):
                while not isinstance(action := self._login.next_action(side), Need):
                    moved = True
                    self._perform(action)
                    if self.over:
                        return
                needs[side] = action
        if not self.over and self._say():
            for side, channel in self._channels.items():
                channel.want(read=needs[side] is Need.DATA)

    def _say(self) -> bool:
        """Write what there is; False if that ended it."""
        for side, channel in list(self._channels.items()):
            chunks = self._login.take_output(side)
            for tap in self.taps:
                tap.told(side, chunks)
            try:
                channel.send(chunks)
            except OSError as error:
                if side is CLIENT:
                    self._end(Reason(Code.CLIENT_GONE, f"the client is gone: {error.strerror}"))
                    return False  # a server that is gone is found out by reading
        return True

    def _perform(self, action: LoginAction) -> None:
        if isinstance(action, Dial):
            self._errand_for = action
            self._dial(action)
        elif isinstance(action, Verify):
            self._errand_for = action
            users = self._gateway.users
            assert users is not None  # else nobody is asked to log in
            check = partial(users.check, action.user, action.password)
            verified = partial(self._verified, action.user)
            self._errand = self._gateway.errands.send(check, verified, self.crashed)
        elif isinstance(action, LetGo):
            if (channel := self._channels.pop(SERVER, None)) is not None:
                channel.close()
        elif isinstance(action, HandOver):
            self._hand_over(action)
        elif isinstance(action, Arm):
            self._deadlines[action.timer] = self._board.now + action.seconds
        elif isinstance(action, Denied):
            counts.denials[self.service, action.rule] += 1
            self._log(logging.INFO, "command.denied", code=action.code, rule=action.rule, what=action.what)
        elif self._say():
            self._end(action.reason)

    # Errands

    def _verified(self, user: bytes, right: bool | None) -> None:
        self._errand = self._errand_for = None
        if not right:
            counts.failed_logins[self.service, Code.PROXY_DENIED] += 1
            self._log(logging.WARNING, "login.failed", code=Code.PROXY_DENIED, user=user)
        self._login.verified(bool(right))
        self._pump()

    def _dial(self, action: Dial) -> None:
        host, port = action.target
        self._errand = CallByName(
            self._board,
            self._gateway.errands,
            host,
            port,
            self.terms.timeouts.connect,
            source=self.terms.source,
            first=self.terms.first_words(self.client, self.orig_server),
            admits=self._admits,
            answered=partial(self._answered, str(action.target)),
            unanswered=partial(self._unanswered, str(action.target)),
            on_crash=self.crashed,
        )

    def _admits(self, endpoint: Endpoint) -> bool:
        return self._login.admits(endpoint.host) and not self._ours(endpoint)

    def _unanswered(self, target: str, why: Reason) -> None:
        self._errand = self._errand_for = None
        self._log(logging.WARNING, "server.unreachable", server=target, code=why.code, reason=why)
        self._login.not_dialled(why)
        self._pump()

    def _answered(self, target: str, sock: socket.socket) -> None:
        try:
            self._server = Endpoint.from_sockaddr(sock.getpeername())
        except OSError as error:  # it has hung up already
            sock.close()
            self._unanswered(target, Reason(Code.SERVER_GONE, error.strerror or str(error)))
            return
        self._errand = self._errand_for = None
        event_of_server = partial(self._event, SERVER)
        self._channels[SERVER] = Channel(sock, self._board, event_of_server, self.crashed, self._keepalive)
        self._login.dialled()
        self._pump()

    # To a successor, and from a predecessor

    def leave(self, estate: Estate) -> ReceptionRecord | None:
        """Write it down for a successor; None where only last words are unsaid.  It is of no further use here."""
        if self._errand is not None:
            self._errand.close()
        if self.over:
            self._channels[CLIENT].close()
            return None
        ends = {side: channel.leave(estate, client=side is CLIENT) for side, channel in self._channels.items()}
        return ReceptionRecord(
            number=self.number,
            service=self.service,
            client=self.client,
            orig_server=self.orig_server,
            ends={side: End(*end) for side, end in ends.items() if end is not None},
            server=self._server,
            login=freeze(self._login),
            errand=self._errand_for,
            announce={side: tuple(hosts) for side, hosts in self.terms.announce.items()},
            deadlines={timer: deadline - self._board.now for timer, deadline in self._deadlines.items()},
        )

    def inherit(self, record: ReceptionRecord, inheritance: Inheritance) -> None:
        """Go on where a predecessor has left off; an errand is done once more.  To be called before anything happens.
        Raises `Unthawable`: then it is to be closed."""
        if (end := record.ends.get(SERVER)) is not None:
            happened = partial(self._event, SERVER)
            sock = inheritance.take(end.descriptor)
            self._channels[SERVER] = Channel(sock, self._board, happened, self.crashed, self._keepalive)
        for side, channel in self._channels.items():
            channel.inherit(record.ends[side].unsent)
        restore(self._login, record.login)
        self._server = record.server
        self._deadlines = {timer: self._board.now + seconds for timer, seconds in record.deadlines.items()}
        if record.errand is not None:
            self._perform(record.errand)

    # The end

    def _hand_over(self, action: HandOver) -> None:
        if not self._say():
            return
        if any(channel.unsent for channel in self._channels.values()):
            self._end(Reason(Code.CLIENT_NONSENSE, "a side does not read"))  # a greeting fits into any socket's buffer
            return
        self.over = True
        assert self._server is not None
        ends = Ends(self._channels[CLIENT].release(), self._channels[SERVER].release(), self._server)
        self._connected(self, ends, action)

    def _end(self, reason: str) -> None:
        if self.over:
            return
        self.over = True
        if self._errand is not None:
            self._errand.close()
            self._errand = None
        if (server := self._channels.pop(SERVER, None)) is not None:
            server.close()
        code = code_of(reason, Code.OPERATOR)
        counts.sessions[self.service, code] += 1
        self._log(logging.INFO, "gateway.close", code=code, reason=reason)
        client = self._channels[CLIENT]
        if client.unsent:
            self._farewell_until = self._board.now + FAREWELL_SECONDS
            client.want(read=False)
        else:
            self._close_channels()

    def _close_channels(self) -> None:
        self._farewell_until = 0.0
        for channel in self._channels.values():
            channel.close()
        self._ended(self)

    def _log(self, level: int, name: str, **fields: object) -> None:
        event(log, level, name, session=self.number, client=self.client, service=self.service, **fields)
        for tap in self.taps:
            tap.happened(name, fields)

    # Those who look

    def glance(self) -> Glance:
        """What it is doing at this moment."""
        age = self._board.now - self._opened_at
        server = str(self._server) if self._server is not None else None
        state: Literal["login", "ending"] = "ending" if self.over else "login"
        return Glance(
            session=self.number,
            service=self.service,
            state=state,
            client=str(self.client),
            server=server,
            age=age,
        )

    @property
    def quiet(self) -> bool:
        """A login is nothing that could not begin again."""
        return True

    def tap(self, trace: Trace) -> None:
        """Show `trace` what is said from now on, until a session goes on from here."""
        self.taps += (Tap(self.number, trace, lambda: None, within_a_line=within_a_line(self._login)),)

    def untap(self, trace: Trace) -> None:
        """It is not wanted any more."""
        self.taps = tuple(tap for tap in self.taps if tap.trace is not trace)
