"""Inputs without end: the seeds, cut up, mixed and damaged at random.

Nothing here learns from what an input did, as libFuzzer does; it makes up for that by knowing what a record is
and by needing no instrumentation, so that a million inputs are a matter of minutes.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from .ends import RECORD, STEPS
from .seeds import TOKENS

__all__ = ["Mutator"]

MOST_RECORDS = 60
MOST_CHANGES = 6
LONG = 500
"""One in so many records is one that goes on and on."""

_LETTERS = [bytes([letter]) for letter in STEPS]
_EVENTS = [
    b"U",
    b"V",
    b"F",
    b"D",
    b"X",
    b"EC",
    b"ES",
    *(b"P%c" % how for how in range(4)),
    *(b"T%c" % n for n in range(8)),
]


class Mutator:
    """The same `seed` gives the same inputs."""

    def __init__(self, seeds: Sequence[bytes], *, records: bool, seed: int) -> None:
        """`records`: the inputs are those of the interpreter (see `ends`)."""
        self._seeds = list(seeds)
        self._records = records
        self._random = Random(seed)
        self._lives = [seed.split(RECORD)[1:] for seed in self._seeds]

    def next(self) -> bytes:
        """Another input."""
        return self._life() if self._records else self._damaged(self._random.choice(self._seeds))

    def _life(self) -> bytes:
        random = self._random
        records = list(random.choice(self._lives))
        for _ in range(random.randint(1, MOST_CHANGES)):
            self._change(records)
        how = bytes((random.randrange(256), random.randrange(256), random.randrange(256)))
        return RECORD.join([how, *records[:MOST_RECORDS]])

    def _change(self, records: list[bytes]) -> None:
        random = self._random
        at = random.randrange(len(records) + 1)
        choice = random.randrange(8)
        if choice == 0:
            del records[at : at + random.randint(1, 3)]
        elif choice == 1:
            records[at:at] = records[max(0, at - random.randint(1, 4)) : at]
        elif choice == 2:
            other = random.choice(self._lives)
            start = random.randrange(len(other) + 1)
            records[at:] = other[start:]
        elif choice == 3:
            records.insert(at, random.choice(_EVENTS))
        elif choice == 4:
            records.insert(at, random.choice((b"C", b"S")) + b"".join(random.choices(TOKENS, k=random.randint(1, 6))))
        elif choice == 5 and records:
            other_at = random.randrange(len(records))
            at = min(at, len(records) - 1)
            records[at], records[other_at] = records[other_at], records[at]
        elif choice == 6 and random.randrange(LONG) == 0:
            many = random.randrange(1, 1 << random.randint(1, 16))
            records.insert(at, b"L" + random.choice((b"C", b"D")) + many.to_bytes(2, "big") + random.choice(TOKENS))
        elif records:
            at = min(at, len(records) - 1)
            records[at] = self._damaged(records[at])

    def _damaged(self, octets: bytes) -> bytes:
        random = self._random
        damaged = bytearray(octets)
        for _ in range(random.randint(1, 3)):
            at = random.randrange(len(damaged) + 1)
            choice = random.randrange(5)
            if choice == 0:
                damaged[at:at] = random.choice(TOKENS)
            elif choice == 1:
                damaged[at:at] = random.randbytes(random.randint(1, 4))
            elif choice == 2:
                del damaged[at : at + random.randint(1, 8)]
            elif choice == 3 and damaged:
                damaged[min(at, len(damaged) - 1)] = random.randrange(256)
            else:
                start = random.randrange(len(damaged) + 1)
                damaged[at:at] = damaged[start : start + random.randint(1, 16)]
        return bytes(damaged)
