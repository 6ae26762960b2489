"""`ftpproxy lab`: a network to try things in, and `ftpproxy lab demo`."""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import FrameType
from typing import NoReturn

from .demo import OCTETS, configs, demonstrate, demonstrate_on_loopback, say
from .network import Lab, LabError, Topology, sweep
from .peers import FtpServer
from .proxy import Proxy
from .sandbox import enter_sandbox

__all__ = ["add_arguments", "complaint", "run"]

UNAVAILABLE = 69
"""EX_UNAVAILABLE of sysexits.h."""
NOT_FOUND = 127
SIGNALLED = 128
"""As shells report a command that there is not, and, plus its number, the signal that ended one."""

TOPOLOGIES = {"client": Topology.CLIENT_NAT, "server": Topology.SERVER_NAT, "both": Topology.BOTH_NAT}

_RELAY = ("relay",)

USAGE = """\
%(prog)s [--topology WHO] [--intercept HOW] [--planes LIST] [--no-proxy] [-- COMMAND ...]
       %(prog)s [--planes LIST] demo"""

DESCRIPTION = """\
Build a network in namespaces of this machine: a client, a gateway with NAT and a firewall (or one in front of each
end), and an FTP server that knows the user lab, password lab. Run COMMAND on the client, or a shell where there is
none, and clear everything away when it ends. The network of the machine itself is not touched. Ordinary users need
a kernel that lets them have namespaces (unshare -Urnm); root needs nothing."""

EPILOG = """\
examples:
  ftpproxy lab demo                              every mode through every NAT, without the proxy and with it
  ftpproxy lab --planes nft demo                 the same, the data carried by the kernel
  ftpproxy lab                                   a shell on a client behind NAT
  ftpproxy lab --no-proxy -- curl -P - ftp://198.51.100.21/    active mode, and how it fails
  ftpproxy lab --topology both --intercept redirect -- curl -P - ftp://198.51.100.2/

COMMAND finds the server's addresses in the variables SERVER and SERVER6:
  ftpproxy lab -- sh -c 'curl -sS "ftp://$SERVER/"'

exit codes:
  COMMAND's own, 127 if there is no such program, 128 + N if signal N ended it
  demo: 0 if every case is as it must be, 1 if not
  1 the network could not be built   64 usage   69 something needed is missing   130 interrupted
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Tell `parser` what `ftpproxy lab` takes."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.usage = USAGE
    parser.description = DESCRIPTION
    parser.allow_abbrev = False  # COMMAND may have options too
    parser.epilog = EPILOG
    parser.add_argument("--topology", choices=list(TOPOLOGIES), help="who is behind NAT (default: client)")
    parser.add_argument(
        "--proxy",
        action=argparse.BooleanOptionalAction,
        help="run the proxy on the gateways (default), or show the network as it is without it",
    )
    parser.add_argument(
        "--intercept",
        choices=["tproxy", "redirect"],
        help="how the clients' gateway brings connections to the proxy (default: tproxy)",
    )
    parser.add_argument(
        "--planes",
        type=_planes,
        metavar="LIST",
        help="who carries the data: relay (default), nft, or nft,relay, the first that can",
    )
    parser.add_argument(
        "command", nargs="*", metavar="demo | -- COMMAND", help="the demonstration, or what to run on the client"
    )


def _planes(text: str) -> tuple[str, ...]:
    planes = tuple(text.split(","))
    if unknown := set(planes) - {"nft", "relay"}:
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: choose from nft and relay")
    return planes


def complaint(args: argparse.Namespace, unknown: Sequence[str], argv: Sequence[str]) -> str | None:
    """What is wrong with `argv`, the words behind `lab`, of which `args` and `unknown` were understood and not."""
    if args.command == ["demo"]:
        if (args.topology, args.proxy, args.intercept) != (None, None, None):
            idle = [word for word in argv if word.startswith("--") and not word.startswith("--planes")]
            return f"demo goes through all of that by itself: leave out {', '.join(idle)}"
    elif args.command and ("--" not in argv or list(argv[argv.index("--") + 1 :]) != args.command):
        at = argv.index(args.command[0])
        return f"put -- before COMMAND: ftpproxy lab {shlex.join([*argv[:at], '--', *argv[at:]])}"
    return f"unknown option {unknown[0]}; see ftpproxy lab --help" if unknown else None


def run(args: argparse.Namespace) -> int:
    """Do what `args` say.  Returns an exit code: COMMAND's, the demonstration's, or 69 where no lab can be built."""
    demo = args.command == ["demo"]
    if args.command and not demo and shutil.which(args.command[0], path=_path()) is None:
        print(f"ftpproxy lab: {args.command[0]}: there is no such program", file=sys.stderr)
        return NOT_FOUND
    if importlib.util.find_spec("pyftpdlib") is None:
        print(
            "ftpproxy lab: its FTP server is pyftpdlib, which is missing:"
            f" {sys.executable} -m pip install pyftpdlib (or, in a clone of ftpproxy, pip install '.[lab]')",
            file=sys.stderr,
        )
        return UNAVAILABLE
    try:
        enter_sandbox()
    except LabError as error:
        why = f"{error}."
        if demo:
            return _told(lambda: demonstrate_on_loopback(why))
        print(f"ftpproxy lab: {error}", file=sys.stderr)
        return UNAVAILABLE
    for name in sweep():
        print(f"ftpproxy lab: removed {name}, left over from a lab that was killed", file=sys.stderr)
    return _told(lambda: demonstrate(args.planes or _RELAY) if demo else _open(args))


def _path() -> str:
    """Where a command is looked for: an ordinary user's PATH has no sbin, where ip(8) and nft(8) live."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def _interrupted(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one must not disturb the clearing away
    os.write(sys.stderr.fileno(), b"\nftpproxy lab: interrupted; clearing away\n")
    raise KeyboardInterrupt


def _told(what: Callable[[], int]) -> int:
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupted)
    try:
        return what()
    except LabError as error:
        print(f"\nftpproxy lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _open(args: argparse.Namespace) -> int:
    with ExitStack() as stack:
        lab = stack.enter_context(Lab(TOPOLOGIES[args.topology or "client"]))
        stack.enter_context(FtpServer(lab.server, os.urandom(OCTETS)))
        proxies = {}
        if args.proxy is not False:
            for side, config in configs(lab, args.intercept or "tproxy", args.planes or _RELAY):
                proxies[side] = stack.enter_context(Proxy(lab.gateways[side], config))
        command = args.command or [os.environ.get("SHELL", "/bin/sh")]
        if not args.command:
            say(_guide(lab, proxies))
        environment = os.environ | {"SERVER": lab.server_address(4), "SERVER6": lab.server_address(6)}
        try:
            code = subprocess.run(lab.client.command(*command), env=environment).returncode
            return code if code >= 0 else SIGNALLED - code
        finally:
            if not args.command:
                say("clearing away")


def _guide(lab: Lab, proxies: dict[str, Proxy]) -> str:
    four, six = lab.server_address(4), lab.server_address(6)
    lines = [f"{lab.topology}, {'with' if proxies else 'without'} the proxy", ""]
    for host in lab.hosts:
        where = ", ".join(f"{each.name} {each.ipv4} {each.ipv6}" for each in host.interfaces)
        lines.append(f"  {host.name:15} {where}")
        lines.append(f"  {'':15} ip netns exec {host.namespace} sh")
    lines += [
        "",
        f"The server is found at {four} and {six}; user lab, password lab, a file called sample.",
        "",
        f"  curl -o /dev/null ftp://{four}/sample         # passive",
        f"  curl -P - -o /dev/null ftp://{four}/sample    # active",
        f"  curl -P - -o /dev/null 'ftp://[{six}]/sample'",
        f"  lftp -e 'set ftp:passive-mode off' -u lab,lab {four}",
    ]
    for proxy in proxies.values():
        lines.append(
            f"  tail -f {proxy.file.parent}/log    # the proxy on {proxy.host.name}; ftpproxy.toml lies beside"
        )
        lines.append(f"  ftpproxy top -c {proxy.file}    # its sessions; trace and the others take -c, too")
    return "\n".join([*lines, "", "You are on the client now. `exit` clears everything away."])
