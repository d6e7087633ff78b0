"""A daemon that becomes new code while it serves: no connection drops, no program restarts, no lease is let go."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hasnmp.model import Kind
from tests.cluster.bounds import within
from tests.cluster.conftest import lasted
from tests.cluster.lab import ETC, PROJECT, wait_for
from tests.cluster.onlookers import STREAM, Connection
from tests.cluster.pair import VIP, Group, Pair, Timing, boot_ns
from tests.cluster.watch import Watch

pytestmark = pytest.mark.alone
MS = 1_000_000


@pytest.fixture(scope="module", params=[1000, 300], ids=lambda ms: f"dead_after_{ms}_ms")
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    timing = Timing(dead_after_ms=request.param)
    if request.param == 300:
        timing = Timing(interval_ms=50, dead_after_ms=300, kill_ms=60, io_timeout_ms=150)
    with Pair((Group("web", VIP, more=STREAM),), timing) as made:
        made.begin()
        yield made


def ask(pair: Pair, node: str, config: str = f"{ETC}/hasnmp.yaml") -> subprocess.Popen[bytes]:
    """`hasnmpd --handover` on a node, under way; its output is in the host's handover.log."""
    argv = [sys.executable, "-m", "hasnmp.runtime.daemon", "--handover", "--config", config, "--node", node]
    return pair.lab[node].spawn(*argv, log="handover.log", env={**os.environ, "PYTHONPATH": str(PROJECT)})


def said(pair: Pair, node: str) -> str:
    return (pair.lab[node].state / "handover.log").read_text()


def same(pair: Pair, as_before: bool, since_ns: int, why: str) -> None:
    """Nothing that rests on a lease is another one; where a machine that stood still cost one, all is mended for whoever is next."""
    if not as_before:
        why = f"{why}\n{pair.why()}"
        pair.restore(30)
    lasted(as_before, since_ns, pair.timing.dead_after_ms * 0.3, why)


def steady(pair: Pair, since_ns: int) -> None:
    try:
        pair.wait_steady()
    except AssertionError as problem:
        same(pair, False, since_ns, str(problem))


def test_the_owner_becomes_new_code_and_its_clients_notice_nothing(pair: Pair) -> None:
    wait_for(lambda: len(pair.service_pids("a")) == 3, 5, "two of the echo, one of the stream")
    guardian, services = pair.pids("a", "guardian"), pair.service_pids("a")
    others = pair.pids("a", "engine", "lease", "snmp", "store")
    token = pair.rows("b", "groups")["web"].token
    with Connection(pair.lab) as connection, Watch(pair.lab, VIP) as watch:
        watch.wait_node("a", 10, pair.why)
        begun_ns, begun_boot_ns = time.monotonic_ns(), boot_ns()
        asked = ask(pair, "a")
        status = asked.wait(60)
        assert watch.doubles() == []
        same(pair, pair.service_pids("a") == services, begun_ns, "programs were restarted")
        assert status == 0, said(pair, "a")
        took_s = (time.monotonic_ns() - begun_ns) / 1e9
        steady(pair, begun_ns)
        print(f"handed over in {took_s:.1f} s; worst gap of a connection {connection.worst_ms(begun_ns):.0f} ms, "
              f"of the probes {watch.outage_ms(begun_ns):.0f} ms")  # fmt: skip
        worst_ms = max(connection.worst_ms(begun_ns), watch.outage_ms(begun_ns))
        assert {answer.node for answer in watch.answers} == {"a"}
        assert watch.doubles() == []
    assert pair.pids("a", "guardian") == guardian, "the same process"
    assert pair.service_pids("a") == services, "no program was restarted"
    wait_for(lambda: len(pair.pids("a", "engine", "lease", "snmp", "store")) == 4, 5, pair.why)
    assert not set(pair.pids("a", "engine", "lease", "snmp", "store")) & set(others), "all others are the new code's"
    assert pair.rows("b", "groups")["web"].token == token, "the lease was never another one"
    moved = pair.events("b", begun_boot_ns, Kind.NODE_LOST, Kind.TAKEOVER_COMPLETED)
    same(pair, not moved, begun_ns, "b took a for lost")
    assert not pair.events("a", begun_boot_ns, Kind.ENGINE_DOWN), "an upgrade is no failure"
    assert "has taken over; no service was restarted" in said(pair, "a")
    within(worst_ms, 250, pair.why)


def test_the_standby_becomes_new_code_and_nothing_moves(pair: Pair) -> None:
    begun_ns = boot_ns()
    with Connection(pair.lab) as connection:
        since_ns = time.monotonic_ns()
        assert ask(pair, "b").wait(60) == 0, said(pair, "b")
        steady(pair, since_ns)
        worst_ms = connection.worst_ms(since_ns)
    same(pair, not pair.events("a", begun_ns, Kind.NODE_LOST), since_ns, "a took b for lost")
    within(worst_ms, 250, pair.why)


def test_a_file_with_a_fault_changes_nothing(pair: Pair) -> None:
    whole, begun_ns = pair.pids("a"), time.monotonic_ns()
    faulty = Path(pair.lab.etc, "faulty.yaml")
    faulty.write_text((pair.lab.etc / "hasnmp.yaml").read_text().replace("interval_ms:", "intervall_ms:"))
    assert ask(pair, "a", f"{ETC}/faulty.yaml").wait(60) == 2
    assert "intervall_ms: unknown key" in said(pair, "a")
    # One that is in order but says something else than what is in force is not for a handover either.
    faulty.write_text((pair.lab.etc / "hasnmp.yaml").read_text().replace("web-stream", "web-other"))
    assert ask(pair, "a", f"{ETC}/faulty.yaml").wait(60) == 1
    assert "reload it first" in said(pair, "a")
    same(pair, sorted(pair.pids("a")) == sorted(whole), begun_ns, "a process was replaced")
    steady(pair, begun_ns)


def test_the_handed_over_daemon_fails_over_as_ever(pair: Pair) -> None:
    begun_ns = time.monotonic_ns()
    assert ask(pair, "a").wait(60) == 0, said(pair, "a")
    steady(pair, begun_ns)
    with Watch(pair.lab, VIP) as watch:
        watch.wait_node("a", 10, pair.why)
        fault_ns = pair.lab["a"].power_off()
        took_ms = watch.back_ms(fault_ns, "b")
        assert watch.doubles() == []
    why = pair.why()
    pair.restore(30)
    within(took_ms, pair.timing.takeover_ms(), why)
