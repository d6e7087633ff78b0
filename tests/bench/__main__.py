"""Speed, safety and size beside the peers', in one run on one machine: python -m tests.bench [--only PART]   (as root)

Measured from what a client sees: the laboratory's probe asks the virtual address every 2 ms, and both hosts behind its
back. Rounds of the products take turns, so that what else the machine does meets all alike. A product whose programs
this machine lacks is left out, by name. Exit status: 0 every goal was met, 1 one was missed.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence

from tests.bench import agentx, detection, faults, idle, notifications, services, snmp
from tests.bench.faults import FAULTS, MOVING, Fault, Numbers, say
from tests.bench.pacemaker import Pacemaker
from tests.bench.products import Address, Hasnmp, Keepalived, Product

ROUNDS = 3
PARTS = ("faults", "idle", "detection", "services", "snmp", "agentx", "notifications")
NOTHING_MS = 50.0  # a gap below this is the probe's and the machine's own: nobody was out
Goal = tuple[str, str, str, bool]  # what, measured, goal, met

PRODUCTS: dict[str, tuple[Callable[[], Product], Callable[[], list[str]]]] = {
    "hasnmp": (Hasnmp, Hasnmp.missing),
    "hasnmp, address": (Address, Address.missing),
    "keepalived": (Keepalived, Keepalived.missing),
    "pacemaker": (lambda: Pacemaker(False), Pacemaker.missing),
    "pacemaker, fenced": (lambda: Pacemaker(True), Pacemaker.missing_for_fencing),
}


def table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def side_by_side(rounds: int, only: Sequence[Fault]) -> list[Goal]:
    products: list[Product] = []
    try:
        for name, (make, missing) in PRODUCTS.items():
            if lacks := missing():
                print(f"{name} is left out: this machine has no {', '.join(lacks)}")
                continue
            products.append(make())
        for product in products:
            product.start()
        for product in faults.restore(products, Fault("start", lambda *_: 0, gentle=True)):
            print(f"{product.name} is left out: it does not start; see the lines above")
            products.remove(product)
            product.close()
        costs = idle.side_by_side(products)
        found = faults.run(products, rounds, only)
    finally:
        for product in products:
            product.close()
    names = [product.name for product in products]
    print("\nLongest time without an answer, ms: median (worst); x: of the median, beside hasnmp's. "
          "2!: probe periods in which two servers answered.\n")  # fmt: skip
    rows = [["", *names]]
    for fault, by_name in found.items():
        rows.append([fault, *(cell(by_name[name], by_name["hasnmp"]) for name in names)])
    rows.append(["idle: % of one core", *(f"{costs[name][0]:.2f}" for name in names)])
    rows.append(["idle: PSS, MB", *(f"{costs[name][1]:.1f}" for name in names)])
    print(table(rows) + "\n")
    for product in products:
        print(f"{product.name}: {product.told}")
    print("\nEvery measurement:")
    for fault, by_name in found.items():
        for name in names:
            if by_name[name].values:
                print(f"  {fault}, {name}: {' '.join(f'{x:.0f}' for x in by_name[name].values)}")
    return goals(found)


def cell(numbers: Numbers, ours: Numbers) -> str:
    text = numbers.text()
    if numbers is not ours and text not in ("never", ""):
        text += f" {numbers.median() / max(ours.median(), 1):.1f}x"
    return text + (f" 2!{numbers.doubles}" if numbers.doubles else "")


def goals(found: dict[str, dict[str, Numbers]]) -> list[Goal]:
    doubles = {name: sum(row[name].doubles for row in found.values()) for name in next(iter(found.values()))}
    result: list[Goal] = [("hasnmp: periods with two servers", str(doubles["hasnmp"]), "0", doubles["hasnmp"] == 0)]
    safe = [name for name, number in doubles.items() if number == 0 and not name.startswith("hasnmp")]
    for fault, row in found.items():
        ours = row["hasnmp"].median()
        for name in safe:
            if not row[name].values:
                continue
            theirs = row[name].median()
            met = ours <= max(theirs, NOTHING_MS)
            result.append((f"{fault}, beside {name} (never two)", f"{ours:.0f} ms", f"at most {theirs:.0f} ms", met))
        if fault not in MOVING and fault != "service killed":
            result.append((f"{fault}: hasnmp moves nothing", f"{row['hasnmp'].worst():.0f} ms", "under 150 ms",
                           row["hasnmp"].worst() < 150))  # fmt: skip
    if "power off" in found and "keepalived" in found["power off"]:
        theirs = found["power off"]["keepalived"].median()
        ratio = found["power off"]["hasnmp, address"].median() / theirs
        result.append(
            ("power off, an address alone, beside keepalived", f"{ratio:.2f} x", "at most 1.00 x", ratio <= 1.0)
        )
        ratio = found["power off"]["hasnmp"].median() / theirs
        result.append(("power off, with the program's start", f"{ratio:.2f} x", "at most 1.00 x", ratio <= 1.0))
    if "planned move" in found:
        ours = found["planned move"]["hasnmp"].median()
        result.append(("planned move", f"{ours:.0f} ms", "at most 100 ms", ours <= 100))
    return result


def ten_services() -> list[Goal]:
    seen = idle.ten_services()
    for role, (cpu, pss) in seen.by_role.items():
        print(f"idle with 10 services, {role}: {cpu:.2f} % of one core, {pss:.1f} MB")
    return [
        ("idle, 10 services: % of one core", f"{seen.cpu_percent:.2f}", "under 2", seen.cpu_percent < 2),
        ("idle, 10 services: PSS, MB", f"{seen.pss_mb:.1f}", "under 120", seen.pss_mb < 120),
        ("hasnmp status, ms", seen.status_ms.text(), "under 250", seen.status_ms.median() < 250),
        ("daemon start to its first SNMP answer, ms", seen.start_ms.text(), "under 2000", seen.start_ms.worst() < 2000),
    ]


def main() -> int:
    names = [fault.name for fault in FAULTS]
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--only", action="append", choices=(*PARTS, *names), metavar="PART",
                        help=f"{', '.join(PARTS)}, or one fault: {', '.join(names)}")  # fmt: skip
    parser.add_argument("--busy-s", type=float, default=detection.BUSY_S, help="how long detection is watched")
    arguments = parser.parse_args()
    parts = arguments.only or list(PARTS)
    chosen = FAULTS if "faults" in parts else tuple(fault for fault in FAULTS if fault.name in parts)
    met: list[Goal] = []
    begun = time.monotonic()
    if chosen:
        met += side_by_side(arguments.rounds, chosen)
    if "idle" in parts:
        met += idle.address() + ten_services()
    if "detection" in parts:
        met += detection.busy(arguments.busy_s)
    if "services" in parts:
        met += services.run()
    if "snmp" in parts:
        met += snmp.run()
    if "agentx" in parts:
        met += agentx.side_by_side()
    if "notifications" in parts:
        met += notifications.side_by_side()
    load = " ".join(f"{x:.1f}" for x in os.getloadavg())
    say(f"took {time.monotonic() - begun:.0f} s; load averages at the end {load}")
    rows = [("", "measured", "goal", ""), *((*goal[:3], "met" if goal[3] else "MISSED") for goal in met)]
    print("\n" + table(rows))
    return 0 if all(goal[3] for goal in met) else 1


if __name__ == "__main__":
    sys.exit(main())
