"""The throttle alone, with a clock of the test's own."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from hasnmp.model import Kind
from hasnmp.settings import Throttle as Limits
from hasnmp.snmp.throttle import Throttle
from tests.snmp.snmp_lab import an_event


def test_another_object_and_another_kind_do_not_wait() -> None:
    throttle = Throttle(Limits(1000, 600), 0)
    events = [an_event(1), an_event(2, group="other"), an_event(3, Kind.NODE_LOST)]
    assert [throttle.offer(event, 0.0) for event in events] == [[event] for event in events]
    assert throttle.next_s(0.0) is None


def test_the_newest_of_those_that_came_too_soon_is_sent_at_the_end_of_the_time() -> None:
    throttle = Throttle(Limits(1000, 600), 0)
    events = [an_event(number) for number in range(4)]
    assert [throttle.offer(event, 0.1 * at) for at, event in enumerate(events)] == [[events[0]], [], [], []]
    wait = throttle.next_s(0.4)
    assert wait is not None and abs(wait - 0.6) < 1e-9
    assert throttle.due(0.99) == [] and throttle.due(1.0) == [events[3]] and throttle.due(9.0) == []


@given(st.lists(st.tuples(st.booleans(), st.floats(0.001, 1.5)), min_size=1, max_size=30))
@settings(deadline=None, max_examples=200)
def test_however_an_alarm_and_its_clear_alternate_the_last_of_them_is_sent_last(
    steps: list[tuple[bool, float]],
) -> None:
    throttle = Throttle(Limits(1000, 600), 0)
    now, sent = 0.0, []
    for number, (raised, pause) in enumerate(steps):
        now += pause
        kind = Kind.NODE_LOST if raised else Kind.NODE_JOINED
        sent += throttle.offer(an_event(number, kind, alarm="node/beta"), now)
    while (wait := throttle.next_s(now)) is not None:
        now += wait + 0.001
        sent += throttle.due(now)
    assert sent[-1].id == len(steps) - 1
    assert [event.id for event in sent] == sorted(event.id for event in sent)


def test_beyond_the_minutes_number_they_are_counted_until_it_can_be_told() -> None:
    throttle = Throttle(Limits(0, 60), 0)
    sent = sum(len(throttle.offer(an_event(number), 0.0)) for number in range(100))
    assert (sent, throttle.dropped, throttle.may_tell()) == (60, 40, False)
    wait = throttle.next_s(0.0)
    assert wait is not None and 0.9 < wait < 1.2
    throttle.due(wait)
    assert throttle.may_tell()
    throttle.dropped = 0
    assert throttle.offer(an_event(101), wait) and throttle.next_s(wait) is None


def test_what_it_remembers_is_bounded() -> None:
    throttle = Throttle(Limits(1000, 10**6), 0)
    for number in range(5000):
        throttle.offer(an_event(number, group=f"g{number}"), number / 10)
    assert len(throttle._sent_s) < 1100
