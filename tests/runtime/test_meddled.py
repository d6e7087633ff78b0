"""A real daemon whose files are meddled with while it runs: what it needs of them it has, or makes anew."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hasnmp import config as files
from hasnmp.runtime import handover, places
from tests.client.pair import picture
from tests.ports import free_port
from tests.runtime.test_guardian import lives

pytestmark = pytest.mark.serial
FORM = """
cluster: bank
nodes:
  node-a: {{links: {{lan: 127.0.0.86}}}}
heartbeat: {{port: {port}, key_files: [{folder}/key]}}
arbiter: {{type: none, accept_split_brain: true}}
groups:
  web:
    services:
      - {{name: sleeper, agent: exec, options: {{command: [sleep, "600"]}}}}
snmp: {{listen: ["127.0.0.87:{port}"]}}
control: {{socket: {folder}/run/control.sock}}
state_dir: {folder}/state
run_dir: {folder}/run
"""


class Daemon:
    """hasnmpd with one service, which runs when this has been made."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.form = folder, folder / "hasnmp.yaml"
        (folder / "key").write_text("an unguessable heartbeat key of this test\n")
        (folder / "key").chmod(0o600)
        port = free_port("::")
        self.form.write_text(FORM.format(folder=folder, port=port))
        self.words = [sys.executable, "-m", "hasnmp.runtime.daemon", "--config", str(self.form), "--node", "node-a"]
        with open(folder / "log", "a") as errors:
            self.process = subprocess.Popen(self.words, stderr=errors, stdin=subprocess.DEVNULL)
        self.service = self.until(lambda: self.row("services", "sleeper").pid)

    def row(self, table: str, name: str) -> Any:
        view = picture(str(self.folder / "run/control.sock"))
        found = view.tables[table].get(name) if view else None
        return found if found is not None else _Nothing()

    def until(self, true: Callable[[], Any], seconds: float = 60) -> Any:
        end_s = time.monotonic() + seconds
        while not (found := true()):
            assert self.process.poll() is None and time.monotonic() < end_s, self.log()
            time.sleep(0.02)
        return found

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class _Nothing:
    def __getattr__(self, name: str) -> None:
        return None


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    made = Daemon(tmp_path)
    yield made
    made.close()


def test_a_file_that_changes_behind_the_rehearsal_of_a_handover_ends_nothing(daemon: Daemon) -> None:
    """An editor that saves it just then would be the end of every service: the new code goes by what was rehearsed."""
    wrapper = daemon.folder / "python"
    wrapper.write_text(f"""#!/bin/sh
case "$*" in *--rehearse*) {sys.executable} "$@"; status=$?; echo "half of: [" > {daemon.form}; exit $status;; esac
exec {sys.executable} "$@"
""")
    wrapper.chmod(0o700)
    good = daemon.form.read_text()
    form = files.load(str(daemon.form))
    assert handover.ask(form, "node-a", [str(wrapper), "-m", "hasnmp.runtime.daemon"], str(daemon.form)) == 0, (
        daemon.log()
    )
    assert daemon.form.read_text() != good, "it was read again only before it was changed"
    assert lives(daemon.service)
    daemon.until(lambda: daemon.row("services", "sleeper").pid == daemon.service)


def test_a_run_dir_that_is_removed_is_made_anew(daemon: Daemon) -> None:
    """Else nobody could give a command until the next start, and who started a second daemon would end what the first runs."""
    run = daemon.folder / "run"
    run.rename(daemon.folder / "removed")
    daemon.until(lambda: daemon.row("services", "sleeper").pid == daemon.service)
    daemon.until(lambda: "run_dir_made_anew" in daemon.log())
    assert run.stat().st_mode & 0o777 == 0o755
    assert (run / "control.sock").stat().st_mode & 0o777 == 0o660
    second = subprocess.run(daemon.words, capture_output=True, text=True, timeout=60)
    assert second.returncode == 75 and "another hasnmpd" in second.stderr
    assert lives(daemon.service)
    form = files.load(str(daemon.form))
    assert handover.ask(form, "node-a", daemon.words[:3], str(daemon.form)) == 0, daemon.log()
    assert lives(daemon.service)


def test_a_second_daemon_that_came_first_to_a_removed_run_dir_is_told_of(daemon: Daemon) -> None:
    other = daemon.folder / "other.lock"
    held = places.lock(other)
    other.rename(daemon.folder / "run/node-a.lock")
    daemon.until(lambda: "run_dir_lost" in daemon.log())
    assert daemon.log().count("run_dir_lost") == 1 and lives(daemon.service)
    os.close(held)
    daemon.until(lambda: "run_dir_made_anew" in daemon.log())
