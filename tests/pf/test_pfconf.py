"""The pf.conf that a configuration needs, held against rulesets that pfctl of OpenBSD 7.6 and FreeBSD 15.1 accepts
(main/), and against the few forms of lines that those consist of."""

from __future__ import annotations

import re
import subprocess
import sys
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from ftpproxy.config import Config, ConfigError, PfConfig, PortSpan, ServiceConfig, load, parse
from ftpproxy.endpoints import Endpoint
from ftpproxy.pf.anchor import Dialect
from ftpproxy.pfconf import is_interface, text

ROOT = Path(__file__).parent.parent.parent
MAIN = Path(__file__).parent / "main"
EXAMPLES = ROOT / "docs" / "examples"
PRINTED = {
    "openbsd-forward": "openbsd",
    "freebsd-forward": "freebsd",
    "openbsd-reverse": "pf-reverse",
    "freebsd-reverse": "pf-reverse",
    "openbsd-self": "pf-self",
    "freebsd-self": "pf-self",
}
"""Files of pf/, and the example that each is printed for."""


def dialect_of(name: str) -> Dialect:
    return "openbsd" if name.startswith(("openbsd", "obsd")) else "freebsd"


def rules(ruleset: str) -> list[str]:
    """The lines without comments, each blank one blank."""
    bare = (" ".join(line.partition("#")[0].split()) for line in ruleset.splitlines())
    return [line for line in bare if line]


# -- what real parsers accept -----------------------------------------------------------------------------------------

SELF = evolve(
    load(EXAMPLES / "pf-self.toml", "freebsd").services[0],
    listen=(Endpoint.parse("0.0.0.0:21"),),
    data_ports=PortSpan(49152, 65535),
)

FACTS: dict[str, Config] = {
    "obsd-main-fwd.conf": load(EXAMPLES / "openbsd.toml", "openbsd"),
    "fbsd-main-fwd.conf": load(EXAMPLES / "freebsd.toml", "freebsd"),
    "obsd-main-rev.conf": load(EXAMPLES / "pf-reverse.toml", "openbsd"),
    "fbsd-main-rev.conf": load(EXAMPLES / "pf-reverse.toml", "freebsd"),
}


@pytest.mark.parametrize("file", FACTS)
def test_every_accepted_line_is_printed_in_its_order(file: str) -> None:
    """Ours has more (what the relay needs), but nothing of theirs is missing or stands elsewhere."""
    printed = iter(rules(text(FACTS[file], dialect_of(file))))
    for line in rules((MAIN / file).read_text()):
        assert line in printed, f"{line!r} is missing, or comes too early"


def test_a_server_on_the_gateway_is_let_in_as_the_accepted_rules_do() -> None:
    printed = rules(text(Config(services=(SELF,)), "freebsd"))
    wanted = rules((MAIN / "fbsd-main-self.conf").read_text())
    for line in wanted:
        if line.startswith("pass in"):
            assert line in [each.replace("from any to", "to") for each in printed]


@pytest.mark.parametrize("name", PRINTED)
def test_the_readable_files_are_what_is_printed(name: str) -> None:
    dialect = dialect_of(name)
    assert (ROOT / "pf" / f"{name}.conf").read_text() == text(
        load(EXAMPLES / f"{PRINTED[name]}.toml", dialect), dialect
    )


# -- the forms of lines -----------------------------------------------------------------------------------------------

IF = r"\$(?:ext|int)_if"
OWN = rf"\({IF}\)"
ADDRESS = r"[0-9a-f.:]+"
NETWORK = rf"{ADDRESS}/\d+"
SOME = rf"(?:{NETWORK}|\{{ {NETWORK}(?:, {NETWORK})+ \}})"
HOST = rf"(?:{OWN}|{ADDRESS}|{SOME})"
ANY = rf"(?:any|{HOST})"
INET = "inet6?"
PORT = r"port \d+"
SPAN = r"port \d+:\d+"
HEAD = [r'(?:ext|int)_if = "[a-z0-9_.]+"', "set skip on lo0?", "block return log"]
PASSES = [
    r'anchor "ftp-proxy/\*"',
    rf"pass in on {IF} {INET} proto tcp(?: from {ANY})? to {HOST} (?:{PORT}|{SPAN})",
    rf"pass out on {IF} {INET} proto tcp from {HOST}(?: {SPAN})? to {ANY}(?: {PORT})?",
    r'pass (?:in|out) quick tagged (?:\w+|"[\w.-]+")',
]
TO = "(?:divert-to|rdr-to)"
FORMS: dict[Dialect, list[str]] = {
    "openbsd": [
        *HEAD,
        *PASSES,
        r"match out on \$ext_if inet from !\(\$ext_if:network\) to any nat-to \(\$ext_if:0\)",
        rf"pass in quick on {IF} {INET} proto tcp(?: from {SOME})? to(?: any| {OWN})? {PORT} {TO} {ADDRESS} {PORT}",
    ],
    "freebsd": [
        *HEAD,
        *PASSES,
        r'(?:nat|rdr)-anchor "ftp-proxy/\*"',
        r"nat on \$ext_if inet from \$int_if:network to any -> \(\$ext_if:0\)",
        rf"rdr pass on {IF} {INET} proto tcp from (?:any|{SOME}) to (?:any|{OWN}) {PORT} -> {ADDRESS} {PORT}",
    ],
}


@pytest.mark.parametrize("file", sorted(path.name for path in MAIN.iterdir() if not path.name.startswith("fbsd15")))
def test_the_forms_are_those_of_the_accepted_lines(file: str) -> None:
    """A form that fits no line which a parser accepts would prove nothing; these fit theirs (some have more ports)."""
    forms = FORMS[dialect_of(file)]
    lines = [line for line in rules((MAIN / file).read_text()) if line not in ("pass out", "pass on lo", "pass on lo0")]
    for line in lines:
        if "port > 49151" not in line:
            assert any(re.fullmatch(form, line) for form in forms), line


networks = st.sampled_from(["10.1.0.0/24", "10.2.0.0/16", "192.0.2.7/32", "0.0.0.0/0", "2001:db8:1::/64", "fd00::/8"])
PLANES: list[Any] = [("pf", "relay"), ("relay",), ("pf",)]
LISTENERS = ["127.0.0.1:8021", "198.51.100.1:21", "[2001:db8:1::1]:8021", "[::1]:8021", "0.0.0.0:21", "[::]:21"]


@st.composite
def services(draw: st.DrawFn, dialect: Dialect) -> ServiceConfig:
    mode: Any = draw(st.sampled_from(["forward", "reverse", "gateway"]))
    kinds = {"forward": ["auto", "rdr"], "reverse": ["auto", "rdr", "none"], "gateway": ["none"]}[mode]
    if dialect == "openbsd" and mode != "gateway":
        kinds.append("divert")
    listen = draw(st.lists(st.sampled_from(LISTENERS).map(Endpoint.parse), min_size=1, max_size=2, unique=True))
    servers = [Endpoint.parse(each) for each in ("10.1.0.20:21", "[2001:db8:1::20]:2121", "127.0.0.1:2121")]
    return ServiceConfig(
        name="s",
        mode=mode,
        listen=tuple(listen),
        intercept=draw(st.sampled_from(kinds)),
        clients=tuple(ip_network(each) for each in draw(st.lists(networks, max_size=4, unique=True))),
        servers=tuple(draw(st.lists(st.sampled_from(servers), min_size=1, unique=True))) if mode == "reverse" else (),
        planes=draw(st.sampled_from(PLANES)),
        pf=PfConfig(tag=draw(st.sampled_from([None, "FTPDATA", "nat", "a-b.c"])), dialect=dialect),
        source=draw(st.sampled_from([None, ip_address("198.51.100.9"), ip_address("2001:db8::9")])),
    )


@given(st.data(), st.sampled_from(["openbsd", "freebsd"]))
def test_nothing_else_is_ever_printed(data: st.DataObject, dialect: Dialect) -> None:
    config = Config(services=tuple(data.draw(st.lists(services(dialect), min_size=1, max_size=3))))
    try:
        printed = text(config, dialect)
    except ConfigError:
        return  # a listener that nothing can be led to, which has tests of its own
    assert printed.endswith("\n")
    assert not re.search(r"[^\x20-\x7e\n]", printed)
    lines = rules(printed)
    for line in lines:
        assert any(re.fullmatch(form, line) for form in FORMS[dialect]), line
        family = 6 if "inet6" in line else 4
        for found in re.findall(rf"(?<![\w$.]){ADDRESS}(?=[\s/,]|$)", line.partition(" proto tcp ")[2]):
            if "." in found or "::" in found:
                assert ip_address(found).version == family, line
    kinds = [line.split()[0].removesuffix("-anchor") for line in lines]
    if dialect == "freebsd":  # options, translation, filter: in no other order (pf.conf(5))
        order = {"ext_if": 0, "int_if": 0, "set": 1, "nat": 2, "rdr": 2, "block": 3, "anchor": 3, "pass": 3}
        assert [order[kind] for kind in kinds] == sorted(order[kind] for kind in kinds)
        assert kinds.index("nat") < [line.startswith("nat on") for line in lines].index(True)
    else:
        assert kinds.index("anchor") < kinds.index("match")
    assert lines.count('anchor "ftp-proxy/*"') == 1


# -- what cannot be led anywhere --------------------------------------------------------------------------------------

AUTO = '[[service]]\nname = "lan"\nmode = "forward"\nintercept = "auto"\nlisten = ["127.0.0.1:8021", "{}"]\n'


@pytest.mark.parametrize(
    ("at", "reason"),
    [("[::1]:8021", "what pf leads to ::1 is dropped behind it"), ("[::]:8021", "pf leads connections to one address")],
)
def test_the_listener_that_rdr_does_not_reach(at: str, reason: str) -> None:
    config = parse(AUTO.format(at), "freebsd")
    with pytest.raises(ConfigError) as caught:
        text(config, "freebsd")
    (problem,) = caught.value.problems
    assert problem.where == 'service "lan".listen[1]'
    assert problem.reason.startswith(reason)
    if at == "[::1]:8021":
        assert "divert-to ::1 port 8021\n" in text(config, "openbsd")
    else:
        with pytest.raises(ConfigError):
            text(config, "openbsd")


def test_clients_are_named() -> None:
    config = parse(
        AUTO.format("[2001:db8:1::1]:8021") + 'clients = ["10.1.0.0/25", "10.1.0.128/25", "10.9.0.0/24"]\n', "freebsd"
    )
    printed = text(config, "freebsd")
    assert (
        "rdr pass on $int_if inet  proto tcp from { 10.1.0.0/24, 10.9.0.0/24 } to any port 21 -> 127.0.0.1 port 8021\n"
        "# no IPv6 clients\n"
    ) in printed
    assert (
        "pass in quick on $int_if inet  proto tcp from { 10.1.0.0/24, 10.9.0.0/24 } to any port 21"
        " divert-to 127.0.0.1 port 8021\n"
    ) in text(config, "openbsd")


def test_names_of_interfaces() -> None:
    for name in ("em0", "vtnet1", "wg_home", "vlan10.5", "ix0"):
        assert is_interface(name)
    for name in ("", "0em", "em0\n", 'em"0', "em 0", "$x", "a" * 16, "EM0"):
        assert not is_interface(name)


# -- the command ------------------------------------------------------------------------------------------------------


def ftpproxy(*argv: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "ftpproxy", "rules", *argv]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


@pytest.mark.parametrize("name", ["openbsd-forward", "freebsd-forward"])
def test_the_command_prints_it(name: str) -> None:
    example = f"docs/examples/{PRINTED[name]}.toml"
    done = ftpproxy("--for", f"pf-{dialect_of(name)}", "-c", example, "--ext-if", "pppoe0", "--int-if", "vlan10")
    expected = (ROOT / "pf" / f"{name}.conf").read_text().replace('"em0"', '"pppoe0"').replace('"em1"', '"vlan10"')
    assert (done.returncode, done.stdout, done.stderr) == (0, expected, "")


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["--for", "pf-freebsd", "-c", "docs/examples/tproxy.toml"], 78, '"tproxy" is of Linux; here it is "rdr"'),
        (["--for", "pf-freebsd", "-c", "docs/examples/openbsd.toml"], 78, '"divert" is of OpenBSD; here it is "rdr"'),
        (["--for", "nft", "-c", "docs/examples/freebsd.toml"], 78, '"rdr" is of systems with pf'),
        (["--for", "pf-freebsd", "-c", "docs/examples/freebsd.toml", "--apply"], 64, "load it with pfctl -f"),
        (["--for", "ipfw", "-c", "docs/examples/freebsd.toml"], 64, "invalid choice: 'ipfw'"),
        (["--for", "pf-freebsd", "-c", "x", "--ext-if", 'em0"'], 64, "is not the name of an interface"),
        (["--for", "pf-openbsd"], 64, "-c FILE is required"),
    ],
)
def test_the_command_refuses(argv: list[str], code: int, said: str) -> None:
    done = ftpproxy(*argv)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
