"""What is left to do for a session whose ends speak TLS, or another mechanism of RFC 2228, with each other.

After the server's 234 (RFC 4217 section 4) or 334 (RFC 2228 section 3) both directions pass as they are.  One thing is
still looked at: a client that was promised a TLS handshake has to begin one.  Plain text in its place, sent along with
AUTH or behind it, is an injection by somebody in between, or a client that wants us not to look.
"""

from __future__ import annotations

__all__ = ["Passage", "PlainText"]

TLS_RECORD = b"\x16\x03"
"""How a TLS handshake begins (RFC 8446 section 5.1)."""


class PlainText(Exception):
    """The client goes on in plain text where TLS was agreed."""


class Passage:
    """The unread rest of a control connection.  `code` is the server's reply to AUTH."""

    __slots__ = ("_expected",)

    def __init__(self, code: int) -> None:
        self._expected = TLS_RECORD if code == 234 else b""

    def from_client(self, octets: bytes) -> bytes:
        """What the client sent, unchanged.  Raises `PlainText`."""
        expected, self._expected = self._expected, self._expected[len(octets) :]
        if octets[: len(expected)] != expected[: len(octets)]:
            raise PlainText
        return octets
