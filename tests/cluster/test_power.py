"""Machines that lose power, come back, and start."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from hasnmp.model import Kind, NodeState
from tests.cluster.bounds import within
from tests.cluster.conftest import Scene
from tests.cluster.lab import wait_for
from tests.cluster.pair import VIP, Pair
from tests.cluster.watch import Watch


def test_power_off_of_the_primary_moves_the_group_and_traps_tell_it(scene: Scene) -> None:
    pair = scene.pair
    with pair.trap_receiver() as traps:
        fault_ns = pair.lab["a"].power_off()
        scene.back("b", fault_ns, pair.timing.takeover_ms())
        for kind, name in ((Kind.NODE_LOST, "haNodeLost"), (Kind.TAKEOVER_COMPLETED, "haTakeoverCompleted")):
            event = pair.wait_event("b", kind, scene.begun_ns)
            trap = pair.wait_trap(traps, f"haEventId.{event.id} {event.id}\t")
            assert f"snmpTrapOID.0 {name}\t" in trap and event.message in trap
    # It comes back as a standby that waits for the administrator's word.
    pair.lab["a"].power_on()
    pair.start("a")
    wait_for(lambda: (row := pair.rows("a", "nodes").get("a")) and row.recovering, 10, pair.why)
    assert pair.owners()["web"] == {"b"}
    pair.hasnmp("a", "recover")
    wait_for(lambda: (row := pair.rows("b", "nodes").get("a")) and not row.recovering, 5, pair.why)
    assert pair.owners()["web"] == {"b"}, "failback is manual"


def test_power_off_of_the_standby_moves_nothing(scene: Scene) -> None:
    fault_ns = scene.pair.lab["b"].power_off()
    scene.pair.wait_event("a", Kind.NODE_LOST, scene.begun_ns, 5)
    scene.hold(scene.pair.timing.lease_ms / 1000 + 1)  # longer than any lease that was there at the fault
    scene.nothing_moved(fault_ns)


def test_a_second_failure_right_after_the_first(scene: Scene) -> None:
    pair = scene.pair
    fault_ns = pair.lab["a"].power_off()
    scene.back("b", fault_ns, pair.timing.takeover_ms())
    pair.lab["a"].power_on()
    pair.start("a")
    wait_for(lambda: (row := pair.rows("b", "nodes").get("a")) and row.state is NodeState.UP, 10, pair.why)
    pair.hasnmp("a", "recover")
    wait_for(lambda: (row := pair.rows("b", "nodes").get("a")) and not row.recovering, 5, pair.why)
    fault_ns = pair.lab["b"].power_off()
    # b's lease had gone over to the arbiter while a was away, and may still rest on it.
    scene.back("a", fault_ns, pair.timing.arbiter_takeover_ms())


def test_both_powered_off_and_the_last_owner_back_alone(scene: Scene) -> None:
    pair = scene.pair
    for node in ("b", "a"):
        pair.lab[node].power_off()
    scene.watch.wait_node("")
    pair.lab["a"].power_on()
    begun_ns = pair.start("a")
    scene.alone("a", begun_ns)
    assert not pair.rows("a", "nodes")["a"].recovering, "nothing was taken from it"


def test_both_powered_off_and_the_other_back_alone(scene: Scene) -> None:
    pair = scene.pair
    for node in ("a", "b"):
        pair.lab[node].power_off()
    pair.lab["b"].power_on()
    begun_ns = pair.start("b")
    scene.alone("b", begun_ns)
    # The former owner comes back while b runs the group: it must not touch it.
    pair.lab["a"].power_on()
    pair.start("a")
    since_ns = time.monotonic_ns()
    wait_for(lambda: (row := pair.rows("a", "nodes").get("b")) and row.state is NodeState.UP, 10, pair.why)
    scene.hold(2)
    assert pair.owners()["web"] == {"b"}
    within(scene.watch.outage_ms(since_ns), 150, pair.why)


def test_both_powered_off_and_both_back(scene: Scene) -> None:
    pair = scene.pair
    for node in ("a", "b"):
        pair.lab[node].power_off()
    for node in ("a", "b"):
        pair.lab[node].power_on()
    begun_ns = pair.start()
    took_ms = pair.started(scene.watch, begun_ns)
    assert sum(map(len, pair.owners().values())) <= 1
    within(took_ms, pair.timing.alone_ms(), pair.why)


@pytest.fixture
def fresh() -> Iterator[Pair]:
    with Pair() as made:
        yield made


def test_both_nodes_started_for_the_first_time_at_once(fresh: Pair) -> None:
    with Watch(fresh.lab, VIP) as watch:
        begun_ns = fresh.start()
        # Both hear each other soon, which ends startup_wait; the group starts at its home.
        took_ms = fresh.started(watch, begun_ns, "a")
        fresh.wait_steady()
        assert watch.doubles() == []
        within(took_ms, fresh.timing.alone_ms(), fresh.why)


def test_one_node_started_alone_serves_and_the_other_joins(fresh: Pair) -> None:
    with Watch(fresh.lab, VIP) as watch:
        begun_ns = fresh.start("b")
        took_ms = fresh.started(watch, begun_ns, "b")
        fresh.start("a")
        fresh.wait_steady(homes={"web": "b"})
        assert {answer.node for answer in watch.answers} == {"b"}
        first = watch.first(begun_ns)
        assert first
        within(watch.outage_ms(first.at_ns), 150, fresh.why)
        within(took_ms, fresh.timing.alone_ms(), fresh.why)
