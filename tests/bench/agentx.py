"""A request through AgentX behind snmpd: hasnmp's agent beside a subagent in C, compiled here, with as many rows.

CPU time a request, of the subagent alone and with its snmpd, and the time from the request to its answer. snmpd makes a
GETNEXT of AgentX of each repetition of a GETBULK, so that costs what so many GETNEXTs do, whoever answers them.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

from hasnmp.snmp.ha_objects import TABLES
from hasnmp.snmp.objects import text_index
from tests.bench.faults import say
from tests.snmp.agentx_lab import COMMUNITY, Snmpd
from tests.snmp.snmp_lab import (
    BULK,
    ENVIRONMENT,
    GET,
    NEXT,
    AgentProcess,
    Answer,
    FakeEngine,
    Name,
    a_config,
    a_pdu,
    a_view,
    binding,
    dotted,
    v2c,
    wait_for,
)  # fmt: skip

ROWS = 1000
ROUNDS = 4
REQUESTS = 400
C_ROOT = (1, 3, 6, 1, 4, 1, 32473, 1993)
Goal = tuple[str, str, str, bool]


def missing() -> list[str]:
    lacks = [name for name in ("snmpd", "cc") if shutil.which(name) is None]
    if not Path("/usr/include/net-snmp/agent/net-snmp-agent-includes.h").exists():
        lacks.append("libsnmp-dev")
    return lacks


def cpu_ns(pid: int) -> int:
    """What a process has used of the processors (its threads' too)."""
    return sum(int((task / "schedstat").read_text().split()[0]) for task in Path(f"/proc/{pid}/task").iterdir())


class Side:
    """A subagent and its snmpd. name(column, row): an instance's name."""

    def __init__(self, label: str, master: Snmpd, pid: int, name: Callable[[int, int], Name]) -> None:
        assert master.process is not None
        self.label = label
        self.master = master
        self.pids = (pid, master.process.pid)
        self.name = name
        self.costs: dict[str, list[tuple[float, float, float]]] = {}

    def ask(self, work: str, requests: Sequence[bytes], answered: int) -> None:
        """One round: microseconds a request of the subagent, of both, and on the clock."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect(("127.0.0.1", self.master.port))
            sock.settimeout(10)
            before = [cpu_ns(pid) for pid in self.pids]
            begun = time.monotonic_ns()
            for request in requests:
                sock.send(request)
                answer = sock.recv(65535)
            took = time.monotonic_ns() - begun
            used = [cpu_ns(pid) - was for pid, was in zip(self.pids, before, strict=True)]
        seen = Answer(answer)
        assert seen.status == 0 and len(seen.values) == answered, (work, seen.status, len(seen.values))
        assert all(value is not None for value in seen.values), work
        n = len(requests) * 1000
        self.costs.setdefault(work, []).append((used[0] / n, sum(used) / n, took / n))

    def cost(self, work: str) -> tuple[float, float, float]:
        rounds = self.costs[work]
        return tuple(median(one[at] for one in rounds) for at in range(3))  # type: ignore[return-value]


def message(pdu: int, names: Sequence[Name], first: int = 0, second: int = 0) -> bytes:
    return v2c(a_pdu(pdu, [binding(name) for name in names], first, second), COMMUNITY[-1].encode())


def works(name: Callable[[int, int], Name]) -> dict[str, tuple[list[bytes], int]]:
    """Requests over many rows, so that nothing is answered from what the last one left; and the values of each answer."""
    rows = [(7 * n) % (ROWS - 30) for n in range(REQUESTS)]
    return {
        "GET of 1": ([message(GET, [name(2, row)]) for row in rows], 1),
        "GET of 10": ([message(GET, [name(column, row) for column in range(1, 11)]) for row in rows], 10),
        "GETNEXT": ([message(NEXT, [name(3, row)]) for row in rows], 1),
        "GETBULK 25": ([message(BULK, [name(3, row)], 0, 25) for row in rows[: REQUESTS // 4]], 25),
    }


def side_by_side(rounds: int = ROUNDS) -> list[Goal]:
    if lacks := missing():
        print(f"AgentX is left out: this machine has no {', '.join(lacks)}")
        return []
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        (folder / "c").mkdir()
        (folder / "ours").mkdir()
        program = folder / "subagent"
        source = Path(__file__).with_name("subagent.c")
        subprocess.run(["cc", "-O2", "-o", str(program), str(source), "-lnetsnmpagent", "-lnetsnmp"], check=True)
        masters = [Snmpd(folder / "c"), Snmpd(folder / "ours")]
        view = a_view()
        row = view.tables["services"].pop("httpd")
        view.tables["services"].clear()
        for number in range(ROWS):
            view.tables["services"][service(number)] = replace(row, name=service(number))
        engine = FakeEngine(folder / "control.sock", view)
        engine.beating = False  # a row that changes is encoded again; here nothing does
        agent = AgentProcess(a_config(folder, agentx=masters[1].socket))
        other = subprocess.Popen(
            [str(program), masters[0].socket, str(ROWS)], env=ENVIRONMENT, stderr=subprocess.DEVNULL
        )
        try:
            table = next(table for table in TABLES if table.name == "haServiceTable")
            columns = [(*table.entry_oid, column.number) for column in table.columns if not column.volatile]
            sides = [
                Side("C", masters[0], other.pid, lambda c, r: (*C_ROOT, 1, 1, c, *text_index(service(r)))),
                Side("hasnmp", masters[1], agent.process.pid, lambda c, r: (*columns[c - 1], *text_index(service(r)))),
            ]
            for side in sides:
                wait_for(lambda s=side: "No Such" not in s.master.ask("snmpget", COMMUNITY, dotted(s.name(1, 0))), 20)
            asked = [works(side.name) for side in sides]
            for number in range(rounds + 1):
                for work in asked[0]:
                    for side, requests in zip(sides, asked, strict=True):
                        side.ask(work, *requests[work])
                if not number:  # the first is a warm-up of both
                    for side in sides:
                        side.costs.clear()
                say(f"  AgentX, round {number} of {rounds}")
        finally:
            other.kill()
            other.wait()
            agent.stop()
            engine.stop()
            for master in masters:
                master.stop()
    return goals(*sides)


def service(number: int) -> str:
    return f"service-{number:05d}"


def goals(c: Side, ours: Side) -> list[Goal]:
    print(f"\nThrough AgentX behind snmpd, {ROWS} rows, microseconds a request, median of the rounds:")
    found: list[Goal] = []
    for work in c.costs:
        (c_cpu, c_both, c_clock), (our_cpu, our_both, our_clock) = c.cost(work), ours.cost(work)
        print(f"  {work:11}  CPU of the subagent: C {c_cpu:6.0f}, hasnmp {our_cpu:6.0f} ({our_cpu / c_cpu:.2f} x); with snmpd: "
              f"{c_both:6.0f}, {our_both:6.0f} ({our_both / c_both:.2f} x); on the clock: {c_clock:6.0f}, {our_clock:6.0f} "
              f"({our_clock / c_clock:.2f} x)")  # fmt: skip
        ratio = our_cpu / c_cpu
        found.append((f"AgentX, {work}: CPU beside a subagent in C", f"{ratio:.2f} x", "at most 2.00 x", ratio <= 2))
    return found


if __name__ == "__main__":
    for goal in side_by_side():
        print(goal)
