"""Faults of every kind at random, one on top of the other; then all healed: never two at once, and everything back.

HASNMP_SOAK_S=600 HASNMP_SOAK_SEED=7 pytest tests/cluster/test_soak.py   goes on for longer, and draws what seed 7 draws
(the machine's own timing still differs from run to run).
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable

from hasnmp.model import Verb
from tests.cluster.pair import NODES, ROLES, VIP, VIP6, Group, Pair, Timing
from tests.cluster.watch import Watch

SOAK_S = float(os.environ.get("HASNMP_SOAK_S", "30"))
SEED = int(os.environ.get("HASNMP_SOAK_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 30)


class Nemesis:
    """Draws a fault, and says what it did. Every fault that lasts is healed sooner or later, at the latest by restore()."""

    def __init__(self, pair: Pair, seed: int) -> None:
        self.pair, self.random, self.story = pair, random.Random(seed), [f"seed {seed}"]
        self.begun = time.monotonic()
        self.faults: list[tuple[Callable[[str], str], int]] = [
            (self.power_off, 2), (self.power_on, 6), (self.kill, 4), (self.freeze, 4), (self.thaw, 6), (self.cut, 4),
            (self.one_way, 3), (self.pull, 2), (self.disk, 4), (self.heal, 8), (self.kill_service, 2), (self.move, 4),
            (self.stop, 2), (self.recover, 3),
        ]  # fmt: skip

    def step(self) -> None:
        fault = self.random.choices([f for f, _ in self.faults], [weight for _, weight in self.faults])[0]
        node = self.random.choice(NODES)
        at_s = time.monotonic() - self.begun
        self.story.append(f"{at_s:7.2f} s {node} {fault.__name__}: {fault(node)}")

    def power_off(self, node: str) -> str:
        self.pair.lab[node].power_off()
        return "off"

    def power_on(self, node: str) -> str:
        if not self.pair.lab[node].pid:
            self.pair.lab[node].power_on()
        return self.start(node)

    def start(self, node: str) -> str:
        if "sh" in self.pair.lab[node].processes().values():
            return "it runs"
        self.pair.start(node)
        return "started"

    def _some(self, node: str) -> list[int]:
        roles = self.random.choice([tuple(ROLES.values()), *((role,) for role in ROLES.values())])
        return self.pair.pids(node, *roles)

    def kill(self, node: str) -> str:
        pids = self._some(node)
        self.pair.lab[node].signal(signal.SIGKILL, pids)
        return str(pids)

    def freeze(self, node: str) -> str:
        pids = self._some(node)
        self.pair.lab[node].signal(signal.SIGSTOP, pids)
        return str(pids)

    def thaw(self, node: str) -> str:
        self.pair.lab[node].signal(signal.SIGCONT, self.pair.pids(node))
        return "all"

    def cut(self, node: str) -> str:
        links = self.random.choice([("lan",), ("cross",), ("lan", "cross")])
        self.pair.lab.separate("a", "b", *links)
        return " ".join(links)

    def one_way(self, node: str) -> str:
        links = self.random.choice([("lan",), ("cross",), ("lan", "cross")])
        for link in links:
            self.pair.lab.block(node, "b" if node == "a" else "a", link)
        return " ".join(links)

    def pull(self, node: str) -> str:
        link = self.random.choice(["lan", "cross"])
        self.pair.lab.pull(node, link)
        return link

    def disk(self, node: str) -> str:
        mode = self.random.choice(["gone", "frozen", "slow 50", "slow 700", "ok"])
        self.pair.lab.disk(node, mode)
        return mode

    def heal(self, node: str) -> str:
        self.pair.lab.heal()
        return "links and disks"

    def kill_service(self, node: str) -> str:
        pids = self.pair.service_pids(node)
        self.pair.lab[node].signal(signal.SIGKILL, pids)
        return str(pids)

    def move(self, node: str) -> str:
        group, target = self.random.choice(["web", "six"]), self.random.choice(NODES)
        return self._ask(node, self.random.choice([Verb.FAILOVER, Verb.FORCE_FAILOVER]), group, target)

    def recover(self, node: str) -> str:
        return self._ask(node, Verb.RECOVER, node)

    def stop(self, node: str) -> str:
        host = self.pair.lab[node]
        host.signal(signal.SIGKILL, [pid for pid, comm in host.processes().items() if comm == "sh"])
        host.signal(signal.SIGTERM, self.pair.pids(node, "guardian"))
        return "SIGTERM"

    def _ask(self, node: str, verb: Verb, target: str, to: str = "") -> str:
        with contextlib.suppress(Exception):  # refused, unreachable, frozen: all of that is to be expected here
            row = self.pair.command(node, verb, target, to, seconds=0.1)
            return f"{verb.name} {target} {to}: {row.text}"
        return f"{verb.name} {target} {to}: not taken"


def test_faults_at_random_and_then_healed() -> None:
    groups = (Group("web", VIP), Group("six", VIP6, home="b"))
    with Pair(groups, Timing(recovery="automatic")) as pair:
        pair.begin()
        nemesis = Nemesis(pair, SEED)
        with Watch(pair.lab, VIP) as web, Watch(pair.lab, VIP6) as six:
            while time.monotonic() - nemesis.begun < SOAK_S:
                nemesis.step()
                time.sleep(nemesis.random.expovariate(1 / 0.7))
                for watch in (web, six):
                    assert watch.doubles() == [], "\n".join(nemesis.story) + "\n" + pair.why()
            nemesis.story.append(f"{time.monotonic() - nemesis.begun:7.2f} s healed")
            try:
                pair.restore(30)
            except AssertionError as error:
                raise AssertionError(f"{error}\n" + "\n".join(nemesis.story)) from None
            web.wait_node("a")
            six.wait_node("b")
            for watch in (web, six):
                assert watch.doubles() == [] and watch.falling_tokens() == [], "\n".join(nemesis.story)
