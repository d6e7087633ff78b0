"""What a campaign left behind, as values: operations, the register's log, the guardians' leases, the rounds.

All times are the laboratory's CLOCK_BOOTTIME in ns: a machine's own clock, whose zero is another, is taken back to it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tests.cluster.nemesis.register import BLOCK, parse

S = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Op:
    """One client's operation. outcome: ok | unknown | none, see client.py; the fields after it are the server's word."""

    client: str
    kind: str  # w | r
    value: str
    begun_ns: int
    ended_ns: int
    outcome: str
    seq: int = 0
    token: int = 0
    node: str = ""
    instance: str = ""
    stamp_ns: int = 0


@dataclass(frozen=True, slots=True)
class Record:
    """A block of the register's log. seq: what it says of itself, its place is its index + 1; 0: a torn block."""

    seq: int
    token: int = 0
    node: str = ""
    instance: str = ""
    stamp_ns: int = 0  # just before it was written
    came_ns: int = 0  # its request had come to the machine
    value: str = ""


@dataclass(frozen=True, slots=True)
class Told:
    """A guardian took over an expiry."""

    node: str
    token: int
    at_ns: int
    until_ns: int


@dataclass(frozen=True, slots=True)
class Frozen:
    """Who could end a group on the node, its guardian and its engine, was stopped by a signal: all of it, all the time."""

    node: str
    since_ns: int
    until_ns: int


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that was done. node: "" for what is between the nodes, or both's. until_ns: 0 for a moment."""

    at_ns: int
    node: str
    kind: str
    text: str
    until_ns: int = 0


@dataclass(slots=True)
class RoundTime:
    number: int
    begun_ns: int
    healed_ns: int = 0
    steady_ns: int = 0
    quiet: bool = False
    owner: str = ""  # at its beginning


@dataclass(slots=True)
class History:
    ops: list[Op] = field(default_factory=list)
    log: list[Record] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)
    frozen: list[Frozen] = field(default_factory=list)
    begun: dict[str, int] = field(default_factory=dict)  # instance of the register -> when it was started
    rounds: list[RoundTime] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    served_within_ms: int = 0  # the bound of a round's end
    unnoticed_ms: int = 0  # the longest gap between two answers that counts as none
    kill_ms: int = 0  # what a guardian needs to end a group by force
    room_ms: int = 0  # a machine that stands still for longer than this in one go may cost a lease
    stalls: list[list[tuple[int, int]]] = field(
        default_factory=list
    )  # of each processor: the machine itself stood still

    def spent_ns(self, begin_ns: int, end_ns: int) -> int:
        """How long it was, without what the machine itself stood still meanwhile."""
        still = (sum(max(0, min(until, end_ns) - max(since, begin_ns)) for since, until in one) for one in self.stalls)
        return end_ns - begin_ns - max(still, default=0)

    def stood_ns(self, begin_ns: int, end_ns: int) -> int:
        """For how long at most the machine itself stood still in one go."""
        return max((min(until, end_ns) - max(since, begin_ns) for one in self.stalls for since, until in one
                    if since < end_ns and until > begin_ns), default=0)  # fmt: skip


def op_of(line: str, offsets_ns: dict[str, int]) -> Op:
    op = Op(*json.loads(line))
    shift = offsets_ns.get(op.node, 0)
    return op if not shift else Op(*(getattr(op, name) for name in Op.__slots__[:-1]), stamp_ns=op.stamp_ns - shift)


def log_of(image: Path, offsets_ns: dict[str, int]) -> list[Record]:
    """Every block up to the last that is not empty."""
    found: list[Record] = []
    with open(image, "rb") as file:
        while (block := file.read(BLOCK)) and any(block):
            words = parse(block)
            if words is None:
                found.append(Record(0))
            else:
                seq, token, node, instance, ns, came_ns, value = words
                shift = offsets_ns.get(node, 0)
                found.append(Record(int(seq), int(token), node, instance, int(ns) - shift, int(came_ns) - shift, value))
    return found


def begun_of(seen: Iterable[Op | Record], offsets_ns: dict[str, int]) -> dict[str, int]:
    """When each instance was started that answered or wrote: its name says so, by its machine's clock."""
    found = {one.instance: one.node for one in seen if one.instance}
    return {instance: int(instance.rpartition("-")[2]) - offsets_ns.get(node, 0) for instance, node in found.items()}


def told_of(node: str, lines: Iterable[str], group: str, offset_ns: int) -> list[Told]:
    """What a guardian logged (at level debug) of the group's leases."""
    found = []
    for line in lines:
        if '"lease_told"' in line:
            row = json.loads(line)
            if row["group"] == group:
                found.append(Told(node, row["token"], row["now_ns"] - offset_ns, row["until_ns"] - offset_ns))
    return found
