"""A client with hasnmp.client beside whole machines: planned moves, a power cut, an owner that is cut off from everybody but the
client, and one that is paused and resumes. The client hears both nodes all the time, each at its own address, so that nothing
but its own rules keeps it from believing a former owner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hasnmp.model import Verb
from tests.cluster.conftest import restored
from tests.cluster.lab import ETC, HERE, PROJECT, wait_for
from tests.cluster.pair import NODES, PYTHON, Group, Pair, boot_ns

ECHO = PROJECT / "tests/client/stream_echo.py"
ECHO_PORT, CLIENTS_PORT = 7070, 5406
EXTRA = f"""clients:
  listen: ["192.0.2.11:{CLIENTS_PORT}", "192.0.2.12:{CLIENTS_PORT}"]
  keys: [{{name: apps, key_files: [{ETC}/apps.key]}}]
"""


class Direct(Group):
    """A service without an address of its own: it listens on every address of its node."""

    def yaml(self) -> str:
        script = f"exec {' '.join(PYTHON)} {ECHO} 0.0.0.0 {ECHO_PORT} $(hostname)"
        return f"""
  {self.name}:
    nodes: [a, b]
    failover_limit: {{times: 1000, within_s: 3600}}
    services:
      - name: echo
        agent: exec
        endpoint: {{port: {ECHO_PORT}}}
        options: {{command: [sh, -c, "{script}"]}}
        check: {{every_ms: 1000}}
        on_failure: {{restart: 1, within_s: 60, then: failover}}
"""


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with Pair(groups=(Direct("direct", ""),), extra=EXTRA) as made:
        (made.lab.etc / "client.yaml").write_text(
            (made.lab.etc / "hasnmp.yaml").read_text().splitlines()[0]
            + f"\nnodes: {{a: '192.0.2.11:{CLIENTS_PORT}', b: '192.0.2.12:{CLIENTS_PORT}'}}\n"
            "key: apps\nkey_files: [apps.key]\n"
        )
        made.begin()
        yield made


@dataclass(frozen=True)
class Answer:
    node: str
    token: int
    at_ns: int  # boot_ns, when it was confirmed


class Talk:
    """The client's program on the client host, and what it has said."""

    def __init__(self, pair: Pair) -> None:
        self.counted: list[Answer] = []
        self.lines: list[str] = []
        self._process = pair.lab["client"].spawn(
            sys.executable, str(HERE / "client_echo.py"), f"{ETC}/client.yaml", "echo", stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(PROJECT)}, log="client_echo.log",
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            word, *rest = line.decode().split(maxsplit=3)
            if word == "got":
                self.counted.append(Answer(rest[0], int(rest[1]), int(rest[2])))
            else:
                self.lines.append(line.decode().strip())

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(20)
        self._reader.join(30)

    def wait_node(self, node: str, since_ns: int, why: object = "") -> Answer:
        """The first answer of a node after a moment that counts."""
        return wait_for(
            lambda: next((a for a in list(self.counted) if a.node == node and a.at_ns >= since_ns), None), 30,
            lambda: f"{self.counted[-3:]}, {self.lines[-5:]}; {why() if callable(why) else why}",
        )  # type: ignore[return-value]  # fmt: skip


def program_began_ns(pair: Pair, node: str) -> int:
    """When the service's program on a node was started, by its kernel: to 10 ms, boot_ns."""
    for pid in pair.lab[node].processes():
        try:
            if b"stream_echo.py" in Path(f"/proc/{pid}/cmdline").read_bytes():
                ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
                return ticks * 1_000_000_000 // os.sysconf("SC_CLK_TCK")
        except OSError:
            continue
    raise AssertionError(f"no echo runs on {node}")


@pytest.fixture
def talk(pair: Pair) -> Iterator[Talk]:
    with restored(pair):
        made = Talk(pair)
        try:
            made.wait_node("a", 0, pair.why)
            yield made
        finally:
            made.close()


def judge(pair: Pair, talk: Talk, fault_ns: int, what: str) -> None:
    """It found b; and no answer of a counts after b's program was begun."""
    first = talk.wait_node("b", fault_ns, pair.why)
    began_ns = program_began_ns(pair, "b")
    time.sleep(1)  # let what a former owner still says arrive: the time is part of the scenario
    last = max(a.at_ns for a in talk.counted if a.node == "a")
    tokens = [answer.token for answer in talk.counted]
    print(f"{what}: {len(talk.counted)} answers count, {sum(x.startswith('not') for x in talk.lines)} came too late; reconnected "
          f"{(first.at_ns - fault_ns) / 1e6:.0f} ms after the fault, {(first.at_ns - began_ns) / 1e6:.0f} ms after b's program "
          "was begun")  # fmt: skip
    assert tokens == sorted(tokens)
    assert last <= began_ns + 10_000_000, f"a counts {(last - began_ns) / 1e6:.0f} ms after b's start; {talk.lines}"
    assert {a.node for a in talk.counted if a.at_ns > first.at_ns} == {"b"}


def test_a_planned_move(pair: Pair, talk: Talk) -> None:
    fault_ns = boot_ns()
    assert pair.command("a", Verb.FAILOVER, "direct", "b").code == 0
    judge(pair, talk, fault_ns, "planned")


def test_a_power_cut(pair: Pair, talk: Talk) -> None:
    fault_ns = boot_ns()
    pair.lab["a"].power_off()
    judge(pair, talk, fault_ns, "power off")


def test_an_owner_that_is_cut_off_with_the_client(pair: Pair, talk: Talk) -> None:
    """From its peer and from the lease disk, not from the client: it serves to the end of its lease, and no longer counts then."""
    fault_ns = boot_ns()
    pair.lab.disk("a", "gone")
    pair.lab.separate("a", "b")
    judge(pair, talk, fault_ns, "cut off")


def test_an_owner_that_is_paused_and_resumes(pair: Pair, talk: Talk) -> None:
    """All of it stops, its service too; what it had under way goes out when it goes on, after b has taken the group."""
    host = pair.lab["a"]
    # Not what supervises it: its parent outside, nsenter, would stop with it, and hold up the host's end.
    stopped = [pid for pid, comm in host.processes().items() if pid != host.pid and comm != "sh"]
    fault_ns = boot_ns()
    host.signal(signal.SIGSTOP, stopped)
    talk.wait_node("b", fault_ns, pair.why)
    host.signal(signal.SIGCONT, reversed(stopped))
    judge(pair, talk, fault_ns, "paused")


def test_both_nodes_know_no_owner_beside_the_one(pair: Pair) -> None:
    """hasnmp-run on the client host says the same, whoever is asked."""
    with restored(pair):
        pass
    told = pair.lab["client"].run(
        "env", f"PYTHONPATH={PROJECT}", sys.executable, "-m", "hasnmp.client_run", "--config", f"{ETC}/client.yaml", "--service",
        "direct",
    )  # fmt: skip
    assert told.startswith("direct runs on a: 192.0.2.11:"), told
    assert NODES == ("a", "b")
