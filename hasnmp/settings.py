"""The configuration as frozen values, every default filled in. `config.py` makes them from a file; nothing else does.

Durations carry their unit in the name. Paths are absolute; addresses are in the form that the socket calls give back
(2001:db8::1, never 2001:DB8:0::1), so that they can be compared as text.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import Any

from hasnmp.model import Failback


@dataclass(frozen=True, slots=True)
class FenceLevel:
    """One way to end a node from outside; a node's levels are tried in order.

    agent: a fence agent's program (fence_ipmilan...), or "pill": the poison pill over the lease disk, built in.
    cuts: power (the node is off), disk (it can't write to the shared disk any more), network (only its clients are gone:
    that does not count for a group with a disk). action: reboot = off, verified, then on again; off = it stays off.
    """

    agent: str
    cuts: str  # "power" | "disk" | "network"
    timeout_ms: int = 20000  # of the whole level: off, its verification, on
    action: str = "reboot"  # "reboot" | "off"
    options: dict[str, str] = field(default_factory=dict)  # key=value for the agent's standard input
    secrets: dict[str, str] = field(
        default_factory=dict, repr=False
    )  # the same, out of files: `password_file` -> password


@dataclass(frozen=True, slots=True)
class NodeSettings:
    name: str
    links: dict[str, str]  # link name -> this node's address on it, in the file's order
    fence: tuple[FenceLevel, ...] = ()


@dataclass(frozen=True, slots=True)
class Heartbeat:
    port: int = 5405
    interval_ms: int = 200
    late_after_ms: int = 500
    dead_after_ms: int = 1000
    startup_wait_ms: int = 5000
    max_clock_drift_ppm: int = 10000
    kill_ms: int = 150
    keys: tuple[bytes, ...] = field(default=(), repr=False)  # the first signs, all verify
    key_files: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Arbiter:
    type: str  # "disk" | "fence" | "none"
    device: str = ""
    lease_ms: int = 3000
    io_timeout_ms: int = 500
    accept_split_brain: bool = False


@dataclass(frozen=True, slots=True)
class Check:
    """How a service is checked. type: process (the program itself lives), command, tcp, http, sql, report, address, filesystem,
    monitor (an OCF agent's own)."""

    type: str = "process"
    every_ms: int = 5000
    timeout_ms: int = 3000
    fail_after: int = 1
    command: tuple[str, ...] = ()  # type command
    host: str = ""  # tcp: an IP address, so that no name look-up can block the engine
    port: int = 0  # tcp
    send: str = ""  # tcp
    expect: str = ""  # tcp, http: must occur in the answer; sql: the first column of the first row, as text
    url: str = ""  # http; sql: as SQLAlchemy reads it, without a password
    status: int = 0  # http: the status wanted; 0 = any of 200..399
    query: str = ""  # sql
    password: bytes = field(default=b"", repr=False)  # sql: out of password_file
    user: str = ""  # sql: who the checker runs as; "" = the daemon's own user
    report_within_ms: int = 0  # passive
    depth: int = 0  # monitor: OCF_CHECK_LEVEL


@dataclass(frozen=True, slots=True)
class OnFailure:
    restart: int = 3
    within_s: int = 900
    then: str = "failover"  # failover | stop | ignore


@dataclass(frozen=True, slots=True)
class Service:
    name: str
    group: str
    agent: str  # "exec" | "address" | "filesystem" | "passive" | "ocf:PROVIDER:NAME" | "systemd:UNIT"
    options: dict[str, Any]  # validated and completed by config.py for the agent's kind; see there
    critical: bool = True
    check: Check = Check()
    start_timeout_ms: int = 20000
    stop_timeout_ms: int = 20000
    on_failure: OnFailure = OnFailure()
    secrets: dict[str, str] = field(default_factory=dict, repr=False)  # ocf: options out of files: `NAME_file` -> NAME
    # ocf: the times that the file does not give ("start_timeout_ms", "check.every_ms"...): the agent's own metadata may
    unset: tuple[str, ...] = ()
    endpoint_port: int = 0  # told to clients that ask where it is; 0 = they know

    @property
    def kind(self) -> str:
        """The agent's first word: ocf for "ocf:heartbeat:pgsql"."""
        return self.agent.partition(":")[0]

    @property
    def unit(self) -> str:
        """The systemd unit that it is, with its suffix; "" if none."""
        kind, _, name = self.agent.partition(":")
        return "" if kind != "systemd" else name if name.endswith(".service") else f"{name}.service"

    @property
    def ip(self) -> str:
        """The address that it puts on an interface, without a prefix length; "" if it puts none."""
        option = {"address": "ip", "ocf:heartbeat:IPv6addr": "ipv6addr"}.get(self.agent)
        if self.agent in ("ocf:heartbeat:IPaddr2", "ocf:heartbeat:IPaddr"):
            option = "ip"
        text = str(self.options.get(option or "", "")).partition("/")[0]
        try:
            return str(ipaddress.ip_address(text)) if text else ""
        except ValueError:
            return ""

    @property
    def mounts(self) -> tuple[str, str] | None:
        """Device and folder of the file system that it mounts, None if it mounts none."""
        if self.agent not in ("filesystem", "ocf:heartbeat:Filesystem") or "directory" not in self.options:
            return None
        directory = str(self.options["directory"])
        return str(self.options.get("device", "")), directory.rstrip("/") or directory


@dataclass(frozen=True, slots=True)
class Group:
    name: str
    nodes: tuple[str, ...]  # who may run it, first choice (home) first
    services: tuple[Service, ...]  # in start order
    failback: Failback = Failback.MANUAL
    failover_limit: int = 3
    failover_within_s: int = 3600
    # Does anything of it write to storage that other nodes reach? Then silence and a lapsed lease are not enough to take it
    # (design rule 6). Default: yes if it has a filesystem.
    disk: bool = False
    accept_unfenced_disk: bool = False  # the administrator takes that risk: it is taken like a group without a disk
    on_stop_failure: str = "block"  # "block" | "fence": a node that can't stop it is fenced by the next one
    # While its nodes are being changed (Config.webs): who of the old and the new ones may not take it meanwhile.
    also: tuple[str, ...] = ()

    def asked(self) -> tuple[str, ...]:
        """Whose promise, or record on the lease disk, a lease of it has to do with: more than may run it, for a while."""
        return (*self.nodes, *self.also)


@dataclass(frozen=True, slots=True)
class MibView:
    """A part of the MIB: subtrees by the names of config_views.SUBTREES or by OID, where * is any number. The longest
    subtree that fits a name decides."""

    name: str
    include: tuple[str, ...]
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SnmpUser:
    name: str
    auth: str  # md5 | sha | sha224 | sha256 | sha384 | sha512
    priv: str  # des | aes128 | aes192 | aes256 | aes192c | aes256c | "" (authNoPriv is accepted; noAuthNoPriv never)
    access: str  # "read" | "operate" | "admin"
    auth_secret: bytes = field(default=b"", repr=False)
    priv_secret: bytes = field(default=b"", repr=False)
    view: MibView | None = None  # what it may read and be told; None: what `access` gives
    write_view: MibView | None = None  # what it may SET, if `access` lets it SET at all
    networks: tuple[str, ...] = ()  # from: source networks; () = anywhere


@dataclass(frozen=True, slots=True)
class Community:
    access: str  # "read" | "operate" | "admin"
    networks: tuple[str, ...]  # from: source networks; () = anywhere
    secret: bytes = field(default=b"", repr=False)
    label: str = ""  # how it is called where its name, a secret, must not stand; "" = community-N
    view: MibView | None = None
    write_view: MibView | None = None


@dataclass(frozen=True, slots=True)
class Receiver:
    """A notification receiver: address is "host:port" or "[v6]:port"."""

    to: str
    version: str  # "1" | "2c" | "3"
    user: str = ""
    community: bytes = field(default=b"", repr=False)
    type: str = "trap"  # "trap" | "inform"
    timeout_ms: int = 1500  # of an inform's first try; each further one waits twice as long
    retries: int = 5  # after so many more the receiver counts as away
    min_severity: str = "info"  # "info" | "warning" | "minor" | "major" | "critical": what is less is not sent to it
    enabled: bool = True
    name: str = ""  # how it is called; "": as its address, version and type make it


@dataclass(frozen=True, slots=True)
class Throttle:
    """What holds a storm of notifications back; the event ring and the log keep everything."""

    same_within_ms: int = 1000  # the same kind about the same object at most once within this; 0 = no such limit
    per_minute: int = 600  # all of them together


@dataclass(frozen=True, slots=True)
class Snmp:
    listen: tuple[str, ...] = ("127.0.0.1:1161",)
    users: tuple[SnmpUser, ...] = ()
    communities: tuple[Community, ...] = ()
    notify: tuple[Receiver, ...] = ()
    allow_insecure_set: bool = False
    alive_s: int = 0
    throttle: Throttle = Throttle()
    views: tuple[MibView, ...] = ()
    agentx: str = ""  # the master of the host that this agent is a subagent of: a path, or tcp:ADDRESS:PORT; "": none
    agentx_access: str = "read"  # "read" | "operate": what that master may ask for, whoever asks it
    backlog: int = 10_000  # notifications kept for a receiver that is away
    authentication_traps: bool = False  # snmpEnableAuthenTraps


@dataclass(frozen=True, slots=True)
class ClientKey:
    """Who may ask by UDP who runs a service (wire_clients.py). networks: from; () = anywhere. report: the passive services
    that its holder may report on."""

    name: str
    secrets: tuple[bytes, ...] = field(default=(), repr=False)  # all verify; an answer is signed as its request was
    networks: tuple[str, ...] = ()
    report: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Clients:
    listen: tuple[str, ...] = ()  # () = nobody is answered
    keys: tuple[ClientKey, ...] = ()


@dataclass(frozen=True, slots=True)
class Hook:
    """A program that is run at a transition (before_start, before_stop, after_stop) or an event (takeover_completed, ...).

    groups: only for these, where it concerns a group; () = all. required: a failure stops the transition.
    """

    on: str
    run: tuple[str, ...]
    timeout_ms: int = 5000
    required: bool = False
    groups: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Control:
    socket: str = "/run/hasnmp/control.sock"
    group: str = ""  # "" = the daemon's own group only


@dataclass(frozen=True, slots=True)
class Log:
    format: str = "auto"  # auto | json | console
    level: str = "info"


@dataclass(frozen=True, slots=True)
class Fencing:
    """test_every_s: how often each fence device of another node is asked for its status; 0 = never. A device that did
    not answer well for test_alarm_s is an alarm."""

    test_every_s: int = 3600
    test_alarm_s: int = 86400


@dataclass(frozen=True, slots=True)
class Watchdog:
    """device: "" = none. timeout_s: the machine resets when the guardian does not feed it for so long."""

    device: str = ""
    timeout_s: int = 10


@dataclass(frozen=True, slots=True)
class Config:
    cluster: str
    nodes: tuple[NodeSettings, ...]
    heartbeat: Heartbeat
    arbiter: Arbiter
    groups: tuple[Group, ...]
    recovery_automatic: bool = False
    fencing: Fencing = Fencing()
    watchdog: Watchdog = Watchdog()
    snmp: Snmp = Snmp()
    clients: Clients = Clients()
    hooks: tuple[Hook, ...] = ()
    control: Control = Control()
    events_keep: int = 1000
    state_dir: str = "/var/lib/hasnmp"
    run_dir: str = "/run/hasnmp"
    log: Log = Log()
    source: str = ""
    # Of groups whose `nodes` are just being changed: each set of nodes by which some node may still go, the file's own last.
    webs: dict[str, tuple[tuple[str, ...], ...]] = field(default_factory=dict)
    # 16 hex digits over what safety rests on: cluster, nodes, links, fence levels, heartbeat times, arbiter, watchdog, and
    # groups' names, nodes and disks
    digest: str = ""

    def goes_with(self, digest: str) -> bool:
        """Does a node of that digest have the same file, with its groups' nodes in force or just being changed? Between these two
        leases are safe."""
        return digest == self.digest or digest == beside(self.digest)

    def node(self, name: str) -> NodeSettings:
        """Raises KeyError: no such node."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(name)

    def group(self, name: str) -> Group:
        """Raises KeyError: no such group."""
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(name)

    def services(self) -> tuple[Service, ...]:
        """Every service of every group, in the file's order."""
        return tuple(service for group in self.groups for service in group.services)


_TURNED = dict(zip("0123456789abcdef", "1032547698badcfe", strict=True))


def beside(digest: str) -> str:
    """A file's digest while groups' nodes are being changed to what it says, from the one when they are, and back: the last bit
    is turned."""
    return digest[:-1] + _TURNED.get(digest[-1:], "")
