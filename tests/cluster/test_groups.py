"""Two groups with different homes, one of them on an IPv6 address: each fails over by itself."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import pytest

from tests.cluster.bounds import within
from tests.cluster.conftest import restored
from tests.cluster.lab import wait_for
from tests.cluster.pair import VIP, VIP6, Group, Pair
from tests.cluster.watch import Watch


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with Pair(groups=(Group("web", VIP), Group("six", VIP6, home="b"))) as made:
        made.begin()
        yield made


@pytest.fixture
def watches(pair: Pair) -> Iterator[tuple[Watch, Watch]]:
    """One on each group's address: web (home a) and six (home b)."""
    with contextlib.ExitStack() as stack:
        with restored(pair):
            web, six = (stack.enter_context(Watch(pair.lab, address)) for address in (VIP, VIP6))
            web.wait_node("a", 10, pair.why)
            six.wait_node("b", 10, pair.why)
            yield web, six
        assert web.doubles() == [] and six.doubles() == [], pair.why()
        assert web.falling_tokens() == [] and six.falling_tokens() == []


@pytest.mark.parametrize("node", ["a", "b"])
def test_power_off_moves_the_groups_of_that_node_alone(pair: Pair, watches: tuple[Watch, Watch], node: str) -> None:
    moved, stayed = watches if node == "a" else watches[::-1]
    other = "b" if node == "a" else "a"
    fault_ns = pair.lab[node].power_off()
    took_ms = moved.back_ms(fault_ns, other)
    print(f"{moved.address} answered again after {took_ms:.0f} ms")
    time.sleep(pair.timing.lease_ms / 1000)  # longer than any lease that was there at the fault
    assert {answer.node for answer in stayed.routed(fault_ns)} == {other}
    within(stayed.outage_ms(fault_ns), 150, pair.why)
    within(took_ms, pair.timing.takeover_ms(), pair.why)


def test_one_group_is_moved_by_command_and_the_other_stays(pair: Pair, watches: tuple[Watch, Watch]) -> None:
    web, six = watches
    asked_ns = time.monotonic_ns()
    pair.hasnmp("b", "failover", "six", "--to", "a")
    six.wait_node("a", 5, pair.why)
    outage_ms = six.outage_ms(asked_ns)
    print(f"IPv6: nobody answered for {outage_ms:.0f} ms")
    wait_for(lambda: pair.owners() == {"web": {"a"}, "six": {"a"}}, 5, pair.why)
    assert {answer.node for answer in web.answers} == {"a"}
    within(web.outage_ms(asked_ns), 150, pair.why)
    within(outage_ms, 400, pair.why)


def test_all_links_cut_and_each_side_keeps_what_it_has(pair: Pair, watches: tuple[Watch, Watch]) -> None:
    web, six = watches
    fault_ns = pair.lab.separate("a", "b")
    time.sleep(2 * pair.timing.lease_ms / 1000)  # both leases now rest on the arbiter, and were renewed there
    outage_ms = max(web.outage_ms(fault_ns), six.outage_ms(fault_ns))
    assert {x.node for x in web.answers} == {"a"} and {x.node for x in six.answers} == {"b"}
    within(outage_ms, 150, pair.why)
