"""The lease disk as a daemon uses it: what it reads is this disk's or an error, and an exchanged disk is never free."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hasnmp.arbiters import disk
from hasnmp.arbiters.admin import init
from hasnmp.arbiters.disk import Blocks, Header, LeaseDisk, header_from_bytes, header_to_bytes
from hasnmp.errors import WireError
from hasnmp.wire import SLOT_SIZE, Slot, SlotState

NODES = ("primary-a", "secondary-a")
GROUPS = ("nfs", "db")
HELD = Slot("db", "secondary-a", 41, SlotState.HELD, "00112233445566ff", 7, 3000)
# The used octets of a header, as version 1 of the format wrote them; zeroes and in the last four octets a CRC-32 follow.
RECORDED = """
4841736e4c454153010000100002000200000000000000030b6f4c1e8a524a3f
9d7e1122334455660000018bcfe5687b0462616e6b097072696d6172792d610b
7365636f6e646172792d61036e667300000264620001
"""
RECORDED_CRC = "31ea0cde"
HEADER = Header("0b6f4c1e-8a52-4a3f-9d7e-112233445566", "bank", NODES, {"nfs": 0, "db": 1}, 3, 1_700_000_000_123)


@pytest.fixture
def path(tmp_path: Path) -> str:
    made = str(tmp_path / "lease")
    init(made, "bank", GROUPS, NODES)
    return made


@pytest.fixture
def lease(path: str) -> Iterator[LeaseDisk]:
    made = LeaseDisk(path, "bank")
    yield made
    made.close()


def overwrite(path: str, octets: bytes, at: int) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(octets)
        file.flush()
        os.fsync(file.fileno())


def place(group: str, node: str, header: Header = HEADER) -> int:
    return header.block(group, node) * SLOT_SIZE


def reason(lease: LeaseDisk, group: str = "db") -> str:
    with pytest.raises(WireError) as caught:
        lease.read_slots(group)
    return caught.value.reason


def test_the_recorded_header_is_what_we_write_and_read() -> None:
    block = bytes.fromhex("".join(RECORDED.split())).ljust(4092, b"\0") + bytes.fromhex(RECORDED_CRC)
    assert header_to_bytes(HEADER) == block
    assert header_from_bytes(block) == HEADER


def test_what_is_written_is_read_and_the_others_stay_idle(lease: LeaseDisk) -> None:
    lease.write_slot(HELD)
    found = lease.read_slots("db")
    assert found["secondary-a"] == HELD
    assert found["primary-a"] == Slot("db", "primary-a", 1, SlotState.IDLE, "0" * 16, 0, 0)
    assert all(isinstance(slot, Slot) and slot.state is SlotState.IDLE for slot in lease.read_slots("nfs").values())


def test_another_process_sees_it_at_once(lease: LeaseDisk, path: str) -> None:
    other = LeaseDisk(path, "bank")
    for seq in range(2, 20):
        slot = Slot("nfs", "primary-a", seq, SlotState.CLAIM, "00112233445566ff", seq, 3000)
        lease.write_slot(slot)
        assert other.read_slots("nfs")["primary-a"] == slot
    other.close()


def test_the_place_of_a_slot_is_where_the_format_says(lease: LeaseDisk, path: str) -> None:
    lease.write_slot(HELD)
    at = (disk.FIRST + 1 * disk.STRIDE + 1) * SLOT_SIZE
    assert Path(path).read_bytes()[at : at + 4] == b"HAsl"
    assert at == place("db", "secondary-a")


@pytest.mark.parametrize(
    ("octets", "expected"), [(bytes(SLOT_SIZE), "zeroes"), (b"\xff" * 512, "crc"), (b"HAsl\x01\x02", "crc")]
)
def test_an_unusable_slot_is_its_reason_and_never_free(
    lease: LeaseDisk, path: str, octets: bytes, expected: str
) -> None:
    lease.write_slot(HELD)
    overwrite(path, octets, place("db", "secondary-a"))
    found = lease.read_slots("db")
    assert found["secondary-a"] == expected
    assert isinstance(found["primary-a"], Slot)


def test_a_sector_that_the_disk_put_elsewhere_is_told(lease: LeaseDisk, path: str) -> None:
    lease.write_slot(HELD)
    at = place("db", "secondary-a")
    sector = Path(path).read_bytes()[at : at + SLOT_SIZE]
    overwrite(path, sector, place("db", "primary-a"))
    overwrite(path, sector, place("nfs", "secondary-a"))
    assert lease.read_slots("db")["primary-a"] == "wrong place"
    assert lease.read_slots("nfs")["secondary-a"] == "wrong place"


def test_a_file_put_in_the_place_of_ours_is_noticed(lease: LeaseDisk, path: str, tmp_path: Path) -> None:
    lease.write_slot(HELD)
    other = str(tmp_path / "other")
    init(other, "bank", GROUPS, NODES)
    os.rename(other, path)
    assert reason(lease) == "foreign uuid"
    with pytest.raises(WireError, match="foreign uuid"):
        lease.write_slot(HELD)
    assert reason(lease) == "foreign uuid", "it stays an error, however often it is asked"
    assert LeaseDisk(path, "bank").read_slots("db")["secondary-a"] != HELD, "nothing was written to the other disk"


def test_a_disk_made_anew_in_place_shows_foreign_slots(lease: LeaseDisk, path: str) -> None:
    lease.write_slot(HELD)
    init(path, "bank", GROUPS, NODES, force=True)
    assert set(lease.read_slots("db").values()) == {"foreign uuid"}
    with pytest.raises(WireError, match="exchanged"):
        lease.write_slot(HELD)
    assert HELD not in LeaseDisk(path, "bank").read_slots("db").values()


def test_a_header_that_was_overwritten_is_noticed_though_the_slots_are_whole(
    lease: LeaseDisk, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease.write_slot(HELD)
    with open(path, "r+b") as file:
        file.write(bytes(2 * SLOT_SIZE))
    assert HELD in lease.read_slots("db").values(), "it is not read each time"
    monkeypatch.setattr("hasnmp.arbiters.disk.HEADER_NS", 0)
    for _ in range(2):
        with pytest.raises(WireError, match="arbiter init --force"):
            lease.read_slots("db")
    with pytest.raises(WireError, match="overwritten"):
        lease.write_slot(HELD)


def test_a_deleted_file_is_an_error_and_its_return_is_fine(lease: LeaseDisk, path: str) -> None:
    lease.write_slot(HELD)
    os.rename(path, path + ".away")
    with pytest.raises(FileNotFoundError):
        lease.read_slots("db")
    with pytest.raises(FileNotFoundError):
        lease.write_slot(HELD)
    os.rename(path + ".away", path)
    assert lease.read_slots("db")["secondary-a"] == HELD


def test_a_file_cut_short_is_an_error(lease: LeaseDisk, path: str) -> None:
    lease.write_slot(HELD)
    os.truncate(path, place("db", "secondary-a"))
    found = lease.read_slots("db")
    assert isinstance(found["primary-a"], Slot)
    assert found["secondary-a"] == "malformed"
    os.truncate(path, 0)
    assert reason(LeaseDisk(path, "bank")) == "zeroes"
    assert set(lease.read_slots("db").values()) == {"malformed"}


def test_a_bad_sector_hides_no_other_slot(lease: LeaseDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    lease.write_slot(HELD)
    bad = {HEADER.block("db", "primary-a")}
    real = Blocks.read

    def read(self: Blocks, block: int, count: int = 1) -> bytes:
        if bad & set(range(block, block + count)):
            raise OSError(errno.EIO, "Input/output error")
        return real(self, block, count)

    monkeypatch.setattr(Blocks, "read", read)
    assert lease.read_slots("db") == {"primary-a": "unreadable: Input/output error", "secondary-a": HELD}
    bad.add(HEADER.block("db", "secondary-a"))
    with pytest.raises(OSError, match="Input/output error"):
        lease.read_slots("db")


def test_another_clusters_disk_is_foreign(path: str) -> None:
    assert reason(LeaseDisk(path, "shop")) == "foreign cluster"


def test_a_group_without_a_place_is_told_and_found_once_it_has_one(lease: LeaseDisk, path: str) -> None:
    assert reason(lease, "web") == "unknown group"
    init(path, "bank", (*GROUPS, "web"), NODES)
    assert set(lease.read_slots("web")) == set(NODES)
    with pytest.raises(WireError, match="unknown node"):
        lease.write_slot(Slot("web", "third", 1, SlotState.CLAIM, "0" * 16, 1, 3000))


def test_a_damaged_header_is_read_from_its_second_copy(path: str) -> None:
    uuid = LeaseDisk(path, "bank").open().uuid
    overwrite(path, b"\xff\xff", 2000)
    assert LeaseDisk(path, "bank").open().uuid == uuid
    overwrite(path, b"\xff\xff", SLOT_SIZE + 2000)
    assert reason(LeaseDisk(path, "bank")) == "crc"


def test_a_disk_whose_start_holds_something_else_is_not_ours_any_more(path: str) -> None:
    overwrite(path, b"\x7fELF" * 1024, 0)
    assert reason(LeaseDisk(path, "bank")) == "malformed"
    overwrite(path, bytes(SLOT_SIZE), 0)
    assert reason(LeaseDisk(path, "bank")) == "zeroes"


def test_a_header_that_cannot_be_is_malformed() -> None:
    for octets in (b"", b"x", b"HAsnLEAS", header_to_bytes(HEADER)[:-1]):
        with pytest.raises(WireError):
            header_from_bytes(octets)


def test_where_there_is_no_direct_io_it_works_as_well(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "O_DIRECT", 0)
    real = os.open
    refused: list[str] = []

    def no_direct(name: str, flags: int, mode: int = 0o777) -> int:
        if name == path and not refused:
            refused.append(name)
            raise OSError(22, "Invalid argument")
        return real(name, flags, mode)

    monkeypatch.setattr(os, "open", no_direct)
    lease = LeaseDisk(path, "bank")
    lease.write_slot(HELD)
    assert lease.read_slots("db")["secondary-a"] == HELD
    assert refused
    lease.close()


def test_only_files_and_block_devices_serve(tmp_path: Path) -> None:
    for name in ("/dev/zero", str(tmp_path)):
        with pytest.raises(OSError, match=r"block device|directory"):
            Blocks(name)


@pytest.mark.skipif(os.geteuid() != 0, reason="loop devices need root")
def test_two_hosts_loops_on_one_disk_see_each_other(path: str) -> None:
    """Two loop devices on one file behave as two hosts with one disk do."""
    devices: list[str] = []
    try:
        for _ in range(2):
            done = subprocess.run(["losetup", "-f", "--show", path], capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"no loop device to be had here: {done.stderr.strip()}")
            devices.append(done.stdout.strip())
        one, other = (LeaseDisk(device, "bank") for device in devices)
        one.write_slot(HELD)
        assert other.read_slots("db")["secondary-a"] == HELD
        mine = Slot("db", "primary-a", 5, SlotState.CLAIM, "ff00112233445566", 8, 3000)
        other.write_slot(mine)
        assert one.read_slots("db") == {"primary-a": mine, "secondary-a": HELD}
        one.close()
        other.close()
    finally:
        for device in devices:
            subprocess.run(["losetup", "-d", device], check=True)
