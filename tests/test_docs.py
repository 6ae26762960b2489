"""What is written about the command line is what it takes, in both directions.  (The keys of a file: test_config.)"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from ftpproxy.cli import COMMANDS, _parser
from ftpproxy.cli.parser import EXIT_CODES
from ftpproxy.config import parse
from ftpproxy.config.tables import SECTIONS

ROOT = Path(__file__).parent.parent
MANUAL = (ROOT / "man" / "ftpproxy.8").read_text()
FLAGS = {option for action in _parser()._actions for option in action.option_strings}


def section(name: str) -> str:
    return MANUAL.partition(f"\n.Sh {name}\n")[2].partition("\n.Sh ")[0]


def test_the_manual_page_has_the_flags_of_the_parser() -> None:
    items = re.findall(r"^\.It Fl (.*)$", section("FLAGS"), re.MULTILINE)
    named = {f"-{word}" for item in items for word in re.sub(r"Fl |Ar \w+|,", "", item).split()}
    assert named == FLAGS
    values = {item.split("Ar ")[1] for item in items if "Ar " in item}
    assert values == {"address", "host", "level", "port", "queue", "seconds", "sessions", "tag"}
    assert [item for item in items if "Ar " in item] == [item for item in items if item.split()[0] in set("abDmPpqRTt")]


def test_its_synopsis_has_them_too() -> None:
    synopsis = section("SYNOPSIS")
    (cluster,) = re.findall(r"^\.Op Fl (6\w+)$", synopsis, re.MULTILINE)
    others = re.findall(r"\bFl (\w|-\w+)\b(?! *\w)", synopsis) + re.findall(r"^\.Op Fl (\w) Ar", synopsis, re.MULTILINE)
    short = {option for option in FLAGS if len(option) == 2}
    assert {f"-{each}" for each in cluster} | {f"-{each}" for each in others if len(each) == 1} == short
    assert {f"-{each}" for each in others if len(each) > 1} == {
        option
        for action in _parser()._actions
        for option in action.option_strings
        if len(option) > 2 and (len(action.option_strings) == 1 or option == "--help")
    }


def test_help_has_them_all() -> None:
    options = _parser().format_help().partition("\noptions:\n")[2].partition("\nexamples:\n")[0]
    assert set(re.findall(r"(?<![\w-])--?\w[\w-]*", options)) - {"-vv"} == FLAGS


def test_manual_page_and_help_have_every_command() -> None:
    items = re.findall(r"^\.It (Cm .*)$", section("COMMANDS"), re.MULTILINE)
    named = [word for item in items for word in re.findall(r"\bCm (\w[\w-]*)", item)]
    assert sorted(named) == sorted(COMMANDS)
    words = _parser().format_help().partition("\n\n")[2].partition("\n\nWithout")[0]
    assert set(COMMANDS) == set(re.findall(r"^  ([\w-]+) ", words, re.MULTILINE))


def test_manual_page_and_help_have_the_same_exit_codes() -> None:
    codes = re.findall(r"^\.It (\d+)$", section("EXIT STATUS"), re.MULTILINE)
    assert codes == re.findall(r"(?<!\S)(\d+) ", EXIT_CODES)


def test_the_page_for_those_who_come_from_ftp_proxy_has_the_flags() -> None:
    table = (ROOT / "docs" / "ftp-proxy.md").read_text().partition("## Flags and keys")[2].partition("\n## ")[0]
    rows = [line.split("|")[1:3] for line in table.splitlines() if re.match(r"\| (`-|\| `--)", line)]
    named = {option for row in rows for cell in row for option in re.findall(r"`(--?[\w-]+)", cell)}
    assert named == FLAGS - {"-h", "--help", "--version"}


def test_the_manual_page_of_the_file_has_its_tables_and_examples_that_are_right() -> None:
    page = (ROOT / "man" / "ftpproxy.toml.5").read_text()
    assert set(re.findall(r"^\.It Li (.*)$", page, re.MULTILINE)) == {name for name in SECTIONS if name[0] == "["}
    examples = re.findall(r"^\.Bd -literal.*?\n(.*?)^\.Ed", page, re.MULTILINE | re.DOTALL)
    assert [parse(example).services[0].name for example in examples] == ["lan", "public-ftp"]


@pytest.mark.parametrize("page", sorted((ROOT / "man").glob("*.[58]")), ids=lambda page: page.name)
def test_mandoc_has_nothing_against_the_manual_pages(page: Path) -> None:
    if shutil.which("mandoc") is None:
        if os.environ.get("CI") == "true" and os.geteuid() == 0:
            pytest.fail("mandoc is missing (tests/system-packages.sh peers)")
        pytest.skip("mandoc is missing")
    done = subprocess.run(["mandoc", "-T", "lint", "-W", "warning", str(page)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
