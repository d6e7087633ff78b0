"""What the loader makes of a file: the configuration with its changes, or every fault."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hasnmp import config
from hasnmp.runtime import loader
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
    assert found.config is None and found.faults == (f"{file.parent}/plain: File exists",)


def test_a_file_that_can_not_be_reloaded_makes_nothing(file: Path, old: Config) -> None:
    file.write_text(TEXT.replace("nodes: {n:", "nodes: {m:") + "control: {socket: elsewhere/c.sock}\n")
    assert "nodes" in loader.load(str(file), old, "n").changes.needs_apply
    assert not (file.parent / "elsewhere").exists()
