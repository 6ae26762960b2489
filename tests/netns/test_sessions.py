"""What a client sees of addresses, ports and ends, told by its own sockets and by a real server's log."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from ftpproxy.lab.demo import configs
from ftpproxy.lab.network import Lab, Topology
from ftpproxy.lab.proxy import Proxy

from .clients import CLIENTS, Mode, Site, complete
from .conftest import Deployments
from .deployments import KINDS, Deployment, state, until
from .dialogue import Control, call, drain, listen
from .exercise import make, scratch
from .servers import FtpServer

pytestmark = pytest.mark.netns

EVERYWHERE = pytest.mark.parametrize("kind", KINDS)
BOTH_FAMILIES = pytest.mark.parametrize("version", [4, 6], ids=["ipv4", "ipv6"])
CONTENT = bytes(range(256)) * 40


@contextmanager
def stage(deployment: Deployment) -> Iterator[FtpServer]:
    """vsftpd with one file: it logs every line that it reads, and whose."""
    (deployment.server.files / "file").write_bytes(CONTENT)
    with deployment.explained():
        yield deployment.server


@EVERYWHERE
def test_who_obeys_and_who_ignores_the_227_meet(deployments: Deployments, kind: str) -> None:
    """Items 80, 81, 82: the 227 carries the dialled address; all ways to read it reach one place."""
    deployment = deployments(kind)
    site = deployment.site(4)
    with stage(deployment) as server, scratch() as local:
        with Control(deployment.client, site).login() as control:
            host, port = control.passive()
            assert host == site.host
            with call(deployment.client, host, port) as data:
                assert control.retrieve("file", data) == CONTENT
            control.quit()
        (server.files / "sub").mkdir()
        (server.files / "sub" / "file").write_bytes(CONTENT)
        for name, verb in (("curl", "EPSV"), ("ftplib", "PASV")):
            seen = len(server.log())
            complete(deployment.client, CLIENTS[name].get(site, Mode.DEFAULT, "sub", ["file"], local))
            assert (local / "file").read_bytes() == CONTENT
            assert f'"{verb}"' in server.log()[seen:]
            (local / "file").unlink()


@EVERYWHERE
@BOTH_FAMILIES
def test_epsv_works_at_the_dialled_address(deployments: Deployments, kind: str, version: int) -> None:
    """Item 82: the port of the 229 is reachable at the very address of the control connection."""
    deployment = deployments(kind)
    with stage(deployment), Control(deployment.client, deployment.site(version)).login() as control:
        with call(deployment.client, deployment.site(version).host, control.extended_passive()) as data:
            assert control.retrieve("file", data) == CONTENT
        control.quit()


@EVERYWHERE
@BOTH_FAMILIES
def test_server_sees_port_with_the_address_it_sees(deployments: Deployments, kind: str, version: int) -> None:
    """Items 83, 84: PORT and EPRT carry our source address; data come from the dialled host."""
    deployment = deployments(kind)
    with stage(deployment) as server, Control(deployment.client, deployment.site(version)).login() as control:
        seen = len(server.log())
        with listen(deployment.client, version) as listener:
            if version == 4:
                control.port(listener)
                got, (host, _) = control.retrieve_active("file", listener)
                assert got == CONTENT
                assert host == deployment.site(version).host
            control.extended_port(listener)
            got, (host, _) = control.retrieve_active("file", listener)
            assert got == CONTENT
            assert host == deployment.site(version).host
        control.quit()
        source = deployment.source(version)
        lines = [line for line in server.log()[seen:].splitlines() if re.search(r'"(PORT|EPRT) ', line)]
        assert len(lines) == 2 if version == 4 else len(lines) == 1
        for line in lines:
            assert re.search(rf'Client "(::ffff:)?{re.escape(source)}"', line), line
            assert source in line.replace(",", ".").rpartition('"P')[2] or f"|{source}|" in line, line


@EVERYWHERE
@BOTH_FAMILIES
def test_active_data_come_from_port_20(namespaces: None, kind: str, version: int) -> None:
    """Items 84, 85: with active_source_port = 20 the client's data peer is the dialled address, port 20; twice."""
    with Deployment(kind, "vsftpd", "active_source_port = 20") as deployment:
        with stage(deployment), Control(deployment.client, deployment.site(version)).login() as control:
            for _ in range(2):
                with listen(deployment.client, version) as listener:
                    control.extended_port(listener)
                    got, peer = control.retrieve_active("file", listener)
                assert got == CONTENT
                assert peer == (deployment.site(version).host, 20)
            control.quit()
        deployment.check_nothing_left()


@EVERYWHERE
def test_ten_transfers_leave_nothing(deployments: Deployments, kind: str) -> None:
    """Item 77: ten transfers of all four kinds in one session; afterwards no listener and no element, session open."""
    deployment = deployments(kind)
    with stage(deployment), Control(deployment.client, deployment.site(4)).login() as control:
        before = listening(deployment)
        control.passive()
        assert listening(deployment) != before, "an endpoint that is offered shows in what is compared"
        for number in range(10):
            if number % 4 == 0:
                data = call(deployment.client, *control.passive())
                assert control.retrieve("file", data) == CONTENT
            elif number % 4 == 1:
                data = call(deployment.client, deployment.site(4).host, control.extended_passive())
                assert control.retrieve("file", data) == CONTENT
            else:
                with listen(deployment.client, 4) as listener:
                    (control.port if number % 4 == 2 else control.extended_port)(listener)
                    assert control.retrieve_active("file", listener)[0] == CONTENT
        # The last reply passed after the transfer's end, so there is nothing to wait for.
        assert listening(deployment) == before
        control.quit()
    deployment.check_nothing_left()


def listening(deployment: Deployment) -> tuple[list[str], str]:
    """Listeners and rules of the gateway."""
    now = state(deployment.gateway)
    return [line for line in now.sockets if line.startswith("LISTEN")], now.rules


@EVERYWHERE
@pytest.mark.parametrize("address", ["0.0.0.0", "192.168.99.9"])
def test_server_that_lies_in_its_227(namespaces: None, kind: str, address: str) -> None:
    """Items 86, 87: a server's 227 with an address of no use works all the same, because nobody follows it."""
    with ExitStack() as stack:
        deployment = stack.enter_context(Deployment(kind, None))
        server = stack.enter_context(FtpServer("pure-ftpd", deployment.lab.server, "--forcepassiveip", address))
        stack.enter_context(deployment.explained())
        (server.files / "file").write_bytes(CONTENT)
        direct = Control(deployment.gateway, Site(deployment.lab.server.address(4), 4))
        assert stack.enter_context(direct.login()).passive()[0] == address
        control = stack.enter_context(Control(deployment.client, deployment.site(4)).login())
        host, port = control.passive()
        assert host == deployment.site(4).host
        with call(deployment.client, host, port) as data:
            assert control.retrieve("file", data) == CONTENT
        control.quit()


@EVERYWHERE
def test_bad_ports_and_the_session_lives(deployments: Deployments, kind: str) -> None:
    """Items 58, 130, 131: nonsense and foreign addresses get 501, low ports 504; the server hears none of it."""
    deployment = deployments(kind)
    with stage(deployment) as server, Control(deployment.client, deployment.site(4)).login() as control:
        seen = len(server.log())
        own = deployment.client.address(4).replace(".", ",")
        for line in ("PORT", "PORT 1,2,3", "PORT 300,1,1,1,4,1", "PORT 127,0,0,1,200,1", "EPRT |1|192.0.2.7|5000|"):
            control.say(line, 501)
        control.say(f"PORT {own},0,25", 504)
        control.say("EPRT |3|host|5000|", 522)
        assert not re.search(r'"(PORT|EPRT)', server.log()[seen:])
        with listen(deployment.client, 4) as listener:
            control.port(listener)
            assert control.retrieve_active("file", listener)[0] == CONTENT
        control.quit()


@EVERYWHERE
@pytest.mark.parametrize("moment", ["before", "behind", "at 150"])
def test_when_the_client_calls(deployments: Deployments, kind: str, moment: str) -> None:
    """Item 96: a client that calls before the verb, right behind it, or only when it has read the 150 is served."""
    deployment = deployments(kind)
    with stage(deployment), Control(deployment.client, deployment.site(4)).login() as control, ExitStack() as stack:
        place = control.passive()
        if moment == "before":
            data = stack.enter_context(call(deployment.client, *place))
        control.send("RETR file")
        if moment == "behind":
            data = stack.enter_context(call(deployment.client, *place))
        assert control.reply().code == 150
        if moment == "at 150":
            data = stack.enter_context(call(deployment.client, *place))
        assert drain(data) == CONTENT
        assert control.reply().code == 226
        control.quit()


@EVERYWHERE
@BOTH_FAMILIES
def test_data_port_that_cannot_be_reached(namespaces: None, kind: str, version: int) -> None:
    """Items 65, 99: a server whose firewall refuses its data ports is a 425 and no port; active mode works."""
    with Deployment(kind, "vsftpd") as deployment, stage(deployment):
        chain = "type filter hook input priority 0; ct state new tcp dport != 21 reject with tcp reset;"
        table = f"table inet closed {{ chain input {{ {chain} }}; }}"
        deployment.lab.server.run("nft", "-f", "-", input=table, check=True)
        with Control(deployment.client, deployment.site(version)).login() as control:
            if version == 4:
                control.say("PASV", 425)
            control.say("EPSV", 425)
            with listen(deployment.client, version) as listener:
                control.extended_port(listener)
                assert control.retrieve_active("file", listener)[0] == CONTENT
            control.quit()
        deployment.check_nothing_left()


@pytest.mark.parametrize("intercept", ["tproxy", "redirect"])
@BOTH_FAMILIES
def test_a_proxy_on_either_gateway(namespaces: None, intercept: str, version: int) -> None:
    """Item 81, NAT on both sides and a proxy on both gateways: every client in every mode."""
    with ExitStack() as stack:
        lab = stack.enter_context(Lab(Topology.BOTH_NAT))
        server = stack.enter_context(FtpServer("vsftpd", lab.server))
        proxies = [stack.enter_context(Proxy(lab.gateways[side], config)) for side, config in configs(lab, intercept)]
        site = Site(lab.server_address(version), version)
        (server.files / "sub").mkdir()
        (server.files / "sub" / "file").write_bytes(CONTENT)
        runs = [(client, mode) for client in CLIENTS.values() for mode in client.modes(version)]
        for client, mode in runs:
            with scratch() as local:
                complete(lab.client, client.get(site, mode, "sub", ["file"], local))
                assert (local / "file").read_bytes() == CONTENT
        for proxy in proxies:
            assert proxy.log.count(" session.open ") == len(runs)


@pytest.mark.parametrize("kind", ["tproxy", "redirect"])
@BOTH_FAMILIES
def test_dialling_the_listener_itself_is_refused(deployments: Deployments, kind: str, version: int) -> None:
    """Item 143: a call to the listener of a forward service has no server to go to: 421, and no session with itself."""
    deployment = deployments(kind)
    if kind == "tproxy":  # it listens on loopback, so only the gateway itself can dial it
        control = call(deployment.gateway, "127.0.0.1" if version == 4 else "::1", 8021)
    else:
        control = call(deployment.client, deployment.gateway.inside_address(version), 8021)
    with deployment.explained(), control:
        said = drain(control)
        assert said.startswith(b"421 "), said
        assert said.count(b"\r\n") == 1


@EVERYWHERE
def test_one_session_too_many(namespaces: None, kind: str) -> None:
    """Item 142: a client with as many sessions as it may have gets 421, and a session again when one has ended."""
    with (
        Deployment(kind, "vsftpd", "[service.limits]", "per_client = 2") as deployment,
        stage(deployment),
        ExitStack() as stack,
    ):
        site = deployment.site(4)
        first = stack.enter_context(Control(deployment.client, site).login())
        stack.enter_context(Control(deployment.client, site).login())
        with Control(deployment.client, site) as third:
            assert third.reply().code == 421
            with pytest.raises(EOFError):
                third.reply()
        first.quit()
        with pytest.raises(EOFError):
            first.reply()
        stack.enter_context(Control(deployment.client, site).login())


@EVERYWHERE
@BOTH_FAMILIES
def test_server_that_is_down(namespaces: None, kind: str, version: int) -> None:
    """The client of a server that does not answer gets 421 with the reason, and the end."""
    with Deployment(kind, None) as deployment, deployment.explained():
        with Control(deployment.client, deployment.site(version)) as control:
            reply = control.reply()
            assert reply.code == 421
            assert "refused" in reply.text.lower(), reply.text
            with pytest.raises(EOFError):
                control.reply()
        deployment.check_nothing_left()


@EVERYWHERE
@pytest.mark.parametrize("mode", ["passive", "active"])
def test_killed_proxy_is_a_reset_and_no_end_of_file(namespaces: None, kind: str, mode: str) -> None:
    """Item 93: `kill -9` in the middle of a relayed download reaches the client as a reset: no file looks complete."""
    size = 64 << 20
    with Deployment(kind, "vsftpd") as deployment, stage(deployment) as server:
        make(server.files / "big", size)
        with Control(deployment.client, deployment.site(4)).login() as control:
            with listen(deployment.client, 4) as listener:
                if mode == "active":
                    control.port(listener)
                    control.say("RETR big", 150)
                    data, _ = listener.accept()
                    data.settimeout(10)
                else:
                    data = call(deployment.client, *control.passive())
                    control.say("RETR big", 150)
            with data:
                # The rest is more than all buffers between hold: the relay is in the middle when it is killed.
                assert data.recv(1 << 16)
                deployment.proxy.process.send_signal(signal.SIGKILL)
                deployment.proxy.process.wait()
                with pytest.raises(ConnectionResetError):
                    drain(data)


@EVERYWHERE
def test_killed_proxy_does_not_complete_an_upload(namespaces: None, kind: str) -> None:
    """Item 93, the other way: the server learns of a broken upload and does not answer for a complete one."""
    with Deployment(kind, "vsftpd") as deployment, stage(deployment) as server:
        with Control(deployment.client, deployment.site(4)).login() as control:
            data = call(deployment.client, *control.passive())
            with data:
                control.say("STOR up", 150)
                data.sendall(CONTENT)
                until(lambda: (server.files / "up").stat().st_size == len(CONTENT), "the server has it all")
                deployment.proxy.process.send_signal(signal.SIGKILL)
                deployment.proxy.process.wait()
                with pytest.raises(ConnectionResetError):
                    drain(data)
        until(lambda: "UPLOAD" in server.log(), "the server knows the end")
        assert "FAIL UPLOAD" in server.log()


@EVERYWHERE
def test_a_killed_proxy_can_be_started_again(namespaces: None, kind: str) -> None:
    """Item 77, `kill -9` with an endpoint on offer: its remains hinder nobody, `rules --remove` clears them."""
    with Deployment(kind, "vsftpd") as deployment, stage(deployment):
        with Control(deployment.client, deployment.site(4)).login() as control:
            control.passive()
            deployment.proxy.process.send_signal(signal.SIGKILL)
            deployment.proxy.process.wait()
        again = Proxy(deployment.gateway, deployment.proxy.config)
        with again, Control(deployment.client, deployment.site(4)).login() as control:
            with call(deployment.client, *control.passive()) as data:
                assert control.retrieve("file", data) == CONTENT
            control.quit()
        # Its end removed the rules; what is left is the administrator's.
        assert "ftpproxy" not in state(deployment.gateway).rules
        for family in ("-4", "-6"):
            assert len(deployment.gateway.run("ip", family, "rule", "list").stdout.splitlines()) == 3 - (family == "-6")
            assert "local default" not in deployment.gateway.run("ip", family, "route", "list", "table", "all").stdout
