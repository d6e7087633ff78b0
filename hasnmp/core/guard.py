"""What the guardian decides, apart from how it does it: which lease is live, what may run, what must end by force.

Design rule 4. The guardian kills at `until - kill_ns` and has finished by `until`; the engine relies only on expiries
that were acknowledged here. Kept apart from runtime/guardian.py so that the simulator runs the very same decisions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from hasnmp.core.events import HeldLease

NEVER = 1 << 62


@dataclass(slots=True)
class Guard:
    """The guardian's lease table. Times are CLOCK_BOOTTIME in nanoseconds, read by the caller just before each call."""

    kill_ns: int
    leases: dict[str, HeldLease] = field(default_factory=dict)
    ending: set[str] = field(default_factory=set)  # being killed: nothing may start, nothing may be extended
    last_token: dict[str, int] = field(default_factory=dict)  # of every lease that ended here, in whatever way
    unbound: set[str] = field(default_factory=set)  # leases that have run out since the newest engine was started
    # Told (group, token, until_ns) of each lease as it is taken, and (group, 0, 0) before anybody else may have it.
    show: Callable[[str, int, int], None] = lambda group, token, until_ns: None

    def extend(self, lease: HeldLease, now_ns: int) -> bool:
        """Take a new lease, or a longer expiry for a live one. False: too late, or older than what has ended here."""
        if lease.group in self.ending or lease.until_ns - self.kill_ns <= now_ns:
            return False
        held = self.leases.get(lease.group)
        if held is None:
            # A message of a killed engine may still lie in the socket: what ended here never comes back to life.
            if lease.token <= self.last_token.get(lease.group, 0):
                return False
        elif lease.token < held.token or held.until_ns - self.kill_ns <= now_ns:
            return False
        elif lease.until_ns < held.until_ns:
            return True  # an older, shorter expiry that arrives late changes nothing
        self.leases[lease.group] = lease
        self.show(lease.group, lease.token, lease.until_ns)
        return True

    def may_run(self, group: str, now_ns: int) -> bool:
        """May a program of the group be started, or an address added, now?"""
        held = self.leases.get(group)
        return held is not None and group not in self.ending and now_ns < held.until_ns - self.kill_ns

    def remaining_ns(self, group: str, now_ns: int) -> int:
        """What is left of the lease, 0 without one: what a kernel timer may be given."""
        held = self.leases.get(group)
        return max(0, held.until_ns - now_ns) if held is not None and group not in self.ending else 0

    def due(self, now_ns: int) -> tuple[str, ...]:
        """The groups to end by force now, each once. They count as ending from here on; the engine is to be killed first."""
        late = (g for g, held in self.leases.items() if held.until_ns - self.kill_ns <= now_ns)
        groups = tuple(g for g in late if g not in self.ending)
        self.ending.update(groups)
        self.unbound.update(groups)
        for group in groups:
            self.show(group, 0, 0)
        return groups

    def ended(self, group: str) -> None:
        """Nothing of the group runs here any more, seen and confirmed."""
        held = self.leases.pop(group, None)
        self.show(group, 0, 0)
        if held is not None:
            self.last_token[group] = max(held.token, self.last_token.get(group, 0))
        self.ending.discard(group)

    def engine_begins(self) -> tuple[str, ...]:
        """The groups whose lease the engine before had to its own end: who has a lease promises the group to nobody (rule 2)."""
        unbound = tuple(sorted(self.unbound - self.ending))
        self.unbound.clear()
        return unbound

    def next_deadline_ns(self) -> int:
        """When due() must be asked next; NEVER without a lease."""
        return min((h.until_ns - self.kill_ns for g, h in self.leases.items() if g not in self.ending), default=NEVER)
