"""`ftpproxy check`."""

from __future__ import annotations

import argparse
import os
import sys

from .parser import Parser, add_file

SUMMARY = "validate a configuration file"
DESCRIPTION = """\
Read the file as `serve` would.  Every problem is one line on standard error, FILE: key.path: reason,
and the exit code is 78."""
EXAMPLES = """\
  ftpproxy check -c /etc/ftpproxy.toml
  ftpproxy check -c /etc/ftpproxy.toml --show    the effective configuration, defaults included, as TOML"""


def add_arguments(parser: Parser) -> None:
    add_file(parser)
    parser.add_argument("--show", action="store_true", help="print the effective configuration")


def run(arguments: argparse.Namespace) -> int:
    from ..advice import exposition_missing, port_overlaps
    from ..config import load, show
    from ..show import count

    config = load(arguments.config)
    for overlap in port_overlaps(config):
        print(f'{arguments.config}: service "{overlap.service}".data_ports: warning: {overlap}', file=sys.stderr)
    if missing := exposition_missing(config.metrics):
        print(f"{arguments.config}: metrics.listen: warning: {missing}", file=sys.stderr)
    if arguments.show:
        print(show(config), end="")
    else:
        print(f"{arguments.config}: ok, {count(len(config.services), 'service')}")
    return os.EX_OK
