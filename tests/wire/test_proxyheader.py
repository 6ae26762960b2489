"""The PROXY protocol's headers: what they say, where they end, and that nothing else gets out of the reader."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftpproxy.endpoints import Endpoint
from ftpproxy.wire.proxyheader import LONGEST_V1, SIGNATURE, BadHeader, HeaderReader, ProxyHeader, build

CLIENT, SERVER = Endpoint.parse("192.0.2.7:40000"), Endpoint.parse("198.51.100.1:21")
CLIENT6, SERVER6 = Endpoint.parse("[2001:db8::7]:40000"), Endpoint.parse("[2001:db8:1::1]:21")
ADDRESSES4 = bytes([192, 0, 2, 7, 198, 51, 100, 1]) + (40000).to_bytes(2, "big") + (21).to_bytes(2, "big")


def v2(command: int, family: int, body: bytes = b"") -> bytes:
    return SIGNATURE + bytes([command, family]) + len(body).to_bytes(2, "big") + body


GOOD = {
    "v1 TCP4": (b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 21\r\n", ProxyHeader(CLIENT, SERVER)),
    "v1 TCP6": (b"PROXY TCP6 2001:db8::7 2001:db8:1::1 40000 21\r\n", ProxyHeader(CLIENT6, SERVER6)),
    "v1 mapped": (b"PROXY TCP6 ::ffff:192.0.2.7 ::ffff:198.51.100.1 40000 21\r\n", ProxyHeader(CLIENT, SERVER)),
    "v1 UNKNOWN": (b"PROXY UNKNOWN\r\n", ProxyHeader()),
    "v1 UNKNOWN with words": (b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n", ProxyHeader()),
    "v2 TCP4": (v2(0x21, 0x11, ADDRESSES4), ProxyHeader(CLIENT, SERVER)),
    "v2 TLVs": (v2(0x21, 0x11, ADDRESSES4 + b"\x04\x00\x01x" * 100), ProxyHeader(CLIENT, SERVER)),
    "v2 many TLVs": (v2(0x21, 0x11, ADDRESSES4 + b"\x04\x00\x01x" * 16000), ProxyHeader(CLIENT, SERVER)),
    "v2 TCP6": (build("v2", CLIENT6, SERVER6), ProxyHeader(CLIENT6, SERVER6)),
    "v2 LOCAL": (v2(0x20, 0x00), ProxyHeader()),
    "v2 LOCAL with addresses": (v2(0x20, 0x11, ADDRESSES4), ProxyHeader()),
    "v2 unspecified": (v2(0x21, 0x00, b"what\never"), ProxyHeader()),
    "v2 Unix": (v2(0x21, 0x31, bytes(216)), ProxyHeader()),
}

BAD = {
    "FTP": b"USER anonymous\r\n",
    "TLS": b"\x16\x03\x01\x02\x00",
    "LF": b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 21\n",
    "UNKNOWN and LF": b"PROXY UNKNOWN\n",
    "UNKNOWNX": b"PROXY UNKNOWNX\r\n",
    "lower case": b"proxy TCP4 192.0.2.7 198.51.100.1 40000 21\r\n",
    "two blanks": b"PROXY TCP4  192.0.2.7 198.51.100.1 40000 21\r\n",
    "wrong family": b"PROXY TCP6 192.0.2.7 198.51.100.1 40000 21\r\n",
    "UDP": b"PROXY UDP4 192.0.2.7 198.51.100.1 40000 21\r\n",
    "port": b"PROXY TCP4 192.0.2.7 198.51.100.1 65536 21\r\n",
    "leading zero": b"PROXY TCP4 192.0.2.7 198.51.100.1 040 21\r\n",
    "zone": b"PROXY TCP6 fe80::1%eth0 fe80::2 40000 21\r\n",
    "multicast": b"PROXY TCP4 224.0.0.1 198.51.100.1 40000 21\r\n",
    "two families": b"PROXY TCP6 ::ffff:192.0.2.7 2001:db8::1 40000 21\r\n",
    "endless": b"PROXY UNKNOWN " + b"x" * LONGEST_V1,
    "v2 version": v2(0x11, 0x11, ADDRESSES4),
    "v2 command": v2(0x22, 0x11, ADDRESSES4),
    "v2 UDP": v2(0x21, 0x12, ADDRESSES4),
    "v2 short": v2(0x21, 0x11, ADDRESSES4[:-1]),
    "v2 damaged signature": SIGNATURE[:-1] + b"\r" + bytes(20),
}


def read(octets: bytes, cuts: list[int] | None = None) -> tuple[ProxyHeader | None, int]:
    """What the reader finds, and how many octets it takes, shown them in pieces as a peeking socket would."""
    reader, start, taken = HeaderReader(), 0, 0
    for end in [*sorted({cut % (len(octets) + 1) for cut in cuts or []}), len(octets)]:
        count = reader.take(octets[start:end])
        taken += count
        if reader.header is not None:
            break
        assert count == end - start, "an unfinished header takes everything"
        start = end
    return reader.header, taken


@pytest.mark.parametrize("name", GOOD)
def test_a_header_says_who_called_whom(name: str) -> None:
    """Item 148: version 1 and 2, LOCAL and UNKNOWN, TLVs skipped."""
    octets, expected = GOOD[name]
    assert read(octets) == (expected, len(octets))


@pytest.mark.parametrize("name", BAD)
def test_anything_else_is_refused(name: str) -> None:
    """Item 148: a malformed header is no header."""
    with pytest.raises(BadHeader):
        read(BAD[name])


@pytest.mark.parametrize("octets", [BAD["FTP"], BAD["TLS"], BAD["v2 command"][:16], BAD["endless"]])
def test_refusal_does_not_wait_for_more(octets: bytes) -> None:
    """Item 148: the first octets that cannot be a header are enough."""
    with pytest.raises(BadHeader):
        read(octets)


@given(st.sampled_from(sorted(GOOD)), st.binary(max_size=200), st.lists(st.integers(0, 2000), max_size=20))
def test_any_cutting_finds_the_same_end(name: str, behind: bytes, cuts: list[int]) -> None:
    """Item 148: a header may come in pieces, and what stands behind it is left alone."""
    octets, expected = GOOD[name]
    assert read(octets + behind, cuts) == (expected, len(octets))


@given(
    st.one_of(
        st.binary(max_size=300),
        st.binary(max_size=300).map(lambda tail: SIGNATURE + tail),
        st.binary(max_size=150).map(lambda tail: b"PROXY TCP4 " + tail),
        st.text(alphabet="0123456789abcdef:. %\r\n", max_size=110).map(lambda text: b"PROXY TCP6 " + text.encode()),
    ),
    st.lists(st.integers(0, 300), max_size=10),
)
def test_hostile_octets_raise_only_what_is_declared(octets: bytes, cuts: list[int]) -> None:
    """Item 148: any octets, any cutting: the same answer, and nothing but `BadHeader`."""
    try:
        whole = read(octets)
    except BadHeader:
        with pytest.raises(BadHeader):
            read(octets, cuts)
    else:
        assert read(octets, cuts) == whole


endpoints4 = st.builds(
    Endpoint,
    st.ip_addresses(v=4).filter(lambda host: not host.is_multicast and host != IPv4Address(0)),
    st.integers(0, 65535),
)
endpoints6 = st.builds(
    Endpoint,
    st.ip_addresses(v=6).filter(
        lambda host: isinstance(host, IPv6Address) and not host.is_multicast and not host.ipv4_mapped and int(host) != 0
    ),
    st.integers(0, 65535),
)


@given(st.one_of(st.tuples(endpoints4, endpoints4), st.tuples(endpoints6, endpoints6)), st.sampled_from(["v1", "v2"]))
def test_what_is_built_is_read(pair: tuple[Endpoint, Endpoint], version: str) -> None:
    """Item 148: a chain of proxies understands itself."""
    octets = build("v1" if version == "v1" else "v2", *pair)
    assert read(octets) == (ProxyHeader(*pair), len(octets))
    assert version == "v2" or len(octets) <= LONGEST_V1


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_two_families_are_not_told(version: str) -> None:
    """Item 148: a client of one family and a server of the other fit into no header."""
    octets = build("v1" if version == "v1" else "v2", CLIENT6, SERVER)
    assert read(octets) == (ProxyHeader(), len(octets))
