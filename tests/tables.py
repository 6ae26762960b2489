"""The commonest text of a configuration file: a `[[service]]`."""

from __future__ import annotations

import json
from collections.abc import Sequence

__all__ = ["service_table"]


def service_table(name: str, mode: str, intercept: str, listen: Sequence[str], **more: Sequence[str]) -> str:
    """With `more` keys whose values are lists, such as `clients` and `servers`."""
    keys = {"name": name, "mode": mode, "listen": listen, "intercept": intercept, **more}
    return "[[service]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())
