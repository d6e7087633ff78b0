"""Programs that are missing, hang, flood, fork and refuse to die; and what a program is given."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hasnmp.core.events import Outcome
from hasnmp.runtime import proc
from hasnmp.runtime.kernel import boottime_ns
from hasnmp.runtime.messages import End, Exited, Purpose, RunFailed, RunStarted, Signal
from tests.cluster.control import overdue_ms, stalled_ms
from tests.runtime.stack import MS, Stack
from tests.runtime.test_guardian import lives, read_pid, until

pytestmark = pytest.mark.serial
root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture(params=["cgroup", "ordinary"])
def stack(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stack]:
    if request.param == "cgroup" and os.geteuid() != 0:
        pytest.skip("control groups need root")
    made = Stack(tmp_path, request.param)
    made.lease(60000)
    yield made
    made.close()


def worst_late_ms(stack: Stack) -> float:
    """How late the guardian's timer was at worst; ends it."""
    assert stack.conn
    stack.process.terminate()
    stack.conn.send(b"exit 0")
    stack.process.wait(30)
    last = [json.loads(line) for line in stack.log().splitlines() if "guardian_ended" in line][-1]
    return float(last["worst_late_us"]) / 1000


def test_a_program_ignores_no_signal_that_whoever_started_the_daemon_ignored(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGQUIT, signal.SIG_IGN)  # as a shell does for what runs in its background
    try:
        stack = Stack(tmp_path, "ordinary")
    finally:
        signal.signal(signal.SIGQUIT, before)
    try:
        stack.lease(60000)
        run = stack.program("grep", "-E", "^Sig(Ign|Blk)", "/proc/self/status", purpose=Purpose.CHECK)
        found = dict(line.split() for line in stack.expect(Exited, run=run).output_tail.splitlines())
        number = signal.SIGQUIT - 1  # 32 and 33 are the C library's own, and nobody's to set: see signal(7)
        assert not any(int(mask, 16) >> number & 1 for mask in found.values()), found
        assert found.keys() == {"SigBlk:", "SigIgn:"}
    finally:
        stack.close()


@pytest.mark.parametrize(
    ("argv", "more", "outcome", "text"),
    [
        (("no-such-program",), {}, Outcome.MISSING, "no-such-program: No such file or directory"),
        (("/etc/passwd",), {}, Outcome.MISSING, "/etc/passwd: Permission denied"),
        (("true",), {"cwd": "/nowhere"}, Outcome.MISSING, "directory /nowhere: No such file or directory"),
        (("true",), {"user": "no-such-user"}, Outcome.FAILED, "user no-such-user: no such user"),
        ((), {}, Outcome.FAILED, "an empty command"),
        (("tr\0ue",), {}, Outcome.FAILED, "null"),
    ],
)
def test_what_can_not_be_started_says_why(
    stack: Stack, argv: tuple[str, ...], more: dict[str, Any], outcome: Outcome, text: str
) -> None:
    failed = stack.expect(RunFailed, run=stack.program(*argv, **more))
    assert failed.outcome is outcome
    assert text in failed.text
    run = stack.program("true")  # and the service's place is free again
    stack.expect(RunStarted, run=run)
    assert stack.expect(Exited, run=run).code == 0


def test_a_program_runs_with_an_ordinary_priority(stack: Stack) -> None:
    """The guardian has real-time priority, and what it starts has it up to its first instruction and no longer."""
    run = stack.program(sys.executable, "-I", "-S", "-c", "import os; print(os.sched_getscheduler(0), os.nice(0))")
    stack.expect(RunStarted, run=run)
    assert stack.expect(Exited, run=run).output_tail == f"{os.SCHED_OTHER} 0\n"


def test_a_hanging_check_is_ended_at_its_time_limit(stack: Stack, tmp_path: Path) -> None:
    hang = "trap '' TERM; sleep 1000 & echo $! > child; echo waiting; wait; wait"
    took_us: list[int] = []
    while min(took_us, default=1 << 30) >= 1_100_000:  # what is killed ends when the machine has time for it
        (tmp_path / "child").unlink(missing_ok=True)
        run = stack.program("sh", "-c", hang, purpose=Purpose.CHECK, timeout_ms=1000, cwd=str(tmp_path))
        stack.expect(RunStarted, run=run)
        child = read_pid(tmp_path / "child")
        exited = stack.expect(Exited, run=run)
        assert exited.timed_out
        assert (exited.code, exited.signal, exited.output_tail) == (-1, signal.SIGKILL, "waiting\n")
        until(lambda child=child: not lives(child))  # type: ignore[misc]
        took_us.append(exited.took_us)
        assert len(took_us) <= 5, took_us
    assert min(took_us) >= 1_000_000


def test_a_flood_of_output_delays_nothing(stack: Stack) -> None:
    began_ns = time.monotonic_ns()
    floods = [stack.program("sh", "-c", "exec yes flooding-the-guardian", service=f"flood{n}") for n in range(2)]
    for run in floods:
        stack.expect(RunStarted, run=run)
    took_ms = []
    for _ in range(20):
        asked = boottime_ns()
        stack.lease(60000)
        took_ms.append(overdue_ms(asked, boottime_ns()))
        time.sleep(0.05)
    for run in floods:
        stack.send(End(run))
        tail = stack.expect(Exited, run=run).output_tail
        assert len(tail) <= 1024
        assert "flooding-the-guardian\n" in tail
    assert sorted(took_ms)[15] < 100, took_ms  # two floods and the engine that passes it on share two processors
    assert worst_late_ms(stack) - stalled_ms(began_ns, time.monotonic_ns()) < 30


def test_a_program_that_forks_is_ended_whole(stack: Stack, tmp_path: Path) -> None:
    tree = "for i in 1 2 3 4 5 6 7 8; do (trap '' TERM HUP INT; sleep 1000; sleep 1000) & echo $! >> pids; done; wait"
    run = stack.program("sh", "-c", tree, cwd=str(tmp_path))
    main = stack.expect(RunStarted, run=run).pid
    until(lambda: (tmp_path / "pids").exists() and len((tmp_path / "pids").read_text().split()) == 8)
    pids = [main, *map(int, (tmp_path / "pids").read_text().split())]
    assert all(map(lives, pids))
    stack.send(End(run))
    stack.expect(Exited, run=run)
    until(lambda: not any(map(lives, pids)))


def test_what_a_program_leaves_behind_ends_with_it(stack: Stack, tmp_path: Path) -> None:
    leave = "setsid sh -c 'echo $$ > stray; exec sleep 1000' & sleep 1000 & echo $! > child; sleep 0.2"
    run = stack.program("sh", "-c", leave, cwd=str(tmp_path))
    stack.expect(RunStarted, run=run)
    stray, child = read_pid(tmp_path / "stray"), read_pid(tmp_path / "child")
    assert stack.expect(Exited, run=run).code == 0
    until(lambda: not lives(child) and not lives(stray))  # dead, but the kernel may still be burying them
    again = stack.program("true")
    stack.expect(RunStarted, run=again)


def test_signals_reach_the_process_group(stack: Stack, tmp_path: Path) -> None:
    run = stack.program("sh", "-c", "trap 'echo got it; exit 3' USR1; : >ready; sleep 1000 & wait", cwd=str(tmp_path))
    stack.expect(RunStarted, run=run)
    until(lambda: (tmp_path / "ready").exists())
    stack.send(Signal(run, signal.SIGUSR1))
    exited = stack.expect(Exited, run=run)
    assert (exited.code, exited.output_tail) == (3, "got it\n")
    stack.send(Signal(run, signal.SIGUSR1))  # of what has ended: nothing
    stack.send(End(run))
    stack.lease(60000)


def test_a_service_runs_once(stack: Stack) -> None:
    stack.expect(RunStarted, run=stack.program("sleep", "1000"))
    failed = stack.expect(RunFailed, run=stack.program("sleep", "1000"))
    assert (failed.outcome, failed.text) == (Outcome.FAILED, "a program of web still runs")


def test_what_a_program_is_given(stack: Stack, tmp_path: Path) -> None:
    look = "import os,json;print(json.dumps([os.getpid()==os.getsid(0)==os.getpgrp(),sorted(map(int,os.listdir('/proc/self/fd')))[:4]," \
        "open('/proc/self/oom_score_adj').read(),os.sched_getscheduler(0),os.environ['A'],os.environ['HASNMP_GROUP']," \
        "os.environ.get('NOTIFY_SOCKET'),os.getcwd(),os.readlink('/proc/self/fd/0')," \
        "open('/proc/self/status').read().split('SigBlk:')[1].split()[0]]))"  # fmt: skip
    run = stack.program("python3", "-c", look, env={"A": "b"}, cwd=str(tmp_path))
    exited = stack.expect(Exited, run=run)
    given = json.loads(exited.output_tail)
    assert given == [True, [0, 1, 2, 3], "0\n", os.SCHED_OTHER, "b", "g", None, str(tmp_path), "/dev/null", "0" * 16]


@root
def test_what_is_to_be_spared_when_memory_runs_out(stack: Stack) -> None:
    run = stack.program("cat", "/proc/self/oom_score_adj", user="nobody", cwd="/", oom_score_adjust=300)
    assert stack.expect(Exited, run=run).output_tail == "300\n"
    # Less than its own is what a machine may refuse even to root; then the program runs all the same, as what it would be without.
    run = stack.program("cat", "/proc/self/oom_score_adj", user="nobody", cwd="/", oom_score_adjust=-900)
    assert stack.expect(Exited, run=run).output_tail == ("-900\n" if spared() else "0\n")


def spared() -> bool:
    """Does this machine let root go below 0?"""
    return subprocess.run(["choom", "-n", "-900", "true"], capture_output=True).returncode == 0


@root
def test_another_user(stack: Stack) -> None:
    run = stack.program("sh", "-c", "id -un; id -Gn; echo $HOME", user="nobody", cwd="/")
    assert stack.expect(Exited, run=run).output_tail.split()[:2] == ["nobody", "nogroup"]
    pid = stack.expect(RunStarted, run=stack.program("sleep", "1000", user="nobody", cwd="/")).pid
    os.kill(stack.process.pid, signal.SIGKILL)
    until(lambda: not lives(pid))


@root
@pytest.mark.alone
def test_a_fork_bomb_is_ended_in_time(tmp_path: Path) -> None:
    # Hundreds of processes that are killed end one after the other, as the processors have time for them: kill_ms is for that.
    stack = Stack(tmp_path, "cgroup", kill_ms=1000)
    try:
        expiry = stack.lease(2000)
        # Bounded, so that a defect here does not cost the machine: 3 levels of 6, each born anew when it dies.
        bomb = "b() { [ $1 -gt 0 ] || exec sleep 1000; for i in 1 2 3 4 5 6; do (while :; do b $(($1-1)); done) & done; wait; }; b 3"
        stack.expect(RunStarted, run=stack.program("sh", "-c", bomb))
        os.kill(stack.engine_pid, signal.SIGSTOP)
        folder = next(Path("/sys/fs/cgroup").rglob(f"hasnmp-{stack.arguments[1]}-n*"))
        until(lambda: len((folder / "g" / "web" / "cgroup.procs").read_text().split()) > 50)
        ended = until(lambda: "populated 0" in (folder / "cgroup.events").read_text())
        late_ms = overdue_ms(expiry, ended, expiry - 1000 * MS)
        assert late_ms <= 0, f"{late_ms} ms too late"
        stack.accept()
    finally:
        stack.close()


def test_programs_nested_deep_in_each_other_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deeper than Python's own stack: a guardian that fails over this ends every service."""
    monkeypatch.setattr(proc, "children", lambda pid: [pid + 1] if pid < 5000 else [])
    assert list(proc.tree(1)) == list(range(2, 5001))
