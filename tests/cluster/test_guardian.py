"""What the guardian and the engine do for each other, seen from outside: a killed engine costs no connection, and a machine
that can't end a group in time ends itself."""

from __future__ import annotations

import datetime
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hasnmp.model import Verb
from tests.cluster.bounds import within
from tests.cluster.control import control, overdue_ms, stalled_ms
from tests.cluster.lab import ETC, LEASE, PROJECT, STATE, Lab, cluster_name, wait_for
from tests.cluster.onlookers import STREAM, Connection, Ear
from tests.cluster.pair import PYTHON, VIP, Group, Pair, boot_ns
from tests.cluster.watch import spent_ms
from tests.runtime.test_guardian import forked_ns

pytestmark = pytest.mark.alone
MS = 1_000_000
STEADY_S = 5.5  # an engine that lived for so long is replaced at once when it dies


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with Pair((Group("web", VIP, more=STREAM),)) as made:
        made.begin()
        yield made


def when(line: dict[str, str]) -> float:
    """The Unix time of a line of the log."""
    return datetime.datetime.fromisoformat(line["timestamp"]).timestamp()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def engine_of(guardian: int) -> int:
    """The engine's pid, 0 if there is none now."""
    for child in Path(f"/proc/{guardian}/task/{guardian}/children").read_text().split():
        try:
            if Path(f"/proc/{child}/comm").read_text().strip() == "hasnmp-engine":
                if Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                    return int(child)
        except OSError:
            continue
    return 0


def test_a_killed_engine_is_replaced_heard_again_and_adopts_all_without_a_dropped_connection(pair: Pair) -> None:
    guardian = pair.pids("a", "guardian")[0]
    wait_for(lambda: len(pair.service_pids("a")) == 3, 5, "two of the echo, one of the stream")
    services = pair.service_pids("a")
    token = pair.rows("b", "groups")["web"].token
    forked_ms, heard_ms = [], []
    with Connection(pair.lab) as connection, Ear(pair.lab, "a") as ear:
        begun_ns = time.monotonic_ns()
        for _ in range(3):
            time.sleep(STEADY_S)
            engine = engine_of(guardian)
            os.kill(engine, signal.SIGKILL)
            killed_ns, killed_boot_ns = time.monotonic_ns(), boot_ns()
            new = wait_for(
                lambda engine=engine: (pid := engine_of(guardian)) not in (0, engine) and pid, 10, pair.why, 0.001
            )
            forked_ms.append(overdue_ms(killed_boot_ns, forked_ns(new)))
            heard_ms.append(spent_ms(killed_ns, ear.first_after(killed_ns + MS)))
            print(f"the next engine {forked_ms[-1]:.1f} ms, its first heartbeat {heard_ms[-1]:.1f} ms after the kill")
        pair.wait_steady()
        assert pair.service_pids("a") == services
        worst_ms = connection.worst_ms(begun_ns)
    assert pair.rows("b", "groups")["web"].token == token, "the lease was never another one"
    within(worst_ms, 200, "between two answers of a connection")
    within(max(forked_ms), 100, "until the next engine")
    within(max(heard_ms), 400, "until its first heartbeat")


def test_the_engine_runs_before_others_locked_in_memory_in_one_thread_and_starts_nothing(pair: Pair) -> None:
    engine = engine_of(pair.pids("a", "guardian")[0])
    assert os.sched_getscheduler(engine) & ~os.SCHED_RESET_ON_FORK == os.SCHED_RR
    locked = [line for line in Path(f"/proc/{engine}/status").read_text().splitlines() if line.startswith("VmLck")]
    assert int(locked[0].split()[1]) > 1000, locked
    until = time.monotonic() + 3
    looks = 0
    with Connection(pair.lab):
        while time.monotonic() < until or looks <= 100:
            if looks % 20 == 0:
                pair.snmp("snmpget", "a", "haNodeName.0", check=False)
                pair.command("a", Verb.FREEZE if looks % 40 else Verb.THAW, "web")
            assert os.listdir(f"/proc/{engine}/task") == [str(engine)]
            assert Path(f"/proc/{engine}/task/{engine}/children").read_text() == ""
            looks += 1
    pair.command("a", Verb.THAW, "web")


def test_the_worst_lateness_of_the_engines_timer_is_in_the_mib(pair: Pair) -> None:
    engine = engine_of(pair.pids("a", "guardian")[0])

    def worst_us() -> int:
        # The last line: the first time the tool tells of a folder that it made.
        return int(pair.snmp("snmpget", "a", "haStatWorstLateness.0").splitlines()[-1].split()[1])

    before_us = worst_us()
    for _ in range(3):
        os.kill(engine, signal.SIGSTOP)
        time.sleep(0.5)
        if engine_of(pair.pids("a", "guardian")[0]) == engine:
            break
        pair.restore()  # the machine stood still as well, until the lease had ended, and the guardian had killed it
        engine, before_us = engine_of(pair.pids("a", "guardian")[0]), worst_us()
    os.kill(engine, signal.SIGCONT)
    wait_for(lambda: worst_us() > max(before_us, 250_000), 5, worst_us)
    assert engine_of(pair.pids("a", "guardian")[0]) == engine
    within(worst_us() / 1000, 2000, "as the MIB says")


def test_a_machine_that_can_not_end_a_group_in_time_restarts(pair: Pair) -> None:
    """On a machine of its own: its one group has a process that nothing can kill, for its disk is frozen."""
    with Lab() as lab:
        host = lab["a"]
        (lab.etc / "key").write_text("an unguessable key, for this machine only")
        (lab.etc / "key").chmod(0o600)
        stuck = f"import os,time\\nwhile True:\\n fd = os.open('{LEASE}', os.O_RDONLY); os.pread(fd, 512, 0); time.sleep(0.01)"
        (lab.etc / "one.yaml").write_text(f"""cluster: {cluster_name(lab.name)}
nodes: {{a: {{links: {{lan: 192.0.2.11}}}}}}
heartbeat: {{dead_after_ms: 1000, startup_wait_ms: 1000, key_files: [{ETC}/key]}}
arbiter: {{type: none, accept_split_brain: true}}
watchdog: /run/no-watchdog
groups:
  files:
    services:
      - name: reader
        agent: exec
        options: {{command: [{", ".join(PYTHON)}, -c, "{stuck}"]}}
snmp: {{listen: ["127.0.0.1:1161"]}}
state_dir: {STATE}
log: {{format: json}}
""")
        bystander = host.spawn("sleep", "1000")
        command = [sys.executable, "-m", "hasnmp.runtime.daemon", "--config", f"{ETC}/one.yaml", "--node", "a"]
        host.spawn(*command, log="hasnmpd.log", env={**os.environ, "PYTHONPATH": str(PROJECT)})

        def log() -> str:
            return (host.state / "hasnmpd.log").read_text()

        def pid_of(comm: str) -> int:
            return next((pid for pid, name in host.processes().items() if name == comm), 0)

        reader = wait_for(
            lambda: [p for p in host.processes() if b"os.pread" in Path(f"/proc/{p}/cmdline").read_bytes()], 10, log
        )
        assert len(reader) == 1
        assert "can't be opened" in log(), "a watchdog that is not there is said"
        guardian, engine = pid_of("hasnmpd"), pid_of("hasnmp-engine")
        lab.disk("a", "frozen")
        time.sleep(0.3)
        assert bystander.poll() is None
        control()  # the time that follows is judged by it
        os.kill(engine, signal.SIGSTOP)
        stopped_ns = time.monotonic_ns()
        wait_for(lambda: not alive(guardian), 5, log, 0.002)
        died_ns, died_s = time.monotonic_ns(), time.time()
        took_ms = (died_ns - stopped_ns) / MS
        lines = [json.loads(line) for line in log().splitlines()]
        began_s = next(when(line) for line in lines if line["event"] == "lease_ended")
        last_ms = spent_ms(died_ns - int((died_s - began_s) * 1e9), died_ns)
        print(f"restarted {took_ms:.0f} ms after its engine was frozen, {last_ms:.0f} ms after it was due")
        late_s = stalled_ms(died_ns - 300 * MS, died_ns) / 1000  # what is due may be seen later, its end is the same
        assert died_s - began_s > 0.1 - late_s, (
            "kill_ms (150) before the lease's end it was due, and at that end it restarts"
        )
        assert "THIS MACHINE RESTARTS NOW" in log()
        assert "does not restart" not in log()
        lab.disk("a", "ok")  # a dead process that hangs in it holds up the end of the others
        assert bystander.wait(30) != 0, "everything of the machine is gone"
        assert host._shell and host._shell.wait(30) == -signal.SIGHUP, (
            "process 1 was told to restart (pid_namespaces(7))"
        )
        host.pid, host._shell = 0, None
        within(last_ms, 250, "from kill_ms (150) before the lease's end to the restart")
