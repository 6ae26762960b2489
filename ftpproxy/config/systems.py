"""What a system cannot do of what a configuration says.  A file is checked for the system that it is loaded for."""

from __future__ import annotations

from collections.abc import Iterator

from ..pf.anchor import native_dialect
from ..pf.natlook import native_layout
from .reading import Found
from .values import Announce, AnnounceFrom, ServiceConfig

__all__ = ["check_system"]


def check_system(service: ServiceConfig, system: str) -> Iterator[Found]:
    """`system` is a `sys.platform`.  Places are relative to the service."""
    if (why := _intercept(service.intercept, system)) is not None:
        yield ("intercept",), f'"{service.intercept}" {why}'
    for index, plane in enumerate(service.planes):
        if plane == "nft" and system != "linux":
            yield ("planes", index), '"nft" is Linux\'s packet filter; use "relay"'
        if plane == "pf" and service.pf.dialect is None and native_dialect(system) is None:
            reason = f'"pf" is the packet filter of OpenBSD and FreeBSD; this is {system}'
            yield ("planes", index), f"{reason}, where `dialect` of [service.pf] must be given"
    if system != "linux":
        if service.firewall_mark:
            yield ("firewall_mark",), "is of nftables, on Linux"
        told: list[tuple[tuple[str | int, ...], Announce]] = [(("announce",), service.announce)]
        told += [(("announce_to", number), each) for number, each in enumerate(service.announce_to)]
        for where, announce in told:
            for side in ("client", "server"):
                source = getattr(announce, side)
                if isinstance(source, AnnounceFrom) and source.kind == "interface":
                    yield (*where, side), 'an interface can only be asked on Linux; use "file:" or "name:"'


def _intercept(intercept: str, system: str) -> str | None:
    """Why there is no such redirection, and what there is instead; None where there is."""
    if intercept in ("auto", "none"):
        return "is of Linux and of systems with pf" if intercept == "auto" and not _knows(system) else None
    if intercept in ("tproxy", "redirect"):
        if system == "linux":
            return None
        return f'is of Linux; here it is "{"divert" if system.startswith("openbsd") else "rdr"}"'
    if system == "linux":
        return 'is of systems with pf; on Linux it is "tproxy" or "redirect"'
    if intercept == "divert" and not system.startswith("openbsd"):
        return 'is of OpenBSD; here it is "rdr" (and divert-to of FreeBSD is another thing, divert(4))'
    return None if _knows(system) else f"needs a pf that can be asked whom a client called, and {system} has none known"


def _knows(system: str) -> bool:
    """Whether the gates know how to find out whom a client called."""
    return system == "linux" or native_layout(system) is not None
