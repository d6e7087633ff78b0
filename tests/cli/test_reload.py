"""`hasnmp reload`: every fault here, the outcome over the engine's restart, and the exit status."""

from __future__ import annotations

import base64
import threading
import time
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hasnmp import protocol
from hasnmp.errors import Code
from hasnmp.model import CommandRow, CommandState, ConfigRow, Verb
from tests.cli.conftest import WALL, FakeEngine, delta, ends, picture, reply

TEXT = """\
cluster: bank
nodes: {a: {links: {lan: 127.0.0.11}}}
heartbeat: {key_files: [key]}
arbiter: {type: disk, device: lease.img}
groups: {web: {services: [{name: httpd, agent: exec, options: {command: [/bin/sleep, "1000"]}}]}}
"""


@pytest.fixture
def source(engine: FakeEngine, tmp_path: Path) -> Path:
    """The file that the fake engine says it goes by."""
    (tmp_path / "key").write_text("k" * 40)
    (tmp_path / "key").chmod(0o600)
    path = tmp_path / "hasnmp.yaml"
    path.write_text(TEXT)
    engine.view.tables["config"] = {"": ConfigRow(source=str(path))}
    return path


def test_a_good_file_is_handed_on(run: Any, engine: FakeEngine, source: Path) -> None:
    engine.on_command = ends(CommandState.DONE, text="service httpd: check")
    ran = run("--socket", engine.path, "reload", "--reason", "more room")
    assert (ran.status, ran.out) == (0, "reload: done in 431 ms: service httpd: check\n"), ran.err
    assert engine.asked[0]["verb"] == int(Verb.RELOAD) and engine.asked[0]["reason"] == "more room"


def test_every_fault_is_shown_and_nothing_asked(run: Any, engine: FakeEngine, source: Path) -> None:
    source.write_text(TEXT.replace("cluster: bank", "cluster: BANK").replace("lan: 127", "lan: x127"))
    ran = run("--socket", engine.path, "reload")
    assert ran.status == Code.CONFIG_INVALID and engine.asked == []
    lines = ran.err.splitlines()
    assert [line.split(": ")[1] for line in lines[:2]] == ["cluster", "nodes.a.links.lan"]
    assert lines[2] == "hasnmp: 2 faults; the daemon goes on with what it has [CONFIG_INVALID=37]"


def test_what_the_daemon_refuses(run: Any, engine: FakeEngine, source: Path) -> None:
    engine.on_command = ends(CommandState.REFUSED, Code.NEEDS_APPLY, "nodes can only change on all nodes at once")
    ran = run("--socket", engine.path, "reload")
    assert ran.status == Code.NEEDS_APPLY
    assert "nodes can only change on all nodes at once [NEEDS_APPLY=38]" in ran.err


def test_a_file_of_another_machine_is_for_the_daemon_to_judge(run: Any, engine: FakeEngine, source: Path) -> None:
    source.unlink()
    engine.on_command = ends(CommandState.DONE, text="nothing differs")
    assert run("--socket", engine.path, "reload").status == 0


def test_the_outcome_comes_from_the_next_engine(run: Any, engine: FakeEngine, source: Path) -> None:
    """The engine that was asked closes its socket; the one after it knows what became of the command."""
    rows: list[CommandRow] = []
    later: list[FakeEngine] = []

    def restart() -> None:
        engine.close()
        Path(engine.path).unlink(missing_ok=True)
        time.sleep(0.2)
        row = replace(rows[0], state=CommandState.DONE, code=Code.DONE, text="group db added", ended_wall_ms=WALL + 900)
        view = picture()
        view.tables["commands"] = {str(row.id): row}  # before anybody may ask it
        later.append(FakeEngine(engine.path, view))

    def answers(fake: FakeEngine, row: CommandRow) -> list[dict[str, Any] | None]:
        rows.append(replace(row, state=CommandState.RUNNING))
        threading.Timer(0.1, restart).start()
        return [reply(rows[0]), delta("commands", str(row.id), rows[0])]

    engine.on_command = answers
    try:
        ran = run("--socket", engine.path, "reload", "--timeout", "10")
        assert (ran.status, ran.out) == (0, "reload: done in 900 ms: group db added\n"), ran.err
    finally:
        for fake in later:
            fake.close()


def test_no_engine_comes_back(run: Any, engine: FakeEngine, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hasnmp.console.following.BACK_S", 0.3)

    def answers(fake: FakeEngine, row: CommandRow) -> list[dict[str, Any] | None]:
        threading.Timer(0.1, lambda: (engine.close(), Path(engine.path).unlink(missing_ok=True))).start()
        return [reply(replace(row, state=CommandState.RUNNING))]

    engine.on_command = answers
    ran = run("--socket", engine.path, "reload")
    assert ran.status == Code.NO_ENGINE and "What became of command" in ran.err
    assert protocol.MAX_LINE > len(ran.err)


def test_apply_hands_the_file_in_and_follows(run: Any, engine: FakeEngine, source: Path, tmp_path: Path) -> None:
    """The file is judged as what it will be: its relative paths count from the folder of the daemon's own."""
    file = tmp_path / "elsewhere" / "next.yaml"
    file.parent.mkdir()
    file.write_text(TEXT + "# " + "random words " * 5000)
    engine.on_command = ends(CommandState.DONE, text="heartbeat.dead_after_ms changed")
    ran = run("--socket", engine.path, "apply", str(file))
    assert (ran.status, ran.out) == (0, "apply: done in 431 ms: heartbeat.dead_after_ms changed\n"), ran.err
    parts = [asked["part"] for asked in engine.asked if asked["type"] == "stage"]
    assert zlib.decompress(base64.b64decode("".join(parts))).decode() == file.read_text()
    assert engine.asked[-1]["verb"] == int(Verb.APPLY)


def test_apply_of_a_file_with_faults_asks_nobody(run: Any, engine: FakeEngine, source: Path) -> None:
    source.write_text(TEXT.replace("cluster: bank", "cluster: BANK"))
    ran = run("--socket", engine.path, "apply", str(source))
    assert ran.status == 1 and "cluster: " in ran.err and engine.asked == []
