"""The trap: a foreign FTP test suite, as it is, with the proxy between its client and its server.

Theory of operation.  A suite's client and server are usually one program that talks to itself over loopback, at ports
that nobody can know beforehand, and it has no setting for a proxy.  But it runs as one user, and the kernel knows
which user a packet belongs to.  So in a network namespace of its own

    suite (uid U)  --- any TCP port but the proxy's data ports --->  redirected to the proxy (root), port 8021
    proxy (root)   --- whatever it calls: the suite's server, the suite's client --->  goes where it should
    suite (uid U)  --- 40000-49999, the proxy's data ports: what 227 or PORT told it --->  goes where it should

The proxy is `forward`, `intercept = "redirect"`, which leads one's own packets to loopback, and it finds by
SO_ORIGINAL_DST which of the suite's servers was meant.  For the rule to tell by ports who is who, nobody else may use
the proxy's: ip_local_port_range of the namespace, from which the suite's sockets get theirs, is 10000-19999.

Any suite in any language can be run so, if its addresses are loopback ones.  Two switches of the policy are open,
because dummy servers are no FTP servers: data connections before a login, and greetings that are no replies.
"""

from __future__ import annotations

import itertools
import os
import re
import subprocess
from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from ftpproxy.lab.hosts import Host, Interface, LabError
from ftpproxy.lab.network import PREFIX, delete
from ftpproxy.lab.proxy import Proxy

__all__ = ["UID", "Trap"]

UID = 20022
"""The suite's user: a number that no user of the machine has."""
DATA_PORTS = "40000-49999"
EPHEMERAL = "10000 19999"
PORT = 8021

RULES = f"""
table inet trap {{
    chain output {{
        type nat hook output priority -100; policy accept;
        meta skuid {UID} tcp dport != {DATA_PORTS} redirect to :{PORT}
    }}
}}
"""

SERVICE = f"""
[[service]]
name = "trap"
mode = "forward"
listen = ["0.0.0.0:{PORT}", "[::]:{PORT}"]
intercept = "redirect"
clients = ["127.0.0.0/8", "::1/128"]
data_ports = "{DATA_PORTS}"
policy = {{ require_login = false, greeting = "lenient" }}
"""

_numbers = itertools.count(1)
_OPENED = re.compile(r"^\S+ info session\.open .*\bclient=(\S+)", re.MULTILINE)
_TRANSFER = re.compile(r"^\S+ info transfer ", re.MULTILINE)


class Trap:
    """A namespace with the rule and the proxy, from `with` to the end of the block.  Raises `LabError`.

    `more` are further lines of the proxy's `[[service]]`.  Without `proxy` there is only the rule: nothing answers.
    Without `rule` there is only the namespace: the suite is by itself.
    """

    def __init__(self, *more: str, proxy: bool = True, rule: bool = True) -> None:
        self._config = SERVICE + "".join(f"{line}\n" for line in more) if proxy else None
        self._rule = rule
        self._stack = ExitStack()
        self.proxy: Proxy | None = None
        self.host = Host(
            "trap",
            f"{PREFIX}-{os.getpid()}-trap{next(_numbers)}",
            (Interface("lo", "127.0.0.1/8", "::1/128"),),
        )

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            made = subprocess.run(["ip", "netns", "add", self.host.namespace], capture_output=True, text=True)
            if made.returncode:
                raise LabError(f"no namespace: {made.stderr.strip()}")
            stack.callback(self._clear)
            self._sh(f"ip link set lo up; echo {EPHEMERAL} > /proc/sys/net/ipv4/ip_local_port_range")
            if self._rule:
                self._sh(f"nft -f - <<'END'\n{RULES}\nEND\n")
            if self._config is not None:
                self.proxy = stack.enter_context(Proxy(self.host, self._config))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.close()

    def suite(
        self, *argv: str, environment: Mapping[str, str], cwd: str = "/", seconds: float = 100
    ) -> subprocess.CompletedProcess[str]:
        """Run `argv` as the suite's user, standard error and output in one.  Raises `subprocess.TimeoutExpired`."""
        own = str(UID)
        return self.host.run(
            "setpriv", "--reuid", own, "--regid", own, "--clear-groups", *argv,
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", **environment},
            cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=seconds,
        )  # fmt: skip

    @property
    def log(self) -> str:
        """What the proxy wrote so far."""
        return self.proxy.log if self.proxy is not None else ""

    @property
    def sessions(self) -> int:
        """How many sessions the proxy opened."""
        return len(_OPENED.findall(self.log))

    @property
    def transfers(self) -> int:
        """How many data connections it carried."""
        return len(_TRANSFER.findall(self.log))

    def _sh(self, script: str) -> None:
        done = self.host.run("sh", "-e", input=script)
        if done.returncode or done.stderr:
            raise LabError(f"the trap cannot be set: {done.stderr.strip()}")

    def _clear(self) -> None:
        delete([self.host.namespace])
        for child in self.host.children:
            child.wait()
