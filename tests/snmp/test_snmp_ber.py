"""The BER codec: what it must take, what it must refuse, and that pyasn1 reads the same."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyasn1.codec.ber import decoder, encoder
from pyasn1.type import univ

from hasnmp.snmp import ber
from hasnmp.snmp.ber import BerError

OIDS = st.builds(
    lambda a, b, rest: (a, b if a == 2 else b % 40, *rest),
    st.integers(0, 2),
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(0, 2**32 - 1), max_size=126).map(tuple),
)


@pytest.mark.parametrize(
    ("value", "octets"),
    [
        (0, "020100"), (127, "02017f"), (128, "02020080"), (255, "020200ff"), (256, "02020100"), (-1, "0201ff"),
        (-128, "020180"), (-129, "0202ff7f"), (2**31 - 1, "02047fffffff"), (-(2**31), "020480000000"),
    ],
)  # fmt: skip
def test_integers_are_written_in_the_fewest_octets(value: int, octets: str) -> None:
    assert ber.encode_integer(value).hex() == octets
    assert ber.integer(bytes.fromhex(octets), 0, len(octets) // 2) == (value, len(octets) // 2)


@pytest.mark.parametrize(
    ("tag", "value", "octets"),
    [
        (ber.UNSIGNED32, 2**32 - 1, "420500ffffffff"), (ber.COUNTER64, 2**64 - 1, "460900ffffffffffffffff"),
        (ber.TIMETICKS, 0, "430100"), (ber.OID, (1, 3, 6, 1), "06032b0601"), (ber.OID, (2, 999, 3), "0603883703"),
        (ber.OID, (1, 3, 2**32 - 1), "06062b8fffffff7f"), (ber.OCTETS, b"", "0400"),
        (ber.IPADDRESS, bytes((192, 0, 2, 1)), "4004c0000201"), (ber.NULL, None, "0500"),
    ],
)  # fmt: skip
def test_values_both_ways(tag: int, value: ber.Value, octets: str) -> None:
    data = bytes.fromhex(octets)
    assert ber.encode_value(tag, value) == data
    assert ber.decode_value(tag, data[2:]) == value


@pytest.mark.parametrize(
    ("tag", "value"),
    [
        (ber.INTEGER, 2**31), (ber.UNSIGNED32, -1), (ber.UNSIGNED32, 2**32), (ber.COUNTER64, 2**64),
        (ber.INTEGER, b"7"), (ber.OCTETS, 7), (ber.OCTETS, bytes(65536)), (ber.IPADDRESS, b"123"), (ber.OID, b"x"),
        (0x99, 1),
    ],
)  # fmt: skip
def test_what_is_no_value_of_its_type_is_not_written(tag: int, value: ber.Value) -> None:
    with pytest.raises(BerError):
        ber.encode_value(tag, value)


@pytest.mark.parametrize(
    ("tag", "contents"),
    [
        (ber.INTEGER, ""), (ber.INTEGER, "0000000001"), (ber.UNSIGNED32, ""), (ber.UNSIGNED32, "80"),
        (ber.UNSIGNED32, "0100000000"), (ber.COUNTER64, "010000000000000000"), (ber.COUNTER64, "ff"),
        (ber.IPADDRESS, "c00002"), (ber.NULL, "00"), (0x80, "00"), (ber.OID, ""), (0x24, "0400"), (0x99, "00"),
    ],
)  # fmt: skip
def test_values_that_are_refused(tag: int, contents: str) -> None:
    with pytest.raises(BerError):
        ber.decode_value(tag, bytes.fromhex(contents))


@pytest.mark.parametrize(
    "octets",
    [
        "", "2b06ff", "2b8001", "2b9080808000", "2b8fffffff80", "2bffffffffffffffff7f", "80" * 3 + "01",
        "2b" + "01" * 127, "2b" + "8fffffff7f" * 127,
    ],
)  # fmt: skip
def test_oids_that_are_refused(octets: str) -> None:
    with pytest.raises(BerError):
        ber.decode_oid(bytes.fromhex(octets))


def test_the_longest_oid() -> None:
    oid = (1, 3, *[2**32 - 1] * 126)
    assert ber.decode_oid(ber.encode_oid(oid)) == oid
    with pytest.raises(BerError):
        ber.decode_oid(ber.encode_oid((*oid, 1)))


@pytest.mark.parametrize(
    "octets",
    ["", "30", "3080", "308000", "3085000000000000", "30ff00", "3002", "300205", "3081", "308402ffffff00", "02820001"],
)
def test_lengths_that_are_refused(octets: str) -> None:
    data = bytes.fromhex(octets)
    with pytest.raises(BerError):
        ber.tlv(data, 0, len(data))


def test_long_forms_of_a_length_are_read_because_net_snmp_writes_them() -> None:
    assert ber.tlv(bytes.fromhex("30820002") + b"\5\0", 0, 6) == (0x30, 4, 6)


@pytest.mark.parametrize("size", [0, 127, 128, 255, 256, 65535, 65536])
def test_elements_of_every_size(size: int) -> None:
    data = ber.encode(ber.OCTETS, bytes(size))
    assert data == encoder.encode(univ.OctetString(bytes(size)))
    assert ber.octets(data, 0, len(data)) == (bytes(size), len(data))


@given(OIDS)
@settings(deadline=None, max_examples=300)
def test_oids_as_pyasn1_writes_them(oid: tuple[int, ...]) -> None:
    data = encoder.encode(univ.ObjectIdentifier(oid))
    assert ber.encode(ber.OID, ber.encode_oid(oid)) == data
    start, stop = ber.expect(data, 0, len(data), ber.OID)
    assert ber.decode_oid(data[start:stop]) == oid


@given(st.integers(-(2**31), 2**31 - 1))
@settings(deadline=None, max_examples=300)
def test_integers_as_pyasn1_reads_them(value: int) -> None:
    data = ber.encode_integer(value)
    assert decoder.decode(data)[0] == value
    assert len(data) <= len(encoder.encode(univ.Integer(value)))  # pyasn1 spends an octet too many on -128


@given(st.binary(max_size=40))
@settings(deadline=None, max_examples=500)
def test_an_oid_that_is_taken_means_what_pyasn1_says(data: bytes) -> None:
    try:
        oid = ber.decode_oid(data)
    except BerError:
        return
    assert tuple(decoder.decode(ber.encode(ber.OID, data))[0]) == oid
    assert ber.encode_oid(oid) == data  # so that comparing octets is comparing names


@pytest.mark.parametrize("oid", [(), (1,), (3, 1), (0, 40), (1, 2**32 - 1)])
def test_an_oid_that_ber_has_no_octets_for(oid: tuple[int, ...]) -> None:
    """AgentX has (found by the fuzzer: a master may send one as a value)."""
    with pytest.raises(ber.BerError):
        ber.encode_oid(oid)
