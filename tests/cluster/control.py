"""The machine's own lateness: on each processor a timer that runs before everything else, and what it missed.

    python -I -S control.py FD       runs until its standard input ends; FD is memory, ROOM octets for each processor

A hypervisor that gives a machine no time makes every program on it late, those that are tested too. What a bound on a time
says of hasnmp is judged without that: stalled_ms() is to be taken off what was measured. It is the time in which a timer
of priority 50 did not run although it was due; the programs under test have 2 at most, so they can't make it late, and
however slow they are, nothing is taken off. Where this may not be asked for (SCHED_RR is refused) nothing ever is.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import mmap
import os
import select
import struct
import subprocess
import sys
import time
from collections.abc import Iterator

PERIOD_NS = 4_000_000
LATE_NS = 2_000_000  # less is no stall
PRIORITY = 50
ATTENTIVE = 3  # a test that watches; the programs under test have 2 at most
ENTRY = struct.Struct("qq")
ENTRIES = 1 << 14
ROOM = ENTRY.size * (
    1 + ENTRIES
)  # first: how many stalls there were, and when the timer ran last; then (due, ran) of each
MS = 1_000_000


class Control:
    """The timers of this machine, and the stalls that they met so far."""

    def __init__(self) -> None:
        self._cpus = sorted(os.sched_getaffinity(0))
        fd = os.memfd_create("control")  # no disk's file: its pages must not wait for anything
        os.ftruncate(fd, ROOM * len(self._cpus))
        self._map = mmap.mmap(fd, 0)
        self._process = subprocess.Popen([sys.executable, "-I", "-S", __file__, str(fd)], stdin=subprocess.PIPE,
                                         stdout=subprocess.PIPE, pass_fds=[fd], start_new_session=True)  # fmt: skip
        os.close(fd)
        assert self._process.stdout
        self.runs = self._process.stdout.readline() == b"ready\n"
        atexit.register(self.close)

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(30)

    def stalls(self, begin_ns: int, end_ns: int) -> list[list[tuple[int, int]]]:
        """For each processor the stalls that touch this time (CLOCK_MONOTONIC), oldest first: (since, until)."""
        found = []
        for index in range(len(self._cpus) if self.runs else 0):
            deadline = time.monotonic() + 1
            while (head := ENTRY.unpack_from(self._map, index * ROOM))[1] < end_ns and time.monotonic() < deadline:
                time.sleep(0.001)  # its word on the end of this time is still to come
            all_ = (ENTRY.unpack_from(self._map, index * ROOM + ENTRY.size * (1 + i)) for i in range(head[0]))
            found.append([(due, ran) for due, ran in all_ if ran > begin_ns and due < end_ns])
        return found

    def stalled_ms(self, begin_ns: int, end_ns: int) -> float:
        """How long the machine itself stood still in this time: the processor on which it was longest."""
        return max((sum(min(ran, end_ns) - max(due, begin_ns) for due, ran in one) / MS
                    for one in self.stalls(begin_ns, end_ns)), default=0.0)  # fmt: skip


@functools.cache
def control() -> Control:
    """The one of this process."""
    return Control()


def stalled_ms(begin_ns: int, end_ns: int) -> float:
    return control().stalled_ms(begin_ns, min(end_ns, time.monotonic_ns()))


def overdue_ms(due_ns: int, at_ns: int, since_ns: int = 0) -> float:
    """How much later than it was due something happened, without what the machine stood still; times of CLOCK_BOOTTIME.

    since_ns: when the work on it began, if that was before it was due: what stood still then is no merit of its end either.
    """
    ahead_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.monotonic_ns()
    return (at_ns - due_ns) / MS - stalled_ms((since_ns or due_ns) - ahead_ns, at_ns - ahead_ns)


@contextlib.contextmanager
def attentive() -> Iterator[None]:
    """This thread comes before every program of hasnmp: it sees what they do when they do it, however busy the machine is.

    What it starts has the ordinary priority. Where this may not be asked for, it sees what it sees.
    """
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(ATTENTIVE))
    except PermissionError:
        yield
        return
    try:
        yield
    finally:
        os.sched_setscheduler(0, *before)


def _watch(cpu: int, view: memoryview) -> None:
    os.sched_setaffinity(0, [cpu])
    count, due = 0, time.monotonic_ns() + PERIOD_NS
    while True:
        time.sleep(max(0, due - time.monotonic_ns()) / 1e9)
        now = time.monotonic_ns()
        if now - due > LATE_NS and count < ENTRIES:
            ENTRY.pack_into(view, ENTRY.size * (1 + count), due, now)
            count += 1
        ENTRY.pack_into(view, 0, count, now)
        due = max(due + PERIOD_NS, now)


def main() -> None:
    view = memoryview(mmap.mmap(int(sys.argv[1]), 0))
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(PRIORITY))
    except PermissionError:
        return
    children = []
    for index, cpu in enumerate(sorted(os.sched_getaffinity(0))):
        if not (child := os.fork()):
            _watch(cpu, view[index * ROOM : (index + 1) * ROOM])
        children.append(child)
    print("ready", flush=True)
    select.select([0], [], [])
    for child in children:
        os.kill(child, 9)


if __name__ == "__main__":
    main()
