"""The command line: `ftpproxy serve`, `check`, `rules`, `doctor`, `lab`.

Exit codes are those of sysexits.h, so that a supervisor and a script can tell what happened: 0, 1 failure, 64 usage,
69 unavailable, 77 permission, 78 configuration; 130 after an interrupt.  Expected failures are one line each on
standard error, `ftpproxy: reason` or `FILE: key.path: reason`, and never a traceback.

What a command needs is imported when it runs: `ftpproxy --help` must not wait for trio and pyroute2.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from . import __version__

if TYPE_CHECKING:
    from .config import Config

__all__ = ["main"]

INTERRUPTED = 130
"""128 + SIGINT, as shells report it."""

EXIT_CODES = """\
exit codes:
  0 done   1 failure   64 usage   69 something needed is missing or taken   77 permission   78 configuration
  130 interrupted
"""


class Parser(argparse.ArgumentParser):
    """An argparse parser whose usage errors exit with 64 (EX_USAGE), not 2."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(os.EX_USAGE, f"{self.prog}: {message}\n")


def _parser(first: str) -> Parser:
    parser = Parser(
        prog="ftpproxy",
        description="An FTP proxy for NAT gateways: makes active and passive FTP work through address translation.",
        epilog=f"""\
examples:
  ftpproxy check -c /etc/ftpproxy.toml            is the file right?
  ftpproxy rules -c /etc/ftpproxy.toml --apply    redirect FTP to the proxy
  ftpproxy serve -c /etc/ftpproxy.toml            run
  ftpproxy doctor -c /etc/ftpproxy.toml           is this gateway set up right?
  ftpproxy lab --help                             try it on this machine, in network namespaces

{EXIT_CODES}""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ftpproxy {__version__}")
    commands = parser.add_subparsers(dest="first_word", metavar="COMMAND", required=True)

    serve = _command(
        commands,
        "serve",
        "run from a configuration file",
        "Run in the foreground until SIGTERM or SIGINT; the log goes to standard error.",
        "  ftpproxy serve -c /etc/ftpproxy.toml",
    )
    _file(serve)

    check = _command(
        commands,
        "check",
        "validate a configuration file",
        "Read the file as `serve` would.  Every problem is one line on standard error, FILE: key.path: reason,\n"
        "and the exit code is 78.",
        "  ftpproxy check -c /etc/ftpproxy.toml\n"
        "  ftpproxy check -c /etc/ftpproxy.toml --show    the effective configuration, defaults included, as TOML",
    )
    _file(check)
    check.add_argument("--show", action="store_true", help="print the effective configuration")

    rules = _command(
        commands,
        "rules",
        "print, load or remove the redirect rules",
        "Print the nftables rules and policy routing that bring FTP connections to the services of the file, or load\n"
        "them (replacing those of before), or remove everything of ours from the kernel.",
        "  ftpproxy rules -c /etc/ftpproxy.toml              look at them\n"
        "  ftpproxy rules -c /etc/ftpproxy.toml --apply      load them (root); as often as you like\n"
        "  ftpproxy rules --remove                           leave nothing behind (root); needs no file",
    )
    rules.usage = "%(prog)s -c FILE [--apply]\n       %(prog)s --remove"
    _file(rules, required=False)
    what = rules.add_mutually_exclusive_group()
    what.add_argument("--apply", action="store_true", help="load the rules into the kernel")
    what.add_argument("--remove", action="store_true", help="remove all rules and routes of ftpproxy from the kernel")

    doctor = _command(
        commands,
        "doctor",
        "look for what is wrong with this gateway",
        "Look at this machine as it runs: rules, routes, firewall, listeners, ports, addresses, servers.  Each\n"
        "finding says what is wrong, why it hurts, and the line that mends it.  Changes nothing.  The exit code is\n"
        "0 only when everything could be looked at (as root) and nothing hurts, otherwise 1.",
        "  ftpproxy doctor -c /etc/ftpproxy.toml\n"
        "  ftpproxy doctor -c /etc/ftpproxy.toml --json    the findings as a list of objects",
    )
    _file(doctor)
    doctor.add_argument("--json", action="store_true", help="print the findings as JSON")

    lab = _command(  # its help is set by lab.cli, which alone knows the rest
        commands,
        "lab",
        "client, NAT gateways and server in network namespaces, to try things in",
        "Build networks on this machine, in namespaces of their own, and try the proxy in them.",
        "  ftpproxy lab --help",
    )
    if first == "lab":
        from .lab.cli import add_arguments

        add_arguments(lab)
    return parser


def _command(
    commands: argparse._SubParsersAction[Parser], name: str, summary: str, description: str, examples: str
) -> Parser:
    return commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=f"examples:\n{examples}\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _file(parser: Parser, *, required: bool = True) -> None:
    parser.add_argument(
        "-c", "--config", metavar="FILE", required=required, help="the configuration, TOML (docs/configuration.md)"
    )


def _serve(arguments: argparse.Namespace) -> int:
    from .compose import run
    from .config import load

    return run(load(arguments.config))


def _check(arguments: argparse.Namespace) -> int:
    from .advice import port_overlaps
    from .config import load, show

    config = load(arguments.config)
    for overlap in port_overlaps(config):
        print(f'{arguments.config}: service "{overlap.service}".data_ports: warning: {overlap}', file=sys.stderr)
    if arguments.show:
        print(show(config), end="")
    else:
        print(f"{arguments.config}: ok, {_services(config)}")
    return os.EX_OK


def _services(config: Config) -> str:
    count = len(config.services)
    return f"{count} service" + "s" * (count != 1)


def _rules(arguments: argparse.Namespace) -> int:
    from . import rules
    from .config import load

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


def _doctor(arguments: argparse.Namespace) -> int:
    from . import doctor
    from .config import load

    config = load(arguments.config)
    findings = doctor.examine(config, arguments.config)
    if arguments.json:
        print(doctor.as_json(findings), end="")
    elif findings:
        print(doctor.as_text(findings), end="")
    else:
        print(f"{arguments.config}: {_services(config)}, nothing found")
    return int(any(finding.severity is not doctor.Severity.WORTH_KNOWING for finding in findings))


def _lab(arguments: argparse.Namespace) -> int:
    from .lab.cli import run

    return run(arguments)


COMMANDS = {"serve": _serve, "check": _check, "rules": _rules, "doctor": _doctor, "lab": _lab}


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    """`argv` understood.  Raises `SystemExit` (64) where it is not, with what to write instead where that is clear."""
    first = argv[0] if argv else ""
    parser = _parser(first)
    if first.startswith("-") and first not in ("-h", "--help", "--version"):
        parser.error(f"unknown option {first}; a COMMAND comes first: {', '.join(COMMANDS)}")
    if first == "lab":
        from .lab.cli import complaint

        arguments, unknown = parser.parse_known_args(argv)
        if (wrong := complaint(arguments, unknown, argv[1:])) is not None:
            parser.exit(os.EX_USAGE, f"ftpproxy lab: {wrong}\n")
        return arguments
    if first in ("serve", "check", "rules", "doctor") and len(argv) > 1 and not argv[1].startswith("-"):
        parser.exit(os.EX_USAGE, f"ftpproxy {first}: did you mean -c {argv[1]}?\n")
    return parser.parse_args(argv)


def _run(argv: Sequence[str]) -> int:
    arguments = _arguments(argv)
    if arguments.first_word == "lab":
        return _lab(arguments)

    from .config import ConfigError

    try:
        return COMMANDS[arguments.first_word](arguments)
    except ConfigError as error:
        for problem in error.problems:
            print(f"{arguments.config}: {problem}", file=sys.stderr)
        return os.EX_CONFIG


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (by default the process's own) and return its exit code.

    Raises `SystemExit` where argparse does: after --help and --version, and with 64 for a wrong usage.
    """
    try:
        code = _run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Who read our output has left, as `head` does.  The interpreter's own flush at exit must not complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
