"""The lab's FTP client: one transfer with one verb, told in one line of JSON.

    python -m ftpproxy.lab.ftpc ADDRESS --verb PASV|EPSV|PORT|EPRT --get NAME
    python -m ftpproxy.lab.ftpc ADDRESS --verb ... --put FILE --as NAME

It is Python's ftplib, except that the verb is ours to choose: ftplib itself sends EPSV and EPRT over IPv6 only.
The line has `ok`, `sha256` and `octets` of what went over the wire, `seconds`, and `error` (empty if ok).
"""

from __future__ import annotations

import argparse
import ftplib
import hashlib
import json
import socket
import sys
import time

__all__ = ["VERBS", "main"]

VERBS = ("PORT", "EPRT", "PASV", "EPSV")
BLOCK = 64 * 1024


class Client(ftplib.FTP):
    """ftplib with a chosen verb."""

    def __init__(self, verb: str, *, timeout: float, obey: bool) -> None:
        super().__init__(timeout=timeout)
        self.verb = verb
        self.trust_server_pasv_ipv4_address = obey
        self.set_pasv(verb in ("PASV", "EPSV"))

    def makepasv(self) -> tuple[str, int]:
        assert self.sock is not None
        if self.verb == "EPSV":
            host, port = ftplib.parse229(self.sendcmd("EPSV"), self.sock.getpeername())
            return host, port
        host, port = ftplib.parse227(self.sendcmd("PASV"))
        return host if self.trust_server_pasv_ipv4_address else self.sock.getpeername()[0], port

    def makeport(self) -> socket.socket:
        assert self.sock is not None
        host = self.sock.getsockname()[0]
        listener = socket.create_server((host, 0), family=self.sock.family, backlog=1)
        try:
            port = listener.getsockname()[1]
            if self.verb == "EPRT":
                self.sendeprt(host, port)
            else:
                self.sendport(host, port)
        except BaseException:
            listener.close()
            raise
        listener.settimeout(self.timeout)
        return listener


def main(argv: list[str] | None = None) -> int:
    """Transfer, print the line, return 0 if the transfer went well and 1 if not."""
    parser = argparse.ArgumentParser(prog="python -m ftpproxy.lab.ftpc", description="the lab's FTP client")
    parser.add_argument("address")
    parser.add_argument("--port", type=int, default=21)
    parser.add_argument("--verb", choices=VERBS, required=True)
    parser.add_argument("--get", metavar="NAME", help="retrieve NAME (and only take its checksum)")
    parser.add_argument("--put", metavar="FILE", help="store FILE")
    parser.add_argument("--as", dest="name", metavar="NAME", help="how FILE is called there")
    parser.add_argument("--obey", action="store_true", help="call the address in the reply to PASV, whatever it is")
    parser.add_argument("--timeout", type=float, default=5.0, metavar="SECONDS", help="of each single step")
    parser.add_argument("--user", default="lab")
    parser.add_argument("--password", default="lab")
    args = parser.parse_args(argv)
    if (args.get is None) == (args.put is None):
        parser.error("either --get or --put")

    digest = hashlib.sha256()
    octets = 0

    def passed(block: bytes) -> None:
        nonlocal octets
        digest.update(block)
        octets += len(block)

    started = time.monotonic()
    error = ""
    client = Client(args.verb, timeout=args.timeout, obey=args.obey)
    try:
        client.connect(args.address, args.port)
        client.login(args.user, args.password)
        if args.get is not None:
            client.retrbinary(f"RETR {args.get}", passed, blocksize=BLOCK)
        else:
            with open(args.put, "rb") as file:
                client.storbinary(f"STOR {args.name or 'stored'}", file, blocksize=BLOCK, callback=passed)
        client.quit()
    except (ftplib.Error, OSError, EOFError) as failure:
        error = str(failure) or type(failure).__name__
    finally:
        client.close()
    outcome = {
        "ok": not error,
        "sha256": digest.hexdigest(),
        "octets": octets,
        "seconds": round(time.monotonic() - started, 3),
        "error": error,
    }
    print(json.dumps(outcome), flush=True)
    return 1 if error else 0


if __name__ == "__main__":
    sys.exit(main())
