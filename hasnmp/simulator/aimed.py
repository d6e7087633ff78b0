"""Combinations of faults that aim at one rule each, at whoever owns a group just then."""

from __future__ import annotations

from hasnmp.model import Verb
from hasnmp.simulator.faults import Faults
from hasnmp.simulator.machine import Machine
from hasnmp.simulator.power import MODES
from hasnmp.simulator.world import MS, world_choice
from hasnmp.wire import Slot, SlotState


class Aimed(Faults):
    def isolate_owner(self) -> None:
        """The owner alone with the arbiter, and then something goes wrong with it. Rules 1 to 5."""
        owner = self.owner()
        dead = owner.config.heartbeat.dead_after_ms * MS
        self.cut_node(owner, self.some() + 2 * dead)
        hit = world_choice(self.world.rng, (self.pause_stack, self.trap, self.disk_bad, self.trap))
        self.soon(3 * dead, hit, owner)
        if self.world.rng.random() < 0.5:
            self.soon(3 * dead, world_choice(self.world.rng, (self.disk_bad, self.trap)), self.other(owner))

    def cut_long(self) -> None:
        """Nobody hears anybody, for longer than it takes to fence, to start anew and to come to one's turn. Rule 7."""
        self.cut_all(self.world.between(9000 * MS, 12_000 * MS))

    def long_duel(self) -> None:
        """Nobody hears anybody for nine turns of fencing, and the devices of two fail until after the fourth. Rule 7."""
        machines, between = list(self.world.machines.values()), self.world.between
        heartbeat, nodes = machines[0].config.heartbeat, machines[0].config.nodes
        step = (max(sum(level.timeout_ms for level in n.fence) for n in nodes) + 2000 + heartbeat.dead_after_ms) * MS
        together = self.world.rng.random() < 0.7
        for i, a in enumerate(machines):
            for b in machines[:i]:
                at = 0 if together else between(0, 2 * step)
                self.later(at, self.cut, self.ways(a, b) | self.ways(b, a), 10 * step - at)
        for machine in self.world.rng.sample(machines, 2):
            for level in range(len(machine.config.node(machine.name).fence)):
                self.world.power.mode[machine.name, level] = "broken"
                self.later(between(4 * step, 8 * step), self.world.power.mend, machine.name, level)
        self.world.run_until(self.world.now + 9 * step)

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
        self.later(at + lease // 3 + 15 * MS, self.disk_fails, owner, 3 * lease, "lost")

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

    def freeze_alone(self) -> None:
        """Nodes are cut off from each other, and who takes a group by the arbiter freezes. Where their times differ: rule 2."""
        times = [m.config for m in self.world.machines.values()]
        lease = max(c.arbiter.lease_ms for c in times) * MS
        dead = max(c.heartbeat.dead_after_ms for c in times) * MS
        self.cut_all(6 * lease)
        self.later(self.world.between(2 * dead, 2 * dead + lease), self.freeze_owner)

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

    def restart_giver(self) -> None:
        """The same of one that had the group itself before, lost its lease or gave it up, and promised it since. Rule 2."""
        owner, dead = self.owner(), self.owner().config.heartbeat.dead_after_ms * MS
        if self.world.rng.random() < 0.5:
            for group in self.world.truth.groups:
                self.order(owner, Verb.FAILOVER, group)
        else:
            owner.engine.pause(3 * dead)
        self.later(self.world.between(2 * dead, 4 * dead), self.restart_promiser)

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

    def reborn_cut(self) -> None:
        """Machines lose their power one after the other, hear each other, and no more before any has a group again. Rule 7."""
        config = self.machine().config.heartbeat
        for machine in self.world.machines.values():
            off = self.world.between(0, 300 * MS)
            self.later(off, machine.power_off)
            self.later(off + self.world.between(20 * MS, 100 * MS), machine.power_on)
        cut = 400 * MS + self.world.between(0, config.startup_wait_ms * MS)
        self.later(cut, self.cut_all, self.some() + 4 * config.dead_after_ms * MS)

    def fence_fails(self) -> None:
        """A stack is killed that leaves pages to be written, and the fence devices of its node don't work. Rule 7."""
        owner = self.owner()
        for level in range(len(owner.config.node(owner.name).fence)):
            self.world.power.mode[owner.name, level] = world_choice(self.world.rng, MODES)
            self.later(2 * self.some(), self.world.power.mend, owner.name, level)
        if owner.guardian.alive:
            owner.kill_stack(4 * self.some())

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
