"""`hasnmp arbiter init|show|clear`: nothing foreign is overwritten, and no living node's record is ended."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hasnmp.arbiters import admin
from hasnmp.arbiters.admin import clear, describe, init, show
from hasnmp.arbiters.disk import STRIDE, LeaseDisk
from hasnmp.errors import Code, Refused, WireError
from hasnmp.wire import SLOT_SIZE, Slot, SlotState

NODES = ("primary-a", "secondary-a")
HELD = Slot("nfs", "primary-a", 41, SlotState.HELD, "00112233445566ff", 7, 200)


@pytest.fixture
def path(tmp_path: Path) -> str:
    made = str(tmp_path / "lease")
    init(made, "bank", ("nfs",), NODES)
    return made


def slots(path: str, group: str = "nfs") -> dict[str, Slot | str]:
    disk = LeaseDisk(path, "bank")
    try:
        return disk.read_slots(group)
    finally:
        disk.close()


def write(path: str, slot: Slot) -> None:
    disk = LeaseDisk(path, "bank")
    disk.write_slot(slot)
    disk.close()


def damage(path: str, node: str) -> None:
    at = LeaseDisk(path, "bank").open().block("nfs", node) * SLOT_SIZE
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(b"\xff" * 512)
        os.fsync(file.fileno())


def test_a_device_that_is_not_there_is_no_place_for_a_file(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"/dev/hasnmp-none does not exist: no such device .*lsblk") as refused:
        init("/dev/hasnmp-none", "bank", ("nfs",), NODES)
    assert refused.value.code is Code.ARBITER_LOST and not os.path.exists("/dev/hasnmp-none")
    assert "made as a new file for cluster bank" in init(str(tmp_path / "new"), "bank", ("nfs",), NODES)


def test_the_second_nodes_init_finds_the_work_done(path: str) -> None:
    uuid = describe(path)["uuid"]
    write(path, HELD)
    before = Path(path).read_bytes()
    assert (
        init(path, "bank", ("nfs",), NODES) == f"lease disk {path} is already initialised for cluster bank: uuid {uuid}"
    )
    assert init(path, "bank", ("nfs",), NODES[::-1]).endswith(uuid)
    assert Path(path).read_bytes() == before


def test_both_nodes_at_once_make_one_disk(tmp_path: Path) -> None:
    path = str(tmp_path / "lease")
    texts: list[str] = []

    def run() -> None:
        texts.append(init(path, "bank", ("nfs", "db"), NODES))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    uuid = describe(path)["uuid"]
    assert len(texts) == 2
    assert all(uuid in text for text in texts)
    assert os.listdir(tmp_path) == ["lease"], "no draft is left behind"


def test_new_groups_and_nodes_get_places_and_the_old_ones_stay(path: str) -> None:
    uuid = describe(path)["uuid"]
    write(path, HELD)
    assert "places added for db, third" in init(path, "bank", ("db", "nfs"), (*NODES, "third"))
    found = describe(path)
    assert (found["uuid"], found["generation"], found["nodes"]) == (uuid, 2, (*NODES, "third"))
    assert found["groups"]["nfs"]["primary-a"] == HELD
    assert found["groups"]["nfs"]["third"].state is SlotState.IDLE
    assert [slot.state for slot in found["groups"]["db"].values()] == [SlotState.IDLE] * 3


def test_a_place_that_another_nodes_init_gave_a_moment_ago_is_not_written_again(path: str) -> None:
    """Both nodes add a group at once; the first one's daemon already claims it when the second one writes."""
    old = Path(path).read_bytes()[: 2 * SLOT_SIZE]
    init(path, "bank", ("nfs", "db"), NODES)
    claim = Slot("db", "primary-a", 9, SlotState.CLAIM, "00112233445566ff", 1, 3000)
    write(path, claim)
    with open(path, "r+b") as file:
        file.write(old)  # the second node read the header before the first one wrote it
    init(path, "bank", ("nfs", "db"), NODES)
    assert slots(path, "db")["primary-a"] == claim


def test_foreign_content_is_not_overwritten_without_force(tmp_path: Path) -> None:
    passwd = tmp_path / "passwd"
    passwd.write_text("root:x:0:0::/root:/bin/sh\n")
    deep = tmp_path / "deep"
    deep.write_bytes(bytes(65536) + b"_BHRfS_M" + bytes(1 << 20))
    for file in (passwd, deep):
        before = file.read_bytes()
        with pytest.raises(Refused, match="foreign data") as caught:
            init(str(file), "bank", ("nfs",), NODES)
        assert caught.value.code is Code.NOT_ALLOWED
        assert file.read_bytes() == before
        assert "made for cluster bank" in init(str(file), "bank", ("nfs",), NODES, force=True)
        assert all(isinstance(slot, Slot) for slot in slots(str(file)).values())


def test_another_clusters_disk_is_foreign_without_force(path: str) -> None:
    with pytest.raises(Refused, match="foreign"):
        init(path, "shop", ("nfs",), NODES)
    with pytest.raises(WireError, match="foreign cluster"):
        clear(path, "shop", "nfs", force=True)
    assert describe(path)["cluster"] == "bank"


def test_an_empty_file_or_a_blank_disk_is_taken_as_it_is(tmp_path: Path) -> None:
    for size in (0, 100, 4 << 20):
        file = tmp_path / f"blank{size}"
        file.write_bytes(bytes(size))
        init(str(file), "bank", ("nfs",), NODES)
        assert all(isinstance(slot, Slot) for slot in slots(str(file)).values())


def test_force_makes_a_new_disk(path: str) -> None:
    uuid = describe(path)["uuid"]
    write(path, HELD)
    init(path, "bank", ("nfs",), NODES, force=True)
    assert describe(path)["uuid"] != uuid
    assert all(isinstance(slot, Slot) and slot.state is SlotState.IDLE for slot in slots(path).values())


def test_what_cannot_be_served_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    path = str(tmp_path / "lease")
    with pytest.raises(Refused, match="at most 16 nodes"):
        init(path, "bank", ("nfs",), tuple(f"n{n}" for n in range(STRIDE + 1)))
    with pytest.raises(Refused, match="names"):
        init(path, "bank", tuple(f"{n:0200}" for n in range(30)), NODES)
    assert os.listdir(tmp_path) == []
    with pytest.raises(OSError, match="No such file"):
        init(str(tmp_path / "nowhere" / "lease"), "bank", ("nfs",), NODES)


def test_show_tells_every_slot_and_what_is_wrong_with_one(path: str) -> None:
    write(path, HELD)
    damage(path, "secondary-a")
    text = "\n".join(show(path))
    assert describe(path)["uuid"] in text
    assert "nfs             primary-a       held         7             41  00112233445566ff" in text
    assert "nfs             secondary-a     unusable: crc" in text
    assert max(map(len, text.splitlines()[1:])) <= 80


def test_clear_of_idle_records_writes_nothing(path: str) -> None:
    before = Path(path).read_bytes()
    assert "nothing was written" in clear(path, "bank", "nfs", force=True)
    assert Path(path).read_bytes() == before


def test_a_standing_record_is_cleared_only_with_force_and_keeps_its_token(path: str) -> None:
    write(path, HELD)
    with pytest.raises(Refused, match="power it off, then add --force") as caught:
        clear(path, "bank", "nfs", "primary-a")
    assert caught.value.code is Code.NOT_ALLOWED
    assert slots(path)["primary-a"] == HELD
    text = clear(path, "bank", "nfs", force=True)
    assert "cleared by the administrator's word: primary-a: held, token 7, sequence 41" in text
    ended = slots(path)["primary-a"]
    assert isinstance(ended, Slot) and ended.seq > 1_700_000_000_000, (
        "above every count, so that it is told from what was left"
    )
    assert ended == Slot("nfs", "primary-a", ended.seq, SlotState.IDLE, "0" * 16, 7, 0)
    assert "nothing was written" in clear(path, "bank", "nfs", force=True)


def test_a_named_node_is_written_down_as_gone_even_where_its_record_rests(path: str) -> None:
    resting = Slot("nfs", "primary-a", 41, SlotState.IDLE, HELD.holder, 7, 200)
    write(path, resting)
    with pytest.raises(Refused, match="power it off"):
        clear(path, "bank", "nfs", "primary-a")
    clear(path, "bank", "nfs", "primary-a", force=True)
    gone = slots(path)["primary-a"]
    assert isinstance(gone, Slot) and (gone.holder, gone.token, gone.state) == ("0" * 16, 7, SlotState.IDLE)


def test_a_living_nodes_record_is_not_cleared_even_with_force(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, HELD)
    renewed = Slot("nfs", "primary-a", 42, SlotState.HELD, HELD.holder, 7, 200)

    def renew(seconds: float) -> None:
        assert seconds == pytest.approx(0.202)
        write(path, renewed)

    monkeypatch.setattr(admin.time, "sleep", renew)
    with pytest.raises(Refused, match="primary-a is alive"):
        clear(path, "bank", "nfs", force=True)
    assert slots(path)["primary-a"] == renewed


def test_a_record_that_cannot_be_read_is_cleared_above_all_that_was_seen(path: str) -> None:
    write(path, HELD)
    damage(path, "secondary-a")
    with pytest.raises(Refused, match="can't be used"):
        clear(path, "bank", "nfs", "secondary-a")
    clear(path, "bank", "nfs", "secondary-a", force=True)
    found = slots(path)
    assert found["primary-a"] == HELD
    ended = found["secondary-a"]
    assert isinstance(ended, Slot)
    assert (ended.state, ended.token) == (SlotState.IDLE, 7)
    assert abs(ended.seq - time.time() * 1000) < 60_000


def test_clear_of_what_is_not_there_says_what_is(path: str) -> None:
    for group, node, known in (("web", "", "nfs"), ("nfs", "third", "primary-a, secondary-a")):
        with pytest.raises(Refused, match=known) as caught:
            clear(path, "bank", group, node)
        assert caught.value.code is Code.NOT_FOUND


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Callable[[int], str]]:
    """Makes a blank block device of so many octets."""
    if os.geteuid() != 0:
        pytest.skip("loop devices need root")
    devices: list[str] = []

    def make(size: int) -> str:
        image = tmp_path / f"image{len(devices)}"
        image.write_bytes(bytes(size))
        done = subprocess.run(["losetup", "-f", "--show", image], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no loop device to be had here: {done.stderr.strip()}")
        devices.append(done.stdout.strip())
        return devices[-1]

    yield make
    for device in devices:
        subprocess.run(["losetup", "-d", device], check=True)


def test_a_block_device_serves_and_is_not_made_while_it_is_in_use(loop: Callable[[int], str]) -> None:
    device = loop(4 << 20)
    user = os.open(device, os.O_RDWR | os.O_EXCL)  # what a mount does
    try:
        with pytest.raises(Refused, match="in use on this machine") as caught:
            init(device, "bank", ("nfs",), NODES)
        assert caught.value.code is Code.BUSY
    finally:
        os.close(user)
    assert "made for cluster bank" in init(device, "bank", ("nfs",), NODES)
    assert "already initialised" in init(device, "bank", ("nfs",), NODES)
    write(device, HELD)
    assert slots(device)["primary-a"] == HELD
    assert describe(device)["direct"]


def test_a_block_device_that_is_too_small_is_refused(loop: Callable[[int], str]) -> None:
    device = loop(64 << 10)
    with pytest.raises(Refused, match="has 65536 octets; 1 groups need 73728"):
        init(device, "bank", ("nfs",), NODES)
    with open(device, "rb") as file:
        assert not any(file.read())
