"""The agent process: it keeps a mirror of the engine's view, answers SNMP from it, and sends the notifications.

It is a client of the control socket like any other and holds nothing that matters: the guardian may kill and restart it
at any time. While the engine is away it still answers; what it then says of states is `unknown`, and haDataAge grows.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import time
from collections import deque
from pathlib import Path
from typing import Any

import structlog

import hasnmp
from hasnmp import protocol
from hasnmp.model import CommandRow, EventRow, Kind, PartState, Reason, Role, Severity, SystemRow
from hasnmp.protocol import Mirror, ProtocolError
from hasnmp.settings import Config
from hasnmp.snmp import access_tables, identity, objects, standard
from hasnmp.snmp.access import Communities
from hasnmp.snmp.cells import Store
from hasnmp.snmp.listener import Listener
from hasnmp.snmp.notices import notification_varbinds
from hasnmp.snmp.objects import Reader
from hasnmp.snmp.pdus import Requests
from hasnmp.snmp.responder import Responder
from hasnmp.snmp.setting import Setting
from hasnmp.snmp.throttle import Throttle
from hasnmp.snmp.told import Told
from hasnmp.snmp.traps import Originator
from hasnmp.snmp.usm import MAX_MESSAGE, Engine

MAX_SERVER_LINE = 64 << 20  # octets: a snapshot is one line, and this end trusts the server
KEEPALIVE_S = 1.0  # the engine sends a delta at least this often (protocol.py)
DOWN_AFTER_S = 1.0  # an engine that is away for longer is told of
START_GRACE_S = 10.0  # but not while this node is only starting
EVENTS_WAITING = 1000  # until the originator is warm
LATE_S = 600.0  # an event that no agent was there to send is sent by the next one, unless it is older than this
BACKOFF_S = (0.05, 0.1, 0.2, 0.5, 1.0)
RETRY_LISTEN_S = 1.0


class Agent:
    """One run of the process. warm: this is a restart by the guardian, so say warmStart rather than coldStart."""

    def __init__(self, config: Config, node: str, socket: str, warm: bool) -> None:
        self._config = config
        self._node = node
        self._socket = socket
        self._warm = warm
        self._log = structlog.get_logger().bind(process="snmp", node=node)
        self._boot_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self._parent = os.getppid()
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

        self._mirror = Mirror()
        self._writer: asyncio.StreamWriter | None = None
        self._lost_ns = self._boot_ns + int((START_GRACE_S - DOWN_AFTER_S) * 1e9)
        self._down_told = False
        self._fresh = False
        self._told = Told(Path(config.run_dir) / f"{node}.told")
        self._replies: dict[int, asyncio.Future[CommandRow | str]] = {}
        self._next_id = 0

        engine_id, boots, trouble = identity.start(config.state_dir, node)
        if trouble:
            self._log.error("snmp_engine_id_replaced", reason=trouble, engine_id=engine_id.hex())
        counters = standard.Counters()
        self._identity = standard.Identity(
            engine_id, boots, self._seconds, MAX_MESSAGE, hasnmp.__version__, node, counters
        )
        self.store = Store(
            (*objects.SCALARS, *standard.scalars(self._identity), *access_tables.scalars()),
            (*objects.TABLES, *standard.TABLES, *access_tables.tables(config.snmp, engine_id)),
            self._reader,
        )
        engine = Engine(engine_id, boots, self._seconds, config.snmp.users, counters)
        communities = Communities(config.snmp)
        self.requests = Requests(self.store, self._read_failed)
        self.setting = Setting(self._identity, self._reader, self._command, self._objects_changed)
        self.responder = Responder(
            self.store, self.requests, communities, engine, counters, self.setting.take, time.monotonic, lambda _: None
        )
        self._listeners = [Listener(text, self.responder.handle) for text in config.snmp.listen]
        self._originator = Originator(config.snmp, engine_id, boots, self._seconds) if config.snmp.notify else None
        self._throttle = Throttle(config.snmp.throttle, time.monotonic())
        self._held_timer: asyncio.TimerHandle | None = None
        self._unsent: deque[EventRow] | None = deque(maxlen=EVENTS_WAITING)  # None: the originator is warm
        self._outbox: deque[EventRow] = deque()  # what the throttle let through
        self._outbox_filled = asyncio.Event()

    # ------------------------------------------------------------------------------------------------ its clock

    @staticmethod
    def _now_ns() -> int:
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def _seconds(self) -> int:
        return (self._now_ns() - self._boot_ns) // 1_000_000_000

    def _reader(self) -> Reader:
        return Reader(
            self._mirror.view, self._boot_ns, self._now_ns(), self._fresh, self.setting.spin_lock, self._config.events_keep,
            self._node,
        )  # fmt: skip

    def _read_failed(self, error: Exception) -> None:
        self._log.error("object_read_failed", error=repr(error))

    # -------------------------------------------------------------------------------------------------- running

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        self._tasks = [
            loop.create_task(job)
            for job in (
                self._listen(),
                self._follow(),
                self._watch(),
                self.setting.serve(),
                self._warm_up(),
                self._send_all(),
            )
        ]
        if self._config.snmp.alive_s:
            self._tasks.append(loop.create_task(self._say_alive()))
        stop = loop.create_task(self._stop.wait())
        try:
            done, _ = await asyncio.wait((*self._tasks, stop), return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()  # a task that ended by an exception ends the process: the guardian starts another
        finally:
            for task in (*self._tasks, stop):
                task.cancel()
            await asyncio.gather(*self._tasks, stop, return_exceptions=True)
            for listener in self._listeners:
                listener.close(loop)
            self._told.close()
            if self._originator is not None:
                while self._outbox:
                    self._send_next()
                self._originator.close()
        return 0

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        waiting = list(self._listeners)
        told: set[str] = set()
        while waiting:
            for listener in tuple(waiting):
                try:
                    listener.open(loop)
                except OSError as error:
                    if listener.text not in told:
                        told.add(listener.text)
                        self._log.error(
                            "listen_failed", address=listener.text, error=str(error), retry_s=RETRY_LISTEN_S
                        )
                else:
                    waiting.remove(listener)
                    self._log.info("listening", address=listener.text)
            if waiting:
                await asyncio.sleep(RETRY_LISTEN_S)
        await self._stop.wait()

    # ------------------------------------------------------------------------------------------------ the engine

    async def _follow(self) -> None:
        """Keep the mirror: connect, read, connect again."""
        failures = 0
        while not self._stop.is_set():
            try:
                reader, self._writer = await asyncio.open_unix_connection(self._socket, limit=MAX_SERVER_LINE)
                while line := await reader.readline():
                    self._take(protocol.decode(line))
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
        for future in self._replies.values():
            if not future.done():
                future.set_result("the engine went away")

    def _take(self, message: dict[str, Any]) -> None:
        """One message of the engine."""
        result = self._mirror.apply(message)
        match message["type"]:
            case "snapshot":
                self.store.changed_all()
                self._lost_ns = 0
                self._tell_missed()
            case "delta":
                self.store.changed((*message["rows"], *message["gone"]))
            case "event":
                self.store.changed(("events", "alarms"))
                assert isinstance(result, EventRow)
                self._told.last = max(self._told.last, result.id)
                self._notify(result)
            case "reply" | "error":
                number = message.get("id")
                future = self._replies.get(number) if isinstance(number, int) else None
                if future is not None and not future.done():
                    future.set_result(result if isinstance(result, CommandRow) else str(message.get("text")))
        self._judge_freshness()

    def _tell_missed(self) -> None:
        """Events that happened while the engine was out of reach, its line to us was full, or no agent ran, are late,
        not lost."""
        view = self._mirror.view
        events = [row for row in view.tables["events"].values() if isinstance(row, EventRow)]
        newest = max((row.id for row in events), default=0)
        since_ms = view.wall_ms - LATE_S * 1000
        if not 0 < self._told.last <= newest:
            # No agent before us, or the engine's numbers begin anew. The engine starts beside us and is there first: what
            # it said since is ours to send; what it said before we were meant to be there is not.
            self._told.last = 0
            system = view.tables["system"].get("")
            started_ns = system.started_ns if isinstance(system, SystemRow) else 0
            together = started_ns > 0 and abs(self._boot_ns - started_ns) < START_GRACE_S * 1e9
            since_ms = view.wall_ms - (view.now_ns - started_ns) / 1e6 - 1 if together else float("inf")
        for row in sorted(events, key=lambda row: row.id):
            if row.id > self._told.last and row.wall_ms >= since_ms:
                self._notify(row)
        self._told.last = newest

    def _judge_freshness(self) -> None:
        """Is what the mirror shows to be believed? Older than dead_after it may be another world's."""
        limit_s = self._config.heartbeat.dead_after_ms / 1000 + (KEEPALIVE_S if self._mirror.complete else 0)
        view = self._mirror.view
        fresh = view.now_ns > 0 and (self._now_ns() - view.now_ns) / 1e9 <= limit_s
        if fresh != self._fresh:
            self._fresh = fresh
            self.store.changed_all()
            if not fresh and not self._lost_ns:
                self._lost_ns = view.now_ns  # connected, and silent: a stopped engine is as good as none
            elif fresh and self._mirror.complete:
                self._lost_ns = 0
        self._tell_engine()

    def _tell_engine(self) -> None:
        """engineDown once it was away for longer than a restart of it takes, and engineUp after that."""
        down = bool(self._lost_ns) and self._now_ns() - self._lost_ns > DOWN_AFTER_S * 1e9
        if down == self._down_told:
            return
        if not down and not self._fresh:
            return
        self._down_told = down
        if down:
            self._notify(
                self._own_event(Kind.ENGINE_DOWN, Severity.MAJOR, PartState.DOWN, "the engine does not answer")
            )
        else:
            self._notify(self._own_event(Kind.ENGINE_UP, Severity.CLEARED, PartState.UP, "the engine answers again"))

    def _own_event(self, kind: Kind, severity: Severity, state: PartState, message: str) -> EventRow:
        """An event of the agent's own; its id is 0, for the engine numbers them and is not there to be asked."""
        ours = kind in (Kind.ENGINE_DOWN, Kind.ENGINE_UP)
        previous = PartState.UP if state is PartState.DOWN else PartState.DOWN
        alarm = f"engine/{self._node}" if ours else ""
        return EventRow(
            0, kind, severity, time.time_ns() // 1_000_000, self._now_ns(), self._node, message,
            own_state=Role.UNKNOWN, previous_state=previous if ours else 0, state=state,
            reason=Reason.NONE, alarm=alarm,
        )  # fmt: skip

    async def _watch(self) -> None:
        """What no message would tell: that none came. And that the guardian is gone, without whom nothing may go on."""
        while True:
            self._judge_freshness()
            if os.getppid() != self._parent:
                self._log.error("guardian_gone", next="exit")
                self._stop.set()
            await asyncio.sleep(0.2)

    async def _say_alive(self) -> None:
        while True:
            await asyncio.sleep(self._config.snmp.alive_s)
            state = PartState.UP if self._fresh else PartState.DOWN
            self._notify(self._own_event(Kind.ALIVE, Severity.INFO, state, f"{self._node} is alive"))

    # --------------------------------------------------------------------------------------------- notifications

    async def _warm_up(self) -> None:
        """Load what sends notifications, after the listeners are up and in a thread, so that requests are answered."""
        loop = asyncio.get_running_loop()
        await asyncio.sleep(0)
        if self._originator is not None:
            try:
                await loop.run_in_executor(None, self._originator.load)
                self._originator.start(loop)
            except Exception as error:
                # Requests are answered all the same: a console that polls still sees what no trap tells it.
                self._log.error("notifications_unavailable", error=repr(error))
                self._originator = None
                await self._stop.wait()
                return
            waiting, self._unsent = self._unsent, None
            self._send(standard.WARM_START if self._warm else standard.COLD_START, [])
            for event in waiting or ():
                self._notify(event)
            self._log.info("notifications_ready", receivers=len(self._config.snmp.notify))
        # Nothing that exists by now will be garbage: the collector need not walk it at each of its runs.
        gc.collect()
        gc.freeze()
        await self._stop.wait()

    def _notify(self, event: EventRow) -> None:
        if self._originator is None:
            return
        if self._unsent is not None:
            self._unsent.append(event)
            return
        self._pass_on(self._throttle.offer(event, time.monotonic()))

    def _pass_on(self, events: list[EventRow]) -> None:
        """Have sent what the throttle lets through, and come back when it may let through more."""
        self._outbox.extend(events)
        self._outbox_filled.set()
        throttle = self._throttle
        if throttle.may_tell():
            text = f"{throttle.dropped} notifications were held back; the event table has them"
            throttle.dropped = 0
            lost = self._own_event(Kind.EVENTS_LOST, Severity.WARNING, PartState.UP, text)
            self._pass_on(throttle.offer(lost, time.monotonic()))
            return
        wait_s = throttle.next_s(time.monotonic())
        if self._held_timer is not None:
            self._held_timer.cancel()
            self._held_timer = None
        if wait_s is not None:
            self._held_timer = asyncio.get_running_loop().call_later(wait_s + 0.001, self._release)

    def _release(self) -> None:
        self._held_timer = None
        self._pass_on(self._throttle.due(time.monotonic()))

    async def _send_all(self) -> None:
        """One at a time, for each costs milliseconds: in a storm requests get their turn between them."""
        while True:
            await self._outbox_filled.wait()
            self._outbox_filled.clear()
            while self._outbox:
                self._send_next()
                await asyncio.sleep(0)

    def _send_next(self) -> None:
        event = self._outbox.popleft()
        try:
            self._send(*notification_varbinds(event, self._reader(), self._config.cluster))
        except Exception as error:  # one event that can't be said must not cost the agent its life
            self._log.error("notification_failed", kind=event.kind, error=repr(error))

    def _send(self, trap_oid: tuple[int, ...], variables: Any) -> None:
        assert self._originator is not None
        ticks = (self._now_ns() - self._boot_ns) // 10_000_000 % (1 << 32)
        for error in self._originator.send(trap_oid, ticks, variables):
            self._log.error("notification_failed", error=repr(error))

    # ------------------------------------------------------------------------------------------------------ SETs

    def _objects_changed(self) -> None:
        self.store.changed_all()

    async def _command(
        self, command: dict[str, Any], requester: str, host: str, timeout_s: float
    ) -> CommandRow | str | None:
        """The engine's answer: a row, or why there is none as text; None: it is not there to be asked."""
        if self._writer is None or self._writer.is_closing():
            return None
        self._next_id += 1
        number = self._next_id
        future: asyncio.Future[CommandRow | str] = asyncio.get_running_loop().create_future()
        self._replies[number] = future
        try:
            self._writer.write(protocol.encode({
                **command, "type": "command", "id": number, "requester": f"snmp:{requester}", "address": host,
            }))  # fmt: skip
            return await asyncio.wait_for(future, timeout_s)
        except TimeoutError:
            return "no answer in time"
        finally:
            del self._replies[number]


def main(config: Config, node: str, engine_socket: str | None = None, warm: bool = False) -> int:
    """Run the agent process until SIGTERM, or until its parent is gone. Returns its exit status.

    engine_socket: the control socket, if not the configuration's. warm: the guardian restarts the agent.
    """

    async def run() -> int:
        return await Agent(config, node, engine_socket or config.control.socket, warm).run()

    with contextlib.suppress(KeyboardInterrupt):
        return asyncio.run(run())
    return 0
