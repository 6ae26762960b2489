"""Where there is no Linux: every module, the commands and many tests, in interpreters that lack what only Linux has.

`PYTHONPATH=tests/elsewhere:. python -m pytest` runs any other test there; see tests/elsewhere/sitecustomize.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "ftpproxy").rglob("*.py")
    if path.name != "__main__.py"
)
TESTS = ("wire", "pi/test_dialogues.py", "properties", "session", "dtp", "intercept", "server/test_server.py")
"""Under tests/; those for which a system might matter, without the slowest."""
SLOW = "any_order or slow_receiver or killed_relay"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="this is elsewhere")


def elsewhere(*argv: str) -> subprocess.CompletedProcess[str]:
    """`python ARGV` there."""
    path = os.pathsep.join([str(ROOT / "tests" / "elsewhere"), str(ROOT)])
    return subprocess.run(
        [sys.executable, *argv],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, "EXAMPLES": "5"},
        check=False,
    )


def test_it_is_elsewhere() -> None:
    program = (
        "import os, select, selectors, socket, sys\n"
        "print(sys.platform, selectors.DefaultSelector.__name__, os.path.exists('/proc/self'),"
        " hasattr(os, 'splice'), hasattr(select, 'epoll'), hasattr(socket, 'IP_TRANSPARENT'))\n"
        "try: open('/proc/self/status')\nexcept FileNotFoundError: print('no /proc')\n"
        "import pyroute2"
    )
    done = elsewhere("-c", program)
    assert done.stdout == "freebsd15 PollSelector True False False False\nno /proc\n"
    assert "ModuleNotFoundError: import of pyroute2 halted" in done.stderr


def test_every_module_can_be_imported() -> None:
    assert len(MODULES) > 80
    program = f"import importlib\nfor name in {MODULES!r}: importlib.import_module(name)"
    done = elsewhere("-W", "error", "-c", program)
    assert (done.returncode, done.stderr) == (0, "")


def test_other_tests_pass() -> None:
    paths = [f"tests/{name}" for name in TESTS]
    done = elsewhere("-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", "-k", f"not ({SLOW})", *paths)
    assert done.returncode == 0, done.stdout
    assert " passed, " in done.stdout


@pytest.mark.parametrize("argv", [["--help"], ["check", "-c", "docs/examples/reverse.toml"]], ids=["help", "check"])
def test_the_command_line_works(argv: list[str]) -> None:
    done = elsewhere("-W", "error", "-m", "ftpproxy", *argv)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "argv",
    [["lab", "demo"], ["doctor", "-c", "docs/examples/reverse.toml"], ["rules", "--for", "nft", "--remove"]],
    ids=" ".join,
)
def test_what_needs_linux_says_so(argv: list[str]) -> None:
    done = elsewhere("-m", "ftpproxy", *argv)
    assert (done.returncode, done.stdout) == (69, "")
    assert done.stderr.startswith(f"ftpproxy {argv[0]}: ")
    assert "Linux" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_gate_of_linux_is_refused_by_name() -> None:
    done = elsewhere("-m", "ftpproxy", "check", "-c", "docs/examples/tproxy.toml")
    assert done.returncode == 78
    assert done.stderr.startswith('docs/examples/tproxy.toml: service "lan".intercept: "tproxy" is of Linux')


# -- what is installed with it ----------------------------------------------------------------------------------------


def needed(platform: str) -> Iterator[Distribution]:
    """Everything that `pip install ftpproxy` brings along on `platform`, a `sys.platform`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [Requirement(each) for each in project["dependencies"]]
    seen: set[str] = set()
    environment = {"sys_platform": platform, "os_name": "posix", "platform_system": platform, "extra": ""}
    while wanted:
        requirement = wanted.pop()
        if requirement.name in seen or (requirement.marker and not requirement.marker.evaluate(environment)):
            continue
        seen.add(requirement.name)
        found = distribution(requirement.name)
        yield found
        wanted += [Requirement(each) for each in found.requires or ()]


@pytest.mark.parametrize("platform", ["linux", "freebsd15", "openbsd7"])
def test_nothing_that_is_needed_is_compiled(platform: str) -> None:
    """A gateway has no compiler, and nobody builds wheels for a BSD."""
    try:
        distributions = list(needed(platform))
    except PackageNotFoundError as error:
        pytest.fail(f"{error} is needed and not installed")
    names = {each.name for each in distributions}
    assert {"trio", "attrs", "cattrs"} <= names
    assert ("pyroute2" in names) == (platform == "linux")
    for each in distributions:
        files = [str(file) for file in each.files or ()]
        assert files, each.name
        assert not [file for file in files if file.endswith((".so", ".pyd", ".dylib", ".a"))], each.name
        assert "Root-Is-Purelib: true" in (each.read_text("WHEEL") or ""), each.name
