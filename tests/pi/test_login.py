"""The login of the gateway mode: every style, what is refused, and what is left to the interpreter."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftpproxy.endpoints import Endpoint, Side, parse_address
from ftpproxy.pi.actions import Arm, Denied, Hangup, Need, Timer
from ftpproxy.pi.destinations import Destination, Destinations, Target, parse_target
from ftpproxy.pi.handover import HandOver, Naming
from ftpproxy.pi.interpreter import ProtocolInterpreter
from ftpproxy.pi.login import Dial, LetGo, LoginAction, LoginInterpreter
from ftpproxy.pi.policy import Policy
from ftpproxy.pi.wishes import LoginSettings, Verify
from ftpproxy.routes import Route
from ftpproxy.wire.command import parse_command

C, S = Side.CLIENT, Side.SERVER


def destinations(*texts: str) -> Destinations:
    return Destinations([Destination.parse(text) for text in texts])


OPEN = LoginSettings(destinations=destinations("*:21-2121", "[2001:db8::/32]", "198.51.100.0/24:21-2121"))
CLOSED = LoginSettings(destinations=OPEN.destinations, authenticate=True)
MAPPED = LoginSettings(hosts={"mirror": Endpoint.parse("10.0.0.5:2121")})


class Stage:
    """A login with the client's and the server's ends in the test's hands."""

    def __init__(self, settings: LoginSettings = OPEN, policy: Policy | None = None) -> None:
        self.login = LoginInterpreter(settings, policy)
        self.actions: list[LoginAction] = []
        self.needs: dict[Side, Need] = {}
        assert self.pump(C) == b"220 FTP proxy ready.\r\n"

    def pump(self, side: Side) -> bytes:
        for each in (S, C, S, C):
            while not isinstance(action := self.login.next_action(each), Need):
                if not isinstance(action, Arm | Denied):
                    self.actions.append(action)
            self.needs[each] = action
        return b"".join(chunk.octets for chunk in self.login.take_output(side))

    def says(self, line: str) -> str:
        """The client says a line; what it hears."""
        self.login.receive(C, line.encode("latin-1") + b"\r\n")
        return self.pump(C).decode("latin-1").rstrip("\r\n")

    def act(self) -> LoginAction:
        return self.actions.pop(0)

    def dials(self, target: Target) -> None:
        assert self.act() == Dial(target)
        assert self.needs[C] is Need.PEER, "nobody is read while a call is on"
        self.login.dialled()

    def verifies(self, user: bytes, password: bytes, *, right: bool = True) -> str:
        assert self.act() == Verify(user, password)
        self.login.verified(right)
        return self.pump(C).decode().rstrip("\r\n")

    def server(self, text: str) -> tuple[str, str]:
        """The server says something; what the client and the server hear."""
        self.login.receive(S, text.encode("latin-1"))
        heard = self.pump(C).decode("latin-1")
        return heard, b"".join(chunk.octets for chunk in self.login.take_output(S)).decode("latin-1")

    def over(self) -> HandOver:
        action = self.act()
        assert isinstance(action, HandOver)
        assert not self.actions
        return action


def first(over: HandOver) -> bytes | None:
    return over.first and over.first.line


# The styles


@pytest.mark.parametrize(
    ("argument", "user", "target"),
    [
        ("joe@ftp.example.com", b"joe", Target("ftp.example.com", 21)),
        ("a@b@host.example:2121", b"a@b", Target("host.example", 2121)),
        ("joe@host.example 2121", b"joe", Target("host.example", 2121)),
        ("joe@HOST.Example.", b"joe", Target("host.example", 21)),
        ("u@[2001:db8::1]", b"u", Target("2001:db8::1", 21)),
        ("u@2001:db8::1", b"u", Target("2001:db8::1", 21)),
        ("u@[2001:db8:0::1]:21", b"u", Target("2001:db8::1", 21)),
        ("u@198.51.100.7:2100", b"u", Target("198.51.100.7", 2100)),
        ("caf\xe9 x@h.example", b"caf\xe9 x", Target("h.example", 21)),
    ],
)
def test_user_at_host(argument: str, user: bytes, target: Target) -> None:
    """Items 144, 145: the last @ separates, a port may follow, an IPv6 address stands in brackets."""
    stage = Stage()
    assert stage.says(f"USER {argument}") == ""
    stage.dials(target)
    assert stage.server("120 wait\r\n220-Welcome\r\n220-more\r\n220 ready\r\n") == ("", "")
    over = stage.over()
    assert (over.greeting, over.target, over.naming) == (220, target, Naming.AT_HOST)
    assert first(over) == b"USER " + user


def test_what_the_client_sent_early_goes_along() -> None:
    """Item 144: a client that pipelines PASS behind USER user@host loses nothing."""
    stage = Stage()
    stage.login.receive(C, b"USER joe@h.example\r\nPASS secret\r\nPA")
    stage.pump(C)
    stage.dials(Target("h.example"))
    stage.server("220 a\r\n331 already\r\n")
    over = stage.over()
    assert (over.client, over.server) == (b"PASS secret\r\nPA", b"331 already\r\n")
    assert "secret" not in repr(over)


def test_proxy_login_first() -> None:
    """Item 147: USER and PASS for the proxy, then USER user@host."""
    stage = Stage(CLOSED)
    assert stage.says("USER alice")[:4] == "331 "
    assert stage.says("PASS pp@x") == ""
    assert stage.verifies(b"alice", b"pp@x")[:4] == "230 "
    assert stage.says("USER joe@h.example") == ""
    stage.dials(Target("h.example"))
    stage.server("220 a\r\n")
    over = stage.over()
    assert first(over) == b"USER joe"
    assert over.user(parse_command(b"USER alice")) is None, "a login to the proxy is not the server's to see"


@pytest.mark.parametrize("line", ["SITE h.example:2100", "OPEN h.example 2100", "site h.example:2100"])
def test_site_and_open(line: str) -> None:
    """Item 147: SITE and OPEN, with the proxy login before; the server's greeting answers them."""
    stage = Stage(CLOSED)
    assert stage.says(line)[:4] == "530 "
    stage.says("USER alice")
    stage.says("PASS pp")
    stage.verifies(b"alice", b"pp")
    assert stage.says(line) == ""
    stage.dials(Target("h.example", 2100))
    assert stage.server("220-Welcome\r\n220 ready\r\n") == ("220-Welcome\r\n220 ready\r\n", "")
    over = stage.over()
    assert (over.first, over.naming) == (None, Naming.PLAIN)
    assert over.user(command := parse_command(b"USER joe@corp.example")) is command


def test_proxy_user_at_host() -> None:
    """Item 147: USER proxyuser@host, PASS, then plain USER and PASS for the server."""
    stage = Stage(CLOSED)
    assert stage.says("USER alice@h.example")[:4] == "331 "
    assert stage.says("PASS pp") == ""
    assert stage.verifies(b"alice", b"pp") == ""
    stage.dials(Target("h.example"))
    assert stage.server("220 ready\r\n")[0] == "220 ready\r\n"
    over = stage.over()
    assert over.first is None
    assert over.user(parse_command(b"USER joe@corp.example")) is not None
    assert over.user(parse_command(b"USER alice@h.example")) is None


def test_three_part_login() -> None:
    """Item 147: USER user@host proxyuser, PASS for the server, ACCT for the proxy."""
    stage = Stage(CLOSED)
    assert stage.says("USER joe@h.example:2100 alice")[:4] == "331 "
    assert stage.says("ACCT early")[:4] == "503 "
    assert stage.says("PASS p")[:4] == "332 "
    assert stage.says("ACCT pp") == ""
    assert stage.verifies(b"alice", b"pp") == ""
    stage.dials(Target("h.example", 2100))
    assert stage.server("220 ready\r\n") == ("", "USER joe\r\n")
    assert stage.server("331 and?\r\n") == ("", "")
    assert first(stage.over()) == b"PASS p"


def test_checkpoint_login() -> None:
    """Item 147: USER user@proxyuser@host, PASS password@proxypassword: both are split from the right."""
    stage = Stage(CLOSED)
    assert stage.says("USER j@e@alice@h.example")[:4] == "331 "
    assert stage.says("PASS p@ss@pp") == ""
    assert stage.verifies(b"alice", b"pp") == ""
    stage.dials(Target("h.example"))
    assert stage.server("220 ready\r\n") == ("", "USER j@e\r\n")
    stage.server("331 and?\r\n")
    over = stage.over()
    assert first(over) == b"PASS p@ss"
    assert over.user(parse_command(b"USER j@e@alice@h.example")) is None, "the PASS that follows holds ours"


def test_host_and_mapped_names() -> None:
    """Items 47, 147: HOST chooses among our own names; nothing else, and no port."""
    stage = Stage(MAPPED)
    assert stage.says("HOST other.example")[:4] == "504 "
    assert stage.says("HOST mirror:21")[:4] == "501 "
    assert stage.says("HOST Mirror")[:4] == "220 "
    assert stage.says("USER joe") == ""
    stage.dials(Target("10.0.0.5", 2121))
    assert stage.login.admits(parse_address("10.0.0.5"))
    stage.server("220 ready\r\n")
    assert first(stage.over()) == b"USER joe"


def test_a_mapped_name_behind_the_at() -> None:
    """Item 146: a name of ours is allowed without an entry in the list; with another port it is not ours."""
    stage = Stage(MAPPED)
    assert stage.says("USER joe@mirror:22")[:4] == "530 "
    assert stage.says("USER joe@mirror") == ""
    stage.dials(Target("10.0.0.5", 2121))


# What is refused


@pytest.mark.parametrize(
    "argument",
    ["joe@", "@h.example", "joe@[h.example]", "joe@h_.-", "joe@h:0", "joe@h:65536", "joe@h:x", "joe@127.1"]
    + ["joe@0x7f000001", "joe@2130706433", "joe@fe80::1%eth0", "joe@a..b", "joe@\xe9.example", "joe@[::1", "joe@h;id"],
)
def test_what_is_no_host(argument: str) -> None:
    """Item 146: names and addresses, nothing that only a resolver would understand."""
    stage = Stage()
    assert stage.says(f"USER {argument}")[:4] == "501 "
    assert not stage.actions


@pytest.mark.parametrize(
    "line", ["USER joe@h.example:2122", "SITE h.example:20", "USER joe@10.0.0.1", "OPEN 127.0.0.1"]
)
def test_destinations_outside_the_list(line: str) -> None:
    """Item 146: 530, and no call is asked for; `*` does not open the inside."""
    stage = Stage()
    assert stage.says(line)[:4] == "530 "
    assert not stage.actions


def test_closed_by_default() -> None:
    """Item 146: without a list nothing is allowed."""
    stage = Stage(LoginSettings())
    assert stage.says("USER joe@192.0.32.1") == "530 That server is not allowed here."
    assert not stage.actions


def test_the_policy_holds_before_the_call() -> None:
    """Item 146: a user whom the policy refuses is no reason to call anybody."""
    stage = Stage(policy=Policy(anonymous_only=True))
    assert stage.says("USER joe@h.example")[:4] == "530 "
    assert stage.says("USER ftp@h.example") == ""
    stage.dials(Target("h.example"))


def test_local_answers() -> None:
    """Item 147: what clients ask before they log in has an answer, everything else 530."""
    stage = Stage()
    for line, code in [
        ("FEAT", "211-"),
        ("OPTS UTF8 ON", "200 "),
        ("OPTS MLST type;", "501 "),
        ("SYST", "215 "),
        ("NOOP", "200 "),
        ("CLNT x", "200 "),
        ("AUTH TLS", "502 "),
        ("PWD", "530 "),
        ("PASV", "530 "),
        ("RETR x", "530 "),
        ("PASS x", "503 "),
        ("USER plain", "530 "),
        ("USER a\0b@h.example", "501 "),
    ]:
        assert stage.says(line)[:4] == code, line
    assert stage.says("QUIT")[:4] == "221 "
    assert isinstance(stage.act(), Hangup)


def test_failed_logins_end_it() -> None:
    """Item 139: after so many failures 421."""
    stage = Stage(CLOSED, Policy(login_attempts=3))
    for expected in ("530 ", "530 ", "421 "):
        assert stage.says("USER alice")[:4] == "331 "
        stage.says("PASS wrong")
        assert stage.verifies(b"alice", b"wrong", right=False)[:4] == expected
    assert isinstance(stage.act(), Hangup)


def test_senseless_commands_end_it() -> None:
    """Item 136."""
    stage = Stage()
    codes = [stage.says(f"X{number}")[:4] for number in range(10)]
    assert codes == ["530 "] * 9 + ["421 "]


@pytest.mark.parametrize("octets", [b"GET / HTTP/1.0\r\n", b"\x16\x03\x01\x02\x00\x01"])
def test_browsers_are_left_alone(octets: bytes) -> None:
    """Item 135: a client that speaks another protocol gets no reply."""
    stage = Stage()
    stage.login.receive(C, octets)
    assert stage.pump(C) == b""
    assert isinstance(stage.act(), Hangup)


def test_overlong_lines() -> None:
    """Items 17, 18: 500 once, then 421."""
    stage = Stage()
    assert stage.says("USER " + "x" * 9000)[:4] == "500 "
    assert stage.says("USER " + "x" * 9000)[:4] == "421 "


# What fails on the way


@pytest.mark.parametrize(
    ("greeting", "expected"),
    [
        ("421 too many users\r\n", "530 The server said: 421 too many users\r\n"),
        ("530-Go\r\n530 away\r\n", "530 The server said: 530 away\r\n"),
        ("SSH-2.0-OpenSSH\r\n", "530 The server does not speak FTP.\r\n"),
        ("220-" + "x" * 70000 + "\r\n", "530 The server sent a line that is too long.\r\n"),
        ("220-\r\n" * 20000, "530 The server sent a reply that is too long.\r\n"),
        ("", "530 The server closed the connection.\r\n"),
    ],
    ids=lambda value: value[:12],
)
def test_a_server_that_does_not_want(greeting: str, expected: str) -> None:
    """Item 147: 530 with the reason, and the client may try another one."""
    stage = Stage()
    stage.says("USER joe@h.example")
    stage.dials(Target("h.example"))
    assert stage.server(greeting) == (expected, "")
    assert isinstance(stage.act(), LetGo)
    stage.says("USER joe@other.example")
    stage.dials(Target("other.example"))
    stage.server("220 ready\r\n")
    assert first(stage.over()) == b"USER joe"


def test_a_call_that_fails() -> None:
    """Item 147: 530 with the reason, and the client may try again."""
    stage = Stage()
    stage.says("USER joe@h.example")
    assert isinstance(stage.act(), Dial)
    stage.login.not_dialled("Connection refused")
    assert stage.pump(C) == b"530 Cannot reach the server: Connection refused.\r\n"
    stage.says("USER joe@h.example")
    assert isinstance(stage.act(), Dial)


def test_a_server_that_refuses_the_user() -> None:
    """Item 147: in a combined login the server's refusal of USER answers the client, and PASS is not said."""
    stage = Stage(CLOSED)
    stage.says("USER joe@alice@h.example")
    stage.says("PASS p@pp")
    stage.verifies(b"alice", b"pp")
    stage.dials(Target("h.example"))
    stage.server("220 ready\r\n")
    assert stage.server("530 no joe here\r\n") == ("530 The server said: 530 no joe here\r\n", "")
    assert isinstance(stage.act(), LetGo)


@pytest.mark.parametrize("greeting", [True, False])
def test_a_server_that_needs_no_password(greeting: bool) -> None:
    """Item 32: 230 as greeting or for USER logs in, and answers what the client said last."""
    stage = Stage(CLOSED)
    stage.says("USER joe@alice@h.example")
    stage.says("PASS p@pp")
    stage.verifies(b"alice", b"pp")
    stage.dials(Target("h.example"))
    if not greeting:
        stage.server("220 ready\r\n")
    assert stage.server("230 come in\r\n")[0] == "230 come in\r\n"
    over = stage.over()
    assert (over.greeting, over.first) == (230, None)


def test_a_silent_server() -> None:
    """Item 147: a server that accepts and does not greet costs one try."""
    stage = Stage()
    stage.says("USER joe@h.example")
    stage.dials(Target("h.example"))
    stage.login.timer(Timer.GREETING)
    assert stage.pump(C)[:4] == b"530 "
    stage.login.timer(Timer.LOGIN)
    assert stage.pump(C)[:4] == b"421 "


def test_a_later_user() -> None:
    """Item 144: USER user@host of the same host is the user there, of another host 503."""
    over = HandOver(220, Target("h.example", 2100), Naming.AT_HOST)
    again = over.user(parse_command(b"USER a@b@H.example:2100"))
    assert again is not None
    assert again.line == b"USER a@b"
    assert over.user(plain := parse_command(b"USER joe")) is plain
    for other in (b"USER a@other.example", b"USER a@h.example", b"USER a@", b"USER @h.example:2100"):
        assert over.user(parse_command(other)) is None


# What the interpreter makes of it


class After:
    """An interpreter that begins with a hand-over."""

    def __init__(self, over: HandOver) -> None:
        client, proxy = Endpoint.parse("192.0.2.7:40000"), Endpoint.parse("198.51.100.1:50000")
        self.interpreter = ProtocolInterpreter(
            Route(client, proxy.at(21), Endpoint.parse("198.51.100.7:21"), proxy), handover=over
        )

    def hears(self, side: Side, octets: bytes = b"") -> tuple[bytes, bytes]:
        """What client and server hear when `side` has said `octets`."""
        if octets:
            self.interpreter.receive(side, octets)
        for each in (S, C, S, C):
            while not isinstance(self.interpreter.next_action(each), Need):
                pass
        client, server = (b"".join(chunk.octets for chunk in self.interpreter.take_output(each)) for each in (C, S))
        return client, server


def test_the_ledger_begins_with_what_is_owed() -> None:
    """Items 42, 144: USER first, then what the client had pipelined; each reply answers its own."""
    over = HandOver(220, Target("h.example"), Naming.AT_HOST, b"", parse_command(b"USER a@b"), b"PASS x\r\nSYST\r\n")
    after = After(over)
    assert after.hears(C) == (b"", b"USER a@b\r\nPASS x\r\nSYST\r\n")
    assert after.hears(S, b"331 a\r\n230 b\r\n")[0] == b"331 a\r\n230 b\r\n"
    assert after.hears(C, b"USER c@other.example\r\n") == (b"", b"")
    assert after.hears(S, b"215 c\r\n")[0] == b"215 c\r\n503 Log in to another server on another connection.\r\n"
    assert after.hears(C, b"USER c@h.example\r\n") == (b"", b"USER c\r\n")


@pytest.mark.parametrize(("greeting", "expected"), [(230, b"PASV\r\n"), (220, b"")])
def test_who_is_logged_in(greeting: int, expected: bytes) -> None:
    """Items 32, 134: a login that was answered before the hand-over counts."""
    after = After(HandOver(greeting, Target("h.example")))
    assert after.hears(C, b"PASV\r\n")[1] == expected


# The list


@pytest.mark.parametrize(
    ("entries", "target", "address", "admitted"),
    [
        (["*"], "ftp.example.com", "93.184.216.34", True),
        (["*"], "ftp.example.com", "10.0.0.1", False),
        (["*", "10.0.0.0/8"], "ftp.example.com", "10.0.0.1", True),
        (["*", "0.0.0.0/0"], "ftp.example.com", "10.0.0.1", False),
        (["0.0.0.0/0"], "10.0.0.1", "10.0.0.1", False),
        (["0.0.0.0/0"], "93.184.216.34", "93.184.216.34", True),
        (["0.0.0.0/0"], "ftp.example.com", "93.184.216.34", True),
        (["172.0.0.0/8"], "172.16.0.1", "172.16.0.1", False),
        (["172.16.0.0/16"], "172.16.0.1", "172.16.0.1", True),
        (["[::/0]"], "fd00::1", "fd00::1", False),
        (["[::/0]"], "64:ff9b::a00:1", "64:ff9b::a00:1", False),
        (["[::/0]"], "2002:a00:1::", "2002:a00:1::", False),
        (["fd00::/8"], "fd00::1", "fd00::1", True),
        (["127.0.0.1"], "127.0.0.1", "127.0.0.1", True),
        (["127.0.0.1"], "::ffff:127.0.0.1", "127.0.0.1", True),
        (["*.example.com"], "ftp.example.com", "93.184.216.34", True),
        (["*.example.com"], "example.com", "93.184.216.34", False),
        (["*.example.com"], "ftp.example.com.evil.test", "93.184.216.34", False),
        (["*.example.com"], "ftpexample.com", "93.184.216.34", False),
        (["ftp.example.com:2121"], "ftp.example.com:2121", "93.184.216.34", True),
        (["ftp.example.com:2121"], "ftp.example.com", "93.184.216.34", False),
        (["*"], "93.184.216.34", "93.184.216.34", False),
        (["224.0.0.0/4"], "224.0.0.1", "224.0.0.1", False),
        (["0.0.0.0/8"], "0.0.0.0", "0.0.0.0", False),
    ],
)
def test_the_list(entries: list[str], target: str, address: str, admitted: bool) -> None:
    """Item 146: names by pattern, addresses by network, the inside only where it is listed."""
    whole = destinations(*entries)
    assert whole.admits_address(parse_target(target.encode()), parse_address(address)) is admitted


@pytest.mark.parametrize(
    "text", ["10.0.0.0/8", "[2001:db8::/32]:21-2121", "*.example.com:990", "*", "h.example", "::1"]
)
def test_entries_say_what_they_are(text: str) -> None:
    """Item 146: an entry is read, and written as it can be read again."""
    entry = Destination.parse(text)
    assert Destination.parse(str(entry)) == entry


@pytest.mark.parametrize(
    "text",
    ["", "10.0.0.1/8", "h:0", "h:2-1", "h:70000", "a*.example", "[h.example]:21", "[::1", "[::1]x", "x.*", "1.2"],
)
def test_entries_that_are_none(text: str) -> None:
    """Item 146: a list that is not understood is not used."""
    with pytest.raises(ValueError, match=r"."):
        Destination.parse(text)


# Properties

OCTETS = st.lists(
    st.one_of(
        st.sampled_from(
            [
                b"USER a@h.example\r\n",
                b"USER a@p@h.example\r\n",
                b"USER a@h.example p\r\n",
                b"PASS a@b\r\n",
                b"ACCT x\r\n",
            ]
            + [
                b"USER pu\r\n",
                b"SITE h.example\r\n",
                b"HOST mirror\r\n",
                b"REIN\r\n",
                b"FEAT\r\n",
                b"\xff\xfd\x01",
                b"\0",
            ]
        ),
        st.binary(max_size=20),
    ),
    max_size=12,
)
REPLIES = st.lists(
    st.one_of(
        st.sampled_from([b"220 a\r\n", b"331 b\r\n", b"230 c\r\n", b"120 d\r\n", b"220-"]), st.binary(max_size=12)
    ),
    max_size=5,
)


def run(settings: LoginSettings, client: Iterable[bytes], server: Iterable[bytes]) -> tuple[bytes, list[LoginAction]]:
    """Both ends say everything as soon as they are read, every call and check succeeds."""
    login = LoginInterpreter(settings)
    heard, actions, pending = b"", [], list(server)
    stream = [*client, b""]
    while stream:
        login.receive(C, stream.pop(0))
        moved = True
        while moved:
            moved = False
            for side in (S, C):
                while not isinstance(action := login.next_action(side), Need):
                    moved = True
                    actions.append(action)
                    if isinstance(action, Dial):
                        login.dialled()
                        for octets in pending:
                            login.receive(S, octets)
                        login.receive(S, b"")
                    elif isinstance(action, Verify):
                        login.verified(True)
            heard += b"".join(chunk.octets for chunk in login.take_output(C) if chunk.octets[0] != 0xFF)  # not Telnet's
        if any(isinstance(action, Hangup | HandOver) for action in actions):
            break
    return heard, actions


@given(st.sampled_from([OPEN, CLOSED, MAPPED]), OCTETS, REPLIES)
def test_any_octets(settings: LoginSettings, client: list[bytes], server: list[bytes]) -> None:
    """Items 1, 144: no exception for anything that is said, whole lines only, and an end."""
    heard, actions = run(settings, client, server)
    assert any(isinstance(action, Hangup | HandOver) for action in actions)
    assert heard.startswith(b"220 ")
    assert not settings.authenticate or not any(
        isinstance(action, Dial) and not any(isinstance(each, Verify) for each in actions[:number])
        for number, action in enumerate(actions)
    ), "no server for somebody who has not logged in"


@given(st.sampled_from([OPEN, CLOSED]), OCTETS, st.lists(st.integers(1, 200), max_size=10))
def test_any_cutting(settings: LoginSettings, client: list[bytes], cuts: list[int]) -> None:
    """Item 1: where the client's octets are cut makes no difference to what it hears and what is done."""
    whole = b"".join(client)
    ends = [*sorted({cut for cut in cuts if cut < len(whole)}), len(whole)]
    pieces = [whole[start:end] for start, end in zip([0, *ends], ends, strict=False) if end > start]
    heard, actions = run(settings, pieces, [b"220 a\r\n", b"331 b\r\n"])
    expected = run(settings, [whole] if whole else [], [b"220 a\r\n", b"331 b\r\n"])
    if not any(isinstance(action, HandOver) for action in expected[1]):  # whose rest depends on what came along
        assert (heard, actions) == expected
    else:
        assert heard == expected[0]
