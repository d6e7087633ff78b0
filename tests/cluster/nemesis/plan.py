"""What a campaign will do, drawn from its seed before anything is started: the same seed is the same plan.

A fault strikes the owner, the other node, or both, as they are at that moment: what is worth striking is a role, not a name.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

ROUND_MS = 3500  # how long the faults of a round go on; then everything is healed
PROCESSES = ("stack", "guardian", "engine", "lease", "snmp", "store", "register")
HARMLESS = ("engine", "lease", "snmp", "store")  # one of these killed at the owner costs the clients nothing


@dataclass(frozen=True)
class Fault:
    at_ms: int  # from the beginning of its round
    for_ms: int  # 0: until the end of the round
    kind: str
    target: str  # owner | other | both
    detail: str = ""

    def __str__(self) -> str:
        lasts = f" for {self.for_ms} ms" if self.for_ms else ""
        return f"{self.at_ms:5} ms  {self.kind} {self.detail + ' ' if self.detail else ''}at {self.target}{lasts}"


# What is known to tell a good pair from a bad one; chance alone would seldom meet it. Times from when it begins.
DANGERS = (
    (Fault(0, 0, "cut", "owner", "all"), Fault(0, 0, "disk", "owner", "gone")),
    (Fault(0, 1800, "cut", "owner", "all"), Fault(100, 1200, "disk", "owner", "frozen")),
    (Fault(0, 1600, "stop", "owner", "stack"),),
    (Fault(0, 0, "stop", "owner", "engine"),),
    (Fault(0, 1600, "stop", "owner", "guardian"), Fault(50, 0, "cut", "owner", "all")),
    (Fault(0, 0, "stop", "owner", "guardian"), Fault(30, 0, "kill", "owner", "engine")),
    (Fault(0, 0, "kill", "owner", "guardian"), Fault(0, 0, "stop", "owner", "engine")),
    (Fault(0, 0, "move", "owner", "failover"), Fault(40, 900, "cut", "owner", "all")),
    (Fault(0, 0, "move", "owner", "failover"), Fault(30, 0, "kill", "both", "engine")),
    (Fault(0, 0, "cut", "owner", "all"), Fault(700, 0, "move", "owner", "forceFailover"), Fault(900, 0, "kill", "both", "engine")),
    (Fault(0, 1500, "cut", "owner", "in"), Fault(300, 1500, "cut", "owner", "out"), Fault(400, 0, "kill", "other", "engine")),
    (Fault(0, 0, "disk", "both", "slow 40"), Fault(200, 0, "cut", "owner", "all"), Fault(1300, 600, "stop", "owner", "engine")),
    (Fault(0, 900, "power", "owner", ""), Fault(600, 900, "power", "owner", "")),
    (Fault(0, 0, "full", "both", ""), Fault(300, 800, "power", "owner", ""), Fault(1300, 0, "move", "owner", "failover")),
)  # fmt: skip


# What a group with a disk must outlive if its nodes can be fenced: a dead owner's write that is still on its way, above all.
DISK_DANGERS = (
    (
        Fault(0, 0, "data", "owner", "frozen"),
        Fault(100, 0, "cut", "owner", "all"),
        Fault(100, 0, "disk", "owner", "gone"),
    ),
    (Fault(0, 0, "data", "owner", "frozen"), Fault(60, 0, "kill", "owner", "stack")),
    (Fault(0, 0, "data", "owner", "slow 700"), Fault(100, 0, "power", "owner", "")),
    (Fault(0, 0, "data", "owner", "slow 700"), Fault(100, 0, "stop", "owner", "stack")),
    (Fault(0, 0, "stop", "owner", "stack"),),
    (Fault(0, 0, "kill", "owner", "stack"), Fault(0, 900, "switch", "both", "lie")),
    (Fault(0, 0, "power", "owner", ""), Fault(0, 1200, "switch", "both", "refuse")),
    (Fault(0, 0, "cut", "owner", "all"), Fault(0, 0, "disk", "both", "gone")),
    (Fault(0, 0, "cut", "owner", "all"), Fault(50, 0, "kill", "both", "guardian")),
)


@dataclass(frozen=True)
class Round:
    faults: tuple[Fault, ...]
    quiet: bool = False  # a single fault that no client may notice


@dataclass(frozen=True)
class Plan:
    seed: int
    recovery: str  # automatic | manual: then the administrator who heals says the word
    disk: str  # fenced: the group's disk is taken from a node that was fenced | accepted: at the data's risk
    offsets_s: dict[str, int]  # how much later each machine's CLOCK_BOOTTIME began
    rounds: tuple[Round, ...]

    def text(self) -> str:
        lines = [f"seed {self.seed}: disk {self.disk}, recovery {self.recovery}, clocks {self.offsets_s}"]
        for number, one in enumerate(self.rounds, 1):
            lines.append(f"round {number}{': no client may notice it' if one.quiet else ''}")
            lines += [f"  {fault}" for fault in one.faults]
        return "\n".join(lines)


def draw(seed: int, rounds: int) -> Plan:
    """The plan of a seed. Its first rounds are the same whatever the number of rounds."""
    chance = random.Random(f"nemesis {seed}")
    recovery, disk = chance.choice(("automatic", "manual")), chance.choice(("fenced", "accepted"))
    offsets = {node: chance.choice((0, 1000, 10_000_000)) for node in ("a", "b")}
    drawn = (_round(random.Random(f"{seed} {number}"), disk == "fenced") for number in range(rounds))
    return Plan(seed, recovery, disk, offsets, tuple(drawn))


def _round(chance: random.Random, fenced: bool) -> Round:
    if chance.random() < 0.3:
        return Round((_quiet(chance),), quiet=True)
    faults: list[Fault] = []
    if chance.random() < 0.5:
        begin_ms = chance.randrange(0, 800)
        danger = chance.choice(DANGERS + DISK_DANGERS if fenced else DANGERS)
        faults += (replace(fault, at_ms=begin_ms + fault.at_ms) for fault in danger)
    faults += (_fault(chance, fenced) for _ in range(chance.choice((0, 1, 2) if faults else (1, 2, 3, 4, 5))))
    return Round(tuple(sorted(faults, key=lambda fault: fault.at_ms)))


def _fault(chance: random.Random, fenced: bool) -> Fault:
    draws: list[tuple[Callable[[random.Random], tuple[str, str, str]], int]] = [
        (_kill, 4), (_stop, 5), (_power, 3), (_cut, 5), (_pull, 2), (_disk, 4), (_clock, 2), (_full, 2), (_move, 4),
    ]  # fmt: skip
    if (
        fenced
    ):  # without fencing a write that is on its way when its node dies may destroy data: that is what was accepted
        draws += [(_data, 2), (_switch, 2)]
    kind, target, detail = chance.choices([x for x, _ in draws], [weight for _, weight in draws])[0](chance)
    lasts = chance.choice((0, 0, 0, 150, 400, 900, 1500)) if kind not in ("kill", "move") else 0
    return Fault(chance.randrange(0, 2000), lasts, kind, target, detail)


def _quiet(chance: random.Random) -> Fault:
    kind, target, detail = chance.choice((
        ("kill", "other", chance.choice(PROCESSES[:-1])), ("kill", "owner", chance.choice(HARMLESS)),
        ("stop", "other", chance.choice(PROCESSES[:-1])), ("stop", "owner", chance.choice(HARMLESS[1:])),
        ("power", "other", ""), ("cut", "owner", chance.choice(("lan", "cross", "all", "in", "out", "lan in", "cross out"))),
        ("pull", chance.choice(("owner", "other")), "cross"), _disk(chance), _clock(chance), _full(chance),
        ("rules", "both", ""),
    ))  # fmt: skip
    return Fault(chance.randrange(0, 500), 0, kind, target, detail)


def _where(chance: random.Random, both: int = 1) -> str:
    return chance.choices(("owner", "other", "both"), (5, 3, both))[0]


def _kill(chance: random.Random) -> tuple[str, str, str]:
    return "kill", _where(chance), chance.choice((*PROCESSES, "stack", "guardian", "engine"))


def _stop(chance: random.Random) -> tuple[str, str, str]:
    return "stop", _where(chance), chance.choice((*PROCESSES, "stack", "stack", "guardian", "engine", "engine"))


def _power(chance: random.Random) -> tuple[str, str, str]:
    return "power", _where(chance), ""


def _cut(chance: random.Random) -> tuple[str, str, str]:
    """in: the target does not hear the peer; out: the peer does not hear it."""
    return "cut", "owner", chance.choice(("all", "all", "all", "in", "out", "lan", "cross", "lan in", "cross out"))


def _pull(chance: random.Random) -> tuple[str, str, str]:
    return "pull", _where(chance, 0), chance.choice(("lan", "cross"))


def _disk(chance: random.Random) -> tuple[str, str, str]:
    return "disk", _where(chance, 3), chance.choice(("gone", "frozen", "readonly", "slow 40", "slow 400", "slow 10000"))


def _clock(chance: random.Random) -> tuple[str, str, str]:
    return "clock", _where(chance), chance.choice(("-31536000", "-3600", "-2", "2", "3600", "31536000"))


def _full(chance: random.Random) -> tuple[str, str, str]:
    return "full", _where(chance), ""


def _move(chance: random.Random) -> tuple[str, str, str]:
    return "move", "owner", chance.choice(("failover", "failover", "forceFailover"))


def _data(chance: random.Random) -> tuple[str, str, str]:
    return "data", _where(chance), chance.choice(("frozen", "gone", "slow 40", "slow 700"))


def _switch(chance: random.Random) -> tuple[str, str, str]:
    """The power switch: refuse says why, hang never answers, lie says done and does nothing."""
    return "switch", "both", chance.choice(("refuse", "hang", "lie"))
