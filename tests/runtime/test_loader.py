"""What the loader makes of a file: the configuration with its changes, or every fault."""

from __future__ import annotations

import base64
import os
import zlib
from dataclasses import replace
from pathlib import Path

import pytest

from hasnmp import config
from hasnmp.arbiters import admin
from hasnmp.config_changes import in_force
from hasnmp.config_yaml import MAX_SIZE
from hasnmp.errors import ConfigError
from hasnmp.runtime import loader, members
from hasnmp.runtime.reload import unpack
from hasnmp.settings import Config

TEXT = """\
cluster: c
nodes: {n: {links: {lan: 127.0.0.1}}}
heartbeat: {key_files: [key]}
arbiter: {type: none, accept_split_brain: true}
groups: {g: {services: [{name: s, agent: exec, options: {command: [/bin/true]}}]}}
state_dir: state
run_dir: run
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "key").write_text("k" * 40)
    (tmp_path / "key").chmod(0o600)
    (tmp_path / "state").mkdir()  # of a daemon that runs
    path = tmp_path / "hasnmp.yaml"
    path.write_text(TEXT)
    return path


@pytest.fixture
def old(file: Path) -> Config:
    return config.load(str(file))


def test_a_good_file(file: Path, old: Config) -> None:
    file.write_text(TEXT + "log: {level: debug}\ncontrol: {socket: elsewhere/c.sock}\n")
    found = loader.load(str(file), old, "n")
    assert found.faults == () and found.config == config.load(str(file))
    assert found.changes.lines == ("control.socket", "log.level")
    assert (file.parent / "elsewhere").is_dir(), "what it names is made, by the process that may wait for a disk"


def test_every_fault_comes_back(file: Path, old: Config) -> None:
    file.write_text(TEXT.replace("cluster: c", "cluster: C") + "more: 1\n")
    os.chmod(file.parent / "key", 0o644)
    found = loader.load(str(file), old, "n")
    assert found.config is None and len(found.faults) == 3
    assert found.faults[0].startswith(f"{file}:1: cluster: ") and "chmod 600" in found.faults[1]
    file.unlink()
    assert loader.load(str(file), old, "n").faults == (
        f"{file}:1: file: can't be read (No such file or directory); allowed: a text file of at most 1048576 octets",
    )


def test_a_folder_that_can_not_be_made(file: Path, old: Config) -> None:
    (file.parent / "plain").write_text("")
    file.write_text(TEXT + "control: {socket: plain/c.sock}\n")
    found = loader.load(str(file), old, "n")
    (fault,) = found.faults
    assert found.config is None
    assert (
        f"control.socket: {file.parent}/plain can't be made or written in (File exists); it is to be a folder" in fault
    )


def test_the_folders_have_their_modes_whatever_the_umask(file: Path, old: Config) -> None:
    before = os.umask(0o077)  # as of the shell in which the secrets were made
    try:
        loader.make_folders(replace(old, run_dir=f"{file.parent}/new"))
    finally:
        os.umask(before)
    assert (file.parent / "new").stat().st_mode & 0o777 == 0o755, "members of control.group come through it"


def test_a_folder_that_nothing_can_be_written_in(file: Path, old: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root, as who the tests run too, may write everywhere
    (fault,) = loader.load(str(file), old, "n").faults
    assert (
        f"state_dir: {file.parent}/state can't be made or written in (no right to, or a read-only file system)" in fault
    )


def test_a_file_that_can_not_be_reloaded_makes_nothing(file: Path, old: Config) -> None:
    file.write_text(TEXT.replace("nodes: {n:", "nodes: {m:") + "control: {socket: elsewhere/c.sock}\n")
    assert "nodes" in loader.load(str(file), old, "n").changes.needs_apply
    assert not (file.parent / "elsewhere").exists()


# ------------------------------------------------------------------------------------------------------------- apply


def test_a_staged_file_is_judged_and_nothing_written(file: Path, old: Config) -> None:
    text = TEXT.replace("key_files", "dead_after_ms: 2000, key_files")
    assert loader.judge(text, str(file), old, "n").changes.needs_apply == ("heartbeat.dead_after_ms",)
    assert loader.judge(text, str(file), old, "n").config == config.parse(text, str(file), str(file.parent))
    for words, why in (
        (("key_files", "port: 5406, key_files"), "heartbeat.port can't change while hasnmpd runs"),
        (("state_dir: state", "state_dir: other"), "state_dir can't change while hasnmpd runs"),
        (("[key]", "[other, key]"), "keys roll by reloads"),
        (("[key]", "[other]"), "keys roll by reloads"),
        (("cluster: c", "cluster: C"), "FILE:1: cluster: "),
    ):
        (file.parent / "other").write_text("o" * 40)
        (file.parent / "other").chmod(0o600)
        found = loader.judge(TEXT.replace(*words), str(file), old, "n")
        assert found.config is None and why in found.faults[0].replace(str(file), "FILE"), found
    assert file.read_text() == TEXT and sorted(os.listdir(file.parent)) == ["hasnmp.yaml", "key", "other", "state"]
    assert not os.listdir(file.parent / "state")


def test_an_adopted_file_is_written_at_once_and_the_old_one_kept(file: Path, old: Config) -> None:
    text = TEXT.replace("key_files", "dead_after_ms: 2000, key_files")
    file.chmod(0o640)
    (file.parent / "hasnmp.yaml.before").write_text("of long ago")
    found = loader.adopt(text, str(file), old, "n")
    assert found.config is not None and found.config.heartbeat.dead_after_ms == 2000
    assert file.read_text() == text and (file.parent / "hasnmp.yaml.before").read_text() == TEXT
    assert file.stat().st_mode & 0o777 == 0o640 and not (file.parent / "hasnmp.yaml.new").exists()


def test_an_adopted_file_is_judged_once_more(file: Path, old: Config) -> None:
    """A secret may have gone since it was staged."""
    (file.parent / "key").unlink()
    found = loader.adopt(TEXT.replace("key_files", "dead_after_ms: 2000, key_files"), str(file), old, "n")
    assert found.config is None and "can't be read" in found.faults[0] and file.read_text() == TEXT


def test_a_folder_that_can_not_be_written(file: Path, old: Config) -> None:
    (file.parent / "hasnmp.yaml.new").mkdir()
    found = loader.adopt(TEXT.replace("key_files", "dead_after_ms: 2000, key_files"), str(file), old, "n")
    assert found.faults == (f"{file} can't be written: Is a directory",) and file.read_text() == TEXT


def test_what_goes_between_nodes_is_unpacked_with_a_bound() -> None:
    def pack(octets: bytes) -> str:
        return base64.b64encode(zlib.compress(octets)).decode()

    assert unpack(pack("cluster: \u00e9".encode())) == "cluster: \u00e9"
    for bad in (
        "",
        "no base64!",
        base64.b64encode(b"no zlib").decode(),
        pack(b"\xff"),
        pack(b"#" * (MAX_SIZE + 1)),
        pack(b"#" * (1 << 28)),
    ):
        with pytest.raises(ValueError):
            unpack(bad)


# --------------------------------------------------------------------------------------------------- groups' nodes

DISK = """\
cluster: c
nodes: {n: {links: {lan: 127.0.0.1}}, m: {links: {lan: 127.0.0.2}}}
heartbeat: {key_files: [key]}
arbiter: {type: disk, device: d}
groups: {g: {nodes: [n, m], services: [{name: s, agent: exec, options: {command: [/bin/true]}}]}}
state_dir: state
run_dir: run
"""
LESS = DISK.replace("[n, m]", "[n]")


@pytest.fixture
def disk(file: Path) -> Config:
    """In force, as a daemon that has started has it."""
    file.write_text(DISK)
    return members.begin(config.load(str(file)), "n")


def webs(file: Path) -> dict[str, tuple[tuple[str, ...], ...]]:
    return members.load(str(file.parent / "state" / "n.members"))


def test_other_nodes_of_a_group_are_kept_beside_the_former_ones(file: Path, disk: Config) -> None:
    assert webs(file) == {"g": (("n", "m"),)}
    file.write_text(LESS)
    assert loader.load(str(file), disk, "n").changes.needs_apply == ("groups.g.nodes",)
    assert webs(file) == {"g": (("n", "m"),)}, "what is not gone by is not kept"
    file.write_text(DISK)
    found = loader.adopt(LESS, str(file), disk, "n")
    assert found.config is not None and found.config.group("g").also == ("m",)
    assert file.read_text() == LESS and webs(file) == {"g": (("n", "m"), ("n",))}
    halfway = members.begin(config.load(str(file)), "n")
    assert halfway == found.config, "whoever starts with that file goes by the same"
    assert loader.load(str(file), halfway, "n").changes.text() == "nothing differs"
    found = loader.settle(halfway, "n")
    assert found.config == config.load(str(file)) and found.changes.needs_apply == ("groups.g.nodes",)
    assert webs(file) == {"g": (("n",),)}


def test_an_end_between_the_file_and_what_is_kept(file: Path, disk: Config) -> None:
    """The file is exchanged first, so the next start finds both."""
    file.write_text(LESS)
    started = members.begin(config.load(str(file)), "n")
    assert started.group("g").also == ("m",) and webs(file) == {"g": (("n", "m"), ("n",))}


def test_a_state_folder_that_can_not_be_written(file: Path, disk: Config) -> None:
    (file.parent / "state" / "n.members.new").mkdir()
    found = loader.adopt(LESS, str(file), disk, "n")
    assert found.config is None and found.faults[0].endswith("n.members.new: Is a directory")
    halfway, _ = in_force(config.load(str(file)), webs(file))
    assert "can't be written: Is a directory" in loader.settle(halfway, "n").faults[0]
    assert webs(file) == {"g": (("n", "m"),)}


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"hasnmp": "members", "format": 2, "groups": {}}', '{"hasnmp": "members", "format": 1}']
)
def test_what_is_kept_can_be_damaged(file: Path, disk: Config, text: str) -> None:
    (file.parent / "state" / "n.members").write_text(text)
    with pytest.raises(ConfigError, match=r"n\.members:1: members: can't be read .*bring it back from a backup, or, "):
        members.begin(disk, "n")
    for found in (
        loader.load(str(file), disk, "n"),
        loader.adopt(LESS, str(file), disk, "n"),
        loader.settle(disk, "n"),
    ):
        assert found.config is None and "can't be read" in found.faults[0]
    assert file.read_text() == DISK


def test_a_node_that_may_have_the_group_is_not_dropped(file: Path, disk: Config) -> None:
    file.write_text(LESS.replace(", m: {links: {lan: 127.0.0.2}}", ""))
    with pytest.raises(ConfigError, match=r"nodes: m is gone from them, and it may still run g, .*hasnmp apply"):
        members.begin(config.load(str(file)), "n")
    assert webs(file) == {"g": (("n", "m"),)}


def test_a_node_that_the_file_does_not_have_keeps_its_own(file: Path) -> None:
    text = DISK.replace("nodes: [n, m]", "nodes: [m]")
    file.write_text(text)
    old = members.begin(config.load(str(file)), "n")
    found = loader.adopt(text.replace("n: {links: {lan: 127.0.0.1}}, ", ""), str(file), old, "n")
    assert found.config == old and found.changes.text() == "nothing differs" and file.read_text() == text
    found = loader.judge(text.replace("n: {links: {lan: 127.0.0.1}}, ", ""), str(file), old, "m")
    assert found.changes.needs_apply == ("nodes",)


def test_every_node_of_a_group_needs_its_place_on_the_lease_disk(file: Path) -> None:
    disk = file.parent / "d"
    file.write_text(DISK.replace("nodes: [n, m]", "nodes: [n]"))
    old = members.begin(config.load(str(file)), "n")
    assert "can't be read (No such file or directory)" in loader.judge(DISK, str(file), old, "n").faults[0]
    admin.init(str(disk), "c", ("g",), ("n",))
    assert "has no place for m; run `hasnmp arbiter init`" in loader.judge(DISK, str(file), old, "n").faults[0]
    admin.init(str(disk), "c", ("g",), ("n", "m"))
    assert loader.judge(DISK, str(file), old, "n").changes.needs_apply == ("groups.g.nodes",)
    other = DISK.replace("nodes: [n, m]", "nodes: [n]").replace("device: d", "device: other")
    admin.init(str(file.parent / "other"), "c2", ("g",), ("n", "m"))
    assert "is foreign" in loader.judge(other, str(file), old, "n").faults[0]
    admin.init(str(file.parent / "other"), "c", ("g",), ("n", "m"), force=True)
    assert loader.judge(other, str(file), old, "n").changes.needs_apply == ("arbiter.device",)
