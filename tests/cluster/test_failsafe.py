"""The lease disk fails in every way while the nodes hear each other: nothing moves, nothing stops, and an alarm says why.

Each fault strikes both nodes; with it standing the engines of owner and standby are killed, one after the other; then it is
healed on one node, so that it stands on the other alone, and at last on that one too. The client sees nothing of all that.
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hasnmp.arbiters import admin
from hasnmp.model import AlarmRow, Kind, NodeState, Proof, Role
from hasnmp.wire import SLOT_SIZE, Slot
from tests.cluster.bounds import within
from tests.cluster.conftest import Scene
from tests.cluster.control import overdue_ms
from tests.cluster.lab import ETC, cluster_name, wait_for
from tests.cluster.pair import NODES, Pair, boot_ns, planned_ms

# A resting disk is looked at every 2 s, a failing one every 0.5 s, and two failures in a row are an alarm. An i/o that does
# not come back is given up after io_timeout_ms.
ALARM_S = 2 + 0.5 + 2 * 0.3 + 1
CLEAR_S = 0.5 + 0.3 + 1
ENGINE_S = 3  # from the kill of an engine to the answer of the next on a busy machine


def spoilt(pair: Pair, change: Callable[[bytearray], None]) -> Path:
    """A copy of the lease disk with something done to it."""
    octets = bytearray((pair.lab.images / "lease.img").read_bytes())
    change(octets)
    path = pair.lab.images / "spoilt.img"
    path.write_bytes(octets)
    return path


def zeroed(pair: Pair) -> str:
    return f"image {spoilt(pair, lambda octets: octets.__setitem__(slice(None), bytes(len(octets))))}"


def corrupt_header(pair: Pair) -> str:
    def damage(octets: bytearray) -> None:
        for block in (0, 1):
            octets[block * SLOT_SIZE + 100] ^= 0x10

    return f"image {spoilt(pair, damage)}"


def exchanged(pair: Pair) -> str:
    path = pair.lab.images / "other.img"
    path.unlink(missing_ok=True)
    admin.init(str(path), cluster_name(pair.lab.name), tuple(g.name for g in pair.groups), NODES)
    return f"image {path}"


@dataclass(frozen=True)
class Fault:
    """mode: what lab.disk is told, or what makes it. says: words of the alarm, which name the cause and what to do."""

    mode: str | Callable[[Pair], str]
    says: tuple[str, ...]
    first: str  # where it is healed first: the other node then has it alone
    within_s: float = ALARM_S  # the alarm


FAULTS = {
    "pulled": Fault("pulled", ("No such file",), "a"),
    "gone": Fault("gone", ("Input/output error",), "b"),
    "frozen": Fault("frozen", ("the disk hangs",), "a"),
    "read-only": Fault("readonly", ("Read-only file system",), "b", 6 + ALARM_S),
    "slow": Fault("slow 10000", ("the disk hangs",), "b"),
    "corrupt slots": Fault(f"corrupt {2 * SLOT_SIZE}", ("slot of",), "a"),
    "corrupt header": Fault(corrupt_header, ("overwritten", "hasnmp arbiter init"), "b"),
    "zeroed": Fault(zeroed, ("overwritten", "hasnmp arbiter init"), "a"),
    "exchanged": Fault(exchanged, ("exchanged", "hasnmp arbiter init"), "b"),
}


def restart_engine(pair: Pair, node: str) -> None:
    """Kill it; the guardian starts another, which has taken over what runs."""
    before = pair.pids(node, "engine")
    pair.lab[node].signal(signal.SIGKILL, before)
    wait_for(lambda: pair.pids(node, "engine") not in ([], before) and pair.view(node), ENGINE_S,
             lambda: f"a new engine on {node}\n{pair.why()}")  # fmt: skip


def raised(pair: Pair, node: str) -> AlarmRow | None:
    """The alarm about the arbiter that stands on a node; None: none stands."""
    rows = pair.rows(node, "alarms").values()
    return next((row for row in rows if row.kind in (Kind.ARBITER_LOST, Kind.ARBITER_MISMATCH)), None)


def alarm(pair: Pair, node: str) -> str:
    row = raised(pair, node)
    return row.message if row else ""


@pytest.mark.parametrize("name", FAULTS)
def test_a_failing_lease_disk_moves_and_stops_nothing(scene: Scene, name: str) -> None:
    pair, fault = scene.pair, FAULTS[name]
    mode = fault.mode if isinstance(fault.mode, str) else fault.mode(pair)
    begun_ns = boot_ns()
    fault_ns = pair.lab.disk("a", mode)
    pair.lab.disk("b", mode)
    alarmed_ms, cleared_ms = [], []
    for node in NODES:
        row = wait_for(lambda n=node: raised(pair, n), fault.within_s, lambda n=node: f"an alarm on {n}\n{pair.why()}")
        alarmed_ms.append(overdue_ms(begun_ns, row.since_ns))
        print(f"{node}: {alarm(pair, node)}")
        assert all(words in alarm(pair, node) for words in fault.says)
    for node in NODES:
        restart_engine(pair, node)
    scene.hold(pair.timing.dead_after_ms / 1000)
    for node in NODES:
        # An engine that died before its alarm was on the disk leaves it to the next one to find the fault again.
        wait_for(lambda n=node: alarm(pair, n), fault.within_s, lambda n=node: f"the alarm on {n}\n{pair.why()}")
    scene.nothing_moved(fault_ns)
    healed = [fault.first, "b" if fault.first == "a" else "a"]
    for node in healed:
        healed_ns = boot_ns()
        pair.lab.disk(node, "ok")
        cleared = pair.wait_event(node, Kind.ARBITER_RESTORED, healed_ns, CLEAR_S)
        cleared_ms.append(overdue_ms(healed_ns, cleared.ns))
        wait_for(lambda n=node: not alarm(pair, n), CLEAR_S, lambda n=node: f"no alarm on {n}\n{pair.why()}")
        if node == healed[0]:
            assert alarm(pair, healed[1]), "its alarm ended while the fault stands"
    assert pair.events("a", begun_ns, Kind.ARBITER_RESTORED) and pair.events("b", begun_ns, Kind.ARBITER_RESTORED)
    scene.nothing_moved(fault_ns)
    assert not pair.events("b", begun_ns, Kind.FAILOVER_STARTED, Kind.TAKEOVER_COMPLETED)
    within(max(alarmed_ms), fault.within_s * 1000, lambda: f"until the alarm\n{pair.why()}")
    within(max(cleared_ms), CLEAR_S * 1000, lambda: f"until its end\n{pair.why()}")


def test_a_lease_disk_restored_from_yesterday_is_brought_up_to_date(scene: Scene) -> None:
    """Every record on it is older than what the nodes wrote since: each writes its own anew, above the old number."""
    pair = scene.pair
    fault_ns = pair.lab.separate("a", "b")  # so that the owner writes its record
    wait_for(lambda: pair.rows("a", "groups")["web"].proof is Proof.ARBITER, 5, pair.why)
    pair.lab.heal()
    pair.wait_steady()
    old = pair.lab.images / "yesterday.img"
    shutil.copyfile(pair.lab.images / "first.img", old)
    new = slot(pair.lab.images / "lease.img", "a")
    assert slot(old, "a") < new
    for node in NODES:
        pair.lab.disk(node, f"image {old}")
    wait_for(lambda: slot(old, "a") > new, 3, lambda: f"a writes its record anew, above {new}\n{pair.why()}")
    scene.hold(pair.timing.dead_after_ms / 1000)
    scene.nothing_moved(fault_ns)


def slot(image: Path, node: str) -> int:
    """The sequence number of the node's record of the group web."""
    found = admin.describe(str(image))["groups"]["web"][node]
    assert isinstance(found, Slot), found
    return found.seq


def able(pair: Pair) -> bool:
    """Do both nodes say that both are up, as whoever restarts them one by one looks for: one has the group, one could?"""
    said: list[list[Any]] = [sorted(pair.rows(node, "nodes").values(), key=lambda row: row.name) for node in NODES]
    here, there = ([(row.name, row.incarnation, row.state, row.role) for row in rows] for rows in said)
    roles = {role for _, _, _, role in here}
    return here == there and {x.state for x in said[0]} == {NodeState.UP} and roles == {Role.PRIMARY, Role.STANDBY}


def test_a_lost_disk_is_replaced_as_the_alarm_says(scene: Scene) -> None:
    """Another disk made anew, then hasnmpd restarted on the standby and on the owner: one move in order, and all is well."""
    pair = scene.pair
    fault_ns = pair.lab.disk("a", zeroed(pair))
    pair.lab.disk("b", f"image {pair.lab.images / 'spoilt.img'}")
    for node in NODES:
        pair.wait_event(node, Kind.ARBITER_LOST, scene.begun_ns, ALARM_S)
    print(pair.hasnmp("a", "arbiter", "init", "--config", f"{ETC}/hasnmp.yaml"))
    scene.hold(1)
    scene.nothing_moved(fault_ns)
    for node in ("b", "a"):
        pair.stop(node)
        pair.start(node)
        wait_for(lambda: able(pair), 15, pair.why)
    pair.wait_steady(homes={"web": "b"})
    # The machines stay with this disk: for the tests that follow it is theirs.
    shutil.copyfile(pair.lab.images / "spoilt.img", pair.lab.images / "lease.img")
    within(scene.watch.outage_ms(fault_ns), planned_ms(), pair.why)
