"""Makes the captures of `ftpproxy top` and `ftpproxy trace` in docs/operations.md, from a real run.

    python -m tests.control.captures     as root; takes half a minute; rewrites the blocks between its markers

A client behind NAT fetches and stores files through a gateway of the lab, some by the kernel and some by the relay;
what the two commands print then is what stands in the documentation, and nothing is edited.  What stands out on a
terminal is <b>bold</b> there.
"""

from __future__ import annotations

import html
import re
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from ftpproxy.lab.demo import configs
from ftpproxy.lab.hosts import Host
from ftpproxy.lab.network import Lab, Topology
from ftpproxy.lab.peers import FtpServer, environment
from ftpproxy.lab.proxy import Proxy, forward

__all__ = ["PAGE", "block", "captures"]

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"
PATIENCE = 30.0


def block(name: str, page: str) -> str:
    """What stands on the page between the markers of a capture, as it was printed."""
    found = re.search(rf"<!-- capture: {name} -->\n<pre>\n(.*?)</pre>\n<!-- end -->", page, re.DOTALL)
    assert found is not None, f"no capture {name}"
    return found[1]


def _replaced(name: str, page: str, text: str) -> str:
    old = block(name, page)
    return page.replace(f"<!-- capture: {name} -->\n<pre>\n{old}", f"<!-- capture: {name} -->\n<pre>\n{text}")


def _until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"{what} did not come")
        time.sleep(0.05)


def _ftpproxy(proxy: Proxy, *argv: str) -> str:
    word, *rest = argv
    line = [sys.executable, "-m", "ftpproxy", word, "--socket", str(proxy.socket), *rest]
    return subprocess.run(line, env=environment(), capture_output=True, text=True, check=True).stdout


def _marked(text: str) -> str:
    """Terminal codes as HTML: bold for what stands out, nothing for the rest."""
    text = html.escape(text, quote=False)
    text = re.sub(r"\x1b\[1;7m(.*?)\x1b\[0m", r"<b>\1</b>", text)
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def captures() -> dict[str, str]:
    """The captures by name."""
    with ExitStack() as stack:
        lab = stack.enter_context(Lab(Topology.CLIENT_NAT))
        server = stack.enter_context(FtpServer(lab.server, bytes(1 << 20)))
        for name in ("debian-12.8.0-netinst.iso", "a-thesis-with-many-pictures.pdf", "backup.tar"):
            with (server.root / name).open("wb") as file:
                file.truncate(64 << 20)
        url = f"ftp://lab:lab@{lab.server_address(4)}/"
        return {"top": _top(lab, url), "trace": _trace(lab, url, stack)}


def _top(lab: Lab, url: str) -> str:
    gateway = lab.gateways["client"]
    config = forward(gateway, "tproxy", 'translate = "passive"', planes=("nft", "relay"))
    with ExitStack() as stack:
        proxy = stack.enter_context(Proxy(gateway, config))
        _curl(stack, lab.client, "--limit-rate", "2400k", url + "debian-12.8.0-netinst.iso")
        _curl(stack, lab.client, "--limit-rate", "450k", "-P", "-", url + "a-thesis-with-many-pictures.pdf")
        _curl(stack, lab.client, "--limit-rate", "900k", "-T", "/dev/zero", url + "upload.img")
        stack.enter_context(_idle(lab.client, lab.server_address(4)))
        _until(
            lambda: (top := _ftpproxy(proxy, "top", "--once")).count("B/s ") >= 5 and "idle" in top and "0:" not in top,
            "the transfers",
        )
        time.sleep(4)  # rates that mean something
        text = _ftpproxy(proxy, "top", "--once")
    return "\n".join(line.rstrip() for line in html.escape(text, quote=False).splitlines()) + "\n"


def _trace(lab: Lab, url: str, stack: ExitStack) -> str:
    gateway = lab.gateways["client"]
    with ExitStack() as inner:
        proxy = inner.enter_context(Proxy(gateway, configs(lab, "tproxy")[0][1]))
        client = lab.client.address(4)
        line = f"{sys.executable} -m ftpproxy trace {client} --socket {proxy.socket}"
        # script(1) gives it a terminal, so that it highlights.
        process = subprocess.Popen(
            ["script", "-qfec", line, "/dev/null"],
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        lines = [process.stdout.readline()]  # the legend: it watches
        lab.client.run("curl", "-sS", "--disable-eprt", "-P", "-", "-o", "/dev/null", url + "sample", check=True)
        while "session.close" not in lines[-1]:
            lines.append(process.stdout.readline())
        process.kill()
        process.wait()
        process.stdout.close()
    return _marked("".join(lines).replace("\r", ""))


def _curl(stack: ExitStack, client: Host, *argv: str) -> None:
    process = client.popen("curl", "-s", "-o", "/dev/null", *argv)
    stack.callback(process.wait)
    stack.callback(process.kill)


def _idle(client: Host, server: str) -> ExitStack:
    """Somebody who has logged in and does nothing."""
    script = f"""
import ftplib, sys
ftp = ftplib.FTP("{server}")
ftp.login("anonymous", "x@example.org")
sys.stdin.read()
"""
    process = client.popen(sys.executable, "-c", script, stdin=subprocess.PIPE)
    stack = ExitStack()
    stack.callback(process.communicate)
    return stack


def main() -> None:
    page = PAGE.read_text()
    for name, text in captures().items():
        page = _replaced(name, page, text)
    PAGE.write_text(page)


if __name__ == "__main__":
    main()
