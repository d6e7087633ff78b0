"""What the agent tells its receivers: events through the throttle, the standard notifications past it, to every outlet.

    event -> Throttle -> Notification (encoded once) -> Backlog (on the disk) -> each Outlet -> its receiver

An Outlet is anything that takes notifications: a UDP receiver (traps.py), a master agent.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from hasnmp.model import EventRow, Kind, PartState, Severity
from hasnmp.settings import Config, Receiver
from hasnmp.snmp.access import notify_view
from hasnmp.snmp.backlog import Backlog
from hasnmp.snmp.kept import Kept
from hasnmp.snmp.notices import notification_varbinds
from hasnmp.snmp.notification import (
    ALWAYS,
    FLOORS,
    SNMP_TRAPS,
    Notification,
    Oid,
    encode_variables,
    enterprise_binding,
    rank,
)
from hasnmp.snmp.objects import Reader
from hasnmp.snmp.outlet import COUNTS, Figures, Outlet, Surroundings
from hasnmp.snmp.peer_engine import PeerEngine
from hasnmp.snmp.throttle import Throttle
from hasnmp.snmp.told import Told
from hasnmp.snmp.traps import InformOutlet, TrapOutlet
from hasnmp.snmp.usm import Engine
from hasnmp.snmp.wire_out import Sources

COLD_START = (*SNMP_TRAPS, 1)
WARM_START = (*SNMP_TRAPS, 2)
AUTHENTICATION_FAILURE = (*SNMP_TRAPS, 5)
SYNC_S = 1.0  # what a power cut may cost of the backlog
AUTHENTICATION_S = 10.0  # authenticationFailure is said at most this often
SUPPRESSED = "notify.suppressed"
NAME_SIZE = 32  # octets of snmpTargetAddrName

# Makes an outlet: (its name, its figures, what outlets share).
Factory = Callable[[str, Figures, Surroundings], Outlet]


def receiver_names(receivers: Sequence[Receiver]) -> list[str]:
    """A name for each, as "192.0.2.50:162/3/inform": the same wherever it stands in the file, 1..32 octets, unique."""
    given = [receiver.name for receiver in receivers]
    made = [f"{r.to}/{r.version}/{r.type}" for r in receivers]
    names: list[str] = []
    for receiver, full in zip(receivers, made, strict=True):
        if receiver.name:
            names.append(receiver.name)
            continue
        # Too long for the MIB (IPv6), or the same address again with another user: then by a digest.
        digest = hashlib.sha256(f"{full} {receiver.user}".encode()).hexdigest()[:8]
        short = f"{receiver.to[: NAME_SIZE - 12]}#{digest}"
        tries = [*([full] if made.count(full) == 1 else []), short, *(f"{short}{number}" for number in range(2, 100))]
        names.append(next(name for name in tries if len(name) <= NAME_SIZE and name not in (*names, *given)))
    return names


def counter_names(outlets: Iterable[str]) -> list[str]:
    """What Kept must keep for a notifier with these outlets."""
    return [SUPPRESSED, *(f"{name} {count}" for name in outlets for count in COUNTS)]


class Notifier:
    """start() and everything after it in the loop's thread.

    more: outlets beside the configured receivers, by name. make_reader: as the store's. ticks: sysUpTime now.
    own_event: makes an event that the agent itself says.
    """

    def __init__(
        self, config: Config, node: str, engine: Engine, kept: Kept, log: Any, make_reader: Callable[[], Reader],
        ticks: Callable[[], int], now_ns: Callable[[], int],
        own_event: Callable[[Kind, Severity, PartState, str], EventRow], more: dict[str, Factory] | None = None,
    ) -> None:  # fmt: skip
        self._config = config
        self._log = log
        self._make_reader = make_reader
        self._ticks = ticks
        self._own_event = own_event
        self._kept = kept
        self._counts = kept.part([SUPPRESSED])
        self.throttle = Throttle(config.snmp.throttle, time.monotonic())
        self._unauthentic_s = -AUTHENTICATION_S
        self._counted = 0  # of what the throttle kept back
        self.told = Told(Path(config.run_dir) / f"{node}.told")
        self.throttle.dropped = self.told.dropped
        self._timer: asyncio.TimerHandle | None = None
        self._sync: asyncio.TimerHandle | None = None
        self._syncing: asyncio.Future[None] | None = None

        self.receivers = dict(zip(receiver_names(config.snmp.notify), config.snmp.notify, strict=True))
        names = [*(name for name, receiver in self.receivers.items() if receiver.enabled), *(more or {})]
        self.outlets: dict[str, Outlet] = {}
        self._backlog: Backlog | None = None
        if not names:
            return
        self._backlog = Backlog(Path(config.state_dir) / f"snmp-backlog-{node}.log", names, self._backlog_failed)
        around = Surroundings(self._backlog, config.snmp.backlog, now_ns, self._say_lost, log)
        sources = Sources(config, node)
        users = {user.name: user for user in config.snmp.users}
        for name in names:
            figures = self.figures(name)
            try:
                if name not in self.receivers:
                    assert more is not None
                    self.outlets[name] = more[name](name, figures, around)
                    continue
                receiver = self.receivers[name]
                floor = FLOORS[receiver.min_severity]
                view = notify_view(config.snmp, receiver)
                if receiver.type == "inform":
                    peer = (
                        PeerEngine(users[receiver.user], engine.id, time.monotonic) if receiver.version == "3" else None
                    )
                    self.outlets[name] = InformOutlet(name, floor, view, figures, around, receiver, sources, peer)
                else:
                    self.outlets[name] = TrapOutlet(name, floor, view, figures, around, receiver, sources, engine)
            except (OSError, ValueError, KeyError) as error:
                # Everybody else is told all the same, and a console that polls sees what no trap tells it.
                self._log.error("notifications_unavailable", receiver=name, error=repr(error))

    def figures(self, name: str) -> Figures:
        return Figures(self._kept.part([f"{name} {count}" for count in COUNTS]))

    def suppressed(self) -> int:
        """How many notifications the throttle kept back: dropped, or replaced by a newer one about the same."""
        return self._counts[0] & 0xFFFFFFFF

    # ----------------------------------------------------------------------------------------------- its life

    def start(self, first: tuple[int, ...]) -> None:
        """Hand out what is left from before, then say `first`: coldStart or warmStart."""
        if self._backlog is None:
            return
        self._say_lost(0)  # and drop it: the first one that matters is not to be the slow one
        waiting = sorted(self._backlog.entries.values(), key=lambda n: n.number)
        self._backlog.forget()
        for outlet in self.outlets.values():
            outlet.restore(waiting)
            outlet.open()
        self.standard(first)
        for outlet in self.outlets.values():
            outlet.work()
        self._log.info("notifications_ready", receivers=len(self.outlets),
                       waiting=max((len(o.queue) for o in self.outlets.values()), default=0))  # fmt: skip

    def close(self) -> None:
        """Nothing more can be said; what nobody acknowledged stays in the backlog."""
        for timer in (self._timer, self._sync):
            if timer is not None:
                timer.cancel()
        for outlet in self.outlets.values():
            outlet.close()
        self.told.close()
        if self._backlog is not None:
            self._backlog.close()

    def _backlog_failed(self, error: OSError) -> None:
        self._log.error("backlog_unavailable", error=str(error), next="what waits is kept in memory only")

    # ------------------------------------------------------------------------------------------------ telling

    def event(self, event: EventRow) -> None:
        """An event, which the throttle may hold back. The number of one of the engine's is noted."""
        if self._backlog is not None:
            self._pass_on(self.throttle.offer(event, time.monotonic()))
        self.note(event.id, event.wall_ms)

    def note(self, number: int, at_ms: int = 0) -> None:
        """Events up to this number, whose date is at_ms, have been taken up."""
        told = self.told
        if number <= told.last:
            number, at_ms = told.last, told.at_ms
        told.note(number, self.throttle.held(), self.throttle.dropped, at_ms)

    def begin_anew(self) -> None:
        """The engine's numbers begin anew, or are of no concern: none has been taken up."""
        self.told.note(0, (), self.throttle.dropped)

    def standard(self, oid: tuple[int, ...], urgency: int = ALWAYS) -> None:
        """One of SNMPv2-MIB's own notifications: it passes the throttle."""
        self._put(Notification(0, oid, self._ticks(), enterprise_binding(), urgency), [oid])

    def unauthentic(self, host: str) -> None:
        """A request from there was not authentic. One notification for many: a flood must not become another one."""
        now_s = time.monotonic()
        if self._config.snmp.authentication_traps and now_s - self._unauthentic_s >= AUTHENTICATION_S:
            self._unauthentic_s = now_s
            self._log.warning("request_not_authentic", address=host, next=f"none is told of for {AUTHENTICATION_S:g} s")
            self.standard(AUTHENTICATION_FAILURE, FLOORS["warning"])

    def _say_lost(self, count: int) -> Notification:
        text = (
            f"{count} notifications for this receiver were dropped while it was away, the oldest of more than "
            f"{self._config.snmp.backlog}; the event table has the events"
        )
        return self._encode(self._own_event(Kind.EVENTS_LOST, Severity.WARNING, PartState.UP, text))[0]

    def _encode(self, event: EventRow) -> tuple[Notification, list[Oid]]:
        """A notification, and notification.names(), which are at hand here."""
        oid, variables = notification_varbinds(event, self._make_reader(), self._config.cluster)
        names = [oid, *(name for name, _, _ in variables)]
        return Notification(0, oid, self._ticks(), encode_variables(variables), rank(event)), names

    def _put(self, notification: Notification, names: list[Oid]) -> None:
        backlog = self._backlog
        if backlog is None:
            return
        numbered = backlog.add(notification)
        for outlet in self.outlets.values():
            outlet.put(numbered, names)
        waiting = sum(len(outlet.queue) for outlet in self.outlets.values())
        if backlog.wants_compaction(waiting):
            live = {n.number: n for outlet in self.outlets.values() for n in outlet.live()}
            write = backlog.begin_compaction(live[number] for number in sorted(live))
            writing = asyncio.get_running_loop().run_in_executor(None, write)
            writing.add_done_callback(
                lambda done: backlog.end_compaction(not done.cancelled() and not done.exception() and done.result())
            )
        if self._sync is None:
            self._sync = asyncio.get_running_loop().call_later(SYNC_S, self._start_sync)

    def _start_sync(self) -> None:
        loop = asyncio.get_running_loop()
        self._sync = None
        if self._syncing is not None and not self._syncing.done():
            self._sync = loop.call_later(SYNC_S, self._start_sync)  # a slow disk: one at a time
        elif self._backlog is not None and self._backlog.dirty:
            self._syncing = loop.run_in_executor(None, self._backlog.sync)

    def _pass_on(self, events: list[EventRow]) -> None:
        """Send what the throttle lets through, and come back when it may let through more."""
        for event in events:
            try:
                self._put(*self._encode(event))
            except Exception as error:  # one event that can't be said must not cost the agent its life
                self._log.error("notification_failed", kind=event.kind, error=repr(error))
        throttle = self.throttle
        kept_back = throttle.superseded + throttle.dropped_ever
        self._counts[0] += kept_back - self._counted
        self._counted = kept_back
        if throttle.may_tell():
            text = f"{throttle.dropped} notifications were held back; the event table has them"
            throttle.dropped = 0
            lost = self._own_event(Kind.EVENTS_LOST, Severity.WARNING, PartState.UP, text)
            self._pass_on(throttle.offer(lost, time.monotonic()))
            return
        wait_s = throttle.next_s(time.monotonic())
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if wait_s is not None:
            self._timer = asyncio.get_running_loop().call_later(wait_s + 0.001, self._release)

    def _release(self) -> None:
        self._timer = None
        self._pass_on(self.throttle.due(time.monotonic()))
        self.note(0)
