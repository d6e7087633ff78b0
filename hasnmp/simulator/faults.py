"""What happens to the simulated cluster: single faults, always healed. aimed.py combines them, malice.py adds the rarer ones.

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
