"""Into the background, but not before everything stands.

    parent   forks, and waits for a word of the child      0 when it comes, else the child's exit code
    child    opens, checks, drops what it may ...  ready   then leaves the terminal and says the word

So whatever fails at the start is said on the terminal, and who started us learns it.  The fork comes first, while
there is one thread and nothing is open: kqueue descriptors are not inherited, and trio does not survive a fork.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

__all__ = ["in_background", "point_at_nothing"]

SIGNALLED = 128
"""128 + N, as shells report an end by signal N."""


def in_background(serve: Callable[[Callable[[], None]], int]) -> int:
    """Call `serve(ready)` in a child.  Returns in both: in the parent 0 once the child has called `ready`, or the
    child's exit code if it ended before; in the child what `serve` returned."""
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        os.close(writer)
        return _await(child, reader)
    os.close(reader)

    def ready() -> None:
        os.setsid()
        os.chdir("/")
        point_at_nothing()
        os.write(writer, b".")
        os.close(writer)

    return serve(ready)


def _await(child: int, reader: int) -> int:
    try:
        if os.read(reader, 1):
            return os.EX_OK
        _, status = os.waitpid(child, 0)
    except KeyboardInterrupt:
        os.kill(child, signal.SIGTERM)
        os.waitpid(child, 0)
        raise
    finally:
        os.close(reader)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        print(f"ftpproxy: ended by {signal.Signals(-code).name} at the start", file=sys.stderr)
        return SIGNALLED - code
    return code or 1  # it ended without having served


def point_at_nothing() -> None:
    """Descriptors 0 to 2 lead to /dev/null: nobody reads or writes there any more."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    if null > 2:
        os.close(null)
