"""What is told again and again that this guardian lives: systemd's watchdog, and the machine's (watchdog.py).

Neither hears anything while a group is left whose lease has ended: then it is for them to end this node.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hasnmp.core.guard import NEVER
from hasnmp.runtime.ending import RETRY_NS
from hasnmp.runtime.kernel import notifier
from hasnmp.runtime.processes import S, log
from hasnmp.runtime.watchdog import RETRY_S

if TYPE_CHECKING:
    from hasnmp.runtime.guardian import Guardian

AGAIN_S = 1  # after a feed that failed: what it was may be over
SPARE_MS = 60_000  # what a stop may wait for beside its services: a peer that has just started, the arbiter, the store


@dataclass(slots=True)
class Feeder:
    """notify(text): to systemd (sd_notify). every_ns: how often systemd is to hear; 0 = it does not wait for it."""

    guardian: Guardian
    notify: Callable[[str], None] = field(default_factory=lambda: notifier(os.environ.get("NOTIFY_SOCKET")))
    every_ns: int = field(default_factory=lambda: int(os.environ.get("WATCHDOG_USEC", "0")) * 1000 // 2)
    feed_at_ns: int = NEVER
    tell_at_ns: int = 0  # when systemd is to hear again
    arm_at_ns: int = NEVER  # when the hardware watchdog is tried again

    def arm(self, now: int) -> None:
        """Open the hardware watchdog, if there is one and nothing is left here that it would be fed in spite of."""
        g, dog = self.guardian, self.guardian.watchdog
        if not dog.wanted or dog.fd >= 0 or g.stopping:
            return
        before = dog.error
        if g.ending.until:
            dog.error = f"not armed while groups are not ended: {', '.join(g.ending.until)}"
        elif dog.arm() and dog.feed():
            if g.pills:
                g.pills.armed(dog.timeout_ms)
            log("watchdog_armed", device=dog.settings.device, timeout_ms=dog.timeout_ms)
            self.feed_at_ns = min(self.feed_at_ns, now + dog.every_ns)
        elif dog.fd >= 0:
            dog.give_up()
        self.arm_at_ns = NEVER if dog.fd >= 0 else now + RETRY_S * S
        if dog.error not in ("", before):
            log("watchdog_not_armed", logging.ERROR, why=dog.error, next=f"tried again every {RETRY_S} s")

    def feed(self, now: int) -> None:
        """systemd while this process lives: another guardian could end no more, and groups that are well would end with this one.
        The machine's own while no group is left whose lease has ended."""
        g, dog = self.guardian, self.guardian.watchdog
        armed = dog.fd >= 0
        every = min(self.every_ns or NEVER, dog.every_ns if armed else NEVER)
        if every == NEVER:
            self.feed_at_ns = NEVER
            return
        if now >= self.tell_at_ns:
            self.notify("WATCHDOG=1")
            self.tell_at_ns = now + every
        if armed and g.ending.overdue(now):
            self.feed_at_ns = now + RETRY_NS
            return
        if armed and not dog.feed():
            g._alarm(f"{dog.error}; this machine may be reset in {dog.timeout_ms / 1000} s")
            dog.give_up()
            if g.pills:
                g.pills.armed(0)
            self.arm_at_ns = now + AGAIN_S * S
        self.feed_at_ns = now + every

    def _tell(self) -> None:
        """The peers count on an armed watchdog, by the engine's word: an engine that knows otherwise is replaced."""
        g, dog = self.guardian, self.guardian.watchdog
        if g.channel is None or g.stopping or g.watchdog_told in (-1, dog.timeout_ms):
            return
        g.watchdog_told = -1
        g.engine_replaced = True
        g.family.engine.started_ns = g.family.engine.deaths = 0  # an end that is wanted: the next one comes at once
        g._kill_engine("the watchdog is armed now" if dog.timeout_ms else dog.error)

    def stopping(self) -> None:
        """Tell systemd, and ask it to wait for as long as the groups' own limits let an orderly stop take."""
        config = self.guardian.config
        hooks_ms = sum(hook.timeout_ms for hook in config.hooks)
        most_ms = max((sum(s.stop_timeout_ms for s in g.services) for g in config.groups), default=0) + hooks_ms
        self.notify(f"STOPPING=1\nEXTEND_TIMEOUT_USEC={(most_ms + SPARE_MS) * 1000}")

    def poll(self, now: int) -> None:
        if self.arm_at_ns <= now:
            self.arm(now)
        if self.feed_at_ns <= now:
            self.feed(now)
        self._tell()

    def next_deadline_ns(self) -> int:
        return min(self.feed_at_ns, self.arm_at_ns)
