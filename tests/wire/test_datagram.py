"""Datagrams: what goes out comes back, and nothing that a peer did not sign for us comes in."""

from __future__ import annotations

import hmac
import random
import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasnmp.errors import WireError
from hasnmp.wire import (
    MAX_DATAGRAM,
    MAX_PAYLOAD,
    Datagram,
    DatagramKind,
    GroupEntry,
    GroupFlag,
    NodeFlag,
    Signer,
)

KEY = bytes(range(32))
SIGNER = Signer("bank", (KEY,))
DATAGRAM = Datagram(
    DatagramKind.ANSWER,
    "primary-a",
    "secondary-a",
    incarnation=0x0123456789ABCDEF,
    seq=77,
    echo_incarnation=0xFEDCBA9876543210,
    echo_seq=76,
    holder="00112233445566ff",
    digest="8899aabbccddeeff",
    flags=NodeFlag.STANDBY | NodeFlag.INHIBITED,
    groups=(
        GroupEntry("nfs", GroupFlag.OWNER | GroupFlag.ASK, 12),
        GroupEntry("db", GroupFlag.PROMISE | GroupFlag.FOREVER, 9, 1000),
    ),
    stream=5,
    ack=4,
    payload=b'{"rows":[]}',
)
# DATAGRAM as version 1 of the format wrote it.
RECORDED = """
4841736e01010202d860bf7a0123456789abcdef000000000000004dfedcba98
76543210000000000000004c00112233445566ff8899aabbccddeeff00120000
000400000005000b0000097072696d6172792d610b7365636f6e646172792d61
036e66730003000000000000000c000000000264620044000000000000000900
0003e87b22726f7773223a5b5d7df92214832606cc40f21e378c405b31b2e3c9
ee1d2529e6066dd1d380c095809e
"""


def refused(octets: bytes, me: str = "secondary-a", signer: Signer = SIGNER) -> str:
    """The reason for which the octets are refused."""
    with pytest.raises(WireError) as caught:
        signer.decode(octets, me)
    return caught.value.reason


def signed(octets: bytes, signer_key: bytes = KEY, cluster: bytes = b"bank") -> bytes:
    """Octets of our own making with a good signature: what a peer with a fault, or of a later version, might send."""
    size = octets[74] + 1
    names = octets[74 : 74 + size + 1 + octets[74 + size]]
    prefix = b"hasnmp datagram 1" + bytes((len(cluster),)) + cluster + names
    return octets + hmac.digest(signer_key, prefix + octets, "sha256")


def body(datagram: Datagram = DATAGRAM) -> bytearray:
    """A datagram without its signature."""
    return bytearray(SIGNER.encode(datagram)[:-32])


def test_the_recorded_example_is_what_we_write_and_read() -> None:
    octets = bytes.fromhex("".join(RECORDED.split()))
    assert SIGNER.encode(DATAGRAM) == octets
    assert SIGNER.decode(octets, "secondary-a") == DATAGRAM


def test_the_makeshift_signature_of_these_tests_is_the_real_one() -> None:
    assert signed(bytes(body())) == SIGNER.encode(DATAGRAM)


u64 = st.integers(0, 2**64 - 1)
u32 = st.integers(0, 2**32 - 1)
name = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20).filter(
    lambda s: len(s.encode()) < 60
)
hex16 = st.binary(min_size=8, max_size=8).map(bytes.hex)
entry = st.builds(GroupEntry, name, st.integers(0, 127).map(GroupFlag), u64, u32)


@given(
    st.builds(
        Datagram, st.sampled_from(DatagramKind), st.just("a"), st.just("b\N{SNOWMAN}"), u64, u64, u64, u64, hex16, hex16,
        st.integers(0, 31).map(NodeFlag), st.lists(entry, max_size=6, unique_by=lambda e: e.group).map(tuple), u32, u32,
        st.binary(max_size=400),
    )
)  # fmt: skip
def test_every_datagram_comes_back_as_it_went(datagram: Datagram) -> None:
    assert SIGNER.decode(SIGNER.encode(datagram), "b\N{SNOWMAN}") == datagram


def test_forty_groups_with_usual_names_fit_a_heartbeat() -> None:
    groups = tuple(GroupEntry(f"service-{n:02}", GroupFlag.OWNER, n) for n in range(40))
    octets = SIGNER.encode(replace(DATAGRAM, groups=groups, payload=b""))
    assert len(octets) <= MAX_DATAGRAM
    assert SIGNER.decode(octets, "secondary-a").groups == groups


def test_every_flipped_bit_is_refused() -> None:
    octets = SIGNER.encode(DATAGRAM)
    for bit in range(len(octets) * 8):
        flipped = bytearray(octets)
        flipped[bit // 8] ^= 1 << bit % 8
        assert refused(bytes(flipped)) in ("malformed", "version", "foreign", "signature"), bit


def test_every_truncation_and_every_addition_is_refused() -> None:
    octets = SIGNER.encode(DATAGRAM)
    for size in range(len(octets)):
        assert refused(octets[:size]) in ("malformed", "signature"), size
    for more in (b"\0", b"\0" * 32, octets):
        assert refused(octets + more) == "signature"
    assert refused(octets + b"\0" * MAX_DATAGRAM) == "malformed"


@given(st.binary(max_size=1400))
def test_random_octets_are_malformed(octets: bytes) -> None:
    assert refused(octets) == "malformed"


@given(st.binary(max_size=1120))
def test_random_octets_behind_a_good_head_are_refused(octets: bytes) -> None:
    assert refused(bytes(body()[:74]) + octets) in ("malformed", "foreign", "signature")


@given(st.integers(0, 2**32), st.integers(1, 6))
def test_rubbish_that_a_peer_signed_is_refused_or_a_datagram_but_never_another_error(seed: int, changes: int) -> None:
    chance = random.Random(seed)
    octets = body()
    for _ in range(changes):
        at = chance.choice((6, 7, *range(70, 74), *range(96, len(octets))))
        octets[at] = chance.randrange(256)
    try:
        found = SIGNER.decode(signed(bytes(octets)), "secondary-a")
    except WireError as error:
        assert error.reason == "malformed"
    else:
        assert isinstance(found, Datagram)


def test_another_key_is_refused_and_an_older_one_still_read() -> None:
    old, new = Signer("bank", (KEY,)), Signer("bank", (b"new key", KEY))
    stranger = Signer("bank", (b"stranger",))
    assert new.decode(old.encode(DATAGRAM), "secondary-a") == DATAGRAM
    assert refused(new.encode(DATAGRAM), signer=old) == "signature"
    assert refused(stranger.encode(DATAGRAM), signer=new) == "signature"


@pytest.mark.parametrize("size", [1, 63, 64, 65, 200])
def test_a_key_of_any_length_signs_as_hmac_does(size: int) -> None:
    key = bytes(range(256))[-size:]
    octets = Signer("bank", (key,)).encode(DATAGRAM)
    assert octets == signed(octets[:-32], key)
    assert Signer("bank", (KEY, key)).decode(octets, "secondary-a") == DATAGRAM


@pytest.mark.parametrize("flag", [*GroupFlag, *NodeFlag])
def test_one_flag_is_asked_for_as_a_plain_number(flag: GroupFlag | NodeFlag) -> None:
    """enum's own makes another flag of it, at six times the price, and gives it again to each class that inherits."""
    both = flag | type(flag)(1)
    assert type(both & flag) is int and both & flag == flag.value


def test_a_signer_needs_a_key() -> None:
    for keys in ((), (b"",), (KEY, b"")):
        with pytest.raises(ValueError, match="key"):
            Signer("bank", keys)


def test_foreign_datagrams_are_told_from_forged_ones() -> None:
    assert refused(Signer("other", (KEY,)).encode(DATAGRAM)) == "foreign"
    assert refused(SIGNER.encode(DATAGRAM), me="third") == "foreign"
    assert refused(SIGNER.encode(replace(DATAGRAM, sender="secondary-a"))) == "foreign"


def test_the_signature_covers_cluster_and_both_names() -> None:
    """The cluster's tag and the names are rewritten to be ours: the signature still belongs to somebody else."""
    ours = SIGNER.encode(DATAGRAM)
    theirs = Signer("other", (KEY,)).encode(DATAGRAM)
    assert refused(theirs[:8] + ours[8:12] + theirs[12:]) == "signature"
    other = SIGNER.encode(replace(DATAGRAM, receiver="secondary-b"))
    assert refused(other.replace(b"secondary-b", b"secondary-a")) == "signature"
    other = SIGNER.encode(replace(DATAGRAM, sender="primary-b"))
    assert refused(other.replace(b"primary-b", b"primary-a")) == "signature"
    # One octet moved from one name to the next: the lengths are part of what is signed.
    moved = ours.replace(b"\x09primary-a\x0bsecondary-a", b"\x0aprimary-as\x0aecondary-a")
    assert moved != ours
    assert refused(moved, me="econdary-a") == "signature"


def test_a_later_version_is_read_as_far_as_it_says_that_it_can_be() -> None:
    octets = body()
    octets[5] = 9
    assert SIGNER.decode(signed(bytes(octets)), "secondary-a") == replace(DATAGRAM, highest=9)
    octets[6] = 77  # a kind of then: not malformed, only of no use now
    assert refused(signed(bytes(octets))) == "version"


@pytest.mark.parametrize("versions", [(2, 9), (255, 255), (0, 0)])
def test_a_version_without_a_common_language_is_refused_and_its_sender_named(versions: tuple[int, int]) -> None:
    octets = body()
    octets[4:6] = versions
    with pytest.raises(WireError) as caught:
        SIGNER.decode(signed(bytes(octets)), "secondary-a")
    assert (caught.value.reason, caught.value.peer) == ("version", "primary-a")
    assert caught.value.detail == f"it speaks versions {versions[0]} to {versions[1]}, this node 1 to 1"
    # Nobody else can have it said: without a good signature it is one of many forged ones.
    assert refused(signed(bytes(octets), b"stranger")) == "signature"


def test_an_extension_is_ignored() -> None:
    octets = body()
    fields = b"\x01\x00\x04more" + b"\xff\x00\x00" + b"\x01\x00\x01x"
    octets[72:74] = struct.pack("!H", len(fields))
    assert SIGNER.decode(signed(bytes(octets) + fields), "secondary-a") == DATAGRAM
    for wrong in (fields[:-1], fields + b"x", b"\x01\x00\x09more" + fields[7:], fields[:-4] + b"\x01\x00\x02x"):
        assert refused(signed(bytes(octets) + wrong)) == "malformed", wrong
    octets[72:74] = b"\0\2"  # a field's head does not fit
    assert refused(signed(bytes(octets) + b"\1\0")) == "malformed"


def test_flags_of_a_later_version_are_dropped() -> None:
    octets = body()
    octets[60] |= 0x80
    at = octets.index(b"\x03nfs") + 4
    octets[at] |= 0x80
    assert SIGNER.decode(signed(bytes(octets)), "secondary-a") == DATAGRAM


def test_signed_content_that_cannot_be_is_malformed() -> None:
    twice = body()
    at = twice.index(b"\x03nfs")
    twice[7] = 3
    assert refused(signed(bytes(twice[:at] + twice[at : at + 18] + twice[at:]))) == "malformed"
    for old, new in ((b"\x03nfs", b"\x03n\xfff"), (b"\x03nfs", b"\x00nfs"), (b"\x03nfs", b"\xffnfs")):
        assert refused(signed(bytes(body()).replace(old, new))) == "malformed"
    kind = body()
    kind[6] = 9
    assert refused(signed(bytes(kind))) == "malformed"
    many = body()
    many[7] = 255
    assert refused(signed(bytes(many))) == "malformed"


def test_names_that_are_not_text_are_malformed_before_any_signature() -> None:
    assert refused(SIGNER.encode(DATAGRAM).replace(b"primary-a", b"primary-\xff")) == "malformed"


def test_what_does_not_fit_is_not_sent() -> None:
    def reason(**changes: object) -> str:
        with pytest.raises(WireError) as caught:
            SIGNER.encode(replace(DATAGRAM, **changes))  # type: ignore[arg-type]
        return caught.value.reason

    assert reason(payload=b"x" * (MAX_PAYLOAD + 1)) == "oversize"
    many = tuple(GroupEntry(f"group-with-a-name-{n}", GroupFlag.ASK, n) for n in range(40))
    assert reason(groups=many) == "oversize"
    assert reason(seq=-1) == reason(seq=2**64) == reason(holder="xyz") == reason(digest="00") == "malformed"
    assert reason(sender="") == reason(receiver="x" * 256) == reason(sender="\ud800") == "malformed"


def test_a_full_exchange_message_fits_with_groups_to_spare() -> None:
    octets = SIGNER.encode(replace(DATAGRAM, payload=b"x" * MAX_PAYLOAD))
    assert len(octets) <= MAX_DATAGRAM
    assert SIGNER.decode(octets, "secondary-a").payload == b"x" * MAX_PAYLOAD
