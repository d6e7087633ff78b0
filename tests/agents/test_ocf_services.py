"""Debian's resource agents under a whole daemon on this machine: started, checked, restarted, adopted, stopped, ended."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hasnmp.console.control import Control
from hasnmp.errors import HasnmpError
from hasnmp.model import ServiceState
from hasnmp.runtime.cgroups import find_mount
from tests.cluster.lab import wait_for

pytestmark = [
    pytest.mark.serial,
    pytest.mark.skipif(
        os.geteuid() != 0 or not Path("/usr/lib/ocf/resource.d/heartbeat").is_dir() or shutil.which("nginx") is None,
        reason="needs root, and Debian's resource-agents and nginx-light",
    ),
]
ADDRESS, PORT = "127.0.0.92", 28492
WEB = 28480
TEXT = f"""\
cluster: ocf-{os.getpid()}
nodes:
  node-a: {{links: {{lan: {ADDRESS}}}}}
heartbeat: {{port: {PORT}, interval_ms: 50, late_after_ms: 100, dead_after_ms: 2000, startup_wait_ms: 2000, key_files: [FOLDER/key]}}
arbiter: {{type: none, accept_split_brain: true}}
groups:
  g:
    services:
      - {{name: sleeper, agent: "ocf:heartbeat:Dummy"}}
      - {{name: link, agent: "ocf:heartbeat:symlink", options: {{link: FOLDER/link, target: FOLDER/target}}}}
      - {{name: colour, agent: "ocf:pacemaker:attribute", options: {{name: colour, active_value: red, inactive_value: none}}}}
      - {{name: wait, agent: "ocf:heartbeat:Delay", options: {{startdelay: 1, stopdelay: 1, mondelay: 0}}}}
      - name: web
        agent: ocf:heartbeat:nginx
        options: {{configfile: FOLDER/nginx.conf}}
        check: {{every_ms: 1500, timeout_ms: 1500}}
snmp: {{listen: ["{ADDRESS}:28161"]}}
state_dir: FOLDER/state
run_dir: FOLDER/run
log: {{format: json}}
"""
NGINX = """pid FOLDER/nginx.pid;
error_log FOLDER/nginx.err;
events {}
http { access_log off; server { listen 127.0.0.92:WEB; location / { return 200 "hello"; } } }
"""


class Daemon:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, text in (("key", "k" * 32), ("hasnmp.yaml", TEXT), ("nginx.conf", NGINX), ("target", "")):
            (folder / name).write_text(text.replace("FOLDER", str(folder)).replace("WEB", str(WEB)))
            (folder / name).chmod(0o600)
        self.log = folder / "log"
        # As if the machine's boot had started it: it has to go before anything else.
        state = folder / "run/ocf-node-a/Dummy-sleeper.state"
        state.parent.mkdir(parents=True)
        state.touch()
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "hasnmp.runtime.daemon", "--config", str(folder / "hasnmp.yaml"), "--node", "node-a"],
                stdin=subprocess.DEVNULL, stderr=log, start_new_session=True,
            )  # fmt: skip

    def services(self) -> dict[str, Any]:
        with contextlib.suppress(HasnmpError):
            control = Control(str(self.folder / "run/control.sock"))
            with contextlib.closing(control):
                return dict(control.view().tables["services"])
        return {}

    def running(self) -> bool:
        rows = self.services().values()
        return len(rows) == 5 and all(row.state is ServiceState.RUNNING for row in rows)

    def why(self) -> str:
        rows = {name: (row.state, row.message) for name, row in self.services().items()}
        return f"{rows}\n{self.log.read_text()[-3000:]}"

    def nginx(self) -> int:
        try:
            return int((self.folder / "nginx.pid").read_text())
        except (FileNotFoundError, ValueError):
            return 0

    def engine(self) -> int:
        return int((self.folder / "run/node-a.engine").read_text().split()[0])

    def processes(self) -> list[int]:
        """Of the group's services, in whatever control group below this node's."""
        mount = find_mount()
        assert mount
        found = []
        for path in mount.glob(f"hasnmp-ocf-{os.getpid()}-*/g/**/cgroup.procs"):
            with contextlib.suppress(OSError):
                found += [int(word) for word in path.read_text().split()]
        return found


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path)
    try:
        wait_for(daemon.running, 60, daemon.why)
        yield daemon
    finally:
        if daemon.process.poll() is None:
            daemon.process.terminate()
            try:
                daemon.process.wait(20)
            except subprocess.TimeoutExpired:
                daemon.process.kill()
                daemon.process.wait()
        wait_for(lambda: not daemon.processes(), 10, daemon.why)


def alive(pid: int) -> bool:
    return pid > 0 and Path(f"/proc/{pid}").exists()


def test_services_by_ocf_agents_live_as_any_other(daemon: Daemon) -> None:
    log = daemon.log.read_text()
    assert '"service_runs_without_lease"' in log and '"stray_service_ended"' in log, (
        "what ran before its lease was stopped"
    )
    assert (daemon.folder / "link").is_symlink()
    assert (daemon.folder / "run/ocf-node-a/attributes/node-a.colour").read_text() == "red"
    first = daemon.nginx()
    assert first in daemon.processes()

    os.kill(daemon.engine(), signal.SIGKILL)
    wait_for(lambda: daemon.log.read_text().count('"engine_started"') > 1, 10, daemon.why)
    wait_for(daemon.running, 10, daemon.why)
    assert daemon.nginx() == first and alive(first), "the next engine adopts it untouched"

    for pid in [pid for pid in daemon.processes() if "nginx" in Path(f"/proc/{pid}/comm").read_text()]:
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: daemon.nginx() not in (0, first) and daemon.running(), 20, daemon.why)
    assert daemon.services()["web"].restarts == 1

    began = time.monotonic()
    daemon.process.terminate()
    assert daemon.process.wait(30) == 0
    assert not daemon.processes() and not alive(daemon.nginx())
    assert not (daemon.folder / "link").exists(), "stopped by its agent, in order"
    assert time.monotonic() - began > 1, "with the Delay of a second"


def test_what_agents_started_ends_with_a_killed_guardian(daemon: Daemon) -> None:
    """The engine outlives its guardian for as long as it takes to end everything."""
    pid = daemon.nginx()
    assert alive(pid)
    daemon.process.kill()
    daemon.process.wait()
    wait_for(lambda: not alive(pid) and not daemon.processes(), 10, daemon.why)
