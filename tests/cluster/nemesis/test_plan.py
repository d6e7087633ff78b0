"""A seed is a plan, every kind of fault can be drawn, and what is drawn can be done."""

from __future__ import annotations

from tests.cluster.nemesis.faults import Faults
from tests.cluster.nemesis.plan import ROUND_MS, draw


def test_a_seed_gives_one_plan_and_longer_ones_begin_with_it() -> None:
    assert draw(17, 5) == draw(17, 5)
    assert draw(17, 50).rounds[:5] == draw(17, 5).rounds
    assert len({draw(seed, 5).text() for seed in range(50)}) == 50


def test_every_kind_is_drawn_at_every_target_and_ends_within_its_round() -> None:
    faults = [fault for seed in range(600) for one in draw(seed, 5).rounds for fault in one.faults]
    kinds = {fault.kind for fault in faults}
    assert kinds == {"kill", "stop", "power", "cut", "pull", "disk", "clock", "full", "move", "rules", "data", "switch"}
    assert all(callable(getattr(Faults, kind)) for kind in kinds)
    assert {fault.target for fault in faults} == {"owner", "other", "both"}
    assert all(0 <= fault.at_ms < ROUND_MS for fault in faults)
    assert all(list(one.faults) == sorted(one.faults, key=lambda fault: fault.at_ms) for one in draw(1, 50).rounds)


def test_some_rounds_are_quiet_and_have_one_fault_to_the_end() -> None:
    rounds = [one for seed in range(100) for one in draw(seed, 5).rounds]
    quiet = [one for one in rounds if one.quiet]
    assert 0.2 < len(quiet) / len(rounds) < 0.4
    assert all(len(one.faults) == 1 and not one.faults[0].for_ms for one in quiet)


def test_both_kinds_of_disk_are_drawn_and_an_unfenced_one_never_fails() -> None:
    plans = [draw(seed, 10) for seed in range(100)]
    assert {plan.disk for plan in plans} == {"fenced", "accepted"}
    kinds = {fault.kind for plan in plans if plan.disk == "accepted" for one in plan.rounds for fault in one.faults}
    assert not kinds & {"data", "switch"}
