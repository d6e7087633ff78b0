"""The machine's watchdog: a FIFO stands for the device, whose reader is the timer; and the restart where it is the last word."""

from __future__ import annotations

import array
import contextlib
import itertools
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hasnmp import settings
from hasnmp.config import load
from hasnmp.runtime.feeder import Feeder
from hasnmp.runtime.kernel import boottime_ns
from hasnmp.runtime.messages import Alarm, RunStarted
from hasnmp.runtime.watchdog import WDIOC_SETTIMEOUT, Watchdog
from tests.cluster.control import overdue_ms
from tests.runtime.stack import MS, Stack
from tests.runtime.test_guardian import SLEEP, forked_ns, lives, until

pytestmark = pytest.mark.serial
DRIVER_MS = 2000  # what the driver of tests.runtime.stack makes of 1 s


class Device:
    """The fake device: what was written to it, and when."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "watchdog"
        os.mkfifo(self.path)
        self.fd = -1

    def appear(self) -> None:
        self.fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)

    def read(self) -> bytes:
        """What was written since the last look."""
        try:
            return os.read(self.fd, 4096)
        except BlockingIOError:
            return b""

    def wait(self, word: bytes, within_s: float = 10) -> bytes:
        said = bytearray()
        until(lambda: word in bytes(said.extend(self.read()) or said), within_s)
        return bytes(said)


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    made = Device(tmp_path)
    yield made
    if made.fd >= 0:
        os.close(made.fd)


def test_systemd_waits_for_as_long_as_an_orderly_stop_may_take(tmp_path: Path) -> None:
    """TimeoutStopSec of the unit is less than what services may be given; systemd would kill the guardian in the middle."""
    (tmp_path / "heartbeat.key").write_text("k" * 32)
    (tmp_path / "heartbeat.key").chmod(0o600)
    (tmp_path / "h.yaml").write_text(f"""
cluster: c
nodes: {{a: {{links: {{lan: 127.0.0.1}}}}}}
heartbeat: {{key_files: [{tmp_path}/heartbeat.key]}}
arbiter: {{type: disk, device: {tmp_path}/lease}}
groups:
  short: {{services: [{{name: s, agent: exec, options: {{command: [/bin/true]}}, stop_timeout_ms: 7000}}]}}
  long:
    services:
      - {{name: l1, agent: exec, options: {{command: [/bin/true]}}, stop_timeout_ms: 200000}}
      - {{name: l2, agent: exec, options: {{command: [/bin/true]}}, stop_timeout_ms: 300000}}
hooks: [{{on: before_stop, run: [/bin/true], timeout_ms: 9000}}]
""")
    told: list[str] = []
    guardian: Any = SimpleNamespace(config=load(str(tmp_path / "h.yaml")))
    Feeder(guardian, told.append).stopping()
    assert told == ["STOPPING=1\nEXTEND_TIMEOUT_USEC=569000000"]  # the longest group, the hooks, and a minute


def restarts(stack: Stack) -> list[int]:
    """When the machine would have been restarted."""
    path = stack.folder / "restarted"
    return list(map(int, path.read_text().split())) if path.exists() else []


def test_it_is_armed_with_the_drivers_time_fed_at_a_third_and_disarmed_by_an_orderly_stop(
    tmp_path: Path, device: Device
) -> None:
    device.appear()
    stack = Stack(tmp_path, watchdog=str(device.path))
    try:
        assert (stack.hello.watchdog_ms, stack.hello.watchdog_error) == (DRIVER_MS, "")
        device.wait(b"\0")
        fed = []
        for _ in range(3):
            device.wait(b"\0")
            fed.append(boottime_ns())
        assert all(b - a > 500 * MS and overdue_ms(a, b) < 900 for a, b in itertools.pairwise(fed)), fed
        stack.process.terminate()
        assert stack.conn
        stack.conn.send(b"exit 0")
        assert stack.process.wait(30) == 0
        assert device.wait(b"V").endswith(b"V")
    finally:
        stack.close()


def test_one_that_can_not_be_opened_is_told_and_tried_again(tmp_path: Path, device: Device) -> None:
    stack = Stack(tmp_path, watchdog=str(device.path))
    try:
        assert stack.hello.watchdog_ms == 0
        assert str(device.path) in stack.hello.watchdog_error and "can't be opened" in stack.hello.watchdog_error
        stack.lease(60000)  # it goes on without one
        assert stack.expect(RunStarted, run=stack.program(*SLEEP)).pid
        device.appear()
        os.kill(stack.engine_pid, signal.SIGKILL)
        assert stack.accept().watchdog_ms == DRIVER_MS
        device.wait(b"\0")
    finally:
        stack.close()


def test_one_that_appears_later_is_armed_and_told_to_another_engine(tmp_path: Path, device: Device) -> None:
    (tmp_path / "eager").touch()  # it tries again each second
    stack = Stack(tmp_path, watchdog=str(device.path))
    try:
        assert stack.hello.watchdog_ms == 0
        stack.lease(60000)
        web = stack.expect(RunStarted, run=stack.program(*SLEEP)).pid
        device.appear()
        hello = stack.accept()
        assert (hello.watchdog_ms, hello.replaced) == (DRIVER_MS, True)
        assert [running.pid for running in hello.running] == [web]
    finally:
        stack.close()


def test_one_that_disappears_is_not_armed_any_more_for_the_peers_until_it_is_back(
    tmp_path: Path, device: Device
) -> None:
    """They would take a disk from this node when its watchdog's time has passed, though nothing has reset it."""
    (tmp_path / "eager").touch()
    device.appear()
    stack = Stack(tmp_path, watchdog=str(device.path))
    try:
        assert stack.hello.watchdog_ms == DRIVER_MS
        stack.lease(60000)
        web = stack.expect(RunStarted, run=stack.program(*SLEEP)).pid
        os.close(device.fd)  # a feed is a broken pipe from here on, and nothing can be opened
        hello = stack.accept()
        assert (hello.watchdog_ms, hello.replaced) == (0, True)
        assert "can't be fed" in stack.log() and "this machine may be reset in 2.0 s" in stack.log()
        device.appear()
        assert stack.accept().watchdog_ms == DRIVER_MS
        assert lives(web) and stack.log().count("may be reset") == 1
        device.wait(b"\0")
    finally:
        stack.close()


def test_a_guardian_that_dies_disarms_nothing_and_the_next_one_feeds_it(tmp_path: Path, device: Device) -> None:
    device.appear()
    stack = Stack(tmp_path, watchdog=str(device.path))
    try:
        stack.lease(60000)
        stack.expect(RunStarted, run=stack.program(*SLEEP))
        os.kill(stack.process.pid, signal.SIGKILL)
        stack.process.wait()
        until(lambda: not Path(f"/proc/{stack.engine_pid}").exists())  # no child of it held the device open
        assert b"V" not in device.read()
        assert stack.start().watchdog_ms == DRIVER_MS
        assert b"V" not in device.wait(b"\0")
    finally:
        stack.close()


def test_it_is_not_fed_while_a_group_can_not_be_ended_and_the_machine_restarts_at_the_leases_end(
    tmp_path: Path, device: Device
) -> None:
    device.appear()
    stack = Stack(tmp_path, "stuck", watchdog=str(device.path))
    try:
        expiry = stack.lease(1000)
        (tmp_path / "stuck").touch()
        until(lambda: restarts(stack))
        restarted = restarts(stack)[0]
        assert restarted >= expiry and overdue_ms(expiry, restarted) < 30, (
            "not before the end, for it may end until then; and not later"
        )
        device.read()
        stack.accept()
        assert "RESTARTS NOW" in stack.expect(Alarm).text
        assert "does not restart: not in a test" in stack.expect(Alarm).text
        time.sleep(DRIVER_MS / 1000)  # longer than two feeds
        assert device.read() == b""
        assert len(restarts(stack)) == 1
        (tmp_path / "stuck").unlink()
        device.wait(b"\0")  # had the machine lived on, it would be fed again
    finally:
        stack.close()


@pytest.mark.parametrize(
    ("disk", "accept", "wanted"), [(True, False, True), (True, True, False), (False, False, False)]
)
def test_only_a_group_that_must_not_be_left_restarts_the_machine(
    tmp_path: Path, disk: bool, accept: bool, wanted: bool
) -> None:
    stack = Stack(tmp_path, "stuck", disk=disk, accept=accept)
    try:
        stack.lease(1000)
        (tmp_path / "stuck").touch()
        stack.accept()
        assert "IS NOT ENDED" in stack.expect(Alarm).text
        assert bool(restarts(stack)) is wanted
        (tmp_path / "stuck").unlink()
        until(lambda: "ms too late" in stack.log())
    finally:
        stack.close()


def test_systemd_replaces_no_guardian_for_a_group_that_it_can_not_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one could not either, and every group that is well would be ended with this one, again and again."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "400000")
        stack = Stack(tmp_path, "stuck")
        try:
            stack.lease(60_000, "h")
            mail = stack.expect(RunStarted, run=stack.program(*SLEEP, service="mail", group="h")).pid
            stack.lease(1000)
            (tmp_path / "stuck").touch()
            stack.accept()
            assert "IS NOT ENDED" in stack.expect(Alarm).text
            systemd.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while systemd.recv(4096):
                    pass
            systemd.settimeout(10)
            for _ in range(3):
                assert systemd.recv(4096) == b"WATCHDOG=1"
            assert lives(mail)
            (tmp_path / "stuck").unlink()
            until(lambda: "ms too late" in stack.log())
        finally:
            stack.close()


def test_what_a_former_guardian_left_stuck_arms_nothing_and_restarts_nothing(tmp_path: Path, device: Device) -> None:
    """Else a machine with a mistake in it would restart for ever."""
    device.appear()
    (tmp_path / "stuck").touch()
    stack = Stack(tmp_path, "stuck", watchdog=str(device.path), disk=True)
    try:
        assert stack.hello.watchdog_ms == 0
        assert "not armed while groups are not ended: g" in stack.hello.watchdog_error
        assert "IS NOT ENDED" in stack.expect(Alarm).text
        assert restarts(stack) == []
        assert device.read() == b""
        (tmp_path / "stuck").unlink()
        until(lambda: "ms too late" in stack.log())
        os.kill(stack.engine_pid, signal.SIGKILL)
        assert stack.accept().watchdog_ms == DRIVER_MS
    finally:
        stack.close()


def test_an_engine_that_hangs_before_its_first_word_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "mute").touch()
    stack = Stack(tmp_path)
    try:
        first = stack.engine_pid
        began = boottime_ns()
        (tmp_path / "mute").unlink()
        os.kill(first, signal.SIGSTOP)
        stack.accept(30)
        assert 3500 < (forked_ns(stack.engine_pid) - began) / MS < 7000
        assert "it hangs" in stack.log()
    finally:
        stack.close()


# ------------------------------------------------------------------------------------------------------- the driver


def armed(path: Path, seconds: int, taken: int, problem: OSError | None = None) -> Watchdog:
    asked: list[tuple[int, int]] = []

    def ioctl(fd: int, request: int, value: array.array[int]) -> Any:
        asked.append((request, value[0]))
        if request == WDIOC_SETTIMEOUT and problem:
            raise problem
        value[0] = taken

    watchdog = Watchdog(settings.Watchdog(str(path), seconds), ioctl)
    watchdog.arm()
    assert asked[0] == (WDIOC_SETTIMEOUT, seconds)
    return watchdog


def test_what_the_driver_took_counts(tmp_path: Path) -> None:
    path = tmp_path / "device"
    path.touch()
    watchdog = armed(path, 10, 16)
    assert (watchdog.timeout_ms, watchdog.every_ns, watchdog.error) == (16000, 16_000 * MS // 3, "")
    assert watchdog.feed()
    watchdog.disarm()
    assert path.read_bytes() == b"\0V"
    assert watchdog.timeout_ms == 0


def test_a_driver_with_a_fixed_time_is_asked_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "device").touch()
    assert armed(tmp_path / "device", 10, 60, OSError(95, "not supported")).timeout_ms == 60000


def test_what_is_no_watchdog_is_said_and_closed_again(tmp_path: Path) -> None:
    (tmp_path / "device").touch()
    watchdog = Watchdog(settings.Watchdog(str(tmp_path / "device"), 10))  # the real ioctl, of a plain file
    assert not watchdog.arm()
    assert "is it a watchdog?" in watchdog.error and watchdog.fd < 0 and watchdog.timeout_ms == 0


def test_a_feed_that_fails_is_told(tmp_path: Path) -> None:
    (tmp_path / "device").touch()
    watchdog = armed(tmp_path / "device", 10, 10)
    os.close(watchdog.fd)
    assert not watchdog.feed() and "can't be fed" in watchdog.error
