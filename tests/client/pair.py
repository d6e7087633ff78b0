"""Two real daemons on 127.0.0.0/8, whose service listens on its node's own address, and a client's file."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from hasnmp.arbiters import admin
from hasnmp.console.control import ENDED, Control
from hasnmp.errors import HasnmpError
from hasnmp.model import CommandRow, EventRow, GroupState, Verb, View
from tests.ports import free_port

T = TypeVar("T")
HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ECHO = HERE / "stream_echo.py"


def wait_for(what: Callable[[], T], seconds: float = 20, why: Callable[[], object] = lambda: "") -> T:
    deadline = time.monotonic() + seconds
    while not (answer := what()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {why()}"
        time.sleep(0.02)
    return answer


def picture(path: str) -> View | None:
    """What the engine behind a control socket says; None: no engine answers there."""
    try:
        with contextlib.closing(Control(path)) as control:
            return control.view()
    except HasnmpError:
        return None


class Pair:
    """Use as a context. number: of the networks 127.0.<number>.0, so that tests side by side do not meet. more: further
    top-level YAML; services: of the group `more`, a YAML list."""

    NODES = ("a", "b")

    def __init__(self, folder: Path, number: int, more: str = "", hooks: str = "") -> None:
        self.folder, self.more, self.hooks = folder, more, hooks
        self.address = {"a": f"127.0.{number}.1", "b": f"127.0.{number}.2"}
        self.port, self.heartbeats, self.clients, self.snmp = (free_port("::") for _ in range(4))
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.secret("heartbeat", "an unguessable heartbeat key of this test")
        self.secret("apps", "a key that applications have, for this test")
        self.secret("feeder", "the key of an outside agent, for this test")
        self.secret("community", "public")
        for node in self.NODES:
            (folder / node).mkdir()
            self.config(node).write_text(self.text(node))
        admin.init(str(folder / "lease"), "pair", ("web", "feeds"), self.NODES)
        for name in ("apps", "feeder"):
            nodes = ", ".join(f"{n}: '{a}:{self.clients}'" for n, a in self.address.items())
            (folder / f"{name}.yaml").write_text(
                f"cluster: pair\nnodes: {{{nodes}}}\nkey: {name}\nkey_files: [{name}.key]\n"
            )

    def secret(self, name: str, text: str) -> None:
        path = self.folder / f"{name}.key"
        path.write_text(text + "\n")
        path.chmod(0o600)

    def config(self, node: str) -> Path:
        return self.folder / f"{node}.yaml"

    def text(self, node: str) -> str:
        links = "".join(f"\n  {n}: {{links: {{lan: {a}}}}}" for n, a in self.address.items())
        command = f'["{sys.executable}", -I, -S, "{ECHO}", {self.address[node]}, "{self.port}", {node}]'
        return f"""cluster: pair
nodes:{links}
heartbeat: {{port: {self.heartbeats}, interval_ms: 100, late_after_ms: 400, dead_after_ms: 1500, startup_wait_ms: 1500,
  key_files: ["{self.folder}/heartbeat.key"]}}
arbiter: {{type: disk, device: "{self.folder}/lease", lease_ms: 2000, io_timeout_ms: 500}}
groups:
  web:
    nodes: [a, b]
    services:
      - name: echo
        agent: exec
        endpoint: {{port: {self.port}}}
        options: {{command: {command}}}
        check: {{type: tcp, host: {self.address[node]}, port: {self.port}, every_ms: 1000, timeout_ms: 800}}
        stop_timeout_ms: 3000
  feeds:
    nodes: [a, b]
    services:
      - {{name: feed, agent: passive, critical: false, check: {{report_within_ms: 60000}}}}
      - {{name: other, agent: passive, critical: false, check: {{report_within_ms: 60000}}}}
recovery: automatic
clients:
  listen: ["{self.address[node]}:{self.clients}"]
  keys:
    - {{name: apps, key_files: ["{self.folder}/apps.key"]}}
    - {{name: feeder, key_files: ["{self.folder}/feeder.key"], from: [127.0.0.0/8], report: [feed]}}
snmp:
  listen: ["{self.address[node]}:{self.snmp}"]
  communities: [{{name_file: "{self.folder}/community.key", access: read}}]
state_dir: "{self.folder}/{node}"
run_dir: "{self.folder}/{node}"
log: {{format: json}}
{f"hooks: {self.hooks}" if self.hooks else ""}
{self.more}
"""

    def __enter__(self) -> Pair:
        for node in self.NODES:
            self.start(node)
        wait_for(lambda: self.owner("web") and self.owner("feeds"), 30, self.why)
        return self

    def start(self, node: str) -> None:
        with (self.folder / f"{node}.log").open("ab") as log:
            self.processes[node] = subprocess.Popen(
                [sys.executable, "-m", "hasnmp.runtime.daemon", "--config", str(self.config(node)), "--node", node],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), "HASNMP_TEST_PAIR": f"{self.folder}/{node}"},
            )  # fmt: skip

    def __exit__(self, *_: object) -> None:
        for node, process in self.processes.items():
            self.signal(node, signal.SIGCONT)
            if process.poll() is None:
                process.terminate()
        for node, process in self.processes.items():
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                pass
            self.kill(node)

    def pids(self, node: str) -> list[int]:
        """Every process of the node: the daemon's and the services'."""
        wanted = f"HASNMP_TEST_PAIR={self.folder}/{node}".encode()
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                if wanted in Path("/proc", name, "environ").read_bytes().split(b"\0"):
                    found.append(int(name))
            except OSError:
                continue
        return found

    def signal(self, node: str, number: signal.Signals) -> None:
        for pid in self.pids(node):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    def kill(self, node: str) -> None:
        """As a power cut: all at once, stopped first so that none sees the end of another."""
        deadline = time.monotonic() + 10
        while self.pids(node) and time.monotonic() < deadline:
            self.signal(node, signal.SIGSTOP)
            self.signal(node, signal.SIGKILL)
            time.sleep(0.01)
        self.processes[node].wait()

    # ---------------------------------------------------------------------------------------------- what they say

    def view(self, node: str) -> View | None:
        return picture(str(self.folder / node / "control.sock"))

    def owner(self, group: str) -> str:
        """The node that says that it runs it; "" for none."""
        for node in self.NODES:
            view = self.view(node)
            row = view.tables["groups"].get(group) if view else None
            if row is not None and row.owner == node and row.state is GroupState.RUNNING:  # type: ignore[union-attr]
                return node
        return ""

    def command(self, node: str, verb: Verb, target: str, to: str = "") -> CommandRow:
        control = Control(str(self.folder / node / "control.sock"))
        try:
            control.view()
            row = control.command(verb, target, to=to)
            for step in control.follow(row, 20):
                row = step if isinstance(step, CommandRow) else row
            return row
        finally:
            control.close()

    def reload(self, node: str) -> CommandRow:
        """Have the node's file read anew; the engine that was asked may make room for the next, which has the outcome."""

        def asked() -> int:
            """The command's number; 0: no engine was there to take it."""
            try:
                control = Control(str(self.folder / node / "control.sock"))
            except HasnmpError:
                return 0
            try:
                control.view()
                return control.command(Verb.RELOAD, "").id
            except HasnmpError:
                return 0
            finally:
                control.close()

        number = wait_for(asked, 20, self.why)

        def ended() -> CommandRow | None:
            view = self.view(node)
            row = view.tables["commands"].get(str(number)) if view else None
            return row if isinstance(row, CommandRow) and row.state in ENDED else None

        row = wait_for(ended, 30, self.why)
        assert row
        return row

    def events(self, node: str, kind: str) -> list[EventRow]:
        view = self.view(node)
        rows = view.tables["events"].values() if view else ()
        return [row for row in rows if isinstance(row, EventRow) and row.kind == kind]

    def why(self) -> str:
        lines = [
            f"{node}: {view.tables['groups'] if (view := self.view(node)) else 'no engine'}" for node in self.NODES
        ]
        return "\n".join([*lines, *((self.folder / f"{n}.log").read_text()[-3000:] for n in self.NODES)])
