"""The configuration file: TOML in, frozen values out, and every mistake named at once.

    text --tomllib--> dict --cattrs--> tables as in the file --checks--> Config
    (tomllib)         (reading)        (tables)              (checks)    (values)

All problems of a file are reported together in one `ConfigError`, each with the path of its key, such as
`service "lan".limits.sessions`, or `service[0]`, counted from 0, where a service has no usable name.  A firewall
component that guesses what was meant is worse than one that refuses, so nothing is coerced and no key is ignored.

The file ends here, on the top floor: below, everybody gets `Policy`, `Timeouts` and plain values.
docs/configuration.md describes every key; a test holds the two together.
"""

from __future__ import annotations

import difflib
import json
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

from ..files import read as read_file
from ..pi.policy import CommandRule
from .beside import check_control, check_metrics
from .checks import check_service, check_together
from .reading import Found, key_path, read
from .systems import check_system
from .tables import GENERAL, SECTIONS, CommandRuleTable, ServiceTable, keys
from .values import (
    Announce,
    AnnounceFrom,
    AnnounceTo,
    Config,
    ConfigError,
    ControlConfig,
    GatewayConfig,
    IPNetwork,
    Limits,
    LogConfig,
    MetricsConfig,
    PfConfig,
    PortSpan,
    Problem,
    ProcessConfig,
    ServiceConfig,
    UnixPath,
)

__all__ = [
    "Announce",
    "AnnounceFrom",
    "AnnounceTo",
    "Config",
    "ConfigError",
    "ControlConfig",
    "GatewayConfig",
    "IPNetwork",
    "Limits",
    "LogConfig",
    "MetricsConfig",
    "PfConfig",
    "PortSpan",
    "Problem",
    "ProcessConfig",
    "ServiceConfig",
    "UnixPath",
    "load",
    "parse",
    "show",
]


SUBTABLES = ("gateway", "pf", "policy", "limits", "tls")
"""Of `[[service]]`: the tables that there is one of."""


def load(path: Path | str, system: str = sys.platform) -> Config:
    """The configuration in the file at `path`, for `system` (a `sys.platform`).

    Raises `ConfigError` for everything that is wrong with it.
    """
    try:
        octets = read_file(path)
    except OSError as error:
        raise ConfigError([Problem("", f"cannot be read: {error.strerror}")]) from None
    try:
        text = octets.decode()
    except UnicodeDecodeError as error:
        line = octets.count(b"\n", 0, error.start) + 1
        raise ConfigError([Problem(f"line {line}", "is not UTF-8")]) from None
    return parse(text, system)


def parse(text: str, system: str | None = None) -> Config:
    """The configuration in TOML `text`, for `system`, a `sys.platform`, or for none in particular.

    Raises `ConfigError` for everything that is wrong with it.
    """
    try:
        data = tomllib.loads(text)
    except RecursionError:
        raise ConfigError([Problem("", "is not TOML: nested too deeply")]) from None
    except ValueError as error:  # a number of thousands of digits is no TOMLDecodeError
        what, place = re.fullmatch(r"(.*?)(?: \(at (.*)\))?", str(error), re.DOTALL).groups()  # type: ignore[union-attr]
        raise ConfigError([Problem(place or "", f"is not TOML: {what}")]) from None

    found: list[Found] = []
    for key in data.keys() - {"service", *GENERAL}:
        found.append(((key,), _unknown_section(key)))
    general: dict[str, Any] = {name: read(data.get(name, {}), table, (name,), found) for name, table in GENERAL.items()}
    if general["control"] is not None:
        found += [(("control", *where), reason) for where, reason in check_control(general["control"])]
    services: list[tuple[int, ServiceConfig]] = []
    raw = data.get("service", [])
    if isinstance(raw, list):
        for number, each in enumerate(raw):
            if (table := read(each, ServiceTable, ("service", number), found)) is not None:
                found += [(("service", number, *where), reason) for where, reason in check_service(table)]
                services.append((number, service := table.service()))
                if system is not None:
                    found += [(("service", number, *where), reason) for where, reason in check_system(service, system)]
    else:
        found.append((("service",), "each service is a table of its own, headed [[service]] in double brackets"))
    if raw == []:
        found.append((("service",), "at least one [[service]] is needed"))
    found += check_together(services)
    if (metrics := general["metrics"]) is not None:
        checked = check_metrics(metrics, [service for _, service in services])
        found += [(("metrics", *where), reason) for where, reason in checked]

    if found:
        names = _names(raw)
        raise ConfigError([Problem(key_path(where, names), reason) for where, reason in found])
    return Config(services=tuple(service for _, service in services), **general)


def _unknown_section(key: str) -> str:
    for section in (f"[service.{key}]", f"[[service.{key}]]"):
        if section in SECTIONS:
            return f"unknown key here; write {section}, below the [[service]] that it belongs to"
    if key in keys(ServiceTable):
        return "unknown key here; it belongs into [[service]]"
    if close := difflib.get_close_matches(key, ["service", *GENERAL], 1):
        return f"unknown key; did you mean {'[[service]]' if close[0] == 'service' else f'[{close[0]}]'}?"
    return f"unknown key; a file has [[service]], {', '.join(f'[{name}]' for name in GENERAL)}"


def _names(raw: object) -> dict[int, str]:
    """The services that can be called by name: a string that is printable and theirs alone."""
    given = [each.get("name") if isinstance(each, dict) else None for each in raw] if isinstance(raw, list) else []
    return {
        number: name
        for number, name in enumerate(given)
        if isinstance(name, str) and name.isprintable() and name and given.count(name) == 1
    }


def show(config: Config) -> str:
    """The effective configuration, every default spelt out, as TOML that `parse` reads to an equal value."""
    blocks = [_block(f"[{name}]", getattr(config, name)) for name in GENERAL]
    for service in config.services:
        table = ServiceTable.of(service)
        blocks.append(_block("[[service]]", table, without=(*SUBTABLES, "announce_to", "rule")))
        blocks += [_block(f"[service.{name}]", getattr(table, name)) for name in SUBTABLES]
        blocks += [_block("[[service.announce_to]]", each) for each in table.announce_to]
        blocks += [_block("[[service.rule]]", rule) for rule in table.rule]
    return "\n".join(blocks)


def _block(head: str, table: Any, without: tuple[str, ...] = ()) -> str:
    lines = [head]
    for key in keys(type(table)):
        value = getattr(table, key)
        if key not in without and value is not None:
            lines.append(f"{key} = {_toml(value)}")
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return json.dumps(_time(value))
    if isinstance(value, CommandRule):
        value = CommandRuleTable.of(value)
    if isinstance(value, Announce | CommandRuleTable):
        given = {key: getattr(value, key) for key in keys(type(value)) if getattr(value, key) is not None}
        return "{ " + ", ".join(f"{key} = {_toml(each)}" for key, each in given.items()) + " }" if given else "{}"
    if isinstance(value, frozenset):
        return _toml(tuple(sorted(value)))
    if type(value) is tuple:  # Endpoint and PortSpan are tuples too, but written as strings
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, re.Pattern):
        value = value.pattern.decode()
    # JSON writes strings as TOML does, but for characters above the basic plane and for DEL
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def _time(seconds: float) -> str:
    """3600.0 as `1h`: every float of the file is a time."""
    for unit, length in (("h", 3600), ("m", 60)):
        if seconds % length == 0:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds:.3f}".rstrip("0").rstrip(".") + "s"
