"""A proxy on a gateway starts itself anew in the middle of transfers, carried by the kernel and by the relay."""

from __future__ import annotations

import re
import signal
from contextlib import ExitStack

import pytest

from ftpproxy.lab.proxy import Proxy

from .deployments import KINDS, Deployment, until
from .dialogue import SECONDS, Control, call, drain, listen
from .exercise import content, make
from .test_kernel_plane import elements

pytestmark = [pytest.mark.netns, pytest.mark.usefixtures("namespaces")]

SIZE = 50_000_000
IDLE = 20


def restart(deployment: Deployment) -> None:
    restarted(deployment.proxy)


def restarted(proxy: Proxy) -> None:
    """It has started itself anew."""
    times = proxy.log.count(" restart.inherited ") + 1
    proxy.process.send_signal(signal.SIGUSR2)
    until(lambda: proxy.log.count(" restart.inherited ") == times, "it goes on")
    until(lambda: proxy.log.count(" ready ") == times + 1, "it is ready")


@pytest.mark.parametrize("plane", ["nft", "relay"])
@pytest.mark.parametrize("kind", KINDS)
def test_nobody_notices(kind: str, plane: str) -> None:
    """Idle sessions, endpoints that nobody has called yet, passive and active transfers, uploads; and nothing of it is
    left behind."""
    with Deployment(kind, "vsftpd", planes=(plane,)) as deployment, deployment.explained(), ExitStack() as stack:
        make(deployment.server.files / "file", SIZE)
        (deployment.server.files / "small").write_bytes(b"small")
        site = deployment.site(4)

        def session() -> Control:
            return stack.enter_context(Control(deployment.client, site).login())

        idle = [session() for _ in range(IDLE)]
        early, late, down, active, up = session(), session(), session(), session(), session()
        streams = {down: stack.enter_context(call(deployment.client, *down.passive()))}
        down.say("RETR file", 125, 150)
        listener = stack.enter_context(listen(deployment.client, 4))
        active.port(listener)
        active.say("RETR file", 125, 150)
        streams[active] = stack.enter_context(listener.accept()[0])
        got = {each: stream.recv(1000) for each, stream in streams.items()}
        upload = stack.enter_context(call(deployment.client, *up.passive()))
        up.say("STOR upload", 125, 150)
        upload.sendall(b"first")
        place = early.passive()
        late_listener = stack.enter_context(listen(deployment.client, 4))
        late.port(late_listener)

        restart(deployment)
        for control in idle:
            control.say("NOOP", 200)
        with call(deployment.client, *place) as data:
            assert early.retrieve("small", data) == b"small"
        assert late.retrieve_active("small", late_listener)[0] == b"small"
        upload.sendall(b"second")
        restart(deployment)
        upload.sendall(b"third")
        upload.close()
        assert up.reply().code == 226
        assert (deployment.server.files / "upload").read_bytes() == b"firstsecondthird"
        expected = b"".join(content(SIZE))
        for control, stream in streams.items():
            stream.settimeout(SECONDS)
            assert got[control] + drain(stream) == expected
            assert control.reply().code == 226
        fresh = session()
        with call(deployment.client, *fresh.passive()) as data:
            assert fresh.retrieve("small", data) == b"small"
        for control in (*idle, early, late, down, active, up, fresh):
            control.quit()
        stack.close()
        until(lambda: len(deployment.ended(0)) == IDLE + 6, "all sessions end")
        log = deployment.proxy.log
        assert "session.lost" not in log
        assert "data.lost" not in log
        pattern = r' transfer .*what="RETR file".* down=(\d+) .*complete'
        until(lambda: len(re.findall(pattern, deployment.proxy.log)) == 2, "both downloads are logged")
        carried = [int(octets) for octets in re.findall(pattern, deployment.proxy.log)]
        for octets in carried:
            assert octets == SIZE if plane == "relay" else SIZE * 0.99 <= octets <= SIZE * 1.02
        assert re.search(r' transfer .*what="STOR upload".* up=16 .*result=complete', log)
        if plane == "nft":
            until(lambda: elements(deployment.gateway) == 0, "no element is left")
        deployment.check_nothing_left()
