"""The agent process, asked with Debian's Net-SNMP tools: reading, access, SETs, and what it says while its engine is away."""

from __future__ import annotations

import asyncio
import pickle
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hasnmp import protocol
from hasnmp.model import CommandState, GroupState, NodeRow, PartState, Verb
from hasnmp.settings import Community
from hasnmp.snmp import ber, ha_objects, receivers, standard
from hasnmp.snmp.objects import Reader, Syntax, text_index
from hasnmp.snmp.oids import ROOT
from tests.cluster.control import control
from tests.cluster.pair import cpu_s
from tests.cluster.watch import spent_ms
from tests.snmp.snmp_lab import (
    AUTH,
    BULK,
    ENVIRONMENT,
    OPERATE,
    PRIV,
    READ,
    SET,
    SYS_UP_TIME,
    V2C_READ,
    V2C_WRITE,
    WATCH,
    WRITE,
    AgentProcess,
    Answer,
    FakeEngine,
    a_config,
    a_pdu,
    a_view,
    an_event,
    binding,
    dotted,
    free_port,
    now_ns,
    rows_of,
    running,
    v2c,
    wait_for,
)  # fmt: skip

SCALARS = {scalar.name: dotted((*scalar.oid, 0)) for scalar in ha_objects.SCALARS}
COLUMNS = {c.name: (*t.entry_oid, c.number) for t in ha_objects.TABLES for c in t.columns}
ENGINE_STATE, DATA_AGE, SPIN_LOCK = SCALARS["haEngineState"], SCALARS["haDataAge"], SCALARS["haActionSpinLock"]
ACTION, TARGET, TO, REASON = (SCALARS[n] for n in ("haAction", "haActionTarget", "haActionTo", "haActionReason"))
HERE = Path(__file__).parent
MIBS = ["-m", "HASNMP-MIB", "-M", f"{HERE.parents[1] / 'mibs'}:{next(Path('/usr/lib/erlang/lib').glob('snmp-*/mibs'))}"]
SERIAL = "1.3.6.1.6.3.1.1.6.1.0"
BAD_NAMES, PARSE_ERRORS = "1.3.6.1.2.1.11.4.0", "1.3.6.1.2.1.11.6.0"


def cell(column: str, name: str) -> str:
    return dotted((*COLUMNS[column], *text_index(name)))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeEngine]:
    fake = FakeEngine(tmp_path_factory.mktemp("agent") / "control.sock", a_view())
    yield fake
    fake.stop()


@pytest.fixture(scope="module")
def agent(engine: FakeEngine) -> Iterator[AgentProcess]:
    with running(a_config(engine.path.parent)) as process:
        wait_for(lambda: process.value(V2C_READ, ENGINE_STATE) == str(int(PartState.UP)))
        yield process


# ------------------------------------------------------------------------------------------------------------- reading


def test_it_answers_within_two_seconds_of_its_start_even_without_an_engine(tmp_path: Path) -> None:
    """Two seconds of its own, computed or waited: what else the machine does meanwhile is not counted."""
    begun = time.monotonic()
    process = AgentProcess(a_config(tmp_path))
    try:
        wait_for(lambda: process.datagram(v2c(a_pdu(BULK, [], 0, 0)), 0.05))
        took_s, schedstat = time.monotonic() - begun, Path(f"/proc/{process.process.pid}/schedstat").read_text()
        ran_s, queued_s = (int(word) / 1e9 for word in schedstat.split()[:2])
        assert cpu_s([process.process.pid]) < 2.0
        assert took_s - queued_s - ran_s < 2.0, "it waited for something"
        assert process.value(V2C_READ, ENGINE_STATE) == str(int(PartState.DOWN))
    finally:
        assert process.stop() == 0


def test_a_walk_returns_every_readable_object_and_nothing_else(agent: AgentProcess, engine: FakeEngine) -> None:
    seen = list(rows_of(agent.ask("snmpwalk", V2C_READ, "1.3")))
    assert seen == sorted(seen, key=lambda oid: tuple(map(int, oid.split("."))))
    reader = Reader(engine.view, 0, now_ns())
    wanted = {dotted((*s.oid, 0)) for s in ha_objects.SCALARS if s.read(reader) is not None}
    assert {name for name, oid in SCALARS.items() if oid not in wanted} == set()
    wanted |= {dotted((*s.oid, 0)) for s in receivers.scalars(receivers.Board())}
    for table in ha_objects.TABLES:
        rows = list(table.rows(engine.view))
        assert rows, f"the test's view has no row of {table.name}"
        wanted |= {
            dotted((*table.entry_oid, c.number, *index))
            for c in table.columns for index, row in rows if c.read(reader, row) is not None
        }  # fmt: skip
    below = dotted(ROOT) + "."
    assert {oid for oid in seen if oid.startswith(below)} == wanted
    others = {oid for oid in seen if not oid.startswith(below)}
    identity = standard.Identity(b"", 1, lambda: 0, 0, "", "", standard.Counters())
    assert others == {dotted((*s.oid, 0)) for s in (*standard.scalars(identity), *receivers.target_scalars())} | {
        f"1.3.6.1.2.1.1.9.1.{column}.{row}" for column in (2, 3, 4) for row in range(1, len(standard.CAPABILITIES) + 1)
    }


@pytest.mark.parametrize("auth", [V2C_READ, OPERATE, WATCH], ids=["v2c", "operate", "watch"])
@pytest.mark.parametrize("words", [["-Cr10"], ["-Cr1"], ["-Cr200"]], ids="".join)
def test_bulkwalk_and_walk_agree(agent: AgentProcess, auth: list[str], words: list[str]) -> None:
    below = dotted((*ROOT, 1))
    bulk = rows_of(agent.ask("snmpbulkwalk", [*auth, *words], below))
    plain = rows_of(agent.ask("snmpwalk", V2C_READ, below))
    assert list(bulk) == list(plain) and len(bulk) > 200


def test_table_get_getnext_and_bulkget(agent: AgentProcess) -> None:
    for words in (["-CB"], ["-Cr", "3"]):
        table = agent.ask("snmptable", [*OPERATE, *MIBS, "-OS", "-Ci", "-Cf", "|", *words], "HASNMP-MIB::haGroupTable")
        title, _, heads, *rows = table.splitlines()
        assert title == "SNMP table: HASNMP-MIB::haGroupTable" and len(rows) == 2
        web = dict(zip(heads.split("|"), next(r for r in rows if '"web"' in r).split("|"), strict=True))
        assert (web["haGroupState"], web["haGroupOwner"], web["haGroupFreeze"]) == ("running", "alpha", "false")
    both = agent.ask("snmpget", WATCH, SYS_UP_TIME, cell("haGroupOwner", "web"))
    assert both.splitlines()[1].endswith('STRING: "alpha"')
    after = agent.ask("snmpgetnext", V2C_READ, dotted(COLUMNS["haGroupOwner"]))
    assert list(rows_of(after)) == [cell("haGroupOwner", "web")]
    bulk = agent.ask("snmpbulkget", [*OPERATE, "-Cn1", "-Cr3"], "1.3.6.1.2.1.1.1", dotted(COLUMNS["haServiceState"]))
    assert len(rows_of(bulk)) == 4


def test_what_is_not_there(agent: AgentProcess) -> None:
    result = agent.run("snmpget", V2C_READ, cell("haGroupOwner", "nobody"), "1.3.6.1.4.1.8072.1.0")
    assert "No Such Instance" in result.stdout and "No Such Object" in result.stdout
    assert "No more variables left" in agent.run("snmpgetnext", V2C_READ, "2.5").stdout


def test_values_follow_the_engine(agent: AgentProcess, engine: FakeEngine) -> None:
    old = engine.view.tables["groups"]["web"]
    state = cell("haGroupState", "web")
    assert agent.value(V2C_READ, state) == str(int(GroupState.RUNNING))
    engine.change({"groups": {"web": replace(old, state=GroupState.STOPPING)}})  # type: ignore[type-var]
    wait_for(lambda: agent.value(V2C_READ, state) == str(int(GroupState.STOPPING)))
    engine.change({"groups": {"web": old}, "nodes": {"gamma": NodeRow("gamma")}})
    wait_for(lambda: len(rows_of(agent.ask("snmpwalk", V2C_READ, dotted(COLUMNS["haNodeState"])))) == 3)
    engine.change({}, {"nodes": ["gamma"]})
    wait_for(lambda: len(rows_of(agent.ask("snmpwalk", V2C_READ, dotted(COLUMNS["haNodeState"])))) == 2)
    event = max(map(int, engine.view.tables["events"])) + 1
    engine.happen(an_event(event))
    text = dotted((*COLUMNS["haEventText"], event))
    wait_for(lambda: f"what happened, {event}" in agent.run("snmpget", V2C_READ, text).stdout)


def test_getbulk_is_cut_to_the_managers_message_size(agent: AgentProcess) -> None:
    """snmpd itself hangs on such a request; pysnmp does not answer it."""
    line = ["snmpbulkget", "-On", "-r1", "-t2", "-Cr50", *OPERATE, "--sendMessageMaxSize=600"]
    result = subprocess.run(
        [*line, f"127.0.0.1:{agent.port}", dotted(COLUMNS["haServiceMessage"])],
        capture_output=True, text=True, env=ENVIRONMENT, timeout=20,
    )  # fmt: skip
    assert result.returncode == 0 and 1 <= len(rows_of(result.stdout)) <= 50, result
    out = agent.datagram(v2c(a_pdu(BULK, [binding((1, 3))], 0, 2**31 - 1)), 2.0)
    assert out is not None and len(Answer(out).names) > 200


def test_system_and_engine_groups(agent: AgentProcess) -> None:
    assert "hasnmp" in agent.value(WATCH, "1.3.6.1.2.1.1.1.0")
    assert agent.value(WATCH, "1.3.6.1.2.1.1.2.0") == "." + dotted(ROOT)
    assert agent.value(WATCH, "1.3.6.1.2.1.1.5.0") == "alpha"  # as everywhere else
    assert agent.value(WATCH, "1.3.6.1.6.3.10.2.1.2.0") == "1"
    assert agent.value(WATCH, "1.3.6.1.6.3.10.2.1.4.0") == "65507"
    first = int(agent.value([*WATCH, "-Ot"], SYS_UP_TIME))
    wait_for(lambda: int(agent.value([*WATCH, "-Ot"], SYS_UP_TIME)) > first)


# -------------------------------------------------------------------------------------------------------------- access


def refusal(agent: AgentProcess, *auth: str) -> str:
    result = agent.run("snmpget", ["-t1", "-r0", *auth], SYS_UP_TIME)
    assert result.returncode != 0
    return result.stdout + result.stderr


def usm_counter(agent: AgentProcess, number: int) -> int:
    return agent.counter(f"1.3.6.1.6.3.15.1.1.{number}.0")


def test_wrong_credentials_are_refused_and_counted(agent: AgentProcess) -> None:
    known = ["-v3", "-u", "noc", "-a", "SHA-256", "-x", "AES"]
    good = ["-A", AUTH, "-X", PRIV]
    plain = ["-v3", "-u", "plain", "-a", "SHA-256", "-A", AUTH]
    for number, words, text in (
        (1, [*plain, "-x", "AES", "-X", PRIV, "-l", "authPriv"], "nsupported security level"),
        (3, [*known, *good, "-l", "authPriv", "-u", "nobody"], "nknown user name"),
        (5, [*known, "-A", "wrong-password", "-X", PRIV, "-l", "authPriv"], "uthentication failure"),
        (5, ["-v3", "-u", "noc", "-a", "SHA", "-A", AUTH, "-l", "authNoPriv"], ""),
        (6, [*known, "-A", AUTH, "-X", "wrong-password", "-l", "authPriv"], "ecryption error"),
    ):
        before = usm_counter(agent, number), usm_counter(agent, 1)
        assert text in refusal(agent, *words), words
        assert (usm_counter(agent, number), usm_counter(agent, 1)) != before, words
    assert agent.value([*plain, "-l", "authNoPriv"], SYS_UP_TIME)
    # The protocols are there, the access is not: VACM's word, not USM's, and nothing is counted.
    unsupported = usm_counter(agent, 1)
    bare = ["-v3", "-u", "noc", "-l", "noAuthNoPriv"]
    for words in ([*known, *good, "-l", "authNoPriv"], bare, [*plain, "-l", "noAuthNoPriv"]):
        for tool, more in (("snmpget", [SYS_UP_TIME]), ("snmpgetnext", [SYS_UP_TIME]), ("snmpset", [SERIAL, "i", "1"])):
            said = agent.run(tool, words, *more)
            assert "authorizationError" in said.stderr and not said.stdout, (tool, words, said)
    assert usm_counter(agent, 1) == unsupported


def test_a_message_of_another_time_is_refused_and_counted(agent: AgentProcess) -> None:
    """-Z: boots and time as the manager believes them; the Report corrects it, and only the second try is answered."""
    before = usm_counter(agent, 2)
    assert agent.value([*OPERATE, "-Z", "0,5"], SYS_UP_TIME)
    assert usm_counter(agent, 2) == before + 1


def test_unknown_contexts_and_engines(agent: AgentProcess) -> None:
    before = agent.counter("1.3.6.1.6.3.12.1.5.0")
    assert "Bad context" in refusal(agent, *OPERATE, "-n", "elsewhere")
    assert agent.counter("1.3.6.1.6.3.12.1.5.0") == before + 1
    before = agent.counter("1.3.6.1.6.3.11.2.1.3.0")
    refusal(agent, *OPERATE, "-E", "0x80007ed9050102030405")
    assert agent.counter("1.3.6.1.6.3.11.2.1.3.0") == before + 1


def test_a_wrong_community_gets_no_answer(agent: AgentProcess) -> None:
    for version in ("-v1", "-v2c"):
        before = agent.counter(BAD_NAMES)
        assert "Timeout" in refusal(agent, version, "-c", "wrong")
        assert agent.counter(BAD_NAMES) == before + 1


def test_version_1_reads_walks_and_sets(agent: AgentProcess, engine: FakeEngine) -> None:
    v1 = ["-v1", "-c", READ.decode()]
    plain, one = (rows_of(agent.ask("snmpwalk", auth, dotted(ROOT))) for auth in (V2C_READ, v1))
    assert list(plain) == list(one) and len(one) > 200
    assert error_of(agent.run("snmpget", v1, SYS_UP_TIME, cell("haGroupOwner", "nobody"))) == (
        "noSuchName", cell("haGroupOwner", "nobody"),
    )  # fmt: skip
    write = ["-v1", "-c", WRITE.decode()]
    before = len(engine.commands)
    agent.ask("snmpset", write, cell("haGroupInhibit", "web"), "i", "1")
    assert [c["verb"] for c in engine.commands[before:]] == [Verb.INHIBIT]
    for words, status in (
        ([ACTION, "i", "99"], "badValue"), ([ACTION, "s", "2"], "badValue"), ([SYS_UP_TIME, "t", "1"], "noSuchName"),
        ([cell("haGroupInhibit", "nobody"), "i", "1"], "noSuchName"),
    ):  # fmt: skip
        assert error_of(agent.run("snmpset", write, *words))[0] == status
    assert error_of(agent.run("snmpset", v1, ACTION, "i", "2"))[0] == "noSuchName"


WRITABLE = [(s.name, dotted((*s.oid, 0)), s.syntax) for s in ha_objects.SCALARS if s.write] + [
    (c.name, cell(c.name, "httpd" if t.name == "haServiceTable" else "web"), c.syntax)
    for t in ha_objects.TABLES for c in t.columns if c.write
]  # fmt: skip
TYPES = {Syntax.INTEGER32: ("i", "2"), Syntax.OCTETS: ("s", "web"), Syntax.UNSIGNED32: ("u", "2")}


def test_who_may_only_read_can_set_nothing(agent: AgentProcess, engine: FakeEngine) -> None:
    assert len(WRITABLE) >= 10
    before = list(engine.commands)
    everything = [("snmpSetSerialNo", SERIAL, Syntax.INTEGER32), *WRITABLE]
    for auth in (WATCH, V2C_READ):
        for _, oid, syntax in everything:
            result = agent.run("snmpset", auth, oid, *TYPES[syntax])
            assert result.returncode == 2 and "authorizationError" in result.stderr, (oid, result)
        for values in (("2",), (agent.value(WATCH, SPIN_LOCK),)):
            result = agent.run("snmpset", auth, SPIN_LOCK, "i", *values, ACTION, "i", "2", TARGET, "s", "web")
            assert "authorizationError" in result.stderr
    assert engine.commands == before


def test_a_community_writes_only_from_its_networks_and_only_if_that_is_allowed(tmp_path: Path) -> None:
    fake = FakeEngine(tmp_path / "control.sock", a_view())
    communities = (
        Community("read", (), READ),
        Community("operate", ("192.0.2.0/24",), b"far"),
        Community("operate", (), b"w"),
    )
    with running(a_config(tmp_path, communities=communities, allow_insecure_set=False)) as process:
        result = process.run("snmpset", ["-v2c", "-c", "w"], ACTION, "i", "2", TARGET, "s", "web")
        assert "authorizationError" in result.stderr
        assert "Timeout" in process.run("snmpset", ["-v2c", "-c", "far", "-r0"], ACTION, "i", "2").stderr
        assert process.counter("1.3.6.1.2.1.11.5.0") == 1
    assert fake.commands == []
    fake.stop()


# ---------------------------------------------------------------------------------------------------------------- SETs


def error_of(result: subprocess.CompletedProcess[str]) -> tuple[str, str]:
    """What an error answer says, and the name of the variable that it blames."""
    assert result.returncode == 2, result
    reason = re.search(r"^Reason: \(?(\w+)", result.stderr, re.M)
    blamed = re.search(r"^Failed object: \.?([\d.]+)", result.stderr, re.M)
    assert reason, result
    return reason[1], blamed[1] if blamed else ""


@pytest.mark.parametrize("auth", [OPERATE, V2C_WRITE], ids=["v3", "v2c"])
def test_a_set_becomes_a_command_with_who_asked(agent: AgentProcess, engine: FakeEngine, auth: list[str]) -> None:
    del engine.commands[:]
    agent.ask("snmpset", auth, ACTION, "i", "2", TARGET, "s", "web", TO, "s", "beta", REASON, "s", "maintenance")
    tag = "noc" if auth is OPERATE else "community-2"
    [command] = engine.commands
    assert {k: v for k, v in command.items() if k != "id"} == {
        "type": "command", "verb": Verb.FAILOVER, "target": "web", "to": "beta", "reason": "maintenance",
        "requester": f"snmp:{tag}", "address": "127.0.0.1",
    }  # fmt: skip
    agent.ask("snmpset", auth, cell("haGroupAction", "database"), "i", "2")
    assert (engine.commands[-1]["verb"], engine.commands[-1]["target"]) == (Verb.FAILOVER, "database")
    agent.ask("snmpset", auth, cell("haGroupInhibit", "web"), "i", "1", cell("haGroupFreeze", "database"), "i", "1")
    assert [c["verb"] for c in engine.commands[2:]] == [Verb.INHIBIT, Verb.FREEZE]
    # An action is read back as no action.
    assert agent.value(WATCH, ACTION) == "1"


SET_ERRORS = [
    ([ACTION, "s", "2"], "wrongType"),
    ([ACTION, "u", "2"], "wrongType"),
    ([TARGET, "i", "2"], "wrongType"),
    ([ACTION, "i", "99"], "wrongValue"),
    ([TARGET, "s", "x" * 64], "wrongLength"),
    ([TARGET, "x", "ff"], "wrongValue"),
    ([SYS_UP_TIME, "t", "5"], "notWritable"),
    ([cell("haGroupState", "web"), "i", "5"], "notWritable"),
    (["1.3.6.1.4.1.8072.1.0", "i", "5"], "notWritable"),
    ([cell("haGroupAction", "nobody"), "i", "2"], "noCreation"),
    ([dotted((*COLUMNS["haGroupAction"], 5)), "i", "2"], "noCreation"),
    ([SERIAL, "s", "5"], "wrongType"),
    ([SERIAL.removesuffix(".0") + ".1", "i", "5"], "noCreation"),
]


@pytest.mark.parametrize(("words", "reason"), SET_ERRORS, ids=lambda value: str(value)[:60])
@pytest.mark.parametrize("first", [False, True], ids=["alone", "second"])
def test_a_set_that_cannot_be_is_refused_whole(
    agent: AgentProcess, engine: FakeEngine, words: list[str], reason: str, first: bool
) -> None:
    before = list(engine.commands)
    lock = agent.value(WATCH, SPIN_LOCK)
    good = [cell("haGroupInhibit", "web"), "i", "1", SPIN_LOCK, "i", lock] if first else []
    assert error_of(agent.run("snmpset", OPERATE, *good, *words)) == (reason, words[0])
    assert engine.commands == before and agent.value(WATCH, SPIN_LOCK) == lock


def test_the_spin_lock_starts_anywhere(agent: AgentProcess, tmp_path: Path) -> None:
    """A console that read it before a restart must not hit it after (RFC 2579, TestAndIncr)."""
    with running(a_config(tmp_path)) as other:
        assert other.value(V2C_READ, SPIN_LOCK) != agent.value(V2C_READ, SPIN_LOCK)


def test_the_spin_lock_goes_with_the_action_and_lets_one_of_two_through(
    agent: AgentProcess, engine: FakeEngine
) -> None:
    lock = int(agent.value(WATCH, SPIN_LOCK))
    line = [SPIN_LOCK, "i", str(lock), ACTION, "i", "2", TARGET, "s", "web"]
    del engine.commands[:]
    agent.ask("snmpset", OPERATE, *line)
    assert int(agent.value(WATCH, SPIN_LOCK)) == lock + 1
    assert error_of(agent.run("snmpset", OPERATE, *line)) == ("inconsistentValue", SPIN_LOCK)
    assert len(engine.commands) == 1
    serial = int(agent.value(WATCH, SERIAL))
    agent.ask("snmpset", OPERATE, SERIAL, "i", str(serial))
    assert error_of(agent.run("snmpset", OPERATE, SERIAL, "i", str(serial))) == ("inconsistentValue", SERIAL)
    assert int(agent.value(WATCH, SERIAL)) == (serial + 1) % 2**31


def test_what_the_engine_refuses_is_an_error_that_blames_the_right_variable(
    agent: AgentProcess, engine: FakeEngine
) -> None:
    lock = agent.value(WATCH, SPIN_LOCK)
    engine.verdict = CommandState.REFUSED
    try:
        del engine.commands[:]
        line = [SPIN_LOCK, "i", lock, REASON, "s", "why", cell("haGroupAction", "web"), "i", "2"]
        line += [cell("haGroupFreeze", "database"), "i", "1"]
        # What can be taken back goes first.
        assert error_of(agent.run("snmpset", OPERATE, *line)) == (
            "inconsistentValue",
            cell("haGroupFreeze", "database"),
        )
        assert [c["verb"] for c in engine.commands] == [Verb.FREEZE], "nothing follows what was refused"
        assert agent.value(WATCH, SPIN_LOCK) == lock
        # Refused later: what was done is undone.
        del engine.commands[:]
        engine.verdicts = [CommandState.ACCEPTED, CommandState.REFUSED, CommandState.ACCEPTED]
        line[-1] = "1"
        assert error_of(agent.run("snmpset", [*OPERATE, "-r0"], *line)) == (
            "commitFailed",
            cell("haGroupAction", "web"),
        )
        done = [(c["verb"], c["target"]) for c in engine.commands]
        assert done == [(Verb.FREEZE, "database"), (Verb.FAILOVER, "web"), (Verb.THAW, "database")]
        # What was so before is so afterwards: nothing to undo.
        del engine.commands[:]
        engine.verdicts = [CommandState.ACCEPTED, CommandState.REFUSED]
        line[-1] = "2"
        assert error_of(agent.run("snmpset", OPERATE, *line))[0] == "commitFailed"
        assert [c["verb"] for c in engine.commands] == [Verb.THAW, Verb.FAILOVER]
        # An undo that is refused too, and a failover, which nothing can undo.
        engine.verdicts = [CommandState.ACCEPTED, CommandState.REFUSED]
        line[-1] = "1"
        assert error_of(agent.run("snmpset", OPERATE, *line)) == ("undoFailed", "")
        engine.verdicts = [CommandState.ACCEPTED, CommandState.REFUSED, CommandState.ACCEPTED]
        two = [cell("haGroupAction", "web"), "i", "2", cell("haGroupAction", "database"), "i", "2"]
        assert error_of(agent.run("snmpset", OPERATE, *two)) == ("undoFailed", "")
        assert agent.value(WATCH, SPIN_LOCK) == lock
    finally:
        engine.verdict, engine.verdicts = CommandState.ACCEPTED, []


def test_an_engine_that_says_nothing_is_a_generr_within_a_second_and_repeats_are_one_set(
    agent: AgentProcess, engine: FakeEngine
) -> None:
    engine.verdict = None
    try:
        del engine.commands[:]
        begun = time.monotonic()
        assert agent.value(V2C_READ, cell("haGroupAction", "web"))
        asked_s = time.monotonic() - begun  # what an answer at once costs here and now, Net-SNMP's start included
        control()  # it must have been there before anything is judged by it
        begun_ns = time.monotonic_ns()
        result = agent.run("snmpset", [*V2C_WRITE, "-t0.3", "-r20"], cell("haGroupAction", "web"), "i", "2")
        assert error_of(result) == ("genError", cell("haGroupAction", "web"))
        assert spent_ms(begun_ns, time.monotonic_ns()) / 1000 < 1.5 + 2 * asked_s
        assert len(engine.commands) == 1
    finally:
        engine.verdict = CommandState.ACCEPTED


def test_a_set_whose_answer_was_lost_is_not_done_again(agent: AgentProcess, engine: FakeEngine) -> None:
    """A manager repeats it word for word; the same words after another SET, or under another number, are a new one."""
    inhibit = next((*s.oid, 0) for s in ha_objects.SCALARS if s.name == "haInhibit")

    def send(value: int, request_id: int) -> Answer:
        pdu = a_pdu(SET, [binding(inhibit, bytes((2, 1, value)))], request_id=request_id)
        out = agent.datagram(v2c(pdu, WRITE), 5.0)
        assert out is not None
        answer = Answer(out)
        assert (answer.request_id, answer.status) == (request_id, 0)
        return answer

    before = len(engine.commands)
    for value, request_id, commands in ((1, 5, 1), (1, 5, 1), (1, 6, 2), (2, 5, 3), (1, 5, 4), (1, 5, 4)):
        send(value, request_id)
        assert len(engine.commands) - before == commands, (value, request_id)


def test_the_agent_answers_while_a_set_waits(agent: AgentProcess, engine: FakeEngine) -> None:
    engine.verdict = None
    line = [
        "snmpset",
        "-On",
        "-t20",
        "-r0",
        *V2C_WRITE,
        f"127.0.0.1:{agent.port}",
        cell("haGroupAction", "web"),
        "i",
        "2",
    ]
    answered: list[bool] = []
    try:
        while not any(
            answered
        ):  # it waits for a second: a busy machine may need as long for one question, not each time
            del engine.commands[:]
            with subprocess.Popen(
                line, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            ) as waiting:
                wait_for(lambda: engine.commands)
                assert agent.value([*V2C_READ, "-r0", "-t20"], SYS_UP_TIME)
                answered.append(waiting.poll() is None)
            assert len(answered) <= 5, "each answer came when the SET was over"
    finally:
        engine.verdict = CommandState.ACCEPTED


# ----------------------------------------------------------------------------------------------- without an engine


def test_states_are_unknown_and_sets_refused_while_the_engine_is_away(tmp_path: Path) -> None:
    fake = FakeEngine(tmp_path / "control.sock", a_view())
    with running(a_config(tmp_path)) as process:
        state = cell("haGroupState", "web")
        wait_for(lambda: process.value(V2C_READ, state) == str(int(GroupState.RUNNING)))
        assert int(process.value(V2C_READ, DATA_AGE)) < 1000
        fake.stop()
        wait_for(lambda: process.value(V2C_READ, state) == str(int(GroupState.UNKNOWN)))
        assert process.value(V2C_READ, ENGINE_STATE) == str(int(PartState.DOWN))
        assert int(process.value(V2C_READ, DATA_AGE)) >= 1000
        reason, blamed = error_of(process.run("snmpset", OPERATE, cell("haGroupAction", "web"), "i", "2"))
        assert (reason, blamed) == ("resourceUnavailable", cell("haGroupAction", "web"))
        fake.start()
        wait_for(lambda: process.value(V2C_READ, state) == str(int(GroupState.RUNNING)))
        assert process.value(V2C_READ, ENGINE_STATE) == str(int(PartState.UP))
        # Connected, but silent: a stopped engine is as good as none.
        fake.beating = False
        wait_for(lambda: process.value(V2C_READ, state) == str(int(GroupState.UNKNOWN)))
        fake.beating = True
        wait_for(lambda: process.value(V2C_READ, state) == str(int(GroupState.RUNNING)))
    fake.stop()


def test_an_engine_that_talks_nonsense_is_left_and_asked_again(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "control.sock"))
        server.listen()
        server.settimeout(10)
        with running(a_config(tmp_path)) as process:
            for nonsense in (b"not json\n", b'{"type": "snapshot"}\n', b'{"type": "delta", "rows": 5}\n'):
                client, _ = server.accept()
                client.sendall(nonsense)
                assert client.recv(1) == b""
                client.close()
            assert process.value(V2C_READ, ENGINE_STATE) == str(int(PartState.DOWN))


# ------------------------------------------------------------------------------------------------- the process itself


def test_an_event_of_a_kind_that_only_a_newer_engine_knows_is_left_out(agent: AgentProcess, engine: FakeEngine) -> None:
    message = protocol.event(an_event(99), None, "")
    message["event"]["kind"] = "aKindOfTomorrow"
    engine._say(message)
    state = replace(engine.view.tables["groups"]["web"], transitions=4711)
    engine.change({"groups": {"web": state}})  # comes after it on the same line
    wait_for(lambda: agent.value(V2C_READ, cell("haGroupTransitions", "web")) == "4711")
    assert agent.process.poll() is None


def test_engine_id_stays_and_boots_rise_over_restarts_however_it_ended(tmp_path: Path) -> None:
    config = a_config(tmp_path)
    seen = []
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGTERM):
        process = AgentProcess(config)
        wait_for(lambda process=process: process.run("snmpget", V2C_READ, SYS_UP_TIME).returncode == 0)
        seen.append([process.value(OPERATE, f"1.3.6.1.6.3.10.2.1.{n}.0") for n in (1, 2)])
        process.stop(number)
    assert [boots for _, boots in seen] == ["1", "2", "3"]
    assert len({engine_id for engine_id, _ in seen}) == 1 and len(seen[0][0].split()) == 17


def test_an_address_that_is_taken_or_absent_is_waited_for(tmp_path: Path) -> None:
    taken = free_port()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", taken))
        config = a_config(tmp_path)
        # 192.0.2.200 is on no interface here: it is listened on when it comes (test_listen.py), and said to be awaited.
        listen = (*config.snmp.listen, f"127.0.0.1:{taken}", f"192.0.2.200:{taken}")
        with running(replace(config, snmp=replace(config.snmp, listen=listen))) as process:
            other.close()
            wait_for(
                lambda: process.run("snmpget", V2C_READ, SYS_UP_TIME, target=f"127.0.0.1:{taken}").returncode == 0, 5
            )
            assert f"C80200C0:{taken:04X}" not in Path("/proc/net/udp").read_text()
            log = process.log.read_text()
            assert log.count("listen_failed") == 1 and log.count("listen_waiting") == 1
            assert "Address already in use; another program has that port: ss -lunp shows which" in log


def test_answers_leave_from_the_address_that_was_asked(tmp_path: Path) -> None:
    """On a wildcard listener as well: Net-SNMP's sockets are connected, so that an answer from elsewhere is not seen."""
    port, port6 = free_port(), free_port()
    config = a_config(tmp_path)
    listen = (*config.snmp.listen, f"0.0.0.0:{port}", f"[::]:{port6}", f"[::1]:{free_port()}")
    with running(replace(config, snmp=replace(config.snmp, listen=listen))) as process:
        for family, target in (
            (socket.AF_INET, ("127.7.7.7", port)), (socket.AF_INET, ("127.0.0.1", port)),
            (socket.AF_INET6, ("::1", port6)), (socket.AF_INET6, ("::1", int(listen[3].rpartition(":")[2]))),
        ):  # fmt: skip
            with socket.socket(family, socket.SOCK_DGRAM) as sock:
                sock.settimeout(20)
                sock.sendto(v2c(a_pdu(BULK, [binding((1, 3))], 0, 3)), target)
                data, source = sock.recvfrom(65535)
                assert source[:2] == target and len(Answer(data).names) == 3
        assert process.ask("snmpget", WATCH, SYS_UP_TIME)


def test_a_flood_of_garbage_and_of_large_wrong_communities_is_survived(agent: AgentProcess) -> None:
    big = v2c(a_pdu(BULK, [binding((1, 3, 6, 1, 2, 1, 1, 1, 0))] * 3500), b"wrong")
    before = agent.counter(PARSE_ERRORS), agent.counter(BAD_NAMES)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", agent.port))
        for number in range(300):
            sock.send(big)
            sock.send(bytes((0x30, number & 0xFF)) * 20)
        assert agent.value([*V2C_READ, "-r10"], SYS_UP_TIME)
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv(1)
    # The kernel drops what the socket has no room for; what came through was counted.
    assert agent.counter(PARSE_ERRORS) > before[0] and agent.counter(BAD_NAMES) > before[1]


def test_it_ends_when_its_parent_is_gone(tmp_path: Path) -> None:
    """A guardian that was killed must not leave an agent behind that answers for a dead node."""
    config = a_config(tmp_path)
    code = (
        "import os, pickle, sys\n"
        "from hasnmp.snmp import agent\n"
        "config = pickle.load(open(sys.argv[1], 'rb'))\n"
        "pid = os.fork()\n"
        "if not pid:\n"
        "    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)\n"
        "    os._exit(agent.main(config, 'alpha'))\n"
        "print(pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    (tmp_path / "config").write_bytes(pickle.dumps(config))
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "config")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.05)
        sock.connect(("127.0.0.1", int(config.snmp.listen[0].rpartition(":")[2])))

        def answers() -> bool:
            try:
                sock.send(v2c(a_pdu(BULK, [], 0, 0)))
                return bool(sock.recv(100))
            except OSError:
                return False

        wait_for(answers)
        parent.kill()
        parent.wait()
        wait_for(lambda: not answers() and not Path(f"/proc/{pid}/exe").exists())


# ------------------------------------------------------------------------------------------------ a second opinion


def test_pysnmp_reads_the_same_over_v3_and_v2c(agent: AgentProcess) -> None:
    from pysnmp.hlapi.v3arch import asyncio as hlapi

    async def bulk(auth: object) -> list[tuple[str, str]]:
        engine = hlapi.SnmpEngine()
        target = await hlapi.UdpTransportTarget.create(("127.0.0.1", agent.port), timeout=2, retries=1)
        trouble, status, _, found = await hlapi.bulk_cmd(
            engine, auth, target, hlapi.ContextData(), 1, 20,
            hlapi.ObjectType(hlapi.ObjectIdentity("1.3.6.1.2.1.1.1")),
            hlapi.ObjectType(hlapi.ObjectIdentity(dotted(COLUMNS["haServiceState"]))), lookupMib=False,
        )  # fmt: skip
        engine.close_dispatcher()
        assert not trouble and not status
        return [(str(name), value.prettyPrint()) for name, value in found]

    user = hlapi.UsmUserData(
        "noc", AUTH, PRIV, authProtocol=hlapi.USM_AUTH_HMAC192_SHA256, privProtocol=hlapi.USM_PRIV_CFB128_AES
    )
    found = asyncio.run(bulk(user))
    assert found == asyncio.run(bulk(hlapi.CommunityData(READ.decode())))
    assert found[0][0] == "1.3.6.1.2.1.1.1.0" and found[1] == (cell("haServiceState", "httpd"), "4")
    assert len(found) == 21


def test_every_answer_of_a_walk_is_decodable_by_pyasn1(agent: AgentProcess) -> None:
    from pyasn1.codec.ber import decoder
    from pysnmp.proto.api import v2c as api

    out = agent.datagram(v2c(a_pdu(BULK, [binding((1, 3))], 0, 500)), 2.0)
    assert out is not None
    message, rest = decoder.decode(out, asn1Spec=api.Message())
    assert not rest
    names = [tuple(name) for name, _ in api.apiPDU.get_varbinds(api.apiMessage.get_pdu(message))]
    assert names == Answer(out).names and ber.encode_oid(names[0])
