"""hasnmpd's own part: its arguments, its refusals, its folders; and the log that must never block."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import resource
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hasnmp import settings
from hasnmp.model import Severity
from hasnmp.runtime import daemon, log
from hasnmp.runtime.kernel import MOST_FILES

FORM = """
cluster: bank
nodes:
  node-a: {{links: {{lan: 127.0.0.84}}}}
heartbeat: {{port: 28406, key_files: [{folder}/key]}}
arbiter: {{type: none, accept_split_brain: true}}
groups:
  web:
    services:
      - {{name: sleeper, agent: exec, options: {{command: [sleep, "600"]}}}}
snmp: {{listen: ["127.0.0.84:28161"]}}
control: {{socket: {folder}/sockets/control.sock}}
state_dir: {folder}/state
run_dir: {folder}/run
"""


@pytest.fixture
def form(tmp_path: Path) -> str:
    (tmp_path / "key").write_text("an unguessable heartbeat key of this test\n")
    (tmp_path / "key").chmod(0o600)
    path = tmp_path / "hasnmp.yaml"
    path.write_text(FORM.format(folder=tmp_path))
    return str(path)


def test_check_says_that_a_good_file_is_good_and_starts_nothing(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert daemon.main(["--config", form, "--node", "node-a", "--check"]) == 0
    assert "good; cluster bank, node node-a, 1 nodes, 1 groups, 1 services" in capsys.readouterr().out
    assert not (tmp_path / "state").exists()


def test_every_fault_is_printed_and_the_status_is_2(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path(form).write_text(
        Path(form).read_text().replace("agent: exec", "agent: exce").replace("type: none", "type: nine")
    )
    assert daemon.main(["--config", form]) == 2
    faults = capsys.readouterr().err.strip().splitlines()
    assert len(faults) >= 2 and all(line.startswith(f"{form}:") for line in faults)


def test_a_node_that_is_not_in_the_file_is_named_with_those_that_are(
    form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert daemon.main(["--config", form, "--node", "node-z", "--check"]) == 2
    assert "--node node-z is no node" in (said := capsys.readouterr().err) and "node-a" in said
    assert daemon.main(["--config", form, "--check"]) == 2
    assert f"host name {socket.gethostname()} is no node" in capsys.readouterr().err


def test_a_folder_that_can_not_be_made_is_named(form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "state").write_text("a file is in the way")
    assert daemon.main(["--config", form, "--node", "node-a"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(
        f"hasnmpd: state_dir: {tmp_path}/state can't be made or written in (File exists); it is to be"
    )
    assert pwd.getpwuid(os.getuid()).pw_name in said


@pytest.mark.serial
def test_the_daemon_runs_once_for_each_node_and_leaves_in_order(form: str, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "hasnmp.runtime.daemon", "--config", form, "--node", "node-a"]
    with open(tmp_path / "log", "w") as errors, subprocess.Popen(words, stderr=errors) as first:
        try:
            end_s = time.monotonic() + 60
            while not (tmp_path / "sockets/control.sock").exists():
                assert first.poll() is None and time.monotonic() < end_s, (tmp_path / "log").read_text()
                time.sleep(0.01)
            assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
            second = subprocess.run(words, capture_output=True, text=True, timeout=60)
            assert second.returncode == 75 and "another hasnmpd" in second.stderr and "--handover" in second.stderr
            # Nobody else can open it, and so lock it before us.
            assert (tmp_path / "run/node-a.lock").stat().st_mode & 0o777 == 0o600
        finally:
            first.terminate()
        assert first.wait(30) == 0, (tmp_path / "log").read_text()
    assert not (tmp_path / "sockets/control.sock").exists()


def open_files(pid: int) -> tuple[int, int]:
    """How many a process may have: soft and hard limit."""
    return resource.prlimit(pid, resource.RLIMIT_NOFILE)


@pytest.mark.serial
def test_closed_standard_streams_and_a_low_limit_of_files_are_no_obstacle(form: str, tmp_path: Path) -> None:
    """No file takes the log's number; daemon and engine may open what the hard limit allows (to a bound), programs what they were given."""
    words = [sys.executable, "-m", "hasnmp.runtime.daemon", "--config", form, "--node", "node-a"]
    closing = ["sh", "-c", 'ulimit -Sn 300; exec "$@" <&- >&- 2>&-', "sh", *words]
    service: list[int] = []
    found: dict[str, int] = {}
    with subprocess.Popen(closing) as started:
        try:
            end_s = time.monotonic() + 60
            while not service:
                assert started.poll() is None and time.monotonic() < end_s
                children = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
                with contextlib.suppress(OSError):  # one that ended just now
                    found = {Path(f"/proc/{pid}/comm").read_text().strip(): int(pid) for pid in children}
                service = [found["sleep"]] if "sleep" in found else []
                time.sleep(0.01)
            assert [os.readlink(f"/proc/{started.pid}/fd/{number}") for number in range(3)] == ["/dev/null"] * 3
            hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            assert open_files(started.pid) == open_files(found["hasnmp-engine"]) == (min(hard, MOST_FILES), hard)
            assert open_files(service[0]) == (300, hard)
        finally:
            started.terminate()
        assert started.wait(30) == 0


def waits() -> int:
    """How often this thread has waited for something."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw


def test_a_log_that_nobody_reads_costs_lines_and_no_time() -> None:
    reader, writer = os.pipe()
    output = log.Output(writer)
    before = waits()
    for _ in range(1000):
        output.write("x" * 1000 + "\n")
    assert waits() - before < 10
    os.close(reader)
    output.write("nobody is there\n")
    os.close(writer)


def test_a_line_of_the_log_is_whole_and_json(capfd: pytest.CaptureFixture[str]) -> None:
    logger = log.set_up(settings.Log(format="json"), "node-a", "engine")
    logger.info("peer_lost", peer="node-b", silent_ms=2100)
    logger.debug("not_shown")
    try:
        raise ValueError("x" * 9000)
    except ValueError:
        logger.exception("engine_failed")
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [line["event"] for line in lines] == ["peer_lost", "engine_failed"]
    assert (lines[0]["node"], lines[0]["silent_ms"], lines[0]["level"]) == ("node-a", 2100, "info")
    assert "ValueError" in lines[1]["exception"] or lines[1]["exception"].endswith("x")


def test_the_journal_gets_each_lines_priority(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that `journalctl -p err` shows what is wrong, and nothing else."""
    errors = os.fstat(sys.stderr.fileno())
    for stream, prefixes in ((f"{errors.st_dev}:{errors.st_ino}", ["<6>", "<4>", "<2>"]), ("1:2", ["", "", ""])):
        monkeypatch.setenv("JOURNAL_STREAM", stream)
        logger = log.set_up(settings.Log(format="json"), "node-a", "engine")
        logger.info("peer_joined")
        logger.warning("peer_late")
        logger.log(log.SEVERITY_LEVELS[Severity.CRITICAL], "peer_lost")
        assert [line.partition("{")[0] for line in capfd.readouterr().err.splitlines()] == prefixes


def test_the_journals_socket_is_not_waited_for() -> None:
    ours, journal = socket.socketpair()
    output = log.Output(ours.fileno())
    before = waits()
    for _ in range(2000):
        output.write("x" * 1000 + "\n")
    assert waits() - before < 10
    ours.close()
    journal.close()
