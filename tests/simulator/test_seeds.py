"""2,000 runs of the simulated cluster hold every invariant, meet what they are to test, and replay exactly."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections import Counter

import pytest

from hasnmp.simulator.__main__ import main, verdict
from hasnmp.simulator.profiles import MIX, PROFILES
from hasnmp.simulator.runs import Result, run

SEEDS = range(1, 2001)

# (seed, profile) that once broke an invariant, and what it was.
ONCE_BROKEN: tuple[tuple[int, str, str], ...] = (
    (214, "arbiter", "a claim with a token that another had used"),
    (50, "arbiter", "a claim with a token that another had used"),
    (267, "chaos", "a claim with a token that another had used"),
    (215, "chaos", "a lease beside another"),
    (359, "chaos", "an inhibit that was confirmed and lost"),
    (30, "durable", "an inhibit that was confirmed and lost"),
    (94, "durable", "an inhibit that was confirmed and lost"),
    (64, "exchanged", "an engine that started anew took another lease disk for its own"),
    (77, "exchanged", "an engine that started anew took another lease disk for its own"),
    (217, "state lost cut", "a promise left for ever that was forgotten with the state file"),
    (355, "state lost cut", "a promise left for ever that was forgotten with the state file"),
    (69, "state lost cut", "the same, by a node whose own record on the disk was new"),
    (122348, "durable", "a fact of the first message, acknowledged by what was received of the former incarnation"),
    (121539, "dogs", "a watchdog that has passed for one group, taken for the end of its holder"),
    (107730, "state lost cut", "a node that had lost its state file, and had forgotten that in its next life"),
    (163, "state lost twice", "the same once more"),
    (2152, "fence disks", "a token twice, where no record tells what a fenced node had used"),
    (7, "changes", "two nodes that had met never told each other anything again"),
    (15, "changes", "the same"),
    (12, "lingers", "a write of a node's former life, landed late under a sequence that its next life had used again"),
    (105, "lingers", "the same"),
    (15, "reborn", "two that fired at each other: one had forgotten over its restart that the other had had a group"),
    (314, "changes", "a late word of a node's former life, and nothing of its present one was ever heard again"),
)

# What the runs have to meet for their silence to mean anything: event -> how often at least in all of them.
MET = {
    "power lost": 1000,
    "engines killed": 1000,
    "groups ended by force": 700,
    "leases": 4000,
    "arbiter calls timed out": 500,
    "takeoverCompleted": 3000,
    "left in order": 200,
    "command failover running": 80,
    "command force_failover running": 80,
    "inhibits confirmed": 20,
    "serviceRestarted": 80,
    "groupBlocked": 3,
    "recoveryNeeded": 300,
    "fault trap": 300,
    "fault isolate_owner": 300,
    "fault restart_promiser": 300,
    "fault duel": 150,
    "fault ghost_idle": 20,
    "crashed at an effect": 100,
    "machines paused": 100,
    "releases waited for": 300,
    "torn reads": 20,
    "older words landed on newer": 1,
    "disks exchanged": 5,
    "state lost": 5,
    "state rolled back": 5,
    "reported down": 40,
    "fenceStarted": 150,
    "machines fenced": 150,
    "watchdog resets": 30,
    "fenceFailed": 3,
    "fenceUntested": 5,
    "fault device_bad": 50,
    "configurations exchanged": 100,
    "files adopted": 80,
    "crashed in a change": 3,
}


def _one(seed: int) -> Result:
    return run(seed)


def test_two_thousand_seeds() -> None:
    """What they cost is counted in steps, which no busy machine makes more: about a minute's worth on two cores."""
    with multiprocessing.Pool(os.cpu_count()) as pool:
        results = pool.map(_one, SEEDS, chunksize=10)
    broken = [verdict(result) for result in results if result.broken]
    assert not broken, "\n".join(broken)
    assert {result.profile for result in results} == {name for name, _ in MIX}
    counts: Counter[str] = Counter()
    for result in results:
        counts.update(result.counts)
    missed = {what: counts[what] for what, least in MET.items() if counts[what] < least}
    assert not missed, f"the runs hardly meet {missed}: {counts}"
    steps = sum(result.steps for result in results)
    assert steps < 4_000_000, f"2,000 runs took {steps:,} steps"


def test_every_profile_is_met() -> None:
    assert set(PROFILES) == {name for name, _ in MIX}


@pytest.mark.parametrize("seed", [3, 11, 12])
def test_a_seed_replays_exactly(seed: int) -> None:
    """Also in another process, where every hash of a string differs."""
    here = run(seed)
    assert run(seed) == here
    program = f"from hasnmp.simulator.runs import run; r = run({seed}); print(r.signature, r.steps, r.at_ns)"
    for hash_seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": hash_seed}
        out = subprocess.run(
            [sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True
        ).stdout
        assert out.split() == [str(here.signature), str(here.steps), str(here.at_ns)]


@pytest.mark.parametrize(("seed", "profile", "what"), ONCE_BROKEN)
def test_once_broken(seed: int, profile: str, what: str) -> None:
    """The schedule of a seed changes with the core; these are kept for as long as they cost nothing."""
    result = run(seed, profile)
    assert not result.broken, f"{what} again: {verdict(result)}"


def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seed", "5"]) == 0
    story = capsys.readouterr().out
    assert (
        "was switched on" in story and "took the lease of" in story and "HEALED" in story and story.endswith("steps]\n")
    )
    assert main(["--seeds", "4", "--jobs", "1"]) == 0
    assert capsys.readouterr().out.startswith("4 runs, 0 broken")
    with pytest.raises(SystemExit) as wrong:
        main([])
    assert wrong.value.code == 2
