"""An engine that is frozen while its leases run out: it is replaced while they last, and only it."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hasnmp.core.events import HeldLease
from hasnmp.core.guard import Guard
from hasnmp.runtime.messages import Alarm, Alive, Ask, Channel, RunStarted, channel_pair
from hasnmp.runtime.processes import S
from hasnmp.runtime.pulse import ANSWER_NS, Pulse
from tests.runtime.stack import MS, Stack
from tests.runtime.test_guardian import SLEEP, forked_ns, lives

pytestmark = pytest.mark.serial
DEAF = "it does not answer for 100 ms while its leases run out"


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    (tmp_path / "pulse").touch()
    made = Stack(tmp_path, "ordinary")
    time.sleep(0.2)  # the engine is no longer young
    yield made
    made.close()


def test_a_frozen_engine_is_replaced_while_another_can_adopt_its_groups(stack: Stack) -> None:
    until = stack.lease(3000)
    web = stack.expect(RunStarted, run=stack.program(*SLEEP)).pid
    first = stack.engine_pid
    os.kill(first, signal.SIGSTOP)
    hello = stack.accept()
    assert [(lease.group, lease.until_ns) for lease in hello.leases] == [("g", until)]
    assert not lives(first) and lives(web)
    assert [running.pid for running in hello.running] == [web]
    assert DEAF in stack.log()


def test_one_that_answers_is_let_be_though_it_extends_nothing(stack: Stack) -> None:
    stack.lease(1500)
    web = stack.expect(RunStarted, run=stack.program(*SLEEP)).pid
    stack.accept()  # its lease has run out, as that of a node that is cut off does
    assert not lives(web)
    assert "the lease of g ends" in stack.log() and DEAF not in stack.log()
    assert "ended by force" in stack.expect(Alarm).text


def test_where_there_is_no_time_for_another_nothing_is_asked(stack: Stack) -> None:
    expiry = stack.lease(500)
    web = stack.expect(RunStarted, run=stack.program(*SLEEP)).pid
    os.kill(stack.engine_pid, signal.SIGSTOP)
    hello = stack.accept()
    assert not lives(web) and hello.leases == () and hello.unbound == ("g",)
    assert forked_ns(stack.engine_pid) >= expiry - 160 * MS
    assert "the lease of g ends" in stack.log() and DEAF not in stack.log()


@pytest.mark.parametrize("answers", [False, True])
def test_a_channel_whose_number_is_above_what_select_takes(answers: bool) -> None:
    """As on a node with a thousand programs, a pipe each: the guardian lives on, and so does an engine that has answered."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1200), hard))
    mine, its = channel_pair()
    channel = Channel(socket.socket(fileno=fcntl.fcntl(mine.fileno(), fcntl.F_DUPFD_CLOEXEC, 1100)))
    guard, told, killed = Guard(150 * MS), list[Any](), list[str]()
    guard.extend(HeldLease("g", 1, 20 * S), 10 * S)
    guardian: Any = SimpleNamespace(
        channel=channel, guard=guard, heard_ns=10 * S, config=SimpleNamespace(heartbeat=SimpleNamespace(interval_ms=100)),
        family=SimpleNamespace(engine=SimpleNamespace(started_ns=0)), _tell=told.append, _kill_engine=killed.append,
    )  # fmt: skip
    pulse = Pulse(guardian)
    pulse.poll(asked_ns := pulse.next_deadline_ns())
    assert told == [Ask()] and pulse.next_deadline_ns() == asked_ns + ANSWER_NS
    if answers:
        its.send(Alive())
    pulse.poll(asked_ns + ANSWER_NS)
    assert killed == ([] if answers else [DEAF])
    for end in (mine, its, channel):
        end.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
