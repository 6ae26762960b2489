"""Why something ended, failed or was refused, in the words of the closed list: real sockets on loopback."""

from __future__ import annotations

import errno
import logging
import socket
import struct
from collections.abc import Iterator

import pytest

from ftpproxy.doors import Doors
from ftpproxy.dtp.relay import RelayPlane
from ftpproxy.endpoints import Endpoint, Side
from ftpproxy.intercept.direct import DirectGate
from ftpproxy.intercept.interceptor import PortRange
from ftpproxy.pi.policy import CommandName, Policy, Timeouts
from ftpproxy.reasons import Code, Reason, call_failed, code_of, fields
from ftpproxy.terms import Terms

from .test_server import Stage


@pytest.fixture
def stage(caplog: pytest.LogCaptureFixture) -> Iterator[Stage]:
    caplog.set_level(logging.DEBUG)
    stage = Stage()
    yield stage
    stage.close()


def logged(caplog: pytest.LogCaptureFixture, name: str) -> list[dict[str, object]]:
    return [vars(record)["fields"] for record in caplog.records if record.getMessage() == name]


def ended(stage: Stage, caplog: pytest.LogCaptureFixture) -> Code:
    """The code of the one session, once it has ended."""
    stage.until(lambda: len(logged(caplog, "session.close")) == 1)
    (close,) = logged(caplog, "session.close")
    assert isinstance(close["code"], Code)
    return close["code"]


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@pytest.mark.parametrize(
    ("what", "code"),
    [
        ("QUIT", Code.QUIT),
        ("client closes", Code.CLIENT_CLOSED),
        ("client resets", Code.CLIENT_GONE),
        ("server closes", Code.SERVER_CLOSED),
        ("server resets", Code.SERVER_GONE),
        ("server says 421", Code.SERVER_DISMISSED),
        ("idle", Code.IDLE),
        ("HTTP", Code.CLIENT_FOREIGN),
        ("nonsense", Code.CLIENT_NONSENSE),
        ("wrong passwords", Code.CLIENT_FAILED_LOGINS),
        ("server speaks HTTP", Code.SERVER_FOREIGN),
        ("an operator", Code.OPERATOR),
    ],
)
def test_how_a_session_ended(stage: Stage, caplog: pytest.LogCaptureFixture, what: str, code: Code) -> None:
    stage.serve(policy=Policy(login_attempts=1), timeouts=Timeouts(idle=300, login=100_000))
    client, origin = stage.greeted()
    if what == "QUIT":
        client.send(b"QUIT\r\n")
        stage.hears(origin, b"QUIT\r\n")
        origin.send(b"221 bye\r\n")
        origin.close()
    elif what == "client closes":
        client.close()
    elif what == "client resets":
        reset(client)
    elif what == "server closes":
        origin.close()
    elif what == "server resets":
        reset(origin)
    elif what == "server says 421":
        origin.send(b"421 bye\r\n")
        origin.close()
    elif what == "idle":
        stage.session.sweep(stage.board.now + 301)
    elif what == "HTTP":
        client.send(b"GET / HTTP/1.1\r\n")
    elif what == "nonsense":
        client.send(b"\r\n" * 20)
    elif what == "wrong passwords":
        client.send(b"PASS x\r\n")
        stage.hears(origin, b"PASS x\r\n")
        origin.send(b"530 no\r\n")
    elif what == "server speaks HTTP":
        origin.send(b"HTTP/1.1 400 Bad Request\r\n")
    else:
        stage.session.dismiss("Good night.")
    assert ended(stage, caplog) is code


def test_a_server_that_refuses(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        nobody = Endpoint.from_sockaddr(sock.getsockname())
    stage.serve(servers=[nobody])
    stage.client()
    assert ended(stage, caplog) is Code.SERVER_REFUSED
    (unreachable,) = logged(caplog, "server.unreachable")
    assert (unreachable["code"], unreachable["server"]) == (Code.SERVER_REFUSED, nobody)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"most_sessions": 1}, Code.LIMIT_SESSIONS),
        ({"most_per_client": 1}, Code.LIMIT_PER_CLIENT),
    ],
)
def test_who_is_not_let_in(stage: Stage, caplog: pytest.LogCaptureFixture, changes: dict[str, int], code: Code) -> None:
    stage.serve(**changes)
    stage.greeted()
    stage.client()
    stage.until(lambda: bool(logged(caplog, "session.refused")))
    assert [each["code"] for each in logged(caplog, "session.refused")] == [code]


def test_what_is_denied_names_the_rule(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    deny = (CommandName("DELE"),)
    stage.serve(policy=Policy(require_login=False, deny=deny))
    client, _ = stage.greeted()
    client.send(
        b"DELE x\r\nSITE EXEC y\r\nPORT 127,0,0,1,0,80\r\nPORT 127,0,0,1,31,144\r\nPORT 1,2,3,4,200,1\r\nPASV x\r\n"
    )
    stage.until(lambda: len(logged(caplog, "command.denied")) == 5)
    assert [(each["code"], each["rule"], each["what"]) for each in logged(caplog, "command.denied")] == [
        (Code.POLICY_COMMAND, "deny: DELE", b"DELE x"),
        (Code.POLICY_COMMAND, "default", b"SITE EXEC y"),
        (Code.POLICY_PORT, "min_data_port", b"PORT 127,0,0,1,0,80"),
        (Code.POLICY_PORT, "deny_data_ports", b"PORT 127,0,0,1,31,144"),
        (Code.POLICY_PORT, "port_address", b"PORT 1,2,3,4,200,1"),
    ]


def test_a_data_connection_names_side_and_place(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """The server named a port where nobody listens."""
    doors = Doors(stage.board)
    gate = DirectGate(doors)
    plane = RelayPlane(gate, PortRange(20000, 20099), stage.board)
    terms = Terms(service="test", policy=Policy(require_login=False), timeouts=Timeouts(), planes=[plane])
    stage.serve(gate=gate, terms=terms)
    client, origin = stage.greeted()
    with socket.create_server(("127.0.0.1", 0)) as sock:
        nobody = Endpoint.from_sockaddr(sock.getsockname())
    client.send(b"EPSV\r\n")
    stage.hears(origin, b"EPSV\r\n")
    origin.send(b"229 (|||%d|)\r\n" % nobody.port)
    stage.hears(client, b"425 Can't open data connection.\r\n")
    (failed,) = logged(caplog, "data.failed")
    assert (failed["code"], failed["side"], failed["at"]) == (Code.DATA_REFUSED, Side.SERVER, nobody)
    stage.session.close()
    plane.close()
    doors.close()


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ECONNREFUSED, Code.DATA_REFUSED),
        (errno.ETIMEDOUT, Code.DATA_TIMEOUT),
        (errno.EPERM, Code.DATA_FIREWALL),
        (errno.EACCES, Code.DATA_FIREWALL),
        (errno.EHOSTUNREACH, Code.DATA_UNREACHABLE),
        (errno.ENETUNREACH, Code.DATA_UNREACHABLE),
        (errno.EADDRNOTAVAIL, Code.DATA_UNREACHABLE),
    ],
)
def test_calls_that_fail(number: int, code: Code) -> None:
    assert call_failed(number, "data") is code
    assert call_failed(number, "server").value == code.value.replace("data", "server")


def test_a_sentence_without_a_code_gets_the_one_of_its_place() -> None:
    assert code_of("as it is", Code.IDLE) is Code.IDLE
    assert code_of(Reason(Code.LOOP, "round and round"), Code.IDLE) is Code.LOOP
    assert fields("as it is", Code.IDLE) == {"code": Code.IDLE, "side": None, "at": None, "reason": "as it is"}
