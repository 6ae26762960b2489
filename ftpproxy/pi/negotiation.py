"""Negotiation of data connections: PASV, EPSV, PORT, EPRT, their replies, and the path between them.

Theory of operation.  A set-up command is a barrier, so while one is under way nothing else is.  It becomes a
`PathSpec` (from the server's 227 or 229 in passive mode, from the client's own words in active mode), the session
opens the path, and only then is the line written that names it: **install, then announce**.

    passive   PASV ->   ->   227 -> OpenPath -> path_opened -> path_connected(SERVER) -> 227'
    active    PORT -> OpenPath -> path_opened -> PORT' ->   -> 200 (-> path_connected(CLIENT) if the server calls early)

In passive mode the server is called at once and its answer awaited for a second, so that a refused port becomes a
425 while the client can still fall back; in active mode a server that calls before it answers PORT is probing, and gets
its answer passed on when it is known whether the client can be called.

At most one path is open.  It is replaced by the next set-up command, survives a transfer that was refused
without a preliminary reply, and is settled by the final reply after one.
"""

from __future__ import annotations

from collections.abc import Mapping

from attrs import define, field

from ..endpoints import ANY_PORT, Endpoint, Side
from ..paths import Await, Call, PathSpec
from ..routes import Route
from ..wire import hostport
from ..wire.command import Command
from ..wire.reply import ReplyLine
from .actions import Arm, Chunk, DropPath, OpenPath, SettlePath, StartPath, Timer
from .dialogue import Dialogue
from .ledger import Turn
from .policy import Policy, Timeouts, active_refusal, passive_refusal
from .verbs import TRANSFERS, Kind

__all__ = ["Negotiation"]

CLIENT, SERVER = Side.CLIENT, Side.SERVER


@define
class _Path:
    """The one path that the next transfer will use."""

    up: set[Side] = field(factory=set)
    concluded: bool = False
    """The server said 2yz before both legs were up; a client may still call."""


@define
class _SetUp:
    """A set-up command under way."""

    turn: Turn
    spec: PathSpec
    waiting: bool = True
    """For the plane, for our call to the server, or for our call to the client: nothing may overtake the line."""
    answer: list[bytes] = field(factory=list)
    """The server's lines to be passed on once it is decided that the path works (active mode)."""
    broken: bool = False
    """The path failed before the server answered (active mode)."""

    @property
    def passive(self) -> bool:
        return self.turn.kind is Kind.PASSIVE


class Negotiation:
    """The data connection that the next transfer will use."""

    __slots__ = ("_active_source_port", "_dialogue", "_epsv_all", "_path", "_policy", "_route", "_set_up", "_timeouts")

    def __init__(
        self, dialogue: Dialogue, route: Route, policy: Policy, timeouts: Timeouts, active_source_port: int
    ) -> None:
        self._dialogue = dialogue
        self._route = route
        self._policy = policy
        self._timeouts = timeouts
        self._active_source_port = active_source_port
        self._epsv_all = False
        self._path: _Path | None = None
        self._set_up: _SetUp | None = None

    @property
    def waiting(self) -> bool:
        """Nothing of the server may be read: it could overtake the line that announces the path."""
        return self._set_up is not None and self._set_up.waiting

    # Commands

    def _refused(self, verb: bytes, logged_in: bool) -> bool:
        """Refuse what is refused for any argument.  The ledger is empty: set-up commands are barriers."""
        if self._epsv_all and verb != b"EPSV":
            self._dialogue.answer(503, "Not allowed after EPSV ALL.")
        elif self._policy.require_login and not logged_in:
            self._dialogue.answer(530, "Please login with USER and PASS.")
        else:
            return False
        return True

    def passive(self, command: Command, *, logged_in: bool) -> None:
        """PASV (RFC 959 section 4.1.2) and EPSV (RFC 2428 section 3)."""
        verb, argument = command.verb, command.argument.strip().upper()
        own = hostport.protocol_number(self._route.client.host)
        if verb == b"PASV" and argument:
            self._dialogue.answer(501, "PASV takes no argument.")
        elif verb == b"PASV" and own == 2:
            self._dialogue.answer(522, "PASV is for IPv4, use EPSV (2).")
        elif argument.isdigit() and argument != b"%d" % own:
            self._dialogue.answer(522, f"Network protocol not supported, use ({own})")
        elif argument not in (b"", b"ALL", b"%d" % own):
            self._dialogue.answer(501, "EPSV takes a protocol number or ALL.")
        elif not self._refused(verb, logged_in):
            same_family = own == hostport.protocol_number(self._route.server.host)
            if argument and (same_family or argument == b"ALL"):
                verb += b" " + argument
            self.drop("replaced by the next set-up command")
            self._dialogue.forward(command, Kind.PASSIVE, verb + b"\r\n")

    def active(self, command: Command, *, logged_in: bool) -> None:
        """PORT (RFC 959 section 4.1.2) and EPRT (RFC 2428 section 2)."""
        peer = self._route.client.host
        own = hostport.protocol_number(peer)
        parse = hostport.parse_port if command.verb == b"PORT" else hostport.parse_eprt
        try:
            named = parse(command.argument)
        except hostport.UnsupportedProtocol:
            self._dialogue.answer(522, f"Network protocol not supported, use ({own})")
            return
        except hostport.BadEndpoint as error:
            self._dialogue.answer(501, str(error))
            return
        if named.host.version != peer.version and command.verb == b"EPRT":
            self._dialogue.answer(522, f"Network protocol not supported, use ({own})")
        elif self._refused(command.verb, logged_in):
            pass
        elif refusal := active_refusal(self._policy, named, peer):
            self._dialogue.answer(*refusal)
        else:
            self.drop("replaced by the next set-up command")
            turn = Turn(command, Kind.ACTIVE)
            self._dialogue.ledger.add(turn)
            route = self._route
            self._open(
                turn,
                PathSpec(
                    client=Call(Endpoint(peer, named.port), route.orig_server.at(self._active_source_port)),
                    server=Await(route.proxy.at(ANY_PORT), route.server.host),
                ),
            )

    # Replies

    def answered(self, turn: Turn, judged: ReplyLine, lines: list[bytes]) -> None:
        """The server's complete reply to PASV, EPSV, PORT or EPRT."""
        code = judged.code
        if not turn.ended_by(code):
            self._dialogue.pass_on(lines)
        elif turn.kind is Kind.ACTIVE:
            self._active_answered(code, lines)
        elif code in (227, 228, 229):
            self._passive_answered(turn, judged)
        else:
            if turn.command.argument.strip().upper() == b"ALL" and 200 <= code < 300:
                self._epsv_all = True
            self._dialogue.pass_on(lines)
            self._dialogue.end_turn()

    def _passive_answered(self, turn: Turn, judged: ReplyLine) -> None:
        """227 and 229 are told apart by their code and not by the command: translators on the way mix them up."""
        where: int | None = None
        if judged.code == 227:
            named = hostport.parse_227(judged.text)
            where = named.port if named else None
        elif judged.code == 229:
            extended = hostport.parse_229(judged.text)
            where = extended[1] if extended else None
        if where is None or passive_refusal(self._policy, where):
            self._dialogue.say(425, "The server named no usable data port.")
            self._dialogue.end_turn()
            return
        route = self._route
        self._open(
            turn,
            PathSpec(
                client=Await(route.orig_server.at(ANY_PORT), route.client.host),
                server=Call(route.server.at(where), route.proxy.at(ANY_PORT)),
            ),
        )

    def _active_answered(self, code: int, lines: list[bytes]) -> None:
        set_up = self._set_up
        assert set_up is not None
        if not 200 <= code < 300:
            self._set_up = None
            self.drop("refused by the server")
            self._dialogue.pass_on(lines)
            self._dialogue.end_turn()
        elif set_up.broken:
            self._no_data_connection()
        else:
            set_up.answer = lines
            # A server that has called already only gets on when our own call to the client is decided.
            if self._path is not None and self._path.up == {SERVER}:
                set_up.waiting = True
            else:
                self._offer(set_up)

    def _open(self, turn: Turn, spec: PathSpec) -> None:
        self._set_up = _SetUp(turn, spec)
        self._dialogue.act(OpenPath(spec))

    def _announce(self, set_up: _SetUp) -> None:
        """Passive: the client may call now."""
        assert isinstance(set_up.spec.client, Await)
        told = Endpoint(self._route.told(CLIENT), set_up.spec.client.at.port)
        extended = set_up.turn.command.verb == b"EPSV"
        self._dialogue.client_out.append(Chunk(hostport.passive_reply(told, extended=extended), alone=True))
        self._set_up = None
        self._dialogue.end_turn()

    def _offer(self, set_up: _SetUp) -> None:
        """Active: the server has agreed to call us."""
        self._dialogue.pass_on(set_up.answer)
        self._set_up = None
        self._dialogue.end_turn()

    def _no_data_connection(self) -> None:
        """425 and not 5yz: the client may try again or fall back (RFC 6384 section 6 chooses the same)."""
        self._set_up = None
        self._path = None
        self._dialogue.say(425, "Can't open data connection.")
        self._dialogue.end_turn()

    # Transfers

    def transfer_sent(self, command: Command) -> None:
        """A transfer verb is about to be forwarded."""
        if self._path is not None:
            self._dialogue.act(StartPath(TRANSFERS[command.verb], command.line))

    def transfer_ended(self, turn: Turn, positive: bool) -> None:
        """The path's fate (PROTOCOL section 2.2).  A refusal without 1yz leaves it to the next try."""
        path = self._path
        if path is None or not (positive or turn.preliminary):
            return
        if len(path.up) == 2:
            self._settle()
        elif positive:
            # We call the server early, so a short transfer may be over before the client has called.
            path.concluded = True
        else:
            self.drop("the transfer failed")

    def _settle(self) -> None:
        self._path = None
        self._dialogue.act(SettlePath())

    def drop(self, reason: str) -> None:
        if self._path is not None:
            self._path = None
            self._dialogue.act(DropPath(reason))

    def reset(self) -> None:
        """REIN: everything that was set up is void."""
        self._epsv_all = False
        self.drop("REIN")

    # The path

    def path_opened(self, announced: Mapping[Side, Endpoint], *, ready: bool) -> None:
        """The path of the last `OpenPath` stands.  `ready`: nothing more is awaited before it may be announced."""
        set_up = self._set_up
        assert set_up is not None
        self._path = _Path()
        if set_up.passive:
            set_up.spec = PathSpec(Await(announced[CLIENT], self._route.client.host), set_up.spec.server)
            if ready:
                self._announce(set_up)
            else:
                self._dialogue.act(Arm(Timer.ANNOUNCE, self._timeouts.announce))
            return
        told = Endpoint(self._route.told(SERVER), announced[SERVER].port)
        short = set_up.turn.command.verb == b"PORT" and told.host.version == 4
        self._dialogue.server_out.append(Chunk(hostport.port(told) if short else hostport.eprt(told), alone=True))
        set_up.waiting = False

    def announce_overdue(self) -> None:
        """The server has not answered our call in time: let the client try; it may answer yet."""
        if self._set_up is not None and self._set_up.passive and self._path is not None:
            self._announce(self._set_up)

    def path_refused(self) -> None:
        """No plane can carry the path of the last `OpenPath`."""
        assert self._set_up is not None
        self._no_data_connection()

    def path_connected(self, side: Side) -> None:
        """A leg of the open path is up."""
        if self._path is None:
            return
        self._path.up.add(side)
        set_up = self._set_up
        if set_up is not None and set_up.passive and side is SERVER:
            self._announce(set_up)
        elif set_up is not None and set_up.answer and side is CLIENT:
            self._offer(set_up)
        elif self._path.concluded and len(self._path.up) == 2:
            self._settle()

    def path_failed(self) -> None:
        """The open path never came up and never will."""
        if self._path is None:
            return
        self._path = None
        set_up = self._set_up
        if set_up is not None and (set_up.passive or set_up.answer):
            self._no_data_connection()
        elif set_up is not None:
            set_up.broken = True
