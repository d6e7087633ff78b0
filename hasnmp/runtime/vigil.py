"""Whether the other processes of the stack do what they are there for, besides being there.

The snmp agent counts in memory that it shares with the guardian, about once a second, from its loop and under the lock that
its threads share. One that is stopped, or hangs, counts no more: it is killed, and the next one starts at once. It holds
nothing that matters, and nobody waits for it; but a console that polls would hear nothing for ever. One that a debugger holds
is let be. Time in which the guardian itself did not run is not counted: then the whole stack was stopped.

Of a process that dies again and again the engine is told, too, and when it works again: an alarm and its end. Whether lease
i/o and store hang the engine finds out, for it waits for their answers (arbiterLost, stateNotSaved); a reader of poison pills
that hangs, the peers' tests of it do (fenceUntested).
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hasnmp.core.events import Troubled
from hasnmp.runtime.kernel import boottime_ns
from hasnmp.runtime.processes import STEADY_NS, Child, S, log

if TYPE_CHECKING:
    from hasnmp.runtime.guardian import Guardian

SILENT_NS = 20 * S  # more than the start of an agent takes, with a large table on a busy machine
LOOK_NS = 1 * S
DYING = 3  # deaths in a row, none of which lived for STEADY_NS
COUNTED = "snmp"  # the process that counts


@dataclass(slots=True)
class Vigil:
    guardian: Guardian
    memory: mmap.mmap = field(default_factory=lambda: mmap.mmap(-1, 8))  # shared with what is forked from here on
    begun_ns: int = field(default_factory=boottime_ns)  # who was forked before a handover counts in the former memory
    seen: bytes = b""  # the count at the last look
    pid: int = 0  # whose it was
    killed: int = 0  # the last one that was ended
    silent_ns: int = 0  # for how long it has not changed
    looked_ns: int = 0
    told: dict[str, str] = field(default_factory=dict)  # process -> its trouble, as the engine was told

    def beat(self) -> None:
        """In the process: it does something."""
        self.memory[:] = ((int.from_bytes(self.memory) + 1) % (1 << 64)).to_bytes(8)

    def poll(self, now: int) -> None:
        """Called whenever the guardian's loop turns, which its engine's signs of life see to."""
        if now - self.looked_ns < LOOK_NS:
            return
        passed, self.looked_ns = min(now - self.looked_ns, 2 * LOOK_NS), now
        for child in self.guardian.family.others:
            steady = child.pid and now - child.started_ns >= STEADY_NS
            if child.name == COUNTED and child.pid and child.started_ns >= self.begun_ns:
                self._count(child, passed)
                steady = steady and self.silent_ns < SILENT_NS // 2 and child.pid != self.killed
            if steady:
                self._tell(child.name, "")
            elif not child.pid and child.deaths >= DYING:
                what = f"process {child.name} died {DYING} times in a row or more; its log says why; it is started again and again"
                self._tell(child.name, what)

    def _count(self, child: Child, passed: int) -> None:
        now = bytes(self.memory)
        self.silent_ns = self.silent_ns + passed if (child.pid, now) == (self.pid, self.seen) else 0
        self.pid, self.seen = child.pid, now
        if self.silent_ns < SILENT_NS:
            return
        text = f"process {child.name} (pid {child.pid}) hangs: it has done nothing for {self.silent_ns // S} s"
        if tracer := _tracer(child.pid):
            self._tell(child.name, f"process {child.name} (pid {child.pid}) is held by its debugger, process {tracer}")
            return
        self._tell(child.name, f"{text}; it was killed, and another one is started")
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGKILL)
        self.killed, self.silent_ns = child.pid, 0

    def _tell(self, name: str, text: str) -> None:
        if self.told.get(name) == text:
            return  # that all is well is said once: an alarm may stand since a former guardian's time
        self.told[name] = text
        if text:
            log("process_troubled", logging.ERROR, name=name, why=text)
        self.guardian._tell(Troubled(name, text))


def _tracer(pid: int) -> int:
    """The process that traces it; 0: none."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("TracerPid:"):
                return int(line.split()[1])
    return 0
