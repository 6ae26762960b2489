"""`python -m bench.start`: how long a client of an inetd waits for the greeting.  JSON on standard output.

A process is started for each connection, as inetd does, with the connection as its descriptors 0 to 2.  The time runs
from connect() to the first octet of the server's greeting, which came through the proxy.  The server, here in a thread,
says it at once.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

GREETING = b"220 ready\r\n"
FILE = """\
[process]
user = ""
[[service]]
name      = "one"
mode      = "reverse"
intercept = "none"
listen    = ["127.0.0.1:2"]
servers   = ["127.0.0.1:{port}"]
"""


def greet(listener: socket.socket) -> None:
    while True:
        sock, _ = listener.accept()
        sock.sendall(GREETING)
        threading.Thread(target=lambda sock=sock: (sock.recv(1), sock.close()), daemon=True).start()


def greeted(argv: list[str]) -> float:
    """Seconds until the greeting, of a process with `argv`."""
    with socket.create_server(("127.0.0.1", 0)) as inetd:
        before = time.perf_counter()
        with socket.create_connection(inetd.getsockname()) as client:
            accepted, _ = inetd.accept()
            end = accepted.fileno()
            with accepted, subprocess.Popen(argv, stdin=end, stdout=end, stderr=end) as process:
                accepted.close()
                said = client.recv(100)
                seconds = time.perf_counter() - before
                client.close()
                process.wait()
    if said != GREETING:
        raise SystemExit(f"not the greeting: {said!r}")
    return seconds


def ended(argv: list[str]) -> float:
    """Seconds until a process with `argv` has ended."""
    before = time.perf_counter()
    subprocess.run(argv, check=True)
    return time.perf_counter() - before


def milliseconds(measure: Callable[[list[str]], float], argv: list[str], times: int) -> dict[str, float]:
    taken = sorted(1000 * measure(argv) for _ in range(times))
    return {"median": round(statistics.median(taken), 1), "best": round(taken[0], 1), "worst": round(taken[-1], 1)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.start", description=__doc__)
    parser.add_argument("--times", type=int, default=20, help="processes of each kind (20)")
    times = parser.parse_args().times
    with socket.create_server(("127.0.0.1", 0)) as server, tempfile.TemporaryDirectory() as folder:
        threading.Thread(target=greet, args=(server,), daemon=True).start()
        port = server.getsockname()[1]
        file = Path(folder) / "ftpproxy.toml"
        file.write_text(FILE.format(port=port))
        proxy = [sys.executable, "-m", "ftpproxy"]
        flags = [*proxy, "--inetd", "-R", "127.0.0.1", "-P", str(port)]
        result = {
            "unit": "ms",
            "python": milliseconds(ended, [sys.executable, "-c", ""], times),
            "file": milliseconds(greeted, [*proxy, "serve", "--inetd", "-c", str(file)], times),
            "flags": milliseconds(greeted, flags, times),
        }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
