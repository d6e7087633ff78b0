"""The guardian's lease table: what is live, what may run, what must end by force (design rule 4). Times in ms here."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hasnmp.core.events import HeldLease
from hasnmp.core.guard import NEVER, Guard

KILL = 100


def lease(token: int, until: int, group: str = "nfs") -> HeldLease:
    return HeldLease(group, token, until)


def test_a_lease_lets_run_until_kill_before_its_end() -> None:
    guard = Guard(KILL)
    assert not guard.may_run("nfs", 0)
    assert guard.extend(lease(1, 1000), 0)
    assert guard.may_run("nfs", 899) and not guard.may_run("nfs", 900)
    assert not guard.may_run("db", 0)
    assert guard.remaining_ns("nfs", 400) == 600 and guard.remaining_ns("db", 0) == 0
    assert guard.next_deadline_ns() == 900


def test_due_at_kill_before_the_end_and_not_a_moment_before() -> None:
    guard = Guard(KILL)
    guard.extend(lease(1, 1000), 0)
    guard.extend(lease(5, 2000, "db"), 0)
    assert guard.due(899) == ()
    assert guard.due(900) == ("nfs",)
    # Being killed: nothing starts, nothing is extended, no kernel timer is given anything.
    assert not guard.extend(lease(1, 5000), 901) and not guard.extend(lease(2, 5000), 901)
    assert not guard.may_run("nfs", 901) and guard.remaining_ns("nfs", 901) == 0
    assert guard.next_deadline_ns() == 1900
    guard.ended("nfs")
    assert guard.may_run("db", 901)


def test_too_little_left_is_refused() -> None:
    guard = Guard(KILL)
    assert not guard.extend(lease(1, 1000), 900)
    assert guard.next_deadline_ns() == NEVER
    assert guard.extend(lease(1, 1000), 899)


def test_an_expiry_that_comes_after_the_end_revives_nothing() -> None:
    """due() was not asked in time (the guardian was not scheduled): the lease has ended all the same."""
    guard = Guard(KILL)
    guard.extend(lease(1, 1000), 0)
    assert not guard.extend(lease(1, 5000), 900)
    assert guard.due(900) == ("nfs",)


def test_what_ended_here_never_comes_back() -> None:
    guard = Guard(KILL)
    guard.extend(lease(3, 1000), 0)
    guard.ended("nfs")
    assert not guard.extend(lease(3, 9000), 1) and not guard.extend(lease(2, 9000), 1)
    assert guard.extend(lease(4, 9000), 1)


def test_an_older_shorter_expiry_changes_nothing() -> None:
    guard = Guard(KILL)
    guard.extend(lease(3, 2000), 0)
    assert guard.extend(lease(3, 1000), 1)
    assert guard.remaining_ns("nfs", 1) == 1999
    assert not guard.extend(lease(2, 9000), 1)


def test_ended_of_what_is_not_held_says_nothing() -> None:
    guard = Guard(KILL)
    guard.ended("nfs")
    assert guard.extend(lease(1, 1000), 0)


def test_the_next_engine_is_told_once_of_what_the_one_before_had_to_its_end() -> None:
    """It promised that to nobody (design rule 2). Nothing else is told: not what was released, nor what is still being ended."""
    guard = Guard(KILL)
    guard.extend(lease(1, 1000), 0)
    guard.extend(lease(2, 1000, "db"), 0)
    guard.extend(lease(3, 9000, "mail"), 0)
    guard.extend(lease(4, 9000, "web"), 0)
    guard.ended("web")
    assert guard.engine_begins() == ()
    assert set(guard.due(950)) == {"nfs", "db"} and guard.due(951) == ()
    guard.ended("nfs")
    assert guard.engine_begins() == ("nfs",)
    # An engine has lived since: it may have promised both.
    guard.ended("db")
    assert guard.due(8950) == ("mail",)
    assert guard.engine_begins() == ()
    guard.ended("mail")
    assert guard.engine_begins() == ()


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["extend", "due", "ended"]), st.integers(1, 4), st.integers(0, 500), st.integers(0, 90)
        ),
        max_size=40,
    )
)
def test_whatever_comes_nothing_runs_past_its_expiry(steps: list[tuple[str, int, int, int]]) -> None:
    """In any order of calls: what may run has an acknowledged expiry that lies more than kill_ns ahead, its token is above
    every one that ended, and a deadline is set for it."""
    guard, now, ended, granted = Guard(KILL), 0, 0, 0
    for what, token, length, passed in steps:
        now += passed
        if what == "extend":
            if guard.extend(lease(token, now + length), now):
                assert token > ended
                granted = max(granted, now + length)
        elif what == "due":
            guard.due(now)
        else:
            held = guard.leases.get("nfs")
            guard.ended("nfs")
            ended = max(ended, held.token if held else 0)
        if guard.may_run("nfs", now):
            assert guard.leases["nfs"].until_ns - KILL > now
            assert guard.leases["nfs"].until_ns <= granted
            assert guard.leases["nfs"].token > ended
            assert guard.next_deadline_ns() <= granted - KILL
