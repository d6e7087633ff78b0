"""An agent process that is stopped, hangs or dies again and again: it is ended and started anew, and the engine is told."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from hasnmp.core.events import Troubled
from hasnmp.runtime import vigil
from hasnmp.runtime.messages import RunStarted
from tests.runtime.stack import Stack
from tests.runtime.test_guardian import SLEEP, lives, until

pytestmark = pytest.mark.serial


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    (tmp_path / "agent").write_text("counts")
    made = Stack(tmp_path, "ordinary")
    yield made
    (tmp_path / "agent").write_text("dies")
    made.close()


def agents(stack: Stack) -> list[int]:
    file = stack.folder / "agent.pids"
    return [int(pid) for pid in file.read_text().split()] if file.exists() else []


def works(stack: Stack) -> None:
    assert stack.expect(Troubled, 10, name="snmp").text == ""


@pytest.mark.parametrize("how", ["is stopped", "hangs"])
def test_one_that_does_nothing_is_ended_and_nothing_else(stack: Stack, how: str) -> None:
    works(stack)
    stack.lease(60_000)
    web = stack.expect(RunStarted, run=stack.program(*SLEEP)).pid
    engine, first = stack.engine_pid, agents(stack)[0]
    if how == "is stopped":
        os.kill(first, signal.SIGSTOP)
    else:
        (stack.folder / "agent").write_text("hangs")
    told = stack.expect(Troubled, 10, name="snmp")
    assert f"process snmp (pid {first}) hangs: it has done nothing for" in told.text
    (stack.folder / "agent").write_text("counts")
    works(stack)
    assert not lives(first) and lives(agents(stack)[-1]) and agents(stack)[-1] != first
    assert lives(engine) and engine == stack.engine_pid and lives(web)


def test_one_that_dies_again_and_again_is_told_of(stack: Stack) -> None:
    works(stack)
    (stack.folder / "agent").write_text("dies")
    assert "process snmp died 3 times in a row or more" in stack.expect(Troubled, 20, name="snmp").text
    (stack.folder / "agent").write_text("counts")
    works(stack)
    assert stack.expect(Troubled, 10, name="lease_io").text == ""  # it was well from the start, and that was said once


def test_a_guardian_that_was_stopped_itself_counts_no_silence(stack: Stack) -> None:
    works(stack)
    agent = agents(stack)[-1]
    everybody = (agent, stack.engine_pid, stack.process.pid)
    for pid in everybody:
        os.kill(pid, signal.SIGSTOP)
    with contextlib.suppress(subprocess.TimeoutExpired):
        stack.process.wait(4)  # longer than an agent may be silent
    for pid in reversed(everybody):
        os.kill(pid, signal.SIGCONT)
    stack.lease(60_000)  # the guardian works again
    web = stack.expect(RunStarted, run=stack.program(*SLEEP)).pid
    assert lives(web) and lives(agent) and agents(stack) == [agent]


TRACER = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
pid = int(sys.argv[1])
assert libc.ptrace(16, pid, 0, 0) == 0, os.strerror(ctypes.get_errno())
os.waitpid(pid, 0x40000000)
print("held", flush=True)
sys.stdin.read()
"""


def test_one_that_a_debugger_holds_is_let_be(stack: Stack) -> None:
    works(stack)
    agent = agents(stack)[-1]
    assert ctypes.sizeof(ctypes.c_long) == 8
    tracer = subprocess.Popen(
        [sys.executable, "-c", TRACER, str(agent)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert tracer.stdout and tracer.stdout.readline() == "held\n"
        told = stack.expect(Troubled, 10, name="snmp").text
        assert told == f"process snmp (pid {agent}) is held by its debugger, process {tracer.pid}"
        assert lives(agent)
    finally:
        tracer.communicate("")
    works(stack)
    assert until(lambda: agents(stack) == [agent])


def test_one_from_before_a_handover_is_let_be() -> None:
    """It counts in memory of the former guardian's, and is replaced in its turn; however long the others before it take."""
    child = subprocess.Popen(["sleep", "1000"])
    told: list[Troubled] = []
    other = SimpleNamespace(name=vigil.COUNTED, pid=child.pid, started_ns=0, deaths=0)
    watch = vigil.Vigil(SimpleNamespace(family=SimpleNamespace(others=[other]), _tell=told.append))  # type: ignore[arg-type]
    try:
        for ended in (False, True):
            for _ in range(2 * vigil.SILENT_NS // vigil.LOOK_NS):
                watch.poll((watch.looked_ns or watch.begun_ns) + vigil.LOOK_NS)
            assert any("hangs" in each.text for each in told) == ended
            other.started_ns = watch.begun_ns  # forked from here: now it is counted
        assert child.wait(10) == -signal.SIGKILL
    finally:
        child.kill()
        child.wait()
