"""Speed and size beside a peer's, in one run on one machine: python -m tests.bench [--rounds N]   (as root)

Measured from what a client sees: the laboratory's probe asks the virtual address every 2 ms, and both hosts behind its
back. Rounds of hasnmp and keepalived take turns, so that what else the machine does meets both alike. Exit status: 0 every
goal was met, 1 one was missed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from hasnmp.model import Verb
from tests.bench.peers import Keepalived
from tests.cluster.lab import PROJECT, Lab, wait_for
from tests.cluster.pair import LAN, NODES, PYTHON, SECRETS, VIP, Group, Pair, Timing, cpu_s, pss_kb
from tests.cluster.watch import Watch

PERIOD_MS = 2.0
FAST = Timing(interval_ms=50, dead_after_ms=300, startup_wait_ms=1000, kill_ms=50, lease_ms=1000, io_timeout_ms=150,
              recovery="automatic")  # fmt: skip
IDLE_S = 30.0


@dataclass
class Numbers:
    """One quantity's measurements, milliseconds unless said."""

    values: list[float] = field(default_factory=list)
    doubles: int = 0

    def median(self) -> float:
        return statistics.median(self.values)

    def text(self) -> str:
        return f"{self.median():.0f} (worst {max(self.values):.0f}, n={len(self.values)})"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def power_cycle(lab: Lab) -> None:
    for node in NODES:
        lab[node].power_off()
    for node in NODES:
        lab[node].power_on()


def settled(watch: Watch) -> str:
    """The node that has answered without a gap for a while."""

    def look() -> str:
        since_ns = time.monotonic_ns() - 500_000_000
        nodes = {
            answer.node for answer in list(watch.answers) if answer.at_ns >= since_ns
        }  # behind the client's back, too
        return nodes.pop() if len(nodes) == 1 and watch.outage_ms(since_ns) < 100 else ""

    return wait_for(look, 20, "the address answers steadily", 0.1)


def power_off(lab: Lab, steady: Callable[[], None], numbers: Numbers) -> None:
    """One round: the node that serves loses power; until the other's first answer."""
    with Watch(lab, VIP, period_ms=PERIOD_MS) as watch:
        node = settled(watch)
        steady()
        fault_ns = lab[node].power_off()
        numbers.values.append(watch.back_ms(fault_ns, "b" if node == "a" else "a"))
        time.sleep(0.5)
        numbers.doubles += len(watch.doubles())


def failovers(rounds: int) -> tuple[dict[str, Numbers], dict[str, Numbers]]:
    """(power off, planned) by product."""
    lost = {"hasnmp": Numbers(), "keepalived": Numbers()}
    planned = {"hasnmp": Numbers(), "keepalived": Numbers()}
    with Pair((Group("web", VIP, worker=False),), FAST, log_level="info") as pair:
        peer = Keepalived(pair.lab, VIP)
        for number in range(rounds):
            say(f"round {number + 1} of {rounds}")
            pair.start()

            def steady() -> None:
                owner = next(iter(wait_for(lambda: pair.owners()["web"], 10)))
                pair.wait_steady(homes={"web": owner})

            steady()
            with Watch(pair.lab, VIP, period_ms=PERIOD_MS) as watch:
                for _ in range(2):
                    source = settled(watch)
                    target = "b" if source == "a" else "a"
                    asked_ns = time.monotonic_ns()
                    pair.command(source, Verb.FAILOVER, "web", target)
                    watch.wait_node(target)
                    planned["hasnmp"].values.append(watch.outage_ms(asked_ns))
                    steady()
                planned["hasnmp"].doubles += len(watch.doubles())
            power_off(pair.lab, steady, lost["hasnmp"])
            power_cycle(pair.lab)

            peer.start()
            with Watch(pair.lab, VIP, period_ms=PERIOD_MS) as watch:
                node = settled(watch)
                asked_ns = peer.stop(node)
                watch.wait_node("b" if node == "a" else "a")
                planned["keepalived"].values.append(watch.outage_ms(asked_ns))
                peer.restart(node)
                planned["keepalived"].doubles += len(watch.doubles())
            power_off(pair.lab, lambda: None, lost["keepalived"])
            power_cycle(pair.lab)
    return lost, planned


@dataclass
class Idle:
    cpu_percent: float
    pss_mb: float
    status_ms: Numbers
    start_ms: Numbers
    by_role: dict[str, tuple[float, float]]


def idle() -> Idle:
    """An idle node with 10 services, each asked over TCP once a second, at hasnmp's default heartbeat times."""
    services = "".join(
        f"""      - name: s{port}
        agent: exec
        options: {{command: [{", ".join((*PYTHON, str(PROJECT / "tests/bench/answer.py"), f'"{port}"'))}]}}
        check: {{type: tcp, host: 127.0.0.1, port: {port}, send: "PING", expect: "PONG", every_ms: 1000, timeout_ms: 500}}
"""
        for port in range(7101, 7109)
    )
    started = Numbers()
    timing = Timing(lease_ms=3000)
    # Ten: the address, its program and eight more.
    with Pair((Group("web", VIP, more=services),), timing, log_level="info") as pair:
        for node in NODES:
            asker = pair.lab["client"].spawn(
                sys.executable, "-I", str(PROJECT / "tests/bench/first_answer.py"), LAN[node], SECRETS["community"],
                stdout=-1,
            )  # fmt: skip
            time.sleep(0.3)
            begun_ns = pair.start(node)
            assert asker.stdout
            started.values.append((int(asker.stdout.readline()) - begun_ns) / 1e6)
            asker.wait(5)
        pair.wait_steady(30)
        status = Numbers()
        for _ in range(7):
            begun = time.monotonic()
            pair.hasnmp("a", "status")
            status.values.append((time.monotonic() - begun) * 1000)
        say(f"idle for {IDLE_S:.0f} s")
        time.sleep(3)
        stack = pair.stack("a")
        pids = pair.pids("a")
        before = {role: cpu_s(one) for role, one in stack.items()}
        begun = time.monotonic()
        time.sleep(IDLE_S)
        took = time.monotonic() - begun
        by_role = {role: ((cpu_s(one) - before[role]) / took * 100, pss_kb(one) / 1024) for role, one in stack.items()}
        assert pair.pids("a") == pids, "the same processes as before"
        return Idle(sum(cpu for cpu, _ in by_role.values()), pss_kb(pids) / 1024, status, started, by_role)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", choices=("failovers", "idle"))
    arguments = parser.parse_args()
    rows: list[tuple[str, str, str, str, str, bool]] = []  # what, hasnmp, keepalived, ratio, goal, met
    details: list[str] = []
    if arguments.only != "idle":
        lost, planned = failovers(arguments.rounds)
        ratio = lost["hasnmp"].median() / lost["keepalived"].median()
        rows.append(("power off to the first answer, ms", lost["hasnmp"].text(), lost["keepalived"].text(), f"{ratio:.2f}",
                     "at most 1.20 x", ratio <= 1.2))  # fmt: skip
        ratio = planned["hasnmp"].median() / planned["keepalived"].median()
        rows.append(("planned failover, nobody answers, ms", planned["hasnmp"].text(), planned["keepalived"].text(),
                     f"{ratio:.2f}", "at most 100 ms", planned["hasnmp"].median() <= 100))  # fmt: skip
        doubles = {name: lost[name].doubles + planned[name].doubles for name in lost}
        rows.append(("two nodes answering at once, times", str(doubles["hasnmp"]), str(doubles["keepalived"]), "", "none",
                     doubles["hasnmp"] == 0))  # fmt: skip
        for name, numbers in (("power off", lost), ("planned", planned)):
            details += [
                f"{name}, {product}: {' '.join(f'{x:.0f}' for x in numbers[product].values)}" for product in numbers
            ]
    if arguments.only != "failovers":
        seen = idle()
        rows += [
            ("idle, 10 services: % of one core", f"{seen.cpu_percent:.2f}", "", "", "under 2", seen.cpu_percent < 2),
            ("idle, 10 services: PSS, MB", f"{seen.pss_mb:.1f}", "", "", "under 120", seen.pss_mb < 120),
            ("hasnmp status, ms", seen.status_ms.text(), "", "", "under 250", seen.status_ms.median() < 250),
            ("daemon start to its first SNMP answer, ms", seen.start_ms.text(), "", "", "under 2000",
             max(seen.start_ms.values) < 2000),
        ]  # fmt: skip
        details += [f"idle, {role}: {cpu:.2f} % of one core, {pss:.1f} MB" for role, (cpu, pss) in seen.by_role.items()]
    print(
        f"\nhasnmp: interval {FAST.interval_ms} ms, dead_after {FAST.dead_after_ms} ms; keepalived: advert_int 0.1 s\n"
    )
    cells = [
        ("", "hasnmp", "keepalived", "ratio", "goal", ""),
        *((*row[:5], "met" if row[5] else "MISSED") for row in rows),
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    print("\n" + "\n".join(details))
    return 0 if all(row[5] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
