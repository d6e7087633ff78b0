"""Detection at 3 x 10 ms on a busy machine: both cores loaded, and no failover that nothing called for.

A small timer in C runs beside it with the engine's priority: what it is late by, nobody on this machine could avoid.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hasnmp.model import Kind
from tests.bench.faults import say
from tests.cluster.lab import wait_for
from tests.cluster.pair import NODES, VIP, Group, Pair, Timing, boot_ns
from tests.cluster.watch import Watch

BUSY_S = 600.0
# dead_after_ms: the least that check-config allows with a claim of io_timeout_ms: interval + claim + kill < dead_after.
TIGHT = Timing(interval_ms=10, dead_after_ms=31, startup_wait_ms=1000, kill_ms=10, lease_ms=200, io_timeout_ms=10,
               recovery="automatic")  # fmt: skip
FALSE = (Kind.NODE_LOST, Kind.FAILOVER_STARTED, Kind.TAKEOVER_COMPLETED)


def timer(folder: Path, seconds: float) -> subprocess.Popen[str] | None:
    """The control timer, compiled here and now; None: this machine has no C compiler."""
    if shutil.which("cc") is None:
        return None
    program = folder / "timer"
    subprocess.run(["cc", "-O2", "-o", str(program), str(Path(__file__).with_name("timer.c"))], check=True)
    words = [str(program), str(seconds), str(TIGHT.interval_ms)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


def busy(seconds: float = BUSY_S) -> list[tuple[str, str, str, bool]]:
    loops: list[subprocess.Popen[bytes]] = []
    control = None
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
                control = timer(Path(name), seconds)
                say(f"  detection at {TIGHT.interval_ms} ms, dead after {TIGHT.dead_after_ms} ms, "
                    f"{len(loops)} busy loops, for {seconds:.0f} s")  # fmt: skip
                time.sleep(seconds)
                outage_ms = watch.outage_ms(begun_ns)
                others = sum(x.node != owner for x in watch.answers)
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
            for row in false[:10]:
                print(f"  {(row.ns - begun_boot_ns) / 1e9:8.3f} s {row.node} {row.kind.value}: {row.message}")
        finally:
            for loop in loops:
                loop.kill()
                loop.wait()
        said = control.communicate(timeout=30)[0].split() if control else []
    if said:
        wakes, over_1, over_half, worst_us, real = map(int, said)
        print(f"the machine itself, a C timer of {TIGHT.interval_ms} ms{'' if real else ' (no SCHED_RR)'}: {wakes} wake-ups, "
              f"{over_1} late by 1 ms, {over_half} by half an interval; worst {worst_us / 1000:.1f} ms")  # fmt: skip
    return [
        (f"3 x {TIGHT.interval_ms} ms, busy for {seconds:.0f} s: false failovers", str(len(false)), "0", not false),
        ("  answers of the other server", str(others), "0", not others and not doubles),
        ("  longest time without an answer, ms", f"{outage_ms:.0f}", "under 150", outage_ms < 150),
    ]
