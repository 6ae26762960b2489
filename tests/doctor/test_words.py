"""What the doctor says, and how: to people, to scripts, and where it may not look."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from ftpproxy.doctor.finding import Finding, Severity, as_json, as_text
from ftpproxy.lab.peers import environment

from .wards import KINDS, Wards

ROOT = Path(__file__).parents[2]
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
NOTHING = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")

FINDING = Finding(
    Severity.HURTS,
    "policy_route",
    "IPv6 packets with the mark 0x200000 are not routed to this machine: there is no `ip rule` and no route for it",
    "TPROXY gives packets to the proxy by this mark; without the route they go past it.",
    "ip -6 rule add priority 2121 fwmark 0x200000/0x200000 lookup 2121\nip -6 route replace local default dev lo",
    "lan",
)


def test_text_fits_a_terminal_and_lines_to_copy_are_whole() -> None:
    text = as_text([FINDING, FINDING])
    assert text.startswith(
        "hurts: IPv6 packets with the mark 0x200000 are not routed to this machine: there\n    is no "
    )
    assert "    -> ip -6 rule add priority 2121 fwmark 0x200000/0x200000 lookup 2121\n" in text
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("\n\n") == 1


def test_json_has_it_all() -> None:
    (found,) = json.loads(as_json([FINDING]))
    assert found["severity"] == "hurts"
    assert found["mend"] == FINDING.mend
    assert set(found) == {"severity", "name", "service", "what", "why", "mend"}
    assert json.loads(as_json([])) == []


def test_every_name_is_documented() -> None:
    """And nothing is documented that is not found."""
    sources = "".join(path.read_text() for path in (ROOT / "ftpproxy" / "doctor").glob("*.py"))
    given = set(re.findall(r"Severity\.\w+(?: if [^,]*)?,\s*\"([a-z_.]+)\"", sources))
    rows = re.findall(r"^\| `([a-z_.]+)` \|", (ROOT / "docs" / "doctor.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(given)


@pytest.mark.linux("the doctor")
def test_forward_mode_without_clients(tmp_path: Path) -> None:
    file = tmp_path / "f.toml"
    file.write_text((ROOT / "docs/examples/tproxy.toml").read_text().replace("clients", "#"))
    argv = [sys.executable, "-m", "ftpproxy", "doctor", "-c", str(file)]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr.startswith(f'{file}: service "lan".clients: ')


@pytest.mark.netns
@pytest.mark.parametrize("who", [NOTHING, NOBODY], ids=["root without capabilities", "nobody"])
@pytest.mark.parametrize("kind", KINDS)
def test_who_may_not_look_says_so(wards: Wards, kind: str, who: tuple[str, ...]) -> None:
    with wards.visit(kind) as patient, tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(patient.config)
        file.flush()
        Path(file.name).chmod(0o644)
        if patient.gateway.run(*who, sys.executable, "-c", "import ftpproxy.config", env=environment()).returncode:
            pytest.skip("others may not run this Python, or not read the project")
        done = patient.doctor("--json", file=Path(file.name), before=who)
        assert (done.returncode, done.stderr) == (1, "")
        found = json.loads(done.stdout)
        assert {each["severity"] for each in found} == {"not looked at"}
        said = " ".join(each["what"] + ": " + each["why"] for each in found)
        assert "run this as root" in said
        assert "firewall" in said
        assert "listeners" in said


@pytest.mark.netns
def test_a_broken_gateway_on_a_terminal(wards: Wards) -> None:
    with wards.visit("tproxy") as patient:
        patient.sh("nft delete table inet ftpproxy_intercept; ip rule del priority 2121")
        done = patient.doctor()
        patient.proxy.command("rules", "-c", str(patient.proxy.file), "--apply")
        assert (done.returncode, done.stderr) == (1, "")
        assert done.stdout.startswith("hurts: ")
        prose = [line for line in done.stdout.splitlines() if not line.startswith("    -> ")]
        assert max(map(len, prose)) <= 80
        assert f"    -> ftpproxy rules -c {patient.proxy.file} --apply\n" in done.stdout
