"""The picture that every client of the control socket has: rows compared with what was last sent, and encoded, once for all."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from operator import attrgetter
from typing import Any

from hasnmp import protocol
from hasnmp.model import TABLES, Row, View

# The fields that change all the time and mean nothing by themselves: they never make a delta at once.
VOLATILE = frozenset({
    "lease_until_ns", "last_heard_ns", "last_check_ns", "last_ok_ns", "data_ns", "check_us", "checks", "latency_us",
    "round_trip_us", "sent", "received", "lost", "heartbeats_sent", "heartbeats_received", "heartbeats_late",
    "worst_lateness_us", "rejected_malformed", "rejected_foreign", "rejected_signature", "rejected_replayed",
    "rejected_reordered", "rejected_stale", "rejected_version",
})  # fmt: skip


def _stable(cls: type) -> Callable[[Any], Any]:
    return attrgetter(*(f.name for f in fields(cls) if f.name not in VOLATILE))


STABLE = {table: _stable(cls) for table, cls in TABLES.items()}


class Picture:
    """What every client that is up to date has: the rows as last sent, each with its octets."""

    def __init__(self) -> None:
        self.number = 0
        self.now_ns = 0
        self.wall_ms = 0
        self._rows: dict[str, dict[str, tuple[Row, bytes]]] = {table: {} for table in TABLES}
        self._snapshot = b""

    def put(self, table: str, key: str, row: Row) -> bytes:
        """Take a row in. Returns it as ``"key":{...}``."""
        text = _encode(key) + b":" + _encode(protocol.row_to_json(row))
        self._rows[table][key] = (row, text)
        self._snapshot = b""
        return text

    def drop(self, table: str, key: str) -> None:
        if self._rows[table].pop(key, None) is not None:
            self._snapshot = b""

    def delta(self, view: View, volatile: bool, empty: bool) -> bytes:
        """Take a view in. volatile: also the rows in which nothing but times and counters changed.

        Returns: the delta's line; b"" if there is nothing to say, unless an `empty` delta is due.
        """
        rows: list[bytes] = []
        gone: dict[str, list[str]] = {}
        for table, new in view.tables.items():
            old = self._rows[table]
            stable = STABLE[table]
            changed = []
            for key, row in new.items():
                known = old.get(key)
                if known is not None and (known[0] is row or known[0] == row):
                    continue
                if known is None or volatile or stable(known[0]) != stable(row):
                    changed.append(self.put(table, key, row))
            if changed:
                rows.append(_encode(table) + b":{" + b",".join(changed) + b"}")
            if len(old) > len(new) or any(key not in new for key in old):
                gone[table] = [key for key in old if key not in new]
                for key in gone[table]:
                    self.drop(table, key)
        if not (rows or gone or empty):
            return b""
        self.number += 1
        self.now_ns, self.wall_ms = view.now_ns, view.wall_ms
        self._snapshot = b""
        return self._head("delta") + b',"rows":{' + b",".join(rows) + b'},"gone":' + _encode(gone) + b"}\n"

    def snapshot(self) -> bytes:
        """Everything, as one line: what protocol.snapshot gives, from octets that are there already."""
        if not self._snapshot:
            tables = b",".join(
                _encode(table) + b":{" + b",".join(text for _, text in rows.values()) + b"}"
                for table, rows in self._rows.items()
            )
            self._snapshot = self._head("snapshot") + b',"tables":{' + tables + b"}}\n"
        return self._snapshot

    def _head(self, kind: str) -> bytes:
        return b'{"type":"%b","number":%d,"now_ns":%d,"wall_ms":%d' % (
            kind.encode(), self.number, self.now_ns, self.wall_ms
        )  # fmt: skip


def _encode(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), default=list).encode()
