"""What happened, and what became of it: events, alarms, commands, statistics. All of it survives a restart.

One `happened()` is the trap, the log line, the event row and the console message at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

from hasnmp.core.context import MS, Context
from hasnmp.core.events import Notify, Reply
from hasnmp.errors import Code
from hasnmp.model import (
    ALARMS,
    CLEARS,
    SEVERITIES,
    AlarmRow,
    CommandRow,
    CommandState,
    EventRow,
    Kind,
    Reason,
    Severity,
    StatisticsRow,
    Verb,
)

KEEP_COMMANDS = 100
KEEP_DURABLE = 200  # events that go into the durable document; the ring itself keeps events.keep
TEXT_OCTETS = 255  # of a message: what an SnmpAdminString may hold


# clearing kind -> the alarms that it ends
ENDS: dict[Kind, tuple[Kind, ...]] = {
    clear: tuple(k for k, (_, c) in ALARMS.items() if c is clear) for clear in CLEARS
}  # fmt: skip


def flat(row: Any) -> dict[str, Any]:
    """A row as a dict: dataclasses.asdict without its deep copies, for a row's fields are plain values."""
    return {f.name: getattr(row, f.name) for f in fields(row)}


def clip(text: str) -> str:
    """At most TEXT_OCTETS octets of UTF-8, on one line."""
    line = " ".join(text.split())
    octets = line.encode(errors="replace")
    return line if len(octets) <= TEXT_OCTETS else octets[: TEXT_OCTETS - 3].decode(errors="ignore") + "..."


def number_of(value: Any, default: int = 0) -> int:
    """A number out of a durable document or a peer's word, whatever stands there; beyond 63 bits is none."""
    good = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63
    return value if good else default


def mapping(value: Any) -> dict[str, Any]:
    """An object out of a durable document or a peer's word; empty for anything else."""
    return value if isinstance(value, dict) else {}


def strings(value: Any) -> set[str]:
    """The strings of a list out of a durable document; empty for anything else."""
    return {text for text in value if isinstance(text, str)} if isinstance(value, list) else set()


@dataclass(slots=True)
class Journal:
    node: str
    keep: int
    events: dict[int, EventRow] = field(default_factory=dict)
    alarms: dict[str, AlarmRow] = field(default_factory=dict)
    commands: dict[int, CommandRow] = field(default_factory=dict)
    statistics: StatisticsRow = StatisticsRow()
    counts: dict[str, int] = field(default_factory=dict)  # counters since the last row was made
    last_event: int = 0
    last_command: int = 0
    role: int = 0  # own role, kept here by the engine: every event carries it
    changed: bool = False

    # ---------------------------------------------------------------------------------------------------- events

    def happened(
        self, ctx: Context, kind: Kind, message: str, *, of: str = "", peer: str = "", link: str = "", group: str = "",
        service: str = "", peer_state: int = 0, previous: int = 0, state: int = 0, reason: Reason = Reason.NONE,
        common: str = "", always: bool = False,
    ) -> None:  # fmt: skip
        """Record and tell. `of`: the object of an alarm; an alarm and its clear of one object share a key. A clear
        without its alarm (unless `always`), and an alarm that stands already, are not told again."""
        raised: AlarmRow | None = None
        cleared = key = ""
        severity = SEVERITIES.get(kind, Severity.INFO)
        if kind in ALARMS:
            severity = ALARMS[kind][0]
            key = f"{kind.value}/{of}"
            if key in self.alarms:
                self.alarms[key] = replace(self.alarms[key], message=clip(message))
                return
        elif kind in CLEARS:
            cleared = next((k for a in ENDS[kind] if (k := f"{a.value}/{of}") in self.alarms), "")
            if cleared:
                key, severity = cleared, Severity.CLEARED
            elif not always:
                return
        self.last_event += 1
        event = EventRow(
            self.last_event, kind, severity, ctx.wall_ms(), ctx.now, self.node, clip(message), peer, link, group, service,
            self.role, peer_state, previous, state, reason, key, common or f"{self.node}/{self.last_event}",
        )  # fmt: skip
        self._keep(event)
        if kind in ALARMS:
            raised = AlarmRow(key, kind, severity, self.node, of, ctx.now, event.wall_ms, event.id, event.message)
            self.alarms[key] = raised
        elif cleared:
            del self.alarms[cleared]
        ctx.emit(Notify(event, raised, cleared))

    def note(self, ctx: Context, kind: Kind, message: str, *, peer: str = "", reason: Reason = Reason.NONE) -> None:
        """Record and tell a kind that else ends an alarm, though none stands: that it is so is news by itself."""
        self.last_event += 1
        event = EventRow(
            self.last_event, kind, Severity.INFO, ctx.wall_ms(), ctx.now, self.node, clip(message), peer,
            own_state=self.role, reason=reason, common_id=f"{self.node}/{self.last_event}",
        )  # fmt: skip
        self._keep(event)
        ctx.emit(Notify(event))

    def process(self, ctx: Context, name: str, trouble: str) -> None:
        """A process of this node's stack is in trouble, or ("") works."""
        if trouble:
            self.happened(ctx, Kind.PROCESS_LOST, trouble, of=name, reason=Reason.GUARDIAN)
        else:
            self.clear(ctx, Kind.PROCESS_RESTORED, name, f"process {name} works again", reason=Reason.GUARDIAN)

    def _keep(self, event: EventRow) -> None:
        self.events[event.id] = event
        while len(self.events) > self.keep:
            del self.events[next(iter(self.events))]
        self.count("events")
        self.changed = True

    @staticmethod
    def clear_of(kind: Kind) -> Kind:
        """The kind that ends this alarm."""
        return ALARMS[kind][1]

    def clear(self, ctx: Context, kind: Kind, of: str, message: str, **more: Any) -> None:
        """End the alarm that `kind` (a clear) answers, if it stands."""
        if self.alarms:
            self.happened(ctx, kind, message, of=of, **more)

    # ------------------------------------------------------------------------------------------------ statistics

    def count(self, name: str, by: int = 1) -> None:
        self.counts[name] = self.counts.get(name, 0) + by

    def worst(self, lateness_us: int) -> None:
        if lateness_us > self.statistics.worst_lateness_us:
            self.statistics = replace(self.statistics, worst_lateness_us=lateness_us)

    def totals(self) -> StatisticsRow:
        if self.counts:
            row = self.statistics
            self.statistics = replace(row, **{n: getattr(row, n) + by for n, by in self.counts.items()})
            self.counts.clear()
        return self.statistics

    # -------------------------------------------------------------------------------------------------- commands

    def command(
        self, ctx: Context, verb: Verb, target: str, to: str, requester: str, address: str, reason: str
    ) -> CommandRow:
        """A new row; it is accepted until somebody says otherwise."""
        self.last_command += 1
        row = CommandRow(
            self.last_command, clip(requester), address, verb, target, to, clip(reason), CommandState.ACCEPTED, Code.DONE,
            "", ctx.wall_ms(), 0, ctx.now, 0,
        )  # fmt: skip
        self.commands[row.id] = row
        while len(self.commands) > KEEP_COMMANDS:
            del self.commands[next(iter(self.commands))]
        self.count("commands")
        self.changed = True
        return row

    def update(self, ctx: Context, row: CommandRow, state: CommandState, code: Code, text: str) -> CommandRow:
        """The row's newest state; the last one ends it."""
        if row.id not in self.commands:
            return row  # so many came after it that it left the ring
        over = state in (CommandState.DONE, CommandState.FAILED, CommandState.REFUSED)
        row = replace(
            self.commands[row.id], state=state, code=code, text=clip(text),
            ended_wall_ms=ctx.wall_ms() if over else 0, ended_ns=ctx.now if over else 0,
        )  # fmt: skip
        self.commands[row.id] = row
        self.changed = ctx.dirty = True
        return row

    def answer(self, ctx: Context, reply: int, row: CommandRow) -> None:
        if reply:
            ctx.emit(Reply(reply, row))

    # --------------------------------------------------------------------------------------------------- durable

    def document(self) -> dict[str, Any]:
        """Wall-clock times only: the boot clock of today means nothing tomorrow."""
        events = list(self.events.values())[-KEEP_DURABLE:]
        return {
            "events": [flat(e) for e in events],
            "alarms": [flat(a) for a in self.alarms.values()],
            "commands": [flat(c) for c in self.commands.values()],
            "statistics": flat(self.totals()),
            "keep": self.keep,
            "last_event": self.last_event, "last_command": self.last_command,
        }  # fmt: skip

    def restore(self, document: dict[str, Any], ctx: Context) -> None:
        """Take back what a former engine left, perhaps of a newer version: fields that this one does not know are dropped,
        and rows that it can't read are left out."""

        def rows(name: str, cls: Any, enums: dict[str, Any], times: dict[str, str]) -> list[Any]:
            result = []
            listed = document.get(name)
            known = {f.name for f in fields(cls)}
            for data in listed if isinstance(listed, list) else ():
                try:
                    data = {name: value for name, value in dict(data).items() if name in known}
                    number, label = data.get("id", 0), data.get("key", "")
                    if number_of(number, -1) != number or not isinstance(label, str):
                        continue
                    for key, enum in enums.items():
                        data[key] = enum(data[key])
                    for ns, wall in times.items():
                        data[ns] = (int(data[wall]) - ctx.wall_offset_ms) * MS if data[wall] else 0
                    result.append(cls(**data))
                except (TypeError, ValueError, KeyError, OverflowError):
                    continue
            return result

        kinds = {"kind": Kind, "severity": Severity}
        for event in rows("events", EventRow, {**kinds, "reason": Reason}, {"ns": "wall_ms"})[-self.keep :]:
            self.events[event.id] = event
        for alarm in rows("alarms", AlarmRow, kinds, {"since_ns": "since_wall_ms"}):
            self.alarms[alarm.key] = alarm
        states = {"verb": Verb, "state": CommandState, "code": Code}
        for row in rows("commands", CommandRow, states, {"asked_ns": "asked_wall_ms", "ended_ns": "ended_wall_ms"}):
            if not row.ended_wall_ms:  # its follower died with the former engine
                row = replace(
                    row, state=CommandState.FAILED, code=Code.FAILED, ended_wall_ms=ctx.wall_ms(), ended_ns=ctx.now,
                    text="the engine was started again before the outcome was known; look at `hasnmp events`",
                )  # fmt: skip
            self.commands[row.id] = row
        kept = mapping(document.get("statistics"))
        self.statistics = StatisticsRow(
            **{f.name: number_of(kept.get(f.name)) for f in fields(StatisticsRow) if f.name != "worst_lateness_us"}
        )
        if not self.statistics.since_wall_ms:
            self.statistics = replace(self.statistics, since_wall_ms=ctx.wall_ms())
        self.last_event = max(number_of(document.get("last_event")), max(self.events, default=0))
        self.last_command = max(number_of(document.get("last_command")), max(self.commands, default=0))
