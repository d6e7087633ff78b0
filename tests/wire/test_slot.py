"""Lease slots: nothing that is not this disk's, cluster's, group's and node's own slot is ever taken for one."""

from __future__ import annotations

import random
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasnmp.errors import WireError
from hasnmp.wire import SLOT_PAYLOAD, Slot, SlotState, slot_from_bytes, slot_to_bytes, uuid_from_bytes, uuid_to_bytes

UUID = "0b6f4c1e-8a52-4a3f-9d7e-112233445566"
SLOT = Slot("nfs", "primary-a", 912, SlotState.HELD, "00112233445566ff", 7, 3000)
# The first octets of SLOT's sector as version 1 wrote them; zeroes follow, and in the last four octets the CRC-32.
RECORDED = """
4841736c010300000b6f4c1e8a524a3f9d7e11223344556600112233445566ff
0000000000000390000000000000000700000bb80462616e6b036e6673097072
696d6172792d61
"""
RECORDED_CRC = "66f99139"


def refused(octets: bytes, uuid: str = UUID, cluster: str = "bank", group: str = "nfs", node: str = "primary-a") -> str:
    with pytest.raises(WireError) as caught:
        slot_from_bytes(octets, uuid, cluster, group, node)
    return caught.value.reason


def summed(octets: bytes) -> bytes:
    """A sector with a good checksum."""
    return octets[:-4] + zlib.crc32(octets[:-4]).to_bytes(4, "big")


def test_the_recorded_example_is_what_we_write_and_read() -> None:
    sector = bytes.fromhex("".join(RECORDED.split())).ljust(508, b"\0") + bytes.fromhex(RECORDED_CRC)
    assert slot_to_bytes(SLOT, UUID, "bank") == sector
    assert slot_from_bytes(sector, UUID, "bank", "nfs", "primary-a") == SLOT


@given(
    st.integers(0, 2**64 - 1), st.sampled_from(SlotState), st.binary(min_size=8, max_size=8), st.integers(0, 2**64 - 1),
    st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_every_slot_comes_back_as_it_went(
    seq: int, state: SlotState, holder: bytes, token: int, duration_ms: int
) -> None:
    slot = Slot("g\N{SNOWMAN}", "n", seq, state, holder.hex(), token, duration_ms)
    octets = slot_to_bytes(slot, UUID, "bank")
    assert len(octets) == SLOT_PAYLOAD
    assert slot_from_bytes(octets, UUID, "bank", "g\N{SNOWMAN}", "n") == slot


def test_each_reason_has_its_name() -> None:
    octets = slot_to_bytes(SLOT, UUID, "bank")
    assert refused(bytes(512)) == "zeroes"
    assert refused(octets[:-1] + b"\0") == "crc"
    assert refused(octets, uuid="0b6f4c1e-8a52-4a3f-9d7e-112233445567") == "foreign uuid"
    assert refused(octets, cluster="shop") == "foreign cluster"
    assert refused(octets, group="db") == refused(octets, node="secondary-a") == "wrong place"
    assert refused(octets[:511]) == refused(b"") == refused(octets + b"\0") == "malformed"
    assert refused(summed(b"XXXX" + octets[4:])) == "malformed"
    assert refused(summed(octets[:4] + b"\x02" + octets[5:])) == "version"
    assert refused(summed(octets[:5] + b"\x09" + octets[6:])) == "malformed"


def test_every_flipped_bit_of_a_sector_is_refused() -> None:
    octets = slot_to_bytes(SLOT, UUID, "bank")
    for bit in range(len(octets) * 8):
        flipped = bytearray(octets)
        flipped[bit // 8] ^= 1 << bit % 8
        assert refused(bytes(flipped)) == "crc", bit


@given(st.integers(0, 2**32), st.integers(1, 8))
def test_rubbish_with_a_good_checksum_is_refused_or_a_slot_but_never_another_error(seed: int, changes: int) -> None:
    chance = random.Random(seed)
    octets = bytearray(slot_to_bytes(SLOT, UUID, "bank"))
    for _ in range(changes):
        octets[chance.randrange(80)] = chance.randrange(256)
    try:
        found = slot_from_bytes(summed(bytes(octets)), UUID, "bank", "nfs", "primary-a")
    except WireError:
        return
    assert (found.group, found.node) == ("nfs", "primary-a")


def test_an_extension_is_ignored() -> None:
    octets = bytearray(slot_to_bytes(SLOT, UUID, "bank"))
    end = octets.index(b"\x09primary-a") + 10
    octets[6:8] = (4).to_bytes(2, "big")
    octets[end : end + 4] = b"more"
    assert slot_from_bytes(summed(bytes(octets)), UUID, "bank", "nfs", "primary-a") == SLOT
    octets[6:8] = (500).to_bytes(2, "big")
    assert refused(summed(bytes(octets))) == "malformed"


def test_what_has_no_octets_is_not_written() -> None:
    def reason(slot: Slot, cluster: str = "bank") -> str:
        with pytest.raises(WireError) as caught:
            slot_to_bytes(slot, UUID, cluster)
        return caught.value.reason

    assert reason(Slot("g" * 200, "n" * 200, 1, SlotState.IDLE, "0" * 16, 0, 0), "c" * 200) == "oversize"
    assert reason(Slot("", "n", 1, SlotState.IDLE, "0" * 16, 0, 0)) == "malformed"
    assert reason(Slot("g", "n", -1, SlotState.IDLE, "0" * 16, 0, 0)) == "malformed"
    assert reason(Slot("g", "n", 1, SlotState.IDLE, "0" * 15, 0, 0)) == "malformed"


def test_a_uuid_keeps_its_text() -> None:
    assert uuid_from_bytes(uuid_to_bytes(UUID)) == UUID
    with pytest.raises(ValueError, match="not a UUID"):
        uuid_to_bytes("0b6f")
