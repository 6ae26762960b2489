"""Owners of paths that write down what they are told, for whatever answers at once or later."""

from __future__ import annotations

from attrs import define, field

from ftpproxy.dtp.plane import Path, Pending
from ftpproxy.endpoints import Side
from ftpproxy.paths import Tally

__all__ = ["KernelOwner", "Owner"]


@define
class Owner:
    paths: list[Path] = field(factory=list)
    """That were pending."""
    refusals: list[str] = field(factory=list)
    up: list[Side] = field(factory=list)
    failures: list[str] = field(factory=list)
    tallies: list[Tally] = field(factory=list)

    def opened(self, pending: Pending, path: Path) -> None:
        self.paths.append(path)

    def refused(self, pending: Pending, why: str) -> None:
        self.refusals.append(why)

    def connected(self, path: Path, side: Side) -> None:
        self.up.append(side)

    def failed(self, path: Path, why: str) -> None:
        self.failures.append(why)

    def delivered(self, path: Path) -> None: ...

    def finished(self, path: Path, tally: Tally) -> None:
        self.tallies.append(tally)


@define
class KernelOwner(Owner):
    """Of a path that a kernel carries."""

    def delivered(self, path: Path) -> None:
        raise AssertionError("the kernel does not tell")
