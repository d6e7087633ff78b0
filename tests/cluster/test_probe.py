"""The probe itself: does it see what it is there to see? Without hasnmp: a script puts the address where it wants."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.bounds import within
from tests.cluster.lab import HERE, PROJECT, Lab, sh, sweep, wait_for
from tests.cluster.watch import PORT, Watch

V4, V6 = "192.0.2.100", "2001:db8::100"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(lease_disk=False) as made:
        for host in ("a", "b"):
            for address in (V4, V6):
                made[host].spawn(sys.executable, "-I", "-S", str(HERE / "echo.py"), address, str(PORT), log="echo")
        yield made


def have(lab: Lab, host: str, address: str, yes: bool = True) -> None:
    words = ["addr", "replace" if yes else "del", f"{address}/{128 if ':' in address else 32}", "dev", "lan"]
    lab[host].run("ip", *words, *(["nodad"] if yes and ":" in address else []), check=yes)


def announce(lab: Lab, host: str) -> None:
    lab[host].run("arping", "-U", "-c", "1", "-I", "lan", V4, check=False)


@pytest.mark.parametrize("address", [V4, V6])
def test_one_node_that_answers_is_no_double(lab: Lab, address: str) -> None:
    have(lab, "a", address)
    with Watch(lab, address) as watch:
        begun_ns = time.monotonic_ns()
        watch.wait_node("a")
        seen = wait_for(lambda: len(watch.routed()) > 60, 3, "answers each period")
        assert seen and watch.doubles() == []
        outage_ms = watch.outage_ms(watch.routed()[0].at_ns)
        # both ways of asking were used
        assert {answer.kind for answer in watch.answers} == {"r", "d"}
        assert watch.first(begun_ns, "b") is None
    have(lab, "a", address, False)
    within(outage_ms, 50)


@pytest.mark.parametrize("address", [V4, V6])
def test_two_nodes_at_once_are_seen_although_arp_shows_only_one(lab: Lab, address: str) -> None:
    have(lab, "a", address)
    with Watch(lab, address) as watch:
        watch.wait_node("a")
        have(lab, "b", address)
        wait_for(lambda: any(x.node == "b" for x in watch.answers), 3, "b answers what was sent to its own MAC")
        have(lab, "b", address, False)
        assert {x.node for x in watch.routed()} == {"a"}, "an ordinary client saw only one"
        assert watch.doubles()
    have(lab, "a", address, False)


def test_an_address_that_moves_is_an_outage_and_no_double(lab: Lab) -> None:
    have(lab, "a", V4)
    with Watch(lab, V4) as watch:
        watch.wait_node("a")
        moved_ns = time.monotonic_ns()
        have(lab, "a", V4, False)
        time.sleep(0.1)  # what is measured
        have(lab, "b", V4)
        announce(lab, "b")
        watch.wait_node("b")
        back_ms, outage_ms = watch.back_ms(moved_ns, "b"), watch.outage_ms(moved_ns)
        assert watch.doubles() == []
    have(lab, "b", V4, False)
    assert back_ms >= 100 and outage_ms >= 95
    within(max(back_ms, outage_ms), 400)


def test_a_host_without_power_is_silent_and_a_cut_can_be_healed(lab: Lab) -> None:
    have(lab, "a", V4)
    with Watch(lab, V4) as watch:
        watch.wait_node("a")
        lab.block("client", "a", "lan")
        watch.wait_node("")
        lab.heal()
        watch.wait_node("a")
        lab.pull("a", "lan")
        watch.wait_node("")
        lab.heal()
        watch.wait_node("a")
        off_ns = lab["a"].power_off()
        watch.wait_node("")
        assert not [x for x in watch.answers if x.at_ns > off_ns + 50_000_000], "nothing answers after power off"
    assert not lab["a"].processes()
    lab["a"].power_on()


def test_what_a_crashed_run_left_is_swept() -> None:
    script = "from tests.cluster.lab import Lab; lab = Lab(); print(lab.name, flush=True); input()"
    crashed = subprocess.Popen(
        [sys.executable, "-c", script], cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert crashed.stdout
    name = crashed.stdout.readline().strip()
    assert name
    crashed.kill()
    crashed.wait()
    sweep()
    assert not [entry for entry in os.listdir("/run/netns") if entry.startswith(name)]
    assert not list(Path(tempfile.gettempdir()).glob(f"{name}-*"))
    assert name not in Path("/proc/self/mountinfo").read_text()
    assert name not in sh("ps", "ax", "-o", "args")
