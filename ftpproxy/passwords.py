"""The proxy's own users: a file of names and hashed passwords.

    alice:scrypt:16384:8:1:SALT:HASH

One user a line; N, r and p of scrypt (RFC 7914), then salt and hash in base64.  Empty lines and lines that begin with
`#` are skipped.  `python3 -m ftpproxy.passwords alice` asks for a password and prints such a line.

A check costs 16 MiB and some 50 ms on purpose, for a user that does not exist too: it belongs into a thread.
"""

from __future__ import annotations

import base64
import binascii
import getpass
import hashlib
import hmac
import re
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path

from attrs import frozen

from .files import read

__all__ = ["BadUsersFile", "Users", "line_for"]

N, R, P = 1 << 14, 8, 1
SALT_OCTETS = 16
HASH_OCTETS = 32
MOST_MEMORY = 256 << 20
"""Octets that a line of the file may make a check take."""

_LINE = re.compile(
    r"(?P<name>[^:\s@]+):scrypt:(?P<n>[0-9]{1,8}):(?P<r>[0-9]{1,3}):(?P<p>[0-9]{1,3}):(?P<salt>[^:]+):(?P<hash>[^:]+)"
)


class BadUsersFile(Exception):
    """The file cannot be used; the text says which line and why."""


@frozen
class _Secret:
    n: int
    r: int
    p: int
    salt: bytes
    hashed: bytes

    def matches(self, password: bytes) -> bool:
        hashed = hashlib.scrypt(
            password, salt=self.salt, n=self.n, r=self.r, p=self.p, maxmem=MOST_MEMORY, dklen=len(self.hashed)
        )
        return hmac.compare_digest(hashed, self.hashed)


def _secret(password: bytes) -> _Secret:
    salt = secrets.token_bytes(SALT_OCTETS)
    return _Secret(N, R, P, salt, hashlib.scrypt(password, salt=salt, n=N, r=R, p=P, dklen=HASH_OCTETS))


def line_for(name: str, password: str) -> str:
    """The line of the file for a user.  Raises `ValueError` for a name that cannot be one."""
    if not re.fullmatch(r"[^:\s@#][^:\s@]*", name):
        raise ValueError(f"{name!r} is no name: no blanks, no colon, no @, no # in front")
    secret = _secret(password.encode())
    salt, hashed = (base64.b64encode(each).decode() for each in (secret.salt, secret.hashed))
    return f"{name}:scrypt:{secret.n}:{secret.r}:{secret.p}:{salt}:{hashed}"


class Users:
    """Who may use the proxy."""

    def __init__(self, secrets_by_name: Mapping[bytes, _Secret]) -> None:
        self._secrets = secrets_by_name
        self._nobody = _secret(secrets.token_bytes(SALT_OCTETS))

    @classmethod
    def read(cls, path: Path | str) -> Users:
        """The users in the file at `path`.  Raises `BadUsersFile`."""
        try:
            text = read(path).decode()
        except OSError as error:
            raise BadUsersFile(f"{path} cannot be read: {error.strerror}") from error
        except UnicodeDecodeError:
            raise BadUsersFile(f"{path} is not UTF-8") from None
        found: dict[bytes, _Secret] = {}
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip() or line.startswith("#"):
                continue
            try:
                name, secret = _parsed(line.strip())
            except ValueError as error:
                raise BadUsersFile(f"{path}, line {number}: {error}") from None
            if name in found:
                raise BadUsersFile(f"{path}, line {number}: that user is there already")
            found[name] = secret
        return cls(found)

    def check(self, name: bytes, password: bytes) -> bool:
        """Whether `password` is that of `name`.  Blocks for some 50 ms, whoever is asked for."""
        secret = self._secrets.get(name)
        right = (secret or self._nobody).matches(password)
        return secret is not None and right


def _parsed(line: str) -> tuple[bytes, _Secret]:
    match = _LINE.fullmatch(line)
    if match is None:
        raise ValueError("not NAME:scrypt:N:R:P:SALT:HASH")
    n, r, p = int(match["n"]), int(match["r"]), int(match["p"])
    try:
        salt, hashed = (base64.b64decode(match[each], validate=True) for each in ("salt", "hash"))
    except binascii.Error:
        raise ValueError("salt or hash is not base64") from None
    if n < 2 or n & (n - 1) or not r or not p or 128 * r * (n + p + 2) >= MOST_MEMORY or p > 16 or len(hashed) < 16:
        raise ValueError("impossible parameters of scrypt")
    return match["name"].encode(), _Secret(n, r, p, salt, hashed)


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python3 -m ftpproxy.passwords NAME", file=sys.stderr)
        return 64
    password = getpass.getpass("Password: ") if sys.stdin.isatty() else sys.stdin.readline().rstrip("\n")
    try:
        print(line_for(arguments[0], password))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 64
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
