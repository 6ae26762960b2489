"""Taps: what a watcher of a control connection sees, and what he must never see."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from ftpproxy.endpoints import Side
from ftpproxy.pi.insight import Insight
from ftpproxy.show import duration, fit, printable, size
from ftpproxy.tap import MOST_PENDING, Tap, Trace

CLIENT, SERVER = Side.CLIENT, Side.SERVER
LOGGED_IN = Insight(user=b"x", command=b"", logged_in=True, unread=False, within_a_line=False)


class Watcher:
    """A trace, one tap on it, and what came out."""

    def __init__(self, view: Insight | None = None, most: int = 2000, *, within_a_line: bool = False) -> None:
        self.woken = 0
        self.view = view
        self.trace = Trace(self.wake, most)
        self.tap = Tap(7, self.trace, lambda: self.view, within_a_line=within_a_line)

    def wake(self) -> None:
        self.woken += 1

    def told(self, side: Side, *octets: bytes) -> None:
        self.tap.told(side, [(each, False, False) for each in octets])

    @property
    def seen(self) -> list[dict[str, Any]]:
        return [{key: value for key, value in record.items() if key != "at"} for record in self.trace.take()]

    @property
    def lines(self) -> list[str]:
        """`C: says`, `S> gets`, `* event`."""
        found = []
        for each in self.seen:
            sign = (
                f"{each['from'][0].upper()}:"
                if "from" in each
                else f"{each['to'][0].upper()}>"
                if "to" in each
                else "*"
            )
            found.append(f"{sign} {each.get('line', each.get('event'))}")
        return found


def test_what_passes_as_it_is_is_shown_once() -> None:
    watcher = Watcher(LOGGED_IN)
    watcher.tap.heard(CLIENT, b"NOOP\r\n")
    watcher.told(SERVER, b"NOOP\r\n")
    watcher.tap.heard(SERVER, b"200 ok\r\n")
    watcher.told(CLIENT, b"200 ok\r\n")
    assert watcher.lines == ["C: NOOP", "S: 200 ok"]


def test_what_is_changed_is_shown_twice() -> None:
    watcher = Watcher(LOGGED_IN)
    watcher.tap.heard(CLIENT, b"PORT 10,77,1,2,156,64\r\n")
    watcher.told(SERVER, b"PORT 198,51,100,1,78,33\r\n")
    watcher.tap.heard(SERVER, b"200 ok\r\n")
    watcher.told(CLIENT, b"200 ok\r\n")
    assert watcher.lines == ["C: PORT 10,77,1,2,156,64", "S> PORT 198,51,100,1,78,33", "S: 200 ok"]


def test_what_the_proxy_says_itself() -> None:
    watcher = Watcher(LOGGED_IN)
    watcher.tap.heard(CLIENT, b"SITE EXEC x\r\nNOOP\r\n")
    watcher.told(CLIENT, b"502 no\r\n")
    watcher.told(SERVER, b"NOOP\r\n")
    assert watcher.lines == ["C: SITE EXEC x", "C: NOOP", "C> 502 no"]


def test_lines_in_pieces() -> None:
    watcher = Watcher(LOGGED_IN)
    for octet in b"NOOP\r\n":
        watcher.tap.heard(CLIENT, bytes([octet]))
    watcher.told(SERVER, b"NO", b"OP\r", b"\n")
    assert watcher.lines == ["C: NOOP"]


def test_behind_auth_nothing_is_shown() -> None:
    watcher = Watcher(LOGGED_IN)
    watcher.tap.heard(SERVER, b"234 go\r\n")
    watcher.told(CLIENT, b"234 go\r\n")
    watcher.view = LOGGED_IN._replace(unread=True)
    watcher.tap.heard(CLIENT, b"\x16\x03\x01\n secret \n")
    watcher.told(SERVER, b"\x16\x03\x01\n secret \n")
    assert watcher.lines == ["S: 234 go", "* unread"]


def test_half_a_line_is_not_shown() -> None:
    """The tap came in the middle of `PASS NOOP`."""
    watcher = Watcher(LOGGED_IN, within_a_line=True)
    watcher.tap.heard(CLIENT, b"NOOP\r")
    watcher.tap.heard(CLIENT, b"\nPWD\r\n")
    assert watcher.lines == ["C: PWD"]


def test_events_carry_their_fields() -> None:
    watcher = Watcher()
    watcher.tap.happened("data.open", {"plane": "relay", "what": b"RETR \xff", "down": 5, "none": None, "side": CLIENT})
    assert watcher.seen == [
        {"session": 7, "event": "data.open", "plane": "relay", "what": "RETR \\xff", "down": 5, "side": "client"}
    ]


def test_a_slow_reader_loses_and_is_told() -> None:
    watcher = Watcher(LOGGED_IN, most=3)
    for number in range(10):
        watcher.tap.heard(CLIENT, b"SIZE %d\r\n" % number)
    taken = watcher.seen
    assert [each.get("line") for each in taken[:3]] == ["SIZE 0", "SIZE 1", "SIZE 2"]
    assert taken[3] == {"lost": 7}
    assert watcher.woken == 10
    assert watcher.seen == []


def test_memory_is_bounded() -> None:
    watcher = Watcher(LOGGED_IN, most=5)
    for _ in range(3 * MOST_PENDING):
        watcher.tap.heard(CLIENT, b"X" * 50 + b"\r\n")
    watcher.tap.heard(CLIENT, b"x" * 1_000_000)
    watcher.told(SERVER, b"x" * 1_000_000)
    stream = watcher.tap._said[CLIENT]
    assert len(stream.pending) == MOST_PENDING
    assert len(stream.partial) + len(stream.sent) < 100_000


pieces = st.lists(st.binary(max_size=40), max_size=20)


@given(pieces, pieces, st.sampled_from([None, LOGGED_IN]))
def test_whatever_is_said(said: list[bytes], got: list[bytes], view: Insight | None) -> None:
    watcher = Watcher(view)
    for octets in said:
        watcher.tap.heard(CLIENT, octets)
        watcher.tap.heard(SERVER, octets)
    for octets in got:
        watcher.told(SERVER, octets)
        watcher.told(CLIENT, octets)
    assert all(isinstance(record, dict) for record in watcher.seen)


@given(
    st.sampled_from([b"PASS ", b"pass ", b"ACCT ", b"\xff\xf4\xff\xf2PASS ", b" PASS ", b"SITE PSWD ", b"USER joe:"]),
    st.text("0123456789", min_size=6, max_size=12),
    st.lists(st.integers(1, 8), max_size=12),
    st.booleans(),
    st.booleans(),
)
def test_passwords_never(verb: bytes, password: str, cuts: list[int], logged_in: bool, within: bool) -> None:
    """However the line is written and cut, on its way in and on its way out."""
    secret = f"s3cret{password}"
    line = verb + secret.encode() + (b"@host" if verb.startswith(b"USER") else b"") + b"\r\n"
    watcher = Watcher(LOGGED_IN._replace(logged_in=logged_in), within_a_line=within)
    rest = line
    for cut in [*cuts, len(line)]:
        watcher.tap.heard(CLIENT, rest[:cut] or b"\r\n")
        watcher.told(SERVER, rest[:cut].lower())
        rest = rest[cut:]
    assert "s3cret" not in str(watcher.seen)


# -- what it looks like -----------------------------------------------------------------------------------------------


@given(st.text())
def test_nothing_unprintable_is_printed(text: str) -> None:
    assert printable(text).isprintable()


def test_escapes() -> None:
    assert printable("a\x1b[2Jb\n\u202ec\U000e0001") == "a\\x1b[2Jb\\x0a\\u202ec\\U000e0001"
    assert printable("Grüße") == "Grüße"


@given(st.text(), st.integers(2, 30))
def test_what_is_fitted_fits(text: str, width: int) -> None:
    assert len(fit(text, width)) <= width


@given(st.floats(0, 1e15))
def test_figures_are_short(value: float) -> None:
    assert len(size(value)) <= 8
    assert len(duration(min(value, 86400 * 99))) <= 7


def test_figures() -> None:
    assert [size(each) for each in (0, 999, 1000, 999_949, 999_951, 3.2e9)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "999.9 kB",
        "1.0 MB",
        "3.2 GB",
    ]
    assert [duration(each) for each in (0, 59.9, 60, 3599, 3600, 86399, 86400 * 3 + 4000)] == [
        "0s",
        "59s",
        "1:00",
        "59:59",
        "1:00:00",
        "23:59:59",
        "3d 01h",
    ]
