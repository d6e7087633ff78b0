"""The lease disk gone, frozen or slow together with a lost peer. Alone: test_failsafe.py."""

from __future__ import annotations

import time

import pytest

from hasnmp.model import Kind
from tests.cluster.conftest import Scene, lasted
from tests.cluster.lab import wait_for
from tests.cluster.nemesis.history import told_of
from tests.cluster.pair import boot_ns

FAULTS = ["gone", "frozen"]


def test_a_slow_disk_within_its_bound_moves_nothing_and_a_failover_still_works(scene: Scene) -> None:
    pair = scene.pair
    slow_ms = pair.timing.io_timeout_ms // 6  # a claim is a write and some reads, one after the other
    for node in ("a", "b"):
        pair.lab.disk(node, f"slow {slow_ms}")
    scene.hold(3)
    scene.nothing_moved(pair.lab.disk("a", f"slow {slow_ms}") - 3_000_000_000)
    assert not pair.events("a", scene.begun_ns, Kind.ARBITER_LOST)
    fault_ns = pair.lab["a"].power_off()
    scene.back("b", fault_ns, pair.timing.takeover_ms() + pair.timing.io_timeout_ms)


def test_all_links_cut_with_a_slow_disk(scene: Scene) -> None:
    pair = scene.pair
    for node in ("a", "b"):
        pair.lab.disk(node, f"slow {pair.timing.io_timeout_ms // 6}")
    pair.lab.separate("a", "b")
    scene.hold(2 * pair.timing.lease_ms / 1000)
    scene.never_two()
    wait_for(scene.watch.node, 2, lambda: f"one side serves\n{pair.why()}")


@pytest.mark.parametrize("fault", FAULTS)
def test_all_links_cut_and_the_owner_has_no_disk(scene: Scene, fault: str) -> None:
    """The owner can't prove anything: it has ended before the other, which can, starts."""
    pair = scene.pair
    pair.lab.disk("a", fault)
    fault_ns = pair.lab.separate("a", "b")
    scene.back("b", fault_ns, pair.timing.takeover_ms())


@pytest.mark.parametrize("fault", FAULTS)
def test_all_links_cut_and_nobody_has_a_disk(scene: Scene, fault: str) -> None:
    """Nobody may serve; once one of the two is back, one does."""
    pair, begun_ns = scene.pair, time.monotonic_ns()
    for node in ("a", "b"):
        pair.lab.disk(node, fault)
    pair.lab.separate("a", "b")
    cut_ns = time.monotonic_ns()  # until here a promise may still have got through
    scene.watch.wait_node("", pair.timing.dead_after_ms / 1000 + 1)
    scene.hold(1.5)
    assert not scene.watch.node(), "somebody serves without any proof"
    silent_ns = max(x.at_ns for x in scene.watch.routed())
    with open(pair.lab["a"].state / "hasnmpd.log") as log:
        told = told_of("a", log, "web", 0)
    ahead_ns = min(-time.monotonic_ns() + boot_ns() for _ in range(5))
    assert silent_ns + ahead_ns <= max(lease.until_ns for lease in told), "past its lease"
    # Whoever misses an answer for as long as an interval claims the disk, for longer: nobody had a reason to.
    in_time = (silent_ns - cut_ns) / 1e6 <= pair.timing.dead_after_ms * 1.01
    lasted(in_time, begun_ns, pair.timing.interval_ms, pair.why)
    pair.lab.heal()


@pytest.mark.parametrize("fault", FAULTS)
def test_the_owner_dies_while_the_disk_is_lost(scene: Scene, fault: str) -> None:
    """Silence alone never gives a group: the other waits until the disk is back."""
    pair = scene.pair
    pair.lab.disk("b", fault)
    pair.wait_event("b", Kind.ARBITER_LOST, scene.begun_ns, 10)
    pair.lab["a"].power_off()
    scene.hold(pair.timing.arbiter_takeover_ms() / 1000)
    assert not scene.watch.node(), "taken without a proof"
    back_ns = pair.lab.disk("b", "ok")
    scene.back("b", back_ns, pair.timing.arbiter_takeover_ms() + 2000)
