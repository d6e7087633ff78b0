"""OCF agents on whole machines: a file system on a disk that both reach, an address and a service, all by Debian's agents."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from hasnmp.model import Kind, Verb
from tests.cluster.conftest import Scene, restored
from tests.cluster.lab import DATA, mac, sh, wait_for
from tests.cluster.pair import NODES, VIP, VIP2, Group, Pair, boot_ns
from tests.cluster.watch import Watch

pytestmark = pytest.mark.skipif(
    not Path("/usr/lib/ocf/resource.d/heartbeat").is_dir() or shutil.which("modprobe") is None,
    reason="needs Debian's resource-agents and kmod",
)
DIRECTORY = "/run/lab/shared"
SERVICES = f"""      - name: files
        agent: ocf:heartbeat:Filesystem
        options: {{device: {DATA}, directory: {DIRECTORY}, fstype: ext4, options: loop}}
        check: {{every_ms: 3000, timeout_ms: 3000, depth: 20}}
        on_failure: {{restart: 0, then: failover}}
      - name: second
        agent: ocf:heartbeat:IPaddr2
        options: {{ip: {VIP2}, nic: lan, cidr_netmask: 24}}
        check: {{every_ms: 3000, timeout_ms: 3000}}
      - name: sleeper
        agent: ocf:heartbeat:Dummy
        check: {{every_ms: 3000, timeout_ms: 3000}}
"""


@pytest.fixture(scope="module")
def ocf_pair() -> Iterator[Pair]:
    with Pair(groups=(Group("web", VIP, more=SERVICES, keys="    accept_unfenced_disk: true"),)) as pair:
        sh("mkfs.ext4", "-q", str(pair.lab.data.image))
        power_on = {node: pair.lab[node].power_on for node in NODES}

        def again(node: str) -> None:
            power_on[node]()
            pair.lab[node].run("mkdir", "-p", DIRECTORY)

        for node in NODES:
            pair.lab[node].run("mkdir", "-p", DIRECTORY)
            pair.lab[node].power_on = lambda node=node: again(node)  # type: ignore[method-assign, misc]
        pair.begin()
        yield pair


@pytest.fixture
def scene(ocf_pair: Pair) -> Iterator[Scene]:
    pair = ocf_pair
    with restored(pair), Watch(pair.lab, VIP) as watch:
        watch.wait_node("a", 10, pair.why)
        yield Scene(pair, watch, boot_ns())
        watch_never_two(watch)


def watch_never_two(watch: Watch) -> None:
    assert watch.doubles() == []


def has(pair: Pair, node: str) -> tuple[bool, bool, bool]:
    """Is the file system mounted on the node, its second address up, its sleeper there?"""
    host = pair.lab[node]
    mounts = host.run("cat", "/proc/mounts")
    state = host.run("sh", "-c", "ls /run/hasnmp/ocf-*/ 2>/dev/null", check=False)
    return (
        f" {DIRECTORY} " in mounts,
        f" {VIP2}/" in host.run("ip", "-4", "addr", "show", "lan"),
        "Dummy-sleeper" in state,
    )


def wait_for_all(pair: Pair, node: str, seconds: float = 10) -> None:
    wait_for(lambda: all(has(pair, node)), seconds, lambda: f"{node}: {has(pair, node)}\n{pair.why()}")


def test_a_crash_moves_disk_address_and_service(scene: Scene) -> None:
    pair = scene.pair
    wait_for_all(pair, "a")
    assert has(pair, "b") == (False, False, False)
    pair.lab["a"].run("sh", "-c", f"echo kept >{DIRECTORY}/file && sync {DIRECTORY}/file")
    pair.lab["a"].power_off()
    scene.wait_owner("b", 15)
    wait_for_all(pair, "b")
    assert pair.lab["b"].run("cat", f"{DIRECTORY}/file") == "kept\n"


def test_a_planned_move_leaves_nothing_behind(scene: Scene) -> None:
    pair = scene.pair
    pair.command("a", Verb.FAILOVER, "web", "b", seconds=30)
    wait_for_all(pair, "b")
    assert has(pair, "a") == (False, False, False)


def test_the_engines_death_touches_nothing(scene: Scene) -> None:
    pair = scene.pair
    wait_for_all(pair, "a")
    pair.lab["a"].signal(signal.SIGKILL, pair.pids("a", "engine"))
    pair.wait_event("a", Kind.ENGINE_UP, scene.begun_ns)
    wait_for(lambda: not pair.unsteady({"web": "a"}), 10, pair.why)
    assert all(has(pair, "a"))
    assert not pair.events("a", scene.begun_ns, Kind.SERVICE_FAILED)


def test_a_disk_that_fails_is_seen_by_the_agents_thorough_look(scene: Scene) -> None:
    pair = scene.pair
    wait_for_all(pair, "a")
    pair.lab.data_disk("a", "gone")
    failed = pair.wait_event("a", Kind.SERVICE_FAILED, scene.begun_ns, 15)
    assert failed.service == "files", failed
    print(failed.message)
    scene.wait_owner("b", 30)
    wait_for_all(pair, "b")
    pair.lab.data_disk("a", "ok")


def test_a_frozen_stack_loses_its_second_address_with_its_lease(scene: Scene) -> None:
    """Nobody is there to take it off: the kernel does, as with hasnmp's own."""
    pair = scene.pair
    wait_for_all(pair, "a")
    pair.lab["a"].signal(signal.SIGSTOP, pair.pids("a"))
    scene.wait_owner("b", 15)
    wait_for_all(pair, "b")
    said = pair.lab["client"].run("arping", "-c", "2", "-w", "3", "-I", "lan", VIP2, check=False)
    pair.lab["a"].signal(signal.SIGCONT, pair.pids("a"))
    assert mac("b", "lan").lower() in said.lower() and mac("a", "lan").lower() not in said.lower(), said
