"""What the objects read: every one of them, true to its type, from a view in which every table has rows."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hasnmp import model
from hasnmp.settings import Receiver
from hasnmp.snmp import ha_objects, receivers
from hasnmp.snmp.ha_objects import OBJECTS
from hasnmp.snmp.notices import NOTICE_OBJECTS, NOTICES, notification_varbinds
from hasnmp.snmp.objects import Reader, Syntax, Value, date_and_time, inet_address, text_index
from hasnmp.snmp.oids import ROOT
from tests.snmp.test_mib import base, mib, of_file
from tests.snmp.views import BOOT_NS, NOW_NS, WALL_MS, a_view, some_whys

__all__ = ["base", "mib"]  # fixtures

BOARD = receivers.Board(receivers={"192.0.2.50:162/2c/trap": Receiver("192.0.2.50:162", "2c")})
SCALARS = (*ha_objects.SCALARS, *receivers.scalars(BOARD))
TABLES = (*ha_objects.TABLES, *receivers.tables(BOARD), some_whys().table())

LIMITS = {
    Syntax.INTEGER32: (-(2**31), 2**31 - 1),
    Syntax.UNSIGNED32: (0, 2**32 - 1),
    Syntax.COUNTER32: (0, 2**32 - 1),
    Syntax.TIMETICKS: (0, 2**32 - 1),
}


def reader(**fields: Any) -> Reader:
    return Reader(a_view(), BOOT_NS, NOW_NS, **fields)


def values(r: Reader) -> dict[str, dict[str, Value | None]]:
    """Everything that can be read: name -> instance ("" for a scalar, else what its index spells) -> value."""
    found: dict[str, dict[str, Value | None]] = {s.name: {"": s.read(r)} for s in SCALARS}
    for table in TABLES:
        rows = list(table.rows(r.view))
        assert [index for index, _ in rows] == sorted(index for index, _ in rows), table.name
        for column in table.columns:
            found[column.name] = {".".join(map(str, index)): column.read(r, row) for index, row in rows}
    return found


def name(text: str) -> str:
    return ".".join(map(str, text_index(text)))


def test_everything_can_be_read_and_is_of_its_type(mib: ElementTree.Element) -> None:
    syntaxes = {n: syntax for n, (_, syntax, access) in of_file(mib).items() if access != "not-accessible"}
    found = values(reader())
    assert set(found) == set(syntaxes)
    for n, instances in found.items():
        assert instances, f"{n} has no instance in the view"
        for value in instances.values():
            if syntaxes[n] is Syntax.OCTETS:
                assert isinstance(value, bytes) and len(value) <= 255, n
            else:
                low, high = LIMITS[syntaxes[n]]
                assert type(value) is not bool and isinstance(value, int) and low <= value <= high, n


def test_enumerated_values_are_in_the_file(mib: ElementTree.Element) -> None:
    types = {t.attrib["name"]: t for t in mib.iter("typedef") if "name" in t.attrib}
    found = values(reader())
    checked = 0
    for node in (*mib.iter("scalar"), *mib.iter("column")):
        typed = node.find("syntax/type")
        if typed is not None and typed.attrib["name"].startswith("Ha"):
            numbers = {int(n.attrib["number"]) for n in types[typed.attrib["name"]].findall("namednumber")}
            assert set(found[node.attrib["name"]].values()) <= numbers, node.attrib["name"]
            checked += 1
    assert checked >= 20


def test_some_values_by_hand() -> None:
    found = values(reader())
    assert found["haClusterName"][""] == b"bank"
    assert found["haRole"][""] == model.Role.SHARED
    assert found["haClusterCondition"][""] == model.Condition.DEGRADED
    assert found["haLastRoleChange"][""] == 500  # 5 s after the agent's start
    assert found["haDataAge"][""] == 40
    assert found["haStatDiscontinuityTime"][""] == 0  # before the agent's start
    assert found["haNodeThis"] == {name("node-a"): 1, name("node-b"): 2, name("node-c"): 2}
    assert found["haNodeLastHeardAge"] == {name("node-a"): 0, name("node-b"): 150, name("node-c"): 9000}
    assert found["haNodeTransitions"][name("node-b")] == 5  # a counter wraps
    lan, cross = name("node-b") + "." + name("lan"), name("node-b") + "." + name("cross")
    assert found["haLinkAddressType"] == {lan: 1, cross: 2}
    assert found["haLinkAddress"][lan] == bytes((192, 0, 2, 12))
    assert found["haGroupLeaseRemaining"] == {name("web"): 840, name("db"): 0}
    assert found["haGroupExcludedNodes"][name("web")] == b"node-c,node-b"
    assert found["haGroupDataAge"] == {name("web"): 20, name("db"): 2**32 - 1}
    assert found["haGroupAction"] == {name("web"): 1, name("db"): 1}
    assert found["haWatchdogState"][""] == model.PartState.ABSENT
    first, second = name("node-b") + ".1", name("node-b") + ".2"
    assert found["haFenceAgent"] == {first: b"fence_ipmilan", second: b"pill"}
    assert found["haFenceCuts"] == {first: b"power", second: b"disk"}
    assert found["haFenceLastResult"][first] == b"fenced: off, verified by its status"
    assert found["haFenceLastTime"] == {first: 4000, second: 0}
    assert found["haFenceLastTest"] == {first: 5000, second: 0}
    # The view was true 40 ms before NOW_NS, which is 60 s after BOOT_NS.
    assert found["haFenceLastTimeDate"][first] == date_and_time(WALL_MS - 19_960)
    assert found["haFenceLastTestDate"][first] == date_and_time(WALL_MS - 9_960)
    assert found["haEventKind"] == {"11": 5, "12": 37}
    assert found["haEventPeerState"] == {"11": model.NodeState.LOST, "12": model.NodeState.UNKNOWN}
    assert found["haEventDate"]["11"] == date_and_time(WALL_MS - 2000)
    assert found["haAlarmKey"] == {"11": b"node/node-c"}
    assert found["haCommandResult"] == {"3": 11}
    assert found["haEventSize"][""] == 1000 and found["haEventCount"][""] == 2 and found["haAlarmCount"][""] == 1


def test_without_an_engine_no_state_is_the_last_good_one() -> None:
    before, after = values(reader()), values(reader(fresh=False))
    unknown = {
        "haRole": model.Role.UNKNOWN, "haCondition": model.Condition.UNKNOWN, "haNodeState": model.NodeState.UNKNOWN,
        "haClusterCondition": model.Condition.UNKNOWN, "haGuardianState": model.PartState.UNKNOWN,
        "haWatchdogState": model.PartState.UNKNOWN, "haNodeRole": model.Role.UNKNOWN,
        "haNodeCondition": model.Condition.UNKNOWN, "haLinkState": model.LinkState.UNKNOWN,
        "haGroupState": model.GroupState.UNKNOWN, "haGroupCondition": model.Condition.UNKNOWN, "haGroupOwner": b"",
        "haGroupProof": model.Proof.NONE, "haServiceState": model.ServiceState.UNKNOWN,
        "haArbiterState": model.ArbiterState.UNKNOWN, "haEngineState": model.PartState.DOWN,
    }  # fmt: skip
    for n, value in unknown.items():
        assert set(after[n].values()) == {value}, n
    assert {n for n in before if before[n] != after[n]} <= {*unknown, "haGroupLeaseRemaining"}  # it runs down


def test_before_the_engine_was_ever_heard() -> None:
    found = values(Reader(model.View(), BOOT_NS, NOW_NS, fresh=False))
    assert found["haEngineState"][""] == model.PartState.DOWN
    assert found["haDataAge"][""] == 2**32 - 1
    assert found["haActionSpinLock"][""] == 0
    assert found["haClusterName"][""] is None
    assert found["haGroupState"] == {}


def test_what_moves_with_the_clock_is_volatile() -> None:
    """A value that differs a second later, or with the spin lock, must not be kept; everything else may be."""
    moved = set()
    for fresh in (True, False):
        at, later = (values(Reader(a_view(), BOOT_NS, NOW_NS + n * 1_000_000_000, fresh, n)) for n in (0, 1))
        moved |= {n for n in at if at[n] != later[n]}
    assert {t.name for t in OBJECTS.values() if t.volatile} | {"haGroupWhyAge"} == moved


def test_values_rest_on_the_tables_that_are_named() -> None:
    """With all other tables empty, an object reads the same: so it need be rendered anew only when one of these changes."""
    whole = a_view()
    everything = values(reader())
    for targets, tables in [((s,), s.view_tables) for s in SCALARS] + [(t.columns, t.view_tables) for t in TABLES]:
        part = model.View(whole.now_ns, whole.wall_ms, whole.number)
        for table in set(tables) & set(whole.tables):  # that of the reasons is none of the engine's
            part.tables[table] = whole.tables[table]
        found = values(Reader(part, BOOT_NS, NOW_NS))
        for target in targets:
            assert found[target.name] == everything[target.name], target.name


@pytest.mark.parametrize(
    "wall_ms, octets",
    [
        (0, "0000000000000000"),
        (1_700_000_000_000, "07e70b0e160d14002b0000"),
        (1_700_000_000_999, "07e70b0e160d14092b0000"),
    ],
)
def test_date_and_time(wall_ms: int, octets: str) -> None:
    assert date_and_time(wall_ms).hex() == octets


@pytest.mark.parametrize(
    "text, expected",
    [
        ("192.0.2.1", (1, bytes((192, 0, 2, 1)))),
        ("192.0.2.1:161", (1, bytes((192, 0, 2, 1)))),
        ("[2001:db8::1]:161", (2, bytes.fromhex("20010db8000000000000000000000001"))),
        ("2001:db8::1", (2, bytes.fromhex("20010db8000000000000000000000001"))),
        ("fe80::1%eth0", (2, bytes.fromhex("fe800000000000000000000000000001"))),
        ("", (0, b"")),
        ("local", (0, b"")),
    ],
)
def test_inet_address(text: str, expected: tuple[int, bytes]) -> None:
    assert inet_address(text) == expected


def test_long_text_is_cut_between_characters() -> None:
    row = model.ServiceRow("http", "web", message="a" + "é" * 200)
    message = next(c for t in TABLES for c in t.columns if c.name == "haServiceMessage").read(reader(), row)
    assert isinstance(message, bytes)
    assert message.decode() == "a" + "é" * 127


def test_timestamps_wrap_as_sysuptime_does() -> None:
    r = reader()
    assert r.timestamp(0) == r.timestamp(BOOT_NS - 1) == 0
    assert r.timestamp(BOOT_NS + 10_000_000) == 1
    assert r.timestamp(BOOT_NS + (2**32 + 7) * 10_000_000) == 7


@pytest.mark.parametrize("kind", list(model.Kind))
def test_a_notification_carries_everything_of_its_event(kind: model.Kind) -> None:
    event = model.EventRow(
        77, kind, model.Severity.MAJOR, WALL_MS, NOW_NS, "node-a", "why", "node-b", "lan", "web", "http",
        model.Role.PRIMARY, model.NodeState.LOST, 5, 8, model.Reason.NODE_LOST, "group/web", "id-9",
    )  # fmt: skip
    trap, variables = notification_varbinds(event, reader())
    assert trap == NOTICES[kind] and trap[:-1] == (*ROOT, 0)
    by_name = {f"{t.name} {c.name}": (*t.entry_oid, c.number, 77) for t in TABLES for c in t.columns}
    names = ["haClusterName", *(f"haEventTable {n}" for n in NOTICE_OBJECTS[1:])]
    assert [oid for oid, _, _ in variables] == [(*ROOT, 1, 1, 1, 0), *(by_name[n] for n in names[1:])]
    assert [value for _, _, value in variables] == [
        b"bank", 77, 4, b"node-a", 1, b"node-b", 2, 5, 8, 5, b"web", b"http", b"lan", b"group/web", b"id-9", b"why",
    ]  # fmt: skip


def test_a_notification_without_an_engine_still_goes() -> None:
    event = model.EventRow(0, model.Kind.ENGINE_DOWN, model.Severity.MAJOR, WALL_MS, NOW_NS, "node-a", "gone")
    trap, variables = notification_varbinds(event, Reader(model.View(), BOOT_NS, NOW_NS, fresh=False))
    assert trap == NOTICES[model.Kind.ENGINE_DOWN]
    assert len(variables) == len(NOTICE_OBJECTS) and variables[0][2] == b""


def test_the_mib_is_beside_the_package() -> None:
    import hasnmp

    assert (Path(hasnmp.__file__).parents[1] / "mibs" / "HASNMP-MIB.txt").is_file()


def test_a_lease_that_is_renewed_never_reads_as_over_and_one_of_a_silent_engine_does() -> None:
    """The engine tells of renewals once a second, and a lease may last less: so it is read by the row's own moment."""
    column: Any = OBJECTS["haGroupLeaseRemaining"]
    view = a_view()
    row: Any = view.tables["groups"]["web"]
    told = replace(row, data_ns=NOW_NS, lease_until_ns=NOW_NS + 300_000_000)
    theirs = replace(told, owner="node-b", data_ns=NOW_NS - 5_000_000_000)
    view.now_ns = NOW_NS
    for later_ms in (0, 299, 900, 5000):
        fresh = Reader(view, BOOT_NS, NOW_NS + later_ms * 1_000_000, node="node-a")
        assert (column.read(fresh, told), column.read(fresh, theirs)) == (300, 300)
        silent = replace(fresh, fresh=False)
        assert column.read(silent, told) == column.read(silent, theirs) == max(0, 300 - later_ms)
    assert column.read(fresh, replace(told, lease_until_ns=0)) == 0
