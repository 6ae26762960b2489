"""`ftpproxy serve`."""

from __future__ import annotations

import argparse
import os

from .parser import Parser, add_file

SUMMARY = "run from a configuration file"
DESCRIPTION = """\
Run in the foreground until SIGTERM or SIGINT; the log goes to standard error, or where [log] says.
With --inetd serve the one client at descriptor 0; the log goes to syslog or the journal."""
EXAMPLES = """\
  ftpproxy serve -c /etc/ftpproxy.toml
  ftp stream tcp nowait root /usr/local/sbin/ftpproxy ftpproxy serve --inetd -c /etc/ftpproxy.toml    # inetd.conf"""


def add_arguments(parser: Parser) -> None:
    add_file(parser)
    parser.add_argument(
        "--inetd", action="store_true", help="serve one session on descriptor 0, as inetd(8) starts it, and end with it"
    )
    parser.add_argument("--service", metavar="NAME", help="with --inetd: that service of the file (default: the first)")


def run(arguments: argparse.Namespace) -> int:
    from ..config import load

    if arguments.inetd:
        from ..inetd import serve

        return serve(load(arguments.config), arguments.service)
    from ..compose import run

    file = os.path.abspath(arguments.config)
    return run(load(arguments.config), lambda: load(file), file=file)
