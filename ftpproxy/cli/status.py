"""`ftpproxy status`."""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

from .control import add_json, add_socket, print_json, told
from .parser import Parser

SUMMARY = "what a running process is and does"
DESCRIPTION = "Ask the running process for its version, uptime, services and how many sessions it has."
EXAMPLES = """\
  ftpproxy status
  ftpproxy status --json -c /etc/ftpproxy.toml"""


def add_arguments(parser: Parser) -> None:
    add_socket(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    from ..control.caller import Caller

    def do(path: str) -> int:
        with Caller(path) as caller:
            status = caller.ask("status")
        if arguments.json:
            print_json(status)
        else:
            print("\n".join(_lines(status)))
        return os.EX_OK

    return told(arguments, do)


def _lines(status: dict[str, Any]) -> list[str]:
    from ..show import count, duration

    paths = ", ".join(f"{count} on {plane}" for plane, count in status["paths"].items()) or "none"
    lines = [
        f"ftpproxy {status['version']}, {status['state']}, process {status['pid']}, up {duration(status['uptime'])}",
        f"configuration: {status['file'] or 'command line'}, {_reloads(status)}, log level {status['log_level']}",
        f"sessions: {status['sessions']}, data connections: {paths}",
    ]
    for service in status["services"]:
        waiting = service["naming"] + service["arriving"]
        more = f", {waiting} not in a session yet" if waiting else ""
        at = " ".join(service["listeners"]) or "nowhere"
        lines.append(f'service "{service["name"]}" at {at}: {count(service["sessions"], "session")}{more}')
    return lines


def _reloads(status: dict[str, Any]) -> str:
    if not status["reloads"]:
        return "never reloaded"
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(status["reloaded"]))
    return f"{status['reloads']} reload{'s' * (status['reloads'] != 1)}, the last at {when}"
