"""The protocol interpreter: two streams of lines and a ledger of unanswered commands.

Theory of operation.  The session feeds octets with `receive` and asks `next_action(side)` until it says what
it needs: `Need.DATA` (read more from that side) or `Need.PEER` (something else has to happen first; do not
read, so nothing piles up).  Lines that mean nothing to us go straight to the output of the other side.  Only
a few things mean something:

* set-up commands and their replies (PASV EPSV PORT EPRT): the interpreter stops until the session has a path
  open, and only then writes the line that announces it: **install, then announce**;
* transfer verbs and their final replies: they start and settle the path;
* login replies, since nothing is opened for somebody who is not logged in;
* FEAT, whose answer must not promise what we refuse;
* AUTH: once the server has agreed, the rest is carried unread (RFC 4217 needs both ends to do their TLS);
* QUIT, REIN, ABOR and 421, which end things.

One octet's way: `receive` -> `Intake`, or `TelnetFilter` -> `LineBuffer` -> `ReplyCollector` -> one of the methods
below -> `take_output`.  Nobody is called back and no clock is read; timers are armed by an action and come back as
`timer`.

Invariants (property tested): output is whole canonical lines; replies leave in the order of the commands; a
line that names an endpoint leaves only after `path_opened`; at most one path is open; every host in a
`PathSpec` comes from the `Route`; the buffers are bounded as long as the session obeys `Need.PEER`.
"""

from __future__ import annotations

from collections.abc import Mapping

from attrs import define, evolve, field

from ..endpoints import ANY_PORT, Endpoint, Side
from ..freezing import GIVEN
from ..paths import PathSpec
from ..routes import Route
from ..wire import feat
from ..wire.command import Command
from ..wire.lines import OVERLONG, LineBuffer
from ..wire.reply import NotAReply, ReplyLine, reply
from ..wire.telnet import SYNCH, TelnetFilter
from . import endings
from .actions import Action, Arm, Chunk, Hangup, LoginFailed, Need, Timer
from .collector import ENDPOINT_CODES, ReplyCollector, ReplyTooLong
from .dialogue import NO_COMMAND, Dialogue
from .filter import CommandFilter, Refusal, filter_of, refuses_login
from .handover import HandOver
from .intake import LONGEST_COMMAND, Ending, Intake
from .ledger import Turn
from .liveness import Liveness
from .masking import user_name
from .negotiation import Negotiation, Translate
from .policy import Policy, Timeouts
from .security import Passage, PlainText
from .transfers import Transfers
from .verbs import REFUSED_FEATURES, Kind, kind_of

__all__ = ["LONGEST_COMMAND", "LONGEST_REPLY", "ProtocolInterpreter"]

LONGEST_REPLY = 32768
"""Octets of one line; real servers were seen with 17 kB."""
ENDING_SECONDS = 10.0
"""How long a server that said 421 may take to close."""
PATHS = (Kind.ORDINARY, Kind.TRANSFER)
CLIENT, SERVER = Side.CLIENT, Side.SERVER


@define(init=False, eq=False)
class ProtocolInterpreter:
    """One control connection's understanding of itself.  Raises nothing for anything that a peer sends."""

    _policy: Policy = field(metadata=GIVEN)
    _timeouts: Timeouts = field(metadata=GIVEN)
    _filter: CommandFilter = field(metadata=GIVEN)
    _dialogue: Dialogue
    _transfers: Transfers
    _negotiation: Negotiation
    _intake: Intake
    _liveness: Liveness
    _server_telnet: TelnetFilter = field(factory=TelnetFilter)
    _replies: LineBuffer = field(factory=lambda: LineBuffer(LONGEST_REPLY))
    _collector: ReplyCollector = field(factory=ReplyCollector)
    _handover: HandOver | None = None
    _first: bool = False
    """The client's first command is the one that the login has left."""
    _held: Command | Refusal | None = None
    """What the client said and must wait for its turn."""
    _logged_in: bool = False
    _solicited: bool = False
    """Something was owed when the reply that is being read began."""
    _ended: set[Side] = field(factory=set)
    _passage: Passage | None = None
    """After AUTH: both directions pass as they are."""
    _dismissed: bool = False
    """After 421: whatever the server still says passes, nothing is matched."""
    _over: bool = False

    def __init__(
        self,
        route: Route,
        policy: Policy | None = None,
        timeouts: Timeouts | None = None,
        *,
        active_source_port: int = ANY_PORT,
        translate: Translate = "mirror",
        handover: HandOver | None = None,
    ) -> None:
        policy, timeouts, dialogue = policy or Policy(), timeouts or Timeouts(), Dialogue()
        transfers = Transfers(dialogue)
        negotiation = Negotiation(
            dialogue,
            transfers,
            route,
            policy,
            timeouts,
            active_source_port=active_source_port,
            translate=translate,
        )
        intake = Intake(policy, int(handover is not None))
        liveness = Liveness(dialogue, transfers, timeouts.noop)
        self.__attrs_init__(policy, timeouts, filter_of(policy), dialogue, transfers, negotiation, intake, liveness)
        if handover is None:
            self._dialogue.ledger.add(Turn(NO_COMMAND, Kind.GREETING))
            self._dialogue.act(Arm(Timer.GREETING, self._timeouts.greeting))
        else:  # the server has greeted, and the client may have said USER or PASS
            self._logged_in = handover.greeting == 230
            self._held = handover.first
            self._first = handover.first is not None
            self._handover = evolve(handover, first=None, client=b"", server=b"")
            self._intake.feed(handover.client, telnet=False)
            self._replies.feed(handover.server)
            self._dialogue.act(Arm(Timer.LOGIN, self._timeouts.login))
        liveness.start()

    # What the session calls

    def receive(self, side: Side, octets: bytes) -> None:
        """Take octets of a side; none mean that it ended its stream."""
        if not octets:
            self._ended.add(side)
            return
        # Behind AUTH there may be TLS already, which is full of what Telnet would call commands.
        telnet = not (self._passage or self._dialogue.ledger.owes(Kind.SECURITY))
        if side is CLIENT:
            if answer := self._intake.feed(octets, telnet=telnet):
                self._dialogue.client_out.append(Chunk(answer))
            return
        if telnet:
            octets, answer = self._server_telnet.feed(octets)
            if answer:
                self._dialogue.server_out.append(Chunk(answer))
        self._replies.feed(octets)

    def next_action(self, side: Side) -> Action | Need:
        """What to do next, seen from this side.

        Ask the server's side before the client's: what the server said may release a command that is held.
        """
        actions = self._dialogue.actions
        if not actions and not self._over:
            need = self._from_client() if side is CLIENT else self._from_server()
            if not actions:
                return need
        return actions.popleft() if actions else Need.PEER

    def take_output(self, side: Side) -> list[Chunk]:
        """Octets for this side, in order; they are the caller's now."""
        return self._dialogue.take_output(side)

    def foresee(self) -> PathSpec | None:
        """What `OpenPath` will ask for, but for the port; None for nothing new.  If it will not, `DropPath` follows."""
        return self._negotiation.foresee()

    def timer(self, timer: Timer) -> None:
        """A clock that was armed has run down."""
        if timer is Timer.ANNOUNCE:
            self._negotiation.announce_overdue()
        elif timer is Timer.HOLD:
            self._transfers.release()
        elif timer is Timer.ABORT:
            self._transfers.give_up()
        elif timer is Timer.ABORTED:
            self._transfers.aborted = False
        elif timer is Timer.NOOP:
            self._liveness.due(open=self._logged_in and not (self._passage or self._dismissed or self._over))
        elif timer is Timer.ENDING:
            self._hang_up(endings.NOT_CLOSED)
        elif timer is Timer.GREETING and self._dialogue.ledger.owes(Kind.GREETING):
            self.dismiss(endings.GREETING_TIMEOUT)
        elif timer is Timer.LOGIN and self._policy.require_login and not (self._logged_in or self._passage):
            self.dismiss(endings.LOGIN_TIMEOUT)
        elif timer is Timer.LINE and self._intake.overdue and self._passage is None:
            self.dismiss(endings.LINE_TIMEOUT)

    def dismiss(self, reason: str) -> None:
        """End the session: 421 with this text (mostly a `Reason`) to the client, then `Hangup`."""
        if not self._over:
            self._dialogue.say(421, reason)
            self._hang_up(reason)

    def path_opened(self, announced: Mapping[Side, Endpoint], *, ready: bool, reports_end: bool = True) -> None:
        """The path of the last `OpenPath` stands.  For `ready` and `reports_end` see `dtp.plane.Path`."""
        self._negotiation.path_opened(announced, ready=ready, reports_end=reports_end)

    def path_refused(self) -> None:
        """No plane can carry the path of the last `OpenPath`."""
        self._negotiation.path_refused()

    def path_connected(self, side: Side) -> None:
        """A leg of the open path is up."""
        self._negotiation.path_connected(side)

    def path_delivered(self) -> None:
        """Everything that the server sent on the open path was handed on to the client."""
        self._transfers.delivered()

    def path_finished(self) -> None:
        """The open path has carried and ended."""
        self._transfers.finished()

    def path_failed(self) -> None:
        """The open path never came up and never will."""
        self._negotiation.path_failed()

    # From the client

    def _from_client(self) -> Need:
        while not self._dialogue.actions:
            if self._passage is not None:
                return self._pass_unread(self._passage, CLIENT)
            taken, self._held = self._held, None
            if taken is None:
                fresh = self._intake.take(logged_in=self._logged_in)
                if fresh is None:
                    if CLIENT in self._ended:
                        if not self._dialogue.ledger.owes(Kind.ENDING):  # after QUIT the replies are still wanted
                            self._hang_up(self._closed(CLIENT))
                    elif self._intake.clock_due():
                        self._dialogue.act(Arm(Timer.LINE, self._timeouts.line))
                    return Need.PEER if CLIENT in self._ended else Need.DATA
                if isinstance(fresh, Ending):
                    (self._hang_up if fresh.silent else self.dismiss)(fresh.reason)
                    continue
                taken = fresh
            if not self._move(taken):
                self._held = taken
                return Need.PEER
        return Need.PEER

    def _move(self, taken: Command | Refusal) -> bool:
        """Forward or answer what the client said.  False if its turn has not come."""
        ledger = self._dialogue.ledger
        if isinstance(taken, Refusal):
            if ledger.admits(Kind.ORDINARY):
                self._dialogue.refuse(NO_COMMAND, taken)
                return True
            return False
        kind = kind_of(taken.verb)
        if kind in (Kind.ABORT, Kind.ENDING):
            self._transfers.release()  # who aborts or leaves does not wait for the last octet
        if ledger.admits(kind):
            self._command(taken, kind)
        elif ledger.admits_out_of_band(kind, taken) and self._refusal(taken, kind) is None:
            self._interrupt(taken, kind)
        else:
            return False
        return True

    def _refusal(self, command: Command, kind: Kind) -> Refusal | None:
        if not command.plain:
            return Refusal(500, "Command not understood.")
        if command.unclean or (b"\0" in command.line and (kind not in PATHS or command.verb == b"HOST")):
            return Refusal(501, "The command line contains CR or NUL.")
        return self._filter.judge(command)

    def _command(self, command: Command, kind: Kind) -> None:
        first, self._first = self._first, False
        if command.verb == b"USER" and self._handover is not None and not first:
            if (user := self._handover.user(command)) is None:
                self._dialogue.answer(503, "Log in to another server on another connection.")
                return
            command = user
        if (refusal := self._refusal(command, kind)) is not None:
            self._dialogue.refuse(command, refusal, logged_in=self._logged_in)
            self._lose_patience(command, refusal.code)
        elif kind is Kind.PASSIVE:
            self._negotiation.passive(command, logged_in=self._logged_in)
        elif kind is Kind.ACTIVE:
            self._negotiation.active(command, logged_in=self._logged_in)
        elif kind is Kind.TRANSFER and not self._transfers.begin(command):
            self._dialogue.answer(425, "Use PORT or PASV first.")
        else:
            self._dialogue.forward(command, kind, command.line + b"\r\n")

    def _interrupt(self, command: Command, kind: Kind) -> None:
        """A command that overtakes the transfer (RFC 959 section 4.1.3); ABOR and STAT behind a Telnet Synch."""
        if command.verb in (b"ABOR", b"STAT"):
            self._dialogue.server_out.append(Chunk(SYNCH, urgent=True))
        self._dialogue.server_out.append(Chunk(command.line + b"\r\n"))
        self._dialogue.ledger.add_out_of_band(Turn(command, kind))

    # From the server

    def _from_server(self) -> Need:
        while not self._dialogue.actions:
            if self._passage is not None:
                return self._pass_unread(self._passage, SERVER)
            if self._negotiation.waiting or self._transfers.held is not None:
                return Need.PEER
            line = self._replies.next_line()
            if line is None:
                if SERVER in self._ended:
                    if not self._dismissed and self._dialogue.ledger.owes(Kind.GREETING):
                        self._dialogue.say(421, "The server closed the connection.")
                    self._hang_up(self._closed(SERVER))
                    return Need.PEER
                return Need.DATA
            if line is OVERLONG:
                self.dismiss(endings.LONG_LINE)
            elif self._dismissed:
                self._dialogue.pass_by(line)
            elif line or self._collector.inside:  # empty lines between replies are nothing
                self._reply_line(line)
        return Need.PEER

    def _reply_line(self, line: bytes) -> None:
        ledger = self._dialogue.ledger
        if not self._collector.inside:
            self._solicited = bool(ledger)
        try:
            lines, last = self._collector.take(line, head.kind if (head := ledger.head) is not None else Kind.ORDINARY)
        except NotAReply:
            self._not_a_reply(line)
        except ReplyTooLong:
            self.dismiss(endings.LONG_REPLY)
        else:
            if last is not None:
                self._complete(last, lines)
            else:
                self._dialogue.pass_on(lines)

    def _not_a_reply(self, line: bytes) -> None:
        turn = self._dialogue.ledger.head
        if self._policy.greeting == "strict" or (turn is not None and turn.kind in (Kind.PASSIVE, Kind.ACTIVE)):
            self.dismiss(endings.NO_FTP)
            return
        self._dialogue.pass_by(line)
        if turn is not None:
            self._dialogue.end(turn)

    def _complete(self, judged: ReplyLine, lines: list[bytes]) -> None:
        """The last line of a reply has come: whose is it?"""
        code = judged.code
        ledger = self._dialogue.ledger
        if code == 421:
            # RFC 959 section 5.4: no later reply answers anything, and the server is about to close.
            self._dialogue.pass_on(lines)
            self._dismissed = True
            self._dialogue.act(Arm(Timer.ENDING, ENDING_SECONDS))
        elif code < 200 and self._solicited and ledger.begins(lenient=self._policy.greeting == "lenient"):
            self._dialogue.pass_on(lines)
        elif self._solicited and (turns := ledger.match(code, judged.text)):
            if code in ENDPOINT_CODES and not self._negotiation.expects_endpoint:
                # A server that understood something else than we did: the client must not learn of the endpoint.
                judged, lines = judged._replace(code=502), [reply(502, "Command not implemented.")]
            if turns[0].ended_by(judged.code):
                self._answered(turns, judged, lines)
            else:
                self._dialogue.pass_on(lines)
        elif not (code in ENDPOINT_CODES or (self._transfers.aborted and code in (225, 226, 426))):
            # Nobody asked.  An endpoint that nobody asked for would answer the next PASV, and is not passed on.
            self._dialogue.pass_on(lines)

    def _answered(self, turns: list[Turn], judged: ReplyLine, lines: list[bytes]) -> None:
        """A complete final reply, which answers one turn, or an aborted transfer and its ABOR at once."""
        turn, code = turns[0], judged.code
        positive = 200 <= code < 300
        if turn.kind is Kind.PROBE:
            self._liveness.answered(turn, code)
            return
        self._liveness.amid = 300 <= code < 400
        if turn.kind in (Kind.PASSIVE, Kind.ACTIVE):
            self._negotiation.answered(judged, lines)
            return
        if turn.kind is Kind.TRANSFER:
            self._transfers.answered(turn, positive, lines)
            if len(turns) > 1:
                self._transfers.abort_answered(turns[1])
            return
        if turn.kind is Kind.FEATURES:
            hidden = REFUSED_FEATURES | self._filter.refused
            lines = feat.reply_to_feat(code, lines, hidden, self._negotiation.provides)
        self._dialogue.pass_on(lines)
        if turn.kind is Kind.ABORT:
            self._transfers.abort_answered(turn, positive=positive)
            return
        if turn.kind is Kind.GREETING:
            self._logged_in = code == 230
            self._dialogue.act(Arm(Timer.LOGIN, self._timeouts.login))
        elif turn.kind is Kind.LOGIN:
            self._login_answered(turn, code)
        elif turn.kind in (Kind.MODE, Kind.TYPE) and positive:
            (self._transfers.mode if turn.kind is Kind.MODE else self._transfers.type)(turn.command.argument)
        elif turn.kind is Kind.RESET and positive:
            self._logged_in = False
            self._negotiation.reset()
        elif turn.kind is Kind.SECURITY and code in (234, 334):
            self._transfers.drop("AUTH")
            self._passage = Passage(code)
            if self._held is not None:
                self._hang_up(endings.plain_text(CLIENT))
        self._dialogue.end(turn)
        if turn.kind is Kind.LOGIN:
            self._lose_patience(turn.command, code)

    def _login_answered(self, turn: Turn, code: int) -> None:
        if turn.command.verb == b"USER":
            self._transfers.user = user_name(turn.command.argument)
        if code in (230, 232) or (code == 202 and turn.command.verb != b"USER"):
            self._logged_in = True
        elif turn.command.verb == b"USER" and 300 <= code < 400:
            self._logged_in = False

    def _lose_patience(self, command: Command, code: int) -> None:
        if refuses_login(command.verb, code):
            self._dialogue.act(LoginFailed(self._transfers.user))
            if reason := self._intake.patience.login_failed():
                self.dismiss(reason)

    # Both

    def _pass_unread(self, passage: Passage, side: Side) -> Need:
        """Both directions as they are."""
        buffer = self._intake.take_rest() if side is CLIENT else self._replies.take_rest()
        try:
            if buffer:
                out = self._dialogue.server_out if side is CLIENT else self._dialogue.client_out
                out.append(Chunk(passage.carry(side, buffer)))
        except PlainText:
            self._hang_up(endings.plain_text(side))
        if side in self._ended:
            self._hang_up(self._closed(side))
        return Need.DATA

    def _closed(self, side: Side) -> str:
        return endings.closed(side, quit=self._dialogue.ledger.quit, dismissed=self._dismissed)

    def _hang_up(self, reason: str) -> None:
        if not self._over:
            self._over = True
            self._dialogue.act(Hangup(reason, drain=not self._dialogue.ledger.owes(Kind.TRANSFER)))
