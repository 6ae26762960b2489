"""A table that nobody's flush takes away, and with it conntrack and address translation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from ftpproxy.config import parse
from ftpproxy.doctor.machine import Machine
from ftpproxy.endpoints import Endpoint
from ftpproxy.holes import COMMENT, close_all
from ftpproxy.nathook import TABLE, NatHook, without
from ftpproxy.rules import RulesError

from .intercept.namespaces import FAMILIES, Family, World, accept, connect, listen, talk, world

pytestmark = pytest.mark.netns

REDIRECT = """
table inet other {
    chain prerouting {
        type nat hook prerouting priority dstnat; policy accept;
        tcp dport 21 redirect to :8021
    }
}
"""


@pytest.fixture(scope="module")
def three() -> Iterator[World]:
    with world() as made:
        yield made


def test_it_stays_until_it_is_closed(three: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """One process has it; the next may when that has gone, and does not even try before: the kernel would have a
    transaction to undo each time, which takes it milliseconds.  The text is what the module says."""
    run, first, second = three.gateway.run, NatHook(), NatHook()
    with three.gateway.inside():
        first.hold()
        with monkeypatch.context() as patch:
            patch.delattr("ftpproxy.nathook.pack_nat_chain")
            second.hold()
        assert (first.held, second.held) == (True, False)
        for _ in range(2):
            listed = " ".join(run("nft", "list", "ruleset").split())
            assert f"table inet {TABLE} {{" in listed
            assert "flags owner chain prerouting { type nat hook prerouting priority filter; policy accept;" in listed
            assert listed.endswith("ct direction original } }")
            run("nft", "flush", "ruleset")
            run("nft", "-f", "-", text="flush ruleset\ntable inet other {}\ndelete table inet other\n")
        first.close()
        assert run("nft", "list", "ruleset") == ""
        second.hold()
        assert second.held
        second.close()


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_what_is_translated_goes_on(three: World, family: Family) -> None:
    """A redirected connection, when all rules are flushed; without the hook its packets are nobody's."""
    gateway, hook = three.gateway, NatHook()
    with ExitStack() as stack:
        stack.callback(hook.close)
        listener = stack.enter_context(listen(gateway, Endpoint(family.inside, 8021)))
        for held in (True, False):
            gateway.run("nft", "-f", "-", text=REDIRECT)
            with gateway.inside():
                hook.hold() if held else hook.close()
            client = stack.enter_context(connect(three.client, Endpoint(family.server, 21), family.client))
            here = stack.enter_context(accept(listener))
            talk(client, here)
            gateway.run("nft", "flush", "ruleset")
            if held:
                talk(client, here)
                talk(here, client)
                continue
            here.sendall(b"x")
            client.settimeout(1)
            with pytest.raises(TimeoutError):
                client.recv(1)
            here.settimeout(5)
            with pytest.raises(ConnectionResetError):
                here.recv(1)


def test_the_ruleset_is_read_without_it(three: World) -> None:
    """nft's JSON may be broken by a table with an owner; `rules --remove` and `doctor` read all the others."""
    run, hook = three.gateway.run, NatHook()
    with three.gateway.inside(), closing(hook):
        run("nft", "-f", "-", text=REDIRECT)
        assert without(run("nft", "list", "tables")) == [("list", "ruleset")]
        hook.hold()
        assert without(run("nft", "list", "tables")) == [("list", "table", "inet", "other")]
        config = parse('[[service]]\nmode = "gateway"\nname = "x"\nintercept = "none"\nlisten = ["127.0.0.1:8021"]\n')
        assert [base["table"] for base in Machine(config, "x.toml").ruleset.bases] == ["other"]
        run("nft", "add", "rule", "inet", "other", "prerouting", "accept", "comment", f'"{COMMENT}"')
        close_all()
        assert COMMENT not in run("nft", "list", "ruleset")
        run("nft", "flush", "ruleset")
        assert Machine(config, "x.toml").ruleset.bases == []


def test_json_that_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Other tables may have owners: that is said."""
    nft = tmp_path / "nft"
    nft.write_text(
        '#!/bin/sh\ncase "$*" in "list tables") echo table inet firewalld;; *) echo "{\\"a\\": \270}";; esac\n'
    )
    nft.chmod(0o755)
    monkeypatch.setattr("ftpproxy.rules.PATH", str(tmp_path))
    with pytest.raises(RulesError, match=r"before 1\.1\.0"):
        close_all()
