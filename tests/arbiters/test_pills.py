"""Poison pills on the lease disk: what is written is read back or is none, and only the very pill's own acknowledgement
counts."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasnmp.arbiters import admin, pill_agent
from hasnmp.arbiters.pills import (
    ROW,
    Acks,
    Pill,
    PillKind,
    PillRow,
    acks_from_bytes,
    acks_to_bytes,
    new_number,
    pill_from_bytes,
    pill_to_bytes,
)
from hasnmp.errors import Refused, WireError
from hasnmp.wire import SLOT_PAYLOAD, SLOT_SIZE
from tests.arbiters.test_disk import overwrite
from tests.cluster.control import control, overdue_ms

UUID = "0b6f4c1e-8a52-4a3f-9d7e-112233445566"
NODES = ("primary-a", "secondary-a", "third")
PILL = Pill("primary-a", "secondary-a", PillKind.END, 0x0123456789ABCDEF, "00112233445566ff")
ACKS = Acks(
    "secondary-a", "00112233445566ff", 7, 10_000, {"primary-a": (PILL.number, PILL.holder), "third": (1, "f" * 16)}
)
# The used octets, as version 1 of the format wrote them; zeroes and in the last four octets a CRC-32 follow.
RECORDED_PILL = """
4841736e50494c4c010100000b6f4c1e8a524a3f9d7e1122334455660123456789abcdef
00112233445566ff0462616e6b097072696d6172792d610b7365636f6e646172792d61
"""
RECORDED_ACKS = """
4841736e41434b53010200000b6f4c1e8a524a3f9d7e112233445566000000000000000700112233445566ff00002710
000123456789abcdef00112233445566ff020000000000000001ffffffffffffffff0462616e6b0b7365636f6e646172792d61
"""


def read_pill(octets: bytes) -> Pill:
    return pill_from_bytes(octets, UUID, "bank", "primary-a", "secondary-a")


def read_acks(octets: bytes) -> Acks:
    return acks_from_bytes(octets, UUID, "bank", NODES, "secondary-a")


def test_the_recorded_octets() -> None:
    pill, acks = pill_to_bytes(PILL, UUID, "bank"), acks_to_bytes(ACKS, UUID, "bank", NODES)
    for octets, recorded in ((pill, RECORDED_PILL), (acks, RECORDED_ACKS)):
        used = bytes.fromhex("".join(recorded.split()))
        assert len(octets) == SLOT_PAYLOAD and octets[: len(used)].hex() == used.hex()
        assert not any(octets[len(used) : -4])
    assert read_pill(pill) == PILL and read_acks(acks) == ACKS


@given(
    st.sampled_from(PillKind), st.integers(1, 2**64 - 1), st.binary(min_size=8, max_size=8),
    st.dictionaries(st.sampled_from(NODES), st.tuples(st.integers(0, 2**64 - 1), st.binary(min_size=8, max_size=8))),
)  # fmt: skip
def test_whatever_is_written_is_read_back(
    kind: PillKind, number: int, holder: bytes, acks: dict[str, tuple[int, bytes]]
) -> None:
    pill = replace(PILL, kind=kind, number=number, holder=holder.hex())
    assert read_pill(pill_to_bytes(pill, UUID, "bank")) == pill
    said = Acks("secondary-a", holder.hex(), 3, 0, {node: (of, by.hex()) for node, (of, by) in acks.items()})
    assert read_acks(acks_to_bytes(said, UUID, "bank", NODES)) == said


@given(st.integers(0, SLOT_PAYLOAD * 8 - 1))
def test_one_wrong_bit_makes_it_none(bit: int) -> None:
    for octets, read in (
        (pill_to_bytes(PILL, UUID, "bank"), read_pill),
        (acks_to_bytes(ACKS, UUID, "bank", NODES), read_acks),
    ):
        wrong = bytearray(octets)
        wrong[bit // 8] ^= 1 << bit % 8
        with pytest.raises(WireError):
            read(bytes(wrong))


@given(st.binary(min_size=SLOT_PAYLOAD, max_size=SLOT_PAYLOAD))
def test_octets_that_nobody_wrote_are_none(octets: bytes) -> None:
    for read in (read_pill, read_acks):
        for given_octets in (octets, b"HAsnPILL" + octets[8:], b"HAsnACKS" + octets[8:], octets[:100]):
            with pytest.raises(WireError):
                read(given_octets)


@pytest.mark.parametrize(
    ("uuid", "cluster", "attacker", "victim"),
    [
        (UUID.replace("0b", "0c"), "bank", "primary-a", "secondary-a"),
        (UUID, "banks", "primary-a", "secondary-a"),
        (UUID, "bank", "third", "secondary-a"),
        (UUID, "bank", "primary-a", "third"),
    ],
)
def test_what_belongs_elsewhere_is_none(uuid: str, cluster: str, attacker: str, victim: str) -> None:
    with pytest.raises(WireError):
        pill_from_bytes(pill_to_bytes(PILL, UUID, "bank"), uuid, cluster, attacker, victim)


def test_an_acknowledgement_is_of_one_pill_only() -> None:
    assert ACKS.of(PILL)
    for other in (
        replace(PILL, number=PILL.number + 1),
        replace(PILL, holder="0" * 16),
        replace(PILL, attacker="third"),
    ):
        assert not ACKS.of(other)
    assert len({new_number() for _ in range(100)}) == 100 and 0 not in {new_number() for _ in range(100)}


# ------------------------------------------------------------------------------------------------------------- the disk


@pytest.fixture
def path(tmp_path: Path) -> str:
    made = str(tmp_path / "lease")
    admin.init(made, "bank", ("db",), NODES, pills=True)
    return made


def test_a_new_disk_holds_no_pill(path: str) -> None:
    pills, acks = PillRow(path, "bank", "third").read()
    assert pills == {} and isinstance(acks, str)


def test_what_nodes_write_each_other(path: str) -> None:
    row = PillRow(path, "bank", "secondary-a")
    row.write_pill(PILL)
    row.write_pill(replace(PILL, attacker="third", number=5))
    row.write_acks(ACKS)
    assert row.read() == ({"primary-a": PILL, "third": replace(PILL, attacker="third", number=5)}, ACKS)
    assert PillRow(path, "bank", "third").read()[0] == {}, "each victim has a row of its own"
    row.close()
    assert row.read()[1] == ACKS, "it is opened again"


def test_a_damaged_place_hides_no_other(path: str) -> None:
    row = PillRow(path, "bank", "secondary-a")
    row.write_pill(PILL)
    row.write_acks(ACKS)
    header = row.disk.open()
    overwrite(path, b"\xff" * 100, header.block(ROW + "secondary-a", "secondary-a") * SLOT_SIZE + 20)
    pills, acks = row.read()
    assert pills == {"primary-a": PILL} and acks == "crc: its checksum is wrong"


def test_an_old_disk_has_no_place_until_init_is_run_again(tmp_path: Path) -> None:
    path = str(tmp_path / "lease")
    admin.init(path, "bank", ("db",), NODES)
    row = PillRow(path, "bank", "third")
    with pytest.raises(WireError, match="unknown group"):
        row.read()
    told = admin.init(path, "bank", ("db",), NODES, pills=True)
    assert "places added for pills for primary-a, pills for secondary-a, pills for third" in told
    assert row.read()[0] == {}, "a process that has the disk open sees them"
    assert "already initialised" in admin.init(path, "bank", ("db",), NODES, pills=True)
    assert "places added for db2" in admin.init(path, "bank", ("db", "db2"), NODES, pills=True)


def test_what_an_administrator_sees(path: str) -> None:
    row = PillRow(path, "bank", "secondary-a")
    row.write_acks(ACKS)
    row.write_pill(PILL)
    row.write_pill(replace(PILL, attacker="third", number=9))
    shown = admin.show(path)
    assert "pills for   secondary-a: holder 00112233445566ff" in shown
    assert "    of third, for holder 00112233445566ff: not acknowledged" in shown
    assert not any("of primary-a" in line for line in shown), "that one is acknowledged"
    assert any(line.startswith("pills for   third: no word of it") for line in shown)
    assert not any(ROW in line for line in shown) and list(admin.describe(path)["groups"]) == ["db"]
    with pytest.raises(Refused, match=r"no group .* it has db"):
        admin.clear(path, "bank", ROW + "third", force=True)


# ------------------------------------------------------------------------------------------------------------ the agent


class Victim(threading.Thread):
    """Reads its mailbox as the real one does; `answer` gives what it says of a pill."""

    def __init__(self, path: str, holder: str = "00112233445566ff") -> None:
        super().__init__(daemon=True)
        self.row, self.said, self.seen, self.over = PillRow(path, "bank", "third"), Acks("third", holder), [], False
        self.answer = lambda pill: (pill.number, pill.holder)
        self.row.write_acks(self.said)
        self.start()

    def run(self) -> None:
        while not self.over:
            for pill in self.row.read()[0].values():
                self.seen.append(pill)
                if (answer := self.answer(pill)) and not self.said.of(pill):
                    self.said = replace(self.said, seq=self.said.seq + 1, acks={pill.attacker: answer})
                    self.row.write_acks(self.said)
            time.sleep(0.02)


def agent(
    path: str, action: str = "off", limit_ms: int = 15_000, cluster: str = "bank", victim: str = "third"
) -> tuple[int, str]:
    """As the guardian runs it."""
    options = {
        "device": path,
        "cluster": cluster,
        "attacker": "primary-a",
        "victim": victim,
        "until_ns": str(time.clock_gettime_ns(time.CLOCK_BOOTTIME) + limit_ms * 10**6),
    }
    done = subprocess.run(
        [sys.executable, "-I", "-S", pill_agent.__file__], text=True, capture_output=True, timeout=20, cwd="/",
        input="".join(f"{key}={value}\n" for key, value in {**options, "action": action}.items()),
    )  # fmt: skip
    assert not done.stderr, done.stderr
    return done.returncode, done.stdout.strip()


@pytest.mark.parametrize(
    ("action", "kind", "text"),
    [("off", PillKind.END, "everything of it has ended"), ("status", PillKind.TEST, "it reads its pills")],
)
def test_a_pill_that_is_acknowledged(path: str, action: str, kind: PillKind, text: str) -> None:
    victim = Victim(path)
    code, said = agent(path, action)
    victim.over = True
    assert code == 0 and "third's guardian acknowledged the pill" in said and text in said
    assert {pill.kind for pill in victim.seen} == {kind} and len({pill.number for pill in victim.seen}) == 1
    assert {pill.holder for pill in victim.seen} == {"00112233445566ff"}


@pytest.mark.parametrize("wrong", ["another number", "another holder", "nothing"])
def test_any_other_acknowledgement_is_none(path: str, wrong: str) -> None:
    victim = Victim(path)
    victim.answer = {
        "another number": lambda pill: (pill.number ^ 1, pill.holder),
        "another holder": lambda pill: (pill.number, "f" * 16),
        "nothing": lambda pill: None,
    }[wrong]
    control()  # it must have been there before anything is judged by it
    began_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    code, said = agent(path, limit_ms=1200)
    late_ms = overdue_ms(began_ns + 1_200_000_000, time.clock_gettime_ns(time.CLOCK_BOOTTIME), began_ns)
    victim.over = True
    assert code == 1 and "third did not acknowledge the pill within" in said and late_ms < 400
    assert PillRow(path, "bank", "third").read()[0]["primary-a"].kind is PillKind.NONE, "it is taken back"


def test_a_victim_that_was_started_anew_is_told_of(path: str) -> None:
    victim = Victim(path)
    victim.answer = lambda pill: setattr(victim, "over", True)  # it has read the pill, and ends

    def anew() -> None:
        victim.join()
        victim.row.write_acks(Acks("third", "a" * 16, 9))

    threading.Thread(target=anew).start()
    code, said = agent(path)
    assert code == 1 and f"its holder is {'a' * 16} now" in said


def test_an_old_acknowledgement_counts_for_no_new_pill(path: str) -> None:
    victim = Victim(path)
    assert agent(path)[0] == 0
    victim.over = True
    victim.join()
    assert victim.said.acks, "the acknowledgement of the first still stands"
    assert agent(path, limit_ms=900)[0] == 1


def test_a_victim_that_takes_no_pills(path: str) -> None:
    code, said = agent(path)
    assert code == 1 and "third takes no pills" in said and "does hasnmpd run there?" in said
    assert PillRow(path, "bank", "third").read()[0] == {}, "nothing was written"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"victim": "stranger"}, "no place for pills; run `hasnmp arbiter init`"),
        ({"path": "/nowhere/lease"}, "/nowhere/lease: No such file"),
        ({"cluster": "shop"}, "foreign cluster"),
        ({"action": "on"}, "no action 'on'"),
    ],
)
def test_what_can_not_be_sent_says_why(path: str, change: dict[str, str], text: str) -> None:
    code, said = agent(**{"path": path, **change})  # type: ignore[arg-type]
    assert code == 1 and text in said
