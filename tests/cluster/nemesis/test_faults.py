"""Who stands still is known exactly: the checker forgives a frozen node what it would not forgive another."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from tests.cluster.nemesis.faults import Faults, state
from tests.cluster.pair import boot_ns

ROLES = ("guardian", "engine", "lease")


class Stack:
    """Processes that do nothing, as the stack of node a; b has none. They can be started anew."""

    def __init__(self) -> None:
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.former: list[subprocess.Popen[bytes]] = []
        self.start(*ROLES)
        self.lab = {node: SimpleNamespace(signal=self._signal, processes=dict) for node in ("a", "b")}

    def start(self, *roles: str) -> None:
        for role in roles:
            self.former += [self.processes[role]] if role in self.processes else []
            self.processes[role] = subprocess.Popen(["sleep", "1000"])

    def pids(self, node: str, *roles: str) -> list[int]:
        return [p.pid for role, p in self.processes.items() if node == "a" and (not roles or role in roles)]

    @staticmethod
    def _signal(number: signal.Signals, pids: set[int]) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def close(self) -> None:
        for process in [*self.former, *self.processes.values()]:
            process.kill()
            process.wait(30)


@pytest.fixture
def stack() -> Iterator[Stack]:
    stack = Stack()
    yield stack
    stack.close()


@pytest.fixture
def faults(stack: Any) -> Faults:
    return Faults(stack, SimpleNamespace(), lambda: "a", lambda *_: None)  # type: ignore[arg-type]


def test_a_stopped_stack_is_frozen_from_its_stop_until_it_goes_on(faults: Faults, stack: Stack) -> None:
    before = boot_ns()
    end = faults.stop("a", "stack")
    stopped = boot_ns()
    assert {state(pid) for pid in stack.pids("a", "guardian", "engine")} == {"T"} and not faults.frozen
    going_on = boot_ns()
    end()
    (one,) = faults.frozen
    assert one.node == "a" and before < one.since_ns <= stopped <= going_on <= one.until_ns < boot_ns()


def test_who_stops_another_part_later_does_not_begin_it_anew(faults: Faults) -> None:
    ends = [faults.stop("a", "stack")]
    stopped = boot_ns()
    ends += [faults.stop("a", "guardian"), faults.stop("a", "lease")]
    ends[2]()  # lease i/o alone ends nothing
    faults.kill("a", "engine")  # a stopped guardian forks no other
    assert not faults.frozen
    ends[1]()
    assert [one.since_ns <= stopped for one in faults.frozen] == [True]
    ends[0]()
    assert len(faults.frozen) == 1


@pytest.mark.parametrize("what", ["engine", "guardian", "lease"])
def test_while_one_of_the_two_that_end_groups_runs_the_node_is_not_frozen(faults: Faults, what: str) -> None:
    faults.stop("a", what)()
    assert not faults.frozen


def test_the_guardians_death_ends_it(faults: Faults, stack: Stack) -> None:
    faults.stop("a", "stack")
    faults.kill("a", "guardian")
    assert [one.node for one in faults.frozen] == ["a"]
    stack.start("guardian")  # as its supervisor does
    faults.stop("a", "lease")
    assert len(faults.frozen) == 1


def test_what_is_not_there_can_not_be_frozen(faults: Faults) -> None:
    faults.stop("b", "stack")()
    faults.kill("a", "guardian")
    faults.stop("a", "stack")()
    assert not faults.frozen
