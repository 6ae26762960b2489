"""The rules of one data connection, as pf.conf(5) text for an anchor of its own.  Pure: no process, no file.

A path with one awaited leg and one called leg is two address translations, whoever calls:

    PEER calls AT:N   ->   goes to TO:M, as coming from SOURCE

OpenBSD says that in two rules, which filter as well:

    pass in quick inet proto tcp from PEER to AT port = N flags S/SA keep state (max 1) rdr-to TO port M
    pass out quick inet proto tcp from PEER to TO port = M flags S/SA keep state (max 1) nat-to SOURCE port 50001:65535

FreeBSD translates first and filters afterwards; these four lines load on FreeBSD 12 to 15, in this order only:

    nat inet proto tcp from PEER to TO port = M -> SOURCE port 50001:65535
    rdr inet proto tcp from PEER to AT port = N -> TO port M
    pass in quick inet proto tcp from PEER to TO port = M flags S/SA keep state (max 1)
    pass out quick inet proto tcp from SOURCE to TO port = M flags S/SA keep state (max 1)

`max 1` lets one connection through and no second.  50001:65535 is what pf itself takes for source ports.

With a tag the rules decide less, as ftp-proxy(8) -T has it: no `quick`, and on OpenBSD `match`, which takes no
`keep state`; the administrator's own rules about that tag follow the anchor and pass the connection.  A queue cannot be
named inside an anchor on OpenBSD (its pfctl looks it up among the queues of that anchor), so it is refused there.

What reaches `render` may come from a compromised process (see `engine`), so everything is checked here: nothing that it
returns is refused by the parser of its system, or means more than one connection between two hosts.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from typing import Literal, get_args

from attrs import frozen

from ..endpoints import Endpoint, IPAddress
from ..paths import PathSpec

__all__ = ["ROOT", "Dialect", "RuleError", "RuleOptions", "anchor_name", "native_dialect", "problems", "render", "word"]

Dialect = Literal["openbsd", "freebsd"]
DIALECTS: tuple[Dialect, ...] = get_args(Dialect)

ROOT = "ftp-proxy"
"""The anchor that the administrator's pf.conf calls: `anchor "ftp-proxy/*"`, as for ftp-proxy(8)."""

SOURCE_PORTS = "50001:65535"
MOST_RTABLE = 255
"""RT_TABLEID_MAX of OpenBSD (sys/socket.h); FreeBSD allows as many FIBs as net.fibs says, and no more than that."""
LONGEST_NAME = 63
"""PF_TAG_NAME_SIZE, PF_QNAME_SIZE and PF_RULE_LABEL_SIZE are 64, with a NUL (net/pfvar.h)."""

BROADCAST = IPv4Address(0xFFFFFFFF)

_NAME = re.compile(rf"[A-Za-z0-9_.-]{{1,{LONGEST_NAME}}}")
_LABEL = re.compile(rf"[A-Za-z0-9_.:/@+-]{{1,{LONGEST_NAME}}}")
_BARE = re.compile(r"(?=.*[A-Z])[A-Za-z_][A-Za-z0-9_]*")
"""A word that pf.conf's lexer can take for nothing else: not for a number, and keywords are lower case."""


class RuleError(ValueError):
    """These rules cannot be; the text says which part of the path or of the options, and why."""


@frozen(kw_only=True)
class RuleOptions:
    """How the rules of a service look, beside its paths.  `problems` tells what is wrong with them."""

    dialect: Dialect
    tag: str | None = None
    queue: str | None = None
    log: int = 0
    """0: nothing; 1: `log`, the packet that makes the state; 2: `log (all)`."""
    rtable: int | None = None
    """The routing table (OpenBSD) or FIB (FreeBSD) by which the connection is routed."""
    label: str | None = None
    """For `pfctl -s labels` and `pfctl -k label`."""


def native_dialect(platform: str = sys.platform) -> Dialect | None:
    """That of the pf of this system; None where there is none, or one that we do not know."""
    return next((dialect for dialect in DIALECTS if platform.startswith(dialect)), None)


def problems(options: RuleOptions) -> Iterator[tuple[str, str]]:
    """What is wrong with them: the name of the option, and what to do about it."""
    if options.dialect not in DIALECTS:
        yield "dialect", f'{options.dialect!r} is no dialect of pf.conf; known: "openbsd", "freebsd"'
    for key in ("tag", "queue"):
        if (name := getattr(options, key)) is not None and not (isinstance(name, str) and _NAME.fullmatch(name)):
            yield key, f"is 1 to {LONGEST_NAME} of the letters A to Z and a to z, digits, and _ . -, not {name!r}"
    if options.queue is not None and options.dialect == "openbsd":
        mend = f'tag = "FTPDATA" here, and `match tagged FTPDATA set queue {options.queue}` in pf.conf'
        yield "queue", f"is refused by OpenBSD's pfctl inside an anchor; use {mend}"
    if type(options.log) is not int or options.log not in (0, 1, 2):
        yield "log", f"is 0, 1 (the first packet) or 2 (all packets), not {options.log!r}"
    rtable = options.rtable
    if rtable is not None and not (type(rtable) is int and 0 <= rtable <= MOST_RTABLE):
        yield "rtable", f"is the number of a routing table, 0 to {MOST_RTABLE}, not {rtable!r}"
    label = options.label
    if label is not None and not (isinstance(label, str) and _LABEL.fullmatch(label)):
        yield "label", f"is 1 to {LONGEST_NAME} letters, digits, and _ . : / @ + -, not {label!r}"


def anchor_name(process: int, number: int) -> str:
    """The anchor of path `number` of the engine with process id `process`; the same name that ftp-proxy(8) gives."""
    if process < 1 or number < 1:
        raise RuleError(f"{process}.{number} names no anchor")
    return f"{ROOT}/{process}.{number}"


def render(spec: PathSpec, options: RuleOptions) -> str:
    """The anchor's whole text, each line with its newline.  Port 0 as the source means any of pf's own range.

    Raises `RuleError` where this cannot be two translations of one TCP connection, or where an option is wrong.
    """
    for key, why in problems(options):
        raise RuleError(f"{key}: {why}")
    if (found := spec.halves) is None:
        raise RuleError("pf carries between one awaited and one called leg")
    _, leg, call = found
    peer, at, to, source = leg.peer, leg.at, call.to, call.source
    versions = {_checked(host).version for host in (peer, at.host, to.host, source.host)}
    if len(versions) > 1:
        raise RuleError("pf carries within one address family")
    for what, port, least in (("awaited", at.port, 1), ("called", to.port, 1), ("source", source.port, 0)):
        if type(port) is not int or not least <= port <= 65535:
            raise RuleError(f"{port!r} is not a port that can be {what}")
    family = "inet" if versions == {4} else "inet6"
    return (_openbsd if options.dialect == "openbsd" else _freebsd)(
        f"{family} proto tcp", peer, at, to, source, options
    )


def _openbsd(what: str, peer: IPAddress, at: Endpoint, to: Endpoint, source: Endpoint, options: RuleOptions) -> str:
    log, more = _log(options), _more(options)
    # match in inet proto tcp from PEER to AT port = N flags S/SA tag FTPDATA rdr-to TO port M
    kept = " keep state (max 1)" if options.tag is None else ""
    action, quick = ("match", "") if options.tag is not None else ("pass", " quick")
    return (
        f"{action} in{log}{quick} {what} from {peer} to {at.host} port = {at.port}"
        f" flags S/SA{kept}{more} rdr-to {to.host} port {to.port}\n"
        f"{action} out{log}{quick} {what} from {peer} to {to.host} port = {to.port}"
        f" flags S/SA{kept}{more} nat-to {source.host} port {source.port or SOURCE_PORTS}\n"
    )


def _freebsd(what: str, peer: IPAddress, at: Endpoint, to: Endpoint, source: Endpoint, options: RuleOptions) -> str:
    log, more = _log(options), _more(options)
    quick = " quick" if options.tag is None else ""
    return (
        f"nat {what} from {peer} to {to.host} port = {to.port} -> {source.host} port {source.port or SOURCE_PORTS}\n"
        f"rdr {what} from {peer} to {at.host} port = {at.port} -> {to.host} port {to.port}\n"
        f"pass in{log}{quick} {what} from {peer} to {to.host} port = {to.port} flags S/SA keep state (max 1){more}\n"
        f"pass out{log}{quick} {what} from {source.host} to {to.host} port = {to.port}"
        f" flags S/SA keep state (max 1){more}\n"
    )


def _log(options: RuleOptions) -> str:
    return ("", " log", " log (all)")[options.log]


def _more(options: RuleOptions) -> str:
    """The options behind the state, which pf takes in any order."""
    words = []
    if options.tag is not None:
        words.append(f"tag {word(options.tag)}")
    if options.queue is not None:
        words.append(f"queue {word(options.queue)}")
    if options.rtable is not None:
        words.append(f"rtable {options.rtable}")
    if options.label is not None:
        words.append(f'label "{options.label}"')
    return "".join(f" {word}" for word in words)


def word(name: str) -> str:
    """In quotes where pf.conf could read a keyword or a number."""
    return name if _BARE.fullmatch(name) else f'"{name}"'


def _checked(host: IPAddress) -> IPAddress:
    """Raises `RuleError` for what is not one host's address everywhere."""
    if isinstance(host, IPv6Address) and host.scope_id is not None:
        raise RuleError(f"{host} is an address of one link; pf carries between addresses that are routed")
    if host.is_unspecified or host.is_multicast or host == BROADCAST or host.is_loopback:
        raise RuleError(f"{host} is not the address of a host beyond this machine")
    return host
