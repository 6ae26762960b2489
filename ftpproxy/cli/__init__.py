"""The command line: `ftpproxy serve`, `check`, `rules`, `doctor`, `lab`, each a module of this package; and where the
first argument is none of these words, the flags of ftp-proxy(8) (`flags`).

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
from . import check, doctor, flags, lab, orders, rules, serve, sessions, status, top, trace
from .parser import EXIT_CODES, Command, HelpFormatter, Parser

__all__ = ["COMMANDS", "main"]

INTERRUPTED = 130
"""128 + SIGINT, as shells report it."""

COMMANDS: dict[str, Command] = {
    "serve": serve,
    "check": check,
    "rules": rules,
    "doctor": doctor,
    "status": status,
    "sessions": sessions,
    "top": top,
    "trace": trace,
    "kill": orders.KILL,
    "drain": orders.DRAIN,
    "reload": orders.RELOAD,
    "log-level": orders.LOG_LEVEL,
    "lab": lab,
}
"""In the order of `ftpproxy --help`."""


def _parser() -> Parser:
    """The parser for a command line that begins with no word: ftp-proxy(8)'s flags."""
    words = "\n".join(f"  {word:10}{command.SUMMARY}" for word, command in COMMANDS.items())
    parser = Parser(
        prog="ftpproxy",
        usage="%(prog)s COMMAND ...\n       %(prog)s [flags]",
        description=f"""\
An FTP proxy for NAT gateways: makes active and passive FTP work through address translation.

commands (each has its own --help):
{words}

Without a command it runs in the background as ftp-proxy(8) does, and as its flags say.""",
        epilog=f"""\
examples:
  ftpproxy check -c /etc/ftpproxy.toml            is the file right?
  ftpproxy rules -c /etc/ftpproxy.toml --apply    redirect FTP to the proxy
  ftpproxy serve -c /etc/ftpproxy.toml            run
  ftpproxy doctor -c /etc/ftpproxy.toml           is this gateway set up right?
  ftpproxy top                                    what goes on, live
  ftpproxy lab --help                             try it on this machine, in network namespaces
  ftpproxy -d -D 6                                run without a file, for clients behind this gateway
  ftpproxy -b 198.51.100.1 -p 21 -R 10.0.0.5      the same for a server behind it
  ftpproxy -R 10.0.0.5 --show >ftpproxy.toml      from flags to a file

{EXIT_CODES}""",
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"ftpproxy {__version__}")
    flags.add_flags(parser)
    return parser


def _parser_of(word: str) -> Parser:
    command = COMMANDS[word]
    parser = Parser(
        prog=f"ftpproxy {word}",
        description=command.DESCRIPTION,
        epilog=f"examples:\n{command.EXAMPLES}\n\n{EXIT_CODES}",
        formatter_class=HelpFormatter,
    )
    parser.set_defaults(word=word)
    command.add_arguments(parser)
    return parser


def _arguments(word: str, argv: Sequence[str]) -> argparse.Namespace:
    """`argv`, what stands behind the word, understood.  Raises `SystemExit` (64) where it is not, with what to write
    instead where that is clear."""
    parser = _parser_of(word)
    if word == "lab":
        from ..lab.cli import complaint

        arguments, unknown = parser.parse_known_args(argv)
        if (wrong := complaint(arguments, unknown, argv)) is not None:
            parser.exit(os.EX_USAGE, f"ftpproxy lab: {wrong}\n")
        return arguments
    if word in ("serve", "check", "rules", "doctor") and argv and not argv[0].startswith("-"):
        parser.exit(os.EX_USAGE, f"ftpproxy {word}: did you mean -c {argv[0]}?\n")
    return parser.parse_args(argv)


def _run_flags(argv: Sequence[str]) -> int:
    parser = _parser()
    if argv and not argv[0].startswith("-"):
        import difflib

        meant = difflib.get_close_matches(argv[0], COMMANDS, 1)
        known = f"did you mean {meant[0]}?" if meant else f"the commands are {', '.join(COMMANDS)}"
        parser.error(f"unknown command {argv[0]!r}; {known}")
    return flags.run(parser, parser.parse_args(argv))


def _run(argv: Sequence[str]) -> int:
    if not argv or argv[0] not in COMMANDS:
        return _run_flags(argv)
    word = argv[0]
    arguments = _arguments(word, argv[1:])
    if word == "lab":  # has no file, and need not wait for what reads one
        return lab.run(arguments)

    from ..config import ConfigError

    try:
        return COMMANDS[word].run(arguments)
    except ConfigError as error:
        for problem in error.problems:
            print(f"{arguments.config}: {problem}", file=sys.stderr)
        return os.EX_CONFIG


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (by default the process's own) and return its exit code.

    Raises `SystemExit` where argparse does: after --help and --version, and with 64 for a wrong usage.
    """
    try:
        words = sys.argv[1:] if argv is None else argv
        if "--inetd" in words:
            from ..inetd import apart

            return apart(lambda: _run(words))
        code = _run(words)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Who read our output has left, as `head` does.  The interpreter's own flush at exit must not complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
