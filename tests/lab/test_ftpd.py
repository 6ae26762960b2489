"""The lab's FTP server fails no transfer that nothing is wrong with."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from ftpproxy.endpoints import parse_address
from ftpproxy.lab.hosts import Loopback
from ftpproxy.lab.peers import FtpServer, Transfer, run
from ftpproxy.sockets import is_ours

CONTENT = os.urandom(300_000)


class Crowded(FtpServer):
    program = (sys.executable, str(Path(__file__).with_name("crowded_ftpd.py")))


@pytest.mark.skipif(not is_ours(parse_address("::1")), reason="no IPv6 here")
@pytest.mark.parametrize("verb", ["EPSV", "EPRT"])
def test_the_number_of_a_closed_socket_is_another_sessions_file(verb: str) -> None:
    here = Loopback()
    with Crowded(here, CONTENT, "--listen", "[::1]:0") as server:
        outcomes = run(here, {6: server.endpoints[0]}, server, [Transfer(verb, 6), Transfer(verb, 6, up=True)])
        assert {transfer: outcome.error for transfer, outcome in outcomes.items() if not outcome.ok} == {}, server.log
