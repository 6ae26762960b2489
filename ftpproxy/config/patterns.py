"""Regular expressions from the configuration: compiled, and bounded in what they may cost.

A pattern is matched against what a client wrote, by a process that serves everybody.  Python's matcher tries one way
after another, and a pattern such as `(a+)+$` has more ways through forty octets than anybody can wait for.  So the
ways are counted beforehand, an upper bound from the structure of the pattern:

    a sequence      the product of its parts            a|b       the sum
    x{m,n}          w**m + ... + w**n, w ways through x, n at most `filter.LONGEST_ARGUMENT`

and once for each place to start at, where the pattern is not anchored with ^.  `MOST_WAYS` were measured to take
less than a tenth of a second.  In plain words: one of * + {,} in a pattern, two behind ^, and none inside another.
"""

from __future__ import annotations

import re
import warnings
from re import _constants as op  # type: ignore[attr-defined]  # private, but the only way not to parse them ourselves
from re import _parser  # type: ignore[attr-defined]
from typing import Any

from ..pi.filter import LONGEST_ARGUMENT

__all__ = ["MOST_WAYS", "compile_pattern"]

MOST_WAYS = 2**23


def compile_pattern(text: str) -> re.Pattern[bytes]:
    """`text` as a pattern on octets, those of its UTF-8.  Raises `ValueError` with a sentence for what is not one or
    could take too long."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pattern = re.compile(text.encode())
            parsed = _parser.parse(text.encode())
    except re.error as error:
        place = "" if error.pos is None else f" at position {error.pos}"
        raise ValueError(f"is not a regular expression: {error.msg}{place}") from None
    except Warning as warning:
        raise ValueError(f"is not a clear regular expression: {warning}") from None
    except (OverflowError, RecursionError):
        raise ValueError("is not a regular expression: too large") from None
    anchored = bool(parsed.data) and parsed.data[0] in (
        (op.AT, op.AT_BEGINNING),
        (op.AT, op.AT_BEGINNING_STRING),
    )
    multiline = parsed.state.flags & re.MULTILINE
    if _ways(parsed) * (1 if anchored and not multiline else LONGEST_ARGUMENT) > MOST_WAYS:
        raise ValueError("could take too long to match: begin it with ^, and use fewer of * + and none inside another")
    return pattern


def _ways(parsed: Any) -> int:
    """An upper bound of the ways through a sequence, as far as it matters."""
    ways = 1
    for code, argument in parsed:
        ways *= _ways_through(code, argument)
        if ways > MOST_WAYS:
            break
    return ways


def _ways_through(code: Any, argument: Any) -> int:
    if code in (op.MAX_REPEAT, op.MIN_REPEAT, op.POSSESSIVE_REPEAT):
        least, most, inner = argument
        once, ways = _ways(inner), 0
        least, most = min(least, LONGEST_ARGUMENT), min(most, LONGEST_ARGUMENT)
        if once == 1:
            return int(most - least + 1)
        for times in range(least, most + 1):
            ways += once ** min(times, 64)
            if ways > MOST_WAYS:
                break
        return ways
    if code is op.SUBPATTERN:
        return _ways(argument[3])
    if code is op.BRANCH:
        return sum(map(_ways, argument[1]))
    if code in (op.ASSERT, op.ASSERT_NOT):
        return _ways(argument[1])
    if code is op.ATOMIC_GROUP:
        return _ways(argument)
    if code is op.GROUPREF_EXISTS:
        return _ways(argument[1]) + (_ways(argument[2]) if argument[2] else 1)
    return 1
