"""`top` and `trace` over a terminal of 80x24, with a real proxy and real sessions."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from ftpproxy.control.caller import CallFailed
from ftpproxy.endpoints import Endpoint
from ftpproxy.lab.hosts import Loopback
from ftpproxy.lab.peers import FtpServer, environment
from ftpproxy.lab.proxy import Proxy
from ftpproxy.top import Looks

from .conftest import SAMPLE, Client, Stage, free_port, objects, until
from .terminal import Terminal

HOSTILE = "x\x1b[2J\u202egnp.exe"


def live(stage: Stage, *more: str, columns: int = 80, lines: int = 24) -> Terminal:
    return Terminal(
        "top", "--socket", str(stage.proxy.socket), "--interval", "0.5", *more, columns=columns, lines=lines
    )


def a_transfer(stage: Stage, name: str = "sample") -> Client:
    return stage.client().log_in().retrieve(name, 4096)


def test_top_on_80x24(stage: Stage) -> None:
    busy, idle = a_transfer(stage), stage.client().log_in()
    assert idle.say("NOOP").startswith("200")
    with live(stage) as terminal:
        screen = terminal.until(lambda text: "RETR" in text and "idle" in text)
        lines = screen.splitlines()
        assert re.match(r"ftpproxy \S+   running   up \S+   \d\d:\d\d:\d\d$", lines[0])
        assert re.match(r"down .*/s   up 0 B/s   data connections: 1 on relay$", lines[1])
        assert lines[2] == "sessions: 2 by rate"
        assert lines[3] == "   ID USER       CLIENT          CMD   FILE                   RATE PLANE     AGE"
        assert re.match(r" +\d+ lab        127\.0\.0\.1       RETR  sample +[\d.]+ [kM]?B/s relay +\d+s$", lines[4])
        assert re.match(r" +\d+ lab        127\.0\.0\.1       idle +\d+s$", lines[5])
        assert lines[23].startswith("q quit")
        busy.read(1 << 20)
        terminal.until(lambda text: "0 B/s" not in text.splitlines()[1].split("   ")[0])
        terminal.type("q")
        assert terminal.ends() == 0
        assert terminal.is_as_before()


def test_top_sorts(stage: Stage) -> None:
    clients = [stage.client().log_in() for _ in range(3)]
    with live(stage, "--sort", "id") as terminal:

        def order() -> list[str]:
            return re.findall(r"^ +(\d+) lab ", terminal.text, re.MULTILINE)

        terminal.until(lambda _: len(order()) == 3)
        numbers = order()
        assert numbers == sorted(numbers, key=int)
        terminal.type("r")
        terminal.until(lambda _: order() == numbers[::-1])
        terminal.type("rs")
        terminal.until(lambda text: "by user" in text)
        terminal.type("s")
        terminal.until(lambda text: "by rate" in text)
    assert clients[0].say("NOOP").startswith("200")


def test_top_kills(stage: Stage) -> None:
    victim, survivor = stage.client().log_in(), stage.client().log_in()
    number = min(each["session"] for each in stage.sessions)
    with live(stage) as terminal:
        terminal.until(lambda text: "sessions: 2" in text)
        terminal.type("k99999\r")
        terminal.until(lambda text: "no session 99999" in text)
        terminal.type(f"k{number}")
        terminal.until(lambda text: f"kill session: {number}_" in text)
        terminal.type("\x1b")
        terminal.until(lambda text: "q quit" in text)
        terminal.type(f"k{number}7\x7f\r")
        terminal.until(lambda text: f"session {number} has ended" in text)
        assert victim.hear() == "421 Ended by the administrator."
        terminal.until(lambda text: "sessions: 1" in text)
    assert survivor.say("NOOP").startswith("200")


def test_top_follows_the_window(stage: Stage) -> None:
    client = a_transfer(stage)
    with live(stage) as terminal:
        terminal.until(lambda text: "RETR" in text)
        terminal.resize(60, 10)
        text = terminal.until(lambda text: terminal.last.startswith("q quit") and "RETR" in text)
        assert all(len(line) <= 60 for line in text.splitlines())
        terminal.resize(120, 40)
        terminal.until(lambda text: terminal.last.startswith("q quit") and "RETR" in text)
        terminal.type("q")
        assert terminal.ends() == 0
        assert terminal.is_as_before()
    client.read(len(SAMPLE))


def test_top_says_what_it_does_not_show(stage: Stage) -> None:
    clients = [stage.client().log_in() for _ in range(5)]
    with live(stage, lines=8) as terminal:
        text = terminal.until(lambda text: "sessions: 5, 3 of them shown, by rate" in text)
        assert len(re.findall("127.0.0.1", text)) == 3
    assert len(clients) == 5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_terminal_is_given_back(stage: Stage, number: signal.Signals) -> None:
    with live(stage) as terminal:
        terminal.until(lambda text: "q quit" in text)
        terminal.kill(number)
        assert terminal.ends() == 128 + number
        assert terminal.is_as_before()


def test_top_goes_on_with_the_next_process(mortal: Stage) -> None:
    before = mortal.client().log_in()
    with live(mortal) as terminal:
        terminal.until(lambda text: "sessions: 1" in text)
        mortal.proxy.process.send_signal(signal.SIGUSR2)
        mortal.log_has("restart.inherited")
        after = mortal.client().log_in()
        text = terminal.until(lambda text: "sessions: 2" in text)
        assert text.splitlines()[0].split()[2] == "running"
        assert terminal.last.startswith("q quit   s sort")
        numbers = sorted(each["session"] for each in mortal.sessions)
        terminal.type(f"k{numbers[1]}\r")  # by the new connection
        terminal.until(lambda text: f"session {numbers[1]} has ended" in text)
        assert after.hear().startswith("421")
    assert before.say("NOOP").startswith("200")


def test_top_says_that_the_process_is_away(mortal: Stage) -> None:
    client = mortal.client().log_in()
    with live(mortal) as terminal:
        terminal.until(lambda text: "sessions: 1" in text)
        mortal.proxy.process.send_signal(signal.SIGINT)
        text = terminal.until(lambda text: terminal.last.startswith("q quit   nobody answers: "))
        assert text.splitlines()[0].split()[2] == "away"
        assert "sessions: 1" in text
        terminal.type("q")
        assert terminal.ends() == 0
        assert terminal.is_as_before()
    assert client.hear().startswith("421")


def test_top_does_not_wait_for_ever(mortal: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = Looks(mortal.caller())
    look = looks.take()
    mortal.proxy.process.send_signal(signal.SIGINT)
    mortal.proxy.process.wait(15)
    assert looks.take_again(look).status["state"] == "away"
    monkeypatch.setattr("ftpproxy.top.AWAY_SECONDS", 0.0)
    with pytest.raises(CallFailed, match="no ftpproxy is running there"):
        looks.take_again(look)


def test_names_of_strangers_move_nothing(stage: Stage, tmp_path: Path) -> None:
    (stage.ftp.root / HOSTILE).write_bytes(SAMPLE)
    (stage.ftp.root / "[red]markup").write_bytes(SAMPLE)
    clients = [a_transfer(stage, HOSTILE), a_transfer(stage, "[red]markup")]
    with live(stage, columns=120) as terminal:
        text = terminal.until(lambda text: text.count("RETR") == 2)
        assert "x\\x1b[2J\\u202egnp.exe" in text
        assert "[red]markup" in text
    assert b"\x1b[2J\xe2\x80\xaegnp" not in terminal.octets
    said = stage.command("sessions").stdout
    assert "x\\x1b[2J\\u202egnp.exe" in said
    assert "\x1b" not in said
    assert {each["file"] for each in json.loads(stage.command("sessions", "--json").stdout)} >= {HOSTILE}
    assert "\x1b" not in stage.command("top", "--once").stdout
    assert len(clients) == 2


def test_top_once_and_as_json(stage: Stage) -> None:
    client = a_transfer(stage)
    lines = stage.command("top", "--once").stdout.splitlines()
    assert lines[3] == "   ID USER       CLIENT          CMD   FILE                   RATE PLANE     AGE"
    assert len(lines) == 5
    assert all(len(line) <= 80 for line in lines)
    look = json.loads(stage.command("top", "--once", "--json").stdout)
    (session,) = look["sessions"]
    assert (session["user"], session["command"], session["file"]) == ("lab", "RETR", "sample")
    assert session["load"]["plane"] == "relay"
    assert session["load"]["octets"] >= 4096
    assert stage.command("top").returncode == 64
    client.read(len(SAMPLE))


def test_trace_on_80x24(stage: Stage) -> None:
    """Both sides as they speak; what the proxy says instead stands out; no password."""
    with Terminal("trace", "127.0.0.1", "--socket", str(stage.proxy.socket)) as terminal:
        terminal.until(lambda text: text.startswith("C: S:"))
        client = stage.client().log_in()
        client.say("EPSV")
        text = terminal.until(lambda text: "C> 229" in text)
        number = stage.sessions[0]["session"]
        assert re.search(rf"^\d\d:\d\d:\d\d\.\d\d\d #{number} C: USER lab$", text, re.MULTILINE)
        assert re.search(rf"#{number} S: 331 ", text)
        assert f"#{number} C: PASS ****" in text
        assert "PASS lab" not in text
        assert re.search(r"\* data\.open plane=relay", text)
        row = next(at for at, line in enumerate(text.splitlines()) if "C> 229" in line)
        assert terminal.marked(row).startswith("C> 229 Entering Extended Passive Mode (|||2")
        says = next(at for at, line in enumerate(text.splitlines()) if "S: 229" in line)
        assert terminal.marked(says) == ""
        terminal.type("\x03")
        assert terminal.ends() == 0


def test_trace_of_one_session_ends_with_it(stage: Stage, tmp_path: Path) -> None:
    client, other = stage.client().log_in(), stage.client().log_in()
    number = min(each["session"] for each in stage.sessions)
    log = tmp_path / "trace"
    argv = [sys.executable, "-m", "ftpproxy", "trace", str(number), "--json", "--socket", str(stage.proxy.socket)]
    with log.open("w") as stream, subprocess.Popen(argv, stdout=stream, env=environment()) as process:
        until(lambda: bool(client.say("NOOP")) and "NOOP" in log.read_text(), "the trace")
        other.say("SYST")
        client.retrieve("sample").read(len(SAMPLE))
        assert client.data is not None
        client.data.close()
        assert client.hear().startswith("226")
        assert client.say("QUIT").startswith("221")
        assert process.wait(15) == 0
    records = objects(log.read_text())
    assert {record["session"] for record in records} == {number}
    events = [record["event"] for record in records if "event" in record]
    assert events[:3] == ["data.open", "data.connected", "data.connected"]
    assert events[-1] == "session.close"
    (transfer,) = [record for record in records if record.get("event") == "transfer"]
    assert (transfer["down"], transfer["result"]) == (len(SAMPLE), "complete")
    assert "SYST" not in log.read_text()


def test_a_trace_that_is_not_read_holds_nobody_up(stage: Stage) -> None:
    """The session goes on, and the reader is told what it has missed."""
    with stage.caller() as caller:
        assert caller.ask("trace", address="127.0.0.1") == {"sessions": []}
        client = stage.client().log_in()
        for _ in range(8):
            client.control.sendall(b"NOOP\r\n" * 1000)
            for _ in range(1000):
                assert client.hear().startswith("200")
        client.say("QUIT")
        seen, lost = 0, 0
        for record in caller.records():
            seen += "lost" not in record
            lost += record.get("lost", 0)
            if record.get("event") == "session.close":
                break
            if lost and seen + lost >= 2 * 8000:
                break
    assert lost > 0


@pytest.mark.parametrize(
    "argv", [["status"], ["sessions"], ["top", "--once"], ["trace", "1"], ["kill", "1"], ["drain"], ["reload"]]
)
def test_nobody_is_there(argv: list[str], tmp_path: Path) -> None:
    line = [sys.executable, "-m", "ftpproxy", *argv, "--socket", f"{tmp_path}/control"]
    done = subprocess.run(line, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 69
    assert done.stderr == (
        f"ftpproxy {argv[0]}: {tmp_path}/control: no ftpproxy is running there;"
        " start it, or name its socket with --socket or its file with -c\n"
    )


def test_trace_of_a_gateways_login(ftp_server: FtpServer, stack: ExitStack) -> None:
    """From the greeting of the proxy on; no password of either kind, though the proxy itself says PASS."""
    at, server = Endpoint.parse(f"127.0.0.1:{free_port()}"), ftp_server.endpoints[0]
    proxy = stack.enter_context(
        Proxy(
            Loopback(),
            f'[[service]]\nname = "g"\nmode = "gateway"\nlisten = ["{at}"]\nintercept = "none"\n'
            f'[service.gateway]\ndestinations = ["127.0.0.0/8:1-65535"]\nhosts = ["here={server}"]\n',
        )
    )
    with Terminal("trace", "127.0.0.1", "--socket", str(proxy.socket), lines=60) as terminal:
        terminal.until(lambda text: text.startswith("C: S:"))
        client = stack.enter_context(Client(at))
        assert client.hear().startswith("220")
        assert client.say("USER lab@here").startswith("331")
        assert client.say("PASS t0psecret").startswith("530")
        assert client.say("USER lab").startswith("331")
        assert client.say("ACCT t0psecret").startswith("50")
        assert client.say("USER joe:t0psecret@here")[0] in "35"
        assert client.say("QUIT").startswith("221")
        text = terminal.until(lambda text: "session.close" in text)
    assert "C> 220 FTP proxy ready." in text
    assert "C: USER lab@here" in text
    assert "S> USER lab" in text
    assert "C: PASS ****" in text
    assert "C: ACCT ****" in text
    assert b"t0psecret" not in terminal.octets
