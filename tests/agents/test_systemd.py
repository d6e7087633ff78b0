"""The systemd agent against a stand-in of systemd's manager on a private bus: no systemd runs where these tests do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from hasnmp import settings
from hasnmp.agents import systemd_files
from hasnmp.core.events import Action, Outcome
from hasnmp.runtime.belongings import Belongings
from hasnmp.runtime.cgroups import find_mount
from hasnmp.runtime.units import GroupUnits, folders, leave_of
from hasnmp.settings import Check
from tests.agents.bench import Bench
from tests.agents.test_ocf import play, said

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("dbus-daemon") is None, reason="needs root, for control groups, and dbus-daemon"
)
UNIT = f"hasnmp-test-{os.getpid()}.service"
BUS = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>session</type><listen>unix:path={path}</listen><policy context="default"><allow send_destination="*"
 eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/></policy></busconfig>"""


@dataclass
class StandIn:
    folder: Path
    slice: Path

    def unit(self, **values: Any) -> None:
        (self.folder / UNIT).write_text(json.dumps({"command": ["sleep", "1000"]} | values))

    @property
    def calls(self) -> list[str]:
        return [line.split()[0] for line in (self.folder / "calls").read_text().splitlines()]

    @property
    def drop_in(self) -> Path:
        return self.folder / "run" / f"{UNIT}.d" / "50-hasnmp.conf"

    def pids(self) -> list[int]:
        return [int(word) for word in (self.slice / UNIT / "cgroup.procs").read_text().split()]


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    mount = find_mount()
    assert mount
    slice_ = mount / f"hasnmptest{os.getpid()}.slice"
    (tmp_path / "bus.conf").write_text(BUS.format(path=tmp_path / "bus"))
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path / 'bus'}")
    monkeypatch.setenv("HASNMP_SYSTEMD_RUN", str(tmp_path / "run"))
    with contextlib.ExitStack() as stack:

        def end(process: subprocess.Popen[str]) -> None:
            process.kill()
            process.wait()

        bus = subprocess.Popen(
            ["dbus-daemon", "--nofork", "--print-address", f"--config-file={tmp_path / 'bus.conf'}"],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        stack.callback(end, bus)
        assert bus.stdout and bus.stdout.readline().startswith("unix:")
        manager = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("systemd_stand_in.py")), str(tmp_path), str(slice_)],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        stack.callback(end, manager)
        assert manager.stdout and manager.stdout.readline() == "ready\n"
        yield StandIn(tmp_path, slice_)
    for folder in (slice_ / UNIT, slice_):
        with contextlib.suppress(FileNotFoundError):
            if folder.name == UNIT:
                (folder / "cgroup.kill").write_text("1")
                while "populated 1" in (folder / "cgroup.events").read_text():
                    pass
            folder.rmdir()


def of_group(systemd: StandIn) -> settings.Config:
    return settings.Config(
        "c", (), settings.Heartbeat(), settings.Arbiter("none"), (settings.Group("g", ("a",), (service(),)),),
        run_dir=str(systemd.folder / "run"),
    )  # fmt: skip


def service() -> settings.Service:
    return settings.Service("web", "g", f"systemd:{UNIT}", {}, check=Check(type="monitor"))


def test_a_unit_goes_up_and_down(systemd: StandIn) -> None:
    systemd.unit()

    @play(systemd.folder, service())
    async def story(bench: Bench) -> None:
        said(await bench.act("web", Action.CHECK), Outcome.NOT_RUNNING, f"{UNIT} is inactive")
        said(await bench.act("web", Action.START, 10_000), Outcome.OK, "runs")
        assert systemd.drop_in.read_text().endswith("[Service]\nRestart=no\n"), "systemd must not undo a lease's end"
        assert systemd.calls.index("Reload") < systemd.calls.index("StartUnit")
        said(await bench.act("web", Action.CHECK), Outcome.OK, "runs")
        for pid in systemd.pids():
            os.kill(pid, signal.SIGKILL)
        await bench.until(lambda: not systemd.pids())
        said(await bench.act("web", Action.CHECK), Outcome.FAILED, "is failed", "result signal")
        said(await bench.act("web", Action.START, 10_000), Outcome.OK, "runs")
        said(await bench.act("web", Action.STOP, 10_000), Outcome.OK, "stopped")
        assert not systemd.drop_in.exists() and not systemd.pids()
        said(await bench.act("web", Action.STOP, 10_000), Outcome.OK)


def test_a_job_that_fails_says_how(systemd: StandIn) -> None:
    systemd.unit(result="dependency")

    @play(systemd.folder, service())
    async def story(bench: Bench) -> None:
        said(await bench.act("web", Action.START, 10_000), Outcome.FAILED, "the job ended with dependency")


@pytest.mark.parametrize(
    "unit", [{"active": "active"}, {"active": "activating"}, {"active": "inactive", "job": 7}, {"active": "failed"}, {}]
)
def test_what_runs_or_will_run_without_a_lease_is_stopped(systemd: StandIn, unit: dict[str, Any]) -> None:
    """A boot starts the unit: its main program may not be there yet, nor even the first of it."""
    systemd.unit(**unit)

    @play(systemd.folder, service())
    async def story(bench: Bench) -> None:
        bench.host.released("g")
        bench.agents.adopt((), ())
        await bench.until(lambda: not bench.agents._tasks)
        assert ("StopUnit" in systemd.calls) is (unit not in ({"active": "failed"}, {}))


def test_a_job_that_never_ends_is_a_start_that_took_too_long(systemd: StandIn) -> None:
    systemd.unit(hang=True)

    @play(systemd.folder, service())
    async def story(bench: Bench) -> None:
        assert (await bench.act("web", Action.START, 1500)).outcome is Outcome.TIMED_OUT


def test_a_unit_that_is_not_there(systemd: StandIn) -> None:
    @play(systemd.folder, service())
    async def story(bench: Bench) -> None:
        said(await bench.act("web", Action.START, 10_000), Outcome.MISSING, "its unit file is not-found")
        said(await bench.act("web", Action.STOP, 10_000), Outcome.OK, "was not started")


def test_a_unit_outside_of_a_slice_is_refused_and_stopped_again(systemd: StandIn) -> None:
    systemd.unit(group="/init.scope")

    @play(systemd.folder, service())
    async def story(bench: Bench) -> None:
        said(
            await bench.act("web", Action.START, 10_000),
            Outcome.FAILED,
            "control group /init.scope",
            "could not be ended",
        )
        assert not systemd.pids()


def test_a_unit_that_a_boot_starts_is_warned_of(systemd: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    link = systemd.folder / "units/multi-user.target.wants" / UNIT
    link.parent.mkdir(parents=True)
    link.symlink_to("/nowhere")
    monkeypatch.setattr(systemd_files, "PLACES", (str(systemd.folder / "units"), str(systemd.folder / "none")))

    with capture_logs() as lines:

        @play(systemd.folder, service())
        async def story(bench: Bench) -> None:
            assert not bench.sent

    assert [(line["event"], line["next"]) for line in lines] == [("unit_enabled_at_boot", f"systemctl disable {UNIT}")]


def test_without_a_bus_it_says_so(systemd: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={systemd.folder / 'nothing'}")

    @play(systemd.folder, service())
    async def story(bench: Bench) -> None:
        said(await bench.act("web", Action.START, 10_000), Outcome.FAILED, "no system bus")


def test_a_units_processes_are_found_and_ended_by_their_control_group(systemd: StandIn) -> None:
    systemd.unit()
    config = of_group(systemd)

    @play(systemd.folder, service())
    async def story(bench: Bench) -> None:
        units = GroupUnits(Belongings(config, "node-a"))
        assert units.left("g") == []
        said(await bench.act("web", Action.START, 10_000), Outcome.OK)
        assert folders({UNIT}) == [systemd.slice / UNIT]
        assert units.left("g") == [f"process {pid} ({UNIT})" for pid in systemd.pids()] != []
        units.kill("g")
        await bench.until(lambda: units.left("g") == [])


def test_systemd_starts_nothing_of_a_group_that_has_ended(systemd: StandIn) -> None:
    """A job that waits for another unit, and the program that follows one that was killed: systemd executes both, if it may,
    long after the lease."""
    systemd.unit()
    units = GroupUnits(Belongings(of_group(systemd), "node-a"))
    leave = leave_of(str(systemd.folder / "run"), "node-a", UNIT)
    ran = systemd.folder / "ran"

    def next_program() -> subprocess.Popen[bytes]:
        script = 'echo $$ > "$1/cgroup.procs"; touch "$2"; exec sleep 1000'
        return subprocess.Popen(["sh", "-c", script, "sh", str(systemd.slice / UNIT), str(ran)])

    @play(systemd.folder, service())
    async def story(bench: Bench) -> None:
        said(await bench.act("web", Action.START, 10_000), Outcome.OK)
        assert (
            f"[Unit]\nDefaultDependencies=no\nAssertPathExists={leave}\n" in systemd.drop_in.read_text()
            and leave.exists()
        )
        units.kill("g")
        assert not leave.exists(), "a job that waits would start it"
        await bench.until(lambda: units.left("g") == [])
        leave.touch()  # by the action that asked for the start: it was just being killed
        assert units.left("g") == [] and not leave.exists()

        late = next_program()
        try:
            await bench.until(lambda: units.left("g") == [f"process {late.pid} ({UNIT})"])
            await asyncio.sleep(0.1)
            assert not ran.exists(), "what follows in the unit was executed"
            said(await bench.act("web", Action.START, 10_000), Outcome.OK, "runs")
            assert late.wait(10) == -signal.SIGKILL and not ran.exists()
        finally:
            late.kill()
            late.wait()
        assert leave.exists() and systemd.pids()
        said(await bench.act("web", Action.STOP, 10_000), Outcome.OK, "stopped")
        assert not leave.exists() and not systemd.drop_in.exists()


def test_a_unit_that_can_not_be_forbidden_is_no_end(systemd: StandIn) -> None:
    """And what runs of it is killed all the same."""
    units = GroupUnits(Belongings(of_group(systemd), "node-a"))
    leave_of(str(systemd.folder / "run"), "node-a", UNIT).mkdir(
        parents=True
    )  # a folder can't be unlinked, nor can others on a sick disk
    units.kill("g")
    (left,) = units.left("g")
    assert UNIT in left and "can't be removed" in left
