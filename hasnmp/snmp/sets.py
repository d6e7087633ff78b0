"""What a SET of HASNMP-MIB means: its assignments are tested as a whole, then become commands for the engine.

Nothing here acts and nothing is stored: noError says that the commands were handed over, haCommandTable and the
notifications say what became of them. The tests against the state (an unknown name, a node that is down) are a
courtesy that gives an error at once; the engine judges every command again, by what is true then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from hasnmp.model import GroupRow, NodeRow, NodeState, Verb, View
from hasnmp.snmp.error_status import ErrorStatus
from hasnmp.snmp.ha_objects import TABLES
from hasnmp.snmp.objects import Column, Oid, Reader, Scalar, Syntax, TableDef, Value


class SetError(Exception):
    """Why a SET is refused whole. position: of the variable binding, from 1, as error-index counts."""

    def __init__(self, position: int, status: ErrorStatus, text: str) -> None:
        super().__init__(f"variable {position}: {status.name}: {text}")
        self.position, self.status, self.text = position, status, text


@dataclass(frozen=True, slots=True)
class Assignment:
    """One variable binding of a SET. index: the sub-identifiers after the object's OID; (0,) for a scalar."""

    target: Scalar | Column
    index: Oid
    syntax: int  # the BER tag that came
    value: Value


@dataclass(frozen=True, slots=True)
class Plan:
    """Commands as in protocol.py without type, id, requester and address: the agent adds these and sends them in order."""

    commands: list[dict[str, Any]] = field(default_factory=list)
    spin_lock: int = 0  # haActionSpinLock from now on
    positions: list[int] = field(default_factory=list)  # of the variable binding that each command comes from


_TABLE_OF = {column.name: table for table in TABLES for column in table.columns}


class _Rows:
    """The rows of the tables by their index, listed once for a whole SET: it may name hundreds of them."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._found: dict[str, dict[Oid, Any]] = {}

    def get(self, table: TableDef, index: Oid) -> Any | None:
        if table.name not in self._found:
            self._found[table.name] = dict(table.rows(self._view))
        return self._found[table.name].get(index)

    def has(self, a: Assignment) -> bool:
        if isinstance(a.target, Scalar):
            return a.index == (0,)
        return self.get(_TABLE_OF[a.target.name], a.index) is not None


_NODE_VERBS = (Verb.RECOVER, Verb.STANDBY, Verb.ONLINE)  # haActionTarget names a node for these, else a group
_MOVES = (Verb.FAILOVER, Verb.FORCE_FAILOVER)
_NO_ACTION = 1  # of every enumeration that gives a command
_REPORT_UP = 2


def plan(reader: Reader, assignments: list[Assignment]) -> Plan:
    """Test all assignments, then give the commands that carry them out: all or nothing.

    An action, its target and its destination may stand in any order; haActionReason goes with every command of the SET.
    Raises SetError: the first assignment, in the order of RFC 3416 section 4.2.5, that can't be done.
    """
    rows = _Rows(reader.view)
    for position, assignment in enumerate(assignments, 1):
        test_form(position, assignment, partial(rows.has, assignment))
    return _Set(reader, assignments, rows).plan()


def test_form(position: int, a: Assignment, exists: Callable[[], bool]) -> None:
    """What can be said of one assignment alone, in the RFC's order: (2), (3), (4), (6), (7). exists: is its row there?"""
    t = a.target
    if not t.write:
        raise SetError(position, ErrorStatus.NOT_WRITABLE, f"{t.name} is {t.access}")
    if a.syntax != t.syntax:
        raise SetError(position, ErrorStatus.WRONG_TYPE, f"{t.name} takes {t.syntax.name}")
    if t.syntax is Syntax.OCTETS:
        if not isinstance(a.value, bytes):
            raise SetError(position, ErrorStatus.WRONG_TYPE, f"{t.name} takes octets")
        if len(a.value) > t.size:
            raise SetError(position, ErrorStatus.WRONG_LENGTH, f"{t.name}: {len(a.value)} octets; at most {t.size}")
        try:
            text = a.value.decode()
        except UnicodeDecodeError:
            raise SetError(position, ErrorStatus.WRONG_VALUE, f"{t.name}: not UTF-8 (SnmpAdminString)") from None
        # Control characters would let a requester write lines of their own into logs and terminals.
        if not text.isprintable():
            raise SetError(position, ErrorStatus.WRONG_VALUE, f"{t.name}: has control characters")
    elif a.value not in t.allowed:
        raise SetError(position, ErrorStatus.WRONG_VALUE, f"{t.name}: {a.value!r} is none of its values")
    if not exists():
        raise SetError(position, ErrorStatus.NO_CREATION, f"{t.name} has no such instance")


class _Set:
    """One SET whose assignments are each well formed; now how they go together, and with the state."""

    def __init__(self, reader: Reader, assignments: list[Assignment], rows: _Rows) -> None:
        self.reader = reader
        self.rows = rows
        self.at: dict[tuple[str, Oid], tuple[int, Value]] = {}
        self.commands: list[tuple[int, dict[str, Any]]] = []  # (position of what caused it, command)
        for position, a in enumerate(assignments, 1):
            if (a.target.name, a.index) in self.at:
                raise SetError(position, ErrorStatus.INCONSISTENT_VALUE, f"{a.target.name} stands twice")
            self.at[a.target.name, a.index] = (position, a.value)

    def plan(self) -> Plan:
        spin_lock = self._spin_lock()
        self._inhibit()
        self._action()
        if self.at.get(("haConfigAction", (0,)), (0, _NO_ACTION))[1] != _NO_ACTION:
            self._give(self.at["haConfigAction", (0,)][0], Verb.RELOAD, "")
        for (name, index), (position, value) in self.at.items():
            if name in _TABLE_OF:
                self._cell(name, index, position, value, self.rows.get(_TABLE_OF[name], index))
        position, reason = self._text("haActionReason")
        if reason and not self.commands:
            raise SetError(
                position, ErrorStatus.INCONSISTENT_VALUE, "haActionReason without a command that it explains"
            )
        if self.commands and not self.reader.fresh:
            raise SetError(
                min(self.commands)[0], ErrorStatus.RESOURCE_UNAVAILABLE, "no engine is there to take a command"
            )
        self.commands.sort(key=lambda pair: pair[0])
        commands = [{**command, "reason": reason} for _, command in self.commands]
        return Plan(commands, spin_lock, [position for position, _ in self.commands])

    def _give(self, position: int, verb: Verb, target: str, to: str = "", **more: bool | str) -> None:
        self.commands.append((position, {"verb": int(verb), "target": target, "to": to, **more}))

    def _text(self, name: str, index: Oid = (0,)) -> tuple[int, str]:
        position, value = self.at.get((name, index), (0, b""))
        assert isinstance(value, bytes)  # test_form saw to it
        return position, value.decode()

    def _spin_lock(self) -> int:
        """TestAndIncr (RFC 2579 section 2): only the value that it has now may be written; then it counts on by one."""
        now = self.reader.spin_lock
        position, value = self.at.get(("haActionSpinLock", (0,)), (0, None))
        if value is None:
            return now
        if value != now:
            raise SetError(position, ErrorStatus.INCONSISTENT_VALUE, f"haActionSpinLock is {now} now: read it again")
        return 0 if now == 2**31 - 1 else now + 1

    def _inhibit(self) -> None:
        position, value = self.at.get(("haInhibit", (0,)), (0, None))
        if value is not None:
            self._give(position, Verb.INHIBIT if value == 1 else Verb.PERMIT, "")

    def _action(self) -> None:
        """haAction with haActionTarget and haActionTo."""
        position, value = self.at.get(("haAction", (0,)), (0, _NO_ACTION))
        target_at, target = self._text("haActionTarget")
        to_at, to = self._text("haActionTo")
        if value == _NO_ACTION:
            if (target or to) and not position:
                raise SetError(
                    target_at if target else to_at, ErrorStatus.INCONSISTENT_VALUE, "a target without haAction"
                )
            return
        assert isinstance(value, int)
        verb = Verb(value)  # haAction's values are the verbs' own numbers
        if verb in _NODE_VERBS and target:
            self._node(target, target_at)
        group = self._group(target, target_at) if target and verb not in _NODE_VERBS else None
        if to:
            if verb not in _MOVES:
                raise SetError(
                    to_at, ErrorStatus.INCONSISTENT_VALUE, f"haActionTo goes with a failover, not with {verb.name}"
                )
            self._destination(group, to, to_at)
        self._give(position, verb, target, to)

    def _cell(self, name: str, index: Oid, position: int, value: Value, row: Any) -> None:
        """One cell of the node, group or service table."""
        match name:
            case "haGroupInhibit":
                self._give(position, Verb.INHIBIT if value == 1 else Verb.PERMIT, row.name)
            case "haGroupFreeze":
                self._give(position, Verb.FREEZE if value == 1 else Verb.THAW, row.name)
            case "haGroupAction" if isinstance(value, int) and value != _NO_ACTION:
                to_at, to = self._text("haGroupActionTarget", index)
                if to:
                    self._destination(row, to, to_at)
                self._give(position, Verb(value), row.name, to)
            case "haGroupActionTarget":
                if value and ("haGroupAction", index) not in self.at:
                    raise SetError(position, ErrorStatus.INCONSISTENT_VALUE, f"{name} without haGroupAction")
            case "haServiceAction" if isinstance(value, int) and value != _NO_ACTION:
                # start(2) stop(3) restart(4) clear(5) are numbered from 2, the verbs from SERVICE_START
                self._give(position, Verb(value - 2 + Verb.SERVICE_START), row.name)
            case "haServiceReport" if value != _NO_ACTION:
                _, message = self._text("haServiceReportMessage", index)
                self._give(position, Verb.REPORT, row.name, up=value == _REPORT_UP, message=message)
            case "haServiceReportMessage":
                if value and self.at.get(("haServiceReport", index), (0, _NO_ACTION))[1] == _NO_ACTION:
                    raise SetError(position, ErrorStatus.INCONSISTENT_VALUE, f"{name} without haServiceReport")
            case "haNodeFenceAction" if value != _NO_ACTION:
                self._give(position, Verb.FENCE_TEST, row.name)
            case "haNodeFenceConfirm" if value:
                assert isinstance(value, bytes)  # test_form saw to it
                if value.decode() != row.name:
                    text = f"{name} takes the name of its own row, {row.name}, as the word that this node is off"
                    raise SetError(position, ErrorStatus.INCONSISTENT_VALUE, text)
                self._give(position, Verb.FENCE_CONFIRM, row.name)

    def _group(self, name: str, position: int) -> GroupRow:
        row = self.reader.view.tables["groups"].get(name)
        if not isinstance(row, GroupRow):
            raise SetError(position, ErrorStatus.INCONSISTENT_VALUE, f"no group {name!r}")
        return row

    def _node(self, name: str, position: int) -> NodeRow:
        row = self.reader.view.tables["nodes"].get(name)
        if not isinstance(row, NodeRow):
            raise SetError(position, ErrorStatus.INCONSISTENT_VALUE, f"no node {name!r}")
        return row

    def _destination(self, group: GroupRow | None, to: str, position: int) -> None:
        node = self._node(to, position)
        if group and group.nodes and to not in group.nodes:
            raise SetError(
                position, ErrorStatus.INCONSISTENT_VALUE, f"node {to} is not one of group {group.name}'s nodes"
            )
        if node.state in (NodeState.LOST, NodeState.LEFT):
            raise SetError(position, ErrorStatus.INCONSISTENT_VALUE, f"node {to} is {node.state.name.lower()}")
