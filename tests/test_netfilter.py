"""Our nftables table and its elements: what is packed, and what the kernel makes of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("pyroute2", reason="about Linux: packed netlink messages are read by pyroute2")
from pyroute2.netlink import NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST
from pyroute2.netlink.nfnetlink import NFNL_SUBSYS_NFTABLES, nfgen_msg
from pyroute2.netlink.nfnetlink.nftsocket import (
    NFT_MSG_DELSETELEM,
    NFT_MSG_GETSETELEM,
    NFT_MSG_GETTABLE,
    NFT_MSG_NEWSETELEM,
    nft_set_elem_list_msg,
    nft_table_msg,
)

from ftpproxy.endpoints import Endpoint
from ftpproxy.freezing import freeze, thaw
from ftpproxy.netfilter import (
    Count,
    Element,
    Elements,
    NetfilterError,
    TableRecord,
    awaited,
    called,
    has_table,
    led,
    of_path,
)
from ftpproxy.nfmessages import pack_batch, pack_questions, pack_table_question
from ftpproxy.table import PLANE_TABLE, Claim, load_table, remove_table

from .intercept.namespaces import Namespace

NFPROTO_INET = 1
BATCH_BEGIN, BATCH_END = 0x10, 0x11

CLIENT4, SERVER4, OURS4 = (ip_address(text) for text in ("10.77.1.2", "192.0.2.7", "10.77.1.1"))
CLIENT6, SERVER6, OURS6 = (ip_address(text) for text in ("fd77:1::2", "2001:db8::7", "fd77:1::1"))

# One element of each map, and what nft is to say of it: key, data.
EACH: list[tuple[Element, list[Any], Any]] = [
    (
        awaited(CLIENT4, Endpoint(SERVER4, 50021), Endpoint(OURS4, 20021)),
        ["10.77.1.2", "192.0.2.7", 50021],
        {"concat": ["10.77.1.1", 20021]},
    ),
    (
        awaited(CLIENT6, Endpoint(SERVER6, 50021), Endpoint(OURS6, 20021)),
        ["fd77:1::2", "2001:db8::7", 50021],
        {"concat": ["fd77:1::1", 20021]},
    ),
    (called(OURS4, Endpoint(CLIENT4, 258), Endpoint(SERVER4, 0)), ["10.77.1.1", "10.77.1.2", 258], "192.0.2.7"),
    (called(OURS6, Endpoint(CLIENT6, 258), Endpoint(SERVER6, 0)), ["fd77:1::1", "fd77:1::2", 258], "2001:db8::7"),
    (
        called(OURS4, Endpoint(CLIENT4, 258), Endpoint(SERVER4, 20)),
        ["10.77.1.1", "10.77.1.2", 258],
        {"concat": ["192.0.2.7", 20]},
    ),
    (
        called(OURS6, Endpoint(CLIENT6, 258), Endpoint(SERVER6, 20)),
        ["fd77:1::1", "fd77:1::2", 258],
        {"concat": ["2001:db8::7", 20]},
    ),
]
MAPS = sorted(f"{kind}{version}" for kind in ("awaited", "called", "carried", "pinned") for version in (4, 6))


def decoded(batch: bytes) -> list[Any]:
    """The messages of a batch, as pyroute2 understands them."""
    messages = []
    while batch:
        length = int.from_bytes(batch[:4], sys.byteorder)
        middle = int.from_bytes(batch[4:6], sys.byteorder) not in (BATCH_BEGIN, BATCH_END)
        message = (nft_set_elem_list_msg if middle else nfgen_msg)(batch[:length])
        message.decode()
        assert length % 4 == 0
        messages.append(message)
        batch = batch[length:]
    return messages


@st.composite
def some_elements(draw: st.DrawFn) -> list[Element]:
    addresses = st.ip_addresses(v=draw(st.sampled_from([4, 6])))
    endpoints = st.builds(Endpoint, addresses, st.integers(0, 65535))
    seconds = st.floats(0.001, 1e6)
    one = st.builds(awaited, addresses, endpoints, endpoints, seconds=seconds) | st.builds(
        called, addresses, endpoints, endpoints, seconds=seconds
    )
    kinds = st.sampled_from(["once", "forth", "back", "forth_end", "back_end"])
    once = st.builds(of_path, kinds, addresses, endpoints, seconds=seconds)
    one |= once
    one |= st.builds(led, once, endpoints, endpoints).flatmap(st.sampled_from)
    return draw(st.lists(one, min_size=1, max_size=5))


@given(some_elements(), st.booleans())
def test_packed_as_pyroute2_reads_it(elements: list[Element], add: bool) -> None:
    """Our packing and pyroute2's message classes agree on every field."""
    begin, *middle, end = decoded(pack_batch(tuple(elements), add=add))
    for edge, kind in ((begin, BATCH_BEGIN), (end, BATCH_END)):
        assert edge["header"]["type"] == kind
        assert edge["header"]["flags"] == NLM_F_REQUEST
        assert (edge["nfgen_family"], edge["version"], edge["res_id"]) == (0, 0, NFNL_SUBSYS_NFTABLES)
    assert [message["header"]["sequence_number"] for message in middle] == list(range(1, len(elements) + 1))

    kind, flags = (NFT_MSG_NEWSETELEM, NLM_F_CREATE | NLM_F_EXCL) if add else (NFT_MSG_DELSETELEM, 0)
    assert [bool(message["header"]["flags"] & NLM_F_ACK) for message in middle] == [False] * (len(middle) - 1) + [True]
    for element, message in zip(elements, middle, strict=True):
        assert message["header"]["type"] == NFNL_SUBSYS_NFTABLES << 8 | kind
        assert message["header"]["flags"] & ~NLM_F_ACK == NLM_F_REQUEST | flags
        assert (message["nfgen_family"], message["version"], message["res_id"]) == (NFPROTO_INET, 0, 0)
        assert message.get_attr("NFTA_SET_ELEM_LIST_TABLE") == "ftpproxy"
        assert message.get_attr("NFTA_SET_ELEM_LIST_SET") == element.map
        (inner,) = message.get_attr("NFTA_SET_ELEM_LIST_ELEMENTS")
        attributes = dict(inner["attrs"])
        assert attributes["NFTA_SET_ELEM_KEY"].get_attr("NFTA_DATA_VALUE") == element.key
        if add:
            if element.data:
                assert attributes["NFTA_SET_ELEM_DATA"].get_attr("NFTA_DATA_VALUE") == element.data
            assert attributes["NFTA_SET_ELEM_TIMEOUT"] == round(element.seconds * 1000)
        assert len(attributes) == (1 if not add else 3 if element.data else 2)


def test_the_question_about_a_table_as_pyroute2_reads_it() -> None:
    message = nft_table_msg(pack_table_question("ftpproxy", sequence=7))
    message.decode()
    assert message["header"]["type"] == NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETTABLE
    assert (message["header"]["flags"], message["header"]["sequence_number"]) == (NLM_F_REQUEST, 7)
    assert message["nfgen_family"] == NFPROTO_INET
    assert message.get_attr("NFTA_TABLE_NAME") == "ftpproxy"


@given(some_elements(), st.integers(0, 2**31))
def test_questions_as_pyroute2_reads_them(elements: list[Element], sequence: int) -> None:
    """A question has a key and nothing else, and no flag that would make it a dump."""
    messages = decoded(pack_questions(tuple(elements), sequence=sequence))
    assert [message["header"]["sequence_number"] for message in messages] == list(
        range(sequence, sequence + len(elements))
    )
    for element, message in zip(elements, messages, strict=True):
        assert message["header"]["type"] == NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETSETELEM
        assert message["header"]["flags"] == NLM_F_REQUEST
        assert message.get_attr("NFTA_SET_ELEM_LIST_SET") == element.map
        (inner,) = message.get_attr("NFTA_SET_ELEM_LIST_ELEMENTS")
        attributes = dict(inner["attrs"])
        assert list(attributes) == ["NFTA_SET_ELEM_KEY"]
        assert attributes["NFTA_SET_ELEM_KEY"].get_attr("NFTA_DATA_VALUE") == element.key


@pytest.fixture
def gateway() -> Iterator[Namespace]:
    """A network of its own, this thread inside."""
    try:
        namespace = Namespace()
    except PermissionError:
        pytest.skip("needs root, or unshare -Urnm")
    with namespace.inside():
        yield namespace
    namespace.close()


@pytest.fixture
def table(gateway: Namespace) -> Namespace:
    load_table()
    return gateway


def listed(gateway: Namespace) -> dict[str, list[Any]]:
    """Our maps and their elements, as `nft -j` tells them."""
    answer = json.loads(gateway.run("nft", "-j", "list", "table", "inet", "ftpproxy"))["nftables"]
    return {item["map"]["name"]: item["map"].get("elem", []) for item in answer if "map" in item}


@pytest.mark.netns
def test_the_kernel_reads_what_was_meant(table: Namespace) -> None:
    """Item 72: when `add` returns, the element of each map is there, with its timeout."""
    with Elements() as elements:
        elements.add(*(element for element, _, _ in EACH))
        maps = listed(table)
        assert sorted(maps) == MAPS
        for element, key, data in EACH:
            ((said_key, said_data),) = maps[element.map]
            assert said_key["elem"]["val"] == {"concat": key}
            assert said_key["elem"]["timeout"] == 300
            assert said_data == data
        elements.remove(*(element for element, _, _ in EACH))
    assert listed(table) == {name: [] for name in MAPS}


@pytest.mark.netns
@pytest.mark.parametrize(("client", "server"), [(CLIENT4, SERVER4), (CLIENT6, SERVER6)], ids=["IPv4", "IPv6"])
def test_the_kernel_reads_what_was_meant_for_a_path(table: Namespace, client: Any, server: Any) -> None:
    """Each kind of element of a path that the kernel carries, with its data, its time and its counter."""
    at, to = Endpoint(server, 50021), Endpoint(server, 258)
    kinds = ("once", "forth", "back", "forth_end", "back_end")
    with Elements() as elements:
        way_in, way_out = led(
            of_path("once", client, at, seconds=7), to, Endpoint(OURS4 if at.host.version == 4 else OURS6, 0)
        )
        elements.add(way_in, way_out, *(of_path(kind, client, at, seconds=8) for kind in kinds))
    ((key_out, data_out),) = listed(table)[f"called{server.version}"]
    assert key_out["elem"]["val"] == {"concat": [str(client), str(server), 258]}
    assert data_out == str(OURS4 if at.host.version == 4 else OURS6)
    ((key, data),) = listed(table)[f"carried{server.version}"]
    assert key["elem"]["val"] == {"concat": [str(client), str(server), 50021]}
    assert key["elem"]["timeout"] == 7
    assert data == {"concat": [str(server), 258]}
    answer = json.loads(table.run("nft", "-j", "list", "table", "inet", "ftpproxy"))["nftables"]
    sets = {item["set"]["name"]: item["set"].get("elem", []) for item in answer if "set" in item}
    for kind in kinds:
        ((element),) = (each["elem"] for each in sets[f"{kind}{server.version}"])
        assert element["val"] == {"concat": [str(client), str(server), 50021]}
        assert element["timeout"] == 8
        assert ("counter" in element) == (kind in ("forth", "back"))


@pytest.mark.netns
def test_all_or_none(table: Namespace) -> None:
    """NLM_F_EXCL: a key that is taken undoes the whole batch; and the answers of a failed batch do not stay behind."""
    taken, *others = (element for element, _, _ in EACH)
    with Elements() as elements, Elements() as rival:
        rival.add(taken)
        with pytest.raises(FileExistsError, match="table inet ftpproxy"):
            elements.add(*others, taken)
        assert sum(map(len, listed(table).values())) == 1
        elements.add(*others)
        assert sum(map(len, listed(table).values())) == 6


@pytest.mark.netns
def test_removing_is_idempotent(table: Namespace) -> None:
    """What is gone already does not keep the rest of the batch."""
    first, *rest = (element for element, _, _ in EACH)
    with Elements() as elements:
        elements.add(first, *rest)
        elements.remove(first)
        elements.remove(first)
        elements.remove(first, *rest)
        assert listed(table) == {name: [] for name in MAPS}


class Undone(Elements):
    """Elements that tell how often the kernel had to undo a batch, which costs it milliseconds."""

    undone = 0

    def _exchange(self, elements: tuple[Element, ...], *, add: bool) -> None:
        try:
            super()._exchange(elements, add=add)
        except FileNotFoundError:
            self.undone += 1
            raise


@pytest.mark.netns
def test_what_is_gone_costs_one_attempt(table: Namespace) -> None:
    """However many of a batch are gone; and none if they have timed out."""
    elements_of_all = [element for element, _, _ in EACH]
    with (elements := Undone()):
        elements.add(*elements_of_all)
        for element in elements_of_all[::2]:
            elements.remove(element)
        elements.remove(*elements_of_all)
        assert elements.undone == 1
        assert listed(table) == {name: [] for name in MAPS}
        brief = [element._replace(seconds=0.02) for element in elements_of_all[::2]]
        elements.add(*elements_of_all[1::2], *brief)
        while elements.alive > len(elements_of_all[1::2]):
            time.sleep(0.005)
        elements.remove(*elements_of_all)
        assert elements.undone == 1
        assert listed(table) == {name: [] for name in MAPS}


@pytest.mark.netns
def test_a_full_batch(table: Namespace) -> None:
    """A hundred answers fit the receive buffer, also when each of them is an error; more are not even sent."""
    many = [awaited(CLIENT6, Endpoint(SERVER6, port), Endpoint(OURS6, port)) for port in range(1, 102)]
    with Elements() as elements:
        elements.add(*many[:100])
        assert len(listed(table)["awaited6"]) == 100
        with pytest.raises(FileExistsError):
            elements.add(*many[:100])
        elements.remove(*many[:100])
        for wrong in (many, []):
            with pytest.raises(ValueError, match="1 to 100 can be"):
                elements.add(*wrong)


@pytest.mark.netns
def test_elements_time_out(table: Namespace) -> None:
    """Item 103: nothing outlives a crash for long.  A key that timed out is free for the next one at once."""
    element = awaited(CLIENT4, Endpoint(SERVER4, 1), Endpoint(OURS4, 1), seconds=0.05)
    with Elements() as elements:
        elements.add(element)
        while True:
            try:
                elements.add(element)
                break
            except FileExistsError:
                elements.forget(element)  # ask the kernel
        elements.remove(element)


@pytest.mark.netns
def test_counters_are_read(table: Namespace) -> None:
    """What nft sets is what is read; an element that is gone has counted nothing, and does not keep others back."""
    here, gone, there = (of_path("forth", CLIENT6, Endpoint(SERVER6, port)) for port in (1, 2, 3))
    with Elements() as elements:
        elements.add(here)
        where = "add element inet ftpproxy forth6 { fd77:1::2 . 2001:db8::7 . 3 counter packets 7 bytes 5000000000 }"
        table.run("nft", where)
        assert elements.read(here, gone, there) == [Count(), None, Count(7, 5_000_000_000)]
        table.run("nft", "flush", "ruleset")
        assert elements.read(here) == [None]


@pytest.mark.netns
def test_a_flushed_table_is_loaded_again(table: Namespace) -> None:
    """With what stood in it and nothing else; once; and never where nobody gave a way to do it."""
    first, second, *_ = (element for element, _, _ in EACH)
    with Elements(load_table) as elements:
        elements.check()
        elements.add(first, second)
        elements.remove(first)
        table.run("nft", "flush", "ruleset")
        elements.check()
        elements.check()
        assert elements.reloads == 1
        assert {name: len(found) for name, found in listed(table).items() if found} == {second.map: 1}
        table.run("nft", "flush", "ruleset")
        elements.add(first)
        assert elements.reloads == 2
        assert sum(map(len, listed(table).values())) == 2
    with Elements() as elements:
        elements.check()
        table.run("nft", "flush", "ruleset")
        with pytest.raises(FileNotFoundError):
            elements.check()


@pytest.mark.netns
def test_loading_takes_over_what_was_left(gateway: Namespace) -> None:
    """Item 103: the table of a killed process, its elements included, is replaced; removing twice is once."""
    first = EACH[0][0]
    load_table()
    with Elements() as elements:
        elements.add(first)
        load_table()
        assert listed(gateway) == {name: [] for name in MAPS}
        elements.forget(first)
        elements.add(first)
        remove_table()
        assert gateway.run("nft", "list", "ruleset") == ""
        remove_table()
        elements.forget(first)
        with pytest.raises(FileNotFoundError):
            elements.add(first)
        elements.remove(first)


@pytest.mark.netns
def test_the_rules_of_others_stay(gateway: Namespace) -> None:
    """Ours is one table; nothing else is touched by loading and removing it."""
    theirs = (
        "table inet filter {\n\tchain forward {\n\t\ttype filter hook forward priority filter; policy drop;\n\t}\n}\n"
    )
    gateway.run("nft", "-f", "-", text=theirs)
    load_table()
    assert gateway.run("nft", "list", "table", "inet", "filter") == theirs
    remove_table()
    assert gateway.run("nft", "list", "ruleset") == theirs


def test_no_nft(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """The program that is missing is named, with its package."""
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with pytest.raises(NetfilterError, match="install nftables"):
        load_table()


STAND_IN = """\
#!/bin/sh
[ "$1" = --version ] && echo 'nftables v0.8.2 (Joe Btfsplk)' && exit
cat >/dev/null
echo "/dev/stdin:1:2-3: Error: Could not process rule: $SAY" >&2
exit 1
"""
"""An nft of old, that complains of what it is told."""


def test_nft_that_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """What nft says of a kernel that lacks a part ends up in the sentence."""
    program = tmp_path / "nft"
    program.write_text(STAND_IN)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    for said, sentence in (
        (
            "syntax error, unexpected counter",
            r"nftables v0.8.2 \(Joe Btfsplk\) does not .* 0.9.5, .* or newer is needed",
        ),
        ("Operation not permitted", "changing nftables needs CAP_NET_ADMIN: run this as root"),
        ("No such file or directory", "CONFIG_NFT_NAT"),
        ("Operation not supported", "CONFIG_NFT_NAT"),
        ("Out of cheese", "exit code 1: .*Out of cheese"),
    ):
        monkeypatch.setenv("SAY", said)
        with pytest.raises(NetfilterError, match=sentence):
            load_table()


@pytest.mark.netns
def test_a_kernel_that_refuses(gateway: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """What this kernel does not do (NAT before connection tracking), said by the kernel itself."""
    monkeypatch.setattr("ftpproxy.table.PLANE_TABLE", PLANE_TABLE.replace("priority dstnat - 1", "priority -300"))
    with pytest.raises(NetfilterError, match=r"this kernel lacks a part of nftables .*not supported"):
        load_table()
    assert gateway.run("nft", "list", "ruleset") == ""


@pytest.mark.netns
def test_an_old_nft_ends_the_start_with_a_sentence(gateway: Namespace, tmp_path: Path) -> None:
    program, config = tmp_path / "nft", tmp_path / "ftpproxy.toml"
    program.write_text(STAND_IN)
    program.chmod(0o755)
    config.write_text(
        """[[service]]
        name = "server"
        mode = "reverse"
        listen = ["127.0.0.1:2121"]
        intercept = "none"
        servers = ["192.0.2.1:21"]
        planes = ["nft"]
        """
    )
    done = subprocess.run(
        [sys.executable, "-m", "ftpproxy", "serve", "-c", str(config)],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SAY": "syntax error, unexpected counter"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 69
    assert "ftpproxy: nftables v0.8.2 (Joe Btfsplk) does not understand our table; nftables 0.9.5" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.netns
def test_a_table_is_there_or_not(table: Namespace) -> None:
    assert has_table("ftpproxy") is True
    assert has_table("ftpproxy_intercept") is False


@pytest.mark.netns
def test_the_table_belongs_to_one(table: Namespace) -> None:
    first = Claim()
    with pytest.raises(NetfilterError, match="another ftpproxy"):
        Claim()
    first.close()
    second = Claim()
    assert sorted(listed(table)) == MAPS, "only who loaded it removes it"
    second.load()
    second.close()
    assert has_table("ftpproxy") is False


UNPRIVILEGED = """
from ftpproxy.endpoints import Endpoint
from ftpproxy.netfilter import Elements, NoPermission, awaited, has_table
from ftpproxy.table import load_table, remove_table

for change in (load_table, remove_table):
    try:
        change()
    except NoPermission as error:
        print(error)
at = Endpoint.parse("192.0.2.1:1")
with Elements() as elements:
    try:
        elements.add(awaited(at.host, at, at))
    except PermissionError as error:
        print("CAP_NET_ADMIN", error)
assert has_table("ftpproxy") is None
"""


@pytest.mark.netns
def test_no_permission(table: Namespace) -> None:
    """In a user namespace without a right over this network."""
    command = ["unshare", "-U", sys.executable, "-W", "error", "-c", UNPRIVILEGED]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 3
    assert all("CAP_NET_ADMIN" in line for line in done.stdout.splitlines()), done.stdout
    assert sorted(listed(table)) == MAPS


def successor(elements: Elements, form: str) -> Elements:
    """Those of the next process, of the version `form`."""
    following = Elements(load_table, form)
    following.inherit(thaw(json.loads(json.dumps(freeze(elements.leave()))), TableRecord))
    following.check()
    return following


@pytest.mark.netns
def test_a_successor_finds_what_stands(table: Namespace) -> None:
    """What it adds stands already, what it does not want goes, and another's data is no such thing."""
    wanted, unwanted, other = (
        awaited(CLIENT4, Endpoint(SERVER4, port), Endpoint(OURS4, port)) for port in (20001, 20002, 20003)
    )
    with Elements(load_table, "one") as first:
        first.add(wanted, unwanted, other)
        first.check()
        following = successor(first, "one")
    with following:
        assert following.reloads == 0
        following.add(wanted)
        with pytest.raises(FileExistsError):
            following.add(wanted)
        with pytest.raises(FileExistsError):
            following.add(other._replace(data=wanted.data))
        following.keep(other)
        following.drop_left()
        keys = sorted(element[0]["concat"][2] for element in keyed(table, "awaited4"))
        assert keys == [20001, 20003]
        following.remove(wanted, other)
        assert keyed(table, "awaited4") == []


@pytest.mark.netns
def test_a_successor_with_another_table(table: Namespace) -> None:
    """It loads its own, with all that stood in the one before, and says that counters began again."""
    element = awaited(CLIENT4, Endpoint(SERVER4, 20001), Endpoint(OURS4, 20001), seconds=100)
    with Elements(load_table, "one") as first:
        first.add(element)
        first.check()
        following = successor(first, "two")
    with following:
        assert following.reloads == 1
        ((key, _),) = keyed(table, "awaited4")
        assert key["concat"][2] == 20001
        following.add(element)
        following.remove(element)
        assert keyed(table, "awaited4") == []


def keyed(gateway: Namespace, name: str) -> list[Any]:
    """The elements of a map, each with its key in front."""
    return [[key["elem"]["val"], data] for key, data in listed(gateway)[name]]
