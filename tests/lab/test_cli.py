"""`ftpproxy lab` as root, as an ordinary user, and where there are no namespaces."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from ftpproxy.lab.peers import environment
from ftpproxy.lab.sandbox import SANDBOX

pytestmark = [pytest.mark.netns, pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces as root")]

LAB = """
import argparse, sys
from ftpproxy.lab.cli import add_arguments, run
parser = argparse.ArgumentParser()
add_arguments(parser)
sys.exit(run(parser.parse_args()))
"""
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--", "env")
"""env, because root's capabilities are gone only behind the first exec, and would run a Python in root's home."""


def lab(
    *argv: str, python: str = sys.executable, prefix: tuple[str, ...] = (), **more: str
) -> subprocess.CompletedProcess[str]:
    command = [*prefix, python, "-c", LAB, *argv]
    return subprocess.run(command, text=True, capture_output=True, env=environment() | more, timeout=60, check=False)


def nobodys_python() -> str:
    """A Python that an ordinary user may run, and that finds the project: both may lie in root's home."""
    environ = environment() | {"PYTHONPATH": nobodys_path()}
    for python in (sys.executable, shutil.which("python3.11", path="/usr/bin:/usr/local/bin") or ""):
        probe = [*NOBODY, python, "-c", "import attrs, ftpproxy.lab, trio"]
        if python and subprocess.run(probe, capture_output=True, env=environ).returncode == 0:
            return python
    pytest.skip("no Python 3.11, or no project, that an ordinary user may read")


def nobodys_path() -> str:
    return os.pathsep.join(path for path in [environment()["PYTHONPATH"], *sys.path] if path)


def test_a_command_runs_on_the_client() -> None:
    done = lab("--no-proxy", "--", "sh", "-c", "ip -o -4 address show dev eth0; echo $SERVER $SERVER6; exit 7")
    assert "10.77.1.2/24" in done.stdout
    assert "198.51.100.21 2001:db8:100::21" in done.stdout
    assert done.stderr == ""
    assert done.returncode == 7


def test_a_shell_is_told_where_it_is() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LAB, "--no-proxy", "--topology", "both"],
        input="ip -o -4 address show dev eth0\n",
        text=True,
        capture_output=True,
        env=environment() | {"SHELL": "/bin/sh"},
        timeout=60,
        check=True,
    )
    assert "The server is found at 198.51.100.2 and 2001:db8:100::2" in done.stdout
    assert "inet 10.77.1.2/24" in done.stdout
    assert done.stdout.endswith("clearing away\n")


def test_a_program_that_there_is_not() -> None:
    done = lab("--no-proxy", "--", "frobnicate", "-x")
    assert (done.returncode, done.stdout) == (127, "")
    assert done.stderr == "ftpproxy lab: frobnicate: there is no such program\n"


def test_a_signal_becomes_a_code() -> None:
    assert lab("--no-proxy", "--", "sh", "-c", "kill -9 $$").returncode == 128 + 9


def test_an_ordinary_user_has_a_lab() -> None:
    if subprocess.run([*NOBODY, "unshare", "-Urnm", "true"], capture_output=True).returncode:
        pytest.skip("this kernel gives ordinary users no namespaces")
    done = lab(
        *("--no-proxy", "--topology", "both", "--", "sh", "-c", "id -u; ip -o -6 address show dev eth0"),
        python=nobodys_python(),
        prefix=NOBODY,
        PYTHONPATH=nobodys_path(),
        PATH="/usr/bin:/bin",
    )
    assert done.stderr == ""
    assert done.stdout.startswith("0\n")
    assert "fd77:1::2/64" in done.stdout


def test_where_there_are_no_namespaces_it_says_so() -> None:
    """An ordinary user who cannot become root of a namespace: no second chance below `unshare`."""
    done = lab(
        "--no-proxy", "--", "true", python=nobodys_python(), prefix=NOBODY, PYTHONPATH=nobodys_path(), **{SANDBOX: "1"}
    )
    assert done.returncode == 69
    assert "does not let us make network namespaces" in done.stderr
