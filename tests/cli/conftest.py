"""A control socket that says what a test tells it to, and a way to run the command line against it."""

from __future__ import annotations

import contextlib
import io
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from hasnmp import cli, protocol
from hasnmp.errors import Code
from hasnmp.model import (
    AlarmRow,
    ArbiterRow,
    ArbiterState,
    CommandRow,
    CommandState,
    Condition,
    ConfigRow,
    EventRow,
    GroupRow,
    GroupState,
    Kind,
    LinkRow,
    LinkState,
    NodeRow,
    NodeState,
    PartState,
    Proof,
    Reason,
    Role,
    ServiceRow,
    ServiceState,
    Severity,
    StatisticsRow,
    SystemRow,
    Verb,
    View,
)

NOW = 1_000_000_000_000
S = 1_000_000_000
WALL = 1_790_000_000_000


def picture() -> View:
    """A pair in some trouble: node-b lost, group db failed over to here, one check failing."""
    view = View(NOW, WALL, 7)
    t = view.tables
    t["system"][""] = SystemRow(
        "bank", "node-a", "0.1.0", Role.PRIMARY, Condition.DEGRADED, Condition.DEGRADED, NOW - 12 * S, 3,
        PartState.UP, PartState.UP, started_ns=NOW - 7200 * S,
    )  # fmt: skip
    t["nodes"]["node-a"] = NodeRow(
        "node-a", True, NodeState.UP, Role.PRIMARY, Condition.OK, last_change_ns=NOW - 7200 * S
    )
    t["nodes"]["node-b"] = NodeRow("node-b", False, NodeState.LOST, Role.UNKNOWN, Condition.UNKNOWN,
                                   last_heard_ns=NOW - 13 * S, last_change_ns=NOW - 12 * S, transitions=5,
                                   heartbeats_received=31234, heartbeats_late=2)  # fmt: skip
    t["links"]["node-b/lan"] = LinkRow("node-b", "lan", "192.0.2.12", LinkState.DOWN, 100, 90, 10, 250, NOW - 13 * S,
                                       NOW - 12 * S, 1)  # fmt: skip
    t["groups"]["web"] = GroupRow("web", GroupState.RUNNING, Condition.OK, "node-a", 4, NOW + 800_000_000, Proof.ARBITER,
                                  "node-a", ("node-a", "node-b"), last_change_ns=NOW - 3600 * S, failovers=1)  # fmt: skip
    t["groups"]["db"] = GroupRow("db", GroupState.DEGRADED, Condition.DEGRADED, "node-a", 9, NOW + 900_000_000,
                                 Proof.ARBITER, "node-b", ("node-b", "node-a"), inhibited=True, frozen=True,
                                 last_change_ns=NOW - 11 * S, failovers=2, failover_count=3, failover_limit=3,
                                 excluded=("node-b",), last_reason=Reason.NODE_LOST, last_duration_ms=431)  # fmt: skip
    t["services"]["httpd"] = ServiceRow("httpd", "web", "node-a", "exec", ServiceState.RUNNING, checks=3600,
                                        restart_limit=3, last_check_ns=NOW - S // 2, last_change_ns=NOW - 3600 * S,
                                        check_us=1200)  # fmt: skip
    t["services"]["postgres"] = ServiceRow(
        "postgres", "db", "node-a", "exec", ServiceState.FAILED, failures=2, restarts=2, restart_limit=3,
        last_check_ns=NOW - S, last_change_ns=NOW - S,
        message="connection to 127.0.0.1:5432 refused; the program ended with exit status 3; last output: \x1b[2Jno space",
    )  # fmt: skip
    t["arbiters"]["disk"] = ArbiterRow("disk", ArbiterState.ACTIVE, "/dev/disk/by-id/shared-lease", last_ok_ns=NOW - S,
                                       latency_us=900, last_change_ns=NOW - 12 * S)  # fmt: skip
    t["config"][""] = ConfigRow("0011223344556677", "/etc/hasnmp/hasnmp.yaml", NOW - 7200 * S, "", 200, 500, 1000, 5000)
    t["statistics"][""] = StatisticsRow(failovers=3, heartbeats_sent=99999, worst_lateness_us=2500, since_wall_ms=WALL)
    t["alarms"]["node:node-b"] = AlarmRow(
        "node:node-b", Kind.NODE_LOST, Severity.MAJOR, "node-a", "node-b", NOW - 12 * S, WALL - 12_000, 41,
        "node-b was last heard 1.0 s ago on every link (limit 1.0 s); its groups are taken as the arbiter allows",
    )  # fmt: skip
    for i, (kind, severity, text) in enumerate((
        (Kind.HEARTBEAT_LOST, Severity.MINOR, "nothing heard of node-b for 500 ms"),
        (Kind.NODE_LOST, Severity.MAJOR, "node-b is lost"),
        (Kind.TAKEOVER_COMPLETED, Severity.INFO, "db runs on node-a after 431 ms"),
    )):  # fmt: skip
        t["events"][str(40 + i)] = EventRow(40 + i, kind, severity, WALL - 12_000 + i, NOW - 12 * S, "node-a", text,
                                            peer="node-b")  # fmt: skip
    t["commands"]["5"] = CommandRow(5, "root", "local", Verb.FAILOVER, "web", "node-b", "new kernel", CommandState.REFUSED,
                                    Code.TARGET_DOWN, "failover web -> node-b refused: node-b last heard 13 s ago",
                                    WALL - 5000, WALL - 5000)  # fmt: skip
    return view


@dataclass
class FakeEngine:
    """on_command: gives the messages that follow a command; asked keeps what the clients sent."""

    path: str
    view: View = field(default_factory=picture)
    asked: list[dict[str, Any]] = field(default_factory=list)
    on_command: Callable[[FakeEngine, CommandRow], list[dict[str, Any] | None]] | None = None
    greeting: bytes | None = None
    connections: list[socket.socket] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.path)
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.sendall(
                protocol.encode(protocol.snapshot(self.view)) if self.greeting is None else self.greeting
            )
            self.connections.append(connection)  # only now may a test tell it more
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as lines:
            for line in lines:
                message = protocol.decode(line)
                self.asked.append(message)
                for answer in self._answers(message):
                    if answer is None:
                        # A makefile keeps the descriptor open, so closing alone would not end the connection.
                        connection.shutdown(socket.SHUT_RDWR)
                        return
                    connection.sendall(protocol.encode(answer))

    def _answers(self, message: dict[str, Any]) -> list[dict[str, Any] | None]:
        if message["type"] == "why":
            lines = [f"group {message['group']} runs here", "  because " + "of a very long reason " * 6]
            return [{"type": "why", "id": message["id"], "lines": lines}]
        if message["type"] == "stage":
            return [{"type": "stage", "id": message["id"], "size": len(message["part"])}]
        row = CommandRow(77, message["requester"], "local", Verb(message["verb"]), message["target"], message["to"],
                         message["reason"], asked_wall_ms=WALL)  # fmt: skip
        assert self.on_command is not None
        return [None if answer is None else {"id": message["id"], **answer} for answer in self.on_command(self, row)]

    def tell(self, message: dict[str, Any]) -> None:
        for connection in self.connections:
            connection.sendall(protocol.encode(message))

    def close(self) -> None:
        with contextlib.suppress(OSError):  # closed before
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts, which keeps the socket open
        self._listener.close()
        for connection in self.connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue


def reply(row: CommandRow) -> dict[str, Any]:
    return {"type": "reply", "command": protocol.row_to_json(row)}


def delta(table: str, key: str, row: Any) -> dict[str, Any]:
    return {"type": "delta", "number": 8, "now_ns": NOW, "wall_ms": WALL, "gone": {},
            "rows": {table: {key: protocol.row_to_json(row)}}}  # fmt: skip


def ends(state: CommandState, code: Code = Code.DONE, text: str = "") -> Callable[..., list[dict[str, Any] | None]]:
    """Accepted, then a delta with the end."""

    def answers(engine: FakeEngine, row: CommandRow) -> list[dict[str, Any] | None]:
        end = replace(row, state=state, code=code, text=text, ended_wall_ms=WALL + 431)
        return [reply(row), delta("commands", "77", end)]

    return answers


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[FakeEngine]:
    fake = FakeEngine(str(tmp_path / "control.sock"))
    yield fake
    fake.close()


@dataclass
class Ran:
    status: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    monkeypatch.setenv("TZ", "UTC")

    def call(*words: str, stdout: Terminal | None = None) -> Ran:
        # Not in a fixture: pytest sets its own standard output between a test's set-up and its body.
        with monkeypatch.context() as patch:
            if stdout is not None:
                patch.setattr(sys, "stdout", stdout)
            try:
                status = cli.main(words)
            except SystemExit as end:
                status = int(str(end.code or 0))
        said = capsys.readouterr()
        return Ran(status, said.out, said.err)

    return call


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal of 80 x 40, for run(..., stdout=terminal)."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "40")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Terminal()
