"""What the commands that talk to a running process have in common: its socket, and how failures are told."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

from .parser import Parser

__all__ = ["add_json", "add_socket", "answered", "path_of", "print_json", "told"]


def add_socket(parser: Parser) -> None:
    """Give `parser` the options that say which process is meant."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--socket", metavar="PATH", help="its control socket (default: /run/ftpproxy/control)")
    which.add_argument("-c", "--config", metavar="FILE", help="its configuration, which says where the socket is")


def add_json(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")


def path_of(arguments: argparse.Namespace) -> str:
    """Where the process listens that is meant.  Raises `ConfigError`, `CallFailed`."""
    from ..control.caller import CallFailed

    if arguments.socket:
        return str(arguments.socket)
    from ..config import ControlConfig, load

    control = load(arguments.config).control if arguments.config else ControlConfig()
    if not control.socket:
        raise CallFailed(f"{arguments.config}: control.socket is empty: that process has no control socket", 69)
    return control.socket


def told(arguments: argparse.Namespace, do: Callable[[str], int]) -> int:
    """`do(path)`; what fails is one line on standard error."""
    from ..control.caller import CallFailed

    try:
        return do(path_of(arguments))
    except CallFailed as error:
        for problem in error.answer.get("problems", ()):
            print(problem, file=sys.stderr)
        print(f"ftpproxy {arguments.word}: {error}", file=sys.stderr)
        return error.code


def answered(arguments: argparse.Namespace, question: str, lines: Callable[[Any], Iterable[str]]) -> int:
    """Ask `question` and print the answer, as `lines` or as JSON; what fails is one line on standard error."""
    from ..control.caller import Caller

    def do(path: str) -> int:
        with Caller(path) as caller:
            answer = caller.ask(question)
        if arguments.json:
            print_json(answer)
        else:
            print("\n".join(lines(answer)))
        return os.EX_OK

    return told(arguments, do)


def print_json(value: object) -> None:
    import json

    print(json.dumps(value, indent=2))
