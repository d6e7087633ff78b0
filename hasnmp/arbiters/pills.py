"""The poison pill on the lease disk: what one node writes to end another that it can't reach in any other way.

Each victim has a row of its own among those of the groups (`+pills/VICTIM`), with a place for each node as in every row:

    the place of another node    that node's mailbox for the victim: its newest pill. Written by that node only
    the victim's own place       its acknowledgements, and which holder (design.md: a start of the guardian) it is now.
                                 Written by the victim only, on its guardian's word

A pill names the holder that it is meant for, as the victim's own place gave it: a victim that was started anew meanwhile
ends nothing, it only says that nothing of that holder is left. It has ended when an acknowledgement bears its number and
its holder. As with slots, a payload is one sector, and what was not written as a pill of this disk, this cluster and
these two nodes is none.
"""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass, field
from enum import IntEnum

from hasnmp.arbiters.disk import LeaseDisk
from hasnmp.errors import WireError
from hasnmp.wire import SLOT_PAYLOAD, uuid_from_bytes, uuid_to_bytes

ROW = "+pills/"  # no group can have such a name
PILL = "pill"  # the agent's name in a fence level
VERSION = 1

_PILL = struct.Struct("!8sBBH16sQ8s")  # magic, version, kind, 0, uuid of the disk, number, holder
_ACKS = struct.Struct("!8sBBH16sQ8sL")  # magic, version, number of entries, 0, uuid, sequence, holder, watchdog_ms
_ENTRY = struct.Struct("!BQ8s")  # place of the attacker, number, holder
_PILL_MAGIC, _ACKS_MAGIC = b"HAsnPILL", b"HAsnACKS"
_ROOM = SLOT_PAYLOAD - 4  # the rest is the CRC-32


class PillKind(IntEnum):
    END = 1  # end everything
    TEST = 2  # only acknowledge it
    NONE = 3  # withdrawn


@dataclass(frozen=True, slots=True)
class Pill:
    """number: 64 random bits, never 0: an acknowledgement is of this one only. holder: 16 hex digits."""

    attacker: str
    victim: str
    kind: PillKind
    number: int
    holder: str


@dataclass(frozen=True, slots=True)
class Acks:
    """What a victim says. acks: attacker -> (number, holder), the newest of each. watchdog_ms: armed with it, 0 = not."""

    victim: str
    holder: str
    seq: int = 0
    watchdog_ms: int = 0
    acks: dict[str, tuple[int, str]] = field(default_factory=dict)

    def of(self, pill: Pill) -> bool:
        """Does it acknowledge that very pill?"""
        return self.acks.get(pill.attacker) == (pill.number, pill.holder)


def rows(nodes: tuple[str, ...]) -> tuple[str, ...]:
    """The rows that a lease disk needs for pills: one for each node."""
    return tuple(ROW + node for node in nodes)


def new_number() -> int:
    return int.from_bytes(os.urandom(8), "big") or 1


def _names(*names: str) -> bytes:
    return b"".join(bytes((len(name.encode()),)) + name.encode() for name in names)


def _sealed(octets: bytes) -> bytes:
    """Raises WireError: oversize."""
    if len(octets) > _ROOM:
        raise WireError("oversize", f"{len(octets)} octets; the names of cluster and nodes must be shorter")
    octets = octets.ljust(_ROOM, b"\0")
    return octets + struct.pack("!L", zlib.crc32(octets))


def _opened(octets: bytes, magic: bytes) -> bytes:
    """Raises WireError: malformed (also: this place was never used), crc."""
    if len(octets) != SLOT_PAYLOAD or octets[: len(magic)] != magic:
        raise WireError("malformed", "nothing of this kind was written here")
    if zlib.crc32(octets[:_ROOM]) != struct.unpack_from("!L", octets, _ROOM)[0]:
        raise WireError("crc", "its checksum is wrong")
    if octets[len(magic)] != VERSION:
        raise WireError("version", f"version {octets[len(magic)]}; this one reads {VERSION}")
    return octets[:_ROOM]


def pill_to_bytes(pill: Pill, uuid: str, cluster: str) -> bytes:
    """Raises WireError: oversize."""
    head = _PILL.pack(_PILL_MAGIC, VERSION, pill.kind, 0, uuid_to_bytes(uuid), pill.number, bytes.fromhex(pill.holder))
    return _sealed(head + _names(cluster, pill.attacker, pill.victim))


def pill_from_bytes(octets: bytes, uuid: str, cluster: str, attacker: str, victim: str) -> Pill:
    """Raises WireError: malformed, crc, version, foreign uuid, wrong place."""
    octets = _opened(octets, _PILL_MAGIC)
    _, _, kind, _, disk, number, holder = _PILL.unpack_from(octets)
    if disk != uuid_to_bytes(uuid):
        raise WireError("foreign uuid", f"it belongs to the lease disk {uuid_from_bytes(disk)}")
    names = _names(cluster, attacker, victim)
    if octets[_PILL.size : _PILL.size + len(names)] != names:
        raise WireError("wrong place", f"it is no pill of {attacker} for {victim}")
    if kind not in tuple(PillKind) or not number:
        raise WireError("malformed", "a kind or a number that can't be")
    return Pill(attacker, victim, PillKind(kind), number, holder.hex())


def acks_to_bytes(acks: Acks, uuid: str, cluster: str, nodes: tuple[str, ...]) -> bytes:
    """nodes: in the order of their places, as the disk's header has them. Raises WireError: oversize."""
    entries = [(nodes.index(node), number, holder) for node, (number, holder) in acks.acks.items() if node in nodes]
    octets = _ACKS.pack(
        _ACKS_MAGIC, VERSION, len(entries), 0, uuid_to_bytes(uuid), acks.seq, bytes.fromhex(acks.holder), acks.watchdog_ms
    )  # fmt: skip
    octets += b"".join(_ENTRY.pack(place, number, bytes.fromhex(holder)) for place, number, holder in entries)
    return _sealed(octets + _names(cluster, acks.victim))


def acks_from_bytes(octets: bytes, uuid: str, cluster: str, nodes: tuple[str, ...], victim: str) -> Acks:
    """Raises WireError: malformed, crc, version, foreign uuid, wrong place."""
    octets = _opened(octets, _ACKS_MAGIC)
    _, _, count, _, disk, seq, holder, watchdog_ms = _ACKS.unpack_from(octets)
    if disk != uuid_to_bytes(uuid):
        raise WireError("foreign uuid", f"it belongs to the lease disk {uuid_from_bytes(disk)}")
    at, names = _ACKS.size + count * _ENTRY.size, _names(cluster, victim)
    if octets[at : at + len(names)] != names:
        raise WireError("wrong place", f"they are no acknowledgements of {victim}")
    found: dict[str, tuple[int, str]] = {}
    for index in range(count):
        place, number, of = _ENTRY.unpack_from(octets, _ACKS.size + index * _ENTRY.size)
        if place < len(nodes):
            found[nodes[place]] = number, of.hex()
    return Acks(victim, holder.hex(), seq, watchdog_ms, found)


class PillRow:
    """One victim's row, as one process uses it. All calls raise OSError and WireError; the next one opens the disk anew."""

    def __init__(self, path: str, cluster: str, victim: str, flags: int = os.O_RDWR) -> None:
        self.disk, self.cluster, self.victim = LeaseDisk(path, cluster, flags), cluster, victim

    def read(self) -> tuple[dict[str, Pill], Acks | str]:
        """The pills that were written for the victim, by attacker; and what it says itself, or why that can't be used."""
        header, blocks = self.disk.read_row(ROW + self.victim)
        pills: dict[str, Pill] = {}
        acks: Acks | str = "it has no place on the lease disk"
        for node, octets in zip(header.nodes, blocks, strict=True):
            try:
                if isinstance(octets, OSError):
                    raise WireError("unreadable", str(octets.strerror))
                payload = octets[:SLOT_PAYLOAD]
                if node == self.victim:
                    acks = acks_from_bytes(payload, header.uuid, self.cluster, header.nodes, node)
                else:
                    pills[node] = pill_from_bytes(payload, header.uuid, self.cluster, node, self.victim)
            except WireError as error:
                if node == self.victim:
                    acks = str(error)
        return pills, acks

    def write_pill(self, pill: Pill) -> None:
        """By the attacker only. Durable when it returns."""
        self.disk.write_place(
            ROW + self.victim, pill.attacker, lambda header: pill_to_bytes(pill, header.uuid, self.cluster)
        )

    def write_acks(self, acks: Acks) -> None:
        """By the victim only. Durable when it returns."""
        self.disk.write_place(
            ROW + self.victim, self.victim, lambda header: acks_to_bytes(acks, header.uuid, self.cluster, header.nodes)
        )

    def close(self) -> None:
        self.disk.close()
