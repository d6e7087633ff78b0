"""The agent's answers beside those of Debian's snmpd: processor time a request, the same rows, the same requests, by turns.

snmpd serves haServiceTable's first ten columns out of a module in C (snmp_rows.c). Requests go one at a time, as a console
sends them, each for another service; what is counted is the time that the serving process was on a processor.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import socket
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from hasnmp.model import ServiceRow, ServiceState
from hasnmp.settings import Community, MibView, SnmpUser
from hasnmp.snmp import ber
from hasnmp.snmp.ha_objects import TABLES
from hasnmp.snmp.objects import text_index
from hasnmp.snmp.standard import Counters
from hasnmp.snmp.usm import PRIV, Engine, Incoming
from tests.bench.faults import say
from tests.snmp.snmp_lab import (
    AUTH,
    BULK,
    ENVIRONMENT,
    GET,
    NEXT,
    READ,
    AgentProcess,
    FakeEngine,
    a_config,
    a_pdu,
    a_view,
    binding,
    free_port,
    v2c,
    wait_for,
)  # fmt: skip
from tests.snmp.snmp_lab import PRIV as PRIV_WORD

Goal = tuple[str, str, str, bool]

ROUNDS = 6
REQUESTS = 1500  # in a round, of each kind
SERVICES, COLUMNS = 1000, 10
ENTRY = next(table.entry_oid for table in TABLES if table.name == "haServiceTable")
USER = SnmpUser("noc", "sha256", "aes128", "operate", AUTH.encode(), PRIV_WORD.encode())


def service(number: int) -> str:
    return f"s{number:05}"


def row(number: int) -> ServiceRow:
    return ServiceRow(service(number), "web", "alpha", "exec", ServiceState.RUNNING, checks=number, data_ns=1)


class Served:
    """One serving process: its port, its pid, and what a manager must know of it for v3."""

    def __init__(self, name: str, port: int, pid: int) -> None:
        self.name, self.port, self.pid = name, port, pid
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.connect(("127.0.0.1", port))
        self.socket.settimeout(5)
        self._manager: Engine | None = None

    def cpu_ns(self) -> int:
        """Nanoseconds on a processor, of all its threads."""
        return sum(
            int(Path(f"/proc/{self.pid}/task/{task}/schedstat").read_text().split()[0])
            for task in os.listdir(f"/proc/{self.pid}/task")
        )

    def peak_mb(self) -> float:
        found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{self.pid}/status").read_text())
        assert found
        return int(found[1]) / 1024

    def ask(self, message: bytes) -> bytes:
        self.socket.send(message)
        return self.socket.recv(65535)

    def discover(self) -> None:
        """Engine ID, boots and time (RFC 3414 section 4), by two questions."""
        user = b""
        engine_id, boots, seconds = b"", 0, 0
        probe = ber.encode(0x30, b"\2\1\3" + ber.encode(0x30, b"\2\1\1\2\3\0\xff\xe3\4\1\4\2\1\3")
                           + ber.encode(4, ber.encode(0x30, b"\4\0\2\1\0\2\1\0\4\0\4\0\4\0"))
                           + ber.encode(0x30, b"\4\0\4\0" + a_pdu(GET, [])))  # fmt: skip
        said = self.ask(probe)
        start, end = ber.expect(said, 0, len(said), 0x30)
        start, end = ber.expect(said, ber.expect(said, start + 3, end, 0x30)[1], end, 4)
        start, end = ber.expect(said, start, end, 0x30)
        engine_id, start = ber.octets(said, start, end)
        boots, start = ber.integer(said, start, end)
        seconds, start = ber.integer(said, start, end)
        begun = time.monotonic() - seconds
        self._manager = Engine(engine_id, boots, lambda: int(time.monotonic() - begun), (USER,), Counters())
        del user

    def v3(self, pdu: bytes, number: int) -> bytes:
        assert self._manager is not None
        return self._manager.send(Incoming(number, 65507, True, PRIV, self._manager.users[b"noc"]), pdu, PRIV)


@contextlib.contextmanager
def snmpd(folder: Path, rows: int, changes: int = 0) -> Iterator[Served]:
    module = folder / "snmp_rows.so"
    if not module.exists():
        flags = subprocess.run(["net-snmp-config", "--base-cflags"], capture_output=True, text=True, check=True).stdout
        source = Path(__file__).with_name("snmp_rows.c")
        subprocess.run(["gcc", "-O2", "-shared", "-fPIC", *flags.split(), "-o", module, source], check=True)
    port = free_port()
    state = Path(tempfile.mkdtemp(dir=folder))
    settings = state / "snmpd.conf"
    settings.write_text(
        f"agentaddress udp:127.0.0.1:{port}\nrocommunity {READ.decode()} 127.0.0.1\nrouser noc priv\n"
        f"createUser noc SHA-256 {AUTH} AES {PRIV_WORD}\ndlmod snmp_rows {module}\n"
    )
    environment = {**ENVIRONMENT, "SNMP_PERSISTENT_DIR": str(state), "HASNMP_ROWS": str(rows)}
    if changes:
        environment["HASNMP_CHANGES"] = str(changes)
    with (state / "log").open("w") as log:
        process = subprocess.Popen(
            ["snmpd", "-f", "-Lo", "-I", "-smux,mteTrigger,mteTriggerConf", "-C", "-c", str(settings)],
            stdout=log, stderr=log, env=environment,
        )  # fmt: skip
        served = Served("snmpd", port, process.pid)
        try:
            wait_for(lambda: _answers(served))
            yield served
        finally:
            process.terminate()
            process.wait(10)


@contextlib.contextmanager
def ours(folder: Path, rows: int, changes: int = 0) -> Iterator[Served]:
    place = Path(tempfile.mkdtemp(dir=folder))
    view = a_view()
    services: dict[str, Any] = view.tables["services"]  # type: ignore[assignment]
    services.clear()
    services.update({service(number): row(number) for number in range(rows)})
    engine = FakeEngine(place / "control.sock", view)
    # The table has more columns than ten; who asks is let see these alone, as a view of the configuration does it.
    ten = MibView("ten", tuple(".".join(map(str, (*ENTRY, 2 + n))) for n in range(COLUMNS)))
    users = (replace(USER, view=ten),)
    process = AgentProcess(a_config(place, communities=(Community("read", (), READ, "ten", ten),), users=users))
    stop = threading.Event()
    changing = threading.Thread(target=_change, args=(engine, rows, changes, stop))
    served = Served("hasnmp", process.port, process.process.pid)
    try:
        wait_for(lambda: _answers(served))
        if changes:
            changing.start()
        yield served
    finally:
        stop.set()
        if changes:
            changing.join()
        assert process.stop() == 0, process.log.read_text()
        engine.stop()


def _change(engine: FakeEngine, rows: int, changes: int, stop: threading.Event) -> None:
    """As the engine tells of them: a delta each tenth of a second."""
    at = 0
    while not stop.wait(0.1):
        table: dict[str, Any] = engine.view.tables["services"]  # type: ignore[assignment]
        names = [service((at + n) % rows) for n in range(changes // 10)]
        engine.change({"services": {name: replace(table[name], checks=table[name].checks + 1) for name in names}})
        at = (at + len(names)) % rows


def _answers(served: Served) -> bool:
    served.socket.settimeout(0.2)
    try:
        said = served.ask(v2c(a_pdu(GET, [binding((*ENTRY, 5, *text_index(service(0))))])))
        return b"\2\1\4" in said[-3:]
    except OSError:
        return False
    finally:
        served.socket.settimeout(5)


# ------------------------------------------------------------------------------------------------------ the requests


def cells(dice: random.Random, count: int) -> list[bytes]:
    """Cells of one service after another, as a console asks for what it shows."""
    row_at, column = dice.randrange(SERVICES), dice.randrange(COLUMNS)
    names = [
        (*ENTRY, 2 + (column + n) % COLUMNS, *text_index(service((row_at + (column + n) // COLUMNS) % SERVICES)))
        for n in range(count)
    ]
    return [binding(name) for name in names]


def bulk(dice: random.Random) -> tuple[int, list[bytes], int, int]:
    name = (*ENTRY, 2 + dice.randrange(COLUMNS), *text_index(service(dice.randrange(SERVICES - 30))))
    return BULK, [binding(name)], 0, 25


Kind = Callable[[random.Random], tuple[int, list[bytes], int, int]]
KINDS: dict[str, tuple[Kind, bool, float]] = {  # name: request, over v3, goal beside snmpd
    "v2c GET of 1": (lambda dice: (GET, cells(dice, 1), 0, 0), False, 0.5),
    "v2c GET of 10": (lambda dice: (GET, cells(dice, 10), 0, 0), False, 0.5),
    "v2c GETNEXT": (lambda dice: (NEXT, cells(dice, 1), 0, 0), False, 0.5),
    "v2c GETBULK 25": (bulk, False, 0.3),
    "v3 authPriv GET": (lambda dice: (GET, cells(dice, 1), 0, 0), True, 0.8),
    "v3 authPriv GETBULK 25": (bulk, True, 0.5),
}


def requests(served: Served, kind: Kind, secure: bool, count: int, seed: int) -> list[bytes]:
    dice = random.Random(seed)
    out = []
    for number in range(1, count + 1):
        tag, names, first, second = kind(dice)
        pdu = a_pdu(tag, names, first, second, number + 1000)
        out.append(served.v3(pdu, number + 1000) if secure else v2c(pdu))
    return out


def measured(served: Served, messages: list[bytes]) -> float:
    """Microseconds of processor time a request."""
    ask = served.ask
    before = served.cpu_ns()
    for message in messages:
        ask(message)
    return (served.cpu_ns() - before) / len(messages) / 1000


def compare(
    pair: tuple[Served, Served], rounds: int, count: int, only: str = ""
) -> dict[str, tuple[float, float, list[float]]]:
    """kind -> (median of ours in us, of snmpd's, the ratio of each round)."""
    found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS if only in kind}
    for one in pair:
        one.discover()
        # As a console does all the time: what did not change since the last poll has been asked for before.
        subprocess.run(walking(one), capture_output=True, env=ENVIRONMENT, check=True, timeout=300)
    for number in range(rounds + 1):
        for name in found:
            kind, secure, _ = KINDS[name]
            both = []
            for served in pair if number % 2 else pair[::-1]:
                both.append((served.name, measured(served, requests(served, kind, secure, count, number))))
            if number:  # the first is to warm up
                by_name = dict(both)
                found[name].append((by_name["hasnmp"], by_name["snmpd"]))
    return {
        name: (
            statistics.median(one for one, _ in rounds_),
            statistics.median(other for _, other in rounds_),
            [one / other for one, other in rounds_],
        )
        for name, rounds_ in found.items()
    }


def walking(served: Served) -> list[str]:
    """snmpbulkwalk of the ten columns."""
    first = ".".join(map(str, ENTRY))
    return ["snmpbulkwalk", "-v2c", "-c", READ.decode(), "-On", "-Cr50", f"127.0.0.1:{served.port}", first]


def walk(folder: Path, rows: int, rounds: int) -> tuple[list[float], list[float], float]:
    """Wall seconds of snmpbulkwalk over 10 columns of so many services, ours and snmpd's; and our peak memory in MB."""
    took: dict[str, list[float]] = {"hasnmp": [], "snmpd": []}
    with ours(folder, rows) as one, snmpd(folder, rows) as other:
        for number in range(rounds + 1):
            for served in (one, other):
                begun = time.monotonic()
                said = subprocess.run(
                    walking(served), capture_output=True, env=ENVIRONMENT, check=True, timeout=300
                ).stdout
                if number:
                    took[served.name].append(time.monotonic() - begun)
                assert said.count(b"\n") >= rows * COLUMNS, (served.name, said.count(b"\n"))
        return took["hasnmp"], took["snmpd"], one.peak_mb()


def flood(folder: Path, seconds: float = 10.0) -> float:
    """% of a core for 20 datagrams a second of 58 KB with a wrong community, above what it costs idle."""
    big = v2c(a_pdu(GET, [binding((*ENTRY, 5, *text_index(service(0))))] * 2000), b"wrong")[:58000]
    with ours(folder, 100) as served:
        time.sleep(1)
        before = served.cpu_ns()
        time.sleep(seconds)
        idle = served.cpu_ns() - before
        before = served.cpu_ns()
        for _ in range(int(seconds * 20)):
            served.socket.send(big)
            time.sleep(0.05)
        return (served.cpu_ns() - before - idle) / (seconds * 1e9) * 100


def missing() -> list[str]:
    return [name for name in ("snmpd", "snmpbulkwalk", "gcc", "net-snmp-config") if not shutil.which(name)]


def run(rounds: int = ROUNDS, count: int = REQUESTS) -> list[Goal]:
    if lacks := missing():
        print(f"SNMP beside snmpd is left out: this machine has no {', '.join(lacks)}")
        return []
    goals: list[Goal] = []
    with tempfile.TemporaryDirectory(prefix="hasnmp-bench-") as name:
        folder = Path(name)
        say(
            f"  SNMP: {SERVICES} services x {COLUMNS} columns, {rounds} rounds of {count} requests of each kind, by turns"
        )
        with ours(folder, SERVICES) as one, snmpd(folder, SERVICES) as other:
            still = compare((one, other), rounds, count)
        for kind, (us, theirs, ratios) in still.items():
            ratio = statistics.median(ratios)
            print(f"{kind}: {us:.1f} us, snmpd {theirs:.1f} us; rounds {' '.join(f'{x:.2f}' for x in ratios)}")
            goals.append(
                (f"{kind}, beside snmpd", f"{ratio:.2f} x", f"at most {KINDS[kind][2]} x", ratio <= KINDS[kind][2])
            )
        with ours(folder, SERVICES, SERVICES) as one, snmpd(folder, SERVICES, SERVICES) as other:
            changing = compare((one, other), rounds, count)
        for kind, (us, theirs, ratios) in changing.items():
            ratio, slower = statistics.median(ratios), us / still[kind][0]
            print(
                f"{kind}, {SERVICES} changes a second: {us:.1f} us, snmpd {theirs:.1f} us, {ratio:.2f} x; {slower:.2f} x of without"
            )
            goals.append(
                (f"{kind}, {SERVICES} changes a second", f"{slower:.2f} x of without", "at most 1.3 x", slower <= 1.3)
            )
        times = {rows: walk(folder, rows, max(rounds // 2, 2)) for rows in (1000, 10000)}
        mine, theirs_s, peak = times[10000]
        small = statistics.median(times[1000][0])
        wall, ratio = statistics.median(mine), statistics.median(mine) / statistics.median(theirs_s)
        print(
            f"snmpbulkwalk of 10,000 x 10: {wall:.2f} s, snmpd {statistics.median(theirs_s):.2f} s; of 1,000 x 10: {small:.2f} s"
        )
        goals.append(("snmpbulkwalk of 10,000 x 10, beside snmpd", f"{ratio:.2f} x", "at most 1.0 x", ratio <= 1.0))
        goals.append(("the same beside 1,000 x 10", f"{wall / small:.1f} x", "at most 12 x", wall / small <= 12))
        goals.append(("peak memory with 10,000 services", f"{peak:.0f} MB", "at most 80 MB", peak <= 80))
        cost = flood(folder)
        goals.append(("20 datagrams/s of 58 KB, wrong community", f"{cost:.2f} % of a core", "under 1 %", cost < 1))
    return goals
