"""Services that a command starts and leaves running: the guardian keeps them in their control group, and ends them with it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hasnmp.core.events import Outcome, Release, Released
from hasnmp.runtime.cgroups import find_mount
from hasnmp.runtime.kernel import boottime_ns
from hasnmp.runtime.messages import End, Exited, Purpose, RunFailed, RunStarted, Stop
from tests.cluster.control import overdue_ms
from tests.runtime.stack import Stack
from tests.runtime.test_guardian import lives, read_pid, until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="control groups need root")
# What a start leaves: a daemon in the process group of its starter, and one in a session of its own.
LEAVE = "sleep 1000 & echo $! > near; setsid sh -c 'echo $$ > far; exec sleep 1000' & while [ ! -s far ]; do sleep 0.01; done"


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    stack = Stack(tmp_path, "cgroup")
    stack.lease(60_000)
    yield stack
    stack.close()


def started(stack: Stack, folder: Path, more: str = "") -> list[int]:
    run = stack.program("sh", "-c", LEAVE + more, purpose=Purpose.START, cwd=str(folder))
    assert stack.expect(Exited, run=run).code == 0
    pids = [read_pid(folder / "near"), read_pid(folder / "far")]
    assert all(map(lives, pids))
    return pids


def test_what_a_start_leaves_lives_until_the_lease_ends(tmp_path: Path) -> None:
    stack = Stack(tmp_path, "cgroup")
    try:
        expiry = stack.lease(1500)
        leave_until_the_end(stack, tmp_path, expiry)
    finally:
        stack.close()


def leave_until_the_end(stack: Stack, tmp_path: Path, expiry: int) -> None:
    pids = started(stack, tmp_path)
    check = stack.program("true", purpose=Purpose.CHECK)
    stack.expect(Exited, run=check)
    assert all(map(lives, pids)), "a check's end is no end of the service"
    assert overdue_ms(expiry, until(lambda: not any(map(lives, pids))), expiry - 150_000_000) < 0


def test_a_stop_that_ended_well_ends_the_rest_too(stack: Stack, tmp_path: Path) -> None:
    near, far = started(stack, tmp_path)
    failed = stack.program("sh", "-c", "exit 1", purpose=Purpose.STOP)
    stack.expect(Exited, run=failed)
    assert lives(near) and lives(far), "a stop that failed ends nothing"
    stop = stack.program("sh", "-c", f"kill {near}; exit 7", purpose=Purpose.STOP)
    assert stack.expect(Exited, run=stop).code == 7
    until(lambda: not lives(near) and not lives(far))
    stack.send(Release("g", 1))
    assert stack.expect(Released).ok


def test_a_release_is_refused_while_something_of_it_lives(stack: Stack, tmp_path: Path) -> None:
    near, far = started(stack, tmp_path)
    stack.send(Release("g", 1))
    refused = stack.expect(Released)
    assert not refused.ok and f"process {near}" in refused.text and f"process {far}" in refused.text


def test_a_start_that_is_ended_leaves_the_service_to_its_stop(stack: Stack, tmp_path: Path) -> None:
    run = stack.program("sh", "-c", LEAVE + "; sleep 1000", purpose=Purpose.START, cwd=str(tmp_path), timeout_ms=1500)
    main = stack.expect(RunStarted, run=run).pid
    far = read_pid(tmp_path / "far")
    exited = stack.expect(Exited, run=run)
    assert exited.timed_out and not lives(main)
    assert lives(far), "what has left its starter may be the service already: the stop has to end it in order"
    stop = stack.program("true", purpose=Purpose.STOP)
    stack.expect(Exited, run=stop)
    until(lambda: not lives(far))


def test_the_next_engine_hears_what_is_up_and_what_is_not(stack: Stack, tmp_path: Path) -> None:
    pids = started(stack, tmp_path)
    half = stack.program("sh", "-c", "exit 1", service="db", purpose=Purpose.START)
    stack.expect(Exited, run=half)
    os.kill(stack.engine_pid, signal.SIGKILL)
    rows = [(row.service, row.run, row.pid, row.purpose) for row in stack.accept().running]
    assert rows == [("web", 0, 0, Purpose.START)], "a start that failed leaves nothing to be adopted"
    assert all(map(lives, pids))
    stop = stack.program("true", purpose=Purpose.STOP)
    stack.expect(Exited, run=stop)
    os.kill(stack.engine_pid, signal.SIGKILL)
    assert stack.accept().running == ()


def test_what_was_being_stopped_is_not_up_to_the_next_engine(stack: Stack, tmp_path: Path) -> None:
    """Else it would be shown as running until its next check, and nobody would start it again."""
    started(stack, tmp_path)
    stop = stack.program("sh", "-c", "sleep 1000", purpose=Purpose.STOP)
    pid = stack.expect(RunStarted, run=stop).pid
    os.kill(stack.engine_pid, signal.SIGKILL)
    rows = [(row.run, row.pid, row.purpose) for row in stack.accept().running]
    assert rows == [(stop, pid, Purpose.STOP)], "it is waited for before the service is started again"


def test_a_start_goes_on_while_no_engine_lives(stack: Stack, tmp_path: Path) -> None:
    run = stack.program("sh", "-c", f"sleep 0.5; {LEAVE}", purpose=Purpose.START, cwd=str(tmp_path))
    pid = stack.expect(RunStarted, run=run).pid
    os.kill(stack.engine_pid, signal.SIGKILL)
    assert [(row.run, row.pid) for row in stack.accept().running] == [(run, pid)]
    assert stack.expect(Exited, run=run).code == 0
    assert lives(read_pid(tmp_path / "far"))


def test_a_dead_guardian_leaves_none_of_it(stack: Stack, tmp_path: Path) -> None:
    pids = started(stack, tmp_path)
    os.kill(stack.process.pid, signal.SIGKILL)
    until(lambda: not any(map(lives, pids)))


def test_without_control_groups_nothing_is_left_running(tmp_path: Path) -> None:
    stack = Stack(tmp_path, "ordinary")
    try:
        stack.lease(60_000)
        run = stack.program("true", purpose=Purpose.START)
        failed = stack.expect(RunFailed, run=run)
        assert failed.outcome is Outcome.FAILED and "can write no control group" in failed.text
        stack.send(End(run))
        stack.lease(60_000)
    finally:
        stack.close()


def test_a_systemd_unit_ends_with_the_lease_of_its_group(tmp_path: Path) -> None:
    mount = find_mount()
    assert mount
    folder = mount / f"hasnmptest{os.getpid()}.slice" / f"hasnmp-test-{os.getpid()}.service"
    folder.mkdir(parents=True)
    stack = Stack(tmp_path, "cgroup", unit=folder.name.removesuffix(".service"))
    unit = subprocess.Popen(["sleep", "1000"])
    try:
        expiry = stack.lease(1500)
        (folder / "cgroup.procs").write_text(str(unit.pid))
        stack.send(Release("g", 1))
        refused = stack.expect(Released)
        assert not refused.ok and f"process {unit.pid} ({folder.name})" in refused.text
        assert unit.wait(30) == -signal.SIGKILL and overdue_ms(expiry, boottime_ns(), expiry - 150_000_000) < 0
    finally:
        unit.kill()
        unit.wait()
        stack.close()
        folder.rmdir()
        folder.parent.rmdir()


@pytest.mark.parametrize("accept", [False, True])
def test_what_no_force_ends_restarts_a_machine_that_must_be_certain(tmp_path: Path, accept: bool) -> None:
    stack = Stack(tmp_path, "cgroup", agent="ocf:heartbeat:LVM-activate", disk=True, accept=accept)
    try:
        stack.lease(2000)
        run = stack.program("true", service="other", purpose=Purpose.START)
        assert stack.expect(Exited, run=run).code == 0
        if accept:
            stack.accept()
            until(
                lambda: (
                    "of it may be left, and nobody looks: what other (ocf:heartbeat:LVM-activate) set up" in stack.log()
                )
            )
        else:
            until(lambda: (tmp_path / "restarted").exists())
            assert "what other (ocf:heartbeat:LVM-activate) set up" in stack.log()
    finally:
        stack.close()


def test_an_agent_that_was_never_executed_has_set_up_nothing(tmp_path: Path) -> None:
    stack = Stack(tmp_path, "cgroup", agent="ocf:heartbeat:LVM-activate", disk=True)
    try:
        stack.lease(60_000)
        run = stack.program("/nowhere/agent", service="other", purpose=Purpose.START)
        assert stack.expect(RunFailed, run=run).outcome is Outcome.MISSING
        stack.send(Release("g", 1))
        assert stack.expect(Released).ok
    finally:
        stack.close()


def test_a_systemd_unit_ends_with_the_guardian(tmp_path: Path) -> None:
    """The engine has given up stopping its group in order, and left; nobody else knows of the unit."""
    mount = find_mount()
    assert mount
    folder = mount / f"hasnmptest{os.getpid()}.slice" / f"hasnmp-test-{os.getpid()}.service"
    folder.mkdir(parents=True)
    stack = Stack(tmp_path, "cgroup", unit=folder.name.removesuffix(".service"))
    unit = subprocess.Popen(["sleep", "1000"])
    try:
        stack.lease(60_000)
        (folder / "cgroup.procs").write_text(str(unit.pid))
        stack.process.terminate()
        stack.expect(Stop)
        assert stack.conn
        stack.conn.send(b"exit 0")
        assert stack.process.wait(10) == 0
        assert unit.wait(0.1) == -signal.SIGKILL
    finally:
        unit.kill()
        unit.wait()
        stack.close()
        folder.rmdir()
        folder.parent.rmdir()


def test_a_systemd_unit_of_a_group_that_the_file_has_no_more_is_ended_at_the_start(tmp_path: Path) -> None:
    mount = find_mount()
    assert mount
    folder = mount / f"hasnmptest{os.getpid()}.slice" / f"hasnmp-test-{os.getpid()}.service"
    folder.mkdir(parents=True)
    stack = Stack(tmp_path, "cgroup", unit=folder.name.removesuffix(".service"))
    unit = subprocess.Popen(["sleep", "1000"])
    try:
        stack.lease(60_000)
        (folder / "cgroup.procs").write_text(str(unit.pid))
        for pid in (stack.engine_pid, stack.process.pid):
            os.kill(pid, signal.SIGSTOP)
        for pid in (stack.engine_pid, stack.process.pid):
            os.kill(pid, signal.SIGKILL)
        stack.process.wait()
        stack.configure(groups="h")
        hello = stack.start()
        assert unit.wait(5) == -signal.SIGKILL
        (line,) = hello.cleaned
        assert line.startswith(f"process {unit.pid} ({folder.name}, of no group any more;")
        assert f"{folder.name}.d/50-hasnmp.conf" in line, "systemd would refuse its start for ever"
    finally:
        unit.kill()
        unit.wait()
        stack.close()
        folder.rmdir()
        folder.parent.rmdir()


@pytest.mark.parametrize("purpose", [Purpose.START, Purpose.SERVICE])
def test_what_runs_in_a_session_of_its_user_ends_with_the_lease(tmp_path: Path, purpose: Purpose) -> None:
    """Where systemd-logind runs, su moves what it starts to a control group of the session (pam_systemd)."""
    mount = find_mount()
    assert mount
    folders = [mount / "user.slice", mount / f"user.slice/hasnmptest{os.getpid()}.slice"]
    folders.append(folders[-1] / f"session-c{os.getpid()}.scope")
    made = [folder for folder in folders if not folder.exists()]
    folders[-1].mkdir(parents=True)
    su = "echo $$ > $1/cgroup.procs; sleep 1000 & echo $! > far" + "; wait" * (purpose is Purpose.SERVICE)
    stack = Stack(tmp_path, "cgroup")
    try:
        expiry = stack.lease(2500)
        run = stack.program("sh", "-c", f"sh -c '{su}' sh {folders[-1]}", purpose=purpose, cwd=str(tmp_path))
        pid = read_pid(tmp_path / "far")
        if purpose is Purpose.START:
            assert stack.expect(Exited, run=run).code == 0
            assert "/g/web\n" in Path(f"/proc/{pid}/cgroup").read_text(), "it is of the service"
        assert overdue_ms(expiry, until(lambda: not lives(pid)), expiry - 150_000_000) < 0
    finally:
        stack.close()
        (folders[-1] / "cgroup.kill").write_text("1")
        until(lambda: "populated 0" in (folders[-1] / "cgroup.events").read_text())
        for folder in reversed(made):
            folder.rmdir()


def test_a_start_after_a_stop_that_left_something_is_not_killed_with_it(tmp_path: Path, stack: Stack) -> None:
    """Linux 6.13 and later kill what is born in a control group that was killed once, even long before."""
    for _ in range(20):
        run = stack.program("sh", "-c", "sleep 1000 &", purpose=Purpose.START)
        started = stack.expect(Exited, run=run)
        assert (started.code, started.signal) == (0, 0), "killed by the end of the former"
        run = stack.program("true", purpose=Purpose.STOP)
        assert stack.expect(Exited, run=run).code == 0
