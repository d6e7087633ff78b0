"""The leases that this node holds now, where its other processes can read them: memory that the guardian shares by fork.

The picture that the engine gives its clients is up to a second old in what changes all the time, and a lease lasts little
longer. Who is asked "do you hold it now?" must know it now, also while the engine hangs: so the guardian, which ends a group
when its lease does, writes each lease down as it takes it, and wipes it out before anybody else may have it.

A record is one copy of 56 octets with a checksum: a reader that meets one half written reads again. Nothing is waited for.
"""

from __future__ import annotations

import mmap
import struct
import zlib

SLOTS = 256  # a configuration has at most 64 groups; a reload may bring others before those are given up
_RECORD = struct.Struct("=QQ32sL")  # token, until_ns (CLOCK_BOOTTIME), the group's name, CRC-32 of these
_BODY = struct.Struct("=QQ32s")
_TRIES = 8


class LeaseBoard:
    """One writer, the guardian; any number of readers, forked from it."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, SLOTS * _RECORD.size)
        self._slots: dict[str, int] = {}

    def show(self, group: str, token: int, until_ns: int) -> None:
        """Write down a lease; until_ns 0: there is none any more. One that finds no room is not shown."""
        slot = self._slots.get(group)
        if slot is None:
            if not until_ns:
                return
            used = set(self._slots.values())
            slot = next((n for n in range(SLOTS) if n not in used), None)
            if slot is None:
                return
            self._slots[group] = slot
        if not until_ns:
            del self._slots[group]
        body = _BODY.pack(token, until_ns, group.encode() if until_ns else b"")
        at = slot * _RECORD.size
        self._memory[at : at + _RECORD.size] = body + struct.pack("=L", zlib.crc32(body))

    def read(self, group: str) -> tuple[int, int]:
        """(token, until_ns) of the lease that this node holds of a group; (0, 0) for none. until_ns may have passed."""
        name = group.encode().ljust(32, b"\0")
        for _ in range(_TRIES):
            torn = False
            everything = self._memory[:]
            found = everything.find(name)
            while found >= 0:
                at = found - 16
                if at >= 0 and at % _RECORD.size == 0:
                    record = everything[at : at + _RECORD.size]
                    token, until_ns, _, check = _RECORD.unpack(record)
                    if zlib.crc32(record[: _BODY.size]) == check:
                        return token, until_ns
                    torn = True
                found = everything.find(name, found + 1)
            if not torn:
                return 0, 0
        return 0, 0
