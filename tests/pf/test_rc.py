"""The scripts for rc: sound for sh, and what they would run, under stand-ins for the two systems' rc.subr."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent.parent.parent / "pf" / "rc.d"

# What rc.subr(8) of FreeBSD does, as far as our script uses it: sets NAME_flags and so on from rc.conf, runs
# `$command $NAME_flags $command_args` behind start_precmd, or reload_cmd behind reload_precmd.
FREEBSD = """\
load_rc_config() { . "$RC_CONF"; }
run_rc_command() {
	eval "flags=\\$${name}_flags on=\\$$rcvar precmd=\\$${1}_precmd cmd=\\$${1}_cmd"
	[ "$on" = YES ] || { echo "not enabled"; exit 0; }
	case " start $extra_commands " in *" $1 "*) ;; *) exit 64 ;; esac
	[ -z "$precmd" ] || $precmd || exit 1
	if [ -n "$cmd" ]; then $cmd; else echo $command $flags $command_args; fi
}
"""

# What rc.subr(8) of OpenBSD does: sets daemon_flags from rc.conf.local, checks with rc_configtest, starts in the
# background with rc_bg, and finds the process by pexp, an extended regular expression for all of its arguments.
OPENBSD = """\
. "$RC_CONF"
rc_configtest() { :; }
rc_cmd() {
	rc_configtest || exit 1
	echo "$daemon $daemon_flags"; echo "${rc_bg:-NO}"; echo "$pexp"
}
"""


def run(script: Path, action: str, subr: str, conf: str, place: Path) -> subprocess.CompletedProcess[str]:
    """`script action` with a stand-in for rc.subr, and `conf` as what rc.conf says."""
    (place / "rc.subr").write_text(subr)
    (place / "rc.conf").write_text(conf)
    text = script.read_text()
    for real in ("/etc/rc.subr", "/etc/rc.d/rc.subr"):
        text = text.replace(f". {real}\n", f". {place}/rc.subr\n")
    copy = place / script.name
    copy.write_text(text)
    return subprocess.run(
        ["sh", "-eu" if script.parent.name == "openbsd" else "-e", str(copy), action],
        capture_output=True,
        text=True,
        env={**os.environ, "RC_CONF": str(place / "rc.conf")},
        check=False,
    )


@pytest.mark.parametrize("system", ["freebsd", "openbsd"])
def test_sh_reads_it(system: str) -> None:
    script = SCRIPTS / system / "ftpproxyd"
    assert os.access(script, os.X_OK)
    done = subprocess.run(["sh", "-n", str(script)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def program(place: Path, code: int = 0) -> Path:
    """A stand-in for ftpproxy that says how it was called."""
    path = place / "bin-ftpproxy"
    path.write_text(f'#!/bin/sh\necho "called: $*"\nexit {code}\n')
    path.chmod(0o755)
    return path


DAEMON = "/usr/sbin/daemon -f -S -T ftpproxy -P /var/run/ftpproxyd.pid -p /var/run/ftpproxyd.child.pid"


@pytest.mark.parametrize(
    ("conf", "started"),
    [
        ("", ["not enabled"]),
        ("ftpproxyd_enable=YES", [f"{DAEMON} /usr/local/bin/ftpproxy -d"]),
        ('ftpproxyd_enable=YES ftpproxyd_flags="-6 -m 200"', [f"{DAEMON} /usr/local/bin/ftpproxy -d -6 -m 200"]),
    ],
)
def test_freebsd_with_flags(conf: str, started: list[str], tmp_path: Path) -> None:
    done = run(SCRIPTS / "freebsd" / "ftpproxyd", "start", FREEBSD, conf, tmp_path)
    assert (done.returncode, done.stdout.splitlines(), done.stderr) == (0, started, "")


@pytest.mark.parametrize("code", [0, 78])
def test_freebsd_with_a_file(code: int, tmp_path: Path) -> None:
    """The file is checked first, and what is wrong with it starts nothing."""
    path = program(tmp_path, code)
    conf = f'ftpproxyd_enable=YES ftpproxyd_config=/x.toml ftpproxyd_path="{path}"'
    done = run(SCRIPTS / "freebsd" / "ftpproxyd", "start", FREEBSD, conf, tmp_path)
    said = ["called: check -c /x.toml"] + [f"{DAEMON} {path} serve -c /x.toml"] * (code == 0)
    assert (bool(done.returncode), done.stdout.splitlines()) == (bool(code), said)


def test_freebsd_reloads_the_process_and_not_its_watcher(tmp_path: Path) -> None:
    script = SCRIPTS / "freebsd" / "ftpproxyd"
    conf = f'ftpproxyd_enable=YES ftpproxyd_config=/x.toml ftpproxyd_path="{program(tmp_path)}"'
    conf += '\nkill() { echo "kill $*"; }\ncat() { echo "the number in $1"; }\n'
    done = run(script, "reload", FREEBSD, conf, tmp_path)
    assert done.stdout.splitlines() == [
        "called: check -c /x.toml",
        "kill -HUP the number in /var/run/ftpproxyd.child.pid",
    ]


@pytest.mark.parametrize(("flags", "background"), [("", "NO"), ("-R 10.1.0.20", "NO"), ("serve -c /x.toml", "YES")])
def test_openbsd(flags: str, background: str, tmp_path: Path) -> None:
    """With flags it goes into the background by itself; the process is found as ps shows it."""
    path = program(tmp_path)
    script = tmp_path / "openbsd" / "ftpproxyd"
    script.parent.mkdir()
    script.write_text((SCRIPTS / "openbsd" / "ftpproxyd").read_text().replace("/usr/local/bin/ftpproxy", str(path)))
    done = run(script, "start", OPENBSD, f'daemon_flags="{flags}"', tmp_path)
    checked = ["called: check -c /x.toml"] if background == "YES" else []
    *said, pattern = done.stdout.splitlines()
    assert (done.returncode, said) == (0, [*checked, f"{path} {flags}", background])
    shown = f"/usr/local/bin/python3.11 {path} {flags}".rstrip()
    for arguments, found in ((shown, 0), (f"{shown} more", 1), ("/usr/local/bin/python3.11 -m ftpproxy.pf.engine", 1)):
        grep = subprocess.run(["grep", "-Exq", pattern], input=arguments, text=True, check=False)
        assert grep.returncode == found, arguments


def test_openbsd_with_a_bad_file(tmp_path: Path) -> None:
    path = program(tmp_path, 78)
    script = tmp_path / "openbsd" / "ftpproxyd"
    script.parent.mkdir()
    script.write_text((SCRIPTS / "openbsd" / "ftpproxyd").read_text().replace("/usr/local/bin/ftpproxy", str(path)))
    done = run(script, "start", OPENBSD, 'daemon_flags="serve -c /x.toml"', tmp_path)
    assert (done.returncode, done.stdout) == (1, "called: check -c /x.toml\n")
