"""Reload: new terms for new sessions, no gap in accept, no session lost, and nothing at all from a bad file."""

from __future__ import annotations

import os
import signal
import socket
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from ftpproxy.endpoints import Endpoint
from ftpproxy.lab.peers import FtpServer

from .conftest import SAMPLE, Client, Stage, free_port, new_stage, until

HERE = "127.0.0.1"


def edit(stage: Stage, old: str, new: str) -> None:
    text = stage.proxy.file.read_text()
    assert old in text
    stage.proxy.file.write_text(text.replace(old, new))


def in_force(stage: Stage) -> dict[str, Any]:
    """What a bad reload must not change."""
    status: dict[str, Any] = stage.ask("status")
    del status["uptime"]
    return status


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("[[service]]", "[[service", "line 1, column 10"),
        ("[[service]]", "x = " + "[" * 5000 + "\n[[service]]", "is not TOML: nested too deeply"),
        ("[[service]]", "x = " + "9" * 5000 + "\n[[service]]", "is not TOML: Exceeds the limit"),
        ('mode = "reverse"', 'mode = "sideways"', '"sideways" is not known here'),
        ('mode = "reverse"', 'mode = "reverse"\nnonsense = 1', "unknown key"),
        (HERE, "192.0.2.1", "192.0.2.1 is not an address of this machine"),
        ('planes = ["relay"]', 'planes = ["nft", "relay"]', "the table in nftables is made at the start only"),
    ],
    ids=["toml", "deep", "long", "value", "key", "address", "privilege"],
)
def test_a_bad_file_changes_nothing(stage: Stage, old: str, new: str, problem: str) -> None:
    client = stage.client().log_in()
    before, good = in_force(stage), stage.proxy.file.read_text()
    if new == "192.0.2.1":
        edit(stage, f'listen = ["{HERE}', f'listen = ["{new}')
    else:
        edit(stage, old, new)
    refused = stage.proxy.log.count("reload.refused")
    done = stage.command("reload")
    assert done.returncode == 78
    assert problem in done.stderr
    assert f"{stage.proxy.file}: " in done.stderr
    assert done.stderr.splitlines()[-1] == f"ftpproxy reload: {stage.proxy.file} has 1 problem; nothing has changed"
    assert "reload.refused" in stage.proxy.log
    os.kill(stage.proxy.process.pid, signal.SIGHUP)
    until(lambda: stage.proxy.log.count("reload.refused") == refused + 2)
    assert in_force(stage) == before
    assert client.say("NOOP").startswith("200")
    with stage.client().log_in() as another:
        assert another.say("NOOP").startswith("200")
    stage.proxy.file.write_text(good)
    assert stage.command("reload").returncode == 0


def test_a_file_that_has_become_a_pipe_is_not_waited_for(stage: Stage) -> None:
    good = stage.proxy.file.rename(stage.proxy.file.with_suffix(".good"))
    os.mkfifo(stage.proxy.file)
    done = stage.command("reload")
    good.replace(stage.proxy.file)
    assert done.returncode == 78
    assert "cannot be read: it is a FIFO, and no regular file" in done.stderr
    with stage.client().log_in() as client:
        assert client.say("NOOP").startswith("200")


def test_every_problem_is_named(stage: Stage) -> None:
    edit(stage, 'mode = "reverse"', 'mode = "reverse"\nnonsense = 1\nsource = 5')
    done = stage.command("reload")
    assert done.returncode == 78
    assert 'service "server".nonsense: unknown key' in done.stderr
    assert 'service "server".source: an IP address in a string is expected' in done.stderr
    stage.log_has("nonsense: unknown key")
    stage.log_has("source: an IP address in a string")


def test_new_sessions_have_new_terms_and_old_ones_keep_theirs(stage: Stage) -> None:
    old = stage.client().log_in()
    edit(stage, "[control]", '[service.policy]\ndeny = ["PWD"]\n[control]')
    done = stage.command("reload")
    assert (done.returncode, done.stdout) == (0, "reloaded\n"), done.stderr
    assert old.say("PWD").startswith("257")
    new = stage.client().log_in()
    assert new.say("PWD").startswith("502")


def test_a_transfer_goes_on_and_its_plane_with_it(stage: Stage) -> None:
    client = stage.client().log_in().retrieve("sample", 1000)
    ports = f"{free_port()}"
    edit(stage, 'data_ports = "20000-29999"', f'data_ports = "{ports}-{ports}"')
    assert stage.command("reload").returncode == 0
    assert client.read(len(SAMPLE)) == len(SAMPLE) - 1000
    assert client.hear().startswith("226")
    assert "(|||" in client.say("EPSV")
    assert f"(|||{ports}|)" not in client.say("EPSV")  # its terms are those of before
    with stage.client().log_in() as another:
        assert f"(|||{ports}|)" in another.say("EPSV")


def test_listeners_come_and_go(stage: Stage) -> None:
    first, second = str(stage.at), f"{HERE}:{free_port()}"
    client = stage.client().log_in()
    edit(stage, f'listen = ["{first}"]', f'listen = ["{first}", "{second}"]')
    assert stage.command("reload").returncode == 0
    assert stage.ask("status")["services"][0]["listeners"] == [first, second]
    with Client(Endpoint.parse(second)) as another:
        another.log_in()
    edit(stage, f'listen = ["{first}", "{second}"]', f'listen = ["{second}"]')
    assert stage.command("reload").returncode == 0
    assert stage.ask("status")["services"][0]["listeners"] == [second]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(stage.at.sockaddr())
    assert client.say("NOOP").startswith("200")


def test_a_listener_that_is_in_the_way_of_another(stage: Stage) -> None:
    edit(stage, f'listen = ["{stage.at}"]', f'listen = ["0.0.0.0:{stage.at.port}"]')
    done = stage.command("reload")
    assert done.returncode == 78
    assert f"we listen at {stage.at} ourselves; restart" in done.stderr
    assert stage.ask("status")["services"][0]["listeners"] == [str(stage.at)]


def test_no_connection_is_refused_under_load(stage: Stage) -> None:
    """Clients that connect all the time see none of 20 reloads."""
    failures: list[str] = []
    counts = [0, 0, 0]
    over = threading.Event()

    def knock(number: int) -> None:
        while not over.is_set():
            try:
                with Client(stage.at) as client:
                    assert client.hear().startswith("220")
                    assert client.say("QUIT").startswith("221")
                counts[number] += 1
            except (OSError, AssertionError) as error:
                failures.append(repr(error))
                return

    stayed, reloads = stage.client().log_in(), stage.ask("status")["reloads"]
    threads = [threading.Thread(target=knock, args=(number,)) for number in range(len(counts))]
    for thread in threads:
        thread.start()
    try:
        with stage.caller() as caller:
            for _ in range(20):
                before = sum(counts)
                caller.ask("reload")
                until(lambda before=before: sum(counts) > before or bool(failures))  # type: ignore[misc]
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert stayed.say("NOOP").startswith("200")
    assert stage.ask("status")["reloads"] == reloads + 20


def test_what_needs_a_restart_is_named(stage: Stage) -> None:
    text = stage.proxy.file.read_text()
    text = text.replace("[control]\n", '[control]\ngroup = "staff"\n')
    stage.proxy.file.write_text(text + '[log]\nformat = "json"\nlevel = "debug"\n[process]\nuser = "nobody"\n')
    done = stage.command("reload")
    assert done.returncode == 0
    assert sorted(done.stdout.splitlines()) == [
        "control.group changes with a restart only",
        "log.format changes with a restart only",
        "process.user changes with a restart only",
        "reloaded",
    ]
    assert stage.ask("status")["log_level"] == "debug"


def test_the_xferlog_is_opened_again(ftp_server: FtpServer, stack: ExitStack, tmp_path: Path) -> None:
    stage = new_stage(stack, ftp_server, f'[log]\nxferlog = "{tmp_path}/xferlog"\n')
    (tmp_path / "xferlog").rename(tmp_path / "xferlog.1")
    os.kill(stage.proxy.process.pid, signal.SIGHUP)
    until((tmp_path / "xferlog").exists)
    edit(stage, f"{tmp_path}/xferlog", f"{tmp_path}/other")
    assert stage.command("reload").returncode == 0
    client = stage.client().log_in().retrieve("sample")
    client.read(len(SAMPLE))
    assert client.data is not None
    client.data.close()
    until(lambda: "sample" in (tmp_path / "other").read_text())
    edit(stage, f"{tmp_path}/other", f"{tmp_path}/no/such/folder")
    done = stage.command("reload")
    assert done.returncode == 78
    assert "log.xferlog: " in done.stderr


def test_announced_addresses_change_and_their_sources_are_looked_at_first(stage: Stage, tmp_path: Path) -> None:
    source = tmp_path / "address"
    source.write_text("198.51.100.7\n")
    old = stage.client().log_in()
    planes = 'planes = ["relay"]'
    edit(stage, planes, f'{planes}\nannounce = {{ client = "file:{source}" }}')
    assert stage.command("reload").returncode == 0
    first = stage.client().log_in()
    assert "(198,51,100,7," in first.say("PASV")
    assert "(127,0,0,1," in old.say("PASV")
    edit(stage, f'"file:{source}"', '"198.51.100.8"')
    assert stage.command("reload").returncode == 0
    assert "(198,51,100,8," in stage.client().log_in().say("PASV")
    assert "(198,51,100,7," in first.say("PASV")
    looks = stage.proxy.log.count("announce.")
    source.write_text("198.51.100.9\n")  # nobody looks there any more
    assert stage.command("reload").returncode == 0
    assert stage.proxy.log.count("announce.") == looks
