"""What makes the agent process a subagent: the rows of HASNMP-MIB for the master, its SETs, and its notifications.

The rows are in a store of their own, for they are read by another clock: whoever asks the master sees the master's
sysUpTime, and the times in our rows (TimeStamp, RFC 2579) must count from the same moment (RFC 2741 section 7.1.1).
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from hasnmp.settings import Snmp
from hasnmp.snmp import objects, sets
from hasnmp.snmp.access import Principal
from hasnmp.snmp.agentx import Done, Notice, Subagent
from hasnmp.snmp.agentx_lookup import Lookup
from hasnmp.snmp.cells import Store
from hasnmp.snmp.objects import Reader
from hasnmp.snmp.oids import ROOT
from hasnmp.snmp.responder import SetRequest, Setter
from hasnmp.snmp.sets import Assignment
from hasnmp.snmp.standard import CAPABILITIES

NOTICES_WAITING = 1000
ANOTHER_CLOCK_S = 1.0  # a smaller difference is how long the master's answer took


class AgentxPart:
    """reader: what is known, for a sysUpTime that was 0 at this time of CLOCK_BOOTTIME. take_set: the agent's queue.
    set_spin_lock: take a spin lock back. lost: told how many notifications had to be dropped."""

    def __init__(
        self,
        settings: Snmp,
        node: str,
        reader: Callable[[int], Reader],
        take_set: Setter,
        set_spin_lock: Callable[[int], None],
        lost: Callable[[int], None],
        log: Any,
    ) -> None:
        self._settings = settings
        self._reader = reader
        self._take_set = take_set
        self._set_spin_lock = set_spin_lock
        self._tell_lost = lost
        self._numbers = itertools.count(1)
        self._boot_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self._waiting: deque[Notice] = deque()
        self._dropped = 0
        self.store = Store(objects.SCALARS, objects.TABLES, self._read)
        capability = next(text for oid, text in CAPABILITIES if oid == ROOT).decode()
        self._subagent = Subagent(
            settings.agentx, settings.agentx_access == "operate", f"hasnmp {node}", ROOT, capability,
            Lookup(self.store, ROOT), self, self._uptime, lambda: self._boot_ns, self, log,
        )  # fmt: skip
        self.run = self._subagent.run

    def _read(self) -> Reader:
        return self._reader(self._boot_ns)

    def _uptime(self, ticks: int) -> None:
        boot_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - ticks * 10_000_000
        if abs(boot_ns - self._boot_ns) > ANOTHER_CLOCK_S * 1e9:
            self._boot_ns = boot_ns
            self.store.changed_all()

    # ------------------------------------------------------------------------------------------------------ SETs

    def test(self, assignments: list[Assignment]) -> None:
        self.store.begin()
        sets.plan(self._read(), assignments)

    def commit(self, assignments: list[Assignment], done: Done) -> None:
        """Tested once more in its turn: since the TestSet another may have passed the spin lock, or a node have died."""
        # AgentX does not say which request of which manager this is, so none is taken for the repetition of another.
        address = self._settings.agentx
        identity = (address, "agentx", next(self._numbers), b"")
        self._take_set(SetRequest(assignments, Principal("agentx", True), address, identity), done)

    def undo(self, assignments: list[Assignment]) -> bool:
        """What the engine was given to do is not taken back; a spin lock alone is, if nobody took it further."""
        if any(one.target.name != "haActionSpinLock" for one in assignments):
            return False
        for one in assignments:
            assert isinstance(one.value, int)  # test() saw to it
            if self._read().spin_lock == one.value + 1 & 0x7FFFFFFF:
                self._set_spin_lock(one.value)
        return True

    # --------------------------------------------------------------------------------------------- notifications

    def notify(self, notice: Notice) -> None:
        """Queue one; the oldest gives way when there are too many."""
        if len(self._waiting) >= NOTICES_WAITING:
            del self._waiting[1]  # the first may be on its way: it is removed when it is answered
            self._dropped += 1
        self._waiting.append(notice)
        self._subagent.wake()

    def first(self) -> Notice | None:
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            self._tell_lost(dropped)
        return self._waiting[0] if self._waiting else None

    def done(self, refused: str) -> None:
        self._waiting.popleft()
