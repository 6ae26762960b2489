"""How names and figures look on a terminal.

Names come from strangers.  What is not printable leaves as `\\xNN` or `\\uNNNN`, so that none of them moves the cursor,
changes a colour or turns the reading direction.
"""

from __future__ import annotations

__all__ = ["count", "duration", "fit", "printable", "size", "speed"]


def printable(text: str) -> str:
    """`text` with every character that is not printable written out."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else _escaped(ord(each)) for each in text)


def _escaped(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def fit(text: str, width: int) -> str:
    """`text`, printable, in at most `width` characters; of a longer one the end, which tells files apart."""
    text = printable(text)
    return text if len(text) <= width else "<" + text[len(text) - width + 1 :]


def count(number: int, what: str) -> str:
    """`1 session`, `2 sessions`."""
    return f"{number} {what}{'s' * (number != 1)}"


def duration(seconds: float) -> str:
    """`59s`, `12:05`, `3:04:05`, `2d 03h`: at most seven characters."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole}s"
    minutes, second = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}:{second:02d}"
    hours, minute = divmod(minutes, 60)
    if hours < 24:
        return f"{hours}:{minute:02d}:{second:02d}"
    return f"{hours // 24}d {hours % 24:02d}h"


def size(octets: float) -> str:
    """`999 B`, `1.2 kB`, `34.5 MB`: powers of 1000, at most eight characters."""
    if octets < 1000:
        return f"{octets:.0f} B"
    for unit in ("kB", "MB", "GB", "TB"):
        octets /= 1000
        if octets < 999.95:
            return f"{octets:.1f} {unit}"
    return f"{octets / 1000:.1f} PB"


def speed(octets: float) -> str:
    """Octets a second."""
    return f"{size(octets)}/s"
