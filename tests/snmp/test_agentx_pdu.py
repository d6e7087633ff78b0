"""AgentX octets: both byte orders, every type, and whatever else a master could send."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hasnmp.snmp import agentx_pdu as pdu
from hasnmp.snmp import ber
from hasnmp.snmp.agentx_pdu import BIG, LITTLE, AgentxError, Kind, Order

SUBIDS = st.lists(st.integers(0, 2**32 - 1), max_size=128).map(tuple)
ORDERS = st.sampled_from((BIG, LITTLE))
OCTETS = st.binary(max_size=300)
VALUES = st.one_of(
    st.tuples(st.just(ber.INTEGER), st.integers(-(2**31), 2**31 - 1)),
    st.tuples(st.sampled_from((ber.COUNTER32, ber.UNSIGNED32, ber.TIMETICKS)), st.integers(0, 2**32 - 1)),
    st.tuples(st.just(ber.COUNTER64), st.integers(0, 2**64 - 1)),
    st.tuples(st.sampled_from((ber.OCTETS, ber.OPAQUE)), OCTETS),
    st.tuples(st.just(ber.IPADDRESS), st.binary(min_size=4, max_size=4)),
    st.tuples(st.just(ber.NULL), st.none()),
    st.tuples(
        st.just(ber.OID),
        st.tuples(st.integers(0, 2), st.integers(0, 39), SUBIDS).map(lambda parts: (*parts[:2], *parts[2][:126])),
    ),
)


def test_a_get_of_the_standards_own_layout() -> None:
    """RFC 2741 section 6.1 and 5.1, octet by octet: sysDescr.0 with the prefix 2, to no end."""
    octets = bytes.fromhex(
        "01 05 10 00 00000001 00000002 00000003 00000010"
        "03 02 01 00 00000001 00000001 00000000"
        "00 00 00 00".replace(" ", "")
    )  # fmt: skip
    octets = octets[:16] + struct.pack(">I", len(octets) - 20) + octets[20:]
    header = pdu.parse_header(octets)
    assert (header.kind, header.order, header.session, header.transaction, header.packet) == (Kind.GET, BIG, 1, 2, 3)
    ((start, include, end),) = pdu.read_ranges(octets, 20, len(octets), BIG)
    assert (pdu.subids(start), include, end) == ((1, 3, 6, 1, 2, 1, 1, 0), True, b"")


def test_a_response_octet_by_octet() -> None:
    request = pdu.parse_header(pdu.write_pdu(Kind.GET, 1, 2, 3, b""))
    name, value = pdu.packed((1, 3, 6)), pdu.write_octets(b"hello", BIG)
    answer = pdu.write_response(request, 0, 0, pdu.write_binding(name, ber.OCTETS, value, BIG), up=9)
    assert answer.hex() == (
        "01121000" "00000001" "00000002" "00000003" "00000028"
        "00000009" "00000000"
        "00040000" "03000000" "00000001" "00000003" "00000006" "00000005" "68656c6c" "6f000000"
    )  # fmt: skip
    turned = pdu.write_response(
        pdu.parse_header(pdu.write_pdu(Kind.GET, 1, 2, 3, b"", LITTLE)), 5, 1, b"", up=9
    )  # fmt: skip
    assert turned.hex() == "01120000010000000200000003000000080000000900000005000100"


@given(SUBIDS, ORDERS, st.booleans())
def test_a_name_comes_back(oid: tuple[int, ...], order: Order, include: bool) -> None:
    octets = pdu.write_name(pdu.packed(oid), order, include)
    name, included, end = pdu.read_name(octets, 0, len(octets), order)
    assert (pdu.subids(name), included, end) == (oid, include, len(octets))


@given(SUBIDS, SUBIDS)
def test_names_sort_as_object_identifiers_do(one: tuple[int, ...], other: tuple[int, ...]) -> None:
    assert (pdu.packed(one) < pdu.packed(other)) == (one < other)


@given(st.lists(st.tuples(SUBIDS, VALUES), max_size=4), ORDERS)
def test_bindings_come_back(values: list[tuple[tuple[int, ...], tuple[int, Any]]], order: Order) -> None:
    octets = b"".join(
        pdu.write_binding(pdu.packed(oid), tag, pdu.write_value(tag, value, order), order)
        for oid, (tag, value) in values
    )
    assert len(octets) % 4 == 0
    assert pdu.read_bindings(octets, 0, len(octets), order) == [
        (pdu.packed(oid), tag, value) for oid, (tag, value) in values
    ]


READERS = (
    pdu.read_ranges, pdu.read_bulk, pdu.read_bindings, pdu.read_octets, pdu.read_name, pdu.read_response,
    lambda data, pos, end, _: pdu.read_reason(data, pos, end),
)  # fmt: skip


@given(st.binary(max_size=200), ORDERS, st.sampled_from(READERS))
@example(b"\xff\xff\xff\xff" * 3, BIG, pdu.read_octets)
@example(b"\xff\0\0\0", BIG, pdu.read_ranges)
@example(b"\x7c\x01\0\0" + bytes(4 * 0x7C), BIG, pdu.read_name)
def test_octets_that_are_nothing(octets: bytes, order: Order, reader: Any) -> None:
    """Either they are read within their bounds, or AgentxError says that they are not."""
    padded = octets + b"\xee" * 64  # the next PDU, which is not theirs
    try:
        reader(padded, 0, len(octets), order)
    except AgentxError:
        return
    # What was read without an error is read the same where nothing follows.
    reader(octets, 0, len(octets), order)


@given(st.binary(min_size=pdu.HEADER, max_size=pdu.HEADER))
def test_headers_that_are_nothing(octets: bytes) -> None:
    try:
        header = pdu.parse_header(octets)
    except AgentxError:
        return
    assert octets[0] == pdu.VERSION
    assert header.size <= pdu.MAX_PAYLOAD and header.size % 4 == 0


@pytest.mark.parametrize(
    "octets",
    [
        b"\x81\0\0\0" + bytes(4 * 129),  # 129 sub-identifiers
        b"\x7c\x04\0\0" + bytes(4 * 124),  # and with those of the prefix
        b"\x02\0\0\0" + bytes(4),
        b"\x01\0\0",
    ],
)
def test_names_that_are_none(octets: bytes) -> None:
    with pytest.raises(AgentxError):
        pdu.read_name(octets, 0, len(octets), BIG)


@pytest.mark.parametrize(
    "octets",
    [
        struct.pack(">HH4xI", 3, 0, 1),  # a type that is none
        struct.pack(">HH4x", 2, 0),  # an Integer of no octets
        struct.pack(">HH4xI", 70, 0, 1),  # half a Counter64
        struct.pack(">HH4xI4s", 64, 0, 3, b"abc"),  # an address of three octets
        struct.pack(">HH4xI", 4, 0, 0xFFFFFFFE),  # a string to the end of the world
    ],
)
def test_values_that_are_none(octets: bytes) -> None:
    with pytest.raises(AgentxError):
        pdu.read_bindings(octets, 0, len(octets), BIG)
