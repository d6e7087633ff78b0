"""hasnmp as a subagent of Debian's snmpd, asked with Net-SNMP's tools through it."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hasnmp.model import CommandState, Kind, Verb
from hasnmp.snmp import ha_objects
from hasnmp.snmp.objects import text_index
from hasnmp.snmp.oids import ROOT
from tests.snmp.agentx_lab import COMMUNITY, WRITER, OtherSubagent, Snmpd, snmpd
from tests.snmp.snmp_lab import (
    SYS_UP_TIME,
    V2C_READ,
    AgentProcess,
    FakeEngine,
    a_config,
    a_view,
    an_event,
    dotted,
    free_port,
    now_ns,
    rows_of,
    trap_receiver,
    wait_for,
)  # fmt: skip

SCALARS = {scalar.name: dotted((*scalar.oid, 0)) for scalar in ha_objects.SCALARS}
COLUMNS = {c.name: (*t.entry_oid, c.number) for t in ha_objects.TABLES for c in t.columns}
VOLATILE = {dotted(s.oid) for s in ha_objects.SCALARS if s.volatile} | {
    dotted((*t.entry_oid, c.number)) for t in ha_objects.TABLES for c in t.columns if c.volatile
}
HA = dotted(ROOT)
SPIN_LOCK, INHIBIT = SCALARS["haActionSpinLock"], SCALARS["haInhibit"]
ACTION, TARGET, TO = SCALARS["haAction"], SCALARS["haActionTarget"], SCALARS["haActionTo"]
NAME = SCALARS["haNodeName"]


def cell(column: str, name: str) -> str:
    return dotted((*COLUMNS[column], *text_index(name)))


def registered(master: Snmpd) -> bool:
    return master.run("snmpget", [*COMMUNITY, "-Oqv"], NAME).stdout.strip() == '"alpha"'


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeEngine]:
    fake = FakeEngine(tmp_path_factory.mktemp("agentx") / "control.sock", a_view())
    yield fake
    fake.stop()


@pytest.fixture(scope="module")
def trap_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def master(engine: FakeEngine, trap_port: int) -> Iterator[Snmpd]:
    with snmpd(engine.path.parent, f"trap2sink 127.0.0.1:{trap_port} to-them") as process:
        yield process


@pytest.fixture(scope="module")
def agent(engine: FakeEngine, master: Snmpd) -> Iterator[AgentProcess]:
    process = AgentProcess(a_config(engine.path.parent, agentx=master.socket, agentx_access="operate"))
    try:
        wait_for(lambda: registered(master))
        yield process
    finally:
        assert process.stop() == 0, process.log.read_text()


@pytest.fixture(autouse=True)
def clean(engine: FakeEngine) -> None:
    engine.commands.clear()
    engine.verdicts.clear()
    engine.verdict = CommandState.ACCEPTED


def test_every_row_through_the_master_is_the_one_of_our_own_port(agent: AgentProcess, master: Snmpd) -> None:
    by_next = rows_of(master.ask("snmpwalk", COMMUNITY, HA))
    by_bulk = rows_of(master.ask("snmpbulkwalk", [*COMMUNITY, "-Cr40"], HA))
    ours = rows_of(agent.ask("snmpbulkwalk", V2C_READ, HA))
    assert len(ours) > 300
    assert list(by_next) == list(ours) == list(by_bulk)
    same = [
        oid for oid, value in ours.items()
        if "Timeticks" not in value and not any(oid.startswith(f"{column}.") for column in VOLATILE)
    ]  # fmt: skip
    assert len(same) > 250
    for oid in same:
        assert by_next[oid] == ours[oid] == by_bulk[oid], oid
    got = master.ask("snmpget", COMMUNITY, *same[:30])
    assert [rows_of(got)[oid] for oid in same[:30]] == [ours[oid] for oid in same[:30]]


def test_what_is_not_there(agent: AgentProcess, master: Snmpd) -> None:
    got = master.ask(
        "snmpget", COMMUNITY, NAME, cell("haServiceState", "nobody"), f"{HA}.9.9.9.0", HA, SYS_UP_TIME
    ).splitlines()  # fmt: skip
    assert "alpha" in got[0]
    assert "No Such Instance" in got[1]
    assert "No Such Object" in got[2]
    assert "No Such Object" in got[3]
    assert "Timeticks" in got[4]
    # What comes after our last row is the master's own again.
    last = list(rows_of(master.ask("snmpwalk", COMMUNITY, HA)))[-1]
    after = master.ask("snmpgetnext", COMMUNITY, last, HA)
    following, first = after.splitlines()
    assert not following.startswith(f".{HA}.")
    assert first.startswith(f".{HA}.1.1.1.0")
    mixed = master.ask("snmpbulkget", [*COMMUNITY, "-Cn1", "-Cr3"], SYS_UP_TIME, "1.3.6.1.2.1.1", last)
    assert len(rows_of(mixed)) == 7


def test_time_stamps_count_by_the_masters_uptime(agent: AgentProcess, master: Snmpd, engine: FakeEngine) -> None:
    row = engine.view.tables["groups"]["web"]
    master_ticks = int(master.ask("snmpget", [*COMMUNITY, "-Oqvt"], SYS_UP_TIME))
    boot_ns = now_ns() - master_ticks * 10_000_000
    changed_ns = now_ns()
    engine.change({"groups": {"web": replace(row, last_change_ns=changed_ns)}})
    oid = cell("haGroupLastChange", "web")
    values: list[int] = []

    def arrived() -> bool:  # what the engine says is here a moment later
        values.append(int(master.ask("snmpget", [*COMMUNITY, "-Oqvt"], oid)))
        return abs(values[-1] - (changed_ns - boot_ns) // 10_000_000) <= 150

    wait_for(arrived)
    value = values[-1]
    ours = int(agent.ask("snmpget", [*V2C_READ, "-Oqvt"], oid))
    up = int(agent.ask("snmpget", [*V2C_READ, "-Oqvt"], SYS_UP_TIME))
    master_up = int(master.ask("snmpget", [*COMMUNITY, "-Oqvt"], SYS_UP_TIME))
    assert abs((value - ours) - (master_up - up)) <= 150


def test_rows_come_change_and_go(agent: AgentProcess, master: Snmpd, engine: FakeEngine) -> None:
    row = engine.view.tables["services"]["httpd"]
    state, message = cell("haServiceState", "extra"), cell("haServiceMessage", "extra")
    assert "No Such Instance" in master.ask("snmpget", COMMUNITY, state)
    engine.change({"services": {"extra": replace(row, name="extra", message="here")}})
    wait_for(lambda: "here" in master.ask("snmpget", COMMUNITY, message))
    engine.change({"services": {"extra": replace(row, name="extra", message="there")}})
    wait_for(lambda: "there" in master.ask("snmpget", COMMUNITY, message))
    engine.change({}, {"services": ["extra"]})
    wait_for(lambda: "No Such Instance" in master.ask("snmpget", COMMUNITY, state))
    assert dotted((*COLUMNS["haServiceState"], *text_index("httpd"))) in master.ask(
        "snmpgetnext", COMMUNITY, dotted((*COLUMNS["haServiceState"], 5, 104, 116, 116, 112, 99))
    )


def test_our_capability_stands_in_the_masters_table(agent: AgentProcess, master: Snmpd) -> None:
    assert f".{HA}" in master.ask("snmpwalk", COMMUNITY, "1.3.6.1.2.1.1.9.1.2")
    assert "The MIB module of hasnmp" in master.ask("snmpwalk", COMMUNITY, "1.3.6.1.2.1.1.9.1.3")


def test_a_set_is_a_command_by_agentx(agent: AgentProcess, master: Snmpd, engine: FakeEngine) -> None:
    lock = master.ask("snmpget", [*COMMUNITY, "-Oqv"], SPIN_LOCK)
    master.ask(
        "snmpset", WRITER, SPIN_LOCK, "i", lock, ACTION, "i", str(int(Verb.FAILOVER)), TARGET, "s", "web",
        TO, "s", "beta", SCALARS["haActionReason"], "s", "kernel update",
    )  # fmt: skip
    (command,) = engine.commands
    assert {key: command[key] for key in ("verb", "target", "to", "reason", "requester", "address")} == {
        "verb": int(Verb.FAILOVER), "target": "web", "to": "beta", "reason": "kernel update", "requester": "snmp:agentx",
        "address": master.socket,
    }  # fmt: skip
    assert master.ask("snmpget", [*COMMUNITY, "-Oqv"], SPIN_LOCK) == str((int(lock) + 1) % 2**31)


@pytest.mark.parametrize(
    ("assignments", "reason", "failed"),
    [
        ((NAME, "s", "x"), "notWritable", NAME),
        ((f"{HA}.9.9.9.0", "i", "1"), "notWritable", f"{HA}.9.9.9.0"),
        ((INHIBIT, "i", "1", ACTION, "s", "failover"), "wrongType", ACTION),
        ((ACTION, "i", "99"), "wrongValue", ACTION),
        (
            (INHIBIT, "i", "1", cell("haGroupInhibit", "nobody"), "i", "1"),
            "noCreation",
            cell("haGroupInhibit", "nobody"),
        ),
        ((TARGET, "s", "x" * 300), "wrongLength", TARGET),
        ((SPIN_LOCK, "i", "0", INHIBIT, "i", "1"), "inconsistentValue", SPIN_LOCK),
        ((ACTION, "i", str(int(Verb.FAILOVER)), TARGET, "s", "nobody"), "inconsistentValue", TARGET),
    ],
)
def test_a_set_that_is_refused(
    agent: AgentProcess, master: Snmpd, engine: FakeEngine, assignments: tuple[str, ...], reason: str, failed: str
) -> None:
    result = master.run("snmpset", WRITER, *assignments)
    assert result.returncode == 2
    assert f"Reason: {reason}" in result.stderr
    assert f"Failed object: .{failed}" in result.stderr
    assert not engine.commands


def test_what_the_engine_refuses_fails_to_be_committed(agent: AgentProcess, master: Snmpd, engine: FakeEngine) -> None:
    engine.verdicts = [CommandState.REFUSED]
    result = master.run("snmpset", WRITER, INHIBIT, "i", "1")
    assert "Reason: commitFailed" in result.stderr
    assert len(engine.commands) == 1
    engine.verdicts = [CommandState.ACCEPTED, CommandState.REFUSED]  # the first of two is begun, and taken back
    result = master.run("snmpset", WRITER, INHIBIT, "i", "1", cell("haGroupInhibit", "web"), "i", "1")
    assert "Reason: commitFailed" in result.stderr
    assert [command["verb"] for command in engine.commands[1:]] == [Verb.INHIBIT, Verb.INHIBIT, Verb.PERMIT]
    engine.verdict = None  # an engine that says nothing at all, as one that is stopped: it may yet do it
    result = master.run("snmpset", WRITER, INHIBIT, "i", "1", seconds=2)
    assert "Reason: undoFailed" in result.stderr
    assert len(engine.commands) == 5


def test_a_set_that_fails_elsewhere_is_not_begun(agent: AgentProcess, master: Snmpd, engine: FakeEngine) -> None:
    result = master.run("snmpset", WRITER, INHIBIT, "i", "1", SYS_UP_TIME, "t", "5")
    assert "Reason: notWritable" in result.stderr
    assert not engine.commands
    master.ask("snmpset", WRITER, INHIBIT, "i", "1")
    assert len(engine.commands) == 1


def test_undo(agent: AgentProcess, master: Snmpd, engine: FakeEngine) -> None:
    """Another subagent fails when ours has committed: what is a register goes back, and of a move we say that it can't."""
    other = OtherSubagent(master.socket)
    try:
        theirs = dotted(other.OBJECT)
        lock = master.ask("snmpget", [*COMMUNITY, "-Oqv"], SPIN_LOCK)
        result = master.run("snmpset", WRITER, SPIN_LOCK, "i", lock, theirs, "i", "1")
        assert "Reason: commitFailed" in result.stderr, result.stderr
        assert 10 in other.phases  # UndoSet
        assert master.ask("snmpget", [*COMMUNITY, "-Oqv"], SPIN_LOCK) == lock
        assert not engine.commands
        result = master.run("snmpset", WRITER, SPIN_LOCK, "i", lock, INHIBIT, "i", "1", theirs, "i", "1")
        assert "Reason: commitFailed" in result.stderr, result.stderr
        assert [command["verb"] for command in engine.commands] == [Verb.INHIBIT, Verb.PERMIT]
        assert master.ask("snmpget", [*COMMUNITY, "-Oqv"], SPIN_LOCK) == lock
        result = master.run(
            "snmpset", WRITER, ACTION, "i", str(int(Verb.FAILOVER)), TARGET, "s", "web", theirs, "i", "1"
        )
        assert "Reason: undoFailed" in result.stderr, result.stderr
        assert len(engine.commands) == 3
    finally:
        other.close()


def test_a_notification_leaves_by_the_master(
    agent: AgentProcess, master: Snmpd, engine: FakeEngine, trap_port: int, tmp_path: Path
) -> None:
    with trap_receiver(tmp_path, trap_port) as output:
        event = an_event(901, Kind.TAKEOVER_COMPLETED)
        engine.happen(event)
        wait_for(lambda: "what happened, 901" in output.read_text())
        (line,) = [line for line in output.read_text().splitlines() if "what happened, 901" in line]
        assert line.startswith(f".{SYS_UP_TIME} = Timeticks: (")
        ticks = int(re.search(r"Timeticks: \((\d+)\)", line)[1])  # type: ignore[index]
        up = int(master.ask("snmpget", [*COMMUNITY, "-Oqvt"], SYS_UP_TIME))
        assert 0 <= up - ticks <= 500
        assert f".1.3.6.1.6.3.1.1.4.1.0 = OID: .{HA}.0." in line
        assert '"bank"' in line


def test_a_master_that_is_stopped_harms_nothing(
    agent: AgentProcess, master: Snmpd, engine: FakeEngine, trap_port: int, tmp_path: Path
) -> None:
    with trap_receiver(tmp_path, trap_port) as output:
        master.send_signal(signal.SIGSTOP)
        try:
            since = time.monotonic()
            for number in range(910, 930):
                engine.happen(an_event(number, service=f"s{number}"))
            wait_for(lambda: "929" in agent.ask("snmpget", V2C_READ, dotted((*COLUMNS["haEventText"], 929))))
            agent.ask("snmpset", ["-v2c", "-c", "touch"], INHIBIT, "i", "1")
            assert len(rows_of(agent.ask("snmpbulkwalk", V2C_READ, HA))) > 300
            assert time.monotonic() - since < 10
            assert "what happened" not in output.read_text()
        finally:
            master.send_signal(signal.SIGCONT)
        wait_for(lambda: "what happened, 929" in output.read_text(), 30)
        told = [int(n) for n in re.findall(r"what happened, (9\d\d)", output.read_text())]
        assert sorted(set(told)) == list(range(910, 930))
        wait_for(lambda: registered(master))


def test_a_master_that_is_restarted_is_found_again(
    agent: AgentProcess, master: Snmpd, engine: FakeEngine, trap_port: int, tmp_path: Path
) -> None:
    master.stop(signal.SIGKILL)
    engine.happen(an_event(950, service="meanwhile"))
    assert agent.ask("snmpget", [*V2C_READ, "-Oqv"], NAME) == '"alpha"'
    with trap_receiver(tmp_path, trap_port) as output:
        master.start()
        wait_for(lambda: registered(master))
        wait_for(lambda: "what happened, 950" in output.read_text())
    master.stop()
    master.start()
    wait_for(lambda: registered(master))
    log = agent.log.read_text()
    assert "agentx_master_lost" in log
    assert log.count("agentx_master_lost") <= 6  # once for each reason of an outage, however many attempts it takes


def test_read_is_all_that_a_master_may_by_default(tmp_path: Path) -> None:
    """Over TCP, without a port of our own, and its rows go when it goes."""
    engine = FakeEngine(tmp_path / "control.sock", a_view())
    with snmpd(tmp_path, socket_name=f"tcp:127.0.0.1:{free_port()}") as master:
        agent = AgentProcess(a_config(tmp_path, agentx=master.socket, listen=()))
        try:
            wait_for(lambda: registered(master))
            result = master.run("snmpset", WRITER, INHIBIT, "i", "1")
            assert "Reason: noAccess" in result.stderr
            assert not engine.commands
            wait_for(lambda: engine.records)
            (record,) = engine.records
            assert (record["requester"], record["address"]) == ("snmp:agentx", master.socket)
            assert "haInhibit.0 answered with no access" in record["message"]
        finally:
            assert agent.stop() == 0, agent.log.read_text()
            engine.stop()
        wait_for(lambda: "No Such Object" in master.run("snmpget", COMMUNITY, NAME).stdout)
        assert HA not in master.ask("snmpwalk", COMMUNITY, "1.3.6.1.2.1.1.9.1.2")
