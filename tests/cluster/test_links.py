"""Links: cut alone, all cut, one way only; cables pulled, at the owner and at the standby."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from hasnmp.model import Kind
from hasnmp.snmp import ber
from tests.cluster.bounds import within
from tests.cluster.conftest import STALL_MS, Scene, lasted
from tests.cluster.control import stalled_ms
from tests.cluster.lab import ETC, HERE, wait_for
from tests.cluster.pair import LAN
from tests.snmp.snmp_lab import BULK, GET, a_pdu, binding, v2c


@pytest.mark.parametrize("link", ["lan", "cross"])
def test_one_link_cut_between_the_nodes_moves_nothing_and_raises_an_alarm(scene: Scene, link: str) -> None:
    pair = scene.pair
    fault_ns = pair.lab.separate("a", "b", link)
    for node in ("a", "b"):
        event = pair.wait_event(node, Kind.LINK_DOWN, scene.begun_ns)
        assert event.link == link and Kind.LINK_DOWN in pair.alarms(node)
    scene.hold(2)
    pair.lab.heal()
    for node in ("a", "b"):
        pair.wait_event(node, Kind.LINK_UP, scene.begun_ns)
        assert Kind.LINK_DOWN not in pair.alarms(node)
    scene.nothing_moved(fault_ns)
    assert not pair.events("b", scene.begun_ns, Kind.NODE_LOST, Kind.FAILOVER_STARTED)


@pytest.mark.parametrize("source", ["a", "b"])
@pytest.mark.parametrize("link", ["lan", "cross"])
def test_one_link_cut_one_way_moves_nothing(scene: Scene, source: str, link: str) -> None:
    pair = scene.pair
    fault_ns = pair.lab.block(source, "b" if source == "a" else "a", link)
    pair.wait_event("b" if source == "a" else "a", Kind.LINK_DOWN, scene.begun_ns)
    scene.hold(1)
    scene.nothing_moved(fault_ns)


@pytest.mark.parametrize("node", ["a", "b"])
def test_the_cross_cable_pulled_moves_nothing(scene: Scene, node: str) -> None:
    fault_ns = scene.pair.lab.pull(node, "cross")
    for one in ("a", "b"):
        scene.pair.wait_event(one, Kind.LINK_DOWN, scene.begun_ns)
    scene.hold(1)
    scene.nothing_moved(fault_ns)


def test_the_standbys_lan_cable_pulled_moves_nothing(scene: Scene) -> None:
    fault_ns = scene.pair.lab.pull("b", "lan")
    scene.pair.wait_event("a", Kind.LINK_DOWN, scene.begun_ns)
    scene.hold(2)
    scene.nothing_moved(fault_ns)


def test_the_owners_lan_cable_pulled_moves_the_group_to_where_the_clients_are(scene: Scene) -> None:
    """Losing the clients' network is a failure of the address, and the other node's same check is good."""
    fault_ns = scene.pair.lab.pull("a", "lan")
    # The next check, each second, of at most 500 ms; restarts of the address in place are of no use, and are tried.
    scene.back("b", fault_ns, 8000)


def test_all_links_cut_between_the_nodes_and_one_side_serves(scene: Scene) -> None:
    pair = scene.pair
    fault_ns = pair.lab.separate("a", "b")
    for node in ("a", "b"):
        pair.wait_event(node, Kind.NODE_LOST, scene.begun_ns)
    scene.hold(2 * pair.timing.lease_ms / 1000)
    # The owner claimed the arbiter before the promises ended: it keeps what it has, and the client saw nothing.
    scene.nothing_moved(fault_ns)
    scene.never_two()
    pair.lab.heal()
    pair.wait_steady()
    scene.nothing_moved(fault_ns)


@pytest.mark.parametrize("source", ["a", "b"])
def test_all_links_cut_one_way(scene: Scene, source: str) -> None:
    """What is heard only one way is no life sign: nobody may take it for one, and one side serves."""
    pair = scene.pair
    other = "b" if source == "a" else "a"
    fault_ns = 0
    for link in ("lan", "cross"):
        fault_ns = fault_ns or pair.lab.block(source, other, link)
        pair.lab.block(source, other, link)
    pair.wait_event(other, Kind.NODE_LOST, scene.begun_ns)
    scene.hold(2 * pair.timing.lease_ms / 1000)
    scene.nothing_moved(fault_ns)
    pair.lab.heal()
    pair.wait_steady()


def test_the_owner_cut_off_from_everybody_but_the_lease_disk(scene: Scene) -> None:
    """It serves nobody: by its address check it gives the group up, and the other takes it."""
    for link in ("lan", "cross"):
        scene.pair.lab.pull("a", link)
    wait_for(lambda: scene.watch.node() == "", 3)
    scene.hold(6)
    print(f"meanwhile {scene.watch.node() or 'nobody'} serves")
    scene.never_two()


def test_the_owner_cut_off_from_everything(scene: Scene) -> None:
    """No peer, no arbiter: its lease ends, its address with it, and the other serves."""
    pair = scene.pair
    fault_ns = pair.lab.disk("a", "gone")
    pair.lab.separate("a", "b")
    scene.back("b", fault_ns, pair.timing.takeover_ms() + pair.timing.dead_after_ms)


def test_a_link_that_comes_and_goes(scene: Scene) -> None:
    fault_ns = 0
    for _ in range(6):
        fault_ns = fault_ns or scene.pair.lab.separate("a", "b", "lan")
        scene.pair.lab.separate("a", "b", "lan")
        scene.hold(0.3)
        scene.pair.lab.heal()
        scene.hold(0.3)
    scene.nothing_moved(fault_ns)


# Datagrams that nobody vouches for: what each costs the agent differs by three orders of magnitude.
def strangers() -> dict[str, bytes]:
    probe = ber.encode(0x30, b"\2\1\3" + ber.encode(0x30, b"\2\1\1\2\2\5\xdc\4\1\4\2\1\3")
                       + ber.encode(4, ber.encode(0x30, b"\4\0\2\1\0\2\1\0\4\0\4\0\4\0"))
                       + ber.encode(0x30, b"\4\0\4\0" + a_pdu(GET, [])))  # fmt: skip
    return {
        "community": v2c(a_pdu(GET, [binding((1, 3, 6, 1, 2, 1, 1, 3, 0))]), b"wrong"),
        "large": v2c(a_pdu(BULK, [binding((1, 3))] * 6000, 0, 50), b"wrong")[:58000],
        "discovery": probe,
        "nonsense": b"\x30\x82\xff\xf0" * 300,
    }


def test_a_flood_of_strangers_at_the_agent_costs_the_heartbeats_nothing(scene: Scene) -> None:
    """Which runs in a process of its own, below the engine. The machine's own stalls are no matter of hasnmp's."""
    pair, names = scene.pair, []
    for name, datagram in strangers().items():
        (pair.lab.etc / name).write_bytes(datagram)
        names.append(f"{ETC}/{name}")

    def refused() -> int:
        # The last line: the first time the tool tells of a folder that it made.
        return int(pair.snmp("snmpget", "a", "1.3.6.1.2.1.11.4.0").splitlines()[-1].split()[-1])

    def late() -> dict[str, int]:
        return {
            f"{node} of {row.name}": row.heartbeats_late
            for node in ("a", "b")
            for row in pair.rows(node, "nodes").values()
        }

    def token() -> int:
        return int(pair.rows("b", "groups")["web"].token)

    def worst_ms(node: str) -> float:
        """Of the engine's timer, since its start."""
        return float(pair.rows(node, "statistics")[""].worst_lateness_us) / 1000

    before, lates, leased = refused(), late(), token()
    worst = {node: worst_ms(node) for node in ("a", "b")}
    begun_ns = time.monotonic_ns()
    with pair.lab["client"].spawn(
        sys.executable, "-I", "-S", str(HERE / "flooder.py"), LAN["a"], "161", *names, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as flooder:  # fmt: skip
        scene.hold(3)
        sent = int(flooder.communicate(timeout=10)[0])
    ended_ns = time.monotonic_ns()
    stalled = stalled_ms(begun_ns, ended_ns)
    wait_for(lambda: refused() > before + 100, 10, lambda: f"of {sent} sent few were refused: {refused() - before}")
    print(
        f"{sent} datagrams sent, {refused() - before} of a wrong community; the machine stood still for {stalled:.0f} ms"
    )
    lateness_ms = {}
    for node in ("a", "b"):
        now_ms = worst_ms(node)
        print(f"worst lateness of {node}'s engine: {worst[node]:.1f} ms, then {now_ms:.1f} ms")
        lateness_ms[node] = now_ms - stalled
    assert late() == lates or stalled > pair.timing.interval_ms
    lost = (Kind.HEARTBEAT_LOST, Kind.LINK_DOWN, Kind.NODE_LOST, Kind.FAILOVER_STARTED)
    quiet = token() == leased and not any(pair.events(node, scene.begun_ns, *lost) for node in ("a", "b"))
    lasted(quiet, begun_ns, STALL_MS, pair.why)
    for node in ("a", "b"):
        within(lateness_ms[node], max(worst[node], pair.timing.interval_ms / 4), f"of {node}'s timer")
    scene.nothing_moved(begun_ns)
