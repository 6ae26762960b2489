"""The configuration file: what is taken, what is refused and in which words."""

from __future__ import annotations

import os
import re
import time
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftpproxy.config import (
    Announce,
    AnnounceFrom,
    AnnounceTo,
    Config,
    ConfigError,
    Limits,
    LogConfig,
    MetricsConfig,
    PortSpan,
    Problem,
    ServiceConfig,
    UnixPath,
    load,
    parse,
    show,
)
from ftpproxy.config.beside import LONGEST_SOCKET
from ftpproxy.config.patterns import compile_pattern
from ftpproxy.config.tables import SECTIONS, ServiceTable, keys
from ftpproxy.endpoints import Endpoint
from ftpproxy.pf.anchor import RuleOptions, native_dialect
from ftpproxy.pi.filter import GROUPS, LONGEST_ARGUMENT
from ftpproxy.pi.policy import CommandName, CommandRule, NetworkRule, Policy, Timeouts

from .tables import service_table

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.toml"))

FORWARD = service_table(
    "lan", "forward", "tproxy", ["127.0.0.1:8021", "[::1]:8021"], clients=["10.77.1.0/24", "fd77:1::/64"]
)
REVERSE = service_table("dmz", "reverse", "none", ["192.0.2.1:21"], servers=["10.0.0.5:21"])


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    return [str(problem) for problem in caught.value.problems]


def changed(base: str, **values: str) -> str:
    """`base` with other values, as TOML text, for some of its keys; an empty text takes the key away."""
    for key, value in values.items():
        line = f"{key} = {value}" if value else ""
        base, count = re.subn(rf"(?m)^{key} .*$", line, base)
        base += f"{line}\n" * (count == 0)
    return base


def test_a_file_becomes_values() -> None:
    text = FORWARD + (
        'data_ports = "30000-30999"\nannounce = { server = "198.51.100.7" }\nsource = "192.0.2.9"\n'
        "active_source_port = 20\n"
        '[service.policy]\nport_address = "override"\ndeny_data_ports = [8080]\n'
        '[service.limits]\nsessions = 5\nidle = "1.5h"\nconnect = "250s"\n'
        '[service.tls]\nmode = "refuse"\n'
        '[log]\nlevel = "debug"\n'
    )
    assert parse(text) == Config(
        services=(
            ServiceConfig(
                name="lan",
                mode="forward",
                listen=(Endpoint(ip_address("127.0.0.1"), 8021), Endpoint(ip_address("::1"), 8021)),
                intercept="tproxy",
                clients=(ip_network("10.77.1.0/24"), ip_network("fd77:1::/64")),
                data_ports=PortSpan(30000, 30999),
                announce=Announce(server=ip_address("198.51.100.7")),
                source=ip_address("192.0.2.9"),
                active_source_port=20,
                policy=Policy(port_address="override", deny_data_ports=frozenset({8080}), tls="refuse"),
                limits=Limits(sessions=5),
                timeouts=Timeouts(idle=5400, connect=250),
            ),
        ),
        log=LogConfig(level="debug"),
    )


def test_rules_change_the_policy_of_their_service() -> None:
    text = FORWARD + (
        "[service.policy]\nread_only = true\nmin_data_port = 2000\n"
        'commands = [{ allow = "stor", argument = \'^/incoming/[^/]+$\' }, { deny = "site chmod" }]\n'
        '[service.tls]\nmode = "refuse"\n'
        '[[service.rule]]\nclients = ["10.77.1.8/29"]\nread_only = false\ncommands = []\n'
        '[[service.rule]]\nclients = ["10.77.1.0/25", "fd77:1::/80"]\ndeny = ["@extension", "*"]\n'
    )
    service = parse(text).services[0]
    commands = (
        CommandRule(allow=True, command=CommandName("STOR"), argument=re.compile(rb"^/incoming/[^/]+$")),
        CommandRule(allow=False, command=CommandName("SITE CHMOD")),
    )
    policy = Policy(read_only=True, min_data_port=2000, tls="refuse", commands=commands)
    assert service.policy == policy
    assert service.rules == (
        NetworkRule((ip_network("10.77.1.8/29"),), attrs.evolve(policy, read_only=False, commands=())),
        NetworkRule(
            (ip_network("10.77.1.0/25"), ip_network("fd77:1::/80")),
            attrs.evolve(policy, deny=(CommandName("@extension"), CommandName("*"))),
        ),
    )
    assert service.policies.policy_for(ip_address("10.77.1.9")).read_only is False
    assert service.policies.policy_for(ip_address("192.0.2.1")) == policy


PATTERNS = {
    **dict.fromkeys(
        [r"[.]exe$", "^/incoming/.*/[^/]*$", "a.*b", "(?i)(foo|bar)[0-9]{1,3}", "^(?:[a-z]{2}/){3}x", "", "(a|b)?c"],
        True,
    ),
    **dict.fromkeys(
        ["(a+)+$", "(a|aa)*$", "(a*)*", "(a?){40}a{40}", ".*.*x", "^.*.*.*x", "(?m)^.*.*x", "((a|b)*c)*", "(?=(a+)+b)"],
        False,
    ),
    **dict.fromkeys(["[", "(?P<x", "a{2", "[[a]", "*", "(?z)", "a" * 9 + "{99999999999}"], False),
}
PATTERNS["a{2"] = True  # Python takes it literally


@pytest.mark.parametrize("text", PATTERNS)
def test_a_pattern_that_could_take_long_is_refused(text: str) -> None:
    try:
        compile_pattern(text)
    except ValueError:
        assert not PATTERNS[text]
    else:
        assert PATTERNS[text]


@settings(deadline=None)
@given(st.text(st.sampled_from("ab.*+?{}1,2()|[]^$\\-"), max_size=16), st.text(st.sampled_from("ab1"), max_size=9))
def test_a_pattern_that_is_taken_does_not_take_long(text: str, piece: str) -> None:
    try:
        pattern = compile_pattern(text)
    except ValueError:
        return
    before = time.process_time()
    pattern.search(((piece or "a") * LONGEST_ARGUMENT)[:LONGEST_ARGUMENT].encode())
    assert time.process_time() - before < 0.5


def test_addresses_that_are_announced_from_elsewhere() -> None:
    text = changed(REVERSE, announce='{ client = "interface:ppp0", server = "name:gateway.example.org" }') + (
        'announce_refresh = "5m"\n'
        '[[service.announce_to]]\nclients = ["10.0.0.0/8"]\nclient = "own"\nserver = "file:/run/public address"\n'
        '[[service.announce_to]]\nclients = ["0.0.0.0/0"]\nclient = "192.0.2.7"\n'
    )
    service = parse(text).services[0]
    assert service.announce == Announce(
        client=AnnounceFrom("interface", "ppp0"), server=AnnounceFrom("name", "gateway.example.org")
    )
    assert service.announce_refresh == 300
    assert service.announce_to == (
        AnnounceTo(
            clients=(ip_network("10.0.0.0/8"),),
            client=AnnounceFrom("own"),
            server=AnnounceFrom("file", "/run/public address"),
        ),
        AnnounceTo(clients=(ip_network("0.0.0.0/0"),), client=ip_address("192.0.2.7")),
    )


def test_defaults_are_those_of_the_values_below() -> None:
    service = parse(FORWARD).services[0]
    assert (service.policy, service.timeouts, service.limits) == (Policy(), Timeouts(), Limits())
    assert service.planes == ("relay",)
    assert service.data_ports == (20000, 29999)
    assert type(service) is ServiceConfig


SHORT_LISTEN = 'service "lan".listen'
BAD: list[tuple[str, list[str]]] = [
    # types: nothing is coerced
    (changed(FORWARD, listen='"127.0.0.1:8021"'), [f"{SHORT_LISTEN}: a list is expected, not a string"]),
    (changed(FORWARD, listen="[8021]"), [f'{SHORT_LISTEN}[0]: "ADDRESS:PORT" is expected, not an integer']),
    (changed(FORWARD, name="7"), ["service[0].name: a string is expected, not an integer"]),
    (changed(FORWARD, mode="true"), ['service "lan".mode: a string is expected, not a boolean']),
    (changed(FORWARD, announce='"192.0.2.1"'), ['service "lan".announce: a table is expected, not a string']),
    (
        changed(FORWARD, source="1979-05-27"),
        ['service "lan".source: an IP address in a string is expected, not a date or time'],
    ),
    (
        changed(FORWARD, active_source_port='"20"'),
        ['service "lan".active_source_port: an integer is expected, not a string'],
    ),
    (
        changed(FORWARD, active_source_port="false"),
        ['service "lan".active_source_port: an integer is expected, not a boolean'],
    ),
    (
        FORWARD + '[service.limits]\nsessions = "100"\n',
        ['service "lan".limits.sessions: an integer is expected, not a string'],
    ),
    (
        FORWARD + "[service.limits]\nsessions = true\n",
        ['service "lan".limits.sessions: an integer is expected, not a boolean'],
    ),
    (
        FORWARD + "[service.limits]\nsessions = 1.0\n",
        ['service "lan".limits.sessions: an integer is expected, not a number'],
    ),
    (
        FORWARD + "[service.policy]\nrequire_login = 1\n",
        ['service "lan".policy.require_login: a boolean is expected, not an integer'],
    ),
    (
        FORWARD + '[service.policy]\ndeny_data_ports = [1, "2", true]\n',
        [
            'service "lan".policy.deny_data_ports[1]: an integer is expected, not a string',
            'service "lan".policy.deny_data_ports[2]: an integer is expected, not a boolean',
        ],
    ),
    ("service = 3\n", ["service: each service is a table of its own, headed [[service]] in double brackets"]),
    (
        FORWARD.replace("[[service]]", "[service]"),
        ["service: each service is a table of its own, headed [[service]] in double brackets"],
    ),
    ("service = [3]\n", ["service[0]: a table is expected, not an integer"]),
    ("log = 3\n" + FORWARD, ["log: a table is expected, not an integer"]),
    # forms
    (changed(FORWARD, listen='["127.0.0.1"]'), [f"{SHORT_LISTEN}[0]: '127.0.0.1' is not ADDRESS:PORT"]),
    (
        changed(FORWARD, listen='["::1:8021"]'),
        [f"{SHORT_LISTEN}[0]: '::1:8021': an IPv6 address before a port stands in brackets, as in [::1]:21"],
    ),
    (
        changed(FORWARD, listen='["localhost:21"]'),
        [f"{SHORT_LISTEN}[0]: 'localhost:21': 'localhost' is not an IP address"],
    ),
    (
        changed(FORWARD, clients='["10.77.1.1/24"]'),
        [
            (
                "service \"lan\".clients[0]: '10.77.1.1/24' has bits set behind its prefix length; "
                "did you mean '10.77.1.0/24'?"
            )
        ],
    ),
    (
        changed(FORWARD, clients='["lan"]'),
        ["service \"lan\".clients[0]: 'lan' is not a network such as 10.0.0.0/8 or fd00::/8"],
    ),
    (changed(FORWARD, source='"gw"'), ["service \"lan\".source: 'gw' is not an IP address"]),
    (
        changed(FORWARD, data_ports='"20000"'),
        ['service "lan".data_ports: \'20000\' is not a range of ports such as "20000-29999"'],
    ),
    (changed(FORWARD, data_ports='"29999-20000"'), ["service \"lan\".data_ports: '29999-20000' runs backwards"]),
    (
        changed(FORWARD, data_ports='"60000-70000"'),
        ["service \"lan\".data_ports: '60000-70000' leaves the ports 1 to 65535"],
    ),
    (
        changed(FORWARD, data_ports="20000"),
        ['service "lan".data_ports: a range of ports such as "20000-29999" is expected, not an integer'],
    ),
    (
        FORWARD + "[service.limits]\nidle = 3600\n",
        ['service "lan".limits.idle: a time with its unit, such as "90s", "5m" or "1h", is expected, not an integer'],
    ),
    (
        FORWARD + '[service.limits]\nidle = "3600"\n',
        ['service "lan".limits.idle: \'3600\' is not a time with its unit, such as "90s", "5m" or "1h"'],
    ),
    (
        FORWARD + '[service.limits]\nconnect = "0s"\n',
        ["service \"lan\".limits.connect: '0s' is not more than nothing and at most a year"],
    ),
    # words
    (
        changed(FORWARD, mode='"foward"'),
        ['service "lan".mode: "foward" is not known here; known: "forward", "reverse", "gateway"'],
    ),
    (
        changed(FORWARD, planes='["nft", "rely"]'),
        ['service "lan".planes[1]: "rely" is not known here; known: "nft", "pf", "relay"'],
    ),
    (
        changed(FORWARD, active_source_port="21"),
        ['service "lan".active_source_port: 21 is not known here; known: 0, 20'],
    ),
    (
        FORWARD + '[service.policy]\ngreeting = "lax"\n',
        ['service "lan".policy.greeting: "lax" is not known here; known: "strict", "lenient"'],
    ),
    (
        FORWARD + '[service.policy]\nport_address = "any"\n',
        ['service "lan".policy.port_address: "any" is not known here; known: "same", "override"'],
    ),
    (
        FORWARD + '[service.tls]\nmode = "bridge"\n',
        ['service "lan".tls.mode: "bridge" is not known here; known: "pass", "refuse"'],
    ),
    (
        FORWARD + '[service.limits]\nkeepalive = "10h"\n',
        ['service "lan".limits.keepalive: is at most "32767s": no system waits longer'],
    ),
    (
        FORWARD + '[service.limits]\nnoop = "5s"\n',
        ['service "lan".limits.noop: is at least "30s": less breaks honest peers'],
    ),
    (
        FORWARD + '[metrics]\nlisten = "192.0.2.1:9921"\n',
        [
            "metrics.listen: 192.0.2.1 is no loopback address: others could read it; if they may, say public = true",
        ],
    ),
    (
        FORWARD + '[metrics]\nlisten = "127.0.0.1:8021"\n',
        ['metrics.listen: 127.0.0.1:8021 collides with service "lan"'],
    ),
    (
        FORWARD + '[metrics]\nlisten = "unix:metrics"\n',
        [f"metrics.listen: the path of a Unix socket begins with / and has at most {LONGEST_SOCKET} octets"],
    ),
    (
        FORWARD + '[metrics]\nlisten = "localhost:9921"\n',
        ["metrics.listen: 'localhost:9921': 'localhost' is not an IP address"],
    ),
    (
        FORWARD + "[metrics]\nlisten = 9921\n",
        ['metrics.listen: "ADDRESS:PORT" or "unix:PATH" is expected, not an integer'],
    ),
    (FORWARD + '[metrics]\nlisten = "127.0.0.1:0"\n', ["metrics.listen: port 0 is no port to listen on"]),
    (
        FORWARD + '[log]\nlevel = "loud"\n',
        ['log.level: "loud" is not known here; known: "debug", "info", "notice", "warning", "error", "critical"'],
    ),
    (
        changed(FORWARD, translate='"pasive"'),
        ['service "lan".translate: "pasive" is not known here; known: "mirror", "active", "passive"'],
    ),
    # rules on commands
    (
        FORWARD + '[service.policy]\ncommands = [{ deny = "RETR", argument = "[a" }]\n',
        [
            (
                'service "lan".policy.commands[0].argument: is not a regular expression: '
                "unterminated character set at position 0"
            )
        ],
    ),
    (
        FORWARD + '[service.policy]\ncommands = [{ deny = "RETR", argument = "(a+)+$" }]\n',
        [
            (
                'service "lan".policy.commands[0].argument: could take too long to match: '
                "begin it with ^, and use fewer of * + and none inside another"
            )
        ],
    ),
    (
        FORWARD + '[service.policy]\ncommands = ["RETR", {}, { allow = "X1X", deny = "DELE" }, { verb = "RETR" }]\n',
        [
            'service "lan".policy.commands[0]: a table is expected, not a string',
            *(
                (
                    f'service "lan".policy.commands[{index}]: has one of allow and deny, '
                    'as in { deny = "RETR", argument = "[.]exe$" }'
                )
                for index in (1, 2)
            ),
            'service "lan".policy.commands[3].verb: unknown key; known here: allow, deny, argument',
        ],
    ),
    (
        FORWARD + '[service.policy]\ndeny = ["DELEE", "SITE EXEC x", "@writes", 7, "DELE"]\n',
        [
            "service \"lan\".policy.deny[0]: 'DELEE' is not known; did you mean DELE?",
            (
                "service \"lan\".policy.deny[1]: 'SITE EXEC x' is not a command "
                'such as "DELE", "SITE EXEC", "@write" or "*"'
            ),
            (
                "service \"lan\".policy.deny[2]: '@writes' is no group of commands; "
                "known: @login, @navigation, @transfer, @read, @write, @extension"
            ),
            'service "lan".policy.deny[3]: a command in a string, such as "DELE", is expected, not an integer',
        ],
    ),
    (
        FORWARD + '[service.policy]\ncommands = [{ allow = "LPRT" }, { deny = "DELE" }, { allow = "dele" }]\n',
        [
            (
                'service "lan".policy.commands[0].allow: LPRT cannot be allowed: '
                "the addresses that it is about would not be translated"
            ),
            'service "lan".policy.commands[2]: is never reached: an earlier rule decides about every DELE',
        ],
    ),
    (
        FORWARD + "[service.policy]\nread_only = true\nlogin_attempts = 0\n",
        [
            'service "lan".policy.login_attempts: 0 is not a number from 1 to 1000000',
            (
                'service "lan".policy.read_only: '
                'needs [service.tls] mode = "refuse": TLS that passes unread is not filtered'
            ),
        ],
    ),
    # rules for networks
    (FORWARD + "[[service.rule]]\nread_only = false\n", ['service "lan".rule[0].clients: is missing']),
    (
        FORWARD + "[[service.rule]]\nclients = []\nunknown_verbs = -1\n",
        [
            'service "lan".rule[0].unknown_verbs: -1 is not a number from 1 to 1000000',
            'service "lan".rule[0].clients: is empty: name the networks that the rule is for, as in ["10.0.0.0/8"]',
        ],
    ),
    (
        FORWARD + '[[service.rule]]\nclients = ["10.0.0.0/8"]\n[[service.rule]]\nclients = ["::/0", "10.1.0.0/16"]\n',
        ['service "lan".rule[1].clients[1]: is never reached: 10.0.0.0/8 of rule[0] comes first'],
    ),
    (
        FORWARD + '[[service.rule]]\nclients = ["10.0.0.0/8"]\nsessions = 4\n',
        ['service "lan".rule[0].sessions: unknown key here; it belongs into [service.limits]'],
    ),
    # keys
    ("", ["service: at least one [[service]] is needed"]),
    (changed(FORWARD, mode=""), ['service "lan".mode: is missing']),
    (changed(FORWARD, name=""), ["service[0].name: is missing"]),
    (
        FORWARD + "[service.limits]\nsesions = 9\n",
        ['service "lan".limits.sesions: unknown key; did you mean sessions?'],
    ),
    (FORWARD + "sessions = 9\n", ['service "lan".sessions: unknown key here; it belongs into [service.limits]']),
    (
        FORWARD + "[service.policy]\ntls = 9\n",
        ['service "lan".policy.tls: unknown key here; it belongs into [[service]]'],
    ),
    (
        FORWARD + '[service.limits]\nannounce = "1s"\n',
        ['service "lan".limits.announce: unknown key here; it belongs into [[service]]'],
    ),
    (FORWARD + "[service.tls]\nzzz = 9\n", ['service "lan".tls.zzz: unknown key; known here: mode']),
    (FORWARD + '[log]\nlevl = "info"\n', ["log.levl: unknown key; did you mean level?"]),
    ('mode = "forward"\n' + FORWARD, ["mode: unknown key here; it belongs into [[service]]"]),
    ("[processes]\n" + FORWARD, ["processes: unknown key; did you mean [process]?"]),
    ("[servce]\n" + FORWARD, ["servce: unknown key; did you mean [[service]]?"]),
    ("[zzz]\n" + FORWARD, ["zzz: unknown key; a file has [[service]], [log], [metrics], [process], [control]"]),
    (
        "[limits]\nsessions = 9\n" + FORWARD,
        ["limits: unknown key here; write [service.limits], below the [[service]] that it belongs to"],
    ),
    (
        "[[rule]]\nread_only = true\n" + FORWARD,
        ["rule: unknown key here; write [[service.rule]], below the [[service]] that it belongs to"],
    ),
    # numbers
    (
        changed(FORWARD, name='"a b"'),
        ['service "a b".name: is 1 to 64 of the letters A to Z and a to z, digits, and _ . -'],
    ),
    (
        FORWARD + "[service.limits]\nper_client = 0\n",
        ['service "lan".limits.per_client: 0 is not a number from 1 to 1000000'],
    ),
    (
        FORWARD + '[service.limits]\ndata_setup = "29s"\n',
        ['service "lan".limits.data_setup: is at least "30s": less breaks honest peers'],
    ),
    (
        FORWARD + '[service.limits]\nidle = "4m"\n',
        ['service "lan".limits.idle: is at least "5m": less breaks honest peers'],
    ),
    (
        FORWARD + "[service.policy]\nmin_data_port = 0\n",
        ['service "lan".policy.min_data_port: 0 is not a port from 1 to 65535'],
    ),
    (
        FORWARD + "[service.policy]\ndeny_data_ports = [70000]\n",
        ['service "lan".policy.deny_data_ports: 70000 is not a port from 1 to 65535'],
    ),
    # listeners
    (changed(FORWARD, listen="[]"), [f'{SHORT_LISTEN}: is empty: name at least one address, as in ["127.0.0.1:8021"]']),
    (changed(FORWARD, listen='["127.0.0.1:0", "[::1]:8021"]'), [f"{SHORT_LISTEN}[0]: port 0 is no port to listen on"]),
    (
        changed(FORWARD, listen='["0.0.0.0:8021", "[::1]:8021"]'),
        [f'{SHORT_LISTEN}[0]: a "tproxy" listener has a specific address, such as 127.0.0.1 or ::1, not 0.0.0.0'],
    ),
    (
        changed(FORWARD, listen='["127.0.0.1:8021", "[::]:8021"]'),
        [f'{SHORT_LISTEN}[1]: a "tproxy" listener has a specific address, such as 127.0.0.1 or ::1, not ::'],
    ),
    (
        changed(FORWARD, listen='["127.0.0.1:8021", "[::1]:8021", "127.0.0.1:8022"]'),
        [f'{SHORT_LISTEN}[2]: "tproxy" leads to one listener a family, and 127.0.0.1:8021 is there already'],
    ),
    (
        changed(FORWARD, intercept='"redirect"'),
        [
            f'{SHORT_LISTEN}[0]: "redirect" never leads to 127.0.0.1; listen at an inside address or 0.0.0.0',
            f'{SHORT_LISTEN}[1]: "redirect" never leads to ::1; listen at an inside address or [::]',
        ],
    ),
    (
        changed(FORWARD, intercept='"redirect"', listen='["10.0.0.1:8021", "10.1.0.1:8022", "[::]:8021"]'),
        [f'{SHORT_LISTEN}[1]: "redirect" leads to one port a family, and 10.0.0.1:8021 is there already'],
    ),
    (
        changed(FORWARD, data_ports='"8000-9000"'),
        2 * ['service "lan".data_ports: contains the port of {}, where "lan" listens'],
    ),
    # modes
    (
        changed(FORWARD, intercept='"none"'),
        [
            (
                'service "lan".intercept: forward mode needs "auto" or a redirection by name: '
                "else nobody knows whom the client dialled"
            ),
        ],
    ),
    (
        changed(FORWARD, servers='["10.0.0.5:21"]'),
        ['service "lan".servers: belongs to reverse mode; in forward mode the client chooses the server'],
    ),
    (
        changed(REVERSE, servers=""),
        ['service "dmz".servers: reverse mode needs the server to call, as in ["10.0.0.5:21"]'],
    ),
    (
        changed(REVERSE, servers='["10.0.0.5:21", "10.0.0.6:21"]'),
        ['service "dmz".servers[1]: one server of each family, and 10.0.0.5:21 is there already'],
    ),
    (changed(REVERSE, servers='["10.0.0.5:0"]'), ['service "dmz".servers[0]: port 0 is no port to call']),
    (changed(REVERSE, servers='["0.0.0.0:21"]'), ['service "dmz".servers[0]: 0.0.0.0 is no address to call']),
    (changed(REVERSE, servers='["192.0.2.1:21"]'), ['service "dmz".servers[0]: the service would call itself']),
    (
        changed(REVERSE, listen='["192.0.2.1:21", "[2001:db8::1]:21"]'),
        ['service "dmz".listen[1]: no IPv6 server is configured for this listener to call'],
    ),
    (
        changed(REVERSE, planes="[]"),
        ['service "dmz".planes: is empty: nothing would carry the data connections; use ["relay"]'],
    ),
    (changed(REVERSE, planes='["relay", "relay"]'), ['service "dmz".planes[1]: "relay" is there already']),
    (
        changed(REVERSE, planes='["relay", "nft"]'),
        ['service "dmz".planes[1]: "nft" is never asked: "relay" carries everything'],
    ),
    # addresses
    (
        changed(REVERSE, announce='{ client = "::7" }'),
        ['service "dmz".announce.client: ::7 is IPv6, but the service listens on no IPv6 address'],
    ),
    (
        changed(REVERSE, announce='{ server = "0.0.0.0" }'),
        ['service "dmz".announce.server: 0.0.0.0 is not the address of a host'],
    ),
    (
        changed(REVERSE, source='"::7"'),
        ['service "dmz".source: ::7 is IPv6, but the service listens on no IPv6 address'],
    ),
    (
        changed(REVERSE, clients='["10.0.0.0/8", "fd00::/8"]'),
        ['service "dmz".clients[1]: fd00::/8 is IPv6, but the service listens on no such address'],
    ),
    (
        changed(REVERSE, announce='{ client = "the-gateway", server = "" }'),
        [
            f'service "dmz".announce.{side}: {text} is not an IP address, and none of "own", "interface:eth0", '
            '"name:gateway.example.org", "file:/run/public-address"'
            for side, text in (("client", "'the-gateway'"), ("server", "''"))
        ],
    ),
    (
        changed(REVERSE, announce='{ client = "name:192.0.2.7", server = "file:run/address" }'),
        [
            """service "dmz".announce.client: 'name:192.0.2.7' is not of the form "name:gateway.example.org\"""",
            """service "dmz".announce.server: 'file:run/address' is not of the form "file:/run/public-address\"""",
        ],
    ),
    (
        changed(REVERSE, announce='{ client = "interface:a-name-too-long-for-linux" }'),
        ['service "dmz".announce.client: \'interface:a-name-too-long-for-linux\' is not of the form "interface:eth0"'],
    ),
    (changed(REVERSE, announce_refresh='"0.5s"'), ['service "dmz".announce_refresh: is at least "1s"']),
    (
        REVERSE + '[[service.announce_to]]\nclient = "10.0.0.1"\n',
        ['service "dmz".announce_to[0].clients: is missing'],
    ),
    (
        REVERSE
        + '[[service.announce_to]]\nclients = ["10.0.0.0/8"]\nclient = "::1"\n'
        + '[[service.announce_to]]\nclients = ["10.1.0.0/16"]\n'
        + '[[service.announce_to]]\nclients = []\nclient = "own"\n',
        [
            'service "dmz".announce_to[1].clients[0]: is never reached: 10.0.0.0/8 of announce_to[0] comes first',
            (
                'service "dmz".announce_to[2].clients: is empty: name the networks that the announce_to is for, '
                'as in ["10.0.0.0/8"]'
            ),
            'service "dmz".announce_to[1]: tells nobody anything: give client or server',
            'service "dmz".announce_to[0].client: ::1 is IPv6, but the service listens on no IPv6 address',
        ],
    ),
    # several services
    (
        REVERSE + changed(REVERSE, name='"two"'),
        ['service "two".listen[0]: 192.0.2.1:21 collides with 192.0.2.1:21 of service "dmz"'],
    ),
    (
        REVERSE + changed(REVERSE, name='"two"', listen='["0.0.0.0:21"]'),
        ['service "two".listen[0]: 0.0.0.0:21 collides with 192.0.2.1:21 of service "dmz"'],
    ),
    (
        REVERSE + changed(REVERSE, listen='["192.0.2.1:22"]'),
        ['service[1].name: "dmz" is the name of service[0] already'],
    ),
    (
        REVERSE + changed(REVERSE, name='"two"', listen='["192.0.2.1:20021"]'),
        [
            'service "dmz".data_ports: contains the port of 192.0.2.1:20021, where "two" listens',
            'service "two".data_ports: contains the port of 192.0.2.1:20021, where "two" listens',
        ],
    ),
]


@pytest.mark.parametrize(("text", "expected"), BAD, ids=[each[1][0].split(":")[0] for each in BAD])
def test_each_mistake_is_named_with_its_place(text: str, expected: list[str]) -> None:
    if "{}" in expected[0]:  # one problem for each listener
        expected = [line.format(at) for line, at in zip(expected, ("127.0.0.1:8021", "[::1]:8021"), strict=True)]
    assert problems(text) == expected


def test_all_mistakes_are_reported_together() -> None:
    text = (
        changed(FORWARD, mode='"x"', listen="1")
        + "[service.limits]\nsessions = true\n[log]\nlevel = 1\n"
        + changed(REVERSE, servers="")
    )
    places = [problem.partition(": ")[0] for problem in problems(text)]
    assert places == [
        "log.level",
        'service "lan".mode',
        'service "lan".listen',
        'service "lan".limits.sessions',
        'service "dmz".servers',
    ]


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    file = tmp_path / "f.toml"

    def reasons() -> list[Problem]:
        with pytest.raises(ConfigError) as caught:
            load(file)
        return caught.value.problems

    assert reasons() == [Problem("", "cannot be read: No such file or directory")]
    file.write_text('[log]\nlevel = "info\n')
    (problem,) = reasons()
    assert problem.where == "line 2, column 14"
    assert problem.reason.startswith("is not TOML: ")
    file.write_bytes(b"[log]\n# \xff\n")
    assert reasons() == [Problem("line 2", "is not UTF-8")]
    file.write_text(FORWARD)
    assert load(file, "linux") == parse(FORWARD)
    file.unlink()
    os.mkfifo(file)
    assert reasons() == [Problem("", "cannot be read: it is a FIFO, and no regular file")]
    file.unlink()
    file.symlink_to("/dev/zero")
    assert reasons() == [Problem("", "cannot be read: it is a device, and no regular file")]


# -- show -------------------------------------------------------------------------------------------------------------

ports = st.integers(1, 65535)
times = st.one_of(
    st.integers(300, 365 * 24 * 3600).map(float),
    st.integers(300_000, 10**9).map(lambda thousandths: thousandths / 1000),
)


command_names = st.sampled_from(["*", "@read", "@write", "SITE", "SITE EXEC", "DELE", "XFOO"]).map(CommandName)
argument_patterns = st.none() | st.text(
    st.characters(exclude_characters=".^$*+?{}[]\\|()", exclude_categories=["Cs"])
).map(lambda text: re.compile(text.encode()))
command_rules = st.builds(CommandRule, allow=st.booleans(), command=command_names, argument=argument_patterns)


sources: st.SearchStrategy[AnnounceFrom] = st.one_of(
    st.just(AnnounceFrom("own")),
    st.from_regex(r"[A-Za-z0-9_-]{1,15}", fullmatch=True).map(lambda name: AnnounceFrom("interface", name)),
    st.from_regex(r"([a-z0-9-]{1,20}\.){0,3}[a-z]{1,20}", fullmatch=True).map(lambda name: AnnounceFrom("name", name)),
    st.text(min_size=1, max_size=20)
    .filter(lambda text: "\0" not in text)
    .map(lambda name: AnnounceFrom("file", f"/{name}")),
)


@st.composite
def services(draw: st.DrawFn, number: int) -> ServiceConfig:
    mode: Any = draw(st.sampled_from(["forward", "reverse"]))
    intercept: Any = draw(st.sampled_from(["tproxy", "redirect"] + ["none"] * (mode == "reverse")))
    versions = draw(st.sampled_from([(4,), (6,), (4, 6)]))
    hosts = {4: st.ip_addresses(network="10.0.0.0/9"), 6: st.ip_addresses(network="fd00::/16")}
    networks = {
        4: st.integers(8, 32).map(lambda length: ip_network(f"10.0.0.0/{length}")),
        6: st.integers(8, 128).map(lambda length: ip_network(f"fd00::/{length}")),
    }
    host = st.one_of([hosts[version] for version in versions])
    told = host | sources
    only = st.sampled_from([networks[version] for version in versions]).flatmap(lambda network: network)
    announce_to = (
        st.tuples()
        | st.tuples(st.builds(AnnounceTo, clients=st.tuples(only), client=told, server=st.none() | told))
        | st.tuples(st.builds(AnnounceTo, clients=st.tuples(only), server=told))
    )
    server = {4: "10.128.0.1", 6: "fe00::1"}
    first = draw(st.integers(20000, 65535))
    service = ServiceConfig(
        name=f"{draw(st.from_regex(r'[A-Za-z0-9_.-]{0,60}', fullmatch=True))}{number}",
        mode=mode,
        listen=tuple(Endpoint(draw(hosts[version]), 8000 + number) for version in versions),
        intercept=intercept,
        clients=tuple(draw(st.lists(st.one_of([networks[version] for version in versions]), max_size=3))),
        servers=tuple(Endpoint(ip_address(server[v]), draw(ports)) for v in versions) if mode == "reverse" else (),
        data_ports=PortSpan(first, draw(st.integers(first, 65535))),
        announce=Announce(client=draw(st.none() | told), server=draw(st.none() | told)),
        announce_refresh=draw(times),
        announce_to=draw(announce_to),
        source=draw(st.none() | host),
        active_source_port=draw(st.sampled_from([0, 20])),
        translate=draw(st.sampled_from(["mirror", "active", "passive"])),
        policy=Policy(
            min_data_port=draw(ports),
            deny_data_ports=draw(st.frozensets(ports, max_size=5)),
            port_address=draw(st.sampled_from(["same", "override"])),
            require_login=draw(st.booleans()),
            greeting=draw(st.sampled_from(["strict", "lenient"])),
            **(profiles := draw(st.fixed_dictionaries({"read_only": st.booleans(), "anonymous_only": st.booleans()}))),
            tls="refuse" if any(profiles.values()) else draw(st.sampled_from(["pass", "refuse"])),
            commands=tuple(draw(st.lists(command_rules, max_size=4, unique_by=lambda rule: rule.command))),
            deny=tuple(draw(st.lists(command_names, max_size=3))),
            login_attempts=draw(st.integers(1, 1_000_000)),
            unknown_verbs=draw(st.integers(1, 1_000_000)),
        ),
        limits=Limits(sessions=draw(st.integers(1, 1_000_000)), per_client=draw(st.integers(1, 1_000_000))),
        timeouts=Timeouts(
            **{each.name: draw(times) for each in attrs.fields(Timeouts) if each.name not in ("announce", "keepalive")},
            keepalive=draw(st.integers(1, 32767)),
        ),
    )
    changes: Any = draw(
        st.lists(
            st.fixed_dictionaries({}, optional={"min_data_port": ports, "require_login": st.booleans()}), max_size=2
        )
    )
    rules = [
        NetworkRule((ip_network(f"10.{index}.0.0/16"),), attrs.evolve(service.policy, **change))
        for index, change in enumerate(changes)
    ]
    return attrs.evolve(service, rules=tuple(rules))


@st.composite
def configs(draw: st.DrawFn) -> Config:
    count = draw(st.integers(1, 3))
    level: Any = draw(st.sampled_from(["debug", "info", "warning", "error"]))
    return Config(services=tuple(draw(services(number)) for number in range(count)), log=LogConfig(level=level))


def test_signs_of_life() -> None:
    limits = parse(FORWARD + '[service.limits]\nkeepalive = "20s"\nnoop = "4m"\n').services[0].timeouts
    assert (limits.keepalive, limits.noop) == (20.0, 240.0)
    assert parse(FORWARD).services[0].timeouts.noop is None


@pytest.mark.parametrize(
    ("text", "listen", "public"),
    [
        ('listen = "unix:/run/ftpproxy/metrics"', UnixPath("/run/ftpproxy/metrics"), False),
        ('listen = "[::1]:9921"', Endpoint.parse("[::1]:9921"), False),
        ('listen = "192.0.2.1:9921"\npublic = true', Endpoint.parse("192.0.2.1:9921"), True),
        ("", None, False),
    ],
)
def test_metrics(text: str, listen: object, public: bool) -> None:
    config = parse(f"{FORWARD}[metrics]\n{text}\n")
    assert config.metrics == MetricsConfig(listen=listen, public=public)  # type: ignore[arg-type]
    assert parse(show(config)) == config


@settings(deadline=None)
@given(configs())
def test_show_is_read_to_the_same_value(config: Config) -> None:
    assert parse(show(config)) == config


@settings(deadline=None)
@given(st.recursive(st.integers() | st.booleans() | st.text(max_size=9), lambda inner: st.lists(inner, max_size=3)))
def test_nonsense_raises_the_declared_error_and_no_other(value: object) -> None:
    def toml(each: object) -> str:
        if isinstance(each, list):
            return "[" + ", ".join(map(toml, each)) + "]"
        if isinstance(each, str):
            return '"' + "".join(f"\\U{ord(c):08x}" for c in each if not 0xD800 <= ord(c) < 0xE000) + '"'
        return str(each).lower()

    for key in keys(ServiceTable):
        try:
            parse(changed(FORWARD, **{key: toml(value).replace("\\", r"\\")}))
        except ConfigError:
            pass


# -- pf ---------------------------------------------------------------------------------------------------------------


PF = changed(FORWARD, planes='["pf", "relay"]')


def test_the_rules_of_pf() -> None:
    text = '[service.pf]\ntag = "FTPDATA"\nqueue = "ftpq"\nlog = 2\nrtable = 3\ndialect = "freebsd"\n'
    config = parse(PF + text)
    (service,) = config.services
    expected = RuleOptions(dialect="freebsd", tag="FTPDATA", queue="ftpq", log=2, rtable=3)
    assert service.planes == ("pf", "relay")
    assert service.pf.rules == expected
    assert text in show(config)
    assert parse(show(config)) == config


@pytest.mark.parametrize(
    ("text", "where", "words"),
    [
        ('dialect = "openbsd"\nqueue = "q"', "queue", "match tagged FTPDATA set queue q"),
        ('dialect = "openbsd"\ntag = "a b"', "tag", "1 to 63 of the letters"),
        ('dialect = "freebsd"\nrtable = 256', "rtable", "0 to 255"),
        ('dialect = "freebsd"\nrtable = true', "rtable", "an integer is expected"),
        ('dialect = "freebsd"\nlog = 3', "log", "known: 0, 1, 2"),
        ('dialect = "netbsd"', "dialect", 'known: "openbsd", "freebsd"'),
    ],
)
def test_rules_that_pf_would_refuse(text: str, where: str, words: str) -> None:
    (problem,) = problems(f"{PF}[service.pf]\n{text}\n")
    assert problem.startswith(f'service "lan".pf.{where}: ')
    assert words in problem


def test_pf_has_its_plane() -> None:
    (problem,) = problems(FORWARD + '[service.pf]\ndialect = "openbsd"\n')
    assert problem == 'service "lan".pf: is about the plane "pf", which is not in planes'


@pytest.mark.parametrize("platform", ["linux", "openbsd7", "freebsd15"])
def test_the_dialect_is_that_of_the_system(platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ftpproxy.config.values.native_dialect", lambda: native_dialect(platform))
    if platform == "linux":
        with pytest.raises(ConfigError) as caught:
            parse(PF, platform)
        (problem,) = map(str, caught.value.problems)
        assert problem.startswith('service "lan".planes[0]: "pf" is the packet filter of OpenBSD and FreeBSD')
    else:
        rules = parse(PF).services[0].pf.rules
        assert rules is not None
        assert platform.startswith(rules.dialect)


# -- systems ----------------------------------------------------------------------------------------------------------


RDR = changed(FORWARD, intercept='"rdr"', listen='["127.0.0.1:8021", "[fd77:1::1]:8021"]')
DIVERT = changed(FORWARD, intercept='"divert"')
AUTO = changed(FORWARD, intercept='"auto"')
SYSTEMS = {"linux", "freebsd15", "openbsd7", "netbsd10", "darwin", "sunos5"}


@pytest.mark.parametrize(
    ("text", "systems"),
    [
        (FORWARD, {"linux"}),
        (changed(FORWARD, intercept='"redirect"', listen='["10.77.1.1:8021", "[::]:8021"]'), {"linux"}),
        (RDR, SYSTEMS - {"linux", "sunos5"}),
        (DIVERT, {"openbsd7"}),
        (AUTO, SYSTEMS - {"sunos5"}),
        (REVERSE, SYSTEMS),
        (changed(REVERSE, planes='["nft", "relay"]'), {"linux"}),
        (changed(REVERSE, firewall_mark="true"), {"linux"}),
        (changed(REVERSE, planes='["pf", "relay"]'), {"freebsd15", "openbsd7"}),
        (changed(REVERSE, announce='{ client = "interface:eth0" }'), {"linux"}),
    ],
    ids=["tproxy", "redirect", "rdr", "divert", "auto", "none", "nft", "mark", "pf", "interface"],
)
def test_what_runs_where(text: str, systems: set[str]) -> None:
    for system in SYSTEMS:
        if system in systems:
            parse(text, system)
        else:
            with pytest.raises(ConfigError) as caught:
                parse(text, system)
            assert len(caught.value.problems) == 1
    parse(text)


@pytest.mark.parametrize(
    ("text", "system", "mend"),
    [
        (FORWARD, "freebsd15", '"tproxy" is of Linux; here it is "rdr"'),
        (FORWARD, "openbsd7", '"tproxy" is of Linux; here it is "divert"'),
        (DIVERT, "freebsd15", '"divert" is of OpenBSD; here it is "rdr"'),
        (RDR, "linux", '"rdr" is of systems with pf; on Linux it is "tproxy" or "redirect"'),
    ],
)
def test_a_redirection_of_another_system(text: str, system: str, mend: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, system)
    (problem,) = caught.value.problems
    assert problem.where == 'service "lan".intercept'
    assert problem.reason.startswith(mend)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (changed(RDR, listen='["127.0.0.1:8021", "[::1]:8021"]'), '"rdr" never leads to ::1: it is dropped behind pf'),
        (changed(RDR, listen='["0.0.0.0:8021", "[fd77:1::1]:8021"]'), '"rdr" leads to one address, such as 127.0.0.1'),
        (changed(DIVERT, listen='["127.0.0.1:8021", "[::]:8021"]'), '"divert" leads to one address, such as 127.0.0.1'),
        (
            changed(DIVERT, listen='["127.0.0.1:8021", "10.77.1.1:8021", "[::1]:8021"]'),
            '"divert" leads to one listener a family, and 127.0.0.1:8021 is there already',
        ),
    ],
)
def test_listeners_that_pf_does_not_find(text: str, reason: str) -> None:
    (problem,) = problems(text)
    assert problem.partition(": ")[2].startswith(reason)


@pytest.mark.parametrize(
    ("text", "system", "redirection"),
    [
        (AUTO, "linux", "tproxy"),
        (AUTO, "freebsd15", "rdr"),
        (AUTO, "openbsd7", "divert"),
        (changed(AUTO, listen='["0.0.0.0:8021", "[::]:8021"]'), "linux", "redirect"),
        (changed(REVERSE, intercept='"auto"'), "openbsd7", "none"),
        (changed(REVERSE, intercept='"auto"', listen='["127.0.0.1:8021"]'), "openbsd7", "divert"),
        (changed(REVERSE, intercept='"auto"', listen='["127.0.0.1:8021"]'), "freebsd15", "rdr"),
        (RDR, "openbsd7", "rdr"),
    ],
)
def test_what_auto_means(text: str, system: str, redirection: str) -> None:
    (service,) = parse(text).services
    assert service.redirection_on(system) == redirection


# -- documentation ----------------------------------------------------------------------------------------------------


def documented() -> dict[str, dict[str, str]]:
    """The tables of docs/configuration.md: heading, key, default."""
    found: dict[str, dict[str, str]] = {}
    for line in (ROOT / "docs" / "configuration.md").read_text().splitlines():
        if heading := re.fullmatch(r"## (?:`(.*)`|.*)", line):
            section = found.setdefault(heading[1] or "", {})
        elif row := re.match(r"\| `(\w+)` \| [^|]+ \| ([^|]+) \|", line):
            section[row[1]] = row[2].strip()
    del found[""]  # headings that are not keys
    return found


SUBTABLES = {"gateway", "pf", "policy", "limits", "tls"}


def test_every_key_is_documented_and_no_other() -> None:
    expected = {section: set(keys(table)) for section, table in SECTIONS.items()}
    expected["[[service]]"] -= SUBTABLES
    expected["[[service.rule]]"] -= expected["[service.policy]"]  # said in words
    assert {section: set(rows) for section, rows in documented().items()} == expected


@pytest.mark.linux("its directories")
def test_documented_defaults_are_the_defaults() -> None:
    # What `show` prints for a file with required keys only is every default.
    shown = show(parse(changed(REVERSE, servers='["10.0.0.5:21"]')))
    actual: dict[str, dict[str, str]] = {}
    for line in shown.splitlines():
        if line.startswith("["):
            section = actual.setdefault(line, {})
        elif line:
            key, _, value = line.partition(" = ")
            section[key] = value
    actual["[[service]]"]["servers"] = "[]"  # required in this mode
    for heading, rows in documented().items():
        for key, default in rows.items():
            if default.startswith("`"):
                assert actual[heading][key] == default.strip("`"), f"{heading} {key}"
            else:
                assert default in {"required", "none", "see below"}


def test_the_groups_of_commands_are_documented() -> None:
    rows = re.findall(r"^\| `(@\w+)` \| (.*) \|$", (ROOT / "docs" / "configuration.md").read_text(), re.MULTILINE)
    assert {name: frozenset(verbs.encode().split()) for name, verbs in rows} == GROUPS


def test_required_keys_are_documented_as_such() -> None:
    required = {each.name for each in attrs.fields(ServiceTable) if each.default is attrs.NOTHING}
    assert {key for key, default in documented()["[[service]]"].items() if default == "required"} == required


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_examples_are_valid(example: Path) -> None:
    of_pf = example.name.startswith(("freebsd", "pf-"))
    load(example, "openbsd7" if example.name.startswith("openbsd") else "freebsd15" if of_pf else "linux")


def test_the_messages_of_the_documentation_are_real() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    lines = re.findall(r"^ftpproxy\.toml: (.*)$", text, re.MULTILINE)
    assert lines
    assert lines == problems(changed(FORWARD, listen='"127.0.0.1:8021"') + "[service.limits]\nsesions = 1\n")
