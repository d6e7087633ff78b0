"""What a managed object is: its name, OID, syntax, access, and how its value is read. ha_objects.py lists HASNMP-MIB's.

    Scalar, Column, Index, TableDef
    Reader     what a value is read from: the newest view, and the agent's own few facts

A `read` returns an int (every number and enumeration), bytes (every string) or a tuple (an OID); None = no such instance
now. A value changes only when a row of the tables named in `view_tables` does, or when Reader.fresh does - or, where
`volatile` is set, at any time, so that it must be read at each request.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum
from typing import Any

from hasnmp.model import View

Oid = tuple[int, ...]
Value = int | bytes | Oid


class Syntax(IntEnum):
    """The BER tag of each type (RFC 2578 section 7.1, RFC 3417 section 8); Gauge32 is UNSIGNED32."""

    INTEGER32 = 0x02
    OCTETS = 0x04
    OID = 0x06
    IPADDRESS = 0x40
    COUNTER32 = 0x41
    UNSIGNED32 = 0x42
    TIMETICKS = 0x43
    COUNTER64 = 0x46


@dataclass(frozen=True, slots=True)
class Reader:
    """What objects are read from. now_ns: CLOCK_BOOTTIME now; boot_ns: the same clock when sysUpTime was 0.

    fresh False = the engine is not there to be believed (its socket is gone): every state then reads unknown, never
    the last good one. spin_lock: haActionSpinLock, which the agent keeps. events_keep: the configuration's events.keep.
    node: whose agent this is.
    """

    view: View
    boot_ns: int
    now_ns: int
    fresh: bool = True
    spin_lock: int = 0
    events_keep: int = 1000
    node: str = ""

    def timestamp(self, ns: int) -> int:
        """sysUpTime when it was ns; 0 for "never" and for what was before the agent's start (RFC 2579 TimeStamp)."""
        return (max(0, ns - self.boot_ns) // 10_000_000) % 2**32 if ns else 0

    def age_ms(self, ns: int) -> int:
        """Milliseconds since ns; the greatest number there is (about 49 days) for "never"."""
        return min(max(0, self.now_ns - ns) // 1_000_000, 2**32 - 1) if ns else 2**32 - 1

    def date(self, ns: int) -> bytes:
        """ns of this machine's clock as DateAndTime, by the wall clock that the view came with."""
        return date_and_time(self.view.wall_ms + (ns - self.view.now_ns) // 1_000_000 if ns else 0)


def date_and_time(wall_ms: int) -> bytes:
    """Unix milliseconds as DateAndTime in UTC (RFC 2579), 11 octets; 0 = never = eight zero octets, as elsewhere."""
    if wall_ms <= 0:
        return bytes(8)
    t = datetime.fromtimestamp(wall_ms / 1000, UTC)
    return (t.year.to_bytes(2, "big")
            + bytes((t.month, t.day, t.hour, t.minute, t.second, t.microsecond // 100_000)) + b"+\0\0")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Scalar:
    """oid is without the instance's .0. For what a write may carry see `allowed` (numbers) and `size` (octets)."""

    name: str
    oid: Oid
    syntax: Syntax
    access: str  # as the MIB spells it: "read-only" | "read-write"
    read: Callable[[Reader], Value | None]
    view_tables: tuple[str, ...]
    volatile: bool = False
    allowed: tuple[int, ...] | range = ()
    size: int = 0

    @property
    def write(self) -> bool:
        return self.access == "read-write"


@dataclass(frozen=True, slots=True)
class Column:
    """One column; `number` is its sub-identifier below the entry. field: that of the row which alone can change a value;
    "" = none, None = any."""

    name: str
    number: int
    syntax: Syntax
    access: str
    read: Callable[[Reader, Any], Value | None]
    volatile: bool = False
    allowed: tuple[int, ...] | range = ()
    size: int = 0
    field: str | None = None

    @property
    def write(self) -> bool:
        return self.access == "read-write"


@dataclass(frozen=True, slots=True)
class Index:
    """A not-accessible column: part of every instance's OID and nothing that is served."""

    name: str
    number: int
    syntax: Syntax


@dataclass(frozen=True, slots=True)
class TableDef:
    """rows: every (instance sub-identifiers, row), sorted by the former. The OID of a cell: entry_oid, number, *index.
    key: the instance sub-identifiers of a row, where the rows are those of the one view table; None: who knows."""

    name: str
    entry_oid: Oid
    index: tuple[Index, ...]
    rows: Callable[[View], Iterable[tuple[Oid, Any]]]
    columns: tuple[Column, ...]
    view_tables: tuple[str, ...]
    key: Callable[[Any], Oid] | None = None


def text_index(text: str) -> Oid:
    """A string as an index: its length, then its octets (RFC 2578 section 7.7; not IMPLIED, see the MIB)."""
    octets = text.encode()
    return (len(octets), *octets)


def inet_address(text: str) -> tuple[int, bytes]:
    """InetAddressType and InetAddress (RFC 4001) of an address as text, with or without a port; (0, b"") if it is none."""
    host = text[1:].partition("]")[0] if text.startswith("[") else text
    host = host.partition(":")[0] if host.count(":") == 1 else host
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return 0, b""
    return (1 if address.version == 4 else 2), address.packed
