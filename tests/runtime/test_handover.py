"""The guardian becomes new code in its own place: nothing that it guards notices, and whatever fails, leases are kept."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hasnmp.core.events import Extend, Extended, HeldLease, Release, Released
from hasnmp.runtime import handover
from hasnmp.runtime.kernel import boot_id, boottime_ns
from hasnmp.runtime.messages import Address, AddressDone, AddressOp, End, Exited, RunStarted, Stop
from tests.cluster.control import overdue_ms
from tests.runtime.netns import Cable, Probe
from tests.runtime.stack import MS, Stack, make_config
from tests.runtime.test_guardian import SLEEP, lives, until
from tests.runtime.test_watchdogs import Device

pytestmark = pytest.mark.serial
LEASE_MS = 2000  # a machine that stands still for a second ends no lease; how long an answer takes is asserted apart


@pytest.fixture(params=["cgroup", "ordinary"])
def stack(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stack]:
    if request.param == "cgroup" and os.geteuid() != 0:
        pytest.skip("control groups need root")
    made = Stack(tmp_path, request.param)
    yield made
    made.close()


class Asked:
    """`hasnmpd --handover` under way: its exit status and what it said."""

    def __init__(self, stack: Stack, python: str = sys.executable, **more: Any) -> None:
        program = [python, "-m", "tests.runtime.stack", *stack.arguments]
        config = make_config(str(stack.folder), stack.arguments[1], **{**stack.more, **more})
        source = """
import json, pickle, sys
from hasnmp.runtime import handover
config, program = pickle.loads(sys.stdin.buffer.read())
sys.exit(handover.ask(config, "n", program, "form.yaml"))"""
        self.process = subprocess.Popen([sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT)  # fmt: skip
        assert self.process.stdin
        self.process.stdin.write(pickle.dumps((config, program)))
        self.process.stdin.close()

    def wait(self, seconds: float = 30) -> tuple[int, str]:
        status = self.process.wait(seconds)
        assert self.process.stdout
        return status, self.process.stdout.read().decode()


class Owner:
    """Renews a lease every 50 ms, as an engine does; latencies_ms: how long each answer took."""

    def __init__(self, stack: Stack, group: str = "g", token: int = 1) -> None:
        self.stack, self.group, self.token = stack, group, token
        self.until_ns, self.latencies_ms, self.refused = 0, [], 0  # type: ignore[var-annotated]
        self.renew()

    def renew(self) -> None:
        began = boottime_ns()
        self.stack.send(Extend((HeldLease(self.group, self.token, began + LEASE_MS * MS),)))
        answer = self.stack.expect(Extended)
        if not answer.ok:
            self.refused += 1
            return
        self.until_ns = answer.leases[0].until_ns
        self.latencies_ms.append(overdue_ms(began, boottime_ns()))


def renew_for(owner: Owner, true: Callable[[], bool], seconds: float = 30) -> None:
    """Renew it every 50 ms until something is true."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, owner.stack.log()
        try:
            owner.renew()
        except (AssertionError, OSError):  # this engine has been replaced
            owner.stack.accept()
        time.sleep(0.05)


def is_deputed(stack: Stack) -> bool:
    """Has the guardian executed new code that is not yet in its place?"""
    return Path(f"/proc/{stack.process.pid}/comm").read_text().strip() != "hasnmpd"


def children(pid: int) -> list[int]:
    """The programs that a shell has started."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def log_has(stack: Stack, word: str) -> Callable[[], bool]:
    return lambda: word in stack.log()


def test_an_engine_that_is_replaced_never_takes_its_guardian_for_dead(tmp_path: Path) -> None:
    """It would end every service. Here the guardian is stopped for a moment just before it kills it."""
    (tmp_path / "preempted").touch()
    stack = Stack(tmp_path, "ordinary")
    try:
        stack.lease(60_000)
        web = stack.expect(RunStarted, run=stack.program(*SLEEP)).pid
        asked = Asked(stack)
        assert [running.pid for running in stack.accept(30).running] == [web]
        assert lives(web)
        assert asked.wait()[0] == 0
    finally:
        stack.close()


def test_leases_programs_and_what_the_engine_said_live_on(stack: Stack) -> None:
    (stack.folder / "new").write_text("slow 0.7")
    guardian, engine, holder = stack.process.pid, stack.engine_pid, stack.hello.holder
    owner = Owner(stack)
    stack.lease(60000, "h", 9)
    run = stack.program("sh", "-c", "echo before; read x < /dev/null; sleep 1000")
    pid = stack.expect(RunStarted, run=run).pid
    short = stack.program("sh", "-c", "sleep 0.6; echo last words; exit 4", service="mail", group="h")
    stack.expect(RunStarted, run=short)
    asked = Asked(stack)
    renew_for(owner, log_has(stack, "handover_began"))
    renew_for(owner, lambda: is_deputed(stack))
    # The deputy serves now: leases at once, all else later.
    late = stack.program(*SLEEP, service="db", group="g")
    for _ in range(8):
        owner.renew()
        time.sleep(0.05)
    # Looked at in this order: a machine that stood still may have let the new code come in between.
    assert not [m for m in stack.messages if isinstance(m, RunStarted)] or not is_deputed(stack)
    renew_for(owner, lambda: any(isinstance(m, RunStarted) for m in stack.messages))
    db = stack.expect(RunStarted, run=late).pid
    ended = stack.expect(Exited, run=short)
    assert (ended.code, ended.output_tail) == (4, "last words\n")
    renew_for(owner, lambda: stack.engine_pid != engine)  # renewed: the next engine is the new code's
    hello = stack.hello
    assert hello.holder == holder
    assert hello.replaced
    assert {(lease.group, lease.token) for lease in hello.leases} == {("g", 1), ("h", 9)}
    assert {(p.run, p.pid) for p in hello.running} == {(run, pid), (late, db)}
    assert hello.next_run == late + 1
    renew_for(owner, lambda: asked.process.poll() is not None)
    status, said = asked.wait()
    assert (status, "no service was restarted" in said) == (0, True), said
    assert stack.process.poll() is None and lives(pid) and lives(db)
    assert Path(f"/proc/{guardian}/comm").read_text().strip() == "hasnmpd"
    assert owner.refused == 0
    print(f"the longest wait for a lease: {max(owner.latencies_ms):.1f} ms")
    assert max(owner.latencies_ms) < 150
    os.kill(pid, signal.SIGTERM)
    exited = stack.expect(Exited, run=run)
    assert (exited.signal, exited.output_tail) == (signal.SIGTERM, "before\n"), "it is still the guardian's own child"


def test_it_works_again_and_a_stop_in_order_follows(stack: Stack) -> None:
    for _ in range(2):
        asked = Asked(stack)
        engine = stack.engine_pid
        stack.accept(30)
        assert stack.engine_pid != engine
        assert asked.wait()[0] == 0
    stack.process.terminate()
    stack.expect(Stop)
    assert stack.conn
    stack.conn.send(b"exit 0")
    assert stack.process.wait(30) == 0
    assert "handover_finished" in stack.log()


def test_a_lease_that_ends_meanwhile_ends_by_the_deputy(stack: Stack) -> None:
    (stack.folder / "new").write_text("slow 5")
    stack.lease(60000, "h")
    mail = stack.expect(RunStarted, run=stack.program(*SLEEP, service="mail", group="h")).pid
    owner = Owner(stack)
    pid = stack.expect(RunStarted, run=stack.program("sh", "-c", "setsid sleep 1000 & sleep 1000")).pid
    engine = stack.engine_pid
    asked = Asked(stack)
    renew_for(owner, lambda: is_deputed(stack))
    owner.renew()
    expiry = owner.until_ns
    assert owner.refused == 0
    ended = until(lambda: not lives(engine) and not lives(pid))
    assert expiry - 160 * MS <= ended and overdue_ms(expiry, ended, expiry - 150 * MS) <= 0
    assert is_deputed(stack), "the new code is not there yet"
    hello = stack.accept(30)
    assert [lease.group for lease in hello.leases] == ["h"]
    assert [program.pid for program in hello.running] == [mail]
    assert "g was ended by force" in stack.log()
    stack.send(Extend((HeldLease("g", 1, boottime_ns() + 60000 * MS),)))
    assert not stack.expect(Extended).ok, "that token is spent"
    assert asked.wait()[0] == 0


def test_a_release_that_is_under_way_is_answered(stack: Stack) -> None:
    (stack.folder / "new").write_text("slow 0.5")
    stack.lease(60000, token=7)
    run = stack.program(*SLEEP)
    stack.expect(RunStarted, run=run)
    asked = Asked(stack)
    until(log_has(stack, "handover_began"), 15)
    until(lambda: is_deputed(stack), 15)
    stack.send(End(run))
    stack.send(Release("g", 7))
    assert stack.expect(Exited, 15, run=run).signal == signal.SIGKILL
    assert stack.expect(Released, 5, token=7).ok
    assert asked.wait()[0] == 0


def test_new_code_with_a_fault_changes_nothing(stack: Stack) -> None:
    (stack.folder / "new").write_text("faulty")
    owner = Owner(stack)
    pid = stack.expect(RunStarted, run=stack.program(*SLEEP)).pid
    asked, engine = Asked(stack), stack.engine_pid
    renew_for(owner, lambda: asked.process.poll() is not None)
    status, said = asked.wait()
    assert status == 1 and "does not start (exit status 2): there is a fault in line 7" in said
    assert "nothing has changed" in said
    owner.renew()
    assert lives(pid) and stack.engine_pid == engine and owner.refused == 0 and max(owner.latencies_ms) < 300
    (stack.folder / "new").write_text("")
    again = Asked(stack)
    renew_for(owner, lambda: again.process.poll() is not None)
    assert again.wait()[0] == 0


def test_another_configuration_is_refused(stack: Stack) -> None:
    asked = Asked(stack, address={"ip": "192.0.2.100/24", "interface": "lo"})
    status, said = asked.wait()
    assert status == 1 and "reload it first" in said
    assert stack.process.poll() is None


def test_a_program_that_can_not_be_executed_is_refused(stack: Stack) -> None:
    stack.lease(60000)
    config = make_config(str(stack.folder), stack.arguments[1])
    assert handover.ask(config, "n", ["/no/such/python"], "form.yaml") == 1
    assert "No such file" in stack.log()
    stack.expect(RunStarted, run=stack.program(*SLEEP))


def test_a_full_run_dir_keeps_no_daemon_from_starting_and_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    holder = tmp_path / "n.holder"
    holder.symlink_to("/dev/full")
    stack = Stack(tmp_path, "ordinary")
    try:
        config = make_config(str(tmp_path), stack.arguments[1])
        assert "holder_not_written" in stack.log() and "No space left on device" in stack.log()
        stack.lease(60000)
        stack.expect(RunStarted, run=stack.program(*SLEEP))
        holder.unlink()
        holder.touch()  # as a full disk leaves it
        assert handover.ask(config, "n", [sys.executable], "form.yaml") == 1
        assert f"{holder}: it was not written whole" in capsys.readouterr().err
        holder.unlink()
        assert handover.ask(config, "n", [sys.executable], "form.yaml") == 1
        assert f"{holder}: No such file" in capsys.readouterr().err
        known = {"boot_id": boot_id(), "handover": handover.FORM, "pid": stack.process.pid}
        holder.write_text(json.dumps(known))
        (tmp_path / "n.handover-new").symlink_to("/dev/full")
        assert handover.ask(config, "n", [sys.executable], "form.yaml") == 1
        assert f"{tmp_path}/n.handover: No space left on device" in capsys.readouterr().err
    finally:
        stack.close()


def test_an_exec_that_fails_costs_nothing(stack: Stack, tmp_path: Path) -> None:
    (tmp_path / "new").write_text("vanishes")
    (tmp_path / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (tmp_path / "python").chmod(0o700)
    owner = Owner(stack)
    run = stack.program("sh", "-c", "echo before; sleep 1000")
    pid = stack.expect(RunStarted, run=run).pid
    asked = Asked(stack, str(tmp_path / "python"))
    renew_for(owner, lambda: asked.process.poll() is not None)
    status, said = asked.wait()
    assert status == 1 and "can't be executed: No such file" in said
    owner.renew()
    assert owner.refused == 0 and max(owner.latencies_ms) < 300
    os.kill(pid, signal.SIGTERM)
    assert stack.expect(Exited, run=run).output_tail == "before\n"
    stack.process.terminate()
    stack.expect(Stop)


@pytest.mark.parametrize("how", ["ends", "hangs", "ends taking", "hangs taking"])
def test_new_code_that_fails_after_its_rehearsal_leaves_nothing_running_past_its_lease(
    tmp_path: Path, how: str
) -> None:
    stack = Stack(tmp_path, "impatient")
    try:
        (tmp_path / "new").write_text(how)
        expiry = stack.lease(20000)
        pid = stack.expect(RunStarted, run=stack.program("sh", "-c", "setsid sleep 1000 & sleep 1000")).pid
        until(lambda: children(pid))
        stray = children(pid)[0]
        asked, engine = Asked(stack), stack.engine_pid
        ended = until(lambda: not any(map(lives, (pid, stray, engine))), 19)
        assert ended <= expiry
        status, said = asked.wait()
        assert status == 1 and "has ended" in said
        assert stack.process.wait(30) != 0
        assert "handover_lost" in stack.log()
        (tmp_path / "new").unlink()
        assert stack.start().leases == ()
    finally:
        stack.close()


def test_the_watchdog_is_fed_all_the_while(tmp_path: Path) -> None:
    device = Device(tmp_path)
    device.appear()
    stack = Stack(tmp_path, watchdog=str(device.path))
    try:
        (tmp_path / "new").write_text("slow 2")
        asked = Asked(stack)
        stack.accept(30)
        assert asked.wait()[0] == 0
        assert stack.hello.watchdog_ms == 2000
        assert b"V" not in (said := device.read())
        assert len(said) >= 3
        device.wait(b"\0")
    finally:
        stack.close()
        os.close(device.fd)


@pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")
def test_an_address_answers_all_the_while(tmp_path: Path) -> None:
    cable = Cable()
    stack = Stack(tmp_path, address="192.0.2.100/24", netns=cable.server)
    probe = Probe(cable, "192.0.2.100")
    try:
        (tmp_path / "new").write_text("slow 0.5")
        owner = Owner(stack)
        stack.send(Address(AddressOp.ADD, "vip", "g", "192.0.2.100", 24, "srv0"))
        assert stack.expect(AddressDone).ok
        until(probe.answers)
        more = {"address": {"ip": "192.0.2.100/24", "interface": "srv0"}}
        asked = Asked(stack, **more)
        silent = 0

        def look() -> bool:
            nonlocal silent
            silent = 0 if probe.answers() else silent + 1
            assert silent < 3, stack.log()
            return asked.process.poll() is not None

        renew_for(owner, look)
        assert asked.wait()[0] == 0
        assert [address.ip for address in stack.hello.addresses] == ["192.0.2.100"]
        assert "alarm" not in stack.log()
        stack.send(Address(AddressOp.REMOVE, "vip", "g", "192.0.2.100", 24, "srv0"))
        assert stack.expect(AddressDone).ok
        assert not probe.answers()
    finally:
        probe.close()
        stack.close()
        cable.remove()
