"""What a configuration says: frozen values, checked elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Literal, NamedTuple, get_args

from attrs import frozen

from ..endpoints import Endpoint, IPAddress
from ..log import Format
from ..pf.anchor import Dialect, RuleOptions, native_dialect
from ..pi.destinations import Destination
from ..pi.policy import IPNetwork, NetworkRule, Policies, Policy, Timeouts

__all__ = [
    "Announce",
    "AnnounceFrom",
    "AnnounceTo",
    "Config",
    "ConfigError",
    "ControlConfig",
    "GatewayConfig",
    "HostName",
    "IPNetwork",
    "Limits",
    "LogConfig",
    "MetricsConfig",
    "PfConfig",
    "PortSpan",
    "Problem",
    "ProcessConfig",
    "ServiceConfig",
    "UnixPath",
]


@frozen
class Problem:
    """One mistake: where in the file (a key path, `line 3, column 5`, or nothing for the file itself) and what."""

    where: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}" if self.where else self.reason


class ConfigError(Exception):
    """The configuration cannot be used.  `problems` has everything that is wrong with it."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = list(problems)
        super().__init__("; ".join(map(str, self.problems)))


class PortSpan(NamedTuple):
    """Ports `first` to `last`, both included: `"20000-29999"` in the file."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"


DEFAULT_DATA_PORTS = PortSpan(20000, 29999)
"""Outside the ephemeral range of Linux (net.ipv4.ip_local_port_range, 32768-60999)."""


class AnnounceFrom(NamedTuple):
    """Where an address that we announce comes from: `"interface:eth0"` in the file."""

    kind: Literal["own", "interface", "name", "file"]
    what: str = ""
    """The name of the interface, the host name or the path."""

    def __str__(self) -> str:
        return f"{self.kind}:{self.what}" if self.what else self.kind


@frozen(kw_only=True)
class Announce:
    """What a side is told instead of our address, where another NAT stands between us and that side."""

    client: IPAddress | AnnounceFrom | None = None
    server: IPAddress | AnnounceFrom | None = None


@frozen(kw_only=True)
class AnnounceTo(Announce):
    """The same for some clients; None: as it is in general."""

    clients: tuple[IPNetwork, ...]


@frozen(kw_only=True)
class Limits:
    """How many sessions a service has at once, in all and from one client address."""

    sessions: int = 1000
    per_client: int = 100


class HostName(NamedTuple):
    """A name of ours and the server behind it: `"mirror=10.0.0.5:21"` in the file."""

    name: str
    server: Endpoint

    def __str__(self) -> str:
        return f"{self.name}={self.server}"


Style = Literal["user@host", "proxyuser@host", "user@host proxyuser", "user@proxyuser@host", "site", "open", "host"]
"""How a client may name its server; `STYLES` of `wishes`."""
ALL_STYLES: tuple[Style, ...] = get_args(Style)


@frozen(kw_only=True)
class GatewayConfig:
    """`[service.gateway]`: whom the clients of gateway mode may name, and how."""

    destinations: tuple[Destination, ...] = ()
    """Empty: nobody."""
    hosts: tuple[HostName, ...] = ()
    styles: tuple[Style, ...] = ALL_STYLES
    users: str = ""
    """The file with the proxy's own users; empty: nobody has to log in to the proxy."""


@frozen(kw_only=True)
class PfConfig:
    """`[service.pf]`: what the rules of the plane "pf" have beside the addresses."""

    tag: str | None = None
    queue: str | None = None
    log: Literal[0, 1, 2] = 0
    rtable: int | None = None
    dialect: Dialect | None = None
    """None: that of the system we run on."""

    @property
    def rules(self) -> RuleOptions | None:
        """None where the system has no pf and no dialect is given."""
        dialect = self.dialect or native_dialect()
        if dialect is None:
            return None
        return RuleOptions(dialect=dialect, tag=self.tag, queue=self.queue, log=self.log, rtable=self.rtable)


Redirection = Literal["tproxy", "redirect", "rdr", "divert", "none"]
"""What rules do with control connections that are addressed to others."""

DEFAULT_POLICY = Policy()
DEFAULT_TIMEOUTS = Timeouts()


@frozen(kw_only=True)
class ServiceConfig:
    """One `[[service]]`: a listener, perhaps of several addresses, with its policy."""

    name: str
    mode: Literal["forward", "reverse", "gateway"]
    listen: tuple[Endpoint, ...]
    intercept: Literal["auto", "tproxy", "redirect", "rdr", "divert", "none"]
    clients: tuple[IPNetwork, ...] = ()
    """Who may use it; empty: everybody."""
    servers: tuple[Endpoint, ...] = ()
    """Reverse mode: whom to call, at most one of each family.  Forward mode: empty."""
    planes: tuple[Literal["nft", "pf", "relay"], ...] = ("relay",)
    """In order of preference."""
    pf: PfConfig = PfConfig()
    data_ports: PortSpan = DEFAULT_DATA_PORTS
    firewall_mark: bool = False
    """Mark the calls that are expected, so that a firewall can let in exactly those."""
    announce: Announce = Announce()
    announce_refresh: float = 60.0
    """Seconds between two looks at an interface or a name whose address is announced."""
    announce_to: tuple[AnnounceTo, ...] = ()
    source: IPAddress | None = None
    """The address we call servers from; None: what the kernel chooses."""
    active_source_port: Literal[0, 20] = 0
    """The port that active data reaches the client from; 0: any."""
    translate: Literal["mirror", "active", "passive"] = "mirror"
    """What the server hears: what the client said, always PORT or EPRT, always PASV or EPSV."""
    proxy_protocol: tuple[IPNetwork, ...] = ()
    """Load balancers, whose connections begin with a PROXY header."""
    send_proxy: Literal["off", "v1", "v2"] = "off"
    """The version of the PROXY header that servers are told the client by."""
    gateway: GatewayConfig = GatewayConfig()
    policy: Policy = DEFAULT_POLICY
    rules: tuple[NetworkRule, ...] = ()
    """Clients with another policy, whole."""
    limits: Limits = Limits()
    timeouts: Timeouts = DEFAULT_TIMEOUTS

    @property
    def needs_table(self) -> bool:
        """Whether our table in nftables must be there for it; with "auto" it is used where we may have it."""
        return self.intercept == "redirect" or "nft" in self.planes or self.firewall_mark

    @property
    def redirection(self) -> Redirection:
        """What our own rules do for it on Linux: `intercept`, and for "auto" what suits its listeners."""
        return self.redirection_on("linux")

    def redirection_on(self, system: str) -> Redirection:
        """The same on `system`, a `sys.platform`."""
        if self.intercept != "auto":
            return self.intercept
        anywhere = any(at.host.is_unspecified for at in self.listen)
        if self.mode == "reverse" and not anywhere and not any(at.host.is_loopback for at in self.listen):
            return "none"
        if system == "linux":
            return "redirect" if anywhere else "tproxy"  # TPROXY wants a specific address
        return "divert" if system.startswith("openbsd") else "rdr"

    @property
    def policies(self) -> Policies:
        return Policies(self.policy, self.rules)


Level = Literal["debug", "info", "notice", "warning", "error", "critical"]


@frozen(kw_only=True)
class LogConfig:
    """`[log]`."""

    level: Level = "info"
    format: Format = "auto"
    """How it is written and where it goes; all but `journald` and those of syslog to standard error."""
    xferlog: str | None = None
    """A file for one line a transferred file, in the form of wu-ftpd."""


class UnixPath(NamedTuple):
    """A Unix socket: `"unix:/run/ftpproxy/metrics"` in the file."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


@frozen(kw_only=True)
class MetricsConfig:
    """`[metrics]`."""

    listen: Endpoint | UnixPath | None = None
    """Where Prometheus may ask; None: nowhere."""
    public: bool = False
    """`listen` may be an address that others reach."""


@frozen(kw_only=True)
class ProcessConfig:
    """`[process]`."""

    user: str | None = None
    """Whom a process that was started as root becomes; empty: it stays root.  None: `ftpproxy`, if there is such a
    user."""
    drain: float = 60.0
    """Seconds that transfers under way have to finish after SIGTERM."""
    keep_nat: bool = True
    """Keep connections translated when somebody flushes all rules (`nathook`)."""


DEFAULT_CONTROL = "/run/ftpproxy/control" if sys.platform == "linux" else "/var/run/ftpproxy/control"


@frozen(kw_only=True)
class ControlConfig:
    """`[control]`: the socket for `ftpproxy status` and the others."""

    socket: str = DEFAULT_CONTROL
    """Empty: there is none."""
    group: str = "ftpproxy"
    """Whose members may look."""


@frozen(kw_only=True)
class Config:
    """A whole file."""

    services: tuple[ServiceConfig, ...]
    log: LogConfig = LogConfig()
    metrics: MetricsConfig = MetricsConfig()
    process: ProcessConfig = ProcessConfig()
    control: ControlConfig = ControlConfig()
