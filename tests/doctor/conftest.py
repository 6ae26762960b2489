"""Doctors need root: they look into other processes and into the packet filter."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

from ftpproxy.lab.network import sweep

from .wards import Wards

NEEDED = ("ip", "nft", "unshare", "setpriv", "prlimit", "sysctl")


@pytest.fixture(scope="session")
def operating_theatre() -> None:
    missing = [name for name in NEEDED if shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/sbin") is None]
    why = "needs root" if os.geteuid() != 0 else f"not installed: {', '.join(missing)}" if missing else ""
    if why and os.environ.get("CI") == "true" and os.geteuid() == 0:
        pytest.fail(why)
    if why:
        pytest.skip(why)
    sweep()


@pytest.fixture(scope="package")
def wards(operating_theatre: None) -> Iterator[Wards]:
    wards = Wards()
    try:
        yield wards
    finally:
        wards.close()
