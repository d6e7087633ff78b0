"""One simulated machine: its clock, its kernel (programs and address elements), and the engine's process on it."""

from __future__ import annotations

from dataclasses import dataclass

from hasnmp.config_changes import Webs, in_force, strangers
from hasnmp.core.events import (
    Act,
    Adopt,
    Adopted,
    ArbiterCall,
    CommandIn,
    Effect,
    Event,
    Exit,
    Extend,
    Fence,
    Forward,
    GiveUp,
    HeldLease,
    Hook,
    Notify,
    Persist,
    Persisted,
    Received,
    Release,
    Reload,
    Reply,
    Send,
    Sent,
    Shutdown,
    Stage,
    Started,
    Tick,
)
from hasnmp.model import View
from hasnmp.settings import Config
from hasnmp.simulator import hooked
from hasnmp.simulator.crash import Doom
from hasnmp.simulator.guardian import Guardian
from hasnmp.simulator.storage import Disk, LeaseIo, Store
from hasnmp.simulator.story import effect_text, event_text
from hasnmp.simulator.world import BUFFER, MS, NEVER, Broken, Core, NewCore, NewGuard, Process, World
from hasnmp.wire import Datagram

MILLION = 1_000_000


@dataclass(slots=True)
class Program:
    """A service's process. It runs from the moment of its spawn until somebody ends it or it dies."""

    service: str
    group: str
    pid: int
    token: int
    holder: str
    since_ns: int
    ready_ns: int = NEVER  # true time from which on it serves


class EngineProcess(Process):
    """The process around the real engine: hands it its events, and carries out its effects one after the other."""

    def __init__(self, world: World, machine: Machine, new_core: NewCore) -> None:
        super().__init__(world, f"{machine.name} engine")
        self.machine = machine
        self.new_core = new_core
        self.core: Core | None = None
        self.timer_at = NEVER
        self.channel = 0
        self.commands = 0
        self.doom: Doom | None = None  # an end that waits for it between two effects

    def start(
        self, holder: str, leases: tuple[HeldLease, ...], cleaned: tuple[str, ...], unclean: tuple[str, ...],
        unbound: tuple[str, ...], reloaded: tuple[str, int] = ("", 0),
    ) -> None:  # fmt: skip
        self.begin()
        self.timer_at, self.doom = NEVER, None
        world, machine = self.world, self.machine
        core = self.core = self.new_core(machine.config, machine.name, "1.0")
        adopted = [Adopted(p.service, p.pid, machine.clock_at(p.since_ns)) for p in machine.programs.values()]
        now = machine.clock()
        adopted += [Adopted(s, 0, now) for s in machine.addresses if machine.elements.get(machine.group_of[s], 0) > now]
        random = world.rng.getrandbits
        world.tell(self.name, f"started with leases {leases}, services {[a.service for a in adopted]}")
        self.step(
            Started(
                random(64), holder, f"boot-{machine.name}-{machine.boot}", random(64), world.wall_ms(),
                leases, tuple(adopted), cleaned, watchdog_ms=machine.watchdog_ms if machine.armed else 0, unclean=unclean,
                unbound=unbound, reloaded=reloaded[0], reload_command=reloaded[1], durable=machine.store.load(),
            )
        )  # fmt: skip
        assert core is self.core

    def view(self) -> View | None:
        """What this node shows now; None while there is no engine that could be asked."""
        if not self.alive or self.paused or self.core is None:
            return None
        try:
            return self.core.view(self.machine.clock(), self.world.wall_ms())
        except Exception as e:
            raise Broken("crashed", f"{self.name} raised {type(e).__name__}: {e} when it was to show its view") from e

    def step(self, event: Event) -> None:
        world = self.world
        assert self.core is not None
        world.steps += 1
        if world.steps > world.max_steps:
            raise Broken("spins", f"{world.steps} steps; the last event of {self.name} is {event!r}")
        now = self.machine.clock()
        if world.say is not None and (text := event_text(event)):
            world.say(world.now, self.name, text)
        try:
            effects = self.core.step(event, now)
        except Exception as e:
            raise Broken("crashed", f"{self.name} raised {type(e).__name__}: {e} at {event!r}") from e
        self.perform(effects, 0)
        if isinstance(event, Persisted):
            world.truth.stored(self.machine)

    def perform(self, effects: tuple[Effect, ...] | list[Effect], at: int) -> None:
        """Carry out the effects from that one on; a stopped process goes on where it was, with what it had decided."""
        world, machine = self.world, self.machine
        for i in range(at, len(effects)):
            if self.trap is not None and self.sprung("effect"):
                self.pending.insert(0, (self.perform, (effects, i)))
                return
            effect = effects[i]
            doom = self.doom if self.doom is not None and self.doom.meets(effect) else None
            if doom is not None and not doom.after:
                self.meet(doom)
                return
            if world.say is not None and (text := effect_text(effect)):
                world.say(world.now, self.name, text)
            if isinstance(effect, Send):
                world.network.send(effect.datagram, effect.link)
                if effect.receipt:
                    world.post(15_000, self, self.sent, effect.datagram.seq)
            elif isinstance(effect, (Extend, Release, Act, Hook, Reload, Stage, Adopt, Forward, GiveUp)):
                at_ns = world.now + 20_000 + int(world.rng.random() * 150_000)
                self.channel = at_ns = max(at_ns, self.channel + 1)
                world.post_at(at_ns, machine.guardian, machine.guardian.obey, effect, self.epoch)
            elif isinstance(effect, ArbiterCall):
                if machine.lease_io.alive:
                    world.post(50_000, machine.lease_io, machine.lease_io.call, effect, self.epoch)
                else:
                    machine.lease_io.refuse(effect, self.epoch)
            elif isinstance(effect, Fence):
                world.power.fence(machine, effect)
            elif isinstance(effect, Persist):
                machine.store.persist(effect)
            elif isinstance(effect, Notify):
                world.count(effect.event.kind.value)
                if world.listen is not None:
                    world.listen(machine.name, effect.event)
            elif isinstance(effect, Reply):
                world.truth.replied(machine, effect.command)
            elif isinstance(effect, Exit):
                if effect.force:
                    machine.end_everything()
                    machine.kill_engine()
                elif effect.retired:
                    machine.retired()
                else:
                    machine.left()
                return
            if doom is not None:
                self.meet(doom)
                return
        self.arm()

    def meet(self, doom: Doom) -> None:
        self.doom = None
        self.world.tell(self.name, "met its end between two effects")
        doom.ends()

    def sent(self, seq: int) -> None:
        self.step(Sent(seq, self.machine.clock()))

    def receive(self, link: str, datagram: Datagram) -> None:
        self.step(Received(link, datagram))

    def command(self, command: CommandIn) -> None:
        self.world.tell(self.name, f"was told {command.verb.name} {command.target!r} to {command.to!r}")
        self.step(command)

    def shut_down(self) -> None:
        self.step(Shutdown())

    def arm(self) -> None:
        assert self.core is not None
        deadline = self.core.next_deadline_ns()
        if deadline >= NEVER:
            return
        at = max(self.machine.true_at(deadline), self.world.now)
        if at < self.timer_at:
            self.timer_at = at
            self.world.post_at(at + 1 + int(self.world.rng.random() * MS), self, self.tick, at)

    def tick(self, at: int) -> None:
        if at == self.timer_at:
            self.timer_at = NEVER
            self.step(Tick(self.world.wall_ms()))

    def woke(self) -> None:
        """After a stop, the event loop takes its sources in any order, and each source in its own."""
        if len(self.pending) > 1 and self.world.rng.random() < 0.5:
            rest = self.pending[1:] if self.pending[0][0] == self.perform else self.pending
            head = self.pending[: len(self.pending) - len(rest)]
            order: dict[str, float] = {}
            for fn, _ in rest:
                order.setdefault(fn.__name__, self.world.rng.random())
            self.pending = head + sorted(rest, key=lambda entry: order[entry[0].__name__])

    def orphaned(self) -> None:
        """The guardian is gone: stop the groups, and exit."""
        if not self.machine.guardian.alive:
            self.world.tell(self.name, "ended everything, for the guardian is gone")
            self.machine.end_everything()
            self.machine.lease_io.kill()
            self.machine.store.kill()
            self.kill()


class Machine:
    """One machine. boot counts its starts; everything but the store's document ends with the power."""

    def __init__(self, world: World, config: Config, name: str, new_core: NewCore, new_guard: NewGuard) -> None:
        self.world = world
        self.name = name
        self.disk: Disk | None = None  # the lease disk that this machine finds, where it is not the one of all
        self.file = config  # what lies on its disk; config: what is in force
        self.sound = config  # the last one there with which it would start
        self.webs: Webs = {}  # beside it: by which nodes of each group it may have gone
        self.refuses = False  # a secret that a new file names is not there
        self.take(config)
        self.takes_ns: dict[str, int] = {}  # service -> how long its start takes; not named: a moment, drawn
        self.powered = False
        self.stopped = False  # the stack left in order, and init leaves it at that
        self.boot = 0
        self.base = 0
        self.rate = MILLION
        self.boot_at = 0
        self.pids = 100
        self.programs: dict[str, Program] = {}
        self.elements: dict[str, int] = {}  # group -> when the kernel ends its address, by this clock
        self.dirty: set[str] = set()  # groups of which pages may still be written from here
        self.watchdog_ms = 0
        self.armed = False
        self.fed_at = 0
        self.bad: dict[str, str] = {}  # service -> what is wrong with it here: start, stop, check, hang
        self.bad_hooks: dict[str, str] = {}  # kind -> fail, hang, late, slow
        self.prepared: set[tuple[str, int]] = set()  # groups and tokens for which before_start ended well here
        self.guardian = Guardian(world, self, new_guard)
        self.engine = EngineProcess(world, self, new_core)
        self.asleep = False  # a virtual machine that is paused
        self.woken = 0  # how often it was put to sleep
        self.lease_io = LeaseIo(world, self)
        self.store = Store(world, self)

    # ------------------------------------------------------------------------------------------ configuration

    def take(self, config: Config) -> None:
        self.config = config
        self.kill_ns = config.heartbeat.kill_ms * MS
        self.group_of = {s.name: s.group for s in config.services()}
        self.addresses = tuple(s.name for s in config.services() if s.agent == "address")
        # Run and watched by others: no program here.
        self.passive = tuple(s.name for s in config.services() if s.agent == "passive")
        self.disks = frozenset(g.name for g in config.groups if g.disk)
        if self.world.moved:
            self.disk = self.world.moved.get(config.arbiter.device)

    def read_file(self) -> None:
        """Go by what lies on the disk."""
        config, webs = in_force(self.file, self.webs)
        if strangers(config):  # hasnmpd does not start with it, and says why: the administrator takes his change back
            self.world.count("files taken back")
            self.file = self.sound
            config, webs = in_force(self.file, self.webs)
            assert not strangers(config)
        self.sound, self.webs = self.file, webs
        self.take(config)

    def configure(self, config: Config) -> None:
        """Another configuration is in force from here on, under the same guardian."""
        moved = config.arbiter.device != self.config.arbiter.device
        self.take(config)
        if moved and self.lease_io.alive:
            self.lease_io.die()
            self.world.post(20 * MS, self.guardian, self.begin_lease_io)
        self.guardian.guard.kill_ns = self.kill_ns

    # ------------------------------------------------------------------------------------------ clock

    def clock(self) -> int:
        """CLOCK_BOOTTIME."""
        return self.base + (self.world.now - self.boot_at) * self.rate // MILLION

    def clock_at(self, true_ns: int) -> int:
        return self.base + (true_ns - self.boot_at) * self.rate // MILLION

    def true_at(self, local_ns: int) -> int:
        """The first moment of true time at which this clock shows at least that."""
        return self.boot_at - (-(local_ns - self.base) * MILLION // self.rate)

    # ------------------------------------------------------------------------------------------ power and stack

    def power_on(self) -> None:
        if self.powered:
            return
        world = self.world
        self.powered, self.boot, self.boot_at = True, self.boot + 1, world.now
        self.base = world.between(1 * MS, 100_000 * MS) if self.boot == 1 else world.between(1 * MS, 50 * MS)
        world.tell(self.name, f"was switched on (boot {self.boot}, its clock runs {self.rate - MILLION:+d} ppm)")
        self.start_stack()

    def power_off(self) -> None:
        if not self.powered:
            return
        world = self.world
        world.tell(self.name, "lost power")
        world.count("power lost")
        for process in (self.engine, self.guardian, self.lease_io, self.store):
            process.kill()
        self.programs.clear()
        self.elements.clear()
        self.powered = self.stopped = self.armed = self.asleep = False
        self.dirty.clear()
        self.lease_io.stuck.clear()
        self.boot += 1  # what was under way for the old boot returns to nobody
        for key, slot in list(world.disk.under_way.items()):
            if key[1] == self.name:  # it may have reached the disk, now or in a moment
                del world.disk.under_way[key]
                if world.rng.random() < 0.5:
                    world.post(int(world.rng.random() * world.disk.linger_ns), None, world.disk.end_write, slot, True)
        world.truth.stopped(self, tuple(g.name for g in self.config.groups))

    def start_stack(self) -> None:
        self.stopped = False
        if self.powered and not self.guardian.alive:
            self.guardian.start()

    def kill_engine(self) -> None:
        """SIGKILL to the engine alone: the guardian sees it."""
        if self.engine.alive:
            self.engine.kill()
            self.store.kill()
            self.world.count("engines killed")
            self.world.post(100_000, self.guardian, self.guardian.engine_gone)

    def retired(self) -> None:
        """The engine made room for another configuration: its guardian sees that by its exit status."""
        self.engine.kill()
        self.store.kill()
        self.world.count("engines retired")
        at = max(self.world.now + 100_000, self.engine.channel + 1)  # what it said before is read first
        self.world.post_at(at, self.guardian, self.guardian.reloader.engine_ended)

    def begin_lease_io(self) -> None:
        if not self.lease_io.alive and self.engine.alive:
            self.lease_io.begin()

    def kill_guardian(self, restart_ns: int) -> None:
        """SIGKILL to the guardian alone: init starts another, and the engine sees the end of the connection."""
        if self.guardian.alive:
            self.world.tell(self.guardian.name, "was killed")
            self.guardian.kill()
            self.world.post(self.world.between(MS // 10, 5 * MS), self.engine, self.engine.orphaned)
            self.world.post(restart_ns, None, self.restart, self.boot)

    def kill_stack(self, restart_ns: int) -> None:
        """SIGKILL to every process of hasnmp at once; what they started runs on."""
        self.world.tell(self.name, "had its whole stack killed")
        for process in (self.engine, self.guardian, self.lease_io, self.store):
            process.kill()
        self.world.post(restart_ns, None, self.restart, self.boot)

    def restart(self, boot: int) -> None:
        if boot == self.boot and not self.stopped:
            self.start_stack()

    def left(self) -> None:
        """The engine said Exit: the guardian ends the rest, and init leaves it at that."""
        self.world.tell(self.name, "left in order")
        self.world.count("left in order")
        self.end_everything()
        self.dirty.clear()  # the guardian ends what is left, file systems too
        self.store.flush()
        self.stopped = True
        for process in (self.lease_io, self.store, self.guardian, self.engine):
            process.kill()

    # ------------------------------------------------------------------------------------------ kernel

    def spawn(self, service: str, token: int, holder: str) -> Program:
        self.pids += 1
        hooked.check_start(self, self.group_of[service], token)
        program = Program(service, self.group_of[service], self.pids, token, holder, self.world.now)
        self.programs[service] = program
        self.world.tell(self.name, f"runs {service} (pid {program.pid}, token {token})")
        self.world.truth.began(self, program.group)
        if program.group in self.disks:
            self.world.power.started(self, program.group)
        return program

    def remove(self, program: Program) -> None:
        if self.programs.get(program.service) is program:
            del self.programs[program.service]
            self.world.tell(self.name, f"runs {program.service} no more")
            self.world.truth.stopped(self, (program.group,))

    def set_element(self, group: str, until_ns: int) -> None:
        before = self.elements.get(group, 0)
        self.elements[group] = until_ns
        if before <= self.clock():
            self.world.tell(self.name, f"answers at the address of {group}")
        self.world.truth.address(self, group, before)

    def remove_element(self, group: str) -> None:
        if self.elements.pop(group, 0) > self.clock():
            self.world.tell(self.name, f"answers at the address of {group} no more")
            self.world.truth.stopped(self, (group,))

    def end_group(self, group: str) -> None:
        for program in [p for p in self.programs.values() if p.group == group]:
            self.remove(program)
        self.remove_element(group)

    def shut_down(self, group: str) -> None:
        """FS_IOC_SHUTDOWN, or an unmount in order: nothing more of it reaches the disk."""
        self.dirty.discard(group)

    def end_everything(self) -> None:
        for group in self.config.groups:
            self.end_group(group.name)

    def die(self, service: str) -> None:
        """The service's program dies of itself."""
        program = self.programs.get(service)
        if program is not None:
            self.remove(program)
            self.world.post(200_000, self.guardian, self.guardian.program_exited, program)

    def sleep(self, duration_ns: int) -> None:
        """Pause the whole virtual machine."""
        self.asleep = True
        self.woken += 1
        self.world.count("machines paused")
        self.world.tell(self.name, f"is paused, all of it, for {duration_ns / MS:.0f} ms")
        for process in (self.engine, self.guardian, self.lease_io, self.store):
            process.pause(duration_ns + int(self.world.rng.random() * MS))
        self.world.post(duration_ns, None, self.wake, self.woken)

    def wake(self, woken: int) -> None:
        if self.asleep and woken == self.woken:
            self.asleep = False
            self.world.truth.awake(self)

    def arrive(self, link: str, datagram: Datagram) -> None:
        """A datagram reached the socket; without an engine there is none."""
        engine = self.engine
        if engine.alive and not self.asleep:
            if not engine.paused:
                engine.receive(link, datagram)
            elif len(engine.pending) < BUFFER:
                engine.pending.append((engine.receive, (link, datagram)))
