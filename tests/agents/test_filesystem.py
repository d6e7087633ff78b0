"""The filesystem agent with real disks, each test in a mount namespace of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from hasnmp.core.events import Action, AgentResult, Outcome
from hasnmp.runtime import messages
from hasnmp.runtime.mounts import cut_off, mounts_of
from tests.agents.bench import Bench, service
from tests.runtime.disks import Disk, sh, with_own_mounts
from tests.ticks import Ticks

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="to mount needs root")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path, can_freeze=True)
    yield made
    made.close()


def play(disk: Disk, story: Callable[[Bench], Awaitable[None]], more: str = "", **extra: str) -> None:
    async def whole() -> None:
        bench = Bench(service("files", "filesystem", **disk.options(more), **extra))
        try:
            await story(bench)
        finally:
            await bench.close()

    with_own_mounts(lambda: asyncio.run(whole()))


def said(result: AgentResult, outcome: Outcome, *words: str) -> None:
    assert result.outcome is outcome, result
    assert all(word in result.message for word in words), result


def holder_in(directory: Path) -> subprocess.Popen[str]:
    """A process that works in the folder until its standard input ends."""
    holder = subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); input()"], cwd=directory, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert holder.stdout
    holder.stdout.readline()
    return holder


def tries(bench: Bench) -> int:
    """How often it was unmounted, or tried to be."""
    return len([m for m in bench.sent if isinstance(m, messages.Run) and m.argv[0] == "umount"])


def test_it_mounts_checks_and_unmounts(disk: Disk) -> None:
    async def story(bench: Bench) -> None:
        said(await bench.act("files", Action.CHECK), Outcome.NOT_RUNNING, "is not mounted at")
        said(await bench.act("files", Action.CHECK, owned=False), Outcome.OK, "not mounted here")
        said(await bench.act("files", Action.START), Outcome.OK, f"{disk.device} is mounted at {disk.directory}")
        (disk.directory / "kept").touch()
        said(await bench.act("files", Action.START), Outcome.OK, "already")
        said(await bench.act("files", Action.CHECK), Outcome.OK, "the disk answers")
        said(await bench.act("files", Action.CHECK, owned=False), Outcome.FAILED, "mounted", "without a lease")
        said(await bench.act("files", Action.STOP), Outcome.OK, "unmounted")
        said(await bench.act("files", Action.STOP), Outcome.OK, "was not mounted")
        runs = [m for m in bench.sent if isinstance(m, messages.Run) and m.argv[0] in ("mount", "umount")]
        assert [run.purpose for run in runs] == [messages.Purpose.STOP] * 2, "only with a live lease"

    play(disk, story)
    assert disk.content() == {"kept"}


def test_after_an_engines_restart_it_is_adopted_untouched(disk: Disk) -> None:
    async def story(bench: Bench) -> None:
        assert bench.agents.adopt((), (), frozenset({"g"})) == ()
        said(await bench.act("files", Action.START), Outcome.OK)
        asked = len(bench.sent)
        assert [row.service for row in bench.agents.adopt((), (), frozenset({"g"}))] == ["files"]
        assert bench.agents.adopt((), (), frozenset()) == ()
        assert len(bench.sent) == asked

    play(disk, story)


def test_a_device_that_is_not_there_is_said(disk: Disk) -> None:
    async def story(bench: Bench) -> None:
        said(await bench.act("gone", Action.START), Outcome.MISSING, "/dev/no-such-disk is not there")
        said(await bench.act("gone", Action.CHECK, owned=False), Outcome.FAILED, "/dev/no-such-disk is not there")

    async def whole() -> None:
        bench = Bench(service("gone", "filesystem", **{**disk.options(), "device": "/dev/no-such-disk"}))
        try:
            await story(bench)
        finally:
            await bench.close()

    with_own_mounts(lambda: asyncio.run(whole()))


def test_another_mount_in_its_place_or_its_device_elsewhere_is_a_failure(disk: Disk, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()

    async def story(bench: Bench) -> None:
        sh("mount", "-t", "tmpfs", "scratch", str(disk.directory))
        said(await bench.act("files", Action.START), Outcome.FAILED, "is taken: scratch is mounted there")
        said(await bench.act("files", Action.STOP), Outcome.OK, "was not mounted")
        sh("umount", str(disk.directory))
        sh("mount", disk.device, str(other))
        said(await bench.act("files", Action.START), Outcome.FAILED, f"mounted at {other} too")

    play(disk, story)


def test_a_disk_that_can_only_be_read_is_no_start(disk: Disk) -> None:
    async def story(bench: Bench) -> None:
        sh("blockdev", "--setro", disk.device)
        said(await bench.act("files", Action.START), Outcome.FAILED, "only be mounted read-only")
        said(await bench.act("files", Action.CHECK), Outcome.NOT_RUNNING)
        sh("blockdev", "--setrw", disk.device)

    play(disk, story)


def test_what_holds_it_open_is_named(disk: Disk) -> None:
    async def story(bench: Bench) -> None:
        said(await bench.act("files", Action.START), Outcome.OK)
        with holder_in(disk.directory) as holder:
            assert holder.stdin
            for limit_ms in (1200, 4800):  # a busy machine may not have come to ask who within the first
                with Ticks() as ticks:
                    result = await bench.act("files", Action.STOP, timeout_ms=limit_ms)
                    assert ticks.at_most(limit_ms)
                if "held open" in result.message:
                    break
            said(result, Outcome.FAILED, "busy", f"held open by python ({holder.pid})")
            before = tries(bench)
            stopping = asyncio.create_task(bench.act("files", Action.STOP, timeout_ms=30_000))
            await bench.until(lambda: tries(bench) >= before + 2)  # the first has failed
            holder.stdin.close()
            said(await stopping, Outcome.OK, "at try")

    play(disk, story)


def in_a_container(disk: Disk) -> subprocess.Popen[str]:
    """A process with mounts of its own, which were copied from ours: no umount here ends what is mounted there."""
    holder = subprocess.Popen(
        ["unshare", "-m", "--propagation", "private", sys.executable, "-c", "print(flush=True); input()"], cwd="/", text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert holder.stdout
    holder.stdout.readline()
    assert str(disk.directory) in Path(f"/proc/{holder.pid}/mountinfo").read_text()
    return holder


def test_a_container_that_has_it_mounted_still_is_no_stop(disk: Disk) -> None:
    """Its file system lives on and writes to the disk, though it is unmounted here: another node must not mount it."""

    async def story(bench: Bench) -> None:
        said(await bench.act("files", Action.START), Outcome.OK)
        with in_a_container(disk) as holder:
            assert holder.stdin
            result = await bench.act("files", Action.STOP, timeout_ms=5000)
            said(result, Outcome.FAILED, "still in use", f"python ({holder.pid})", "mounts of its own")
            said(await bench.act("files", Action.STOP, timeout_ms=1500), Outcome.FAILED, "still in use")
            said(await bench.act("files", Action.CHECK, owned=False), Outcome.OK)
            asyncio.get_running_loop().call_later(0.4, holder.stdin.close)
            said(await bench.act("files", Action.STOP), Outcome.OK)
            said(await bench.act("files", Action.STOP), Outcome.OK, "was not mounted")

    play(disk, story)


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_what_a_container_has_of_one_that_was_shut_down_is_no_obstacle(tmp_path: Path, kind: str) -> None:
    """Cut off from its disk at a lease's end: nothing of it is written any more."""
    disk = Disk(tmp_path, kind)

    async def story(bench: Bench) -> None:
        said(await bench.act("files", Action.START), Outcome.OK)
        with in_a_container(disk) as holder:
            assert holder.stdin
            [mount] = mounts_of(disk.device, str(disk.directory))
            assert cut_off(mount) == 0
            said(await bench.act("files", Action.STOP, timeout_ms=6000), Outcome.OK, "was not mounted")
            holder.stdin.close()

    try:
        play(disk, story)
    finally:
        disk.close()


def test_a_container_that_has_it_mounted_is_killed_if_the_configuration_says_so(disk: Disk) -> None:
    async def story(bench: Bench) -> None:
        said(await bench.act("files", Action.START), Outcome.OK)
        with in_a_container(disk) as holder:
            result = await bench.act("files", Action.STOP, timeout_ms=6000)
            said(result, Outcome.OK)
            assert holder.wait(30) == -signal.SIGKILL
            assert f"python ({holder.pid})" in result.killed

    play(disk, story, unmount="kill")


def test_who_holds_it_open_is_killed_if_the_configuration_says_so(disk: Disk) -> None:
    async def story(bench: Bench) -> None:
        said(await bench.act("files", Action.START), Outcome.OK)
        with holder_in(disk.directory) as holder:
            result = await bench.act("files", Action.STOP, timeout_ms=4000)
            said(result, Outcome.OK, "unmounted, at try")
            assert result.took_us > 1_900_000, "in order first, for half of the time"
            assert holder.wait(30) == -signal.SIGKILL
            assert result.killed == f"python ({holder.pid})"

    play(disk, story, unmount="kill")


def test_a_check_before_the_mount_repairs_what_is_safe_and_refuses_the_rest(disk: Disk) -> None:
    async def story(bench: Bench) -> None:
        sh("debugfs", "-w", "-R", "set_super_value state 2", disk.device)  # the kernel has seen errors
        said(await bench.act("files", Action.START, timeout_ms=10_000), Outcome.OK)
        said(await bench.act("files", Action.STOP), Outcome.OK)
        assert "Filesystem state:         clean" in sh("dumpe2fs", "-h", disk.device)
        sh("debugfs", "-w", "-R", "clri <2>", disk.device)  # no root folder any more
        sh("debugfs", "-w", "-R", "set_super_value state 2", disk.device)
        result = await bench.act("files", Action.START, timeout_ms=10_000)
        said(result, Outcome.FAILED, "fsck -p of", "exit status 4", "by hand")

    play(disk, story, fsck="preen")


def test_one_that_the_kernel_made_read_only_fails_its_check(disk: Disk) -> None:
    async def story(bench: Bench) -> None:
        said(await bench.act("files", Action.START), Outcome.OK)
        sh("mount", "-o", "remount,ro", str(disk.directory))
        said(await bench.act("files", Action.CHECK), Outcome.FAILED, "read-only")

    play(disk, story)


def test_a_disk_that_fails_every_read_and_write_is_told_by_the_check(disk: Disk) -> None:
    async def story(bench: Bench) -> None:
        said(await bench.act("files", Action.START), Outcome.OK)
        disk.mode("gone")
        said(await bench.act("files", Action.CHECK), Outcome.FAILED, str(disk.directory), "Input/output error")
        disk.mode("ok")

    play(disk, story)


def test_a_frozen_disk_is_told_and_costs_one_process(disk: Disk) -> None:
    async def story(bench: Bench) -> None:
        said(await bench.act("files", Action.START), Outcome.OK)
        disk.mode("frozen")
        for words in ("does not answer within", "has not answered for", "has not answered for"):
            with Ticks() as ticks:
                result = await bench.act("files", Action.CHECK, timeout_ms=400)
                assert ticks.at_most(400)
            said(result, Outcome.TIMED_OUT, words)
        looks = [m for m in bench.sent if isinstance(m, messages.Run) and "look" in m.argv]
        assert len(looks) == 1, "the mount itself was the start's look; one hangs"
        disk.mode("ok")
        await bench.until(lambda: not bench.alive())  # the look that hung has come back
        said(await bench.act("files", Action.CHECK), Outcome.OK, "the disk answers")

    play(disk, story)
