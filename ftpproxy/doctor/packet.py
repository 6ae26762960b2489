"""A packet as far as it is known, and what the expressions of nftables (libnftables-json(5)) say of it."""

from __future__ import annotations

from fnmatch import fnmatchcase
from ipaddress import ip_address, ip_network, summarize_address_range
from typing import Any

from attrs import frozen

from ..pi.policy import IPNetwork
from ..table import FIREWALL_MARK

__all__ = ["NEVER", "Answer", "Packet", "known_of", "only", "same"]

Answer = bool | None
"""None: perhaps."""


@frozen(kw_only=True)
class Packet:
    """The first one of a TCP connection, as far as it is known."""

    version: int
    port: int | None = None
    """It is for; None: not known."""
    source: IPNetwork | None = None
    """One of these addresses."""
    destination: IPNetwork | None = None
    local: bool | None = None
    """Whether it is for an address of this machine."""
    interface: str | None = None
    """It came in by."""
    mark: int | None = None
    unmarked: int = 0
    """Bits that its mark does not have, where the others are not known."""
    connection_mark: int | None = None
    """That of its conntrack entry, as far as the bits of `FIREWALL_MARK` go; None: not known."""
    status: frozenset[str] = frozenset()
    """Of its conntrack entry: `dnat`."""


NEVER = object()
"""What a packet of TCP and its family does not have: a rule that asks for it does not match."""


def only(each: Any) -> tuple[str, Any]:
    if isinstance(each, str):
        return each, None
    ((kind, value),) = each.items()
    return kind, value


def known_of(expression: Any, packet: Packet) -> Any:
    """The value of `expression` for `packet`; None if it is not known, `NEVER` if there is none."""
    if not isinstance(expression, dict):
        return None
    kind, value = only(expression)
    if kind == "concat":
        parts = [known_of(part, packet) for part in value]
        return NEVER if NEVER in parts else parts
    if kind == "&":
        left, mask = known_of(value[0], packet), value[1]
        if value[0] == {"ct": {"key": "mark"}} and packet.connection_mark is not None and isinstance(mask, int):
            return packet.connection_mark & mask if mask & ~FIREWALL_MARK == 0 else None
        if value[0] == {"meta": {"key": "mark"}} and packet.mark is None and isinstance(mask, int):
            return 0 if mask & ~packet.unmarked == 0 else None
        return left & mask if isinstance(left, int) and isinstance(mask, int) else None
    if kind == "payload":
        return _field(value.get("protocol"), value.get("field"), packet)
    if kind == "ct":
        return {"state": frozenset({"new"}), "status": packet.status}.get(value["key"])
    if kind == "fib" and value["result"] == "type" and value["flags"] == ["daddr"] and packet.local is not None:
        return "local" if packet.local else "unicast"
    if kind == "meta":
        return {
            "l4proto": "tcp",
            "nfproto": f"ipv{packet.version}",
            "protocol": "ip" if packet.version == 4 else "ip6",
            "iifname": packet.interface,
            "iif": packet.interface,
            "mark": packet.mark,
        }.get(value["key"])
    return None


def _field(protocol: str | None, name: str | None, packet: Packet) -> Any:
    if protocol in ("ip", "ip6"):
        if (protocol == "ip") != (packet.version == 4):
            return NEVER
        return {"saddr": packet.source, "daddr": packet.destination, "protocol": "tcp", "nexthdr": "tcp"}.get(
            name or ""
        )
    if protocol in ("tcp", "th"):
        return packet.port if name == "dport" else None
    return None if protocol is None else NEVER


def same(known: Any, right: Any) -> Answer:
    if isinstance(known, int | str):
        if isinstance(right, dict) and "range" in right and isinstance(known, int):
            first, last = right["range"]
            return bool(first <= known <= last)
        if isinstance(known, str) and isinstance(right, str):
            return fnmatchcase(known, right)
        return known == right if isinstance(right, type(known)) else None
    networks = _networks(right)
    if networks is None:
        return None
    if any(known.version == each.version and known.subnet_of(each) for each in networks):
        return True
    return None if any(known.overlaps(each) for each in networks) else False


def _networks(right: Any) -> list[IPNetwork] | None:
    try:
        if isinstance(right, str):
            return [ip_network(right)]
        if "prefix" in right:
            return [ip_network((right["prefix"]["addr"], right["prefix"]["len"]))]
        first, last = map(ip_address, right["range"])
        return list(summarize_address_range(first, last))
    except (ValueError, KeyError, TypeError):
        return None
