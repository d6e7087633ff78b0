"""Three real daemons on this machine, each with a file, a state and a service of its own, as three machines have them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.ports import free_port

MARK = "HASNMP_TRIO"  # in the environment of all that belongs to a node
LAN = {"a": "127.0.0.41", "b": "127.0.0.42", "c": "127.0.0.43", "d": "127.0.0.44"}
TEXT = """\
cluster: trio
nodes:
{nodes}
heartbeat:
  port: {port}
  interval_ms: 100
  late_after_ms: 500
  dead_after_ms: 1500
  startup_wait_ms: 2000
  key_files: [key]
arbiter: {{type: disk, device: ../{device}, lease_ms: 2500, io_timeout_ms: 500}}
groups:
  web:
    nodes: [{members}]
    services: [{{name: sleeper, agent: exec, options: {{command: [sleep, "600"]}}, check: {{type: process, every_ms: 500}}}}]
snmp: {{listen: [], agentx: no-master}}
recovery: automatic
state_dir: state
run_dir: run
"""


class Trio:
    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port("::")
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        for node in LAN:
            home = folder / node
            home.mkdir()
            (home / "key").write_text("k" * 40)
            (home / "key").chmod(0o600)
            self.file(node).write_text(self.text("a, b"))
        self.init()

    # ------------------------------------------------------------------------------------------------------ files

    def text(self, members: str, nodes: str = "abc", device: str = "lease.img", cross: str = "127.0.1") -> str:
        links = "\n".join(
            f"  {node}: {{links: {{lan: {LAN[node]}, cross: {cross}.{LAN[node].split('.')[3]}}}}}" for node in nodes
        )
        return TEXT.format(nodes=links, port=self.port, members=members, device=device)

    def file(self, node: str) -> Path:
        return self.folder / node / "hasnmp.yaml"

    def members(self, node: str) -> list[list[str]]:
        """What is durable there: each set of nodes of the group that counts, the file's own last."""
        document = json.loads((self.folder / node / "state" / f"{node}.members").read_text())
        found: list[list[str]] = document["groups"]["web"]
        return found

    # ------------------------------------------------------------------------------------------------------ nodes

    def start(self, *nodes: str) -> None:
        for node in nodes or ("a", "b", "c"):
            with (self.folder / node / "log").open("ab") as log:
                self.processes[node] = subprocess.Popen(
                    [sys.executable, "-m", "hasnmp.runtime.daemon", "--config", str(self.file(node)), "--node", node],
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                    env={**os.environ, MARK: str(self.folder / node)},
                )  # fmt: skip

    def pids(self, node: str) -> list[int]:
        wanted = f"{MARK}={self.folder / node}".encode()
        found = []
        for name in os.listdir("/proc"):
            with contextlib.suppress(OSError):
                if name.isdigit() and wanted in Path("/proc", name, "environ").read_bytes().split(b"\0"):
                    found.append(int(name))
        return found

    def kill(self, node: str) -> None:
        """A power cut: all at once, the service too."""
        while pids := self.pids(node):
            for how in (signal.SIGSTOP, signal.SIGKILL):
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, how)
        if node in self.processes:
            self.processes.pop(node).wait()

    def close(self) -> None:
        for node in LAN:
            self.kill(node)

    # ------------------------------------------------------------------------------------------------------ asking

    def ask(self, node: str, *words: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "hasnmp.cli", "--socket", str(self.folder / node / "run" / "control.sock"), *words],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout

    def init(self, path: Path | None = None) -> None:
        """Make the lease disk that this file names, or the places that it lacks."""
        status, said = self.ask("a", "arbiter", "init", "--config", str(path or self.file("a")))
        assert status == 0, said

    def apply(self, node: str, text: str, *words: str) -> tuple[int, str]:
        path = self.folder / "next.yaml"
        path.write_text(text)
        return self.ask(node, "apply", str(path), *words)

    def tables(self, node: str) -> dict[str, Any]:
        status, said = self.ask(node, "status", "--json")
        found: dict[str, Any] = json.loads(said) if status == 0 else {}
        return found

    def sleepers(self, node: str) -> list[int]:
        """The service's processes that run there now."""
        found = []
        for pid in self.pids(node):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:2] == [b"sleep", b"600"]:
                    found.append(pid)
        return found

    def owner(self) -> str:
        """Where the service runs; "" nowhere. Never at two places."""
        found = [node for node in LAN if self.sleepers(node)]
        assert len(found) <= 1, found
        return "".join(found)

    def wait(self, what: Callable[[], bool], seconds: float = 40) -> None:
        end = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < end, self.logs()
            time.sleep(0.05)

    def logs(self) -> str:
        lines = []
        for node in LAN:
            path = self.folder / node / "log"
            lines += [f"{node}: {line}" for line in path.read_text().splitlines()[-40:]] if path.exists() else []
        return "\n".join(lines)
