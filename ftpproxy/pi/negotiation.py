"""Negotiation of data connections: PASV, EPSV, PORT, EPRT, their replies, and the path between them.

Theory of operation.  A set-up command is a barrier, so while one is under way nothing else is.  It has two halves, and
each may be active or passive on its own:

    server passive   PASV ->  ... 227  -> OpenPath -> path_opened -> path_connected -> the client is answered
    server active    OpenPath -> path_opened -> PORT ->  ... 200  ->                   the client is answered
    client passive   is answered with 227 or 229: where to call us
    client active    is answered with 200: we shall call

Mostly both halves are what the client asked for.  With `translate` the server hears something else, which is how NAT on
both sides is overcome with a proxy on one of them.  Either way the line that names a path is written when the path
stands: **install, then announce**.

Calls are made early.  A server that named a port is called at once and its answer awaited for a second, so that a
refused port becomes a 425 while the client can still fall back.  A server that calls before it answers PORT is
probing, and its answer is passed on when it is known whether the client can be called.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from attrs import define, field

from ..endpoints import ANY_PORT, Endpoint, Side
from ..freezing import GIVEN
from ..paths import Await, Call, Leg, PathSpec
from ..reasons import Code
from ..routes import Route
from ..wire import hostport
from ..wire.command import Command
from ..wire.reply import ReplyLine
from .actions import Arm, Chunk, Denied, DropPath, OpenPath, Timer
from .collector import ENDPOINT_CODES
from .dialogue import Dialogue
from .filter import Refusal
from .ledger import Turn
from .policy import Policy, Timeouts, active_refusal, passive_refusal
from .transfers import Transfers
from .verbs import Kind

__all__ = ["Negotiation", "Translate"]

CLIENT, SERVER = Side.CLIENT, Side.SERVER

Translate = Literal["mirror", "active", "passive"]
"""What the server hears: what the client said, always PORT or EPRT, always PASV or EPSV."""

NOT_UNDERSTOOD = frozenset({500, 501, 502, 504, 522})
"""Replies to EPSV and EPRT after which PASV and PORT are worth a try."""


@define
class _SetUp:
    """A set-up command under way: the one turn of the ledger."""

    command: Command
    client_passive: bool
    server_passive: bool
    client_leg: Leg
    extended: bool
    """The server is spoken to with EPSV and EPRT."""
    announced: Mapping[Side, Endpoint] = field(factory=dict)
    answer: list[bytes] = field(factory=list)
    """The server's agreement to call us."""
    foreseen: bool = False
    """The session was told what path will be wanted when the server has named its port."""
    broken: bool = False
    """The path failed before the server agreed."""


@define(eq=False)
class Negotiation:
    """The data connection that the next transfer will use."""

    _dialogue: Dialogue = field(metadata=GIVEN)
    _transfers: Transfers = field(metadata=GIVEN)
    _route: Route = field(metadata=GIVEN)
    _policy: Policy = field(metadata=GIVEN)
    _timeouts: Timeouts = field(metadata=GIVEN)
    _active_source_port: int = field(kw_only=True, metadata=GIVEN)
    _translate: Translate = field(kw_only=True, metadata=GIVEN)
    _epsv_all: bool = field(init=False, default=False)
    _extended: bool = field(init=False, default=True)
    """The server has not refused EPSV or EPRT yet."""
    _set_up: _SetUp | None = field(init=False, default=None)
    waiting: bool = field(init=False, default=False)
    """For the plane or for a call: nothing of the server's may overtake our answer to the client."""

    @property
    def expects_endpoint(self) -> bool:
        """Whether the reply that is owed may name an endpoint."""
        return self._set_up is not None and self._set_up.server_passive

    @property
    def provides(self) -> list[bytes]:
        """Features that the client may use whether the server has them or not."""
        return [] if self._translate == "mirror" else [b"EPRT", b"EPSV"]

    def foresee(self) -> PathSpec | None:
        """See `ProtocolInterpreter.foresee`."""
        set_up = self._set_up
        if set_up is None or set_up.foreseen or self.waiting or not (set_up.client_passive and set_up.server_passive):
            return None
        set_up.foreseen = True
        return PathSpec(set_up.client_leg, self._call(ANY_PORT))

    def _call(self, where: int) -> Call:
        """To the port that the server has named."""
        return Call(self._route.server.at(where), self._route.proxy.at(ANY_PORT))

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
        elif self._refused(verb, logged_in):
            pass
        elif argument == b"ALL" and self._translate != "mirror":
            self._epsv_all = True
            self._dialogue.answer(200, "EPSV ALL command successful.")
        elif argument == b"ALL":
            self._dialogue.forward(command, Kind.PASSIVE, b"EPSV ALL\r\n")
        else:
            self._begin(command, Await(self._route.orig_server.at(ANY_PORT), self._route.client.host))

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
            self._dialogue.refuse(command, Refusal(*refusal, by=Code.POLICY_PORT))
        else:
            self._begin(command, Call(Endpoint(peer, named.port), self._route.orig_server.at(self._active_source_port)))

    def _begin(self, command: Command, client_leg: Leg) -> None:
        self._transfers.drop("replaced by the next set-up command")
        client_passive = isinstance(client_leg, Await)
        self._dialogue.ledger.add(Turn(command, Kind.PASSIVE if client_passive else Kind.ACTIVE))
        self._set_up = set_up = _SetUp(
            command,
            client_passive=client_passive,
            server_passive=client_passive if self._translate == "mirror" else self._translate == "passive",
            client_leg=client_leg,
            extended=self._route.server.host.version == 6 or (command.verb in (b"EPSV", b"EPRT") and self._extended),
        )
        if set_up.server_passive:
            self._ask(set_up)
        else:
            self._open(set_up, Await(self._route.proxy.at(ANY_PORT), self._route.server.host))

    # To and from the server

    def _ask(self, set_up: _SetUp) -> None:
        """PASV or EPSV; the protocol number as the client said it, where it means the same to the server."""
        verb, command = b"PASV", set_up.command
        if set_up.extended:
            verb = b"EPSV"
            number = command.argument.strip() if command.verb == b"EPSV" else b""
            if number == b"%d" % hostport.protocol_number(self._route.server.host):
                verb += b" " + number
        self._dialogue.server_out.append(Chunk(verb + b"\r\n"))

    def _tell(self, set_up: _SetUp) -> None:
        """PORT or EPRT with our own endpoint on the server's side."""
        at = Endpoint(self._route.told(SERVER), set_up.announced[SERVER].port)
        line = hostport.eprt(at) if set_up.extended or at.host.version == 6 else hostport.port(at)
        self._dialogue.server_out.append(Chunk(line, alone=True))
        self.waiting = False

    def answered(self, judged: ReplyLine, lines: list[bytes]) -> None:
        """The server's complete final reply to PASV, EPSV, PORT or EPRT."""
        code, set_up = judged.code, self._set_up
        if set_up is None:  # EPSV ALL
            self._epsv_all = 200 <= code < 300
            self._pass_on(lines)
        elif set_up.extended and code in NOT_UNDERSTOOD and self._route.server.host.version == 4:
            self._extended = set_up.extended = False
            if set_up.server_passive:
                self._ask(set_up)
            elif set_up.broken:
                self._no_data_connection()
            else:
                self._tell(set_up)
        elif set_up.server_passive and code in ENDPOINT_CODES:
            self._named(set_up, judged)
        elif not 200 <= code < 300:
            self._transfers.drop("refused by the server")
            self._pass_on(lines)
        elif set_up.server_passive:
            if set_up.client_passive:  # a strange agreement, but without an endpoint a harmless one
                self._pass_on(lines)
            else:
                self._no_data_connection()
        elif set_up.broken:
            self._no_data_connection()
        else:
            set_up.answer = lines
            # A server that has called already only gets on when our own call to the client is decided.
            if isinstance(set_up.client_leg, Call) and self._transfers.up == {SERVER}:
                self.waiting = True
            else:
                self._offer(set_up)

    def _named(self, set_up: _SetUp, judged: ReplyLine) -> None:
        """227 and 229 are told apart by their code and not by the command: translators on the way mix them up."""
        where: int | None = None
        if judged.code == 227:
            where = hostport.port_of_227(judged.text)
        elif judged.code == 229:
            extended = hostport.parse_229(judged.text)
            where = extended[1] if extended else None
        if where is not None and passive_refusal(self._policy, where):
            self._dialogue.act(Denied(judged.line, "min_data_port", Code.POLICY_PORT))
            where = None
        if where is None:
            self._no_data_connection("The server named no usable data port.")
        else:
            self._open(set_up, self._call(where))

    def _open(self, set_up: _SetUp, server_leg: Leg) -> None:
        self.waiting = True
        set_up.foreseen = False
        self._dialogue.act(OpenPath(PathSpec(set_up.client_leg, server_leg)))

    # To the client

    def _offer(self, set_up: _SetUp) -> None:
        """The data connection is set up as far as it can be: the client's turn."""
        verb = set_up.command.verb
        if set_up.client_passive:
            told = Endpoint(self._route.told(CLIENT), set_up.announced[CLIENT].port)
            line = hostport.passive_reply(told, extended=verb == b"EPSV")
            self._dialogue.client_out.append(Chunk(line, alone=True))
        elif set_up.answer:
            self._dialogue.pass_on(set_up.answer)
        else:
            self._dialogue.say(200, f"{verb.decode()} command successful.")
        self._end()

    def _pass_on(self, lines: list[bytes]) -> None:
        self._dialogue.pass_on(lines)
        self._end()

    def _no_data_connection(self, text: str = "Can't open data connection.") -> None:
        """425 and not 5yz: the client may try again or fall back (RFC 6384 section 6 chooses the same)."""
        self._transfers.forget()
        self._dialogue.say(425, text)
        self._end()

    def _end(self) -> None:
        turn = self._dialogue.ledger.head
        assert turn is not None  # a set-up command is a barrier: its turn is the only one
        if self._set_up is not None and self._set_up.foreseen:
            self._dialogue.act(DropPath("the server named no port"))
        self._set_up, self.waiting = None, False
        self._dialogue.end(turn)

    def reset(self) -> None:
        """REIN: everything that was set up is void."""
        self._epsv_all = False
        self._transfers.reset()

    # The path

    def path_opened(self, announced: Mapping[Side, Endpoint], *, ready: bool, reports_end: bool) -> None:
        """The path of the last `OpenPath` stands.  `ready`: no call of ours is undecided; `reports_end`: its end will
        be reported by `path_finished`."""
        set_up = self._set_up
        assert set_up is not None
        self._transfers.opened(reports_end=reports_end)
        set_up.announced = announced
        if not set_up.server_passive:
            self._tell(set_up)
        elif ready:
            self._offer(set_up)
        elif set_up.client_passive:
            self._dialogue.act(Arm(Timer.ANNOUNCE, self._timeouts.announce))

    def announce_overdue(self) -> None:
        """The server has not answered our call in time: let the client try; it may answer yet."""
        set_up = self._set_up
        opened = self._transfers.up is not None
        if set_up is not None and self.waiting and set_up.server_passive and set_up.client_passive and opened:
            self._offer(set_up)

    def path_refused(self) -> None:
        """No plane can carry the path of the last `OpenPath`."""
        self._no_data_connection()

    def path_connected(self, side: Side) -> None:
        """A leg of the open path is up."""
        set_up = self._set_up
        if not self._transfers.connected(side) or set_up is None or not self.waiting:
            return
        up = self._transfers.up or set()
        awaited = {CLIENT} if not set_up.server_passive else {SERVER} if set_up.client_passive else {CLIENT, SERVER}
        if awaited <= up:
            self._offer(set_up)

    def path_failed(self) -> None:
        """The open path never came up and never will."""
        set_up = self._set_up
        if not self._transfers.failed() or set_up is None:
            return
        if self.waiting:
            self._no_data_connection()
        else:
            set_up.broken = True
