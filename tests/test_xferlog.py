"""The transfer log: 14 fields, whatever files and users are called, and nothing complete that was not."""

from __future__ import annotations

import os
import re
import resource
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftpproxy.carried import Carried
from ftpproxy.endpoints import Side
from ftpproxy.paths import Direction, Tally
from ftpproxy.xferlog import Xferlog, line

from .server.test_server import IdlePath, Stage, open_path

CLIENT = ip_address("192.0.2.7")
FIELDS = re.compile(
    r"(\w{3} \w{3} [ \d]\d \d\d:\d\d:\d\d \d{4}) (\d+) (\S+) (\d+) (\S+)"
    r" ([ab]) (_) ([oi]) ([ar]) (\S+) (ftp) (0) (\*) ([ci])"
)


def carried(what: bytes = b"RETR /pub/a file.iso", **changes: Any) -> Carried:
    values: dict[str, Any] = {
        "direction": Direction.DOWN,
        "user": b"Anonymous",
        "text": False,
        "positive": True,
        "tally": Tally(1048576, 0, 3.6),
        **changes,
    }
    return Carried(None, "relay", None, what, **values)  # type: ignore[arg-type]


def test_the_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """Item 149: the fields in the order of wu-ftpd, blanks in names as `_`, the day padded with a blank."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    assert (
        line(CLIENT, carried(), 1785578636.0)
        == "Sat Aug  1 10:03:56 2026 4 192.0.2.7 1048576 /pub/a_file.iso b _ o a Anonymous ftp 0 * c"
    )


@given(st.binary(), st.binary(), st.sampled_from([b"RETR", b"stor", b"APPE", b"STOU"]))
def test_names_cannot_forge_a_field(name: bytes, user: bytes, verb: bytes) -> None:
    """Item 149: 14 fields for any name; blanks and controls become `_`."""
    text = line(CLIENT, carried(verb + b" " + name, user=user), 0.0)
    assert text is not None
    assert text.isascii()
    assert FIELDS.fullmatch(text)


def test_listings_are_no_files() -> None:
    assert line(CLIENT, carried(b"LIST -la"), 0.0) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"positive": False},
        {"positive": None},
        {"tally": Tally(5, 0, 1.0, failed=Side.CLIENT, reason="reset")},
        {"tally": Tally(5, 0, 1.0, reason="cut short")},
        {"tally": None},
    ],
)
def test_incomplete(changes: dict[str, Any]) -> None:
    """Item 150: complete is what the server called complete and both legs ended cleanly."""
    text = line(CLIENT, carried(**changes), 0.0)
    assert text is not None
    assert text.endswith(" i")


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage()
    yield stage
    stage.close()


def transfer(stage: Stage, log: Path, *events: str) -> list[str]:
    """One RETR with these events; what the log says then."""
    xferlog = Xferlog(str(log))
    stage.serve(xferlog=xferlog)
    client, origin = stage.greeted()
    client.send(b"USER joe\r\n")
    stage.hears(origin, b"USER joe\r\n")
    origin.send(b"230 in\r\n")
    stage.hears(client, b"230 in\r\n")
    path: IdlePath = open_path(stage, client, origin)
    path.owner.connected(path, Side.CLIENT)
    path.owner.connected(path, Side.SERVER)
    path.tally = Tally(7, 0, 0.5, reason="cut short")
    client.send(b"RETR x\r\n")
    stage.hears(origin, b"RETR x\r\n")
    origin.send(b"150 go\r\n")
    stage.hears(client, b"150 go\r\n")
    for event in events:
        if event == "finished":
            path.owner.finished(path, Tally(7, 0, 0.5))
        elif event == "reset":
            path.owner.finished(path, Tally(3, 0, 0.5, failed=Side.SERVER, reason="reset"))
        elif event == "leaves":
            client.close()
            stage.sees_the_end(origin)
        else:
            origin.send(event.encode() + b"\r\n")
            if not event.startswith("226"):
                stage.hears(client, event.encode() + b"\r\n")
            else:
                stage.until(lambda: stage.session.carriage._transfer is None)
    xferlog.close()
    return log.read_text().splitlines()


@pytest.mark.parametrize(
    ("events", "octets", "status"),
    [
        (["finished", "226 done"], "7", "c"),
        (["226 done", "finished"], "7", "c"),
        (["reset", "426 broken"], "3", "i"),
        (["finished", "451 disk"], "7", "i"),
        (["426 aborted", "reset"], "3", "i"),
        (["finished", "leaves"], "7", "i"),
        (["leaves"], "7", "i"),
    ],
    ids=" ".join,
)
def test_what_becomes_of_a_transfer(stage: Stage, tmp_path: Path, events: list[str], octets: str, status: str) -> None:
    """Item 150: one line each, with the octets really relayed, in whatever order the end and the reply come."""
    (text,) = transfer(stage, tmp_path / "xferlog", *events)
    match = FIELDS.fullmatch(text)
    assert match is not None
    assert (match[4], match[5], match[8], match[9], match[10], match[14]) == (octets, "x", "o", "r", "joe", status)


def test_a_rotated_file_is_made_anew(tmp_path: Path) -> None:
    file = tmp_path / "xferlog"
    log = Xferlog(str(file))
    log.write(CLIENT, carried())
    os.rename(file, tmp_path / "xferlog.1")
    log.write(CLIENT, carried())
    log.close()
    assert len(file.read_text().splitlines()) == 1


def test_a_file_that_is_opened_anew(tmp_path: Path) -> None:
    """For SIGHUP; where it cannot be, the old one goes on."""
    file = tmp_path / "xferlog"
    log = Xferlog(str(file))
    log.write(CLIENT, carried())
    os.rename(file, tmp_path / "xferlog.1")
    log.reopen()
    assert file.read_text() == ""
    os.rename(file, tmp_path / "xferlog.2")
    file.symlink_to(tmp_path / "xferlog.2")
    with pytest.raises(OSError, match="symbolic link"):
        log.reopen()
    file.unlink()
    log.write(CLIENT, carried())
    log.close()
    assert len(file.read_text().splitlines()) == 1


@pytest.mark.linux("what a limit has room for is written")
def test_a_file_that_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No room for a whole line, then for none at all: said in the log, and the session goes on."""
    file = tmp_path / "xferlog"
    log = Xferlog(str(file))
    log.write(CLIENT, carried())
    (whole,) = file.read_text().splitlines()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + 10, before[1]))
    try:
        log.write(CLIENT, carried())
        log.write(CLIENT, carried())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [record.getMessage() for record in caplog.records] == ["xferlog.failed"] * 2
    log.write(CLIENT, carried())
    log.close()
    first, torn, last = file.read_text().splitlines()
    assert (first, torn) == (whole, last[:10])
    assert FIELDS.fullmatch(last)


def _other(tmp_path: Path) -> Path:
    (tmp_path / "other").write_text("someone else's\n")
    return tmp_path / "other"


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda file: file.symlink_to(_other(file.parent)), "it is a symbolic link, which is not followed"),
        (lambda file: file.symlink_to(file.parent / "nothing"), "it is a symbolic link, which is not followed"),
        (lambda file: file.hardlink_to(_other(file.parent)), "it is another file as well, by a hard link"),
        (lambda file: file.mkdir(), "Is a directory"),
    ],
    ids=["link", "link to nothing", "hard link", "directory"],
)
def test_what_is_not_written_to(tmp_path: Path, make: Callable[[Path], None], why: str) -> None:
    """Root opens it, perhaps where somebody else may make links."""
    make(tmp_path / "xferlog")
    with pytest.raises(OSError, match=why):
        Xferlog(str(tmp_path / "xferlog"))
    if (other := tmp_path / "other").exists():
        assert other.read_text() == "someone else's\n"
    assert not (tmp_path / "nothing").exists()


def test_a_pipe_is_not_written_to_either(tmp_path: Path) -> None:
    pipe = tmp_path / "xferlog"
    os.mkfifo(pipe)
    with pytest.raises(OSError):  # noqa: PT011 each system has another word for that nobody reads
        Xferlog(str(pipe))
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(OSError, match="it is a FIFO, and no regular file"):
        Xferlog(str(pipe))
    os.close(reader)
