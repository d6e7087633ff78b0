"""The rarer malice of the world: ends between two effects, machines that are paused whole, disks that lie, lost memory."""

from __future__ import annotations

import functools
from collections.abc import Callable

from hasnmp.model import Verb
from hasnmp.simulator.aimed import Aimed
from hasnmp.simulator.crash import KINDS, Doom
from hasnmp.simulator.machine import Machine
from hasnmp.simulator.storage import Disk
from hasnmp.simulator.world import MS, world_choice
from hasnmp.wire import SlotState


class Malice(Aimed):
    """Every fault that there is; a profile names which a run meets."""

    # ------------------------------------------------------------------------------------------ between two effects

    def crash_at_effect(self, machine: Machine | None = None) -> None:
        """The engine, its machine or the whole stack ends before or after some effect that is to come."""
        rng = self.world.rng
        chosen = machine or (self.owner() if rng.random() < 0.6 else self.machine())
        ends: Callable[[], None] = world_choice(
            rng,
            (chosen.kill_engine, chosen.kill_engine, lambda: self.power_cycle(chosen), lambda: self.end_stack(chosen)),
        )

        def end() -> None:
            self.world.count("crashed at an effect")
            ends()

        chosen.engine.doom = Doom(world_choice(rng, KINDS), int(rng.random() ** 2 * 12), rng.random() < 0.5, end)

    def end_stack(self, machine: Machine) -> None:
        if machine.guardian.alive:
            machine.kill_stack(self.some())

    def crash_in_move(self) -> None:
        """A move, and an end somewhere on either side of it."""
        owner = self.owner()
        self.crash_at_effect(owner if self.world.rng.random() < 0.5 else self.other(owner))
        self.move_stopped() if self.world.rng.random() < 0.3 else self.move_under_fire()

    # ------------------------------------------------------------------------------------------ machines

    def pause_machine(self, machine: Machine | None = None) -> None:
        """A virtual machine is paused: nothing of it moves, its address is silent, what is sent to it is lost; and then it
        goes on. Its CLOCK_BOOTTIME went on all the while (design rule 12)."""
        chosen = machine or (self.owner() if self.world.rng.random() < 0.7 else self.machine())
        if chosen.powered:
            chosen.sleep(self.some())

    def pause_both(self) -> None:
        """A host with two of the machines on it is paused for a moment; they wake one after the other."""
        a = self.owner()
        for machine in (a, self.other(a)):
            self.soon(30 * MS, self.pause_machine, machine)

    # ------------------------------------------------------------------------------------------ the lease disk

    def disk_torn_reads(self) -> None:
        """While a sector is being written, some reads of it end with neither the old nor the new one."""
        disk = self.world.disk
        disk.tearing = 0.2 + 0.6 * self.world.rng.random()
        self.later(self.some(), setattr, disk, "tearing", 0.0)

    def disk_torn(self) -> None:
        """The same, when the disk is needed."""
        self.disk_torn_reads()
        if self.world.rng.random() < 0.6:
            self.disk_bad(self.owner())
        if self.world.rng.random() < 0.6:
            self.isolate_owner()

    def disk_lingers(self) -> None:
        """The power fails while a word is on its way to the disk, and it lands after words of the machine's next life."""
        rng, disk = self.world.rng, self.world.disk
        disk.linger_ns = 3000 * MS
        owner = self.owner()
        dead, lease = owner.config.heartbeat.dead_after_ms * MS, owner.config.arbiter.lease_ms * MS
        if rng.random() < 0.5:  # "held", as soon as it needs the arbiter
            state, wait = SlotState.HELD, 0
            self.cut_node(owner, world_choice(rng, (dead, 3 * dead, 6 * dead)))
        else:  # "resting", when it needs it no more
            state, wait = SlotState.RESTING, self.world.between(3 * dead, lease + 2 * dead)
            self.cut_node(owner, wait)

        def power_off() -> None:
            """Half of the time the word lands right after the first by which the next life holds its lease alone."""
            key = next((k for k in disk.under_way if k[1] == owner.name), None)
            word = disk.under_way.pop(key) if key and rng.random() < 0.5 else None
            owner.power_off()
            if word is not None:
                lands = functools.partial(self.later, 20 * MS, disk.end_write, word, True)
                disk.ambush[owner.name] = (SlotState.HELD, 1 * MS, lands)

        def blackout() -> None:
            self.later(MS, power_off)
            self.later(self.world.between(20 * MS, 100 * MS), owner.power_on)
            self.later(self.world.between(dead // 2, 4 * dead), self.cut_node, owner, 2 * lease + 3 * dead)

        wait += self.world.between(0, dead + lease)  # a later renewal
        self.later(wait, disk.ambush.__setitem__, owner.name, (state, 10_000 * MS, blackout))

    def disk_exchanged(self, machine: Machine | None = None, while_ns: int = 0) -> None:
        """One machine finds another lease disk in the place of the right one, while the nodes hear each other."""
        world, chosen = self.world, machine or self.machine()
        chosen.disk = Disk(world, world.truth.groups, world.disk.nodes, "disk-2")
        world.count("disks exchanged")
        if chosen.lease_io.alive:
            chosen.lease_io.die()
            world.post(20 * MS, chosen.guardian, chosen.begin_lease_io)
        self.later(while_ns or self.some() + 2000 * MS, self.right_disk, chosen)

    def disk_exchanged_cut(self) -> None:
        """The same, and when they have told each other, they can't hear each other any more."""
        machine = self.machine()
        dead = machine.config.heartbeat.dead_after_ms * MS
        cut_at = self.world.between(3000 * MS, 4000 * MS)  # nodes tell of their disks every two seconds
        self.disk_exchanged(machine, cut_at + 10 * dead)
        self.later(cut_at, self.cut_all, 8 * dead)

    def disk_exchanged_cold(self) -> None:
        """A machine starts with another lease disk, and hears nobody."""
        machine = self.machine()
        dead = machine.config.heartbeat.dead_after_ms * MS
        self.disk_exchanged(machine, 10 * dead)
        self.cut_all(8 * dead)
        self.power_cycle(machine)

    def right_disk(self, machine: Machine) -> None:
        machine.disk = None
        if machine.lease_io.alive:
            machine.lease_io.die()
            self.world.post(20 * MS, machine.guardian, machine.begin_lease_io)

    # ------------------------------------------------------------------------------------------ memory

    def state_lost(self) -> None:
        """A machine starts anew without its state file."""
        self.forget(self.machine(), None)

    def state_older(self) -> None:
        """A machine starts anew with the state file of a while ago, as out of a backup."""
        machine = self.machine()
        self.later(self.some() * 2, self.forget, machine, machine.store.document)

    def forget(self, machine: Machine, document: str | None) -> None:
        self.world.count("state lost" if document is None else "state rolled back")
        machine.power_off()
        machine.store.document = document
        if document is None:
            machine.webs = {}
            self.world.truth.state_lost(machine)
        self.world.post(self.some(), None, machine.power_on)

    def state_lost_cut(self) -> None:
        """The same while it can hear nobody."""
        machine = self.machine()
        self.cut_node(machine, self.some() + 1500 * MS)
        self.soon(300 * MS, self.forget, machine, None)

    def state_lost_twice(self) -> None:
        """A node leaves in order, comes back alone without its state file, and once more, with the one of that short life."""
        machine, wait = self.other(self.owner()), 400 * MS
        engine = machine.engine
        self.world.post(MS, engine, engine.shut_down)
        self.later(wait, self.cut_node, machine, 4 * self.some() + 4000 * MS)
        self.later(wait + 10 * MS, self.forget, machine, None)
        self.later(wait + self.some() + 1500 * MS, self.forget_nothing, machine)

    def forget_nothing(self, machine: Machine) -> None:
        machine.power_off()
        self.world.post(self.some(), None, machine.power_on)

    # ------------------------------------------------------------------------------------------ outside agents

    def outside_bad(self) -> None:
        """A passive service is reported down for a while, where it runs or wherever it goes."""
        rng = self.world.rng
        machine = self.owner() if rng.random() < 0.7 else self.machine()
        if machine.passive:
            service = world_choice(rng, machine.passive)
            machine.bad[service] = "check"
            self.later(self.some() * 3, self.good_again, machine, service)

    def hook_bad(self) -> None:
        """The administrator's programs fail for a while, on one machine."""
        machine = self.owner() if self.world.rng.random() < 0.6 else self.machine()
        on = world_choice(self.world.rng, ("before_start", "before_stop"))
        machine.bad_hooks[on] = world_choice(self.world.rng, ("fail", "hang", "late", "slow"))
        self.world.tell("FAULT", f"{on} is bad on {machine.name}: {machine.bad_hooks[on]}")
        self.later(self.some() * 3, self.hook_good, machine, on)

    def hook_cancelled(self) -> None:
        """A group comes to a machine whose programs take their time, is wanted back before they have ended, and comes again."""
        owner = self.owner()
        target, group = (
            self.other(owner),
            next((g for g in self.world.truth.groups if self.world.truth.runs(owner, g)), ""),
        )
        target.bad_hooks["before_start"] = "slow"
        at = 0
        for to in (target, owner, target, owner, target):
            self.later(
                at, self.order, world_choice(self.world.rng, (owner, target)), Verb.FORCE_FAILOVER, group, to.name
            )
            at += self.world.between(100 * MS, 600 * MS)
        self.later(at + 2000 * MS, self.hook_good, target, "before_start")

    def hook_good(self, machine: Machine, on: str) -> None:
        machine.bad_hooks.pop(on, None)

    # ------------------------------------------------------------------------------------------ the end of all that

    def heal(self) -> None:
        disk = self.world.disk
        disk.tearing, disk.linger_ns = 0.0, disk.LINGER_NS
        for machine in self.world.machines.values():
            machine.engine.doom = None
            machine.bad_hooks.clear()
            machine.wake(machine.woken)
            if machine.disk is not None:
                self.right_disk(machine)
        super().heal()
