"""The demonstration: every mode through every kind of NAT, without the proxy and with it, as one table.

What must fail without the proxy follows from who calls whom: NAT in front of the called end breaks the call, and
active mode has the client called, passive mode the server.  A case that should fail and does not would mean that the
lab proves nothing, so it counts as a failure of the demonstration just as a broken transfer through the proxy does.
"""

from __future__ import annotations

import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Protocol

from attrs import evolve, frozen

from ..endpoints import Endpoint, parse_address
from ..sockets import is_ours
from .hosts import Loopback, Passed
from .network import Lab, Topology
from .peers import FtpServer, Outcome, Transfer, run
from .proxy import Proxy, forward, reverse

__all__ = ["COLUMNS", "ROWS", "Cell", "Row", "Survey", "demonstrate", "demonstrate_on_loopback", "must_fail", "survey"]

OCTETS = 1 << 20
TIMEOUT = 5.0
"""Seconds for each step of a client; a call that a firewall drops never comes, however long one waits."""


class Carrier(Protocol):
    """A proxy that knows how much it carried."""

    def carried(self, transfers: int, octets: int) -> bool: ...


@frozen
class Row:
    """One way to set up the data connection: a line of the table for each topology."""

    title: str
    verb: str
    version: int
    obey: bool = False

    def transfers(self) -> tuple[Transfer, Transfer]:
        """The same, down (RETR) and up (STOR)."""
        down, up = (Transfer(self.verb, self.version, up, self.obey) for up in (False, True))
        return down, up


ROWS = (
    Row("active PORT", "PORT", 4),
    Row("active EPRT", "EPRT", 4),
    Row("passive PASV", "PASV", 4),
    Row("passive PASV, obeyed", "PASV", 4, obey=True),
    Row("passive EPSV", "EPSV", 4),
    Row("active EPRT", "EPRT", 6),
    Row("passive EPSV", "EPSV", 6),
)

COLUMNS = {None: "without proxy", "tproxy": "with (tproxy)", "redirect": "with (redirect)"}
TOPOLOGIES = (Topology.CLIENT_NAT, Topology.SERVER_NAT, Topology.BOTH_NAT)

EXPLANATION = """\
NAT on the client's side breaks active mode, on the server's side passive mode:
those must fail without the proxy, and everything must work with it. "Obeyed"
is a client that calls the address in the 227; others call the one they dialled.
With NAT on both sides a proxy runs on both gateways. In front of a server
nothing is intercepted: there the proxy listens at the public address itself.
"""
SHUT = """The proxies have nothing but the kernel to carry data, and the forward chains on
their gateways let nothing else through: "carried" is what those have counted.
"""


@frozen
class Cell:
    """What became of one row in one column."""

    down: Outcome
    up: Outcome
    expected_ok: bool

    @property
    def as_expected(self) -> bool:
        return self.down.ok == self.up.ok == self.expected_ok

    def __str__(self) -> str:
        if self.down.ok and self.up.ok:
            text = "ok"
        elif self.down.ok or self.up.ok:
            text = f"only {'RETR' if self.down.ok else 'STOR'}: {brief(self.down.error or self.up.error)}"
        else:
            text = f"fails: {brief(self.down.error)}"
        return text if self.as_expected else f"{text} (UNEXPECTED)"


def brief(error: str) -> str:
    """An error in a word or two: the code of a reply, or what the system said."""
    if re.match(r"[45]\d\d[ -]", error):
        return f"reply {error[:3]}"
    return re.sub(r"^\[Errno \d+\] (Network is )?", "", error)[:24].lower()


def must_fail(topology: Topology, verb: str) -> bool:
    """Whether NAT breaks the mode when nothing mends it."""
    if verb in ("PORT", "EPRT"):
        return topology in (Topology.CLIENT_NAT, Topology.BOTH_NAT)
    return topology in (Topology.SERVER_NAT, Topology.BOTH_NAT)


@frozen
class Survey:
    """All rows in one column of the table."""

    cells: Mapping[Row, Cell]
    log: str
    """What the proxies said; where a cell is not as it must be, also the server, and what the kernels know."""
    passed: Sequence[Passed]
    """What the kernel has carried, gateway by gateway, where it had to carry everything."""


def survey(
    topology: Topology, intercept: str | None, *, timeout: float = TIMEOUT, planes: Sequence[str] = ("relay",)
) -> Survey:
    """One column; `intercept` None is without proxy.  `timeout` is that of each step of a client, in seconds."""
    with ExitStack() as stack:
        lab = stack.enter_context(Lab(topology))
        server = stack.enter_context(FtpServer(lab.server, os.urandom(OCTETS)))
        proxies = []
        if intercept is not None:
            proxies = [
                stack.enter_context(Proxy(lab.gateways[side], config))
                for side, config in configs(lab, intercept, planes)
            ]
        outcomes = run(lab.client, lab.dialled, server, _transfers(ROWS), timeout=timeout)
        outcomes = _carried(outcomes, proxies)
        cells = _cells(ROWS, outcomes, lambda row: intercept is not None or not must_fail(topology, row.verb))
        log = "".join(f"--- {proxy.host.name}\n{proxy.log}" for proxy in proxies)
        if not all(cell.as_expected for cell in cells.values()):
            log += f"--- server\n{server.log}" + "".join(host.evidence() for host in lab.hosts)
        passed = [passed for proxy in proxies if (passed := proxy.passed()) is not None]
    return Survey(cells, log, passed)


def _carried(outcomes: Mapping[Transfer, Outcome], proxies: Iterable[Carrier]) -> dict[Transfer, Outcome]:
    """`outcomes`, or as many failures if not every transfer went through every proxy (TPROXY, for one, fails open)."""
    whole = [outcome.octets for outcome in outcomes.values() if outcome.ok]
    if all(proxy.carried(len(whole), sum(whole)) for proxy in proxies):
        return dict(outcomes)
    return {transfer: evolve(outcome, ok=False, error="bypassed the proxy") for transfer, outcome in outcomes.items()}


def configs(lab: Lab, intercept: str, planes: Sequence[str] = ("relay",)) -> list[tuple[str, str]]:
    """Which gateways get a proxy, and with which file."""
    found = []
    if (gateway := lab.gateways.get("client")) is not None:
        found.append(("client", forward(gateway, intercept, planes=planes)))
    if (gateway := lab.gateways.get("server")) is not None:
        listen = [str(endpoint) for endpoint in lab.dialled.values()]
        servers = [str(Endpoint(parse_address(lab.server.address(version)), 21)) for version in (4, 6)]
        found.append(("server", reverse(listen, servers, planes=planes)))
    return found


def _transfers(rows: Iterable[Row]) -> list[Transfer]:
    return [transfer for row in rows for transfer in row.transfers()]


def _cells(
    rows: Iterable[Row], outcomes: Mapping[Transfer, Outcome], expected: Callable[[Row], bool]
) -> dict[Row, Cell]:
    cells = {}
    for row in rows:
        down, up = row.transfers()
        cells[row] = Cell(outcomes[down], outcomes[up], expected(row))
    return cells


def demonstrate(planes: Sequence[str] = ("relay",)) -> int:
    """Print the table, with the proxies' data on `planes`; 0 if every cell is as it must be, else 1.

    Raises `LabError` if there can be no lab.
    """
    say(f"Each case is a RETR and a STOR of {OCTETS >> 20} MiB, compared by SHA-256. Each line builds a network anew:")
    table: dict[tuple[Topology, Row], list[Cell | None]] = {}
    logs = []
    for topology in TOPOLOGIES:
        for intercept, title in COLUMNS.items():
            if intercept == "redirect" and topology is Topology.SERVER_NAT:
                cells: Mapping[Row, Cell] = {}  # nothing is intercepted: the proxy has the server's public address
            else:
                say(f"  {topology}, {_step(topology, intercept)} ... ", end="")
                started = time.monotonic()
                found = survey(topology, intercept, planes=planes)
                cells = found.cells
                say(_summary(found, time.monotonic() - started))
                if not all(cell.as_expected for cell in cells.values()):
                    logs.append(f"{topology}, {title}:\n{found.log}")
            for row in ROWS:
                table.setdefault((topology, row), []).append(cells.get(row))
    sections: dict[str, list[tuple[str, ...]]] = {}
    for (topology, row), line_cells in table.items():
        line = (row.title, f"v{row.version}", *("-" if cell is None else str(cell) for cell in line_cells))
        sections.setdefault(str(topology), []).append(line)
    _print_table(("mode", "IP", *COLUMNS.values()), sections)
    say(EXPLANATION)
    if set(planes) == {"nft"}:
        say(SHUT)
    return _verdict([cell for cells in table.values() for cell in cells if cell is not None], logs)


def _step(topology: Topology, intercept: str | None) -> str:
    if intercept is None:
        return "without the proxy"
    return f"with the proxy, {'at the public address' if topology is Topology.SERVER_NAT else intercept}"


def demonstrate_on_loopback(why: str) -> int:
    """What can be shown without namespaces: reverse mode on 127.0.0.1 and ::1.  0 if everything worked, else 1."""
    say(why)
    say("So there is no NAT to be shown; here is the reverse mode on loopback instead:")
    versions = [version for version, host in ((4, "127.0.0.1"), (6, "::1")) if is_ours(parse_address(host))]
    rows = [row for row in ROWS if row.version in versions]
    here = Loopback()
    local = [parse_address(here.address(version)) for version in versions]
    listen = {version: Endpoint(host, _free_port(str(host))) for version, host in zip(versions, local, strict=True)}
    with ExitStack() as stack:
        options = [word for host in local for word in ("--listen", str(Endpoint(host, 0)))]
        server = stack.enter_context(FtpServer(here, os.urandom(OCTETS), *options))
        config = reverse(map(str, listen.values()), map(str, server.endpoints))
        proxy = stack.enter_context(Proxy(here, config))
        outcomes = run(here, listen, server, _transfers(rows), timeout=TIMEOUT)
        cells = _cells(rows, _carried(outcomes, [proxy]), lambda row: True)
        log = proxy.log
    lines = [(row.title, f"v{row.version}", str(cell)) for row, cell in cells.items()]
    _print_table(("mode", "IP", "with proxy"), {"no NAT, reverse": lines})
    return _verdict(list(cells.values()), [log])


def _free_port(host: str) -> int:
    with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        port: int = probe.getsockname()[1]
        return port


def _summary(found: Survey, seconds: float) -> str:
    cells = found.cells.values()
    worked = sum(cell.down.ok and cell.up.ok for cell in cells)
    odd = sum(not cell.as_expected for cell in cells)
    text = f"{worked} of {len(cells)} modes work, {f'{odd} UNEXPECTED' if odd else 'as expected'}"
    carried = " and ".join(f"{each.calls} connections with {each.octets >> 20} MiB" for each in found.passed)
    return f"{text} ({seconds:.1f} s)" + (f"\n    carried by the kernel: {carried}" if carried else "")


def _verdict(cells: list[Cell], logs: list[str]) -> int:
    odd = [cell for cell in cells if not cell.as_expected]
    if not odd:
        say(f"All {len(cells)} cases are as they must be.")
        return 0
    say(f"{len(odd)} of {len(cells)} cases are NOT as they must be. The errors, and what the proxies said:")
    for cell in odd:
        say(f"  RETR: {cell.down.error or 'ok'}; STOR: {cell.up.error or 'ok'}")
    for log in logs:
        say(log.rstrip())
    return 1


def _print_table(heads: tuple[str, ...], sections: Mapping[str, Iterable[tuple[str, ...]]]) -> None:
    lines = [heads, *(line for body in sections.values() for line in body)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ

    def show(line: tuple[str, ...]) -> None:
        padded = [text.ljust(width) for text, width in zip(line, widths, strict=True)]
        say("  " + "  ".join(_coloured(text) if colour else text for text in padded).rstrip())

    say()
    show(heads)
    for title, body in sections.items():
        say(f"{title} ".ljust(sum(widths) + 2 * len(widths), "-"))
        for line in body:
            show(line)
    say()


def _coloured(text: str) -> str:
    if "UNEXPECTED" in text:
        return f"\x1b[1;31m{text}\x1b[0m"
    if text.startswith("ok"):
        return f"\x1b[32m{text}\x1b[0m"
    return f"\x1b[33m{text}\x1b[0m" if text.startswith("fails") else text


def say(text: str = "", end: str = "\n") -> None:
    """A line to the user, at once."""
    print(text, end=end, flush=True)
