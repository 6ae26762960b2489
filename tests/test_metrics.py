"""Metrics: after a known load they equal what was done, and whoever asks for them gets them and nothing else."""

from __future__ import annotations

import ftplib
import io
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from ftpproxy.endpoints import Endpoint
from ftpproxy.exposition import Exposition, Present
from ftpproxy.lab.peers import environment
from ftpproxy.metrics import Counts, Histogram
from ftpproxy.paths import Await, Call, Direction, PathSpec, Tally
from ftpproxy.reasons import Code
from ftpproxy.scrape import AT_ONCE, LONGEST, CannotServe, Scrape

SECONDS = 20
LOOPBACK = Endpoint.parse("127.0.0.1:0")
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def of(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return f"ftpproxy_{name}", frozenset(labels.items())


def samples(text: str) -> Samples:
    """Every sample by its name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scraped(place: Endpoint | str) -> str:
    """As Prometheus gets it."""
    kind = socket.AF_UNIX if isinstance(place, str) else socket.AF_INET
    with socket.socket(kind, socket.SOCK_STREAM) as sock:
        sock.settimeout(SECONDS)
        sock.connect(place if isinstance(place, str) else place.sockaddr())
        sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: gateway\r\nAccept: text/plain\r\n\r\n")
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 200 OK\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    return body.decode()


# Truth


@pytest.fixture
def children() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def start(*argv: str, **options: object) -> subprocess.Popen[str]:
        child = subprocess.Popen([sys.executable, "-m", *argv], text=True, env=environment(), **options)  # type: ignore[call-overload]
        started.append(child)
        return child  # type: ignore[no-any-return]

    yield start
    for child in started:
        child.kill()
        child.wait()
        for stream in (child.stdout, child.stderr):
            if stream is not None:
                stream.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


CONFIG = """
[process]
user = ""
[metrics]
listen = "{metrics}"
[[service]]
name = "truth"
mode = "reverse"
listen = ["{at}"]
intercept = "none"
servers = ["{origin}"]
planes = ["relay"]
data_ports = "21000-21999"
policy = {{ deny = ["SITE CHMOD"] }}
limits = {{ per_client = 3 }}
"""
SIZE = 300_000


class Service:
    """A proxy with metrics before a real server, and its log."""

    def __init__(self, start: Callable[..., subprocess.Popen[str]], folder: Path) -> None:
        (folder / "root").mkdir()
        (folder / "root" / "sample").write_bytes(b"x" * SIZE)
        origin = start("ftpproxy.lab.ftpd", "--root", str(folder / "root"), "--listen", "127.0.0.1:0", stdout=-1)
        assert origin.stdout is not None
        self.at = Endpoint.parse(f"127.0.0.1:{free_port()}")
        self.place = str(folder / "metrics")
        file = folder / "ftpproxy.toml"
        file.write_text(
            CONFIG.format(metrics=f"unix:{self.place}", at=self.at, origin=origin.stdout.readline().split()[1])
        )
        self._log = folder / "log"
        with self._log.open("w") as stream:
            self.process = start("ftpproxy", "serve", "-c", str(file), stderr=stream)
        self.until(lambda: " info ready " in self.log)

    @property
    def log(self) -> str:
        return self._log.read_text()

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.01)

    def metrics(self) -> Samples:
        return {key: value for key, value in samples(scraped(self.place)).items() if key[0].startswith("ftpproxy_")}

    def client(self, *, passive: bool = True, login: bool = True) -> ftplib.FTP:
        ftp = ftplib.FTP(timeout=SECONDS)
        ftp.connect(*self.at.sockaddr()[:2])
        ftp.set_pasv(passive)
        if login:
            ftp.login("lab", "lab")
        return ftp


@pytest.mark.linux("all of 127/8 is loopback")
def test_the_counters_equal_what_was_done(children: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    """A real server and real clients through the relay."""
    service = Service(children, tmp_path)
    nothing = service.metrics()
    assert [nothing.pop(key) for key in list(nothing) if key[0] == "ftpproxy_build_info"] == [1]
    assert not any(nothing.values())

    failing = service.client(login=False)
    failing.sendcmd("USER lab")
    failing.putcmd("PASS wrong")  # which the server takes its time to refuse

    passive = service.client()
    for _ in range(3):
        passive.retrbinary("RETR sample", lambda _: None)
    listed: list[str] = []
    passive.retrlines("NLST", listed.append)
    with pytest.raises(ftplib.error_perm, match="550"):
        passive.retrbinary("RETR missing", lambda _: None)

    active = service.client(passive=False)
    active.storbinary("STOR stored", io.BytesIO(b"y" * 12345))
    for refused in ("SITE CHMOD 777 x", "SITE CHMOD 600 y", "SITE EXEC x"):
        with pytest.raises(ftplib.error_perm, match="502"):
            active.sendcmd(refused)
    with pytest.raises(ftplib.error_perm, match="504"):
        active.sendcmd("PORT 127,0,0,1,0,80")

    for _ in range(2):
        with socket.create_connection(service.at.sockaddr()) as sock:
            assert sock.recv(100).startswith(b"421 Too many sessions from your address.")
    assert service.metrics()[of("sessions_open", service="truth")] == 3
    passive.quit()
    active.quit()
    with pytest.raises(ftplib.error_perm, match="530"):
        failing.getresp()
    failing.close()
    service.until(lambda: service.log.count(" session.close ") == 3)

    watched = service.client()
    place = ftplib.parse227(watched.sendcmd("PASV"))
    with socket.create_connection(place, source_address=("127.0.0.2", 0)) as stranger:
        stranger.settimeout(SECONDS)
        with pytest.raises(ConnectionResetError):
            stranger.recv(1)
    watched.quit()
    service.until(lambda: service.log.count(" session.close ") == 4)

    found = service.metrics()
    here, both = {"service": "truth"}, {"client": "passive", "server": "passive"}
    relay = {**here, "plane": "relay"}
    expected: Samples = {
        of("sessions_open", **here): 0,
        of("sessions_total", **here, code="quit"): 3,
        of("sessions_total", **here, code="client.closed"): 1,
        of("refused_total", **here, code="limit.per_client"): 2,
        of("denials_total", **here, rule="deny: SITE CHMOD"): 2,
        of("denials_total", **here, rule="default"): 1,
        of("denials_total", **here, rule="min_data_port"): 1,
        of("failed_logins_total", **here, code="server.denied"): 1,
        of("transfers_total", **relay, **both, direction="down", outcome="complete"): 4,
        of("transfers_total", **relay, **both, direction="down", outcome="server.denied"): 1,
        of("transfers_total", **relay, client="active", server="active", direction="up", outcome="complete"): 1,
        of("data_bytes_total", **relay, direction="down"): 3 * SIZE + sum(len(name) + 2 for name in listed),
        of("data_bytes_total", **relay, direction="up"): 12345,
        of("data_failures_total", **relay, code="data.unasked"): 1,
        of("strangers_total"): 1,
        of("paths", **relay): 0,
        of("rules"): 0,
        of("log_suppressed_lines_total"): 0,
        of("log_lost_lines_total"): 0,
        of("transfer_duration_seconds_count", plane="relay", direction="down"): 5,
        of("transfer_duration_seconds_count", plane="relay", direction="up"): 1,
        of("data_setup_seconds_count", plane="relay"): 6,
    }
    others = ("_bucket", "_sum", "_info")
    assert {key: value for key, value in found.items() if not key[0].endswith(others)} == expected
    infinite = of("transfer_duration_seconds_bucket", plane="relay", direction="down", le="+Inf")
    assert found[infinite] == 5
    assert not re.search(r"127\.0\.0\.|\blab\b|sample", scraped(service.place))

    codes = set(re.findall(r" code=(\S+)", service.log))
    assert codes <= {code.value for code in Code}, "the list is closed"
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(SECONDS) == 0
    assert not Path(service.place).exists()


# Form


def everything() -> str:
    """A text with every metric."""
    counts = Counts()
    at = Endpoint.parse("192.0.2.1:1")
    counts.transfer("lan", PathSpec(Await(at, at.host), Call(at, at)), "relay", Direction.DOWN, Tally(3, 4, 5.0), None)
    counts.sessions["lan", Code.QUIT] += 1
    counts.refused["lan", Code.LOOP] += 1
    counts.denials["lan", 'commands: "x"\n'] += 1
    counts.failed_logins["lan", Code.SERVER_DENIED] += 1
    counts.data_failures["lan", "relay", Code.DATA_MISSING] += 1
    counts.fallbacks["lan", "nft", Code.PLANE_PORTS] += 1
    counts.set_ups["relay"].observe(0.2)
    present = Present(sessions=lambda: {"lan": 1}, paths=lambda: {("lan", "relay"): 2}, elements=lambda: 3)
    return Exposition(counts, present).text().decode()


@pytest.mark.linux("/proc, where the client library finds process_*")
def test_the_text_is_what_prometheus_reads() -> None:
    """Names, units and types by its conventions; a label value may hold anything."""
    families = list(text_string_to_metric_families(everything()))
    assert len({family.name for family in families}) == len(families)
    for family in families:
        assert family.documentation
        assert family.type in ("counter", "gauge", "histogram")
        if family.name.startswith("ftpproxy_"):
            assert family.samples, family.name
            assert family.name.endswith("_seconds") == (family.type == "histogram")
            labels = {label for sample in family.samples for label in sample.labels}
            assert labels <= {
                *("service", "code", "rule", "plane", "direction", "outcome", "client", "server"),
                *("le", "version", "python"),
            }
    names = {family.name for family in families}
    assert {"process_open_fds", "process_resident_memory_bytes", "process_cpu_seconds"} <= names


@given(st.lists(st.floats(0, 1e6)))
def test_a_histogram_counts_every_value_once(values: list[float]) -> None:
    histogram = Histogram((1.0, 10.0, 100.0))
    for value in values:
        histogram.observe(value)
    assert histogram.counts == [
        sum(value <= 1 for value in values),
        sum(1 < value <= 10 for value in values),
        sum(10 < value <= 100 for value in values),
        sum(value > 100 for value in values),
    ]
    assert histogram.total == pytest.approx(sum(values))


# The responder


async def ask(scrape: Scrape, request: bytes) -> bytes:
    at = scrape.at
    stream: trio.SocketStream = (
        await trio.open_unix_socket(at) if isinstance(at, str) else await trio.open_tcp_stream(*at.sockaddr()[:2])
    )
    async with stream:
        await stream.send_all(request)
        answer = b""
        while octets := await stream.receive_some(65536):
            answer += octets
        return answer


async def test_it_answers_get_metrics_and_nothing_else() -> None:
    scrape = Scrape(LOOPBACK, lambda: b"text\n")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scrape.run)
        answer = await ask(scrape, b"GET /metrics HTTP/1.0\r\n\r\n")
        assert answer.startswith(b"HTTP/1.0 200 OK\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n")
        assert answer.endswith(b"\r\n\r\ntext\n")
        assert (await ask(scrape, b"GET /metrics?x=1 HTTP/1.1\r\nHost: a\r\n\r\n")).endswith(b"\r\n\r\ntext\n")
        assert (await ask(scrape, b"HEAD /metrics HTTP/1.1\r\n\r\n")).endswith(b"\r\n\r\n")
        assert (await ask(scrape, b"GET / HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.0 404 ")
        assert (await ask(scrape, b"POST /metrics HTTP/1.1\r\nContent-Length: 1\r\n\r\nx")).startswith(b"HTTP/1.0 405 ")
        for nonsense in (b"\x16\x03\x01\r\n\r\n", b"GET\r\n\r\n", b"USER joe\r\n\r\n", b"\r\n\r\n"):
            assert (await ask(scrape, nonsense)).startswith(b"HTTP/1.0 400 ")
        nursery.cancel_scope.cancel()
    scrape.close()


async def test_a_request_is_bounded() -> None:
    """Too long, and too slow: no answer, and others are served meanwhile."""
    scrape = Scrape(LOOPBACK, lambda: b"text\n", seconds=0.2)
    at = scrape.at
    assert isinstance(at, Endpoint)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scrape.run)
        try:
            assert await ask(scrape, b"GET /metrics HTTP/1.1\r\nX: " + b"x" * LONGEST) == b""
        except trio.BrokenResourceError:
            pass  # a reset is as good
        slow = await trio.open_tcp_stream(*at.sockaddr()[:2])
        await slow.send_all(b"GET /metrics")
        assert (await ask(scrape, b"GET /metrics HTTP/1.0\r\n\r\n")).endswith(b"text\n")
        with trio.fail_after(SECONDS):
            assert await slow.receive_some() == b""
        await slow.aclose()
        nursery.cancel_scope.cancel()
    scrape.close()


async def test_nobody_keeps_others_out() -> None:
    """When all places are taken, the oldest goes, said or unsaid."""
    scrape = Scrape(LOOPBACK, lambda: b"text\n", seconds=600)
    at = scrape.at
    assert isinstance(at, Endpoint)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scrape.run)
        with trio.fail_after(SECONDS):
            silent = [await trio.open_tcp_stream(*at.sockaddr()[:2]) for _ in range(AT_ONCE)]
            assert (await ask(scrape, b"GET /metrics HTTP/1.0\r\n\r\n")).endswith(b"text\n")
            assert await silent[0].receive_some() == b""
            await silent[1].send_all(b"GET /metrics HTTP/1.0\r\n\r\n")
            assert (await silent[1].receive_some()).startswith(b"HTTP/1.0 200 OK")
        for each in silent:
            await trio.aclose_forcefully(each)
        nursery.cancel_scope.cancel()
    scrape.close()


async def test_a_text_that_cannot_be_made(caplog: pytest.LogCaptureFixture) -> None:
    """It is a bug, and ends nothing but that answer."""
    texts = iter([b"text\n"])
    scrape = Scrape(Endpoint.parse("127.0.0.1:0"), lambda: next(texts))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scrape.run)
        assert (await ask(scrape, b"GET /metrics HTTP/1.0\r\n\r\n")).endswith(b"\r\n\r\ntext\n")
        for _ in range(2):
            assert await ask(scrape, b"GET /metrics HTTP/1.0\r\n\r\n") == b""
        nursery.cancel_scope.cancel()
    scrape.close()
    assert [record.msg for record in caplog.records] == ["internal.error"] * 2


async def test_a_unix_socket(tmp_path: Path) -> None:
    """What a dead process left there is replaced; where somebody lives, and where a file is, nothing is touched."""
    path = str(tmp_path / "metrics")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(path)
        dead.listen()
    scrape = Scrape(path, lambda: b"text\n")
    with pytest.raises(CannotServe, match="in use"):
        Scrape(path, lambda: b"")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scrape.run)
        assert (await ask(scrape, b"GET /metrics HTTP/1.0\r\n\r\n")).endswith(b"text\n")
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o666
        nursery.cancel_scope.cancel()
    scrape.close()
    assert not await trio.Path(path).exists()


def test_a_file_in_its_place(tmp_path: Path) -> None:
    file = tmp_path / "metrics"
    file.write_text("mine")
    with pytest.raises(CannotServe, match="in use"):
        Scrape(str(file), lambda: b"")
    assert file.read_text() == "mine"


def test_an_address_that_is_not_ours() -> None:
    with pytest.raises(CannotServe, match=r"metrics\.listen: 192\.0\.2\.1:9921: Cannot assign"):
        Scrape(Endpoint.parse("192.0.2.1:9921"), lambda: b"")
