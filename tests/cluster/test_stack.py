"""SIGKILL and SIGSTOP of every process of a node's stack at once, and of each alone."""

from __future__ import annotations

import signal
import time

import pytest

from hasnmp.model import Kind
from tests.cluster.bounds import within
from tests.cluster.conftest import Scene
from tests.cluster.lab import wait_for
from tests.cluster.pair import ROLES

ALONE = tuple(ROLES.values())
STOPPED_S = 5.0


def whole(scene: Scene, node: str) -> list[int]:
    """The stack's processes, all of them there, and one of each."""
    # A process that was just forked, and is to be another program in a moment, bears the guardian's name until then.
    wait_for(lambda: all(len(pids) == 1 for pids in scene.pair.stack(node).values()), 2, lambda: scene.pair.stack(node))
    return scene.pair.pids(node)


def is_whole_again(scene: Scene, node: str, but: list[int]) -> None:
    """Every process of the stack lives, none of them one of these, and engine and agent answer."""

    def look() -> bool:
        stack = scene.pair.stack(node)
        return all(len(pids) == 1 and pids[0] not in but for pids in stack.values())

    wait_for(look, 10, lambda: f"{scene.pair.stack(node)} without {but}\n{scene.pair.why()}")
    wait_for(lambda: scene.pair.view(node), 5, scene.pair.why)
    wait_for(lambda: "haNodeName.0 " + node in scene.pair.snmp("snmpget", node, "haNodeName.0", check=False), 10,
             "the agent answers")  # fmt: skip


def served_again(scene: Scene, fault_ns: int) -> None:
    """After a fault that ends the group on a: one of the nodes serves again within the bound, whichever was first.

    Its programs may go on until the end of the lease that a had, so what is answered after that is of the next one.
    """
    bound_ms, lease_ms = scene.pair.timing.takeover_ms(), scene.pair.timing.dead_after_ms * 1.01
    lapsed_ns = fault_ns + int(lease_ms * 1e6)
    wait_for(
        lambda: scene.watch.first(lapsed_ns),
        5 + (bound_ms + lease_ms) / 1000,
        lambda: f"nobody serves\n{scene.pair.why()}",
    )
    outage_ms = scene.watch.outage_ms(fault_ns)
    print(f"outage {outage_ms:.0f} ms, bound {bound_ms:.0f} ms, then {scene.watch.node()} serves")
    within(outage_ms, bound_ms, scene.pair.why)


def test_kill_of_the_whole_stack_of_the_primary(scene: Scene) -> None:
    pids = whole(scene, "a")
    fault_ns = scene.pair.lab["a"].signal(signal.SIGKILL, pids)
    served_again(scene, fault_ns)
    is_whole_again(scene, "a", pids)


def test_kill_of_the_whole_stack_of_the_standby(scene: Scene) -> None:
    pids = whole(scene, "b")
    fault_ns = scene.pair.lab["b"].signal(signal.SIGKILL, pids)
    is_whole_again(scene, "b", pids)
    scene.pair.wait_steady()
    scene.nothing_moved(fault_ns)


def test_stop_of_the_whole_stack_of_the_primary(scene: Scene) -> None:
    pids = whole(scene, "a")
    fault_ns = scene.pair.lab["a"].signal(signal.SIGSTOP, pids)
    scene.back("b", fault_ns, scene.pair.timing.takeover_ms())
    scene.hold(STOPPED_S - (time.monotonic_ns() - fault_ns) / 1e9)
    resumed_ns = scene.pair.lab["a"].signal(signal.SIGCONT, pids)
    # The services of a were never told to stop: a frozen engine must not go on from an old decision.
    wait_for(lambda: not scene.pair.service_pids("a"), 2, lambda: f"a ends its programs\n{scene.pair.why()}")
    wait_for(lambda: scene.pair.view("a"), 5, scene.pair.why)
    scene.hold(1)
    assert {answer.node for answer in scene.watch.answers if answer.at_ns > resumed_ns} == {"b"}
    within(scene.watch.outage_ms(resumed_ns), 150, scene.pair.why)


def test_stop_of_the_whole_stack_of_the_standby(scene: Scene) -> None:
    pids = whole(scene, "b")
    fault_ns = scene.pair.lab["b"].signal(signal.SIGSTOP, pids)
    scene.hold(STOPPED_S)
    scene.pair.lab["b"].signal(signal.SIGCONT, pids)
    scene.pair.wait_steady()
    scene.nothing_moved(fault_ns)


def test_kill_of_the_guardian_alone(scene: Scene) -> None:
    pids = whole(scene, "a")
    fault_ns = scene.pair.lab["a"].signal(signal.SIGKILL, scene.pair.pids("a", "guardian"))
    served_again(scene, fault_ns)
    is_whole_again(scene, "a", pids)


@pytest.mark.parametrize("role", ["engine", "lease", "snmp", "store"])
def test_kill_of_one_process_alone_costs_the_clients_nothing(scene: Scene, role: str) -> None:
    whole(scene, "a")
    pids = scene.pair.pids("a", role)
    fault_ns = scene.pair.lab["a"].signal(signal.SIGKILL, pids)
    is_whole_again(scene, "a", pids)
    scene.hold(scene.pair.timing.dead_after_ms / 1000)
    scene.pair.wait_steady()
    scene.nothing_moved(fault_ns)


def test_stop_of_the_guardian_alone(scene: Scene) -> None:
    whole(scene, "a")
    pids = scene.pair.pids("a", "guardian")
    fault_ns = scene.pair.lab["a"].signal(signal.SIGSTOP, pids)
    served_again(scene, fault_ns)
    scene.watch.wait_node("b", 2, scene.pair.why)
    scene.hold(STOPPED_S - (time.monotonic_ns() - fault_ns) / 1e9)
    resumed_ns = scene.pair.lab["a"].signal(signal.SIGCONT, pids)
    wait_for(lambda: not scene.pair.service_pids("a"), 2, lambda: f"a ends its programs\n{scene.pair.why()}")
    scene.hold(1)
    assert {answer.node for answer in scene.watch.answers if answer.at_ns > resumed_ns} == {"b"}


def test_stop_of_the_engine_alone(scene: Scene) -> None:
    whole(scene, "a")
    pids = scene.pair.pids("a", "engine")
    scene.hold(5.1)  # only of an engine that has come up for good is it asked whether it moves
    fault_ns = scene.pair.lab["a"].signal(signal.SIGSTOP, pids)
    # The guardian kills the frozen engine while the lease lasts, and the next one adopts the group.
    is_whole_again(scene, "a", pids)
    scene.hold(scene.pair.timing.dead_after_ms / 1000)
    scene.pair.wait_steady()
    scene.nothing_moved(fault_ns)


def test_stop_of_an_engine_that_is_young(scene: Scene) -> None:
    whole(scene, "a")
    pids = scene.pair.pids("a", "engine")
    scene.pair.lab["a"].signal(signal.SIGKILL, pids)
    wait_for(lambda: scene.pair.pids("a", "engine") not in ([], pids), 5, scene.pair.why)
    wait_for(lambda: scene.pair.view("a"), 5, scene.pair.why)
    scene.hold(2.5)  # an engine that has just begun goes by the lease disk, which gives a longer lease
    pids = scene.pair.pids("a", "engine")
    fault_ns = scene.pair.lab["a"].signal(signal.SIGSTOP, pids)
    # The guardian kills it before the lease ends, and all of the group, and starts a new engine: either node may be the next owner.
    served_again(scene, fault_ns)
    is_whole_again(scene, "a", pids)


@pytest.mark.parametrize("role", ["lease", "snmp", "store"])
def test_stop_of_one_other_process_costs_the_clients_nothing(scene: Scene, role: str) -> None:
    whole(scene, "a")
    pids = scene.pair.pids("a", role)
    fault_ns = scene.pair.lab["a"].signal(signal.SIGSTOP, pids)
    if role == "lease":
        scene.pair.wait_event("a", Kind.ARBITER_LOST, scene.begun_ns, 8)
    else:
        scene.hold(STOPPED_S)
    scene.nothing_moved(fault_ns)
    scene.pair.lab["a"].signal(signal.SIGCONT, pids)
    scene.pair.wait_steady()
    scene.nothing_moved(fault_ns)
