"""The lease disk that all machines share, the process that reads and writes it, and each engine's durable document.

The disk is as bad as disks are: slow, failing, frozen; a write that was given up lands seconds later (a ghost); while a
write is under way a read gives the old sector or the new one, and may give the new one first and the old one then.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hasnmp.core.events import ArbiterAnswer, ArbiterCall, Persist, Persisted
from hasnmp.simulator.world import MS, Process, World
from hasnmp.wire import Slot, SlotState

if TYPE_CHECKING:
    from hasnmp.simulator.machine import Machine

NOBODY = "0" * 16


class Disk:
    """The slots as they lie on the medium, and the writes that are under way to them."""

    LINGER_NS = 40 * MS  # how long after a machine's death a write of it may still land

    def __init__(self, world: World, groups: tuple[str, ...], nodes: tuple[str, ...], uuid: str = "disk-1") -> None:
        self.world = world
        self.uuid = uuid
        self.linger_ns = self.LINGER_NS
        self.tearing = 0.0  # the share of reads of a sector that is being written which end with neither word
        self.slots = {(g, n): Slot(g, n, 0, SlotState.IDLE, NOBODY, 0, 0) for g in groups for n in nodes}
        self.under_way: dict[tuple[str, str], Slot] = {}
        self.mode: dict[str, str] = {}  # node -> how its path to the disk is: lazy, slow, late, failing, frozen, lost
        self.gone = False  # for everybody
        # node -> (state, for how long its next write of such a record hangs before it lands, what happens meanwhile)
        self.ambush: dict[str, tuple[SlotState, int, Callable[[], None]]] = {}
        self.unreadable: set[tuple[str, str]] = set()
        self.nodes = nodes

    def took(self, node: str, bound_ns: int) -> tuple[int, bool]:
        """How long an I/O of that node takes, and whether it ends well."""
        world, mode = self.world, self.mode.get(node, "")
        chance = world.rng.random()
        if self.gone or mode == "lost":
            return 1 * MS, False
        if mode == "":
            return 100_000 + int(chance * 900_000), True
        if mode == "lazy":  # slow, but a write and a read fit within the bound
            return int((0.05 + 0.43 * chance) * bound_ns), True
        if mode == "slow":
            return int((0.1 + 0.85 * chance) * bound_ns), True
        if mode == "late":
            return int((0.5 + 2 * chance) * bound_ns), True
        if mode == "failing":
            return int(chance * 2 * MS), chance < 0.1
        return int((2 + 8 * chance) * bound_ns) + int(chance * 5000 * MS), chance < 0.7  # frozen: a ghost when it lands

    def look(self, group: str, node: str) -> Slot | str:
        key = (group, node)
        if key in self.unreadable:
            return "bad checksum"
        writing = self.under_way.get(key)
        if writing is not None and self.tearing and self.world.rng.random() < self.tearing:
            self.world.count("torn reads")
            return "bad checksum"
        return writing if writing is not None and self.world.rng.random() < 0.5 else self.slots[key]

    def end_write(self, slot: Slot, lands: bool) -> None:
        key = (slot.group, slot.node)
        if self.under_way.get(key) is slot:
            del self.under_way[key]
        if lands:
            if slot.seq <= self.slots[key].seq:
                self.world.count("older words landed on newer")
            self.slots[key] = slot


class LeaseIo(Process):
    """The lease i/o process of one machine. The I/O itself is the kernel's: it goes on when this process is gone."""

    def __init__(self, world: World, machine: Machine) -> None:
        super().__init__(world, f"{machine.name} lease i/o")
        self.machine = machine
        self.opened: Disk | None = None
        self.stuck: set[str] = set()  # groups with an I/O that has not returned; a lock file keeps it for a successor
        self.calls: dict[int, tuple[ArbiterCall, int]] = {}  # not answered yet, with the life of the engine that asked

    def begin(self) -> None:
        super().begin()
        self.opened = self.machine.disk
        self.calls.clear()

    def die(self) -> None:
        """Killed alone: the engine sees the end of the connection, and every call under way has failed for it."""
        calls = list(self.calls.values())
        self.kill()
        self.calls.clear()
        for call, life in calls:
            self.tell_engine(
                life, ArbiterAnswer(call.attempt, call.group, self.machine.clock(), error="lease i/o ended")
            )

    def call(self, call: ArbiterCall, life: int) -> None:
        """The engine's message arrived; life: that engine's epoch."""
        self.calls[call.attempt] = (call, life)
        if call.group in self.stuck:
            self.answer(call, "busy: an earlier I/O has not returned")
            return
        self.stuck.add(call.group)
        bound = self.machine.config.arbiter.io_timeout_ms * MS
        self.world.post(bound, self, self.give_up, call)
        if call.slot is None:
            self.at_point("read", self.read, call)
        elif self.machine.clock() > call.not_after_ns:
            self.stuck.discard(call.group)
            self.answer(call, "too late to write")
        else:
            self.at_point("write", self.write, call)

    def refuse(self, call: ArbiterCall, life: int) -> None:
        """There is no lease i/o process just now: the engine's own side of the connection says so."""
        answer = ArbiterAnswer(call.attempt, call.group, self.machine.clock(), error="lease i/o is not running")
        self.tell_engine(life, answer)

    def give_up(self, call: ArbiterCall) -> None:
        if call.attempt in self.calls:
            self.world.count("arbiter calls timed out")
            self.answer(call, "timed out")

    def write(self, call: ArbiterCall) -> None:
        assert call.slot is not None
        disk, machine = self.disk(), self.machine
        took, good = disk.took(machine.name, machine.config.arbiter.io_timeout_ms * MS)
        ambush = disk.ambush.get(machine.name)
        if ambush is not None and ambush[0] is call.slot.state:
            took, good = ambush[1], True
            del disk.ambush[machine.name]
            ambush[2]()
        disk.under_way[(call.group, machine.name)] = call.slot
        self.world.tell(self.name, f"began to write {call.slot.state.name} seq {call.slot.seq} token {call.slot.token}")
        self.world.post(took, None, self.write_returned, disk, call, good, self.epoch, machine.boot)

    def disk(self) -> Disk:
        """The device that this process opened when it began."""
        return self.opened or self.world.disk

    def write_returned(self, disk: Disk, call: ArbiterCall, good: bool, epoch: int, boot: int) -> None:
        assert call.slot is not None
        gone = disk.mode.get(self.machine.name) == "lost"
        lands = good or (not gone and self.world.rng.random() < 0.5)  # one that failed may have reached it all the same
        if boot != self.machine.boot:
            lands = False  # what a dead machine had not handed over is lost (Machine.power_off lands what it had)
        disk.end_write(call.slot, lands)
        if boot == self.machine.boot:
            self.world.post(10_000, None, self.write_done, call, good, epoch)

    def write_done(self, call: ArbiterCall, good: bool, epoch: int) -> None:
        """The kernel's part is over: whoever waits for this group's I/O may go on."""
        if epoch != self.epoch or call.attempt not in self.calls:
            self.stuck.discard(call.group)
        elif not good:
            self.stuck.discard(call.group)
            self.run(self.answer, call, "input/output error")
        else:
            self.run(self.at_point, "read", self.read, call)

    def run(self, fn: Any, *args: Any) -> None:
        self.world.post(0, self, fn, *args)

    def read(self, call: ArbiterCall) -> None:
        disk, machine = self.disk(), self.machine
        took, good = disk.took(machine.name, machine.config.arbiter.io_timeout_ms * MS)
        self.world.post(took // 2, None, self.look, call, took - took // 2, good, self.epoch, machine.boot)

    def look(self, call: ArbiterCall, rest: int, good: bool, epoch: int, boot: int) -> None:
        disk = self.disk()
        slots = {node: disk.look(call.group, node) for node in disk.nodes}
        self.world.post(rest, None, self.read_done, call, slots, good, epoch, boot)

    def read_done(self, call: ArbiterCall, slots: dict[str, Slot | str], good: bool, epoch: int, boot: int) -> None:
        if boot != self.machine.boot:
            return
        self.stuck.discard(call.group)
        if epoch == self.epoch and call.attempt in self.calls:
            self.run(self.at_point, "answer", self.answer, call, "" if good else "input/output error", slots)

    def answer(self, call: ArbiterCall, error: str, slots: dict[str, Slot | str] | None = None) -> None:
        asked = self.calls.pop(call.attempt, None)
        if asked is None:
            return  # given up in the meantime
        read = {} if error or slots is None else slots
        now = self.machine.clock()
        self.tell_engine(asked[1], ArbiterAnswer(call.attempt, call.group, now, read, error, self.disk().uuid, 500))

    def tell_engine(self, life: int, answer: ArbiterAnswer) -> None:
        engine = self.machine.engine
        if engine.epoch == life:  # a connection ends with the engine that made it
            self.world.post(20_000 + int(self.world.rng.random() * 100_000), engine, engine.step, answer)


class Store(Process):
    """Makes the engine's document durable, newest first. What was under way when it died is there, or isn't."""

    def __init__(self, world: World, machine: Machine) -> None:
        super().__init__(world, f"{machine.name} store")
        self.machine = machine
        self.mode = ""  # slow, failing, frozen
        self.document: str | None = None  # on the disk
        self.waiting: tuple[int, str] | None = None
        self.writing: tuple[int, str] | None = None

    def begin(self) -> None:
        super().begin()
        self.waiting = self.writing = None

    def kill(self) -> None:
        if self.writing is not None and self.mode != "failing" and self.world.rng.random() < 0.5:
            self.document = self.writing[1]
        self.writing = self.waiting = None
        super().kill()

    def load(self) -> dict[str, Any] | None:
        return json.loads(self.document) if self.document is not None else None

    def flush(self) -> None:
        """An orderly end waits for what was handed over, unless the store does not answer."""
        newest = self.waiting or self.writing
        if newest is not None and not self.mode and not self.paused:
            self.document = newest[1]
            self.writing = None

    def persist(self, effect: Persist) -> None:
        self.waiting = (effect.version, json.dumps(effect.document))
        if self.writing is None:
            self.write()

    def write(self) -> None:
        self.writing, self.waiting = self.waiting, None
        low, high = {"slow": (50, 800), "frozen": (2000, 6000)}.get(self.mode, (1, 8))
        self.world.post(self.world.between(low * MS, high * MS), self, self.wrote)

    def wrote(self) -> None:
        assert self.writing is not None
        version, text = self.writing
        self.writing = None
        good = self.mode != "failing"
        if good:
            self.document = text
        engine = self.machine.engine
        self.world.post(30_000, engine, engine.step, Persisted(version, good))
        if self.waiting is not None:
            self.write()
