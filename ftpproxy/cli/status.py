"""`ftpproxy status`."""

from __future__ import annotations

import argparse
import time
from typing import Any

from .control import add_json, add_socket, answered
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
    return answered(arguments, "status", _lines)


def _lines(status: dict[str, Any]) -> list[str]:
    from ..show import count, duration

    paths = ", ".join(f"{number} on {plane}" for plane, number in status["paths"].items()) or "none"
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
    from ..show import count

    if not status["reloads"]:
        return "never reloaded"
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(status["reloaded"]))
    return f"{count(status['reloads'], 'reload')}, the last at {when}"
