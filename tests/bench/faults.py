"""The faults, the same for each product: what the client saw of each, in rounds that take turns.

A number is the longest time without an answer that began with the fault: inf where nobody answered again within the
product's patience. `doubles` are probe periods in which both servers answered.
"""

from __future__ import annotations

import math
import random
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tests.bench.products import Product
from tests.cluster.lab import LINKS
from tests.cluster.pair import NODES
from tests.cluster.watch import Watch

PERIOD_MS = 2.0
TRIES = 3  # to bring a cluster back, the hosts switched off and on
AFTER_S = 1.0  # watched for so long after the other node's first answer


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@dataclass
class Numbers:
    """One quantity's measurements, milliseconds unless said."""

    values: list[float] = field(default_factory=list)
    doubles: int = 0

    def median(self) -> float:
        return statistics.median(self.values)

    def worst(self) -> float:
        return max(self.values)

    def text(self) -> str:
        if not self.values:
            return ""
        middle, worst = (f"{x:.0f}" if x < math.inf else "never" for x in (self.median(), self.worst()))
        return f"{middle} ({worst})" if middle != worst or middle != "never" else "never"


@dataclass(frozen=True)
class Fault:
    """strike(product, the node that serves, the other) returns when, CLOCK_MONOTONIC nanoseconds.

    gentle: the cluster is whole again by healing alone; else the hosts are switched off and on.
    """

    name: str
    strike: Callable[[Product, str, str], int]
    gentle: bool = False


def _power_off(product: Product, owner: str, _: str) -> int:
    return product.lab[owner].power_off()


def _signal(number: signal.Signals) -> Callable[[Product, str, str], int]:
    def strike(product: Product, owner: str, _: str) -> int:
        pids = product.stack(owner)
        assert pids, f"{product.name} has no process on {owner}"
        return product.lab[owner].signal(number, pids)

    return strike


def _cut(product: Product, owner: str, other: str) -> int:
    return product.lab.separate(owner, other)


def _cut_one_way(product: Product, owner: str, other: str) -> int:
    """What the owner says is lost on every link; what the other says is heard."""
    return min([product.lab.block(owner, other, link) for link in LINKS])


def _cut_one(product: Product, owner: str, other: str) -> int:
    return product.lab.separate(owner, other, "lan")


def _planned(product: Product, owner: str, other: str) -> int:
    return product.planned(owner, other)


def _kill_service(product: Product, owner: str, _: str) -> int:
    return product.lab[owner].signal(signal.SIGKILL, product.service(owner))


FAULTS = (
    Fault("power off", _power_off),
    Fault("stack killed", _signal(signal.SIGKILL)),
    Fault("stack stopped", _signal(signal.SIGSTOP)),
    Fault("both links cut", _cut),
    Fault("cut one way", _cut_one_way),
    Fault("one link of two cut", _cut_one, gentle=True),
    Fault("planned move", _planned, gentle=True),
    Fault("service killed", _kill_service),
)
MOVING = {"power off", "stack killed", "stack stopped", "planned move"}


def double_periods(watch: Watch) -> int:
    """Probe periods in which both servers answered that probe or the one before."""
    answered: dict[int, set[str]] = {}
    for answer in list(watch.answers):
        if answer.kind == "d":
            answered.setdefault(answer.number, set()).add(answer.node)
    return sum(len(nodes | answered.get(number - 1, set())) > 1 for number, nodes in answered.items())


def suffer(product: Product, fault: Fault, numbers: Numbers) -> None:
    """One fault, from a steady cluster; leaves it broken."""
    with Watch(product.lab, product.ip, period_ms=PERIOD_MS) as watch:
        product.settled(watch)
        product.steady()
        owner = product.settled(watch)
        other = next(node for node in NODES if node != owner)
        # At no phase of anyone's heartbeat: what was just awaited came with one, and the next is then a whole interval off.
        time.sleep(random.uniform(0, 0.2))
        fault_ns = fault.strike(product, owner, other)
        until = time.monotonic() + product.patience_s * (2 if fault.name in MOVING else 1)
        while time.monotonic() < until:
            back = watch.first(fault_ns, other)
            if back and time.monotonic_ns() - back.at_ns > AFTER_S * 1e9:
                break
            time.sleep(0.05)
        answered = watch.first(time.monotonic_ns() - 300_000_000) is not None
        numbers.values.append(watch.outage_ms(fault_ns) if answered else math.inf)
        doubles = double_periods(watch)
        numbers.doubles += doubles
        say(f"    {product.name}: {numbers.values[-1]:.0f} ms{f', {doubles} periods with two' if doubles else ''}")
        if fault.name == "planned move":
            product.after_planned(owner)


def restore(products: Sequence[Product], fault: Fault) -> list[Product]:
    """All at once: they mostly wait. Gives those that could not be brought back, which is no one's outage but theirs."""
    lost: list[Product] = []

    def one(product: Product) -> None:
        for attempt in range(TRIES):
            try:
                if fault.gentle and not attempt:
                    product.lab.heal()
                else:
                    product.power_cycle()
                with Watch(product.lab, product.ip, period_ms=20) as watch:
                    product.settled(watch)
                product.steady()
                return
            except AssertionError as error:
                say(f"    {product.name} is not back after {fault.name}: {str(error)[:200]}")
        lost.append(product)

    threads = [threading.Thread(target=one, args=(product,)) for product in products]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return lost


def run(products: Sequence[Product], rounds: int, faults: Sequence[Fault] = FAULTS) -> dict[str, dict[str, Numbers]]:
    """fault -> product -> what was seen. The products are running and steady."""
    products = list(products)
    found = {fault.name: {product.name: Numbers() for product in products} for fault in faults}
    for number in range(rounds):
        for fault in faults:
            say(f"  round {number + 1} of {rounds}: {fault.name}")
            # Each is the first in its turn: what the others just did meets all alike.
            turn = number % len(products)
            part = [x for x in (*products[turn:], *products[:turn]) if not x.only or fault.name in x.only]
            for product in part:
                suffer(product, fault, found[fault.name][product.name])
            for product in restore(part, fault):
                say(f"    {product.name} is left out from here on: it could not be brought back in {TRIES} tries")
                products.remove(product)
    return found
