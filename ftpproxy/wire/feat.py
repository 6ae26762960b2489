"""The reply to FEAT (RFC 2389 section 3.2): what the server can, less what we refuse, plus what we provide.

211-Features:            any text
 MDTM                    one blank, a label, perhaps parameters; Microsoft's servers send four blanks
211 End
"""

from __future__ import annotations

from collections.abc import Container, Iterable

__all__ = ["filtered", "reply_to_feat"]


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


def reply_to_feat(code: int, lines: list[bytes], hidden: Container[bytes], added: Iterable[bytes]) -> list[bytes]:
    """What becomes of a server's reply, `lines` with their line ends: one without features gets what is `added`, a
    reply that is not about features stays as it is."""
    added = list(added)
    if code != 211 and not (code in (500, 502) and added):
        return lines
    said = [line.removesuffix(b"\r\n") for line in lines] if code == 211 else [b"211 "]
    return [line + b"\r\n" for line in filtered(said, hidden, added)]
