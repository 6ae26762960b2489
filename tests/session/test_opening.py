"""A path that is looked for, and what becomes of a place that was prepared for it."""

from __future__ import annotations

from ipaddress import ip_address

from ftpproxy.carried import Opening
from ftpproxy.dtp.plane import Foreseen
from ftpproxy.endpoints import Endpoint
from ftpproxy.paths import Await, Call, PathSpec
from ftpproxy.reasons import Code, code_of

HOST = ip_address("192.0.2.1")
SPEC = PathSpec(Await(Endpoint(HOST, 0), HOST), Call(Endpoint(HOST, 50000), Endpoint(HOST, 0)))


class Prepared(Foreseen):
    given_back = 0

    def open(self, spec: object, owner: object) -> object:  # type: ignore[override]
        raise AssertionError("nobody is called")

    def close(self) -> None:
        self.given_back += 1


def test_a_way_back_to_us_gives_it_back() -> None:
    prepared = Prepared()
    opening = Opening([], SPEC, lambda _: True, foreseen=prepared)
    assert opening.ask(None) is None  # type: ignore[arg-type]
    assert [code_of(why, Code.INTERNAL) for _, why in opening.refusals] == [Code.LOOP]
    assert not opening.undecided
    assert prepared.given_back == 1
