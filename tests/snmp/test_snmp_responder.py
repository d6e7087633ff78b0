"""The command responder octet by octet, over objects of the test's own: RFC 3416 section 4.2, and whatever isn't SNMP."""

from __future__ import annotations

import random
import sys
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasnmp.model import View
from hasnmp.settings import Community, Snmp, SnmpUser
from hasnmp.snmp import ber
from hasnmp.snmp.access import Communities
from hasnmp.snmp.cells import Store
from hasnmp.snmp.objects import Column, Index, Reader, Scalar, Syntax, TableDef
from hasnmp.snmp.pdus import Requests
from hasnmp.snmp.responder import REPORTS_A_SECOND, REPORTS_A_SECOND_TO_ALL, Responder, SetOutcome
from hasnmp.snmp.setting import Done, SetRequest
from hasnmp.snmp.standard import Counters
from hasnmp.snmp.usm import MAX_MESSAGE, Engine, Incoming
from tests.snmp.snmp_lab import (
    AUTH,
    BULK,
    GET,
    INFORM,
    NEXT,
    PRIV,
    READ,
    REPORT,
    RESPONSE,
    SET,
    TRAP,
    WRITE,
    Answer,
    a_pdu,
    binding,
    sealed_by,
    v2c,
)  # fmt: skip

ROOT = (1, 3, 6, 1, 4, 1, 99999)
COLUMN = (*ROOT, 2, 1)
SETTINGS = Snmp(
    users=(SnmpUser("noc", "sha256", "aes128", "operate", AUTH.encode(), PRIV.encode()),),
    communities=(
        Community("read", (), READ), Community("operate", ("192.0.2.0/24", "2001:db8::/32"), WRITE),
    ),
    allow_insecure_set=True,
)  # fmt: skip


class Bench:
    """A responder over: one.0 = 1, name.0 = "name" (writable), gone.0 (never there), broken.0 (its read raises), big.0,
    and a table of two columns with the rows of `rows`, the second with a hole at row 200."""

    def __init__(self) -> None:
        self.rows = [(1,), (2,), (127,), (128,), (200,), (16383,), (16384,), (2**32 - 1,)]
        self.reads = 0
        self.counters = Counters()
        self.sets: list[tuple[SetRequest, Done]] = []
        self.failures: list[Exception] = []
        self.second = 0.0

        def count(_: Reader) -> int:
            self.reads += 1
            return self.reads

        def broken(_: Reader) -> int:
            raise RuntimeError("broken")

        def scalar(name: str, number: int, syntax: Syntax, read: Any, **more: Any) -> Scalar:
            return Scalar(name, (*ROOT, 1, number), syntax, more.pop("access", "read-only"), read, (), **more)

        scalars = (
            scalar("one", 1, Syntax.INTEGER32, lambda _: 1),
            scalar("name", 2, Syntax.OCTETS, lambda _: b"name", access="read-write", size=8),
            scalar("gone", 3, Syntax.INTEGER32, lambda _: None),
            scalar("count", 4, Syntax.COUNTER32, count),
            scalar("countVolatile", 5, Syntax.COUNTER32, count, volatile=True),
        )
        tail = (
            Scalar("big", (*ROOT, 3, 1), Syntax.OCTETS, "read-only", lambda _: bytes(60000), ()),
            Scalar("broken", (*ROOT, 4, 1), Syntax.INTEGER32, "read-only", broken, ()),
            Scalar("wrong", (*ROOT, 4, 2), Syntax.UNSIGNED32, "read-only", lambda _: -1, ()),
        )
        table = TableDef(
            "table",
            COLUMN,
            (Index("index", 1, Syntax.UNSIGNED32),),
            lambda _: [(row, row[0]) for row in self.rows],
            (
                Column("number", 2, Syntax.UNSIGNED32, "read-only", lambda _, row: row),
                Column(
                    "text", 3, Syntax.OCTETS, "read-write", lambda _, row: None if row == 200 else b"%d" % row, size=9
                ),
            ),
            ("nodes",),
        )
        self.store = Store((*scalars, *tail), (table,), lambda: Reader(View(), 0, 10**9))
        self.engine = Engine(b"\x80\0~\xd9\5engine", 3, lambda: 1000, SETTINGS.users, self.counters)
        self.unauthentic: list[str] = []
        self.outcomes: list[SetOutcome] = []
        self.serve()

    def serve(self) -> None:
        self.responder = Responder(
            self.store,
            Requests(self.store, self.failures.append),
            Communities(SETTINGS),
            self.engine,
            self.counters,
            lambda request, done: self.sets.append((request, done)),
            lambda: self.second,
            self.unauthentic.append,
            audit=self.outcomes.append,
        )

    def send(self, message: bytes, host: str = "192.0.2.7") -> bytes | None:
        answers: list[bytes] = []
        self.responder.handle(message, host, answers.append)
        assert len(answers) <= 1
        return answers[0] if answers else None

    def ask(self, tag: int, names: list[tuple[int, ...]], first: int = 0, second: int = 0) -> Answer:
        out = self.send(v2c(a_pdu(tag, [binding(name) for name in names], first, second)))
        assert out is not None
        answer = Answer(out)
        assert (answer.tag, answer.request_id) == (RESPONSE, 77)
        return answer


@pytest.fixture
def bench() -> Bench:
    return Bench()


NO_SUCH_OBJECT, NO_SUCH_INSTANCE, END = 0x80, 0x81, 0x82


@pytest.mark.parametrize(
    ("name", "tag", "value"),
    [
        ((*ROOT, 1, 1, 0), ber.INTEGER, 1),
        ((*ROOT, 1, 2, 0), ber.OCTETS, b"name"),
        ((*ROOT, 1, 1), NO_SUCH_INSTANCE, None),
        ((*ROOT, 1, 1, 1), NO_SUCH_INSTANCE, None),
        ((*ROOT, 1, 1, 0, 0), NO_SUCH_INSTANCE, None),
        ((*ROOT, 1, 3, 0), NO_SUCH_INSTANCE, None),
        ((*ROOT, 1, 9, 0), NO_SUCH_OBJECT, None),
        ((*ROOT, 1), NO_SUCH_OBJECT, None),
        ((1, 3), NO_SUCH_OBJECT, None),
        ((0, 0), NO_SUCH_OBJECT, None),
        ((2, 999), NO_SUCH_OBJECT, None),
        ((*COLUMN, 1, 1), NO_SUCH_OBJECT, None),  # a not-accessible column
        ((*COLUMN, 2, 128), ber.UNSIGNED32, 128),
        ((*COLUMN, 2, 3), NO_SUCH_INSTANCE, None),
        ((*COLUMN, 3, 200), NO_SUCH_INSTANCE, None),
        ((*COLUMN, 4, 1), NO_SUCH_OBJECT, None),
    ],
)
def test_get(bench: Bench, name: tuple[int, ...], tag: int, value: Any) -> None:
    answer = bench.ask(GET, [name])
    assert (answer.status, answer.index) == (0, 0)
    assert (answer.names, answer.tags, answer.values) == ([name], [tag], [value])


def test_get_of_nothing_and_of_many(bench: Bench) -> None:
    assert bench.ask(GET, []).names == []
    names = [(*COLUMN, 2, row[0]) for row in bench.rows] * 50
    assert bench.ask(GET, names).names == names


def every_instance(bench: Bench) -> list[tuple[int, ...]]:
    rows = [row[0] for row in bench.rows]
    return [
        (*ROOT, 1, 1, 0), (*ROOT, 1, 2, 0), (*ROOT, 1, 4, 0), (*ROOT, 1, 5, 0),
        *[(*COLUMN, 2, row) for row in rows], *[(*COLUMN, 3, row) for row in rows if row != 200],
        (*ROOT, 3, 1, 0),
    ]  # fmt: skip


def test_getnext_walks_every_instance_in_order_and_ends(bench: Bench) -> None:
    seen, name = [], (0, 0)
    while True:
        answer = bench.ask(NEXT, [name])
        if answer.status:
            assert answer.status == 5  # genErr at `broken`, after everything else
            break
        name = answer.names[0]
        seen.append(name)
    assert seen == sorted(every_instance(bench)) == every_instance(bench)
    end = bench.ask(NEXT, [(*ROOT, 4, 2, 0), (2, 5)])
    assert (end.tags, end.names) == ([END, END], [(*ROOT, 4, 2, 0), (2, 5)])


@given(st.lists(st.integers(0, 2**32 - 1), max_size=6).map(tuple), st.booleans())
@settings(deadline=None, max_examples=300)
def test_getnext_of_any_name_gives_the_first_instance_after_it(tail: tuple[int, ...], below: bool) -> None:
    bench = Bench()
    name = (*ROOT, *tail) if below else (1, 3, *tail)
    after = [instance for instance in every_instance(bench) if instance > name]
    answer = bench.ask(NEXT, [name])
    if after:
        assert answer.names == [after[0]]
    else:
        assert answer.status == 5 or answer.tags == [END]


def test_a_read_that_fails_is_a_generr_with_its_index_and_is_told_of(bench: Bench) -> None:
    for name in ((*ROOT, 4, 1, 0), (*ROOT, 4, 2, 0)):
        answer = bench.ask(GET, [(*ROOT, 1, 1, 0), name])
        assert (answer.status, answer.index) == (5, 2)
        assert answer.names == [(*ROOT, 1, 1, 0), name] and answer.tags == [ber.NULL] * 2
    assert len(bench.failures) == 2


def test_a_value_is_encoded_once_until_it_may_have_changed(bench: Bench) -> None:
    once, always = (*ROOT, 1, 4, 0), (*ROOT, 1, 5, 0)
    assert [bench.ask(GET, [once]).values[0] for _ in range(3)] == [1, 1, 1]
    assert [bench.ask(GET, [always]).values[0] for _ in range(3)] == [2, 3, 4]
    bench.store.changed_all()
    assert bench.ask(GET, [once]).values == [5]
    assert bench.ask(NEXT, [COLUMN]).values == [1]
    bench.rows.append((2**32 - 2,))
    bench.rows.remove((1,))
    assert bench.ask(NEXT, [COLUMN]).values == [1]
    bench.store.changed(["groups"])
    assert bench.ask(NEXT, [COLUMN]).values == [1]
    bench.store.changed(["nodes"])
    assert bench.ask(NEXT, [COLUMN]).values == [2]
    assert bench.ask(NEXT, [(*COLUMN, 2, 16384)]).values == [2**32 - 2]


# ------------------------------------------------------------------------------------------------------------ GETBULK


def by_getnext(bench: Bench, names: list[tuple[int, ...]], once: int, times: int) -> list[tuple[tuple[int, ...], int]]:
    """What RFC 3416 4.2.3 says of a GETBULK, spelled out with GETNEXTs."""
    out = []
    current = list(names)
    for repetition in range(max(times, 1)):
        for at, name in enumerate(current):
            if (at < once) != (repetition == 0) and at < once:
                continue
            if at >= once and not times:
                continue
            answer = bench.ask(NEXT, [name])
            out.append((answer.names[0], answer.tags[0]))
            current[at] = answer.names[0]
    return out


@pytest.mark.parametrize("once", [-5, 0, 1, 2, 3, 9, 2**31 - 1])
@pytest.mark.parametrize("times", [-1, 0, 1, 4])
def test_getbulk_is_what_getnexts_would_give(bench: Bench, once: int, times: int) -> None:
    names = [(*ROOT, 1, 1), (*COLUMN, 2), (*COLUMN, 3, 1)]
    answer = bench.ask(BULK, names, once, times)
    wanted = by_getnext(bench, names, min(max(once, 0), 3), max(times, 0))
    assert list(zip(answer.names, answer.tags, strict=True)) == wanted
    assert (answer.status, answer.index) == (0, 0)


def test_getbulk_of_nothing(bench: Bench) -> None:
    for once, times in ((0, 0), (0, 10), (5, 5)):
        assert bench.ask(BULK, [], once, times).names == []


def test_getbulk_beyond_the_end_says_so_under_the_last_name_and_stops(bench: Bench) -> None:
    answer = bench.ask(BULK, [(*ROOT, 4, 2, 0), (2, 1)], 0, 2**31 - 1)
    assert answer.tags == [END, END] and answer.names == [(*ROOT, 4, 2, 0), (2, 1)]


def test_a_huge_getbulk_is_cut_to_what_a_datagram_takes(bench: Bench) -> None:
    bench.rows = [(n,) for n in range(20000)]
    begun = time.process_time()
    out = bench.send(v2c(a_pdu(BULK, [binding((*COLUMN, 2))], 0, 2**31 - 1)))
    assert out is not None and 65000 < len(out) <= 65507
    assert time.process_time() - begun < 5
    answer = Answer(out)
    assert answer.names == [(*COLUMN, 2, n) for n in range(len(answer.names))]


def test_a_getbulk_whose_first_value_does_not_fit_is_empty_and_a_get_is_toobig(bench: Bench) -> None:
    big = (*ROOT, 3, 1, 0)
    assert len(bench.ask(GET, [big]).values[0]) == 60000
    toobig = bench.ask(GET, [big, big])
    assert (toobig.status, toobig.index, toobig.names) == (1, 0, [])
    toobig = bench.ask(NEXT, [(*ROOT, 3, 1), (*ROOT, 3, 1)])
    assert (toobig.status, toobig.index, toobig.names) == (1, 0, [])
    assert bench.ask(BULK, [(*ROOT, 3, 1), (*ROOT, 3, 1)], 2, 0).names == [big]


# ---------------------------------------------------------------------------------------------------------------- SET


def test_a_set_goes_to_the_setter_with_its_values_as_they_came(bench: Bench) -> None:
    name, cell = (*ROOT, 1, 2, 0), (*COLUMN, 3, 16384)
    pdu = a_pdu(SET, [binding(name, b"\4\2hi"), binding(cell, b"\4\0")])
    assert bench.send(v2c(pdu, WRITE)) is None
    [(request, done)] = bench.sets
    assert [(a.target.name, a.index, a.syntax, a.value) for a in request.assignments] == [
        ("name", (0,), 4, b"hi"), ("text", (16384,), 4, b""),
    ]  # fmt: skip
    assert request.principal.tag == "community-2" and request.host == "192.0.2.7"
    assert WRITE.decode() not in repr(request)
    del done


def test_a_repetition_of_a_set_is_answered_and_not_put_on_record(bench: Bench) -> None:
    message = v2c(a_pdu(SET, [binding((*ROOT, 1, 2, 0), b"\4\2hi")]), WRITE)
    answers: list[bytes] = []
    for _ in range(2):
        bench.responder.handle(message, "192.0.2.7", answers.append)
    (first, done), (second, done_again) = bench.sets
    assert first.identity == second.identity
    done(0, 0, False)
    assert (len(answers), len(bench.outcomes)) == (1, 1)
    done_again(0, 0, True)
    assert (len(answers), len(bench.outcomes)) == (2, 1)
    assert answers[0] == answers[1] and Answer(answers[0]).status == 0


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        ((*ROOT, 1, 1, 0), b"\2\1\1", 17),  # notWritable: read-only
        ((*ROOT, 1, 9, 0), b"\2\1\1", 17),  # notWritable: nothing there could be written
        ((*COLUMN, 1, 1), b"\2\1\1", 17),
        ((*ROOT, 1, 2, 0), b"\2\1\7", 7),  # wrongType: no coercion
        ((*ROOT, 1, 2, 0), b"\5\0", 7),
        ((*ROOT, 1, 2, 0), b"\x44\2hi", 7),
    ],
)
def test_a_set_that_the_responder_itself_refuses(
    bench: Bench, name: tuple[int, ...], value: bytes, status: int
) -> None:
    good = binding((*ROOT, 1, 2, 0), b"\4\2hi")
    out = bench.send(v2c(a_pdu(SET, [good, binding(name, value)]), WRITE))
    assert out is not None and not bench.sets
    answer = Answer(out)
    assert (answer.status, answer.index, answer.names) == (status, 2, [(*ROOT, 1, 2, 0), name])


def test_who_may_only_read_can_set_nothing(bench: Bench) -> None:
    pdu = a_pdu(SET, [binding((*ROOT, 1, 2, 0), b"\4\2hi")])
    out = bench.send(v2c(pdu, READ))
    assert out is not None and (Answer(out).status, Answer(out).index) == (16, 0)
    assert not bench.sets


@pytest.mark.parametrize("host", ["198.51.100.1", "2001:db9::1", "fe80::1%eth0"])
def test_a_community_from_elsewhere_is_nobody(bench: Bench, host: str) -> None:
    assert bench.send(v2c(a_pdu(GET, []), WRITE), host) is None
    assert bench.counters.value("bad_uses") == 1 and bench.counters.value("bad_names") == 0
    assert bench.send(v2c(a_pdu(GET, []), WRITE), "2001:db8::1") is not None


def test_communities_write_only_where_the_configuration_allows_it() -> None:
    careful = Communities(Snmp(communities=(Community("operate", (), WRITE),), allow_insecure_set=False))
    principal = careful.find(WRITE, "192.0.2.1")
    assert principal is not None and not principal.operate


def test_the_first_variable_at_fault_is_blamed_for_its_first_fault(bench: Bench) -> None:
    """RFC 3416 section 4.2.5: each variable binding is tested for everything, one after the other."""
    name, nobody, number = (*ROOT, 1, 2, 0), (*COLUMN, 3, 99), (*ROOT, 1, 1, 0)
    for bindings, status, index in (
        ([binding(name, b"\4\x09" + b"x" * 9), binding(name, b"\2\1\1")], 8, 1),  # wrongLength before wrongType
        ([binding(nobody, b"\4\1x"), binding(number, b"\2\1\1")], 11, 1),  # noCreation before notWritable
        ([binding(nobody, b"\4\x0a" + b"x" * 10)], 8, 1),  # wrongLength before noCreation
        ([binding(nobody, b"\4\1\xff")], 10, 1),  # wrongValue before noCreation
        ([binding(name, b"\4\2hi"), binding(number, b"\2\1\1"), binding(nobody, b"\4\1x")], 17, 2),
    ):
        out = bench.send(v2c(a_pdu(SET, bindings), WRITE))
        assert out is not None and (Answer(out).status, Answer(out).index) == (status, index)
    assert not bench.sets


def test_an_oversized_set_is_refused_before_anything_is_done(bench: Bench) -> None:
    """Its answer echoes it: a manager that takes 484 octets would never hear what became of it."""
    big = [binding((*COLUMN, 3, row), b"\4\x08" + b"x" * 8) for row in (1, 2, 127, 128, 16383)] * 5
    out = bench.send(secured(bench, a_pdu(SET, big), 484))
    assert out is not None and (opened(bench, out).status, opened(bench, out).names) == (1, [])
    assert not bench.sets
    assert bench.send(secured(bench, a_pdu(SET, big), 1472)) is None and len(bench.sets) == 1


# ------------------------------------------------------------------------------------------------------------- SNMPv1


def v1(pdu: bytes, community: bytes = READ) -> bytes:
    return ber.encode(ber.SEQUENCE, b"\x02\x01\x00" + ber.encode(ber.OCTETS, community) + pdu)


@pytest.fixture
def old() -> Bench:
    """With a Counter64 before, between and after what SNMPv1 can be told of."""
    bench = Bench()

    def wide(number: int) -> Scalar:
        return Scalar(f"wide{number}", (*ROOT, 9, number), Syntax.COUNTER64, "read-only", lambda _: 2**40, ())

    one = Scalar("narrow", (*ROOT, 9, 3), Syntax.COUNTER32, "read-only", lambda _: 7, ())
    text = Scalar("text", (*ROOT, 9, 7), Syntax.OCTETS, "read-write", lambda _: b"x", (), size=9)
    bench.store = Store((wide(1), wide(2), one, wide(4), text, wide(8)), (), lambda: Reader(View(), 0, 10**9))
    bench.serve()
    return bench


def test_version_1_skips_counter64_and_has_errors_for_exceptions(old: Bench) -> None:
    """RFC 3584 sections 4.2.2.1 and 4.4."""
    narrow, text = (*ROOT, 9, 3, 0), (*ROOT, 9, 7, 0)

    def ask(tag: int, *names: tuple[int, ...]) -> Answer:
        out = old.send(v1(a_pdu(tag, [binding(name) for name in names])))
        assert out is not None and out[:5] == b"\x30" + bytes((len(out) - 2,)) + b"\2\1\0"
        return Answer(out)

    assert ask(GET, narrow, text).values == [7, b"x"]
    for name in ((*ROOT, 9, 1, 0), (*ROOT, 9, 3, 1), (*ROOT, 9, 5, 0), (1, 3)):
        answer = ask(GET, narrow, name)
        assert (answer.status, answer.index, answer.names, answer.tags) == (2, 2, [narrow, name], [ber.NULL] * 2)
    assert ask(NEXT, ROOT, narrow, (*ROOT, 9, 2, 0)).names == [narrow, text, narrow]
    answer = ask(NEXT, narrow, text)  # only a Counter64 comes after it
    assert (answer.status, answer.index, answer.names) == (2, 2, [narrow, text])
    # The same over v2c.
    assert old.ask(NEXT, [ROOT, text]).tags == [ber.COUNTER64] * 2
    assert old.ask(GET, [(*ROOT, 9, 1, 0)]).values == [2**40]


def test_version_1_gets_its_own_errors(old: Bench) -> None:
    text, narrow = (*ROOT, 9, 7, 0), (*ROOT, 9, 3, 0)
    for name, value, status in (
        (text, b"\2\1\1", 3), (text, b"\4\x0a" + b"x" * 10, 3), (text, b"\4\1\xff", 3), (narrow, b"\x41\1\1", 2),
        ((*ROOT, 9, 7, 1), b"\4\1x", 2), ((*ROOT, 5), b"\4\1x", 2),
    ):  # fmt: skip
        out = old.send(v1(a_pdu(SET, [binding(text, b"\4\1y"), binding(name, value)]), WRITE))
        assert out is not None and (Answer(out).status, Answer(out).index) == (status, 2), (name, value)
    out = old.send(v1(a_pdu(SET, [binding(text, b"\4\1y")])))
    assert out is not None and (Answer(out).status, Answer(out).index) == (2, 1)  # for authorizationError
    assert not old.sets
    assert old.send(v1(a_pdu(SET, [binding(text, b"\4\1y")]), WRITE)) is None
    [(request, done)] = old.sets
    for status, said in ((12, 3), (13, 5), (14, 5), (15, 5), (16, 2), (18, 2), (5, 5), (0, 0)):
        answers: list[bytes] = []
        old.responder.handle(v1(a_pdu(SET, [binding(text, b"\4\1y")]), WRITE), "192.0.2.7", answers.append)
        old.sets[-1][1](status, 1)
        assert Answer(answers[0]).status == said
    del request, done


@pytest.mark.parametrize("value", [b"\x46\1\1", b"\x80\0", b"\x81\0", b"\x82\0"])
def test_version_1_has_no_such_types(old: Bench, value: bytes) -> None:
    assert old.send(v1(a_pdu(GET, [binding((*ROOT, 9, 3, 0), value)]))) is None
    assert old.counters.value("parse_errors") == 1


def test_version_1_too_big_is_the_request_with_an_error(bench: Bench) -> None:
    big = (*ROOT, 3, 1, 0)
    out = bench.send(v1(a_pdu(GET, [binding(big), binding(big)])))
    assert out is not None
    assert (Answer(out).status, Answer(out).index, Answer(out).names) == (1, 0, [big, big])


def test_who_is_not_who_he_says_is_told_of_once_a_second(bench: Bench) -> None:
    good = secured(bench, a_pdu(GET, []))
    for message, host in (
        (v2c(a_pdu(GET, []), b"wrong"), "192.0.2.1"), (v1(a_pdu(GET, []), WRITE), "198.51.100.1"),
        (good[:-1] + bytes((good[-1] ^ 1,)), "192.0.2.3"),
    ):  # fmt: skip
        bench.second += 1
        for _ in range(5):
            bench.send(message, host)
    assert bench.unauthentic == ["192.0.2.1", "198.51.100.1", "192.0.2.3"]
    for message in (good, b"junk", unproven(bench, a_pdu(GET, []))):
        bench.second += 1
        bench.send(message)
    assert len(bench.unauthentic) == 3


def test_what_a_window_remembers_is_forgotten_at_any_change(bench: Bench) -> None:
    """Of GET and GETNEXT, and never what may change unsaid."""
    once, always = (*ROOT, 1, 4, 0), (*ROOT, 1, 5, 0)
    assert [bench.ask(tag, names).values for tag, names in ((GET, [once, always]), (NEXT, [(*ROOT, 1, 4), once]))] == [
        [1, 2], [1, 3],
    ]  # fmt: skip
    for expected, change in enumerate((lambda: None, lambda: bench.store.changed(["nodes"]), bench.store.changed_all)):
        change()
        first = bench.ask(GET, [once]).values[0]
        assert (first > 1) == (expected == 2)
        assert bench.ask(NEXT, [(*ROOT, 1, 4)]).values == [first]
        assert bench.ask(GET, [always]).values != bench.ask(GET, [always]).values
    before = bench.ask(NEXT, [(*COLUMN, 2)]).names
    bench.rows.insert(0, (0,))
    bench.store.changed(["nodes"])
    assert bench.ask(NEXT, [(*COLUMN, 2)]).names == [(*COLUMN, 2, 0)] != before
    # It keeps no more than it may, whatever is asked for.
    windows = list(bench.store._windows.values())
    assert windows and all(len(kept) <= 20_000 for window in windows for kept in (window.found, window.after))


def test_a_row_that_changes_is_read_anew_and_its_neighbours_are_not(bench: Bench) -> None:
    reads: list[Any] = []

    def read(_: Reader, row: list[int]) -> int:
        reads.append(row[0])
        return row[1]

    rows = [[n, n * 10] for n in range(1, 6)]
    table = TableDef(
        "keyed", COLUMN, (Index("index", 1, Syntax.UNSIGNED32),), lambda _: [((row[0],), row) for row in rows],
        (Column("value", 2, Syntax.UNSIGNED32, "read-only", read),), ("nodes",), lambda row: (row[0],),
    )  # fmt: skip
    bench.store = Store((), (table,), lambda: Reader(View(), 0, 1))
    bench.serve()

    def values() -> list[Any]:
        return bench.ask(BULK, [COLUMN], 0, 20).values[: len(rows)]

    assert values() == [10, 20, 30, 40, 50] and len(reads) == 5
    rows[2] = [3, 33]
    bench.store.changed_rows("nodes", [rows[2]])
    bench.store.changed_rows("groups", [[1, 1]])
    assert values() == [10, 20, 33, 40, 50] and reads[5:] == [3]
    rows.append([6, 60])
    bench.store.changed_rows("nodes", [rows[5]])
    assert values() == [10, 20, 33, 40, 50, 60] and len(reads) == 12


# ------------------------------------------------------------------------------------------------- what is not a request


def message(version: bytes = b"\2\1\1", community: bytes = b"\4\4look", pdu: bytes | None = None) -> bytes:
    return ber.encode(0x30, version + community + (a_pdu(GET, []) if pdu is None else pdu))


GOOD_NAME = b"\6\3\x2b\6\1"
MALFORMED: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "parse_errors"),
    "one octet": (b"\x30", "parse_errors"),
    "zeroes": (bytes(64), "parse_errors"),
    "indefinite length": (b"\x30\x80" + message()[2:] + b"\0\0", "parse_errors"),
    "length beyond the datagram": (b"\x30\x7f" + message()[2:], "parse_errors"),
    "length of five octets": (b"\x30\x85\0\0\0\0\x10" + message()[2:], "parse_errors"),
    "octets after the message": (message() + b"\0", "parse_errors"),
    "version missing": (ber.encode(0x30, b"\4\4look" + a_pdu(GET, [])), "parse_errors"),
    "version of no octets": (message(b"\2\0"), "parse_errors"),
    "SNMPv1, PDU of v2": (message(b"\2\1\0", pdu=a_pdu(BULK, [])), "parse_errors"),
    "version 2": (message(b"\2\1\2"), "bad_versions"),
    "version -1": (message(b"\2\1\xff"), "bad_versions"),
    "community constructed": (message(community=b"\x24\6\4\4look"), "parse_errors"),
    "community unknown": (message(community=b"\4\4Look"), "bad_names"),
    "community empty": (message(community=b"\4\0"), "bad_names"),
    "no PDU": (message(pdu=b""), "parse_errors"),
    "v1 trap PDU": (message(pdu=b"\xa4" + a_pdu(GET, [])[1:]), "parse_errors"),
    "PDU tag 0xa9": (message(pdu=b"\xa9" + a_pdu(GET, [])[1:]), "parse_errors"),
    "Response": (message(pdu=a_pdu(RESPONSE, [])), "unknown_handlers"),
    "Trap": (message(pdu=a_pdu(TRAP, [])), "unknown_handlers"),
    "Report": (message(pdu=a_pdu(REPORT, [])), "unknown_handlers"),
    "Inform": (message(pdu=a_pdu(INFORM, [])), "unknown_handlers"),
    "request-id of five octets": (message(pdu=b"\xa0\x0f\2\5\0\0\0\0\1\2\1\0\2\1\0\x30\0"), "parse_errors"),
    "request-id a string": (message(pdu=b"\xa0\x0b\4\1\1\2\1\0\2\1\0\x30\0"), "parse_errors"),
    "bindings missing": (message(pdu=b"\xa0\x09\2\1\1\2\1\0\2\1\0"), "parse_errors"),
    "octets after the bindings": (message(pdu=ber.encode(0xA0, a_pdu(GET, [])[2:] + b"\0\0")), "parse_errors"),
    "octets after the PDU": (message(pdu=a_pdu(GET, []) + b"\5\0"), "parse_errors"),
    "binding no sequence": (message(pdu=a_pdu(GET, [b"\x31\7" + GOOD_NAME + b"\5\0"])), "parse_errors"),
    "binding without a value": (message(pdu=a_pdu(GET, [b"\x30\5" + GOOD_NAME])), "parse_errors"),
    "binding of three": (message(pdu=a_pdu(GET, [b"\x30\x09" + GOOD_NAME + b"\5\0\5\0"])), "parse_errors"),
    "name no OID": (message(pdu=a_pdu(GET, [b"\x30\5\4\1a\5\0"])), "parse_errors"),
    "name empty": (message(pdu=a_pdu(GET, [b"\x30\4\6\0\5\0"])), "parse_errors"),
    "name unfinished": (message(pdu=a_pdu(GET, [b"\x30\6\6\2\x2b\x86\5\0"])), "parse_errors"),
    "name padded": (message(pdu=a_pdu(GET, [b"\x30\7\6\3\x2b\x80\1\5\0"])), "parse_errors"),
    "name padded, GETNEXT": (message(pdu=a_pdu(NEXT, [b"\x30\7\6\3\x2b\x80\1\5\0"])), "parse_errors"),
    "name padded, GETBULK": (message(pdu=a_pdu(BULK, [b"\x30\7\6\3\x2b\x80\1\5\0"], 0, 5)), "parse_errors"),
    "sub-identifier too big": (message(pdu=a_pdu(NEXT, [b"\x30\x0a\6\6\x2b\x90\x80\x80\x80\0\5\0"])), "parse_errors"),
    "129 sub-identifiers": (
        message(pdu=a_pdu(GET, [ber.encode(0x30, ber.encode(6, b"\x2b" + b"\1" * 127) + b"\5\0")])), "parse_errors",
    ),
    "value of an unknown type": (message(pdu=a_pdu(GET, [b"\x30\7" + GOOD_NAME + b"\x13\0"])), "parse_errors"),
    "value reaches out": (message(pdu=a_pdu(GET, [b"\x30\7" + GOOD_NAME + b"\4\5"])), "parse_errors"),
    "version 3 with a community": (message(b"\2\1\3"), "parse_errors"),
}  # fmt: skip


@pytest.mark.parametrize("what", MALFORMED)
def test_malformed_datagrams_get_no_answer_and_are_counted(bench: Bench, what: str) -> None:
    data, counter = MALFORMED[what]
    assert bench.send(data) is None
    assert bench.counters.value(counter) == 1
    assert bench.counters.value("in_packets") == 1
    assert bench.ask(GET, [(*ROOT, 1, 1, 0)]).values == [1]


@pytest.mark.parametrize("value", [b"\2\0", b"\4\1x", b"\2\5\0\0\0\0\1", b"\x46\1\1", b"\x80\0"])
def test_the_value_in_a_get_is_ignored(bench: Bench, value: bytes) -> None:
    """RFC 3416 section 4.2.1: a name is asked for; what stands beside it means nothing."""
    out = bench.send(v2c(a_pdu(GET, [binding((*ROOT, 1, 1, 0), value)])))
    assert out is not None and Answer(out).values == [1]


def test_a_value_whose_encoding_is_wrong_for_its_type_is_wrongencoding() -> None:
    bench = Bench()
    number = Scalar("n", (*ROOT, 9), Syntax.INTEGER32, "read-write", lambda _: 1, (), allowed=(1, 2))
    bench.store = Store((number,), (), lambda: Reader(View(), 0, 1))
    bench.serve()
    for value in (b"\2\0", b"\2\5\0\0\0\0\1"):
        out = bench.send(v2c(a_pdu(SET, [binding((*ROOT, 9, 0), value)]), WRITE))
        assert out is not None and (Answer(out).status, Answer(out).index) == (9, 1)
    assert not bench.sets


def test_a_large_datagram_with_a_wrong_community_costs_next_to_nothing(bench: Bench) -> None:
    names = [binding((*ROOT, 1, 1, 0))] * 3500
    big = v2c(a_pdu(GET, names), b"wrong")
    small = v2c(a_pdu(GET, names[:1]), b"wrong")
    assert len(big) > 58000

    def calls(data: bytes) -> int:
        """How many functions are called for it."""
        seen: list[str] = []
        sys.setprofile(lambda _frame, what, _function: seen.append(what) if what == "call" else None)
        try:
            bench.send(data)
        finally:
            sys.setprofile(None)
        return len(seen)

    assert calls(big) == calls(small)
    assert bench.counters.value("bad_names") == 2


# ------------------------------------------------------------------------------------------------------------ any octets

A_REQUEST = v2c(a_pdu(BULK, [binding((*COLUMN, 2)), binding((*ROOT, 1, 1))], 1, 5))
FUZZ = settings(deadline=None, max_examples=600)


@given(st.binary(max_size=200))
@FUZZ
def test_any_octets_are_survived(data: bytes) -> None:
    SHARED.send(data)


@given(st.data())
@FUZZ
def test_any_change_of_a_request_is_survived_and_any_answer_is_well_formed(data: st.DataObject) -> None:
    bench = SHARED
    octets = bytearray(A_REQUEST)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(octets) - 1))
        match data.draw(st.sampled_from(("set", "cut", "add"))):
            case "set":
                octets[at] = data.draw(st.integers(0, 255))
            case "cut" if len(octets) > 1:
                del octets[at]
            case _:
                octets.insert(at, data.draw(st.integers(0, 255)))
    out = bench.send(bytes(octets))
    if out is not None:
        assert Answer(out).tag == RESPONSE


SHARED = Bench()


def test_a_change_of_one_octet_of_a_v3_request_is_never_answered_as_a_request() -> None:
    """Whatever one octet is changed: no Response comes of it, for the digest is over all of them."""
    bench = SHARED
    good = secured(bench, a_pdu(GET, [binding((*ROOT, 1, 1, 0))]))
    first = bench.send(good)
    assert first is not None and opened(bench, first).tag == RESPONSE
    dice = random.Random(1)
    for at in range(len(good)):
        data = bytearray(good)
        data[at] ^= dice.randrange(1, 256)
        bench.second += 1  # so that the limit on Reports is not what is seen
        out = bench.send(bytes(data))
        # The Report flag, alone, may be the octet that changed: then still only a Report can come.
        if out is not None:
            assert b"\xa8" in out or opened(bench, out).tag == REPORT


def secured(
    bench: Bench, pdu: bytes, max_size: int = 65507, context: bytes = b"", engine_id: bytes | None = None
) -> bytes:
    """A v3 request of noc as its manager would send it: the engine's own code, but for the flags and who is asked."""
    user = bench.engine.users[b"noc"]
    scoped = ber.encode(
        0x30, ber.encode(4, bench.engine.id if engine_id is None else engine_id) + ber.encode(4, context) + pdu
    )
    salt = bytes(range(8))
    sealed = ber.encode(4, sealed_by(user, scoped, 3, 1000, salt))
    header = ber.encode(0x30, ber.encode_integer(99) + ber.encode_integer(max_size) + b"\4\1\7" + b"\2\1\3")
    before = ber.encode(4, bench.engine.id) + b"\2\1\3" + ber.encode_integer(1000) + ber.encode(4, b"noc")
    params = ber.encode(4, ber.encode(0x30, before + ber.encode(4, bytes(24)) + ber.encode(4, salt)))
    whole = ber.encode(0x30, b"\2\1\3" + header + params + sealed)
    at = len(whole) - len(sealed) - 10 - 24
    return whole[:at] + user.digest(whole) + whole[at + 24 :]


def opened(bench: Bench, answer: bytes) -> Answer:
    start, end = ber.expect(answer, 0, len(answer), 0x30)
    _, start = ber.integer(answer, start, end)
    message = bench.engine.receive(answer, start, end)
    assert isinstance(message, Incoming)
    _, start = ber.octets(message.data, message.start, message.stop)
    _, start = ber.octets(message.data, start, message.stop)
    return Answer.of_pdu(message.data, start, message.stop)


@pytest.mark.parametrize("size", [484, 500, 600, 1472])
def test_a_v3_answer_fits_the_managers_message_size(bench: Bench, size: int) -> None:
    bench.rows = [(n,) for n in range(1000, 2000)]
    out = bench.send(secured(bench, a_pdu(BULK, [binding((*COLUMN, 2))], 0, 50), size))
    assert (out is not None and size - 60 < len(out) <= size) or size == 1472
    answer = opened(bench, out or b"")
    assert answer.names == [(*COLUMN, 2, n) for n in range(1000, 1000 + len(answer.names))] and len(answer.names) > 5
    names = [binding((*COLUMN, 2, n)) for n in range(1000, 1100)]
    out = bench.send(secured(bench, a_pdu(GET, names), size))
    assert out is not None and len(out) <= size
    assert (opened(bench, out).status, opened(bench, out).names) == (1, [])


@pytest.mark.parametrize("tag", [GET, NEXT])
@pytest.mark.parametrize("count", [18, 19, 20, 40])
def test_toobig_begins_where_the_managers_message_size_ends(bench: Bench, tag: int, count: int) -> None:
    bench.rows = [(n,) for n in range(1000, 2000)]
    asked = a_pdu(tag, [binding((*COLUMN, 2, n)) for n in range(1000, 1000 + count)])
    whole = len(bench.send(secured(bench, asked)) or b"")
    assert whole > 484
    for size, status in ((whole, 0), (whole - 1, 1)):
        out = bench.send(secured(bench, asked, size))
        assert out is not None and len(out) <= size and opened(bench, out).status == status


def test_toobig_of_a_community_begins_where_a_datagram_ends(bench: Bench) -> None:
    longest = 0
    for short in range(2, 102):
        padding = [binding((1, 3, *[9] * 100))] * 50
        out = bench.send(v2c(a_pdu(GET, [binding((*ROOT, 3, 1, 0)), *padding, binding((1, 3, *[9] * short))])))
        assert out is not None
        if Answer(out).status == 0:
            longest = max(longest, len(out))
        else:
            assert Answer(out).status == 1 and len(out) < 100
    assert longest == MAX_MESSAGE


def test_a_foreign_context_is_reported(bench: Bench) -> None:
    for more, counter in (({"context": b"other"}, "unknown_contexts"), ({"engine_id": b"other"}, "unknown_handlers")):
        out = bench.send(secured(bench, a_pdu(GET, []), **more))  # type: ignore[arg-type]
        assert out is not None
        report = opened(bench, out)
        assert (report.tag, report.request_id, report.values) == (REPORT, 77, [1])
        assert bench.counters.value(counter) == 1


def unproven(bench: Bench, pdu: bytes) -> bytes:
    """A v3 request under noc's name, without authentication."""
    header = ber.encode(0x30, b"\2\1\x63" + ber.encode_integer(65507) + b"\4\1\4" + b"\2\1\3")
    params = ber.encode(4, bench.engine.id) + b"\2\1\0\2\1\0" + ber.encode(4, b"noc") + b"\4\0\4\0"
    scoped = ber.encode(0x30, ber.encode(4, bench.engine.id) + b"\4\0" + pdu)
    return ber.encode(0x30, b"\2\1\3" + header + ber.encode(4, ber.encode(0x30, params)) + scoped)


@pytest.mark.parametrize("tag", [GET, NEXT, BULK, SET])
def test_below_a_users_level_nothing_is_allowed_and_nothing_read(bench: Bench, tag: int) -> None:
    asked = unproven(bench, a_pdu(tag, [binding((*ROOT, 1, 4, 0)), binding((*ROOT, 1, 2, 0))], 0, 50))
    out = bench.send(asked)
    assert out is not None and len(out) <= len(asked) + 16  # the engine's own boots and time are longer
    answer = opened(bench, out)
    assert (answer.tag, answer.request_id, answer.status, answer.index) == (RESPONSE, 77, 16, 0)
    assert answer.names == [(*ROOT, 1, 4, 0), (*ROOT, 1, 2, 0)] and answer.tags == [ber.NULL, ber.NULL]
    assert not bench.reads and not bench.sets


def test_an_unproven_sender_is_answered_little_and_seldom(bench: Bench) -> None:
    asked = unproven(bench, a_pdu(GET, [binding((*ROOT, 1, 1, 0))]))
    assert sum(bench.send(asked) is not None for _ in range(1000)) == 100
    bench.second += 1
    assert bench.send(unproven(bench, a_pdu(GET, [binding((*ROOT, 1, 1, 0))] * 100))) is None
    for pdu in (a_pdu(RESPONSE, []), a_pdu(TRAP, []), a_pdu(REPORT, [])):
        assert bench.send(unproven(bench, pdu)) is None


def test_a_bulk_that_fails_blames_the_variable_that_failed_whatever_repetition_it_was_in(bench: Bench) -> None:
    one, wrong = (*ROOT, 1, 1, 0), (*ROOT, 4, 1, 0)
    for names, once, index in (
        ([(*ROOT, 4)], 0, 1), ([one, (*ROOT, 4)], 0, 2), ([one, (*ROOT, 4)], 1, 2), ([(*ROOT, 4), one], 1, 1),
        ([one, one, (*ROOT, 3)], 0, 3),  # big.0 fits, and in the second repetition broken.0 follows it
        ([one, (*ROOT, 3), one], 1, 2),
        ([one, one, wrong], 1, 3),  # and the value that is none of its type
    ):  # fmt: skip
        answer = bench.ask(BULK, [*names], once, 2)
        assert (answer.status, answer.index, answer.names) == (5, index, names), (names, once)
    assert len(bench.failures) == 7


def test_a_bulk_with_a_name_that_is_none_is_no_message(bench: Bench) -> None:
    bad = ber.encode(0x30, ber.encode(ber.OID, b"\x2b\x80\x01") + b"\5\0")
    assert bench.send(v2c(a_pdu(BULK, [binding((*ROOT, 1, 1)), bad], 0, 2))) is None
    assert not bench.failures and bench.counters.value("parse_errors") == 1


def test_reports_to_one_address_are_limited_so_that_a_flood_gains_nothing(bench: Bench) -> None:
    probe = ber.encode(0x30, b"\2\1\3" + ber.encode(0x30, b"\2\1\1\2\2\5\xdc\4\1\4\2\1\3")
                       + ber.encode(4, ber.encode(0x30, b"\4\0\2\1\0\2\1\0\4\0\4\0\4\0"))
                       + ber.encode(0x30, b"\4\0\4\0" + a_pdu(GET, [])))  # fmt: skip
    answered = sum(bench.send(probe) is not None for _ in range(1000))
    assert answered == 100
    assert bench.send(probe, "192.0.2.99") is not None
    bench.second += 1
    assert bench.send(probe) is not None
    assert sum(bench.send(probe, f"198.51.100.{n}") is not None for n in range(200) for _ in range(20)) == 999
    bench.second += 1
    # Without the reportable flag nothing is said at all.
    silent = probe.replace(b"\4\1\4\2\1\3", b"\4\1\0\2\1\3")
    assert bench.send(silent, "192.0.2.98") is None


def test_a_bulk_of_thousands_of_names_looks_up_no_more_than_an_answer_takes(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.rows = [(number,) for number in range(1, 101)]
    looked_up = 0
    real = Store.run

    def run(*arguments: Any) -> Any:
        nonlocal looked_up
        found = real(*arguments)
        looked_up += sum(map(len, found[0])) if found else 0
        return found

    monkeypatch.setattr(Store, "run", run)
    answer = bench.ask(BULK, [COLUMN] * 4000, 0, 64)
    # The first repetition, of every name, and what else there was room for.
    assert len(answer.names) > 2000 and set(answer.names) == {(*COLUMN, 2, 1)}
    assert 0 < looked_up < 2 * MAX_MESSAGE


def test_a_flood_of_discoveries_leaves_the_reports_to_authentic_managers(bench: Bench) -> None:
    """After a restart of ours they learn our boots by them (RFC 3414 section 3.2 (7) (a))."""
    header = b"\2\1\3" + ber.encode(0x30, b"\2\1\1\2\2\5\xdc\4\1\4\2\1\3")
    usm = ber.encode(4, ber.encode(0x30, b"\4\0\2\1\0\2\1\0\4\0\4\0\4\0"))
    discovery = ber.encode(0x30, header + usm + ber.encode(0x30, b"\4\0\4\0" + a_pdu(GET, [])))
    told = sum(bench.send(discovery, f"192.0.2.{20 + number % 11}") is not None for number in range(1100))
    assert told == REPORTS_A_SECOND_TO_ALL
    before = Engine(bench.engine.id, 2, lambda: 1000, SETTINGS.users, Counters())
    manager = Incoming(5, MAX_MESSAGE, False, 3, before.users[b"noc"])
    message = before.send(manager, a_pdu(GET, [binding((*ROOT, 1, 1, 0))]), 3, reportable=True)
    assert bench.send(message, "198.51.100.1") is not None
    assert bench.counters.value("usm_not_in_window") == 1
    # One who repeats an authentic message gains no flood by it either.
    assert sum(bench.send(message, "198.51.100.1") is not None for _ in range(200)) == REPORTS_A_SECOND - 1
