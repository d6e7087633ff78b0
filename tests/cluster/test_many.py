"""Many groups on a slow lease disk: a peer's death must not make them wait for each other's claims."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from hasnmp.model import EventRow, Kind
from tests.cluster.bounds import within
from tests.cluster.lab import wait_for
from tests.cluster.pair import VIP, Group, Pair, boot_ns
from tests.cluster.watch import Watch, spent_ms

pytestmark = pytest.mark.alone
GROUPS = tuple(Group(f"g{number:02}", f"192.0.2.{100 + number}", worker=False) for number in range(24))
SLOW_MS = 20
EACH_MS = 60  # that this machine's processors may need to start one group's program while they start the others'


@pytest.fixture
def pair() -> Iterator[Pair]:
    with Pair(GROUPS, log_level="info") as made:
        made.begin(40)
        yield made


def test_a_slow_disk_costs_24_groups_what_it_costs_one(pair: Pair) -> None:
    for node in ("a", "b"):
        pair.lab.disk(node, f"slow {SLOW_MS}")
    with Watch(pair.lab, VIP) as watch:
        time.sleep(2)  # the disk is slow for good before the fault
        begun_ns, fault_ns = boot_ns(), pair.lab["a"].power_off()
        first_ms = watch.back_ms(fault_ns, "b")

        def taken() -> list[EventRow]:
            rows = pair.events("b", begun_ns, Kind.TAKEOVER_COMPLETED)
            return rows if len(rows) == len(GROUPS) else []

        last_ns = max(row.ns for row in wait_for(taken, 20, pair.why, 0.2)) - begun_ns
        last_ms = spent_ms(fault_ns, fault_ns + last_ns)
        print(f"first group after {first_ms:.0f} ms, all {len(GROUPS)} after {last_ms:.0f} ms")
        assert watch.doubles() == []
    within(last_ms, pair.timing.takeover_ms() + EACH_MS * len(GROUPS), pair.why)
