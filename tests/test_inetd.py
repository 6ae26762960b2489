"""One session on descriptor 0, as inetd starts it: served, refused, or told that it will not be."""

from __future__ import annotations

import ftplib
import hashlib
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ftpproxy.lab.peers import environment

PATIENCE = 30.0
SORRY = b"421 Service not available, closing control connection.\r\n"
CONTENT = bytes(range(256)) * 4096


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where an FTP server listens."""
    root = tmp_path_factory.mktemp("root")
    (root / "sample").write_bytes(CONTENT)
    argv = [sys.executable, "-m", "ftpproxy.lab.ftpd", "--root", str(root), "--listen", "127.0.0.1:0"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=environment()) as process:
        try:
            assert process.stdout is not None
            word, at = process.stdout.readline().split()
            assert word == "ready"
            yield at
        finally:
            process.kill()


def configuration(tmp_path: Path, server: str, *more: str) -> Path:
    file = tmp_path / "ftpproxy.toml"
    lines = [
        "[process]",
        'user = ""',
        "[[service]]",
        'name = "one"',
        'mode = "reverse"',
        'intercept = "none"',
        'listen = ["127.0.0.1:2"]',
        f'servers = ["{server}"]',
        *more,
    ]
    file.write_text("\n".join(lines) + "\n")
    return file


@contextmanager
def inetd(*argv: str, log: Path | None = None, **more: str) -> Iterator[tuple[socket.socket, subprocess.Popen[bytes]]]:
    """A client's connection, and the `ftpproxy ARGV` that was started for it: its descriptors 0 and 1, and without a
    `log` 2 as well, are the connection."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname(), PATIENCE) as client,
    ):
        accepted, _ = listener.accept()
        with accepted:
            process = started(*argv, on=accepted.fileno(), log=log, **more)
        with process:
            try:
                yield client, process
            finally:
                process.kill()


def started(*argv: str, on: int, log: Path | None = None, **more: str) -> subprocess.Popen[bytes]:
    with (log or Path(os.devnull)).open("wb") as stderr:
        return subprocess.Popen(
            [sys.executable, "-m", "ftpproxy", *argv],
            stdin=on,
            stdout=on,
            stderr=stderr if log else on,
            env={**environment(), **more},
        )


def everything(client: socket.socket) -> bytes:
    """What the client reads until the end."""
    octets = b""
    while piece := client.recv(4096):
        octets += piece
    return octets


def transfer(client: socket.socket) -> bytes:
    """Log in and fetch the sample over `client`, in passive mode and then in active mode, and quit."""
    ftp = ftplib.FTP(timeout=PATIENCE)
    ftp.sock, ftp.af, ftp.host = client, socket.AF_INET, "127.0.0.1"
    ftp.file = client.makefile("r", encoding="utf-8")
    ftp.welcome = ftp.getresp()
    ftp.login()
    for passive in (True, False):
        taken = io.BytesIO()
        ftp.set_pasv(passive)
        ftp.retrbinary("RETR sample", taken.write)
        assert hashlib.sha256(taken.getvalue()).digest() == hashlib.sha256(CONTENT).digest()
    ftp.sendcmd("QUIT")
    rest = everything(client)
    ftp.file.close()
    return rest


def test_a_whole_session_and_nothing_but_replies(server: str, tmp_path: Path) -> None:
    """Descriptor 2 is the client's connection: no line of the log gets there.  It ends with the session."""
    file = configuration(tmp_path, server)
    with inetd("serve", "--inetd", "-c", str(file)) as (client, process):
        assert transfer(client) == b""
        assert process.wait(PATIENCE) == 0


def test_by_flags(server: str) -> None:
    host, port = server.split(":")
    with inetd("--inetd", "-R", host, "-P", port) as (client, process):
        assert transfer(client) == b""
        assert process.wait(PATIENCE) == 0


def test_descriptor_2_stays_where_it_is_a_log(server: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    file = configuration(tmp_path, server)
    with inetd("serve", "--inetd", "-c", str(file), log=log) as (client, process):
        assert transfer(client) == b""
        assert process.wait(PATIENCE) == 0
    events = [line.split()[2] for line in log.read_text().splitlines()]
    assert events == ["session.open", "transfer", "transfer", "session.close"]
    assert f" session={process.pid} " in log.read_text()


@pytest.mark.linux("tests/elsewhere imports trio before it takes epoll away")
def test_nothing_is_imported_that_a_session_does_not_need(server: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    file = configuration(tmp_path, server)
    with inetd("serve", "--inetd", "-c", str(file), log=log, PYTHONPROFILEIMPORTTIME="1") as (client, process):
        transfer(client)
        process.wait(PATIENCE)
    lines = log.read_text().splitlines()
    imported = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    assert "ftpproxy.session" in imported
    roots = {name.partition(".")[0] for name in imported}
    assert not roots & {"trio", "pyroute2", "rich", "prometheus_client", "asyncio", "ssl", "subprocess", "pyftpdlib"}
    rooms = {"server", "service", "compose", "reception", "announce", "control", "exposition", "dtp.nft"}
    assert not imported & {f"ftpproxy.{room}" for room in rooms}


def test_sigterm_ends_the_session_with_a_word(server: str, tmp_path: Path) -> None:
    file = configuration(tmp_path, server)
    with inetd("serve", "--inetd", "-c", str(file)) as (client, process):
        assert client.recv(4096).startswith(b"220")
        process.send_signal(signal.SIGTERM)
        assert everything(client) == b"421 The service is shutting down.\r\n"
        assert process.wait(PATIENCE) == 0


@pytest.mark.parametrize(
    ("more", "answer", "code"),
    [
        (['clients = ["192.0.2.0/24"]'], b"421 You may not use this service.\r\n", 0),
        (["limit = 3"], SORRY, 78),
        (['proxy_protocol = ["127.0.0.1"]'], SORRY, 78),
        (['announce = { client = "interface:lo" }'], SORRY, 78),
    ],
)
def test_who_is_not_served_is_told_so(server: str, tmp_path: Path, more: list[str], answer: bytes, code: int) -> None:
    file = configuration(tmp_path, server, *more)
    log = tmp_path / "log"
    with inetd("serve", "--inetd", "-c", str(file), log=log) as (client, process):
        assert everything(client) == answer
        assert process.wait(PATIENCE) == code
    assert ("session.refused" if code == 0 else str(file)) in log.read_text()


@pytest.mark.linux("elsewhere pf would have to be asked")
def test_a_service_that_would_start_itself_again(tmp_path: Path) -> None:
    """A client that dials inetd's own address, although it is to be redirected there."""
    with inetd("--inetd", "-d") as (client, process):
        assert everything(client) == b"421 The way to that server leads back to this proxy.\r\n"
        assert process.wait(PATIENCE) == 0


def test_one_of_several_services(server: str, tmp_path: Path) -> None:
    file = configuration(tmp_path, server)
    other = file.read_text().partition("[[service]]")[2].replace('"one"', '"other"').replace(":2", ":3")
    file.write_text(f"{file.read_text()}\n[[service]]{other}")
    log = tmp_path / "log"
    for argv, code, said in (
        ((), 0, " service=one "),
        (("--service", "other"), 0, " service=other "),
        (("--service", "none"), 78, 'service: there is no "none" for --service; there are: one, other'),
    ):
        with inetd("serve", "--inetd", "-c", str(file), *argv, log=log) as (client, process):
            client.recv(4096)
            client.shutdown(socket.SHUT_WR)
            assert process.wait(PATIENCE) == code
        assert said in log.read_text()


def test_a_descriptor_that_is_no_client(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with socket.create_server(("127.0.0.1", 0)) as listener, Path(os.devnull).open("rb") as null:
        for file, said in (
            (listener, 'descriptor 0 listens; say "nowait"'),
            (null, "descriptor 0 is no TCP connection"),
        ):
            with started("--inetd", on=file.fileno(), log=log) as process:
                assert process.wait(PATIENCE) == 64
            assert log.read_text().startswith(f"ftpproxy: --inetd: {said}")


@pytest.mark.skipif(shutil.which("systemd-socket-activate") is None, reason="systemd is not installed")
def test_through_systemd_socket_activate(server: str, tmp_path: Path) -> None:
    file = configuration(tmp_path, server)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    argv = ["systemd-socket-activate", "--inetd", "--accept", f"--listen=127.0.0.1:{port}"]
    argv += [f"--setenv=PYTHONPATH={environment()['PYTHONPATH']}", sys.executable, "-m", "ftpproxy"]
    argv += ["serve", "--inetd", "-c", str(file)]
    with subprocess.Popen(argv, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + PATIENCE
            while True:
                try:
                    client = socket.create_connection(("127.0.0.1", port), PATIENCE)
                    break
                except ConnectionRefusedError:
                    assert time.monotonic() < deadline
                    time.sleep(0.01)
            with client:
                assert transfer(client) == b""
        finally:
            process.terminate()


def test_an_xferlog_that_is_a_link_is_said(server: str, tmp_path: Path) -> None:
    log, xferlog = tmp_path / "log", tmp_path / "xferlog"
    xferlog.symlink_to(tmp_path / "other")
    file = configuration(tmp_path, server, "[log]", f'xferlog = "{xferlog}"')
    with inetd("serve", "--inetd", "-c", str(file), log=log) as (client, process):
        assert everything(client) == SORRY
        assert process.wait(PATIENCE) == os.EX_UNAVAILABLE
    assert log.read_text().startswith(f"ftpproxy: log.xferlog: {xferlog}: it is a symbolic link, which is not followed")
