"""What the machine refuses the guardian for a while costs what it was for, never what is guarded."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from hasnmp.core.events import Outcome, Release, Released
from hasnmp.runtime.cgroups import find_mount
from hasnmp.runtime.messages import Alarm, RunFailed, RunStarted
from tests.runtime.stack import Stack
from tests.runtime.test_guardian import SLEEP, lives, read_pid, until
from tests.runtime.test_handover import Asked

pytestmark = pytest.mark.serial


def test_without_room_for_a_process_what_runs_goes_on_and_the_others_follow_when_there_is_some(tmp_path: Path) -> None:
    """A service that forks without end can fill the machine; that an agent or an engine dies then is no reason to end groups."""
    (tmp_path / "agent").write_text("counts")
    stack = Stack(tmp_path, "scarce")
    try:
        stack.lease(60_000)
        web = stack.expect(RunStarted, run=stack.program(*SLEEP)).pid
        agents = tmp_path / "agent.pids"
        until(lambda: agents.exists() and agents.read_text().endswith("\n"))
        (tmp_path / "forkless").touch()
        os.kill(int(agents.read_text().split()[-1]), signal.SIGKILL)
        os.kill(stack.engine_pid, signal.SIGKILL)
        until(lambda: stack.log().count("process_not_started") >= 2)
        time.sleep(0.3)
        assert stack.process.poll() is None and lives(web), stack.log()
        assert stack.log().count("process_not_started") < 12, "it does not try without a pause"
        (tmp_path / "forkless").unlink()
        assert [running.pid for running in stack.accept().running] == [web]
        until(lambda: len(agents.read_text().split()) == 2)
        stack.lease(60_000)
    finally:
        stack.close()


def test_a_handover_without_room_for_its_deputy_fails_and_changes_nothing(tmp_path: Path) -> None:
    stack = Stack(tmp_path, "scarce")
    try:
        stack.lease(60_000)
        web = stack.expect(RunStarted, run=stack.program(*SLEEP)).pid
        before = set(os.listdir(f"/proc/{stack.process.pid}/fd"))
        (tmp_path / "forkless").touch()
        status, said = Asked(stack).wait()
        assert status == 1 and "failed" in said and "goes on as it was" in said, said
        assert lives(web) and lives(stack.engine_pid)
        assert set(os.listdir(f"/proc/{stack.process.pid}/fd")) == before
        (tmp_path / "forkless").unlink()
        stack.process.terminate()  # its signals are heard as before
        until(lambda: "stop_ordered" in stack.log())
    finally:
        stack.close()


LEAVES = (
    "sh",
    "-c",
    'setsid sh -c \'setsid sleep 1000 & echo $! > "$0"\' "$0" & sleep 1000',
)  # two, each in a session of its own


def cgroup_mount() -> str:
    mount = find_mount()
    assert mount
    return str(mount)


@pytest.mark.skipif(os.geteuid() != 0, reason="control groups need root")
@pytest.mark.parametrize("how", ["read-only", "unmounted", "covered"])
def test_a_group_ends_whole_though_its_control_groups_can_not_be_written_any_more(tmp_path: Path, how: str) -> None:
    stack = Stack(tmp_path, own_mounts=True)
    try:
        stack.lease(60_000, "h")
        mail = stack.expect(RunStarted, run=stack.program(*SLEEP, service="mail", group="h")).pid
        stack.lease(4000)
        web = stack.expect(RunStarted, run=stack.program(*LEAVES, str(tmp_path / "left"))).pid
        left = read_pid(tmp_path / "left")
        mount = cgroup_mount()
        change = {
            "read-only": ("mount", "-o", "remount,bind,ro", mount),
            "unmounted": ("umount", "-l", mount),
            "covered": ("mount", "-t", "tmpfs", "none", mount),
        }[how]
        subprocess.run(["nsenter", "-t", str(stack.process.pid), "-m", *change], check=True)
        assert stack.expect(RunFailed, run=stack.program(*SLEEP, service="post", group="h")).outcome is Outcome.FAILED
        stack.accept()
        assert "g was ended by force" in stack.expect(Alarm).text
        assert not lives(web) and not lives(left)
        assert lives(mail) and stack.process.poll() is None, stack.log()
        stack.process.terminate()
        stack._told_to_exit(10)
        assert not lives(mail), stack.log()
    finally:
        stack.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="control groups need root")
def test_a_group_with_more_processes_than_can_be_told_costs_the_others_nothing(tmp_path: Path) -> None:
    """After a fork bomb 30,000 of them take their time to die: to name them all is longer than a message may be."""
    stack = Stack(tmp_path, "stuck")
    try:
        stack.lease(60_000, "h")
        mail = stack.expect(RunStarted, run=stack.program(*SLEEP, service="mail", group="h")).pid
        stack.lease(4000)
        (tmp_path / "many").touch()
        stack.send(Release("g", 1))
        released = stack.expect(Released)
        assert not released.ok and "29980 more" in released.text and len(released.text) < 2000
        stack.accept()
        assert "IS NOT ENDED" in (said := stack.expect(Alarm).text) and "29980 more" in said and len(said) < 2000
        assert lives(mail) and stack.process.poll() is None, stack.log()
        os.kill(stack.process.pid, signal.SIGKILL)
        stack.process.wait()
        assert len(", ".join(stack.start().cleaned)) < 4000
    finally:
        (tmp_path / "many").unlink(missing_ok=True)
        stack.close()
