"""Real processes of a daemon that hang, each alone: the daemon tells it by an alarm, and its end. (The snmp agent: test_vigil.)"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hasnmp.arbiters import admin
from hasnmp.model import GroupState

pytestmark = pytest.mark.serial

FORM = """
cluster: hung
nodes:
  node-a: {{links: {{lan: 127.0.0.85}}}}
heartbeat: {{port: 28407, key_files: [{folder}/key]}}
arbiter: {{type: disk, device: {folder}/lease}}
groups:
  web:
    services:
      - {{name: sleeper, agent: exec, options: {{command: [sleep, "600"]}}}}
snmp: {{listen: ["127.0.0.85:28162"]}}
control: {{socket: {folder}/control.sock}}
state_dir: {folder}/state
run_dir: {folder}/run
"""


class Daemon:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "key").write_text("an unguessable heartbeat key of this test\n")
        (folder / "key").chmod(0o600)
        (folder / "hasnmp.yaml").write_text(FORM.format(folder=folder))
        admin.init(str(folder / "lease"), "hung", ("web",), ("node-a",))
        words = [
            sys.executable,
            "-m",
            "hasnmp.runtime.daemon",
            "--config",
            str(folder / "hasnmp.yaml"),
            "--node",
            "node-a",
        ]
        self.process = subprocess.Popen(words, stderr=(folder / "log").open("w"))

    def child(self, name: str) -> int:
        for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
            if Path(f"/proc/{pid}/comm").read_text().strip() == name:
                return int(pid)
        raise AssertionError(f"no {name}: {(self.folder / 'log').read_text()}")

    def tables(self) -> dict[str, dict[str, dict[str, object]]]:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(20)
            sock.connect(str(self.folder / "control.sock"))
            tables = json.loads(sock.makefile("rb").readline())["tables"]
        return tables  # type: ignore[no-any-return]

    def wait(self, *alarms: str, within_s: float = 30) -> None:
        """Until these alarms stand, and no other, and the group runs."""
        end_s = time.monotonic() + within_s
        found: object = None
        while found != (sorted(alarms), GroupState.RUNNING):
            assert time.monotonic() < end_s, f"{found}; {(self.folder / 'log').read_text()[-3000:]}"
            time.sleep(0.05)
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):  # the engine is not there yet
                tables = self.tables()
                found = sorted(key.partition("/")[0] for key in tables["alarms"]), tables["groups"]["web"]["state"]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    made = Daemon(tmp_path)
    try:
        made.wait()
        yield made
    finally:
        made.process.terminate()
        try:
            made.process.wait(15)
        except subprocess.TimeoutExpired:
            made.process.kill()
            made.process.wait()


@pytest.mark.parametrize(("name", "alarm"), [("hasnmp-lease", "arbiterLost"), ("hasnmp-store", "stateNotSaved")])
def test_a_process_that_hangs_is_an_alarm_and_stops_no_service(daemon: Daemon, name: str, alarm: str) -> None:
    sleeper, hangs = daemon.child("sleep"), daemon.child(name)
    os.kill(hangs, signal.SIGSTOP)
    # Something that must be kept: a store with nothing to do is not missed.
    words = [sys.executable, "-m", "hasnmp.cli", "--socket", f"{daemon.folder}/control.sock", "inhibit"]
    inhibit = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        daemon.wait(alarm)
    finally:
        os.kill(hangs, signal.SIGCONT)
        inhibit.wait(60)
    daemon.wait()
    assert daemon.child("sleep") == sleeper and daemon.child(name) == hangs
