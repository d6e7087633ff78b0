"""The guardian's part in a reload, with real processes: what goes wrong leaves the old configuration in force."""

from __future__ import annotations

import base64
import os
import pickle
import signal
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hasnmp.core.events import Adopt, GiveUp, Reload, ReloadEnded, Retire, Stage, Staged
from hasnmp.errors import Code
from hasnmp.runtime.kernel import boottime_ns
from hasnmp.runtime.messages import Hello, RunStarted
from hasnmp.runtime.reload import RETIRED
from hasnmp.settings import Config, Group, Heartbeat, Service
from tests.cluster.control import overdue_ms
from tests.runtime.stack import Stack, make_config
from tests.runtime.test_guardian import SLEEP, forked_ns, lives, until

pytestmark = pytest.mark.serial


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    made = Stack(tmp_path, "reload")
    yield made
    made.close()


def config(stack: Stack) -> Config:
    return make_config(stack.arguments[0], stack.arguments[1])


def changed(stack: Stack) -> Config:
    """Group h is removed, service db of g has other options, group i is new, and g fails back."""
    old = config(stack)
    web, db = old.groups[0].services
    g = replace(old.groups[0], services=(web, replace(db, options={"command": ("x",)})), failover_limit=7)
    return replace(old, groups=(g, Group("i", ("n",), (Service("new", "i", "exec", {}),))))


def offer(stack: Stack, new: Config | bytes) -> None:
    (stack.folder / "next").write_bytes(new if isinstance(new, bytes) else pickle.dumps(new))


def hang_up(stack: Stack) -> None:
    os.kill(stack.process.pid, signal.SIGHUP)


def leave(stack: Stack, status: int = RETIRED) -> Hello:
    """The engine exits; gives the next one's hello."""
    assert stack.conn
    stack.conn.send(b"exit %d" % status)
    return stack.accept()


def groups(stack: Stack) -> list[str]:
    """As the engine that lives was configured."""
    assert stack.conn
    stack.conn.send(b"groups?")
    stack.conn.settimeout(20)
    while (said := stack.conn.recv(1 << 18)).startswith(b"{"):
        pass  # the guardian's own messages may come before
    found: list[str] = pickle.loads(said)
    return found


def loads(stack: Stack) -> list[int]:
    path = stack.folder / "loads"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def first_lease_io(stack: Stack) -> str:
    """The process writes its number down when it begins, which may be after the engine's first word."""
    path = Path(stack.folder, "lease_io.pids")
    until(lambda: path.exists() and path.read_text().endswith("\n"))
    return path.read_text()


def test_a_reload_keeps_leases_and_programs(stack: Stack) -> None:
    stack.lease(60_000)
    stack.lease(60_000, "h")
    pid = stack.expect(RunStarted, run=stack.program(*SLEEP)).pid
    lease_io = first_lease_io(stack)
    offer(stack, changed(stack))
    stack.send(Reload(5))
    retire = stack.expect(Retire)
    assert (retire.command, retire.services, retire.groups, retire.keys) == (5, ("db",), ("h",), ())
    assert retire.stop_ms == 20_000
    began = boottime_ns()
    hello = leave(stack)
    assert overdue_ms(began, forked_ns(stack.engine_pid)) < 500
    assert hello.reloaded == "group g: failover_limit; service db: options; group h removed; group i added"
    assert hello.reload_command == 5
    assert groups(stack) == ["g", "i"]
    assert [lease.group for lease in hello.leases] == ["g"], "the lease of a group that is gone is forgotten"
    assert [running.pid for running in hello.running] == [pid] and lives(pid)
    until(lambda: Path(stack.folder, "lease_io.pids").read_text() != lease_io)  # it goes by groups and nodes
    hello = leave(stack, 0)
    assert (hello.reloaded, hello.reload_command) == ("", 0), "told once"
    assert groups(stack) == ["g", "i"], "an engine that dies afterwards is followed by one with the new configuration"


def test_what_is_unused_by_a_process_does_not_restart_it(stack: Stack) -> None:
    lease_io = first_lease_io(stack)
    offer(stack, replace(config(stack), recovery_automatic=True))
    hang_up(stack)
    assert stack.expect(Retire).text == "recovery_automatic"
    assert leave(stack).reloaded == "recovery_automatic"
    assert Path(stack.folder, "lease_io.pids").read_text() == lease_io


@pytest.mark.parametrize(
    ("offered", "code", "text"),
    [
        (b"faults", Code.CONFIG_INVALID, "2 faults (all are in the log), the first: next:1: key: is wrong"),
        (b"hang", Code.CONFIG_INVALID, "was not read within 1 s"),
        (b"die", Code.CONFIG_INVALID, "the loader died"),
    ],
)
def test_a_file_that_can_not_be_read_changes_nothing(stack: Stack, offered: bytes, code: Code, text: str) -> None:
    offer(stack, offered)
    stack.send(Reload(1))
    ended = stack.expect(ReloadEnded)
    assert (ended.command, ended.code) == (1, code) and text in ended.text
    until(lambda: not any(lives(pid) for pid in loads(stack)))
    assert leave(stack, 0).reloaded == "" and groups(stack) == ["g", "h"]
    if offered == b"faults":
        assert stack.log().count("configuration_faulty") == 2


def test_what_needs_more_than_a_reload_is_named(stack: Stack) -> None:
    old = config(stack)
    offer(stack, replace(old, heartbeat=replace(old.heartbeat, kill_ms=200, port=1)))
    hang_up(stack)
    ended = stack.expect(ReloadEnded)
    assert ended.code == Code.NEEDS_APPLY and ended.text.startswith("heartbeat.port, heartbeat.kill_ms can only change")
    offer(stack, replace(old, state_dir="/elsewhere"))
    hang_up(stack)
    ended = stack.expect(ReloadEnded)
    assert ended.code == Code.NEEDS_APPLY and ended.text.startswith("state_dir can only change by a restart of hasnmpd")
    offer(stack, old)
    hang_up(stack)
    ended = stack.expect(ReloadEnded)
    assert (ended.code, ended.text) == (Code.DONE, "nothing differs")


def test_the_keys_are_told_by_fingerprint(stack: Stack) -> None:
    offer(stack, replace(config(stack), heartbeat=Heartbeat(kill_ms=150, keys=(b"k2", b"k1"))))
    hang_up(stack)
    assert stack.expect(Retire).keys == ("d8cedd89", "2cb316b4")


def test_an_engine_that_gives_up_ends_the_reload(stack: Stack) -> None:
    offer(stack, changed(stack))
    hang_up(stack)
    stack.expect(Retire)
    stack.send(GiveUp("a stop failed"))
    until(lambda: "reload_given_up" in stack.log())
    assert leave(stack).reloaded == "" and groups(stack) == ["g", "h"]


def test_an_engine_that_dies_over_it_is_followed_by_one_that_tries_again_once(stack: Stack) -> None:
    offer(stack, changed(stack))
    hang_up(stack)
    stack.expect(Retire)
    assert leave(stack, 1).reloaded == ""
    stack.expect(Retire)
    assert groups(stack) == ["g", "h"]
    leave(stack, 1)
    ended = stack.expect(ReloadEnded)
    assert ended.code == Code.FAILED and "2 engines died" in ended.text
    assert groups(stack) == ["g", "h"]


def test_a_removed_group_of_which_something_is_left_stays(stack: Stack) -> None:
    stack.lease(60_000, "h")
    pid = stack.expect(RunStarted, run=stack.program(*SLEEP, service="mail", group="h")).pid
    offer(stack, changed(stack))
    hang_up(stack)
    stack.expect(Retire)
    hello = leave(stack)
    ended = stack.expect(ReloadEnded)
    assert ended.code == Code.FAILED and f"process {pid}" in ended.text
    assert [lease.group for lease in hello.leases] == ["h"] and groups(stack) == ["g", "h"] and lives(pid)


def test_what_is_just_dying_is_waited_for(stack: Stack) -> None:
    stack.lease(60_000, "h")
    run = stack.program(*SLEEP, service="mail", group="h")
    pid = stack.expect(RunStarted, run=run).pid
    offer(stack, changed(stack))
    hang_up(stack)
    stack.expect(Retire)
    os.kill(pid, signal.SIGKILL)
    assert leave(stack).reloaded and groups(stack) == ["g", "i"]


def test_one_more_waits_for_the_one_under_way(stack: Stack) -> None:
    offer(stack, changed(stack))
    stack.send(Reload(1))
    stack.expect(Retire)
    stack.send(Reload(2))
    stack.send(Reload(3))
    assert stack.expect(ReloadEnded) == ReloadEnded(
        2, Code.BUSY, "another reload was asked for after it, which does the same"
    )
    hello = leave(stack)
    assert hello.reload_command == 1
    assert stack.expect(ReloadEnded) == ReloadEnded(3, Code.DONE, "nothing differs")
    assert len(loads(stack)) == 2


def test_a_lease_ends_in_time_whatever_the_loader_does(stack: Stack) -> None:
    """A file on a dead disk must not keep the guardian from its promise."""
    offer(stack, b"hang")
    end = stack.lease(1500)
    pid = stack.expect(RunStarted, run=stack.program(*SLEEP)).pid
    hang_up(stack)
    assert overdue_ms(end, until(lambda: not lives(pid)), end - 150_000_000) <= 0


def test_sigterm_during_a_reload(stack: Stack) -> None:
    offer(stack, b"hang")
    hang_up(stack)
    until(lambda: loads(stack))
    stack.process.terminate()
    assert stack.conn
    stack.conn.send(b"exit 0")
    assert stack.process.wait(30) == 0
    until(lambda: not any(lives(pid) for pid in loads(stack)))


# ------------------------------------------------------------------------------------------------------------- apply


def pack(text: str) -> str:
    return base64.b64encode(zlib.compress(text.encode())).decode()


def staged_times(stack: Stack) -> Config:
    """What only apply may change; the text that is sent for it is the same for every test."""
    old = config(stack)
    return replace(old, heartbeat=replace(old.heartbeat, dead_after_ms=1500, kill_ms=100))


def test_apply_judges_writes_and_reloads(stack: Stack) -> None:
    stack.lease(60_000)
    pid = stack.expect(RunStarted, run=stack.program(*SLEEP)).pid
    offer(stack, staged_times(stack))
    stack.send(Stage("id-1", pack("the file")))
    assert stack.expect(Staged) == Staged(
        "id-1", int(Code.DONE), "heartbeat.dead_after_ms changed; heartbeat.kill_ms changed"
    )
    assert not (stack.folder / "written").exists()
    hang_up(stack)
    ended = stack.expect(ReloadEnded)
    assert ended.code == Code.NEEDS_APPLY and "use: hasnmp apply" in ended.text
    stack.send(Adopt("id-1", 7))
    assert stack.expect(Retire).services == ()
    assert (stack.folder / "written").read_text() == "the file"
    hello = leave(stack)
    assert (hello.reload_command, [running.pid for running in hello.running]) == (7, [pid])
    stack.send(Adopt("id-1", 8))
    assert stack.expect(ReloadEnded).code == Code.BUSY, "it is gone by once"


def test_what_was_not_staged_is_not_adopted(stack: Stack) -> None:
    offer(stack, staged_times(stack))
    stack.send(Adopt("id-1", 7))
    ended = stack.expect(ReloadEnded)
    assert (ended.command, ended.code) == (7, Code.BUSY) and "apply it again" in ended.text
    stack.send(Stage("id-2", "no document"))
    assert stack.expect(Staged).code == Code.CONFIG_INVALID
    offer(stack, b"faults")
    stack.send(Stage("id-3", pack("the file")))
    staged = stack.expect(Staged)
    assert staged.code == Code.CONFIG_INVALID and "2 faults" in staged.text
    stack.send(Adopt("id-3", 0))
    assert stack.expect(ReloadEnded).code == Code.BUSY
    offer(stack, b"hang")
    before = len(loads(stack))
    stack.send(Stage("id-4", pack("the file")))
    until(lambda: len(loads(stack)) > before)
    hang_up(stack)
    assert "was not read within 1 s" in stack.expect(Staged).text
    assert stack.expect(ReloadEnded).code == Code.CONFIG_INVALID, "the reload that waited"
    assert not (stack.folder / "written").exists()
