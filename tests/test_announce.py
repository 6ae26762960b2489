"""What sides are told: real files, a real interface, and a resolver that the test controls."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from ftpproxy.announce import OWN, Addresses, Announcements, Announcer, File, Interface, Name, Source, Unknown
from ftpproxy.endpoints import Side
from ftpproxy.logforms import quote

from .intercept.namespaces import Namespace

CLIENT, SERVER = Side.CLIENT, Side.SERVER
MINUTE = 60.0
LINK = "link add wan type veth peer name far\nlink set far up\nlink set wan up\n"


def addresses(*texts: str) -> Addresses:
    return tuple(map(ip_address, texts))


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """The events so far, as the log has them; clear it as you like."""
    lines: list[str] = []

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            fields = " ".join(f"{key}={quote(value)}" for key, value in record.__dict__["fields"].items())
            lines.append(f"{record.levelname.lower()} {record.getMessage()} {fields}")

    logger, lines_only = logging.getLogger("ftpproxy.announce"), Lines()
    logger.addHandler(lines_only)
    with caplog.at_level(logging.DEBUG, logger.name):
        yield lines
    logger.removeHandler(lines_only)


class Resolver(trio.abc.HostnameResolver):
    """Answers from a table; a name that is not there is not known, and None never answers."""

    def __init__(self) -> None:
        self.names: dict[str, list[str] | None] = {}
        self.asked = 0

    async def getaddrinfo(self, host: Any, port: Any, family: int = 0, type: int = 0, *_: Any) -> Any:
        self.asked += 1
        found = self.names.get(host.decode(), [])
        if found is None:
            await trio.sleep_forever()
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET6 if ":" in each else socket.AF_INET, type, 6, "", (each, port or 0)) for each in found]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
        raise NotImplementedError


@pytest.fixture
async def resolver() -> AsyncIterator[Resolver]:
    resolver = Resolver()
    before = trio.socket.set_custom_hostname_resolver(resolver)
    yield resolver
    trio.socket.set_custom_hostname_resolver(before)


@asynccontextmanager
async def announcer(*sources: Source, seconds: float = MINUTE) -> AsyncIterator[Announcer]:
    """An announcer that runs and has looked once."""
    it = Announcer()
    for source in sources:
        it.keep(source, seconds)
    async with trio.open_nursery() as nursery:
        await nursery.start(it.run)
        yield it
        nursery.cancel_scope.cancel()


# Sources


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("198.51.100.7\n", ["198.51.100.7"]),
        ("198.51.100.7", ["198.51.100.7"]),
        (
            "# ours\n\n  198.51.100.7  # since May\r\n2001:db8::7\n198.51.100.8",
            ["198.51.100.7", "2001:db8::7", "198.51.100.8"],
        ),
        ("::ffff:198.51.100.7", ["198.51.100.7"]),
    ],
)
async def test_a_file_has_addresses(tmp_path: Path, text: str, found: list[str]) -> None:
    path = tmp_path / "address"
    path.write_text(text, newline="")
    assert await File(str(path)).look() == addresses(*found)


@pytest.mark.parametrize(
    ("octets", "reason"),
    [
        (b"", "it has no address"),
        (b"# none\n", "it has no address"),
        (b"198.51.100.7\ngateway\n", "line 2: 'gateway' is not an IP address"),
        (b"198.51.100.7 198.51.100.8", "line 1: '198.51.100.7 198.51.100.8' is not an IP address"),
        (b"0.0.0.0", "line 1: 0.0.0.0 is not an address that others could call"),
        (b"\n127.0.0.1", "line 2: 127.0.0.1 is not an address that others could call"),
        (b"fe80::1%eth0", "line 1: fe80::1%eth0 is not an address that others could call"),
        (b"\xff", "line 1: '\ufffd' is not an IP address"),
        (b"#" * 5000, "it is longer than 4096 octets"),
    ],
)
async def test_a_file_without_an_address_says_why(tmp_path: Path, octets: bytes, reason: str) -> None:
    path = tmp_path / "address"
    path.write_bytes(octets)
    with pytest.raises(Unknown) as caught:
        await File(str(path)).look()
    assert str(caught.value) == reason


async def test_what_is_no_file_does_not_hold_us_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, reason in {
        "fifo": "it is a FIFO, and no regular file",
        ".": "it is a directory, and no regular file",
        "nothing": "No such file or directory",
        "nothing/below": "No such file or directory",
    }.items():
        with pytest.raises(Unknown) as caught:
            await File(str(tmp_path / path)).look()
        assert str(caught.value) == reason


async def test_a_name_has_addresses_in_an_order_that_stays(resolver: Resolver) -> None:
    gateway = Name("gateway.example.org")
    for answer in (["203.0.113.9", "2001:db8::7", "198.51.100.7"], ["198.51.100.7", "203.0.113.9", "2001:db8::7"]):
        resolver.names["gateway.example.org"] = answer
        assert await gateway.look() == addresses("198.51.100.7", "203.0.113.9", "2001:db8::7")
    resolver.names["gateway.example.org"] = ["127.0.1.1", "198.51.100.7", "fe80::1%2"]
    assert await gateway.look() == addresses("198.51.100.7")


async def test_a_name_without_an_address_says_why(resolver: Resolver, autojump_clock: MockClock) -> None:
    resolver.names |= {"here.example.org": ["127.0.1.1", "::1"], "lost.example.org": None}
    for name, reason in {
        "nobody.example.org": "Name or service not known",
        "here.example.org": "it has no address that others could call: 127.0.1.1, ::1",
        "lost.example.org": "no answer within 5 seconds",
        "a..b": "it is not a host name",
    }.items():
        with pytest.raises(Unknown) as caught:
            await Name(name).look()
        assert str(caught.value) == reason


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    try:
        namespace = Namespace()
    except PermissionError:
        pytest.skip("needs root, or unshare -Urnm")
    with namespace.inside():
        yield namespace
    namespace.close()


@pytest.mark.netns
async def test_an_interface_has_addresses(namespace: Namespace) -> None:
    wan = Interface("wan")
    with pytest.raises(Unknown, match=r"^there is no such interface$"):
        await wan.look()
    namespace.ip(f"{LINK}")
    with pytest.raises(Unknown, match=r"^the interface has no global address$"):  # but a link-local one
        await wan.look()
    namespace.ip(
        "addr add 198.51.100.7/24 dev wan\naddr add 198.51.100.8/24 dev wan\naddr add 169.254.1.1/16 dev wan\n"
        "addr add 2001:db8::7/64 dev wan nodad\naddr add fd77::7/64 dev wan nodad\n"
        "addr add 2001:db8::8/64 dev wan nodad preferred_lft 0 valid_lft 600\n"
    )
    assert await wan.look() == addresses("198.51.100.7", "2001:db8::7", "fd77::7")


@pytest.mark.netns
async def test_of_a_point_to_point_link_our_own_end(namespace: Namespace) -> None:
    namespace.ip(f"{LINK}addr add 198.51.100.7 peer 192.0.2.1 dev wan\n")
    assert await Interface("wan").look() == addresses("198.51.100.7")


# The announcer


async def test_a_file_is_read_again(tmp_path: Path, autojump_clock: MockClock, said: list[str]) -> None:
    """Item 82: the configured masquerade address, and it may change."""
    path, source = tmp_path / "address", File(str(tmp_path / "address"))
    path.write_text("198.51.100.7\n")
    async with announcer(source, seconds=3600) as it:
        assert it.known(source) == addresses("198.51.100.7")
        path.write_text("198.51.100.8\n")
        await trio.sleep(1.5)
        assert it.known(source) == addresses("198.51.100.8")
        other = tmp_path / "other"
        other.write_text("198.51.100.9\n")
        os.utime(other, (1, 1))  # whatever the time of the other file is
        other.rename(path)
        await trio.sleep(1.5)
        assert it.known(source) == addresses("198.51.100.9")
        await trio.sleep(30)
    assert said == [f"info announce.changed source={source} announced=198.51.100.{host}" for host in (7, 8, 9)]


async def test_the_last_good_answer_stands(tmp_path: Path, autojump_clock: MockClock, said: list[str]) -> None:
    path, source = tmp_path / "address", File(str(tmp_path / "address"))
    path.write_text("198.51.100.7\n")
    async with announcer(source) as it:
        said.clear()
        for text in ("", None, "garbage"):
            path.unlink(missing_ok=True)
            if text is not None:
                path.write_text(text)
            await trio.sleep(10 * MINUTE)
            assert it.known(source) == addresses("198.51.100.7")
        path.write_text("198.51.100.7\n")
        await trio.sleep(10 * MINUTE)
    reasons = ["it has no address", "No such file or directory", "line 1: 'garbage' is not an IP address"]
    failed = f'warning announce.failed source={source} reason="%s" announced=198.51.100.7'
    assert said == [failed % reason for reason in reasons] + [
        f"info announce.changed source={source} announced=198.51.100.7"
    ]


async def test_a_name_is_asked_as_often_as_configured(
    resolver: Resolver, autojump_clock: MockClock, said: list[str]
) -> None:
    source = Name("gateway.example.org")
    resolver.names["gateway.example.org"] = ["198.51.100.7"]
    async with announcer(source, seconds=10 * MINUTE) as it:
        await trio.sleep(9 * MINUTE)
        assert resolver.asked == 1
        resolver.names["gateway.example.org"] = ["198.51.100.8", "2001:db8::8"]
        await trio.sleep(2 * MINUTE)
        assert it.known(source) == addresses("198.51.100.8", "2001:db8::8")
        resolver.names["gateway.example.org"] = None  # the nameserver has gone
        await trio.sleep(40 * MINUTE)
        assert it.known(source) == addresses("198.51.100.8", "2001:db8::8")
    assert said == [
        f"info announce.changed source={source} announced=198.51.100.7",
        f"info announce.changed source={source} announced=198.51.100.8,2001:db8::8",
        (
            f'warning announce.failed source={source} reason="no answer within 5 seconds"'
            " announced=198.51.100.8,2001:db8::8"
        ),
    ]


async def test_a_start_without_an_answer(resolver: Resolver, autojump_clock: MockClock, said: list[str]) -> None:
    """It is an error in the log, our own address meanwhile, and over soon after the name works."""
    source = Name("gateway.example.org")
    resolver.names["gateway.example.org"] = None
    async with announcer(source, seconds=60 * MINUTE) as it:
        assert it.known(source) == OWN
        assert said == [
            f'error announce.failed source={source} reason="no answer within 5 seconds" announced="our own address"'
        ]
        resolver.names["gateway.example.org"] = ["198.51.100.7"]
        await trio.sleep(6)
        assert it.known(source) == addresses("198.51.100.7")


async def test_a_name_that_hangs_holds_up_no_file(
    resolver: Resolver, tmp_path: Path, autojump_clock: MockClock
) -> None:
    path, source = tmp_path / "address", File(str(tmp_path / "address"))
    path.write_text("198.51.100.7\n")
    resolver.names["gateway.example.org"] = ["192.0.2.1"]
    async with announcer(Name("gateway.example.org"), source, seconds=2) as it:
        resolver.names["gateway.example.org"] = None
        await trio.sleep(3)  # it hangs now
        path.write_text("198.51.100.8\n")
        await trio.sleep(1.5)
        assert it.known(source) == addresses("198.51.100.8")


async def test_a_crash_ends_neither_the_service_nor_the_looks(
    autojump_clock: MockClock, said: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = File(str(tmp_path / "address"))
    monkeypatch.setattr("ftpproxy.announce.parse_address", lambda _: 1 // 0)
    (tmp_path / "address").write_text("198.51.100.7\n")
    async with announcer(source) as it:
        assert it.known(source) == OWN
        monkeypatch.undo()
        await trio.sleep(10)
        assert it.known(source) == addresses("198.51.100.7")
    assert 'reason="ZeroDivisionError: ' in said[0]


@pytest.mark.netns
async def test_an_interface_whose_address_changes(
    namespace: Namespace, autojump_clock: MockClock, said: list[str]
) -> None:
    namespace.ip(f"{LINK}addr add 198.51.100.7/24 dev wan\n")
    source = Interface("wan")
    async with announcer(source) as it:
        assert it.known(source) == addresses("198.51.100.7")
        namespace.ip("addr del 198.51.100.7/24 dev wan\n")
        await trio.sleep(MINUTE + 1)
        assert it.known(source) == addresses("198.51.100.7")
        namespace.ip("addr add 203.0.113.7/24 dev wan\n")
        await trio.sleep(6)
        assert it.known(source) == addresses("203.0.113.7")
    assert said == [
        "info announce.changed source=interface:wan announced=198.51.100.7",
        (
            'warning announce.failed source=interface:wan reason="the interface has no global address"'
            " announced=198.51.100.7"
        ),
        "info announce.changed source=interface:wan announced=203.0.113.7",
    ]


# What a service tells whom


async def test_the_first_network_counts(tmp_path: Path) -> None:
    """Items 82, 83: what each side is told, by the client's network."""
    public, lan = tmp_path / "public", tmp_path / "lan"
    public.write_text("198.51.100.7\n2001:db8::7\n")
    lan.write_text("10.0.0.1\n")
    general, inside = File(str(public)), File(str(lan))
    async with announcer(general, inside) as it:
        announcements = Announcements(
            it,
            {CLIENT: general, SERVER: addresses("203.0.113.1")},
            [
                ([ip_network("10.1.0.0/16"), ip_network("fd00::/8")], {CLIENT: inside}),
                ([ip_network("10.2.0.0/16")], {CLIENT: OWN}),
                ([ip_network("10.0.0.0/8")], {CLIENT: addresses("10.9.9.9"), SERVER: OWN}),
            ],
        )

        def told(client: str) -> dict[Side, Addresses]:
            return dict(announcements.addresses(ip_address(client)))

        proxy = addresses("203.0.113.1")
        assert told("192.0.2.1") == {CLIENT: addresses("198.51.100.7", "2001:db8::7"), SERVER: proxy}
        assert told("10.1.2.3") == {CLIENT: addresses("10.0.0.1"), SERVER: proxy}
        assert told("fd77::1") == {CLIENT: addresses("10.0.0.1"), SERVER: proxy}
        assert told("10.2.0.1") == {SERVER: proxy}
        assert told("10.3.0.1") == {CLIENT: addresses("10.9.9.9")}
