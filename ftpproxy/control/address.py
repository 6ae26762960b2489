"""The place of the control socket in the file system: made, taken over from the dead, given back.

It may be made by root in a directory that is somebody else's, so whatever is found under its name is not followed where
it leads.

A socket that a killed process left behind answers no call; it is removed and made anew.  One that answers belongs to
somebody who lives, and is not touched.
"""

from __future__ import annotations

import errno
import grp
import os
import socket
import stat

from attrs import define

__all__ = ["Address", "CannotControl"]

MODE = 0o660
BACKLOG = 128


class CannotControl(Exception):
    """There can be no control socket at that place; the text says why.  Its cause is a `PermissionError` where a
    privilege lacks."""


@define
class Address:
    """A listening control socket and where it is."""

    path: str
    sock: socket.socket
    group: int | None
    """Who may look; None where there is no such group."""
    _identity: tuple[int, int]
    _directory: str | None = None
    """Made by us, and ours to remove."""

    @classmethod
    def open(cls, path: str, group: str) -> Address:
        """Listen at `path`, readable and writable for root and `group`.  Raises `CannotControl`."""
        directory = _made(os.path.dirname(path))
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            _clear(path)
            before = os.umask(0o777 & ~MODE)
            try:
                sock.bind(path)
            finally:
                os.umask(before)
            gid = _gid(group)
            if gid is not None:
                try:
                    os.chown(path, -1, gid, follow_symlinks=False)
                except PermissionError:
                    gid = None  # not one of our groups: then only our own user and root can connect
            sock.listen(BACKLOG)
            status = os.stat(path, follow_symlinks=False)
        except OSError as error:
            sock.close()
            raise CannotControl(f"{path}: {error.strerror or error}") from error
        except CannotControl:
            sock.close()
            raise
        return cls(path, sock, gid, (status.st_dev, status.st_ino), directory)

    @property
    def belongings(self) -> tuple[str, ...]:
        """What must be its user's where the process becomes somebody else: only then can it remove them."""
        return (self.path,) if self._directory is None else (self.path, self._directory)

    def close(self) -> None:
        """Stop listening, and remove what is still ours: a successor's socket stays."""
        self.sock.close()
        try:
            status = os.stat(self.path, follow_symlinks=False)
            if (status.st_dev, status.st_ino) == self._identity:
                os.unlink(self.path)
            if self._directory is not None:
                os.rmdir(self._directory)
        except OSError:
            pass  # gone already, or no longer ours to remove: the next start finds a dead socket


def _made(directory: str) -> str | None:
    """Make the directory, if only the last part lacks.  Returns it if it was made."""
    try:
        os.mkdir(directory)
        os.chmod(directory, 0o755)  # whatever the umask is: the group has to get to the socket
    except FileExistsError:
        return None
    except OSError as error:
        raise CannotControl(f"{directory}: cannot be made: {error.strerror}") from error
    return directory


def _clear(path: str) -> None:
    """Remove the socket of a dead process.  Raises `CannotControl`, `OSError`."""
    try:
        if not stat.S_ISSOCK(os.stat(path, follow_symlinks=False).st_mode):
            raise CannotControl(f"{path}: something else is there, and no socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        code = probe.connect_ex(path)
    if code == errno.ECONNREFUSED:
        try:
            os.unlink(path)
        except OSError as error:
            why = f"the socket of a process that is dead, and it cannot be removed: {error.strerror} (rm {path})"
            raise CannotControl(f"{path}: {why}") from error
    elif code != errno.ENOENT:  # EAGAIN: somebody lives, and is busy
        raise CannotControl(
            f"{path}: another ftpproxy answers there; stop it, or give this one another [control] socket"
        )


def _gid(group: str) -> int | None:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        return None
