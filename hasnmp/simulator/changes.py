"""Other configurations, put in force by an operator while everything else goes wrong: reload, apply, and what may hit them.

The operator means one file for all nodes, the newest (`meant`). A reload is one machine after the other; what that may not
change is applied. Some of it fails under faults, and some reaches only some of the machines. That must break no invariant of
the leases; and once everything is healed, one `hasnmp apply` of what is meant ends the same everywhere ("agrees").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from hasnmp.config_changes import compare, in_force, strangers
from hasnmp.core.events import (
    Adopt,
    CommandIn,
    Effect,
    Exit,
    Extend,
    Forward,
    GiveUp,
    Persist,
    Release,
    Reload,
    Reply,
    Send,
    Stage,
)
from hasnmp.model import Verb
from hasnmp.settings import Check, Config, Group, OnFailure, Service
from hasnmp.simulator.crash import Doom
from hasnmp.simulator.machine import Machine
from hasnmp.simulator.malice import Malice
from hasnmp.simulator.reloader import digest_of
from hasnmp.simulator.storage import Disk
from hasnmp.simulator.world import MS, Broken, world_choice
from hasnmp.wire import Slot, SlotState

# Where a change of the configuration may come to an end between two effects.
MOMENTS: tuple[tuple[type[Effect], ...], ...] = (
    (Exit,), (Adopt, Forward), (Stage,), (Reload, GiveUp), (Persist,), (Extend, Release), (Reply,), (Send,),
)  # fmt: skip
LONG = "." * 1500  # so that an applied file goes over in several parts
AGREED_MS = 60_000  # how long it may take until an apply has worked, after everything healed


class Changes(Malice):
    """Every fault that there is, and changes of the configuration."""

    written = 0

    @property
    def meant(self) -> Config:
        """What the operator means to be in force on every machine."""
        return self.world.documents.get(f"file-{self.written}{LONG}", self.first)

    @property
    def first(self) -> Config:
        return self.world.documents[""]

    # ------------------------------------------------------------------------------------------ the operator

    def write(self, new: Config) -> str:
        """A new file; gives the name by which it is applied. The lease disk has a place for each of its groups."""
        new = replace(new, digest=digest_of(new))
        self.written += 1
        name = f"file-{self.written}{LONG}"
        self.world.documents[name] = new
        for disk in (
            self.world.disk,
            *self.world.moved.values(),
            *(m.disk for m in self.world.machines.values() if m.disk is not None),
        ):
            for group in new.groups:
                for node in disk.nodes:
                    disk.slots.setdefault((group.name, node), Slot(group.name, node, 0, SlotState.IDLE, "0" * 16, 0, 0))
        return name

    def apply_file(self, name: str, machine: Machine | None = None) -> None:
        chosen = machine or self.machine()
        self.reply += 1
        command = CommandIn(
            self.reply, Verb.APPLY, "", "simulator", reason="it wants it", wall_ms=self.world.wall_ms(), document=name
        )  # fmt: skip
        self.world.count("applies asked for")
        self.world.post(MS, chosen.engine, chosen.engine.command, command)

    def reload_file(self, machine: Machine, new: Config) -> None:
        """The file is written, and the daemon told by SIGHUP or by a command."""
        if not machine.powered or machine.name not in [n.name for n in new.nodes]:
            return
        machine.file = new
        self.world.count("reloads asked for")
        if self.world.rng.random() < 0.5:
            self.world.post(MS, machine.guardian, machine.guardian.reloader.ask)
        else:
            self.order(machine, Verb.RELOAD, "")

    # ------------------------------------------------------------------------------------------ faults

    def reload(self) -> None:
        """Something that a reload may change, on one machine after the other."""
        self.put_in_force(self.reloadable())

    def apply(self) -> None:
        """Something that only an apply may change, and often more with it."""
        new = self.timed(self.meant)
        self.put_in_force(self.reloadable(new) if self.world.rng.random() < 0.4 else new)

    def members(self) -> None:
        """A group gets other nodes; with other times, perhaps."""
        self.put_in_force(self.regrouped(self.timed(self.meant) if self.world.rng.random() < 0.2 else self.meant))

    def members_under_fire(self) -> None:
        """The same, and before every node has come to the end of it something happens."""
        rng = self.world.rng
        self.members()
        hits: tuple[Callable[..., None], ...] = (
            self.cut_all, self.cut_node, self.cut_node, self.cut_one_way, self.kill_engine, self.kill_guardian, self.kill_stack,
            self.power_cycle, self.trap, self.pause_stack, self.disk_bad, self.leave, self.move_under_fire,
        )  # fmt: skip
        for _ in range(rng.choice((1, 1, 2, 3))):
            self.soon(world_choice(rng, (400, 1500, 3500)) * MS, world_choice(rng, hits))

    def members_cut(self) -> None:
        """The same, and a node is cut off at some moment of it, for longer than anything that it holds may last; the lease
        disk may be out of some node's reach meanwhile."""
        rng = self.world.rng
        self.members()
        heartbeat, arbiter = self.first.heartbeat, self.first.arbiter
        long = 4 * (heartbeat.dead_after_ms + arbiter.lease_ms) * MS
        at = self.world.between(0, 4500 * MS)
        self.later(at, self.cut_node, self.machine(), long)
        if rng.random() < 0.4:
            self.later(at + self.world.between(0, long), self.power_cycle, self.machine())

    def nodes_change(self) -> None:
        """A node is taken out of all groups, goes, and comes back later, with the state that it had or without."""
        rng, meant, every = self.world.rng, self.meant, self.first.nodes
        names = [n.name for n in meant.nodes]
        kept = {g.nodes[0] for g in self.first.groups}
        idle = [n for n in names if not any(n in g.nodes for g in meant.groups)]
        missing = [n.name for n in every if n.name not in names]
        if missing:
            self.return_node(missing[0], rng.random() < 0.5)
        elif idle:
            self.put_in_force(replace(meant, nodes=tuple(n for n in every if n.name != idle[0])))
        elif free := [n for n in names if n not in kept]:
            gone = rng.choice(free)
            groups = tuple(replace(g, nodes=tuple(n for n in g.nodes if n != gone)) for g in meant.groups)
            self.put_in_force(replace(meant, groups=groups))

    def return_node(self, name: str, anew: bool) -> None:
        self.world.count("nodes that came back")
        machine = self.world.machines[name]
        others = [self.world.machines[n.name] for n in self.meant.nodes]
        self.apply_file(self.write(replace(self.meant, nodes=self.first.nodes)), self.world.rng.choice(others))
        if anew:
            machine.power_off()
            machine.store.document, machine.webs = None, {}
        self.later(self.world.between(0, 1500 * MS), self.copy_file, machine, self.meant)

    def disk_moved(self) -> None:
        """Another lease disk, by an apply."""
        world = self.world
        device = f"/dev/lease-{len(world.moved) + 2}"
        world.moved[device] = Disk(world, tuple(g.name for g in self.meant.groups), world.disk.nodes, device)
        self.put_in_force(replace(self.meant, arbiter=replace(self.meant.arbiter, device=device)))

    def disk_moved_cut(self) -> None:
        """The same, and a node is cut off at some moment of it, or starts anew then."""
        self.disk_moved()
        heartbeat, arbiter = self.first.heartbeat, self.first.arbiter
        long = 4 * (heartbeat.dead_after_ms + arbiter.lease_ms) * MS
        at = self.world.between(0, 4500 * MS)
        self.later(at, self.cut_node, self.machine(), long)
        if self.world.rng.random() < 0.4:
            self.later(at + self.world.between(0, long), self.power_cycle, self.machine())

    def members_held(self) -> None:
        """A group's owner is to be none of its nodes, and nobody takes it over, for the others are on standby. Then it is cut off,
        with the lease disk, and they are taken back."""
        world, owner = self.world, self.owner()
        group = next((g.name for g in self.meant.groups if world.truth.runs(owner, g.name)), "")
        others = tuple(n.name for n in self.meant.nodes if n.name != owner.name)
        groups = tuple(replace(g, nodes=others) if g.name == group else g for g in self.meant.groups)
        for name in others:
            self.order(owner, Verb.STANDBY, name)
        heartbeat, arbiter = self.first.heartbeat, self.first.arbiter
        long = 2 * (heartbeat.dead_after_ms + arbiter.lease_ms) * MS
        self.later(300 * MS, self.apply_file, self.write(replace(self.meant, groups=groups)))
        self.later(300 * MS + long, self.cut_node, owner, 3 * long)
        for name in others:
            self.later(350 * MS + long, self.order, world.machines[name], Verb.ONLINE, name)

    def members_forgotten(self) -> None:
        """A node starts without its state, with a file that nobody else has and in which a group's owner is none of its nodes. It hears
        all, and then nobody."""
        world, owner = self.world, self.owner()
        machine = self.other(owner)
        others = tuple(n.name for n in self.meant.nodes if n.name != owner.name)
        self.write(self.meant)  # by a name, so that it can be applied in the end
        self.write(replace(self.meant, groups=tuple(replace(g, nodes=others) for g in self.meant.groups)))
        file, self.written = self.meant, self.written - 1  # which is not meant
        machine.power_off()
        machine.store.document, machine.webs, machine.file = None, {}, file
        world.post(50 * MS, None, machine.power_on)
        heartbeat, arbiter = self.first.heartbeat, self.first.arbiter
        self.later(1000 * MS, self.cut_node, machine, 4 * (heartbeat.dead_after_ms + arbiter.lease_ms) * MS)

    def members_by_hand(self) -> None:
        """The same by hand: the file is copied to some machines, which start anew with it, while another is cut off."""
        rng, machines = self.world.rng, list(self.world.machines.values())
        self.write(self.regrouped(self.meant))
        heartbeat, arbiter = self.first.heartbeat, self.first.arbiter
        long = 4 * (heartbeat.dead_after_ms + arbiter.lease_ms) * MS
        cut = self.owner() if rng.random() < 0.5 else self.machine()
        self.cut_node(cut, long)
        for machine in rng.sample(machines, rng.choice((1, 2, 2, 3))):
            if machine is not cut or rng.random() < 0.3:
                self.later(self.world.between(0, long // 3), self.copy_file, machine, self.meant)

    def members_unknown(self) -> None:
        """A node starts with a file that gives it a group, and the others don't know of that; nobody hears anybody, and the group's
        owner loses its power. Of the two that are left only one may have it."""
        world, owner = self.world, self.owner()
        group = next((g.name for g in self.meant.groups if world.truth.runs(owner, g.name)), "")
        third = self.other(owner)
        two = tuple(n.name for n in self.meant.nodes if n.name != third.name)
        heartbeat, arbiter = self.first.heartbeat, self.first.arbiter
        long = 6 * (heartbeat.dead_after_ms + arbiter.lease_ms) * MS

        def grouped(nodes: tuple[str, ...]) -> Config:
            return replace(
                self.meant, groups=tuple(replace(g, nodes=nodes) if g.name == group else g for g in self.meant.groups)
            )

        def strike() -> None:
            self.write(grouped((*two, third.name)))
            third.power_off()
            third.file = self.meant
            world.post(50 * MS, None, third.power_on)
            at = (heartbeat.startup_wait_ms + 1000) * MS
            self.later(at, self.cut_all, long)
            self.later(at, owner.power_off)
            self.later(at + long, owner.power_on)

        self.put_in_force(grouped(two))
        self.later(3000 * MS, strike)

    def copy_file(self, machine: Machine, new: Config) -> None:
        if machine.name not in [n.name for n in new.nodes] or strangers(in_force(new, machine.webs)[0]):
            return  # it would not start with it
        self.world.count("files copied by hand")
        machine.file = new
        self.power_cycle(machine)

    def members_anew(self) -> None:
        """A group is taken away by reloads and comes back with other nodes, while a node that may have it is cut off."""
        rng = self.world.rng
        heartbeat, arbiter = self.first.heartbeat, self.first.arbiter
        long = 6 * (heartbeat.dead_after_ms + arbiter.lease_ms) * MS
        gone, *rest = self.meant.groups  # a file's order of groups is no change, so it stays
        others = tuple(rest)
        if not others:
            others = self.more_groups(self.meant).groups[1:]
        cut = self.owner() if rng.random() < 0.6 else self.machine()
        self.cut_node(cut, long)
        back = self.regrouped(replace(self.meant, groups=(gone,))).groups
        at = 0
        for groups in (others, (*back, *others)):
            self.write(replace(self.meant, groups=groups))
            for machine in self.world.machines.values():
                if machine is not cut:
                    self.later(at + self.world.between(0, 300 * MS), self.reload_file, machine, self.meant)
            at += self.world.between(500 * MS, 1500 * MS)

    def put_in_force(self, new: Config) -> None:
        before, rng = self.meant, self.world.rng
        name = self.write(new)
        if compare(before, self.meant).needs_apply or rng.random() < 0.3:
            self.apply_file(name)
            return
        at = 0
        for machine in sorted(self.world.machines.values(), key=lambda _: rng.random()):
            self.later(at, self.reload_file, machine, self.meant)
            at += world_choice(rng, (0, 1, 20, 300)) * MS

    def change_under_fire(self) -> None:
        """A change, and before it is done something happens."""
        rng = self.world.rng
        self.apply() if rng.random() < 0.6 else self.reload()
        hits: tuple[Callable[..., None], ...] = (
            self.cut_all, self.cut_one_way, self.pause_engine, self.pause_guardian, self.kill_engine, self.kill_guardian,
            self.power_cycle, self.power_all, self.trap, self.disk_bad, self.store_bad, self.burst, self.kill_stack,
            self.leave, self.program_bad, self.move_under_fire,
        )  # fmt: skip
        for _ in range(rng.choice((1, 1, 2))):
            self.soon(world_choice(rng, (100, 400, 2500)) * MS, world_choice(rng, hits))

    def change_crashes(self) -> None:
        """A change, and an engine, its machine or its whole stack ends between two effects of it."""
        rng = self.world.rng
        self.apply() if rng.random() < 0.6 else self.reload()
        machine = self.machine()
        ends: Callable[[], None] = world_choice(
            rng,
            (
                machine.kill_engine,
                machine.kill_engine,
                lambda: self.power_cycle(machine),
                lambda: self.end_stack(machine),
            ),
        )

        def end() -> None:
            self.world.count("crashed in a change")
            ends()

        machine.engine.doom = Doom(world_choice(rng, MOMENTS), int(rng.random() ** 2 * 4), rng.random() < 0.5, end)

    def change_stopped(self) -> None:
        """A change, and a guardian is stopped where it has read the file, or just written it. The rest goes on."""
        self.apply() if self.world.rng.random() < 0.6 else self.reload()
        self.machine().guardian.trap = ("load", self.world.rng.randrange(3), self.some())

    def apply_refused(self) -> None:
        """A file that one machine can't go by: then none does."""
        self.machine().refuses = True
        self.apply_file(self.write(self.timed(self.meant)))
        self.written -= 1  # not meant any more

    def apply_slow(self) -> None:
        """Every engine starts anew at about the same time, and what the former ones said comes late."""
        network = self.world.network
        self.calm_at_last(network.slow, network.slow_ns)
        network.slow, network.slow_ns = 0.5, 250 * MS
        self.apply()

    def calm_at_last(self, slow: float, slow_ns: int) -> None:
        self.later(4000 * MS, self.calm, dict(self.world.network.loss), slow, slow_ns)

    def shrink_cut(self) -> None:
        """Promises were for long; the file that makes them short comes into force, and nobody hears anybody. Rule 2."""
        rng, owner = self.world.rng, self.owner()
        dead = owner.config.heartbeat.dead_after_ms * MS
        beat = replace(self.meant.heartbeat, dead_after_ms=max(400, self.meant.heartbeat.dead_after_ms - 300))
        name = self.write(replace(self.meant, heartbeat=beat))
        self.disk_fails(owner, 8 * dead + 3000 * MS)
        asked = self.other(owner) if rng.random() < 0.5 else owner
        self.apply_file(name, asked)
        self.watch(self.other(owner), self.world.now + 5000 * MS)

    def watch(self, machine: Machine, until: int) -> None:
        """Cut everything when that machine has gone by the new file."""
        if machine.config.digest == self.meant.digest:
            dead = self.first.heartbeat.dead_after_ms * MS
            self.later(int(self.world.rng.random() * 60 * MS), self.cut_all, 6 * dead)
        elif self.world.now < until:
            self.later(2 * MS, self.watch, machine, until)

    # ------------------------------------------------------------------------------------------ what is drawn

    def timed(self, config: Config) -> Config:
        """Other times, in the proportions that check-config demands."""
        rng = self.world.rng
        beat = replace(config.heartbeat, dead_after_ms=rng.choice((400, 500, 700)), kill_ms=rng.choice((30, 50)))
        arbiter = replace(
            config.arbiter, lease_ms=rng.choice((700, 1000, 1500)), io_timeout_ms=rng.choice((60, 100, 150))
        )
        groups = tuple(replace(g, nodes=tuple(rng.sample(g.nodes, len(g.nodes)))) for g in config.groups)
        return replace(config, heartbeat=beat, arbiter=arbiter, groups=groups)

    def reloadable(self, config: Config | None = None) -> Config:
        """A group more or less, a service more or less, another program in a service's place, or how it is checked."""
        config, rng = config or self.meant, self.world.rng
        way = rng.randrange(5)
        if self.profile.keep and way == 1:
            way = 0  # that interrupts, as it must
        if way == 0:
            return self.more_groups(config)
        groups = list(config.groups)
        at = rng.randrange(len(groups))
        group = groups[at]
        names = [s.name for s in group.services]
        services = list(group.services)
        if way == 1:
            which = rng.randrange(len(services))
            old = services[which]
            options = {**old.options, "command": [f"/bin/program-{self.written}"]}
            services[which] = replace(old, options=options) if old.agent == "exec" else old
        elif way == 2:
            services = [replace(s, check=replace(s.check, every_ms=rng.choice((700, 1000, 1300)))) for s in services]
        elif way == 3 and f"{group.name}-more" in names and not self.profile.keep:
            services = [s for s in services if s.name != f"{group.name}-more"]
        elif way == 3 and f"{group.name}-more" not in names:
            services.append(_program(f"{group.name}-more", group.name))
        else:
            groups[at] = group = replace(group, failover_limit=rng.choice((3, 4, 1000)))
        groups[at] = replace(group, services=tuple(services))
        return replace(config, groups=tuple(groups), recovery_automatic=rng.random() < 0.4)

    def regrouped(self, config: Config) -> Config:
        """Other nodes for a group, one of the present ones among them."""
        rng = self.world.rng
        groups = list(config.groups)
        at = rng.randrange(len(groups))
        names = [n.name for n in config.nodes]
        rng.shuffle(names)
        owner = self.world.truth.owner(groups[at].name)
        # A file that has none of the nodes in force would be refused, and no apply before that needs to have worked.
        first = next((g for g in self.first.groups if g.name == groups[at].name), groups[at])
        kept = owner.name if self.profile.keep and owner is not None else first.nodes[0]
        nodes = [n for n in names if n == kept or rng.random() < 0.5]
        groups[at] = replace(groups[at], nodes=tuple(nodes))
        return replace(config, groups=tuple(groups))

    def more_groups(self, config: Config) -> Config:
        """A group that was not there, or is there no more."""
        if any(g.name == "more" for g in config.groups):
            return replace(config, groups=tuple(g for g in config.groups if g.name != "more"))
        nodes = tuple(n.name for n in config.nodes)
        more = Group("more", nodes, (_program("more-program", "more"),), disk=self.profile.disk)
        return replace(config, groups=(*config.groups, more))

    # ------------------------------------------------------------------------------------------ the end of all that

    def agree(self, administer: Callable[[Machine], None]) -> None:
        """After everything healed, an operator applies what is meant until it is in force; it must be, everywhere, soon."""
        world = self.world
        machines = list(world.machines.values())
        if len(self.meant.nodes) < len(machines):  # one that had gone is taken back
            self.write(replace(self.meant, nodes=self.first.nodes))
            for machine in machines:
                if machine.name not in [n.name for n in machine.file.nodes]:
                    raise Broken("agrees", f"{machine.name} has a file without itself")
                self.copy_file(machine, self.meant)
        present = set.intersection(*({n.name for n in m.config.nodes} for m in machines))
        first = ""
        if len(present) < len(
            machines
        ):  # one whose return did not come through: it comes back without groups, and then gets its own
            whole = self.meant
            groups = tuple(replace(g, nodes=tuple(n for n in g.nodes if n in present)) for g in whole.groups)
            first = self.write(replace(whole, groups=groups))
            self.write(whole)
        deadline, name = (
            world.now + AGREED_MS * MS,
            next(n for n, c in reversed(world.documents.items()) if c is self.meant),
        )
        at = 0
        while amiss := [m.name for m in machines if m.config != self.meant or m.file != self.meant]:
            if world.now > deadline:
                raise Broken(
                    "agrees", f"{AGREED_MS} ms after everything healed, {amiss} go by another file than is meant"
                )
            if at % 8 == 3:
                for machine in machines:
                    if machine.stopped:
                        machine.start_stack()
                    administer(machine)
                asked = machines[at // 8 % len(machines)]
                self.apply_file(first if len(asked.config.nodes) < len(machines) else name, asked)
            at += 1
            world.run_until(world.now + 500 * MS)
        world.truth.groups = tuple(g.name for g in self.meant.groups)

    def agreed(self) -> None:
        """In runs where nothing but the change itself happens: it came through at the first try."""
        for machine in self.world.machines.values():
            if machine.config != self.meant or machine.file != self.meant:
                raise Broken("agrees", f"{machine.name} goes by another file than was meant, though nothing went wrong")


def _program(name: str, group: str) -> Service:
    check = Check(type="process", every_ms=1000, timeout_ms=300)
    return Service(name, group, "exec", {"command": ["/bin/program"]}, False, check, 1000, 500, OnFailure(1, 900))
