from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ftpproxy.wire.lines import OVERLONG, LineBuffer, Overlong


def lines_of(pieces: list[bytes], longest: int = 100) -> list[bytes | Overlong]:
    buffer = LineBuffer(longest)
    found: list[bytes | Overlong] = []
    for piece in pieces:
        buffer.feed(piece)
        while (line := buffer.next_line()) is not None:
            found.append(line)
    return found


@given(st.lists(st.binary(max_size=30).map(lambda octets: octets.replace(b"\n", b"").rstrip(b"\r"))), st.data())
def test_any_cutting_gives_the_same_lines(lines: list[bytes], data: st.DataObject) -> None:
    """Item 1: a line split over any number of reads is the same line."""
    stream = b"".join(line + data.draw(st.sampled_from([b"\n", b"\r\n"])) for line in lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)))))
    pieces = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert lines_of(pieces) == lines


def test_several_in_one_read() -> None:
    """Item 2: all are processed, in order."""
    assert lines_of([b"USER a\r\nPASS b\nNOOP\r\nPA"]) == [b"USER a", b"PASS b", b"NOOP"]


def test_only_one_cr_belongs_to_the_line_end() -> None:
    assert lines_of([b"a\r\r\nb\rc\n"]) == [b"a\r", b"b\rc"]


def test_a_line_that_just_fits() -> None:
    assert lines_of([b"x" * 100 + b"\r\n"]) == [b"x" * 100]
    assert lines_of([b"x" * 50, b"x" * 50 + b"\r", b"\n"]) == [b"x" * 100]


def test_an_overlong_line_is_dropped_whole_and_said_once() -> None:
    assert lines_of([b"x" * 101 + b"\r\nNOOP\r\n"]) == [OVERLONG, b"NOOP"]
    assert lines_of([b"x" * 60] * 1000 + [b"PORT\r\nNOOP\r\n"]) == [OVERLONG, b"NOOP"]


def test_an_endless_line_holds_no_memory() -> None:
    buffer = LineBuffer(100)
    for _ in range(1000):
        buffer.feed(b"x" * 1000)
        assert buffer.next_line() is None
        assert len(buffer) == 0


def test_take_rest_leaves_nothing() -> None:
    buffer = LineBuffer(100)
    buffer.feed(b"AUTH TLS\r\n\x16\x03")
    assert buffer.next_line() == b"AUTH TLS"
    assert buffer.take_rest() == b"\x16\x03"
    assert buffer.take_rest() == b""
