"""Fence agents as the guardian runs them: of no group, without a lease, as long as their engine lives; and what a program
is given on standard input, which may be a password."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from hasnmp.core.events import Outcome, Release, Released
from hasnmp.runtime.becoming import MAX_STDIN
from hasnmp.runtime.messages import Alarm, Exited, Purpose, RunFailed, RunStarted
from tests.runtime.stack import Stack
from tests.runtime.test_guardian import SLEEP, lives, until

pytestmark = pytest.mark.serial


@pytest.fixture(params=["cgroup", "ordinary"])
def stack(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stack]:
    if request.param == "cgroup" and os.geteuid() != 0:
        pytest.skip("control groups need root")
    made = Stack(tmp_path, request.param)
    yield made
    made.close()


def agent(stack: Stack, *argv: str, stdin: str = "", timeout_ms: int = 0) -> int:
    return stack.program(*argv, service="", group="", purpose=Purpose.FENCE, stdin=stdin, timeout_ms=timeout_ms)


def test_it_needs_no_lease_and_outlives_a_group(stack: Stack) -> None:
    stack.lease(60000)
    pid = stack.expect(RunStarted, run=agent(stack, *SLEEP)).pid
    stack.send(Release("g", 1))
    assert stack.expect(Released).ok, "nothing of the group is left: a fence agent is none of it"
    refused = stack.expect(RunFailed, run=stack.program(*SLEEP, purpose=Purpose.FENCE))
    assert (refused.outcome, refused.text) == (Outcome.REFUSED, "a fence agent is of no group")
    assert lives(pid)


def test_it_ends_with_its_engine_and_nobody_hears_of_it(stack: Stack) -> None:
    """The next engine asks anew; an agent from before would act on the same device in the middle of that."""
    run = agent(stack, "sh", "-c", "trap '' TERM HUP INT; sleep 1000 & wait; wait")
    pid = stack.expect(RunStarted, run=run).pid
    os.kill(stack.engine_pid, signal.SIGKILL)
    hello = stack.accept()
    until(lambda: not lives(pid))
    assert hello.next_run == run + 1
    stack.lease(60000)
    again = agent(stack, "sh", "-c", "echo asked anew; exit 2")
    exited = stack.expect(Exited)
    assert (exited.run, exited.code, exited.output_tail, exited.group) == (again, 2, "asked anew\n", "")


def test_it_ends_when_the_lease_of_a_group_takes_the_engine_along(stack: Stack) -> None:
    pid = stack.expect(RunStarted, run=agent(stack, *SLEEP)).pid
    stack.lease(1000)
    stack.expect(RunStarted, run=stack.program(*SLEEP))
    stack.accept()
    assert "ended by force" in stack.expect(Alarm).text
    until(lambda: not lives(pid))


def test_it_ends_with_the_guardian(stack: Stack) -> None:
    pids = [stack.expect(RunStarted, run=agent(stack, *SLEEP)).pid for _ in range(2)]
    stack.process.terminate()
    assert stack.conn
    stack.conn.send(b"exit 0")
    stack.process.wait(30)
    assert not any(map(lives, pids))
    assert "not_ended" not in stack.log()


def test_a_time_limit_ends_it(stack: Stack) -> None:
    run = agent(stack, "sh", "-c", "trap '' TERM; while :; do sleep 0.05; done", stdin="action=off\n", timeout_ms=200)
    exited = stack.expect(Exited, run=run)
    assert exited.timed_out and exited.signal == signal.SIGKILL


@pytest.mark.parametrize("size", [1, 4096, MAX_STDIN])
def test_standard_input_is_given_whole_and_ends(stack: Stack, size: int) -> None:
    count = "import sys; data = sys.stdin.buffer.read(); print(len(data), set(data) == {120})"
    exited = stack.expect(Exited, run=agent(stack, "python3", "-c", count, stdin="x" * size))
    assert exited.output_tail == f"{size} True\n"


def test_too_long_a_standard_input_is_refused(stack: Stack) -> None:
    failed = stack.expect(RunFailed, run=agent(stack, "true", stdin="x" * (MAX_STDIN + 1)))
    assert failed.outcome is Outcome.FAILED and "65537 octets for standard input, 65536 are possible" in failed.text


def test_who_does_not_read_holds_nobody_up(stack: Stack) -> None:
    """The guardian is done with the pipe before the program starts: neither one that never reads nor one that closes it
    concerns it."""
    sleeping = stack.expect(RunStarted, run=agent(stack, *SLEEP, stdin="x" * MAX_STDIN)).pid
    for _ in range(5):
        closed = agent(stack, "sh", "-c", "exec <&-; exit 3", stdin="x" * MAX_STDIN)
        assert stack.expect(Exited, run=closed).code == 3
    assert lives(sleeping)
    fds = len(os.listdir(f"/proc/{stack.process.pid}/fd"))
    for _ in range(5):
        assert stack.expect(Exited, run=agent(stack, "true", stdin="x")).code == 0
    assert len(os.listdir(f"/proc/{stack.process.pid}/fd")) == fds, "the pipes are closed again"


def test_what_is_given_on_standard_input_is_seen_nowhere_else(stack: Stack) -> None:
    secret = "geheim-4711"
    run = agent(stack, "sleep", "1000", stdin=f"action=off\npassword={secret}\n")
    pid = stack.expect(RunStarted, run=run).pid
    for pids in (pid, stack.process.pid, stack.engine_pid):
        for place in ("cmdline", "environ"):
            assert secret.encode() not in Path(f"/proc/{pids}/{place}").read_bytes()
    failed = stack.expect(RunFailed, run=agent(stack, "no-such-agent", stdin=f"password={secret}"))
    assert failed.outcome is Outcome.MISSING and secret not in failed.text
    longer = stack.expect(RunFailed, run=agent(stack, "true", stdin=secret * 6000))
    assert secret not in longer.text
    assert stack.conn
    # What can't be understood, and what is refused, is told in the log.
    stack.conn.send(json.dumps({"is": "Run", "run": "x", "stdin": secret}).encode())
    stack.conn.send(json.dumps({"is": "Run", "run": 1, "stdin": secret, "odd": 1}).encode())
    stack.conn.send(f'{{"is": "Run", "stdin": "{secret}'.encode())
    stack.expect(RunFailed, run=stack.program("true", service="db", stdin=secret))
    until(lambda: stack.log().count("message_refused") == 3)
    assert secret not in stack.log()
