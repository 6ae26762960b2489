"""How a process ends: by SIGTERM with grace, by a second one and SIGINT at once, by `drain` with the last session."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import ExitStack

import pytest

from ftpproxy.endpoints import Endpoint
from ftpproxy.lab.peers import FtpServer

from .conftest import PATIENCE, SAMPLE, Client, Stage, free_port, until

FAREWELL = "421 The service is shutting down."


def send(stage: Stage, number: signal.Signals) -> None:
    os.kill(stage.proxy.process.pid, number)


def ended(stage: Stage) -> int:
    return stage.proxy.process.wait(PATIENCE)


def nobody_listens(stage: Stage) -> bool:
    try:
        socket.create_connection(stage.at.sockaddr()).close()
    except ConnectionRefusedError:
        return True
    return False


def test_idle_sessions_do_not_hold_sigterm_up(stage: Stage) -> None:
    clients = [stage.client().log_in() for _ in range(3)]
    send(stage, signal.SIGTERM)
    for client in clients:
        assert client.hear() == FAREWELL
        assert client.control.recv(1) == b""
    assert ended(stage) == 0
    assert not stage.proxy.socket.exists()


def test_a_transfer_finishes_after_sigterm(stage: Stage) -> None:
    client = stage.client().log_in().retrieve("sample", 1000)
    idle = stage.client().log_in()
    send(stage, signal.SIGTERM)
    assert idle.hear() == FAREWELL
    assert nobody_listens(stage)
    status = stage.ask("status")
    assert (status["state"], status["sessions"]) == ("draining", 1)
    assert client.read(len(SAMPLE)) == len(SAMPLE) - 1000
    assert client.data is not None
    client.data.close()
    assert client.hear().startswith("226")
    assert client.hear() == FAREWELL
    assert ended(stage) == 0
    assert "result=complete" in stage.proxy.log


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(stage: Stage, second: signal.Signals) -> None:
    client = stage.client().log_in().retrieve("sample", 1000)
    send(stage, signal.SIGTERM)
    stage.log_has("draining")
    send(stage, second)
    assert ended(stage) == 0
    assert client.hear() == FAREWELL
    with pytest.raises(ConnectionResetError):  # and never a short file
        client.read(len(SAMPLE))


def test_sigint_ends_it_at_once(stage: Stage) -> None:
    client = stage.client().log_in().retrieve("sample", 1000)
    send(stage, signal.SIGINT)
    assert ended(stage) == 0
    assert client.hear() == FAREWELL


def test_the_grace_is_limited(ftp_server: FtpServer, stack: ExitStack) -> None:
    at = Endpoint.parse(f"127.0.0.1:{free_port()}")
    stage = Stage(stack, ftp_server, at, '[process]\ndrain = "1s"\n')
    client = stage.client().log_in().retrieve("sample", 1000)
    send(stage, signal.SIGTERM)
    assert client.hear() == FAREWELL
    assert ended(stage) == 0


def test_drain_waits_for_the_last_to_leave(stage: Stage) -> None:
    client, other = stage.client().log_in(), stage.client().log_in()
    done = stage.command("drain")
    assert (done.returncode, done.stdout) == (0, "draining: 2 sessions are left\n")
    assert nobody_listens(stage)
    assert stage.command("reload").stderr == "ftpproxy reload: the process is about to end\n"
    assert client.retrieve("sample").read(len(SAMPLE)) == len(SAMPLE) - 4096
    assert client.data is not None
    client.data.close()
    assert client.hear().startswith("226")
    assert client.say("QUIT").startswith("221")
    number = stage.sessions[-1]["session"]
    until(lambda: [each["session"] for each in stage.sessions] == [number])
    assert stage.command("kill", str(number)).stdout == f"session {number} has ended\n"
    assert other.hear() == "421 Ended by the administrator."
    assert ended(stage) == 0
    stage.log_has("code=operator")


def test_drain_of_nobody_ends_it(stage: Stage) -> None:
    assert stage.ask("drain") == {"sessions": 0}
    assert ended(stage) == 0


def test_sigterm_during_a_drain_gives_grace(stage: Stage) -> None:
    client = stage.client().log_in()
    stage.ask("drain")
    assert client.say("NOOP").startswith("200")
    send(stage, signal.SIGTERM)
    assert client.hear() == FAREWELL
    assert ended(stage) == 0


def test_a_killed_session_takes_its_transfer_along(stage: Stage) -> None:
    client = stage.client().log_in().retrieve("sample", 1000)
    (session,) = stage.sessions
    assert stage.command("kill", f"#{session['session']}").returncode == 0
    assert client.hear() == "421 Ended by the administrator."
    with pytest.raises(ConnectionResetError):
        client.read(len(SAMPLE))
    until(lambda: stage.sessions == [])
    with Client(stage.at) as another:
        another.log_in()
