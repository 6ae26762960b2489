"""`ftpproxy doctor`."""

from __future__ import annotations

import argparse
import sys

from .parser import Parser, add_file, not_here

SUMMARY = "look for what is wrong with this gateway"
DESCRIPTION = """\
Look at this machine as it runs: rules, routes, firewall, listeners, ports, addresses, servers.  Each
finding says what is wrong, why it hurts, and the line that mends it.  Changes nothing.  The exit code is
0 only when everything could be looked at (as root) and nothing hurts, otherwise 1."""
EXAMPLES = """\
  ftpproxy doctor -c /etc/ftpproxy.toml
  ftpproxy doctor -c /etc/ftpproxy.toml --json    the findings as a list of objects"""


def add_arguments(parser: Parser) -> None:
    add_file(parser)
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(arguments: argparse.Namespace) -> int:
    if sys.platform != "linux":
        return not_here("doctor", "it looks at the rules, routes and files")
    from .. import doctor
    from ..config import load
    from ..show import count

    config = load(arguments.config)
    findings = doctor.examine(config, arguments.config)
    if arguments.json:
        print(doctor.as_json(findings), end="")
    elif findings:
        print(doctor.as_text(findings), end="")
    else:
        print(f"{arguments.config}: {count(len(config.services), 'service')}, nothing found")
    return int(any(finding.severity is not doctor.Severity.WORTH_KNOWING for finding in findings))
