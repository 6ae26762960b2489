"""Wait until an FTP server greets: `greeting.py PORT SECONDS ADDRESS...`, run in the namespace that calls it."""

from __future__ import annotations

import socket
import sys
import time


def greeting(address: str, port: int, deadline: float) -> None:
    while True:
        try:
            with socket.create_connection((address, port), timeout=max(0.1, deadline - time.monotonic())) as control:
                if control.recv(4).startswith(b"220"):
                    control.sendall(b"QUIT\r\n")
                    while control.recv(4096):
                        pass
                    return
        except OSError as error:
            if time.monotonic() > deadline:
                sys.exit(f"{address} port {port}: {error}")
            time.sleep(0.02)  # between two looks: a port that is not open yet gives nothing to wait on


if __name__ == "__main__":
    until = time.monotonic() + float(sys.argv[2])
    for each in sys.argv[3:]:
        greeting(each, int(sys.argv[1]), until)
