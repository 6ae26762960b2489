"""How a process ends: by SIGTERM with grace, by a second one and SIGINT at once, by `drain` with the last session."""

from __future__ import annotations

import os
import pwd
import signal
import socket
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest

from ftpproxy.lab.peers import FtpServer

from .conftest import PATIENCE, SAMPLE, Client, Stage, new_stage, until

FAREWELL = "421 The service is shutting down."


def send(mortal: Stage, number: signal.Signals) -> None:
    os.kill(mortal.proxy.process.pid, number)


def ended(mortal: Stage) -> int:
    return mortal.proxy.process.wait(PATIENCE)


def nobody_listens(mortal: Stage) -> bool:
    try:
        socket.create_connection(mortal.at.sockaddr()).close()
    except ConnectionRefusedError:
        return True
    return False


def test_idle_sessions_do_not_hold_sigterm_up(mortal: Stage) -> None:
    clients = [mortal.client().log_in() for _ in range(3)]
    send(mortal, signal.SIGTERM)
    for client in clients:
        assert client.hear() == FAREWELL
        assert client.control.recv(1) == b""
    assert ended(mortal) == 0
    assert not mortal.proxy.socket.exists()


def test_a_transfer_finishes_after_sigterm(mortal: Stage) -> None:
    client = mortal.client().log_in().retrieve("sample", 1000)
    idle = mortal.client().log_in()
    send(mortal, signal.SIGTERM)
    assert idle.hear() == FAREWELL
    assert nobody_listens(mortal)
    status = mortal.ask("status")
    assert (status["state"], status["sessions"]) == ("draining", 1)
    assert client.read(len(SAMPLE)) == len(SAMPLE) - 1000
    assert client.data is not None
    client.data.close()
    assert client.hear().startswith("226")
    assert client.hear() == FAREWELL
    assert ended(mortal) == 0
    assert "result=complete" in mortal.proxy.log


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(mortal: Stage, second: signal.Signals) -> None:
    client = mortal.client().log_in().retrieve("sample", 1000)
    send(mortal, signal.SIGTERM)
    mortal.log_has("draining")
    send(mortal, second)
    assert ended(mortal) == 0
    assert client.hear() == FAREWELL
    with pytest.raises(ConnectionResetError):  # and never a short file
        client.read(len(SAMPLE))


def test_sigint_ends_it_at_once(mortal: Stage) -> None:
    client = mortal.client().log_in().retrieve("sample", 1000)
    send(mortal, signal.SIGINT)
    assert ended(mortal) == 0
    assert client.hear() == FAREWELL


def test_the_grace_is_limited(ftp_server: FtpServer, stack: ExitStack) -> None:
    stage = new_stage(stack, ftp_server, '[process]\ndrain = "1s"\n')
    client = stage.client().log_in().retrieve("sample", 1000)
    send(stage, signal.SIGTERM)
    assert client.hear() == FAREWELL
    assert ended(stage) == 0


def test_drain_waits_for_the_last_to_leave(mortal: Stage) -> None:
    client, other = mortal.client().log_in(), mortal.client().log_in()
    done = mortal.command("drain")
    assert (done.returncode, done.stdout) == (0, "draining; sessions left: 2\n")
    assert nobody_listens(mortal)
    assert mortal.command("reload").stderr == "ftpproxy reload: the process is about to end\n"
    assert client.retrieve("sample").read(len(SAMPLE)) == len(SAMPLE) - 4096
    assert client.data is not None
    client.data.close()
    assert client.hear().startswith("226")
    assert client.say("QUIT").startswith("221")
    number = mortal.sessions[-1]["session"]
    until(lambda: [each["session"] for each in mortal.sessions] == [number])
    assert mortal.command("kill", str(number)).stdout == f"session {number} has ended\n"
    assert other.hear() == "421 Ended by the administrator."
    assert ended(mortal) == 0
    mortal.log_has("code=operator")


def test_drain_of_nobody_ends_it(mortal: Stage) -> None:
    assert mortal.ask("drain") == {"sessions": 0}
    assert ended(mortal) == 0


def test_sigterm_during_a_drain_gives_grace(mortal: Stage) -> None:
    client = mortal.client().log_in()
    mortal.ask("drain")
    assert client.say("NOOP").startswith("200")
    send(mortal, signal.SIGTERM)
    assert client.hear() == FAREWELL
    assert ended(mortal) == 0


def test_a_killed_session_takes_its_transfer_along(mortal: Stage) -> None:
    client = mortal.client().log_in().retrieve("sample", 1000)
    (session,) = mortal.sessions
    assert mortal.command("kill", f"#{session['session']}").returncode == 0
    assert client.hear() == "421 Ended by the administrator."
    with pytest.raises(ConnectionResetError):
        client.read(len(SAMPLE))
    until(lambda: mortal.sessions == [])
    with Client(mortal.at) as another:
        another.log_in()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_who_becomes_somebody_else_takes_his_files_along(ftp_server: FtpServer, stack: ExitStack) -> None:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ftpproxy-control-")))
    folder.chmod(0o755)
    log = folder / "xferlog"
    more = f'[control]\nsocket = "{folder}/made/control"\n[process]\nuser = "nobody"\n[log]\nxferlog = "{log}"\n'
    stage = new_stage(stack, ftp_server, more)
    stage.log_has("privileges.dropped user=nobody")
    uid = pwd.getpwnam("nobody").pw_uid
    assert {each.stat().st_uid for each in (stage.proxy.socket, stage.proxy.socket.parent, log)} == {uid}
    assert stage.ask("status")["state"] == "running"
    send(stage, signal.SIGINT)
    assert ended(stage) == 0
    assert not stage.proxy.socket.exists()
