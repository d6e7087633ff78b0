"""Ending groups by force: programs, addresses, file systems; and what happens when that can't be confirmed.

Everything of a group has ended here before its lease does, for every other node relies on that (design rule 4). What
can't be seen to have ended is tried again, and told each second. If the group must not be left like that (it writes to a
shared disk, or the peers count on this machine's watchdog), the machine is restarted at the lease's end: at once, and
without a sync, for what is still in memory must not go to the disk any more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from hasnmp.core.guard import NEVER, Guard
from hasnmp.runtime import kernel
from hasnmp.runtime.belongings import Belongings
from hasnmp.runtime.group_addresses import GroupAddresses
from hasnmp.runtime.kernel import boottime_ns
from hasnmp.runtime.mounts import GroupMounts
from hasnmp.runtime.programs import Programs
from hasnmp.runtime.units import GroupUnits
from hasnmp.settings import Config

MS = 1_000_000
S = 1_000_000_000
RETRY_NS = 10 * MS  # between two tries to end what did not end
LATE = "its lease was not extended in time"
FIRST_RETRY_NS = 1 * MS  # a killed process is gone within this, nearly always


def certain(config: Config) -> frozenset[str]:
    """The groups whose end must be certain, at the price of the machine's restart."""
    return frozenset(
        g.name for g in config.groups if config.watchdog.device or (g.disk and not g.accept_unfenced_disk)
    )  # fmt: skip


@dataclass(slots=True)
class Ending:
    """alarm(text): for the administrator. ended(group): nothing of it is left, seen and confirmed. restart(): ends this machine; it returns only where that is refused."""

    guard: Guard
    programs: Programs
    addresses: GroupAddresses
    mounts: GroupMounts
    units: GroupUnits
    belongings: Belongings
    alarm: Callable[[str], None]
    certain: frozenset[str]
    ended: Callable[[str], None] = lambda group: None
    outside: Callable[[str], list[str]] = lambda group: []  # what of the group no force ends, a text each
    restart: Callable[[], str] = field(default_factory=lambda: kernel.restart_machine)
    until: dict[str, int] = field(default_factory=dict)  # group -> when its lease ends
    why: dict[str, str] = field(default_factory=dict)
    found: set[str] = field(default_factory=set)  # those of them that were left by a former guardian
    retry_at_ns: int = NEVER
    loud_at_ns: int = 0

    def begin(self, group: str, until_ns: int, why: str = LATE) -> None:
        """SIGKILL to all of its programs. Then call go_on()."""
        self.until[group], self.why[group] = until_ns, why
        self.programs.end_group(group)
        self.units.kill(group)

    def begin_found(self, group: str, now: int) -> None:
        """What a former guardian left of it did not end, not even by SIGKILL: nothing of it starts here until it has.

        No reason to restart the machine, which would only do it again; the watchdog is not armed meanwhile.
        """
        self.guard.ending.add(group)
        self.found.add(group)
        self.until[group] = self.retry_at_ns = now

    def left_of(self, group: str) -> list[str]:
        """What of the group is still here, a text each; [] = verified, nothing. The programs first: they could mount."""
        left = self.programs.leftovers(group) + self.units.left(group)
        left += [f"address {address.ip} ({address.service})" for address in self.addresses.of(group)]
        left += self.mounts.left(group)
        return left + self.outside(group) if group in self.certain else left

    def go_on(self, now: int) -> None:
        """Look whether all has ended, and try again what has not."""
        for group in self.until:
            self.mounts.cut(group, now)
        for group, until in tuple(self.until.items()):
            # The programs of all groups were killed before any netlink call: it may wait for a lock of the kernel. And
            # whatever happens to it, the address itself falls silent when the lease ends.
            problems = self.addresses.remove_all(group)
            left = self.left_of(group)
            if not left:
                self._ended(group, until)
                continue
            self.programs.end_group(group)
            self.units.kill(group)
            late_ms = (boottime_ns() - until) // MS
            if late_ms < 0 or (now < self.loud_at_ns and group not in self.certain - self.found):
                continue
            what = f"{', '.join([*left, *problems])}"
            if group in self.certain - self.found:
                self.alarm(f"GROUP {group} IS NOT ENDED at its lease's end: THIS MACHINE RESTARTS NOW: {what}")
                self.alarm(f"group {group}: the machine does not restart: {self.restart()}; cut its power")
                self.found.add(group)  # from here on it is said again, and no watchdog is fed
            else:
                # The group stays `ending`, so nothing of it starts here again.
                self.alarm(f"GROUP {group} IS NOT ENDED {late_ms} ms after its lease: {what}")
            self.loud_at_ns = now + S
        self.retry_at_ns = NEVER
        if self.until:
            recent = any(now < until for until in self.until.values())
            self.retry_at_ns = boottime_ns() + (FIRST_RETRY_NS if recent else RETRY_NS)

    def gone(self, group: str) -> None:
        """Nothing of the group is here any more, seen and confirmed."""
        self.guard.ended(group)
        self.mounts.settle(group)
        self.programs.group_folder_removed(group)
        self.belongings.forget(group)

    def _ended(self, group: str, until: int) -> None:
        outside = self.outside(group)
        self.gone(group)
        del self.until[group]
        self.found.discard(group)
        self.ended(group)
        text = f"group {group} was ended by force: {self.why.pop(group, LATE)}"
        if (late_ms := (boottime_ns() - until) // MS) > 0:
            text += f"; {late_ms} ms too late"
        if outside:
            text += f"; of it may be left, and nobody looks: {', '.join(outside)}"
        self.alarm(text)

    def overdue(self, now: int) -> bool:
        """Is there a group whose lease has ended and that has not? Then no watchdog is fed."""
        return any(until <= now for until in self.until.values())

    def holds_up(self, now: int) -> bool:
        """No engine is there to be misled while a group is being ended - but not for ever: the others need one."""
        return any(now < until + 100 * MS for until in self.until.values())
