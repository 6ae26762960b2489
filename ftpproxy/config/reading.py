"""Strict structuring: what TOML gave us becomes a table class, or a list of problems.

Values are taken as they are.  A string is no list of characters, `"100"` no number and `true` no 1; a key that we do
not know is an error with a suggestion.  cattrs does the walking and collects errors as a tree of exception groups;
every hook here is ours, because its own coerce.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from ipaddress import ip_network
from typing import Any, Literal, TypeVar, get_args, get_origin

import attrs
from cattrs import (
    ClassValidationError,
    Converter,
    ForbiddenExtraKeysError,
    IterableValidationError,
    IterableValidationNote,
)
from cattrs.gen import make_dict_structure_fn, override

from ..endpoints import Endpoint, IPAddress, parse_address
from ..pi.destinations import Destination, parse_target
from ..pi.filter import GROUPS, KNOWN
from ..pi.policy import CommandName, CommandRule, IPNetwork, Policy
from .patterns import compile_pattern
from .tables import CHOICES, ELSEWHERE, SECTIONS, CommandRuleTable, RuleTable, keys
from .values import AnnounceFrom, HostName, PortSpan, UnixPath

__all__ = ["Found", "Where", "key_path", "read"]

T = TypeVar("T")
Where = tuple[str | int, ...]
"""A place in the file: `("service", 0, "listen", 1)`."""
Found = tuple[Where, str]
"""A mistake: where and what."""

LONGEST_SECONDS = 365 * 24 * 3600.0

_WORDS: dict[type, str] = {
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "a table",
}


def _wrong(expected: str, value: object) -> ValueError:
    return ValueError(f"{expected} is expected, not {_WORDS.get(type(value), 'a date or time')}")


def _string(value: object, expected: str = "a string") -> str:
    if not isinstance(value, str):
        raise _wrong(expected, value)
    return value


def _plain(kind: type) -> Callable[[object, object], Any]:
    def read(value: object, _: object) -> Any:
        if type(value) is not kind:  # bool is an int by inheritance
            raise _wrong(_WORDS[kind], value)
        return value

    return read


def _seconds(value: object, _: object) -> float:
    """Every float of ours is a time: `"90s"`, `"1.5m"`, `"1h"`."""
    expected = 'a time with its unit, such as "90s", "5m" or "1h",'
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)(s|m|h)", _string(value, expected))
    if match is None:
        raise ValueError(f"{value!r} is not {expected[:-1]}")
    seconds = round(float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]], 3)
    if not 0 < seconds <= LONGEST_SECONDS:
        raise ValueError(f"{value!r} is not more than nothing and at most a year")
    return seconds


def _address(value: object, _: object) -> IPAddress:
    text = _string(value, "an IP address in a string")
    try:
        return parse_address(text)
    except ValueError:
        raise ValueError(f"{text!r} is not an IP address") from None


_SOURCES: dict[str, tuple[str, str]] = {
    # Linux's dev_valid_name
    "interface": (r"(?!\.{1,2}$)[^/:\s]{1,15}", "interface:eth0"),
    # RFC 1123 section 2.1, and the underscores that people use; never an address
    "name": (r"(?=.{1,253}$)([A-Za-z0-9_-]{1,63}\.)*(?![0-9]+\.?$)[A-Za-z0-9_-]{1,63}\.?", "name:gateway.example.org"),
    "file": (r"/[^\0]+", "file:/run/public-address"),
}
"""Where an announced address may come from: what may stand behind the colon, and an example."""


def _announced(value: object, _: object) -> IPAddress | AnnounceFrom:
    text = _string(value, "an IP address in a string")
    kind, colon, what = text.partition(":")
    if text == "own":
        return AnnounceFrom("own")
    if colon and kind in _SOURCES:
        pattern, example = _SOURCES[kind]
        if not re.fullmatch(pattern, what):
            raise ValueError(f'{text!r} is not of the form "{example}"')
        return AnnounceFrom(kind, what)  # type: ignore[arg-type]
    try:
        return parse_address(text)
    except ValueError:
        examples = ", ".join(f'"{example}"' for _, example in _SOURCES.values())
        raise ValueError(f'{text!r} is not an IP address, and none of "own", {examples}') from None


def _network(value: object, _: object) -> IPNetwork:
    text = _string(value, "a network in a string")
    try:
        return ip_network(text)
    except ValueError:
        pass
    try:
        meant = ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"{text!r} is not a network such as 10.0.0.0/8 or fd00::/8") from None
    raise ValueError(f"{text!r} has bits set behind its prefix length; did you mean {str(meant)!r}?")


def _span(value: object, _: object) -> PortSpan:
    text = _string(value, 'a range of ports such as "20000-29999"')
    match = re.fullmatch(r"([0-9]{1,5})-([0-9]{1,5})", text)
    if match is None:
        raise ValueError(f'{text!r} is not a range of ports such as "20000-29999"')
    first, last = int(match[1]), int(match[2])
    if first > last:
        raise ValueError(f"{text!r} runs backwards")
    if first < 1 or last > 65535:
        raise ValueError(f"{text!r} leaves the ports 1 to 65535")
    return PortSpan(first, last)


def _command(value: object, _: object) -> CommandName:
    text = _string(value, 'a command in a string, such as "DELE",')
    if text == "*" or text in GROUPS:
        return CommandName(text)
    if text.startswith("@"):
        raise ValueError(f"{text!r} is no group of commands; known: {', '.join(GROUPS)}")
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9]{2,15}( [A-Za-z0-9_-]{1,32})?", text):
        raise ValueError(f'{text!r} is not a command such as "DELE", "SITE EXEC", "@write" or "*"')
    name = text.upper()
    verb = name.partition(" ")[0]
    known = sorted(each.decode() for each in KNOWN)
    if verb not in known and (close := difflib.get_close_matches(verb, known, 1, 0.75)):
        raise ValueError(f"{text!r} is not known; did you mean {close[0]}?")
    return CommandName(name)


def _pattern(value: object, _: object) -> re.Pattern[bytes]:
    return compile_pattern(_string(value, "a regular expression in a string"))


def _host_name(value: object, _: object) -> HostName:
    text = _string(value, 'a name with its server such as "mirror=10.0.0.5:21"')
    name, equals, server = text.partition("=")
    try:
        target = parse_target(name.strip().encode())
    except ValueError:
        target = None
    if not equals or target is None or target.address is not None or target.host != name.strip().lower():
        raise ValueError(f'{text!r} is not a name with its server such as "mirror=10.0.0.5:21"')
    return HostName(target.host, Endpoint.parse(server.strip()))


def _choice(words: tuple[Any, ...]) -> Callable[[object, object], Any]:
    def read(value: object, _: object) -> Any:
        if type(value) is not type(words[0]):
            raise _wrong(_WORDS[type(words[0])], value)
        if value not in words:
            raise ValueError(f"{json.dumps(value)} is not known here; known: {', '.join(map(json.dumps, words))}")
        return value

    return read


def _array(container: Callable[[Iterable[Any]], Any], element: Any) -> Callable[[object, object], Any]:
    def read(value: object, _: object) -> Any:
        if not isinstance(value, list):
            raise _wrong("a list", value)
        taken, errors = [], []
        for index, each in enumerate(value):
            try:
                taken.append(_converter().structure(each, element))
            except Exception as error:
                error.add_note(IterableValidationNote("array", index, element))
                errors.append(error)
        if errors:
            raise IterableValidationError("array", errors, list)
        return container(taken)

    return read


def _table(table: type) -> Callable[[object, object], Any]:
    overrides = {name: override(omit=True) for name in ELSEWHERE.get(table, ())}
    if issubclass(table, Policy):
        for name, words in CHOICES.items():
            overrides[name] = override(struct_hook=_choice(words))
    structure: Callable[[Mapping[str, Any], Any], Any] = make_dict_structure_fn(
        table,
        _converter(),
        _cattrs_forbid_extra_keys=True,
        **overrides,  # type: ignore[arg-type]
    )

    def read(value: object, _: object) -> Any:
        if not isinstance(value, dict):
            raise _wrong("a table", value)
        return structure(value, table)

    return read


def _command_rule(value: object, _: object) -> CommandRule:
    return _converter().structure(value, CommandRuleTable).rule()


def _rule_table() -> Callable[[object, object], RuleTable]:
    table = _table(RuleTable)

    def read(value: object, kind: object) -> RuleTable:
        rule: RuleTable = table(value, kind)
        assert isinstance(value, dict)
        return attrs.evolve(rule, given=frozenset(value))

    return read


def _place(value: object, _: object) -> Endpoint | UnixPath:
    text = _string(value, '"ADDRESS:PORT" or "unix:PATH"')
    scheme, colon, path = text.partition(":")
    return UnixPath(path) if scheme == "unix" and colon else Endpoint.parse(text)


def _origin(kind: Any) -> Any:
    return get_origin(kind)


@cache
def _converter() -> Converter:
    converter = Converter(detailed_validation=True)
    converter.register_structure_hook_factory(attrs.has, _table)
    converter.register_structure_hook_factory(lambda kind: kind is RuleTable, lambda _: _rule_table())
    converter.register_structure_hook_func(lambda kind: kind is CommandRule, _command_rule)
    converter.register_structure_hook_func(lambda kind: kind in (CommandName, CommandName | None), _command)
    converter.register_structure_hook_func(lambda kind: kind in (re.Pattern[bytes], re.Pattern[bytes] | None), _pattern)
    converter.register_structure_hook_func(lambda kind: _origin(kind) is tuple, _read_tuple)
    converter.register_structure_hook_func(lambda kind: kind == frozenset[int], _array(frozenset, int))
    converter.register_structure_hook_func(lambda kind: _origin(kind) is Literal, _read_literal)
    converter.register_structure_hook_func(lambda kind: kind in (IPAddress, IPAddress | None), _address)
    converter.register_structure_hook_func(lambda kind: kind == IPAddress | AnnounceFrom | None, _announced)
    converter.register_structure_hook_func(lambda kind: kind == IPNetwork, _network)
    converter.register_structure_hook(Endpoint, lambda value, _: Endpoint.parse(_string(value, '"ADDRESS:PORT"')))
    converter.register_structure_hook_func(lambda kind: kind == Endpoint | UnixPath | None, _place)
    converter.register_structure_hook(PortSpan, _span)
    converter.register_structure_hook(HostName, _host_name)
    converter.register_structure_hook_func(
        lambda kind: kind is Destination,
        lambda value, _: Destination.parse(_string(value, "a network or a host name in a string")),
    )
    converter.register_structure_hook(float, _seconds)
    for kind in (bool, int, str):
        converter.register_structure_hook(kind, _plain(kind))
    return converter


def _read_tuple(value: object, kind: Any) -> Any:
    return _array(tuple, get_args(kind)[0])(value, kind)


def _read_literal(value: object, kind: Any) -> Any:
    return _choice(get_args(kind))(value, kind)


def key_path(where: Where, names: Mapping[int, str]) -> str:
    """`("service", 0, "listen", 1)` as `service "lan".listen[1]`."""
    text = ""
    for depth, part in enumerate(where):
        if isinstance(part, int):
            text += f' "{names[part]}"' if depth == 1 and part in names else f"[{part}]"
        else:
            text += f".{part}" if text else part
    return text


def _unknown(key: str, table: type) -> str:
    known = keys(table)
    if close := difflib.get_close_matches(key, known, 1):
        return f"unknown key; did you mean {close[0]}?"
    for section, other in SECTIONS.items():
        if other is not table and key in keys(other):
            return f"unknown key here; it belongs into {section}"
    return f"unknown key; known here: {', '.join(known)}"


def _problems(error: Exception, where: Where) -> Iterator[tuple[Where, str]]:
    """The leaves of cattrs' tree of errors, with their places."""
    if isinstance(error, ClassValidationError):
        noted, others = error.group_exceptions()
        for each, note in noted:
            yield from _problems(each, (*where, note.name))
        for each in others:
            yield from _problems(each, where)
    elif isinstance(error, IterableValidationError):
        for each, index in error.group_exceptions()[0]:
            yield from _problems(each, (*where, index.index))
    elif isinstance(error, ForbiddenExtraKeysError):
        for key in sorted(error.extra_fields):
            yield (*where, key), _unknown(key, error.cl)
    elif isinstance(error, KeyError):
        yield where, "is missing"
    elif isinstance(error, ValueError):
        yield where, str(error)
    else:
        raise error


def read(value: object, table: type[T], where: Where, found: list[Found]) -> T | None:
    """`value`, which stands at `where`, as a `table`; or None, and `found` has grown by what is wrong with it."""
    try:
        return _converter().structure(value, table)
    except Exception as error:
        found += _problems(error, where)
        return None
