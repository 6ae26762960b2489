"""What is logged is what was transferred: fifty random transfers on each plane, by real sockets and a real server.

Sizes are log-uniform between 1 octet and 256 MiB; some are 0, some 256 MiB.  The kernel plane counts packets, so its
figure is an estimate; where no segment was sent twice it must be right to the octet, whatever the size.
"""

from __future__ import annotations

import math
import os
import random
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from attrs import frozen

from ftpproxy.lab.network import Host

from .deployments import KINDS, Deployment, until
from .dialogue import SECONDS, Control, call, listen
from .exercise import folder

pytestmark = [pytest.mark.netns, pytest.mark.usefixtures("namespaces")]

TRANSFERS = 50
LARGEST = 256 << 20
SEED = 3659  # the standard of extensions (RFC 3659)
SEGMENT = 65536
"""The largest that a virtual interface carries at once; what was sent twice may have been as large."""


@frozen
class Transfer:
    kind: str
    version: int
    active: bool
    up: bool
    size: int

    def __str__(self) -> str:
        mode, verb = "active" if self.active else "passive", "STOR" if self.up else "RETR"
        return f"{self.kind} IPv{self.version} {mode} {verb} {self.size}"


def some_transfers() -> Iterator[Transfer]:
    chance = random.Random(SEED)
    extremes = [0] * 5 + [LARGEST] * 2
    for number in range(TRANSFERS):
        size = extremes[number] if number < len(extremes) else round(math.exp(chance.uniform(0, math.log(LARGEST))))
        yield Transfer(chance.choice(KINDS), chance.choice([4, 6]), chance.random() < 0.5, chance.random() < 0.5, size)


def carry(control: Control, transfer: Transfer) -> None:
    """Do it.  Zeros are as good as anything here: who checks content is `exercise`."""
    host, version = control.host, transfer.version
    command = f"{'STOR sizes/up' if transfer.up else f'RETR sizes/{transfer.size}'}"
    with ExitStack() as stack:
        if transfer.active:
            listener = stack.enter_context(listen(host, version))
            (control.port if version == 4 else control.extended_port)(listener)
            control.say(command, 125, 150)
            data = stack.enter_context(listener.accept()[0])
        else:
            place = control.passive() if version == 4 else (control.site.host, control.extended_passive())
            data = stack.enter_context(call(host, *place))
            control.say(command, 125, 150)
        data.settimeout(SECONDS)
        if transfer.up:
            with os.fdopen(os.memfd_create("zeros"), "rb") as zeros:
                os.truncate(zeros.fileno(), transfer.size)
                assert data.sendfile(zeros) == transfer.size
        else:
            got = 0
            while octets := data.recv(1 << 24, socket.MSG_TRUNC):  # tcp(7): thrown away unseen
                got += len(octets)
            assert got == transfer.size
    assert control.reply().code == 226


def retransmitted(*hosts: Host) -> int:
    """Segments that they have sent again."""
    said = [host.run("nstat", "-asz", "TcpRetransSegs", check=True).stdout for host in hosts]
    return sum(int(count) for text in said for count in re.findall(r"TcpRetransSegs +(\d+)", text))


@pytest.mark.parametrize("plane", ["nft", "relay"])
def test_fifty_random_transfers(plane: str) -> None:
    wanted = list(some_transfers())
    assert {transfer.kind for transfer in wanted} == set(KINDS)
    again = exact = 0
    for kind in KINDS:
        mine = [transfer for transfer in wanted if transfer.kind == kind]
        with Deployment(kind, "vsftpd", planes=[plane]) as deployment, ExitStack() as stack:
            stack.enter_context(deployment.explained())
            place = stack.enter_context(folder(deployment.server, "sizes"))
            controls = {
                version: stack.enter_context(Control(deployment.client, deployment.site(version)).login())
                for version in (4, 6)
            }
            ends = deployment.lab.client, deployment.lab.server
            for number, transfer in enumerate(mine):
                (place / str(transfer.size)).touch()
                os.truncate(place / str(transfer.size), transfer.size)
                before = retransmitted(*ends)
                carry(controls[transfer.version], transfer)
                until(lambda n=number: len(logged(deployment)) > n, f"{transfer} is logged")  # type: ignore[misc]
                down, up, estimate = logged(deployment)[number]
                if transfer.up:
                    assert (place / "up").stat().st_size == transfer.size
                    (place / "up").unlink()
                got, other = (up, down) if transfer.up else (down, up)
                assert other == 0, transfer
                assert estimate == (plane == "nft")
                twice = retransmitted(*ends) - before if plane == "nft" else 0
                assert transfer.size <= got <= transfer.size + twice * SEGMENT, f"{transfer}: {got} logged"
                again += got - transfer.size
                exact += got == transfer.size
    assert again <= sum(transfer.size for transfer in wanted) / 100
    assert exact == TRANSFERS or plane == "nft"


def logged(deployment: Deployment) -> list[tuple[int, int, bool]]:
    """Of each complete transfer: octets down, octets up, whether that is an estimate."""
    pattern = r" transfer .* down=(\d+) up=(\d+) result=complete (.*)"
    found = re.findall(pattern, deployment.proxy.log)
    return [(int(down), int(up), "estimate=yes" in rest) for down, up, rest in found]
