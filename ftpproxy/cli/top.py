"""`ftpproxy top`."""

from __future__ import annotations

import argparse
import os
import sys

from .control import add_socket, print_json, told
from .parser import Parser

SUMMARY = "the sessions of a running process, live"
DESCRIPTION = """\
Show the sessions: user, command, file, rate, who carries the data, age. Keys: q ends it, s takes the next column to
sort by, r turns the order round, k and a number end a session, blank looks again at once."""
EXAMPLES = """\
  ftpproxy top
  ftpproxy top --sort age
  ftpproxy top --once              print it once, also into a file
  ftpproxy top --json --once       the same for programs"""

SORTS = ("rate", "age", "idle", "id", "user")
LEAST_SECONDS = 0.5


def _seconds(text: str) -> float:
    value = float(text)
    if value < LEAST_SECONDS:
        raise argparse.ArgumentTypeError(f"at least {LEAST_SECONDS:g}")
    return value


def add_arguments(parser: Parser) -> None:
    add_socket(parser)
    parser.add_argument("--once", action="store_true", help="print it once")
    parser.add_argument("--json", action="store_true", help="print objects, one a line")
    parser.add_argument("--sort", choices=SORTS, default="rate", help="by what to sort (default: rate)")
    parser.add_argument("--interval", type=_seconds, default=2.0, metavar="SECONDS", help="between two looks (2)")


def run(arguments: argparse.Namespace) -> int:
    from ..control.caller import Caller

    if not (arguments.once or arguments.json or sys.stdout.isatty()):
        print("ftpproxy top: standard output is no terminal; --once prints it once", file=sys.stderr)
        return os.EX_USAGE

    def do(path: str) -> int:
        from .. import top

        with Caller(path) as caller:
            if arguments.json:
                top.stream(caller, print_json, once=arguments.once, seconds=arguments.interval)
            elif arguments.once:
                top.once(caller, arguments.sort)
            else:
                top.live(caller, arguments.sort, arguments.interval)
        return os.EX_OK

    return told(arguments, do)
