"""The agent process: it keeps a mirror of the engine's view, answers SNMP from it, and sends the notifications.

It is a client of the control socket like any other and holds nothing that matters: the guardian may kill and restart it
at any time. While the engine is away it still answers; what it then says of states is `unknown`, and haDataAge grows.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

import hasnmp
from hasnmp.model import CommandRow, EventRow, Kind, PartState, Reason, Role, Severity
from hasnmp.settings import Config
from hasnmp.snmp import access_tables, ha_objects, identity, receivers, standard
from hasnmp.snmp.access import Communities
from hasnmp.snmp.agentx_outlet import NAME as AGENTX
from hasnmp.snmp.agentx_outlet import AgentxOutlet
from hasnmp.snmp.agentx_part import AgentxPart
from hasnmp.snmp.cells import Store
from hasnmp.snmp.engine_link import EngineLink
from hasnmp.snmp.error_status import ErrorStatus
from hasnmp.snmp.kept import Kept
from hasnmp.snmp.listener import Addresses, Listener, in_words
from hasnmp.snmp.notifier import COLD_START, WARM_START, Notifier, counter_names, receiver_names
from hasnmp.snmp.objects import Reader
from hasnmp.snmp.outlet import Figures, Surroundings
from hasnmp.snmp.pdus import Requests
from hasnmp.snmp.record import Record, shown
from hasnmp.snmp.responder import Responder, SetOutcome
from hasnmp.snmp.setting import Setting
from hasnmp.snmp.usm import MAX_MESSAGE, Engine
from hasnmp.snmp.whys import VIEW_TABLE, Whys

BEAT_S = 1.0  # between two signs of life for the guardian
RETRY_LISTEN_S = 1.0
ABSENT = "its address is not on this machine"
REFUSALS_WAITING = 1000  # refused SETs that wait for the loop to put them on record; what is more is counted
SWITCH_S = 0.001  # for how long at most a listener's thread keeps the loop waiting, or the other way round


class Agent:
    """One run of the process. warm: this is a restart by the guardian, so say warmStart rather than coldStart."""

    def __init__(self, config: Config, node: str, socket: str, warm: bool) -> None:
        self._config = config
        self._node = node
        self._warm = warm
        self._log = structlog.get_logger().bind(process="snmp", node=node)
        self._started_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        names = [f"snmp.{name}" for name in standard.COUNTER_NAMES]
        outlets = [*receiver_names(config.snmp.notify), *([AGENTX] if config.snmp.agentx else [])]
        more = counter_names(outlets)
        self._kept = Kept(Path(config.run_dir) / f"{node}.snmp", [*names, *more], self._started_ns, warm)
        self._boot_ns = self._kept.started_ns  # sysUpTime 0
        self._parent = os.getppid()
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

        engine_id, boots, trouble = identity.start(config.state_dir, node)
        if trouble:
            self._log.error("snmp_engine_id_replaced", reason=trouble, engine_id=engine_id.hex())
        self._engine_id_trouble = trouble
        counters = standard.Counters(self._kept.part(names))
        self._identity = standard.Identity(
            engine_id,
            boots,
            self._seconds,
            MAX_MESSAGE,
            hasnmp.__version__,
            node,
            counters,
            config.snmp.authentication_traps,
        )
        engine = Engine(engine_id, boots, self._seconds, config.snmp.users, counters)
        # An engine of their own for the notifications: the same identity, but nothing that two threads would count up.
        told = tuple(u for u in config.snmp.users if any(r.user == u.name for r in config.snmp.notify))
        originator = Engine(engine_id, boots, self._seconds, told, counters)
        self._notifier = Notifier(
            config,
            node,
            originator,
            self._kept,
            self._log,
            self._reader,
            self._ticks,
            self._now_ns,
            self._own_event,
            {AGENTX: self._agentx_outlet} if config.snmp.agentx else {},
        )
        board = receivers.Board(
            config.snmp, self._notifier.receivers, self._notifier.outlets, self._notifier.figures,
            self._notifier.suppressed,
        )  # fmt: skip
        self._whys = Whys(
            lambda: tuple(self._link.view.tables["groups"]),
            lambda group: self._link.why(group),
            self._whys_changed,
            self._now_ns,
        )
        why_table = self._whys.table()
        self.store = Store(
            (
                *ha_objects.SCALARS,
                *standard.scalars(self._identity),
                *access_tables.scalars(),
                *receivers.all_scalars(board),
            ),
            (
                *ha_objects.TABLES,
                *standard.TABLES,
                *access_tables.tables(config.snmp, engine_id),
                *receivers.all_tables(board),
                why_table,
            ),
            self._reader,
        )
        communities = Communities(config.snmp)
        # What the listeners' threads share with the loop: the store, the mirror below it, the users' ciphers.
        self.lock = threading.RLock()
        self._link = EngineLink(
            socket, config.heartbeat.dead_after_ms, self._started_ns, self._now_ns, self.lock, self.store, self._notifier,
            self._own_event, self._whys.touch, self._log,
        )  # fmt: skip
        self._calls: list[tuple[Callable[..., object], tuple[object, ...]]] = []  # for the loop, by their threads
        self.requests = Requests(self.store, self._read_failed)
        self.setting = Setting(self._identity, self._reader, self._command, self._objects_changed)
        self.responder = Responder(
            self.store, self.requests, communities, engine, counters, self._in_loop(self.setting.take), time.monotonic,
            self._in_loop(self._notifier.unauthentic), audit=self._audit_soon,
        )  # fmt: skip
        self._record = Record(time.monotonic())
        self._agentx: AgentxPart | None = None
        if config.snmp.agentx:
            outlet = self._notifier.outlets[AGENTX]
            assert isinstance(outlet, AgentxOutlet)
            self._agentx = AgentxPart(
                config.snmp, node, self._reader, self.setting, self._read_failed, outlet, receivers.scalars(board),
                (*receivers.tables(board), why_table), self._log, self._audit,
            )  # fmt: skip
            self.store.twins.append(self._agentx.store)
        self._listeners = [Listener(text, self._handle, self.lock, self._request_failed) for text in config.snmp.listen]
        self._loop: asyncio.AbstractEventLoop | None = None

    # ------------------------------------------------------------------------------------------------ its clock

    @staticmethod
    def _now_ns() -> int:
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def _seconds(self) -> int:
        """snmpEngineTime, which begins anew with each snmpEngineBoots; sysUpTime outlives the process (kept.py)."""
        return (self._now_ns() - self._started_ns) // 1_000_000_000

    def _ticks(self) -> int:
        return (self._now_ns() - self._boot_ns) // 10_000_000 % (1 << 32)

    def _reader(self, boot_ns: int = 0) -> Reader:
        return Reader(
            self._link.view, boot_ns or self._boot_ns, self._now_ns(), self._link.fresh, self.setting.spin_lock,
            self._config.events_keep, self._node,
        )  # fmt: skip

    def _agentx_outlet(self, name: str, figures: Figures, around: Surroundings) -> AgentxOutlet:
        return AgentxOutlet(name, figures, around, self._boot_ns)

    def _request_failed(self, error: Exception) -> None:
        self._log.error("request_failed", error=repr(error))

    def _read_failed(self, error: Exception) -> None:
        self._log.error("object_read_failed", error=repr(error))

    # -------------------------------------------------------------------------------------------------- running

    async def run(self) -> int:
        loop = self._loop = asyncio.get_running_loop()
        sys.setswitchinterval(SWITCH_S)
        # Nothing that exists by now will be garbage: the collector need not walk it each time. It is done first, for it
        # takes longer than a notification may.
        gc.collect()
        gc.freeze()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        self._tasks = [
            loop.create_task(job)
            for job in (
                self._listen(),
                self._link.follow(),
                self._whys.keep(),
                self._watch(),
                self.setting.serve(),
                self._settle(),
            )
        ]
        if self._agentx is not None:
            self._tasks.append(loop.create_task(self._agentx.run()))
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
                listener.close()
            self._notifier.close()
        return 0

    async def _listen(self) -> None:
        """Have a socket on every listen address that is on this machine: virtual addresses come and go with their groups."""
        told: dict[str, str] = {}
        addresses = Addresses()
        try:
            while True:
                for listener in self._listeners:
                    self._adjust(listener, told)
                await addresses.changed(RETRY_LISTEN_S)
        finally:
            addresses.close()

    def _adjust(self, listener: Listener, told: dict[str, str]) -> None:
        """Open a listener, or close it, by whether its address is there. told: what was said last of each."""
        text, why = listener.text, ""
        if listener.opened:
            if not listener.gone():
                return
            listener.close()
            why = ABSENT
        else:
            try:
                listener.open()
            except OSError as error:
                why = in_words(error)
                if error.errno == errno.EADDRNOTAVAIL:
                    why = ABSENT
                elif told.get(text) != why:
                    self._log.error("listen_failed", address=text, error=why, retry_s=RETRY_LISTEN_S)
        if told.get(text) != why:
            told[text] = why
            if not why:
                self._log.info("listening", address=text)
            elif why == ABSENT:
                self._log.info("listen_waiting", address=text, reason=why, next="listens when it appears")

    # ------------------------------------------------------------------------------------------------ the engine

    def _handle(self, data: bytes, host: str, reply: Callable[[bytes], None]) -> None:
        """A datagram, in a listener's thread, the lock held."""
        self._link.distrust()
        self.responder.handle(data, host, reply)

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
            self._link.judge()
            if os.getppid() != self._parent:
                self._log.error("guardian_gone", next="exit")
                self._stop.set()
            await asyncio.sleep(self._link.look_again_s())

    async def _say_alive(self) -> None:
        while True:
            await asyncio.sleep(self._config.snmp.alive_s)
            state = PartState.UP if self._link.fresh else PartState.DOWN
            self._notifier.event(self._own_event(Kind.ALIVE, Severity.INFO, state, f"{self._node} is alive"))

    async def _settle(self) -> None:
        """Say that the agent is there, once the listeners are up."""
        await asyncio.sleep(0)
        self._notifier.start(WARM_START if self._warm else COLD_START)
        if self._engine_id_trouble:
            text = f"the SNMP engine ID is {self._identity.engine_id.hex()} from now on: {self._engine_id_trouble}"
            self._notifier.event(self._own_event(Kind.ENGINE_ID_CHANGED, Severity.WARNING, PartState.UP, text))
        await self._stop.wait()

    # ------------------------------------------------------------------------------------------------------ SETs

    def _objects_changed(self) -> None:
        with self.lock:
            self.store.changed_all()

    def _whys_changed(self) -> None:
        with self.lock:
            self.store.changed((VIEW_TABLE,))

    def _in_loop(self, function: Callable[..., object]) -> Callable[..., None]:
        """What a listener's thread may call: the loop calls the function soon."""

        def call(*arguments: object) -> None:
            assert self._loop is not None  # there are no listeners before
            with self.lock:
                self._calls.append((function, arguments))
                # One wake-up for all that wait: each is an octet in the loop's own pipe, and when that is full a signal
                # finds no room in it and is lost.
                if len(self._calls) == 1:
                    self._loop.call_soon_threadsafe(self._call_waiting)

        return call

    def _call_waiting(self) -> None:
        with self.lock:
            calls, self._calls = self._calls, []
        for function, arguments in calls:
            try:
                function(*arguments)
            except Exception as error:  # stops none of the others
                self._request_failed(error)

    def _audit_soon(self, outcome: SetOutcome) -> None:
        """As _in_loop(_audit); but of a flood of refused SETs only so many wait. One that was done is never left out."""
        with self.lock:
            if outcome.status and len(self._calls) >= REFUSALS_WAITING:
                self._record.untold += 1
                return
            self._in_loop(self._audit)(outcome)

    def _audit(self, outcome: SetOutcome) -> None:
        """Have a SET put on record: by the log, and one that was refused here by the engine too. Of a flood of refused
        ones only some, with the number of the others."""
        with self.lock:
            name = shown(self.store.column(outcome.name), outcome.name)
            known, untold = self._record.known, self._record.untold
            row = self._record.refused(outcome, name, time.monotonic())
        if row is None and outcome.status and not known:
            return
        status = ErrorStatus(outcome.status).name.lower()
        more = {"refused_before_and_not_logged": untold} if row is not None and untold else {}
        self._log.info("set_answered", requester=outcome.who, address=outcome.host, object=name, result=status,
                       variables=outcome.variables, **more)  # fmt: skip
        if row is not None:
            self._link.say(
                {**row, "type": "command", "id": None, "requester": f"snmp:{outcome.who}", "address": outcome.host}
            )

    async def _command(
        self, command: dict[str, Any], requester: str, host: str, timeout_s: float
    ) -> CommandRow | str | None:
        answer = await self._link.command(command, requester, host, timeout_s)
        self._record.answered(answer)
        return answer


def main(
    config: Config,
    node: str,
    engine_socket: str | None = None,
    warm: bool = False,
    beat: Callable[[], None] = lambda: None,
) -> int:
    """Run the agent process until SIGTERM, or until its parent is gone. Returns its exit status.

    engine_socket: the control socket, if not the configuration's. warm: the guardian restarts the agent. beat: called again
    and again while the loop runs and the lock that the listeners' threads share with it can be had; else the agent hangs.
    """

    async def run() -> int:
        agent = Agent(config, node, engine_socket or config.control.socket, warm)
        loop = asyncio.get_running_loop()

        def live() -> None:
            with agent.lock:
                beat()
            loop.call_later(BEAT_S, live)

        loop.call_soon(live)
        return await agent.run()

    with contextlib.suppress(KeyboardInterrupt):
        return asyncio.run(run())
    return 0
