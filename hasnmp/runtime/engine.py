"""The engine's process: the only clock, and the effects. Everything that is decided is decided in core.

One turn: read the clock, `effects = engine.step(event, now_ns)`, execute them in order, arm the timer. Nothing here
blocks: programs and addresses are the guardian's, the lease disk and the state are other processes', and no thread or
program is started. What is slow comes back as an event.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import secrets
import signal
import socket
import time
from collections import deque
from typing import Any, Protocol

from hasnmp import __version__, model, settings
from hasnmp.agents.acting import Agents
from hasnmp.agents.fencing import Fencing
from hasnmp.agents.hooks import Hooks
from hasnmp.agents.host import Here, Host
from hasnmp.core.engine import Engine
from hasnmp.core.events import (
    Act,
    Action,
    Adopt,
    AgentResult,
    ArbiterAnswer,
    ArbiterCall,
    Effect,
    Event,
    Exit,
    Extend,
    Extended,
    Fence,
    Forward,
    GiveUp,
    Hook,
    Notify,
    Outcome,
    Persist,
    Persisted,
    Received,
    Rejected,
    Release,
    Released,
    Reload,
    ReloadEnded,
    Reply,
    Retire,
    Send,
    Sent,
    Shutdown,
    Stage,
    Staged,
    Started,
    Tick,
    Troubled,
)
from hasnmp.runtime import log as logs
from hasnmp.runtime import messages, programs, store
from hasnmp.runtime.control import Server
from hasnmp.runtime.ending import certain
from hasnmp.runtime.kernel import BootTimer, lock_memory, prefer_this_process, restart_machine
from hasnmp.runtime.lease_io import LeaseIoClient
from hasnmp.runtime.links import Links
from hasnmp.runtime.reload import RETIRED
from hasnmp.runtime.store import StoreClient
from hasnmp.wire import DatagramKind, GroupEntry

LONG_TURN_MS = 50  # a turn of the loop that took longer is logged: it is what a heartbeat may be late by
COLLECT_S = 300.0  # between two runs of the garbage collector, which else would choose its own moment
ALIVE_S = 1.0
UNSAVED_S = 60.0  # between two lines on one trouble with saving the state, which is tried again each second
LAST_WRITE_S = 2.0  # what leaving waits for the state to be written
FAILED = 70  # exit status after a defect in the core
NO_CHANGE = {Tick, Sent, Rejected, Extended, Send, Extend, ArbiterCall, Hook}  # they bring but times and counters


def now_ns() -> int:
    """CLOCK_BOOTTIME: it goes on during suspend, so that no lease outlives one."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


class Core(Protocol):
    """core.engine.Engine, as far as the loop uses it."""

    def step(self, event: Event, now_ns: int) -> tuple[Effect, ...]: ...
    def next_deadline_ns(self) -> int: ...
    def view(self, now_ns: int, wall_ms: int) -> model.View: ...
    def why(self, group: str, now_ns: int) -> tuple[str, ...]: ...


class Loop:
    """The engine in its surroundings, within a running asyncio loop."""

    def __init__(
        self,
        core: Core,
        config: settings.Config,
        node: str,
        hello: messages.Hello,
        guardian: messages.Channel,
        lease_sock: socket.socket,
        store_sock: socket.socket,
        log: Any,
    ) -> None:
        """Raises KeyError: no such node."""
        self._core, self._config, self._node, self._hello, self._log = core, config, node, hello, log
        self._loop = asyncio.get_running_loop()
        self._events: deque[Event] = deque()
        self._stepping = False
        self._timer = BootTimer()  # the loop's own timers are late by up to 1 ms, and count another clock
        self._timer_at_ns = 0  # 0 = not set
        self._finished: asyncio.Future[int] = self._loop.create_future()
        self._moves: set[int] = set()  # attempts to start or stop that are under way
        self._said: dict[str, tuple[GroupEntry, ...]] = {}  # node -> its groups, by its newest heartbeat
        self._unsaved = ("", 0.0)  # why the state was not saved, and when that was logged
        self._stored = asyncio.Event()  # looked at when we leave only
        self._repeats: list[asyncio.TimerHandle] = []
        self.longest_turn_us = 0
        self.worst_lateness_us = 0
        self._guardian = guardian
        self._writing = False
        self._spoke = False  # to the guardian, since the last look of _say_alive
        self._leases = LeaseIoClient(self._loop, lease_sock, config.arbiter.io_timeout_ms, self.tell)
        self._store = StoreClient(self._loop, store_sock, self._persisted)
        here = Here(node, tuple(each.name for each in config.nodes), config.run_dir)
        self._host = Host(hello.next_run, self._to_guardian, self.tell, log, here)
        self._agents = Agents(config.services(), self._host, log)
        self._fencing = Fencing(config, node, self._host, log)
        self._hooks = Hooks(config, node, self._host, log)
        self._links = Links(self._loop, config, node, self.tell, log)
        self.server = Server(
            lambda: core.view(now_ns(), wall_ms()), lambda group: core.why(group, now_ns()), self.tell, log
        )

    async def run(self, durable: dict[str, Any] | None) -> int:
        """Until Exit (0), until the guardian is gone (1), or until a defect in the core (FAILED)."""
        # What is there now stays; what comes is collected when it suits us, not in the middle of a takeover.
        gc.collect()
        gc.disable()
        self._loop.set_exception_handler(self._callback_failed)
        for number in (signal.SIGTERM, signal.SIGINT):
            # SIGINT comes from a terminal, to the whole process group; the guardian's word follows, so wait for that.
            wanted = Shutdown() if number == signal.SIGTERM else None
            self._loop.add_signal_handler(number, self._signalled, wanted)
        self._loop.add_reader(self._guardian.fileno(), self._from_guardian)
        self._loop.add_reader(self._timer.fileno(), self._wake)
        for lease in self._hello.leases:
            self._host.token(lease)
        self._host.extended(self._hello.leases)
        groups = frozenset(lease.group for lease in self._hello.leases)
        adopted = self._agents.adopt(self._hello.running, self._hello.addresses, groups)
        self.tell(
            Started(
                incarnation=secrets.randbits(64) or 1, holder=self._hello.holder, boot_id=self._hello.boot_id,
                random=secrets.randbits(64) or 1, wall_ms=wall_ms(), leases=self._hello.leases, adopted=adopted,
                cleaned=self._hello.cleaned, watchdog_ms=self._hello.watchdog_ms,
                watchdog_error=self._hello.watchdog_error, unclean=self._hello.unclean, unbound=self._hello.unbound,
                reloaded=self._hello.reloaded, reload_command=self._hello.reload_command, replaced=self._hello.replaced, durable=durable,
            )
        )  # fmt: skip
        try:
            await self.server.open(self._config.control.socket, self._config.control.group)
        except OSError as error:
            # The services matter more than those who watch them.
            self._log.error("control_socket_failed", path=self._config.control.socket, why=str(error))
        self._every(ALIVE_S, self._say_alive)
        self._every(ALIVE_S, self.server.hold)
        gc.freeze()
        self._every(COLLECT_S, gc.collect)
        self._log.info("engine_started", version=__version__, adopted=len(adopted), leases=len(self._hello.leases))
        try:
            return await self._finished
        finally:
            await self._close()

    # ------------------------------------------------------------------------------------------------------- the turn

    def tell(self, event: Event) -> None:
        """Take an event in. One that comes up while effects are executed waits until all of those are done."""
        if self._finished.done():
            return  # only the last state is still being written
        self._events.append(event)
        if self._stepping:
            return
        self._stepping = True
        began_ns = now_ns()
        try:
            while self._events and not self._finished.done():
                event = self._events.popleft()
                effects = self._core.step(event, now_ns())
                if self._matters(event) or any(map(self._matters, effects)):
                    self.server.changed()
                for effect in effects:
                    self._execute(effect)
            self._arm()
        except Exception:
            # A core that raised is in a state that nobody thought of. The services run on: the guardian starts a new
            # engine, which takes them over from what is durable.
            self._log.exception("engine_failed", event_type=type(event).__name__)
            self._finish(FAILED)
        finally:
            self._stepping = False
        took_us = (now_ns() - began_ns) // 1000
        if took_us > self.longest_turn_us:
            self.longest_turn_us = took_us
            if took_us > LONG_TURN_MS * 1000:
                self._log.warning("long_turn_taken", event_type=type(event).__name__, took_ms=took_us / 1000)

    def _matters(self, what: Event | Effect) -> bool:
        """May it go with a change of state, rather than only of times and counters? A guess that saves most of the
        control socket's work on an idle node; where it is wrong, readers hear within a second all the same."""
        if type(what) in NO_CHANGE:
            return False
        match what:
            case Act(attempt, _, action):
                if action is not Action.CHECK:
                    self._moves.add(attempt)
                return action is not Action.CHECK
            case AgentResult(attempt, _, outcome):
                moved = attempt in self._moves
                self._moves.discard(attempt)
                return moved or outcome is not Outcome.OK
            case Received(_, datagram):
                if datagram.kind is DatagramKind.HEARTBEAT and self._said.get(datagram.sender) != datagram.groups:
                    self._said[datagram.sender] = datagram.groups  # who owns what, by its own word
                    return True
                return bool(datagram.payload)
            case ArbiterAnswer(error=error):
                return bool(error)
        return True

    def _execute(self, effect: Effect) -> None:
        match effect:
            case Send(datagram, link, receipt):
                sent_ns = self._links.send(datagram, link)
                if receipt:
                    self._events.appendleft(Sent(datagram.seq, sent_ns))
            case Extend(leases):
                for lease in leases:
                    self._host.token(lease)
                self._to_guardian(effect)
            case Release():
                self._to_guardian(effect)
            case ArbiterCall():
                self._leases.call(effect)
            case Act():
                self._agents.act(effect)
            case Fence():
                self._fencing.fence(effect)
            case Hook():
                self._hooks.run(effect)
            case Persist(version, document):
                self._store.persist(version, document)
            case Notify():
                self._notify(effect)
            case Reply():
                self.server.reply(effect)
            case Exit(text, force, retired):
                if force:
                    self._end_by_force()
                self._log.log(logging.CRITICAL if force else logging.INFO, "engine_left", why=text)
                self._finish(RETIRED if retired else int(force))
            case Reload() | GiveUp() | Stage() | Adopt() | Forward():
                self._to_guardian(effect)

    def _notify(self, effect: Notify) -> None:
        event = effect.event
        about = {
            name: value
            for name in ("peer", "link", "group", "service")
            if (value := getattr(event, name))
        }  # fmt: skip
        name = "".join("_" + c.lower() if c.isupper() else c for c in event.kind.value)
        self._log.log(logs.SEVERITY_LEVELS[event.severity], name, message=event.message, id=event.id, **about)
        self.server.notify(effect)
        self._hooks.happened(event)

    # ---------------------------------------------------------------------------------------------------------- time

    def _arm(self) -> None:
        """See to it that the core is asked again at its next deadline at the latest."""
        at_ns = self._core.next_deadline_ns()
        if self._timer_at_ns and self._timer_at_ns <= at_ns:
            return  # it comes early enough, and looks again then: cheaper than setting it anew at each step
        self._timer_at_ns = max(1, at_ns)
        self._timer.set(self._timer_at_ns)

    def _wake(self) -> None:
        self._timer.read()
        now = now_ns()
        late_us = (now - self._timer_at_ns) // 1000 if self._timer_at_ns else 0
        self._timer_at_ns = 0
        if now < self._core.next_deadline_ns() and late_us <= self.worst_lateness_us:
            self._arm()
            return
        self.worst_lateness_us = max(self.worst_lateness_us, late_us)
        self.tell(Tick(wall_ms(), late_us))

    def _every(self, seconds: float, call: Any) -> None:
        """Call now and again until the end."""
        slot = len(self._repeats)

        def again() -> None:
            call()
            self._repeats[slot] = self._loop.call_later(seconds, again)

        self._repeats.append(self._loop.call_later(0, again))

    # ------------------------------------------------------------------------------------------------- the guardian

    def _say_alive(self) -> None:
        """Unless the guardian heard of us anyway: of an owner it does with each heartbeat."""
        if not self._spoke:
            self._to_guardian(messages.Alive())
        self._spoke = False

    def _to_guardian(self, message: messages.FromEngine) -> None:
        self._spoke = True
        if not self._guardian.send(message):
            self._guardian_gone()
        elif self._guardian.waiting and not self._writing:
            self._writing = True
            self._loop.add_writer(self._guardian.fileno(), self._flush)

    def _flush(self) -> None:
        if not self._guardian.flush():
            self._guardian_gone()
        elif not self._guardian.waiting:
            self._writing = False
            self._loop.remove_writer(self._guardian.fileno())

    def _from_guardian(self) -> None:
        for _ in range(64):
            try:
                message = self._guardian.receive()
            except BlockingIOError:
                return
            except messages.MessageError as error:
                self._log.error("guardian_not_understood", why=str(error))
                continue
            match message:
                case None:
                    self._guardian_gone()
                    return
                case Extended(leases, ok):
                    if ok:
                        self._host.extended(leases)
                    self.tell(message)
                case Released(group, _, ok):
                    if ok:
                        self._host.released(group)
                    self.tell(message)
                case messages.Stop():
                    self.tell(Shutdown())
                case messages.Ask():
                    self._to_guardian(messages.Alive())
                case Retire() | ReloadEnded() | Staged() | Troubled():
                    self.tell(message)
                case messages.Alarm(text):
                    self._log.error("guardian_alarmed", text=text)
                case _:
                    self._host.handle(message)

    def _guardian_gone(self) -> None:
        """Nobody ends our groups in time any more, so they end now (design rule 4). The peers are told nothing: we do
        not know what is left, and they may take over only when our lease has run out."""
        if self._finished.done():
            return
        self._log.critical("guardian_lost", next="end every service of this node")
        self._finish(1)
        self._end_by_force()

    def _end_by_force(self) -> None:
        groups = certain(self._config)
        until = min((ns for group, ns in self._host.held() if group in groups), default=0)
        within_ms = max(20, (until - now_ns()) // 1_000_000) if until else 5000
        left = (*programs.end_everything(self._config, self._node, within_ms), *self._agents.outside(groups))
        self._log.critical("services_ended", left=left)
        if left and until:
            self._log.critical("machine_restarts", why="what is left writes to a disk without a lease", left=left)
            self._log.critical("machine_not_restarted", why=restart_machine(), next="cut its power")

    # ------------------------------------------------------------------------------------------------------ the rest

    def _persisted(self, version: int, ok: bool, text: str) -> None:
        if ok:
            self._unsaved = ("", 0.0)
        else:
            why, now_s = text.partition(" (")[0], time.monotonic()  # without the numbers, which differ each time
            if why != self._unsaved[0] or now_s - self._unsaved[1] >= UNSAVED_S:
                self._log.error("state_not_saved", version=version, why=text)
                self._unsaved = (why, now_s)
        if self._store.idle():
            self._stored.set()
        self.tell(Persisted(version, ok, text))

    def _signalled(self, event: Event | None) -> None:
        if event is not None:
            self.tell(event)

    def _callback_failed(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A defect outside the core (the control socket, an agent) costs what it was about, not the engine."""
        error = context.get("exception")
        info = (type(error), error, error.__traceback__) if error is not None else None
        self._log.error("callback_failed", what=context.get("message"), exc_info=info)

    def _finish(self, status: int) -> None:
        if not self._finished.done():
            self._finished.set_result(status)

    async def _close(self) -> None:
        """The last state is written before we go: what was released must stay released."""
        self._stored.clear()
        if not self._store.idle():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_WRITE_S):
                    await self._stored.wait()
        for repeat in self._repeats:
            repeat.cancel()
        self._loop.remove_reader(self._timer.fileno())
        self._timer.close()
        self._agents.close()
        self._fencing.close()
        self._hooks.close()
        self.server.close()
        self._links.close()
        self._leases.close()
        self._store.close()
        with contextlib.suppress(OSError):
            self._loop.remove_reader(self._guardian.fileno())
            self._loop.remove_writer(self._guardian.fileno())
        self._log.info(
            "engine_ended", longest_turn_us=self.longest_turn_us, worst_lateness_us=self.worst_lateness_us
        )  # fmt: skip


def state_path(config: settings.Config, node: str) -> str:
    """The durable state of this node; two nodes of a demonstration may share a folder."""
    return os.path.join(config.state_dir, f"{node}.state")


def main(
    config: settings.Config,
    node: str,
    hello: messages.Hello,
    guardian: messages.Channel,
    lease_sock: socket.socket,
    store_sock: socket.socket,
) -> int:
    """The engine's process, forked by the guardian. Returns its exit status."""
    log = logs.set_up(config.log, node, "engine")
    # Neither is inherited by fork. What the guardian may not have it has said before; and once is enough.
    for note in dict.fromkeys((*hello.notes, *prefer_this_process(), *lock_memory())):
        if not hello.engine_deaths:
            log.warning("privilege_missing", what=note)
    durable, problem = store.load(state_path(config, node))
    if problem:
        log.error("state_damaged", what=problem)

    async def run() -> int:
        core = Engine(config, node, __version__)
        loop = Loop(core, config, node, hello, guardian, lease_sock, store_sock, log)
        return await loop.run(durable)

    return asyncio.run(run())
