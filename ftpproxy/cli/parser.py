"""What every command's parser has in common, and what a command is."""

from __future__ import annotations

import argparse
import os
import sys
from typing import NoReturn, Protocol

__all__ = ["EXIT_CODES", "Command", "HelpFormatter", "Parser", "add_file", "not_here"]

EXIT_CODES = """\
exit codes:
  0 done   1 failure   64 usage   69 something needed is missing or taken   77 permission   78 configuration
  130 interrupted
"""


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Descriptions as they are written, and options with their values on one line each."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=110)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        return f"{', '.join(action.option_strings)} {self._format_args(action, action.dest.upper())}"


class Parser(argparse.ArgumentParser):
    """An argparse parser whose usage errors exit with 64 (EX_USAGE), not 2."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(os.EX_USAGE, f"{self.prog}: {message}\n")


class Command(Protocol):
    """One word of the command line: a module of this package.  Importing it costs next to nothing: what it needs it
    imports when it runs."""

    SUMMARY: str
    """A few words for `ftpproxy --help`."""
    DESCRIPTION: str
    EXAMPLES: str
    """Lines that begin with two blanks."""

    def add_arguments(self, parser: Parser) -> None:
        """Called only where the command line has this word."""

    def run(self, arguments: argparse.Namespace) -> int:
        """Do it and return the exit code.  May raise `ConfigError`, if there is `arguments.config`."""


def add_file(parser: Parser, *, required: bool = True) -> None:
    """Give `parser` the option -c."""
    parser.add_argument(
        "-c", "--config", metavar="FILE", required=required, help="the configuration, TOML (docs/configuration.md)"
    )


def not_here(word: str, what: str) -> int:
    """Say that the command `word` is about Linux, which this is not; the exit code."""
    print(f"ftpproxy {word}: {what} of Linux, and this is {os.uname().sysname} (docs/bsd.md)", file=sys.stderr)
    return os.EX_UNAVAILABLE
