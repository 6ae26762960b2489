"""`ftpproxy rules`."""

from __future__ import annotations

import argparse
import os
import sys

from .parser import Parser, add_file, not_here

SUMMARY = "print, load or remove the redirect rules"
DESCRIPTION = """\
Print the nftables rules and policy routing that bring FTP connections to the services of the file, or load
them (replacing those of before), or remove everything of ours from the kernel.  With --chain, also insert into
a chain of your own that drops what it does not know the line that data connections need, or remove just that."""
EXAMPLES = """\
  ftpproxy rules -c /etc/ftpproxy.toml              look at them
  ftpproxy rules -c /etc/ftpproxy.toml --apply      load them (root); as often as you like
  ftpproxy rules -c /etc/ftpproxy.toml --apply --chain inet/filter/forward    and open your firewall
  ftpproxy rules --remove --chain inet/filter/forward    take that line away again, and nothing else
  ftpproxy rules --remove                           leave nothing behind (root); needs no file"""


def add_arguments(parser: Parser) -> None:
    chains = "[--chain FAMILY/TABLE/CHAIN]..."
    parser.usage = f"%(prog)s -c FILE [--apply {chains}]\n       %(prog)s --remove {chains}"
    add_file(parser, required=False)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--apply", action="store_true", help="load the rules into the kernel")
    what.add_argument("--remove", action="store_true", help="remove all rules and routes of ftpproxy from the kernel")
    parser.add_argument(
        "--chain",
        metavar="FAMILY/TABLE/CHAIN",
        action="append",
        default=[],
        help="a chain of yours, with `hook forward` or `hook input`: insert the line that it needs at its head, or with"
        " --remove take away this line only; may be repeated",
    )


def run(arguments: argparse.Namespace) -> int:
    if (arguments.apply or arguments.remove) and sys.platform != "linux":
        return not_here("rules", "only the rules of nftables are loaded here, which are")
    from .. import rules

    if arguments.config is None and not arguments.remove:
        print("ftpproxy rules: -c FILE is required, except with --remove", file=sys.stderr)
        return os.EX_USAGE
    if arguments.chain and not (arguments.apply or arguments.remove):
        print("ftpproxy rules: --chain goes with --apply or --remove", file=sys.stderr)
        return os.EX_USAGE
    try:
        _run(arguments)
    except rules.RulesError as error:
        print(f"ftpproxy rules: {error}", file=sys.stderr)
        if isinstance(error, rules.NoPermission):
            return os.EX_NOPERM
        return os.EX_UNAVAILABLE if isinstance(error, rules.Unavailable) else 1
    return os.EX_OK


def _run(arguments: argparse.Namespace) -> None:
    from .. import holes, rules
    from ..config import load

    if not (arguments.apply or arguments.remove):
        print(rules.text(load(arguments.config)), end="")
        return
    config = load(arguments.config) if arguments.apply else None
    chains = list(dict.fromkeys(arguments.chain))
    found = [holes.find(name) for name in chains]  # first of all: a wrong name changes nothing
    if config is None:
        if found:
            holes.close(found)
        else:
            holes.close_all()
            rules.remove()
        return
    if found:
        holes.check(found, config)
    rules.apply(config)
    if found:
        holes.open_in(found, config)
