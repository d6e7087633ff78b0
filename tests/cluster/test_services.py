"""Services that fail, groups that are moved by command, daemons that are stopped in order."""

from __future__ import annotations

import os
import signal
import time

import pytest

from hasnmp.model import Kind, Verb
from tests.cluster.bounds import within
from tests.cluster.conftest import Scene
from tests.cluster.lab import wait_for
from tests.cluster.pair import planned_ms


def kill_service(scene: Scene, node: str) -> int:
    pids = wait_for(lambda: scene.pair.service_pids(node), 5, "the service runs")
    return scene.pair.lab[node].signal(signal.SIGKILL, pids)


def test_a_killed_service_is_restarted_in_place_and_then_fails_over(scene: Scene) -> None:
    pair = scene.pair
    restarts = pair.groups[0].restart
    for count in range(1, restarts + 1):
        begun_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        fault_ns = kill_service(scene, "a")
        took_ms = scene.watch.back_ms(fault_ns, "a")
        print(f"restarted in place after {took_ms:.0f} ms")
        pair.wait_event("a", Kind.SERVICE_RESTARTED, begun_ns)
        assert pair.rows("a", "services")["web-echo"].restarts == count
        within(took_ms, 1000, pair.why)
    assert {answer.node for answer in scene.watch.answers} == {"a"}
    fault_ns = kill_service(scene, "a")
    took_ms = scene.watch.back_ms(fault_ns, "b")
    print(f"failed over after {took_ms:.0f} ms")
    pair.wait_event("a", Kind.SERVICE_FAILED, scene.begun_ns)
    pair.wait_event("b", Kind.TAKEOVER_COMPLETED, scene.begun_ns)
    assert pair.rows("b", "groups")["web"].failover_count >= 1
    within(took_ms, 1500, pair.why)


def test_planned_failover_by_snmpset_there_and_back(scene: Scene) -> None:
    pair = scene.pair
    for source, target in (("a", "b"), ("b", "a")):
        asked_ns = time.monotonic_ns()
        answer = pair.snmp(
            "snmpset", source, 'haGroupAction."web"', "i", "failover", 'haGroupActionTarget."web"', "s", target
        )
        assert "failover" in answer
        scene.watch.wait_node(target, 10, pair.why)
        outage_ms = scene.watch.outage_ms(asked_ns)
        print(f"{source} -> {target}: nobody answered for {outage_ms:.0f} ms")
        scene.wait_owner(target)
        pair.wait_snmp(source, 'haGroupOwner."web"', target)  # the old owner's agent names the new one
        command = max(pair.rows(source, "commands").values(), key=lambda row: row.id)
        pair.wait_snmp(source, f"haCommandState.{command.id}", "done")
        assert command.verb is Verb.FAILOVER and command.to == target and "noc" in command.requester, command
        within(outage_ms, planned_ms(), pair.why)


def test_a_read_only_user_can_not_move_it(scene: Scene) -> None:
    watch_user = ("-v3", "-u", "watch", "-l", "authNoPriv", "-a", "SHA-256", "-A", "watching-word")
    since_ns = time.monotonic_ns()
    refused = scene.pair.snmp("snmpset", "a", 'haGroupAction."web"', "i", "failover", check=False, options=watch_user)
    assert "noAccess" in refused or "authorizationError" in refused, refused
    assert "running" in scene.pair.snmp("snmpget", "a", 'haGroupState."web"', options=watch_user)
    scene.hold(0.5)
    scene.nothing_moved(since_ns)


@pytest.mark.parametrize("how", ["plain", "repeated"])
def test_planned_failover_by_the_command_line(scene: Scene, how: str) -> None:
    pair = scene.pair
    moves = [("a", "b"), ("b", "a")] * (3 if how == "repeated" else 1)
    for source, target in moves:
        asked_ns = time.monotonic_ns()
        pair.hasnmp(source, "failover", "web", "--to", target)
        scene.watch.wait_node(target, 5, pair.why)
        outage_ms = scene.watch.outage_ms(asked_ns)
        print(f"{source} -> {target}: nobody answered for {outage_ms:.0f} ms")
        within(outage_ms, planned_ms(), pair.why)


def test_a_clean_stop_moves_the_groups_away_and_nobody_needs_to_recover(scene: Scene) -> None:
    pair = scene.pair
    asked_ns = pair.stop("a")
    scene.watch.wait_node("b", 2, pair.why)
    outage_ms = scene.watch.outage_ms(asked_ns)
    print(f"nobody answered for {outage_ms:.0f} ms")
    assert not pair.service_pids("a")
    pair.start("a")
    pair.wait_steady(homes={"web": "b"})
    assert not pair.rows("a", "nodes")["a"].recovering
    within(outage_ms, planned_ms(), pair.why)


def test_a_clean_stop_of_the_standby_moves_nothing(scene: Scene) -> None:
    since_ns = scene.pair.stop("b")
    scene.hold(scene.pair.timing.lease_ms / 1000 + 1)
    scene.nothing_moved(since_ns)
    scene.pair.start("b")
    scene.pair.wait_steady()
    scene.nothing_moved(since_ns)


def test_a_clean_stop_of_both_and_the_last_one_back_alone(scene: Scene) -> None:
    pair = scene.pair
    pair.stop("b")
    pair.stop("a")
    scene.watch.wait_node("")
    begun_ns = pair.start("a")
    scene.alone("a", begun_ns)


def test_a_node_in_need_of_recovery_takes_nothing_until_it_was_told(scene: Scene) -> None:
    pair = scene.pair
    pair.lab["a"].power_off()
    scene.watch.wait_node("b", 10, pair.why)
    pair.lab["a"].power_on()
    pair.start("a")
    pair.wait_event("a", Kind.RECOVERY_NEEDED, scene.begun_ns, 10)
    refused = pair.hasnmp("b", "failover", "web", "--to", "a", check=False)
    assert "TARGET_RECOVERING" in refused, refused
    assert "recover" in pair.hasnmp("a", "status")
    # Its partner dies: a node that may not take anything leaves the group where it is.
    pair.lab["b"].power_off()
    scene.hold(pair.timing.arbiter_takeover_ms() / 1000 + 1)
    assert not scene.watch.node(), "a recovering node has taken the group"
    pair.hasnmp("a", "recover")
    scene.watch.wait_node("a", 10, pair.why)


def test_standby_drains_a_node_and_online_takes_it_back(scene: Scene) -> None:
    pair = scene.pair
    pair.hasnmp("a", "standby")
    scene.watch.wait_node("b", 5, pair.why)
    refused = pair.hasnmp("b", "failover", "web", "--to", "a", check=False)
    assert "TARGET_STANDBY" in refused, refused
    pair.hasnmp("a", "online")
    wait_for(lambda: not pair.rows("b", "nodes")["a"].standby, 5, pair.why)


def test_inhibit_holds_an_automatic_failover_back(scene: Scene) -> None:
    pair = scene.pair
    pair.hasnmp("a", "inhibit", "web")
    wait_for(lambda: pair.rows("b", "groups")["web"].inhibited, 5, pair.why)
    pair.lab["a"].power_off()
    scene.hold(pair.timing.arbiter_takeover_ms() / 1000)
    assert not scene.watch.node(), "taken although it was inhibited"
    pair.hasnmp("b", "permit", "web")
    scene.watch.wait_node("b", 10, pair.why)


def test_a_stack_killed_while_a_service_is_stopped_by_a_signal(scene: Scene) -> None:
    """The program is frozen and its guardian killed: what goes on later must find no address to answer from."""
    pair = scene.pair
    frozen = pair.service_pids("a")
    pair.lab["a"].signal(signal.SIGSTOP, frozen)
    fault_ns = pair.lab["a"].signal(signal.SIGKILL, pair.pids("a"))
    scene.watch.back_ms(fault_ns, "b")
    for pid in frozen:
        try:
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            continue
    scene.hold(0.5)
    scene.never_two()
