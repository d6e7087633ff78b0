"""From HASNMP-MIB's cells back to rows of model.py: what `hasnmp --host` shows is what `hasnmp` shows on the node.

Most columns bear their field's name (haNodeLastHeard: last_heard_ns); the others are in _FIELDS. sysUpTime is this view's
clock, so that a TimeStamp is a moment of it.
"""

from __future__ import annotations

import re
import time
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any, get_type_hints

from hasnmp import protocol
from hasnmp.model import TABLES, View
from hasnmp.snmp.ha_objects import KIND_NUMBERS, SCALARS
from hasnmp.snmp.ha_objects import TABLES as MIB_TABLES
from hasnmp.snmp.objects import Oid, Scalar, Syntax, TableDef, Value
from hasnmp.snmp.oids import ROOT

TICK_NS = 10_000_000
# What is called otherwise in the MIB. A name that begins with = is made of the value, below.
_FIELDS = {
    "haClusterName": "cluster", "haNodeName": "node", "haCommandResult": "code", "haCommandAskedDate": "asked_wall_ms", "haCommandEndedDate": "ended_wall_ms",
    "haNodeConfigDigest": "digest", "haGroupLeaseRemaining": "=lease_until_ns", "haGroupHomeNode": "home",
    "haGroupInhibit": "inhibited", "haGroupFreeze": "frozen", "haGroupExcludedNodes": "excluded",
    "haGroupDataAge": "=data_ns", "haServiceAdminState": "admin", "haServiceCheckTime": "check_us",
    "haServiceDataAge": "=data_ns", "haFenceLastTime": "last_ns", "haEventTime": "ns", "haEventDate": "wall_ms",
    "haEventAlarmKey": "alarm", "haEventText": "message", "haAlarmSinceDate": "since_wall_ms", "haAlarmText": "message",
    "haInhibit": "inhibited", "haConfigKillTime": "kill_ms", "haConfigLeaseTime": "lease_ms",
    "haEngineStarted": "started_ns", "haStatSince": "since_wall_ms",
}  # fmt: skip
# Where the TimeStamp says "before the agent's start", the date still knows.
_DATES = {
    "haNodeLastChangeDate": "last_change_ns", "haLinkLastChangeDate": "last_change_ns",
    "haGroupLastChangeDate": "last_change_ns", "haServiceLastChangeDate": "last_change_ns",
    "haArbiterLastChangeDate": "last_change_ns", "haFenceLastTimeDate": "last_ns", "haFenceLastTestDate": "last_test_ns",
    "haLastRoleChangeDate": "last_role_change_ns", "haConfigLoadedDate": "loaded_ns",
}  # fmt: skip
_INDEX = {
    "nodes": ("name",), "links": ("node", "link"), "groups": ("name",), "services": ("name",), "arbiters": ("type",),
    "fences": ("node", "level"), "events": ("id",), "alarms": ("event_id",), "commands": ("id",),
}  # fmt: skip
_KINDS = {number: kind for kind, number in KIND_NUMBERS.items()}
_SCALAR_PREFIXES = {"system": "ha", "config": "haConfig", "statistics": "haStat"}


def _snake(text: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", text).lower()


def _field(column: str, prefix: str, known: dict[str, Any]) -> str:
    """The row's field that a column shows; "" for none."""
    if column in _FIELDS:
        return _FIELDS[column]
    name = _snake(column.removeprefix(prefix))
    return next((full for full in (name, f"{name}_ns", f"{name}_ms", f"{name}_us") if full in known), "")


def subtrees(tables: tuple[str, ...]) -> list[Oid]:
    """What to walk for these tables of a view."""
    found = [table.entry_oid for table in MIB_TABLES if table.view_tables[0] in tables]
    if "system" in tables:
        found += [(*ROOT, 1, 1), (*ROOT, 1, 2, 2)]
    return found + [(*ROOT, 1, part) for name, part in (("config", 9), ("statistics", 10)) if name in tables]


def date_ms(octets: bytes) -> int:
    """DateAndTime (RFC 2579) as Unix milliseconds; 0 for "never"."""
    if len(octets) < 8 or not octets[2]:
        return 0
    try:
        year, (month, day, hour, minute, second, tenth) = int.from_bytes(octets[:2], "big"), octets[2:8]
        moment = datetime(year, month, day, hour, minute, min(second, 59), tenth * 100_000, UTC)
    except ValueError:
        return 0
    return int(moment.timestamp() * 1000)


class Rows:
    """Makes rows of cells. up_ticks: sysUpTime when they were read."""

    def __init__(self, cells: dict[Oid, Value], up_ticks: int) -> None:
        self.view = View(up_ticks * TICK_NS, time.time_ns() // 1_000_000, 0)
        for table in MIB_TABLES:
            self._table(table, cells)
        for name, prefix in _SCALAR_PREFIXES.items():
            row = self._scalars(name, prefix, cells)
            if row:
                self._add(name, "", row)

    def _add(self, table: str, key: str, values: dict[str, Any]) -> None:
        try:
            self.view.tables[table][key] = protocol.row_from_json(TABLES[table], values)
        except protocol.ProtocolError:
            pass  # a newer agent's word that this version has no word for, or a row that went while it was read

    def _table(self, table: TableDef, cells: dict[Oid, Value]) -> None:
        view_table = table.view_tables[0]
        prefix = table.name.removesuffix("Table")
        length = len(table.entry_oid)
        columns = {column.number: column for column in table.columns}
        found: dict[Oid, dict[str, tuple[Syntax, Value]]] = {}
        for oid, value in cells.items():
            if oid[:length] == table.entry_oid and oid[length] in columns:
                column = columns[oid[length]]
                found.setdefault(oid[length + 1 :], {})[column.name] = (column.syntax, value)
        for index, row in found.items():
            values = dict(zip(_INDEX[view_table], _names(index, table), strict=False))
            values |= self._values(view_table, prefix, row)
            key = values.get("key") or "/".join(str(values[name]) for name in _INDEX[view_table] if name in values)
            self._add(view_table, str(key), values)

    def _scalars(self, table: str, prefix: str, cells: dict[Oid, Value]) -> dict[str, Any]:
        row = {s.name: (s.syntax, cells[(*s.oid, 0)]) for s in _scalars(table) if (*s.oid, 0) in cells}
        return self._values(table, prefix, row)

    def _values(self, table: str, prefix: str, row: dict[str, tuple[Syntax, Value]]) -> dict[str, Any]:
        hints = get_type_hints(TABLES[table])
        known = {f.name: hints[f.name] for f in fields(TABLES[table])}
        values: dict[str, Any] = {}
        for column, (syntax, value) in row.items():
            name = _field(column, prefix, known)
            if column.endswith("Address") and f"{column}Type" in row:
                kind = row[f"{column}Type"][1]
                values["address"] = _address(kind, value)
            elif name == "=lease_until_ns":
                values["lease_until_ns"] = self.view.now_ns + int(value) * 1_000_000 if value else 0  # type: ignore[arg-type]
            elif name == "=data_ns":
                values["data_ns"] = self._before(int(value))  # type: ignore[arg-type]
            elif name:
                values[name] = self._value(name, known[name], syntax, value)
        for column, name in _DATES.items():
            if column in row and not values.get(name):
                values[name] = self._at(date_ms(row[column][1]))  # type: ignore[arg-type]
        return values

    def _before(self, age_ms: int) -> int:
        return 0 if age_ms >= 2**32 - 1 else self.view.now_ns - age_ms * 1_000_000

    def _at(self, wall_ms: int) -> int:
        return self.view.now_ns - (self.view.wall_ms - wall_ms) * 1_000_000 if wall_ms else 0

    def _value(self, name: str, hint: Any, syntax: Syntax, value: Value) -> Any:
        if name == "kind":
            return _KINDS.get(value, str(value)) if isinstance(value, int) else ""
        if isinstance(value, bytes):
            if name.endswith("_ms"):
                return date_ms(value)
            if name.endswith("_ns"):
                return self._at(date_ms(value))
            text = value.decode(errors="replace")
            return [part for part in text.split(",") if part] if hint == tuple[str, ...] else text
        if hint is bool:
            return value == 1
        return int(value) * TICK_NS if syntax is Syntax.TIMETICKS else value  # type: ignore[arg-type]


def _scalars(table: str) -> list[Scalar]:
    return [scalar for scalar in SCALARS if table in scalar.view_tables or scalar.name == "haEngineState"]


def _names(index: Oid, table: TableDef) -> list[str | int]:
    """The values of an index: text by its length and octets, numbers as they are."""
    found: list[str | int] = []
    for part in table.index:
        if part.syntax is Syntax.OCTETS:
            size = index[0] if index else 0
            found.append(bytes(number & 0xFF for number in index[1 : size + 1]).decode(errors="replace"))
            index = index[size + 1 :]
        else:
            found.append(index[0] if index else 0)
            index = index[1:]
    return found


def _address(kind: Value, octets: Value) -> str:
    """InetAddressType and InetAddress (RFC 4001) as text."""
    import ipaddress

    if not isinstance(octets, bytes) or len(octets) not in (4, 16):
        return ""
    return str(ipaddress.ip_address(octets))
