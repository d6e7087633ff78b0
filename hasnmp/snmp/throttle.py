"""What holds a storm of notifications back, without ever leaving a receiver with the wrong last word. Pure.

The same kind about the same object is sent at most once within `same_within_ms`: what comes sooner waits for the end of
that time. What waits gives way to anything newer about its object: so an alarm, its clear and the alarm again within a
second end as an alarm, and never as the clear that had to wait. Beyond `per_minute` of all kinds notifications are dropped and counted; eventsLost then says how many, and the
event table has them all.
"""

from __future__ import annotations

from hasnmp import settings
from hasnmp.model import EventRow

_REMEMBERED = 1024

_Key = tuple[str, ...]


def _object(event: EventRow) -> _Key:
    """What the event is about; an alarm and its clear are about the same."""
    return (event.alarm,) if event.alarm else (event.kind, event.peer, event.link, event.group, event.service)


def _sort(event: EventRow) -> _Key:
    """What must not be sent too often."""
    return (event.kind, *_object(event))


class Throttle:
    """now_s: seconds of a monotonic clock, read by the caller."""

    def __init__(self, limits: settings.Throttle, now_s: float) -> None:
        self._window_s = limits.same_within_ms / 1000
        self._most = float(limits.per_minute)
        self._left = self._most  # a bucket that fills evenly, full at the start
        self._filled_s = now_s
        self._sent_s: dict[_Key, float] = {}
        self._held: dict[_Key, EventRow] = {}  # by object, in the order in which they came
        self.dropped = 0  # since the caller last told of it and set it to 0
        self.dropped_ever = 0
        self.superseded = 0  # gave way to something newer about the same; only ever rises

    def offer(self, event: EventRow, now_s: float) -> list[EventRow]:
        """What to send now, in order."""
        if self._held.pop(_object(event), None) is not None:
            self.superseded += 1
        self._held[_object(event)] = event
        return self.due(now_s)

    def due(self, now_s: float) -> list[EventRow]:
        """What waited long enough."""
        self._left = min(self._most, self._left + (now_s - self._filled_s) * self._most / 60)
        self._filled_s = now_s
        out = []
        for event in [e for e in self._held.values() if now_s - self._sent_s.get(_sort(e), -1e9) >= self._window_s]:
            del self._held[_object(event)]
            if self._left < 1:
                self.dropped += 1
                self.dropped_ever += 1
                continue
            self._left -= 1
            self._sent_s[_sort(event)] = now_s
            out.append(event)
        if len(self._sent_s) > _REMEMBERED:
            self._sent_s = {key: at for key, at in self._sent_s.items() if now_s - at < self._window_s}
        return out

    def next_s(self, now_s: float) -> float | None:
        """In how many seconds due() must be asked; None: nothing waits."""
        waits = [self._sent_s.get(_sort(event), now_s) + self._window_s - now_s for event in self._held.values()]
        if self.dropped:
            waits.append(max(0.0, 1 - self._left) * 60 / self._most + 0.01)  # when eventsLost itself may go
        return max(0.0, min(waits)) if waits else None

    def held(self) -> list[int]:
        """The numbers of the events that wait."""
        return sorted(event.id for event in self._held.values() if event.id)

    def may_tell(self) -> bool:
        """Were some dropped, and is there room again to say so?"""
        return self.dropped > 0 and self._left >= 1
