"""Requests of a known form: whatever is answered by it, the full parser answers, in the same octets and the same counters."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from hasnmp.snmp import ber
from hasnmp.snmp.plain import FORMS, Forms
from hasnmp.snmp.usm import Engine, Fields
from tests.snmp.snmp_lab import BULK, GET, NEXT, SET, WRITE, Answer, a_pdu, binding, v2c
from tests.snmp.test_snmp_responder import COLUMN, ROOT, Bench, secured, unproven


class NoForms(Forms):
    """Knows none, ever."""

    def answer(self, who: object, data: bytes, at: int, room: int) -> bytes | None:
        return None


class NoKnown(Engine):
    def known(self, data: bytes, pos: int) -> Fields | None:
        return None


def quick_bench() -> Bench:
    bench = Bench()
    for column in bench.store.columns:
        if column.target.name.startswith("count"):
            column.read = lambda reader, row: 5  # how often they are read is another matter
    return bench


def slow_bench() -> Bench:
    bench = quick_bench()
    bench.responder._forms = NoForms(bench.store, bench.responder._requests)
    bench.engine.__class__ = NoKnown
    return bench


QUICK, SLOW = quick_bench(), slow_bench()

# Some are there, some are not; and 5, 0, 48 is where one variable binding ends and the next begins.
OIDS = st.sampled_from((
    (*ROOT, 1, 1, 0), (*ROOT, 1, 2, 0), (*COLUMN, 2, 1), (*COLUMN, 2, 127), (*COLUMN, 3, 2**32 - 1), (*ROOT, 1), COLUMN,
    (*ROOT, 1, 3, 0), (*COLUMN, 3, 200), (*ROOT, 9), (1, 3), (1, 3, 5, 0, 48, 11, 6, 9, 43, 6, 1, 4, 1, 134, 141, 31),
    (1, 3, *(1,) * 120), (1, 3, *(7,) * 126),
))  # fmt: skip
IDS = st.sampled_from((0, 1, 127, 128, 255, 256, 0x7FFF, 0x8000, 0xFF0000, 2**31 - 1, -1, -128, -129, -(2**31)))
PDUS = st.builds(
    lambda tag, names, first, second, number, value: a_pdu(
        tag, [binding(name, value) for name in names], first, second, number
    ),
    st.sampled_from((GET, GET, NEXT, NEXT, BULK, SET)), st.lists(OIDS, max_size=6), st.sampled_from((0, 0, 1, 2, 200)),
    st.sampled_from((0, 2, 5, 127, 128, -1)), IDS, st.sampled_from((b"\5\0", b"\5\0", b"\5\0", b"\2\1\7")),
)  # fmt: skip


def mutations(data: st.DataObject, octets: bytes) -> bytes:
    out = bytearray(octets)
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(out) - 1))
        match data.draw(st.sampled_from(("set", "cut", "add"))):
            case "set":
                out[at] = data.draw(st.integers(0, 255))
            case "cut" if len(out) > 1:
                del out[at]
            case _:
                out.insert(at, data.draw(st.integers(0, 255)))
    return bytes(out)


def counted(bench: Bench) -> list[int]:
    return list(bench.counters._counts)


def same(message: bytes) -> None:
    assert QUICK.send(message) == SLOW.send(message)
    assert counted(QUICK) == counted(SLOW)


@given(PDUS, st.data())
@settings(deadline=None, max_examples=600)
def test_a_known_form_is_answered_as_an_unknown_one(pdu: bytes, data: st.DataObject) -> None:
    wrap = data.draw(
        st.sampled_from((v2c, lambda pdu: v2c(pdu, WRITE), lambda pdu: v2c(pdu).replace(b"\2\1\1", b"\2\1\0", 1)))
    )
    message = wrap(pdu)
    for octets in (message, mutations(data, message), wrap(mutations(data, pdu))):
        same(octets)
        same(octets)


def test_what_the_full_parser_refuses_has_no_form() -> None:
    """Found by the fuzzer: the first variable binding has a tag of its own."""
    good = a_pdu(NEXT, [binding((*ROOT, 1)), binding((*ROOT, 1))])
    at = good.index(b"\x30", good.index(b"\x30") + 1)
    for _ in range(3):
        same(v2c(good[:at] + b"\x35" + good[at + 1 :]))


def plain_of(bench: Bench, message: bytes | None) -> bytes | None:
    """What an encrypted answer says, or a Report."""
    if message is None:
        return None
    start, end = ber.expect(message, 0, len(message), 0x30)
    came = Engine.receive(bench.engine, message, start + 3, end)
    assert came is not None
    return came.data[came.start : came.stop]


@given(PDUS, st.data())
@settings(deadline=None, max_examples=300)
def test_so_it_is_in_v3(pdu: bytes, data: st.DataObject) -> None:
    size = data.draw(st.sampled_from((65507, 1472, 484)))
    for octets in (pdu, pdu, mutations(data, pdu)):
        quick, slow = (bench.send(secured(bench, octets, size)) for bench in (QUICK, SLOW))
        assert plain_of(QUICK, quick) == plain_of(SLOW, slow)
        assert counted(QUICK) == counted(SLOW)


@given(st.data())
@settings(deadline=None, max_examples=600)
def test_a_v3_header_of_a_known_form_reads_the_same(data: st.DataObject) -> None:
    pdu = a_pdu(GET, [binding((*ROOT, 1, 1, 0))] * data.draw(st.integers(0, 8)))
    good = secured(QUICK, pdu)
    assert QUICK.send(good) is not None and SLOW.send(good) is not None
    pos = 5 + (good[1] & 0x7F if good[1] & 0x80 else 0)
    assert QUICK.engine.known(good, pos) == QUICK.engine.fields(good, pos, len(good))
    octets = mutations(data, data.draw(st.sampled_from((good, unproven(QUICK, pdu)))))
    try:
        quick = QUICK.engine.known(octets, pos)
    except IndexError:
        return
    if quick is not None and quick[0] >= 0:  # what is below is the checks' that come after both
        assert quick == QUICK.engine.fields(octets, pos, len(octets))


def test_what_consoles_send_is_of_a_known_form_the_second_time() -> None:
    bench = Bench()
    for count in (1, 2, 10, 60):
        for tag in (GET, NEXT, BULK):
            names = [binding((*COLUMN, 2, 1))] * count
            for number in (77, 200, 70000, 2**31 - 1):
                pdu = a_pdu(tag, names, 0, 9, number)
                for message in (v2c(pdu), secured(bench, pdu)):
                    before = len(bench.responder._forms._forms)
                    first = bench.send(message)
                    assert len(bench.responder._forms._forms) == before + 1 and first is not None
                    assert bench.send(message) is not None
                    assert len(bench.responder._forms._forms) == before + 1
                message = v2c(pdu)
                at = 6 if message[1] < 0x80 else 7 if message[1] == 0x81 else 8
                answer = bench.responder._forms.answer("192.0.2.7", message, at + message[at] + 2, 60000)
                assert answer is not None and Answer(answer).request_id == number


def test_a_stranger_teaches_no_form_and_nobody_more_than_there_is_room_for() -> None:
    bench = Bench()
    pdu = a_pdu(GET, [binding((*ROOT, 1, 1, 0))])
    for message, host in (
        (v2c(pdu, b"wrong"), "192.0.2.7"), (v2c(pdu, WRITE), "198.51.100.1"), (unproven(bench, pdu), "192.0.2.7"),
    ):  # fmt: skip
        bench.send(message, host)
    assert not bench.responder._forms._forms and not bench.engine._forms
    for number in range(FORMS + 10):
        assert bench.send(v2c(pdu), f"192.0.2.{number}") is not None
    assert len(bench.responder._forms._forms) <= FORMS
    # The form of one address is not another's, which may do less.
    assert bench.send(v2c(pdu, WRITE), "192.0.2.7") is not None
    assert bench.send(v2c(pdu, WRITE), "198.51.100.1") is None


@given(st.binary(max_size=80))
@settings(deadline=None, max_examples=400)
def test_any_octets_are_survived(octets: bytes) -> None:
    same(octets)


def test_a_header_is_that_of_the_codec() -> None:
    for size in (0, 1, 126, 127, 128, 255, 256, 1400, 65535, 65536, 70000):
        assert ber.header(0x30, size) + bytes(size) == ber.encode(0x30, bytes(size))
        assert ber.expect(ber.encode(0x30, bytes(size)), 0, size + 5, 0x30)[1] == len(ber.encode(0x30, bytes(size)))
