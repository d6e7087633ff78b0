"""The view of a node as text and as JSON: what `status`, `stats`, `events`, `alarms` and `commands` print.

Every state is shown with its age, counted to the view's own now_ns. Reads rows of model.py only.
"""

from __future__ import annotations

from dataclasses import fields
from enum import Enum
from typing import Any, TypeVar

from hasnmp.console.tables import Cell, Screen, age, clean, clock, cut, label, span, table, word, wrap
from hasnmp.model import (
    AdminState,
    AlarmRow,
    ArbiterRow,
    ArbiterState,
    CommandRow,
    CommandState,
    Condition,
    ConfigRow,
    EventRow,
    FenceRow,
    GroupRow,
    GroupState,
    LinkRow,
    LinkState,
    NodeRow,
    NodeState,
    PartState,
    Proof,
    Reason,
    Role,
    Row,
    ServiceRow,
    ServiceState,
    Severity,
    StatisticsRow,
    SystemRow,
    View,
)

STALE_NS = 5_000_000_000  # facts that another node told us longer ago are said to be that old


def _named(*members: Enum) -> frozenset[tuple[type, str]]:
    # By class and name: members of two IntEnums with the same number are equal, and one would swallow the other.
    return frozenset((type(member), member.name) for member in members)


_GOOD = _named(Condition.OK, NodeState.UP, LinkState.UP, GroupState.RUNNING, ServiceState.RUNNING, PartState.UP,
               ArbiterState.RESTING, CommandState.DONE, Role.PRIMARY, Role.SHARED, Role.STANDBY)  # fmt: skip
_BAD = _named(Condition.FAILED, NodeState.LOST, LinkState.DOWN, GroupState.FAILED, GroupState.BLOCKED,
              ServiceState.FAILED, ServiceState.STOP_FAILED, PartState.DOWN, ArbiterState.LOST, ArbiterState.MISMATCH,
              CommandState.FAILED, CommandState.REFUSED, Role.OFFLINE)  # fmt: skip
_SEVERITIES = {Severity.CRITICAL: "bad", Severity.MAJOR: "bad", Severity.MINOR: "warn", Severity.WARNING: "warn",
               Severity.CLEARED: "good"}  # fmt: skip

R = TypeVar("R")


def rows_of(view: View, name: str, cls: type[R]) -> list[R]:
    """The rows of one table, in the order in which the engine sent them."""
    return [row for row in view.tables[name].values() if isinstance(row, cls)]


def first(view: View, name: str, cls: type[R]) -> R | None:
    """The row of a table that has only one; None while the engine has not filled it."""
    return next(iter(rows_of(view, name, cls)), None)


def _state(value: Enum) -> tuple[str, str]:
    key = (type(value), value.name)
    return word(value), "good" if key in _GOOD else "bad" if key in _BAD else "warn"


def severity_cell(severity: Severity) -> Cell:
    return word(severity), _SEVERITIES.get(severity, "")


# ---------------------------------------------------------------------------------------------------------- status


def status(view: View, screen: Screen) -> list[str]:
    """The whole picture: cluster, nodes, links, groups, services, arbiter, standing alarms."""
    blocks = [_head(view, screen), _nodes(view, screen), _links(view, screen), _groups(view, screen),
              _services(view, screen), _arbiters(view, screen), alarms(view, screen)]  # fmt: skip
    lines: list[str] = []
    for block in blocks:
        if block:
            lines += ["", *block] if lines else block
    return lines


def _head(view: View, screen: Screen) -> list[str]:
    system = first(view, "system", SystemRow)
    if system is None:
        return ["the engine has not shown anything yet: it is starting"]
    condition, meaning = _state(system.cluster_condition)
    role, role_meaning = _state(system.role)
    # Nobody knows since when where the engine has been replaced and the role has not changed since.
    since = f" for {age(system.last_role_change_ns, view.now_ns)}" if system.last_role_change_ns else ""
    lines = [
        f"cluster {screen.paint(clean(system.cluster), 'strong')}: {screen.paint(condition, meaning)}",
        f"this node {screen.paint(clean(system.node), 'strong')}: {screen.paint(role, role_meaning)}"
        f"{since}, {word(system.condition)}",
        f"hasnmp {clean(system.version)}, started {age(system.started_ns, view.now_ns)} ago",
    ]
    for part, state in (("engine", system.engine_state), ("guardian", system.guardian_state)):
        if state is not PartState.UP:
            lines.append(screen.paint(f"{part}: {word(state)}", "bad"))
    if system.inhibited:
        lines.append(screen.paint("automatic failover is inhibited for every group (hasnmp permit ends it)", "warn"))
    return lines


def _nodes(view: View, screen: Screen) -> list[str]:
    rows: list[list[Cell]] = []
    for node in rows_of(view, "nodes", NodeRow):
        remarks = [text for text, true in (
            ("drained", node.standby), ("waits for: hasnmp recover", node.recovering)) if true]  # fmt: skip
        rows.append([node.name + (" *" if node.this else ""), _state(node.state), _state(node.role), _state(node.condition),
                     age(node.last_change_ns, view.now_ns),
                     "" if node.this else age(node.last_heard_ns, view.now_ns), ", ".join(remarks)])  # fmt: skip
    return table(screen, ["NODE", "STATE", "ROLE", "CONDITION", "FOR", "LAST HEARD", "REMARKS"], rows)


def _links(view: View, screen: Screen) -> list[str]:
    rows: list[list[Cell]] = [[row.link, row.node, row.address, _state(row.state), age(row.last_change_ns, view.now_ns),
             f"{row.round_trip_us / 1000:.1f} ms" if row.round_trip_us else "-", str(row.lost)]
            for row in rows_of(view, "links", LinkRow)]  # fmt: skip
    return table(screen, ["LINK", "TO", "ADDRESS", "STATE", "FOR", "ROUND TRIP", "LOST"], rows, right="LOST")


def _lease(group: GroupRow, now_ns: int) -> Cell:
    if group.proof is Proof.NONE or not group.lease_until_ns:
        return "-"
    left = group.lease_until_ns - now_ns
    return ("ended", "warn") if left <= 0 else f"{span(left)} {word(group.proof)}"


def _groups(view: View, screen: Screen) -> list[str]:
    rows: list[list[Cell]] = []
    for group in rows_of(view, "groups", GroupRow):
        remarks = [text for text, true in (
            ("inhibited", group.inhibited), ("frozen", group.frozen),
            (f"excluded: {', '.join(group.excluded)}", group.excluded),
            (f"failover limit {group.failover_count}/{group.failover_limit}",
             group.failover_limit and group.failover_count >= group.failover_limit),
            (f"as of {age(group.data_ns, view.now_ns)} ago", _stale(group.data_ns, view))) if true]  # fmt: skip
        rows.append([group.name, _state(group.state), group.owner or "-", age(group.last_change_ns, view.now_ns),
                     _lease(group, view.now_ns), group.home, "; ".join(remarks)])  # fmt: skip
    return table(screen, ["GROUP", "STATE", "ON", "FOR", "LEASE", "HOME", "REMARKS"], rows)


def _services(view: View, screen: Screen) -> list[str]:
    rows: list[list[Cell]] = []
    for row in rows_of(view, "services", ServiceRow):
        said = [text for text, true in (
            ("locked by command", row.admin is AdminState.LOCKED), ("not critical", not row.critical),
            (f"as of {age(row.data_ns, view.now_ns)} ago", _stale(row.data_ns, view)),
            (row.message, row.message)) if true]  # fmt: skip
        rows.append([row.name, row.group, _state(row.state), row.node or "-", age(row.last_change_ns, view.now_ns),
                     age(row.last_check_ns, view.now_ns), f"{row.restarts}/{row.restart_limit}",
                     "; ".join(said)])  # fmt: skip
    return table(screen, ["SERVICE", "GROUP", "STATE", "ON", "FOR", "CHECKED", "RESTARTS", "MESSAGE"], rows)


def _stale(data_ns: int, view: View) -> bool:
    return bool(data_ns) and view.now_ns - data_ns > STALE_NS


def _arbiters(view: View, screen: Screen) -> list[str]:
    rows: list[list[Cell]] = [[row.type, _state(row.state), age(row.last_change_ns, view.now_ns), age(row.last_ok_ns, view.now_ns),
             f"{row.latency_us / 1000:.1f} ms" if row.latency_us else "-", row.error or row.device]
            for row in rows_of(view, "arbiters", ArbiterRow)]  # fmt: skip
    return table(screen, ["ARBITER", "STATE", "FOR", "LAST OK", "TOOK", "DEVICE OR ERROR"], rows)


def alarms(view: View, screen: Screen) -> list[str]:
    """The alarms that stand, the worst first, each with its whole message."""
    standing = sorted(rows_of(view, "alarms", AlarmRow), key=lambda row: (row.severity, row.since_wall_ms))
    rows: list[list[Cell]] = [
        [row.kind.value, severity_cell(row.severity), age(row.since_ns, view.now_ns), row.node, row.object, row.message]
        for row in standing
    ]
    return table(screen, ["ALARM", "SEVERITY", "FOR", "ON", "OF", "MESSAGE"], rows) or [
        screen.paint("no alarm stands on this node", "good")
    ]


def fences(view: View, screen: Screen) -> list[str]:
    """Every fence level: when it was last used, when its device last answered well, and what came of the last time."""
    rows: list[list[Cell]] = []
    for row in sorted(rows_of(view, "fences", FenceRow), key=lambda row: (row.node, row.level)):
        bad = "failed" in row.last_result
        tested = age(row.last_test_ns, view.now_ns) + " ago" if row.last_test_ns else "never"
        rows.append([row.node, str(row.level), row.agent, row.cuts,
                     age(row.last_ns, view.now_ns) + " ago" if row.last_ns else "never",
                     (tested, "" if row.last_test_ns and not bad else "warn"),
                     (row.last_result, "bad" if bad else "")])  # fmt: skip
    return table(screen, ["NODE", "LEVEL", "AGENT", "CUTS", "USED", "TESTED WELL", "LAST RESULT"], rows) or [
        "no node has a fence level: see `fence:` of the nodes in the configuration"
    ]


# ----------------------------------------------------------------------------------- statistics, events and commands


def stats(view: View, screen: Screen) -> list[str]:
    """The counters of this node, then of every node, group and service, and the timings in force."""
    lines = []
    counters = first(view, "statistics", StatisticsRow)
    if counters is not None:
        lines.append(f"counters of this node since {clock(counters.since_wall_ms)}")
        names = [f.name for f in fields(StatisticsRow) if f.name != "since_wall_ms"]
        cells = [f"{_title(name):<27}{_amount(name, getattr(counters, name)):>11}" for name in names]
        half = (len(cells) + 1) // 2
        for left, right in zip(cells[:half], [*cells[half:], ""], strict=False):
            lines.append(f"{left}    {right}".rstrip())
    nodes: list[list[Cell]] = [[row.name, str(row.heartbeats_received), str(row.heartbeats_late), str(row.transitions),
              age(row.last_change_ns, view.now_ns)] for row in rows_of(view, "nodes", NodeRow)]  # fmt: skip
    groups: list[list[Cell]] = [[row.name, str(row.failovers), str(row.transitions), f"{row.failover_count}/{row.failover_limit}",
               f"{row.last_duration_ms} ms" if row.last_duration_ms else "-",
               "" if row.last_reason is Reason.NONE else word(row.last_reason), age(row.last_change_ns, view.now_ns)]
              for row in rows_of(view, "groups", GroupRow)]  # fmt: skip
    services: list[list[Cell]] = [[row.name, str(row.checks), str(row.failures), f"{row.restarts}/{row.restart_limit}",
                 f"{row.check_us / 1000:.1f} ms" if row.check_us else "-", str(row.transitions),
                 age(row.last_change_ns, view.now_ns)] for row in rows_of(view, "services", ServiceRow)]  # fmt: skip
    for block in (
        table(screen, ["NODE", "HEARTBEATS", "LATE", "CHANGES", "LAST"], nodes, right="HEARTBEATS LATE CHANGES"),
        table(screen, ["GROUP", "MOVES", "CHANGES", "OF LIMIT", "LAST TOOK", "WHY", "LAST"], groups, right="MOVES CHANGES"),
        table(screen, ["SERVICE", "CHECKS", "FAILURES", "RESTARTS", "CHECK TOOK", "CHANGES", "LAST"], services,
              right="CHECKS FAILURES CHANGES"),
    ):  # fmt: skip
        if block:
            lines += ["", *block]
    config = first(view, "config", ConfigRow)
    if config is not None:
        lines += ["", f"configuration {clean(config.digest)}, loaded {age(config.loaded_ns, view.now_ns)} ago"]
        timings = [f"{name.removesuffix('_ms')} {getattr(config, name)} ms" for name in
                   ("interval_ms", "late_after_ms", "dead_after_ms", "startup_wait_ms", "kill_ms", "lease_ms",
                    "io_timeout_ms")]  # fmt: skip
        lines += wrap("in force: " + ", ".join(timings).replace("_", " "), screen.width, "  ")
        if config.error:
            lines += wrap("not loaded: " + config.error, screen.width, "  ")
    return lines


def _title(name: str) -> str:
    return name.removesuffix("_us").replace("_", " ")


def _amount(name: str, value: int) -> str:
    return f"{value / 1000:.1f} ms" if name.endswith("_us") else str(value)


def event_line(event: EventRow, screen: Screen, *, whole: bool = True) -> str:
    """One event as one line: time, severity, name, who says so, what. whole=False: cut to the screen, without the day."""
    severity, meaning = f"{word(event.severity):<8}", _SEVERITIES.get(event.severity, "dim")
    head = f"{clock(event.wall_ms, day=whole)} {severity} {event.kind.value} "
    said = f"{clean(event.node)}: {clean(event.message)}"
    said = said if whole else cut(said, max(0, screen.width - len(head)))
    return head.replace(severity, screen.paint(severity, meaning), 1) + said


def events(view: View) -> list[EventRow]:
    """The events that are kept, oldest first."""
    return sorted(rows_of(view, "events", EventRow), key=lambda row: row.id)


def commands(view: View) -> list[CommandRow]:
    """The commands that are kept, oldest first."""
    return sorted(rows_of(view, "commands", CommandRow), key=lambda row: (row.asked_wall_ms, row.id))


def command_lines(kept: list[CommandRow], screen: Screen) -> list[str]:
    """Three lines or so a command: when, and how it ended; what was asked; by whom, and the engine's words."""
    lines = []
    for row in kept:
        state, meaning = _state(row.state)
        what = f"{word(row.verb)} {row.target or 'all'}" + (f" to {row.to}" if row.to else "")
        took = f", {row.ended_wall_ms - row.asked_wall_ms} ms" if row.ended_wall_ms else ""
        code = f" [{row.code.name if isinstance(row.code, Enum) else row.code}={int(row.code)}]" if row.code else ""
        lines.append(f"{row.id}  {clock(row.asked_wall_ms)}  {screen.paint(state, meaning)}{took}")
        lines += wrap(f"   {what}", screen.width, "   ")
        asked = f"asked by {row.requester}" + (f" from {row.address}" if row.address else "")
        asked += f' ("{row.reason}")' if row.reason else ""
        lines += wrap(f"   {asked}{'; ' if row.text else ''}{row.text}{code}", screen.width, "   ")
    return lines


# ------------------------------------------------------------------------------------------------------------ JSON


def row_json(row: Row) -> dict[str, Any]:
    """A row as `--json` prints it: as on the control socket, but enumerations by the names of the MIB."""
    return {f.name: _plain(getattr(row, f.name)) for f in fields(row)}


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value if isinstance(value.value, str) else label(value)
    return list(value) if isinstance(value, tuple) else value


def view_json(view: View, tables: tuple[str, ...]) -> dict[str, Any]:
    """Some tables of the view: {"now_ns", "wall_ms", table: [row]}; ages are now_ns less the row's fields in _ns."""
    shown: dict[str, Any] = {"now_ns": view.now_ns, "wall_ms": view.wall_ms}
    for name in tables:
        rows = [row_json(row) for row in view.tables[name].values()]
        shown[name] = (rows[0] if rows else None) if name in ("system", "config", "statistics") else rows
    return shown
