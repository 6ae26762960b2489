"""Files that a configuration names: regular ones, and nothing else that may stand under the name.

A FIFO would hold up whoever opens or reads it, a device may never end, and a reload happens in the process that
serves.  So nothing here waits: what is no regular file is refused, with a sentence that says what it is.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

__all__ = ["check_regular", "read"]

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def check_regular(descriptor: int) -> os.stat_result:
    """What fstat(2) says of a regular file.  Raises `OSError` for anything else."""
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise OSError(errno.EINVAL, f"it is {kind}, and no regular file")
    return status


def read(path: Path | str, most: int = -1) -> bytes:
    """The octets of the regular file at `path`, not more than `most`.  Raises `OSError`; never waits for a writer."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        check_regular(descriptor)
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(most)
    finally:
        os.close(descriptor)
