"""Who serves each group in the simulated world, from moment to moment, as its clients would find it.

A group is served by a machine where every critical service of it works: its program has come up, its address answers, its
passive services' agent reports well. What an engine believes does not matter here.
"""

from __future__ import annotations

from collections.abc import Callable

from hasnmp.core.events import HeldLease
from hasnmp.model import CommandRow, CommandState
from hasnmp.settings import Config
from hasnmp.simulator.invariants import Truth
from hasnmp.simulator.machine import Machine
from hasnmp.simulator.world import NEVER, World

Tell = Callable[[str, str, str], None]  # node, kind, text


class Served(Truth):
    """The invariants' judge, which sees everything that begins and ends, keeps the history too."""

    def __init__(self, world: World, config: Config, tell: Tell) -> None:
        super().__init__(world, tuple(g.name for g in config.groups), config.arbiter.type == "none")
        self.told = tell
        self.wanted = {
            g.name: [s.name for s in g.services if s.critical] or [s.name for s in g.services] for g in config.groups
        }
        self.by: dict[str, str] = dict.fromkeys(self.groups, "")  # group -> the machine that serves it now, "" for none
        self.history: dict[str, list[tuple[int, str]]] = {g: [(0, "")] for g in self.groups}
        self.all_by: dict[str, tuple[str, ...]] = dict.fromkeys(self.groups, ())  # every machine that does
        self.changed_ns = 0

    # ------------------------------------------------------------------------------------------ what happens

    def leased(self, machine: Machine, lease: HeldLease, before: HeldLease | None) -> None:
        super().leased(machine, lease, before)
        self.look()

    def began(self, machine: Machine, group: str) -> None:
        super().began(machine, group)
        self.world.post(0, None, self.look_later, machine, group)

    def look_later(self, machine: Machine, group: str) -> None:
        """Look again when the youngest program of the group has come up."""
        self.look()
        coming = [p.ready_ns for p in machine.programs.values() if p.group == group and p.ready_ns < NEVER]
        ready = max(coming, default=0)
        if ready > self.world.now:
            self.world.post_at(ready, None, self.look)

    def address(self, machine: Machine, group: str, before: int) -> None:
        super().address(machine, group, before)
        self.look()
        self.world.post_at(machine.true_at(machine.elements[group]) + 1, None, self.look)

    def stopped(self, machine: Machine, groups: tuple[str, ...]) -> None:
        super().stopped(machine, groups)
        self.look()

    def replied(self, machine: Machine, row: CommandRow) -> None:
        super().replied(machine, row)
        if row.state is CommandState.REFUSED:
            self.told(machine.name, "refused", row.text)

    # ------------------------------------------------------------------------------------------ who serves

    def serves(self, machine: Machine, group: str) -> bool:
        return machine.powered and all(self.works(machine, group, service) for service in self.wanted[group])

    def works(self, machine: Machine, group: str, service: str) -> bool:
        if machine.bad.get(service, "") in ("check", "hang"):
            return False
        if service in machine.addresses:
            return machine.elements.get(group, 0) > machine.clock()
        if service in machine.passive:
            return self.holds(machine, group)
        program = machine.programs.get(service)
        return program is not None and program.ready_ns <= self.world.now

    def look(self) -> None:
        for group in self.groups:
            before, all_by = (
                self.by[group],
                tuple(m.name for m in self.world.machines.values() if self.serves(m, group)),
            )
            if len(all_by) > 1 and all_by != self.all_by[group]:
                self.told("", "twice", f"group {group} runs twice: on {' and on '.join(all_by)}")
                self.changed_ns = self.world.now
            self.all_by[group] = all_by
            # Of two, who has the newer lease: that is where the others will find it once they hear each other.
            now_by = max(all_by, key=lambda name: self.token(name, group), default="")
            if now_by == before:
                continue
            self.by[group] = now_by
            self.history[group].append((self.world.now, now_by))
            self.changed_ns = self.world.now
            text = f"group {group} is served" if now_by else f"group {group} is not served any more"
            self.told(now_by or before, "served" if now_by else "unserved", text)

    def token(self, name: str, group: str) -> int:
        held = self.world.machines[name].guardian.guard.leases.get(group)
        return held.token if held is not None else 0

    def outages(self, group: str, start_ns: int, end_ns: int) -> list[tuple[int, int]]:
        """The times within start..end in which nobody served it."""
        found = []
        history = self.history[group]
        for i, (at, by) in enumerate(history):
            until = history[i + 1][0] if i + 1 < len(history) else end_ns
            first, last = max(at, start_ns), min(until, end_ns)
            if not by and first < last:
                found.append((first, last))
        return found
