"""What leaves alone: boxes on the way look for PORT and 227 at the start of a segment only."""

from __future__ import annotations

from ftpproxy.endpoints import Endpoint, Side
from ftpproxy.pi.actions import Chunk, Need
from ftpproxy.pi.interpreter import ProtocolInterpreter
from ftpproxy.pi.policy import Policy

from ..script import ROUTES


def pumped(interpreter: ProtocolInterpreter) -> None:
    for side in (Side.SERVER, Side.CLIENT):
        while not isinstance(interpreter.next_action(side), Need):
            pass


def test_rewritten_lines_stand_alone() -> None:
    """Item 25."""
    interpreter = ProtocolInterpreter(ROUTES["forward"], Policy(require_login=False))
    interpreter.receive(Side.SERVER, b"220 hi\r\n")
    pumped(interpreter)
    assert interpreter.take_output(Side.CLIENT) == [Chunk(b"220 hi\r\n")]
    interpreter.receive(Side.CLIENT, b"PORT 10,77,1,2,200,1\r\n")
    pumped(interpreter)
    interpreter.path_opened({Side.SERVER: Endpoint.parse("203.0.113.1:20005")}, ready=True)
    assert interpreter.take_output(Side.SERVER) == [Chunk(b"PORT 203,0,113,1,78,37\r\n", alone=True)]
    interpreter.receive(Side.SERVER, b"500 no\r\n")
    interpreter.receive(Side.CLIENT, b"PASV\r\n")
    pumped(interpreter)
    interpreter.receive(Side.SERVER, b"227 (1,2,3,4,200,1)\r\n")
    pumped(interpreter)
    interpreter.take_output(Side.CLIENT)
    interpreter.path_opened({Side.CLIENT: Endpoint.parse("198.51.100.7:20001")}, ready=True)
    assert interpreter.take_output(Side.CLIENT) == [
        Chunk(b"227 Entering Passive Mode (198,51,100,7,78,33)\r\n", alone=True)
    ]
