"""The log: one line for each event, whatever a peer wrote."""

from __future__ import annotations

import logging

from hypothesis import given
from hypothesis import strategies as st

from ftpproxy.log import KeyValueFormatter


def line(value: object) -> str:
    record = logging.LogRecord("ftpproxy", logging.INFO, __file__, 1, "transfer", None, None)
    record.fields = {"what": value, "after": 1}
    return KeyValueFormatter().format(record)


def test_control_characters_are_escaped() -> None:
    """Item 138: nothing that a peer writes forges a line or moves a cursor."""
    assert line(b'RETR a\x1b[2J\r\n\xc3\xa9\x7f\xff"').endswith(
        ' info transfer what="RETR a\\x1b[2J\\x0d\\x0a\\xc3\\xa9\\x7f\\xff\\"" after=1'
    )


@given(st.binary(max_size=400) | st.text(st.characters(exclude_categories=["Cs"]), max_size=400))
def test_a_line_is_printable_ascii(value: object) -> None:
    """Item 138: for any octets."""
    assert all(" " <= character <= "~" for character in line(value))
