"""Real FTP servers from the distribution, unpacked beside each other.

As Debian packages they conflict, and installing one starts it.  So each is downloaded and unpacked into
`.cache/peers/NAME`, together with those libraries that it needs and this machine lacks, and run from there.
One lock file serialises concurrent test runs; a package is renamed into place only when it is complete.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

__all__ = ["PeerMissing", "unpacked"]

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "peers"
DEPENDS = [f"--no-{kind}" for kind in ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")]


class PeerMissing(Exception):
    """A peer is not to be had here; the text says why."""


def unpacked(*packages: str) -> Path:
    """The folder with `packages` and the libraries they miss, unpacked once.  Raises `PeerMissing`."""
    place = CACHE / packages[0]
    if place.is_dir():
        return place
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.is_dir():
            if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
                raise PeerMissing(f"{packages[0]}: neither installed nor to be fetched, this is no Debian")
            with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
                _unpack(packages, Path(scratch))
                (Path(scratch) / "root").rename(place)
    return place


def libraries(place: Path) -> str:
    """LD_LIBRARY_PATH for what was unpacked into `place`."""
    return ":".join(sorted({str(path.parent) for path in place.glob("usr/lib/**/lib*.so.*")}))


def _unpack(packages: tuple[str, ...], scratch: Path) -> None:
    if not _known(packages):
        _call("apt-get", "update", "-qq", cwd=scratch)
    wanted = list(packages)
    for package in wanted:  # grows while it is walked
        _call("apt-get", "download", "-qq", package, cwd=scratch)
        wanted += [library for library in _missing_libraries(package) if library not in wanted]
    for archive in sorted(scratch.glob("*.deb")):
        _call("dpkg", "-x", archive.name, "root", cwd=scratch)


def _known(packages: tuple[str, ...]) -> bool:
    """Whether the package lists of this machine have them."""
    found = subprocess.run(["apt-cache", "show", "--no-all-versions", *packages], capture_output=True, check=False)
    return found.returncode == 0 and found.stdout.count(b"\nFilename:") >= len(packages)


def _missing_libraries(package: str) -> list[str]:
    lines = _call("apt-cache", "depends", *DEPENDS, package).splitlines()
    names = [line.split("Depends: ")[1] for line in lines if line.startswith("  Depends: lib")]
    return [name for name in names if not _installed(name)]


def _installed(package: str) -> bool:
    query = ["dpkg-query", "-W", "-f", "${db:Status-Status}\n", package]
    return "installed" in subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()


def _call(*argv: str, cwd: Path | None = None) -> str:
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}, check=False)
    if done.returncode:
        raise PeerMissing(f"{' '.join(argv)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
