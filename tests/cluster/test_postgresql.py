"""PostgreSQL on a shared disk, and haproxy in front of it, as conf/services has them: nothing acknowledged is ever lost.

HASNMP_CRASHES=20 HASNMP_CRASH_FS=xfs pytest tests/cluster/test_postgresql.py   as `make soak` does
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hasnmp.model import Kind, Proof
from tests.cluster.alone import Own, alone
from tests.cluster.lab import ETC, HERE, Host, wait_for
from tests.cluster.pair import VIP, VIP2, Pair, Timing, boot_ns
from tests.cluster.power import Power, level
from tests.cluster.volume import DEVICE, FOLDER, Volume, group, substituted
from tests.cluster.watch import longest_ms

PROGRAMS = "/usr/lib/postgresql/15/bin"
CRASHES = int(os.environ.get("HASNMP_CRASHES", "3"))
FILE_SYSTEM = os.environ.get("HASNMP_CRASH_FS", "ext4")
PASSWORD = "the bank's own word"
MS = 1_000_000
WORDS = {"primary-a": "a", "secondary-a": "b", "eth0": "lan"}
DB = {
    **WORDS,
    "/dev/disk/by-id/bank": DEVICE,
    "/srv/bank": FOLDER,
    "/etc/hasnmp": ETC,
    "fstype: ext4": f"fstype: {FILE_SYSTEM}",
}
GATEWAY = {**WORDS, "/etc/hasnmp": ETC}


class Writer:
    """sql_writer.py on the client host. Use as a context manager."""

    def __init__(self, pair: Pair, address: str, first: int) -> None:
        self._host, self._mark = pair.lab["client"], str(first).encode()
        self.log = pair.lab["client"].state / f"writer-{address}-{first}"
        self._process = pair.lab["client"].spawn(
            sys.executable,
            str(HERE / "sql_writer.py"),
            address,
            "5432",
            "writer",
            PASSWORD,
            str(first),
            log=self.log.name,
        )

    def __enter__(self) -> Writer:
        wait_for(lambda: self.acknowledged(), 20, lambda: f"the writer works: {self.log.read_text()[-2000:]}")
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self._host.processes():
            with contextlib.suppress(OSError):
                if b"sql_writer.py" in (line := Path(f"/proc/{pid}/cmdline").read_bytes()) and self._mark in line:
                    os.kill(pid, signal.SIGKILL)
        self._process.wait(30)

    def lines(self, word: str) -> list[tuple[int, int, int, str]]:
        """number, begun, ended (CLOCK_MONOTONIC), text"""
        whole = self.log.read_text().rpartition("\n")[0]
        split = (line.split(" ", 4) for line in whole.splitlines() if line.startswith(f"{word} "))
        return [(int(x[1]), int(x[2]), int(x[3]), x[4]) for x in split]

    def acknowledged(self) -> set[int]:
        return {number for number, _, _, _ in self.lines("ack")}

    def errors(self, since_ns: int = 0) -> list[str]:
        return [text for _, begun, _, text in self.lines("error") if begun >= since_ns]

    def outage_ms(self, since_ns: int, pair: Pair, seconds: float = 40) -> float:
        """The longest time without an acknowledgement from the last one before a moment until the next one that is begun now."""
        now_ns = time.monotonic_ns()
        wait_for(lambda: any(begun > now_ns for _, begun, _, _ in self.lines("ack")), seconds,
                 lambda: f"acknowledged after the fault; {self.log.read_text()[-1000:]}\n{pair.why()}", 0.05)  # fmt: skip
        ended = [end for _, _, end, _ in self.lines("ack")]
        last = max((end for end in ended if end <= since_ns), default=since_ns)
        return longest_ms([last, *(end for end in ended if end > since_ns)])


@dataclass
class Bank:
    """own: by group, what its programs take by themselves, if that was measured."""

    pair: Pair
    volume: Volume
    own: dict[str, Own] = field(default_factory=dict)

    def owner(self, name: str = "db") -> str:
        owners = wait_for(lambda: self.pair.owners()[name], 30, self.pair.why)
        return next(iter(owners))

    def other(self) -> str:
        return "b" if self.owner() == "a" else "a"

    def postmaster(self, node: str) -> int:
        """The server's pid as this machine counts: of the processes called postgres it is the one whose parent is none."""
        for pid, comm in self.pair.lab[node].processes().items():
            with contextlib.suppress(OSError):
                if comm == "postgres" and b"-D" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                    return pid
        raise AssertionError(f"no postgres on {node}: {self.pair.lab[node].processes()}")

    def sql(self, statement: str) -> list[str]:
        host = self.pair.lab[self.owner()]
        out = host.run("setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "psql", "-h", f"{FOLDER}/pg",
                       "-qtA", "bank", "-c", statement)  # fmt: skip
        return out.split()

    def keeps(self, *writers: Writer) -> int:
        """All that was acknowledged is there. Returns how many that are."""
        acknowledged = set().union(*(writer.acknowledged() for writer in writers))
        lost = acknowledged - {int(number) for number in self.sql("select number from ledger")}
        assert acknowledged and not lost, (
            f"{len(lost)} of {len(acknowledged)} acknowledged transactions are lost: {sorted(lost)[:20]}"
        )
        return len(acknowledged)

    def ready(self) -> None:
        """Both nodes are up and may take what the other has."""

        def missing() -> str:  # fmt: skip
            for node in ("a", "b"):
                rows = self.pair.rows(node, "nodes")
                if {name: row.state.name for name, row in rows.items()} != {"a": "UP", "b": "UP"}:
                    return f"{node} sees {rows}"
                if any(row.recovering or row.standby for row in rows.values()):
                    return f"{node} sees {rows}"
                for row in self.pair.rows(node, "groups").values():
                    if row.excluded or not row.owner or row.state.name != "RUNNING":
                        return f"{node} sees {row}"
                    if node == row.owner and row.proof is not Proof.PROMISES:
                        return f"the lease disk's record still stands, and a taker would wait it out: {row}"
            return ""

        wait_for(lambda: not missing(), 40, lambda: f"{missing()}\n{self.pair.why()}", 0.1)


def as_postgres(host: Host, *words: str, text: str | None = None) -> str:
    return host.run("setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", *words, text=text, timeout=60)


def make_database(pair: Pair, volume: Volume) -> None:
    host = pair.lab["a"]
    with volume.mounted(host) as folder:
        host.run("chown", "postgres", FOLDER)
        as_postgres(
            host,
            f"{PROGRAMS}/initdb",
            "-D",
            f"{FOLDER}/pg",
            "--no-sync",
            "--wal-segsize=4",
            "-E",
            "UTF8",
            "--auth-local=peer",
            "--auth-host=scram-sha-256",
        )
        with open(folder / "pg" / "postgresql.conf", "a") as file:
            file.write("max_wal_size = 64MB\nmin_wal_size = 16MB\nshared_buffers = 64MB\n")
        with open(folder / "pg" / "pg_hba.conf", "a") as file:
            file.write("host bank writer 192.0.2.0/24 scram-sha-256\n")
        tables = f"create role hasnmp login password '{PASSWORD.replace(chr(39), chr(39) * 2)}'\n"
        tables += (
            f"create role writer login password '{PASSWORD.replace(chr(39), chr(39) * 2)}'\ncreate database bank\n"
        )
        as_postgres(host, f"{PROGRAMS}/postgres", "--single", "-D", f"{FOLDER}/pg", "postgres", text=tables)
        tables = "create table ledger (number bigint primary key, at timestamptz default now())\ngrant insert on ledger to writer\n"
        as_postgres(host, f"{PROGRAMS}/postgres", "--single", "-D", f"{FOLDER}/pg", "bank", text=tables)
    secret = pair.lab.etc / "bank.secret"
    secret.write_text(PASSWORD)
    secret.chmod(0o600)
    (pair.lab.etc / "haproxy.cfg").write_text(substituted("haproxy.cfg", {}))


def missing() -> list[str]:
    lacks = [] if os.path.exists(f"{PROGRAMS}/postgres") else ["postgres (postgresql-15)"]
    return lacks if shutil.which("haproxy") else [*lacks, "haproxy"]


pytestmark = pytest.mark.skipif(bool(missing()), reason=f"needs {', '.join(missing())}")


@contextlib.contextmanager
def made(own_rounds: int = 0) -> Iterator[Bank]:
    """own_rounds: how often it is measured first what the programs take without hasnmp."""
    groups = (group("db", "postgresql.yaml", VIP, "a", DB), group("gateway", "gateway.yaml", VIP2, "b", GATEWAY))
    fence = {node: f"[{level(node)}]" for node in ("a", "b")}
    with (
        Pair(groups, Timing(recovery="automatic"), fence=fence) as pair,
        Power(pair),
        Volume(pair.lab, FILE_SYSTEM) as volume,
    ):
        make_database(pair, volume)
        bank = Bank(pair, volume)
        if own_rounds:
            db, gateway = groups
            bank.own["db"] = alone(db, pair.lab, volume, own_rounds, lambda: Writer(pair, VIP, time.monotonic_ns()))
            bank.own["gateway"] = alone(gateway, pair.lab, None, own_rounds)
        pair.start()
        bank.ready()
        yield bank


@pytest.fixture(scope="module")
def bank() -> Iterator[Bank]:
    with made() as bank:
        yield bank


def test_a_planned_move_ends_sessions_and_loses_nothing(bank: Bank) -> None:
    pair = bank.pair
    with Writer(pair, VIP, 1_000_000) as direct, Writer(pair, VIP2, 2_000_000) as through:
        for _ in range(2):
            source, target = bank.owner(), bank.other()
            asked_ns = time.monotonic_ns()
            pair.hasnmp(source, "failover", "db", "--to", target)
            for writer, name in ((direct, "direct"), (through, "by the gateway")):
                print(f"db {source} -> {target}, {name}: {writer.outage_ms(asked_ns, pair):.0f} ms without a commit")
            assert bank.owner() == target
            bank.keeps(direct, through)
        # The gateway moves, the database stays: who asks it directly notices nothing.
        source = bank.owner("gateway")
        asked_ns = time.monotonic_ns()
        pair.hasnmp(source, "failover", "gateway", "--to", "a" if source == "b" else "b")
        print(f"gateway moved: {through.outage_ms(asked_ns, pair):.0f} ms without a commit")
        assert direct.errors(asked_ns) == []
        bank.keeps(direct, through)


def test_crashes_lose_nothing_that_was_acknowledged(bank: Bank) -> None:
    """The machine that has the database loses its power and all that was not on the disk, again and again."""
    pair = bank.pair
    with Writer(pair, VIP, 3_000_000) as direct, Writer(pair, VIP2, 4_000_000) as through:
        for count in range(CRASHES):
            bank.ready()
            source, target = bank.owner(), bank.other()
            direct.outage_ms(time.monotonic_ns(), pair)
            fault_ns = bank.volume.crash(pair.lab[source])
            took = [writer.outage_ms(fault_ns, pair) for writer in (direct, through)]
            print(f"crash {count + 1} of {source}: {took[0]:.0f} ms without a commit, by the gateway {took[1]:.0f} ms")
            assert bank.owner() == target
            kept = bank.keeps(direct, through)
        print(f"{kept} transactions were acknowledged, none of them is lost")
        assert len(direct.acknowledged()) > CRASHES
    bank.ready()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hangs"])
def test_a_failed_engine_restarts_in_place(bank: Bank, number: signal.Signals) -> None:
    """SIGKILL: the server's end is told at once. SIGSTOP: it is there, its sessions go on, but nobody new gets an answer."""
    pair = bank.pair
    bank.ready()
    node = bank.owner()
    with Writer(pair, VIP, 5_000_000 + 100_000 * number) as writer:
        begun_ns = boot_ns()
        server = bank.postmaster(node)
        fault_ns = pair.lab[node].signal(number, [server])
        event = pair.wait_event(node, Kind.SERVICE_RESTARTED, begun_ns, 20)
        took_ms = writer.outage_ms(fault_ns, pair)
        print(f"{number.name}: {took_ms:.0f} ms without a commit; {event.message}")
        wait_for(lambda: bank.owner() == node and bank.postmaster(node) != server, 20, pair.why)
        assert not pair.events(node, begun_ns, Kind.FAILOVER_STARTED), "a failed engine moves nothing"
        bank.keeps(writer)


def test_a_crashed_nodes_record_of_its_process_hinders_nobody(bank: Bank) -> None:
    """postmaster.pid names a process that is another one of postgres's on this node."""
    pair = bank.pair
    bank.ready()
    source, target = bank.owner(), bank.other()
    host = pair.lab[target]
    with contextlib.ExitStack() as stack:
        innocent = host.spawn("setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "sleep", "600")
        stack.callback(innocent.wait, 5)
        inside = wait_for(lambda: host.run("pgrep", "-u", "postgres", "sleep", check=False).split(), 5, "sleep runs")[0]
        stack.callback(host.run, "kill", inside)
        record = pair.lab[source].path(f"{FOLDER}/pg/postmaster.pid")
        record.write_text("\n".join([inside, *record.read_text().splitlines()[1:]]) + "\n")
        subprocess.run(["sync", "-f", str(record)], check=True)
        bank.volume.crash(pair.lab[source])
        wait_for(lambda: pair.owners()["db"] == {target}, 40, pair.why)
        assert bank.sql("select 1") == ["1"]
    bank.ready()


def test_memory_runs_out_for_a_session_before_it_does_for_the_server(bank: Bank) -> None:
    node = bank.owner()
    server = bank.postmaster(node)
    scores = {pid: int(Path(f"/proc/{pid}/oom_score_adj").read_text())
              for pid, comm in bank.pair.lab[node].processes().items() if comm == "postgres"}  # fmt: skip
    lower = (
        subprocess.run(["choom", "-n", "-900", "true"], capture_output=True).returncode == 0
    )  # not every machine lets root
    assert scores.pop(server) == (-900 if lower else 0) and set(scores.values()) == {0}, scores
