"""The form of the configuration: one row for each key, with its kind, its default and what it is for.

The reader, its messages and the reference are all made of these tables, so that they can't drift apart. Where a default
depends on another key, the row has None and says so; `config.py` completes it.
"""

from __future__ import annotations

from hasnmp.config_fence import DEVICE, FENCE_KEYS, FSTYPE, LEVELS, MOUNT_OPTIONS, WATCHDOG
from hasnmp.config_kinds import (
    COMMAND,
    DIRECTORY,
    INTERFACE,
    IP,
    LISTEN,
    MASTER,
    NETWORK,
    PATH,
    RECEIVER,
    SOCKET,
    URL,
    secret,
)
from hasnmp.config_read import (
    BOOL,
    RAW,
    REQUIRED,
    Key,
    Kind,
    absent,
    choice,
    integer,
    list_of,
    matching,
    named,
    section,
    text,
)
from hasnmp.config_views import VIEW
from hasnmp.model import Kind as EventKind

NAME = matching(
    "name of this form",
    r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}",
    "1..32 of A-Za-z0-9 . _ - that begin with a letter or digit",
)
CLUSTER = matching(
    "name of this form", r"[a-z0-9][a-z0-9-]{0,31}", "1..32 of a-z 0-9 - that begin with a letter or digit"
)
INTERFACE_NAME = matching(
    "interface name", r"(?!\.\.?$)[!-.0-9;-~]{1,15}", "1..15 printable characters without / and :"
)
ACCOUNT = matching(
    "account name", r"[A-Za-z_][A-Za-z0-9_.-]{0,31}", "a name of this machine's accounts, 1..32 characters"
)
VARIABLE = matching("variable name", r"[A-Za-z_][A-Za-z0-9_]*", "letters, digits and _")
HEARTBEAT_KEY = secret(32, 4096, " (make one: head -c 32 /dev/urandom | base64)")
PASSPHRASE = secret(8, 255, " (RFC 3414, 11.2)")
COMMUNITY = secret(1, 255, "")
PASSWORD = secret(1, 1024, "")
DAY_MS = 86_400_000

# fmt: off
FENCE = section(*FENCE_KEYS)
NODE = section(
    Key("links", named(IP, NAME, 1, 8), REQUIRED, "the node's address on each link; two links or more are advised"),
    Key("fence", list_of(FENCE, 0, LEVELS), (), "how this node is ended from outside: levels, tried in order"),
)

HEARTBEAT = section(
    Key("port", integer(1, 65535), 5405, "UDP port of the heartbeats, the same on every node"),
    Key("interval_ms", integer(5, 60_000), 200, "a heartbeat is sent this often over each link"),
    Key("late_after_ms", integer(5, 600_000), 500, "a later heartbeat is counted and warned of, nothing else"),
    Key("dead_after_ms", integer(15, 600_000), 1000, "how long a promise lasts; the silent may lose their groups after it"),
    Key("startup_wait_ms", integer(15, 3_600_000), 5000,
        "how long a starting node listens before it may act alone; ends early once all were heard"),
    Key("max_clock_drift_ppm", integer(0, 10_000), 10_000, "how far the nodes' clocks may differ in speed"),
    Key("kill_ms", integer(10, 60_000), 150, "what the guardian needs to end a group by force"),
    Key("key_files", list_of(HEARTBEAT_KEY, 1, 8, unique=True), REQUIRED,
        "first signs, all verify: so keys roll without an outage"),
)

ARBITER = section(
    Key("type", choice("disk", "fence", "none", later={
        "etcd": "use disk (a device or file that every node reaches), fence or none"}), REQUIRED,
        "who may own a group when the nodes can't agree"),
    Key("device", PATH, "", "a block device or file that every node reaches; REQUIRED for type disk", ("disk",)),
    Key("lease_ms", integer(100, 600_000), 3000, "of the arbiter's lease, which counts while not every node promises"),
    Key("io_timeout_ms", integer(10, 60_000), 500, "a read or write of the device that takes longer has failed"),
    Key("accept_split_brain", BOOL, False,
        "none: take a silent peer's group, at the risk that both run it; must be true there", ("none",)),
    *(Key(name, absent("etcd is", "use type disk, fence or none"), None, "")
      for name in ("endpoints", "ca_file", "cert_file", "key_file")),
)

PROBED = ("process", "command", "tcp", "http", "sql", "address", "filesystem", "monitor")  # every check but an agent's report
CHECK_TYPES = {"exec": ("process", "command", "tcp", "http", "sql"), "address": ("address",), "passive": ("report",),
               "filesystem": ("filesystem",), "ocf": ("monitor", "command", "tcp", "http", "sql"),
               "systemd": ("monitor", "command", "tcp", "http", "sql")}
CHECK = section(
    Key("type", choice("process", "command", "tcp", "http", "sql", "report", "address", "filesystem", "monitor"), None,
        "exec: process (its program lives, the default), command, tcp, http or sql; the others have one each: address, "
        "filesystem, report (passive), monitor (ocf and systemd, or command, tcp, http, sql)"),
    Key("every_ms", integer(10, DAY_MS), 5000, "how often", PROBED),
    Key("timeout_ms", integer(10, DAY_MS), None,
        "a check that takes longer has failed; default: 3000, or every_ms if that is less",
        PROBED),
    Key("fail_after", integer(1, 100), 1, "so many failed checks in a row make a failed service",
        PROBED),
    Key("command", COMMAND, None, "exit status 0 is good; REQUIRED for type command", ("command",)),
    Key("host", IP, None, "an IP address; REQUIRED for type tcp", ("tcp",)),
    Key("port", integer(1, 65535), None, "REQUIRED for type tcp", ("tcp",)),
    Key("send", text(0, 4096), "", "sent once connected; escapes such as \\r\\n work in double quotes", ("tcp",)),
    Key("expect", text(0, 4096), "",
        "tcp, http: must occur in the answer; sql: what the first column of the first row must be, as text", ("tcp", "http", "sql")),
    Key("url", URL, None, "REQUIRED for types http and sql (there as SQLAlchemy reads it, without a password)", ("http", "sql")),
    Key("status", integer(0, 599), 0, "the status wanted, 100..599; 0 = any of 200..399", ("http",)),
    Key("query", text(1, 4096), None, "the statement, committed; REQUIRED for type sql", ("sql",)),
    Key("password_file", PASSWORD, None, "holds the password for `url`; default: none", ("sql",)),
    Key("user", ACCOUNT, "", "who asks, as the database knows an account by its socket; empty: the daemon's own user", ("sql",)),
    Key("report_within_ms", integer(100, DAY_MS), None, "silence for longer is a failure; REQUIRED for agent passive",
        ("report",)),
    Key("depth", integer(0, 100), 0, "how thoroughly an OCF agent looks (OCF_CHECK_LEVEL); 0: a quick look", ("monitor",)),
)
CHECK_REQUIRED = {"command": ("command",), "tcp": ("host", "port"), "http": ("url",), "sql": ("url", "query"),
                  "report": ("report_within_ms",)}

# What each agent's `options` may hold: Service.options has all of these keys, with the defaults given here.
OPTIONS = {
    "exec": (
        Key("command", COMMAND, REQUIRED, "runs in the foreground; its process group and cgroup are the service's"),
        Key("env", named(text(0, 4096), VARIABLE, 0, 256), {}, "more environment variables"),
        Key("cwd", DIRECTORY, "/", "the folder that it starts in"),
        Key("user", ACCOUNT, "", "who it runs as; empty: the daemon's own user"),
        Key("oom_score_adjust", integer(-1000, 1000), 0, "lower: spared when memory runs out, as by choom(1)"),
        Key("stop_signal", choice("TERM", "INT", "QUIT", "HUP", "USR1", "USR2", "KILL"), "TERM", "asks it to end"),
        Key("stop_command", COMMAND, (), "run to stop it, in place of the signal"),
    ),
    "address": (
        Key("ip", INTERFACE, REQUIRED, "the address that moves, with its prefix length"),
        Key("interface", INTERFACE_NAME, REQUIRED, "where it is added, on every node of the group"),
        Key("reach", list_of(IP, 0, 16, unique=True), (), "neighbours of which one must answer"),
    ),
    "passive": (),
    "filesystem": (
        Key("device", DEVICE, REQUIRED, "what is mounted: a path, better than UUID=... or LABEL=..."),
        Key("directory", DIRECTORY, REQUIRED, "where, on every node of the group; a folder that is there"),
        Key("fstype", FSTYPE, REQUIRED, "ext4, xfs, ..."),
        Key("options", MOUNT_OPTIONS, "", "as for mount -o"),
        Key("fsck", choice("no", "preen"), "no",
            "preen: fsck -p before it is mounted; what that can't repair is a failed start. no: the journal has to do"),
        Key("unmount", choice("wait", "kill"), "wait",
            "kill: whoever still holds it after half of stop_timeout_ms is killed, and named in the log"),
    ),
}

ON_FAILURE = section(
    Key("restart", integer(0, 1000), 3, "so many restarts in place"),
    Key("within_s", integer(1, 31_536_000), 900, "within this time; then"),
    Key("then", choice("failover", "stop", "ignore"), "failover", "failover | stop | ignore"),
)

ENDPOINT = section(Key("port", integer(0, 65535), 0, "0: not told, the client knows it"))
SERVICE = section(
    Key("name", NAME, REQUIRED, "unique in the whole file, for it indexes haServiceTable"),
    Key("agent", Kind("exec, address, filesystem, passive, ocf:PROVIDER:NAME or systemd:UNIT", text(1, 255).read), REQUIRED,
        "exec: runs a program; address: an IP address; filesystem: mounts one; passive: an outside agent reports in; "
        "ocf:PROVIDER:NAME: a resource agent of that name; systemd:UNIT: a service unit"),
    Key("options", Kind("a mapping", RAW.read, variants=tuple(OPTIONS.items())), None, "what the agent needs to know"),
    Key("critical", BOOL, True, "a service that is not critical never moves its group"),
    Key("check", CHECK, None, "how it is checked"),
    Key("start_timeout_ms", integer(10, DAY_MS), 20_000, "a start that takes longer has failed; ocf: default as its metadata says"),
    Key("stop_timeout_ms", integer(10, DAY_MS), 20_000, "a stop that takes longer has failed; ocf: default as its metadata says"),
    Key("on_failure", ON_FAILURE, None, "what a failed service leads to"),
    Key("endpoint", ENDPOINT, None, "what clients are told that ask where it is"),
)

FAILOVER_LIMIT = section(
    Key("times", integer(0, 1000), 3, "so many moves caused by a failed service"),
    Key("within_s", integer(1, 31_536_000), 3600, "within this time; then it keeps trying where it is"),
)

GROUP = section(
    Key("nodes", list_of(NAME, 1, 32, unique=True), None, "who may run it, first choice first; default: every node"),
    Key("failback", choice("manual", "automatic"), "manual", "does it return to its first choice by itself?"),
    Key("failover_limit", FAILOVER_LIMIT, None, "moves caused by a failed service"),
    Key("disk", BOOL, None,
        "does it write to storage that other nodes reach? then silence is not enough to take it; default: if it has a "
        "filesystem"),
    Key("accept_unfenced_disk", BOOL, False, "take a group with a disk without fencing or watchdog, at the data's risk"),
    Key("on_stop_failure", choice("fence", "block"), None,
        "a group that can't be stopped: fence the node, or block: keep the lease and wait for the administrator; "
        "default: fence if it has a disk and every node of it has a fence level that cuts power or disk, else block"),
    Key("services", list_of(SERVICE, 1, 1000), REQUIRED, "started in this order, stopped in reverse"),
)

RIGHTS = choice("read", "operate", "admin")
USER = section(
    Key("name", NAME, REQUIRED, "the USM user's name"),
    Key("auth", choice("md5", "sha", "sha224", "sha256", "sha384", "sha512"), "sha256",
        "HMAC with SHA-2 (RFC 7860); md5 and sha (RFC 3414) are weak, for managers that have nothing else"),
    Key("auth_file", PASSPHRASE, REQUIRED, "holds the passphrase, 8 characters or more"),
    Key("priv", choice("des", "aes128", "aes192", "aes256", "aes192c", "aes256c"), "",
        "aes128 (RFC 3826) encrypts; aes192 and aes256 are Net-SNMP's AES-192 and AES-256, with c its AES-192-C and AES-256-C; "
        "des (RFC 3414) is weak; without it, what this user sends and reads is authenticated but not secret"),
    Key("priv_file", PASSPHRASE, None, "holds the passphrase; REQUIRED with priv"),
    Key("access", RIGHTS, "read", "read | operate (may SET) | admin (sees users, communities and views too)"),
    Key("view", NAME, None, "one of `views`: all that it may read and be told of; default: what `access` gives"),
    Key("write_view", NAME, None, "one of `views`: all that it may SET; default: its `view`, or what `access` gives"),
    Key("from", list_of(NETWORK, 0, 64, unique=True), (), "networks that it may be used from; empty: anywhere"),
)

LISTENERS = section(
    Key("name_file", COMMUNITY, REQUIRED, "holds the community's name"),
    Key("label", NAME, None, "how logs, events and commands call it, for its name is a secret; default: community-N"),
    Key("access", RIGHTS, "read", "operate and admin need allow_insecure_set: true"),
    Key("view", NAME, None, "one of `views`: all that it may read; default: what `access` gives"),
    Key("write_view", NAME, None, "one of `views`: all that it may SET; default: its `view`, or what `access` gives"),
    Key("from", list_of(NETWORK, 0, 64, unique=True), (), "networks that may use it; empty: anywhere"),
)

NOTIFY = section(
    Key("to", RECEIVER, REQUIRED, "where traps are sent, as 192.0.2.50:162"),
    Key("version", choice("3", "2c", "1"), REQUIRED, "3 | 2c | 1"),
    Key("user", NAME, None, "one of `users`; REQUIRED for version 3", ("3",)),
    Key("community_file", COMMUNITY, None, "holds the community's name; REQUIRED for versions 2c and 1", ("2c", "1")),
    Key("type", choice("trap", "inform"), "trap", "trap | inform (acknowledged and repeated; not by version 1)"),
    Key("timeout_ms", integer(10, 600_000), 1500, "an inform's first wait for its answer; each further one is twice as long"),
    Key("retries", integer(0, 255), 5, "so many more tries; then the receiver counts as away, and is tried every 30 s"),
    Key("min_severity", choice("info", "warning", "minor", "major", "critical"), "info",
        "what is less severe is not sent to it; the end of an alarm counts as the alarm"),
    Key("enabled", BOOL, True, "false: nothing is sent to it and nothing kept for it"),
    Key("name", NAME, None, "how the MIB, the log and its backlog call it; default: as 192.0.2.50:162/3/inform"),
)

THROTTLE = section(
    Key("same_within_ms", integer(0, 3_600_000), 1000, "the same one at most once within this; 0 = no such limit"),
    Key("per_minute", integer(1, 100_000), 600, "all notifications together"),
)

SNMP = section(
    Key("listen", list_of(LISTEN, 0, 16, unique=True), ("127.0.0.1:1161",), "where the agent answers; [] needs agentx"),
    Key("views", named(VIEW, NAME, 0, 32), None, "parts of the MIB, for users and communities"),
    Key("users", list_of(USER, 0, 64), (), "SNMPv3 users"),
    Key("communities", list_of(LISTENERS, 0, 64), (), "SNMPv2c communities"),
    Key("notify", list_of(NOTIFY, 0, 32), (), "who is told"),
    Key("allow_insecure_set", BOOL, False, "a community, which anybody on the way can read, may SET"),
    Key("authentication_traps", BOOL, False, "say authenticationFailure when a request has a wrong community, user or key"),
    Key("alive_s", integer(0, 86_400), 0, "a periodic `alive` notification; 0 = none"),
    Key("throttle", THROTTLE, None, "what holds a storm of notifications back"),
    Key("backlog", integer(10, 100_000), 10_000, "notifications kept for a receiver that is away; then the oldest give way"),
    Key("agentx", MASTER, "", "be a subagent of the host's snmpd (RFC 2741), beside `listen` or with listen: [] instead"),
    Key("agentx_access", choice("read", "operate"), "read", "operate: the master may SET, for whomever its own rules let"),
)

CLIENT_KEY = section(
    Key("name", NAME, REQUIRED, "how datagrams and logs call the key"),
    Key("key_files", list_of(HEARTBEAT_KEY, 1, 8, unique=True), REQUIRED,
        "the key: all verify, and an answer is signed as its request was, so that keys roll without an outage"),
    Key("from", list_of(NETWORK, 0, 64, unique=True), (), "networks that it may be used from; empty: anywhere"),
    Key("report", list_of(NAME, 0, 1000, unique=True), (), "passive services that its holder may report up or down"),
)
CLIENTS = section(
    Key("listen", list_of(LISTEN, 0, 16, unique=True), (), "where datagrams are answered; empty: nowhere"),
    Key("keys", list_of(CLIENT_KEY, 0, 64), (), "who may ask, and report"),
)

HOOK_EVENTS = ("before_start", "before_stop", "after_stop", *(kind.name.lower() for kind in EventKind))
HOOK = section(
    Key("on", choice(*HOOK_EVENTS), REQUIRED,
        "before_start, before_stop, after_stop: of a group, on this node; or an event's name, as takeover_completed"),
    Key("run", COMMAND, REQUIRED, "the program; it is told by HASNMP_... in its environment, and JSON on standard input"),
    Key("timeout_ms", integer(10, DAY_MS), 5000, "then it is ended, and has failed"),
    Key("required", BOOL, False, "before_start, before_stop: a failure stops the transition"),
    Key("groups", list_of(NAME, 1, 64, unique=True), (), "only for these groups; default: all"),
)

EVENTS = section(Key("keep", integer(10, 100_000), 1000, "events kept, over restarts too"))
CONTROL = section(
    Key("socket", SOCKET, None, "where clients reach the daemon; default: control.sock in run_dir"),
    Key("group", ACCOUNT, "", "this group's members may use it too; empty: the daemon's own user only"),
)
LOG = section(
    Key("format", choice("auto", "json", "console"), "auto", "auto: colours on a terminal, JSON otherwise"),
    Key("level", choice("debug", "info", "warning", "error"), "info", "the least that is logged"),
)

FENCING = section(
    Key("test_every_s", integer(0, 31_536_000), 3600, "each fence device is asked for its status this often; 0 = never"),
    Key("test_alarm_s", integer(1, 31_536_000), 86_400, "a device that has not answered well for so long is an alarm"),
)

FORM = (
    Key("cluster", CLUSTER, REQUIRED, "the cluster's name, part of every signature"),
    Key("nodes", named(NODE, NAME, 1, 32), REQUIRED, "a node finds itself by --node, else by host name"),
    Key("heartbeat", HEARTBEAT, None, "how nodes know of each other"),
    Key("arbiter", ARBITER, None, "who may own a group when the nodes can't agree"),
    Key("groups", named(GROUP, NAME, 1, 64), REQUIRED, "services that move together"),
    Key("recovery", choice("manual", "automatic"), "manual",
        "does a failed node that returns need an administrator's word?"),
    Key("fencing", FENCING, None, "how the fence devices are kept in view"),
    Key("watchdog", WATCHDOG, None, "resets this machine if the guardian fails; default: none"),
    Key("snmp", SNMP, None, "the agent"),
    Key("clients", CLIENTS, None, "who may ask by UDP who runs a service, and report on passive ones"),
    Key("hooks", list_of(HOOK, 0, 256), (), "programs that are run at transitions and events, in this order"),
    Key("events", EVENTS, None, "the event ring"),
    Key("control", CONTROL, None, "the local socket"),
    Key("state_dir", DIRECTORY, "/var/lib/hasnmp", "what must survive a reboot: events, counters, decisions"),
    Key("run_dir", DIRECTORY, "/run/hasnmp", "what must not survive a reboot: the guardian's id, the control socket"),
    Key("log", LOG, None, "the log"),
)
# fmt: on
