"""The vocabulary: the words, enumerations and rows that every part of hasnmp shares.

Enumerations are numbered as in HASNMP-MIB (from 1), so that the engine, the control socket, the agent and the consoles
never translate. A Row is what the engine shows of one thing; the control socket carries rows as JSON objects with the
same field names, and the MIB has a column for each.

Times: a field that ends in _ns is CLOCK_BOOTTIME of this machine in nanoseconds, 0 for "never", and may be negative
for a moment before this boot (it was kept over a restart). _wall_ms is Unix time in milliseconds. Ages are made by the
reader, from the view's own now_ns.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

from hasnmp.errors import Code


class Role(IntEnum):
    """What a node does now. primary: runs every group; shared: runs some; standby: runs none and is able to."""

    PRIMARY = 1
    SHARED = 2
    STANDBY = 3
    RECOVERING = 4
    OFFLINE = 5
    UNKNOWN = 6


class Condition(IntEnum):
    """Roll-up of a node, a group or the cluster."""

    UNKNOWN = 1
    OK = 2
    DEGRADED = 3
    FAILED = 4


class NodeState(IntEnum):
    """A node as this node sees it. left: it stopped in order and said so."""

    UP = 1
    LOST = 2
    LEFT = 3
    STARTING = 4
    UNKNOWN = 5


class LinkState(IntEnum):
    UP = 1
    DOWN = 2
    UNKNOWN = 3


class GroupState(IntEnum):
    """blocked: a stop failed, so the lease is kept. failed: no node is able to run it."""

    UNKNOWN = 1
    STOPPED = 2
    ACQUIRING = 3
    STARTING = 4
    RUNNING = 5
    DEGRADED = 6
    STOPPING = 7
    FAILED = 8
    BLOCKED = 9


class ServiceState(IntEnum):
    UNKNOWN = 1
    STOPPED = 2
    STARTING = 3
    RUNNING = 4
    STOPPING = 5
    FAILED = 6
    STOP_FAILED = 7


class AdminState(IntEnum):
    """What the administrator wants of a service: unlocked runs with its group, locked stays stopped (haServiceAction)."""

    UNLOCKED = 1
    LOCKED = 2


class Proof(IntEnum):
    """What a lease rests on."""

    NONE = 1
    PROMISES = 2
    ARBITER = 3
    BOTH = 4


class Failback(IntEnum):
    MANUAL = 1
    AUTOMATIC = 2


class ArbiterState(IntEnum):
    """resting: reachable and not needed, for every node promises. active: leases rest on it."""

    UNKNOWN = 1
    RESTING = 2
    ACTIVE = 3
    LOST = 4
    MISMATCH = 5


class PartState(IntEnum):
    """The engine, the guardian, the watchdog: a part of this node's own stack. unknown: the agent's word while no engine is there to say."""

    UP = 1
    DOWN = 2
    STARTING = 3
    ABSENT = 4
    UNKNOWN = 5


class Severity(IntEnum):
    """ITU-T X.733 as ALARM-MIB (RFC 3877) numbers it, with informational events below."""

    CLEARED = 1
    INDETERMINATE = 2
    CRITICAL = 3
    MAJOR = 4
    MINOR = 5
    WARNING = 6
    INFO = 7


class Verb(IntEnum):
    """Every command. The first eight are haAction's values minus one; see the MIB for which object takes which."""

    FAILOVER = 2
    FORCE_FAILOVER = 3
    RECOVER = 4
    INHIBIT = 5
    PERMIT = 6
    STANDBY = 7
    ONLINE = 8
    FREEZE = 9
    THAW = 10
    SERVICE_START = 11
    SERVICE_STOP = 12
    SERVICE_RESTART = 13
    SERVICE_CLEAR = 14
    REPORT = 15
    FENCE_TEST = 16
    FENCE_CONFIRM = 17
    RELOAD = 18
    APPLY = 19
    SET = 20  # an SNMP SET that was refused before it was a command: for the record only


class CommandState(IntEnum):
    ACCEPTED = 1
    RUNNING = 2
    DONE = 3
    FAILED = 4
    REFUSED = 5


class Reason(IntEnum):
    """Why a group moved, or a state changed: one enumeration for the MIB, the events and `why`."""

    NONE = 1
    STARTUP = 2
    OPERATOR = 3
    OPERATOR_FORCED = 4
    NODE_LOST = 5
    SERVICE_FAILED = 6
    START_FAILED = 7
    STOP_FAILED = 8
    NODE_LEFT = 9
    STANDBY_ORDERED = 10
    FAILBACK = 11
    LEASE_LOST = 12
    RETURNED = 13
    SERVICE_RECOVERED = 14
    HEARTBEAT = 15
    LINK = 16
    ARBITER = 17
    CONFIGURATION = 18
    RESTART = 19
    RECOVERY = 20
    GUARDIAN = 21
    FENCED = 22
    WATCHDOG = 23
    SPLIT_BRAIN = 24


class ReceiverState(IntEnum):
    """A receiver of notifications. unknown: nothing acknowledges a trap, and nothing was heard against it."""

    UP = 1
    DOWN = 2
    UNKNOWN = 3
    DISABLED = 4


class Kind(StrEnum):
    """Every notification: the trap, the log line, the event row and the console message share this name."""

    HEARTBEAT_LOST = "heartbeatLost"
    HEARTBEAT_RESTORED = "heartbeatRestored"
    LINK_DOWN = "linkDown"
    LINK_UP = "linkUp"
    NODE_LOST = "nodeLost"
    NODE_JOINED = "nodeJoined"
    FAILOVER_STARTED = "failoverStarted"
    TAKEOVER_COMPLETED = "takeoverCompleted"
    TAKEOVER_FAILED = "takeoverFailed"
    ROLE_CHANGE = "roleChange"
    SERVICE_FAILED = "serviceFailed"
    SERVICE_RESTARTED = "serviceRestarted"
    SERVICE_RECOVERED = "serviceRecovered"
    SERVICE_STOP_FAILED = "serviceStopFailed"
    GROUP_FAILED = "groupFailed"
    GROUP_RESTORED = "groupRestored"
    GROUP_BLOCKED = "groupBlocked"
    GROUP_UNBLOCKED = "groupUnblocked"
    FENCE_SUCCEEDED = "fenceSucceeded"
    FENCE_FAILED = "fenceFailed"
    ARBITER_LOST = "arbiterLost"
    ARBITER_RESTORED = "arbiterRestored"
    ARBITER_MISMATCH = "arbiterMismatch"
    CONFIG_MISMATCH = "configMismatch"
    CONFIG_RESOLVED = "configResolved"
    FAILOVER_LIMIT_REACHED = "failoverLimitReached"
    FAILOVER_LIMIT_CLEARED = "failoverLimitCleared"
    INHIBIT_CHANGED = "inhibitChanged"
    RECOVERY_NEEDED = "recoveryNeeded"
    RECOVERED = "recovered"
    SPLIT_BRAIN_DETECTED = "splitBrainDetected"
    SPLIT_BRAIN_CLEARED = "splitBrainCleared"
    GUARDIAN_LOST = "guardianLost"
    GUARDIAN_RESTORED = "guardianRestored"
    ENGINE_DOWN = "engineDown"
    ENGINE_UP = "engineUp"
    ALIVE = "alive"
    EVENTS_LOST = "eventsLost"
    FENCE_STARTED = "fenceStarted"
    FENCE_UNTESTED = "fenceUntested"
    FENCE_TESTED = "fenceTested"
    CONFIG_REFUSED = "configRefused"
    CONFIG_ACCEPTED = "configAccepted"
    WATCHDOG_LOST = "watchdogLost"
    WATCHDOG_RESTORED = "watchdogRestored"
    STATE_NOT_SAVED = "stateNotSaved"
    STATE_SAVED = "stateSaved"
    COMMAND_GIVEN = "commandGiven"
    COMMAND_REFUSED = "commandRefused"
    HOOK_FAILED = "hookFailed"
    PROCESS_LOST = "processLost"
    PROCESS_RESTORED = "processRestored"
    ENGINE_ID_CHANGED = "engineIdChanged"
    HOLDERS_KILLED = "holdersKilled"


# Every alarm has its clear, and both share a key (ALARM-MIB's shape): raising kind -> (severity, clearing kind).
ALARMS: dict[Kind, tuple[Severity, Kind]] = {
    Kind.HEARTBEAT_LOST: (Severity.MINOR, Kind.HEARTBEAT_RESTORED),
    Kind.LINK_DOWN: (Severity.MINOR, Kind.LINK_UP),
    Kind.NODE_LOST: (Severity.MAJOR, Kind.NODE_JOINED),
    Kind.SERVICE_FAILED: (Severity.MAJOR, Kind.SERVICE_RECOVERED),
    Kind.GROUP_FAILED: (Severity.CRITICAL, Kind.GROUP_RESTORED),
    Kind.GROUP_BLOCKED: (Severity.CRITICAL, Kind.GROUP_UNBLOCKED),
    Kind.ARBITER_LOST: (Severity.MAJOR, Kind.ARBITER_RESTORED),
    Kind.ARBITER_MISMATCH: (Severity.CRITICAL, Kind.ARBITER_RESTORED),
    Kind.CONFIG_MISMATCH: (Severity.MAJOR, Kind.CONFIG_RESOLVED),
    Kind.FAILOVER_LIMIT_REACHED: (Severity.MAJOR, Kind.FAILOVER_LIMIT_CLEARED),
    Kind.RECOVERY_NEEDED: (Severity.WARNING, Kind.RECOVERED),
    Kind.SPLIT_BRAIN_DETECTED: (Severity.CRITICAL, Kind.SPLIT_BRAIN_CLEARED),
    Kind.GUARDIAN_LOST: (Severity.CRITICAL, Kind.GUARDIAN_RESTORED),
    Kind.ENGINE_DOWN: (Severity.MAJOR, Kind.ENGINE_UP),
    Kind.FENCE_FAILED: (Severity.CRITICAL, Kind.FENCE_SUCCEEDED),
    Kind.FENCE_UNTESTED: (Severity.MAJOR, Kind.FENCE_TESTED),
    Kind.CONFIG_REFUSED: (Severity.MAJOR, Kind.CONFIG_ACCEPTED),
    Kind.WATCHDOG_LOST: (Severity.CRITICAL, Kind.WATCHDOG_RESTORED),
    Kind.STATE_NOT_SAVED: (Severity.MAJOR, Kind.STATE_SAVED),
    Kind.PROCESS_LOST: (Severity.MAJOR, Kind.PROCESS_RESTORED),
}

# The severity of what is neither an alarm nor a clear; INFO where a kind is not named.
SEVERITIES: dict[Kind, Severity] = {
    Kind.FAILOVER_STARTED: Severity.WARNING,
    Kind.TAKEOVER_FAILED: Severity.MAJOR,
    Kind.SERVICE_RESTARTED: Severity.WARNING,
    Kind.SERVICE_STOP_FAILED: Severity.CRITICAL,
    Kind.EVENTS_LOST: Severity.WARNING,
    Kind.FENCE_STARTED: Severity.WARNING,
    Kind.COMMAND_REFUSED: Severity.WARNING,
    Kind.HOOK_FAILED: Severity.WARNING,
    Kind.ENGINE_ID_CHANGED: Severity.WARNING,
    Kind.HOLDERS_KILLED: Severity.WARNING,
}

CLEARS: frozenset[Kind] = frozenset(clear for _, clear in ALARMS.values())


@dataclass(frozen=True, slots=True)
class SystemRow:
    """haSystem: this node and the cluster. One row, key ""."""

    cluster: str
    node: str
    version: str
    role: Role = Role.UNKNOWN
    condition: Condition = Condition.UNKNOWN
    cluster_condition: Condition = Condition.UNKNOWN
    last_role_change_ns: int = 0
    role_changes: int = 0
    engine_state: PartState = PartState.STARTING
    guardian_state: PartState = PartState.STARTING
    watchdog_state: PartState = PartState.ABSENT
    started_ns: int = 0
    inhibited: bool = False  # cluster-wide: no automatic failover of any group


@dataclass(frozen=True, slots=True)
class NodeRow:
    name: str
    this: bool = False  # is it the node that shows this row?
    state: NodeState = NodeState.UNKNOWN
    role: Role = Role.UNKNOWN
    condition: Condition = Condition.UNKNOWN
    incarnation: str = ""  # 16 hex digits; "" while never heard
    holder: str = ""  # 16 hex digits
    standby: bool = False  # drained by the administrator
    recovering: bool = False
    last_heard_ns: int = 0
    last_change_ns: int = 0
    transitions: int = 0
    heartbeats_received: int = 0
    heartbeats_late: int = 0
    digest: str = ""
    version: str = ""


@dataclass(frozen=True, slots=True)
class LinkRow:
    """One link to one peer; key "node/link"."""

    node: str
    link: str
    address: str = ""
    state: LinkState = LinkState.UNKNOWN
    sent: int = 0
    received: int = 0
    lost: int = 0
    round_trip_us: int = 0
    last_heard_ns: int = 0
    last_change_ns: int = 0
    transitions: int = 0


@dataclass(frozen=True, slots=True)
class GroupRow:
    name: str
    state: GroupState = GroupState.UNKNOWN
    condition: Condition = Condition.UNKNOWN
    owner: str = ""  # node name; "" = nobody that this node knows of
    token: int = 0
    lease_until_ns: int = 0  # 0 = this node does not know of a lease
    proof: Proof = Proof.NONE
    home: str = ""
    nodes: tuple[str, ...] = ()
    failback: Failback = Failback.MANUAL
    inhibited: bool = False
    frozen: bool = False
    last_change_ns: int = 0
    transitions: int = 0  # changes of state or owner, a Counter32
    failovers: int = 0  # every completed move, a Counter32
    failover_count: int = 0  # moves caused by a failed service within the limit's period, a Gauge32
    failover_limit: int = 0
    excluded: tuple[str, ...] = ()
    last_reason: Reason = Reason.NONE
    last_reason_text: str = ""
    last_duration_ms: int = 0  # of the last move: from its decision to the last service started
    data_ns: int = 0  # when this row's facts were true, by the owner's word


@dataclass(frozen=True, slots=True)
class ServiceRow:
    name: str
    group: str
    node: str = ""  # where it runs or last ran
    agent: str = ""
    state: ServiceState = ServiceState.UNKNOWN
    admin: AdminState = AdminState.UNLOCKED
    critical: bool = True
    checks: int = 0
    failures: int = 0  # Counter32
    restarts: int = 0  # within the window, a Gauge32
    restart_limit: int = 0
    last_check_ns: int = 0
    last_change_ns: int = 0
    transitions: int = 0
    check_us: int = 0  # how long the last check took
    pid: int = 0
    message: str = ""
    data_ns: int = 0


@dataclass(frozen=True, slots=True)
class ArbiterRow:
    """The arbiter as this node uses it; key = its type."""

    type: str
    state: ArbiterState = ArbiterState.UNKNOWN
    device: str = ""
    uuid: str = ""
    last_ok_ns: int = 0
    latency_us: int = 0
    last_change_ns: int = 0
    transitions: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True)
class FenceRow:
    """One fence level of one node; key "node/level" (level from 1).

    last_result: what came of its last use or test, in words. last_ns: when it was last used to fence. last_test_ns: when
    the device last answered well, to a test or in use.
    """

    node: str
    level: int
    agent: str
    cuts: str
    last_result: str = ""
    last_ns: int = 0
    last_test_ns: int = 0


@dataclass(frozen=True, slots=True)
class ConfigRow:
    """The configuration in force. One row, key ""."""

    digest: str = ""
    source: str = ""
    loaded_ns: int = 0
    error: str = ""
    interval_ms: int = 0
    late_after_ms: int = 0
    dead_after_ms: int = 0
    startup_wait_ms: int = 0
    kill_ms: int = 0
    lease_ms: int = 0
    io_timeout_ms: int = 0
    recovery_automatic: bool = False


@dataclass(frozen=True, slots=True)
class StatisticsRow:
    """haStatistics: counters of this node, kept over restarts. One row, key ""."""

    failovers: int = 0
    takeovers: int = 0
    switchovers: int = 0
    failed_takeovers: int = 0
    heartbeats_sent: int = 0
    heartbeats_received: int = 0
    heartbeats_late: int = 0
    # datagrams refused, by reason
    rejected_malformed: int = 0
    rejected_foreign: int = 0  # another cluster, an unknown sender or source address, not meant for this node
    rejected_signature: int = 0
    rejected_replayed: int = 0
    rejected_reordered: int = 0
    rejected_stale: int = 0  # echoes nothing that this incarnation sent lately
    rejected_version: int = 0
    worst_lateness_us: int = 0  # of the engine's timer, since its start
    service_failures: int = 0
    service_restarts: int = 0
    commands: int = 0
    events: int = 0
    since_wall_ms: int = 0  # when these counters began


@dataclass(frozen=True, slots=True)
class EventRow:
    """One thing that happened, whole: the trap, the log line and the console message say just this."""

    id: int
    kind: Kind
    severity: Severity
    wall_ms: int
    ns: int
    node: str  # which node says so
    message: str
    peer: str = ""
    link: str = ""
    group: str = ""
    service: str = ""
    own_state: int = 0  # Role of this node
    peer_state: int = 0  # NodeState of the peer, 0 = no peer is concerned
    previous_state: int = 0  # of what changed, in its own enumeration
    state: int = 0
    reason: Reason = Reason.NONE
    alarm: str = ""  # the key that an alarm and its clear share; "" = neither
    common_id: str = ""  # equal in the events of all nodes that saw the same thing


@dataclass(frozen=True, slots=True)
class AlarmRow:
    """An alarm that stands; key = its alarm key."""

    key: str
    kind: Kind
    severity: Severity
    node: str
    object: str
    since_ns: int
    since_wall_ms: int
    event_id: int
    message: str


@dataclass(frozen=True, slots=True)
class CommandRow:
    """One command and what became of it; kept over restarts. Key = str(id)."""

    id: int
    requester: str
    address: str
    verb: Verb
    target: str  # group, node or service that it acts on; "" = all
    to: str  # where to, for a failover; "" = the engine chooses
    reason: str  # the requester's words
    state: CommandState = CommandState.ACCEPTED
    code: Code | int = 0
    text: str = ""
    asked_wall_ms: int = 0
    ended_wall_ms: int = 0
    asked_ns: int = 0
    ended_ns: int = 0


Row = (
    SystemRow
    | NodeRow
    | LinkRow
    | GroupRow
    | ServiceRow
    | ArbiterRow
    | FenceRow
    | ConfigRow
    | StatisticsRow
    | EventRow
    | AlarmRow
    | CommandRow
)

# The tables of a view, in the order in which the control socket sends them.
TABLES: dict[str, type] = {
    "system": SystemRow, "nodes": NodeRow, "links": LinkRow, "groups": GroupRow, "services": ServiceRow,
    "arbiters": ArbiterRow, "fences": FenceRow, "config": ConfigRow, "statistics": StatisticsRow,
    "events": EventRow, "alarms": AlarmRow, "commands": CommandRow,
}  # fmt: skip


@dataclass(slots=True)
class View:
    """The whole picture that a node shows: table -> key -> row, true at now_ns / wall_ms."""

    now_ns: int = 0
    wall_ms: int = 0
    number: int = 0  # rises with every delta
    tables: dict[str, dict[str, Row]] = field(default_factory=lambda: {name: {} for name in TABLES})
