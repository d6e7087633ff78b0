"""The guardian: starts and restarts the others, runs the services' programs, and ends what the engine can't.

It decides nothing about failover. It keeps one promise (design rule 4): when a group's lease ends, everything of that
group has ended here before, whatever the engine does, for every other node relies on it. Which lease is live and what is
due is decided by core/guard.py, the same code that the simulator runs; here is how.

One thread, one loop, no waiting for anything but the selector. Before any message is obeyed, and before anything is
started, the clock is looked at: a guardian that was frozen and goes on kills first. The other processes are forked without
exec, so that a new engine is there within milliseconds and all share their code's memory.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import secrets
import selectors
import signal
import socket
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hasnmp.arbiters.pills import Pill
from hasnmp.core.events import Released, ReloadEnded, Staged, Troubled
from hasnmp.core.guard import NEVER, Guard
from hasnmp.runtime import beginning, handover, leftovers, places
from hasnmp.runtime.belongings import Belongings
from hasnmp.runtime.ending import RETRY_NS, Ending, certain
from hasnmp.runtime.feeder import Feeder
from hasnmp.runtime.group_addresses import GroupAddresses
from hasnmp.runtime.handover import Handover
from hasnmp.runtime.kernel import (
    BootTimer,
    boot_id,
    boottime_ns,
)
from hasnmp.runtime.lease_board import LeaseBoard
from hasnmp.runtime.messages import (
    AddressLost,
    Alarm,
    Channel,
    Exited,
    FromGuardian,
    Hello,
    MessageError,
    Purpose,
    Running,
    Stop,
    channel_pair,
)
from hasnmp.runtime.mounts import GroupMounts
from hasnmp.runtime.orders import Orders
from hasnmp.runtime.pills import PillBox
from hasnmp.runtime.processes import MS, Child, Children, Family, S, log, set_up_log
from hasnmp.runtime.programs import Programs
from hasnmp.runtime.pulse import Pulse
from hasnmp.runtime.reload import Reloader
from hasnmp.runtime.vigil import Vigil
from hasnmp.runtime.watchdog import Watchdog
from hasnmp.settings import Config

__all__ = ["Children", "Guardian", "run"]

SILENT_NS = 5 * S  # an engine that says nothing for this long hangs; counted from its fork
FORK_AGAIN_NS = 50 * MS  # after a fork that was refused
STOP_TRIES = 4  # engines that may die in a row before a stop in order becomes one by force
KEPT = 1000  # messages kept while no engine lives
PER_TURN = 64  # messages taken before the loop looks at everything else
EXIT_LOCKED = 75  # another guardian runs this node: EX_TEMPFAIL of sysexits.h


def run(config: Config, node: str, children: Children) -> int:
    """Be the guardian of this node until SIGTERM. Returns the exit status."""
    set_up_log(config.log, node)
    os.makedirs(config.run_dir, mode=0o755, exist_ok=True)
    handed, lock = handover.inherited()
    if handed is None:
        try:
            lock = places.lock(path := places.lock_path(config.run_dir, node))
        except BlockingIOError:
            log("guardian_refused", logging.ERROR, why=f"another hasnmpd runs node {node} ({path} is locked)",
                next="leave it, or stop it first; hasnmpd --handover has it become this code")  # fmt: skip
            return EXIT_LOCKED
    guardian = Guardian(config, node, children, lock)
    try:
        beginning.begin(guardian, handed)
        guardian.loop()
        return 0
    except Exception:
        # A defect here must not leave services behind that nobody guards.
        log("guardian_failed", logging.ERROR, traceback=traceback.format_exc())
        return 1
    finally:
        leftovers.finish(guardian)


@dataclass(slots=True)
class Guardian:
    config: Config
    node: str
    children: Children
    lock: int = -1  # the descriptor that is locked while this node has its guardian
    guard: Guard = field(init=False)
    board: LeaseBoard = field(default_factory=LeaseBoard)
    selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    programs: Programs = field(init=False)
    addresses: GroupAddresses = field(init=False)
    belongings: Belongings = field(init=False)
    mounts: GroupMounts = field(init=False)
    ending: Ending = field(init=False)
    watchdog: Watchdog = field(init=False)
    feeder: Feeder = field(init=False)
    reload: Reloader = field(init=False)
    holder: str = field(default_factory=lambda: secrets.token_hex(8))
    boot: str = field(default_factory=boot_id)
    channel: Channel | None = None  # to the engine that lives
    obey: Callable[[Any], None] = field(init=False)  # what is done with each of its messages
    handover: Handover = field(init=False)
    family: Family = field(init=False)
    vigil: Vigil = field(init=False)
    places: places.Places = field(init=False)
    pulse: Pulse = field(init=False)
    pills: PillBox | None = None
    orders: Orders = field(init=False)
    kept: deque[FromGuardian] = field(default_factory=lambda: deque(maxlen=KEPT))
    cleaned: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    engine_deaths: int = 0
    engine_replaced: bool = False  # this guardian ended it, for new code
    watchdog_told: int = -1  # its armed time, as the engine was told; -1 = none was
    heard_ns: int = 0  # when the engine said something last, or was forked
    stopping: bool = False
    finished: bool = False
    timer: BootTimer = field(default_factory=BootTimer)
    wake: tuple[socket.socket, socket.socket] = field(default_factory=socket.socketpair)
    worst_late_us: int = 0

    # --------------------------------------------------------------------------------------------------- configuration

    def configure(self, config: Config) -> None:
        """Go by another configuration from here on (reload.py has seen to it that nothing contradicts it)."""
        self.config = config
        self.belongings.configure(config, self.ending.until)
        self.guard.kill_ns = config.heartbeat.kill_ms * MS
        self.ending.certain = certain(config)
        for line in beginning.open_addresses(self):
            log("leftover_ended", logging.WARNING, what=line, why="the configuration has this address now")
        gc.freeze()

    # --------------------------------------------------------------------------------------------- the other processes

    def start(self, child: Child) -> None:
        """Fork it. Where that is refused, for lack of processes or memory, it is tried again: what runs needs it less than a guardian."""
        try:
            if child is self.family.engine:
                self._fork_engine()
            else:
                self.family.fork(child)
            child.refused = False
        except OSError as error:
            child.start_at_ns = boottime_ns() + FORK_AGAIN_NS
            if not child.refused:
                log("process_not_started", logging.ERROR, name=child.name, why=error.strerror,
                    next="tried again and again; what runs goes on while its lease lasts")  # fmt: skip
            child.refused = True
            if self.stopping and child is self.family.engine and not self.guard.leases:
                self.finished = True  # there is nothing that it could move away

    def _fork_engine(self) -> None:
        """A new engine, with a new channel, told what there is. Raises OSError: there is none, and nothing was told."""
        mine, its = channel_pair()
        self.feeder.arm(boottime_ns())
        hello = Hello(
            self.holder, self.boot, tuple(lease for group, lease in self.guard.leases.items() if group not in self.guard.ending),
            tuple(Running(p.run.run, p.run.group, p.run.service, p.run.purpose, p.pid, p.started_ns)
                  for p in self.programs.running.values() if p.status is None and not p.silent)
            + tuple(Running(0, up.group, service, Purpose.START, 0, up.since_ns)
                    for service, up in self.programs.up.items() if up.well),
            tuple(self.addresses.held.values()),
            self.cleaned, self.notes, self.orders.next_run, self.engine_deaths,
            self.watchdog.timeout_ms, self.watchdog.error, tuple(self.ending.until), self.guard.engine_begins(),
            *self.reload.news(),
            self.engine_replaced,
        )  # fmt: skip

        def main() -> int:
            mine.close()
            lease_io, store = self.family.pairs["lease_io"][0], self.family.pairs["store"][0]
            return self.children.engine(self.config, self.node, hello, its, lease_io, store)

        self.family.engine.main = main
        try:
            self.family.fork(self.family.engine)
        except OSError:
            mine.close()
            self.guard.unbound.update(hello.unbound)
            self.reload.untold(hello.reloaded, hello.reload_command)
            raise
        finally:
            its.close()
        self.engine_replaced, self.watchdog_told = False, hello.watchdog_ms
        places.record_engine(self)
        self.listen_to(mine)
        waiting, self.kept = self.kept, deque(maxlen=KEPT)
        for message in waiting:
            self._tell(message)
        self.reload.engine_forked()
        if self.stopping:
            self._tell(Stop())

    def listen_to(self, channel: Channel) -> None:
        """This is the engine's channel from here on."""
        self.channel, self.heard_ns = channel, boottime_ns()
        self.selector.register(channel, selectors.EVENT_READ, lambda: self._on_engine(channel))
        if channel.waiting:
            self._want_writable(channel, True)

    def _kill_engine(self, why: str = "") -> None:
        """SIGKILL: it never runs another instruction, frozen or not. What it had said is never read. why: "" = no news."""
        # Before its channel is closed: one that sees the end of that takes its guardian for dead, and ends every service.
        if self.family.engine.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.family.engine.pid, signal.SIGKILL)
        if self.channel:
            self.selector.unregister(self.channel)
            self.channel.close()
            self.channel = None
        if self.family.engine.pid and why:
            log("engine_killed", logging.WARNING, why=why, pid=self.family.engine.pid)

    def _on_signal(self) -> None:
        with contextlib.suppress(BlockingIOError):
            numbers = self.wake[0].recv(4096)
            if signal.SIGTERM in numbers or signal.SIGINT in numbers:
                if not self.stopping:
                    log("stop_ordered")
                    self.feeder.stopping()
                self.stopping = True
                self.family.engine.start_at_ns = min(self.family.engine.start_at_ns, boottime_ns())
                if self.channel:
                    self._tell(Stop())
            if signal.SIGHUP in numbers:
                self.reload.ask()
            if signal.SIGUSR2 in numbers:
                self.handover.asked()
        self._reap()

    def _reap(self) -> None:
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            self.programs.before_reaping(ended.si_pid)
            pid, status = os.waitpid(ended.si_pid, 0)
            now = boottime_ns()
            child = next((c for c in self.family.all() if c.pid == pid), None)
            if child is None:
                if not self.mounts.reaped(pid, status) and not self.handover.reaped(pid, status):
                    self.programs.reaped(pid, status, now)
                continue
            child.died(now)
            code = os.waitstatus_to_exitcode(status)
            if child is self.family.engine:
                self._engine_ended(code)
            if not self.finished:
                log("process_ended", name=child.name, pid=pid, status=code, next_ms=(child.start_at_ns - now) // MS)

    def _engine_ended(self, code: int) -> None:
        if self.channel:
            self.selector.unregister(self.channel)
            self.channel.close()
            self.channel = None
        self.engine_deaths += 1
        self.orders.releases.clear()
        self.reload.engine_ended(code)
        # Nobody waits for their answers; the next engine asks anew.
        self.programs.end_questions()
        if self.stopping and code == 0:
            self.finished = True
        elif self.stopping:
            # It is to leave in order, so another one tries; one that can't is no reason to stay: finish() uses force.
            self.finished = self.family.engine.deaths >= STOP_TRIES
            self.family.engine.start_at_ns = boottime_ns()

    def _start_what_is_due(self, now: int) -> None:
        for child in self.family.others:
            if not child.pid and child.start_at_ns <= now and child.wanted():
                self.start(child)
        engine = self.family.engine
        waits = self.ending.holds_up(now) or self.reload.holds()
        if self.pills and self.pills.pending:
            self._start_over()
        elif not engine.pid and engine.start_at_ns <= now and not waits and not self.finished:
            self.start(engine)

    # ----------------------------------------------------------------------------------------------------- the messages

    def _tell(self, message: FromGuardian) -> None:
        try:
            if self.channel and not self.channel.send(message):
                self._kill_engine("it does not read")
        except MessageError as error:  # a text of a length that nobody thought of
            log("message_not_sent", logging.ERROR, why=error, next="the engine goes on without it")
            return
        if self.channel is None:
            if isinstance(message, Exited | Alarm | ReloadEnded | Staged | Troubled):
                self.kept.append(message)  # the next engine must know it; the rest was an answer to a dead one
        elif self.channel.waiting:
            self._want_writable(self.channel, True)

    def _want_writable(self, channel: Channel, wanted: bool) -> None:
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if wanted else 0)
        self.selector.modify(channel, events, lambda: self._on_engine(channel))

    def _alarm(self, text: str) -> None:
        log("alarm", logging.ERROR, text=text)
        self._tell(Alarm(text))

    def _on_engine(self, channel: Channel) -> None:
        if channel.waiting and channel is self.channel:
            channel.flush()
            self._want_writable(channel, channel.waiting)
        for _ in range(PER_TURN):
            if channel is not self.channel:
                return  # it was killed meanwhile: what it said before counts no more
            self._end_what_is_due(boottime_ns())
            if channel is not self.channel:
                return
            try:
                message = channel.receive()
            except BlockingIOError:
                return
            except MessageError as error:
                log("message_refused", logging.WARNING, why=error)
                continue
            if message is None:
                self._kill_engine()  # it is gone, or is about to: how, its exit status tells
                return
            self.heard_ns = boottime_ns()
            self.obey(message)

    def _ended(self, group: str) -> None:
        """Of what was ended by force: an engine that started meanwhile was told that the group is unclean."""
        self._tell(Released(group, 0, True))

    def _renew_addresses(self) -> None:
        for service, why in self.addresses.renew():
            log("address_lost", logging.WARNING, service=service, why=why)
            self._tell(AddressLost(service, why))

    # --------------------------------------------------------------------------------------------------- ending by force

    def _end_what_is_due(self, now: int) -> None:
        """The heart: what is due ends, the engine first, before anything else is done."""
        if self.guard.next_deadline_ns() <= now:
            for group in self.guard.due(now):
                if group not in self.ending.until:
                    until = self.guard.leases[group].until_ns
                    self.orders.releases.pop(group, None)
                    log("lease_ended", logging.WARNING, group=group, next="end by force", left_ms=(until - now) // MS)
                    self._kill_engine(f"the lease of {group} ends")
                    self.ending.begin(group, until)
            self.ending.go_on(now)

    # ----------------------------------------------------------------------------------------------------------- pills

    def _take_pills(self) -> None:
        if pair := self.family.pairs.get("pills"):
            armed = self.watchdog.timeout_ms
            self.pills = PillBox(pair[0], self.holder, self._swallow, lambda: not self.ending.until, armed)
            self.selector.register(pair[0], selectors.EVENT_READ, self.pills.readable)
            self.pills.tell()

    def _swallow(self, pill: Pill) -> None:
        """A poison pill for this holder: everything ends, the engine first, without a look at any lease."""
        self._kill_engine(f"a poison pill of {pill.attacker}")
        self._alarm(
            f"{pill.attacker} sent this node a poison pill over the lease disk: every group here is ended by force"
        )
        now = boottime_ns()
        for group in self.belongings.groups():
            lease = self.guard.leases.get(group)
            if group not in self.ending.until and (lease or self.ending.left_of(group)):
                self.guard.ending.add(group)
                self.orders.releases.pop(group, None)
                until = max(lease.until_ns if lease else 0, now + self.guard.kill_ns)
                self.ending.begin(group, until, f"a poison pill of {pill.attacker}")
        self.ending.go_on(now)

    def _start_over(self) -> None:
        """Once nothing is left, seen and confirmed: be another holder, as after a restart, and have that written down."""
        # Of no group ("") are fence agents: one that is left might still end whoever sent the pill.
        if self.pills and not self.ending.until and not self.family.engine.pid and not self.programs.leftovers(""):
            former, self.holder = self.holder, secrets.token_hex(8)
            places.record_holder(self)
            log("pill_swallowed", logging.WARNING, former_holder=former, holder=self.holder, next="a new engine")
            self.pills.ended(self.holder)
            self.family.engine.start_at_ns = boottime_ns()

    # ----------------------------------------------------------------------------------------------------------- loop

    def loop(self) -> None:
        while not self.finished:
            now = boottime_ns()
            self._end_what_is_due(now)
            if self.ending.retry_at_ns <= now:
                self.ending.go_on(now)
            self.programs.poll(now)
            if self.orders.releases:
                self.orders.poll_releases(now)
            self._renew_addresses()
            self.reload.look(now)
            self._start_what_is_due(now)
            self._watch_engine(now)
            self.pulse.poll(now)
            self.vigil.poll(now)
            self.places.poll(now)
            self.feeder.poll(now)
            self.handover.poll(now)
            deadline = self._next_deadline_ns(boottime_ns())
            self.timer.set(deadline if deadline < NEVER else 0)
            for key, _ in self.selector.select():
                woken = boottime_ns()
                self._end_what_is_due(woken)
                if key.fileobj is self.timer:
                    self.worst_late_us = max(self.worst_late_us, (woken - deadline) // 1000)
                key.data()

    def _next_deadline_ns(self, now: int) -> int:
        at = min(self.guard.next_deadline_ns(), self.ending.retry_at_ns, self.feeder.next_deadline_ns(),
                 self.programs.next_deadline_ns(now), self.addresses.next_deadline_ns(),
                 self.reload.next_deadline_ns(now), self.handover.next_deadline_ns(), self.pulse.next_deadline_ns())  # fmt: skip
        if self.orders.releases:
            at = min(at, now + 2 * MS)
        for child in self.family.all():
            if not child.pid and child.wanted():
                waits = child is self.family.engine and (self.ending.until or (self.pills and self.pills.pending))
                at = min(at, now + RETRY_NS if waits else child.start_at_ns)
        return min(at, self.heard_ns + SILENT_NS) if self.channel else at

    def _watch_engine(self, now: int) -> None:
        if self.channel and now - self.heard_ns >= SILENT_NS:
            self._kill_engine(f"it hangs: silent for {SILENT_NS // S} s")
