"""What can be wrong in the tables that stand beside the services."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator

from .checks import collide
from .reading import Found
from .values import DEFAULT_CONTROL, ControlConfig, MetricsConfig, ServiceConfig, UnixPath

__all__ = ["check_control", "check_metrics"]

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


def check_metrics(metrics: MetricsConfig, services: Iterable[ServiceConfig]) -> Iterator[Found]:
    """Places are relative to the table."""
    where, at = ("listen",), metrics.listen
    if isinstance(at, UnixPath):
        if not at.path.startswith("/") or len(at.path.encode()) > LONGEST_SOCKET:
            yield where, f"the path of a Unix socket begins with / and has at most {LONGEST_SOCKET} octets"
    elif at is not None:
        if at.port == 0:
            yield where, "port 0 is no port to listen on"
        if not at.host.is_loopback and not metrics.public:
            yield where, f"{at.host} is no loopback address: others could read it; if they may, say public = true"
        for service in services:
            if any(collide(at, each) for each in service.listen):
                yield where, f'{at} collides with service "{service.name}"'
