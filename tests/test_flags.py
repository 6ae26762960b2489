"""ftp-proxy(8)'s line: each flag, its long form and its key in a file say the same, in whatever way it is written."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from ipaddress import ip_address
from pathlib import Path

import pytest

from ftpproxy.cli import _parser
from ftpproxy.cli.flags import flags_of
from ftpproxy.config import Config, load, parse, show
from ftpproxy.dropin import NO_IDLE_LIMIT, BadFlag, CannotResolve, Flags, configuration, ignored
from ftpproxy.table import may_load

ROOT = Path(__file__).parent.parent

PLANES = '["nft", "relay"]' if may_load() else '["relay"]' if sys.platform == "linux" else '["pf", "relay"]'
PLAIN = {
    "name": '"ftp-proxy"',
    "mode": '"forward"',
    "intercept": '"auto"',
    "listen": '["127.0.0.1:8021"]',
    "planes": PLANES,
    "limits.sessions": "100",
    "limits.per_client": "1_000_000",
    "limits.idle": '"24h"',
    "policy.port_address": '"override"',
    "policy.greeting": '"lenient"',
    "log.level": '"notice"',
    "log.format": '"classic-syslog"',
}
"""A line without any flag, as a file."""
BSD = {**PLAIN, "planes": '["pf", "relay"]'}
REVERSE = {"mode": '"reverse"', "servers": '["192.0.2.7:21"]'}

CASES: list[tuple[str, str, dict[str, str]]] = [
    ("", "", {}),
    ("-6", "--ipv6", {"listen": '["[::1]:8021"]'}),
    ("-A", "--anonymous-only", {"policy.anonymous_only": "true", "tls.mode": '"refuse"'}),
    ("-a 192.0.2.1", "--source 192.0.2.1", {"source": '"192.0.2.1"'}),
    ("-b 192.0.2.1", "--listen 192.0.2.1", {"listen": '["192.0.2.1:8021"]'}),
    (
        "-b 127.0.0.1 -b ::1",
        "--listen 127.0.0.1 --listen ::1",
        {"listen": '["127.0.0.1:8021", "[::1]:8021"]'},
    ),
    *(
        (f"-D {number}", f"--debug-level {number}", {"log.level": f'"{level}"'})
        for number, level in enumerate(
            ("critical", "critical", "critical", "error", "warning", "notice", "info", "debug")
        )
    ),
    ("-d", "--foreground", {"log.format": '"classic"'}),
    ("-m 1", "--max-sessions 1", {"limits.sessions": "1"}),
    ("-m 5000", "--max-sessions 5000", {"limits.sessions": "5000"}),
    ("-P 2121", "--server-port 2121", {}),
    ("-R 192.0.2.7 -P 2121", "--server 192.0.2.7 --server-port 2121", {**REVERSE, "servers": '["192.0.2.7:2121"]'}),
    ("-p 21", "--port 21", {"listen": '["127.0.0.1:21"]'}),
    ("-R 192.0.2.7", "--server 192.0.2.7", REVERSE),
    (
        "-6 -R 2001:db8::7",
        "--ipv6 --server 2001:db8::7",
        {"mode": '"reverse"', "servers": '["[2001:db8::7]:21"]', "listen": '["[::1]:8021"]'},
    ),
    (
        "-b 127.0.0.1 -b ::1 -R 192.0.2.7 -R 2001:db8::7",
        "--listen 127.0.0.1 --listen ::1 --server 192.0.2.7 --server 2001:db8::7",
        {
            "mode": '"reverse"',
            "servers": '["192.0.2.7:21", "[2001:db8::7]:21"]',
            "listen": '["127.0.0.1:8021", "[::1]:8021"]',
        },
    ),
    ("-r", "--active-port-20", {"active_source_port": "20"}),
    ("-t 600", "--timeout 600", {"limits.idle": '"10m"'}),
    ("-t 0", "--timeout 0", {"limits.idle": '"8760h"'}),
]
OF_PF = [
    ("-q ftp", "--queue ftp", {"pf.queue": '"ftp"'}),
    ("-T ftp", "--tag ftp", {"pf.tag": '"ftp"'}),
    ("-v", "--verbose", {"pf.log": "1"}),
    ("-vv", "--verbose --verbose", {"pf.log": "2"}),
]


def file(keys: dict[str, str]) -> str:
    log = {key: value for key, value in keys.items() if key.startswith("log.")}
    service = {key: value for key, value in keys.items() if key not in log}
    lines = [f"{key} = {value}" for key, value in log.items()] + ["[[service]]"]
    return "\n".join(lines + [f"{key} = {value}" for key, value in service.items()])


def by_flags(line: str, platform: str = sys.platform) -> Config:
    return configuration(flags_of(_parser().parse_args(shlex.split(line))), platform)


@pytest.mark.parametrize(("short", "long", "keys"), CASES, ids=[case[0] or "-" for case in CASES])
def test_flag_long_form_and_key_say_the_same(short: str, long: str, keys: dict[str, str]) -> None:
    in_file = parse(file({**PLAIN, **keys}))
    assert by_flags(short) == in_file
    assert by_flags(long) == in_file


@pytest.mark.parametrize(("short", "long", "keys"), OF_PF, ids=[case[0] for case in OF_PF])
def test_flags_about_pf(short: str, long: str, keys: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {**BSD, **keys, "pf.dialect": '"freebsd"'}  # needed in a file only where the system has no pf
    (in_file,) = parse(file(keys)).services
    for line in (short, long):
        (service,) = by_flags(line, "freebsd15").services
        assert (service.pf.queue, service.pf.tag, service.pf.log) == (in_file.pf.queue, in_file.pf.tag, in_file.pf.log)
        assert (service.planes, service.policy) == (in_file.planes, in_file.policy)
        assert by_flags(line, "linux") == by_flags("", "linux")
    assert ignored(flags_of(_parser().parse_args(shlex.split(short))), "linux") == [short[:2]]
    assert ignored(flags_of(_parser().parse_args(shlex.split(short))), "openbsd7") == []


def test_every_flag_has_its_case() -> None:
    tested = {word for short, long, _ in CASES + OF_PF for word in shlex.split(f"{short} {long}") if word[0] == "-"}
    known = {option for action in _parser()._actions for option in action.option_strings}
    assert known - tested == {"-h", "--help", "--version", "--show", "--inetd"}
    assert {option[1] for option in known if len(option) == 2} - {"h"} == set("6AabDdmPpqRrTtv")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("-6dr", "-6 -d -r"),
        ("-drp2121", "-d -r -p 2121"),
        ("-b::1 -6", "-6 -b ::1"),
        ("-D7 -Aa192.0.2.1", "-D 7 -A -a 192.0.2.1"),
        ("--port=21", "-p 21"),
        ("-R 192.0.2.7 -P ftp", "-R 192.0.2.7 -P 21"),
        ("-m 5 -m 6", "-m 6"),
        ("-R ::ffff:192.0.2.7", "-R 192.0.2.7"),
    ],
)
def test_ways_to_write_it(one: str, other: str) -> None:
    assert by_flags(one) == by_flags(other)


def test_what_is_shown_is_a_file_that_says_the_same(tmp_path: Path) -> None:
    for short, _, _ in CASES:
        config = by_flags(short)
        assert parse(show(config)) == config
    line = "-b 198.51.100.1 -p 21 -R 10.0.0.5 -r -m 700 --show"
    done = subprocess.run(
        [sys.executable, "-m", "ftpproxy", *line.split()], capture_output=True, text=True, cwd=ROOT, check=True
    )
    (tmp_path / "ftpproxy.toml").write_text(done.stdout)
    assert load(tmp_path / "ftpproxy.toml") == by_flags(line)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("-p 0", "argument -p/--port: '0' is not a number from 1 to 65535"),
        ("-p 65536", "argument -p/--port: '65536' is not a number from 1 to 65535"),
        ("-p ftp", "argument -p/--port: 'ftp' is not a number from 1 to 65535"),
        (
            "-P nosuchservice",
            "argument -P/--server-port: 'nosuchservice' is neither a port from 1 to 65535 nor",
        ),
        ("-P 65536", "argument -P/--server-port: '65536' is not a number from 1 to 65535"),
        ("-D 8", "argument -D/--debug-level: '8' is not a number from 0 to 7"),
        ("-D", "argument -D/--debug-level: expected one argument"),
        ("-m 0", "argument -m/--max-sessions: '0' is not a number from 1 to 1000000"),
        ("-t 86401", "argument -t/--timeout: '86401' is not a number from 0 to 86400"),
        ("-t -1", "argument -t/--timeout: expected one argument"),
        ("-a gateway", "argument -a/--source: 'gateway' is not an IP address (names are not looked up here)"),
        ("-a 0.0.0.0", "argument -a/--source: 0.0.0.0 is not the address of a host"),
        ("-b localhost", "argument -b/--listen: 'localhost' is not an IP address (names are not looked up here)"),
        ("-b 224.0.0.1", "argument -b/--listen: 224.0.0.1 is a multicast address"),
        ("-6 -b 127.0.0.1", "-b 127.0.0.1 is IPv4, and -6 asks for IPv6; without -6, -b may name both"),
        ("-6 -a 192.0.2.1", "-a 192.0.2.1 is IPv4, and -6 asks for IPv6; without -6, -b may name both"),
        ("-a 2001:db8::1", "-a 2001:db8::1 is of another family than the address to listen at (127.0.0.1)"),
        ("-b ::1 -b ::1", "-b ::1 is there twice"),
        ("-R 2001:db8::7", "-R 2001:db8::7: no IPv4 address; -6 asks for IPv6"),
        ("-b ::1 -R 192.0.2.7", "-R 192.0.2.7: no IPv6 address, but -b listens at one"),
        ("-R 127.0.0.1 -P 8021", "-R 127.0.0.1 at port 8021 is where -b and -p listen: it would call itself"),
        ("-vvv", "-v may be given twice at most"),
        ("-T", "argument -T/--tag: expected one argument"),
        (f"-T {'x' * 64}", f"argument -T/--tag: '{'x' * 64}' is not a word of 1 to 63 characters"),
        ("-q ''", "argument -q/--queue: '' is not a word of 1 to 63 characters"),
        ("-x", "unrecognized arguments: -x"),
        ("-d extra", "unrecognized arguments: extra"),
    ],
)
def test_wrong_flags_name_the_mend_and_exit_64(line: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    from ftpproxy.cli import main

    with pytest.raises(SystemExit, match="64"):
        main(shlex.split(line))
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"ftpproxy: {said}")


def test_a_queue_that_pf_would_refuse() -> None:
    with pytest.raises(BadFlag, match=r"-q ftp is refused by OpenBSD's pfctl"):
        by_flags("-q ftp", "openbsd7")


def test_names_are_looked_up() -> None:
    (service,) = by_flags("-R localhost -p 2121").services
    assert [(server.host, server.port) for server in service.servers] == [(ip_address("127.0.0.1"), 21)]
    with pytest.raises(CannotResolve, match=r"-R nosuch\.invalid: "):
        by_flags("-R nosuch.invalid")
    done = subprocess.run(
        [sys.executable, "-m", "ftpproxy", "-R", "nosuch.invalid"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 69
    assert done.stderr.startswith("ftpproxy: -R nosuch.invalid: ")


def test_defaults_are_those_of_the_original() -> None:
    flags = Flags()
    assert (flags.port, flags.server_port, flags.max_sessions, flags.timeout, flags.debug_level) == (
        8021,
        21,
        100,
        86400,
        5,
    )
    assert NO_IDLE_LIMIT == 365 * 24 * 3600


def test_hup_looks_names_up_again_and_ends_nothing(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = tmp_path / "log"

    def until(said: str) -> None:
        deadline = time.monotonic() + 30
        while said not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.01)

    # Without the right to nftables, so that none of its rules ever is in this network namespace.
    argv = ["setpriv", "--bounding-set=-net_admin"] if os.geteuid() == 0 else []
    argv += [sys.executable, "-m", "ftpproxy", "-d", "-D6", "-R", "localhost", "-T", "tag", "-p", str(port)]
    with log.open("w") as stderr, subprocess.Popen(argv, stderr=stderr, cwd=ROOT) as process:
        try:
            until("flags.ignored flags=-T")
            assert f"listening on 127.0.0.1 port {port}" in log.read_text()
            process.send_signal(signal.SIGHUP)
            until("reloaded services=1")
            with socket.create_connection(("127.0.0.1", port)):  # still there
                pass
        finally:
            process.terminate()
        assert process.wait(30) == 0
