"""CPython's own tests of ftplib, unmodified, with the proxy between their client and their server."""

from __future__ import annotations

import ast
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import frozen

from .conftest import unavailable
from .deployments import until
from .peers import PeerMissing, unpacked
from .trap import Trap

pytestmark = pytest.mark.netns

PYTHON = "/usr/bin/python3.11"
"""The distribution's: the suite and the library come from packages of the same version, and this runs them."""
NETWORK = ("TestFTPClass", "TestIPv6Environment", "TestTimeouts")
"""Classes whose every test opens a control connection."""
PLAIN = (*NETWORK, "TestFtpcpSecurity", "MiscTestCase")
OPAQUE = "after AUTH nobody but the ends can read PASV, and the trap leaves no way for data that nobody announced"
TLS = {"TestTLS_FTPClassMixin": OPAQUE, "TestTLS_FTPClass": OPAQUE}

BEHIND = "252.253.254.255"
"""The address of which the suite's server says that it is behind it.  One test wants to see it in the 227, so the proxy
says it too; ftplib dials it only if told to."""

_RESULT = re.compile(r"^(\w+) \(test\.test_ftplib\.(\w+)\.\w+\)(?:\n.*)? \.\.\. (.+)$", re.MULTILINE)
_RAN = re.compile(r"^Ran (\d+) tests? in ", re.MULTILINE)


@frozen
class Library:
    """Python's library with its tests, unpacked."""

    place: Path

    @property
    def suite(self) -> Path:
        return self.place / "test" / "test_ftplib.py"

    def run(self, trap: Trap, *classes: str) -> Run:
        done = trap.suite(
            PYTHON, "-W", "ignore", "-m", "unittest", "-v", *(f"test.test_ftplib.{name}" for name in classes),
            environment={"PYTHONPATH": str(self.place), "PYTHONDONTWRITEBYTECODE": "1"},
        )  # fmt: skip
        results = {(found[2], found[1]): found[3] for found in _RESULT.finditer(done.stdout)}
        ran = _RAN.search(done.stdout)
        assert ran is not None, done.stdout
        assert len(results) == int(ran[1]), done.stdout
        return Run(results, done.stdout)


@frozen
class Run:
    """What the suite said."""

    results: dict[tuple[str, str], str]
    """Class and test: `ok`, `FAIL`, `ERROR`, `skipped ...`."""
    output: str

    def of(self, name: str) -> dict[str, str]:
        return {test: result for (own, test), result in self.results.items() if own == name}


@frozen
class Trapped:
    """A run through the proxy, and what the proxy logged."""

    run: Run
    trap: Trap


@pytest.fixture(scope="module")
def library() -> Iterator[Library]:
    if os.geteuid() != 0:
        unavailable("needs root: the suite runs as a user of its own, the proxy as another")
    missing = [name for name in ("ip", "nft", "setpriv", PYTHON) if shutil.which(name) is None]
    if missing:
        unavailable(f"not installed: {', '.join(missing)}")
    try:
        place = unpacked("libpython3.11-testsuite", "libpython3.11-stdlib") / "usr/lib/python3.11"
    except PeerMissing as why:
        unavailable(str(why))
        raise AssertionError from why  # unreachable
    with tempfile.TemporaryDirectory(prefix="ftpproxy-suite-") as folder:
        os.chmod(folder, 0o755)  # the project may lie in root's home, where the suite's user may not look
        shutil.copytree(place, Path(folder, "lib"), symlinks=True)
        yield Library(Path(folder, "lib"))


@pytest.fixture(scope="module")
def trapped(library: Library) -> Iterator[Trapped]:
    with Trap(f'announce = {{ client = "{BEHIND}" }}') as trap:
        yield Trapped(library.run(trap, *PLAIN), trap)


def test_every_class_of_the_suite_is_known(library: Library) -> None:
    """A newer suite may have more."""
    tree = ast.parse(library.suite.read_text())
    tested = {
        node.name
        for node in tree.body + [each for block in tree.body if isinstance(block, ast.If) for each in block.body]
        if isinstance(node, ast.ClassDef)
        and any(isinstance(each, ast.FunctionDef) and each.name.startswith(("test", "setUp")) for each in node.body)
    }
    assert tested == {*PLAIN, *TLS}


@pytest.mark.parametrize(
    "name", [*PLAIN, *(pytest.param(name, marks=pytest.mark.skip(reason=why)) for name, why in TLS.items())]
)
def test_the_suite_passes_through_the_proxy(trapped: Trapped, name: str) -> None:
    """Items 2, 34, 36, 71, 77, 81, 96, 97."""
    results = trapped.run.of(name)
    assert results
    assert {test: result for test, result in results.items() if result != "ok"} == {}, (
        trapped.run.output + trapped.trap.log
    )


def test_it_was_the_proxy_that_it_went_through(trapped: Trapped) -> None:
    tests = [test for test in trapped.run.results if test[0] in NETWORK]
    log = trapped.trap.log
    until(lambda: trapped.trap.log.count(" session.close ") == trapped.trap.sessions, "every session has ended")
    assert trapped.trap.sessions >= len(tests)
    assert trapped.trap.transfers >= 30
    for host in (r"127\.0\.0\.1", r"\[::1\]"):
        assert re.search(rf" session\.open .* orig_server={host}:1\d{{4}} ", log), log
    assert "Traceback" not in trapped.trap.log
    assert "internal.error" not in trapped.trap.log


def test_without_the_proxy_the_suite_fails(library: Library) -> None:
    """The rule leaves no other way: what passes, passes through the proxy."""
    with Trap(proxy=False) as trap:
        results = library.run(trap, "TestFTPClass", "TestIPv6Environment").results
    assert set(results.values()) == {"ERROR"}


def test_without_the_trap_the_suite_passes(library: Library) -> None:
    """So whatever fails in it fails because of the proxy."""
    with Trap(proxy=False, rule=False) as trap:
        assert set(library.run(trap, *PLAIN).results.values()) == {"ok"}
