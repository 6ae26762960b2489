"""Where fuzzing begins: the field corpus and the dialogue scripts, as inputs of each target."""

from __future__ import annotations

import json
from pathlib import Path

from .. import script
from ..script import DIALOGUES, Line
from .ends import RECORD, ROUTE_NAMES, TIMERS

__all__ = ["TOKENS", "seeds"]

CORPUS = Path(__file__).parents[1] / "corpus.jsonl"
LINE_END = "⏎"
"""How the corpus writes the end of an inner line."""

_COMMANDS = (
    "PASV, EPSV, EPSV ALL, ABOR, STAT, NOOP, QUIT, REIN, FEAT, LIST, RETR x, STOR y, LPSV, USER a, PASS b, MODE B, "
    "MODE S, AUTH TLS, HOST h, SITE EXEC x, PORT 10|77|1|2|200|1, EPRT /1/10.77.1.2/51201/, EPRT /2/fd77:1::2/51201/"
)
_REPLIES = (
    "220 hi, 120 wait, 200 ok, 150 go, 226 done, 226 ABOR, 225 none, 426 cut, 421 bye, 425 no, 500 what, 522 use (1), "
    "550 no, 230 in, 331 pw, 234 tls, 227 (1|2|3|4|200|1), 229 (///51200/), 220-a, 220 z, 211-x, 211 z, 227-x, 227 z"
)
_OCTETS = b"\xff\xf4\xff\xf2 \xff\xfd\x01 \xff\xfa \xff\xf0 \xff\xff \xf2 \r\0 \0 \n \r x".split(b" ")

TOKENS = [
    *(line.replace("|", ",").replace("/", "|").encode() + b"\r\n" for line in f"{_COMMANDS}, {_REPLIES}".split(", ")),
    *_OCTETS,
]
"""What mutations put in: words of the protocol."""


def seeds(target: str) -> list[bytes]:
    """Inputs for one of `TARGETS`."""
    lines = [_raw(json.loads(text)) for text in CORPUS.read_text().splitlines()]
    if target == "interpreter":
        return [_input(path) for path in DIALOGUES] + [_answer(line) for line in lines]
    if target in ("lines", "telnet", "proxyheader"):
        return [b"\x03" + line + b"\r\n" for line in lines] + [
            b"\x02PROXY TCP4 192.0.2.1 198.51.100.7 50000 21\r\n",
            b"\x05\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x01\xc6\x33\x64\x07\xc3\x50\0\x15",
        ]
    bare = [line.partition(b" ")[2] for line in lines] if target in ("port", "eprt", "227", "229") else []
    return [*lines, *bare, b"211-Features\n MDTM\n    SIZE\nAUTH TLS\n211 End\0AUTH"]


def _raw(entry: dict[str, str]) -> bytes:
    if entry["id"].startswith("T"):  # octets, escaped
        return entry["line"].encode().decode("unicode_escape").encode("latin-1")
    return entry["line"].replace(LINE_END, "\r\n").encode("utf-8", "surrogateescape")


def _answer(line: bytes) -> bytes:
    """A line of the corpus where it can do most: as answer to PASV, or as a command."""
    if line[:1].isdigit():
        records = [b"S220 hi\r\n", b"CPASV\r\n", b"S" + line + b"\r\n", b"V", b"CLIST\r\n", b"S150 go\r\n226 done\r\n"]
    else:
        records = [b"S220 hi\r\n", b"C" + line + b"\r\n", b"S200 ok\r\n"]
    return RECORD.join([b"\0\0\0", *records])


def _input(path: Path) -> bytes:
    """A dialogue script as records."""
    dialogue = script.read(path)
    route = next(number for number, name in enumerate(ROUTE_NAMES) if script.ROUTES[name] is dialogue.route)
    records: list[bytes] = []
    for line in dialogue.lines:
        if (record := _record(line)) is None:
            continue
        # The plane's answer is given before it is asked.
        if record[:1] == b"P" and records:
            records.insert(len(records) - 1, record)
        else:
            records.append(record)
    return RECORD.join([bytes([route, int(dialogue.policy.require_login), 0]), *records])


def _record(line: Line) -> bytes | None:
    word, rest = line.word, line.rest
    if word in ("C:", "C*", "S:", "S*"):
        return word[:1].encode() + script.octets(line)
    if word in ("C.", "S."):
        return b"E" + word[:1].encode()
    if word == "opened":
        return b"P\0" if rest.endswith("ready") else b"P\1"
    if word == "connected":
        return b"U" if rest == "client" else b"V"
    if word == "timer":
        return b"T" + bytes([[timer.value for timer in TIMERS].index(rest)])
    return {"refused": b"P\2", "failed": b"F", "finished": b"X", "delivered": b"D"}.get(word)
