"""The guardian, the engine's loop, the agents, the store and the control socket as one daemon, around a core that only
starts a service, checks it, and stops it at the end."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hasnmp import protocol, settings
from hasnmp.core.events import (
    Act,
    Action,
    AgentResult,
    Effect,
    Event,
    Exit,
    Extend,
    Extended,
    HeldLease,
    Notify,
    Persist,
    Release,
    Released,
    ServiceExited,
    Shutdown,
    Started,
    Tick,
)
from hasnmp.model import EventRow, Kind, NodeRow, Severity, StatisticsRow, View
from hasnmp.runtime import daemon, engine, guardian, processes
from tests.cluster.control import control, stalled_ms
from tests.cluster.watch import spent_ms

pytestmark = pytest.mark.serial
MS = 1_000_000
LEASE_NS = 2_000 * MS


class ToyCore:
    """Takes the lease of g by its own word, keeps it, and runs the service `sleeper` in it."""

    def __init__(self, config: settings.Config, node: str, version: str) -> None:
        self.now = 0
        self.token = 1
        self.until_ns = 0
        self.deadline_ns = 1 << 62
        self.persisted = 0
        self.events: dict[str, EventRow] = {}
        self.leaving = False
        self.worst_us = 0

    def step(self, event: Event, now_ns: int) -> tuple[Effect, ...]:
        self.now = now_ns
        match event:
            case Started():
                self.token = 1 + int((event.durable or {}).get("token", 0))
                if event.leases:
                    self.token = event.leases[0].token
                    adopted = event.adopted[0] if event.adopted else None
                    self.deadline_ns = now_ns
                    self.persisted = int(adopted is not None)  # what runs is not started again
                    return (self._note(f"adopted {adopted.service} {adopted.pid}" if adopted else "nothing adopted"),)
                return Persist(1, {"token": self.token}), self._extend()
            case Extended(ok=True) if not self.persisted:
                self.persisted = 1
                return (Act(1, "sleeper", Action.START, 2000),) if self.token else ()
            case AgentResult(1, _, outcome, message, took_us, pid):
                return (self._note(f"start {outcome} {pid} {took_us}"),)
            case ServiceExited(service, pid, message):
                return (self._note(f"exited {service} {message}"),)
            case Shutdown() if not self.leaving:
                self.leaving = True
                return (Act(2, "sleeper", Action.STOP, 2000),)
            case AgentResult(2):
                return (Release("g", self.token),)
            case Released(ok=True):
                return (Exit("left"),)
            case Released(ok=False) if self.leaving:  # the order to leave came while the service was being started
                return (Act(2, "sleeper", Action.STOP, 2000),)
            case Tick():
                self.worst_us = max(self.worst_us, (now_ns - self.deadline_ns) // 1000)
                return (self._extend(),)
        return ()

    def _extend(self) -> Extend:
        self.deadline_ns = self.now + 50 * MS
        return Extend((HeldLease("g", self.token, self.now + LEASE_NS),))

    def _note(self, text: str) -> Notify:
        row = EventRow(len(self.events) + 1, Kind.ALIVE, Severity.INFO, 0, self.now, "node-a", text)
        self.events[str(row.id)] = row
        return Notify(row)

    def next_deadline_ns(self) -> int:
        return self.deadline_ns

    def view(self, now_ns: int, wall_ms: int) -> View:
        view = View(now_ns, wall_ms)
        view.tables["events"] = dict(self.events)
        view.tables["nodes"]["node-a"] = NodeRow("node-a", True, heartbeats_received=self.token)
        view.tables["statistics"][""] = StatisticsRow(worst_lateness_us=self.worst_us)
        return view

    def why(self, group: str, now_ns: int) -> tuple[str, ...]:
        return ()


class Daemon:
    def __init__(self, folder: Path) -> None:
        self.config = settings.Config(
            cluster="bank",
            nodes=(settings.NodeSettings("node-a", {"lan": "127.0.0.83"}),),
            heartbeat=settings.Heartbeat(port=28405, keys=(b"k" * 32,)),
            arbiter=settings.Arbiter("none", accept_split_brain=True),
            groups=(settings.Group("g", ("node-a",), (
                settings.Service("sleeper", "g", "exec", {"command": ("sleep", "600")}),
            )),),
            control=settings.Control(str(folder / "control.sock")),
            state_dir=str(folder / "state"),
            run_dir=str(folder / "run"),
        )  # fmt: skip
        os.makedirs(self.config.state_dir)
        control()  # it must have been there before anything is judged by it
        self.begun_ns = time.monotonic_ns()
        self.log = folder / "log"
        self.pid = os.fork()
        if self.pid == 0:
            descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(descriptor, 2)
            sys.stderr = os.fdopen(2, "w")  # pytest has put something else there
            engine.Engine = ToyCore  # type: ignore[misc,assignment]
            children = processes.Children(engine=engine.main, store=daemon._store)
            os._exit(guardian.run(self.config, "node-a", children))

    def events(self, seconds: float = 20.0) -> list[str]:
        return [row["message"] for row in self.snapshot(seconds)["tables"]["events"].values()]

    def snapshot(self, seconds: float = 20.0) -> dict[str, Any]:
        """What a new reader of the control socket gets."""
        end_s = time.monotonic() + seconds
        while True:
            try:
                with socket.socket(socket.AF_UNIX) as sock:
                    sock.settimeout(1)
                    sock.connect(self.config.control.socket)
                    return protocol.decode(sock.makefile("rb").readline())
            except (OSError, protocol.ProtocolError):
                assert time.monotonic() < end_s, self.log.read_text()
                time.sleep(0.01)

    def wait_for(self, text: str, seconds: float = 20.0) -> str:
        end_s = time.monotonic() + seconds
        while not (found := [m for m in self.events() if text in m]):
            assert time.monotonic() < end_s, f"{text!r} not in {self.events()}\n{self.log.read_text()}"
            time.sleep(0.01)
        return found[0]

    def engine_pid(self) -> int:
        return int(Path(self.config.run_dir, "node-a.engine").read_text().split()[0])

    def stop(self) -> int:
        os.kill(self.pid, signal.SIGTERM)
        end_s = time.monotonic() + 30
        while time.monotonic() < end_s:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        raise AssertionError(f"it did not stop\n{self.log.read_text()}")


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Daemon]:
    running = Daemon(tmp_path)
    try:
        yield running
    finally:
        try:
            os.kill(running.pid, 0)
            running.stop()
        except (ProcessLookupError, ChildProcessError):
            pass


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_service_lives_as_long_as_the_daemon_and_survives_its_engine(one: Daemon) -> None:
    _, outcome, pid_text, took_us = one.wait_for("start").split()
    pid = int(pid_text)
    stood_still_us = stalled_ms(one.begun_ns, time.monotonic_ns()) * 1000
    assert outcome == "ok" and alive(pid) and int(took_us) - stood_still_us < 80_000
    before = one.engine_pid()
    os.kill(before, signal.SIGKILL)
    assert one.wait_for("adopted") == f"adopted sleeper {pid}"
    assert one.engine_pid() != before and alive(pid), "a new engine takes the service over and does not touch it"
    assert "start" not in " ".join(one.events())
    os.kill(pid, signal.SIGKILL)
    assert "signal 9" in one.wait_for("exited sleeper")
    assert one.stop() == 0
    assert not Path(one.config.control.socket).exists()
    head, document = Path(one.config.state_dir, "node-a.state").read_text().splitlines()[:2]
    assert json.loads(head)["version"] == 1 and json.loads(document) == {"token": 1}


def test_an_orderly_end_stops_the_service(one: Daemon) -> None:
    pid = int(one.wait_for("start").split()[2])
    assert one.stop() == 0
    assert not alive(pid)
    assert "engine_left" in one.log.read_text()


def test_an_engine_whose_guardian_dies_ends_its_services_and_itself(one: Daemon) -> None:
    pid = int(one.wait_for("start").split()[2])
    engine_pid = one.engine_pid()
    os.kill(one.pid, signal.SIGKILL)
    os.waitpid(one.pid, 0)
    end_s = time.monotonic() + 20
    while alive(pid) or alive(engine_pid):
        assert time.monotonic() < end_s, one.log.read_text()
        time.sleep(0.01)
    assert "guardian_lost" in one.log.read_text()


def test_a_frozen_engine_is_ended_with_its_group(one: Daemon) -> None:
    pid = int(one.wait_for("start").split()[2])
    engine_pid = one.engine_pid()
    os.kill(engine_pid, signal.SIGSTOP)
    stopped_ns = time.monotonic_ns()
    while alive(pid) or alive(engine_pid):
        assert spent_ms(stopped_ns, time.monotonic_ns()) < LEASE_NS / MS + 500, one.log.read_text()
        time.sleep(0.01)
