"""The command line: `ftpproxy serve`, `check`, `rules`, `doctor`, `lab`, each a module of this package.

Exit codes are those of sysexits.h, so that a supervisor and a script can tell what happened: 0, 1 failure, 64 usage,
69 unavailable, 77 permission, 78 configuration; 130 after an interrupt.  Expected failures are one line each on
standard error, `ftpproxy: reason` or `FILE: key.path: reason`, and never a traceback.

What a command needs is imported when it runs: `ftpproxy --help` must not wait for trio and pyroute2.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from .. import __version__
from . import check, doctor, lab, rules, serve
from .parser import EXIT_CODES, Command, Parser

__all__ = ["COMMANDS", "main"]

INTERRUPTED = 130
"""128 + SIGINT, as shells report it."""

COMMANDS: dict[str, Command] = {"serve": serve, "check": check, "rules": rules, "doctor": doctor, "lab": lab}
"""In the order of `ftpproxy --help`."""


def _parser(first: str) -> Parser:
    """The parser for a command line that begins with `first`: the arguments of other commands it does not know."""
    parser = Parser(
        prog="ftpproxy",
        description="An FTP proxy for NAT gateways: makes active and passive FTP work through address translation.",
        epilog=f"""\
examples:
  ftpproxy check -c /etc/ftpproxy.toml            is the file right?
  ftpproxy rules -c /etc/ftpproxy.toml --apply    redirect FTP to the proxy
  ftpproxy serve -c /etc/ftpproxy.toml            run
  ftpproxy doctor -c /etc/ftpproxy.toml           is this gateway set up right?
  ftpproxy lab --help                             try it on this machine, in network namespaces

{EXIT_CODES}""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ftpproxy {__version__}")
    words = parser.add_subparsers(dest="first_word", metavar="COMMAND", required=True)
    for word, command in COMMANDS.items():
        of_command = words.add_parser(
            word,
            help=command.SUMMARY,
            description=command.DESCRIPTION,
            epilog=f"examples:\n{command.EXAMPLES}\n\n{EXIT_CODES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if word == first:
            command.add_arguments(of_command)
    return parser


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    """`argv` understood.  Raises `SystemExit` (64) where it is not, with what to write instead where that is clear."""
    first = argv[0] if argv else ""
    parser = _parser(first)
    if first.startswith("-") and first not in ("-h", "--help", "--version"):
        parser.error(f"unknown option {first}; a COMMAND comes first: {', '.join(COMMANDS)}")
    if first == "lab":
        from ..lab.cli import complaint

        arguments, unknown = parser.parse_known_args(argv)
        if (wrong := complaint(arguments, unknown, argv[1:])) is not None:
            parser.exit(os.EX_USAGE, f"ftpproxy lab: {wrong}\n")
        return arguments
    if first in ("serve", "check", "rules", "doctor") and len(argv) > 1 and not argv[1].startswith("-"):
        parser.exit(os.EX_USAGE, f"ftpproxy {first}: did you mean -c {argv[1]}?\n")
    return parser.parse_args(argv)


def _run(argv: Sequence[str]) -> int:
    arguments = _arguments(argv)
    if arguments.first_word == "lab":  # has no file, and need not wait for what reads one
        return lab.run(arguments)

    from ..config import ConfigError

    try:
        return COMMANDS[arguments.first_word].run(arguments)
    except ConfigError as error:
        for problem in error.problems:
            print(f"{arguments.config}: {problem}", file=sys.stderr)
        return os.EX_CONFIG


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (by default the process's own) and return its exit code.

    Raises `SystemExit` where argparse does: after --help and --version, and with 64 for a wrong usage.
    """
    try:
        code = _run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Who read our output has left, as `head` does.  The interpreter's own flush at exit must not complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
