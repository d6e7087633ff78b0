"""What ends a machine from outside, and what a dead stack leaves behind: fence devices, hardware watchdogs, dirty pages.

A group with a disk leaves dirty pages in its machine's kernel from its start on. They are gone when its programs were
stopped in order (the file system was unmounted), when the guardian shut the file system down (its own ending by force, its
start), and with the power. Whatever else happens, they may reach the disk at any moment: so nobody else may start the group.

A fence device may be broken, deaf, slower than its limit or always late, or say `failed` although it did its work. It never says `done`
for what it did not do: that much an administrator has to test.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hasnmp.core.events import Fence, FenceAction, Fenced
from hasnmp.simulator.world import MS, Broken, World

if TYPE_CHECKING:
    from hasnmp.simulator.machine import Machine

MODES = ("broken", "deaf", "slow", "denies")


class Power:
    """The world outside the machines: who can switch whom, and how well that works."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.mode: dict[tuple[str, int], str] = {}  # (node, level) -> how its device is; "" = good
        self.shots: dict[tuple[str, str], int] = {}  # (who fires, at whom) -> when it strikes

    def fence(self, machine: Machine, effect: Fence) -> None:
        """The engine of that machine uses a device. What it sets off happens, whatever becomes of the engine."""
        world, mode = self.world, self.mode.get((effect.node, effect.level), "")
        victim, limit = world.machines[effect.node], effect.timeout_ms * MS
        world.count(f"{effect.action.value} of a device")
        if mode == "deaf":
            return
        if effect.action is FenceAction.TEST:
            world.post(20 * MS, None, self.answer, machine, machine.engine.epoch, effect, mode != "broken", 20 * MS)
            return
        took = world.between(limit // 20, limit // 2)
        if mode == "slow":
            took = world.between(limit // 2, 3 * limit)
        if mode == "late":
            took = limit + limit // 2
        if mode != "broken":
            self.fires(machine.name, effect.node, world.now + min(limit, took * 3 // 4))
            again = machine.config.node(effect.node).fence[effect.level].action == "reboot"
            world.post(took * 3 // 4, None, self.switch_off, victim, again)
        good = mode in ("", "slow", "late")
        world.post(took, None, self.answer, machine, machine.engine.epoch, effect, good, took)

    def fires(self, shooter: str, victim: str, strikes: int) -> None:
        """Of two that fire at each other each is switched off, and nothing is left that works. A device that acts after its
        time limit is the administrator's fault, and not counted."""
        if self.shots.get((victim, shooter), -1) >= self.world.now:
            raise Broken("no death match", f"{shooter} fires at {victim}, which is firing at {shooter}")
        self.shots[shooter, victim] = strikes

    def switch_off(self, victim: Machine, again: bool) -> None:
        self.world.tell("POWER", f"{victim.name} is switched off by its fence device")
        self.world.count("machines fenced")
        victim.power_off()
        if again:
            self.world.post(self.world.between(500 * MS, 3000 * MS), None, victim.power_on)

    def answer(self, machine: Machine, life: int, effect: Fence, ok: bool, took: int) -> None:
        event = Fenced(
            effect.attempt, effect.node, effect.level, effect.action, ok, "" if ok else "it says no", took // 1000
        )
        if machine.engine.epoch == life and machine.engine.alive:
            self.world.post(0, machine.engine, machine.engine.step, event)

    # ------------------------------------------------------------------------------------------ watchdog

    def arm(self, machine: Machine) -> None:
        """The guardian opened the device: from here on it must be fed. Once armed it is until the power goes."""
        if machine.watchdog_ms and not machine.armed:
            machine.armed = True
            machine.fed_at = self.world.now
            self.feed(machine, machine.boot)

    def feed(self, machine: Machine, boot: int) -> None:
        if machine.boot != boot or not machine.powered:
            return
        guardian, now = machine.guardian, self.world.now
        if guardian.alive and not guardian.paused and not guardian.overdue():
            machine.fed_at = now
        elif now - machine.fed_at >= machine.watchdog_ms * MS:
            self.world.tell("POWER", f"the watchdog resets {machine.name}")
            self.world.count("watchdog resets")
            machine.power_off()
            self.world.post(self.world.between(300 * MS, 1500 * MS), None, machine.power_on)
            return
        self.world.post(machine.watchdog_ms * MS // 8, None, self.feed, machine, boot)

    # ------------------------------------------------------------------------------------------ dirty pages

    def started(self, machine: Machine, group: str) -> None:
        """A program of a group with a disk runs there from now on. One writer: nobody else's pages may still come."""
        for other in self.world.machines.values():
            if other is not machine and other.powered and group in other.dirty:
                raise Broken("one writer", f"{machine.name} starts {group}, whose pages {other.name} may still write")
        machine.dirty.add(group)

    def mend(self, node: str, level: int) -> None:
        self.mode.pop((node, level), None)

    def heal(self) -> None:
        self.mode.clear()
