"""Real services that move: python -m tests.bench --only services   What a client sees, beside what the programs themselves take.

A service's outage is to be at most its programs' own stop and start and 200 ms when it is moved; and in a crash their start,
and what it takes until the crash is certain (detection, the end of the lease, the fence), and 200 ms.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from hasnmp.model import Kind
from tests.bench.faults import Numbers, say
from tests.cluster import test_mail, test_nfs, test_nis, test_postgresql
from tests.cluster.pair import NODES, VIP, VIP2, boot_ns
from tests.cluster.served import Client, Move, Stage

Goal = tuple[str, str, str, bool]  # what, measured, goal, met
ROUNDS = 3
BEYOND_MS = 200.0
STEADY_S = 1.0  # before a crash: hasnmp-tickle does not know who connected just now, which services.md says


@dataclass(frozen=True)
class Case:
    """One service. missing: the programs that this machine lacks; ask: a client, whose requests are the measurement."""

    name: str
    missing: Callable[[], list[str]]
    stage: Callable[[], Stage]
    ask: Callable[[Stage], Client]
    writes: bool = True


CASES = (
    Case("NFS: nfs-ganesha, a client of NFSv3 over TCP", test_nfs.missing, test_nfs.made, test_nfs.ask),
    Case("NIS: ypserv, ypmatch 20 times a second", test_nis.missing, test_nis.made, test_nis.ask, writes=False),
    Case(
        "mail: postfix and dovecot, a client that sends and one that reads",
        test_mail.missing,
        test_mail.made,
        test_mail.ask,
    ),
)


def run() -> list[Goal]:
    goals: list[Goal] = []
    for case in CASES:
        if lacks := case.missing():
            print(f"{case.name} is left out: this machine has no {', '.join(lacks)}")
            continue
        say(f"services: {case.name}")
        moves, errors = measured(case)
        goals += judged(case.name, moves)
        goals.append((f"{case.name}: errors that a client saw", str(errors), "0", errors == 0))
    if lacks := test_postgresql.missing():
        print(f"PostgreSQL is left out: this machine has no {', '.join(lacks)}")
        return goals
    say("services: PostgreSQL and its gateway")
    found, kept = bank()
    for name, moves in found.items():
        goals += judged(name, moves)
    return [
        *goals,
        ("PostgreSQL: acknowledged transactions that are lost", f"0 of {kept}", "0", True),
    ]  # else it raised


def judged(name: str, moves: list[Move]) -> list[Goal]:
    print(f"\n{name}:")
    for move in moves:
        print(f"  {move}")
    goals = []
    for kind in ("planned", "crash"):
        outage, beyond = Numbers(), Numbers()
        for move in moves:
            if move.name == kind:
                outage.values.append(move.outage_ms)
                beyond.values.append(move.beyond_ms())
        met = beyond.median() <= BEYOND_MS
        goals.append((f"{name}, {kind}: beyond the programs' own" + (" and detection" if kind == "crash" else ""),
                      f"{beyond.text()} of {outage.text()} ms", f"at most {BEYOND_MS:.0f} ms", met))  # fmt: skip
    return goals


def measured(case: Case) -> tuple[list[Move], int]:
    moves = []
    stage = case.stage()
    stage.own_rounds, stage.load = ROUNDS, case.ask if case.writes else None
    with stage, case.ask(stage) as client:
        for _ in range(ROUNDS):
            moves += [stage.move("a", "b", client), stage.move("b", "a", client)]
            time.sleep(STEADY_S)
            moves.append(stage.crash("a", "b", client))
            stage.revive("a")
            stage.move("b", "a", client)
        return moves, len(client.errors())


def bank() -> tuple[dict[str, list[Move]], int]:
    """The database as who writes to it directly sees it, and the gateway's own moves as who writes through it does; and how many
    acknowledged transactions are all there. Raises AssertionError: one is lost."""
    database, gateway = list[Move](), list[Move]()
    with test_postgresql.made(ROUNDS) as bank:
        pair, own = bank.pair, bank.own
        with (
            test_postgresql.Writer(pair, VIP, 1_000_000) as direct,
            test_postgresql.Writer(pair, VIP2, 2_000_000) as through,
        ):
            for _ in range(ROUNDS):
                for group, writer, moves in (("db", direct, database), ("gateway", through, gateway)):
                    bank.ready()
                    writer.outage_ms(time.monotonic_ns(), pair)  # it writes
                    asked_ns = time.monotonic_ns()
                    pair.hasnmp(bank.owner(group), "failover", group)
                    moves.append(
                        Move("planned", writer.outage_ms(asked_ns, pair), own[group].stop_ms + own[group].start_ms, 0)
                    )
                    bank.ready()
                    if bank.owner("db") == bank.owner("gateway"):
                        pair.hasnmp(bank.owner("gateway"), "failover", "gateway")
                        bank.ready()
                    writer.outage_ms(time.monotonic_ns(), pair)
                    source = bank.owner(group)
                    other = next(node for node in NODES if node != source)
                    begun_ns, offset_ns = boot_ns(), boot_ns() - time.monotonic_ns()
                    with_disk = group == "db"
                    fault_ns = bank.volume.crash(pair.lab[source]) if with_disk else pair.lab[source].power_off()
                    outage_ms = writer.outage_ms(fault_ns, pair)
                    known = Kind.FENCE_SUCCEEDED if with_disk else Kind.NODE_LOST
                    found_ns = pair.wait_event(other, known, begun_ns).ns - offset_ns
                    moves.append(Move("crash", outage_ms, own[group].after_crash_ms, (found_ns - fault_ns) / 1e6))
                    if not pair.lab[source].runs():
                        pair.heal()
            bank.ready()
            return {
                "PostgreSQL, a client that writes": database,
                "gateway: haproxy, a client that writes through it": gateway,
            }, bank.keeps(direct, through)
