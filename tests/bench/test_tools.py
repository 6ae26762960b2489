"""The two C programs of the benchmark: they compile, count right, and the server is a real FTP server."""

from __future__ import annotations

import ftplib
import hashlib
import io
import json
import os
import random
import subprocess
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from bench.proxy import configuration
from bench.summary import summary
from bench.tools import BenchError, build
from bench.turns import interval

pytestmark = pytest.mark.linux("epoll(7), of which the two programs are made")

PATTERN = bytes((i ^ i >> 8 ^ i >> 16) & 255 for i in range(1 << 20))


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("programs")
    return {name: build(name, folder) for name in ("load", "server", "turns")}


@contextmanager
def server(programs: dict[str, Path], *options: str) -> Iterator[int]:
    process = subprocess.Popen([programs["server"], "-n", "32", *options], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline().removeprefix("listening on "))
        assert process.poll() is None, "the server died"
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def port(programs: dict[str, Path]) -> Iterator[int]:
    with server(programs) as port:
        yield port


def load(programs: dict[str, Path], *arguments: object) -> dict[str, Any]:
    done = subprocess.run(
        [programs["load"], *map(str, arguments)], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr == ""
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@contextmanager
def client(host: str, port: int, *, passive: bool) -> Iterator[ftplib.FTP]:
    with ftplib.FTP(timeout=20) as ftp:
        ftp.connect(host, port)
        ftp.login()
        ftp.set_pasv(passive)
        yield ftp


def test_what_does_not_compile_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.c").write_text("int main(void) { return nonsense; }\n")
    monkeypatch.setattr("bench.tools.SOURCES", tmp_path)
    with pytest.raises(BenchError, match="nonsense"):
        build("broken", tmp_path)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("clients", [1, 16])
def test_sessions_are_counted(programs: dict[str, Path], port: int, host: str, clients: int) -> None:
    report = load(programs, "-a", host, "-p", port, "-j", clients, "-n", 100, "-g", "/1k", "-w", 1024)
    assert (report["sessions"], report["errors"], report["octets"]) == (100, 0, 100 * 1024)
    assert 0 < report["latency_ms"]["p50"] <= report["latency_ms"]["p99"] <= report["latency_ms"]["max"]
    assert report["seen_as"] == host


def test_sources_are_used(programs: dict[str, Path], port: int) -> None:
    report = load(programs, "-a", "127.0.0.1", "-p", port, "-s", "127.0.0.7", "-n", 3, "-g", "/0", "-w", 0)
    assert (report["sessions"], report["seen_as"]) == (3, "127.0.0.7")


@pytest.mark.parametrize("what", [["-g", "/1k", "-w", "1024"], ["-u", "1024"]])
def test_a_session_may_have_many_transfers(programs: dict[str, Path], port: int, what: list[str]) -> None:
    report = load(programs, "-a", "127.0.0.1", "-p", port, "-j", 2, "-n", 4, "-r", 5, *what)
    assert (report["sessions"], report["octets"], report["setup_ms"]["count"]) == (4, 4 * 5 * 1024, 4 * 5)
    assert 0 < report["setup_ms"]["p50"] <= report["setup_ms"]["p90"] < report["latency_ms"]["max"]


@pytest.mark.parametrize("option", [[], ["-c"]])
def test_uploads_are_counted_by_the_server(programs: dict[str, Path], option: list[str]) -> None:
    size = (3 << 20) + 17
    with server(programs, *option) as port:
        report = load(programs, "-a", "127.0.0.1", "-p", port, "-j", 2, "-n", 4, "-u", size, *option)
    assert (report["sessions"], report["octets"]) == (4, 4 * size)


def turns(programs: dict[str, Path], *arguments: object) -> list[dict[str, Any]]:
    done = subprocess.run([programs["turns"], *map(str, arguments)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    said: list[dict[str, Any]] = json.loads(done.stdout)
    return said


@pytest.mark.parametrize("option", ["-g", "-u"])
@pytest.mark.parametrize("size", [1000, (1 << 20) + 1])
def test_ways_take_turns_with_slices(programs: dict[str, Path], port: int, option: str, size: int) -> None:
    ways = [f"127.0.0.{last},127.0.0.1,{port}" for last in (7, 8, 9)]
    said = turns(programs, "-r", 2, "-k", 3, option, size, "-c", *ways)
    assert [way["seen_as"] for way in said] == ["127.0.0.7", "127.0.0.8", "127.0.0.9"]
    assert all(len(way["took_ns"]) == 2 for way in said)
    assert all(len(each) == 3 and min(each) > 0 for way in said for each in way["took_ns"])


def test_slices_are_the_pattern(port: int) -> None:
    with client("127.0.0.1", port, passive=True) as ftp:
        with ftp.transfercmd("RETR slices-of-3000") as data:
            got = b""
            for number in range(1, 4):
                data.sendall(b".")
                while len(got) < number * 3000:
                    got += data.recv(10_000)
        assert got == PATTERN[:9000]
        assert ftp.voidresp() == "226 Sent 9000 octets."
        with ftp.transfercmd("STOR slices-of-3000") as data:
            for _ in range(3):
                data.sendall(bytes(3000))
                assert len(data.recv(10)) == 1
        assert ftp.voidresp() == "226 Received 9000 octets."


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: raw sockets, TCP_REPAIR, setns")
@pytest.mark.parametrize("option", ["-f", "-b", "-d"])
def test_ways_take_turns_with_packets(programs: dict[str, Path], option: str) -> None:
    with server(programs) as port:
        ways = [f"127.0.0.{last},127.0.0.1,{port}" for last in (7, 8)]
        said = turns(programs, "-r", 3, "-k", 2, option, 500, "-n", "/proc/self/ns/net", *ways)
    assert [way["seen_as"] for way in said] == ["127.0.0.7", "127.0.0.8"]
    assert all(min(each) > 0 for way in said for each in way["took_ns"])


def test_an_interval_holds_what_is_true() -> None:
    chance = random.Random(2)
    rounds = [
        [chance.gauss(0.98 + luck, 0.05) for _ in range(20)] for luck in (chance.gauss(0, 0.01) for _ in range(80))
    ]
    low, high = interval(rounds)
    assert low < 0.98 < high
    assert high - low < 0.02


def test_a_file_of_another_size_is_an_error(programs: dict[str, Path], port: int) -> None:
    arguments = ["-a", "127.0.0.1", "-p", str(port), "-n", "2", "-g", "/1023", "-w", "1024"]
    done = subprocess.run([programs["load"], *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert json.loads(done.stdout)["errors"] == 2
    assert "another size" in done.stderr


def test_nobody_there_is_an_error(programs: dict[str, Path]) -> None:
    with server(programs) as port:
        pass
    arguments = ["-a", "127.0.0.1", "-p", str(port), "-t", "60", "-j", "8", "-g", "/1k"]
    done = subprocess.run([programs["load"], *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "Connection refused" in done.stderr


def test_idle_sessions_are_held_until_told(programs: dict[str, Path], port: int) -> None:
    command = [str(programs["load"]), "-a", "127.0.0.1", "-p", str(port), "-i", "50"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as held:
        assert held.stdout is not None
        assert held.stdout.readline() == "ready\n"
        assert held.poll() is None
        held.communicate()
    assert held.returncode == 0


@pytest.mark.parametrize("passive", [True, False], ids=["passive", "active"])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("size", [0, 1, 1024, (2 << 20) + 4321])
def test_downloads_are_the_pattern(port: int, host: str, size: int, passive: bool) -> None:
    with client(host, port, passive=passive) as ftp:
        for _ in range(2):
            digest = hashlib.sha256()
            assert ftp.retrbinary(f"RETR /{size}", digest.update) == f"226 Sent {size} octets."
            assert digest.digest() == hashlib.sha256((PATTERN * 3)[:size]).digest()
        ftp.quit()


@pytest.mark.parametrize("passive", [True, False], ids=["passive", "active"])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_uploads_are_counted(port: int, host: str, passive: bool) -> None:
    with client(host, port, passive=passive) as ftp:
        for size in (0, 1, 3_000_000):
            assert ftp.storbinary("STOR x", io.BytesIO(bytes(size))) == f"226 Received {size} octets."


def test_names_are_sizes(port: int) -> None:
    with client("127.0.0.1", port, passive=True) as ftp:
        for name, size in (("/1k", 1 << 10), ("3K", 3 << 10), ("/2m", 2 << 20)):
            assert ftp.retrbinary(f"RETR {name}", lambda _: None) == f"226 Sent {size} octets."
        with pytest.raises(ftplib.error_perm, match="550"):
            ftp.retrbinary("RETR /etc/passwd", lambda _: None)


def test_small_commands(port: int) -> None:
    with client("127.0.0.1", port, passive=True) as ftp:
        assert "EPSV" in ftp.sendcmd("FEAT")
        assert ftp.sendcmd("SYST").startswith("215")
        assert ftp.sendcmd("noop").startswith("200")
        assert ftp.sendcmd("TYPE I").startswith("200")
        with pytest.raises(ftplib.error_perm, match="502"):
            ftp.sendcmd("SITE HELP")
        with pytest.raises(ftplib.error_temp, match="425"):
            ftp.sendcmd("RETR /1")
        for nonsense in (
            "PORT 1,2,3",
            "PORT 127,0,0,1,256,1",
            "PORT 192,0,2,1,40,1",
            "EPRT |1|192.0.2.1|2000|",
            "EPRT",
        ):
            with pytest.raises(ftplib.error_perm, match="501"):
                ftp.sendcmd(nonsense)


def test_a_client_that_leaves_does_no_harm(port: int) -> None:
    for _ in range(40):  # more than there are listeners
        with client("127.0.0.1", port, passive=True) as ftp:
            ftp.sendcmd("PASV")
            ftp.close()
    with client("127.0.0.1", port, passive=True) as ftp:
        data, _ = ftp.ntransfercmd("RETR /1g")
        data.recv(1000)
        data.close()
        with pytest.raises(ftplib.error_temp, match="426"):
            ftp.voidresp()
        assert ftp.retrbinary("RETR /1k", lambda _: None).startswith("226")


def test_the_configuration_has_a_service_for_each_way() -> None:
    services = tomllib.loads(configuration(["tproxy", "redirect", "none"]))["service"]
    assert [service["intercept"] for service in services] == ["tproxy", "redirect", "none"]
    assert {tuple(service["planes"]) for service in services} == {("relay",)}
    assert len({service["listen"][0] for service in services}) == 3
    assert tomllib.loads(configuration(["kernel"]))["service"][0]["planes"] == ["nft"]
    assert all(ip_address(service["clients"][0].removesuffix("/32")) for service in services)


def test_the_summary_has_a_column_for_each_way() -> None:
    direct = {"per_second": 6000.0, "p50_ms": 1.5}
    proxied = {"per_second": 3000.0, "p50_ms": 3.0, "proxy_cpu_ms_per_session": 0.25, "ratio": 0.5}
    memory = {"way": "none", "kib_per_idle_session": 1.5}
    text = summary({"sessions": {"16": {"direct": direct, "none": proxied}}, "memory": memory}, ["direct", "none"])
    assert [line.split() for line in text.splitlines()] == [
        ["direct", "none"],
        ["16", "clients", "sessions/s", "6000", "3000", "(0.50)"],
        ["16", "clients", "p50", "ms", "1.50", "3.00"],
        ["16", "clients", "proxy", "CPU", "ms/session", "0.25"],
        ["memory", "of", "an", "idle", "session", "(none):", "1.5", "KiB"],
    ]


def test_the_summary_says_between_what_a_ratio_lies() -> None:
    compared = {"plain": {"mb_per_second": 2000.0}, "kernel": {"ratio": 0.991, "interval": [0.985, 0.997]}}
    target = {"at_least": 0.98, "found": 0.991, "interval": [0.985, 0.997], "met": True, "where": "own_core"}
    kernel = {"throughput": {"own_core": {"RETR": compared}}, "targets": {"throughput_ratio": target}}
    assert summary({"kernel": kernel}, ["direct"]).splitlines() == [
        "RETR, own core, ratio to a plain gateway: kernel 0.991 [0.985, 0.997]",
        "kernel plane, throughput_ratio: 0.991 [0.985, 0.997] (at least 0.98: met)",
    ]
