"""`ftpproxy trace`."""

from __future__ import annotations

import argparse
import os
import sys

from .control import add_socket, told
from .parser import Parser

SUMMARY = "watch both sides of a control connection live"
DESCRIPTION = """\
Show what client and server of a session say from now on, and what the other side gets where that is something else;
data connections as they open, carry and end. Passwords are not shown. With an address: of all sessions of that
client, also of those that begin later. Ends with the session, or at an interrupt."""
EXAMPLES = """\
  ftpproxy trace 17                session 17; ftpproxy sessions has the numbers
  ftpproxy trace 10.77.1.2         whatever this client does
  ftpproxy trace 17 --json         the records, one object a line"""


def add_arguments(parser: Parser) -> None:
    parser.add_argument("whom", metavar="ID|ADDRESS", help="a session by its number, or a client by its address")
    add_socket(parser)
    parser.add_argument("--json", action="store_true", help="print the records as JSON, one a line")


def run(arguments: argparse.Namespace) -> int:
    import json

    from .. import trace
    from ..control.caller import Caller

    whom = arguments.whom.lstrip("#")
    asked: dict[str, object] = {"session": int(whom)} if whom.isascii() and whom.isdigit() else {"address": whom}

    def do(path: str) -> int:
        with Caller(path) as caller:
            caller.ask("trace", **asked)
            colour = sys.stdout.isatty()
            if colour and not arguments.json:
                print(trace.LEGEND, flush=True)
            try:
                for record in caller.records():
                    print(json.dumps(record) if arguments.json else trace.line(record, colour=colour), flush=True)
            except KeyboardInterrupt:
                if colour:
                    print()
        return os.EX_OK

    return told(arguments, do)
