"""The deputy: the guardian's old code, which keeps what can't wait while the new code starts in the guardian's place.

A Python that starts needs longer than a lease lasts. So the deputy, forked from the guardian right before, goes on with
the guardian's own knowledge: it acknowledges longer leases, renews addresses, feeds the watchdog, and ends by force what
is due. What else the engine says waits. It is not the parent of the programs, so their ends wait too.

It has one duty above all: if the new code does not take over, nobody guards the groups any more, so it ends them all.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import signal
import socket
import time
import traceback
from typing import TYPE_CHECKING, NoReturn

from hasnmp.core.events import Extend
from hasnmp.runtime import handover
from hasnmp.runtime.kernel import BootTimer, boottime_ns, set_name
from hasnmp.runtime.messages import Alive, Message
from hasnmp.runtime.processes import MS, S, log

if TYPE_CHECKING:
    from hasnmp.runtime.guardian import Guardian

READY_NS = 30 * S  # what the new code may take until it is ready: a Python that starts on a busy machine
TAKE_NS = 2 * S  # and then until it has taken over; less if something is due before
LINGER_NS = 5 * S  # how long it stays to end what does not end


class Deputy:
    """guardian: the fork's own copy. go: end of file once the new code runs. main: the process that it runs in."""

    def __init__(self, guardian: Guardian, sock: socket.socket, go: int, main: int) -> None:
        self.guardian, self.sock, self.go, self.main = guardian, sock, go, main
        self.said: list[Message] = []
        self.limit_ns = boottime_ns() + READY_NS

    def run(self) -> NoReturn:
        status = 1
        try:
            os.read(self.go, 1)
            self._settle_in()
            while True:
                self._turn()
        except SystemExit as leave:
            status = int(leave.code or 0)
        except BaseException:
            log("deputy_failed", logging.ERROR, traceback=traceback.format_exc())
            with contextlib.suppress(SystemExit):
                self._give_up("the deputy has a defect")
        finally:
            os._exit(status)

    def _settle_in(self) -> None:
        """Nothing that is waited on may be shared with the new code: a selector and a timer of its own."""
        g = self.guardian
        set_name("hasnmp-deputy")
        with contextlib.suppress(OSError):  # a Python that starts is busy: not before us
            os.sched_setscheduler(self.main, os.SCHED_OTHER, os.sched_param(0))
        g.selector = selectors.DefaultSelector()
        g.timer = BootTimer()
        g.programs.children = False
        g.obey = self._obey
        g.selector.register(g.timer, selectors.EVENT_READ, g.timer.read)
        g.selector.register(self.sock, selectors.EVENT_READ, self._on_main)
        if g.channel:
            g.listen_to(g.channel)

    def _turn(self) -> None:
        g = self.guardian
        now = boottime_ns()
        g._end_what_is_due(boottime_ns())
        if g.ending.retry_at_ns <= now:
            g.ending.go_on(now)
        g._reap()
        g._renew_addresses()
        if g.feeder.feed_at_ns <= now:
            g.feeder.feed(now)
        if now >= self.limit_ns:
            self._give_up(f"the new code was not ready within {READY_NS // S} s")
        at = min(
            g.guard.next_deadline_ns(),
            g.ending.retry_at_ns,
            g.feeder.feed_at_ns,
            g.addresses.next_deadline_ns(),
            self.limit_ns,
        )
        g.timer.set(at)
        for key, _ in g.selector.select():
            g._end_what_is_due(boottime_ns())
            key.data()

    def _obey(self, message: Message) -> None:
        match message:
            case Extend(leases):
                self.guardian.orders.extend(leases)
            case Alive():
                pass
            case _:
                self.said.append(message)

    def _on_main(self) -> None:
        try:
            word = self.sock.recv(1)
        except OSError:
            word = b""
        if word != b"R":
            self._give_up("the new code ended before it took over")
        now = boottime_ns()
        g = self.guardian
        until = min(now + TAKE_NS, g.guard.next_deadline_ns())
        try:
            self.sock.settimeout(max(0.001, (until - now) / S))
            if handover.send_picture(self.sock, handover.picture(g, self.said)):
                raise SystemExit(0)
        except OSError as error:
            self._give_up(f"the new code did not take over: {error}")
        self._give_up("the new code ended while it took over")

    def _give_up(self, why: str) -> NoReturn:
        """Nobody guards the groups: end them all, the process that was to do it first."""
        g = self.guardian
        log("handover_lost", logging.CRITICAL, why=why, next="end every group of this node")
        if os.getppid() == self.main:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.main, signal.SIGKILL)
        g._kill_engine("nobody guards it")
        now = boottime_ns()
        latest = max([now, *(lease.until_ns for lease in g.guard.leases.values())]) + LINGER_NS
        for group, lease in g.guard.leases.items():
            if group not in g.ending.until:
                g.guard.ending.add(group)
                g.ending.begin(group, lease.until_ns)
        while g.ending.until and (now := boottime_ns()) < latest:
            g.ending.go_on(now)
            g._reap()
            time.sleep(MS / S)
        log("deputy_ended", logging.CRITICAL, left=list(g.ending.until))
        raise SystemExit(1)
