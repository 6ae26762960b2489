"""The same examples on a slow machine: no deadlines, and enough of them to find what hides."""

from __future__ import annotations

import os
import sys

import pytest
from hypothesis import settings

settings.register_profile("project", deadline=None, max_examples=int(os.environ.get("EXAMPLES", "100")))
settings.load_profile("project")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Elsewhere than on Linux its tests are skipped one by one, and say why."""
    if item.get_closest_marker("own_kernel") and not sys.platform.startswith(os.uname().sysname.lower()):
        pytest.skip("this only looks like another system")
    if sys.platform != "linux" and (mark := item.get_closest_marker("netns") or item.get_closest_marker("linux")):
        pytest.skip(f"about Linux: {mark.args[0]}" if mark.args else "needs network namespaces of Linux")
