"""CPython's ftplib as a program: `ftplib_client.py MODE HOST PORT USER PASSWORD SECONDS OPERATION FOLDER NAME...`."""

from __future__ import annotations

import contextlib
import ftplib
import sys
from pathlib import Path


def main(mode: str, host: str, port: str, user: str, password: str, seconds: str, *operation: str) -> None:
    ftp = ftplib.FTP(timeout=float(seconds))
    ftp.set_debuglevel(1)
    ftp.set_pasv(mode == "default")
    with contextlib.redirect_stdout(sys.stderr):  # where its dialogue goes
        ftp.connect(host, int(port))
        ftp.login(user, password)
        perform(ftp, *operation)
        ftp.quit()


def perform(ftp: ftplib.FTP, operation: str, folder: str, *names: str) -> None:
    if operation == "list":
        ftp.retrlines(f"LIST {folder}", lambda line: print(line, file=sys.__stdout__))
    for name in names:
        if operation == "get":
            with Path(name).open("wb") as file:
                ftp.retrbinary(f"RETR {folder}/{name}", file.write)
        elif operation == "resume":
            with Path(name).open("ab") as file:
                ftp.retrbinary(f"RETR {folder}/{name}", file.write, rest=file.tell())
        elif operation == "put":
            with Path(name).open("rb") as file:
                ftp.storbinary(f"STOR {folder}/{Path(name).name}", file)


if __name__ == "__main__":
    main(*sys.argv[1:])
