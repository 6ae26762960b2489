"""The login of the gateway mode: the client tells us, in one of many ways, which server it wants.

| style                 | the client says                                  | we do                                    |
| --------------------- | ------------------------------------------------ | ---------------------------------------- |
| `user@host`           | USER u@h[:port]                                  | call h, USER u; the reply answers USER   |
| proxy login first     | USER pu, PASS pp, then as above or SITE, OPEN    | check pu and pp: 331, 230                |
| `proxyuser@host`      | USER pu@h, PASS pp, USER u                       | check, call; the greeting answers PASS   |
| `user@host proxyuser` | USER u@h pu, PASS p, ACCT pp                     | check, call, USER, PASS; answers ACCT    |
| `user@proxyuser@host` | USER u@pu@h, PASS p@pp (CheckPoint)              | check, call, USER, PASS; answers PASS    |
| `site`, `open`        | SITE h[:port], OPEN h[:port]                     | call; the greeting answers it            |
| `host`                | HOST name, USER u (RFC 7151)                     | call what the name is mapped to, USER u  |

Theory of operation.  A pull machine with the face of `ProtocolInterpreter`, and as pure: `receive`, `next_action`,
`take_output`.  Until a server is known it answers the client itself; then it asks for a call (`Dial`) and is told
`dialled` or `not_dialled`.  It reads the greeting, says to the server what the client has said already, and when
the client's own reply is at hand (or is all that is missing) it asks for `HandOver`: from there on an ordinary
`ProtocolInterpreter` has both ends, with a ledger that never knew of any of this.

Whatever fails on the way to a server is a 530 with the reason, and the client may try another one.  Passwords are
checked elsewhere and later (`Verify`, then `verified`): the check is slow on purpose.
"""

from __future__ import annotations

from collections import deque

from attrs import define, field, frozen

from ..endpoints import IPAddress, Side
from ..freezing import GIVEN
from ..reasons import Code
from ..wire.command import Command, parse_command
from ..wire.lines import OVERLONG, LineBuffer
from ..wire.reply import NotAReply, ReplyLine, ReplyReader, reply
from ..wire.telnet import TelnetFilter
from . import endings
from .actions import Arm, Chunk, Denied, Hangup, Need, Timer
from .destinations import Target
from .filter import filter_of
from .handover import HandOver
from .masking import loggable
from .policy import Policy, Timeouts
from .verbs import HTTP_VERBS
from .wishes import Answer, LoginSettings, Outcome, Verify, Wish, Wishes

__all__ = ["Dial", "LetGo", "LoginAction", "LoginInterpreter"]

LONGEST_COMMAND = 8192
LONGEST_REPLY = 32768
LONGEST_HELD_REPLY = 64 * 1024
"""Octets of a whole reply of the server during login: banners are long, but not that long."""
LONGEST_QUOTE = 200
"""Octets of the server's words within a reply of ours."""
CLIENT, SERVER = Side.CLIENT, Side.SERVER


@frozen
class Dial:
    """Call a server, then `dialled` or `not_dialled`.  Only addresses that `LoginInterpreter.admits` are called."""

    target: Target


@frozen
class LetGo:
    """Close the connection to the server; the client stays."""


LoginAction = Dial | Verify | LetGo | HandOver | Arm | Hangup | Denied


@define(init=False, eq=False)
class LoginInterpreter:
    """One client on its way to a server.  Raises nothing for anything that a peer sends."""

    _settings: LoginSettings = field(metadata=GIVEN)
    _policy: Policy = field(metadata=GIVEN)
    _timeouts: Timeouts = field(metadata=GIVEN)
    _out: dict[Side, list[Chunk]]
    _actions: deque[LoginAction]
    _telnet: dict[Side, TelnetFilter]
    _commands: LineBuffer
    _replies: LineBuffer
    _reader: ReplyReader
    _reply: bytearray
    """What there is of the server's reply."""
    _wishes: Wishes
    _wish: Wish | None
    """The server that is being called or spoken to."""
    _busy: bool
    """An errand (a call, a check) or the server has to come back first."""
    _client_ended: bool
    _server_ended: bool
    _connected: bool
    _user_said: bool
    _verbs: int
    _refusals: int
    _failures: int
    _overlong: int
    _over: bool

    def __init__(self, settings: LoginSettings, policy: Policy | None = None, timeouts: Timeouts | None = None) -> None:
        self._settings = settings
        self._policy = policy or Policy()
        self._timeouts = timeouts or Timeouts()
        self._out = {CLIENT: [], SERVER: []}
        self._actions = deque()
        self._telnet = {CLIENT: TelnetFilter(), SERVER: TelnetFilter()}
        self._commands = LineBuffer(LONGEST_COMMAND)
        self._replies = LineBuffer(LONGEST_REPLY)
        self._reader = ReplyReader()
        self._reply = bytearray()
        self._wishes = Wishes(settings)
        self._wish = None
        self._client_ended = self._server_ended = self._connected = self._user_said = self._busy = self._over = False
        self._verbs = self._refusals = self._failures = self._overlong = 0
        self._say(220, "FTP proxy ready.")
        self._act(Arm(Timer.LOGIN, self._timeouts.login))

    # What the owner calls

    def receive(self, side: Side, octets: bytes) -> None:
        """Take octets of a side; none mean that it ended its stream."""
        if not octets:
            if side is CLIENT:
                self._client_ended = True
            else:
                self._server_ended = True
            return
        if side is CLIENT and not self._verbs and not len(self._commands) and octets.startswith(b"\x16"):
            self._hang_up(endings.SPEAKS_TLS)
        octets, answer = self._telnet[side].feed(octets)
        if answer:
            self._out[side].append(Chunk(answer))
        (self._commands if side is CLIENT else self._replies).feed(octets)

    def next_action(self, side: Side) -> LoginAction | Need:
        """What to do next, seen from this side; after `HandOver` or `Hangup` nothing."""
        if not self._actions and not self._over:
            need = self._from_client() if side is CLIENT else self._from_server()
            if not self._actions:
                return need
        return self._actions.popleft() if self._actions else Need.PEER

    def take_output(self, side: Side) -> list[Chunk]:
        """Octets for this side, in order; they are the caller's now."""
        chunks, self._out[side] = self._out[side], []
        return chunks

    def timer(self, timer: Timer) -> None:
        """A clock that was armed has run down."""
        if timer is Timer.LOGIN:
            self.dismiss(endings.LOGIN_TIMEOUT)
        elif timer is Timer.GREETING and self._connected and not self._over:
            self._fail("The server did not answer in time.")

    def dismiss(self, reason: str) -> None:
        """End it: 421 with this text (mostly a `Reason`) to the client, then `Hangup`."""
        if not self._over:
            self._say(421, reason)
            self._hang_up(reason)

    def admits(self, address: IPAddress) -> bool:
        """Whether `address`, which the target of the last `Dial` is or was found to have, may be called."""
        target = self._wish.target if self._wish is not None else None
        if target is None or self._settings.mapped(target) is not None:
            return target is not None
        return self._settings.destinations.admits_address(target, address)

    def dialled(self) -> None:
        """The server of the last `Dial` has answered the call."""
        self._connected = True
        self._user_said = self._server_ended = False
        self._telnet[SERVER], self._reader, self._reply = TelnetFilter(), ReplyReader(), bytearray()
        self._replies.take_rest()
        self._act(Arm(Timer.GREETING, self._timeouts.greeting))

    def not_dialled(self, reason: str) -> None:
        """It has not, or may not be called."""
        self._connected = self._busy = False
        self._say(530, f"Cannot reach the server: {reason}.")

    def verified(self, right: bool) -> None:
        """The answer to the last `Verify`."""
        self._busy = False
        self._failures += not right
        if self._failures >= self._policy.login_attempts:
            self.dismiss(endings.FAILED_LOGINS)
        else:
            self._take(self._wishes.verified(right))

    # From the client

    def _from_client(self) -> Need:
        while not self._actions:
            if self._busy or self._over:
                return Need.PEER
            line = self._commands.next_line()
            if line is None:
                if self._client_ended:
                    self._hang_up(endings.closed(CLIENT, quit=False, dismissed=False))
                    return Need.PEER
                return Need.DATA
            if line is OVERLONG:
                self._overlong += 1
                if self._overlong > 1:
                    self.dismiss(endings.LONG_LINES)
                else:
                    self._say(500, "The command line is too long.")
                continue
            self._command(parse_command(line))
        return Need.PEER

    def _command(self, command: Command) -> None:
        verb, argument = command.verb, command.argument
        self._verbs += 1
        if self._verbs == 1 and verb in HTTP_VERBS:
            self._hang_up(endings.SPEAKS_HTTP)
        elif b"\0" in command.line or b"\r" in command.line:
            self._refuse(501, "The command line contains CR or NUL.")
        elif verb == b"USER":
            self._take(self._wishes.user(argument))
        elif verb == b"PASS":
            self._take(self._wishes.password(argument))
        elif verb == b"ACCT":
            self._take(self._wishes.account(argument))
        elif verb in (b"SITE", b"OPEN"):
            self._take(self._wishes.open(verb, argument))
        elif verb == b"HOST":
            self._take(self._wishes.host(argument))
        elif verb == b"QUIT":
            self._say(221, "Goodbye.")
            self._hang_up(endings.QUIT)
        elif verb == b"REIN":
            self._wishes.reset()
            self._say(220, "FTP proxy ready.")
        elif verb == b"FEAT":
            features = [b" HOST", b" UTF8"] if self._settings.hosts else [b" UTF8"]
            self._put(CLIENT, b"\r\n".join([b"211-Features:", *features, b"211 End", b""]))
        elif verb == b"OPTS" and argument.upper() in (b"UTF8", b"UTF8 ON"):
            self._say(200, "UTF8 is always on.")
        elif verb in _LOCAL:
            self._say(*_LOCAL[verb])
        else:
            self._refuse(530, "Log in first: USER user@host.")

    def _take(self, outcome: Outcome) -> None:
        if isinstance(outcome, Answer):
            if outcome.refused:
                self._refuse(outcome.code, outcome.text)
            else:
                self._say(outcome.code, outcome.text)
        elif isinstance(outcome, Verify):
            self._busy = True
            self._act(outcome)
        elif outcome.user and (refusal := filter_of(self._policy).judge(_command(b"USER", outcome.user))):
            self._act(Denied(loggable(b"USER " + outcome.user), refusal.rule, refusal.by))
            self._say(refusal.code, refusal.text)
        elif (server := self._settings.mapped(outcome.target)) is not None:
            self._dial(outcome, Target(str(server.host), server.port))
        elif self._settings.destinations.admits(outcome.target):
            self._dial(outcome, outcome.target)
        else:
            self._act(Denied(str(outcome.target).encode(), "destinations", Code.POLICY_DESTINATION))
            self._refuse(530, "That server is not allowed here.")

    def _dial(self, wish: Wish, target: Target) -> None:
        self._wish = wish
        self._busy = True
        self._act(Dial(target))

    # From the server

    def _from_server(self) -> Need:
        while not self._actions and self._connected:
            line = self._replies.next_line()
            if line is None:
                if self._server_ended:
                    self._fail("The server closed the connection.")
                return Need.DATA
            if line is OVERLONG:
                self._fail("The server sent a line that is too long.")
            elif line or self._reader.inside:
                self._reply_line(line)
        return Need.PEER

    def _reply_line(self, line: bytes) -> None:
        try:
            judged = self._reader.read(line)
        except NotAReply:
            self._fail("The server does not speak FTP.")
            return
        self._reply += judged.line + b"\r\n"
        if len(self._reply) > LONGEST_HELD_REPLY:
            self._fail("The server sent a reply that is too long.")
        elif judged.last:
            octets, self._reply = bytes(self._reply), bytearray()
            if judged.code >= 200:  # 120: it takes its time (RFC 959 section 5.4)
                self._replied(judged, octets)

    def _replied(self, judged: ReplyLine, octets: bytes) -> None:
        wish = self._wish
        assert wish is not None
        code = judged.code
        if self._user_said and 300 <= code < 400:
            assert wish.password is not None
            self._hand_over(220, _command(b"PASS", wish.password))
        elif code == 230 or (200 <= code < 300 and (self._user_said or not wish.user)):
            self._put(CLIENT, octets)  # it answers the client's last command as it stands
            self._hand_over(230 if self._user_said or code == 230 else 220)
        elif self._user_said or not 200 <= code < 300:
            self._fail("The server said: " + octets.decode("ascii", "replace").splitlines()[-1][:LONGEST_QUOTE])
        elif wish.password is None:
            self._hand_over(220, _command(b"USER", wish.user))
        else:
            self._user_said = True
            self._put(SERVER, b"USER " + wish.user + b"\r\n")

    def _hand_over(self, greeting: int, first: Command | None = None) -> None:
        wish = self._wish
        assert wish is not None
        self._over = True
        self._act(
            HandOver(
                greeting,
                wish.target,
                wish.naming,
                self._wishes.proxy_user,
                first,
                client=self._commands.take_rest(),
                server=self._replies.take_rest(),
            )
        )

    def _fail(self, text: str) -> None:
        """The way to this server ends here; the client may try another one."""
        self._connected = self._busy = False
        self._wish = None
        self._act(LetGo())
        self._say(530, text)

    # To both

    def _refuse(self, code: int, text: str) -> None:
        self._refusals += 1
        if self._refusals >= self._policy.unknown_verbs:
            self.dismiss(endings.SENSELESS_COMMANDS)
        else:
            self._say(code, text)

    def _say(self, code: int, text: str) -> None:
        self._put(CLIENT, reply(code, text.encode("ascii", "replace").decode()))

    def _put(self, side: Side, octets: bytes) -> None:
        self._out[side].append(Chunk(octets))

    def _act(self, action: LoginAction) -> None:
        self._actions.append(action)

    def _hang_up(self, reason: str) -> None:
        if not self._over:
            self._over = True
            self._act(Hangup(reason, drain=False))


def _command(verb: bytes, argument: bytes) -> Command:
    return Command(verb, argument, verb + b" " + argument)


_LOCAL = {
    b"SYST": (215, "UNIX Type: L8"),
    b"NOOP": (200, "OK."),
    b"CLNT": (200, "OK."),
    b"OPTS": (501, "That option is not known here."),
    **dict.fromkeys((b"AUTH", b"PBSZ", b"PROT", b"CCC"), (502, "TLS is not available here.")),
}
"""What has an answer before a server is known."""
