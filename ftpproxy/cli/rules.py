"""`ftpproxy rules`."""

from __future__ import annotations

import argparse
import os
import sys

from .parser import Parser, add_file, not_here

SUMMARY = "print, load or remove the redirect rules"
DESCRIPTION = """\
Print the nftables rules and policy routing that bring FTP connections to the services of the file, or load
them (replacing those of before), or remove everything of ours from the kernel."""
EXAMPLES = """\
  ftpproxy rules -c /etc/ftpproxy.toml              look at them
  ftpproxy rules -c /etc/ftpproxy.toml --apply      load them (root); as often as you like
  ftpproxy rules --remove                           leave nothing behind (root); needs no file"""


def add_arguments(parser: Parser) -> None:
    parser.usage = "%(prog)s -c FILE [--apply]\n       %(prog)s --remove"
    add_file(parser, required=False)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--apply", action="store_true", help="load the rules into the kernel")
    what.add_argument("--remove", action="store_true", help="remove all rules and routes of ftpproxy from the kernel")


def run(arguments: argparse.Namespace) -> int:
    if (arguments.apply or arguments.remove) and sys.platform != "linux":
        return not_here("rules", "only the rules of nftables are loaded here, which are")
    from .. import rules
    from ..config import load

    if arguments.config is None and not arguments.remove:
        print("ftpproxy rules: -c FILE is required, except with --remove", file=sys.stderr)
        return os.EX_USAGE
    try:
        if arguments.remove:
            rules.remove()
        elif arguments.apply:
            rules.apply(load(arguments.config))
        else:
            print(rules.text(load(arguments.config)), end="")
    except rules.RulesError as error:
        print(f"ftpproxy rules: {error}", file=sys.stderr)
        if isinstance(error, rules.NoPermission):
            return os.EX_NOPERM
        return os.EX_UNAVAILABLE if isinstance(error, rules.Unavailable) else 1
    return os.EX_OK
