from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftpproxy.wire.reply import NotAReply, ReplyReader, reply


def read(*lines: bytes) -> list[tuple[int, bytes, bool]]:
    reader = ReplyReader()
    return [(judged.code, judged.line, judged.last) for judged in map(reader.read, lines)]


def test_single() -> None:
    assert read(b"220 ready", b"331 ", b"331") == [
        (220, b"220 ready", True),
        (331, b"331 ", True),
        (331, b"331 ", True),
    ]


def test_multi_line() -> None:
    """Items 27, 29: only the same code and a blank, or nothing, end it; the same code and a hyphen go on."""
    assert read(b"220-hello", b"220-more", b"text", b"220", b"200 next") == [
        (220, b"220-hello", False),
        (220, b"220-more", False),
        (220, b"text", False),
        (220, b"220 ", True),
        (200, b"200 next", True),
    ]


def test_inner_lines_cannot_pose_as_replies() -> None:
    """Item 28."""
    assert read(b"211-status", b"227 Entering (1,2,3,4,5,6)", b"550", b"2112 is a year", b"211 end") == [
        (211, b"211-status", False),
        (211, b" 227 Entering (1,2,3,4,5,6)", False),
        (211, b" 550", False),
        (211, b"2112 is a year", False),
        (211, b"211 end", True),
    ]


def test_controls_become_blanks() -> None:
    """Item 8."""
    assert read(b"230 logged\0 in\rhere") == [(230, b"230 logged  in here", True)]


@pytest.mark.parametrize("line", [b"HTTP/1.1 200 OK", b"", b"22", b"2200 x", b"020 x", b"720 x", b"220_x", b" 220 x"])
def test_not_a_reply(line: bytes) -> None:
    """Item 30."""
    reader = ReplyReader()
    with pytest.raises(NotAReply):
        reader.read(line)
    assert not reader.inside


def test_the_reply_code_of_rfc_2228() -> None:
    assert read(b"633 XXXX") == [(633, b"633 XXXX", True)]


@given(st.lists(st.binary().filter(lambda octets: b"\n" not in octets)))
def test_whatever_comes_out_is_read_the_same_by_any_client(lines: list[bytes]) -> None:
    """No inner line ends the reply for a client that ends replies at any code."""
    reader = ReplyReader()
    for line in lines:
        try:
            judged = reader.read(line)
        except NotAReply:
            continue
        assert b"\r" not in judged.line
        assert b"\0" not in judged.line
        ends_for_curl = judged.line[:3].isdigit() and (len(judged.line) == 3 or judged.line[3:4] == b" ")
        assert ends_for_curl == judged.last


def test_ours_is_ascii() -> None:
    """Item 24: text of the proxy's own is 7-bit ASCII."""
    assert reply(421, "bye") == b"421 bye\r\n"
    with pytest.raises(UnicodeEncodeError):
        reply(421, "tschüß")
