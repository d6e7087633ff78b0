"""One receiver of notifications: its queue, its bound, its place in the backlog, its figures. How it sends is its subclass's.

    Outlet.put(notification)      a new one; it is sent at once if nothing stands before it
    Outlet.work()                 the subclass's: send what can be sent now

A queue is bounded: the oldest give way, a Hole stands where they stood, and in its place the receiver is sent eventsLost
with their number. No receiver waits for another.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hasnmp.model import ReceiverState
from hasnmp.snmp.access import View, may_tell
from hasnmp.snmp.backlog import Backlog
from hasnmp.snmp.notification import Notification, Oid


@dataclass(slots=True)
class Hole:
    """Where notifications gave way. number: of the last of them."""

    number: int
    count: int


Item = Notification | Hole

# What is counted for each receiver, in the order of haReceiverTable.
COUNTS = ("sent", "acknowledged", "repeated", "errors", "lost")


class Figures:
    """Counters of one receiver; memory: as many numbers as COUNTS, kept by the caller for as long as sysUpTime goes on."""

    def __init__(self, memory: memoryview[int] | list[int]) -> None:
        self._memory = memory
        self.last_sent_ns = 0
        self.last_acknowledged_ns = 0
        self.last_error = ""
        self.last_error_ns = 0

    def add(self, name: str, count: int = 1) -> None:
        self._memory[COUNTS.index(name)] += count

    def value(self, name: str) -> int:
        return self._memory[COUNTS.index(name)] & 0xFFFFFFFF


@dataclass(slots=True)
class Surroundings:
    """What outlets share. now_ns: CLOCK_BOOTTIME. say_lost: eventsLost for so many dropped ones."""

    backlog: Backlog
    limit: int
    now_ns: Callable[[], int]
    say_lost: Callable[[int], Notification]
    log: Any


class Outlet:
    """name: how the backlog, the MIB and the log call it. floor: what ranks below it is not for this receiver.
    view: what it may be told of."""

    def __init__(self, name: str, floor: int, view: View, figures: Figures, around: Surroundings) -> None:
        self.name = name
        self.floor = floor
        self._view = view
        self.figures = figures
        self.state = ReceiverState.UNKNOWN
        self.queue: deque[Item] = deque()
        self._around = around
        self._seen, lost = around.backlog.position(name)
        if lost:
            self.queue.append(Hole(self._seen, lost))

    # ------------------------------------------------------------------------------------- the subclass's

    def open(self) -> None:
        """The process begins: what may be slow."""

    def work(self) -> None:
        """Send what can be sent now; come back by a timer where it can't."""

    def close(self) -> None:
        """The process ends in order: whatever may still be said is said now."""
        self.record()

    # ------------------------------------------------------------------------------------------- the queue

    def restore(self, notifications: list[Notification]) -> None:
        """What the backlog has for this receiver from before."""
        done = self._seen
        for notification in notifications:
            if notification.number > done and self._wants(notification, notification.names()):
                self._push(notification)

    def put(self, notification: Notification, names: list[Oid]) -> None:
        """names: notification.names(), asked for once for all receivers."""
        if self._wants(notification, names):
            self._push(notification)
            self.work()
        else:
            self._seen = notification.number  # or a lower floor would, one day, send what is long over

    def _wants(self, notification: Notification, names: list[Oid]) -> bool:
        return notification.rank >= self.floor and may_tell(self._view, names)

    def _push(self, notification: Notification) -> None:
        self.queue.append(notification)
        self._seen = notification.number
        self._bound()

    def _bound(self) -> None:
        dropped = False
        while len(self.queue) > self._around.limit:
            first = self.queue[0]
            if isinstance(first, Hole):
                gone = self.queue[1]
                del self.queue[1]
                first.number = gone.number
                first.count += gone.count if isinstance(gone, Hole) else 1
                self.figures.add("lost")
            else:
                self.queue[0] = Hole(first.number, 1)
                self.figures.add("lost")
            dropped = True
        if dropped:
            self.record()

    def record(self) -> None:
        """Have the backlog know how far this receiver has come."""
        first = self.queue[0] if self.queue else None
        match first:
            case Hole(number, count):
                self._around.backlog.record(self.name, number, count)
            case None:
                self._around.backlog.record(self.name, self._seen, 0)
            case Notification():
                self._around.backlog.record(self.name, first.number - 1, 0)

    def live(self) -> list[Notification]:
        """What this receiver may still need of the backlog."""
        return [item for item in self.queue if isinstance(item, Notification)]

    def oldest_ticks(self) -> int | None:
        """sysUpTime of the oldest that waits; None: nothing does."""
        # By place and not by iteration: another thread may ask.
        with contextlib.suppress(IndexError):
            for at in (0, 1):
                item = self.queue[at]
                if isinstance(item, Notification):
                    return item.ticks
        return None

    def spoken(self, item: Item) -> Notification:
        """The item as it is sent."""
        return self._around.say_lost(item.count) if isinstance(item, Hole) else item

    # ------------------------------------------------------------------------------------------- what is known

    def sent(self, again: bool = False) -> None:
        self.figures.add("repeated" if again else "sent")
        self.figures.last_sent_ns = self._around.now_ns()

    def failed(self, why: str) -> None:
        """Count and keep an error; it is logged when the receiver goes down, not each time."""
        self.figures.add("errors")
        self.figures.last_error, self.figures.last_error_ns = why, self._around.now_ns()

    def down(self, why: str, retry_s: float) -> None:
        if self.state != ReceiverState.DOWN:
            self.state = ReceiverState.DOWN
            self._around.log.warning("receiver_down", receiver=self.name, reason=why, retry_s=round(retry_s, 1),
                                     waiting=len(self.queue), kept_at_most=self._around.limit)  # fmt: skip

    def up(self, state: ReceiverState) -> None:
        if self.state == ReceiverState.DOWN:
            self._around.log.info("receiver_back", receiver=self.name, waiting=len(self.queue))
        self.state = state
