"""The subagent and masters that no real snmpd would be: other byte orders, contexts, search ranges, broken and blocked ones."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hasnmp.model import Verb
from hasnmp.snmp import agentx, agentx_sets, ber, ha_objects
from hasnmp.snmp import agentx_pdu as pdu
from hasnmp.snmp.agentx import BUSY_TRIES, Notice, Subagent, Times
from hasnmp.snmp.agentx_lookup import ROOM, Lookup
from hasnmp.snmp.agentx_pdu import BIG, LITTLE, Kind, Order
from hasnmp.snmp.cells import Store
from hasnmp.snmp.objects import Reader, Syntax, text_index
from hasnmp.snmp.oids import ROOT
from tests.snmp import views
from tests.snmp.agentx_lab import FakeMaster, bindings, bulk, ranges
from tests.snmp.snmp_lab import AgentProcess, FakeEngine, a_config, a_view, wait_for

SCALARS = {scalar.name: (*scalar.oid, 0) for scalar in ha_objects.SCALARS}
COLUMNS = {c.name: (*t.entry_oid, c.number) for t in ha_objects.TABLES for c in t.columns}
NAME, CLUSTER, INHIBIT = SCALARS["haNodeName"], SCALARS["haClusterName"], SCALARS["haInhibit"]
NOTHING: tuple[int, ...] = ()
END = 0x82


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeEngine]:
    fake = FakeEngine(tmp_path_factory.mktemp("session") / "control.sock", a_view())
    yield fake
    fake.stop()


@pytest.fixture(scope="module")
def server(engine: FakeEngine) -> Iterator[FakeMaster]:
    master = FakeMaster(engine.path.parent / "fake-master")
    yield master
    master.close()


@pytest.fixture(scope="module")
def agent(engine: FakeEngine, server: FakeMaster) -> Iterator[AgentProcess]:
    process = AgentProcess(
        a_config(engine.path.parent, agentx=str(engine.path.parent / "fake-master"), agentx_access="operate")
    )
    yield process
    assert process.stop() == 0, process.log.read_text()


@pytest.fixture
def master(agent: AgentProcess, server: FakeMaster) -> FakeMaster:
    """A connected master, its subagent having the engine's rows."""
    if server.client is None:
        server.accept()
        wait_for(lambda: server.get(Kind.GET, ranges((NAME, NOTHING)))[2][0][2] == b"alpha")
    return server


def names(found: list[pdu.Binding]) -> list[tuple[int, ...]]:
    return [pdu.subids(name) for name, _, _ in found]


def test_what_it_says_of_itself(agent: AgentProcess, master: FakeMaster) -> None:
    opening, registering, capable = master.seen[:3]
    assert [header.kind for header, _ in master.seen[:3]] == [Kind.OPEN, Kind.REGISTER, Kind.ADD_CAPABILITIES]
    assert all(header.order is BIG for header, _ in master.seen[:3])
    payload = opening[1]
    assert payload[0] == agentx.TIMEOUT_S
    name, _, pos = pdu.read_name(payload, 4, len(payload), BIG)
    assert pdu.subids(name) == ROOT
    assert pdu.read_octets(payload, pos, len(payload), BIG)[0] == b"hasnmp alpha"
    payload = registering[1]
    assert payload[:4] == bytes((0, 127, 0, 0))
    assert pdu.subids(pdu.read_name(payload, 4, len(payload), BIG)[0]) == ROOT
    assert registering[0].session == capable[0].session == master.session


@pytest.mark.parametrize("order", [BIG, LITTLE])
def test_both_byte_orders(master: FakeMaster, order: Order) -> None:
    got = master.get(Kind.GET, ranges((NAME, NOTHING), (CLUSTER, NOTHING), order=order), order=order)
    assert got == (0, 0, [(pdu.packed(NAME), ber.OCTETS, b"alpha"), (pdu.packed(CLUSTER), ber.OCTETS, b"bank")])
    error, index, found = master.get(
        Kind.BULK, bulk(1, 3, ranges((ROOT, NOTHING), (NAME, NOTHING), order=order), order), order=order
    )
    assert (error, index, len(found)) == (0, 0, 4)
    assert master.get(Kind.TEST_SET, bindings((INHIBIT, ber.INTEGER, 9), order=order), order=order) == (10, 1, [])
    assert master.get(Kind.NEXT, ranges((NOTHING, NOTHING), order=order), order=order)[2][0][0] == pdu.packed(CLUSTER)


def test_search_ranges(master: FakeMaster) -> None:
    groups = [(*COLUMNS["haGroupState"], *text_index(name)) for name in ("web", "database")]
    first, last = min(groups), max(groups)
    below = COLUMNS["haGroupState"]

    def after(start: tuple[int, ...], end: tuple[int, ...], include: bool = False) -> tuple[tuple[int, ...], int]:
        ((name, tag, _),) = master.get(Kind.NEXT, ranges((start, end), include=include))[2]
        return pdu.subids(name), tag

    assert after(below, NOTHING) == (first, ber.INTEGER)
    assert after(first, NOTHING) == (last, ber.INTEGER)
    assert after(first, NOTHING, include=True) == (first, ber.INTEGER)  # the start itself
    assert after(below, NOTHING, include=True) == (first, ber.INTEGER)  # which is no instance
    assert after(first, last) == (first, END)  # the end is no part of the range
    assert after(first, (*last, 0)) == (last, ber.INTEGER)
    assert after(first, last, include=True) == (first, ber.INTEGER)
    assert after(first, first, include=True) == (first, END)
    assert after((1, 3), NOTHING) == (CLUSTER, ber.OCTETS)
    assert after((1, 3), ROOT) == ((1, 3), END)
    assert after((*ROOT[:-1], ROOT[-1] + 1), NOTHING)[1] == END
    assert after((*ROOT, 2**32 - 1), NOTHING)[1] == END
    assert after((*below, 2**32 - 1, 128, 127), NOTHING)[0] > last
    assert after((2, 999, 2**32 - 1), NOTHING)[1] == END


def test_a_walk_by_bulk_is_a_walk_by_next(master: FakeMaster) -> None:
    by_next = []
    at = ROOT
    while True:
        ((name, tag, _),) = master.get(Kind.NEXT, ranges((at, NOTHING)))[2]
        if tag == END:
            assert pdu.subids(name) == at
            break
        at = pdu.subids(name)
        by_next.append(at)
    assert by_next == sorted(by_next)
    _, _, found = master.get(Kind.BULK, bulk(0, len(by_next) + 5, ranges((ROOT, NOTHING))))
    assert names(found)[: len(by_next)] == by_next
    assert found[len(by_next)][0] == pdu.packed(by_next[-1])
    assert found[len(by_next)][1] == END
    assert len(found) == len(by_next) + 1  # nothing more can come
    # Two walks side by side, one of them with an end, and one that is asked once.
    stop = by_next[5]
    _, _, found = master.get(Kind.BULK, bulk(1, 8, ranges((NAME, NOTHING), (ROOT, stop), (at, NOTHING))))
    assert len(found) == 1 + 2 * 6
    assert names(found[1::2])[:5] == by_next[:5]
    assert [tag for _, tag, _ in found[1::2]][5:] == [END]
    assert all(tag == END for _, tag, _ in found[2::2])
    assert master.get(Kind.BULK, bulk(0, 0, ranges((ROOT, NOTHING)))) == (0, 0, [])
    assert master.get(Kind.BULK, bulk(0, 5, b"")) == (0, 0, [])


def test_an_answer_has_a_bound(master: FakeMaster) -> None:
    _, _, found = master.get(Kind.BULK, bulk(0, 65535, ranges(*[(ROOT, NOTHING)] * 50)))
    assert 500 < len(found) < ROOM // 20
    _, _, one = master.get(Kind.NEXT, ranges((ROOT, NOTHING)))
    assert found[0] == one[0]
    assert master.get(Kind.GET, ranges(*[(NAME, NOTHING)] * 5000))[0] == 1  # tooBig


def test_another_context_is_refused(master: FakeMaster) -> None:
    for name in (b"other", b""):
        payload = pdu.write_octets(name, BIG) + ranges((NAME, NOTHING))
        assert master.get(Kind.GET, payload, flags=pdu.NON_DEFAULT_CONTEXT) == (pdu.Error.UNSUPPORTED_CONTEXT, 0, [])
    assert master.get(Kind.GET, b"\0\0\0\xff", flags=pdu.NON_DEFAULT_CONTEXT)[0] == pdu.Error.PARSE
    assert master.get(Kind.GET, ranges((NAME, NOTHING)))[0] == 0


def test_another_session_is_none_of_ours(master: FakeMaster) -> None:
    assert master.get(Kind.GET, ranges((NAME, NOTHING)), session=master.session + 1) == (pdu.Error.NOT_OPEN, 0, [])


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (Kind.GET, b"\xff\0\0\0"),
        (Kind.GET, pdu.write_name(pdu.packed(NAME), BIG)),  # a range without an end
        (Kind.BULK, b""),
        (Kind.TEST_SET, b"\0\x63\0\0" + bytes(4)),
        (Kind.OPEN, bytes(12)),  # what only a subagent sends
        (Kind.PING, b""),
        (99, b""),
    ],
)
def test_a_pdu_that_can_not_be_read(master: FakeMaster, kind: int, payload: bytes) -> None:
    assert master.get(kind, payload)[0] == pdu.Error.PARSE
    assert master.get(Kind.GET, ranges((NAME, NOTHING)))[0] == 0


def test_a_set_of_an_oid_that_ber_has_no_octets_for(master: FakeMaster, engine: FakeEngine) -> None:
    value = pdu.write_name(pdu.packed((1,)), BIG)
    wanted = pdu.write_binding(pdu.packed(INHIBIT), ber.OID, value, BIG)
    assert master.get(Kind.TEST_SET, wanted, transaction=39) == (9, 1, [])  # wrongEncoding
    assert master.get(Kind.GET, ranges((NAME, NOTHING)))[0] == 0


def test_the_phases_of_a_set(master: FakeMaster, engine: FakeEngine) -> None:
    engine.commands.clear()
    wanted = bindings((INHIBIT, ber.INTEGER, 1))
    assert master.get(Kind.COMMIT_SET, transaction=40) == (14, 0, [])  # nothing was tested
    assert master.get(Kind.UNDO_SET, transaction=40) == (15, 1, [])
    assert master.get(Kind.TEST_SET, wanted, transaction=41) == (0, 0, [])
    master.ask(Kind.CLEANUP_SET, transaction=41)  # has no answer
    assert master.get(Kind.COMMIT_SET, transaction=41) == (14, 0, [])
    assert not engine.commands
    assert master.get(Kind.TEST_SET, wanted, transaction=42) == (0, 0, [])
    assert master.get(Kind.UNDO_SET, transaction=42) == (0, 0, [])  # nothing was begun
    assert not engine.commands
    assert master.get(Kind.TEST_SET, wanted, transaction=43) == (0, 0, [])
    assert master.get(Kind.COMMIT_SET, transaction=43) == (0, 0, [])
    assert master.get(Kind.COMMIT_SET, transaction=43) == (0, 0, [])  # asked again; done once
    assert [command["verb"] for command in engine.commands] == [int(Verb.INHIBIT)]
    assert master.get(Kind.UNDO_SET, transaction=43) == (0, 0, [])
    assert [command["verb"] for command in engine.commands] == [int(Verb.INHIBIT), int(Verb.PERMIT)]
    assert master.get(Kind.UNDO_SET, transaction=43) == (15, 1, [])
    engine.commands.clear()
    for transaction in range(100, 100 + 2 * agentx_sets.MAX_TRANSACTIONS):
        assert master.get(Kind.TEST_SET, wanted, transaction=transaction)[0] == 0
    assert master.get(Kind.COMMIT_SET, transaction=100)[0] == 14  # too many are open: the oldest are given up
    assert not engine.commands


def test_what_passed_the_test_is_tested_again(master: FakeMaster, engine: FakeEngine) -> None:
    """Two SETs with the same spin lock: one of them is refused, however their phases come."""
    engine.commands.clear()
    ((_, _, lock),) = master.get(Kind.GET, ranges((SCALARS["haActionSpinLock"], NOTHING)))[2]
    wanted = bindings((SCALARS["haActionSpinLock"], ber.INTEGER, lock), (INHIBIT, ber.INTEGER, 1))
    assert master.get(Kind.TEST_SET, wanted, transaction=51)[0] == 0
    assert master.get(Kind.TEST_SET, wanted, transaction=52)[0] == 0
    assert master.get(Kind.COMMIT_SET, transaction=51)[0] == 0
    assert master.get(Kind.COMMIT_SET, transaction=52) == (14, 1, [])
    assert master.get(Kind.UNDO_SET, transaction=52) == (0, 0, [])
    assert len(engine.commands) == 1


def test_many_requests_before_the_first_answer_is_read(master: FakeMaster) -> None:
    """A master that does not read costs a bounded buffer; when it reads, every answer is there, in order."""
    assert master.client is not None
    wanted = bulk(0, 65535, ranges((ROOT, NOTHING)))
    payload = pdu.write_pdu(Kind.BULK, master.session, 1, 0, wanted)
    master.client.settimeout(2)
    sent = 0
    try:
        for sent in range(1, 100_000):
            master.client.sendall(payload[:12] + struct.pack(">I", sent) + payload[16:])
    except TimeoutError:
        pass  # it reads no more of them
    master.client.settimeout(20)
    assert 10 < sent < 99_999
    for packet in range(1, 20):
        header, _ = master.receive()
        assert (header.kind, header.packet) == (Kind.RESPONSE, packet)
    master.drop()
    master.accept()
    assert master.get(Kind.GET, ranges((NAME, NOTHING)))[0] == 0


@pytest.mark.parametrize(
    "octets",
    [
        b"\x02\x05\x10\0" + bytes(16),  # another version
        b"\x01\x05\x10\0" + bytes(12) + b"\xff\xff\xff\xfc",  # a payload of 4 GB
        b"\x01\x05\x10\0" + bytes(12) + b"\0\0\0\x03",  # one that is not in fours
        b"GET / HTTP/1.0\r\n\r\n\r\n\r\n",
    ],
)
def test_what_is_no_agentx_ends_the_session(master: FakeMaster, octets: bytes) -> None:
    master.raw(octets)
    header, payload = master.receive()
    assert header.kind == Kind.CLOSE
    assert payload[0] == pdu.Reason.PARSE_ERROR
    with pytest.raises(ConnectionResetError):
        master.receive()
    master.accept()
    assert master.get(Kind.GET, ranges((NAME, NOTHING)))[0] == 0


def test_a_pdu_in_pieces(master: FakeMaster) -> None:
    octets = pdu.write_pdu(Kind.GET, master.session, 1, 9, ranges((NAME, NOTHING)))
    for octet in octets * 3:
        master.raw(bytes((octet,)))
    for _ in range(3):
        header, body = master.receive()
        assert (header.kind, header.packet, body[4:8]) == (Kind.RESPONSE, 9, bytes(4))


def test_a_closed_session_is_opened_again(master: FakeMaster, agent: AgentProcess) -> None:
    master.ask(Kind.CLOSE, bytes((pdu.Reason.BY_MANAGER, 0, 0, 0)))
    master.accept()
    assert master.get(Kind.GET, ranges((NAME, NOTHING)))[0] == 0
    assert "the master closed the session, reason 6" in agent.log.read_text()


def test_a_refused_registration_is_tried_again(master: FakeMaster, agent: AgentProcess) -> None:
    master.ask(Kind.CLOSE, bytes((pdu.Reason.OTHER, 0, 0, 0)))
    master.accept({Kind.REGISTER: pdu.Error.DUPLICATE_REGISTRATION})
    header, payload = master.receive()
    assert (header.kind, payload[0]) == (Kind.CLOSE, pdu.Reason.SHUTDOWN)
    master.accept({Kind.ADD_CAPABILITIES: pdu.Error.REQUEST_DENIED})  # that one is not needed
    assert master.get(Kind.GET, ranges((NAME, NOTHING)))[0] == 0
    assert "duplicate_registration (263)" in agent.log.read_text()


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    st.sampled_from([*Kind, 0, 99]), st.sampled_from((0, pdu.NON_DEFAULT_CONTEXT, 0xFF)), st.sampled_from((BIG, LITTLE)),
    st.one_of(
        st.binary(max_size=40).map(lambda octets: octets[: len(octets) & ~3]),
        st.lists(st.sampled_from((ROOT, NAME, INHIBIT, NOTHING, (1, 3), (*ROOT, 2**32 - 1))), max_size=6).map(
            lambda oids: ranges(*((oid, NOTHING) for oid in oids))
        ),
    ),
)  # fmt: skip
def test_whatever_comes_it_goes_on(master: FakeMaster, kind: int, flags: int, order: Order, payload: bytes) -> None:
    if kind == Kind.CLOSE:
        payload = b""  # one that says nothing closes nothing
    master.ask(kind, payload, flags=flags & ~pdu.NETWORK_BYTE_ORDER, order=order, transaction=60)
    packet = master.ask(Kind.GET, ranges((NAME, NOTHING)))
    while True:
        header, body = master.receive()
        if header.packet == packet:
            break
    assert pdu.read_bindings(body, 8, len(body), BIG) == [(pdu.packed(NAME), ber.OCTETS, b"alpha")]


# ---------------------------------------------------------------------------------------- in this process: its timings


class Waiting:
    """Notices and Sets of a test."""

    def __init__(self, *notices: Notice) -> None:
        self.notices = list(notices)
        self.refused: list[str] = []

    def first(self) -> Notice | None:
        return self.notices[0] if self.notices else None

    def connected(self, reason: str) -> None:
        pass

    def done(self, refused: str) -> None:
        self.notices.pop(0)
        self.refused.append(refused)

    def test(self, assignments: Any) -> None: ...

    def commit(self, assignments: Any, done: Any) -> None: ...

    def undo(self, assignments: Any) -> bool:
        return False


def a_subagent(
    path: Path, waiting: Waiting, uptimes: list[int], logs: list[dict[str, Any]], answer_s: float = 10
) -> Subagent:
    """answer_s: how long the master may take for an answer; both are in this process, and stand still with it."""
    reader = Reader(views.a_view(), views.BOOT_NS, views.NOW_NS)
    lookup = Lookup(Store(ha_objects.SCALARS, ha_objects.TABLES, lambda: reader), ROOT)

    def note(_logger: Any, name: str, event: dict[str, Any]) -> dict[str, Any]:
        logs.append(event)
        raise structlog.DropEvent

    log = structlog.wrap_logger(None, processors=[note])
    return Subagent(
        str(path), "hasnmp", ROOT, ((*ROOT, 3, 1), b"it"), lookup, waiting, uptimes.append, lambda: views.BOOT_NS, waiting, log,
        Times(answer=answer_s, ping=0.2, retry=(0.01, 0.02)),
    )  # fmt: skip


async def until(what: Callable[[], bool]) -> None:
    for _ in range(1000):
        if what():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("not within 10 s")


def test_a_silent_master_is_asked_and_given_up(tmp_path: Path) -> None:
    async def scene() -> None:
        uptimes: list[int] = []
        logs: list[dict[str, Any]] = []
        master = FakeMaster(tmp_path / "m", up=4711)
        task = asyncio.create_task(a_subagent(tmp_path / "m", Waiting(), uptimes, logs, 1.5).run())
        await asyncio.to_thread(master.accept)
        header, _ = await asyncio.to_thread(master.take)
        assert header.kind == Kind.PING
        master.answer(header)
        header, _ = await asyncio.to_thread(master.take)  # the next one has no answer
        assert header.kind == Kind.PING
        header, payload = await asyncio.to_thread(master.take)
        assert (header.kind, payload[0]) == (Kind.CLOSE, pdu.Reason.TIMEOUTS)
        await asyncio.to_thread(master.accept)
        assert uptimes[:4] == [4711] * 4
        await until(lambda: len(logs) == 3)
        assert [event["event"] for event in logs] == ["agentx_registered", "agentx_master_lost", "agentx_registered"]
        assert "no answer to Ping" in logs[1]["reason"]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        header, payload = await asyncio.to_thread(master.take)
        assert (header.kind, payload[0]) == (Kind.CLOSE, pdu.Reason.SHUTDOWN)
        master.close()

    asyncio.run(scene())


def test_a_master_that_takes_no_connection_is_retried_quietly(tmp_path: Path) -> None:
    """Its backlog full, as a stopped one's is: no attempt blocks, and one line tells of all."""

    async def scene() -> None:
        logs: list[dict[str, Any]] = []
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        server.bind(str(tmp_path / "m"))
        server.listen(0)
        fillers = []
        while True:
            filler = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            try:
                filler.connect(str(tmp_path / "m"))
            except BlockingIOError:
                filler.close()
                break
            fillers.append(filler)
        ticks = 0
        task = asyncio.create_task(a_subagent(tmp_path / "m", Waiting(), [], logs).run())
        while ticks < 20:
            await asyncio.sleep(0.01)
            ticks += 1
        assert [event["event"] for event in logs] == ["agentx_master_lost"]
        assert not task.done()
        server.close()
        for filler in fillers:
            filler.close()
        os.unlink(tmp_path / "m")
        master = FakeMaster(tmp_path / "m")
        await asyncio.to_thread(master.accept)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        master.close()

    asyncio.run(scene())


def test_a_notification_is_sent_until_the_master_has_it(tmp_path: Path) -> None:
    async def scene() -> None:
        logs: list[dict[str, Any]] = []
        trap = (*ROOT, 0, 7)
        notices = Waiting(
            Notice(trap, views.BOOT_NS + 5_000_000_000, [(NAME, Syntax.OCTETS, b"alpha")]),
            Notice(trap, views.BOOT_NS - 5, []),
        )
        master = FakeMaster(tmp_path / "m")
        subagent = a_subagent(tmp_path / "m", notices, [], logs)
        task = asyncio.create_task(subagent.run())
        await asyncio.to_thread(master.accept)
        header, first = await asyncio.to_thread(master.take)
        assert header.kind == Kind.NOTIFY
        assert pdu.read_bindings(first, 0, len(first), BIG) == [
            (pdu.packed((1, 3, 6, 1, 2, 1, 1, 3, 0)), ber.TIMETICKS, 500),
            (pdu.packed((1, 3, 6, 1, 6, 3, 1, 1, 4, 1, 0)), ber.OID, trap),
            (pdu.packed(NAME), ber.OCTETS, b"alpha"),
        ]
        master.drop()  # before it answered: so the next master is told
        await asyncio.to_thread(master.accept)
        header, again = await asyncio.to_thread(master.take)
        assert again == first
        assert len(notices.notices) == 2
        master.answer(header)
        header, second = await asyncio.to_thread(master.take)
        assert pdu.read_bindings(second, 0, len(second), BIG)[0][2] == 0  # it was before the master's start
        master.answer(header, pdu.Error.NOT_OPEN)  # the session is gone, the notification is not
        await asyncio.to_thread(master.accept)
        for _ in range(BUSY_TRIES):
            header, again = await asyncio.to_thread(master.take)
            assert header.kind == Kind.NOTIFY and again == second and len(notices.notices) == 1
            master.answer(header, pdu.Error.PROCESSING)
        await until(lambda: not notices.notices)
        assert notices.refused[0] == ""
        assert "processing (268)" in notices.refused[1]
        notices.notices.append(Notice(trap, views.BOOT_NS, []))
        subagent.wake()
        header, _ = await asyncio.to_thread(master.take)
        assert header.kind == Kind.NOTIFY
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        master.close()

    asyncio.run(scene())
