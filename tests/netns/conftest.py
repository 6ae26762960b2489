"""Real servers and real clients through the proxy, on a real kernel.

Rules that keep these tests the same in every run:

* Every test stands on networks of its own process (`ftpx-PID-...`): nothing is shared with the machine or with another
  run, and no test sends a packet out of its namespaces.  No names are looked up; addresses come from the lab.
* The proxy runs as an administrator runs it: a file, `rules --apply`, `serve`.  Nothing in it is replaced.
* File content, its order and the choice of combinations come from fixed seeds and fixed orders.  Ports are the kernel's
  and the proxy's choice; no test expects a certain one.
* Waiting is for a condition with a deadline: a greeting, a reply, the end of a process, a socket that is gone.  Nobody
  sleeps for a while and hopes.  Nothing is tried twice, clients included.
* A deployment (lab, proxy) is shared by the tests of a run and each test leaves it as it was: sockets and rules of
  the gateway are compared with those from before the first client.  A test that breaks its proxy makes its own.
* Everything that was started is ended by the fixture that started it, also when the test failed; a server's processes
  live in a PID namespace that ends with its first, a host's with its network namespace.  What a run left that was
  itself killed is removed by the next.
* A run that cannot be done is skipped with the reason; under CI=true as root it fails instead.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from ftpproxy.lab.network import sweep

from .deployments import Deployment
from .peers import PeerMissing, unpacked
from .servers import sweep_directories


def unavailable(why: str) -> None:
    """Skip, or fail where skipping would hide that nothing was tested."""
    if os.environ.get("CI") == "true" and os.geteuid() == 0:
        pytest.fail(why)
    pytest.skip(why)


@pytest.fixture(scope="session")
def namespaces() -> None:
    """What every test here needs: namespaces, real servers, real clients."""
    if os.geteuid() != 0:
        unavailable("needs root: FTP servers change to the user who logs in, and one namespace has but one")
    os.environ["PATH"] += os.pathsep + "/usr/sbin:/sbin"  # which `su` does not set
    missing = [name for name in ("ip", "nft", "ss", "unshare", "curl", "lftp", "wget") if shutil.which(name) is None]
    if missing:
        unavailable(f"not installed: {', '.join(missing)} (tests/system-packages.sh peers)")
    tried = subprocess.run(["unshare", "--net", "--mount", "--pid", "--fork", "true"], capture_output=True, text=True)
    if tried.returncode:
        unavailable(f"no namespaces here: {tried.stderr.strip()}")
    sweep()
    sweep_directories()
    try:
        for packages in (("vsftpd",), ("pure-ftpd", "pure-ftpd-common"), ("proftpd-core",)):
            unpacked(*packages)
    except PeerMissing as why:
        unavailable(str(why))


class Deployments:
    """The deployments of this run, each built when it is first asked for."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._built: dict[tuple[str, str, str], Deployment] = {}
        self._used: set[tuple[str, str, str]] = set()

    def __call__(self, kind: str, server: str = "vsftpd", plane: str = "relay") -> Deployment:
        which = kind, server, plane
        if which not in self._built:
            self._built[which] = self._stack.enter_context(Deployment(kind, server, planes=[plane]))
        self._used.add(which)
        return self._built[which]

    def check(self) -> None:
        """Hold the deployments that the test used against what they were before the first client."""
        used, self._used = self._used, set()
        for each in sorted(used):
            self._built[each].check_nothing_left()

    def close(self) -> None:
        self._stack.close()


@pytest.fixture(scope="session")
def all_deployments(namespaces: None) -> Iterator[Deployments]:
    built = Deployments()
    try:
        yield built
    finally:
        built.close()


@pytest.fixture
def deployments(all_deployments: Deployments) -> Iterator[Deployments]:
    """The shared deployments; after the test nothing of it may be left on any gateway."""
    yield all_deployments
    all_deployments.check()
