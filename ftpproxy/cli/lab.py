"""`ftpproxy lab`: its arguments and its help are `lab.cli`'s."""

from __future__ import annotations

import argparse
import sys

from .parser import Parser, not_here

SUMMARY = "client, NAT gateways and server in network namespaces, to try things in"
DESCRIPTION = "Build networks on this machine, in namespaces of their own, and try the proxy in them."
EXAMPLES = "  ftpproxy lab --help"


def add_arguments(parser: Parser) -> None:
    from ..lab.cli import add_arguments

    add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    if sys.platform != "linux":
        return not_here("lab", "it is built from network namespaces")
    from ..lab.cli import run

    return run(arguments)
