"""Privileges: a process that was started as root becomes somebody who may do what its configuration needs.

On Linux it keeps capabilities (capabilities(7)): in the permitted, effective and inheritable sets, for itself, and in
the ambient set, for the `nft` program that it runs when its table was flushed.  Everything else leaves the bounding set
as well, and no program that it runs can gain anything by set-user-ID (PR_SET_NO_NEW_PRIVS).  Elsewhere there is nothing
to keep: what needs root has been opened before, or is done by the pf engine.

The order matters: capabilities are per thread, so this comes before any thread is started; the group goes before the
user, who could not give it up; and a user who was not able to become one does not go on as root.

Python has no names for these calls, so they are made through the C library, which every Python has loaded.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import struct
import sys
from collections.abc import Collection
from enum import IntEnum
from pathlib import Path

from attrs import frozen

__all__ = ["Account", "Capability", "PrivilegeError", "become", "find", "has_other_users"]


class Capability(IntEnum):
    """linux/capability.h: those that a configuration may need."""

    CAP_NET_BIND_SERVICE = 10
    CAP_NET_ADMIN = 12
    CAP_NET_RAW = 13


# linux/prctl.h
_PR_SET_KEEPCAPS, _PR_CAPBSET_READ, _PR_CAPBSET_DROP = 8, 23, 24
_PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 38, 47
_PR_CAP_AMBIENT_RAISE, _PR_CAP_AMBIENT_CLEAR_ALL = 2, 4
# linux/capability.h
_LINUX_CAPABILITY_VERSION_3 = 0x20080522
_LAST_POSSIBLE = 63


class PrivilegeError(Exception):
    """Privileges could not be given up; the text says which and why.  The process must not go on."""


@frozen
class Account:
    """A user to become."""

    name: str
    uid: int
    gid: int


def find(name: str) -> Account | None:
    """The user of that name; None if this system has no such user."""
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)


def has_other_users() -> bool:
    """False for the root of a user namespace that has nobody else, as `unshare -r` makes it (user_namespaces(7))."""
    try:
        return Path("/proc/self/setgroups").read_text().strip() != "deny"
    except OSError:
        return True  # no such file: no user namespaces


def become(account: Account, keep: Collection[Capability] = ()) -> None:
    """Go on as `account`, with its groups, and on Linux with the capabilities `keep` and no other, for good.

    Must be called by root, from the only thread.  Raises `PrivilegeError`.
    """
    linux = sys.platform == "linux"
    try:
        if linux:
            _shrink_bounding_set(keep)
            _prctl(_PR_SET_KEEPCAPS, 1)
        os.initgroups(account.name, account.gid)
        os.setgid(account.gid)
        os.setuid(account.uid)
        if linux:
            _set_capabilities(keep)
            _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
            for capability in keep:
                _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability)
            _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    except OSError as error:
        raise PrivilegeError(f'cannot become the user "{account.name}": {error.strerror}') from error
    if account.uid and 0 in (os.getuid(), os.geteuid()):
        raise PrivilegeError(f'cannot become the user "{account.name}": still root')


def _shrink_bounding_set(keep: Collection[Capability]) -> None:
    libc = _libc()
    for number in range(_LAST_POSSIBLE + 1):
        if number not in keep and libc.prctl(_PR_CAPBSET_READ, number, 0, 0, 0) == 1:
            _prctl(_PR_CAPBSET_DROP, number)


def _set_capabilities(keep: Collection[Capability]) -> None:
    """capset(2): permitted, effective and inheritable are `keep`."""
    bits = sum(1 << capability for capability in keep)
    header = struct.pack("=Ii", _LINUX_CAPABILITY_VERSION_3, 0)
    low, high = bits & 0xFFFFFFFF, bits >> 32
    data = struct.pack("=6I", low, low, low, high, high, high)
    if _libc().capset(header, data) != 0:
        _fail()


def _prctl(option: int, *arguments: int) -> None:
    numbers = [ctypes.c_ulong(argument) for argument in (*arguments, 0, 0, 0, 0)[:4]]
    if _libc().prctl(option, *numbers) != 0:
        _fail()


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _fail() -> None:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number))
