"""A group's file system follows its lease: real ext4 and xfs on loop devices, in the guardian's own mount namespace."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hasnmp.core.events import Release, Released
from hasnmp.runtime.kernel import boottime_ns
from hasnmp.runtime.messages import Alarm, Exited, Purpose, RunFailed, RunStarted
from hasnmp.runtime.mounts import Mount, mounts_of
from tests.cluster.control import overdue_ms
from tests.runtime import disks
from tests.runtime.disks import Disk
from tests.runtime.stack import MS, Stack
from tests.runtime.test_guardian import lives, until
from tests.runtime.test_watchdogs import restarts

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="to mount needs root"),
    pytest.mark.serial,
]


@pytest.fixture(params=["ext4", "xfs"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path, request.param)
    yield made
    made.close()


@pytest.fixture
def stack(disk: Disk, tmp_path: Path) -> Iterator[Stack]:
    made = Stack(tmp_path, own_mounts=True, filesystem=disk.options(), disk=True)
    yield made
    made.close()


def mount(stack: Stack, disk: Disk) -> None:
    run = stack.program(
        "mount", "-t", disk.kind, disk.device, str(disk.directory), service="files", purpose=Purpose.STOP
    )
    assert stack.expect(Exited, run=run).code == 0
    assert is_mounted(stack, disk)


def is_mounted(stack: Stack, disk: Disk) -> bool:
    return str(disk.directory) in disks.mounts_of(stack.process.pid)


def writer(stack: Stack, disk: Disk, name: str = "lost") -> int:
    """A service that goes on writing, and never syncs. Gives its pid."""
    script = f"cd {disk.directory}; while :; do echo more >> {name}; done"
    pid = stack.expect(RunStarted, run=stack.program("sh", "-c", script)).pid
    until(lambda: os.path.exists(f"/proc/{pid}/cwd/{name}"))
    return pid


def clean(disk: Disk) -> bool:
    """Is the file system whole, once its journal is replayed, as a mount does?"""
    disk.content()
    check = ["e2fsck", "-f", "-n"] if disk.kind == "ext4" else ["xfs_repair", "-n"]
    return subprocess.run([*check, disk.device], capture_output=True).returncode == 0


def test_to_mount_needs_a_lease(stack: Stack, disk: Disk) -> None:
    run = stack.program("mount", disk.device, str(disk.directory), service="files", purpose=Purpose.STOP)
    assert "no live lease" in stack.expect(RunFailed, run=run).text


def test_a_group_is_released_when_nothing_of_it_is_mounted(stack: Stack, disk: Disk) -> None:
    stack.lease(5000, token=7)
    mount(stack, disk)
    stack.send(Release("g", 7))
    released = stack.expect(Released)
    assert not released.ok
    assert f"file system {disk.directory} ({disk.device})" in released.text
    run = stack.program("umount", str(disk.directory), service="files", purpose=Purpose.STOP)
    assert stack.expect(Exited, run=run).code == 0
    stack.send(Release("g", 7))
    assert stack.expect(Released, token=7).ok


def test_at_the_leases_end_the_disk_is_cut_off_and_what_was_in_memory_never_gets_there(
    stack: Stack, disk: Disk
) -> None:
    expiry = stack.lease(2500)
    mount(stack, disk)
    kept = stack.program("sh", "-c", f"echo x > {disk.directory}/kept; sync {disk.directory}/kept", service="db")
    assert stack.expect(Exited, run=kept).code == 0
    pid = writer(stack, disk)
    os.kill(stack.engine_pid, signal.SIGSTOP)
    late_ms = overdue_ms(expiry, until(lambda: not is_mounted(stack, disk)), expiry - 150 * MS)
    assert late_ms <= 0, f"{late_ms} ms too late"
    stack.accept()
    assert not lives(pid)
    said = stack.expect(Alarm).text
    assert "was ended by force" in said
    if late := re.search(r"; (\d+) ms too late", said):
        assert overdue_ms(expiry, expiry + int(late[1]) * MS, expiry - 150 * MS) <= 0, said
    else:
        assert restarts(stack) == []
    assert disk.content() == {"kept"}
    assert clean(disk)
    stack.lease(5000, token=2)
    mount(stack, disk)


@pytest.mark.parametrize("how", ["guardian", "guardian and engine"])
def test_a_guardian_that_died_leaves_nothing_mounted(stack: Stack, disk: Disk, how: str) -> None:
    stack.lease(60000)
    mount(stack, disk)
    writer(stack, disk)
    engine = stack.engine_pid
    with open(f"/proc/{engine}/ns/mnt"):
        if how == "guardian and engine":
            os.kill(engine, signal.SIGSTOP)
        os.kill(stack.process.pid, signal.SIGKILL)
        stack.process.wait()
        if how == "guardian":
            until(lambda: not lives(engine))
        else:
            # As after a crash of the whole stack on one machine: the next guardian is in the same mount namespace.
            stack.command_prefix = ["nsenter", f"--mount=/proc/{engine}/ns/mnt", "env", "-C", os.getcwd()]
        hello = stack.start()
        if how == "guardian and engine":
            assert f"file system {disk.directory} ({disk.device})" in hello.cleaned
        assert not is_mounted(stack, disk)
    assert disk.content() == set()
    assert clean(disk)


@pytest.mark.parametrize("file", [{"groups": "h"}, {}], ids=["without the group", "without the service"])
def test_what_the_file_has_no_more_is_cut_off_too(stack: Stack, disk: Disk, file: dict[str, str]) -> None:
    """The whole stack dies, the file is changed, the stack starts: the lease was this node's, and is no more."""
    stack.lease(60000)
    mount(stack, disk)
    engine = stack.engine_pid
    with open(f"/proc/{engine}/ns/mnt") as namespace:
        enter = ["nsenter", f"--mount=/proc/{os.getpid()}/fd/{namespace.fileno()}"]
        os.kill(engine, signal.SIGSTOP)
        os.kill(stack.process.pid, signal.SIGKILL)
        stack.process.wait()
        stack.command_prefix = [*enter, "env", "-C", os.getcwd()]
        stack.configure(**file)
        hello = stack.start()
        assert not is_mounted(stack, disk)
        assert f"file system {disk.directory} ({disk.device})" in hello.cleaned
        assert hello.unclean == ()
        # From here on it is the administrator's own.
        disks.sh(*enter, "mount", disk.device, str(disk.directory))
        os.kill(stack.engine_pid, signal.SIGSTOP)
        os.kill(stack.process.pid, signal.SIGKILL)
        stack.process.wait()
        assert stack.start().cleaned == ()
        assert is_mounted(stack, disk)
        disks.sh(*enter, "umount", str(disk.directory))


def test_an_orderly_stop_that_becomes_one_by_force_cuts_it_off(stack: Stack, disk: Disk) -> None:
    stack.lease(60000)
    mount(stack, disk)
    stack.process.terminate()
    for number in range(4):
        if number:
            stack.accept()
        os.kill(stack.engine_pid, signal.SIGKILL)
    assert stack.process.wait(30) == 0
    assert disk.content() == set()


def test_a_frozen_disk_holds_up_neither_the_guardian_nor_another_group(tmp_path: Path) -> None:
    disk = Disk(tmp_path, "ext4", can_freeze=True)
    stack = Stack(tmp_path, own_mounts=True, filesystem=disk.options(), disk=True)
    try:
        expiry = stack.lease(2000)
        stack.lease(60000, "h")
        mount(stack, disk)
        writer(stack, disk)
        disk.mode("frozen")
        mail = stack.expect(RunStarted, run=stack.program("sleep", "1000", service="mail", group="h")).pid
        until(lambda: restarts(stack))  # it can't be confirmed that nothing is written any more
        restarted = restarts(stack)[0]
        assert restarted >= expiry and overdue_ms(expiry, restarted) < 30
        stack.accept()
        assert f"file system {disk.directory}" in stack.expect(Alarm).text
        assert lives(mail)
        began = boottime_ns()
        stack.lease(60000, "h")
        assert overdue_ms(began, boottime_ns()) < 100
        disk.mode("ok")
        until(lambda: "ms too late" in stack.log())
        assert not is_mounted(stack, disk)
    finally:
        disk.mode("ok")
        stack.close()
        disk.close()


# ------------------------------------------------------------------------------------------------- what belongs to it


def line(number: str, directory: str, source: str, kind: str = "ext4") -> Mount:
    return Mount(number, directory, ("rw",), kind, source, ("rw",))


def test_which_mounts_belong_to_a_device(tmp_path: Path) -> None:
    rows = [line("8:1", "/", "/dev/sda1"), line("0:30", "/mnt", "tmpfs", "tmpfs"), line("0:31", "/export", "nas:/e", "nfs4"),
            line("0:32", "/mnt", "nas:/other", "nfs4")]  # fmt: skip
    assert mounts_of("nas:/e", "/export", rows) == [rows[2]]
    assert mounts_of("tmpfs", "/mnt", rows) == [rows[3], rows[1]]
    assert mounts_of("UUID=no-such", "/", rows) == [], "the root's file system is never cut off"
    assert mounts_of("/dev/no-such", "/export", rows) == [rows[2]], "a device that vanished: what is in its folder"


def test_a_device_is_found_wherever_it_is_mounted(disk: Disk, tmp_path: Path) -> None:
    def story() -> None:
        other = tmp_path / "other"
        other.mkdir()
        disks.sh("mount", disk.device, str(disk.directory))
        disks.sh("mount", "--bind", str(disk.directory), str(other))
        found = mounts_of(disk.device, str(disk.directory))
        assert [mount.directory for mount in found] == [str(other), str(disk.directory)]
        disks.sh("umount", str(other))
        disks.sh("mount", "-t", "tmpfs", "x", str(other))
        assert [mount.directory for mount in mounts_of(disk.device, str(other))] == [str(disk.directory)]

    disks.with_own_mounts(story)
