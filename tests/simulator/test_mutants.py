"""Every mutant of the core is caught by the simulator, by a run that the real core passes."""

from __future__ import annotations

import pytest

from hasnmp.simulator.runs import run

from .mutants import MUTANTS, Edit, Mutant, mutated

RUNS = 500  # of each of its profiles, at most; most mutants live for a few runs only


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_mutant_is_caught(mutant: Mutant) -> None:
    caught = None
    with mutated(mutant.edits) as runs:
        for seed in range(1, RUNS + 1):
            for profile in mutant.profiles:
                result = runs.run(seed, profile)
                if result.broken and caught is None:
                    caught = result
            if caught is not None:
                break
    assert caught is not None, (
        f"{mutant.name}: survived {RUNS} runs of {mutant.profiles} (rule {mutant.rule} of the design)"
    )
    assert caught.broken != "crashed", f"{mutant.name}: not a mutant but a broken program: {caught.text}"
    real = run(caught.seed, caught.profile)
    assert not real.broken, f"the real core breaks it too: {real.broken}: {real.text}"


def test_the_list() -> None:
    """No two of a name, and the rules on which safety rests are all there."""
    assert len({m.name for m in MUTANTS}) == len(MUTANTS) >= 16
    assert {m.rule for m in MUTANTS} >= {1, 2, 3, 4, 8}


def test_an_edit_that_does_not_fit_is_told() -> None:
    with pytest.raises(AssertionError, match="bring the mutant up to date"):
        Edit("core/lease.py", "no such text", "").apply("text")
    with pytest.raises(AssertionError, match="occurs 2 times"):
        Edit("core/lease.py", "text", "").apply("text text")


def test_the_real_modules_stay() -> None:
    """What a mutant changes is gone with it."""
    before = run(1, "drift")
    edits = (Edit("core/lease.py", "OWNER_PART = 99 ", "OWNER_PART = 100 "),)
    with mutated(edits) as runs:
        assert runs.run is not run
        assert runs.Engine is not run.__globals__["Engine"]
    assert run(1, "drift") == before
