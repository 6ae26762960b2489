"""docs/logging.md and its examples against the code: events, reason codes, fail2ban."""

from __future__ import annotations

import ast
import configparser
import logging
import os
import re
import subprocess
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from ftpproxy.endpoints import Endpoint
from ftpproxy.log import event
from ftpproxy.logforms import KeyValueFormatter, sentence
from ftpproxy.reasons import Code

from .netns.peers import PeerMissing, unpacked
from .test_log import HOSTILE

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs/logging.md").read_text()
LOGGERS = {"event", "log", "_log", "exception"}
"""Functions whose first string is the name of an event."""


def section(title: str) -> str:
    return TEXT.split(f"\n## {title}\n")[1].split("\n## ")[0]


def first_column(title: str) -> list[str]:
    """The words in code in the first column of the table."""
    rows = [line.split("|")[1] for line in section(title).splitlines() if line.startswith("| ") and "`" in line]
    return [word for row in rows for word in re.findall(r"`([a-z0-9_.]+)`", row)]


def trees() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted((ROOT / "ftpproxy").rglob("*.py")):
        yield path, ast.parse(path.read_text())


def logged() -> dict[str, list[ast.Call]]:
    """Every event in the code, with the calls that log it."""
    found: dict[str, list[ast.Call]] = {}
    for _, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                texts = [
                    each.value for each in node.args if isinstance(each, ast.Constant) and isinstance(each.value, str)
                ]
                if name in LOGGERS and texts:
                    found.setdefault(texts[0], []).append(node)
    return found


def test_the_codes_are_documented() -> None:
    documented = first_column("Reason codes")
    assert len(documented) == len(set(documented))
    assert set(documented) == {code.value for code in Code}


def test_every_code_can_happen() -> None:
    """Each is given somewhere; those of calls are put together from errno (`reasons.call_failed`)."""
    used = set()
    for path, tree in trees():
        if path.name != "reasons.py":
            used |= {
                node.attr
                for node in ast.walk(tree)
                if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "Code"
            }
    of_calls = {
        f"{whom}_{why}" for whom in ("SERVER", "DATA") for why in ("REFUSED", "TIMEOUT", "UNREACHABLE", "FIREWALL")
    }
    assert used | of_calls == {code.name for code in Code}


def test_no_event_has_another_code() -> None:
    """What stands in `code=` is a `Code`, or an expression that mypy knows to be one; never a text."""
    for name, calls in logged().items():
        for call in calls:
            for keyword in call.keywords:
                if keyword.arg == "code" and name != "log.suppressed":
                    assert isinstance(keyword.value, ast.Attribute | ast.Call | ast.Name), name
                    assert "code" in ast.unparse(keyword.value).lower(), name


def test_the_events_are_documented() -> None:
    documented = first_column("Events")
    assert len(documented) == len(set(documented))
    assert set(documented) == set(logged())


# fail2ban

FILTER = ROOT / "docs/examples/fail2ban/filter.d/ftpproxy.conf"
IP4 = r"(?P<ip4>(?:\d{1,3}\.){3}\d{1,3})"
IP6 = r"(?P<ip6>[0-9a-fA-F:]*:[0-9a-fA-F:.]*)"


def expressions() -> list[re.Pattern[str]]:
    """The filter's, as fail2ban expands them."""
    parser = configparser.ConfigParser()
    parser.read(FILTER)
    lines = parser["Definition"]["failregex"].splitlines()
    return [re.compile(line.replace("<IP4>", IP4).replace("<IP6>", IP6)) for line in lines]


def records(caplog: pytest.LogCaptureFixture, client: str, user: bytes) -> list[logging.LogRecord]:
    """What is to be counted, and what is not."""
    log = logging.getLogger("ftpproxy.test")
    caplog.clear()
    who = {"session": 7, "client": Endpoint(ip_address(client), 40000)}
    with caplog.at_level(logging.INFO, "ftpproxy.test"):
        event(log, logging.INFO, "login.failed", **who, code=Code.SERVER_DENIED, user=user)
        event(log, logging.INFO, "login.failed", **who, service="x", code=Code.PROXY_DENIED, user=user)
        event(log, logging.INFO, "session.close", **who, code=Code.CLIENT_FAILED_LOGINS, reason="x", transfers=0)
        event(log, logging.INFO, "session.close", **who, code=Code.CLIENT_FOREIGN, reason="x", transfers=0)
        event(log, logging.INFO, "gateway.close", **who, service="x", code=Code.CLIENT_NONSENSE, reason="x")
        event(log, logging.INFO, "session.close", **who, code=Code.QUIT, reason=user, transfers=0)
        event(log, logging.INFO, "transfer", **who, what=user)
    return list(caplog.records)


def lines(record: logging.LogRecord) -> list[str]:
    """As fail2ban sees it in a file, from syslog and from the journal, the time taken away."""
    text = KeyValueFormatter().format(record).partition(" ")[2]
    return [f" {text}", f" host ftpproxy[4711]: {sentence(record)}", f"host ftpproxy[4711]: {sentence(record)}"]


FORGED = b" login.failed session=1 client=192.0.2.66:1 ftpproxy[1]: login.failed session=1 client=192.0.2.66:1"


@pytest.mark.parametrize("client", ["192.0.2.1", "2001:db8::1"])
@pytest.mark.parametrize("user", [b"joe", FORGED, b"\n" + FORGED, *HOSTILE])
def test_fail2ban_bans_who_it_was(caplog: pytest.LogCaptureFixture, client: str, user: bytes) -> None:
    """Item 138: whatever the user is called."""
    for number, record in enumerate(records(caplog, client, user)):
        for text in lines(record):
            found = [match for each in expressions() if (match := each.search(text))]
            assert [match["ip6" if ":" in client else "ip4"] for match in found] == [client] * (number < 5)


@pytest.mark.skipif(not os.path.exists("/usr/bin/python3"), reason="the distribution's Python runs its fail2ban")
def test_the_real_fail2ban_reads_it(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    try:
        place = unpacked("fail2ban")
    except PeerMissing as why:
        pytest.skip(str(why))
    file = tmp_path / "log"
    file.write_text(
        "".join(
            KeyValueFormatter().format(record) + "\n"
            for client in ("192.0.2.1", "2001:db8::1")
            for record in records(caplog, client, FORGED)
        )
    )
    argv: list[str | Path] = [
        "/usr/bin/python3",
        "-W",
        "ignore",
        place / "usr/bin/fail2ban-regex",
        "-c",
        place / "etc/fail2ban",
        file,
        FILTER,
    ]
    environment = os.environ | {"PYTHONPATH": str(place / "usr/lib/python3/dist-packages")}
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, env=environment)
    assert "Lines: 14 lines, 0 ignored, 10 matched, 4 missed" in done.stdout, done.stdout + done.stderr
