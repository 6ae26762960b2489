"""The words of ftp-proxy(8), from the same events as every other form of the log, and at its priorities."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from ftpproxy.classic import ClassicFormatter, Ranks
from ftpproxy.endpoints import Endpoint
from ftpproxy.log import NOTICE, event, level_wanted, set_level, set_up
from ftpproxy.logsinks import SyslogSink
from ftpproxy.paths import Await, Call, PathSpec

CLIENT, ORIG_SERVER, SERVER, PROXY = (
    Endpoint.parse(text) for text in ("10.77.1.2:40000", "192.0.2.7:21", "192.0.2.8:21", "198.51.100.1:35001")
)
C_WAITS = Await(ORIG_SERVER.at(0), CLIENT.host)
C_CALLED = Call(CLIENT.at(40001), ORIG_SERVER.at(20))
S_WAITS = Await(PROXY.at(0), SERVER.host)
S_CALLED = Call(SERVER.at(50123), PROXY.at(0))
AT_C, AT_S = ORIG_SERVER.at(21877), PROXY.at(24810)

log = logging.getLogger("ftpproxy.test")


@pytest.fixture(autouse=True)
def root() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    level, handlers, loud = root.level, root.handlers[:], logging.raiseExceptions
    yield root
    for each in set(root.handlers) - set(handlers):
        each.close()
    set_up()
    root.setLevel(level)
    root.handlers[:] = handlers
    logging.raiseExceptions = loud


def start(number: int, service: str = "ftp-proxy") -> None:
    event(
        log,
        logging.INFO,
        "session.open",
        session=number,
        service=service,
        client=CLIENT,
        orig_server=ORIG_SERVER,
        server=SERVER,
        proxy=PROXY,
    )


def everything() -> None:
    event(log, logging.INFO, "listening", service="ftp-proxy", at=Endpoint.parse("[::1]:8021"))
    start(1)
    event(
        log,
        logging.DEBUG,
        "data.open",
        session=1,
        plane="relay",
        spec=PathSpec(C_WAITS, S_CALLED),
        client_calls=AT_C,
    )
    event(log, logging.DEBUG, "noise", session=1)
    event(log, logging.WARNING, "session.refused", client=CLIENT, reason="Too many sessions, try again later.")
    event(log, logging.WARNING, "data.failed", session=1, reason="evil\nline")
    event(log, logging.INFO, "session.close", session=1, reason="the client has left")
    event(log, logging.INFO, "stopping", signal="SIGTERM")


LINES = [
    (5, "listening on ::1 port 8021"),
    (6, "#1 FTP session 1/100 started: client 10.77.1.2 to server 192.0.2.8 via proxy 198.51.100.1"),
    (6, "#1 passive: client to server port 50123 via port 21877"),
    (7, "#1 noise"),
    (3, 'session.refused client=10.77.1.2:40000 reason="Too many sessions, try again later."'),
    (4, '#1 data.failed reason="evil\\x0aline"'),
    (6, '#1 FTP session ended: "the client has left"'),
    (3, "stopping signal=SIGTERM"),
]


@pytest.mark.parametrize(
    ("level", "most"),
    [("DEBUG", 7), ("INFO", 6), ("NOTICE", 5), ("WARNING", 4), ("ERROR", 3), ("CRITICAL", 2)],
)
def test_what_each_level_lets_through(level: str, most: int, capfd: pytest.CaptureFixture[str]) -> None:
    set_up(logging.getLevelNamesMapping()[level], "classic", {"ftp-proxy": 100})
    everything()
    assert capfd.readouterr().err.splitlines() == [line for rank, line in LINES if rank <= most]
    assert logging.getLevelName(level_wanted()) == level  # `ftpproxy status` says it


def test_the_level_may_change(capfd: pytest.CaptureFixture[str]) -> None:
    set_up(NOTICE, "classic", {"ftp-proxy": 100})
    start(1)
    set_level(logging.INFO)
    start(2)
    assert capfd.readouterr().err.startswith("#2 FTP session 1/100 started: ")


def test_sessions_are_counted_by_service(capfd: pytest.CaptureFixture[str]) -> None:
    set_up(logging.INFO, "classic", {"one": 5, "other": 7})
    start(1, "one")
    start(2, "one")
    start(3, "other")
    event(log, logging.INFO, "session.close", session=1, reason="left")
    event(log, logging.INFO, "session.close", session=99, reason="never had a server")
    start(4, "one")
    said = capfd.readouterr().err
    assert [line.split()[3] for line in said.splitlines() if "started" in line] == ["1/5", "2/5", "1/7", "2/5"]


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (PathSpec(C_WAITS, S_CALLED), "passive: client to server port 50123 via port 21877"),
        (PathSpec(C_CALLED, S_WAITS), "active: server to client port 40001 via port 24810"),
        (PathSpec(C_CALLED, S_CALLED), "active to passive: to client port 40001, to server port 50123"),
        (PathSpec(C_WAITS, S_WAITS), "passive to active: client via port 21877, server via port 24810"),
    ],
)
def test_data_connections(spec: PathSpec, sentence: str) -> None:
    fields = {
        "session": 17,
        "plane": "nft",
        "spec": spec,
        "client_calls": AT_C if isinstance(spec.client, Await) else None,
        "server_calls": AT_S if isinstance(spec.server, Await) else None,
    }
    record = log.makeRecord(log.name, logging.DEBUG, "", 0, "data.open", (), None, extra={"fields": fields})
    assert ClassicFormatter({}).format(record) == f"#17 {sentence}"


def test_a_traceback_stays_on_its_line() -> None:
    try:
        raise RuntimeError("forged\nline")
    except RuntimeError as error:
        record = log.makeRecord(
            log.name, logging.ERROR, "", 0, "internal error", (), (type(error), error, error.__traceback__)
        )
    text = ClassicFormatter({}).format(record)
    assert text.startswith("internal error | Traceback")
    assert text.isprintable()


def test_syslog_gets_the_priorities_of_the_original(tmp_path: Path) -> None:
    path = str(tmp_path / "log")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
        daemon.bind(path)
        sink = SyslogSink(path, ClassicFormatter({"ftp-proxy": 100}))
        ranks = Ranks()
        sink.addFilter(ranks)
        root = logging.getLogger()
        root.handlers[:] = [sink]
        root.setLevel(ranks.let_through(logging.DEBUG))
        everything()
        said = [daemon.recv(8192, socket.MSG_DONTWAIT).decode() for _ in LINES]
    assert [int(line[1 : line.index(">")]) for line in said] == [3 * 8 + rank for rank, _ in LINES]
    assert [line.partition("]: ")[2] for line in said] == [text for _, text in LINES]
