"""Two owners that an administrator accepted (`arbiter: none`): told by both when they hear each other again, and ended."""

from __future__ import annotations

import time

from hasnmp.model import Kind
from tests.cluster.bounds import within
from tests.cluster.lab import wait_for
from tests.cluster.pair import NODES, VIP, Group, Pair, boot_ns
from tests.cluster.watch import Watch, spent_ms

ARBITER = "arbiter: {type: none, accept_split_brain: true}"


def owners(pair: Pair) -> set[str]:
    """The nodes whose own programs of the group live."""
    return {node for node in NODES if pair.service_pids(node)}


def test_of_two_owners_that_hear_each_other_again_the_lower_token_stops() -> None:
    with Pair(groups=(Group("web", VIP),), arbiter=ARBITER) as pair, Watch(pair.lab, VIP) as watch:
        pair.begin()
        begun_ns = boot_ns()
        pair.lab.separate("a", "b")
        wait_for(lambda: owners(pair) == {"a", "b"}, 10, lambda: f"both take it: that was accepted\n{pair.why()}")
        pair.lab.heal()
        healed_ns = time.monotonic_ns()
        for node in NODES:
            event = pair.wait_event(node, Kind.SPLIT_BRAIN_DETECTED, begun_ns)
            assert "a (token" in event.message and "b (token" in event.message
            pair.wait_event(node, Kind.SPLIT_BRAIN_CLEARED, begun_ns)
        wait_for(lambda: owners(pair) == {"b"}, 5, lambda: f"a, with the lower token, stops\n{pair.why()}")
        time.sleep(2)
        assert owners(pair) == {"b"}, pair.why()
        took_ms = spent_ms(healed_ns, max((x.at_ns for x in watch.answers if x.node == "a"), default=healed_ns))
        row = pair.rows("a", "nodes")["a"]
        assert row.recovering and not pair.alarms("b") & {Kind.SPLIT_BRAIN_DETECTED}, pair.why()
        # The winner was never touched by it.
        assert not pair.events("b", begun_ns, Kind.FAILOVER_STARTED)
        assert watch.first(healed_ns + int(took_ms * 1e6), "b"), "b serves"
        within(took_ms, 1000, lambda: f"until a answered no more\n{pair.why()}")
