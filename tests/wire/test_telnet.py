from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftpproxy.wire.command import parse_command
from ftpproxy.wire.telnet import TelnetFilter


def through(*pieces: bytes) -> tuple[bytes, bytes]:
    telnet = TelnetFilter()
    results = [telnet.feed(piece) for piece in pieces]
    return b"".join(data for data, _ in results), b"".join(answer for _, answer in results)


@pytest.mark.parametrize(
    ("octets", "data", "answer"),
    [
        (b"\xff\xfd\x01USER a\r\n", b"USER a\r\n", b"\xff\xfc\x01"),
        (b"\xff\xfb\x03NOOP\r\n", b"NOOP\r\n", b"\xff\xfe\x03"),
        (b"\xff\xfe\x01\xff\xfc\x01NOOP\r\n", b"NOOP\r\n", b""),
        (b"CWD a\xff\xffb\r\n", b"CWD a\xff\xffb\r\n", b""),
        (b"CWD \xffa\r\n", b"CWD \xffa\r\n", b""),
        (b"\xff\xfa\x18\x01junk\xff\xff\xff\xf0NOOP\r\n", b"NOOP\r\n", b""),
        (b"\xff\xf1\xff\xf6NOOP\r\n", b"NOOP\r\n", b""),
    ],
)
def test_what_is_data_and_what_is_answered(octets: bytes, data: bytes, answer: bytes) -> None:
    """Items 12, 13, 14: negotiation is refused to its sender, and doubled IAC stays doubled."""
    assert through(octets) == (data, answer)


@pytest.mark.parametrize(
    "octets",
    [
        b"\xff\xf4\xff\xf2ABOR",
        b"\xff\xf4\xffABOR",
        b"\xff\xf4\xf2ABOR",
        b"\xf2ABOR",
        b"\xff\xf2ABOR",
        b"\xffABOR",
        b"\xff\xf4\xff\xff\xf2ABOR",
        b"ABOR",
    ],
)
def test_every_kind_of_synch_is_understood(octets: bytes) -> None:
    """Item 11: also with the DM or the second IAC missing, as without SO_OOBINLINE."""
    assert parse_command(through(octets)[0]).verb == b"ABOR"


@given(st.binary(), st.data())
def test_any_cutting_gives_the_same(octets: bytes, data: st.DataObject) -> None:
    """Item 1."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(octets)))))
    pieces = [octets[start:end] for start, end in zip([0, *cuts], [*cuts, len(octets)], strict=True)]
    assert through(*pieces) == through(octets)


def test_an_endless_subnegotiation_ends() -> None:
    assert through(b"\xff\xfa" + b"x" * 1025 + b"NOOP\r\n")[0] == b"NOOP\r\n"


@given(st.binary().filter(lambda octets: 0xFF not in octets))
def test_data_without_iac_is_data(octets: bytes) -> None:
    assert through(octets) == (octets, b"")
