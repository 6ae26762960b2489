"""Who may import whom (docs/design.md, "Floors"): imports go downward only."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "ftpproxy"
FLOORS = [
    {"endpoints", "routes", "paths", "freezing", "reasons"},
    {"wire"},
    {"pi"},
    {
        "dtp",
        "intercept",
        "switchboard",
        "channels",
        "dial",
        "sockets",
        "classic",
        "log",
        "logforms",
        "logsinks",
        "metrics",
        "netfilter",
        "nfmessages",
        "nathook",
        "lobby",
        "table",
        "estate",
        "files",
        "errands",
        "resolver",
        "passwords",
        "doors",
        "pf",
    },
    {
        "carriage",
        "carried",
        "xferlog",
        "records",
        "session",
        "terms",
        "reception",
        "arrival",
        "glance",
        "tap",
        "watched",
    },
    {
        "server",
        "service",
        "listeners",
        "announce",
        "show",
        "exposition",
        "scrape",
        "control",
        "activation",
        "privileges",
        "vitals",
        "succession",
    },
    {
        "config",
        "cli",
        "advice",
        "top",
        "trace",
        "doctor",
        "rules",
        "holes",
        "pfconf",
        "lab",
        "compose",
        "daemon",
        "gates",
        "inetd",
        "process",
        "single",
        "dropin",
        "__main__",
    },
]
PURE = {"trio", "socket", "ssl", "os", "time", "logging", "select", "selectors", "threading", "asyncio"}
PROTOCOLS = {"ftpproxy.dtp.plane", "ftpproxy.intercept.interceptor"}
"""What the hands may know of each other."""

MODULES = sorted(PACKAGE.rglob("*.py"))


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def floor(module: str) -> int:
    return next(level for level, rooms in enumerate(FLOORS) if room(module) in rooms)


def imports(path: Path) -> set[str]:
    package = ["ftpproxy", *path.relative_to(PACKAGE).with_suffix("").parts]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level] if node.level else []
            name = ".".join([*base, node.module] if node.module else base)
            found |= {f"{name}.{alias.name}" for alias in node.names} if name in {"ftpproxy", ""} else {name}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downward(path: Path) -> None:
    own = ".".join(["ftpproxy", *path.relative_to(PACKAGE).with_suffix("").parts])
    if own in {"ftpproxy.__init__"}:
        return
    level = floor(own)
    for name in imports(path):
        if level <= 2:
            assert name.split(".")[0] not in PURE, f"{own} is pure and imports {name}"
        if not name.startswith("ftpproxy.") or name == "ftpproxy.__version__":
            continue
        assert floor(name) <= level, f"{own} (floor {level}) imports {name} (floor {floor(name)})"
        if level == 3 and room(own) in {"dtp", "intercept"} and room(name) in {"dtp", "intercept"}:
            assert room(own) == room(name) or name in PROTOCOLS, f"{own} imports the other hand, {name}"
        if level == 3 and not name.startswith("ftpproxy.__"):
            assert floor(name) in (0, 3), f"{own} is a hand or a tool and imports {name}"


@pytest.mark.parametrize("path", [path for path in MODULES if path != PACKAGE / "__init__.py"], ids=str)
def test_pure_floors_have_no_coroutines(path: Path) -> None:
    own = ".".join(["ftpproxy", *path.relative_to(PACKAGE).with_suffix("").parts])
    if floor(own) <= 2:
        assert not [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.AsyncFunctionDef)]


def test_modules_stay_readable() -> None:
    long = {str(path.relative_to(PACKAGE)): len(path.read_text().splitlines()) for path in MODULES}
    assert not {name: lines for name, lines in long.items() if lines > 450}
