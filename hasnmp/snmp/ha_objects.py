"""The one table of HASNMP-MIB's objects: the responder serves it, the access check walks it, a test holds it to the MIB.

    SCALARS    every scalar, in OID order
    TABLES     every table, in OID order, with its columns
    OBJECTS    both's objects, by name

What a SET means is sets.py's; the objects of who is told (haNotify) are receivers.py's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from operator import attrgetter
from typing import Any

from hasnmp.model import (
    ArbiterState,
    Condition,
    GroupState,
    Kind,
    LinkState,
    NodeState,
    PartState,
    Proof,
    Role,
    ServiceState,
    View,
)
from hasnmp.snmp.objects import (
    Column,
    Index,
    Oid,
    Reader,
    Scalar,
    Syntax,
    TableDef,
    Value,
    date_and_time,
    inet_address,
    text_index,
)
from hasnmp.snmp.oids import ROOT

# ------------------------------------------------------------------------------------------------- making the tables


@dataclass(frozen=True, slots=True)
class _Of:
    """A value that is made of one field of the row; field "": of none."""

    field: str
    read: Callable[[Reader, Any], Any]


# Where a value comes from: a field as it is, something made of one, or a function of the reader and the row.
_Source = str | _Of | Callable[[Reader, Any], Any]

INTEGER32, OCTETS, COUNTER32 = Syntax.INTEGER32, Syntax.OCTETS, Syntax.COUNTER32
UNSIGNED32, TIMETICKS = Syntax.UNSIGNED32, Syntax.TIMETICKS

TRUTH = (1, 2)  # TruthValue (RFC 2579)
NAME_SIZE = 63  # octets of a node's, group's or service's name: a DNS label, and an index within 128 sub-identifiers
TEXT_SIZE = 255  # SnmpAdminString (RFC 3411)

# The notifications' numbers (haNotifications.n, HaKind): given once for ever, new kinds go to the end.
KIND_NUMBERS: dict[Kind, int] = {kind: number for number, kind in enumerate((
    Kind.HEARTBEAT_LOST, Kind.HEARTBEAT_RESTORED, Kind.LINK_DOWN, Kind.LINK_UP, Kind.NODE_LOST, Kind.NODE_JOINED,
    Kind.FAILOVER_STARTED, Kind.TAKEOVER_COMPLETED, Kind.TAKEOVER_FAILED, Kind.ROLE_CHANGE, Kind.SERVICE_FAILED,
    Kind.SERVICE_RESTARTED, Kind.SERVICE_RECOVERED, Kind.SERVICE_STOP_FAILED, Kind.GROUP_FAILED, Kind.GROUP_RESTORED,
    Kind.GROUP_BLOCKED, Kind.GROUP_UNBLOCKED, Kind.FENCE_SUCCEEDED, Kind.FENCE_FAILED, Kind.ARBITER_LOST,
    Kind.ARBITER_RESTORED, Kind.ARBITER_MISMATCH, Kind.CONFIG_MISMATCH, Kind.CONFIG_RESOLVED,
    Kind.FAILOVER_LIMIT_REACHED, Kind.FAILOVER_LIMIT_CLEARED, Kind.INHIBIT_CHANGED, Kind.RECOVERY_NEEDED,
    Kind.RECOVERED, Kind.SPLIT_BRAIN_DETECTED, Kind.SPLIT_BRAIN_CLEARED, Kind.GUARDIAN_LOST, Kind.GUARDIAN_RESTORED,
    Kind.ENGINE_DOWN, Kind.ENGINE_UP, Kind.ALIVE, Kind.EVENTS_LOST,
    Kind.FENCE_STARTED, Kind.FENCE_UNTESTED, Kind.FENCE_TESTED, Kind.CONFIG_REFUSED, Kind.CONFIG_ACCEPTED,
    Kind.WATCHDOG_LOST, Kind.WATCHDOG_RESTORED, Kind.STATE_NOT_SAVED, Kind.STATE_SAVED,
    Kind.COMMAND_GIVEN, Kind.COMMAND_REFUSED, Kind.HOOK_FAILED,
    Kind.PROCESS_LOST, Kind.PROCESS_RESTORED, Kind.ENGINE_ID_CHANGED, Kind.HOLDERS_KILLED), 1)}  # fmt: skip


def _fit(syntax: Syntax, raw: Any) -> Value:
    """What a row holds, as the syntax takes it: counters wrap, gauges stick at their ends, text is cut at 255 octets."""
    if isinstance(raw, str):
        return raw.encode()[:TEXT_SIZE].decode(errors="ignore").encode()
    if isinstance(raw, bytes | tuple):
        return raw
    if isinstance(raw, bool):
        return 1 if raw else 2
    match syntax:
        case Syntax.COUNTER32:
            return int(raw) % 2**32
        case Syntax.UNSIGNED32:
            return min(max(int(raw), 0), 2**32 - 1)
        case _:
            return int(raw)


def _reader_of(syntax: Syntax, source: _Source) -> Callable[[Reader, Any], Value]:
    if isinstance(source, str):
        get = attrgetter(source)

        def fitting(_: Reader, row: Any) -> Value:
            value = get(row)
            # Most fields fit as they are; bool is an int too, and no number.
            if type(value) is int and 0 <= value < 0x80000000:
                return value
            return _fit(syntax, value)

        return fitting
    function = source.read if isinstance(source, _Of) else source
    return lambda r, row: _fit(syntax, function(r, row))


def _column(number: int, name: str, syntax: Syntax, source: _Source, *, volatile: bool = False,
            allowed: tuple[int, ...] | range = (), size: int = 0) -> Column:  # fmt: skip
    """A column; it is writable if `allowed` or `size` says what may be written."""
    access = "read-write" if allowed or size else "read-only"
    field = source.field if isinstance(source, _Of) else source if isinstance(source, str) else None
    return Column(name, number, syntax, access, _reader_of(syntax, source), volatile, allowed, size, field)


def _scalars(part: int, table: str, *columns: Column) -> tuple[Scalar, ...]:
    """Columns of a table of one row, key "", as scalars of ROOT.1.part: absent until the row is there."""

    def read(column: Column) -> Callable[[Reader], Value | None]:
        def value(r: Reader) -> Value | None:
            row = r.view.tables[table].get("")
            return None if row is None else column.read(r, row)

        return value

    return tuple(Scalar(c.name, (*ROOT, 1, part, c.number), c.syntax, c.access, read(c), (table,), c.volatile,
                        c.allowed, c.size) for c in columns)  # fmt: skip


def _own(part: int, tables: tuple[str, ...], *columns: Column) -> tuple[Scalar, ...]:
    """Scalars that the agent itself can say, with or without an engine; their sources get None for the row."""

    def read(column: Column) -> Callable[[Reader], Value | None]:
        return lambda r: column.read(r, None)

    return tuple(Scalar(c.name, (*ROOT, 1, part, c.number), c.syntax, c.access, read(c), tables, c.volatile,
                        c.allowed, c.size) for c in columns)  # fmt: skip


def _table(name: str, oid: Oid, view_table: str, key: Callable[[Any], Oid], index: tuple[Index, ...],
           *columns: Column) -> TableDef:  # fmt: skip
    def rows(view: View) -> list[tuple[Oid, Any]]:
        return sorted(((key(row), row) for row in view.tables[view_table].values()), key=lambda pair: pair[0])

    return TableDef(name, (*ROOT, 1, *oid, 1), index, rows, columns, (view_table,), key)


def _state(name: str, unknown: IntEnum) -> _Source:
    """A state, and `unknown` as long as nobody is there to vouch for it: the last good one would be a lie."""
    get = attrgetter(name)
    return _Of(name, lambda r, row: get(row) if r.fresh else unknown)


def _stamp(name: str) -> _Source:
    get = attrgetter(name)
    return _Of(name, lambda r, row: r.timestamp(get(row)))


def _date(name: str) -> _Source:
    get = attrgetter(name)
    return _Of(name, lambda r, row: r.date(get(row)))


def _wall(name: str) -> _Source:
    get = attrgetter(name)
    return _Of(name, lambda r, row: date_and_time(get(row)))


def _age(name: str) -> _Source:
    get = attrgetter(name)
    return _Of(name, lambda r, row: r.age_ms(get(row)))


def _list(name: str) -> _Source:
    get = attrgetter(name)
    return _Of(name, lambda r, row: ",".join(get(row)))


def _inet_type(r: Reader, row: Any) -> int:
    return inet_address(row.address)[0]


def _inet(r: Reader, row: Any) -> bytes:
    return inet_address(row.address)[1]


def _lease_remaining_ms(r: Reader, row: Any) -> int:
    """By the moment of the row, for a lease is renewed many times before the engine tells of it again: by the clock it
    would seem to run out each second. Once the engine is silent nobody vouches for a renewal, and it does run out."""
    if not row.lease_until_ns:
        return 0
    # data_ns is the row's own moment where this node is the owner, and else the owner's last word, which is older.
    at_ns = r.now_ns if not r.fresh else row.data_ns if row.owner == r.node else r.view.now_ns
    return int(max(0, row.lease_until_ns - at_ns) // 1_000_000)  # rounded down: none is to be believed in that is over


def _constant(value: int | str) -> _Source:
    return _Of("", lambda r, row: value)


_NO_ACTION = _constant(1)  # a write gives a command; there is nothing to read back (CISCO-RF-MIB does the same)
_NO_TEXT = _constant("")

# ------------------------------------------------------------------------------------------------------- the objects
# fmt: off

SCALARS: tuple[Scalar, ...] = tuple(sorted((
    *_scalars(
        1, "system",
        _column(1, "haClusterName", OCTETS, "cluster"),
        _column(2, "haNodeName", OCTETS, "node"),
        _column(3, "haVersion", OCTETS, "version"),
        _column(4, "haRole", INTEGER32, _state("role", Role.UNKNOWN)),
        _column(5, "haCondition", INTEGER32, _state("condition", Condition.UNKNOWN)),
        _column(6, "haClusterCondition", INTEGER32, _state("cluster_condition", Condition.UNKNOWN)),
        _column(7, "haLastRoleChange", TIMETICKS, _stamp("last_role_change_ns")),
        _column(8, "haLastRoleChangeDate", OCTETS, _date("last_role_change_ns")),
        _column(9, "haRoleChanges", COUNTER32, "role_changes"),
        _column(12, "haGuardianState", INTEGER32, _state("guardian_state", PartState.UNKNOWN)),
        _column(13, "haWatchdogState", INTEGER32, _state("watchdog_state", PartState.UNKNOWN)),
        _column(14, "haEngineStarted", OCTETS, _date("started_ns")),
    ),
    *_own(
        1, ("system",),
        _column(10, "haDataAge", UNSIGNED32, lambda r, _: r.age_ms(r.view.now_ns), volatile=True),
        _column(11, "haEngineState", INTEGER32, lambda r, _: r.view.tables["system"][""].engine_state  # type: ignore[union-attr]
                if r.fresh and r.view.tables["system"] else PartState.DOWN),
    ),
    *_own(
        2, (),
        _column(1, "haActionSpinLock", INTEGER32, lambda r, _: r.spin_lock, volatile=True, allowed=range(2**31)),
        _column(3, "haAction", INTEGER32, _NO_ACTION, allowed=range(1, 9)),
        _column(4, "haActionTarget", OCTETS, _NO_TEXT, size=NAME_SIZE),
        _column(5, "haActionTo", OCTETS, _NO_TEXT, size=NAME_SIZE),
        _column(6, "haActionReason", OCTETS, _NO_TEXT, size=TEXT_SIZE),
    ),
    *_scalars(2, "system", _column(2, "haInhibit", INTEGER32, "inhibited", allowed=TRUTH)),
    *_scalars(
        9, "config",
        _column(1, "haConfigDigest", OCTETS, "digest"),
        _column(2, "haConfigSource", OCTETS, "source"),
        _column(3, "haConfigLoaded", TIMETICKS, _stamp("loaded_ns")),
        _column(4, "haConfigLoadedDate", OCTETS, _date("loaded_ns")),
        _column(5, "haConfigError", OCTETS, "error"),
        _column(6, "haConfigInterval", UNSIGNED32, "interval_ms"),
        _column(7, "haConfigLateAfter", UNSIGNED32, "late_after_ms"),
        _column(8, "haConfigDeadAfter", UNSIGNED32, "dead_after_ms"),
        _column(9, "haConfigStartupWait", UNSIGNED32, "startup_wait_ms"),
        _column(10, "haConfigKillTime", UNSIGNED32, "kill_ms"),
        _column(11, "haConfigLeaseTime", UNSIGNED32, "lease_ms"),
        _column(12, "haConfigIoTimeout", UNSIGNED32, "io_timeout_ms"),
        _column(13, "haConfigRecoveryAutomatic", INTEGER32, "recovery_automatic"),
    ),
    *_own(9, (), _column(14, "haConfigAction", INTEGER32, _NO_ACTION, allowed=range(1, 3))),
    *_scalars(
        10, "statistics",
        _column(1, "haStatFailovers", COUNTER32, "failovers"),
        _column(2, "haStatTakeovers", COUNTER32, "takeovers"),
        _column(3, "haStatSwitchovers", COUNTER32, "switchovers"),
        _column(4, "haStatFailedTakeovers", COUNTER32, "failed_takeovers"),
        _column(5, "haStatHeartbeatsSent", COUNTER32, "heartbeats_sent"),
        _column(6, "haStatHeartbeatsReceived", COUNTER32, "heartbeats_received"),
        _column(7, "haStatHeartbeatsLate", COUNTER32, "heartbeats_late"),
        _column(8, "haStatRejectedMalformed", COUNTER32, "rejected_malformed"),
        _column(9, "haStatRejectedForeign", COUNTER32, "rejected_foreign"),
        _column(10, "haStatRejectedSignature", COUNTER32, "rejected_signature"),
        _column(11, "haStatRejectedReplayed", COUNTER32, "rejected_replayed"),
        _column(12, "haStatRejectedReordered", COUNTER32, "rejected_reordered"),
        _column(13, "haStatRejectedStale", COUNTER32, "rejected_stale"),
        _column(14, "haStatRejectedVersion", COUNTER32, "rejected_version"),
        _column(15, "haStatWorstLateness", UNSIGNED32, "worst_lateness_us"),
        _column(16, "haStatServiceFailures", COUNTER32, "service_failures"),
        _column(17, "haStatServiceRestarts", COUNTER32, "service_restarts"),
        _column(18, "haStatCommands", COUNTER32, "commands"),
        _column(19, "haStatEvents", COUNTER32, "events"),
        _column(20, "haStatSince", OCTETS, _wall("since_wall_ms")),
    ),
    *_scalars(10, "system", _column(21, "haStatDiscontinuityTime", TIMETICKS, _stamp("started_ns"))),
    *_own(11, (), _column(1, "haEventSize", UNSIGNED32, lambda r, _: r.events_keep)),
    *_own(11, ("events",), _column(2, "haEventCount", UNSIGNED32, lambda r, _: len(r.view.tables["events"]))),
    *_own(12, ("alarms",), _column(1, "haAlarmCount", UNSIGNED32, lambda r, _: len(r.view.tables["alarms"]))),
), key=lambda scalar: scalar.oid))

TABLES: tuple[TableDef, ...] = (
    _table(
        "haCommandTable", (2, 7), "commands", lambda row: (row.id,), (Index("haCommandIndex", 1, UNSIGNED32),),
        _column(2, "haCommandRequester", OCTETS, "requester"),
        _column(3, "haCommandAddressType", INTEGER32, _inet_type),
        _column(4, "haCommandAddress", OCTETS, _inet),
        _column(5, "haCommandVerb", INTEGER32, "verb"),
        _column(6, "haCommandTarget", OCTETS, "target"),
        _column(7, "haCommandTo", OCTETS, "to"),
        _column(8, "haCommandReason", OCTETS, "reason"),
        _column(9, "haCommandState", INTEGER32, "state"),
        _column(10, "haCommandResult", INTEGER32, "code"),
        _column(11, "haCommandText", OCTETS, "text"),
        _column(12, "haCommandAsked", TIMETICKS, _stamp("asked_ns")),
        _column(13, "haCommandAskedDate", OCTETS, _wall("asked_wall_ms")),
        _column(14, "haCommandEnded", TIMETICKS, _stamp("ended_ns")),
        _column(15, "haCommandEndedDate", OCTETS, _wall("ended_wall_ms")),
    ),
    _table(
        "haNodeTable", (3,), "nodes", lambda row: text_index(row.name), (Index("haNodeEntryName", 1, OCTETS),),
        _column(2, "haNodeState", INTEGER32, _state("state", NodeState.UNKNOWN)),
        _column(3, "haNodeRole", INTEGER32, _state("role", Role.UNKNOWN)),
        _column(4, "haNodeCondition", INTEGER32, _state("condition", Condition.UNKNOWN)),
        _column(5, "haNodeThis", INTEGER32, "this"),
        _column(6, "haNodeStandby", INTEGER32, "standby"),
        _column(7, "haNodeRecovering", INTEGER32, "recovering"),
        _column(8, "haNodeIncarnation", OCTETS, "incarnation"),
        _column(9, "haNodeLastHeard", TIMETICKS, _stamp("last_heard_ns")),
        _column(10, "haNodeLastHeardAge", UNSIGNED32, lambda r, row: 0 if row.this else r.age_ms(row.last_heard_ns),
                volatile=True),
        _column(11, "haNodeLastChange", TIMETICKS, _stamp("last_change_ns")),
        _column(12, "haNodeLastChangeDate", OCTETS, _date("last_change_ns")),
        _column(13, "haNodeTransitions", COUNTER32, "transitions"),
        _column(14, "haNodeHeartbeatsReceived", COUNTER32, "heartbeats_received"),
        _column(15, "haNodeHeartbeatsLate", COUNTER32, "heartbeats_late"),
        _column(16, "haNodeConfigDigest", OCTETS, "digest"),
        _column(17, "haNodeVersion", OCTETS, "version"),
        _column(18, "haNodeFenceAction", INTEGER32, _NO_ACTION, allowed=range(1, 3)),
        _column(19, "haNodeFenceConfirm", OCTETS, _NO_TEXT, size=NAME_SIZE),
    ),
    _table(
        "haLinkTable", (4,), "links", lambda row: text_index(row.node) + text_index(row.link),
        (Index("haLinkNode", 1, OCTETS), Index("haLinkName", 2, OCTETS)),
        _column(3, "haLinkAddressType", INTEGER32, _inet_type),
        _column(4, "haLinkAddress", OCTETS, _inet),
        _column(5, "haLinkState", INTEGER32, _state("state", LinkState.UNKNOWN)),
        _column(6, "haLinkSent", COUNTER32, "sent"),
        _column(7, "haLinkReceived", COUNTER32, "received"),
        _column(8, "haLinkLost", COUNTER32, "lost"),
        _column(9, "haLinkRoundTrip", UNSIGNED32, "round_trip_us"),
        _column(10, "haLinkLastHeard", TIMETICKS, _stamp("last_heard_ns")),
        _column(11, "haLinkLastChange", TIMETICKS, _stamp("last_change_ns")),
        _column(12, "haLinkLastChangeDate", OCTETS, _date("last_change_ns")),
        _column(13, "haLinkTransitions", COUNTER32, "transitions"),
    ),
    _table(
        "haGroupTable", (5,), "groups", lambda row: text_index(row.name), (Index("haGroupName", 1, OCTETS),),
        _column(2, "haGroupState", INTEGER32, _state("state", GroupState.UNKNOWN)),
        _column(3, "haGroupCondition", INTEGER32, _state("condition", Condition.UNKNOWN)),
        _column(4, "haGroupOwner", OCTETS, lambda r, row: row.owner if r.fresh else ""),
        _column(5, "haGroupToken", UNSIGNED32, "token"),
        _column(6, "haGroupLeaseRemaining", UNSIGNED32, _lease_remaining_ms, volatile=True),
        _column(7, "haGroupProof", INTEGER32, _state("proof", Proof.NONE)),
        _column(8, "haGroupHomeNode", OCTETS, "home"),
        _column(9, "haGroupNodes", OCTETS, _list("nodes")),
        _column(10, "haGroupFailback", INTEGER32, "failback"),
        _column(11, "haGroupInhibit", INTEGER32, "inhibited", allowed=TRUTH),
        _column(12, "haGroupFreeze", INTEGER32, "frozen", allowed=TRUTH),
        _column(13, "haGroupAction", INTEGER32, _NO_ACTION, allowed=range(1, 4)),
        _column(14, "haGroupActionTarget", OCTETS, _NO_TEXT, size=NAME_SIZE),
        _column(15, "haGroupLastChange", TIMETICKS, _stamp("last_change_ns")),
        _column(16, "haGroupLastChangeDate", OCTETS, _date("last_change_ns")),
        _column(17, "haGroupTransitions", COUNTER32, "transitions"),
        _column(18, "haGroupFailovers", COUNTER32, "failovers"),
        _column(19, "haGroupFailoverCount", UNSIGNED32, "failover_count"),
        _column(20, "haGroupFailoverLimit", UNSIGNED32, "failover_limit"),
        _column(21, "haGroupExcludedNodes", OCTETS, _list("excluded")),
        _column(22, "haGroupLastReason", INTEGER32, "last_reason"),
        _column(23, "haGroupLastReasonText", OCTETS, "last_reason_text"),
        _column(24, "haGroupLastDuration", UNSIGNED32, "last_duration_ms"),
        _column(25, "haGroupDataAge", UNSIGNED32, _age("data_ns"), volatile=True),
    ),
    _table(
        "haServiceTable", (6,), "services", lambda row: text_index(row.name), (Index("haServiceName", 1, OCTETS),),
        _column(2, "haServiceGroup", OCTETS, "group"),
        _column(3, "haServiceNode", OCTETS, "node"),
        _column(4, "haServiceAgent", OCTETS, "agent"),
        _column(5, "haServiceState", INTEGER32, _state("state", ServiceState.UNKNOWN)),
        _column(6, "haServiceAdminState", INTEGER32, "admin"),
        _column(7, "haServiceAction", INTEGER32, _NO_ACTION, allowed=range(1, 6)),
        _column(8, "haServiceCritical", INTEGER32, "critical"),
        _column(9, "haServiceChecks", COUNTER32, "checks"),
        _column(10, "haServiceFailures", COUNTER32, "failures"),
        _column(11, "haServiceRestarts", UNSIGNED32, "restarts"),
        _column(12, "haServiceRestartLimit", UNSIGNED32, "restart_limit"),
        _column(13, "haServiceLastCheck", TIMETICKS, _stamp("last_check_ns")),
        _column(14, "haServiceCheckTime", UNSIGNED32, "check_us"),
        _column(15, "haServiceLastChange", TIMETICKS, _stamp("last_change_ns")),
        _column(16, "haServiceLastChangeDate", OCTETS, _date("last_change_ns")),
        _column(17, "haServiceTransitions", COUNTER32, "transitions"),
        _column(18, "haServicePid", UNSIGNED32, "pid"),
        _column(19, "haServiceMessage", OCTETS, "message"),
        _column(20, "haServiceDataAge", UNSIGNED32, _age("data_ns"), volatile=True),
        _column(21, "haServiceReport", INTEGER32, _NO_ACTION, allowed=range(1, 4)),
        _column(22, "haServiceReportMessage", OCTETS, _NO_TEXT, size=TEXT_SIZE),
    ),
    _table(
        "haArbiterTable", (7,), "arbiters", lambda row: text_index(row.type), (Index("haArbiterType", 1, OCTETS),),
        _column(2, "haArbiterState", INTEGER32, _state("state", ArbiterState.UNKNOWN)),
        _column(3, "haArbiterDevice", OCTETS, "device"),
        _column(4, "haArbiterUuid", OCTETS, "uuid"),
        _column(5, "haArbiterLastOk", TIMETICKS, _stamp("last_ok_ns")),
        _column(6, "haArbiterLatency", UNSIGNED32, "latency_us"),
        _column(7, "haArbiterLastChange", TIMETICKS, _stamp("last_change_ns")),
        _column(8, "haArbiterLastChangeDate", OCTETS, _date("last_change_ns")),
        _column(9, "haArbiterTransitions", COUNTER32, "transitions"),
        _column(10, "haArbiterError", OCTETS, "error"),
    ),
    _table(
        "haFenceTable", (8,), "fences", lambda row: (*text_index(row.node), row.level),
        (Index("haFenceNode", 1, OCTETS), Index("haFenceLevel", 2, UNSIGNED32)),
        _column(3, "haFenceAgent", OCTETS, "agent"),
        _column(4, "haFenceCuts", OCTETS, "cuts"),
        _column(5, "haFenceLastResult", OCTETS, "last_result"),
        _column(6, "haFenceLastTime", TIMETICKS, _stamp("last_ns")),
        _column(7, "haFenceLastTimeDate", OCTETS, _date("last_ns")),
        _column(8, "haFenceLastTest", TIMETICKS, _stamp("last_test_ns")),
        _column(9, "haFenceLastTestDate", OCTETS, _date("last_test_ns")),
    ),
    _table(
        "haEventTable", (11, 3), "events", lambda row: (row.id,), (Index("haEventIndex", 1, UNSIGNED32),),
        _column(2, "haEventId", UNSIGNED32, "id"),
        _column(3, "haEventKind", INTEGER32, lambda r, row: KIND_NUMBERS[row.kind]),
        _column(4, "haEventSeverity", INTEGER32, "severity"),
        _column(5, "haEventTime", TIMETICKS, _stamp("ns")),
        _column(6, "haEventDate", OCTETS, _wall("wall_ms")),
        _column(7, "haEventNode", OCTETS, "node"),
        _column(8, "haEventOwnState", INTEGER32, lambda r, row: row.own_state or Role.UNKNOWN),
        _column(9, "haEventPeer", OCTETS, "peer"),
        _column(10, "haEventPeerState", INTEGER32, lambda r, row: row.peer_state or NodeState.UNKNOWN),
        _column(11, "haEventPreviousState", UNSIGNED32, "previous_state"),
        _column(12, "haEventState", UNSIGNED32, "state"),
        _column(13, "haEventReason", INTEGER32, "reason"),
        _column(14, "haEventGroup", OCTETS, "group"),
        _column(15, "haEventService", OCTETS, "service"),
        _column(16, "haEventLink", OCTETS, "link"),
        _column(17, "haEventAlarmKey", OCTETS, "alarm"),
        _column(18, "haEventCommonId", OCTETS, "common_id"),
        _column(19, "haEventText", OCTETS, "message"),
    ),
    _table(
        "haAlarmTable", (12, 2), "alarms", lambda row: (row.event_id,), (Index("haAlarmIndex", 1, UNSIGNED32),),
        _column(2, "haAlarmKey", OCTETS, "key"),
        _column(3, "haAlarmKind", INTEGER32, lambda r, row: KIND_NUMBERS[row.kind]),
        _column(4, "haAlarmSeverity", INTEGER32, "severity"),
        _column(5, "haAlarmNode", OCTETS, "node"),
        _column(6, "haAlarmObject", OCTETS, "object"),
        _column(7, "haAlarmSince", TIMETICKS, _stamp("since_ns")),
        _column(8, "haAlarmSinceDate", OCTETS, _wall("since_wall_ms")),
        _column(9, "haAlarmText", OCTETS, "message"),
    ),
)
# fmt: on

# Every object that is served, by name.
OBJECTS: dict[str, Scalar | Column] = {s.name: s for s in SCALARS} | {c.name: c for t in TABLES for c in t.columns}
