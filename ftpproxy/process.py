"""Who the process is: what it was passed, and what it gives up."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Iterable

from .activation import Inherited
from .config.values import Config, ServiceConfig
from .log import event
from .privileges import Capability, PrivilegeError, become, find, has_other_users
from .xferlog import Xferlog

__all__ = ["NoSuchUser", "drop_privileges", "given", "needed"]

LOW_PORTS = 1024


def _default_user() -> str:
    """Whom packages make for us; the BSDs have had one for ftp-proxy(8)."""
    if sys.platform.startswith("openbsd"):
        return "_ftp_proxy"
    return "proxy" if sys.platform.startswith("freebsd") else "ftpproxy"


DEFAULT_USER = _default_user()

log = logging.getLogger(__name__)


def given(passed: Iterable[Inherited], services: Iterable[ServiceConfig]) -> dict[str, list[socket.socket]]:
    """The listening sockets that were passed to us, by the name of their service.  What else was passed is closed."""
    found: dict[str, list[socket.socket]] = {}
    names = {service.name for service in services}
    for each in passed:
        sock = each.listener() if each.name in names else None
        if sock is not None:
            found.setdefault(each.name, []).append(sock)
            continue
        why = "it does not listen for TCP" if each.name in names else "no service has this name"
        event(log, logging.WARNING, "descriptor.unused", called=each.name, descriptor=each.descriptor, reason=why)
        each.close()
    return found


class NoSuchUser(Exception):
    """The configuration names a user that this system does not have."""


def drop_privileges(
    config: Config, *, table: bool, belongings: Iterable[str] = (), xferlog: Xferlog | None = None
) -> None:
    """Become who the configuration says, if we are root; `table`: we have our own in nftables.  The paths `belongings`
    and the file of the `xferlog` become that user's.

    Raises `NoSuchUser`, `PrivilegeError`."""
    name = config.process.user
    if os.geteuid() != 0 or name == "":
        return
    account = find(name or DEFAULT_USER)
    if account is None and name is not None:
        raise NoSuchUser(f'process.user: there is no user "{name}" (useradd --system {name})')
    if account is None or (name is None and not has_other_users()):
        hint = f"useradd --system {DEFAULT_USER}" if account is None else None
        event(log, logging.WARNING, "privileges.kept", hint=hint)
        return
    keep = needed(config.services, table=table)
    path = ""
    try:
        for path in belongings:
            os.chown(path, account.uid, -1, follow_symlinks=False)  # its directory may be somebody else's
        if xferlog is not None:
            path = xferlog.path
            xferlog.give(account.uid)
    except OSError as error:
        raise PrivilegeError(f'cannot give {path} to the user "{account.name}": {error.strerror}') from error
    become(account, keep)
    event(log, logging.INFO, "privileges.dropped", user=account.name, kept=",".join(sorted(each.name for each in keep)))


def needed(services: Iterable[ServiceConfig], *, table: bool) -> set[Capability]:
    """What a process with these services cannot do without; `table` as above."""
    keep = {Capability.CAP_NET_ADMIN} if table else set()
    for service in services:
        if service.intercept == "tproxy" or (service.intercept == "auto" and not table):
            keep.add(Capability.CAP_NET_RAW)
        low = [at.port for at in service.listen] + [service.data_ports.first, service.active_source_port or LOW_PORTS]
        if min(low) < LOW_PORTS:
            keep.add(Capability.CAP_NET_BIND_SERVICE)
    return keep
