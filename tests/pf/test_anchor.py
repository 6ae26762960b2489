"""The rules of a data connection, as an administrator would read them in pf.conf."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from ftpproxy.endpoints import Endpoint, IPAddress
from ftpproxy.paths import Await, Call, Leg, PathSpec
from ftpproxy.pf.anchor import Dialect, RuleError, RuleOptions, anchor_name, problems, render

from .grammar import NotPf, Rule, parse

ANCHORS = Path(__file__).parent / "anchors"
"""Files that the parsers of both systems have accepted (OpenBSD 7.6-current; FreeBSD 12.1-STABLE and 15.1)."""

DIALECTS: dict[str, Dialect] = {"obsd": "openbsd", "fbsd": "freebsd"}
PROXY, PROMISED, ACTIVE = 51234, 34567, 40001


def passive(client: str, orig_server: str, server: str, proxy: str) -> PathSpec:
    return PathSpec(
        client=Await(Endpoint(ip_address(orig_server), PROXY), ip_address(client)),
        server=Call(Endpoint(ip_address(server), PROMISED), Endpoint(ip_address(proxy), 0)),
    )


def active(client: str, orig_server: str, server: str, proxy: str, port: int = 0) -> PathSpec:
    return PathSpec(
        client=Call(Endpoint(ip_address(client), ACTIVE), Endpoint(ip_address(orig_server), port)),
        server=Await(Endpoint(ip_address(proxy), PROXY), ip_address(server)),
    )


FORWARD = ("10.1.0.5", "203.0.113.9", "203.0.113.9", "198.51.100.1")
FORWARD6 = ("2001:db8:1::5", "2001:db8:9::9", "2001:db8:9::9", "2001:db8:ffff::1")
REVERSE = ("192.0.2.77", "198.51.100.1", "10.1.0.20", "10.1.0.1")
REVERSE6 = ("2001:db8:77::7", "2001:db8:ffff::1", "2001:db8:1::20", "2001:db8:1::1")

CASES = {
    "fwd-passive": passive(*FORWARD),
    "fwd-active": active(*FORWARD),
    "fwd6-passive": passive(*FORWARD6),
    "fwd6-active": active(*FORWARD6),
    "rev-passive": passive(*REVERSE),
    "rev-active": active(*REVERSE),
    "rev6-passive": passive(*REVERSE6),
    "rev6-active": active(*REVERSE6),
}


@pytest.mark.parametrize("system", DIALECTS)
@pytest.mark.parametrize("case", CASES)
def test_the_forms_that_were_accepted(system: str, case: str) -> None:
    expected = (ANCHORS / f"{system}-{case}.anchor").read_text()
    assert render(CASES[case], RuleOptions(dialect=DIALECTS[system])) == expected


@pytest.mark.parametrize("system", DIALECTS)
def test_the_form_with_a_tag(system: str) -> None:
    expected = (ANCHORS / f"{system}-tag.anchor").read_text()
    assert render(CASES["fwd-passive"], RuleOptions(dialect=DIALECTS[system], tag="FTPDATA")) == expected


@pytest.mark.parametrize("system", DIALECTS)
def test_our_reader_reads_all_of_them(system: str) -> None:
    for path in sorted(ANCHORS.glob(f"{system}-*.anchor")):
        assert len(parse(path.read_text(), DIALECTS[system])) == (2 if system == "obsd" else 4), path.name


OPTIONED = {
    "obsd-port-20": (active(*FORWARD, port=20), RuleOptions(dialect="openbsd")),
    "fbsd-port-20": (active(*FORWARD, port=20), RuleOptions(dialect="freebsd")),
    "obsd-everything": (
        passive(*FORWARD),
        RuleOptions(dialect="openbsd", log=2, rtable=3, label="ftp:10.1.0.5"),
    ),
    "obsd-tag-logged": (
        passive(*FORWARD6),
        RuleOptions(dialect="openbsd", log=1, tag="FTPDATA", label="ftp:2001:db8:1::5"),
    ),
    "fbsd-everything": (
        passive(*REVERSE),
        RuleOptions(dialect="freebsd", log=1, tag="FTPDATA", queue="ftpq", rtable=0, label="ftp"),
    ),
    # words that mean something else in pf.conf, and are quoted
    "fbsd-keywords": (active(*REVERSE), RuleOptions(dialect="freebsd", tag="quick", queue="100")),
}


@pytest.mark.parametrize("name", OPTIONED)
def test_options(name: str) -> None:
    spec, options = OPTIONED[name]
    expected = (Path(__file__).parent / "options" / f"{name}.anchor").read_text()
    assert not list(problems(options))
    assert render(spec, options) == expected
    parse(expected, options.dialect)


# What is refused


@pytest.mark.parametrize(
    ("options", "key", "words"),
    [
        (RuleOptions(dialect="openbsd", queue="ftpq"), "queue", "match tagged FTPDATA set queue ftpq"),
        (RuleOptions(dialect="openbsd", tag="FTP DATA"), "tag", "1 to 63"),
        (RuleOptions(dialect="openbsd", tag='a"b'), "tag", "1 to 63"),
        (RuleOptions(dialect="openbsd", tag="$ftp"), "tag", "1 to 63"),
        (RuleOptions(dialect="openbsd", tag="a\n"), "tag", "1 to 63"),
        (RuleOptions(dialect="openbsd", tag=""), "tag", "1 to 63"),
        (RuleOptions(dialect="openbsd", tag="x" * 64), "tag", "1 to 63"),
        (RuleOptions(dialect="freebsd", queue="x" * 64), "queue", "1 to 63"),
        (RuleOptions(dialect="freebsd", queue="a\\"), "queue", "1 to 63"),
        (RuleOptions(dialect="freebsd", log=3), "log", "not 3"),
        (RuleOptions(dialect="freebsd", log=True), "log", "not True"),
        (RuleOptions(dialect="freebsd", rtable=-1), "rtable", "not -1"),
        (RuleOptions(dialect="freebsd", rtable=256), "rtable", "0 to 255"),
        (RuleOptions(dialect="freebsd", label="x" * 64), "label", "1 to 63"),
        (RuleOptions(dialect="freebsd", label="a b"), "label", "1 to 63"),
        (RuleOptions(dialect="freebsd", label="$srcaddr"), "label", "1 to 63"),
        (RuleOptions(dialect="netbsd"), "dialect", '"openbsd", "freebsd"'),  # type: ignore[arg-type]
    ],
)
def test_bad_options(options: RuleOptions, key: str, words: str) -> None:
    ((found, why),) = problems(options)
    assert found == key
    assert words in why
    with pytest.raises(RuleError, match=f"^{key}: "):
        render(CASES["fwd-passive"], options)


def _with(spec: PathSpec, **changes: object) -> PathSpec:
    return evolve(spec, **{key: evolve(getattr(spec, key), **value) for key, value in changes.items()})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (PathSpec(CASES["fwd-passive"].client, CASES["fwd-active"].server), "one awaited and one called"),
        (PathSpec(CASES["fwd-active"].client, CASES["fwd-passive"].server), "one awaited and one called"),
        (PathSpec(CASES["fwd-passive"].client, CASES["fwd6-passive"].server), "one address family"),
        (_with(CASES["fwd-passive"], client={"at": Endpoint.parse("203.0.113.9:0")}), "0 is not a port"),
        (_with(CASES["fwd-passive"], server={"to": Endpoint.parse("203.0.113.9:0")}), "0 is not a port"),
        (_with(CASES["fwd-passive"], server={"to": Endpoint(IPv4Address("203.0.113.9"), 65536)}), "65536 is not"),
        (_with(CASES["fwd-passive"], server={"source": Endpoint(IPv4Address("203.0.113.9"), -1)}), "-1 is not"),
        (_with(CASES["fwd-passive"], client={"peer": IPv4Address("0.0.0.0")}), "beyond this machine"),
        (_with(CASES["fwd-passive"], client={"peer": IPv4Address("255.255.255.255")}), "beyond this machine"),
        (_with(CASES["fwd-passive"], server={"to": Endpoint.parse("127.0.0.1:22")}), "beyond this machine"),
        (_with(CASES["fwd6-passive"], server={"to": Endpoint.parse("[ff02::1]:22000")}), "beyond this machine"),
        (_with(CASES["fwd6-passive"], client={"peer": IPv6Address("fe80::1%em0 quick")}), "of one link"),
    ],
)
def test_bad_paths(spec: PathSpec, words: str) -> None:
    with pytest.raises(RuleError, match=words):
        render(spec, RuleOptions(dialect="freebsd"))


def test_anchors_are_those_of_ftp_proxy() -> None:
    assert anchor_name(4711, 1) == "ftp-proxy/4711.1"
    for process, number in ((0, 1), (1, 0), (-1, 1)):
        with pytest.raises(RuleError):
            anchor_name(process, number)
    assert len(anchor_name(2**31, 2**63).split("/")[1]) < 64


# Everything

ADDRESSES = st.one_of(
    st.ip_addresses(),
    st.sampled_from([ip_address(each) for row in (FORWARD, FORWARD6, REVERSE, REVERSE6) for each in row]),
    st.builds(
        lambda scope: IPv6Address("fe80::1%" + scope),
        st.text(min_size=1).filter(lambda scope: not {"%", "/"} & set(scope)),
    ),
)
ENDPOINTS = st.builds(Endpoint, ADDRESSES, st.integers(-1, 65536) | st.just(0) | st.just(20))
LEGS: st.SearchStrategy[Leg] = st.one_of(st.builds(Await, ENDPOINTS, ADDRESSES), st.builds(Call, ENDPOINTS, ENDPOINTS))
ANYTHING = st.builds(PathSpec, LEGS, LEGS)
SENSIBLE = st.builds(
    lambda case, at, to, source: of_ports(CASES[case], at, to, source),
    st.sampled_from(sorted(CASES)),
    st.integers(1, 65535),
    st.integers(1, 65535),
    st.integers(0, 65535),
)
NAMES = st.none() | st.text(max_size=70) | st.from_regex(r"[A-Za-z0-9_.\-$\"{}\\ #]{1,70}", fullmatch=True)
OPTIONS = st.builds(
    RuleOptions,
    dialect=st.sampled_from(["openbsd", "freebsd"]),
    tag=NAMES | st.sampled_from(["pass", "in", "FTPDATA", "123"]),
    queue=NAMES,
    log=st.integers(0, 3),
    rtable=st.none() | st.integers(-1, 300),
    label=NAMES | st.from_regex(r"[a-z:0-9.@/+]{1,70}", fullmatch=True),
)
GOOD_OPTIONS = OPTIONS.filter(lambda options: not list(problems(options)))


def of_ports(spec: PathSpec, at: int, to: int, source: int) -> PathSpec:
    assert spec.halves is not None
    _, leg, call = spec.halves
    legs: list[Leg] = [Await(leg.at.at(at), leg.peer), Call(call.to.at(to), call.source.at(source))]
    return PathSpec(*legs) if isinstance(spec.client, Await) else PathSpec(*reversed(legs))


@given(ANYTHING | SENSIBLE, OPTIONS)
def test_text_that_a_parser_would_refuse_cannot_be_produced(spec: PathSpec, options: RuleOptions) -> None:
    try:
        text = render(spec, options)
    except RuleError:
        return
    assert list(problems(options)) == []
    parse(text, options.dialect)


@given(
    SENSIBLE,
    st.builds(
        RuleOptions,
        dialect=st.sampled_from(["openbsd", "freebsd"]),
        tag=st.none() | st.from_regex(r"[A-Za-z0-9_.-]{1,63}", fullmatch=True),
        log=st.integers(0, 2),
        rtable=st.none() | st.integers(0, 255),
        label=st.none() | st.from_regex(r"[A-Za-z0-9_.:/@+-]{1,63}", fullmatch=True),
    ),
)
def test_the_text_means_one_connection_between_these_hosts(spec: PathSpec, options: RuleOptions) -> None:
    assert spec.halves is not None
    _, leg, call = spec.halves
    rules = parse(render(spec, options), options.dialect)
    source = call.source.host, str(call.source.port or "50001:65535")
    entry, exit = (leg.peer, leg.at.host, leg.at.port), (leg.peer, call.to.host, call.to.port)
    out = (call.source.host, call.to.host, call.to.port)

    def who(rule: Rule) -> tuple[IPAddress, IPAddress, int]:
        return rule.peer, rule.to, rule.port

    if options.dialect == "openbsd":
        way_in, way_out = rules
        filters = rules
        assert way_in.translation == ("rdr-to", call.to.host, str(call.to.port))
        assert way_out.translation == ("nat-to", *source)
        assert (who(way_in), who(way_out)) == (entry, exit)
        assert [rule.action for rule in rules] == ["match" if options.tag else "pass"] * 2
    else:
        nat, rdr, *filters = rules
        assert (nat.action, who(nat), nat.translation) == ("nat", exit, ("->", *source))
        assert (rdr.action, who(rdr)) == ("rdr", entry)
        assert rdr.translation == ("->", call.to.host, str(call.to.port))
        assert [who(rule) for rule in filters] == [exit, out]
    assert [rule.direction for rule in filters] == ["in", "out"]
    for rule in filters:
        assert rule.quick is (options.tag is None)
        assert rule.log == ("", "log", "all")[options.log]
        assert rule.options.get("tag") == options.tag
        assert rule.options.get("label") == options.label
        assert rule.options.get("rtable") == (None if options.rtable is None else str(options.rtable))


def _text(case: str = "fwd-passive", **options: Any) -> str:
    return render(CASES[case], RuleOptions(**options))


@pytest.mark.parametrize(
    ("dialect", "text"),
    [
        ("openbsd", _text(dialect="freebsd")),
        ("freebsd", _text(dialect="openbsd")),
        ("openbsd", _text(dialect="openbsd")[:-1]),
        ("openbsd", _text(dialect="openbsd").replace("rdr-to", "queue q rdr-to")),
        ("openbsd", _text(dialect="openbsd").replace("pass", "match")),
        ("openbsd", _text(dialect="openbsd").replace("51234", "65536")),
        ("openbsd", _text(dialect="openbsd").replace("inet ", "inet6 ")),
        ("openbsd", _text(dialect="openbsd", tag="FTP").replace("FTP", "pass")),
        ("freebsd", "".join(reversed(_text(dialect="freebsd").splitlines(True)))),
        ("freebsd", _text(dialect="freebsd").replace("203.0.113.9", "203.0.113.999")),
        ("freebsd", _text(dialect="freebsd", tag="FTP").replace("FTP", "x" * 64)),
        ("freebsd", _text(dialect="freebsd", label="FTP").replace('"FTP"', "$FTP")),
        ("freebsd", _text(dialect="freebsd").replace(" keep state (max 1)", "")),
        ("freebsd", ""),
    ],
)
def test_our_reader_can_refuse(dialect: Dialect, text: str) -> None:
    """Otherwise the two tests above would show nothing."""
    with pytest.raises(NotPf):
        parse(text, dialect)
