"""`ftpproxy lab`: its arguments and its help are `lab.cli`'s."""

from __future__ import annotations

import argparse

from .parser import Parser

SUMMARY = "client, NAT gateways and server in network namespaces, to try things in"
DESCRIPTION = "Build networks on this machine, in namespaces of their own, and try the proxy in them."
EXAMPLES = "  ftpproxy lab --help"


def add_arguments(parser: Parser) -> None:
    from ..lab.cli import add_arguments

    add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    from ..lab.cli import run

    return run(arguments)
