"""What is left to do for a session whose ends speak TLS, or another mechanism of RFC 2228, with each other.

After the server's 234 (RFC 4217 section 4) or 334 (RFC 2228 section 3) both directions pass as they are.  One thing is
still looked at: where a TLS handshake was agreed, each side has to go on with one.  Plain text in its place, sent along
with AUTH or its answer or behind them, is an injection by somebody in between, or by an end that wants us not to look.
"""

from __future__ import annotations

from attrs import define, field

from ..endpoints import Side

__all__ = ["Passage", "PlainText"]

BEGINNINGS = {Side.CLIENT: (b"\x16\x03",), Side.SERVER: (b"\x16\x03", b"\x15\x03")}
"""The first octets of a TLS record that may come first: a handshake, or the server's alert (RFC 8446 section 5.1)."""


class PlainText(Exception):
    """A side goes on in plain text where TLS was agreed."""


@define(eq=False)
class Passage:
    """The unread rest of a control connection."""

    code: int
    """The server's reply to AUTH."""
    _begun: dict[Side, bytes | None] = field(init=False)
    """What each side has said so far; None once it is known to be TLS, or may be anything."""

    @_begun.default
    def _nothing_said(self) -> dict[Side, bytes | None]:
        return dict.fromkeys(Side, b"" if self.code == 234 else None)

    def carry(self, side: Side, octets: bytes) -> bytes:
        """What `side` sent, unchanged.  Raises `PlainText`."""
        begun = self._begun[side]
        if begun is not None:
            begun = (begun + octets)[:2]
            if not any(beginning.startswith(begun) for beginning in BEGINNINGS[side]):
                raise PlainText
            self._begun[side] = begun if len(begun) < 2 else None
        return octets
