"""A tap: what is said on one control connection, both sides of it, for somebody who watches it live.

A session has a tuple of taps, mostly empty, and looks at nothing else when nobody watches.  A tap is told what each
side said (`heard`), what each side was sent (`told`) and what was logged (`happened`), and makes records of it:

    {"from": "client", "line": "PORT 10,77,1,2,156,64"}     a side has said this
    {"to": "server", "line": "PORT 198,51,100,1,78,33"}     and this the other got: said by the proxy, or changed by it
    {"event": "data.open", "plane": "relay", ...}           what the log would say

each with `at` (seconds since the epoch) and `session`.  What reaches the other side as it was said is one record and
not two: a line that is sent is looked for among those that were heard and are not accounted for yet.

Passwords never get into a record (`pi.masking`): lines are looked at as a whole, however they were cut, and of a line
whose beginning went by before the tap was there nothing is shown.  Behind AUTH octets pass that mean nothing here, and
nothing is shown.

The records go into a `Trace`, which is bounded: a reader that is slow loses records and is told how many, and no
session ever waits for one.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping

from attrs import define, field

from .endpoints import Side
from .glance import text
from .pi.insight import Insight
from .pi.masking import LONGEST_LOGGED, loggable

__all__ = ["Record", "Tap", "Trace"]

MOST_RECORDS = 2000
MOST_PENDING = 128
"""Lines that were heard and not sent on: more than a ledger has turns."""
LONGEST_LINE = 32768
"""As the interpreter has it for replies; more is nothing that is ever sent on."""

Record = dict[str, object]

CLIENT, SERVER = Side.CLIENT, Side.SERVER


class Trace:
    """Records on their way to one reader."""

    def __init__(self, wake: Callable[[], None], most: int = MOST_RECORDS) -> None:
        """`wake` is called when there is something to take; it must not wait."""
        self._wake = wake
        self._most = most
        self._records: deque[Record] = deque()
        self._lost = 0

    def put(self, record: Record) -> None:
        """Keep it, or count it as lost."""
        if len(self._records) >= self._most:
            self._lost += 1
        else:
            self._records.append(record)
        self._wake()

    def take(self) -> list[Record]:
        """All there is, and behind it, if some were lost, `{"lost": how many}`."""
        taken = list(self._records)
        self._records.clear()
        if self._lost:
            taken.append({"lost": self._lost})
            self._lost = 0
        return taken


@define
class _Stream:
    """What one side says, until the other has got it."""

    partial: bytearray = field(factory=bytearray)
    skipping: bool = False
    """Until the end of this line: its beginning is not known, or it is too long."""
    pending: deque[bytes] = field(factory=lambda: deque(maxlen=MOST_PENDING))
    sent: bytearray = field(factory=bytearray)
    """The last line of what the other got, as far as it goes."""

    def lines(self, octets: bytes) -> list[bytes]:
        """The lines that `octets` complete, without their ends."""
        *whole, rest = (bytes(self.partial) + octets).split(b"\n")
        if whole and self.skipping:
            del whole[0]
            self.skipping = False
        self.partial[:] = b"" if self.skipping else rest
        if len(self.partial) > LONGEST_LINE:
            self.partial.clear()
            self.skipping = True
        return [line.removesuffix(b"\r") for line in whole]

    def accounts_for(self, line: bytes) -> bool:
        """Whether a line that is sent was heard.  Those heard before it were not sent on."""
        if line not in self.pending:
            return False
        while self.pending.popleft() != line:
            pass
        return True


class Tap:
    """One session's, for one reader."""

    def __init__(
        self, session: int, trace: Trace, look: Callable[[], Insight | None], *, within_a_line: bool = False
    ) -> None:
        """`look` tells how far the session is, None before it has a server.  `within_a_line`: the client has sent a
        part of a line already."""
        self._session = session
        self.trace = trace
        self._look = look
        self._unread = False
        self._said = {CLIENT: _Stream(skipping=within_a_line), SERVER: _Stream()}

    def heard(self, side: Side, octets: bytes) -> None:
        """`side` has sent these octets; none mean that it ended its stream."""
        if not octets:
            self._record({"event": "end", "side": str(side)})
            return
        if self._unreadable(view := self._look()):
            return
        stream = self._said[side]
        for line in stream.lines(octets):
            stream.pending.append(line)
            self._record({"from": str(side), "line": _shown(side, line, view)})

    def told(self, side: Side, chunks: Iterable[tuple[bytes, bool, bool]]) -> None:
        """These chunks (octets first) go to `side`."""
        if self._unreadable(view := self._look()):
            return
        stream = self._said[side.peer]
        stream.sent += b"".join(octets for octets, _, _ in chunks)
        *whole, rest = bytes(stream.sent).split(b"\n")
        stream.sent[:] = rest[-LONGEST_LINE:]
        for line in whole:
            line = line.removesuffix(b"\r")
            if not stream.accounts_for(line):
                self._record({"to": str(side), "line": _shown(side.peer, line, view)})

    def happened(self, name: str, fields: Mapping[str, object]) -> None:
        """An event of the session's."""
        shown = {
            key: text(value) if isinstance(value, bytes) else value if isinstance(value, int) else str(value)
            for key, value in fields.items()
            if value is not None
        }
        self._record({"event": name, **shown})

    def _unreadable(self, view: Insight | None) -> bool:
        if view is not None and view.unread and not self._unread:
            self._unread = True
            self._record({"event": "unread", "note": "after AUTH octets pass as they are"})
        return self._unread

    def _record(self, record: Record) -> None:
        self.trace.put({"at": round(time.time(), 3), "session": self._session, **record})


def _shown(speaker: Side, line: bytes, view: Insight | None) -> str:
    if speaker is CLIENT:
        return text(loggable(line, logged_in=view is not None and view.logged_in))
    return text(line if len(line) <= LONGEST_LOGGED else line[: LONGEST_LOGGED - 3] + b"...")
