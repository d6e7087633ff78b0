"""What a SET means: the truth table of plan(), and each way in which it refuses."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from hasnmp import model
from hasnmp.model import Verb
from hasnmp.snmp import sets
from hasnmp.snmp.error_status import ErrorStatus
from hasnmp.snmp.ha_objects import OBJECTS
from hasnmp.snmp.objects import Reader, Syntax, TableDef, text_index
from hasnmp.snmp.sets import Assignment, SetError, plan
from tests.snmp.views import BOOT_NS, NOW_NS, a_view


def given(name: str, value: int | bytes | str, syntax: int = -1) -> Assignment:
    """`haAction` or `haGroupAction.web` with a value, of the object's own syntax if none is named."""
    name, _, instance = name.partition(".")
    octets = value.encode() if isinstance(value, str) else value
    target = OBJECTS[name]
    return Assignment(
        target, text_index(instance) if instance else (0,), target.syntax if syntax < 0 else syntax, octets
    )


def reader(**fields: Any) -> Reader:
    return Reader(a_view(), BOOT_NS, NOW_NS, **fields)


def command(verb: Verb, target: str, to: str = "", reason: str = "") -> dict[str, object]:
    return {"verb": int(verb), "target": target, "to": to, "reason": reason}


# fmt: off
DONE: list[tuple[list[tuple[str, int | str]], list[dict[str, object]]]] = [
    # one plain SET is a whole command
    ([("haGroupAction.web", 2)], [command(Verb.FAILOVER, "web")]),
    ([("haGroupAction.web", 3)], [command(Verb.FORCE_FAILOVER, "web")]),
    ([("haAction", 2)], [command(Verb.FAILOVER, "")]),
    ([("haAction", 4)], [command(Verb.RECOVER, "")]),
    ([("haAction", 5)], [command(Verb.INHIBIT, "")]),
    ([("haAction", 6)], [command(Verb.PERMIT, "")]),
    ([("haAction", 7)], [command(Verb.STANDBY, "")]),
    ([("haAction", 8)], [command(Verb.ONLINE, "")]),
    ([("haInhibit", 1)], [command(Verb.INHIBIT, "")]),
    ([("haInhibit", 2)], [command(Verb.PERMIT, "")]),
    ([("haGroupInhibit.db", 1)], [command(Verb.INHIBIT, "db")]),
    ([("haGroupInhibit.db", 2)], [command(Verb.PERMIT, "db")]),
    ([("haGroupFreeze.db", 1)], [command(Verb.FREEZE, "db")]),
    ([("haGroupFreeze.db", 2)], [command(Verb.THAW, "db")]),
    ([("haServiceAction.http", 2)], [command(Verb.SERVICE_START, "http")]),
    ([("haServiceAction.http", 3)], [command(Verb.SERVICE_STOP, "http")]),
    ([("haServiceAction.http", 4)], [command(Verb.SERVICE_RESTART, "http")]),
    ([("haServiceAction.http", 5)], [command(Verb.SERVICE_CLEAR, "http")]),
    ([("haNodeFenceAction.node-b", 2)], [command(Verb.FENCE_TEST, "node-b")]),
    ([("haNodeFenceConfirm.node-b", "node-b"), ("haActionReason", "seen")], [command(Verb.FENCE_CONFIRM, "node-b", reason="seen")]),
    ([("haConfigAction", 2)], [command(Verb.RELOAD, "")]),
    ([("haServiceReport.http", 2)], [{**command(Verb.REPORT, "http"), "up": True, "message": ""}]),
    ([("haServiceReportMessage.http", "disk full"), ("haServiceReport.http", 3)],
     [{**command(Verb.REPORT, "http"), "up": False, "message": "disk full"}]),
    # an action takes its target, destination and reason from the same SET, in any order
    ([("haAction", 2), ("haActionTarget", "web"), ("haActionTo", "node-b"), ("haActionReason", "kernel")],
     [command(Verb.FAILOVER, "web", "node-b", "kernel")]),
    ([("haActionReason", "kernel"), ("haActionTo", "node-b"), ("haActionTarget", "web"), ("haAction", 3)],
     [command(Verb.FORCE_FAILOVER, "web", "node-b", "kernel")]),
    ([("haActionTo", "node-b"), ("haAction", 2)], [command(Verb.FAILOVER, "", "node-b")]),
    ([("haActionTarget", "node-c"), ("haAction", 4)], [command(Verb.RECOVER, "node-c")]),
    ([("haActionTarget", "node-b"), ("haAction", 7)], [command(Verb.STANDBY, "node-b")]),
    ([("haAction", 5), ("haActionTarget", "db")], [command(Verb.INHIBIT, "db")]),
    ([("haGroupActionTarget.web", "node-b"), ("haGroupAction.web", 2)], [command(Verb.FAILOVER, "web", "node-b")]),
    # several commands, in the order of what causes them, one reason for all
    ([("haGroupAction.web", 2), ("haGroupFreeze.db", 1), ("haActionReason", "both")],
     [command(Verb.FAILOVER, "web", reason="both"), command(Verb.FREEZE, "db", reason="both")]),
    ([("haServiceAction.http", 4), ("haInhibit", 1)],
     [command(Verb.SERVICE_RESTART, "http"), command(Verb.INHIBIT, "")]),
    # what is read back may be written back: no command
    ([("haAction", 1)], []),
    ([("haAction", 1), ("haActionTarget", ""), ("haActionTo", ""), ("haActionReason", "")], []),
    ([("haActionTarget", "")], []),
    ([("haGroupAction.web", 1), ("haGroupActionTarget.web", "")], []),
    ([("haGroupActionTarget.web", "")], []),
    ([("haServiceAction.http", 1)], []),
    ([("haServiceReport.http", 1), ("haServiceReportMessage.http", "")], []),
    ([("haNodeFenceAction.node-b", 1), ("haNodeFenceConfirm.node-b", ""), ("haConfigAction", 1)], []),
    # noAction says that a target is meant for nothing
    ([("haAction", 1), ("haActionTarget", "web")], []),
]

REFUSED: list[tuple[list[tuple[str, int | bytes | str]], int, ErrorStatus]] = [
    ([("haRole", 1)], 1, ErrorStatus.NOT_WRITABLE),
    ([("haGroupAction.web", 2), ("haGroupState.web", 5)], 2, ErrorStatus.NOT_WRITABLE),
    ([("haActionReason", "x" * 256)], 1, ErrorStatus.WRONG_LENGTH),
    ([("haAction", 2), ("haActionTarget", "x" * 64)], 2, ErrorStatus.WRONG_LENGTH),
    ([("haActionReason", b"\xff")], 1, ErrorStatus.WRONG_VALUE),
    ([("haAction", 2), ("haActionReason", "two\nlines")], 2, ErrorStatus.WRONG_VALUE),
    ([("haAction", 2), ("haActionReason", "\x1b[2J")], 2, ErrorStatus.WRONG_VALUE),
    ([("haAction", 0)], 1, ErrorStatus.WRONG_VALUE),
    ([("haAction", 9)], 1, ErrorStatus.WRONG_VALUE),
    ([("haGroupAction.web", 4)], 1, ErrorStatus.WRONG_VALUE),
    ([("haServiceAction.http", 6)], 1, ErrorStatus.WRONG_VALUE),
    ([("haInhibit", 3)], 1, ErrorStatus.WRONG_VALUE),
    ([("haGroupFreeze.web", 0)], 1, ErrorStatus.WRONG_VALUE),
    ([("haActionSpinLock", -1)], 1, ErrorStatus.WRONG_VALUE),
    ([("haActionSpinLock", 2**31)], 1, ErrorStatus.WRONG_VALUE),
    ([("haGroupAction.nfs", 2)], 1, ErrorStatus.NO_CREATION),
    ([("haGroupAction", 2)], 1, ErrorStatus.NO_CREATION),
    ([("haAction.x", 2)], 1, ErrorStatus.NO_CREATION),
    ([("haServiceAction.web", 2)], 1, ErrorStatus.NO_CREATION),
    # the form of every assignment is tested before the meaning of any
    ([("haActionTarget", "nfs"), ("haAction", 2), ("haInhibit", 3)], 3, ErrorStatus.WRONG_VALUE),
    # names that nobody has, at the assignment that names them
    ([("haAction", 2), ("haActionTarget", "nfs")], 2, ErrorStatus.INCONSISTENT_VALUE),
    ([("haActionTarget", "nfs"), ("haAction", 5)], 1, ErrorStatus.INCONSISTENT_VALUE),
    ([("haAction", 4), ("haActionTarget", "web")], 2, ErrorStatus.INCONSISTENT_VALUE),  # recover takes a node
    ([("haAction", 2), ("haActionTarget", "node-b")], 2, ErrorStatus.INCONSISTENT_VALUE),  # failover takes a group
    ([("haAction", 2), ("haActionTarget", "web"), ("haActionTo", "node-x")], 3, ErrorStatus.INCONSISTENT_VALUE),
    ([("haGroupAction.web", 2), ("haGroupActionTarget.web", "node-x")], 2, ErrorStatus.INCONSISTENT_VALUE),
    # a destination that is lost, or that may not run the group
    ([("haGroupAction.web", 2), ("haGroupActionTarget.web", "node-c")], 2, ErrorStatus.INCONSISTENT_VALUE),
    ([("haGroupAction.db", 2), ("haGroupActionTarget.db", "node-a")], 2, ErrorStatus.INCONSISTENT_VALUE),
    ([("haActionTo", "node-c"), ("haAction", 3)], 1, ErrorStatus.INCONSISTENT_VALUE),
    ([("haActionTo", "node-a"), ("haAction", 2), ("haActionTarget", "db")], 1, ErrorStatus.INCONSISTENT_VALUE),
    # the word that a node is off must name it
    ([("haNodeFenceConfirm.node-b", "node-c")], 1, ErrorStatus.INCONSISTENT_VALUE),
    ([("haNodeFenceConfirm.node-x", "node-x")], 1, ErrorStatus.NO_CREATION),
    ([("haNodeFenceAction.node-b", 3)], 1, ErrorStatus.WRONG_VALUE),
    ([("haConfigAction", 3)], 1, ErrorStatus.WRONG_VALUE),
    ([("haServiceReport.http", 4)], 1, ErrorStatus.WRONG_VALUE),
    # what has no meaning alone
    ([("haServiceReportMessage.http", "so")], 1, ErrorStatus.INCONSISTENT_VALUE),
    ([("haServiceReport.http", 1), ("haServiceReportMessage.http", "so")], 2, ErrorStatus.INCONSISTENT_VALUE),
    ([("haActionTarget", "web")], 1, ErrorStatus.INCONSISTENT_VALUE),
    ([("haActionTo", "node-b")], 1, ErrorStatus.INCONSISTENT_VALUE),
    ([("haActionReason", "why not")], 1, ErrorStatus.INCONSISTENT_VALUE),
    ([("haAction", 1), ("haActionReason", "why not")], 2, ErrorStatus.INCONSISTENT_VALUE),
    ([("haGroupActionTarget.web", "node-b")], 1, ErrorStatus.INCONSISTENT_VALUE),
    ([("haGroupAction.db", 2), ("haGroupActionTarget.web", "node-b")], 2, ErrorStatus.INCONSISTENT_VALUE),
    ([("haAction", 7), ("haActionTo", "node-b")], 2, ErrorStatus.INCONSISTENT_VALUE),
    # one object twice
    ([("haInhibit", 1), ("haInhibit", 2)], 2, ErrorStatus.INCONSISTENT_VALUE),
    ([("haGroupAction.web", 2), ("haGroupAction.web", 2)], 2, ErrorStatus.INCONSISTENT_VALUE),
    # one that can't be done takes the others with it
    ([("haGroupAction.web", 2), ("haGroupAction.nfs", 2)], 2, ErrorStatus.NO_CREATION),
]
# fmt: on


@pytest.mark.parametrize("assignments, commands", DONE, ids=lambda value: str(value)[:60])
def test_a_set_becomes_commands(assignments: list[tuple[str, int | str]], commands: list[dict[str, object]]) -> None:
    found = plan(reader(spin_lock=5), [given(*assignment) for assignment in assignments])
    assert found.commands == commands
    assert found.spin_lock == 5


@pytest.mark.parametrize("assignments, position, status", REFUSED, ids=lambda value: str(value)[:60])
def test_a_set_is_refused_whole(assignments: list[tuple[str, int | str]], position: int, status: ErrorStatus) -> None:
    with pytest.raises(SetError) as refused:
        plan(reader(), [given(*assignment) for assignment in assignments])
    assert (refused.value.position, refused.value.status) == (position, status)


@pytest.mark.parametrize("name", sorted(name for name, target in OBJECTS.items() if target.write))
def test_every_writable_object_wants_its_own_type(name: str) -> None:
    instance = {"haG": ".web", "haS": ".http"}.get(name[:3], "")
    for syntax in Syntax:
        if syntax is not OBJECTS[name].syntax:
            with pytest.raises(SetError) as refused:
                plan(reader(), [given(name + instance, 1 if syntax is not Syntax.OCTETS else b"", syntax)])
            assert refused.value.status is ErrorStatus.WRONG_TYPE


def test_every_writable_object_is_in_the_truth_table() -> None:
    tried = {name.partition(".")[0] for assignments, _ in DONE for name, _ in assignments}
    assert tried | {"haActionSpinLock"} == {name for name, target in OBJECTS.items() if target.write}


@pytest.mark.parametrize("now, then", [(0, 1), (41, 42), (2**31 - 2, 2**31 - 1), (2**31 - 1, 0)])
def test_the_spin_lock_counts_and_wraps(now: int, then: int) -> None:
    """RFC 2579: TestAndIncr."""
    found = plan(reader(spin_lock=now), [given("haGroupAction.web", 2), given("haActionSpinLock", now)])
    assert found.spin_lock == then
    assert found.commands == [command(Verb.FAILOVER, "web")]


def test_a_stale_spin_lock_stops_the_action() -> None:
    with pytest.raises(SetError) as refused:
        plan(reader(spin_lock=8), [given("haGroupAction.web", 2), given("haActionSpinLock", 7)])
    assert (refused.value.position, refused.value.status) == (2, ErrorStatus.INCONSISTENT_VALUE)


def test_without_an_engine_nothing_is_accepted() -> None:
    """noError means handed over: there must be somebody to hand it to."""
    with pytest.raises(SetError) as refused:
        plan(reader(fresh=False), [given("haActionReason", "why"), given("haGroupAction.web", 2)])
    assert (refused.value.position, refused.value.status) == (2, ErrorStatus.RESOURCE_UNAVAILABLE)
    assert plan(reader(fresh=False), [given("haAction", 1)]).commands == []


def test_nothing_that_is_planned_changes_the_view() -> None:
    before = a_view()
    r = reader()
    plan(r, [given("haInhibit", 1), given("haGroupFreeze.db", 1)])
    assert r.view == before
    assert model.View() != before


def test_a_set_of_hundreds_lists_the_rows_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """By work and not by time: each listing of a table costs as much as it has rows."""
    listed: list[str] = []

    def counting(table: TableDef) -> TableDef:
        def rows(view: model.View) -> Any:
            listed.append(table.name)
            return table.rows(view)

        return dataclasses.replace(table, rows=rows)

    counted = {name: counting(table) for name, table in sets._TABLE_OF.items()}
    monkeypatch.setattr(sets, "_TABLE_OF", counted)
    view = a_view()
    names = [f"s{number}" for number in range(500)]
    view.tables["services"] = {name: model.ServiceRow(name, "web") for name in names}
    found = plan(Reader(view, BOOT_NS, NOW_NS), [given(f"haServiceAction.{name}", 4) for name in names])
    assert [c["target"] for c in found.commands] == names and listed == ["haServiceTable"]
