"""`ftpproxy serve`."""

from __future__ import annotations

import argparse

from .parser import Parser, add_file

SUMMARY = "run from a configuration file"
DESCRIPTION = "Run in the foreground until SIGTERM or SIGINT; the log goes to standard error."
EXAMPLES = "  ftpproxy serve -c /etc/ftpproxy.toml"


def add_arguments(parser: Parser) -> None:
    add_file(parser)


def run(arguments: argparse.Namespace) -> int:
    from ..compose import run
    from ..config import load

    return run(load(arguments.config), file=arguments.config)
