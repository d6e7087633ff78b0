"""Detection at 3 x 10 ms on a busy machine: both cores loaded, and no failover that nothing called for.

Small timers in C run beside it: one with the engine's priority, and one on each core above everything of ours. What those are late
by, nobody on this machine could avoid: while a core stands still for longer than the settings have room for, a lease ends whatever
the software does. So each false failover is laid beside what the machine itself did just before.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hasnmp.model import EventRow, Kind
from tests.bench.faults import say
from tests.cluster.lab import wait_for
from tests.cluster.pair import NODES, VIP, Group, Pair, Timing, boot_ns
from tests.cluster.watch import Watch

BUSY_S = 600.0
# dead_after_ms: the least that check-config allows with a claim of io_timeout_ms: interval + claim + kill < dead_after.
TIGHT = Timing(interval_ms=10, dead_after_ms=31, startup_wait_ms=1000, kill_ms=10, lease_ms=200, io_timeout_ms=10,
               recovery="automatic")  # fmt: skip
# A lease is extended once an interval, and ended kill_ms before its end: a core that stands still for longer than the rest ends it.
ROOM_MS = TIGHT.dead_after_ms - TIGHT.kill_ms - TIGHT.interval_ms
BEFORE_MS = 150  # a stall shows in our events that long after it, at most: dead_after_ms, a claim, a start
FALSE = (Kind.NODE_LOST, Kind.FAILOVER_STARTED, Kind.TAKEOVER_COMPLETED)


@dataclass(frozen=True)
class Stall:
    at_ns: int  # when it was over, CLOCK_BOOTTIME
    late_ms: float


class Control:
    """The control timers, compiled here and now; they stop by themselves. Without a C compiler there are none."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self.running: list[subprocess.Popen[str]] = []
        if shutil.which("cc") is None:
            return
        program = folder / "timer"
        subprocess.run(["cc", "-O2", "-o", str(program), str(Path(__file__).with_name("timer.c"))], check=True)
        forms = [[str(TIGHT.interval_ms)], *(["1", str(core)] for core in sorted(os.sched_getaffinity(0)))]
        for form in forms:
            words = [str(program), str(seconds), *form]
            self.running.append(subprocess.Popen(words, stdout=subprocess.PIPE, text=True))

    def ended(self) -> tuple[list[int], list[Stall]]:
        """The first timer's last line as numbers ([]: no compiler), and when a core stood still."""
        said, stalls = [], []
        for timer in self.running:
            *told, end = timer.communicate(timeout=60)[0].splitlines()
            said.append([int(word) for word in end.split()[1:]])
            stalls += [Stall(int(at), int(late) / 1000) for at, late in map(str.split, told)]
        return said[0] if said else [], sorted(stalls, key=lambda stall: stall.at_ns)


def first_of(false: Sequence[EventRow]) -> list[EventRow]:
    """The first event of each false failover."""
    rows = sorted(false, key=lambda row: row.ns)
    return [row for i, row in enumerate(rows) if not i or row.ns - rows[i - 1].ns > BEFORE_MS * 1_000_000]


def before(row: EventRow, stalls: Sequence[Stall]) -> float:
    """For how long a core stood still just before that event; ms."""
    return max((x.late_ms for x in stalls if -1_000_000 <= row.ns - x.at_ns <= BEFORE_MS * 1_000_000), default=0.0)


def busy(seconds: float = BUSY_S) -> list[tuple[str, str, str, bool]]:
    loops: list[subprocess.Popen[bytes]] = []
    with (
        Pair((Group("web", VIP, worker=False),), TIGHT, log_level="info") as pair,
        tempfile.TemporaryDirectory() as name,
    ):
        try:
            pair.start(supervised=False)
            owner = next(iter(wait_for(lambda: pair.owners()["web"], 20, pair.why)))
            pair.wait_steady(20, homes={"web": owner})
            for cpu in sorted(os.sched_getaffinity(0)):
                loop = subprocess.Popen([sys.executable, "-I", "-S", "-c", "while True: pass"])
                os.sched_setaffinity(loop.pid, {cpu})
                loops.append(loop)
            with Watch(pair.lab, VIP) as watch:
                watch.wait_node(owner, 10)
                time.sleep(1)
                begun_ns, begun_boot_ns = time.monotonic_ns(), boot_ns()
                control = Control(Path(name), seconds)
                say(f"  detection at {TIGHT.interval_ms} ms, dead after {TIGHT.dead_after_ms} ms, "
                    f"{len(loops)} busy loops, for {seconds:.0f} s")  # fmt: skip
                time.sleep(seconds)
                outage_ms = watch.outage_ms(begun_ns)
                doubles = watch.doubles()
            events = {node: pair.events(node, begun_boot_ns) for node in NODES}
            false = [row for rows in events.values() for row in rows if row.kind in FALSE]
            counted: dict[str, int] = {}
            for rows in events.values():
                for row in rows:
                    counted[row.kind.value] = counted.get(row.kind.value, 0) + 1
            for node in NODES:
                for row in pair.rows(node, "statistics").values():
                    print(f"detection, {node}: {row.heartbeats_received} heartbeats, {row.heartbeats_late} late; the engine "
                          f"woke late by {row.worst_lateness_us / 1000:.1f} ms at worst")  # fmt: skip
            print(f"detection, events: {counted}")
            said, stalls = control.ended()
            alone = [row for row in first_of(false) if before(row, stalls) < ROOM_MS - 1]
            for row in first_of(false)[:20]:
                print(f"  {(row.ns - begun_boot_ns) / 1e9:8.3f} s {row.node} {row.kind.value}, after a core had stood still for "
                      f"{before(row, stalls):.0f} ms: {row.message}")  # fmt: skip
        finally:
            for loop in loops:
                loop.kill()
                loop.wait()
    if said:
        wakes, over_1, over_half, worst_us, real = said
        print(f"the machine itself, a C timer of {TIGHT.interval_ms} ms{'' if real else ' (no SCHED_RR)'}: {wakes} wake-ups, "
              f"{over_1} late by 1 ms, {over_half} by half an interval; worst {worst_us / 1000:.1f} ms")  # fmt: skip
        for least in (5, ROOM_MS, TIGHT.dead_after_ms):
            print(f"  a core stood still for {least} ms or more: {sum(x.late_ms >= least for x in stalls)} times")
    beside = len(first_of(false)) - len(alone)
    return [
        (f"3 x {TIGHT.interval_ms} ms, busy for {seconds:.0f} s: false failovers",
         f"{len(alone)}, and {beside} while a core stood still", "0, and as may be", not alone),
        ("  two answering at once", str(len(doubles)), "0", not doubles),
        ("  longest time without an answer, ms", f"{outage_ms:.0f}", "under 150, or a core stood still",
         outage_ms < 150 or beside > 0),
    ]  # fmt: skip
