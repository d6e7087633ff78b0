"""Fencing on whole machines: power is really cut, from outside of the hosts, and a group with a disk waits for that."""

from __future__ import annotations

import contextlib
import itertools
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hasnmp.model import CommandState, FenceRow, GroupState, Kind, Verb
from tests.cluster.conftest import Scene, restored
from tests.cluster.lab import ETC, HERE, LEASE, wait_for
from tests.cluster.pair import NODES, VIP, Group, Pair, boot_ns
from tests.cluster.power import Power, level
from tests.cluster.watch import Watch

FILE = f"{ETC}/shared"
WRITER = f"""      - name: writer
        agent: exec
        options: {{command: [{sys.executable}, -I, -S, {HERE}/writer.py, {FILE}]}}
"""
FENCE_MS = 1500  # the fence of the lab's switch: two Python programs, and the end of a host's processes
TESTS = "fencing: {test_every_s: 3600, test_alarm_s: 7200}"


@dataclass
class Fenced(Scene):
    power: Power

    def lines(self) -> list[tuple[str, int, int]]:
        """What was written to the shared file: node, token, CLOCK_MONOTONIC."""
        with contextlib.suppress(FileNotFoundError):
            split = (line.split() for line in (self.pair.lab.etc / "shared").read_text().splitlines())
            return [(node, int(token), int(at)) for node, token, at in split]
        return []

    def never_two_writers(self) -> None:
        """Each node's lines are one block a token, and tokens only rise: nobody wrote after its successor began."""
        blocks = [key for key, _ in itertools.groupby((node, token) for node, token, _ in self.lines())]
        assert [token for _, token in blocks] == sorted({token for _, token in blocks}), blocks

    def writes(self, node: str, seconds: float = 15) -> None:
        begun_ns = time.monotonic_ns()
        wait_for(
            lambda: any(by == node and at > begun_ns for by, _, at in self.lines()[-200:]), seconds,
            lambda: f"{node} writes to the shared file\n{self.pair.why()}",
        )  # fmt: skip

    def row(self, node: str, of: str, number: int = 1) -> FenceRow:
        found = self.pair.rows(node, "fences")[f"{of}/{number}"]
        assert isinstance(found, FenceRow)
        return found


def scenes(power: Power) -> Iterator[Fenced]:
    pair = power.pair
    power.modes.clear()  # of a test that failed
    with contextlib.ExitStack() as stack:
        with restored(pair):
            power.asked.clear()
            watch = stack.enter_context(Watch(pair.lab, VIP))
            watch.wait_node("a", 10, pair.why)
            scene = Fenced(pair, watch, boot_ns(), power)
            scene.writes("a")
            yield scene
            power.modes.clear()
        scene.never_two()
        scene.never_two_writers()


def made(arbiter: str = "", fence: dict[str, str] | None = None) -> Iterator[Power]:
    """The switch works between the tests, too: a daemon may test its devices whenever it has started."""
    fence = fence or {node: f"[{level(node)}, {level(node, 'two')}]" for node in NODES}
    web = Group("web", VIP, more=WRITER, keys="    disk: true")
    with Pair(groups=(web,), extra=TESTS, fence=fence, arbiter=arbiter) as pair, Power(pair) as power:
        pair.begin(60)
        yield power


# ------------------------------------------------------------------------------------------------ with a lease disk


@pytest.fixture(scope="module")
def with_disk() -> Iterator[Power]:
    yield from made()


@pytest.fixture
def fenced(with_disk: Power) -> Iterator[Fenced]:
    yield from scenes(with_disk)


def test_a_dead_owner_is_fenced_and_only_then_its_group_is_taken(fenced: Fenced) -> None:
    pair = fenced.pair
    fault_ns = pair.lab["a"].power_off()
    fenced.back("b", fault_ns, pair.timing.takeover_ms() + FENCE_MS)
    fenced.writes("b")
    first = next(at for node, _, at in fenced.lines() if node == "b" and at > fault_ns)
    off = next(at for at, _, action, plug in fenced.power.asked if (action, plug) == ("off", "a"))
    status = next(at for at, _, action, plug in fenced.power.asked if action == "status" and plug == "a" and at > off)
    assert fault_ns < off < status < first, "off, verified, and only then the service"
    event = pair.wait_event("b", Kind.FENCE_SUCCEEDED, fenced.begun_ns)
    assert "fence_lab.py (power)" in event.message
    assert "off, verified by its status" in fenced.row("b", "a").last_result
    wait_for(lambda: pair.lab["a"].pid, 10, "it is switched on again")
    wait_for(lambda: (row := pair.rows("a", "nodes").get("a")) and row.recovering, 15, pair.why)
    assert "a" in pair.hasnmp("b", "fence", "show")


def test_links_cut_with_the_disk_alive_fences_nobody(fenced: Fenced) -> None:
    """The owner still has its lease, by the arbiter: nothing is to be taken, so nobody is to be ended."""
    fault_ns = fenced.pair.lab.separate("a", "b")
    fenced.pair.wait_event("b", Kind.NODE_LOST, fenced.begun_ns, 5)
    fenced.hold(5)
    fenced.nothing_moved(fault_ns)
    assert fenced.power.offs(fault_ns) == [], fenced.pair.why()


def test_a_frozen_stack_is_fenced_though_its_machine_lives(fenced: Fenced) -> None:
    """Engine and guardian stand still, the service goes on writing: silence and a lapsed lease are not enough."""
    pair = fenced.pair
    host = pair.lab["a"]
    fault_ns = host.signal(signal.SIGSTOP, pair.pids("a"))
    pair.wait_event("b", Kind.FENCE_SUCCEEDED, fenced.begun_ns, 15)
    fenced.writes("b")
    assert fenced.power.offs(fault_ns) == ["a"]
    last_of_a = max(at for node, _, at in fenced.lines() if node == "a")
    first_of_b = min(at for node, _, at in fenced.lines() if node == "b" and at > fault_ns)
    assert last_of_a < first_of_b


def test_the_next_level_where_the_first_fails(fenced: Fenced) -> None:
    fenced.power.modes["one"] = "refuse"
    fenced.pair.lab["a"].power_off()
    fenced.writes("b", 20)
    asked = [(switch, action) for _, switch, action, plug in fenced.power.asked if plug == "a" and action == "off"]
    assert asked[:2] == [("one", "off"), ("two", "off")]
    assert "does not know this plug" in fenced.row("b", "a", 1).last_result
    assert "off, verified" in fenced.row("b", "a", 2).last_result


@pytest.mark.parametrize("mode", ["refuse", "hang", "lie"])
def test_a_group_that_nobody_can_fence_for_waits_for_the_administrators_word(fenced: Fenced, mode: str) -> None:
    """lie: it says done, but the machine runs; status shows it."""
    pair = fenced.pair
    fenced.power.modes = {"one": mode, "two": mode}
    host = pair.lab["a"]
    fault_ns = pair.lab.separate("a", "b")
    host.signal(signal.SIGSTOP, pair.pids("a"))
    pair.wait_event("b", Kind.FENCE_FAILED, fenced.begun_ns, 25)
    assert Kind.FENCE_FAILED in pair.alarms("b")
    assert not any(node == "b" and at > fault_ns for node, _, at in fenced.lines()), pair.why()
    assert pair.owners()["web"] == set() and "fence confirm a" in pair.hasnmp("b", "why", "web")
    refused = pair.hasnmp("b", "fence", "confirm", "a", check=False)
    assert "no terminal to ask at" in refused and pair.owners()["web"] == set()
    host.power_off()
    pair.hasnmp("b", "fence", "confirm", "a", "--yes", "--reason", "looked at it")
    fenced.writes("b")
    command = next(row for row in pair.rows("b", "commands").values() if row.verb is Verb.FENCE_CONFIRM)
    assert command.state is CommandState.DONE and command.reason == "looked at it"


def test_a_test_of_the_devices_and_its_alarm(fenced: Fenced) -> None:
    pair = fenced.pair
    assert pair.command("b", Verb.FENCE_TEST, "a").state is CommandState.DONE
    assert "status on" in fenced.row("b", "a").last_result
    fenced.power.modes = {"one": "refuse", "two": "refuse"}
    assert pair.command("b", Verb.FENCE_TEST, "a").state is CommandState.FAILED
    assert "does not know this plug" in fenced.row("b", "a").last_result
    fenced.power.modes = {}
    assert pair.command("b", Verb.FENCE_TEST, "a").state is CommandState.DONE
    assert not pair.alarms("b")
    assert fenced.power.offs() == []


# ------------------------------------------------------------------------------------------- the fence as the arbiter


@pytest.fixture(scope="module")
def with_fence() -> Iterator[Power]:
    yield from made("arbiter: {type: fence}")


@pytest.fixture
def deciding(with_fence: Power) -> Iterator[Fenced]:
    yield from scenes(with_fence)


def test_links_cut_the_owner_fires_first_and_goes_on(deciding: Fenced) -> None:
    pair = deciding.pair
    fault_ns = pair.lab.separate("a", "b")
    wait_for(lambda: deciding.power.offs(fault_ns), 15, pair.why)
    deciding.hold(3)
    assert deciding.power.offs(fault_ns) == ["b"], "the owner was first, and nobody shot back"
    deciding.nothing_moved(fault_ns)


def test_a_dead_owner_with_the_fence_as_arbiter(deciding: Fenced) -> None:
    """The standby waits for longer than the owner's fence may take; it can't know that the owner is dead."""
    fault_ns = deciding.pair.lab["a"].power_off()
    deciding.writes("b", 40)
    assert deciding.power.offs(fault_ns) == ["a"]


# --------------------------------------------------------------------------------------------------- the poison pill


@pytest.fixture(scope="module")
def with_pills() -> Iterator[Power]:
    yield from made(fence=dict.fromkeys(NODES, "[{agent: pill, cuts: power, timeout_ms: 5000}]"))


@pytest.fixture
def poisoned(with_pills: Power) -> Iterator[Fenced]:
    yield from scenes(with_pills)


def test_a_pill_ends_a_node_whose_engine_hangs_and_that_no_cable_reaches(poisoned: Fenced) -> None:
    pair = poisoned.pair
    before = pair.rows("a", "nodes")["a"].holder
    frozen = pair.pids(
        "a", "engine", "lease"
    )  # with lease i/o the engine that follows would say on the disk that all has ended
    fault_ns = pair.lab.separate("a", "b")
    pair.lab["a"].signal(signal.SIGSTOP, frozen)
    event = pair.wait_event("b", Kind.FENCE_SUCCEEDED, poisoned.begun_ns, 20)
    assert "pill" in event.message
    assert f"everything of it has ended (holder {before})" in poisoned.row("b", "a").last_result
    assert not Path(f"/proc/{frozen[0]}").exists() and pair.service_pids("a") == []
    poisoned.writes("b")
    pair.lab.heal()
    wait_for(lambda: (row := pair.rows("a", "nodes").get("a")) and row.holder != before, 10, pair.why)
    pair.wait_event("b", Kind.NODE_JOINED, poisoned.begun_ns, 10)
    poisoned.hold(0.5)
    for node in NODES:
        assert not pair.events(node, poisoned.begun_ns, Kind.SPLIT_BRAIN_DETECTED), "there never were two"
    assert min(at for node, _, at in poisoned.lines() if node == "b" and at > fault_ns) > max(
        at for node, _, at in poisoned.lines() if node == "a" and at < fault_ns
    )


def test_a_pill_that_nobody_swallows_is_no_fence(poisoned: Fenced) -> None:
    """The whole stack stands still: nobody says that its service has ended, and it has not."""
    pair = poisoned.pair
    fault_ns = pair.lab["a"].signal(signal.SIGSTOP, pair.pids("a"))
    event = pair.wait_event("b", Kind.FENCE_FAILED, poisoned.begun_ns, 25)
    assert "not acknowledge" in event.message
    assert not any(node == "b" and at > fault_ns for node, _, at in poisoned.lines()), pair.why()
    assert pair.rows("b", "groups")["web"].state is not GroupState.RUNNING
    # The guardian goes on, long after the lease: nobody can say any more what its group did, so it restarts the machine.
    host = pair.lab["a"]
    host.signal(signal.SIGCONT, host.processes())
    wait_for(lambda: not host.runs(), 10, pair.why)
    host.power_off()
    host.power_on()
    pair.start("a")
    poisoned.writes("b")
    wait_for(lambda: Kind.FENCE_FAILED not in pair.alarms("b"), 5, pair.why)


def test_a_test_pill(poisoned: Fenced) -> None:
    assert poisoned.pair.command("b", Verb.FENCE_TEST, "a").state is CommandState.DONE
    assert "it reads its pills" in poisoned.row("b", "a").last_result
    shown = poisoned.pair.hasnmp("a", "arbiter", "show", "--config", f"{ETC}/hasnmp.yaml")
    assert "pills for" in shown and LEASE in shown
    poisoned.hold(1)
    assert poisoned.pair.owners()["web"] == {"a"}
