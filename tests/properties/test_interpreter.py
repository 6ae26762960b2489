"""What holds for every dialogue: the rules of docs/design.md, "Rules of the PI"."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from hypothesis import given
from hypothesis import strategies as st

from ftpproxy.endpoints import Endpoint, Side
from ftpproxy.paths import Await, Call, PathSpec
from ftpproxy.pi.actions import DropPath, Hangup, Need, OpenPath, SettlePath, Timer
from ftpproxy.pi.interpreter import ProtocolInterpreter
from ftpproxy.pi.policy import Policy
from ftpproxy.wire import hostport

from ..script import ROUTES

CLIENT, SERVER = Side.CLIENT, Side.SERVER
OPEN_TO_ALL = Policy(require_login=False)
MOST_HELD = 512 * 1024

Message = tuple[Side, bytes]


class Stage:
    """An interpreter whose every need is obeyed and whose every path is opened, as a session does it."""

    def __init__(self, route: str = "forward", policy: Policy = OPEN_TO_ALL) -> None:
        self.route = ROUTES[route]
        self.interpreter = ProtocolInterpreter(self.route, policy)
        self.waiting: dict[Side, deque[bytes]] = {side: deque() for side in Side}
        self.said: dict[Side, bytearray] = {side: bytearray() for side in Side}
        self.specs: list[PathSpec] = []
        self.alive = 0
        self.ports = iter(range(20000, 60000))
        self.opened: set[int] = set()
        self.over = False
        self.needs = dict.fromkeys(Side, Need.PEER)
        self.pump()

    def say(self, side: Side, pieces: Sequence[bytes]) -> None:
        self.waiting[side].extend(piece for piece in pieces if piece)
        self.pump()

    def pump(self) -> None:
        moved = True
        while moved and not self.over:
            moved = False
            for side in (SERVER, CLIENT):
                while not isinstance(action := self.interpreter.next_action(side), Need):
                    moved = True
                    if isinstance(action, OpenPath):
                        self.open(action.spec)
                    elif isinstance(action, (DropPath, SettlePath)):
                        self.alive -= 1
                    self.over |= isinstance(action, Hangup)
                self.needs[side] = action
                if action is Need.DATA and self.waiting[side]:
                    self.interpreter.receive(side, self.waiting[side].popleft())
                    moved = True
            for side in Side:
                for chunk in self.interpreter.take_output(side):
                    self.said[side] += chunk.octets

    def open(self, spec: PathSpec) -> None:
        self.alive += 1
        assert self.alive == 1, "one path at a time"
        self.specs.append(spec)
        port = next(self.ports)
        for side in Side:  # nothing that names the path may have been said yet
            assert b"%d,%d" % divmod(port, 256) not in self.said[side]
        leg_side = CLIENT if isinstance(spec.client, Await) else SERVER
        leg = spec.leg(leg_side)
        assert isinstance(leg, Await)
        self.interpreter.path_opened({leg_side: leg.at.at(port)}, ready=True)


def cut(message: bytes, places: list[int]) -> list[bytes]:
    marks = sorted({place % (len(message) + 1) for place in places})
    return [message[start:end] for start, end in zip([0, *marks], [*marks, len(message)], strict=True)]


commands = st.sampled_from(
    [b"USER a", b"PASS b", b"NOOP", b"TYPE I", b"PASV", b"EPSV", b"epsv all", b"PORT 10,77,1,2,200,1", b"QUIT"]
    + [b"EPRT |1|10.77.1.2|51201|", b"PORT 1,2,3,4,5,6", b"LPSV", b"LIST", b"RETR x", b"STOR y", b"ABOR", b"REIN"]
    + [b"AUTH TLS", b"", b"PORT", b"FEAT", b"STAT"]
)
replies = st.sampled_from(
    [
        b"220 hi",
        b"200 ok",
        b"230 in",
        b"331 pw",
        b"150 go",
        b"226 done",
        b"550 no",
        b"500 what",
        b"421 bye",
        b"120 wait",
    ]
    + [b"227 (1,2,3,4,200,1)", b"229 (|||51200|)", b"227 x", b"220-a\r\n331 b\r\n220 c", b"234 tls", b"nonsense", b""]
)
line_ends = st.sampled_from([b"\r\n", b"\n"])
turns: st.SearchStrategy[list[Message]] = st.lists(
    st.one_of(
        st.tuples(st.just(CLIENT), st.lists(st.tuples(commands, line_ends).map(b"".join), max_size=4).map(b"".join)),
        st.tuples(st.just(SERVER), st.tuples(replies, line_ends).map(b"".join)),
    ),
    max_size=30,
)
"""The server says one thing at a time: whether a surplus reply answers a held command is a race, not a cutting."""
messages: st.SearchStrategy[list[Message]] = st.lists(
    st.one_of(
        st.tuples(st.just(CLIENT), st.lists(st.tuples(commands, line_ends).map(b"".join), max_size=4).map(b"".join)),
        st.tuples(st.just(SERVER), st.lists(st.tuples(replies, line_ends).map(b"".join), max_size=4).map(b"".join)),
    ),
    max_size=30,
)


@given(turns, st.lists(st.integers(0, 10_000), max_size=40))
def test_any_cutting_of_the_octets_gives_the_same_result(said: list[Message], places: list[int]) -> None:
    """Item 1."""
    whole, cut_up = Stage(), Stage()
    for side, octets in [(SERVER, b"220 ready\r\n"), *said]:
        whole.say(side, [octets])
        cut_up.say(side, cut(octets, places))
    assert cut_up.said == whole.said
    assert cut_up.specs == whole.specs
    assert cut_up.over == whole.over


boring = st.from_regex(rb"(NOOP|CWD|PWD|TYPE|SIZE|MKD|SITE CHMOD|XCRC)( [ -~\x80-\xfe]{0,40})?", fullmatch=True)


@given(st.lists(boring, max_size=40), st.lists(st.integers(0, 10_000), max_size=20))
def test_a_dialogue_without_interesting_verbs_passes_octet_for_octet(lines: list[bytes], places: list[int]) -> None:
    """Items 2, 23, 24."""
    stage = Stage()
    stage.say(SERVER, [b"220 ready\r\n"])
    stream = b"".join(line + b"\r\n" for line in lines)
    answers = b"".join(b"200-%d\r\n caf\xe9\r\n200 end\r\n" % number for number in range(len(lines)))
    stage.say(CLIENT, cut(stream, places))
    stage.say(SERVER, cut(answers, places))
    assert bytes(stage.said[SERVER]) == stream
    assert bytes(stage.said[CLIENT]) == b"220 ready\r\n" + answers


@given(st.lists(commands.filter(lambda line: line[:4] not in (b"AUTH", b"QUIT", b"")), max_size=40))
def test_replies_leave_in_the_order_of_the_commands(lines: list[bytes]) -> None:
    """Item 42: ours included; a server that answers each command it gets sees every one of them answered."""
    stage = Stage()
    stage.say(SERVER, [b"220 ready\r\n"])
    tagged = [line + b" %d" % number if line.startswith(b"NOOP") else line for number, line in enumerate(lines)]
    stage.say(CLIENT, [b"".join(line + b"\r\n" for line in tagged)])
    seen = 0
    while seen < len(stage.said[SERVER]):
        line, _, _ = bytes(stage.said[SERVER][seen:]).partition(b"\r\n")
        seen += len(line) + 2
        stage.say(SERVER, [b"250 " + line + b"\r\n"])
        stage.interpreter.timer(Timer.HOLD)
        stage.pump()
    answers = bytes(stage.said[CLIENT]).splitlines()[1:]
    assert len(answers) == len(lines)
    for line, answer in zip(tagged, answers, strict=True):
        if answer.startswith(b"250 "):
            assert answer[4:8].upper() == line[:4].upper()
            assert not line.startswith(b"NOOP") or answer == b"250 " + line


@given(messages, st.sampled_from(sorted(ROUTES)))
def test_every_host_of_a_path_comes_from_the_route(said: list[Message], route: str) -> None:
    """Items 86, 130: nothing that a peer writes selects a host."""
    stage = Stage(route, Policy(require_login=False, port_address="override"))
    for side, octets in [(SERVER, b"220 ready\r\n"), *said]:
        stage.say(side, [octets])
    own = stage.route
    for spec in stage.specs:
        for side, us, them in ((CLIENT, own.orig_server, own.client), (SERVER, own.proxy, own.server)):
            leg = spec.leg(side)
            if isinstance(leg, Await):
                assert leg == Await(us.at(0), them.host)
            else:
                assert leg == Call(Endpoint(them.host, leg.to.port), us.at(0))


@given(messages)
def test_only_opened_ports_are_ever_announced(said: list[Message]) -> None:
    """Item 72: whatever names an endpoint to either side names one that stands."""
    stage = Stage()
    for side, octets in [(SERVER, b"220 ready\r\n"), *said]:
        before = {side: len(stage.said[side]) for side in Side}
        stage.say(side, [octets])
        for line in bytes(stage.said[CLIENT][before[CLIENT] :]).splitlines():
            if line.startswith(b"227 Entering Passive Mode ("):
                named = hostport.parse_227(line[4:])
                assert named is not None
                assert 20000 <= named.port < 20000 + len(stage.specs)
        for line in bytes(stage.said[SERVER][before[SERVER] :]).splitlines():
            if line.startswith(b"PORT "):
                assert 20000 <= hostport.parse_port(line[5:]).port < 20000 + len(stage.specs)


def held(interpreter: ProtocolInterpreter) -> int:
    """Octets that the interpreter keeps."""
    return len(interpreter._intake) + len(interpreter._replies) + len(interpreter._collector)


hostile = st.lists(
    st.tuples(
        st.sampled_from(Side),
        st.one_of(
            st.binary(max_size=200), commands.map(lambda line: line + b"\n"), replies.map(lambda line: line + b"\n")
        ),
        st.sampled_from(["", "connected client", "connected server", "failed", "announce", "greeting", "login", "end"]),
    ),
    max_size=40,
)


@given(hostile)
def test_arbitrary_octets_raise_nothing_and_hold_little(said: list[tuple[Side, bytes, str]]) -> None:
    stage = Stage()
    interpreter = stage.interpreter
    events: dict[str, Callable[[], None]] = {
        "": lambda: None,
        "connected client": lambda: interpreter.path_connected(CLIENT),
        "connected server": lambda: interpreter.path_connected(SERVER),
        "failed": interpreter.path_failed,
        "announce": lambda: interpreter.timer(Timer.ANNOUNCE),
        "greeting": lambda: interpreter.timer(Timer.GREETING),
        "login": lambda: interpreter.timer(Timer.LOGIN),
        "end": lambda: None,
    }
    for side, octets, what in said:
        stage.say(side, [octets])
        events[what]()
        if what == "failed":
            stage.alive = 0
        if what == "end":
            interpreter.receive(side, b"")
        stage.pump()
        assert held(interpreter) <= MOST_HELD
        for said_octets in stage.said.values():
            assert not said_octets or stage.over or said_octets.endswith(b"\n") or b"234" in stage.said[CLIENT]


def test_a_flood_is_not_read() -> None:
    """Item 45: what cannot be forwarded yet is not read either, and holds no memory."""
    stage = Stage()
    stage.say(SERVER, [b"220 ready\r\n"])
    stage.say(CLIENT, [b"REIN\r\n"])
    stage.say(CLIENT, [b"NOOP\r\n"] * 10_000)
    assert stage.needs[CLIENT] is Need.PEER
    assert len(stage.waiting[CLIENT]) >= 9_990
    assert held(stage.interpreter) < 1000


def test_unanswered_commands_are_bounded() -> None:
    """Item 45: a client that never waits is stopped after 64 unanswered commands."""
    stage = Stage()
    stage.say(SERVER, [b"220 ready\r\n"])
    stage.say(CLIENT, [b"NOOP\r\n"] * 1000)
    assert stage.said[SERVER].count(b"NOOP") == 64
    stage.say(SERVER, [b"200 ok\r\n" * 64])
    assert stage.said[SERVER].count(b"NOOP") == 128


def test_a_long_listing_is_passed_on_as_it_comes() -> None:
    """Item 21: it is not held, however many lines it has."""
    stage = Stage()
    stage.say(SERVER, [b"220 ready\r\n"])
    stage.say(CLIENT, [b"STAT /\r\n"])
    stage.say(SERVER, [b"213-listing\r\n"])
    for _ in range(1000):
        stage.say(SERVER, [b"x" * 1000 + b"\r\n"])
        assert held(stage.interpreter) == 0
    assert len(stage.said[CLIENT]) > 1_000_000


def test_an_endless_227_ends_the_session() -> None:
    stage = Stage()
    stage.say(SERVER, [b"220 ready\r\n"])
    stage.say(CLIENT, [b"PASV\r\n"])
    stage.say(SERVER, [b"227-\r\n"] + [b"x" * 1000 + b"\r\n"] * 300)
    assert stage.over
    assert stage.said[CLIENT].endswith(b"421 The server sent a reply that is too long.\r\n")


def test_a_server_line_without_end_ends_the_session() -> None:
    """Item 20."""
    stage = Stage()
    stage.say(SERVER, [b"220 ready\r\n"])
    stage.say(CLIENT, [b"NOOP\r\n"])
    stage.say(SERVER, [b"200 " + b"x" * 40_000 + b"\r\n"])
    assert stage.over
    assert stage.said[CLIENT].endswith(b"421 The server sent a line that is too long.\r\n")


def test_line_limits() -> None:
    """Items 17, 18, 19."""
    stage = Stage()
    stage.say(SERVER, [b"220 ready\r\n"])
    stage.say(CLIENT, [b"STOR " + b"x" * 9000 + b"\r\n", b"NOOP\r\n"])
    stage.say(SERVER, [b"200 " + b"y" * 17_000 + b"\r\n"])
    assert bytes(stage.said[SERVER]) == b"NOOP\r\n"
    assert stage.said[CLIENT].startswith(b"220 ready\r\n500 The command line is too long.\r\n200 yyy")
    stage.say(CLIENT, [b"x" * 9000 + b"\r\n"])
    assert stage.over
