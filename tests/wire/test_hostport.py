from __future__ import annotations

import json
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftpproxy.endpoints import Endpoint, parse_address
from ftpproxy.wire.hostport import (
    BadEndpoint,
    UnsupportedProtocol,
    eprt,
    parse_227,
    parse_229,
    parse_eprt,
    parse_port,
    passive_reply,
    port,
)

CORPUS = [
    json.loads(line) for line in Path(__file__).parent.parent.joinpath("corpus.jsonl").read_text("utf-8").splitlines()
]


def parsed(parser: str, line: bytes) -> Any:
    """What the corpus records: [host, port], for EPRT with its number before, null or the kind of failure."""
    if parser == "227":
        endpoint = parse_227(line[4:])
        return endpoint and [str(endpoint.host), endpoint.port]
    if parser == "229":
        found = parse_229(line[4:])
        return found and [None if found[0] is None else str(found[0]), found[1]]
    argument = line.partition(b" ")[2]
    try:
        endpoint = parse_port(argument) if parser == "port" else parse_eprt(argument)
    except UnsupportedProtocol:
        return "proto"
    except BadEndpoint:
        return None if parser == "port" else "syntax"
    host = [str(endpoint.host), endpoint.port]
    return host if parser == "port" else [1 if endpoint.host.version == 4 else 2, *host]


@pytest.mark.parametrize("case", [case for case in CORPUS if "parser" in case], ids=lambda case: case["id"])
def test_corpus(case: dict[str, Any]) -> None:
    """Items 57, 58, 59: the listed parse of every line of groups P, E and C."""
    expected = case["parsed"]
    if case["parser"] == "eprt" and isinstance(expected, list):
        host = parse_address(expected[1])  # an IPv4-mapped address is the IPv4 address that it stands for
        expected = [1 if host.version == 4 else 2, str(host), expected[2]]
    assert parsed(case["parser"], case["line"].encode()) == expected


v4: st.SearchStrategy[Any] = st.ip_addresses(v=4)
v6: st.SearchStrategy[Any] = st.ip_addresses(v=6).map(lambda host: parse_address(str(host)))
ports = st.integers(1, 65535)


@given(v4, ports)
def test_port_and_227_come_back(host: Any, number: int) -> None:
    """Item 63: what we write we also read, and it has the one canonical form."""
    at = Endpoint(host, number)
    line = port(at)
    assert line.startswith(b"PORT ")
    assert line.endswith(b"\r\n")
    assert parse_port(line[5:-2]) == at
    reply = passive_reply(at, extended=False)
    assert parse_227(reply[4:-2]) == at
    assert reply == b"227 Entering Passive Mode (" + line[5:-2] + b")\r\n"


@given(st.one_of(v4, v6), ports)
def test_eprt_and_229_come_back(host: Any, number: int) -> None:
    """Item 64: the 229 has exactly the form (|||port|)."""
    at = Endpoint(host, number)
    assert parse_eprt(eprt(at)[5:-2]) == at
    reply = passive_reply(at, extended=True)
    assert reply == b"229 Entering Extended Passive Mode (|||%d|)\r\n" % number
    assert parse_229(reply[4:-2]) == (None, number)


@pytest.mark.parametrize("delimiter", "!#$%&'*+,-./:;<=>?@[]^_`{|}~ABab\"\\")
def test_eprt_takes_any_delimiter(delimiter: str) -> None:
    """Item 59: everything from 33 to 126 but digits and parentheses."""
    text = delimiter.join(["", "1", "192,0,2,4" if delimiter == "." else "192.0.2.4", "40000", ""])
    if delimiter == ".":  # cannot delimit a dotted quad
        with pytest.raises(BadEndpoint):
            parse_eprt(text.encode())
    else:
        assert parse_eprt(text.encode()) == Endpoint(ip_address("192.0.2.4"), 40000)


@pytest.mark.parametrize("argument", [b"", b"|", b"||||", b"|1|192.0.2.4|0|", b"|1|192.0.2.4|+5|", b"|1|::1|5|"])
def test_eprt_nonsense(argument: bytes) -> None:
    with pytest.raises(BadEndpoint):
        parse_eprt(argument)


@pytest.mark.parametrize("argument", [b"1,2,3,4,5,6x", b"1, 2,3,4,5,6", b"+1,2,3,4,5,6", b"1,2,3,4,5,", b"1,2,3,4,0,0"])
def test_port_nonsense(argument: bytes) -> None:
    """Item 58."""
    with pytest.raises(BadEndpoint):
        parse_port(argument)


@given(st.binary(max_size=200))
def test_hostile_octets_raise_only_what_is_declared(octets: bytes) -> None:
    for parse in (parse_port, parse_eprt):
        try:
            assert 1 <= parse(octets).port <= 65535
        except (BadEndpoint, UnsupportedProtocol):
            pass
    for found in (parse_227(octets), parse_229(octets)):
        assert found is None or 1 <= found[1] <= 65535


def test_long_digit_runs_cost_nothing() -> None:
    assert parse_227(b"9" * 30000 + b"," * 3 + b"9," * 10000) is None
    assert parse_229(b"(|||" + b"9" * 30000 + b"|)") is None
    with pytest.raises(BadEndpoint):
        parse_eprt(b"|1|1.2.3.4|" + b"9" * 8000 + b"|")
