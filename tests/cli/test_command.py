"""Commands: what is sent, what is waited for, and the exit status."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from hasnmp import cli, protocol
from hasnmp.errors import Code
from hasnmp.model import CommandState, EventRow, Kind, Severity, Verb
from tests.cli.conftest import NOW, WALL, FakeEngine, Terminal, delta, ends, reply


@pytest.mark.parametrize(
    ("words", "verb", "target", "to"),
    [
        (["failover", "web", "--to", "node-b"], Verb.FAILOVER, "web", "node-b"),
        (["failover", "--to", "node-b", "web"], Verb.FAILOVER, "web", "node-b"),
        (["failover", "--force"], Verb.FORCE_FAILOVER, "", ""),
        (["inhibit"], Verb.INHIBIT, "", ""),
        (["inhibit", "db"], Verb.INHIBIT, "db", ""),
        (["permit", "db"], Verb.PERMIT, "db", ""),
        (["freeze", "db"], Verb.FREEZE, "db", ""),
        (["thaw", "db"], Verb.THAW, "db", ""),
        (["standby"], Verb.STANDBY, "node-a", ""),  # never "all": a node left out is this one
        (["standby", "node-b"], Verb.STANDBY, "node-b", ""),
        (["online", "node-b"], Verb.ONLINE, "node-b", ""),
        (["recover"], Verb.RECOVER, "node-a", ""),
        (["service", "start", "httpd"], Verb.SERVICE_START, "httpd", ""),
        (["service", "stop", "httpd"], Verb.SERVICE_STOP, "httpd", ""),
        (["service", "restart", "httpd"], Verb.SERVICE_RESTART, "httpd", ""),
        (["service", "clear", "httpd"], Verb.SERVICE_CLEAR, "httpd", ""),
        (["report", "httpd", "up"], Verb.REPORT, "httpd", ""),
        (["fence", "test", "node-b"], Verb.FENCE_TEST, "node-b", ""),
        (["fence", "confirm", "node-b", "--yes"], Verb.FENCE_CONFIRM, "node-b", ""),
    ],
)
def test_what_is_sent(run, engine: FakeEngine, words: list[str], verb: Verb, target: str, to: str) -> None:
    engine.on_command = ends(CommandState.DONE)
    ran = run("--socket", engine.path, *words, "--reason", "new kernel")
    assert ran.status == 0 and "done in 431 ms" in ran.out
    [asked] = engine.asked
    assert (asked["verb"], asked["target"], asked["to"], asked["reason"]) == (int(verb), target, to, "new kernel")
    assert asked["requester"]


def test_every_verb_has_a_command() -> None:
    """A verb of the model that nobody can give would be dead."""
    source = Path(cli.__file__).read_text()
    for verb in set(Verb) - {Verb.SET}:  # which is no command: the agent has it put on record
        named = f"Verb.{verb.name}" in source or (verb.name.startswith("SERVICE_") and 'f"SERVICE_' in source)
        assert named, verb


def test_report_down_with_words(run, engine: FakeEngine) -> None:
    engine.on_command = ends(CommandState.DONE)
    assert run("--socket", engine.path, "report", "httpd", "down", "queue", "is", "full").status == 0
    assert engine.asked[0]["up"] is False and engine.asked[0]["message"] == "queue is full"


@pytest.mark.parametrize("code", [code for code in Code if code > 2])
def test_refusals_code_is_the_exit_status(run, engine: FakeEngine, code: Code) -> None:
    engine.on_command = lambda _, row: [reply(replace(row, state=CommandState.REFUSED, code=code, text="no: 4 > 3"))]
    ran = run("--socket", engine.path, "failover", "web")
    assert ran.status == int(code)
    assert f"failover web refused: no: 4 > 3 [{code.name}={int(code)}]" in ran.err


def test_failed_later(run, engine: FakeEngine) -> None:
    engine.on_command = ends(CommandState.FAILED, Code.TARGET_FAILED, "httpd did not start on node-b")
    ran = run("--socket", engine.path, "failover", "web", "--to", "node-b")
    assert ran.status == int(Code.TARGET_FAILED) and "httpd did not start on node-b" in ran.err
    engine.on_command = ends(CommandState.FAILED, Code.DONE)
    assert run("--socket", engine.path, "failover", "web").status == 1  # failed without a code is still no success


def test_end_that_came_before_the_reply(run, engine: FakeEngine) -> None:
    def answers(_, row):
        end = replace(row, state=CommandState.DONE, ended_wall_ms=WALL + 5)
        return [delta("commands", "77", end), reply(row)]

    engine.on_command = answers
    assert run("--socket", engine.path, "failover", "web").status == 0


def test_no_wait_and_quiet(run, engine: FakeEngine) -> None:
    engine.on_command = lambda _, row: [reply(row)]
    ran = run("--socket", engine.path, "failover", "web", "--no-wait")
    assert ran.status == 0 and "accepted as command 77" in ran.out
    assert run("--socket", engine.path, "failover", "web", "--no-wait", "-q").out == ""
    engine.on_command = lambda _, row: [reply(replace(row, state=CommandState.REFUSED, code=Code.BUSY, text="busy"))]
    assert run("--socket", engine.path, "failover", "web", "--no-wait").status == int(Code.BUSY)


def test_timeout(run, engine: FakeEngine) -> None:
    engine.on_command = lambda _, row: [reply(row)]
    ran = run("--socket", engine.path, "failover", "web", "--timeout", "0.2")
    assert ran.status == int(Code.TIMED_OUT) and "has not ended within 0.2 s" in ran.err


def test_engine_gone_meanwhile(run, engine: FakeEngine) -> None:
    engine.on_command = lambda _, row: [reply(row), None]
    ran = run("--socket", engine.path, "failover", "web")
    assert ran.status == int(Code.NO_ENGINE) and "command 77" in ran.err and "hasnmp commands" in ran.err


def test_progress_on_a_terminal_only(run, engine: FakeEngine, terminal: Terminal) -> None:
    event = EventRow(43, Kind.FAILOVER_STARTED, Severity.WARNING, WALL, NOW, "node-a", "web moves to node-b")

    def answers(_, row):
        return [reply(row), protocol.event(event, None, ""),
                delta("commands", "77", replace(row, state=CommandState.DONE))]  # fmt: skip

    engine.on_command = answers
    assert run("--socket", engine.path, "failover", "web", stdout=terminal).status == 0
    assert "failoverStarted" in terminal.getvalue()


def test_unknown_names(run, engine: FakeEngine) -> None:
    for words, text in (
        (["failover", "wep"], "no group 'wep'; did you mean web?"),
        (["failover", "web", "--to", "node-c"], "no node 'node-c'; did you mean"),
        (["standby", "zzz"], "no node 'zzz'; known: node-a, node-b"),
        (["service", "stop", "nothing"], "no service 'nothing'; known: httpd, postgres"),
    ):
        ran = run("--socket", engine.path, *words)
        assert ran.status == int(Code.NOT_FOUND) and text in ran.err
    assert engine.asked == []


# -------------------------------------------------------------------------------------------------- nobody, or nonsense


def test_nobody_answers(run, tmp_path: Path) -> None:
    ran = run("--socket", str(tmp_path / "none"), "status")
    assert ran.status == 32 and "does not exist; start hasnmpd" in ran.err and "[NO_ENGINE=32]" in ran.err
    left = FakeEngine(str(tmp_path / "left"))
    left.close()
    ran = run("--socket", left.path, "status")
    assert ran.status == 32 and "Connection refused; is hasnmpd running?" in ran.err


@pytest.mark.parametrize("greeting", [b"HTTP/1.1 400 Bad Request\r\n", b'{"type":"snapshot"}\n', b"[1]\n"])
def test_something_else_answers(run, engine: FakeEngine, greeting: bytes) -> None:
    engine.greeting = greeting
    ran = run("--socket", engine.path, "status")
    assert ran.status == 32 and "does not speak this protocol" in ran.err


def test_engine_that_says_nothing(run, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hasnmp.console.control.CONNECT_S", 0.2)
    engine.greeting = b""
    ran = run("--socket", engine.path, "status")
    assert ran.status == 32 and "says nothing" in ran.err


def test_request_that_the_engine_does_not_take(run, engine: FakeEngine) -> None:
    engine.on_command = lambda _, row: [{"type": "error", "text": "verb: 99 is unknown"}]
    ran = run("--socket", engine.path, "failover", "web")
    assert ran.status == 1 and "verb: 99 is unknown" in ran.err


# --------------------------------------------------------------------------------------------------------------- usage


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "required"),
        (["stauts"], "did you mean"),
        (["fence"], "required: ACTION"),
        (["fence", "tset", "x"], "did you mean test"),
        (["fence", "confirm"], "required: NODE"),
        (["agents", "shwo"], "did you mean show"),
        (["simulate"], "CONFIG"),
        (["console"], "console is not in version"),
        (["--host", "x", "--config", "/none.yaml", "status"], "node x is looked up in /none.yaml"),
        (["--host", "127.0.0.1", "--config", "/none.yaml", "status"], "; or give --user, --auth-file and --priv-file"),
        (["status", "--host=127.0.0.1", "--socket=x"], "two places"),
        (["service", "strat", "x"], "did you mean start"),
        (["report", "x", "upp"], "did you mean up"),
        (["events", "-n", "-3"], "-n"),
        (["failover", "--timeout", "soon"], "'soon' is not a number of seconds"),
        (["--socket", "a", "--config", "b", "status"], "not allowed with"),
        (["arbiter", "clear", "--config", "x"], "GROUP"),
    ],
)
def test_usage(run, words: list[str], text: str) -> None:
    ran = run(*words)
    assert ran.status == 2 and text in ran.err and "Traceback" not in ran.err


def test_help_offers_only_what_there_is(run) -> None:
    out = run("--help").out
    for name in (
        "status", "watch", "why", "failover", "reload", "apply", "check-config", "arbiter", "simulate", "mib", "demo",
    ):  # fmt: skip
        assert name in out


def test_version(run) -> None:
    assert run("version").out == "hasnmp 0.1.0\n"


# ------------------------------------------------------------------------------------------------- without the daemon

CONFIG = """
cluster: bank
nodes:
  node-a: {links: {lan: 127.0.0.11}}
  node-b: {links: {lan: 127.0.0.12}}
heartbeat: {key_files: [heartbeat.key]}
arbiter: {type: disk, device: lease.img}
groups:
  web:
    services:
      - {name: httpd, agent: exec, options: {command: [/bin/sleep, "1000"]}}
control: {socket: control.sock}
"""


@pytest.fixture
def config(tmp_path: Path) -> str:
    key = tmp_path / "heartbeat.key"
    key.write_text("0123456789abcdef0123456789abcdef")
    key.chmod(0o600)
    file = tmp_path / "hasnmp.yaml"
    text = CONFIG.replace("lease.img", str(tmp_path / "lease.img")).replace(
        "control.sock", str(tmp_path / "control.sock")
    )
    file.write_text(text.replace("heartbeat.key", str(key)))
    return str(file)


def test_check_config(run, config: str) -> None:
    ran = run("check-config", config)
    assert (ran.status, ran.out) == (0, f"{config}: no fault: cluster bank, 2 nodes, 1 group, 1 service\n"), ran.err
    Path(config).write_text(Path(config).read_text().replace("cluster: bank", "clutser: bank"))
    ran = run("check-config", config)
    assert ran.status == 1 and f"{config}:2: clutser: " in ran.err and ran.err.rstrip().endswith(" faults")
    ran = run("check-config", config + ".none")
    assert ran.status == 1 and "Traceback" not in ran.err and "No such file" in ran.err


def test_check_config_without_secrets(run, config: str, tmp_path: Path) -> None:
    (tmp_path / "heartbeat.key").unlink()
    assert run("check-config", config).status == 1
    ran = run("check-config", config, "--no-secrets")
    assert ran.status == 0 and "were not looked at" in ran.out


def test_socket_of_config(run, config: str, tmp_path: Path) -> None:
    engine = FakeEngine(str(tmp_path / "control.sock"))
    try:
        assert run("--config", config, "status").status == 0
    finally:
        engine.close()


def test_arbiter(run, config: str, tmp_path: Path) -> None:
    ran = run("arbiter", "show", "--config", config)
    assert ran.status == int(Code.ARBITER_LOST) and "No such file" in ran.err
    ran = run("arbiter", "init", "--config", config)
    assert ran.status == 0 and "2 nodes, 1 groups" in ran.out
    assert run("arbiter", "init", "--config", config).status == 0  # right on every node
    ran = run("arbiter", "show", "--config", config)
    assert ran.status == 0 and "web" in ran.out and "node-b" in ran.out
    assert run("arbiter", "clear", "--config", config, "web").status == 0
    assert run("arbiter", "clear", "--config", config, "nothing").status == int(Code.NOT_FOUND)
    (tmp_path / "lease.img").write_bytes(bytes(65536))
    ran = run("arbiter", "show", "--config", config)
    assert ran.status == int(Code.ARBITER_LOST) and "lease.img: " in ran.err and "arbiter init" in ran.err
    (tmp_path / "lease.img").write_bytes(b"precious" * 4096)
    ran = run("arbiter", "init", "--config", config)
    assert ran.status == int(Code.NOT_ALLOWED) and (tmp_path / "lease.img").read_bytes() == b"precious" * 4096


def test_mib(run) -> None:
    text = run("mib").out
    assert text.lstrip().startswith(("HASNMP-MIB DEFINITIONS", "--")) and "haGroupTable" in text
    moved = run("mib", "--root", "1.3.6.1.4.1.99999.7").out
    assert moved != text and re.search(r"enterprises \w*\(?99999\)? 7 \}", moved)
    ran = run("mib", "--root", "1.3.6.1.2.1")
    assert ran.status == 2 and "below 1.3.6.1.4.1" in ran.err


def test_json_is_one_line_for_programs(run, engine: FakeEngine) -> None:
    out = run("--socket", engine.path, "status", "--json").out
    assert out.count("\n") == 1 and json.loads(out)
