"""Where the log goes: every sink with its real counterpart, and none of them is waited for."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ftpproxy.classic import ClassicFormatter
from ftpproxy.endpoints import Side
from ftpproxy.log import event, set_level, set_up, started_by_journald
from ftpproxy.logforms import JsonFormatter, KeyValueFormatter
from ftpproxy.logsinks import JournalSink, StandardError, SyslogSink, lost
from ftpproxy.paths import Tally

from .server.test_server import IdlePath, Stage, open_path
from .test_log import FIELD, HOSTILE

log = logging.getLogger("ftpproxy.test")


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, put back as it was."""
    root = logging.getLogger()
    level, handlers, loud = root.level, root.handlers[:], logging.raiseExceptions
    lost._untold = 0
    yield root
    for each in set(root.handlers) - set(handlers):
        each.close()
    root.setLevel(level)
    root.handlers[:] = handlers
    logging.raiseExceptions = loud


def only(root: logging.Logger, *sinks: logging.Handler) -> None:
    root.handlers[:] = sinks
    root.setLevel(logging.DEBUG)


# Standard error


def test_a_pipe_that_nobody_reads_loses_lines(root: logging.Logger) -> None:
    """The service does not wait, and says afterwards what is missing."""
    ends = os.pipe()
    before = lost.lines
    only(root, StandardError(KeyValueFormatter(), ends[1]))
    try:
        count = 0
        while lost.lines == before:  # would stand still here if it waited
            event(log, logging.INFO, "transfer", number=count)
            count += 1
        for _ in range(10):
            event(log, logging.INFO, "transfer", number=count)
        assert lost.lines == before + 11
        read = b""
        while read.count(b"\n") < count - 1:
            read += os.read(ends[0], 65536)
        event(log, logging.INFO, "transfer", number=-1)
        said = os.read(ends[0], 65536).decode().splitlines()
        assert [line.split(" ", 2)[2] for line in said if line] == ["transfer number=-1", "log.lost count=11"]
    finally:
        os.close(ends[0])
        os.close(ends[1])


def test_a_reader_that_is_gone_loses_lines(root: logging.Logger) -> None:
    ends = os.pipe()
    os.close(ends[0])
    before = lost.lines
    only(root, StandardError(KeyValueFormatter(), ends[1]))
    event(log, logging.INFO, "transfer")
    os.close(ends[1])
    assert lost.lines == before + 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux's /dev/full")
def test_a_full_disk_loses_lines(root: logging.Logger) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    before = lost.lines
    only(root, StandardError(KeyValueFormatter(), full))
    event(log, logging.INFO, "transfer")
    os.close(full)
    assert lost.lines == before + 1


def test_long_texts_come_whole(root: logging.Logger, tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as stream:
        only(root, StandardError(KeyValueFormatter(), stream.fileno()))
        event(log, logging.INFO, "transfer", **{f"field{number}": "x" * 300 for number in range(40)})
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert line.count("x" * 300) == 40


# Syslog and the journal


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[socket.socket]:
    """The socket of syslogd or journald."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "daemon"))
        sock.setblocking(False)
        yield sock


def test_syslog(root: logging.Logger, daemon: socket.socket) -> None:
    """RFC 3164 section 4.1: facility daemon, the level's severity, one line."""
    only(root, SyslogSink(daemon.getsockname()))
    event(log, logging.WARNING, "data.stranger", caller="192.0.2.1:1", what=b"a\nb")
    datagram = daemon.recv(65536)
    assert re.fullmatch(
        rb"<28>[A-Z][a-z]{2} [ 123]\d \d\d:\d\d:\d\d ftpproxy\[%d\]: "
        rb'data\.stranger caller=192\.0\.2\.1:1 what="a\\x0ab"' % os.getpid(),
        datagram,
    )
    try:
        raise ValueError("two\nlines")
    except ValueError:
        log.exception("internal.error")
    datagram = daemon.recv(65536)
    assert datagram.startswith(b"<27>")
    assert b"\n" not in datagram
    assert datagram.endswith(b" | ValueError: two | lines")


def test_a_daemon_that_stops_or_goes_loses_lines(root: logging.Logger, daemon: socket.socket) -> None:
    """A full queue, no listener, and a daemon that is back: nothing is waited for, nothing is opened anew."""
    path = daemon.getsockname()
    before = lost.lines
    only(root, SyslogSink(path))
    while lost.lines == before:
        event(log, logging.INFO, "transfer")
    daemon.close()
    event(log, logging.INFO, "transfer")
    os.unlink(path)
    event(log, logging.INFO, "transfer")
    assert lost.lines == before + 3
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as again:
        again.bind(path)
        event(log, logging.INFO, "transfer")
        assert again.recv(65536).endswith(b"]: transfer")
        assert again.recv(65536).endswith(b"]: log.lost count=3")


def entry(datagram: bytes) -> dict[bytes, bytes]:
    """An entry as journald reads it (systemd, "Native Journal Protocol")."""
    fields = {}
    while datagram:
        line, _, rest = datagram.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            (length,) = struct.unpack_from("<Q", rest)
            value, rest = rest[8 : 8 + length], rest[8 + length :]
            assert rest[:1] == b"\n"
            rest = rest[1:]
        assert re.fullmatch(rb"[A-Z][A-Z0-9_]*", name)
        assert name not in fields
        fields[name], datagram = value, rest
    return fields


@pytest.mark.parametrize("value", HOSTILE)
def test_no_value_begins_a_field(root: logging.Logger, daemon: socket.socket, value: bytes) -> None:
    """Item 138: names and tracebacks."""
    only(root, JournalSink(daemon.getsockname()))
    event(log, logging.INFO, "transfer", session=7, what=value)
    fields = entry(daemon.recv(65536))
    head = {b"MESSAGE", b"PRIORITY", b"SYSLOG_IDENTIFIER", b"FTPPROXY_EVENT"}
    assert set(fields) == head | {b"FTPPROXY_SESSION", b"FTPPROXY_WHAT"}
    assert (fields[b"PRIORITY"], fields[b"SYSLOG_IDENTIFIER"]) == (b"6", b"ftpproxy")
    try:
        raise ValueError(value.decode("utf-8", "backslashreplace"))
    except ValueError:
        log.exception("internal.error")
    assert set(entry(daemon.recv(65536))) == head | {b"FTPPROXY_TRACEBACK"}


JOURNALD = "/usr/lib/systemd/systemd-journald"
IN_A_JOURNAL = """
mount --make-rprivate / && mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /var/log || exit 77
mkdir -p /run/systemd/journal /run/log/journal
{journald} & daemon=$!
while ! [ -S /run/systemd/journal/socket ]; do kill -0 $daemon || exit 77; sleep 0.02; done
{python} -c '
import logging
from ftpproxy import log
from tests.test_log import HOSTILE
log.set_up(logging.INFO, "journald")
for number, value in enumerate(HOSTILE):
    log.event(logging.getLogger("test"), logging.WARNING, "transfer", session=number, what=value)
' && journalctl --sync && journalctl --directory=/run/log/journal --output=json --no-pager SYSLOG_IDENTIFIER=ftpproxy
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a journald of its own")
@pytest.mark.skipif(not (os.path.exists(JOURNALD) and shutil.which("journalctl")), reason="no systemd-journald here")
@pytest.mark.skipif(not os.path.exists("/etc/machine-id"), reason="journald needs /etc/machine-id")
def test_the_real_journal_reads_the_fields() -> None:
    """In namespaces of its own: journald sees no other process, and the machine's journal sees nothing of this."""
    script = IN_A_JOURNAL.format(journald=JOURNALD, python=sys.executable)
    argv = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, cwd=Path(__file__).parent.parent)
    if done.returncode == 77:
        pytest.skip(f"no namespaces for a journald here: {done.stderr.strip()[-300:]}")
    assert done.returncode == 0, done.stderr
    entries = [json.loads(line) for line in done.stdout.splitlines()]
    assert [each["FTPPROXY_SESSION"] for each in entries] == [str(number) for number in range(len(HOSTILE))]
    for each in entries:
        assert (each["PRIORITY"], each["FTPPROXY_EVENT"]) == ("4", "transfer")
        assert each["MESSAGE"].startswith(f"transfer session={each['FTPPROXY_SESSION']} what=")
        ours = {name for name in each if not name.startswith("_")}
        assert ours == {
            *("MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER"),
            *("FTPPROXY_EVENT", "FTPPROXY_SESSION", "FTPPROXY_WHAT"),
        }


# Which one


def test_who_started_us(monkeypatch: pytest.MonkeyPatch) -> None:
    """systemd.exec(5): device and inode of standard error, so that a redirection is noticed."""
    status = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    assert started_by_journald()
    for other in (f"{status.st_dev}:{status.st_ino + 1}", f"{status.st_dev + 1}:{status.st_ino}", "", "8", "a:b"):
        monkeypatch.setenv("JOURNAL_STREAM", other)
        assert not started_by_journald()
    monkeypatch.delenv("JOURNAL_STREAM")
    assert not started_by_journald()


def test_auto(root: logging.Logger, daemon: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    set_up(logging.WARNING)
    assert [type(each) for each in root.handlers] == [StandardError]
    assert root.level == logging.WARNING
    status = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    monkeypatch.setattr("ftpproxy.logsinks.JOURNAL", daemon.getsockname() + "-not-there")
    set_up()
    assert [type(each) for each in root.handlers] == [StandardError]
    monkeypatch.setattr("ftpproxy.logsinks.JOURNAL", daemon.getsockname())
    set_up()
    assert [type(each) for each in root.handlers] == [JournalSink]
    set_level(logging.ERROR)
    assert root.level == logging.ERROR


def test_a_syslog_that_is_not_there_is_said(root: logging.Logger, capfd: pytest.CaptureFixture[str]) -> None:
    if os.path.exists("/dev/log"):
        pytest.skip("this machine has a syslog")
    set_up(form="syslog")
    assert (
        capfd.readouterr().err == "ftpproxy: log.format is syslog, but there is no /dev/log; nothing is logged before\n"
    )


# A whole session, in every form

SECRET = b"hunter2-and-more"
USER = b'joe\x1b[31m\xff\xe2\x80\xa8=" client=192.0.2.66:1'
FILE = b'x\x1b]0;t\x07\xe2\x80\xa9\xc3" session=9 result=complete\xfe'


def act(stage: Stage) -> None:
    """A client with a hostile name and a password transfers a file with a hostile name."""
    stage.serve()
    client, origin = stage.greeted()
    for said, answer in (
        (b"USER " + USER, b"331 go on"),
        (b"PASS " + SECRET, b"230 in"),
        (b"ACCT " + SECRET, b"230 in"),
    ):
        client.send(said + b"\r\n")
        stage.until(lambda: bool(receive(origin)))
        origin.send(answer + b"\r\n")
        stage.hears(client, answer + b"\r\n")
    path: IdlePath = open_path(stage, client, origin)
    for side in Side:
        path.owner.connected(path, side)
    client.send(b"RETR " + FILE + b"\r\n")
    stage.until(lambda: bool(receive(origin)))
    path.owner.finished(path, Tally(7, 0, 0.5))
    origin.send(b"226 done\r\n")
    stage.hears(client, b"226 done\r\n")
    client.close()
    stage.sees_the_end(origin)


def receive(sock: socket.socket) -> bytes:
    try:
        return sock.recv(65536)
    except BlockingIOError:
        return b""


def test_a_session_in_every_form(root: logging.Logger, tmp_path: Path, daemon: socket.socket) -> None:
    """Items 137 and 138: no password at any level, and the same events with the same fields in every form."""
    journal = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    journal.bind(str(tmp_path / "journal"))
    journal.setblocking(False)
    for sock in (journal, daemon):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    stage = Stage()
    with (
        (tmp_path / "kv").open("wb") as kv,
        (tmp_path / "json").open("wb") as js,
        (tmp_path / "classic").open("wb") as classic,
        journal,
    ):
        only(
            root,
            StandardError(KeyValueFormatter(), kv.fileno()),
            StandardError(JsonFormatter(), js.fileno()),
            StandardError(ClassicFormatter({}), classic.fileno()),
            JournalSink(journal.getsockname()),
            SyslogSink(daemon.getsockname()),
        )
        before = lost.lines
        try:
            act(stage)
        finally:
            stage.close()
        assert lost.lines == before
        entries = [entry(datagram) for datagram in iter(lambda: receive(journal), b"")]
        syslog = list(iter(lambda: receive(daemon), b""))
    lines = (tmp_path / "kv").read_bytes()
    objects = (tmp_path / "json").read_bytes()
    sentences = (tmp_path / "classic").read_bytes()
    assert len(sentences.splitlines()) == len(lines.splitlines())
    for form in (
        lines,
        objects,
        sentences,
        b"\n".join(syslog),
        *(value for each in entries for value in each.values()),
    ):
        assert SECRET not in form
        assert b"\x1b" not in form

    read = [json.loads(line) for line in objects.splitlines()]
    names = [each["event"] for each in read]
    assert names == [line.split(b" ")[2].decode() for line in lines.splitlines()]
    assert names == [each[b"FTPPROXY_EVENT"].decode() for each in entries]
    assert names == [line.split(b"]: ")[1].split(b" ")[0].decode() for line in syslog]
    assert names.count("transfer") == names.count("session.close") == 1
    number = names.index("transfer")
    fields = [key for key in read[number] if key not in ("time", "level", "event")]
    assert fields == [
        match[1] for match in FIELD.finditer(lines.splitlines()[number].decode().partition(" transfer")[2])
    ]
    assert [f"FTPPROXY_{key.upper()}" for key in fields] == [name.decode() for name in list(entries[number])[4:]]
    assert read[number]["session"] == 1
    assert read[number]["what"].startswith("RETR x\x1b]0;t\x07\u2029")
