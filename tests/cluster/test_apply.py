"""`hasnmp apply`: what nodes must agree on, changed on all of them at once, under a client's eyes."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from hasnmp.errors import Code
from hasnmp.model import Kind
from tests.cluster.conftest import Scene
from tests.cluster.lab import ETC, PROJECT, wait_for
from tests.cluster.onlookers import STREAM, Connection
from tests.cluster.pair import NODES, VIP, Group, Pair
from tests.cluster.test_reload import program

OWN = "/run/own.yaml"  # on each host its own, as real machines have it


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with Pair(groups=(Group("web", VIP, more=STREAM),)) as made:
        for node in NODES:
            made.lab[node].run("cp", f"{ETC}/hasnmp.yaml", OWN)
        made.start(file=OWN)
        made.wait_steady()
        yield made


def digests(pair: Pair) -> set[str]:
    return {row.digest for node in NODES for row in pair.rows(node, "config").values()}


def put(pair: Pair, node: str, *edits: tuple[str, str], name: str = "/tmp/next.yaml") -> str:
    """A changed copy of the node's file, on that node."""
    text = pair.lab[node].run("cat", OWN)
    for old, new in edits:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    pair.lab[node].run("sh", "-c", f"cat > {name}", text=text)
    return name


def status(pair: Pair, node: str, *words: str) -> tuple[int, str]:
    said = pair.lab[node].run(
        "sh", "-c", f"PYTHONPATH={PROJECT} {sys.executable} -m hasnmp.cli {' '.join(words)} 2>&1; echo $?"
    )
    return int(said.splitlines()[-1]), said


def test_times_change_on_both_nodes_at_once(scene: Scene) -> None:
    pair, since_ns = scene.pair, time.monotonic_ns()
    pids = {name: program(pair, name) for name in ("web-echo", "web-stream")}
    before, text = digests(pair), pair.lab["b"].run("cat", OWN)
    file = put(pair, "a", ("dead_after_ms: 1000", "dead_after_ms: 1400"), ("lease_ms: 2000", "lease_ms: 2500"))
    assert status(pair, "a", "reload")[0] == 0, "its own file has not changed"
    with Connection(pair.lab) as connection:
        code, said = status(pair, "a", "apply", file)
        assert code == 0 and "heartbeat.dead_after_ms changed; arbiter.lease_ms changed" in said
        wait_for(lambda: len(digests(pair)) == 1 and digests(pair) != before, 5, pair.why)
        for node in NODES:
            row: Any = pair.rows(node, "config")[""]
            assert (row.dead_after_ms, row.lease_ms) == (1400, 2500)
            assert "dead_after_ms: 1400" in pair.lab[node].run("cat", OWN)
            assert pair.lab[node].run("cat", f"{OWN}.before") == text
        wait_for(lambda: not pair.unsteady(), 10, pair.why)
        assert {name: program(pair, name) for name in pids} == pids
        print(f"longest pause of the connection {connection.worst_ms(since_ns):.0f} ms")
    scene.nothing_moved(since_ns)
    assert (
        status(
            pair,
            "b",
            "apply",
            put(pair, "b", ("dead_after_ms: 1400", "dead_after_ms: 1000"), ("lease_ms: 2500", "lease_ms: 2000")),
        )[0]
        == 0
    )
    wait_for(lambda: digests(pair) == before, 5, pair.why)
    wait_for(lambda: not pair.unsteady(), 10, pair.why)


def test_a_file_that_one_node_can_not_use_changes_nothing_anywhere(scene: Scene) -> None:
    """Its secrets are on that node only: the other one's loader finds the fault."""
    pair, since_ns = scene.pair, time.monotonic_ns()
    engines = [pair.pids(node, "engine") for node in NODES]
    pair.lab["a"].run("sh", "-c", "head -c 40 /dev/urandom | base64 > /run/only-here; chmod 600 /run/only-here")
    file = put(
        pair,
        "a",
        ("dead_after_ms: 1000", "dead_after_ms: 1400"),
        (f"[{ETC}/heartbeat.key]", f"[{ETC}/heartbeat.key, /run/only-here]"),
    )
    code, said = status(pair, "a", "apply", file)
    assert code == Code.CONFIG_INVALID
    assert "nothing was changed; b: " in said and "/run/only-here can't be read" in said
    code, said = status(
        pair,
        "a",
        "apply",
        put(pair, "a", ("lan: 192.0.2.12, cross: 198.51.100.12", "lan: 192.0.2.13, cross: 198.51.100.13")),
    )
    assert code == Code.CONFIG_INVALID and "nodes.b.links can't change while hasnmpd runs" in said
    assert [pair.pids(node, "engine") for node in NODES] == engines and len(digests(pair)) == 1
    assert not pair.alarms("a") and not pair.alarms("b")
    scene.nothing_moved(since_ns)


def test_a_node_that_is_away_is_named_and_gets_it_later(scene: Scene) -> None:
    pair = scene.pair
    pair.stop("b")
    file = put(pair, "a", ("dead_after_ms: 1000", "dead_after_ms: 1400"))
    code, said = status(pair, "a", "apply", file)
    assert code == Code.PEER_LOST and "b is not there" in said
    pair.start("b", file=OWN)
    wait_for(lambda: not pair.unsteady(), 20, pair.why)
    assert status(pair, "a", "apply", file)[0] == 0
    wait_for(lambda: len(digests(pair)) == 1 and not pair.unsteady(), 10, pair.why)
    # One that missed it keeps its old file: both say so, and applying once more from the one that has it mends that.
    pair.lab["b"].run("cp", f"{OWN}.before", OWN)
    pair.stop("b")
    pair.start("b", file=OWN)
    pair.wait_event("a", Kind.CONFIG_MISMATCH, scene.begun_ns, 20)
    wait_for(lambda: status(pair, "a", "apply", OWN)[0] == 0, 10, pair.why)
    wait_for(lambda: len(digests(pair)) == 1 and not pair.unsteady(), 10, pair.why)
    assert status(pair, "a", "apply", put(pair, "a", ("dead_after_ms: 1400", "dead_after_ms: 1000")))[0] == 0
    wait_for(lambda: not pair.unsteady(), 10, pair.why)
