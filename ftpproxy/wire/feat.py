"""The reply to FEAT (RFC 2389 section 3.2): what the server can, less what we refuse, plus what we provide.

211-Features:            any text
 MDTM                    one blank, a label, perhaps parameters; Microsoft's servers send four blanks
211 End
"""

from __future__ import annotations

from collections.abc import Container, Iterable

__all__ = ["filtered"]


def _label(line: bytes) -> bytes:
    return line.lstrip(b" ").partition(b" ")[0].partition(b";")[0].upper()


def filtered(lines: Iterable[bytes], hidden: Container[bytes], added: Iterable[bytes] = ()) -> list[bytes]:
    """The lines (without line ends) of a 211 as they are to be shown.

    `hidden` has labels in upper case (`AUTH` hides every line about it); `added` has whole features.
    A reply of a single line ("no features") becomes one of several where something is added.
    """
    lines = list(lines)
    inner = [line[4:] if line.startswith((b"211-", b"211 ")) else line for line in lines[1:-1]]
    shown = [line.strip(b" ") for line in inner if line.strip(b" ") and _label(line) not in hidden]
    have = {_label(line) for line in shown}
    shown += [feature for feature in added if _label(feature) not in have]
    if not shown:
        return [b"211 No features."] if len(lines) == 1 else [lines[0], lines[-1]]
    first = lines[0] if len(lines) > 1 else b"211-Features:"
    last = lines[-1] if len(lines) > 1 else b"211 End"
    return [first, *(b" " + line for line in shown), last]
