"""`ftpproxy [flags]`: ftp-proxy(8)'s line, understood as getopt(3) does, and its long form.

A value is checked here as far as it stands alone; what the flags say together is `dropin`'s.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .parser import Parser

if TYPE_CHECKING:
    from ..config import Config
    from ..dropin import Flags
    from ..endpoints import IPAddress

__all__ = ["add_flags", "flags_of", "run"]

LONGEST_WORD = 63
"""Octets of a queue or a tag (PF_QNAME_SIZE, PF_TAG_NAME_SIZE, less the NUL)."""


def _number(low: int, high: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not (text.isascii() and text.isdigit() and low <= int(text) <= high):
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {low} to {high}")
        return int(text)

    return number


def _address(text: str) -> IPAddress:
    from ..endpoints import parse_address

    try:
        address = parse_address(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not an IP address (names are not looked up here)") from None
    if address.is_multicast:
        raise argparse.ArgumentTypeError(f"{address} is a multicast address")
    return address


def _source(text: str) -> IPAddress:
    address = _address(text)
    if address.is_unspecified:
        raise argparse.ArgumentTypeError(f"{address} is not the address of a host")
    return address


def _port(text: str) -> int:
    """A number or the name of a service."""
    if not text.isascii() or text.isdigit():
        return _number(1, 65535)(text)
    try:
        return socket.getservbyname(text, "tcp")
    except OSError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a port from 1 to 65535 nor a service of /etc/services"
        ) from None


def _word(text: str) -> str:
    if not 1 <= len(text.encode(errors="surrogateescape")) <= LONGEST_WORD or not text.isprintable() or " " in text:
        raise argparse.ArgumentTypeError(f"{text!r} is not a word of 1 to {LONGEST_WORD} characters")
    return text


def _server(text: str) -> str:
    if not text or not text.isprintable() or " " in text:
        raise argparse.ArgumentTypeError(f"{text!r} is neither an address nor a host name")
    return text


def add_flags(parser: Parser) -> None:
    """Tell `parser` all of them, in the order of ftp-proxy(8)."""
    flags = parser.add_argument_group("flags, as those of ftp-proxy(8)")

    def flag(*names: str, **how: Any) -> None:
        flags.add_argument(*names, default=argparse.SUPPRESS, **how)

    flag("-6", "--ipv6", action="store_true", help="listen at ::1 instead of 127.0.0.1")
    flag("-A", "--anonymous-only", action="store_true", help="let in only the users ftp and anonymous; refuse TLS")
    flag("-a", "--source", metavar="ADDRESS", type=_source, help="call servers from this address of ours")
    flag(
        "-b",
        "--listen",
        metavar="ADDRESS",
        type=_address,
        action="append",
        help="listen here (127.0.0.1); may be given for each family",
    )
    flag(
        "-D",
        "--debug-level",
        metavar="0-7",
        type=_number(0, 7),
        help="log up to this syslog priority (5); 6 logs each session, 7 everything but passwords",
    )
    flag("-d", "--foreground", action="store_true", help="stay in the foreground, log to standard error")
    flag("-m", "--max-sessions", metavar="N", type=_number(1, 1_000_000), help="sessions at once (100)")
    flag("-P", "--server-port", metavar="PORT", type=_port, help="the port of the server of -R (21)")
    flag("-p", "--port", metavar="PORT", type=_number(1, 65535), help="the port to listen at (8021)")
    flag("-q", "--queue", metavar="QUEUE", type=_word, help="pf: put data connections into this queue")
    flag(
        "-R",
        "--server",
        metavar="HOST",
        type=_server,
        action="append",
        help="reverse mode: always call this server; may be given for each family",
    )
    flag("-r", "--active-port-20", action="store_true", help="active data reaches clients from port 20")
    flag("-T", "--tag", metavar="TAG", type=_word, help="pf: tag the packets of data connections")
    flag(
        "-t",
        "--timeout",
        metavar="SECONDS",
        type=_number(0, 86400),
        help="end a session that is idle for so long (86400); 0: never",
    )
    flag("-v", "--verbose", action="count", help="pf: log the data connections' first packets; -vv: all packets")
    parser.add_argument(
        "--inetd", action="store_true", help="serve one session on descriptor 0, as inetd(8) starts it, and end with it"
    )
    parser.add_argument("--show", action="store_true", help="print the flags as a configuration file and end")


NAMES = {"listen": "listen", "server": "servers"}
"""Options whose field of `Flags` has another name."""
OURS = ("inetd", "show")
"""Options that are no field: they are about this process."""


def flags_of(arguments: argparse.Namespace) -> Flags:
    """The `Flags` that were written."""
    from ..dropin import Flags

    given = {NAMES.get(name, name): value for name, value in vars(arguments).items() if name not in OURS}
    return Flags(**given)


def run(parser: Parser, arguments: argparse.Namespace) -> int:
    """Serve as the flags say.  Returns an exit code."""
    from ..dropin import BadFlag, CannotResolve, configuration

    if getattr(arguments, "verbose", 0) > 2:
        parser.error("-v may be given twice at most")
    written = flags_of(arguments)
    try:
        config = configuration(written)
    except BadFlag as error:
        parser.error(str(error))
    except CannotResolve as error:
        print(f"ftpproxy: {error}", file=sys.stderr)
        return os.EX_UNAVAILABLE
    if arguments.show:
        from ..config import show

        print(show(config), end="")
        return os.EX_OK
    if arguments.inetd:
        from ..inetd import serve

        return serve(config)
    return _serve(config, written)


def _serve(config: Config, written: Flags) -> int:
    import logging

    from ..compose import run
    from ..config import ConfigError, Problem
    from ..daemon import in_background
    from ..dropin import CannotResolve, configuration, ignored
    from ..log import event

    def again() -> Config:
        try:
            return configuration(written)  # the names may have other addresses now
        except CannotResolve as error:
            raise ConfigError([Problem("", str(error))]) from None

    def told() -> None:
        if idle := " ".join(ignored(written)):
            reason = "they are about pf"
            event(logging.getLogger(__name__), logging.WARNING, "flags.ignored", flags=idle, reason=reason)

    if written.foreground:
        return run(config, again, told)

    def serve(ready: Callable[[], None]) -> int:
        def all_stands() -> None:
            told()
            ready()

        return run(config, again, all_stands)

    return in_background(serve)
