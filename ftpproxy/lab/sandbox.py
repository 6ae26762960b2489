"""Where the lab may be built: here, or below `unshare` as root of a user namespace of one's own (unshare(1))."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from .hosts import LabError
from .network import PREFIX, delete

__all__ = ["SANDBOX", "enter_sandbox"]

SANDBOX = "FTPPROXY_LAB_SANDBOX"
"""Set in the environment of a process that runs below `unshare`."""

_PRELUDE = """
mount -t tmpfs tmpfs /run
mkdir /run/netns
exec "$@"
"""


def enter_sandbox() -> None:
    """Return when this process may make namespaces; where it may not, run the whole command again where it may.

    Root needs nothing.  Anybody else becomes root of a user namespace of his own (unshare(1), `-Urnm`), with a
    private /run for ip-netns(8); this function does not return then.  Raises `LabError` where neither is possible.
    """
    path = os.environ.get("PATH", os.defpath).split(os.pathsep)
    # An ordinary user of Debian has no sbin in the path, where nft(8) lives.
    os.environ["PATH"] = os.pathsep.join(path + [extra for extra in ("/usr/sbin", "/sbin") if extra not in path])
    missing = [tool for tool in ("ip", "nft") if shutil.which(tool) is None]
    if missing:
        raise LabError(f"the lab needs {' and '.join(missing)}: install iproute2 and nftables")
    probe = f"{PREFIX}-{os.getpid()}-0-probe"
    # All that a lab does and that a container may forbid; /proc/sys is often read-only there.
    inside = "nft list ruleset && echo 1 > /proc/sys/net/ipv4/ip_forward"
    script = f"ip netns add {probe} && ip netns exec {probe} sh -c '{inside}' && ip netns delete {probe}"
    why = ""
    if os.geteuid() == 0:
        trial = subprocess.run(["sh", "-c", script], text=True, capture_output=True)
        if trial.returncode == 0:
            return
        delete([probe])
        why = trial.stderr.strip()
    if SANDBOX not in os.environ and shutil.which("unshare") is not None:
        unshare = ["unshare", "-Urnm", "sh", "-e", "-c", _PRELUDE, "sh"]
        trial = subprocess.run([*unshare, "sh", "-c", script], text=True, capture_output=True)
        if trial.returncode == 0:
            os.environ[SANDBOX] = "1"
            sys.stdout.flush()
            sys.stderr.flush()
            os.execvp("unshare", [*unshare, sys.executable, *sys.orig_argv[1:]])
        why = why or trial.stderr.strip()
    raise LabError(
        f"this system does not let us make network namespaces, as root or by unshare -Urnm ({why or 'not root'})"
    )
