"""The parts that need no engine: the registers' merge, the exchange stream, the journal - and documents of any JSON shape."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hasnmp.core.board import Registers
from hasnmp.core.context import MS, Context
from hasnmp.core.events import CommandIn, Send
from hasnmp.core.exchange import Stream
from hasnmp.core.journal import KEEP_COMMANDS, KEEP_DURABLE, Journal, clip
from hasnmp.errors import Code
from hasnmp.model import CommandState, Kind, Severity, Verb
from hasnmp.wire import MAX_PAYLOAD
from tests.core.driver import BOOT, WALL, Driver, make_config

CONFIG = make_config(["a", "b"], {})
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def context() -> Context:
    ctx = Context(CONFIG, "a", BOOT)
    ctx.wall_offset_ms = WALL - BOOT // MS
    return ctx


# ------------------------------------------------------------------------------------------------------- registers

WORD = st.tuples(
    st.sampled_from(["inhibit/", "standby/a", "excluded/nfs/b"]),
    st.integers(0, 4), st.sampled_from(["a", "b", "c"]), st.sampled_from(["", "why"]),
)  # fmt: skip


def one_word_a_version(words: list[tuple[str, int, str, str]]) -> list[tuple[str, list[Any]]]:
    """A node gives one version of one register one value: two that differ can't exist."""
    said: dict[tuple[str, int, str], str] = {}
    return [(key, [v, node, said.setdefault((key, v, node), text)]) for key, v, node, text in words]


@given(st.lists(WORD, max_size=12), st.randoms(use_true_random=False))
def test_registers_agree_in_any_order_and_any_number_of_times(
    words: list[tuple[str, int, str, str]], random: Any
) -> None:
    facts = one_word_a_version(words)
    one, other = Registers(), Registers()
    for key, value in facts:
        one.merge(key, value)
    shuffled = [*facts, *facts]
    random.shuffle(shuffled)
    for key, value in shuffled:
        other.merge(key, value)
    assert one.values == other.values
    for key, value in facts:
        assert not one.merge(key, value)


def test_a_set_is_newer_than_all_that_was_heard() -> None:
    registers = Registers()
    registers.merge("inhibit/", [7, "z", "why"])
    key = registers.set("inhibit", "", "", "a")
    assert registers.values[key] == (8, "a", "")
    assert not registers.merge("inhibit/", [7, "z", "why"]) and registers.get("inhibit") == ""


@given(JSON)
def test_a_malformed_register_changes_nothing(value: Any) -> None:
    registers = Registers()
    registers.set("inhibit", "", "why", "a")
    before = dict(registers.values)
    if not registers.merge("inhibit/", value):
        assert registers.values == before


# ---------------------------------------------------------------------------------------------------------- stream


@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 99)), max_size=30),
    st.lists(st.integers(0, 5), max_size=200),
)
def test_the_stream_brings_the_newest_of_each_through_loss_and_duplication(
    facts: list[tuple[str, int]], luck: list[int]
) -> None:
    ctx, sender, receiver = context(), Stream(), Stream()
    got: dict[str, int] = {}
    waiting, chance = list(facts), iter([*luck, *[5] * 200])
    old: list[tuple[int, bytes]] = []
    for _ in range(400):
        if waiting:
            sender.put(*waiting.pop(0))
        ctx.now += 10 * MS
        payload = sender.next(ctx, 10 * MS)
        if payload:
            old.append((sender.position, payload))
            what = next(chance, 5)
            if what == 0:
                continue  # lost
            for position, octets in old[-2:] if what == 1 else old[-1:]:  # an older one again, or just this
                got.update(receiver.take(position, octets))
            if what != 2:  # else its acknowledgement is lost
                sender.acknowledged(receiver.received)
        if not waiting and not sender.queue and not sender.under_way:
            break
    assert got == dict(facts)
    assert not sender.queue and not sender.under_way


def test_a_message_waits_before_it_is_sent_again() -> None:
    ctx, stream = context(), Stream()
    stream.put("k", 1)
    first = stream.next(ctx, 100 * MS)
    assert first and stream.next(ctx, 100 * MS) == b""
    ctx.now += 100 * MS
    assert stream.next(ctx, 100 * MS) == first


def test_a_new_incarnation_begins_both_directions_anew() -> None:
    ctx, stream = context(), Stream()
    stream.put("k", 1)
    stream.next(ctx, MS)
    stream.take(1, b'[["x",1]]')
    stream.begin()
    assert (stream.position, stream.received, stream.under_way) == (0, 0, b"")
    assert stream.take(2, b'[["x",1]]') == [] and stream.take(1, b'[["x",1]]') == [("x", 1)]
    assert stream.take(1, b'[["x",1]]') == []


def test_every_message_fits_and_a_fact_that_never_fits_is_dropped() -> None:
    ctx, stream = context(), Stream()
    for i in range(50):
        stream.put(f"key-{i}", "ü" * 40)
    stream.put("huge", "x" * 2000)
    seen: set[str] = set()
    while payload := stream.next(ctx, MS):
        assert len(payload) <= MAX_PAYLOAD
        seen.update(key for key, _ in json.loads(payload))
        stream.acknowledged(stream.position)
    assert seen == {f"key-{i}" for i in range(50)}


@given(st.binary(max_size=40) | JSON.map(lambda value: json.dumps(value).encode()))
def test_a_payload_of_another_form_is_taken_for_nothing(payload: bytes) -> None:
    stream = Stream()
    for key, _ in stream.take(1, payload):
        assert isinstance(key, str)
    assert stream.received == 1


# --------------------------------------------------------------------------------------------------------- journal


def test_alarms_clear_and_are_told_once() -> None:
    ctx, journal = context(), Journal("a", 10)
    journal.clear(ctx, Kind.NODE_JOINED, "b", "no alarm stands: nothing is told")
    journal.happened(ctx, Kind.NODE_LOST, "gone", of="b", peer="b")
    journal.happened(ctx, Kind.NODE_LOST, "still gone", of="b", peer="b")
    journal.happened(ctx, Kind.NODE_LOST, "gone", of="c", peer="c")
    assert [e.kind for e in journal.events.values()] == [Kind.NODE_LOST, Kind.NODE_LOST]
    assert journal.alarms["nodeLost/b"].message == "still gone"
    journal.clear(ctx, Kind.NODE_JOINED, "b", "back", peer="b")
    assert list(journal.alarms) == ["nodeLost/c"]
    assert len(ctx.out) == 3 and journal.events[3].alarm == "nodeLost/b"


def test_the_rings_are_bounded() -> None:
    ctx, journal = context(), Journal("a", 5)
    for i in range(20):
        journal.happened(ctx, Kind.ALIVE, f"{i}")
    assert [e.message for e in journal.events.values()] == ["15", "16", "17", "18", "19"]
    for _ in range(KEEP_COMMANDS + 7):
        row = journal.command(ctx, Verb.INHIBIT, "", "", "me", "", "")
        journal.update(ctx, row, CommandState.DONE, Code.DONE, "")
    assert len(journal.commands) == KEEP_COMMANDS and min(journal.commands) == 8
    assert journal.totals().events == 20


def test_a_round_trip_through_the_durable_document() -> None:
    ctx, journal = context(), Journal("a", 1000)
    for i in range(KEEP_DURABLE + 3):
        journal.happened(ctx, Kind.ALIVE, f"{i}")
    journal.happened(ctx, Kind.NODE_LOST, "gone", of="b", peer="b")
    done = journal.update(
        ctx, journal.command(ctx, Verb.INHIBIT, "", "", "me", "", ""), CommandState.DONE, Code.DONE, "so"
    )
    journal.command(ctx, Verb.FAILOVER, "nfs", "b", "me", "", "why")
    document = json.loads(json.dumps(journal.document()))

    # Another boot, an hour later: the boot clock starts anew, the Unix times are kept.
    later = Context(CONFIG, "a", 5 * MS)
    later.wall_offset_ms = WALL + 3_600_000 - 5
    new = Journal("a", 1000)
    new.restore(document, later)
    assert list(new.alarms) == ["nodeLost/b"] and new.alarms["nodeLost/b"].since_wall_ms == WALL
    assert new.alarms["nodeLost/b"].since_ns == (5 - 3_600_000) * MS
    assert len(new.events) == KEEP_DURABLE and new.events[max(new.events)].kind is Kind.NODE_LOST
    assert new.commands[1].state is CommandState.DONE and new.commands[1].text == done.text
    # What was under way has lost its follower: it is ended, never left open.
    assert new.commands[2].state is CommandState.FAILED and new.commands[2].ended_wall_ms
    new.happened(later, Kind.ALIVE, "next")
    assert max(new.events) == journal.last_event + 1
    assert new.totals().events == journal.totals().events + 1


@given(st.text())
def test_a_text_is_clipped_to_one_line_of_255_octets(text: str) -> None:
    clipped = clip(text)
    assert len(clipped.encode(errors="replace")) <= 255 and "\n" not in clipped


# ------------------------------------------------------------------------------------- documents of any JSON shape

TOP = (
    "journal", "board", "ceiling", "dead_after_ms", "owned", "last_owner", "uuid", "holder", "left", "forever",
    "left_in_order",
)  # fmt: skip


def start_with(document: Any, held: str = "") -> None:
    """Start an engine on the document, let it live for two seconds and make its own document of what it took over."""
    driver = Driver()
    driver.run(
        f"cluster a b\nstart {held} durable="
        + json.dumps(document, separators=(",", ":"), ensure_ascii=True).replace(" ", "\\u0020")
    )
    driver.run("peer b nfs=able\nat 2000ms")
    assert driver.engine is not None
    driver.engine.view(driver.now, WALL)
    driver.engine.why("nfs", driver.now)
    assert driver.saved is not None and json.dumps(driver.saved)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(TOP), JSON, max_size=6) | JSON)
def test_an_engine_starts_on_any_document(document: Any) -> None:
    start_with(document)


def _saved() -> dict[str, Any]:
    driver = Driver()
    driver.run(
        "cluster a b\nstart\npeer b nfs=able\nat 1500ms\ncommand inhibit nfs\ncommand failover nfs to=b\nexited web"
    )
    driver.run("peer b silent\nat 4000ms")
    assert driver.saved is not None
    return driver.saved


SAVED = json.dumps(_saved())


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *[p for key, v in inner for p in _paths(v, (*path, key))]]


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(_paths(json.loads(SAVED))[1:]), JSON | st.just(float("inf")) | st.just(1 << 70) | st.just(-1))
def test_an_engine_starts_on_a_document_with_any_one_value_spoilt(path: tuple[Any, ...], junk: Any) -> None:
    document = json.loads(SAVED)
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = junk
    start_with(document)


def _moving() -> dict[str, Any]:
    driver = Driver()
    driver.run("cluster a b\nstart\npeer b nfs=able\nat 1500ms\nmanual agents\ncommand failover nfs to=b")
    assert driver.saved is not None and driver.saved["moves"]["nfs"][0] == 1
    return driver.saved


MOVING = json.dumps(_moving())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(_paths(json.loads(MOVING)["moves"])), JSON | st.just(1 << 70) | st.just(-1))
def test_an_engine_that_has_a_lease_starts_on_a_move_with_any_one_value_spoilt(
    path: tuple[Any, ...], junk: Any
) -> None:
    document = json.loads(MOVING)
    place, path = document, ("moves", *path)
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = junk
    start_with(document, "lease=nfs:1:900ms adopted=web:1")


def test_a_command_from_the_network_is_an_event_with_who_and_what_came_of_it() -> None:
    driver = Driver()
    driver.run("cluster a b\nstart\npeer b nfs=able\nat 1500ms")
    assert driver.engine is not None
    journal = driver.engine.state.journal
    before = set(journal.events)
    driver.step(CommandIn(1, Verb.INHIBIT, "nfs", "me", address="local"))
    assert not {Kind.COMMAND_GIVEN, Kind.COMMAND_REFUSED} & {
        e.kind for i, e in journal.events.items() if i not in before
    }
    driver.step(CommandIn(2, Verb.PERMIT, "nfs", "snmp:noc", address="192.0.2.7"))
    driver.step(CommandIn(3, Verb.FAILOVER, "nfs", "snmp:noc", to="zoe", address="192.0.2.7"))
    driver.step(CommandIn(9, Verb.RECOVER, "b", "snmp:noc", address="192.0.2.7"))
    refused = CommandIn(4, Verb.SET, "haInhibit.0", "snmp:tom", address="192.0.2.8", message="SET of it: no", code=28)
    driver.step(refused)
    told = [e for e in journal.events.values() if e.kind in (Kind.COMMAND_GIVEN, Kind.COMMAND_REFUSED)]
    assert [(e.kind, e.severity) for e in told] == [
        (Kind.COMMAND_GIVEN, Severity.INFO), (Kind.COMMAND_REFUSED, Severity.WARNING),
        (Kind.COMMAND_REFUSED, Severity.WARNING), (Kind.COMMAND_REFUSED, Severity.WARNING),
    ]  # fmt: skip
    assert "snmp:noc from 192.0.2.7: permit nfs (command 2): accepted" == told[0].message
    assert "failover nfs to zoe (command 3): refused: no node 'zoe'" in told[1].message
    assert told[2].message == "snmp:noc from 192.0.2.7: recover b (command 4): refused: it is not recovering"
    row = list(journal.commands.values())[-1]
    assert (row.verb, row.state, row.code, row.text) == (
        Verb.SET,
        CommandState.REFUSED,
        Code.NOT_ALLOWED,
        "SET of it: no",
    )


def test_the_sequence_of_a_slot_is_told_once_it_was_read_back() -> None:
    """A write of this node's former life may land on the first one that came through: peers must know the number of that."""
    driver = Driver()

    def told() -> list[int]:
        """The sequences that b was told."""
        sent = [e.datagram for e in driver.effects if isinstance(e, Send) and e.datagram.payload]
        return [value["seq"] for d in sent for key, value in json.loads(d.payload) if key == "l/nfs"]

    driver.run("cluster a b\nmanual arbiter\ndisk nfs a=held:5:7:3000ms\nstart\npeer b nfs=able\narbiter nfs")
    driver.run("arbiter nfs error=slow\n+10ms")  # it may have landed, or may land yet
    driver.run("+60ms\narbiter nfs\n+10ms")
    assert driver.disk["nfs"]["a"].seq == 10 and told()[-1] == 10  # type: ignore[union-attr]
