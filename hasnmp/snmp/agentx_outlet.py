"""The master agent as a receiver of notifications: one more Outlet, from which the subagent takes them one by one."""

from __future__ import annotations

from collections.abc import Callable

from hasnmp.model import ReceiverState
from hasnmp.snmp import ber
from hasnmp.snmp.access import ALL
from hasnmp.snmp.agentx import Notice
from hasnmp.snmp.notification import SNMP_TRAPS, Notification, Oid
from hasnmp.snmp.objects import Syntax
from hasnmp.snmp.outlet import Figures, Hole, Item, Outlet, Surroundings

NAME = "agentx"


class AgentxOutlet(Outlet):
    """boot_ns: CLOCK_BOOTTIME when our sysUpTime was 0; the master counts from another moment."""

    def __init__(self, name: str, figures: Figures, around: Surroundings, boot_ns: int) -> None:
        # The master's own views say who is told of what.
        super().__init__(name, 0, ALL, figures, around)
        self._boot_ns = boot_ns
        self._wake: Callable[[], None] = lambda: None
        self._out: tuple[Item, int] | None = None  # what the subagent has, and of how many dropped ones it tells

    def attach(self, wake: Callable[[], None]) -> None:
        """wake: has the subagent look at first()."""
        self._wake = wake

    def _wants(self, notification: Notification, names: list[Oid]) -> bool:
        """coldStart and its like are the master's to say, of itself."""
        return notification.oid[:-1] != SNMP_TRAPS and super()._wants(notification, names)

    def work(self) -> None:
        if self.queue:
            self._wake()

    def first(self) -> Notice | None:
        """The one to send now; None: there is none."""
        if not self.queue:
            return None
        item = self.queue[0]
        notification = self.spoken(item)
        self.sent(again=self._out is not None and self._out[0] is item)
        self._out = (item, item.count if isinstance(item, Hole) else 0)
        variables = []
        for name, tag, contents in notification.bindings():
            value = ber.decode_value(tag, contents)
            assert value is not None  # our own: no NULL among them
            variables.append((name, Syntax(tag), value))
        return Notice(notification.oid, self._boot_ns + notification.ticks * 10_000_000, variables)

    def done(self, refused: str) -> None:
        """The master has the first one, or has refused it and would refuse it again: why."""
        if refused:
            self.failed(refused)
        else:
            self.figures.add("acknowledged")
            self.figures.last_acknowledged_ns = self._around.now_ns()
            self.state = ReceiverState.UP
        item, told = self._out or (None, 0)
        self._out = None
        if self.queue and self.queue[0] is item:
            if isinstance(item, Hole) and item.count > told:
                item.count -= told
            else:
                self.queue.popleft()
        self.record()

    def connected(self, reason: str) -> None:
        """The session is open, or why it is not."""
        if not reason:
            self.up(ReceiverState.UP)
        elif self.state != ReceiverState.DOWN:
            self.failed(reason)
            self.state = ReceiverState.DOWN  # the subagent has said it in the log
