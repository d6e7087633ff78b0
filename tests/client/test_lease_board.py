"""The leases that a node holds, as its other processes read them."""

from __future__ import annotations

import os
import time

from hasnmp.core.events import HeldLease
from hasnmp.core.guard import Guard
from hasnmp.runtime.lease_board import SLOTS, LeaseBoard


def test_what_was_shown_last_is_read() -> None:
    board = LeaseBoard()
    assert board.read("db") == (0, 0)
    board.show("db", 3, 1000)
    board.show("d", 9, 77)
    board.show("db", 4, 2000)
    assert (board.read("db"), board.read("d"), board.read("b")) == ((4, 2000), (9, 77), (0, 0))
    board.show("db", 0, 0)
    assert (board.read("db"), board.read("d")) == ((0, 0), (9, 77))


def test_places_are_used_again_and_what_finds_none_is_not_shown() -> None:
    board = LeaseBoard()
    for number in range(SLOTS + 5):
        board.show(f"group-{number}", number + 1, 5)
    assert board.read(f"group-{SLOTS - 1}") == (SLOTS, 5) and board.read(f"group-{SLOTS}") == (0, 0)
    board.show("group-0", 0, 0)
    board.show("late", 8, 6)
    assert board.read("late") == (8, 6) and board.read("group-0") == (0, 0)


def test_a_name_of_full_length() -> None:
    board = LeaseBoard()
    board.show("n" * 32, 1, 2)
    assert board.read("n" * 32) == (1, 2) and board.read("n" * 31) == (0, 0)


def test_it_is_shared_by_fork_and_never_read_half() -> None:
    """One process writes pairs that belong together as fast as it can; another reads."""
    board = LeaseBoard()
    board.show("db", 1, 1001)
    pid = os.fork()
    if pid == 0:
        number = 0
        while True:
            number += 1
            board.show("db", number, number + 1000)
    try:
        seen = set()
        deadline = time.monotonic() + 60
        while len(seen) < 200 and time.monotonic() < deadline:
            token, until_ns = board.read("db")
            assert (token, until_ns) == (0, 0) or until_ns == token + 1000
            seen.add(token)
        assert len(seen) >= 200
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def test_the_guard_shows_each_lease_and_wipes_it_out_before_it_ends() -> None:
    board = LeaseBoard()
    guard = Guard(150, show=board.show)
    assert guard.extend(HeldLease("db", 3, 1000), 0) and board.read("db") == (3, 1000)
    assert guard.extend(HeldLease("db", 3, 1500), 500) and board.read("db") == (3, 1500)
    assert guard.extend(HeldLease("db", 3, 1200), 500) and board.read("db") == (3, 1500)  # an older word
    guard.ended("db")
    assert board.read("db") == (0, 0)
    assert not guard.extend(HeldLease("db", 3, 9000), 600) and board.read("db") == (0, 0)
    assert guard.extend(HeldLease("db", 4, 2000), 600)
    assert guard.due(1850) == ("db",) and board.read("db") == (0, 0)
