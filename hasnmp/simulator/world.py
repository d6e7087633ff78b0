"""The simulated world: one queue of events in true time, the network, and the clusters' machines in it.

One seed gives one run, to the nanosecond: every chance is drawn from one generator, in the order of the events. Nothing
here waits: a run of twenty simulated seconds takes some tens of milliseconds.

True time is the world's own. Each machine has a CLOCK_BOOTTIME of its own (machine.py) that starts anywhere and runs up
to 1 % fast or slow: rule 2 promises to bear just that.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from hasnmp.core.events import Effect, Event, HeldLease
from hasnmp.model import EventRow, View
from hasnmp.settings import Config
from hasnmp.wire import Datagram, DatagramKind

if TYPE_CHECKING:
    from hasnmp.core.state import State
    from hasnmp.simulator.invariants import Truth
    from hasnmp.simulator.machine import Machine
    from hasnmp.simulator.power import Power
    from hasnmp.simulator.storage import Disk

MS = 1_000_000  # nanoseconds
NEVER = 1 << 62
WALL_MS = 1_750_000_000_000  # Unix time at the world's beginning
MAX_STEPS = 150_000  # of all engines in one run; more means that one of them asks to be woken without end
BUFFER = 400  # datagrams that a socket keeps for a process that does not read
REMEMBERED = 300  # datagrams that the attacker keeps for each direction

Say = Callable[[int, str, str], None]
Listen = Callable[[str, EventRow], None]


class Core(Protocol):
    """What the world drives: hasnmp.core.engine.Engine."""

    state: State

    def step(self, event: Event, now_ns: int) -> tuple[Effect, ...] | list[Effect]: ...
    def next_deadline_ns(self) -> int: ...
    def view(self, now_ns: int, wall_ms: int) -> View: ...


class Decisions(Protocol):
    """What the guardian asks: hasnmp.core.guard.Guard."""

    leases: dict[str, HeldLease]

    kill_ns: int

    def extend(self, lease: HeldLease, now_ns: int) -> bool: ...
    def may_run(self, group: str, now_ns: int) -> bool: ...
    def remaining_ns(self, group: str, now_ns: int) -> int: ...
    def due(self, now_ns: int) -> tuple[str, ...]: ...
    def ended(self, group: str) -> None: ...
    def engine_begins(self) -> tuple[str, ...]: ...
    def next_deadline_ns(self) -> int: ...


class Broken(Exception):
    """An invariant did not hold."""

    def __init__(self, invariant: str, text: str) -> None:
        super().__init__(f"{invariant}: {text}")
        self.invariant = invariant
        self.text = text


class Process:
    """Something that the scheduler runs, stops (SIGSTOP) and kills. What comes to it while it is stopped waits."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.alive = False
        self.epoch = 0  # rises at each start and death: what was under way for a dead process is gone
        self.paused = False
        self.paused_until = 0
        self.back_at = 0  # when it last began to run again
        self.pending: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self.trap: tuple[str, int, int] | None = (
            None  # stop at a point of the program: point, passes before, for how long
        )

    def begin(self) -> None:
        self.epoch += 1
        self.alive, self.paused, self.trap = True, False, None
        self.back_at = self.world.now
        self.pending.clear()

    def kill(self) -> None:
        self.epoch += 1
        self.alive = self.paused = False
        self.pending.clear()

    def pause(self, duration_ns: int) -> None:
        """SIGSTOP now, SIGCONT after the duration; overlapping pauses end with the last."""
        if not self.alive:
            return
        self.paused = True
        self.paused_until = max(
            self.paused_until if self.paused_until > self.world.now else 0, self.world.now + duration_ns
        )
        self.world.post_at(self.paused_until, None, self._resume, self.epoch)

    def resume(self) -> None:
        self.paused_until = self.world.now
        self._resume(self.epoch)

    def _resume(self, epoch: int) -> None:
        if self.paused and epoch == self.epoch and self.world.now >= self.paused_until:
            self.paused = False
            self.back_at = self.world.now
            self.woke()
            self.drain()

    def woke(self) -> None:
        """The first thing that the program does when it runs again."""

    def drain(self) -> None:
        while self.pending and not self.paused:
            fn, args = self.pending.pop(0)
            fn(*args)

    def sprung(self, point: str) -> bool:
        """Is there a trap at this point of the program? Then the process stops here, and its caller must not go on."""
        trap = self.trap
        if trap is None or trap[0] != point:
            return False
        if trap[1] > 0:
            self.trap = (point, trap[1] - 1, trap[2])
            return False
        self.trap = None
        if self.world.say:
            self.world.say(self.world.now, self.name, f"was stopped at a point of the program: {point}")
        self.pause(trap[2])
        return True

    def at_point(self, point: str, fn: Callable[..., None], *args: Any) -> None:
        """Go on with fn, unless the process is stopped between here and there: then when it runs again, none the wiser."""
        if self.trap is not None and self.sprung(point):
            self.pending.insert(0, (fn, args))
        else:
            fn(*args)


class Network:
    """UDP between the engines: loses, doubles, delays and overtakes; an attacker who sees all may send it again."""

    def __init__(self, world: World, links: tuple[str, ...]) -> None:
        self.world = world
        self.links = links
        self.cut: set[tuple[str, str, str]] = set()  # link, sender, receiver
        self.loss: dict[str, float] = dict.fromkeys(links, 0.0)
        self.double = 0.0
        self.slow = 0.0  # the share of datagrams that take up to slow_ns instead of a moment
        self.slow_ns = 0
        self.slow_to = ""  # only what goes to that machine
        self.heard: dict[tuple[str, str], list[Datagram]] = {}

    def send(self, datagram: Datagram, link: str) -> None:
        world, chance = self.world, self.world.rng.random
        if world.remember:
            kept = self.heard.setdefault((datagram.sender, datagram.receiver), [])
            if len(kept) < REMEMBERED:
                kept.append(datagram)
            else:
                kept[int(chance() * REMEMBERED)] = datagram
        receiver = world.machines[datagram.receiver]
        for over in self.links if link == "" else (link,):
            if (over, datagram.sender, datagram.receiver) in self.cut:
                continue
            for _ in range(2 if self.double and chance() < self.double else 1):
                if self.loss[over] and chance() < self.loss[over]:
                    continue
                delay = 50_000 + (0 if world.calm else int(chance() * 300_000))
                if self.slow and self.slow_to in ("", datagram.receiver) and chance() < self.slow:
                    delay += int(chance() * self.slow_ns)
                world.post_at(world.now + delay, None, receiver.arrive, over, datagram)

    def replay(self, sender: str, receiver: str, newest: int = REMEMBERED, answers: bool = False) -> None:
        """Let the receiver have one of the newest again; answers: of those that may promise, over the first link."""
        kept = self.heard.get((sender, receiver), [])
        if answers:
            kept = [d for d in kept if d.kind is DatagramKind.ANSWER]
        if kept:
            datagram = world_choice(self.world.rng, kept[-newest:])
            over = self.links[0] if answers else world_choice(self.world.rng, self.links)
            self.world.machines[receiver].arrive(over, datagram)

    def heal(self) -> None:
        self.cut.clear()
        self.loss = dict.fromkeys(self.links, 0.0)
        self.double = self.slow = 0.0
        self.slow_to = ""


def world_choice(rng: random.Random, values: Any) -> Any:
    """rng.choice at a third of its cost."""
    return values[int(rng.random() * len(values))]


class World:
    """Everything that there is. Built by runs.py; faults.py is what happens to it, invariants.py judges it."""

    def __init__(self, seed: int, say: Say | None = None) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.say = say
        self.now = 0
        self.steps = 0
        self.remember = False  # does the attacker listen?
        self.healed = False
        self.calm = False  # nothing is slower than it usually is: no engine that is forked late
        self.max_steps = MAX_STEPS
        self.listen: Listen | None = None  # hears every event that an engine tells: (node, event)
        self.machines: dict[str, Machine] = {}
        self.documents: dict[str, Config] = {}  # the files that operators have applied
        self.moved: dict[str, Disk] = {}  # device -> a lease disk that an operator made later
        self.network: Network
        self.disk: Disk
        self.power: Power
        self.truth: Truth
        self.counts: dict[str, int] = {}  # what happened, for the summary: that the runs meet what they are to test
        self._queue: list[tuple[int, int, Process | None, int, Callable[..., None], tuple[Any, ...]]] = []
        self._number = 0

    def post_at(self, at_ns: int, process: Process | None, fn: Callable[..., None], *args: Any) -> None:
        """Run fn at that true time: in that process if it still lives then, or (None) as a thing of nature."""
        self._number = number = self._number + 1
        heapq.heappush(self._queue, (at_ns, number, process, process.epoch if process is not None else 0, fn, args))

    def post(self, delay_ns: int, process: Process | None, fn: Callable[..., None], *args: Any) -> None:
        self.post_at(self.now + delay_ns, process, fn, *args)

    def run_until(self, end_ns: int) -> None:
        queue, pop = self._queue, heapq.heappop
        while queue and queue[0][0] <= end_ns:
            self.now, _, process, epoch, fn, args = pop(queue)
            if process is None:
                fn(*args)
            elif process.epoch == epoch and process.alive:
                if process.paused:
                    process.pending.append((fn, args))
                else:
                    fn(*args)
        self.now = end_ns

    def between(self, low_ns: int, high_ns: int) -> int:
        return low_ns + int(self.rng.random() * (high_ns - low_ns))

    def wall_ms(self) -> int:
        return WALL_MS + self.now // MS

    def count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    def tell(self, who: str, text: str) -> None:
        if self.say is not None:
            self.say(self.now, who, text)


NewCore = Callable[[Config, str, str], Core]
NewGuard = Callable[[int], Decisions]
