"""The agent's line to the engine: the mirror that it keeps, how far that is to be believed, and commands with their answers.

    await follow()           keep the mirror: connect, read, connect again
    view, fresh              what objects are read from
    await command(...)       the engine's answer to a command
    await why(group)         what it says of a group
    judge()                  what no message would tell: that none came

An engine that is away for longer than a restart of it takes is told of (engineDown, engineUp); what happened meanwhile, or
while no agent ran, is told late rather than lost.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

from hasnmp import protocol
from hasnmp.model import CommandRow, EventRow, GroupRow, GroupState, Kind, PartState, Severity, SystemRow, View
from hasnmp.protocol import Mirror, ProtocolError
from hasnmp.snmp.cells import Store
from hasnmp.snmp.notifier import Notifier

MAX_SERVER_LINE = 64 << 20  # octets: a snapshot is one line, and this end trusts the server
KEEPALIVE_S = 1.0  # the engine sends a delta at least this often (protocol.py)
LOOK_S = 0.2  # between two looks at an engine that is not heard
DOWN_AFTER_S = 1.0  # an engine that is away for longer is told of
START_GRACE_S = 10.0  # but not while this node is only starting
LATE_S = 600.0  # an event that no agent was there to send is sent by the next one, unless it is older than this
WALL_STEP_MS = 100
WHY_S = 1.0  # until an engine that does not say why is asked of another group
BACKOFF_S = (0.05, 0.1, 0.2, 0.5, 1.0)


class EngineLink:
    """socket: the control socket. dead_after_ms: after so long in silence the mirror may be another world's. started_ns:
    CLOCK_BOOTTIME of this process's start. lock: guards mirror and store, which listeners' threads read. own_event: makes an
    event that the agent itself says. happened: told of the group of each event, and of each that has another owner or state,
    for a peer's events are not told here; "": it may concern any."""

    def __init__(
        self, socket: str, dead_after_ms: int, started_ns: int, now_ns: Callable[[], int], lock: threading.RLock, store: Store,
        notifier: Notifier, own_event: Callable[[Kind, Severity, PartState, str], EventRow], happened: Callable[[str], None],
        log: Any,
    ) -> None:  # fmt: skip
        self._socket = socket
        self._dead_after_s = dead_after_ms / 1000
        self._started_ns = started_ns
        self._now_ns = now_ns
        self._lock = lock
        self._store = store
        self._notifier = notifier
        self._own_event = own_event
        self._happened = happened
        self._log = log
        self._mirror = Mirror()
        self._groups: dict[str, tuple[GroupState, str]] = {}  # as happened was told last
        self._writer: asyncio.StreamWriter | None = None
        self._lost_ns = started_ns + int((START_GRACE_S - DOWN_AFTER_S) * 1e9)
        self._down_told = False
        self._believed_until_ns = 0  # what the mirror shows
        self._wall_ms = 0  # the wall clock at CLOCK_BOOTTIME 0, by which the dates that are kept were made
        self.fresh = False  # as objects are answered; a listener's thread may find that it is not so any more
        self._judged_fresh = False  # as the loop found it last
        self._replies: dict[int, asyncio.Future[Any]] = {}
        self._next_id = 0

    @property
    def view(self) -> View:
        return self._mirror.view

    # ---------------------------------------------------------------------------------------------- the mirror

    async def follow(self) -> None:
        """Never ends."""
        failures = 0
        while True:
            try:
                reader, self._writer = await asyncio.open_unix_connection(self._socket, limit=MAX_SERVER_LINE)
                while line := await reader.readline():
                    message = protocol.decode(line)
                    self._take(message)
                    if message["type"] == "event":
                        await asyncio.sleep(0)  # in a storm of notifications requests get their turn between them
                    failures = 0
            except (OSError, ProtocolError, ValueError) as error:  # ValueError: a line beyond the limit
                if not failures:
                    self._log.warning("engine_unreachable", error=str(error), socket=self._socket)
            self._lose()
            await asyncio.sleep(BACKOFF_S[min(failures, len(BACKOFF_S) - 1)])
            failures += 1

    def _lose(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            if self._mirror.complete:
                self._lost_ns = self._now_ns()
        self._mirror.complete = False
        self._believe()
        for future in self._replies.values():
            if not future.done():
                future.set_result("the engine went away")

    def _take(self, message: dict[str, Any]) -> None:
        """One message of the engine."""
        with self._lock:
            result = self._take_in(message)
        # Without the lock: notifications are the loop's alone, and requests need not wait for them.
        match message["type"]:
            case "snapshot":
                self._tell_missed()
                self._happened("")
            case "event":
                if isinstance(result, EventRow):  # not one of a kind that only a newer version knows
                    self._notifier.event(result)
                    self._happened(result.group)
            case "delta":
                for name in message["rows"].get("groups", ()):
                    row = self.view.tables["groups"].get(name)
                    if isinstance(row, GroupRow) and self._groups.get(name) != (row.state, row.owner):
                        self._groups[name] = row.state, row.owner
                        self._happened(name)
        self.judge()

    def _take_in(self, message: dict[str, Any]) -> EventRow | CommandRow | None:
        result = self._mirror.apply(message)
        self._believe()
        match message["type"]:
            case "snapshot":
                self._store.changed_all()
                self._lost_ns = 0
                self._wall_step()
            case "delta":
                if self._wall_step():  # every date that is kept is another one now
                    self._store.changed_all()
                self._store.changed(table for table, keys in message["gone"].items() if keys)
                for table, rows in message["rows"].items():
                    now = self._mirror.view.tables.get(table, {})
                    self._store.changed_rows(table, [now[key] for key in rows if key in now])
            case "event":
                self._store.changed(("events", "alarms"))
            case "reply" | "error" | "why":
                number = message.get("id")
                future = self._replies.get(number) if isinstance(number, int) else None
                if future is not None and not future.done():
                    future.set_result(result or message.get("lines") or str(message.get("text")))
        return result

    def _wall_step(self) -> bool:
        """Was the wall clock set? Slow corrections add up until they show in a date, whose smallest part is 100 ms."""
        wall_ms = self._mirror.view.wall_ms - self._mirror.view.now_ns // 1_000_000
        if abs(wall_ms - self._wall_ms) < WALL_STEP_MS:
            return False
        self._wall_ms = wall_ms
        return True

    def _tell_missed(self) -> None:
        """Events that happened while the engine was out of reach, its line to us was full, or no agent ran, are late,
        not lost."""
        view = self._mirror.view
        events = [row for row in view.tables["events"].values() if isinstance(row, EventRow)]
        newest = max(events, key=lambda row: row.id, default=None)
        since_ms: float | None = None  # None: by age, and what is left out is said
        notifier = self._notifier
        last_row = view.tables["events"].get(str(notifier.told.last))
        another = isinstance(last_row, EventRow) and notifier.told.at_ms not in (0, last_row.wall_ms)
        if newest is None or another or not 0 < notifier.told.last <= newest.id:
            # No agent before us, or the engine gives numbers anew that its disk never had. The engine starts beside us, or
            # later, and is there first: what it said since is ours to send; what it said before we were meant to be there is
            # not.
            notifier.begin_anew()
            system = view.tables["system"].get("")
            started_ns = system.started_ns if isinstance(system, SystemRow) else 0
            together = started_ns > 0 and self._started_ns - started_ns < START_GRACE_S * 1e9
            since_ms = view.wall_ms - (view.now_ns - started_ns) / 1e6 - 1 if together else float("inf")
        last, held = notifier.told.last, notifier.told.held
        late = 0
        for row in sorted(events, key=lambda row: row.id):
            if row.id <= last and row.id not in held:
                continue
            if since_ms is not None:
                news = row.wall_ms >= since_ms
            elif 0 < row.ns <= view.now_ns:  # the clock of the wall may have been set meanwhile
                news = view.now_ns - row.ns <= LATE_S * 1e9
            else:
                news = row.wall_ms >= view.wall_ms - LATE_S * 1000
            if news:
                notifier.event(row)
            else:
                late += since_ms is None
        if newest is not None:
            notifier.note(newest.id, newest.wall_ms)
        if late:
            text = f"{late} events of more than {LATE_S:g} s ago were not sent when they happened; the event table has them"
            notifier.event(self._own_event(Kind.EVENTS_LOST, Severity.WARNING, PartState.UP, text))

    # ------------------------------------------------------------------------------------- is it to be believed?

    def _believe(self) -> None:
        """How long is what the mirror shows to be believed? Older than dead_after it may be another world's."""
        limit_s = self._dead_after_s + (KEEPALIVE_S if self._mirror.complete else 0)
        now_ns = self._mirror.view.now_ns
        self._believed_until_ns = now_ns + int(limit_s * 1e9) if now_ns > 0 else 0

    def _is_fresh(self) -> bool:
        return self._now_ns() <= self._believed_until_ns

    def distrust(self) -> None:
        """In a listener's thread, the lock held. The loop may hang, say in a write to a dead disk: its word that all is
        fresh is not enough."""
        if self.fresh and not self._is_fresh():
            self.fresh = False
            self._store.changed_all()

    def judge(self) -> None:
        """In the loop, now and then and after each message."""
        fresh = self._is_fresh()
        if fresh != self.fresh:
            with self._lock:
                self.fresh = fresh
                self._store.changed_all()
        if fresh != self._judged_fresh:
            self._judged_fresh = fresh
            if not fresh and not self._lost_ns:
                self._lost_ns = self._mirror.view.now_ns  # connected, and silent: a stopped engine is as good as none
            elif fresh and self._mirror.complete:
                self._lost_ns = 0
        self._tell_engine()

    def look_again_s(self) -> float:
        """When to judge again, if no message comes: while all is well, when what was heard last is no more to be believed."""
        if not self.fresh or self._lost_ns or self._down_told:
            return LOOK_S
        return min(KEEPALIVE_S, max(0.0, (self._believed_until_ns - self._now_ns()) / 1e9) + 0.001)

    def _tell_engine(self) -> None:
        """engineDown once it was away for longer than a restart of it takes, and engineUp after that."""
        down = bool(self._lost_ns) and self._now_ns() - self._lost_ns > DOWN_AFTER_S * 1e9
        if down == self._down_told:
            return
        if not down and not self.fresh:
            return
        self._down_told = down
        if down:
            self._notifier.event(
                self._own_event(Kind.ENGINE_DOWN, Severity.MAJOR, PartState.DOWN, "the engine does not answer")
            )
        else:
            self._notifier.event(
                self._own_event(Kind.ENGINE_UP, Severity.CLEARED, PartState.UP, "the engine answers again")
            )

    # ------------------------------------------------------------------------------------------------ commands

    @property
    def connected(self) -> bool:
        return self._writer is not None and not self._writer.is_closing()

    def say(self, message: dict[str, Any]) -> None:
        """A message to which no answer is awaited; none where no engine is there."""
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(protocol.encode(message))

    async def command(
        self, command: dict[str, Any], requester: str, host: str, timeout_s: float
    ) -> CommandRow | str | None:
        """The engine's answer: a row, or why there is none as text; None: it is not there to be asked."""
        asked = {**command, "type": "command", "requester": f"snmp:{requester}", "address": host}
        answer = await self._ask(asked, timeout_s)
        return answer if isinstance(answer, CommandRow | None) else str(answer)

    async def why(self, group: str) -> list[str] | None:
        """What the engine says of the group, line by line; None: it says nothing, or is not there."""
        answer = await self._ask({"type": "why", "group": group}, WHY_S)
        return [str(line) for line in answer] if isinstance(answer, list) else None

    async def _ask(self, message: dict[str, Any], timeout_s: float) -> Any:
        """What answers this message, or why nothing does, as text; None: the engine is not there to be asked."""
        if not self.connected:
            return None
        self._next_id += 1
        number = self._next_id
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._replies[number] = future
        try:
            self.say({**message, "id": number})
            async with asyncio.timeout(timeout_s):
                return await future
        except TimeoutError:
            return "no answer in time"
        finally:
            del self._replies[number]
