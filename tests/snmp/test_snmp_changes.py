"""Whatever changes, in whatever order: an agent that has answered before answers as one that has just begun."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasnmp import protocol
from hasnmp.model import GroupState, ServiceRow, ServiceState, StatisticsRow, View
from hasnmp.settings import Community, MibView, Snmp
from hasnmp.snmp.access import Communities
from hasnmp.snmp.cells import Store, question
from hasnmp.snmp.engine_link import EngineLink
from hasnmp.snmp.ha_objects import SCALARS, TABLES
from hasnmp.snmp.objects import Reader, date_and_time, text_index
from hasnmp.snmp.oids import ROOT
from hasnmp.snmp.pdus import Requests
from hasnmp.snmp.responder import Responder
from hasnmp.snmp.standard import Counters
from hasnmp.snmp.usm import Engine
from tests.snmp.snmp_lab import BULK, GET, NEXT, READ, a_pdu, a_view, binding, v2c

ENTRY = next(table.entry_oid for table in TABLES if table.name == "haServiceTable")
SOME = MibView("some", (".".join(map(str, (*ENTRY, "*", *text_index("postgres")))), "haStatistics"))
SECOND = b"some"
NAMES = ("address", "httpd", "postgres", "new", "other")


class Agent:
    """A responder over a view of the test's own. fresh: as in Reader."""

    def __init__(self, view: View, fresh: bool = True) -> None:
        self.view, self.fresh = view, fresh
        self.store = Store(SCALARS, TABLES, lambda: Reader(self.view, 1, self.view.now_ns, self.fresh))
        counters = Counters()
        self.failures: list[Exception] = []
        told = Snmp(communities=(Community("read", (), READ), Community("read", (), SECOND, view=SOME)))
        self.responder = Responder(
            self.store, Requests(self.store, self.failures.append), Communities(told),
            Engine(b"\x80\0~\xd9\5changes", 1, lambda: 1, (), counters), counters, lambda *_: None, lambda: 0.0, lambda _: None,
        )  # fmt: skip

    def ask(self, message: bytes) -> bytes:
        answers: list[bytes] = []
        self.responder.handle(message, "127.0.0.1", answers.append)
        assert len(answers) == 1 and not self.failures
        return answers[0]


OIDS = st.one_of(
    st.builds(lambda n, name: (*ENTRY, n, *text_index(name)), st.integers(1, 20), st.sampled_from(NAMES)),
    st.builds(lambda n: (*ENTRY, n), st.integers(1, 21)),
    st.builds(lambda n, zero: (*ROOT, 1, 10, n, *zero), st.integers(1, 21), st.sampled_from(((), (0,)))),
    st.sampled_from((ROOT, (*ROOT, 1, 11, 2, 0), (*ROOT, 1, 5, 1, 21))),
)
ASKED = st.builds(
    lambda tag, names, community: v2c(a_pdu(tag, [binding(name) for name in names], 0, 3), community),
    st.sampled_from((GET, NEXT, BULK)), st.lists(OIDS, min_size=1, max_size=4), st.sampled_from((READ, SECOND)),
)  # fmt: skip
CHANGES = st.one_of(
    st.tuples(st.just("field"), st.sampled_from(NAMES), st.sampled_from((
        {"checks": 7}, {"checks": 8}, {"state": ServiceState.FAILED}, {"message": "it fell"}, {"last_change_ns": 10**12},
        {"group": "x", "pid": 9}, {},
    ))),
    st.tuples(st.just("gone"), st.sampled_from(NAMES), st.just({})),
    st.tuples(st.just("statistics"), st.just(""), st.sampled_from(({"failovers": 1}, {"failovers": 2}, None))),
    st.tuples(st.just("fresh"), st.just(""), st.just({})),
)  # fmt: skip


def change(agent: Agent, kind: str, name: str, fields: dict[str, Any] | None) -> None:
    """As the agent's process does it with what the engine tells."""
    tables: dict[str, dict[str, Any]] = agent.view.tables  # type: ignore[assignment]
    if kind == "field":
        tables["services"][name] = replace(tables["services"].get(name, ServiceRow(name, "web")), **(fields or {}))
        agent.store.changed_rows("services", [tables["services"][name]])
    elif kind == "gone" and tables["services"].pop(name, None):
        agent.store.changed(["services"])
    elif kind == "statistics" and fields is None:
        tables["statistics"].clear()
        agent.store.changed(["statistics"])
    elif kind == "statistics":
        tables["statistics"][""] = replace(tables["statistics"].get("", StatisticsRow()), **(fields or {}))
        agent.store.changed_rows("statistics", [tables["statistics"][""]])
    elif kind == "fresh":
        agent.fresh = not agent.fresh
        agent.store.changed_all()


@given(st.lists(st.one_of(ASKED, ASKED, CHANGES), min_size=2, max_size=14))
@settings(deadline=None, max_examples=120)
def test_an_answer_is_what_is_now(steps: list[Any]) -> None:
    view = a_view(2)
    agent = Agent(view)
    asked = [step for step in steps if isinstance(step, bytes)]
    for message in asked:  # twice: its form is known then, and so are its names
        assert agent.ask(message) == agent.ask(message)
    for step in steps:
        if isinstance(step, bytes):
            continue
        change(agent, *step)
        new = Agent(view, agent.fresh)
        for message in asked:
            assert agent.ask(message) == new.ask(message), step


def test_a_change_forgets_what_rests_on_it_and_nothing_else() -> None:
    agent = Agent(a_view(2))
    names = {n: (*ENTRY, n, *text_index("httpd")) for n in range(2, 20)}
    for tag in (GET, GET, NEXT, NEXT):  # twice, for only a request of a known form leaves something behind
        agent.ask(v2c(a_pdu(tag, [binding(name) for name in names.values()])))
    window = next(window for window in agent.store._windows.values() if window.found)
    known, after = set(window.found), dict(window.after)
    change(agent, "field", "httpd", {"checks": 99})
    change(agent, "statistics", "", {"failovers": 3})
    column = next(column for column in agent.store.columns if column.oid == (*ENTRY, 9))
    gone = question(column.raw + column.rows.suffixes[0])
    assert after and gone in known and known - set(window.found) == {gone} and window.after == after


@pytest.mark.parametrize(("step_ms", "seen_ms"), [(3_600_000, 3_600_000), (-200, -200), (20, 0)])
def test_when_the_wall_clock_is_set_every_date_is_another_one(step_ms: int, seen_ms: int) -> None:
    agent = Agent(a_view(2))
    link = EngineLink(
        "", 1000, 0, lambda: agent.view.now_ns, threading.RLock(), agent.store, cast(Any, None), cast(Any, None), cast(Any, None),
        None,
    )  # fmt: skip
    link._take_in(protocol.snapshot(agent.view))
    agent.view = link.view
    message = v2c(a_pdu(GET, [binding((*ENTRY, 16, *text_index("httpd")))]))  # haServiceLastChangeDate
    changed_ns = agent.view.tables["services"]["httpd"].last_change_ns  # type: ignore[union-attr]
    changed_ms = agent.view.wall_ms - (agent.view.now_ns - changed_ns) // 1_000_000
    for _ in range(2):
        assert date_and_time(changed_ms) in agent.ask(message)
    link._take_in({
        "type": "delta", "number": 2, "now_ns": agent.view.now_ns, "wall_ms": agent.view.wall_ms + step_ms, "rows": {}, "gone": {},
    })  # fmt: skip
    assert date_and_time(changed_ms + seen_ms) in agent.ask(message)


def test_a_group_that_another_node_has_now_is_told_of_as_an_event_of_it_is() -> None:
    """That event is the other node's: this one hears of the group only."""
    agent, told = Agent(a_view(2)), []
    link = EngineLink(
        "", 1000, 0, lambda: agent.view.now_ns, threading.RLock(), agent.store, cast(Any, None), cast(Any, None), told.append,
        None,
    )  # fmt: skip
    link._tell_missed = link.judge = lambda: None  # type: ignore[method-assign]
    link._take(protocol.snapshot(agent.view))
    name, row = next(iter(link.view.tables["groups"].items()))
    assert told == [""]

    def delta(number: int, **changed: Any) -> None:
        nonlocal row
        row = replace(row, **changed)  # type: ignore[type-var]
        link._take({
            "type": "delta", "number": number, "now_ns": link.view.now_ns, "wall_ms": link.view.wall_ms,
            "rows": {"groups": {name: protocol.row_to_json(row)}}, "gone": {},
        })  # fmt: skip

    delta(2, owner="elsewhere")
    assert told == ["", name]
    delta(3, lease_until_ns=5)
    assert told == ["", name]
    delta(4, state=GroupState.FAILED)
    assert told == ["", name, name]
