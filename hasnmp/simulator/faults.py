"""What happens to the simulated cluster: single faults, and combinations that aim at one rule each; always healed.

Each fault is drawn when it strikes, from the world's one generator, so that it can aim at whoever owns a group just then.
Which of them a run meets, profiles.py says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hasnmp.core.events import CommandIn
from hasnmp.model import Verb
from hasnmp.simulator.machine import Machine
from hasnmp.simulator.power import MODES
from hasnmp.simulator.profiles import Profile
from hasnmp.simulator.world import MS, World, world_choice
from hasnmp.wire import Slot, SlotState

# Orders that mean nothing here, that need hands, or by which an administrator could lie.
LIES = (Verb.REPORT, Verb.PERMIT, Verb.FENCE_CONFIRM, Verb.RELOAD, Verb.APPLY)
POINTS = ("effect", "effect", "start", "spawn", "address", "renew", "release", "kill", "write", "read", "answer")


@dataclass
class Faults:
    world: World
    profile: Profile
    inhibits: bool = False
    reply: int = 0
    engine_killed: int = -(1 << 62)

    def schedule(self, start_ns: int, end_ns: int) -> None:
        world, profile = self.world, self.profile
        names, weights = list(profile.faults), list(profile.faults.values())
        for _ in range(world.rng.randint(*profile.strikes)):
            name = world.rng.choices(names, weights)[0]
            world.post_at(world.between(start_ns, end_ns), None, self.strike, name)

    def strike(self, name: str) -> None:
        if not self.world.healed:
            self.world.count(f"fault {name}")
            self.world.tell("FAULT", name.replace("_", " "))
            getattr(self, name)()

    # ------------------------------------------------------------------------------------------ drawing

    def machine(self) -> Machine:
        chosen: Machine = world_choice(self.world.rng, list(self.world.machines.values()))
        return chosen

    def owner(self) -> Machine:
        """Who runs a group now, else anybody."""
        owners = [m for m in (self.world.truth.owner(g) for g in self.world.truth.groups) if m is not None]
        if not owners:
            return self.machine()
        chosen: Machine = world_choice(self.world.rng, owners)
        return chosen

    def other(self, than: Machine) -> Machine:
        chosen: Machine = world_choice(self.world.rng, [m for m in self.world.machines.values() if m is not than])
        return chosen

    def some(self) -> int:
        """A duration that means something to the leases: from a blink to several lease times."""
        config = self.machine().config
        dead, lease = config.heartbeat.dead_after_ms, config.arbiter.lease_ms
        base = world_choice(
            self.world.rng, (dead * 0.2, dead * 0.6, dead, dead * 1.5, dead * 2.5, lease, lease * 2, lease * 3)
        )
        return int(base * MS * (0.7 + 0.6 * self.world.rng.random()))

    def soon(self, most_ns: int, fn: Callable[..., None], *args: object) -> None:
        self.world.post(int(self.world.rng.random() * most_ns), None, self.if_sick, fn, args)

    def later(self, delay_ns: int, fn: Callable[..., None], *args: object) -> None:
        self.world.post(delay_ns, None, self.if_sick, fn, args)

    def if_sick(self, fn: Callable[..., None], args: tuple[object, ...]) -> None:
        if not self.world.healed:
            fn(*args)

    # ------------------------------------------------------------------------------------------ the network

    def cut(self, ways: set[tuple[str, str, str]], duration: int) -> None:
        self.world.tell("FAULT", f"cut {sorted(ways)} for {duration / MS:.0f} ms")
        new = ways - self.world.network.cut
        self.world.network.cut |= new
        self.world.post(duration, None, self.mend, new)

    def mend(self, ways: set[tuple[str, str, str]]) -> None:
        self.world.network.cut -= ways

    def ways(self, a: Machine, b: Machine) -> set[tuple[str, str, str]]:
        return {(link, a.name, b.name) for link in self.world.network.links}

    def cut_all(self, duration: int = 0) -> None:
        machines = self.world.machines.values()
        self.cut(
            {w for a in machines for b in machines if a is not b for w in self.ways(a, b)}, duration or self.some()
        )

    def cut_node(self, machine: Machine | None = None, duration: int = 0) -> None:
        chosen = machine or self.machine()
        others = [m for m in self.world.machines.values() if m is not chosen]
        self.cut({w for m in others for w in self.ways(chosen, m) | self.ways(m, chosen)}, duration or self.some())

    def cut_link(self, duration: int = 0) -> None:
        """One link, always the same one, and the other one stays."""
        link, machines = self.world.network.links[0], self.world.machines
        self.cut({(link, a, b) for a in machines for b in machines if a != b}, duration or self.some())

    def cut_one_way(self) -> None:
        a = self.machine()
        self.cut(self.ways(a, self.other(a)), self.some())

    def burst(self) -> None:
        """A while of loss and delay on every link."""
        network, chance = self.world.network, self.world.rng.random
        before = (dict(network.loss), network.slow, network.slow_ns)
        network.loss = {link: chance() * 0.9 for link in network.links}
        network.slow, network.slow_ns = chance(), self.some()
        self.later(self.some(), self.calm, *before)

    def calm(self, loss: dict[str, float], slow: float, slow_ns: int) -> None:
        self.world.network.slow_to = ""
        self.world.network.loss, self.world.network.slow, self.world.network.slow_ns = loss, slow, slow_ns

    def lossy_link(self) -> None:
        network = self.world.network
        network.loss[network.links[0]] = 0.2
        network.double = 0.1

    def replays(self, duration: int = 0, newest: int = 300) -> None:
        a = self.machine()
        b = self.other(a)
        end = self.world.now + (duration or self.some())
        while_ns = world_choice(self.world.rng, (10, 30, 80)) * MS
        self.replay_on(a.name, b.name, end, while_ns, newest, False)

    def replay_on(self, a: str, b: str, end: int, every: int, newest: int, answers: bool) -> None:
        if self.world.now < end:
            self.world.network.replay(a, b, newest, answers)
            if not answers:
                self.world.network.replay(b, a, newest)
            self.later(every, self.replay_on, a, b, end, every, newest, answers)

    # ------------------------------------------------------------------------------------------ processes

    def pause_engine(self) -> None:
        self.machine().engine.pause(self.some())

    def pause_guardian(self) -> None:
        self.machine().guardian.pause(self.some())

    def pause_lease_io(self) -> None:
        self.machine().lease_io.pause(self.some())

    def pause_store(self) -> None:
        self.machine().store.pause(self.some())

    def pause_stack(self, machine: Machine | None = None) -> None:
        """SIGSTOP to all of hasnmp on one machine; SIGCONT reaches them in any order."""
        chosen, duration = machine or self.owner(), self.some()
        self.world.tell("FAULT", f"{chosen.name}'s stack was stopped for {duration / MS:.0f} ms")
        for process in (chosen.engine, chosen.guardian, chosen.lease_io, chosen.store):
            process.pause(duration + self.world.between(0, 3 * MS))

    def trap(self, machine: Machine | None = None) -> None:
        """Stop a process at a point of its program, for as long as it takes for its decision to be stale."""
        chosen = machine or self.machine()
        point = world_choice(self.world.rng, POINTS)
        if point == "effect":
            chosen.engine.trap = (point, self.world.rng.randrange(12), self.some())
        elif point in ("write", "read", "answer"):
            chosen.lease_io.trap = (point, 0, self.some())
        else:
            chosen.guardian.trap = (point, 0, self.some())

    def kill_engine(self) -> None:
        machine = self.machine()
        self.world.tell(machine.name, "had its engine killed")
        machine.kill_engine()

    def kill_one_engine(self) -> None:
        """One engine alone; the next one only when the cluster has come to rest, for two at once are two faults."""
        if self.world.now >= self.engine_killed + 3000 * MS:
            self.engine_killed = self.world.now
            self.kill_engine()

    def kill_lease_io(self) -> None:
        machine = self.machine()
        if machine.lease_io.alive:
            machine.lease_io.die()
            self.world.post(self.world.between(10 * MS, 200 * MS), machine.guardian, machine.begin_lease_io)

    def kill_guardian(self) -> None:
        self.machine().kill_guardian(self.world.between(50 * MS, 1000 * MS))

    def kill_stack(self) -> None:
        machine = self.owner() if self.world.rng.random() < 0.7 else self.machine()
        if machine.guardian.alive:
            machine.kill_stack(self.some())

    def power_cycle(self, machine: Machine | None = None) -> None:
        chosen = machine or (self.owner() if self.world.rng.random() < 0.5 else self.machine())
        chosen.power_off()
        self.world.post(self.some() if self.world.rng.random() < 0.7 else 50 * MS, None, chosen.power_on)

    def power_all(self) -> None:
        for machine in self.world.machines.values():
            self.soon(200 * MS, self.power_cycle, machine)

    # ------------------------------------------------------------------------------------------ disks

    def disk_bad(self, machine: Machine | None = None, duration: int = 0) -> None:
        chosen = machine or self.machine()
        mode = world_choice(self.world.rng, ("lazy", "slow", "late", "failing", "frozen"))
        duration = duration or self.some()
        self.world.tell("FAULT", f"{chosen.name}'s disk is {mode} for {duration / MS:.0f} ms")
        self.world.disk.mode[chosen.name] = mode
        self.later(duration, self.disk_good, chosen)

    def disk_fails(self, machine: Machine, duration: int, mode: str = "failing") -> None:
        self.world.disk.mode[machine.name] = mode
        self.later(duration, self.disk_good, machine)

    def disk_good(self, machine: Machine) -> None:
        self.world.disk.mode[machine.name] = ""

    def disk_bad_all(self) -> None:
        duration = self.some()
        for machine in self.world.machines.values():
            self.disk_bad(machine, duration)

    def slot_unreadable(self) -> None:
        disk = self.world.disk
        key = world_choice(self.world.rng, list(disk.slots))
        disk.unreadable.add(key)
        self.later(self.some(), disk.unreadable.discard, key)

    def store_bad(self) -> None:
        store = self.machine().store
        store.mode = world_choice(self.world.rng, ("slow", "failing", "frozen"))
        self.later(self.some(), setattr, store, "mode", "")

    def device_bad(self) -> None:
        """A fence device fails, in one way or another."""
        node = self.machine()
        level = self.world.rng.randrange(max(1, len(node.config.node(node.name).fence)))
        mode = world_choice(self.world.rng, MODES)
        self.world.tell("FAULT", f"the fence device {level} of {node.name} is {mode}")
        self.world.power.mode[node.name, level] = mode
        self.later(self.some() * 3, self.world.power.mend, node.name, level)

    # ------------------------------------------------------------------------------------------ services, people

    def program_dies(self) -> None:
        machine = self.owner()
        if machine.programs:
            machine.die(world_choice(self.world.rng, list(machine.programs)))

    def program_bad(self) -> None:
        machine = self.owner() if self.world.rng.random() < 0.5 else self.machine()
        service = world_choice(self.world.rng, list(machine.group_of))
        machine.bad[service] = world_choice(self.world.rng, ("start", "stop", "check", "hang"))
        self.world.tell("FAULT", f"{service} is bad on {machine.name}: {machine.bad[service]}")
        self.later(self.some() * 2, self.good_again, machine, service)

    def good_again(self, machine: Machine, service: str) -> None:
        machine.bad.pop(service, None)

    def order(self, machine: Machine, verb: Verb, target: str, to: str = "") -> None:
        self.reply += 1
        command = CommandIn(
            self.reply, verb, target, "simulator", to, "the simulator wants it", "", self.world.wall_ms()
        )
        self.world.post(MS, machine.engine, machine.engine.command, command)

    def operator(self) -> None:
        rng, machine = self.world.rng, self.machine()
        group = world_choice(rng, self.world.truth.groups)
        node = world_choice(rng, list(self.world.machines))
        service = world_choice(rng, list(machine.group_of))
        verb = world_choice(rng, [v for v in Verb if v not in LIES])
        if verb is Verb.INHIBIT:
            if self.inhibits:
                self.world.truth.asked_inhibit.add(group)
                self.order(machine, verb, group)
            return
        if verb in (Verb.FAILOVER, Verb.FORCE_FAILOVER):
            self.order(machine, verb, group, node if rng.random() < 0.5 else "")
        elif verb in (Verb.STANDBY, Verb.ONLINE, Verb.RECOVER, Verb.FENCE_TEST):
            self.order(machine, verb, node if rng.random() < 0.3 else machine.name)
        elif verb in (Verb.FREEZE, Verb.THAW):
            self.order(machine, verb, group)
        else:
            self.order(machine, verb, service)

    def leave(self, machine: Machine | None = None) -> None:
        """An orderly stop of the stack, and its start after a while, perhaps by a restart of the machine."""
        chosen = machine or self.machine()
        engine = chosen.engine
        self.world.post(MS, engine, engine.shut_down)
        wait = self.some() + 300 * MS
        if self.world.rng.random() < 0.5:
            self.world.post(wait // 2, None, chosen.power_off)
        self.world.post(wait, None, self.come_back, chosen)

    def come_back(self, machine: Machine) -> None:
        machine.power_on()
        if machine.stopped:
            machine.start_stack()

    # ------------------------------------------------------------------------------------------ aimed at a rule

    def isolate_owner(self) -> None:
        """The owner alone with the arbiter, and then something goes wrong with it. Rules 1 to 5."""
        owner = self.owner()
        dead = owner.config.heartbeat.dead_after_ms * MS
        self.cut_node(owner, self.some() + 2 * dead)
        hit = world_choice(self.world.rng, (self.pause_stack, self.trap, self.disk_bad, self.trap))
        self.soon(3 * dead, hit, owner)
        if self.world.rng.random() < 0.5:
            self.soon(3 * dead, world_choice(self.world.rng, (self.disk_bad, self.trap)), self.other(owner))

    def late_words(self) -> None:
        """An owner that has nothing but promises, gets the last of them late, and no more. Rules 2 and 8."""
        owner = self.owner()
        dead = owner.config.heartbeat.dead_after_ms * MS
        self.disk_fails(owner, 6 * dead)
        if self.world.rng.random() < 0.5:
            network, until = self.world.network, self.world.between(dead // 4, dead)
            network.slow, network.slow_ns = 0.8, world_choice(self.world.rng, (dead // 2, dead, 2 * dead))
            network.slow_to = world_choice(self.world.rng, ("", owner.name, owner.name))
            self.later(until, self.cut_node, owner, 4 * dead)
            self.later(until, self.calm, dict(network.loss), 0.0, 0)
        else:  # they wait in the socket of an engine that is stopped
            duration = self.world.between(dead // 4, dead)
            owner.engine.pause(duration)
            self.later(max(0, duration - self.world.between(0, dead // 2)), self.cut_node, owner, 4 * dead)

    def late_record(self) -> None:
        """An owner that has nothing but the arbiter, and hears late of its last renewal. Rule 2."""
        owner = self.owner()
        dead, lease = owner.config.heartbeat.dead_after_ms * MS, owner.config.arbiter.lease_ms * MS
        self.cut_node(owner, 2 * dead + 6 * lease)
        at = 2 * dead + self.world.between(0, lease)
        self.later(at, setattr, owner.lease_io, "trap", ("answer", 0, self.world.between(lease // 5, lease // 2)))
        self.later(at + lease // 3 + 15 * MS, self.disk_fails, owner, 3 * lease, "pulled")

    def freeze_owner(self) -> None:
        """A stack that stops for good while it owns something: to the last moment of its lease, and not a moment more."""
        owner = self.owner()
        lease, dead = owner.config.arbiter.lease_ms * MS, owner.config.heartbeat.dead_after_ms * MS
        if self.world.rng.random() < 0.5:
            self.disk_fails(owner, 2 * dead)
        else:
            self.cut_node(owner, 4 * lease + 4 * dead)
        wait = self.world.between(0, 3 * dead)
        for process in (owner.engine, owner.guardian, owner.lease_io):
            self.later(wait, process.pause, 3 * lease + 3 * dead)

    def lapsed_owner(self) -> None:
        """A stack that stops until its lease is over and taken, and then goes on with what it had decided. Rule 4."""
        owner = self.owner()
        lease, dead = owner.config.arbiter.lease_ms * MS, owner.config.heartbeat.dead_after_ms * MS
        self.cut_node(owner, 8 * dead + 6 * lease)
        owner.engine.trap = ("effect", self.world.rng.randrange(6), 2 * lease + dead)
        duration = 2 * lease + 2 * dead
        for process in (owner.engine, owner.guardian, owner.lease_io):
            self.later(2 * dead, process.pause, duration + self.world.between(0, 3 * MS))

    def start_while_frozen(self) -> None:
        """A program is to be started again, and the guardian is stopped until its lease is over and taken. Rule 4."""
        owner = self.owner()
        lease, dead = owner.config.arbiter.lease_ms * MS, owner.config.heartbeat.dead_after_ms * MS
        self.cut_node(owner, 8 * dead + 4 * lease)
        for service in list(owner.programs):
            self.later(dead, owner.die, service)
        owner.guardian.trap = ("start", 0, 2 * lease + 2 * dead)

    def unreadable_cut(self) -> None:
        """The owner has nothing but its record on the disk, and that can't be read. Rule 3."""
        owner = self.owner()
        dead, lease = owner.config.heartbeat.dead_after_ms * MS, owner.config.arbiter.lease_ms * MS
        self.cut_node(owner, 3 * dead + 3 * lease)
        disk = self.world.disk
        for group in self.world.truth.groups:
            self.later(dead // 2, disk.unreadable.add, (group, owner.name))
            self.later(3 * dead + 2 * lease, disk.unreadable.discard, (group, owner.name))

    def ghost_idle(self) -> None:
        """The owner's "resting" hangs, while it needs the arbiter again; then the old word lands on the new one. Rule 3."""
        owner = self.owner()
        dead, lease = owner.config.heartbeat.dead_after_ms * MS, owner.config.arbiter.lease_ms * MS
        wait = self.world.between(3 * dead, 2 * lease + 2 * dead)
        ambush = (
            SlotState.RESTING,
            self.world.between(dead // 2, dead + lease),
            lambda: self.cut_node(owner, 2 * lease + 3 * dead),
        )
        self.cut_node(owner, wait)
        self.later(wait, self.world.disk.ambush.__setitem__, owner.name, ambush)

    def ghost_claim(self) -> None:
        """A claim of a dead machine, older than the owner's lease, lands on the disk. Rule 3: it is stale, and ignored."""
        owner = self.owner()
        dead, other = owner.config.heartbeat.dead_after_ms * MS, self.other(owner)
        lease_ms = owner.config.arbiter.lease_ms
        other.power_off()
        for group in self.world.truth.groups:
            held = owner.guardian.guard.leases[group]
            slot = self.world.disk.slots[(group, other.name)]
            ghost = Slot(
                group, other.name, slot.seq + 1, SlotState.CLAIM, other.guardian.holder, held.token - 1, lease_ms
            )
            self.later(self.world.between(dead, 4 * dead), self.world.disk.end_write, ghost, True)

    def move_stopped(self) -> None:
        """The guardian is stopped just when it is to confirm that nothing is left. Rule 4."""
        owner = self.owner()
        owner.guardian.trap = (world_choice(self.world.rng, ("release", "kill", "spawn")), 0, self.some())
        for group in self.world.truth.groups:
            if self.world.truth.runs(owner, group):
                self.order(owner, world_choice(self.world.rng, (Verb.FAILOVER, Verb.FORCE_FAILOVER)), group)

    def restart_promiser(self) -> None:
        """An owner that has nothing but a promise, whose maker starts anew and can't hear it. Rule 2's last sentence."""
        owner = self.owner()
        promiser, dead = self.other(owner), owner.config.heartbeat.dead_after_ms * MS
        self.disk_fails(owner, 3 * dead)
        wait = self.world.between(0, dead // 2)
        self.later(wait, self.cut_node, owner, 3 * dead)
        at = max(0, wait - self.world.between(0, dead // 4))
        if self.world.rng.random() < 0.5:
            self.later(at, promiser.kill_engine)
        else:
            self.later(at, promiser.power_off)
            self.later(at + 30 * MS, promiser.power_on)

    def leave_cut(self) -> None:
        """A node leaves in order, and comes back alone. Rule 1's last sentence."""
        machine = self.machine()
        engine = machine.engine
        self.world.post(MS, engine, engine.shut_down)
        wait = self.some() + 500 * MS
        self.later(wait - 50 * MS, self.cut_node, machine, self.some() + 1500 * MS)
        if self.world.rng.random() < 0.6:
            self.later(wait - 40 * MS, machine.power_off)
        self.world.post(wait, None, self.come_back, machine)
        if self.world.rng.random() < 0.6:
            self.later(wait - 100 * MS, self.disk_bad, self.other(machine))

    def replay_cut(self) -> None:
        """Nobody hears anybody, but for what they said before. Rule 8."""
        duration = self.some() + 500 * MS
        if self.world.rng.random() < 0.5:  # one link falls behind, so that newer words are new to it
            self.cut_link(duration // 2 + 500 * MS)
            wait = duration // 2
            owner = self.owner()
            self.later(wait, self.disk_fails, owner, duration)
            self.later(wait, self.cut_all, duration)
            end = self.world.now + wait + duration
            for machine in self.world.machines.values():
                if machine is not owner:  # whoever is to take the group hears nothing
                    self.later(wait, self.replay_on, machine.name, owner.name, end, 20 * MS, 5, True)
            return
        if self.world.rng.random() < 0.5:
            self.cut_all(duration)
        else:
            self.cut_one_way()
        self.replays(duration, world_choice(self.world.rng, (10, 60, 300)))

    def duel(self) -> None:
        """Everybody wants the group at once, and only the arbiter can tell. Rule 3."""
        owner = self.owner()
        dead = owner.config.heartbeat.dead_after_ms * MS
        self.cut_all(self.some() + 8 * dead)
        for machine in self.world.machines.values():
            if machine is owner or self.world.rng.random() < 0.5:
                self.soon(100 * MS, self.power_cycle, machine)
        self.soon(6 * dead, self.trap, self.machine())
        self.soon(6 * dead, self.disk_bad, self.machine())

    def claimants(self) -> None:
        """The owner is gone, and two that can't hear each other claim at once, on disks that take their time. Rule 3."""
        owner = self.owner()
        dead, lease = owner.config.heartbeat.dead_after_ms * MS, owner.config.arbiter.lease_ms * MS
        self.cut_all(4 * dead + 2 * lease)
        owner.power_off()
        for machine in self.world.machines.values():
            self.world.disk.mode[machine.name] = "lazy"
            self.later(3 * dead + lease, self.disk_good, machine)
        self.later(4 * dead + 2 * lease, owner.power_on)

    def move_under_fire(self) -> None:
        """A move is ordered, and before it is done something happens."""
        rng, owner = self.world.rng, self.owner()
        group = world_choice(rng, self.world.truth.groups)
        verb = world_choice(rng, (Verb.FAILOVER, Verb.FORCE_FAILOVER))
        self.order(world_choice(rng, (owner, self.other(owner))), verb, group, "")
        hits = (
            self.cut_all, self.cut_one_way, self.pause_engine, self.pause_guardian, self.kill_engine, self.power_cycle,
            self.trap, self.disk_bad, self.burst, self.kill_stack,
        )  # fmt: skip
        self.soon(200 * MS, world_choice(rng, hits))

    def inhibit_then_crash(self) -> None:
        """An inhibit is confirmed; what the administrator was told must stay so, whatever happens then."""
        machine, group = self.machine(), world_choice(self.world.rng, self.world.truth.groups)
        self.world.truth.asked_inhibit.add(group)
        if self.world.rng.random() < 0.5:
            self.cut_node(machine)
        self.order(machine, Verb.INHIBIT, group)
        self.soon(700 * MS, world_choice(self.world.rng, (self.power_cycle, self.crash_engine)), machine)

    def crash_engine(self, machine: Machine) -> None:
        machine.kill_engine()

    def standby_lost(self) -> None:
        """The machine that runs nothing fails, in whatever way."""
        idle = [m for m in self.world.machines.values() if not m.programs]
        if idle:
            machine: Machine = world_choice(self.world.rng, idle)
            world_choice(self.world.rng, (self.power_cycle, self.pause_stack, self.leave))(machine)

    def fail_for_good(self, machine: Machine) -> None:
        """The machine, its whole stack or its guardian alone: dead or frozen until everything heals."""
        ever = 60_000 * MS
        match self.world.rng.randrange(4):
            case 0:
                machine.power_off()
            case 1:
                machine.kill_stack(ever)
            case 2:
                machine.guardian.pause(ever)
            case _:
                for process in (machine.engine, machine.guardian, machine.lease_io, machine.store):
                    process.pause(ever)

    # ------------------------------------------------------------------------------------------ the end of all that

    def heal(self) -> None:
        """Everything is repaired: links, disks, programs; what was stopped goes on; what was off is switched on."""
        world = self.world
        world.healed = True
        world.tell("HEALED", "everything")
        world.network.heal()
        world.disk.gone = False
        world.disk.mode.clear()
        world.disk.ambush.clear()
        world.disk.unreadable.clear()
        world.power.heal()
        for machine in world.machines.values():
            machine.bad.clear()
            machine.store.mode = ""
            for process in (machine.guardian, machine.engine, machine.lease_io, machine.store):
                process.trap = None
                if process.paused:
                    process.resume()
            machine.power_on()
            machine.start_stack()
