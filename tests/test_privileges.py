"""Becoming somebody else, in child processes: what they may do afterwards is what the kernel says of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from ftpproxy.privileges import Capability, find, has_other_users

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or not has_other_users(),
    reason="needs Linux, and root with other users to become",
)

CHILD = """
import json, subprocess, sys
from pathlib import Path
from ftpproxy.privileges import Capability, become, find
become(find("nobody"), [Capability(int(number)) for number in sys.argv[1:]])
status = dict(line.split(":\\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\\t" in line)
child = subprocess.run(["grep", "CapEff", "/proc/self/status"], capture_output=True, text=True, check=True).stdout
print(json.dumps({**status, "child": child.split()[1]}))
"""


def status(*keep: Capability) -> dict[str, str]:
    """/proc/PID/status of a child that became `nobody`, and what a program that it runs has."""
    argv = [sys.executable, "-c", CHILD, *(str(int(each)) for each in keep)]
    found = json.loads(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)
    assert isinstance(found, dict)
    return found


def test_nothing_is_kept() -> None:
    nobody = find("nobody")
    assert nobody is not None
    found = status()
    assert found["Uid"].split() == [str(nobody.uid)] * 4
    assert found["Gid"].split() == [str(nobody.gid)] * 4
    assert "0" not in found["Groups"].split()
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "child"):
        assert int(found[name], 16) == 0, name
    assert found["NoNewPrivs"] == "1"


@pytest.mark.parametrize(
    "keep", [[Capability.CAP_NET_ADMIN], [Capability.CAP_NET_RAW, Capability.CAP_NET_BIND_SERVICE]]
)
def test_what_is_asked_for_is_kept_and_passed_on(keep: list[Capability]) -> None:
    found = status(*keep)
    bits = sum(1 << each for each in keep)
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "child"):
        assert int(found[name], 16) == bits, name


def test_nobody_else_can_be_become_without_root() -> None:
    argv = [sys.executable, "-c", CHILD.replace('become(find("nobody")', 'become(find("nobody")); become(find("root")')]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert "cannot become the user" in done.stderr


GIVE = """
import sys
from ftpproxy.config import Config, ProcessConfig
from ftpproxy.process import drop_privileges
drop_privileges(Config(services=(), process=ProcessConfig(user="nobody")), table=False, belongings=sys.argv[1:])
"""


def test_a_link_in_the_place_of_a_belonging_is_not_followed(tmp_path: Path) -> None:
    """Its directory may be that user's, who would be given whatever file of root's he has put there."""
    roots, ours = tmp_path / "roots", tmp_path / "ours"
    roots.touch()
    ours.symlink_to(roots)
    subprocess.run([sys.executable, "-c", GIVE, str(ours)], check=True)
    nobody = find("nobody")
    assert nobody is not None
    assert roots.stat().st_uid == 0
    assert ours.lstat().st_uid == nobody.uid


GIVE_LOG = """
import sys
from ftpproxy.config import Config, ProcessConfig
from ftpproxy.process import drop_privileges
from ftpproxy.xferlog import Xferlog
log = Xferlog(sys.argv[1])
drop_privileges(Config(services=(), process=ProcessConfig(user="nobody")), table=False, xferlog=log)
log.reopen()
"""


@pytest.mark.parametrize("there", [False, True], ids=["new", "there"])
def test_the_transfer_log_can_be_opened_again(there: bool) -> None:
    """By whom the process became, in a directory of root's."""
    with tempfile.TemporaryDirectory(prefix="ftpproxy-log-") as folder:
        os.chmod(folder, 0o711)
        file = Path(folder, "xferlog")
        if there:
            file.touch(0o600)
        subprocess.run([sys.executable, "-c", GIVE_LOG, str(file)], check=True)
        nobody = find("nobody")
        assert nobody is not None
        assert file.stat().st_uid == nobody.uid


def test_an_unknown_user() -> None:
    assert find("no-such-user-here") is None
