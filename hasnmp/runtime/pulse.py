"""Whether the engine still moves, looked at while there is time: a frozen one would cost all groups their leases.

An engine that hears no peer extends no lease either, and that is the core's matter. But one that does not even answer its own
guardian is killed as long as another one can adopt its groups and extend their leases: their clients notice nothing. Where the
times leave no room for that (a `dead_after_ms` of half a second or less) nothing is asked, and the leases run out.
"""

from __future__ import annotations

import select
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hasnmp.core.guard import NEVER
from hasnmp.runtime.messages import Ask
from hasnmp.runtime.processes import MS, STEADY_NS

if TYPE_CHECKING:
    from hasnmp.runtime.guardian import Guardian

ANSWER_NS = 100 * MS  # an engine answers within a few ms, unless the machine has no time for it
NEXT_NS = 250 * MS  # from an engine's fork to the lease's first extension; 50 ms of that are usual
ASK_NS = ANSWER_NS + NEXT_NS + 100 * MS  # so long before a group must be ended by force it is asked
LATE_NS = 20 * MS  # the guardian itself had no time: then nor had the engine


@dataclass(slots=True)
class Pulse:
    """Times are CLOCK_BOOTTIME in nanoseconds."""

    guardian: Guardian
    asked_ns: int = 0  # 0: it owes no answer
    answer_at_ns: int = 0

    def next_deadline_ns(self) -> int:
        if self.guardian.channel is None:
            return NEVER
        return self.answer_at_ns if self.asked_ns else self._ask_at_ns()

    def poll(self, now: int) -> None:
        g = self.guardian
        if g.channel is None or g.heard_ns >= self.asked_ns:
            self.asked_ns = 0
        if g.channel is None:
            return
        if not self.asked_ns:
            if now >= self._ask_at_ns():
                self.asked_ns, self.answer_at_ns = now, now + ANSWER_NS
                g._tell(Ask())
        elif now >= self.answer_at_ns:
            looked = select.poll()  # select() takes no number above 1023, and each program that runs here has one
            looked.register(g.channel, select.POLLIN)
            if looked.poll(0) or now >= self.answer_at_ns + LATE_NS:
                self.answer_at_ns = now + ANSWER_NS
            elif g.guard.next_deadline_ns() >= now + NEXT_NS:
                self.asked_ns = 0
                g._kill_engine(f"it does not answer for {ANSWER_NS // MS} ms while its leases run out")
            else:
                self.answer_at_ns = NEVER  # too late: the leases run out

    def _ask_at_ns(self) -> int:
        """When it is to be asked; NEVER: there is nothing to save, or no time."""
        g = self.guardian
        end, interval = g.guard.next_deadline_ns(), g.config.heartbeat.interval_ms * MS
        at = max(end - ASK_NS, g.heard_ns + 3 * interval // 2, g.family.engine.started_ns + STEADY_NS)
        return at if end < NEVER and at + ANSWER_NS + NEXT_NS <= end else NEVER
