"""The administrator's own programs around a group's start and stop on this node.

    before_start   the lease is held, nothing is started      a required one that fails is a start that failed
    before_stop    in order, all still runs                   a required one that fails keeps a planned move from happening
    after_stop     nothing of the group runs here any more    only told

Each kind is one effect with an attempt, which runs all of its programs in order and comes back as HookEnded; what does not
come back in time has failed, and what comes late is ignored. No hook holds anything up that must be: a lease that ends is
ended by the guardian, hooks and all; and only a move that somebody wished for is kept from happening.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hasnmp.core.context import MS, Context
from hasnmp.core.events import Hook, HookEnded
from hasnmp.model import Kind, Reason
from hasnmp.settings import Hook as Settings

if TYPE_CHECKING:
    from hasnmp.core.journal import Journal
    from hasnmp.core.state import Move

GRACE_MS = 2000  # beyond the programs' own time limits, hooks without an answer count as failed
STAY_MS = 60_000  # after a refusal, a move that nobody orders anew (standby, failback) is tried again
WISHED = (Reason.OPERATOR, Reason.STANDBY_ORDERED, Reason.FAILBACK)  # moves that a hook may keep from happening


@dataclass(slots=True)
class Hooks:
    """Those of one group. on: what is under way, "" for nothing. refused: why a required one failed, until it was acted on."""

    group: str
    me: str
    settings: tuple[Settings, ...]
    journal: Journal
    on: str = ""
    attempt: int = 0
    deadline: int = 0
    refused: str = ""
    stays: tuple[Reason, int] = (Reason.NONE, 0)  # moves for this reason are not tried before that

    def of(self, on: str) -> list[Settings]:
        return [h for h in self.settings if h.on == on and (not h.groups or self.group in h.groups)]

    def patience_ms(self) -> int:
        """How long they may hold a move up, on one node."""
        return sum(h.timeout_ms + GRACE_MS for on in ("before_start", "before_stop") for h in self.of(on))

    def stop_ms(self) -> int:
        """How long they may hold an orderly stop up."""
        mine = self.of("before_stop")
        return sum(h.timeout_ms for h in mine) + GRACE_MS if mine else 0

    def begin(self, ctx: Context, on: str, reason: Reason = Reason.NONE, text: str = "", to: str = "") -> None:
        """Run the hooks of this kind, if there are any; `on` stays until they have ended."""
        self.cancel()
        mine = self.of(on)
        if not mine:
            return
        limit_ms = sum(h.timeout_ms for h in mine)
        attempt = ctx.attempt()
        if on != "after_stop":
            self.on, self.attempt, self.deadline = on, attempt, ctx.now + (limit_ms + GRACE_MS) * MS
            ctx.wake(self.deadline)
        ctx.emit(Hook(attempt, self.group, on, reason.name.lower(), text, to))

    def cancel(self) -> None:
        """Whatever is under way is of no interest any more."""
        self.on, self.attempt, self.refused = "", 0, ""

    def ended(self, event: HookEnded, ctx: Context) -> None:
        if event.attempt and event.attempt != self.attempt and event.on != "after_stop":
            return
        for failure in event.failures:
            failed(self.journal, ctx, self.me, event.on, self.group, failure)
        if event.attempt and event.attempt == self.attempt:
            self.on, self.attempt = "", 0
            if event.stopped:
                self.refused = (
                    f"required hook {event.on} failed: {event.failures[-1] if event.failures else 'no reason'}"
                )
            ctx.dirty = True

    def look(self, ctx: Context) -> None:
        if not self.on:
            return
        if ctx.now < self.deadline:
            ctx.wake(self.deadline)
            return
        required = any(h.required for h in self.of(self.on))
        self.ended(HookEnded(self.attempt, self.group, self.on, ("no answer within its time",), required), ctx)

    def keeps(self, ctx: Context, move: Move | None) -> bool:
        """Was this move just refused by a hook, and may it be? Then it is not to be tried again for a while."""
        if not self.refused:
            return False
        if move is None or move.force or move.reason not in WISHED:
            self.refused = ""  # what must be stopped is stopped
            return False
        self.stays = (move.reason, ctx.now + STAY_MS * MS)
        return True

    def waits(self, ctx: Context, move: Move) -> bool:
        """Was one like this refused a moment ago?"""
        reason, until = self.stays
        if move.force or move.reason is not reason or ctx.now >= until:
            return False
        ctx.wake(until)
        return True


def failed(journal: Journal, ctx: Context, me: str, on: str, group: str, why: str) -> None:
    """A failing hook is an event; but not one of the hooks of that very event, which could fail for ever."""
    if on != Kind.HOOK_FAILED.name.lower():
        of = f" of group {group}" if group else ""
        journal.happened(ctx, Kind.HOOK_FAILED, f"hook {on}{of} on {me}: {why}", group=group)
