"""The commands that change a running process: `ftpproxy kill`, `drain`, `reload`, `log-level`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from typing import Any

from .control import add_json, add_socket, print_json, told
from .parser import Parser

__all__ = ["DRAIN", "KILL", "LOG_LEVEL", "RELOAD"]


class Order:
    """A command that is one request, perhaps with one argument."""

    def __init__(
        self,
        summary: str,
        description: str,
        examples: str,
        say: Callable[[Mapping[str, Any]], str],
        operand: str = "",
        **of_operand: Any,
    ) -> None:
        """`say` puts the answer into words; `operand` is the name of the argument, `of_operand` what argparse is told
        of it."""
        self.SUMMARY = summary
        self.DESCRIPTION = description
        self.EXAMPLES = examples
        self._say = say
        self._operand = operand
        self._of_operand = of_operand

    def add_arguments(self, parser: Parser) -> None:
        if self._operand:
            parser.add_argument(self._operand, **self._of_operand)
        add_socket(parser)
        add_json(parser)

    def run(self, arguments: argparse.Namespace) -> int:
        from ..control.caller import Caller

        def do(path: str) -> int:
            given = {self._operand: getattr(arguments, self._operand)} if self._operand else {}
            with Caller(path) as caller:
                result = caller.ask(arguments.word, **given)
            if arguments.json:
                print_json(result)
            else:
                print(self._say(result))
            return os.EX_OK

        return told(arguments, do)


def number(text: str) -> int:
    """`17` or `#17`."""
    digits = text.removeprefix("#")
    if not (digits.isascii() and digits.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not the number of a session; ftpproxy sessions has them")
    return int(digits)


def _reloaded(result: Mapping[str, Any]) -> str:
    return "\n".join(["reloaded", *result["notes"]])


KILL = Order(
    summary="end one session of a running process",
    description="End a session: its client is told 421.  Only root may.",
    examples="  ftpproxy kill 17",
    operand="session",
    type=number,
    metavar="ID",
    help="its number (ftpproxy sessions)",
    say=lambda result: f"session {result['session']} has ended",
)
DRAIN = Order(
    summary="let nobody in any more, and end when the last has left",
    description="Stop accepting.  Sessions go on as long as they like; the process ends with the last.  Only root may.",
    examples="  ftpproxy drain",
    say=lambda result: f"draining; sessions left: {result['sessions']}",
)
RELOAD = Order(
    summary="read the configuration again",
    description="""\
Have the file read and checked again, and used for new sessions.  A file that is wrong is refused whole: its problems
are printed, nothing changes, and the exit code is 78.  What cannot change without a restart is named.
Only root may.""",
    examples="  ftpproxy reload",
    say=_reloaded,
)
LOG_LEVEL = Order(
    summary="log more or less from now on",
    description="Change what is logged, until the next reload or restart.  Only root may.",
    examples="  ftpproxy log-level debug",
    operand="level",
    choices=("debug", "info", "notice", "warning", "error", "critical"),
    help="as [log] level",
    say=lambda result: f"log level {result['level']}",
)
