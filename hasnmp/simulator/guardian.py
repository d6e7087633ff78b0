"""The guardian of the simulated machines: acts as runtime/guardian.py does, on the decisions of core/guard.py.

Whatever wakes it, it ends first what is due (engine first), and only then obeys messages. It may be stopped anywhere,
also between its look at the lease and what it does thereupon; after such a step it looks again. The kernel ends an
address's element by itself, whatever becomes of the guardian.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hasnmp.core.events import (
    Act,
    Action,
    Adopt,
    AgentResult,
    Event,
    Extend,
    Extended,
    Forward,
    GiveUp,
    HeldLease,
    Hook,
    Outcome,
    Release,
    Released,
    Reload,
    ServiceExited,
    Stage,
)
from hasnmp.simulator import hooked
from hasnmp.simulator.reloader import Reloader
from hasnmp.simulator.world import MS, NEVER, Decisions, NewGuard, Process, World

if TYPE_CHECKING:
    from hasnmp.simulator.machine import Machine, Program

LATE = 5 * MS  # a step that took longer between look and deed is looked at again


class Guardian(Process):
    def __init__(self, world: World, machine: Machine, new_guard: NewGuard) -> None:
        super().__init__(world, f"{machine.name} guardian")
        self.machine = machine
        self.new_guard = new_guard
        self.guard: Decisions = new_guard(machine.kill_ns)
        self.holder = ""
        self.cleaned: tuple[str, ...] = ()
        self.timer_at = NEVER
        self.ending: set[str] = set()  # groups that are being ended by force
        self.awaits_end = True  # the next engine does, that of the groups that are being ended
        self.channel = 0  # the socket to the engine keeps the order
        self.reloader = Reloader(self)

    # ------------------------------------------------------------------------------------------ start and end

    def start(self) -> None:
        """Started by init. Its predecessor's engine, programs and addresses are ended before anything else."""
        self.begin()
        world, machine = self.world, self.machine
        self.holder = f"{world.rng.getrandbits(64):016x}"
        machine.read_file()
        self.reloader = Reloader(self)
        self.guard = self.new_guard(machine.kill_ns)
        self.timer_at = NEVER
        self.ending.clear()
        world.tell(self.name, f"started, holder {self.holder[:4]}")
        machine.engine.kill()
        machine.lease_io.kill()
        machine.store.kill()
        world.post(world.between(2 * MS, 30 * MS), self, self.clean)

    def clean(self) -> None:
        machine = self.machine
        self.cleaned = tuple(sorted(machine.programs))
        machine.end_everything()
        machine.dirty.clear()
        self.world.power.arm(machine)
        self.world.post(self.world.between(5 * MS, 60 * MS), self, self.start_engine)

    def start_engine(self) -> None:
        machine, now = self.machine, self.machine.clock()
        if machine.engine.alive or self.reloader.holds():
            return
        self.end_due()
        if (
            self.ending and self.awaits_end
        ):  # as runtime/ending.py does; but not for ever, so an engine may meet it, too
            self.world.post(2 * MS, self, self.start_engine)
            return
        leases = tuple(h for g, h in self.guard.leases.items() if self.guard.may_run(g, now))
        machine.lease_io.begin()
        machine.store.begin()
        unclean = tuple(g for g in self.guard.leases if g in self.ending)
        news, self.reloader.reloaded = self.reloader.reloaded, ("", 0)
        machine.engine.start(self.holder, leases, self.cleaned, unclean, self.guard.engine_begins(), news)
        self.cleaned = ()
        self.reloader.engine_forked()

    def engine_gone(self) -> None:
        """SIGCHLD."""
        world = self.world
        usual = world.truth.keep or world.calm  # an engine that is started late loses its lease
        slow = world.rng.random() < 0.5 and not usual
        self.awaits_end = world.calm or world.rng.random() < 0.7
        world.post(world.between(10 * MS, 400 * MS if slow else 40 * MS), self, self.start_engine)

    # ------------------------------------------------------------------------------------------ what is due

    def woke(self) -> None:
        self.end_due()

    def end_due(self) -> None:
        for group in self.guard.due(self.machine.clock()):
            self.ending.add(group)
            self.world.count("groups ended by force")
            self.world.tell(self.name, f"ends {group}: its lease is over; killed the engine first")
            if self.machine.engine.alive:
                self.machine.kill_engine()
            wait = int(self.world.rng.random() * 0.8 * self.machine.kill_ns)
            self.world.post(wait, self, self.at_point, "kill", self.end_group, group)

    def end_group(self, group: str) -> None:
        self.machine.end_group(group)
        self.machine.shut_down(group)
        self.guard.ended(group)
        self.ending.discard(group)
        self.world.tell(self.name, f"ended {group}")
        if self.machine.engine.alive:  # it was started meanwhile
            self.tell_engine(self.machine.engine.epoch, Released(group, 0, True))

    def overdue(self) -> bool:
        """Is a group being ended whose lease is over? Then the watchdog is not fed."""
        now, leases = self.machine.clock(), self.guard.leases
        return any(leases[g].until_ns <= now for g in self.ending if g in leases)

    def arm(self) -> None:
        deadline = self.guard.next_deadline_ns()
        if deadline >= NEVER:
            return
        at = max(self.machine.true_at(deadline), self.world.now)
        if at < self.timer_at:
            self.timer_at = at
            self.world.post_at(at + int(self.world.rng.random() * MS // 2), self, self.timer, at)

    def timer(self, at: int) -> None:
        if at == self.timer_at:
            self.timer_at = NEVER
            self.end_due()
            self.arm()

    # ------------------------------------------------------------------------------------------ the engine's words

    def obey(
        self, effect: Extend | Release | Act | Hook | Reload | Stage | Adopt | Forward | GiveUp, life: int
    ) -> None:
        """A message of the engine of that life; it may be dead by now, and its words still in the socket."""
        self.end_due()
        if isinstance(effect, Extend):
            self.extend(effect, life)
        elif isinstance(effect, Release):
            self.check_release(effect, life)
        elif isinstance(effect, Hook):
            hooked.run(self, effect, life)
        elif not isinstance(effect, Act):
            self.reloader.obey(effect)
        elif effect.action is Action.START:
            self.at_point("start", self.start_service, effect, life)
        elif effect.action is Action.STOP:
            self.stop_service(effect, life)
        else:
            self.check_service(effect, life)
        self.arm()

    def tell_engine(self, life: int, event: Event) -> None:
        engine = self.machine.engine
        if engine.epoch == life:
            at = self.world.now + 20_000 + int(self.world.rng.random() * 150_000)
            self.channel = at = max(at, self.channel + 1)
            self.world.post_at(at, engine, engine.step, event)

    def extend(self, effect: Extend, life: int) -> None:
        taken: list[HeldLease] = []
        refused: list[HeldLease] = []
        for lease in effect.leases:
            before = self.guard.leases.get(lease.group)
            if not self.guard.extend(lease, self.machine.clock()):
                refused.append(lease)
                self.world.tell(self.name, f"refused the lease of {lease.group}, token {lease.token}")
                continue
            taken.append(lease)
            self.world.truth.leased(self.machine, lease, before)
            remaining = self.guard.remaining_ns(lease.group, self.machine.clock())
            self.at_point("renew", self.renew, lease.group, remaining, self.machine.clock())
        if taken:
            self.tell_engine(life, Extended(tuple(taken)))
        if refused:
            self.tell_engine(life, Extended(tuple(refused), ok=False))

    def renew(self, group: str, remaining: int, read_ns: int) -> None:
        """Delete and add in one batch: fails for an element that lapsed."""
        machine, now = self.machine, self.machine.clock()
        if machine.elements.get(group, 0) <= now or remaining <= 0:
            return
        # A timeout is relative: stopped between the clock and the call, it would outlive the lease. So it looks again.
        if now - read_ns > LATE:
            remaining = self.guard.remaining_ns(group, now)
        machine.set_element(group, now + remaining)

    def check_release(self, effect: Release, life: int) -> None:
        """It confirms what it saw: that takes as long as the kernel takes to end what is left."""
        wait = 0 if self.world.calm else self.world.between(0, 200 * MS)
        self.world.count("releases waited for")
        self.world.post(wait, self, self.at_point, "release", self.release, effect, life)

    def release(self, effect: Release, life: int) -> None:
        group, engine = effect.group, self.machine.engine
        # With an engine ends what it waited for, once its end is known: the next one, which was told of the lease, goes by that.
        if engine.epoch != life or group in self.ending or (not engine.alive and self.world.rng.random() < 0.5):
            return
        left = [p.service for p in self.machine.programs.values() if p.group == group]
        if self.machine.elements.get(group, 0) > self.machine.clock():
            left.append("its address")
        if left:
            self.tell_engine(life, Released(group, effect.token, False, f"{', '.join(left)} still there"))
            return
        held = self.guard.leases.get(group)
        if held is not None and held.token <= effect.token:
            self.guard.ended(group)
            self.world.tell(self.name, f"released {group}, token {effect.token}")
        self.tell_engine(life, Released(group, effect.token, held is None or held.token <= effect.token))

    def start_service(self, act: Act, life: int) -> None:
        group = self.machine.group_of[act.service]
        if not self.guard.may_run(group, self.machine.clock()):
            self.tell_engine(life, AgentResult(act.attempt, act.service, Outcome.REFUSED, "no live lease"))
            return
        held = self.guard.leases[group]
        now = self.machine.clock()
        self.world.truth.start_accepted(self.machine, held, self.holder)
        if act.service in self.machine.passive:
            self.reply(life, act, Outcome.OK, 1 * MS)
        elif act.service in self.machine.addresses:
            remaining = self.guard.remaining_ns(group, now)
            self.at_point("address", self.add_address, act, life, remaining, now)
        else:
            self.at_point("spawn", self.spawn, act, life, held.token, now)

    def add_address(self, act: Act, life: int, remaining: int, read_ns: int) -> None:
        machine, now = self.machine, self.machine.clock()
        group = machine.group_of[act.service]
        if now - read_ns > LATE:
            remaining = self.guard.remaining_ns(group, now) if self.guard.may_run(group, now) else 0
        if remaining <= 0 or machine.bad.get(act.service) == "start":
            self.reply(life, act, Outcome.FAILED, 2 * MS)
            return
        machine.set_element(group, now + remaining)
        self.reply(life, act, Outcome.OK, 2 * MS)

    def spawn(self, act: Act, life: int, token: int, read_ns: int) -> None:
        machine, world = self.machine, self.world
        program = machine.programs.get(act.service)
        if program is None:
            program = machine.spawn(act.service, token, self.holder)
            if machine.clock() - read_ns > LATE:
                self.end_due()  # it was stopped in between: look again before anything else
        mode = machine.bad.get(act.service, "")
        if mode == "start":
            world.post(world.between(2 * MS, 20 * MS), self, self.start_failed, act, life, program, Outcome.FAILED)
        elif mode == "hang":
            world.post(act.timeout_ms * MS, self, self.start_failed, act, life, program, Outcome.TIMED_OUT)
        else:
            takes = machine.takes_ns.get(act.service) or world.between(2 * MS, 40 * MS)
            program.ready_ns = world.now + takes
            if takes < act.timeout_ms * MS:
                world.post(takes, self, self.start_done, act, life, program)
            else:
                world.post(act.timeout_ms * MS, self, self.start_failed, act, life, program, Outcome.TIMED_OUT)

    def start_done(self, act: Act, life: int, program: Program) -> None:
        alive = self.machine.programs.get(act.service) is program
        self.reply(life, act, Outcome.OK if alive else Outcome.FAILED, 0, program.pid)

    def start_failed(self, act: Act, life: int, program: Program, outcome: Outcome) -> None:
        self.machine.remove(program)
        self.reply(life, act, outcome, 0)

    def reply(self, life: int, act: Act, outcome: Outcome, wait_ns: int, pid: int = 0) -> None:
        result = AgentResult(act.attempt, act.service, outcome, "", wait_ns // 1000, pid)
        if wait_ns:
            self.world.post(wait_ns, self, self.tell_engine, life, result)
        else:
            self.tell_engine(life, result)

    def stop_service(self, act: Act, life: int) -> None:
        machine, world = self.machine, self.world
        mode = machine.bad.get(act.service, "")
        if act.service in machine.addresses:
            machine.remove_element(machine.group_of[act.service])
            self.reply(life, act, Outcome.OK, 1 * MS)
        elif mode == "stop":
            self.reply(life, act, Outcome.FAILED, 5 * MS)
        elif mode == "hang":
            self.reply(life, act, Outcome.TIMED_OUT, act.timeout_ms * MS)
        else:
            world.post(world.between(1 * MS, 40 * MS), self, self.stop_done, act, life)

    def stop_done(self, act: Act, life: int) -> None:
        program = self.machine.programs.get(act.service)
        if program is not None:
            self.machine.remove(program)
            if life != self.machine.engine.epoch:
                self.program_exited(program)  # who asked for it has died: to the next engine it ended by itself
        self.machine.shut_down(self.machine.group_of[act.service])
        self.reply(life, act, Outcome.OK, 0)

    def check_service(self, act: Act, life: int) -> None:
        machine = self.machine
        mode = machine.bad.get(act.service, "")
        if mode == "hang":
            self.reply(life, act, Outcome.TIMED_OUT, act.timeout_ms * MS)
            return
        if act.service in machine.addresses:
            there = not act.owned or machine.elements.get(machine.group_of[act.service], 0) > machine.clock()
            good = there and mode != "check"
            self.reply(life, act, Outcome.OK if good else Outcome.FAILED, 1 * MS)
        elif act.service in machine.passive:
            self.reply(life, act, Outcome.OK, 1 * MS)
        elif act.service not in machine.programs:
            self.reply(life, act, Outcome.NOT_RUNNING, 1 * MS)
        else:
            self.reply(life, act, Outcome.FAILED if mode == "check" else Outcome.OK, 1 * MS)

    def program_exited(self, program: Program) -> None:
        """SIGCHLD of a service's program that ended by itself."""
        engine = self.machine.engine
        self.tell_engine(engine.epoch, ServiceExited(program.service, program.pid, "exit status 1"))
