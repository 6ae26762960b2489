"""The plane on pf with real clients and a real server: the stand-in for pfctl translates with the Linux kernel.

What the proxy does is what it does on a BSD, rules and all; only who reads the rules is another one.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from ..pf.on_nft import NftStandIn
from .clients import CLIENTS, Mode, complete
from .deployments import Deployment, until
from .dialogue import Control, call, drain
from .exercise import content, folder, make, same, scratch

pytestmark = [pytest.mark.netns, pytest.mark.usefixtures("namespaces")]

KINDS = ("tproxy", "reverse")
DIALECTS = ("openbsd", "freebsd")
Build = Callable[[str, str], Deployment]


@pytest.fixture(scope="module")
def pfctl(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NftStandIn]:
    pfctl = NftStandIn(tmp_path_factory.mktemp("pfctl") / "pf")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(pfctl.folder), prepend=":")
        yield pfctl


@pytest.fixture(scope="module")
def built(pfctl: NftStandIn) -> Iterator[dict[tuple[str, str], Deployment]]:
    with ExitStack() as stack:
        yield {(kind, dialect): stack.enter_context(deployed(kind, dialect)) for kind, dialect in zip(KINDS, DIALECTS)}  # noqa: B905


def deployed(kind: str, dialect: str, server: str = "pyftpdlib") -> Deployment:
    return Deployment(kind, server, "[service.pf]", f'dialect = "{dialect}"', planes=("pf",))


@pytest.fixture(params=[*zip(KINDS, DIALECTS)], ids=" ".join)  # noqa: B905
def deployment(request: pytest.FixtureRequest, built: dict[tuple[str, str], Deployment]) -> Iterator[Deployment]:
    found = built[request.param]
    with found.explained():
        yield found
    found.check_nothing_left()


@pytest.mark.parametrize(
    ("deployment", "client", "mode", "version"),
    [
        (("tproxy", "openbsd"), "curl", Mode.DEFAULT, 4),
        (("tproxy", "openbsd"), "ftplib", Mode.ACTIVE, 6),
        (("reverse", "freebsd"), "curl", Mode.DEFAULT, 6),
        (("reverse", "freebsd"), "ftplib", Mode.ACTIVE, 4),
    ],
    indirect=["deployment"],
)
def test_transfers(deployment: Deployment, client: str, mode: Mode, version: int) -> None:
    """Down and up, by checksum; every data connection goes by pf, and nothing is left on the gateway."""
    seen = len(deployment.proxy.log)
    host, site, real = deployment.client, deployment.site(version), CLIENTS[client]
    with folder(deployment.server, "down") as down, folder(deployment.server, "up") as up, scratch() as local:
        sums = {name: make(down / name, size) for name, size in (("one", 300_000), ("two", 1), ("none", 0))}
        complete(host, real.get(site, mode, "down", list(sums), local))
        same(sums, local)
        complete(host, real.put(site, mode, [local / name for name in sums], "up"))
        same(sums, up)
    until(lambda: len(logged(deployment, seen)) == 6, "six transfers are logged")
    assert set(logged(deployment, seen)) == {("pf", "complete")}
    assert sorted(deployment.ended(seen)) == [3, 3]


def logged(deployment: Deployment, seen: int) -> list[tuple[str, str]]:
    return re.findall(r" transfer .* plane=(\w+) .*result=(\w+)", deployment.proxy.log[seen:])


def test_what_is_logged_is_what_was_transferred(deployment: Deployment) -> None:
    """Also of a session that ends as soon as it can."""
    size = 5_000_000
    make(deployment.server.files / "size", size)
    seen = len(deployment.proxy.log)
    with Control(deployment.client, deployment.site(4)).login() as control:
        with call(deployment.client, *control.passive()) as data:
            assert len(control.retrieve("size", data)) == size
        control.quit()
    pattern = r" transfer .* what=\"RETR size\" .* down=(\d+) up=0 result=complete .* estimate=yes"
    until(lambda: re.search(pattern, deployment.proxy.log[seen:]) is not None, "it is logged")
    (logged,) = re.findall(pattern, deployment.proxy.log[seen:])
    assert size * 0.99 <= int(logged) <= size * 1.01


def test_killed_in_the_middle(pfctl: NftStandIn) -> None:
    """The transfer goes on, and the engine takes the rules down."""
    size = 20_000_000
    with deployed("reverse", "openbsd", "vsftpd") as deployment:
        make(deployment.server.files / "file", size)
        control = Control(deployment.client, deployment.site(4)).login()
        with control, call(deployment.client, *control.passive()) as data:
            control.say("RETR file", 125, 150)
            got = data.recv(1000)
            assert len(anchors(deployment)) == 1
            deployment.proxy.process.send_signal(signal.SIGKILL)
            deployment.proxy.process.wait()
            until(lambda: not anchors(deployment), "the engine takes the rules down")
            assert got + drain(data) == b"".join(content(size))


def anchors(deployment: Deployment) -> list[str]:
    return re.findall(r"inet (pf_\w+)", deployment.gateway.run("nft", "list", "tables", check=True).stdout)
