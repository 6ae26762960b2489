"""What a log may show of a command line."""

from __future__ import annotations

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from ftpproxy.pi.filter import KNOWN
from ftpproxy.pi.masking import LONGEST_LOGGED, MASK, loggable
from ftpproxy.pi.verbs import HTTP_VERBS
from ftpproxy.wire.command import parse_command
from ftpproxy.wire.telnet import TelnetFilter

SECRET = b"s3cr3t"

SHOWN: list[tuple[bytes, bytes]] = [
    (b"PASS s3cr3t", b"PASS ****"),
    (b"pass s3cr3t", b"PASS ****"),
    (b"PASS", b"PASS"),
    (b"PASS ", b"PASS ****"),
    (b"PASS\ts3cr3t", b"PASS ****"),
    (b"PASS\0s3cr3t", b"PASS ****"),
    (b"PASSs3cr3t", b"PASS ****"),
    (b"P\x01ASS s3cr3t", b"PASS ****"),
    (b"  PASS s3cr3t", b"PASS ****"),
    (b"\xf2PASS s3cr3t", b"PASS ****"),
    (b"\xff\xf4\xff\xf2PASS s3cr3t", b"PASS ****"),
    (b"\xffPASS s3cr3t", b"PASS ****"),
    (b"\xff\xfd\x18PASS s3cr3t", b"PASS ****"),
    (b"PA\xff\xf1SS s3cr3t", b"PASS ****"),
    (b"\xff\xfbPASS s3cr3t", b"****"),
    (b"ACCT s3cr3t", b"ACCT ****"),
    (b"ADAT s3cr3t", b"ADAT ****"),
    (b"MIC s3cr3t", b"MIC ****"),
    (b"CONF s3cr3t", b"CONF ****"),
    (b"ENC s3cr3t", b"ENC ****"),
    (b"XAUT 2 s3cr3t", b"XAUT ****"),
    (b"SITE PSWD old s3cr3t", b"SITE ****"),
    (b"site  cpwd s3cr3t", b"SITE ****"),
    (b"SITE GPASS s3cr3t", b"SITE ****"),
    (b"SITE CHMOD 644 a:b", b"SITE CHMOD 644 a:b"),
    (b"SITE joe:s3cr3t@host", b"SITE joe:****@host"),
    (b"OPEN joe:s3cr3t@host", b"OPEN joe:****@host"),
    (b"OPEN host:2121", b"OPEN host:2121"),
    (b"USER joe", b"USER joe"),
    (b"USER joe:s3cr3t@host", b"USER joe:****@host"),
    (b"USER joe:s3:cr@3t@host:2121", b"USER joe:****@host:2121"),
    (b"USER joe:s3cr3t@[2001:db8::1]:21", b"USER joe:****@[2001:db8::1]:21"),
    (b"USER joe@corp@host:2121", b"USER joe@corp@host:2121"),
    (b"USER joe@[2001:db8::1]", b"USER joe@[2001:db8::1]"),
    (b"USER joe@host:s3cr3t", b"USER joe@host:****"),
    (b"USER joe:s3cr3t", b"USER joe:****"),
    (b"s3cr3t", b"****"),
    (b"GET / HTTP/1.1", b"****"),
    (b"RETR a b", b"RETR a b"),
    (b"retr \xff\xffa", b"retr \xffa"),
    (b"", b""),
]


@pytest.mark.parametrize(("line", "shown"), SHOWN, ids=[repr(line) for line, _ in SHOWN])
def test_what_is_shown_before_login(line: bytes, shown: bytes) -> None:
    """Item 137: never a password."""
    assert loggable(line) == shown


def test_after_login_a_command_that_nobody_knows_is_shown() -> None:
    assert loggable(b"XFOO a", logged_in=True) == b"XFOO a"
    assert loggable(b"xpass a", logged_in=True) == b"PASS ****"


def test_a_long_line_is_cut() -> None:
    shown = loggable(b"RETR " + b"a" * 8000)
    assert shown == b"RETR " + b"a" * (LONGEST_LOGGED - 8) + b"..."


def test_no_known_verb_is_masked_by_accident() -> None:
    masked = {verb for verb in KNOWN if MASK in loggable(verb + b" x", logged_in=True)}
    assert masked == {b"PASS", b"ACCT", b"ADAT", b"MIC", b"CONF", b"ENC", b"XAUT"}
    assert not masked & HTTP_VERBS


cases = st.sampled_from([b"PASS", b"ACCT", b"ADAT", b"MIC", b"CONF", b"ENC", b"SITE PSWD", b"SITE CPWD"]).flatmap(
    lambda verb: st.lists(st.booleans(), min_size=len(verb), max_size=len(verb)).map(
        lambda lower: b"".join((verb[i : i + 1].lower() if low else verb[i : i + 1]) for i, low in enumerate(lower))
    )
)
telnet = st.one_of(
    st.sampled_from([b"\xff\xf4", b"\xff\xf2", b"\xff\xf1", b"\xff\xfa\x18\x00x\xff\xf0"]),
    st.tuples(
        st.sampled_from([b"\xff\xfb", b"\xff\xfc", b"\xff\xfd", b"\xff\xfe"]), st.binary(min_size=1, max_size=1)
    ).map(b"".join),
)
garbage = st.lists(
    st.one_of(telnet, st.sampled_from([b" ", b"\t", b"\xf2", b"\xff", b"\xf4\xf2", b"\0"])), max_size=4
).map(b"".join)
blanks = st.sampled_from([b" ", b"  ", b"\t", b" \t"])


@given(garbage, cases, st.integers(0, 9), st.lists(telnet, max_size=2).map(b"".join), blanks, st.booleans())
def test_a_password_never_appears(
    before: bytes, verb: bytes, place: int, inside: bytes, blank: bytes, logged_in: bool
) -> None:
    """Item 137: whatever the case of the verb, and whatever Telnet stands before it or inside it."""
    line = before + verb[:place] + inside + verb[place:] + blank + SECRET
    for reading in (line, TelnetFilter().feed(line)[0]):
        assert SECRET not in loggable(reading, logged_in=logged_in)


@given(st.lists(st.sampled_from([*range(0xF0, 0x100), 0, 9, 32, 65]), max_size=9).map(bytes), st.booleans())
@example(b"\xff\xfa PASS ", True)
@example(b"\xff\xfbA PASS ", True)
def test_what_the_interpreter_takes_for_a_password_never_appears(before: bytes, logged_in: bool) -> None:
    """Item 137: any octets before it, if the line means PASS once the Telnet is out of it."""
    line = before + b"PASS " + SECRET
    read = parse_command(TelnetFilter().feed(line)[0])
    assume(read.verb == b"PASS")
    for reading in (line, TelnetFilter().feed(line)[0], read.line):
        assert SECRET not in loggable(reading, logged_in=logged_in)


@given(st.binary(max_size=500), st.booleans())
def test_any_octets_give_a_short_line(line: bytes, logged_in: bool) -> None:
    assert len(loggable(line, logged_in=logged_in)) <= LONGEST_LOGGED


@given(st.text(st.characters(codec="ascii", exclude_characters="@:\r\n"), max_size=9).map(str.encode), st.booleans())
def test_a_password_in_a_user_name_never_appears(user: bytes, logged_in: bool) -> None:
    """Item 137's neighbour: `USER name:password@host`."""
    for host in (b"host", b"host:2121", b"[2001:db8::1]:21", b""):
        assert SECRET not in loggable(b"USER " + user + b":" + SECRET + b"@" + host, logged_in=logged_in)
