"""`ftpproxy lab`: a network to try things in, and `ftpproxy lab demo`."""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack

from .demo import OCTETS, configs, demonstrate, demonstrate_on_loopback, say
from .network import Lab, LabError, Topology, sweep
from .peers import FtpServer
from .proxy import Proxy
from .sandbox import enter_sandbox

__all__ = ["add_arguments", "run"]

UNAVAILABLE = 69
"""EX_UNAVAILABLE of sysexits.h."""

TOPOLOGIES = {"client": Topology.CLIENT_NAT, "server": Topology.SERVER_NAT, "both": Topology.BOTH_NAT}

DESCRIPTION = """\
Builds a network in namespaces of this machine: a client, a gateway with NAT and a firewall (or one in front of each
end), and an FTP server with the user lab, password lab. Then it runs COMMAND on the client, or a shell, and clears
everything away when that ends. Nothing of the machine's own network is touched. Root is not needed where the
kernel lets users have namespaces (unshare -Urnm)."""

EPILOG = """\
examples:
  ftpproxy lab demo                              every mode through every NAT, without the proxy and with it
  ftpproxy lab                                   a shell on a client behind NAT
  ftpproxy lab --no-proxy -- curl -P - ftp://198.51.100.21/    active mode, and how it fails
  ftpproxy lab --topology both --intercept redirect -- curl -P - ftp://198.51.100.2/

The variables SERVER and SERVER6 hold the addresses that a client dials."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Tell `parser` what `ftpproxy lab` takes."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = DESCRIPTION
    parser.epilog = EPILOG
    parser.add_argument(
        "--topology", choices=list(TOPOLOGIES), default="client", help="who is behind NAT (default: client)"
    )
    parser.add_argument(
        "--proxy",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="run the proxy on the gateways (default), or show the network as it is without",
    )
    parser.add_argument(
        "--intercept",
        choices=["tproxy", "redirect"],
        default="tproxy",
        help="how the clients' gateway brings connections to the proxy (default: tproxy)",
    )
    parser.add_argument(
        "command", nargs="*", metavar="demo | -- COMMAND", help="the demonstration, or what to run on the client"
    )


def run(args: argparse.Namespace) -> int:
    """Do what `args` say.  Returns an exit code: COMMAND's, the demonstration's, or 69 where no lab can be built."""
    demo = args.command == ["demo"]
    if importlib.util.find_spec("pyftpdlib") is None:
        print(
            "ftpproxy lab: its FTP server is pyftpdlib, which is missing: pip install 'ftpproxy[lab]'", file=sys.stderr
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
    return _told(demonstrate if demo else lambda: _open(args))


def _told(what: Callable[[], int]) -> int:
    try:
        return what()
    except LabError as error:
        print(f"\nftpproxy lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _open(args: argparse.Namespace) -> int:
    with ExitStack() as stack:
        lab = stack.enter_context(Lab(TOPOLOGIES[args.topology]))
        stack.enter_context(FtpServer(lab.server, os.urandom(OCTETS)))
        proxies = {}
        if args.proxy:
            for side, config in configs(lab, args.intercept):
                proxies[side] = stack.enter_context(Proxy(lab.gateways[side], config))
        command = args.command or [os.environ.get("SHELL", "/bin/sh")]
        if not args.command:
            say(_guide(lab, proxies))
        environment = os.environ | {"SERVER": lab.server_address(4), "SERVER6": lab.server_address(6)}
        try:
            return subprocess.run(lab.client.command(*command), env=environment).returncode
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
    return "\n".join([*lines, "", "You are on the client now. `exit` clears everything away."])
