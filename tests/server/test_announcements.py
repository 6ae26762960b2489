"""A running `ftpproxy serve` in a namespace of its own: who is told which address, and for how long."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from threading import Timer

import pytest
from attrs import frozen

from ftpproxy.endpoints import Endpoint, Side
from ftpproxy.pi.policy import Policy, Timeouts
from ftpproxy.terms import Terms

from ..intercept.namespaces import WAIT, Namespace, accept, connect, listen

PROXY = Endpoint.parse("127.0.0.1:2121")
SERVER = Endpoint.parse("127.0.0.1:21")
DATA = Endpoint.parse("127.0.0.1:5000")
DATA_REPLY = "227 Entering Passive Mode (127,0,0,1,19,136)"

CONFIG = """
[[service]]
name = "test"
mode = "reverse"
listen = ["127.0.0.1:2121"]
servers = ["127.0.0.1:21"]
intercept = "none"
announce = { client = "file:PATH", server = "interface:wan" }
announce_refresh = "1s"

[[service.announce_to]]
clients = ["127.0.0.2"]
client = "10.0.0.1"

[[service.announce_to]]
clients = ["127.0.0.0/30"]
client = "own"

[service.policy]
require_login = false
"""


class Session:
    """Both ends of one control connection: we are the client and the server."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self._client, self._server = client, server
        self._lines = {end: end.makefile("rb") for end in (client, server)}
        server.sendall(b"220 ready\r\n")
        assert self._heard(client) == "220 ready"

    def _heard(self, end: socket.socket) -> str:
        return self._lines[end].readline().decode().removesuffix("\r\n")

    def passive(self) -> str:
        """The address in 227, as the client reads it."""
        self._client.sendall(b"PASV\r\n")
        assert self._heard(self._server) == "PASV"
        self._server.sendall(f"{DATA_REPLY}\r\n".encode())
        return self._host(self._heard(self._client), r"227 .*\(((?:\d+,){3}\d+),\d+,\d+\)\.?")

    def active(self) -> str:
        """The address in PORT, as the server reads it."""
        host = self._client.getsockname()[0].replace(".", ",")
        self._client.sendall(f"PORT {host},19,137\r\n".encode())
        told = self._host(self._heard(self._server), r"PORT ((?:\d+,){3}\d+),\d+,\d+")
        self._server.sendall(b"200 ok\r\n")
        assert self._heard(self._client) == "200 ok"
        return told

    @staticmethod
    def _host(line: str, pattern: str) -> str:
        found = re.fullmatch(pattern, line)
        assert found, line
        return found[1].replace(",", ".")

    def close(self) -> None:
        for end in (self._client, self._server):
            self._lines[end].close()
            end.close()


@frozen
class Stage:
    """The proxy, and the world around it."""

    namespace: Namespace
    path: Path
    proxy: subprocess.Popen[str]
    listener: socket.socket
    sessions: list[Session]

    def session(self, client: str) -> Session:
        """A new one, of a client at that address."""
        caller = connect(self.namespace, PROXY, ip_address(client))
        self.sessions.append(Session(caller, accept(self.listener)))
        return self.sessions[-1]

    def logs(self, pattern: str) -> None:
        """Read the log until a line matches."""
        assert self.proxy.stderr is not None
        overdue = Timer(WAIT, self.proxy.terminate)
        overdue.start()
        try:
            lines = []
            for line in self.proxy.stderr:
                lines.append(line)
                if re.search(pattern, line):
                    return
            raise AssertionError("".join(lines))
        finally:
            overdue.cancel()


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    try:
        namespace = Namespace()
    except PermissionError:
        pytest.skip("needs root, or unshare -Urnm")
    path, config = tmp_path / "address", tmp_path / "ftpproxy.toml"
    path.write_text("198.51.100.7\n2001:db8::7\n")
    config.write_text(CONFIG.replace("PATH", str(path)))
    namespace.ip(
        "link set lo up\nlink add wan type veth peer name far\nlink set far up\nlink set wan up\n"
        "addr add 203.0.113.7/24 dev wan\n"
    )
    server, data = listen(namespace, SERVER), listen(namespace, DATA)
    argv = [sys.executable, "-m", "ftpproxy", "serve", "-c", str(config)]
    with namespace.inside():
        proxy = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
    stage = Stage(namespace, path, proxy, server, [])
    try:
        stage.logs(" announce.changed source=file:")
        yield stage
    finally:
        for session in stage.sessions:
            session.close()
        proxy.send_signal(signal.SIGINT)
        proxy.communicate()
        server.close()
        data.close()
        namespace.close()
    assert proxy.returncode == 0


@pytest.mark.netns
def test_sessions_keep_what_they_were_told(stage: Stage) -> None:
    """Items 82, 83: the masquerade addresses, from a file and from an interface; new ones are for new sessions."""
    old = stage.session("127.0.0.9")
    assert (old.passive(), old.active()) == ("198.51.100.7", "203.0.113.7")
    stage.path.write_text("198.51.100.8\n")
    stage.logs(r"announce.changed source=file:\S+ announced=198.51.100.8")
    new = stage.session("127.0.0.9")
    assert (new.passive(), new.active()) == ("198.51.100.8", "203.0.113.7")
    stage.namespace.ip("addr del 203.0.113.7/24 dev wan\naddr add 203.0.113.8/24 dev wan\n")
    stage.logs("announce.changed source=interface:wan announced=203.0.113.8")
    newest = stage.session("127.0.0.9")
    assert (newest.passive(), newest.active()) == ("198.51.100.8", "203.0.113.8")
    assert (new.passive(), new.active()) == ("198.51.100.8", "203.0.113.7")
    assert (old.passive(), old.active()) == ("198.51.100.7", "203.0.113.7")


@pytest.mark.netns
def test_networks_are_told_addresses_of_their_own(stage: Stage) -> None:
    """Item 82: the first network that has the client decides."""
    told = {client: stage.session(client).passive() for client in ("127.0.0.2", "127.0.0.3", "127.0.0.9")}
    assert told == {"127.0.0.2": "10.0.0.1", "127.0.0.3": "127.0.0.1", "127.0.0.9": "198.51.100.7"}


@pytest.mark.netns
def test_a_source_that_fails_at_the_start_is_an_error_and_no_end(tmp_path: Path, stage: Stage) -> None:
    """Our own address meanwhile."""
    stage.proxy.send_signal(signal.SIGINT)
    stage.proxy.wait()
    stage.path.write_text("")
    with stage.namespace.inside():
        proxy = subprocess.Popen(stage.proxy.args, stderr=subprocess.PIPE, text=True)
    again = Stage(stage.namespace, stage.path, proxy, stage.listener, stage.sessions)
    try:
        again.logs(r' error announce.failed source=file:\S+ reason="it has no address" announced="our own address"')
        assert again.session("127.0.0.9").passive() == "127.0.0.1"
        stage.path.write_text("198.51.100.9\n")
        again.logs(r" info announce.changed source=file:\S+ announced=198.51.100.9")
        assert again.session("127.0.0.9").passive() == "198.51.100.9"
    finally:
        proxy.send_signal(signal.SIGINT)
        proxy.communicate()


def test_each_side_is_told_an_address_of_its_family() -> None:
    """Items 82, 83."""
    announce = {
        Side.CLIENT: [ip_address("2001:db8::7"), ip_address("2001:db8::8"), ip_address("198.51.100.7")],
        Side.SERVER: [ip_address("203.0.113.7")],
    }
    terms = Terms(service="test", policy=Policy(), timeouts=Timeouts(), planes=[], announce=announce)
    v4, v6 = ip_address("192.0.2.1"), ip_address("2001:db8::1")
    assert terms.announced(v4, v4) == {Side.CLIENT: announce[Side.CLIENT][2], Side.SERVER: announce[Side.SERVER][0]}
    assert terms.announced(v6, v6) == {Side.CLIENT: announce[Side.CLIENT][0]}
    assert terms.announced(v4, v6) == {Side.CLIENT: announce[Side.CLIENT][2]}
