"""The quick reader of plain requests: whatever it takes, the full parser takes, and reads the same in it."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from hasnmp.snmp import ber, plain
from hasnmp.snmp.responder import parse_pdu
from tests.snmp.snmp_lab import BULK, GET, NEXT, READ, SET, a_pdu, binding, v2c
from tests.snmp.test_snmp_responder import SHARED, secured, unproven

OIDS = st.builds(
    lambda tail: (1, 3, 6, 1, *tail), st.lists(st.integers(0, 2**32 - 1) | st.integers(0, 300), max_size=20)
)
PDUS = st.builds(
    lambda tag, names, numbers, value: a_pdu(tag, [binding(name, value) for name in names], *numbers),
    st.sampled_from((GET, NEXT, BULK, SET)), st.lists(OIDS, max_size=12),
    st.tuples(st.integers(-3, 200), st.integers(-3, 200), st.integers(-(2**31), 2**31 - 1)),
    st.sampled_from((b"\5\0", b"\5\0", b"\2\1\7", b"\4\3abc")),
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


@given(PDUS, st.data())
@settings(deadline=None, max_examples=400)
def test_a_pdu_reads_the_same(pdu: bytes, data: st.DataObject) -> None:
    octets = mutations(data, pdu)
    quick = plain.pdu(octets, 0, len(octets))
    if quick is None:
        return
    tag, request_id, first, second, names = quick
    if tag not in (GET, NEXT, BULK):
        return
    slow = parse_pdu(octets, 0, len(octets))
    assert (slow.tag, slow.first, slow.second) == (tag, first, second)
    assert ber.encode_integer(slow.request_id) == request_id
    assert [raw for raw, _, _, _ in slow.bindings()] == names


def test_what_consoles_send_is_plain() -> None:
    for count in (0, 1, 2, 10, 60):
        pdu = a_pdu(GET, [binding((1, 3, 6, 1, 2, 1, 1, n, 0)) for n in range(count)], request_id=2**31 - 1)
        found = plain.pdu(pdu, 0, len(pdu))
        assert found is not None and len(found[4]) == count
        message = v2c(pdu)
        assert plain.head(message) == (1, READ, len(message) - len(pdu))
        message = secured(SHARED, pdu)
        assert (head := plain.head(message)) is not None and head[:2] == (3, b"")
        assert plain.secured(message, head[2], len(message)) is not None


@given(st.data())
@settings(deadline=None, max_examples=600)
def test_a_v3_message_reads_the_same(data: st.DataObject) -> None:
    pdu = a_pdu(GET, [binding((1, 3, 6, 1))])
    octets = mutations(data, data.draw(st.sampled_from((secured(SHARED, pdu), unproven(SHARED, pdu)))))
    head = plain.head(octets)
    if head is None or head[0] != 3:
        return
    quick = plain.secured(octets, head[2], len(octets))
    if quick is not None:
        try:
            slow = SHARED.engine._fields(octets, head[2], len(octets))
        except ber.BerError:
            # What the quick one leaves to the checks that come after both.
            assert quick[0] < 0 or quick[1] < 484
            return
        assert quick == slow


def test_a_v3_header_whose_lengths_disagree_is_not_plain() -> None:
    octets = bytearray(secured(SHARED, a_pdu(GET, [])))
    head = plain.head(bytes(octets))
    assert head is not None and plain.secured(bytes(octets), head[2], len(octets)) is not None
    inner = head[2] + 2 + octets[head[2] + 1] + 2  # the SEQUENCE in the security parameters
    assert octets[inner] == 0x30
    for change in (-1, 1, 5):
        octets[inner + 1] += change
        assert plain.secured(bytes(octets), head[2], len(octets)) is None
        octets[inner + 1] -= change


@given(st.binary(max_size=80), st.integers(0, 80))
@settings(deadline=None, max_examples=400)
def test_any_octets_are_survived(octets: bytes, at: int) -> None:
    plain.head(octets)
    plain.pdu(octets, at, len(octets))
    plain.secured(octets, at, len(octets))


def test_headers_are_those_of_the_codec() -> None:
    for size in (0, 1, 126, 127, 128, 255, 256, 1400, 1499, 1500, 70000):
        varbinds = bytes(size)
        assert plain.sequence(varbinds) == ber.encode(0x30, varbinds)
        assert plain.octets(varbinds) == ber.encode(4, varbinds)
        assert plain.response(b"\2\1\7", varbinds) == ber.encode(
            0xA2, b"\2\1\7\2\1\0\2\1\0" + ber.encode(0x30, varbinds)
        )
