from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftpproxy.wire.command import parse_command


@pytest.mark.parametrize(
    ("line", "verb", "argument"),
    [
        (b"PASV", b"PASV", b""),
        (b"type a", b"TYPE", b"a"),
        (b"  pasv", b"PASV", b""),
        (b"PORT\t1,2,3,4,5,6", b"PORT", b"1,2,3,4,5,6"),
        (b"RETR  a b ", b"RETR", b" a b "),
        (b"RETR", b"RETR", b""),
        (b"", b"", b""),
        (b"   ", b"", b""),
        ("STOR ä".encode(), b"STOR", "ä".encode()),
    ],
)
def test_verb_and_argument(line: bytes, verb: bytes, argument: bytes) -> None:
    """Items 22, 23, 24: any ASCII case, every blank of the argument, every octet."""
    command = parse_command(line)
    assert (command.verb, command.argument) == (verb, argument)


def test_the_verb_is_matched_by_ascii_rules_only() -> None:
    """Item 22: an octet above 127 is no letter in any locale."""
    assert parse_command("ſite x".encode()).verb != b"SITE"


@pytest.mark.parametrize(
    ("line", "unclean"),
    [
        (b"RETR foo\r\0bar", False),
        (b"RETR a\rPORT 1", True),
        (b"RETR a\0b", True),
        (b"RETR a\r", True),
        (b"RETR a", False),
    ],
)
def test_unclean(line: bytes, unclean: bool) -> None:
    assert parse_command(line).unclean is unclean


@given(st.binary().filter(lambda octets: b"\n" not in octets))
def test_every_line_parses(line: bytes) -> None:
    command = parse_command(line)
    assert command.verb == command.verb.upper()
    assert command.line.endswith(command.argument)
