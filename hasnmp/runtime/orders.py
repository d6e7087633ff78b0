"""What the engine asks of the guardian, and how it is done: leases, programs, addresses, releases.

The guardian looks at the clock before each message is obeyed, and here again after whatever takes time: it may have been
stopped between the look at a lease and the deed.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hasnmp.core.events import (
    Adopt,
    Extend,
    Extended,
    Forward,
    GiveUp,
    HeldLease,
    Outcome,
    Release,
    Released,
    Reload,
    Stage,
)
from hasnmp.core.guard import NEVER
from hasnmp.runtime.kernel import boottime_ns
from hasnmp.runtime.messages import Address, AddressDone, AddressOp, Alive, End, Purpose, Run, RunFailed, Signal
from hasnmp.runtime.processes import MS, log

if TYPE_CHECKING:
    from hasnmp.runtime.guardian import Guardian

NO_CGROUP_TO_LEAVE = (
    "what it starts could not be ended with certainty: hasnmpd can write no control group (version 2) here; run it as root, or "
    "use the agent exec"
)
RELEASE_NS = 200 * MS  # how long a release waits for what is just dying


@dataclass(slots=True)
class PendingRelease:
    token: int
    until_ns: int


@dataclass(slots=True)
class Orders:
    """releases: by group, what waits for its last programs to end. next_run: a number that no program has had."""

    guardian: Guardian
    releases: dict[str, PendingRelease] = field(default_factory=dict)
    next_run: int = 1

    def obey(self, message: object) -> None:
        match message:
            case Extend(leases):
                self.extend(leases)
            case Release(group, token):
                self._release(group, token)
            case Run():
                self._run(message)
            case Signal(run, number):
                self.guardian.programs.signal(run, number)
            case End(run):
                self.guardian.programs.end(run)
            case Address(AddressOp.ADD):
                self._add_address(message)
            case Address():
                self._remove_address(message)
            case Alive():
                pass
            case Reload(command):
                self.guardian.reload.ask(command)
            case Stage(ident, document):
                self.guardian.reload.stage(ident, document)
            case Adopt(ident, command):
                self.guardian.reload.adopt(ident, command)
            case Forward(command):
                self.guardian.reload.forward(command)
            case GiveUp(text):
                self.guardian.reload.given_up(text)
            case _:
                log("message_refused", logging.WARNING, why=f"an engine does not say {type(message).__name__}")

    def extend(self, leases: tuple[HeldLease, ...]) -> None:
        taken: list[HeldLease] = []
        refused: list[HeldLease] = []
        for lease in leases:
            # Also while a release waits for what is left: a group is stopped in order only while its lease is renewed,
            # and nothing can be started by it (_run and the addresses look at the releases themselves).
            free = "/" not in lease.group
            (taken if free and self.guardian.guard.extend(lease, boottime_ns()) else refused).append(lease)
        for lease in taken:
            self.guardian.belongings.leased(lease.group)
        if taken:
            self.guardian._tell(Extended(tuple(taken), True))
            for lease in taken if self.guardian.config.log.level == "debug" else ():
                log("lease_told", logging.DEBUG, group=lease.group, token=lease.token, until_ns=lease.until_ns,
                    now_ns=boottime_ns())  # fmt: skip
        if refused:
            self.guardian._tell(Extended(tuple(refused), False))

    def _run(self, message: Run) -> None:
        self.next_run = max(self.next_run, message.run + 1)
        group, fence = message.group, message.purpose is Purpose.FENCE
        free = (
            fence or message.purpose is Purpose.CHECK or (message.purpose is Purpose.HOOK and not group)
        )  # of a lease
        refusal = ""
        if message.run in self.guardian.programs.running:
            refusal = f"run {message.run} is in use"
        elif "/" in group + message.service or group in self.guardian.guard.ending or group in self.releases:
            refusal = f"group {group} is being ended"
        elif fence and group:
            refusal = "a fence agent is of no group"
        elif not free and not self.guardian.guard.may_run(group, boottime_ns()):
            refusal = f"no live lease of group {group}"
        if refusal:
            self.guardian._tell(RunFailed(message.run, Outcome.REFUSED, refusal))
            return
        if message.purpose is Purpose.START and not self.guardian.programs.cgroups:
            self.guardian._tell(RunFailed(message.run, Outcome.FAILED, NO_CGROUP_TO_LEAVE))
            return
        if message.purpose is Purpose.SERVICE and self.guardian.programs.occupied(group, message.service):
            text = f"a program of {message.service} still runs"
            self.guardian._tell(RunFailed(message.run, Outcome.FAILED, text))
            return
        try:
            not_after = NEVER if free else self.guardian.guard.leases[group].until_ns - self.guardian.guard.kill_ns
            self.guardian.programs.start(message, not_after)
        except OSError as error:
            self.guardian._tell(RunFailed(message.run, Outcome.FAILED, f"not started: {error}"))
        self.guardian._end_what_is_due(
            boottime_ns()
        )  # it may have been stopped between the look at the lease and the deed

    def _release(self, group: str, token: int) -> None:
        lease = self.guardian.guard.leases.get(group)
        if group in self.guardian.guard.ending:
            self.guardian._tell(Released(group, token, False, "the lease ended; the group is being ended by force"))
        elif lease and lease.token != token:
            self.guardian._tell(Released(group, token, False, f"the lease is another one: token {lease.token}"))
        else:
            self.guardian.programs.end_checks(group)
            self.releases[group] = PendingRelease(token, boottime_ns() + RELEASE_NS)
            self.poll_releases(boottime_ns())

    def poll_releases(self, now: int) -> None:
        for group, pending in tuple(self.releases.items()):
            left = self.guardian.ending.left_of(group)
            if left and now < pending.until_ns:
                continue
            del self.releases[group]
            if not left:
                self.guardian.ending.gone(group)
            self.guardian._tell(
                Released(group, pending.token, not left, ("still there: " if left else "") + ", ".join(left))
            )

    def _add_address(self, message: Address) -> None:
        if message.group in self.releases or not self.guardian.guard.may_run(message.group, boottime_ns()):
            text = f"refused: no live lease of group {message.group}"
        else:
            text = self.guardian.addresses.add(message)
        self.guardian._end_what_is_due(boottime_ns())  # as in _run: before the engine is told that it may announce it
        self.guardian._tell(AddressDone(message.service, AddressOp.ADD, not text, text))

    def _remove_address(self, message: Address) -> None:
        text = self.guardian.addresses.remove(message.service)
        self.guardian._tell(AddressDone(message.service, AddressOp.REMOVE, not text, text))
