"""The fuzz targets pass on where fuzzing begins, and on some thousand inputs behind that."""

from __future__ import annotations

import pytest

from .ends import MOST_HELD, Ends
from .mutations import Mutator
from .seeds import seeds
from .targets import TARGETS

INPUTS = 2000


@pytest.mark.parametrize("name", TARGETS)
def test_the_seeds_pass(name: str) -> None:
    for seed in seeds(name):
        TARGETS[name](seed)


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_made_of_them_passes(name: str) -> None:
    """Items 1, 2, 3, 4, 45: whatever is said, and however it is cut."""
    mutator = Mutator(seeds(name), records=name == "interpreter", seed=20021)
    for _ in range(INPUTS):
        data = mutator.next()
        try:
            TARGETS[name](data)
        except Exception as error:
            error.add_note(f"the input: {data!r}")
            raise


def test_a_flood_is_held_in_bounds() -> None:
    """Items 3, 45: lines, replies and commands without end from both sides."""
    ends = Ends()
    long = b"CNOOP " + b"x" * 8000 + b"\r\n"
    flood = [
        b"S220 hi\r\n",
        *[long] * 100,
        b"LC\xff\xffNOOP\r\n",
        b"LS\xff\xff227-x\r\n",
        b"LC\xff\xffx",
        b"LS\xff\xffy",
    ]
    ends.feed(b"\x1e".join([b"\0\0\0", *flood]))
    assert 0 < ends.most_held <= MOST_HELD
