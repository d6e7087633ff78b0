"""What the command line shows, from a fixed picture."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from hasnmp import protocol
from hasnmp.console import watch
from hasnmp.console.control import Control
from hasnmp.console.tables import Screen, age, cut, span, table, wrap
from hasnmp.model import EventRow, Kind, NodeRow, NodeState, Severity, View
from tests.cli.conftest import NOW, WALL, FakeEngine, S, Terminal, delta, picture

SGR = re.compile(r"\033\[[0-9;]*m")


def test_status(run, engine: FakeEngine) -> None:
    ran = run("--socket", engine.path, "status")
    assert ran.status == 0 and ran.err == ""
    # Every state with its age, the remarks whole, and no control character of a service's message.
    for text in (
        "cluster bank: degraded",
        "this node node-a: primary for 12 s",
        "node-b    lost   unknown  unknown    12 s       13 s",
        "lan   node-b  192.0.2.12  down   12 s",
        "web    running   node-a  60 min  0.8 s arbiter  node-a",
        "inhibited; frozen; excluded: node-b; failover limit 3/3",
        "postgres  db     failed   node-a  1.0 s   1.0 s    2/3",
        "the program ended with exit status 3",
        "disk     active  12 s",
        "nodeLost  major     12 s",
        "taken as the arbiter allows",
    ):
        assert text in ran.out
    assert "\x1b" not in ran.out


def test_a_role_of_which_nobody_knows_since_when(run, engine: FakeEngine) -> None:
    table = engine.view.tables["system"]
    table[""] = replace(table[""], last_role_change_ns=0)
    assert "this node node-a: primary, degraded\n" in run("--socket", engine.path, "status").out


@pytest.mark.parametrize("verb", ["status", "stats", "alarms", "commands", "why"])
def test_fits_80_columns(run, engine: FakeEngine, verb: str) -> None:
    # Names as long as the form allows, 32 characters, everywhere.
    text = json.dumps(protocol.snapshot(engine.view))
    for short in ("node-a", "node-b", "web", "db", "postgres", "httpd", "bank"):
        text = text.replace(f'"{short}', f'"{short.ljust(32, "x")}')
    mirror = protocol.Mirror()
    mirror.apply(json.loads(text))
    engine.view = mirror.view
    ran = run("--socket", engine.path, verb, *(["db".ljust(32, "x")] if verb == "why" else []))
    assert ran.status == 0
    assert [line for line in ran.out.splitlines() if len(line) > 80] == []


def test_json(run, engine: FakeEngine) -> None:
    shown = json.loads(run("--socket", engine.path, "status", "--json").out)
    assert shown["now_ns"] == NOW and shown["system"]["cluster"] == "bank"
    assert [row["state"] for row in shown["groups"]] == ["running", "degraded"]
    assert shown["groups"][1]["last_reason"] == "nodeLost" and shown["groups"][1]["excluded"] == ["node-b"]
    assert shown["alarms"][0]["kind"] == "nodeLost" and shown["arbiters"][0]["type"] == "disk"
    stats = json.loads(run("--socket", engine.path, "stats", "--json").out)
    assert stats["statistics"]["heartbeats_sent"] == 99999 and stats["config"]["interval_ms"] == 200
    assert json.loads(run("--socket", engine.path, "commands", "--json").out)[0]["code"] == "targetDown"
    assert json.loads(run("--socket", engine.path, "alarms", "--json").out)["alarms"][0]["severity"] == "major"
    lines = run("--socket", engine.path, "events", "--json").out.splitlines()
    assert [json.loads(line)["id"] for line in lines] == [40, 41, 42]


def test_stats(run, engine: FakeEngine) -> None:
    out = run("--socket", engine.path, "stats").out
    assert re.search(r"heartbeats sent +99999", out) and re.search(r"worst lateness +2.5 ms", out)
    assert re.search(r"db +2 +0 +3/3 +431 ms +node lost", out)
    assert "dead after 1000 ms" in out


def test_events_newest_last(run, engine: FakeEngine) -> None:
    lines = run("--socket", engine.path, "events", "-n", "2").out.splitlines()
    assert len(lines) == 2
    assert "major    nodeLost node-a: node-b is lost" in lines[0] and "takeoverCompleted" in lines[1]
    assert run("--socket", engine.path, "events", "-n", "0").out == ""


def test_why(run, engine: FakeEngine) -> None:
    ran = run("--socket", engine.path, "why", "db")
    assert ran.status == 0 and ran.out.startswith("group db runs here\n  because of")
    ran = run("--socket", engine.path, "why", "dbb")
    assert ran.status == 10 and "no group 'dbb'; did you mean db? [NOT_FOUND=10]" in ran.err


def test_empty_view(run, engine: FakeEngine) -> None:
    engine.view = View(NOW, WALL)
    ran = run("--socket", engine.path, "status")
    assert ran.status == 0 and "it is starting" in ran.out and "no alarm stands on this node" in ran.out
    assert run("--socket", engine.path, "commands").out == "no command is on record\n"
    assert run("--socket", engine.path, "stats").status == 0


def test_colours_only_on_a_terminal(
    run, engine: FakeEngine, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("--socket", engine.path, "status", stdout=terminal).status == 0
    shown = terminal.getvalue()
    assert "\033[31mlost\033[0m" in shown and "\033[32mrunning\033[0m" in shown
    assert max(len(SGR.sub("", line)) for line in shown.splitlines()) <= 80
    terminal.seek(0)
    terminal.truncate()
    monkeypatch.setenv("NO_COLOR", "1")
    assert run("--socket", engine.path, "status", stdout=terminal).status == 0
    assert "\033" not in terminal.getvalue() and "running" in terminal.getvalue()


def test_socket_by_environment_and_position(run, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("status", "--socket", engine.path).status == 0
    monkeypatch.setenv("HASNMP_SOCKET", engine.path)
    assert run("status").status == 0
    assert run("--socket", engine.path + "x", "status").status == 32


def test_a_reader_that_has_enough(engine: FakeEngine) -> None:
    # `hasnmp events | head -1` ends without a word of complaint.
    for i in range(100, 3000):
        engine.view.tables["events"][str(i)] = EventRow(i, Kind.ALIVE, Severity.INFO, WALL, NOW, "node-a", "x" * 60)
    command = [sys.executable, "-m", "hasnmp.cli", "--socket", engine.path, "events", "-n", "5000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(10) == 1


def test_status_imports_little() -> None:
    """Its start is most of what `hasnmp status` takes (the benchmark measures that: under 250 ms)."""
    code = "import sys, hasnmp.cli; print(' '.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "hasnmp.protocol" in loaded
    assert len(loaded) < 140, loaded
    for heavy in ("pysnmp", "structlog", "yaml", "asyncio", "pyroute2", "cryptography", "hasnmp.config", "hasnmp.core"):
        assert heavy not in loaded


# --------------------------------------------------------------------------------------------------------- following


def follow(engine: FakeEngine, *words: str) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen([sys.executable, "-m", "hasnmp.cli", "--socket", engine.path, *words], text=True, env=env,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip


def line_of(process: subprocess.Popen[str], text: str, seconds: float = 10) -> str:
    """The next line with the text; ends the process, and so the wait, at the deadline."""
    assert process.stdout is not None
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    try:
        for line in process.stdout:
            if text in line:
                return line
    finally:
        timer.cancel()
    raise AssertionError(f"no line with {text!r}")


@pytest.mark.parametrize("after", [((3, 9, "five"),), ((3, 9, "five"), (4, 10, "six"), (5, 11, "seven"))])
def test_events_follow_shows_what_gets_a_number_anew_and_nothing_twice(
    after: tuple[tuple[int, int, str], ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By an engine whose disk did not have the newest events."""

    def happened(*events: tuple[int, int, str]) -> View:
        view = View()
        for number, ms, text in events:
            row = EventRow(number, Kind.ENGINE_UP, Severity.INFO, WALL + ms, NOW, "node-a", text)
            view.tables["events"][str(number)] = row  # type: ignore[index]
        return view

    before = (1, 0, "one"), (2, 1, "two"), (3, 2, "three"), (4, 3, "four")
    views = happened(*before), happened(*before[:2], *after)
    monkeypatch.setattr(watch, "_follow", lambda _, show, __: max(show(view) or 0 for view in views))
    assert watch.events(lambda: None, 10, True, Screen()) == 0  # type: ignore[arg-type, return-value]
    shown = [json.loads(line)["message"] for line in capsys.readouterr().out.splitlines()]
    assert shown == [text for _, _, text in (*before, *after)]


def test_events_follow_over_a_restart_of_the_engine(tmp_path: Path) -> None:
    engine = FakeEngine(str(tmp_path / "s"))
    process = follow(engine, "events", "--follow", "-n", "1")
    try:
        assert "takeoverCompleted" in line_of(process, "node-a")
        engine.tell(
            protocol.event(EventRow(43, Kind.NODE_JOINED, Severity.CLEARED, WALL, NOW, "node-a", "back"), None, "")
        )
        assert "nodeJoined node-a: back" in line_of(process, "nodeJoined")
        engine.close()
        os.unlink(engine.path)
        # What happened in between is told, and nothing twice.
        view = picture()
        for number, kind, text in ((43, Kind.NODE_JOINED, "back"), (44, Kind.ENGINE_UP, "up")):
            view.tables["events"][str(number)] = EventRow(number, kind, Severity.CLEARED, WALL, NOW, "node-a", text)
        second = FakeEngine(engine.path, view)
        try:
            assert process.stdout is not None
            timer = threading.Timer(10, process.kill)
            timer.start()
            assert "engineUp" in process.stdout.readline()
            timer.cancel()
        finally:
            second.close()
    finally:
        process.kill()
        _, err = process.communicate()
    assert "the engine closed the connection" in err and "trying again" in err


def test_watch_without_a_terminal_is_a_line_an_event(engine: FakeEngine) -> None:
    process = follow(engine, "watch")
    try:
        deadline = time.monotonic() + 10
        while not engine.connections and time.monotonic() < deadline:
            time.sleep(0.01)
        engine.tell(protocol.event(EventRow(43, Kind.LINK_UP, Severity.CLEARED, WALL, NOW, "node-a", "lan"), None, ""))
        assert "linkUp" in line_of(process, "node-a")
    finally:
        process.kill()
        process.communicate()


def test_watch_redraws_in_place(engine: FakeEngine, terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    from hasnmp.console import watch

    seen: list[str] = []
    write = terminal.write

    def plain(text: str) -> str:
        return SGR.sub("", text).replace("\033[K", "")

    def record(text: str) -> int:
        seen.append(text)
        drawn = [each for each in seen if each.startswith("\033[H")]
        if len(drawn) == 1:
            up = NodeRow("node-b", False, NodeState.UP, last_change_ns=NOW - S)
            engine.tell(delta("nodes", "node-b", up))
        shows = "node-b    up" in plain(text)
        if len(drawn) > 1 and text.startswith("\033[H") and (shows or len(drawn) == 30):
            raise KeyboardInterrupt
        return write(text)

    monkeypatch.setattr(terminal, "write", record)
    monkeypatch.setattr(sys, "stdout", terminal)
    try:
        assert watch.status(lambda: Control(engine.path), Screen()) == 0
    finally:
        monkeypatch.undo()
    frames = [plain(each) for each in seen if each.startswith("\033[H")]
    assert "node-b    lost" in frames[0] and "node-b    up" in frames[-1]
    assert all(frame.count("\n") < 40 for frame in frames)
    assert seen[0].startswith("\033[?1049h") and seen[-1].endswith("\033[?1049l")


# -------------------------------------------------------------------------------------------------------------- tables


def test_ages() -> None:
    assert [span(n) for n in (0, S // 2, 12 * S, 90 * S, 300 * S, 3 * 3600 * S + 1200 * S, 60 * 3600 * S)] == [
        "0.0 s", "0.5 s", "12 s", "90 s", "5 min", "3 h 20 min", "2 d 12 h",
    ]  # fmt: skip
    assert age(0, NOW) == "-" and age(-5 * S, 7 * S) == "12 s"  # kept over a reboot: before this boot


def test_wrap_and_cut() -> None:
    assert wrap("one two three", 8) == ["one two", "three"]
    assert wrap("x" * 20, 8, "  ") == ["x" * 8, "  " + "x" * 6, "  " + "x" * 6]
    assert all(len(line) <= 10 for line in wrap("  a bb ccc dddd eeeee ffffffffffffff", 10, "  "))
    assert cut("abcdef", 5) == "ab..." and cut("abc", 3) == "abc"


def test_table_leaves_out_empty_columns_and_spills_the_last() -> None:
    screen = Screen(terminal=False)
    lines = table(screen, ["A", "B", "C"], [["1", "", "short"], ["2", "", "long " * 20]])
    assert lines[0] == "A  C" and lines[1] == "1  short" and lines[2] == "2" and lines[3].startswith("    long")
    assert table(screen, ["A"], []) == []


def test_picture_survives_the_protocol() -> None:
    mirror = protocol.Mirror()
    mirror.apply(protocol.decode(protocol.encode(protocol.snapshot(picture()))))
    assert mirror.view == picture()
    gone = {"type": "delta", "number": 9, "now_ns": NOW, "wall_ms": WALL, "rows": {}, "gone": {"groups": ["web"]}}
    mirror.apply(gone)
    assert list(mirror.view.tables["groups"]) == ["db"]
    assert replace(mirror.view, number=7).number == 7


@pytest.mark.parametrize(("streams", "status", "said"), [
    (">/dev/full", 1, "hasnmp: standard output: No space left on device\n"), (">&-", 0, ""), (">&- 2>&-", 0, ""),
])  # fmt: skip
def test_standard_output_that_is_full_or_closed(streams: str, status: int, said: str) -> None:
    """Full: it says so. Closed: nobody wants to hear, and what was asked for is done all the same."""
    script = f'"$@" version {streams}'
    ran = subprocess.run(["sh", "-c", script, "sh", sys.executable, "-m", "hasnmp.cli"], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (status, said)
