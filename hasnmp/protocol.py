"""The control socket's protocol: JSON objects, one a line, over a Unix stream socket. Pure: values <-> text.

    server -> client, at connect   {"type": "snapshot", "number", "now_ns", "wall_ms", "tables": {table: {key: row}}}
    then                           {"type": "delta", "number", "now_ns", "wall_ms",
                                    "rows": {table: {key: row}}, "gone": {table: [key]}}
                                   at most one each 100 ms, and one each second even without a change, so that a
                                   reader knows the age of what it has
    at once, as they happen        {"type": "event", "event": row, "raised": row or null, "cleared": alarm key}
    to a reader that was too slow  another snapshot

    client -> server   {"type": "command", "id", "verb", "target", "to", "reason", "requester", "up", "message"}
                       verb 20 (SET), with "code": the snmp agent's own, of a SET that it refused; `message` says why
    answer             {"type": "reply", "id", "command": row}   accepted or refused; its row in `commands` goes on
    client -> server   {"type": "stage", "id", "part"}       a part of a file (zlib, then base64), for the command `apply` after it
    answer             {"type": "stage", "id", "size"}       characters so far
    client -> server   {"type": "why", "id", "group"}
    answer             {"type": "why", "id", "lines": [text]}
    to anything else   {"type": "error", "id": or null, "text"}

A row is an object with the fields of its dataclass in model.py; enumerations are their numbers, Kind is its name.
Fields that a reader does not know are ignored, fields that are absent take their default. A word of an enumeration that it
does not know (its writer is of a newer version) reads as `unknown` or `none`; where there is no such word, the row is left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import MISSING, fields
from enum import Enum
from functools import cache
from typing import Any, get_type_hints

from hasnmp.errors import Code, HasnmpError
from hasnmp.model import TABLES, AlarmRow, CommandRow, EventRow, Row, View

MAX_LINE = (
    1 << 14
)  # octets of one client line; longer ones end the connection (parsing a long one would hold the engine)


class ProtocolError(HasnmpError):
    """A line that is not of this protocol."""


class LaterWord(ProtocolError):
    """A row with a word that only a newer version knows, and nothing to stand for it."""


@cache
def _columns(cls: type) -> tuple[tuple[str, Callable[[Any], Any] | None, bool], ...]:
    hints = get_type_hints(cls)
    columns = []
    for f in fields(cls):
        hint = hints[f.name]
        convert: Callable[[Any], Any] | None = None
        if isinstance(hint, type) and issubclass(hint, Enum):
            convert = hint
        elif f.name == "code":
            convert = Code
        elif hint == tuple[str, ...]:
            convert = tuple
        columns.append((f.name, convert, f.default is MISSING and f.default_factory is MISSING))
    return tuple(columns)


def row_to_json(row: Row) -> dict[str, Any]:
    """A row as a JSON object (enumerations are int and str subclasses: json writes their values)."""
    kind: Any = type(row)
    return {name: getattr(row, name) for name, _, _ in _columns(kind)}


def row_from_json(cls: type, data: dict[str, Any]) -> Any:
    """Raises ProtocolError: a field is missing or has a value that is none of its enumeration's."""
    values = {}
    for name, convert, required in _columns(cls):
        if name in data:
            try:
                values[name] = convert(data[name]) if convert else data[name]
            except (ValueError, TypeError) as error:
                values[name] = _stand_in(convert, data[name], f"{cls.__name__}.{name}: {error}")
        elif required:
            raise ProtocolError(f"{cls.__name__}: {name} is missing")
    return cls(**values)


def _stand_in(words: Any, value: Any, fault: str) -> Any:
    """What stands for a word of a newer version. Raises LaterWord: nothing does. ProtocolError: it is no word at all."""
    if not isinstance(words, type) or not isinstance(value, str if issubclass(words, str) else int):
        raise ProtocolError(fault)
    members = getattr(words, "__members__", {})
    for name in ("UNKNOWN", "NONE", "INDETERMINATE", "FAILED"):
        if name in members:
            return members[name]
    raise LaterWord(fault)


def _rows(cls: type, rows: dict[str, Any]) -> dict[str, Any]:
    """Every row that this version can read. Raises ProtocolError: one is malformed."""
    read = {}
    for key, data in rows.items():
        with suppress(LaterWord):
            read[key] = row_from_json(cls, data)
    return read


def encode(message: dict[str, Any]) -> bytes:
    """One message as a line."""
    return json.dumps(message, separators=(",", ":"), default=list).encode() + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """Raises ProtocolError: not a JSON object with a "type"."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"not JSON: {error}") from None
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise ProtocolError("not an object with a type")
    return message


def snapshot(view: View) -> dict[str, Any]:
    return {"type": "snapshot", "number": view.number, "now_ns": view.now_ns, "wall_ms": view.wall_ms,
            "tables": {t: {k: row_to_json(r) for k, r in rows.items()} for t, rows in view.tables.items()}}  # fmt: skip


def event(row: EventRow, raised: AlarmRow | None, cleared: str) -> dict[str, Any]:
    return {"type": "event", "event": row_to_json(row), "raised": row_to_json(raised) if raised else None,
            "cleared": cleared}  # fmt: skip


class Mirror:
    """A reader's copy of a node's view, kept up by the messages that arrive."""

    def __init__(self) -> None:
        self.view = View()
        self.complete = False  # has a snapshot come?

    def apply(self, message: dict[str, Any]) -> EventRow | CommandRow | None:
        """Take one message in. Returns the event of an `event`, the row of a `reply`, else None.

        Raises ProtocolError: the message is malformed; the view is then as before.
        """
        try:
            match message["type"]:
                case "snapshot":
                    tables = {t: _rows(cls, message["tables"].get(t, {})) for t, cls in TABLES.items()}
                    self.view = View(message["now_ns"], message["wall_ms"], message["number"], tables)
                    self.complete = True
                case "delta":
                    new = [(t, k, r) for t, rows in message["rows"].items() if t in TABLES
                           for k, r in _rows(TABLES[t], rows).items()]  # fmt: skip
                    for table, key, row in new:
                        self.view.tables[table][key] = row
                    for table, keys in message["gone"].items():
                        for key in keys:
                            self.view.tables.get(table, {}).pop(key, None)
                    self.view.now_ns, self.view.wall_ms = message["now_ns"], message["wall_ms"]
                    self.view.number = message["number"]
                case "event":
                    happened: EventRow = row_from_json(EventRow, message["event"])
                    self.view.tables["events"][str(happened.id)] = happened
                    if message["raised"]:
                        alarm: AlarmRow = row_from_json(AlarmRow, message["raised"])
                        self.view.tables["alarms"][alarm.key] = alarm
                    self.view.tables["alarms"].pop(message["cleared"], None)
                    return happened
                case "reply":
                    answer: CommandRow = row_from_json(CommandRow, message["command"])
                    return answer
        except LaterWord:
            return None  # an event or a command that this version has no word for
        except (KeyError, AttributeError, TypeError) as error:
            raise ProtocolError(f"malformed {message.get('type')}: {error!r}") from None
        return None
