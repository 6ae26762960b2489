"""`ftpproxy rules`."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from .parser import Parser, add_file, not_here

if TYPE_CHECKING:
    from ..pf.anchor import Dialect

SUMMARY = "print, load or remove the redirect rules"
DESCRIPTION = """\
Print the rules that bring FTP connections to the services of the file: for nftables, with the policy routing that
belongs to them, or for pf.  Those of nftables it can also load (replacing those of before), and remove everything
of ours from the kernel.  With --chain, also insert into a chain of your own that drops what it does not know the
line that data connections need, or remove just that."""
EXAMPLES = """\
  ftpproxy rules -c /etc/ftpproxy.toml                     look at them
  ftpproxy rules -c /etc/ftpproxy.toml --for pf-freebsd    a pf.conf, for FreeBSD
  ftpproxy rules -c /etc/ftpproxy.toml --apply             load them (Linux, root); as often as you like
  ftpproxy rules -c /etc/ftpproxy.toml --apply --chain inet/filter/forward    and open your firewall
  ftpproxy rules --remove --chain inet/filter/forward      take that line away again, and nothing else
  ftpproxy rules --remove                                  leave nothing behind (Linux, root); needs no file"""

FORMS = {"nft": "linux", "pf-openbsd": "openbsd", "pf-freebsd": "freebsd"}
"""Kinds of rules, and the system that reads them."""


def add_arguments(parser: Parser) -> None:
    chains = "[--chain FAMILY/TABLE/CHAIN]..."
    parser.usage = f"%(prog)s -c FILE [--for FORM]\n       %(prog)s -c FILE --apply {chains}\n"
    parser.usage += f"       %(prog)s --remove {chains}"
    add_file(parser, required=False)
    parser.add_argument(
        "--for", dest="form", choices=FORMS, metavar="FORM", help=f"one of {', '.join(FORMS)}; by default this system's"
    )
    for option, where, default in (("--ext-if", "the Internet", "em0"), ("--int-if", "the other hosts", "em1")):
        parser.add_argument(
            option,
            metavar="NAME",
            type=_interface,
            default=default,
            help=f"pf: the interface towards {where} ({default})",
        )
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


def _interface(name: str) -> str:
    from ..pfconf import is_interface

    if not is_interface(name):
        raise argparse.ArgumentTypeError(f"{name!r} is not the name of an interface")
    return name


def run(arguments: argparse.Namespace) -> int:
    form = arguments.form or next((form for form, system in FORMS.items() if sys.platform.startswith(system)), None)
    changing = arguments.apply or arguments.remove
    if form is None:
        print(f"ftpproxy rules: --for is needed on this system: one of {', '.join(FORMS)}", file=sys.stderr)
        return os.EX_USAGE
    if changing and form != "nft":
        print(
            "ftpproxy rules: pf.conf is yours: take the printed lines over, and load it with pfctl -f", file=sys.stderr
        )
        return os.EX_USAGE
    if changing and sys.platform != "linux":
        return not_here("rules", "nftables is")
    if arguments.config is None and not arguments.remove:
        print("ftpproxy rules: -c FILE is required, except with --remove", file=sys.stderr)
        return os.EX_USAGE
    if arguments.chain and not changing:
        print("ftpproxy rules: --chain goes with --apply or --remove", file=sys.stderr)
        return os.EX_USAGE
    return _of_nft(arguments) if form == "nft" else _of_pf(arguments, "openbsd" if form == "pf-openbsd" else "freebsd")


def _of_pf(arguments: argparse.Namespace, dialect: Dialect) -> int:
    from .. import pfconf
    from ..config import load

    config = load(arguments.config, dialect)
    print(pfconf.text(config, dialect, outside=arguments.ext_if, inside=arguments.int_if), end="")
    return os.EX_OK


def _of_nft(arguments: argparse.Namespace) -> int:
    from .. import rules
    from ..config import load

    try:
        if arguments.remove or arguments.apply:
            _change(arguments)
        else:
            print(rules.text(load(arguments.config, "linux")), end="")
    except rules.RulesError as error:
        print(f"ftpproxy rules: {error}", file=sys.stderr)
        if isinstance(error, rules.NoPermission):
            return os.EX_NOPERM
        return os.EX_UNAVAILABLE if isinstance(error, rules.Unavailable) else 1
    return os.EX_OK


def _change(arguments: argparse.Namespace) -> None:
    from .. import holes, rules
    from ..config import load

    config = load(arguments.config) if arguments.apply else None
    # First, for a wrong name changes nothing:
    chains = [holes.find(name, config) for name in dict.fromkeys(arguments.chain)]
    if config is not None:
        holes.check(chains, config)
        rules.apply(config)
        if chains:
            holes.open_in(chains, config)
    elif chains:
        holes.close(chains)
    else:
        holes.close_all()
        rules.remove()
