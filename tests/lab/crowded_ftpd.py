"""The lab's FTP server among many sessions: `crowded_ftpd.py --root DIR ...`, as `ftpproxy.lab.ftpd`.

The number of each socket that is closed is a file's at once, as when another session's thread opens one just then.
"""

from __future__ import annotations

import os
import socket
import sys

from ftpproxy.lab.ftpd import main

close = socket.socket.close


def close_and_open(self: socket.socket) -> None:
    number = self.fileno()
    close(self)
    while number >= 0 and os.open(__file__, os.O_RDONLY) < number:
        pass  # open(2) gives the lowest number that is free


if __name__ == "__main__":
    socket.socket.close = close_and_open  # type: ignore[method-assign, assignment]
    sys.exit(main())
