"""The guardian with real processes: what runs, what must not run, and what is ended in time."""

from __future__ import annotations

import json
import logging
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hasnmp.core.events import Extend, Extended, HeldLease, Outcome, Release, Released
from hasnmp.runtime import processes
from hasnmp.runtime.kernel import boottime_ns, start_time
from hasnmp.runtime.messages import Alarm, Alive, End, Exited, Purpose, RunFailed, RunStarted, Stop
from hasnmp.settings import Log
from tests.cluster.control import overdue_ms
from tests.runtime.stack import MS, Stack

pytestmark = pytest.mark.serial
SLEEP = ("sleep", "1000")


@pytest.fixture(params=["cgroup", "ordinary"])
def stack(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stack]:
    if request.param == "cgroup" and os.geteuid() != 0:
        pytest.skip("control groups need root")
    made = Stack(tmp_path, request.param)
    yield made
    made.close()


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(true: Callable[[], object], within_s: float = 10) -> int:
    """Gives CLOCK_BOOTTIME (ns) when it came true. within_s keeps from hanging; what has to be soon is asserted of the answer."""
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, f"not within {within_s} s"
        time.sleep(0.0005)
    return boottime_ns()


def forked_ns(pid: int) -> int:
    """When the kernel made this process, CLOCK_BOOTTIME; rounded down to 10 ms."""
    return start_time(pid) * (1_000_000_000 // os.sysconf("SC_CLK_TCK"))


def read_pid(path: Path) -> int:
    until(lambda: path.exists() and path.read_text().endswith("\n"))
    return int(path.read_text().split()[-1])


def test_nothing_runs_without_a_lease(stack: Stack) -> None:
    refused = stack.expect(RunFailed, run=stack.program(*SLEEP))
    assert refused.outcome is Outcome.REFUSED
    assert "no live lease of group g" in refused.text
    assert stack.expect(RunFailed, run=stack.program(*SLEEP, purpose=Purpose.STOP)).outcome is Outcome.REFUSED
    check = stack.program("sh", "-c", "echo fine; exit 7", purpose=Purpose.CHECK)
    assert stack.expect(RunStarted, run=check).pid
    exited = stack.expect(Exited, run=check)
    assert (exited.code, exited.signal, exited.output_tail, exited.service) == (7, 0, "fine\n", "web")


def test_a_lease_that_comes_too_late_is_refused(stack: Stack) -> None:
    stack.send(Extend((HeldLease("g", 1, boottime_ns() + 100 * MS),)))  # less than kill_ms ahead
    assert not stack.expect(Extended).ok


@pytest.mark.alone
def test_everything_has_ended_at_expiry_though_the_engine_is_frozen(stack: Stack, tmp_path: Path) -> None:
    expiry = stack.lease(1500)
    stack.lease(60000, "h")
    web = stack.expect(RunStarted, run=stack.program(*SLEEP)).pid
    stubborn = "trap '' TERM HUP; (trap '' TERM; echo $$ >/dev/null; sleep 1000) & echo $! > child; wait"
    db = stack.expect(RunStarted, run=stack.program("sh", "-c", stubborn, service="db", cwd=str(tmp_path))).pid
    check = stack.expect(RunStarted, run=stack.program(*SLEEP, purpose=Purpose.CHECK)).pid
    mail = stack.expect(RunStarted, run=stack.program(*SLEEP, service="mail", group="h")).pid
    child = read_pid(tmp_path / "child")
    frozen = stack.engine_pid
    os.kill(frozen, signal.SIGSTOP)
    assert all(map(lives, (web, db, child, check, mail)))
    until(lambda: not lives(frozen))
    ended = until(lambda: not any(map(lives, (web, db, child, check))))
    late_ms = overdue_ms(expiry, ended, expiry - 150 * MS)
    assert late_ms <= 0, f"{late_ms} ms too late"
    assert ended >= expiry - 160 * MS
    hello = stack.accept()
    assert overdue_ms(ended, forked_ns(stack.engine_pid)) < 100  # the next engine is there at once
    assert lives(mail)
    assert [lease.group for lease in hello.leases] == ["h"]
    assert [program.pid for program in hello.running] == [mail]
    assert hello.engine_deaths == 1
    assert "ended by force" in stack.expect(Alarm).text
    stack.send(Extend((HeldLease("g", 1, boottime_ns() + 60000 * MS),)))  # that token is spent
    assert not stack.expect(Extended).ok
    stack.lease(1000, token=2)


def test_a_killed_engine_is_replaced_and_adopts(stack: Stack) -> None:
    stack.lease(5000)
    run = stack.program(*SLEEP)
    pid = stack.expect(RunStarted, run=run).pid
    check = stack.expect(RunStarted, run=stack.program(*SLEEP, service="db", purpose=Purpose.CHECK)).pid
    first = stack.hello
    killed = boottime_ns()
    os.kill(stack.engine_pid, signal.SIGKILL)
    hello = stack.accept()
    assert overdue_ms(killed, forked_ns(stack.engine_pid)) < 100
    assert (hello.holder, hello.boot_id) == (first.holder, first.boot_id)
    assert [(p.run, p.service, p.pid) for p in hello.running if p.purpose is Purpose.SERVICE] == [(run, "web", pid)]
    assert hello.leases[0].token == 1
    assert hello.next_run == stack.run + 1
    until(lambda: not lives(check))  # nobody waits for it
    assert lives(pid)
    os.kill(pid, signal.SIGTERM)
    assert stack.expect(Exited, run=run).signal == signal.SIGTERM


def test_an_exit_while_no_engine_lives_is_told_to_the_next(stack: Stack, tmp_path: Path) -> None:
    for _ in range(3):
        os.kill(stack.engine_pid, signal.SIGKILL)
        stack.accept()
    stack.lease(5000)
    run = stack.program("sh", "-c", "echo last words; until [ -e go ]; do sleep 0.01; done; exit 4", cwd=str(tmp_path))
    pid = stack.expect(RunStarted, run=run).pid
    os.kill(stack.process.pid, signal.SIGSTOP)  # else the next engine may come before the program has ended
    os.kill(stack.engine_pid, signal.SIGKILL)
    (tmp_path / "go").touch()
    killed = until(lambda: not lives(pid))
    os.kill(stack.process.pid, signal.SIGCONT)
    assert stack.accept().running == ()
    forked = forked_ns(stack.engine_pid)  # after repeated deaths it comes later, but no lease may run out by that
    assert 90 <= (forked - killed) / MS and overdue_ms(killed, forked) < 300
    assert stack.hello.engine_deaths == 4
    exited = stack.expect(Exited, run=run)
    assert (exited.code, exited.output_tail, exited.service) == (4, "last words\n", "web")


def test_a_guardian_that_was_frozen_kills_before_it_obeys(stack: Stack) -> None:
    expiry = stack.lease(1500)
    pid = stack.expect(RunStarted, run=stack.program(*SLEEP)).pid
    engine = stack.engine_pid
    os.kill(stack.process.pid, signal.SIGSTOP)
    # What an engine that knows nothing of it says meanwhile: a longer lease, and one more program.
    stack.send(Extend((HeldLease("g", 1, expiry + 60000 * MS),)))
    run = stack.program("sh", "-c", f"touch {stack.folder}/obeyed", service="db")
    until(lambda: boottime_ns() > expiry + 50 * MS)
    assert lives(pid)  # the guardian can't help it; this is what kernel-ended addresses and watchdogs are for
    os.kill(stack.process.pid, signal.SIGCONT)
    resumed = boottime_ns()
    ended = until(lambda: not lives(pid) and not lives(engine))
    assert overdue_ms(resumed, ended) < 50
    hello = stack.accept()
    assert hello.leases == ()
    assert hello.running == ()
    assert hello.next_run <= run
    assert not (stack.folder / "obeyed").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="control groups need root")
def test_stopped_between_the_look_at_the_lease_and_the_fork(tmp_path: Path) -> None:
    stack = Stack(tmp_path, "late")
    try:
        engine = stack.engine_pid
        stack.lease(1000)
        (tmp_path / "late").touch()
        stack.program("sh", "-c", f"echo ran > {tmp_path}/ran; sleep 60")
        stack.accept()  # the engine was killed at once: the time is looked at before it is told of the program
        assert not lives(engine)
        assert stack.hello.leases == ()
        until(lambda: not any(lives(program.pid) for program in stack.hello.running))
        assert not (tmp_path / "ran").exists()
        assert "lease_ended" in stack.log()
    finally:
        stack.close()


def test_release_only_when_nothing_is_left(stack: Stack) -> None:
    stack.lease(5000, token=7)
    run = stack.program(*SLEEP)
    pid = stack.expect(RunStarted, run=run).pid
    stack.send(Release("g", 7))
    released = stack.expect(Released)
    assert not released.ok
    assert f"process {pid}" in released.text
    assert "web" in released.text
    stack.send(Release("g", 6))
    assert "token 7" in stack.expect(Released).text
    check = stack.expect(RunStarted, run=stack.program(*SLEEP, purpose=Purpose.CHECK)).pid
    stack.send(End(run))
    assert stack.expect(Exited, run=run).signal == signal.SIGKILL
    stack.send(Release("g", 7))
    assert stack.expect(Released, token=7).ok
    assert not lives(check)
    assert stack.expect(RunFailed, run=stack.program(*SLEEP)).outcome is Outcome.REFUSED
    stack.send(Extend((HeldLease("g", 7, boottime_ns() + 1000 * MS),)))
    assert not stack.expect(Extended).ok  # given up is given up


@pytest.mark.parametrize("how", ["guardian", "guardian and engine"])
def test_a_guardian_that_died_leaves_nothing(stack: Stack, tmp_path: Path, how: str) -> None:
    stack.lease(60000)
    web = stack.expect(RunStarted, run=stack.program(*SLEEP)).pid
    daemonised = "setsid sh -c 'echo $$ > stray; exec sleep 1000' & sleep 1000"
    db = stack.expect(RunStarted, run=stack.program("sh", "-c", daemonised, service="db", cwd=str(tmp_path))).pid
    stray = read_pid(tmp_path / "stray")
    first = stack.hello
    lease_io = read_pid(tmp_path / "lease_io.pids")
    if how == "guardian and engine":
        os.kill(stack.engine_pid, signal.SIGSTOP)  # it can't help either; the next guardian ends it
    os.kill(stack.process.pid, signal.SIGKILL)
    stack.process.wait()
    if how == "guardian":
        until(lambda: not any(map(lives, (web, db, stray, stack.engine_pid))))
        hello = stack.start()
        assert hello.cleaned == ()
    else:
        until(lambda: not lives(web) and not lives(db))  # the kernel ends a dead guardian's children
        assert lives(stray)
        frozen, began = stack.engine_pid, start_time(stack.engine_pid)
        hello = stack.start()
        assert start_time(frozen) != began
        assert not lives(stray)
        assert any(str(stray) in line for line in hello.cleaned)
    assert hello.holder != first.holder
    assert hello.leases == ()
    until(lambda: not lives(lease_io))


def test_only_one_guardian_a_node(stack: Stack, tmp_path: Path) -> None:
    other = type(stack.process)(stack.process.args, stderr=(tmp_path / "log2").open("w"))
    assert other.wait(30) == 75
    assert "another hasnmpd runs node n" in (tmp_path / "log2").read_text()
    assert stack.process.poll() is None


def test_stop_in_order(stack: Stack, tmp_path: Path) -> None:
    stack.process.terminate()
    stack.expect(Stop)
    os.kill(stack.engine_pid, signal.SIGKILL)  # one that dies of it is followed by one that is told again
    stack.accept()
    stack.expect(Stop)
    assert stack.conn
    stack.conn.send(b"exit 0")
    assert stack.process.wait(30) == 0
    lease_io = read_pid(tmp_path / "lease_io.pids")
    assert not lives(lease_io)
    assert "engine_killed" not in stack.log()  # neither of them was killed by the guardian


def test_a_hanging_engine_is_replaced(stack: Stack) -> None:
    stack.send(Alive())
    stack.lease(30000)  # so Alive has arrived
    os.kill(stack.engine_pid, signal.SIGSTOP)
    began = boottime_ns()
    stack.accept(30)
    assert 4000 < (forked_ns(stack.engine_pid) - began) / MS < 7000
    assert "it hangs" in stack.log()


def test_another_process_is_restarted_with_its_socket(stack: Stack, tmp_path: Path) -> None:
    pids = tmp_path / "lease_io.pids"
    first = read_pid(pids)
    os.kill(first, signal.SIGKILL)
    until(lambda: len(pids.read_text().split()) == 2)
    second = int(pids.read_text().split()[1])
    os.kill(second, signal.SIGKILL)
    killed = boottime_ns()
    assert (until(lambda: len(pids.read_text().split()) == 3) - killed) / MS > 90  # it backs off
    assert stack.process.poll() is None


def test_what_can_not_be_ended_keeps_its_group_ending(tmp_path: Path) -> None:
    stack = Stack(tmp_path, "stuck")
    try:
        expiry = stack.lease(1000)
        (tmp_path / "stuck").touch()
        hello = stack.accept()  # another engine comes nevertheless, for the sake of other groups
        assert boottime_ns() > expiry
        assert hello.leases == ()
        assert "IS NOT ENDED" in stack.expect(Alarm).text
        stack.lease(60000, "h")
        refused = stack.expect(RunFailed, run=stack.program(*SLEEP, purpose=Purpose.CHECK))
        assert refused.text == "group g is being ended"
        stack.send(Extend((HeldLease("g", 2, boottime_ns() + 60000 * MS),)))
        assert not stack.expect(Extended).ok
        stack.send(Release("g", 1))
        assert not stack.expect(Released).ok
        assert "process 1 (stuck)" in stack.expect(Alarm).text  # it is said again and again
        (tmp_path / "stuck").unlink()
        assert "ms too late" in stack.expect(Alarm).text
        stack.lease(60000, token=2)
        assert stack.expect(RunStarted, run=stack.program(*SLEEP)).pid
    finally:
        stack.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_an_ordinary_user_gets_what_there_is_and_is_told_what_not() -> None:
    with tempfile.TemporaryDirectory() as folder:
        stack = Stack(Path(folder), "nobody")
        try:
            notes = stack.hello.notes
            assert any("no cgroup" in note for note in notes)
            assert any("OOM killer" in note for note in notes)
            assert any("real-time" in note for note in notes)
            expiry = stack.lease(1000)
            pid = stack.expect(RunStarted, run=stack.program(*SLEEP)).pid
            assert Path(f"/proc/{pid}").stat().st_uid == 65534
            os.kill(stack.engine_pid, signal.SIGSTOP)
            assert overdue_ms(expiry, until(lambda: not lives(pid)), expiry - 150 * MS) <= 0
            stack.accept()
            assert (Path(folder) / "n.holder").stat().st_mode & 0o777 == 0o600
            assert json.loads((Path(folder) / "n.holder").read_text())["holder"] == stack.hello.holder
        finally:
            stack.close()


def test_a_stop_that_no_engine_survives_is_done_by_force(stack: Stack) -> None:
    stack.lease(60000)
    pid = stack.expect(RunStarted, run=stack.program(*SLEEP)).pid
    stack.process.terminate()
    for number in range(4):
        if number:
            stack.accept()
        stack.expect(Stop)
        os.kill(stack.engine_pid, signal.SIGKILL)
    assert stack.process.wait(30) == 0
    assert not lives(pid)


def test_the_log_has_the_form_that_is_wanted(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_logger", None)
    processes.log("before", left_ms=1)
    for form in ("json", "console"):
        processes.set_up_log(Log(format=form), "n")
        processes.log("lease_ended", logging.WARNING, left_ms=7)
    before, as_json, as_text = capfd.readouterr().err.splitlines()
    assert json.loads(before) == {"event": "before", "process": "guardian", "left_ms": 1}
    line = json.loads(as_json)
    assert (line["event"], line["level"], line["process"], line["node"], line["left_ms"]) == (
        "lease_ended", "warning", "guardian", "n", 7)  # fmt: skip
    assert not as_text.startswith("{") and "lease_ended" in as_text and "left_ms=7" in as_text
