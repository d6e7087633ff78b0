"""What the programs of a group take by themselves to start and to stop, on a host where no hasnmp runs: a move's own part.

They are started one after the other, each when the check of the one before is good, and stopped as hasnmp stops them: the
signal goes to the whole process group, and what outlives the program is killed.
"""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import signal
import statistics
import subprocess
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.lab import Host, Lab, sh, wait_for
from tests.cluster.shared_disk import DEVICE, SharedDisk

LOAD_S = 1.5


@dataclass(frozen=True)
class Own:
    """Medians, ms. after_crash: a start on a disk that was cut off while they ran."""

    start_ms: float = 0
    stop_ms: float = 0
    after_crash_ms: float = 0


class _Alone:
    def __init__(self, group: Any, host: Host, disk: SharedDisk | None) -> None:
        services = yaml.safe_load(group.text)[group.name]["services"]
        self._host, self._disk = host, disk
        self._mounts = [x["options"] for x in services if x["agent"] == "filesystem"]
        self._addresses = [x["options"] for x in services if x["agent"] == "address"]
        self._exec = [x for x in services if x["agent"] == "exec" and x.get("critical", True)]
        self._running: list[tuple[Any, int]] = []  # the service, its program's pid
        self._before = set[int]()

    def address(self, verb: str) -> None:
        """No part of what is measured: to have an address costs nothing."""
        for options in self._addresses:
            sh("ip", "-n", self._host.netns, "addr", verb, options["ip"], "dev", options["interface"])
            sh("ip", "-n", self._host.lab["client"].netns, "neigh", "flush", "dev", options["interface"])

    def start(self) -> float:
        self.address("add")
        self._before = set(self._host.processes())
        began = time.monotonic()
        for options in self._mounts:
            words = ("-o", options["options"]) if options.get("options") else ()
            self._host.run("mount", "-t", options["fstype"], *words, DEVICE, options["directory"])
        for service in self._exec:
            options = service["options"]
            command, environment = options["command"], {**os.environ, **options.get("env", {})}
            if user := options.get("user"):
                command = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", *command]
            program = self._host.spawn(*command, log=f"{service['name']}.alone", env=environment)
            check = shlex.join(_check(service))
            self._host.run("sh", "-c", f"until {check} >/dev/null 2>&1; do sleep 0.005; done", timeout=60)
            self._running.append((service, _child(program)))
        return (time.monotonic() - began) * 1000

    def stop(self) -> float:
        took = 0.0
        for service, pid in reversed(self._running):
            number = signal.Signals[f"SIG{service['options'].get('stop_signal', 'TERM')}"]
            fd = os.pidfd_open(pid)
            began = time.monotonic()
            os.killpg(os.getpgid(pid), number)
            assert select.select([fd], [], [], 30)[0], f"{service['name']} does not stop"
            took += time.monotonic() - began
            os.close(fd)
        self._kill()
        began = time.monotonic()
        self._unmount()
        return (took + time.monotonic() - began) * 1000

    def crash(self) -> None:
        if self._disk:
            self._disk.cut(self._host)
        self._kill()
        self._unmount()

    def _kill(self) -> None:
        """All that is left of what was started."""

        def gone() -> bool:
            pids = [pid for pid in self._host.processes() if pid not in self._before]
            self._host.signal(signal.SIGKILL, pids)
            return not pids

        wait_for(gone, 10, "what was started is gone")
        self._running.clear()
        self.address("del")

    def _unmount(self) -> None:
        for options in reversed(self._mounts):
            self._host.run("umount", options["directory"])


def alone(
    group: Any,
    lab: Lab,
    disk: SharedDisk | None,
    rounds: int,
    load: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext,
) -> Own:
    """From node a to node b, which has read nothing of the disk yet, and back after a crash. load: works with the programs
    until they end: it takes longer to start on a disk that much was written to, and dovecot's stop longer that has just started."""
    one, other = (_Alone(group, lab[name], disk) for name in ("a", "b"))
    starts, stops, after = [], [], []
    for _ in range(rounds):
        one.start()
        with load():
            time.sleep(LOAD_S)
            stops.append(one.stop())
        starts.append(other.start())
        with load():
            time.sleep(LOAD_S)
            other.crash()
        after.append(one.start())
        one.stop()
    return Own(*map(statistics.median, (starts, stops, after)))


def _check(service: Any) -> list[str]:
    check = service.get("check", {})
    if check.get("type") == "sql":
        return ["/usr/lib/postgresql/15/bin/pg_isready", "-q", "-h", "127.0.0.1"]
    if port := check.get("port"):
        read = " && read -rt 5 <&3" if check.get("expect") else ""
        return ["bash", "-c", f"exec 3<>/dev/tcp/{check['host']}/{port}{read}"]
    return list(check.get("command", ["true"]))


def _child(program: subprocess.Popen[bytes]) -> int:
    return int(Path(f"/proc/{program.pid}/task/{program.pid}/children").read_text().split()[0])
