"""`hasnmp fence` and `hasnmp agents`: what is shown, what is asked before a word is taken for a fact."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hasnmp import protocol
from hasnmp.errors import Code
from hasnmp.model import CommandState, FenceRow, Verb
from tests.cli.conftest import NOW, FakeEngine, S, ends, picture

CONFIRM = ("fence", "confirm", "node-b", "--reason", "cord pulled")


@pytest.fixture
def fenced(engine: FakeEngine) -> Iterator[FakeEngine]:
    view = picture()
    view.tables["fences"] = {
        "node-b/1": FenceRow("node-b", 1, "fence_ipmilan", "power", "fenced: off, verified by its status",
                             NOW - 60 * S, NOW - 60 * S),
        "node-b/2": FenceRow("node-b", 2, "fence_ifmib", "network", "test failed: status: exit status 1; no route to host",
                             0, NOW - 3 * 86400 * S),
        "node-a/1": FenceRow("node-a", 1, "pill", "disk"),
    }  # fmt: skip
    engine.view = view
    engine.on_command = ends(CommandState.DONE)
    yield engine


def test_show(run, fenced: FakeEngine) -> None:
    ran = run("--socket", fenced.path, "fence", "show")
    assert ran.status == 0 and ran.err == ""
    assert ran.out.splitlines() == [
        "NODE    LEVEL  AGENT          CUTS     USED      TESTED WELL  LAST RESULT",
        "node-a  1      pill           disk     never     never",
        "node-b  1      fence_ipmilan  power    60 s ago  60 s ago",
        "    fenced: off, verified by its status",
        "node-b  2      fence_ifmib    network  never     3 d 0 h ago",
        "    test failed: status: exit status 1; no route to host",
    ]


def test_show_json(run, fenced: FakeEngine) -> None:
    shown = json.loads(run("--socket", fenced.path, "fence", "show", "--json").out)
    assert shown["now_ns"] == NOW
    first = shown["fences"][0]
    assert first == {
        "node": "node-b", "level": 1, "agent": "fence_ipmilan", "cuts": "power",
        "last_result": "fenced: off, verified by its status", "last_ns": NOW - 60 * S, "last_test_ns": NOW - 60 * S,
    }  # fmt: skip


def test_show_where_nothing_is_configured(run, engine: FakeEngine) -> None:
    ran = run("--socket", engine.path, "fence", "show")
    assert ran.status == 0 and "no node has a fence level" in ran.out


def test_a_failed_test_of_a_device(run, fenced: FakeEngine) -> None:
    text = "fence test node-b failed: level 2: status: exit status 1"
    fenced.on_command = ends(CommandState.FAILED, Code.FENCE_FAILED, text)
    ran = run("--socket", fenced.path, "fence", "test", "node-b")
    assert ran.status == int(Code.FENCE_FAILED) == 36 and "status: exit status 1" in ran.err


def test_an_unknown_node(run, fenced: FakeEngine) -> None:
    ran = run("--socket", fenced.path, "fence", "test", "node-d")
    assert ran.status == 10 and "did you mean node-" in ran.err and fenced.asked == []


def test_nobody_is_asked_without_a_terminal(run, fenced: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("node-b\n"))
    ran = run("--socket", fenced.path, *CONFIRM)
    assert ran.status == int(Code.NOT_ALLOWED) and "no terminal to ask at" in ran.err and "--yes" in ran.err
    assert fenced.asked == []


@pytest.mark.parametrize(
    ("typed", "status"), [("node-b\n", 0), ("y\n", 28), ("yes\n", 28), ("\n", 28), ("node-a\n", 28), ("\x04", 28)]
)
def test_the_word_is_asked_for_on_a_terminal(fenced: FakeEngine, typed: str, status: int) -> None:
    """Only the node's own name is taken: a "y" typed ahead must not give a disk to two nodes."""
    master, slave = pty.openpty()
    asked = subprocess.Popen(
        [sys.executable, "-m", "hasnmp.cli", "--socket", fenced.path, *CONFIRM],
        stdin=slave, stdout=slave, stderr=slave, env={**os.environ, "TERM": "dumb"}, start_new_session=True,
    )  # fmt: skip
    os.close(slave)
    said = ""
    while "to confirm" not in said:
        said += os.read(master, 4096).decode()
    os.write(master, typed.encode())
    try:
        while more := os.read(master, 4096):
            said += more.decode()
    except OSError:
        pass  # the terminal's other end is closed: it has ended
    os.close(master)
    assert asked.wait(10) == status, said
    flat = " ".join(said.split())
    assert "Is node-b off for certain" in flat and "two nodes write to one disk" in flat
    commands = [each for each in fenced.asked if each["type"] == "command"]
    if status:
        assert commands == [] and "not confirmed, nothing was done" in flat
    else:
        assert (commands[0]["verb"], commands[0]["target"]) == (int(Verb.FENCE_CONFIRM), "node-b")
        assert commands[0]["reason"] == "cord pulled"


# --------------------------------------------------------------------------------------------------------- the agents


def test_the_agents_that_there_are(run) -> None:
    ran = run("agents")
    words = ran.out.split()
    assert ran.status == 0 and {"exec", "address", "passive", "pill", "fence_ipmilan", "fence_ifmib"} <= set(words)
    assert "fence_heuristics_ping" not in words, "it ends no machine"


def test_no_fence_agents(run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("hasnmp.agents.fence_metadata.PLACES", ())
    ran = run("agents")
    assert ran.status == 0 and "no fence agents are installed here" in ran.out and "exec" in ran.out


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("exec", ("command", "REQUIRED", "stop_signal", "TERM")),
        ("address", ("interface", "with its prefix length")),
        ("passive", ("it has no options",)),
        ("pill", ("poison pill", "it has no options")),
        ("fence_ifmib", ("plug", "REQUIRED", "community", "off", "status")),
        ("fence_rcd_serial", ("uses reboot", "serial_port")),
    ],
)
def test_the_options_of_an_agent(run, name: str, texts: tuple[str, ...]) -> None:
    ran = run("agents", "show", name)
    assert ran.status == 0 and ran.out.startswith(name + ":")
    assert all(text in ran.out for text in texts), ran.out
    assert max(map(len, ran.out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("name", "text"),
    [("fence_nowhere", "not installed"), ("fence_heuristics_ping", "it ends nothing"), ("ls", "fence agent?")],
)
def test_an_agent_that_there_is_not(run, name: str, text: str) -> None:
    ran = run("agents", "show", name)
    assert ran.status == int(Code.NOT_FOUND) and text in ran.err and ran.out == ""


def test_rows_cross_the_control_socket() -> None:
    view = picture()
    view.tables["fences"]["b/1"] = row = FenceRow("b", 1, "fence_ipmilan", "power", "tested", 5, 6)
    mirror = protocol.Mirror()
    mirror.apply(protocol.decode(protocol.encode(protocol.snapshot(view)).strip()))
    assert mirror.view.tables["fences"]["b/1"] == row
    assert replace(row, level=2) != row
