"""What can be wrong in the tables that stand beside the services."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

from .reading import Found
from .values import DEFAULT_CONTROL, ControlConfig

__all__ = ["check_control"]

LONGEST_SOCKET = 107 if sys.platform == "linux" else 103
"""Octets: sun_path without its NUL (unix(7): 108; sys/un.h of the BSDs: 104)."""


def check_control(control: ControlConfig) -> Iterator[Found]:
    """Places are relative to the table."""
    if control.socket and (not control.socket.startswith("/") or "\0" in control.socket):
        yield ("socket",), f'is the absolute path of a socket, such as "{DEFAULT_CONTROL}", or "" for none'
    elif (octets := len(os.fsencode(control.socket))) > LONGEST_SOCKET:
        yield ("socket",), f"has {octets} octets; the path of a unix socket has at most {LONGEST_SOCKET}"
    if not control.group:
        yield ("group",), 'is the name of a group, such as "ftpproxy"'
