"""What must hold in the world, judged from what runs there and never from an engine's opinion.

    one answers    no group's address answers on two powered machines at once
    one runs       no group's programs run on two powered machines at once, but for those that a guardian leaves which is
                   stopped or dead (then only the address counts, which the kernel ends; design rules 5 and 6)
    one lease      no guardian takes a lease while another machine's guardian holds one of that group that has not ended
    tokens rise    a lease taken by another holder than the last has a token above every earlier one
    leased         nothing of a group is started without the guardian's live lease
    kept           in runs with nothing but one tolerated fault, a healthy group is never interrupted
    is taken       the groups of an owner that fails for good run elsewhere within the bound (runs.py asks)
    rolls          two nodes restarted in order, one right after the other, leave no group without one that runs it for long
    goes on        a move that was ordered, and that its hooks let happen, happens although the owner's engine ends meanwhile; one
                   that they refuse does not (runs.py asks)
    durable        an inhibit that was confirmed still stands at the end
    lives          after everything has healed, every group runs, exactly once, and its owner says so (runs.py asks)

Checked when something begins; nothing that merely ends can break them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hasnmp.core.events import HeldLease
from hasnmp.model import CommandRow, CommandState, GroupRow, GroupState, Verb
from hasnmp.simulator.world import MS, Broken, World

if TYPE_CHECKING:
    from hasnmp.simulator.machine import Machine


class Truth:
    def __init__(self, world: World, groups: tuple[str, ...], split_accepted: bool) -> None:
        self.world = world
        self.groups = groups
        self.split_accepted = split_accepted  # arbiter none: what a partition may break is not judged
        self.newest: dict[str, tuple[int, str]] = {}  # group -> the highest token of a lease, and its holder
        self.keep: dict[str, str] = {}  # group -> the machine that must keep it, in runs where nothing may move
        self.inhibited: set[str] = set()  # groups inhibited for good, as a node confirmed
        self.asked_inhibit: set[str] = set()  # groups that nobody will permit before the end

    # ------------------------------------------------------------------------------------------ what begins

    def leased(self, machine: Machine, lease: HeldLease, before: HeldLease | None) -> None:
        """A guardian took a lease or a longer expiry."""
        longer = before is not None and before.token == lease.token and machine.clock() < before.until_ns
        if longer:
            return
        group, holder = lease.group, machine.guardian.holder
        self.world.count("leases")
        self.world.tell(machine.guardian.name, f"took the lease of {group}, token {lease.token}")
        if self.split_accepted:
            return
        for other in self.world.machines.values():
            if other is machine or not other.powered or not other.guardian.alive:
                continue
            held = other.guardian.guard.leases.get(group)
            if held is not None and other.clock() < held.until_ns:
                left = (held.until_ns - other.clock()) / MS
                raise Broken(
                    "one lease",
                    f"{machine.name} took the lease of {group} with token {lease.token} while the guardian of {other.name} "
                    f"holds token {held.token} for {left:.3f} ms more",
                )
        token, last = self.newest.get(group, (0, ""))
        if holder != last and lease.token <= token:
            raise Broken("tokens rise", f"{machine.name} took {group} with token {lease.token} after token {token}")
        if lease.token > token:
            self.newest[group] = (lease.token, holder)

    def state_lost(self, machine: Machine) -> None:
        """Its state file is gone. A number that neither the lease disk nor another node has ever seen is known to nobody now."""
        for group, (token, _) in tuple(self.newest.items()):
            written = max(s.token for (g, _), s in self.world.disk.slots.items() if g == group)
            others = (m for m in self.world.machines.values() if m is not machine)
            if max(written, *(self._number_known(m, group) for m in others)) < token:
                del self.newest[group]
                self.world.count("numbers that nobody knows any more")

    def _number_known(self, machine: Machine, group: str) -> int:
        """A token above this one is what that node would take next."""
        core = machine.engine.core if machine.engine.alive else None
        if core is not None:
            return core.state.leases[group].next_token() - 1
        return int((machine.store.load() or {}).get("ceiling", 0))

    def start_accepted(self, machine: Machine, lease: HeldLease, holder: str) -> None:
        """A guardian is about to start something of the group."""
        if machine.clock() >= lease.until_ns:
            raise Broken("leased", f"{machine.name} starts {lease.group}, whose lease (token {lease.token}) has ended")
        token, last = self.newest.get(lease.group, (lease.token, holder))
        if not self.split_accepted and (lease.token < token or last != holder):
            raise Broken("tokens rise", f"{machine.name} starts {lease.group} under token {lease.token} after {token}")

    def began(self, machine: Machine, group: str) -> None:
        """A program of the group runs there now."""
        if self.split_accepted:
            return
        for other in self.world.machines.values():
            if other is machine:
                continue
            older = [p for p in other.programs.values() if p.group == group]
            mine = [p for p in machine.programs.values() if p.group == group]
            if older and mine:
                old = machine if mine[-1].token < older[-1].token else other
                if not self.excused(old):
                    raise Broken("one runs", f"programs of {group} run on {other.name} and on {machine.name}")

    def excused(self, machine: Machine) -> bool:
        """Was that machine's guardian unable to end anything, until just now?"""
        guardian = machine.guardian
        return (
            not guardian.alive or guardian.paused or self.world.now <= guardian.back_at + 2 * machine.kill_ns + 50 * MS
        )

    def address(self, machine: Machine, group: str, before: int) -> None:
        """The group's element was set, or set anew, on that machine."""
        for other in self.world.machines.values():
            if other is machine or self.split_accepted or other.asleep:
                continue
            if other.elements.get(group, 0) > other.clock():
                left = (other.elements[group] - other.clock()) / MS
                raise Broken(
                    "one answers",
                    f"{machine.name} answers at the address of {group}, and {other.name} will for {left:.3f} ms more",
                )
        if self.keep.get(group) == machine.name and before <= machine.clock():
            raise Broken("kept", f"the address of {group} went silent on {machine.name} for want of a renewal")

    def awake(self, machine: Machine) -> None:
        """A machine that was paused goes on, with what the kernel has not ended in the meantime."""
        for group in self.groups:
            if machine.elements.get(group, 0) > machine.clock():
                self.address(machine, group, machine.elements[group])

    # ------------------------------------------------------------------------------------------ what ends

    def stopped(self, machine: Machine, groups: tuple[str, ...]) -> None:
        for group in groups:
            if self.keep.get(group) == machine.name:
                raise Broken("kept", f"{group} was interrupted on {machine.name} without cause")

    def keep_all(self) -> None:
        """From here on nothing may interrupt what runs."""
        for group in self.groups:
            owner = self.owner(group)
            if owner is None:
                raise Broken("lives", f"{group} does not run after an undisturbed start")
            self.keep[group] = owner.name

    def kept(self) -> None:
        """The addresses that must have been kept are still there."""
        for group, name in self.keep.items():
            machine = self.world.machines[name]
            if machine.elements.get(group, 0) <= machine.clock():
                raise Broken("kept", f"the address of {group} went silent on {name}")

    # ------------------------------------------------------------------------------------------ who runs what

    def runs(self, machine: Machine, group: str) -> bool:
        """Whole: every program of it, and its address; of a group without either, the lease."""
        mine = [s for s, g in machine.group_of.items() if g == group]
        wanted = sum(1 for s in mine if s not in machine.addresses and s not in machine.passive)
        running = sum(1 for p in machine.programs.values() if p.group == group)
        if any(s in machine.addresses for s in mine):
            return running == wanted and machine.elements.get(group, 0) > machine.clock()
        return running == wanted and (wanted > 0 or self.holds(machine, group))

    def holds(self, machine: Machine, group: str) -> bool:
        """Does that machine's guardian hold a lease of the group that has not ended?"""
        return machine.guardian.alive and machine.guardian.guard.may_run(group, machine.clock())

    def touched(self, machine: Machine, group: str) -> bool:
        """Anything of it at all."""
        return (
            any(p.group == group for p in machine.programs.values()) or machine.elements.get(group, 0) > machine.clock()
        )

    def owner(self, group: str) -> Machine | None:
        return next((m for m in self.world.machines.values() if self.runs(m, group)), None)

    def unsettled(self) -> str:
        """ "" when every group runs once and its owner's engine says running; else what is amiss."""
        for group in self.groups:
            owner = self.owner(group)
            if owner is None:
                return f"{group} runs nowhere"
            others = [m.name for m in self.world.machines.values() if m is not owner and self.touched(m, group)]
            if others:
                return f"{group} runs on {owner.name}, and something of it on {', '.join(others)}"
            view = owner.engine.view()
            if view is None:
                return f"{group} runs on {owner.name} without an engine"
            row = view.tables["groups"][group]
            assert isinstance(row, GroupRow)
            if row.state is not GroupState.RUNNING or row.owner != owner.name:
                return f"{group} runs on {owner.name}, which says {row.state.name.lower()} on {row.owner or 'no node'}"
        return ""

    # ------------------------------------------------------------------------------------------ commands

    def replied(self, machine: Machine, row: CommandRow) -> None:
        self.world.count(f"command {row.verb.name.lower()} {row.state.name.lower()}")
        self.noted(row)

    def noted(self, row: CommandRow) -> None:
        """A node says what became of a command: from `done` on, an inhibit must stay."""
        if row.verb is Verb.INHIBIT and row.state is CommandState.DONE and row.target in self.asked_inhibit:
            if row.target not in self.inhibited:
                self.world.count("inhibits confirmed")
            self.inhibited.add(row.target)

    def stored(self, machine: Machine) -> None:
        """A document was made durable there: a command may have been done with that."""
        view = machine.engine.view() if self.asked_inhibit else None
        for row in view.tables["commands"].values() if view is not None else ():
            assert isinstance(row, CommandRow)
            self.noted(row)

    def check_inhibited(self) -> None:
        """Every node shows every inhibit that was confirmed."""
        for machine in self.world.machines.values():
            view = machine.engine.view()
            for group in sorted(self.inhibited):
                row = view.tables["groups"][group] if view is not None else None
                if isinstance(row, GroupRow) and not row.inhibited:
                    raise Broken(
                        "durable", f"{group} was inhibited and confirmed, and {machine.name} shows it permitted"
                    )
