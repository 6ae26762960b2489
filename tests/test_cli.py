"""The command line as a user and a script see it: words, exit codes, and nothing loaded that is not needed."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from ftpproxy import __version__, cli
from ftpproxy.advice import port_overlaps
from ftpproxy.cli import sessions
from ftpproxy.compose.monitoring import CannotServe, scrape
from ftpproxy.config import load
from ftpproxy.server import Server
from ftpproxy.switchboard import Switchboard

ROOT = Path(__file__).parent.parent
GOOD = "docs/examples/tproxy.toml" if sys.platform == "linux" else "docs/examples/reverse.toml"


def ftpproxy(*argv: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "ftpproxy", *argv]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


@pytest.fixture
def bad(tmp_path: Path) -> str:
    file = tmp_path / "bad.toml"
    file.write_text(
        '[[service]]\nname = "lan"\nmode = "forward"\nlisten = "127.0.0.1:8021"\nintercept = "tproxy"\n'
        "[service.limits]\nsesions = 3\n"
    )
    return str(file)


def test_check_says_ok() -> None:
    done = ftpproxy("check", "-c", GOOD)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{GOOD}: ok, 1 service\n", "")


@pytest.mark.parametrize(
    "argv",
    [
        ["check"],
        ["check", "--show"],
        ["rules", "--for", "nft"],
        pytest.param(["rules", "--apply"], marks=pytest.mark.linux("nft")),
        pytest.param(["doctor"], marks=pytest.mark.linux("the doctor")),
        ["serve"],
    ],
)
def test_every_command_names_file_and_key_of_a_mistake(bad: str, argv: list[str]) -> None:
    """A bad configuration names file and key and exits 78."""
    done = ftpproxy(*argv, "-c", bad)
    assert done.returncode == 78
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        f'{bad}: service "lan".listen: a list is expected, not a string',
        f'{bad}: service "lan".limits.sesions: unknown key; did you mean sessions?',
    ]


def test_a_missing_file() -> None:
    done = ftpproxy("check", "-c", "/nonexistent.toml")
    assert (done.returncode, done.stderr) == (78, "/nonexistent.toml: cannot be read: No such file or directory\n")


def test_show_prints_the_whole_configuration() -> None:
    done = ftpproxy("check", "-c", GOOD, "--show")
    assert done.returncode == 0
    (service,) = tomllib.loads(done.stdout)["service"]
    assert service["limits"]["data_setup"] == "2m"


@pytest.mark.linux("nft")
def test_rules_are_printed() -> None:
    done = ftpproxy("rules", "-c", GOOD)
    assert (done.returncode, done.stdout) == (0, (ROOT / "nft" / "intercept-tproxy.nft").read_text())


@pytest.mark.linux("nft")
def test_rules_in_forward_mode_need_clients(tmp_path: Path) -> None:
    file = tmp_path / "f.toml"
    file.write_text((ROOT / GOOD).read_text().replace("clients", "#"))
    done = ftpproxy("rules", "-c", str(file))
    assert done.returncode == 78
    assert done.stderr.startswith(f'{file}: service "lan".clients: the rules need it in forward mode')


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["serv"], "unknown command 'serv'; did you mean serve?"),
        (["nonsense"], "unknown command 'nonsense'; the commands are serve, check, rules, doctor, status"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
        (["check"], "the following arguments are required: -c/--config"),
        (["check", "-c"], "expected one argument"),
        (["check", "-c", GOOD, "extra"], "unrecognized arguments: extra"),
        (["serve"], "the following arguments are required: -c/--config"),
        (["rules"], "-c FILE is required, except with --remove"),
        (["rules", "--for", "nft"], "-c FILE is required, except with --remove"),
        (["rules", "--apply", "--remove"], "not allowed with argument"),
        (["check", GOOD], f"did you mean -c {GOOD}?"),
        (["kill", "x"], "'x' is not the number of a session; ftpproxy sessions has them"),
        (["kill"], "the following arguments are required: ID"),
        (["log-level", "loud"], "invalid choice: 'loud'"),
        (["status", "--socket", "x", "-c", GOOD], "not allowed with argument"),
        (["rules", GOOD, "--apply"], f"did you mean -c {GOOD}?"),
        (["lab", "--nonsense"], "unknown option --nonsense"),
        (["lab", "demo", "--no-proxy"], "leave out --no-proxy"),
        (["lab", "--planes", "nft", "demo", "--no-proxy"], "leave out --no-proxy"),
        (["lab", "--planes", "nft,pf", "demo"], "pf: choose from nft and relay"),
        (["lab", "curl", "-sS", "ftp://x"], "put -- before COMMAND: ftpproxy lab -- curl -sS ftp://x"),
        (
            ["lab", "--topology", "both", "curl", "-P", "-", "ftp://x"],
            "put -- before COMMAND: ftpproxy lab --topology both -- curl -P - ftp://x",
        ),
        (["lab", "sh", "--", "x"], "put -- before COMMAND: ftpproxy lab -- sh -- x"),
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_64(argv: list[str], said: str) -> None:
    done = ftpproxy(*argv)
    assert done.returncode == 64
    assert said in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    "argv", [[], ["serve"], ["check"], ["rules"], ["doctor"], ["lab"]], ids=lambda argv: " ".join(argv) or "-"
)
def test_help(argv: list[str]) -> None:
    done = ftpproxy(*argv, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: {' '.join(['ftpproxy', *argv])} ")
    assert "  ftpproxy " in done.stdout, "an example"
    assert max(map(len, done.stdout.splitlines())) <= 120


def test_the_usage_of_rules_shows_its_forms() -> None:
    assert (
        "usage: ftpproxy rules -c FILE [--for FORM]\n"
        "       ftpproxy rules -c FILE --apply [--chain FAMILY/TABLE/CHAIN]...\n"
        "       ftpproxy rules --remove [--chain FAMILY/TABLE/CHAIN]...\n"
    ) in ftpproxy("rules", "-h").stdout


@pytest.mark.linux("its range of ephemeral ports can be read in /proc")
def test_check_warns_of_ports_that_others_use(tmp_path: Path) -> None:
    file = tmp_path / "f.toml"
    file.write_text((ROOT / GOOD).read_text() + 'data_ports = "30000-65535"\n')
    done = ftpproxy("check", "-c", str(file))
    assert (done.returncode, done.stdout) == (0, f"{file}: ok, 1 service\n")
    assert done.stderr.startswith(
        f'{file}: service "lan".data_ports: warning: 30000-65535 overlaps net.ipv4.ip_local_port_range ('
    )


def test_ports_overlap_or_not(tmp_path: Path) -> None:
    config = load(str(ROOT / "docs/examples/tproxy.toml"), "linux")
    local = tmp_path / "ip_local_port_range"
    for text, overlaps in (("32768\t60999\n", 0), ("29999 60999", 1), ("1024 20000", 1), ("1024 19999", 0)):
        local.write_text(text)
        assert len(list(port_overlaps(config, local))) == overlaps
    assert list(port_overlaps(config, tmp_path / "absent")) == []


def test_version() -> None:
    done = ftpproxy("--version")
    assert (done.returncode, done.stdout) == (0, f"ftpproxy {__version__}\n")


@pytest.mark.parametrize(
    ("argv", "absent"),
    [
        (["--help"], {"cattrs", "trio", "pyroute2", "ssl", "asyncio", "pyftpdlib"}),
        (["check", "-c", GOOD], {"trio", "pyroute2", "ssl", "asyncio", "pyftpdlib"}),
        (["rules", "-c", GOOD], {"trio", "pyroute2", "ssl", "asyncio", "pyftpdlib"}),
    ],
    ids=["help", "check", "rules"],
)
def test_nothing_is_imported_that_is_not_needed(argv: list[str], absent: set[str]) -> None:
    program = (
        "import sys; before = set(sys.modules); from ftpproxy.cli import main\n"
        f"try: main({argv!r})\nexcept SystemExit: pass\n"
        f"print(sorted((set(sys.modules) - before) & {absent!r}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stderr) == (0, "[]\n")


def test_an_interrupt_is_no_traceback(tmp_path: Path) -> None:
    # Nobody answers at the socket: the command waits until the signal.
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "control"))
        silent.listen()
        command = [sys.executable, "-m", "ftpproxy", "status", "--socket", str(tmp_path / "control")]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
            caller, _ = silent.accept()
            with caller:
                process.send_signal(signal.SIGINT)
                _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (130, "")


def test_a_reader_that_leaves_is_no_traceback() -> None:
    command = [sys.executable, "-m", "ftpproxy", "check", "--show", "-c", GOOD]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert process.returncode == 1


def test_metrics_that_cannot_be_had(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`check` warns of what `serve` does not start without."""
    file = tmp_path / "f.toml"
    file.write_text('[metrics]\nlisten = "127.0.0.1:9921"\n' + (ROOT / "docs/examples/reverse.toml").read_text())
    assert cli.main(["check", "-c", str(file)]) == 0
    assert "prometheus-client" not in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    assert cli.main(["check", "-c", str(file)]) == 0
    why = f"prometheus-client is missing: {sys.executable} -m pip install prometheus-client"
    assert f"{file}: metrics.listen: warning: {why}\n" in capsys.readouterr().err
    board = Switchboard()
    with pytest.raises(CannotServe, match=r"^metrics.listen: prometheus-client is missing: "):
        scrape(load(file).metrics, Server(board, []), None)
    board.close()


def test_the_main_function_returns_the_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "-c", str(ROOT / GOOD)]) == 0
    assert capsys.readouterr().out.endswith(": ok, 1 service\n")
    with pytest.raises(SystemExit, match="64"):
        cli.main(["nonsense"])


def test_a_line_of_sessions_has_a_word_for_each_column() -> None:
    session = {
        "session": 2,
        "service": "lan",
        "state": "open",
        "client": "10.77.1.2:50982",
        "server": "198.51.100.21:21",
        "user": "lab",
        "command": "RETR",
        "file": "two words",
        "load": {"plane": "relay", "up": True},
        "rate": 9_900_000,
        "age": 100_000,
        "idle": 0,
    }
    row = sessions._row(session)
    assert len(" ".join(row).split()) == len(sessions.COLUMNS)
    assert row[7:] == (r"two\x20words", "relay", "9.9MB/s", "1d03h", "0s")
