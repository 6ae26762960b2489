"""How a trace reads: one line for each record of `ftpproxy.tap`.

    12:00:01.123  #17  C: PORT 10,77,1,2,156,64           the client says
    12:00:01.124  #17     * data.open plane=relay ...     what comes of it
    12:00:01.124  #17  S> PORT 198,51,100,1,78,33         the server gets that instead: highlighted
    12:00:01.131  #17  S: 200 PORT command successful.    the server says, and the client gets just that

The signs are those of the project's test scripts: a colon says, an arrow gets.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from .show import printable

__all__ = ["LEGEND", "line"]

LEGEND = "C: S: client or server says   C> S> gets instead (said or changed by the proxy)   * event"

_HIGHLIGHT, _DIM, _PLAIN = "\x1b[1;7m", "\x1b[2m", "\x1b[0m"
_LETTERS = {"client": "C", "server": "S"}
_HIDDEN = frozenset({"at", "session", "event", "client", "service"})


def line(record: Mapping[str, Any], *, colour: bool) -> str:
    """`record` as a line without its end; with `colour` what the proxy changed stands out."""
    if "lost" in record:
        text = f"... {record['lost']} lines lost: they came faster than they were read ..."
        return f"{_HIGHLIGHT}{text}{_PLAIN}" if colour else text
    clock = record["at"]
    stamp = time.strftime("%H:%M:%S", time.localtime(clock)) + f".{int(clock * 1000) % 1000:03d}"
    head = f"{stamp} #{record['session']}"
    if "from" in record:
        return f"{head} {_LETTERS[record['from']]}: {printable(record['line'])}"
    if "to" in record:
        text = f"{_LETTERS[record['to']]}> {printable(record['line'])}"
        return f"{head} {_HIGHLIGHT}{text}{_PLAIN}" if colour else f"{head} {text}"
    fields = " ".join(f"{key}={_value(value)}" for key, value in record.items() if key not in _HIDDEN)
    text = f"* {record['event']} {fields}".rstrip()
    return f"{head} {_DIM}{text}{_PLAIN}" if colour else f"{head} {text}"


def _value(value: object) -> str:
    text = printable(str(value))
    return f'"{text}"' if " " in text else text
