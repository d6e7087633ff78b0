"""What an idle node costs: each product with one service, in the same seconds; and hasnmp with ten."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hasnmp.runtime.kernel import boottime_ns
from hasnmp.runtime.kernel_address import KernelAddresses
from tests.bench.faults import Numbers, say
from tests.bench.products import Product
from tests.cluster.lab import PROJECT
from tests.cluster.pair import LAN, NODES, PYTHON, SECRETS, VIP, Group, Pair, Timing, cpu_s, pss_kb
from tests.runtime.netns import Cable, inside

IDLE_S = 30.0


def used_s(pids: Sequence[int]) -> float:
    """Processor seconds of these processes and of the children that they waited for: agents' programs count, too."""
    ticks = 0
    for pid in pids:
        with suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def side_by_side(products: Sequence[Product], seconds: float = IDLE_S) -> dict[str, tuple[float, float]]:
    """product -> (% of one core, PSS in MB) of the whole stack on the node that serves."""
    say(f"  idle for {seconds:.0f} s")
    pids = {}
    for product in products:
        owner = next(node for node in NODES if product.service(node) and product.is_owner(node))
        pids[product.name] = product.stack(owner)
    before = {name: used_s(one) for name, one in pids.items()}
    begun = time.monotonic()
    time.sleep(seconds)
    took = time.monotonic() - begun
    return {name: ((used_s(one) - before[name]) / took * 100, pss_kb(one) / 1024) for name, one in pids.items()}


def address() -> list[tuple[str, str, str, bool]]:
    """What the lease of one address costs the guardian: each renewal, several times a second, and to come and to go."""
    used_us, took_ms = Numbers(), Numbers()
    cable = Cable()
    try:
        with inside(cable.server):
            node = KernelAddresses("bench")
            node.cleanup(("192.0.2.100",))
            for _ in range(9):
                node.add("web", "192.0.2.100", 24, "srv0", boottime_ns() + 1_000_000_000)
                began = time.process_time()
                for _ in range(200):
                    node.renew("web", boottime_ns() + 1_000_000_000)
                used_us.values.append((time.process_time() - began) / 200 * 1e6)
                node.remove("web")
                began = time.monotonic()
                node.add("web", "192.0.2.100", 24, "srv0", boottime_ns() + 1_000_000_000)
                node.remove("web")
                took_ms.values.append((time.monotonic() - began) * 1000)
            node.uninstall()
            node.close()
    finally:
        cable.remove()
    return [
        ("an address's renewal, processor us", used_us.text(), "under 300", used_us.median() < 300),
        ("an address comes and goes, ms", took_ms.text(), "under 8", took_ms.median() < 8),
    ]


@dataclass
class Ten:
    cpu_percent: float
    pss_mb: float
    status_ms: Numbers
    start_ms: Numbers
    by_role: dict[str, tuple[float, float]]


def ten_services() -> Ten:
    """An idle hasnmp node with 10 services, each asked over TCP once a second, at its default heartbeat times."""
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
        say(f"  ten services, idle for {IDLE_S:.0f} s")
        time.sleep(3)
        stack = pair.stack("a")
        pids = pair.pids("a")
        before = {role: cpu_s(one) for role, one in stack.items()}
        begun = time.monotonic()
        time.sleep(IDLE_S)
        took = time.monotonic() - begun
        by_role = {role: ((cpu_s(one) - before[role]) / took * 100, pss_kb(one) / 1024) for role, one in stack.items()}
        assert pair.pids("a") == pids, "the same processes as before"
        return Ten(sum(cpu for cpu, _ in by_role.values()), pss_kb(pids) / 1024, status, started, by_role)
