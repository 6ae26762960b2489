"""The same examples on a slow machine: no deadlines, and enough of them to find what hides."""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("project", deadline=None, max_examples=int(os.environ.get("EXAMPLES", "100")))
settings.load_profile("project")
