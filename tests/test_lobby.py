"""Who waits for a port, and for how long."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from ftpproxy.doors import Doors
from ftpproxy.endpoints import Endpoint
from ftpproxy.lobby import PATIENCE, Waiting
from ftpproxy.switchboard import Switchboard

HERE, ELSEWHERE = ip_address("127.0.0.1"), ip_address("127.0.0.2")
CALLER, OTHER = ip_address("127.0.0.9"), ip_address("127.0.0.10")


class Guest:
    """Takes `takes` ports and no more, and writes down what it is told."""

    def __init__(self, doors: Doors, told: list[str], name: str, takes: bool = True) -> None:
        self.told, self.name, self.takes = told, name, takes
        self.waiting: Waiting = doors.lobby.wait([(HERE, CALLER)], self.again, self.in_vain)

    def again(self) -> bool:
        self.told.append(self.name)
        if self.takes:
            self.waiting.close()
        return self.takes

    def in_vain(self) -> None:
        self.told.append(f"{self.name} in vain")


@pytest.fixture
def doors() -> Iterator[Doors]:
    board = Switchboard()
    made = Doors(board)
    yield made
    made.close()
    board.close()


def turns(doors: Doors) -> None:
    for _ in range(5):
        doors.board.turn()


def test_the_first_one_first_and_one_for_each_place(doors: Doors) -> None:
    told: list[str] = []
    for name in "abc":
        Guest(doors, told, name, takes=name != "a")
    places = [doors.reserve(Endpoint(HERE, port), CALLER) for port in (1, 2)]
    places[0]()
    assert told == [], "not within the call that frees it"
    turns(doors)
    assert told == ["a", "b"]
    places[1]()
    turns(doors)
    assert told == ["a", "b", "a", "c"]
    assert len(doors.lobby) == 1


def test_places_of_others_are_nothing_to_it(doors: Doors) -> None:
    told: list[str] = []
    Guest(doors, told, "a")
    doors.reserve(Endpoint(ELSEWHERE, 1), CALLER)()
    doors.reserve(Endpoint(HERE, 1), OTHER)()
    turns(doors)
    assert told == []
    expected = doors.expect(Endpoint(HERE, 0), CALLER)
    expected.close()
    turns(doors)
    assert told == ["a"]


def test_it_gives_up(doors: Doors) -> None:
    told: list[str] = []
    first, second = Guest(doors, told, "a"), Guest(doors, told, "b")
    second.waiting.close()
    doors.board.sweep_now(PATIENCE - 0.1)
    assert told == []
    doors.board.sweep_now(PATIENCE)
    doors.board.sweep_now(PATIENCE + 1)
    assert told == ["a in vain"]
    doors.reserve(Endpoint(HERE, 1), CALLER)()
    turns(doors)
    assert told == ["a in vain"]
    first.waiting.close()


def test_an_internal_error_is_one_guests(doors: Doors, caplog: pytest.LogCaptureFixture) -> None:
    told: list[str] = []
    first, _ = Guest(doors, told, "a"), Guest(doors, told, "b")

    def broken() -> bool:
        raise RuntimeError

    first.waiting.again = broken
    doors.reserve(Endpoint(HERE, 1), CALLER)()
    turns(doors)
    assert told == ["a in vain", "b"]
    assert "internal.error" in caplog.text
    assert len(doors.lobby) == 0
