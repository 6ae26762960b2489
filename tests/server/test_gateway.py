"""Gateway mode as a whole: the service in a process of its own, a real FTP server behind it, real clients."""

from __future__ import annotations

import ftplib
import io
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from attrs import define

from ftpproxy.passwords import BadUsersFile, Users, line_for

PATIENCE = 20.0
CONTENT = bytes(range(256)) * 1024


def free_port(host: str = "127.0.0.1") -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as sock:
        port: int = sock.getsockname()[1]
        return port


def answers(host: str, port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until something listens there."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        assert process.poll() is None, "it ended at once"
        try:
            socket.create_connection((host, port), timeout=1).close()
            return
        except OSError:
            select.select([], [], [], 0.05)
    raise AssertionError("nobody listens")


@define
class Place:
    """A gateway and a server."""

    port: int
    server: int
    files: Path

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.server}"

    def client(self, host: str = "127.0.0.1") -> ftplib.FTP:
        ftp = ftplib.FTP(timeout=PATIENCE)
        ftp.connect(host, self.port)
        return ftp


def transfers(ftp: ftplib.FTP) -> None:
    """A listing, a download and an upload, passive and active."""
    for passive in (True, False):
        ftp.set_pasv(passive)
        assert "file" in ftp.nlst()
        got = io.BytesIO()
        ftp.retrbinary("RETR file", got.write)
        assert got.getvalue() == CONTENT
        ftp.storbinary("STOR copy", io.BytesIO(CONTENT))
        assert ftp.size("copy") == len(CONTENT)


@contextmanager
def serving(host: str, files: Path) -> Iterator[int]:
    """pyftpdlib, in a process of its own; its port."""
    port = free_port(host)
    command = [sys.executable, "-m", "pyftpdlib", "-i", host, "-p", str(port), "-w", "-d", str(files)]
    process = subprocess.Popen(
        [*command, "-u", "joe@corp", "-P", "p@ss"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        answers(host, port, process)
        yield port
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def ftpd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    files = tmp_path_factory.mktemp("files")
    (files / "file").write_bytes(CONTENT)
    with serving("127.0.0.1", files) as port:
        yield Place(0, port, files)


@contextmanager
def gateway(directory: Path, server: Place, *, users: str = "", more: str = "") -> Iterator[Place]:
    """The gateway in a process of its own, before that server."""
    port = free_port()
    config = directory / "gateway.toml"
    config.write_text(f"""
[[service]]
name       = "gateway"
mode       = "gateway"
listen     = ["127.0.0.1:{port}", "[::1]:{port}"]
intercept  = "none"
data_ports = "20300-20399"
{more}
[service.gateway]
destinations = ["127.0.0.1:1024-65535", "[::1]:1024-65535", "*.invalid"]
hosts        = ["mirror={server.target}"]
users        = "{users}"
""")
    process = subprocess.Popen([sys.executable, "-m", "ftpproxy", "serve", "-c", str(config)], stderr=subprocess.PIPE)
    try:
        answers("127.0.0.1", port, process)
        yield Place(port, server.server, server.files)
    finally:
        process.send_signal(signal.SIGINT)
        _, log = process.communicate(timeout=PATIENCE)
        assert b"Traceback" not in log, log.decode()
        assert b"p@ss" not in log
        assert b"pp@1" not in log
    assert process.returncode == 0


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, ftpd: Place) -> Iterator[Place]:
    """A gateway that anybody may use."""
    with gateway(tmp_path_factory.mktemp("open"), ftpd) as place:
        yield place


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, ftpd: Place) -> Iterator[Place]:
    """A gateway with users of its own."""
    directory = tmp_path_factory.mktemp("guarded")
    users = directory / "users"
    users.write_text("# the proxy's users\n" + line_for("alice", "pp1") + "\n" + line_for("bob", "pp@1") + "\n")
    with gateway(directory, ftpd, users=str(users)) as place:
        yield place


def test_user_at_host(place: Place) -> None:
    """Item 144: USER a@b@host:port connects to that host and port as user a@b."""
    with place.client() as ftp:
        assert ftp.welcome == "220 FTP proxy ready."
        ftp.login(f"joe@corp@{place.target}", "p@ss")
        transfers(ftp)


def test_a_name_is_looked_up(place: Place) -> None:
    """Item 146: a name is called at those of its addresses that are listed."""
    with place.client() as ftp:
        ftp.login(f"joe@corp@localhost:{place.server}", "p@ss")
        transfers(ftp)


@pytest.mark.parametrize("client", ["127.0.0.1", "::1"])
def test_an_ipv6_server(place: Place, client: str) -> None:
    """Item 145: `USER u@[v6]:port`, for clients of either family."""
    with serving("::1", place.files) as port, place.client(client) as ftp:
        ftp.login(f"joe@corp@[::1]:{port}", "p@ss")
        transfers(ftp)


def test_an_ipv6_client(place: Place) -> None:
    """Item 145: an IPv6 client's data connections are of its own family, whatever the server's."""
    with place.client("::1") as ftp:
        ftp.login(f"joe@corp@{place.target}", "p@ss")
        transfers(ftp)


def test_the_server_is_told_who_called(tmp_path: Path, ftpd: Place) -> None:
    """Item 148: with `send_proxy` the header is the first that a server of the gateway hears."""
    with (
        gateway(tmp_path, ftpd, more='send_proxy = "v1"') as place,
        socket.create_server(("127.0.0.1", 0)) as listener,
        place.client() as ftp,
    ):
        assert ftp.sock is not None
        caller = ftp.sock.getsockname()[1]
        ftp.putcmd(f"USER joe@127.0.0.1:{listener.getsockname()[1]}")
        with listener.accept()[0] as server, server.makefile("rb") as words:
            assert words.readline() == f"PROXY TCP4 127.0.0.1 127.0.0.1 {caller} {place.port}\r\n".encode()
            server.sendall(b"220 ready\r\n")
            assert words.readline() == b"USER joe\r\n"


@pytest.mark.parametrize("verb", ["SITE", "OPEN"])
def test_site_and_open(place: Place, verb: str) -> None:
    """Item 147: the server's own greeting answers, plain USER and PASS follow."""
    with place.client() as ftp:
        assert ftp.sendcmd(f"{verb} {place.target}").startswith("220")
        ftp.login("joe@corp", "p@ss")
        transfers(ftp)


def test_host(place: Place) -> None:
    """Item 47: HOST chooses a mapped server."""
    with place.client() as ftp:
        assert ftp.sendcmd("HOST mirror").startswith("220")
        assert "UTF8" in ftp.sendcmd("FEAT")
        assert ftp.sendcmd("HOST mirror").startswith("220")
        with pytest.raises(ftplib.error_perm, match="504"):
            ftp.sendcmd("HOST other")
    with place.client() as ftp:
        ftp.login("joe@corp@mirror", "p@ss")
        transfers(ftp)


@pytest.mark.parametrize(
    ("style", "commands"),
    [
        ("proxy login first", ["USER bob", "PASS pp@1", "USER joe@corp@{}", "PASS p@ss"]),
        ("proxy login, SITE", ["USER bob", "PASS pp@1", "SITE {}", "USER joe@corp", "PASS p@ss"]),
        ("proxyuser@host", ["USER bob@{}", "PASS pp@1", "USER joe@corp", "PASS p@ss"]),
        ("user@host proxyuser", ["USER joe@corp@{} bob", "PASS p@ss", "ACCT pp@1"]),
        ("user@proxyuser@host", ["USER joe@corp@alice@{}", "PASS p@ss@pp1"]),
    ],
)
def test_logins_with_a_proxy_user(guarded: Place, style: str, commands: list[str]) -> None:
    """Item 147: every style that has a proxy user."""
    with guarded.client() as ftp:
        for command in commands:
            reply = ftp.sendcmd(command.format(guarded.target))
            assert reply[0] in "23", f"{style}: {command.partition(' ')[0]} {reply}"
        assert reply.startswith("230")
        transfers(ftp)


def test_wrong_proxy_password(guarded: Place) -> None:
    """Items 139, 146: no server for whom the proxy does not know, and five tries."""
    with guarded.client() as ftp:
        for attempt in range(5):
            assert ftp.sendcmd(f"USER bob@{guarded.target}").startswith("331")
            with pytest.raises(ftplib.Error, match="421" if attempt == 4 else "530"):
                ftp.sendcmd("PASS pp1")
    with guarded.client() as ftp, pytest.raises(ftplib.error_perm, match="530"):
        ftp.sendcmd(f"SITE {guarded.target}")


@pytest.mark.linux("all of 127/8 is loopback")
def test_destinations_outside_the_list(place: Place) -> None:
    """Item 146: 530, and nobody is called: the listener that is named has nothing to accept."""
    with socket.create_server(("127.0.0.2", 0)) as trap, place.client() as ftp:
        host, port = trap.getsockname()
        for name in (f"{host}:{port}", "x.invalid:22", f"[::1]:{port}", f"127.2:{port}"):
            with pytest.raises(ftplib.error_perm, match=r"530|501"):
                ftp.sendcmd(f"USER joe@{name}")
        assert select.select([trap], [], [], 0) == ([], [], [])


def test_the_proxy_itself(place: Place) -> None:
    """Items 143, 146: the proxy is no destination, whatever the list says."""
    with place.client() as ftp:
        with pytest.raises(ftplib.error_perm, match="530"):
            ftp.sendcmd(f"USER joe@127.0.0.1:{place.port}")
        with pytest.raises(ftplib.error_perm, match="530"):
            ftp.sendcmd(f"USER joe@localhost:{place.port}")


def test_a_client_may_try_again(place: Place) -> None:
    """Item 147: a server that is down, one that speaks no FTP; then the right one."""
    with socket.create_server(("127.0.0.1", 0)) as mute, place.client() as ftp:
        with pytest.raises(ftplib.error_perm, match="530 Cannot reach the server: Connection refused"):
            ftp.sendcmd(f"USER joe@127.0.0.1:{free_port()}")
        ftp.putcmd(f"USER joe@127.0.0.1:{mute.getsockname()[1]}")
        with mute.accept()[0] as odd:
            odd.sendall(b"SSH-2.0-odd\r\n")
            with pytest.raises(ftplib.error_perm, match="530 The server does not speak FTP"):
                ftp.getresp()
        ftp.login(f"joe@corp@{place.target}", "p@ss")
        transfers(ftp)


def test_another_server_is_another_connection(place: Place) -> None:
    """Item 144: the same host again is a new login there, another host 503."""
    with place.client() as ftp:
        ftp.login(f"joe@corp@{place.target}", "p@ss")
        with pytest.raises(ftplib.error_perm, match="503"):
            ftp.sendcmd("USER joe@127.0.0.9:21")
        ftp.login(f"joe@corp@{place.target}", "p@ss")
        transfers(ftp)


def test_everything_at_once(place: Place) -> None:
    """Items 1, 2, 144: a client that pipelines its whole login and more."""
    with socket.create_connection(("127.0.0.1", place.port), timeout=PATIENCE) as sock:
        sock.sendall(f"NOOP\r\nUSER joe@corp@{place.target}\r\nPASS p@ss\r\nSYST\r\nQUIT\r\n".encode())
        heard = b"".join(iter(lambda: sock.recv(4096), b""))
    assert [line[:4] for line in heard.splitlines()] == [b"220 ", b"200 ", b"331 ", b"230 ", b"215 ", b"221 "]


def test_curl(place: Place, tmp_path: Path) -> None:
    """Item 147: curl, whose user name holds the server."""
    for options in ([], ["--ftp-port", "-"]):
        url = f"ftp://joe%40corp%40127.0.0.1%3A{place.server}:p%40ss@127.0.0.1:{place.port}/file"
        command = ["curl", "-sS", "--max-time", "20", *options, url, "-o", str(tmp_path / "file")]
        subprocess.run(command, check=True)
        assert (tmp_path / "file").read_bytes() == CONTENT


def test_lftp(place: Place, tmp_path: Path) -> None:
    """Item 147: lftp through its own `ftp:proxy` setting, which says USER user@host."""
    script = (
        f"set net:max-retries 1; set net:timeout 10; set ftp:proxy ftp://127.0.0.1:{place.port}; "
        f"open -u joe@corp,p@ss ftp://{place.target}; get file -o {tmp_path / 'file'}"
    )
    subprocess.run(["lftp", "--norc", "-c", script], check=True, timeout=60)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_lftp_with_a_proxy_user(guarded: Place, tmp_path: Path) -> None:
    """Item 147: the same with a login to the proxy, by lftp's own choice of style."""
    script = (
        f"set net:max-retries 1; set net:timeout 10; set ftp:proxy ftp://alice:pp1@127.0.0.1:{guarded.port}; "
        f"open -u joe@corp,p@ss ftp://{guarded.target}; get file -o {tmp_path / 'file'}"
    )
    subprocess.run(["lftp", "--norc", "-c", script], check=True, timeout=60)
    assert (tmp_path / "file").read_bytes() == CONTENT


# The file of users


def test_the_users_file(tmp_path: Path) -> None:
    """Item 147: names and salted hashes; nothing else is taken for a user."""
    path = tmp_path / "users"
    path.write_text("\n# nobody\n" + line_for("alice", "päss") + "\n", "utf-8")
    users = Users.read(path)
    assert users.check(b"alice", "päss".encode())
    assert not users.check(b"alice", b"pass")
    assert not users.check(b"bob", "päss".encode())
    assert line_for("alice", "x") != line_for("alice", "x")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("alice:secret", "line 1: not NAME"),
        ("alice:scrypt:16384:8:1:c2FsdA==:!", "line 1: salt or hash"),
        ("alice:scrypt:16383:8:1:c2FsdA==:aGFzaGhhc2hoYXNoaGFzaA==", "line 1: impossible"),
        ("alice:scrypt:99999999:8:1:c2FsdA==:aGFzaGhhc2hoYXNoaGFzaA==", "line 1: impossible"),
        ("al@ice:scrypt:16384:8:1:c2FsdA==:aGFzaGhhc2hoYXNoaGFzaA==", "line 1: not NAME"),
    ],
)
def test_a_damaged_users_file(tmp_path: Path, line: str, why: str) -> None:
    """Item 147: the line is named, and nobody is let in by mistake."""
    path = tmp_path / "users"
    path.write_text(line)
    with pytest.raises(BadUsersFile, match=why):
        Users.read(path)


def test_a_users_file_that_would_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "users")
    with pytest.raises(BadUsersFile, match="users cannot be read: it is a FIFO, and no regular file"):
        Users.read(tmp_path / "users")


def test_a_missing_users_file_ends_the_start(tmp_path: Path, ftpd: Place) -> None:
    """Item 147: exit code 78 and the file's name."""
    with pytest.raises(AssertionError), gateway(tmp_path, ftpd, users="/nonexistent/users"):
        pass
    config = tmp_path / "gateway.toml"
    done = subprocess.run([sys.executable, "-m", "ftpproxy", "serve", "-c", str(config)], capture_output=True)
    assert (done.returncode, done.stderr) == (
        78,
        b"ftpproxy: /nonexistent/users cannot be read: No such file or directory\n",
    )


def test_a_line_for_the_file(tmp_path: Path) -> None:
    """Item 147: the documented command prints such a line."""
    done = subprocess.run(
        [sys.executable, "-m", "ftpproxy.passwords", "alice"], input=b"pp1\n", capture_output=True, check=True
    )
    path = tmp_path / "users"
    path.write_bytes(done.stdout)
    assert Users.read(path).check(b"alice", b"pp1")
