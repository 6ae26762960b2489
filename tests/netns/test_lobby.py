"""More data connections of one address than there are ports: one more waits for the others, and for nobody for long."""

from __future__ import annotations

import re
from contextlib import ExitStack

import pytest

from ftpproxy.lab.hosts import DATA_PORTS
from ftpproxy.lab.network import Lab, Topology
from ftpproxy.lab.proxy import Proxy, forward

from .clients import Site
from .deployments import state, until
from .dialogue import Control, call, listen
from .servers import FtpServer

pytestmark = [pytest.mark.netns, pytest.mark.usefixtures("namespaces")]


@pytest.mark.parametrize(
    ("intercept", "planes"), [("tproxy", ["nft"]), ("tproxy", ["relay"]), ("redirect", ["nft", "relay"])]
)
def test_one_port_for_all(intercept: str, planes: list[str]) -> None:
    with Lab(Topology.CLIENT_NAT) as lab, ExitStack() as stack:
        gateway, client = lab.gateways["client"], lab.client
        server = stack.enter_context(FtpServer("pyftpdlib", lab.server))
        (server.files / "file").write_bytes(b"content")
        config = forward(gateway, intercept, planes=planes).replace(DATA_PORTS, "20000-20000")
        proxy = stack.enter_context(Proxy(gateway, config))
        before = state(gateway)
        controls = stack.enter_context(ExitStack())
        one, other, third = (
            controls.enter_context(Control(client, Site(lab.server_address(4), 4)).login()) for _ in range(3)
        )
        place = one.passive()
        other.send("PASV")  # and has to wait
        third.say("NOOP", 200)
        with call(client, *place) as data:
            assert one.retrieve("file", data) == b"content"
        assert other.reply().code == 227
        assert third.say("PASV").code == 425
        with call(client, *place) as data:
            assert other.retrieve("file", data) == b"content"
        assert third.passive() == place

        listeners = [stack.enter_context(listen(client, 4)) for _ in range(2)]
        one.port(listeners[0])
        host, port = listeners[1].getsockname()
        other.send(f"PORT {host.replace('.', ',')},{port >> 8},{port & 255}")
        assert one.retrieve_active("file", listeners[0])[0] == b"content"
        assert other.reply().code == 200
        assert other.retrieve_active("file", listeners[1])[0] == b"content"

        one.send("PASV")  # which waits for the third
        third.close()
        assert one.reply().code == 227
        controls.close()
        until(lambda: proxy.log.count("session.close") == 3, "the sessions end")
        until(lambda: state(gateway) == before, "nothing is left")
        refused = re.findall(r" data\.refused .*", proxy.log)
        assert len(refused) == len(planes), "the 425 alone"
        assert all("code=plane.ports" in each for each in refused)
