"""A real guardian and its reader of pills: everything ends, the holder changes, and only then it is acknowledged."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hasnmp.arbiters import admin, pill_agent
from hasnmp.arbiters.pills import Acks, Pill, PillKind, PillRow, new_number
from hasnmp.core.events import Extend, Extended, HeldLease
from hasnmp.runtime.kernel import boottime_ns
from hasnmp.runtime.messages import Alarm, Purpose, RunStarted
from tests.cluster.control import overdue_ms
from tests.runtime.stack import MS, Stack
from tests.runtime.test_guardian import SLEEP, forked_ns, lives, until
from tests.runtime.test_handover import Asked, Owner, is_deputed, log_has, renew_for

pytestmark = pytest.mark.serial
SWALLOWED = '"event": "pill_swallowed"'


class Poisoned(Stack):
    """The guardian of node n; the test is node m, and has the lease disk."""

    def __init__(self, folder: Path, mode: str, **more: object) -> None:
        self.path = str(folder / "lease")
        admin.init(self.path, f"t{os.getpid()}", ("g", "h"), ("n", "m"), pills=True)
        self.row = PillRow(self.path, f"t{os.getpid()}", "n")
        super().__init__(folder, mode, pills=self.path, **more)

    def acks(self) -> Acks:
        """What the victim says, once it says something of this start."""
        until(lambda: isinstance(self.row.read()[1], Acks))
        acks = self.row.read()[1]
        assert isinstance(acks, Acks)
        return acks

    def poison(self, kind: PillKind = PillKind.END, holder: str = "") -> Pill:
        pill = Pill("m", "n", kind, new_number(), holder or self.hello.holder)
        self.row.write_pill(pill)
        return pill

    def acknowledged(self, pill: Pill, within_s: float = 20) -> int:
        return until(lambda: self.acks().of(pill), within_s)

    def reader(self) -> int:
        """The pid of the process that reads the pills."""
        for child in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
            if Path(f"/proc/{child}/comm").read_text() == "hasnmp-pills\n":
                return int(child)
        return 0


@pytest.fixture(params=["cgroup", "ordinary"])
def stack(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Poisoned]:
    if request.param == "cgroup" and os.geteuid() != 0:
        pytest.skip("control groups need root")
    made = Poisoned(tmp_path, request.param)
    yield made
    made.close()


def test_everything_ends_though_the_lease_has_an_hour_left_and_the_engine_is_frozen(stack: Poisoned) -> None:
    stack.lease(3_600_000)
    stack.lease(3_600_000, "h")
    web = stack.expect(RunStarted, run=stack.program("sh", "-c", "trap '' TERM HUP; sleep 1000 & wait; wait")).pid
    mail = stack.expect(RunStarted, run=stack.program(*SLEEP, service="mail", group="h")).pid
    check = stack.expect(RunStarted, run=stack.program(*SLEEP, purpose=Purpose.CHECK)).pid
    fence = stack.program(*SLEEP, service="", group="", purpose=Purpose.FENCE)
    fencing = stack.expect(RunStarted, run=fence).pid
    until(lambda: stack.acks().holder == stack.hello.holder)
    before, frozen = stack.hello, stack.engine_pid
    os.kill(frozen, signal.SIGSTOP)
    written = boottime_ns()
    pill = stack.poison()
    stack.acknowledged(pill)
    assert not any(map(lives, (web, mail, check, fencing, frozen))), "the acknowledgement came last"
    hello = stack.accept()
    assert overdue_ms(written, forked_ns(stack.engine_pid)) < 1500
    assert hello.holder != before.holder and hello.boot_id == before.boot_id
    assert hello.leases == () and hello.running == () and hello.engine_deaths == 1
    assert stack.acks().holder == hello.holder
    holder = json.loads((stack.folder / "n.holder").read_text())
    assert holder["holder"] == hello.holder
    texts = [stack.expect(Alarm).text for _ in range(3)]
    assert "m sent this node a poison pill" in texts[0]
    assert sorted(texts[1:]) == [f"group {g} was ended by force: a poison pill of m" for g in "gh"]
    stack.send(Extend((HeldLease("g", 1, boottime_ns() + 60000 * MS),)))  # that token is spent
    assert not stack.expect(Extended).ok
    stack.lease(60000, token=2)
    stack.expect(RunStarted, run=stack.program(*SLEEP))


def test_it_is_swallowed_once(stack: Poisoned) -> None:
    """The pill goes on standing in the mailbox."""
    until(lambda: stack.acks().holder == stack.hello.holder)
    stack.acknowledged(stack.poison())
    holder = stack.accept().holder
    stack.lease(60000)
    web = stack.expect(RunStarted, run=stack.program(*SLEEP)).pid
    until(lambda: stack.reader())
    time.sleep(1.2)  # two looks
    os.kill(stack.reader(), signal.SIGKILL)  # nor again by another reader
    until(lambda: stack.reader())
    time.sleep(1.2)
    assert lives(web) and stack.acks().holder == holder and lives(stack.engine_pid)


def test_a_test_ends_nothing(stack: Poisoned) -> None:
    stack.lease(60000)
    web = stack.expect(RunStarted, run=stack.program(*SLEEP)).pid
    until(lambda: stack.acks().holder == stack.hello.holder)
    stack.acknowledged(stack.poison(PillKind.TEST))
    assert lives(web) and lives(stack.engine_pid) and stack.acks().holder == stack.hello.holder


def test_a_pill_for_a_former_holder_ends_nothing_and_is_acknowledged(stack: Poisoned) -> None:
    """A guardian begins by ending everything of the one before it."""
    stack.lease(60000)
    web = stack.expect(RunStarted, run=stack.program(*SLEEP)).pid
    until(lambda: stack.acks().holder == stack.hello.holder)
    stack.acknowledged(stack.poison(holder="00000000000000aa"))
    assert lives(web) and stack.acks().holder == stack.hello.holder


def test_a_withdrawn_pill_is_none(stack: Poisoned) -> None:
    stack.lease(60000)
    web = stack.expect(RunStarted, run=stack.program(*SLEEP)).pid
    until(lambda: stack.acks().holder == stack.hello.holder)
    pill = stack.poison(PillKind.NONE)
    time.sleep(1.2)
    assert lives(web) and not stack.acks().of(pill)


def test_an_acknowledgement_that_somebody_overwrote_is_written_again(stack: Poisoned) -> None:
    until(lambda: stack.acks().holder == stack.hello.holder)
    pill = stack.poison(PillKind.TEST)
    stack.acknowledged(pill)
    before = stack.acks()
    stack.row.write_acks(Acks("n", "f" * 16, before.seq + 5))
    until(lambda: stack.acks().holder == stack.hello.holder)
    assert stack.acks().of(pill) and stack.acks().seq > before.seq + 5


def test_a_frozen_guardian_acknowledges_nothing_until_it_goes_on(stack: Poisoned) -> None:
    stack.lease(60000)
    web = stack.expect(RunStarted, run=stack.program(*SLEEP)).pid
    until(lambda: stack.acks().holder == stack.hello.holder)
    os.kill(stack.process.pid, signal.SIGSTOP)
    pill = stack.poison()
    time.sleep(1.5)
    assert lives(web) and not stack.acks().of(pill)
    os.kill(stack.process.pid, signal.SIGCONT)
    stack.acknowledged(pill)
    assert not lives(web)
    stack.accept()


def test_a_pill_that_comes_during_a_handover_is_swallowed_by_the_new_code(stack: Poisoned) -> None:
    """The deputy has nobody that reads pills: one that comes then is neither lost nor acknowledged before everything ended."""
    (stack.folder / "new").write_text("slow 1.2")
    until(lambda: stack.acks().holder == stack.hello.holder)
    owner, before = Owner(stack), stack.hello.holder
    web = stack.expect(RunStarted, run=stack.program(*SLEEP)).pid
    asked = Asked(stack)
    renew_for(owner, log_has(stack, "handover_began"))
    renew_for(owner, lambda: is_deputed(stack))
    pill = stack.poison()
    until(lambda: not lives(web) or stack.acks().of(pill), 10)
    stack.acknowledged(pill)
    assert not lives(web), "it was acknowledged while the service ran"
    until(log_has(stack, SWALLOWED))
    until(lambda: stack.acks().holder != before)
    asked.wait()
    assert stack.process.poll() is None and stack.log().count(SWALLOWED) == 1


def test_a_pill_swallowed_before_a_handover_is_not_swallowed_again_after_it(stack: Poisoned) -> None:
    until(lambda: stack.acks().holder == stack.hello.holder)
    pill = stack.poison()
    stack.acknowledged(pill)
    stack.accept()
    owner = Owner(stack, token=2)
    web = stack.expect(RunStarted, run=stack.program(*SLEEP)).pid
    reader = until(stack.reader)
    asked = Asked(stack)
    renew_for(owner, lambda: asked.process.poll() is not None)
    status, said = asked.wait()
    assert status == 0, said
    renew_for(owner, lambda: stack.reader() not in (0, reader))
    after = stack.acks()
    tested = stack.poison(PillKind.TEST)  # the new reader has looked, and answers; the former pill left no trace
    renew_for(owner, lambda: bool(stack.acks().of(tested)))
    assert lives(web) and stack.acks().holder == after.holder == stack.hello.holder
    assert stack.log().count(SWALLOWED) == 1


@pytest.mark.parametrize("certain", [False, True])
def test_what_can_not_be_ended_is_not_acknowledged(tmp_path: Path, certain: bool) -> None:
    """Where a disk is at stake the machine restarts instead."""
    made = Poisoned(tmp_path, "stuck", disk=certain)
    try:
        made.lease(1000)
        made.expect(RunStarted, run=made.program(*SLEEP))
        until(lambda: made.acks().holder == made.hello.holder)
        stuck = tmp_path / "stuck"
        stuck.touch()
        pill = made.poison()
        until(lambda: "IS NOT ENDED" in made.log())
        if certain:
            until((tmp_path / "restarted").exists)
        time.sleep(2)  # no restart where none is due, nor a late acknowledgement
        assert not made.acks().of(pill)
        assert (tmp_path / "restarted").exists() is certain
        stuck.unlink()
        made.acknowledged(pill)
        made.accept()
    finally:
        made.close()


def test_the_agent_and_the_guardian_together(stack: Poisoned) -> None:
    stack.lease(60000)
    web = stack.expect(RunStarted, run=stack.program(*SLEEP)).pid
    until(lambda: stack.acks().holder == stack.hello.holder)

    def agent(action: str) -> subprocess.CompletedProcess[str]:
        given = {
            "device": stack.path,
            "cluster": f"t{os.getpid()}",
            "attacker": "m",
            "victim": "n",
            "until_ns": str(boottime_ns() + 5000 * MS),
        }
        return subprocess.run(
            [sys.executable, "-I", "-S", pill_agent.__file__], text=True, capture_output=True, timeout=60,
            input="".join(f"{key}={value}\n" for key, value in {**given, "action": action}.items()),
        )  # fmt: skip

    tested = agent("status")
    assert tested.returncode == 0 and "it reads its pills" in tested.stdout and lives(web)
    sent = agent("off")
    assert sent.returncode == 0 and f"everything of it has ended (holder {stack.hello.holder})" in sent.stdout
    assert not lives(web)
    assert stack.accept().holder != stack.row.read()[0]["m"].holder


def test_a_disk_that_is_lost_is_told_once_and_costs_nothing(stack: Poisoned) -> None:
    stack.lease(60000)
    web = stack.expect(RunStarted, run=stack.program(*SLEEP)).pid
    until(lambda: stack.acks().holder == stack.hello.holder)
    os.rename(stack.path, stack.path + ".away")
    until(lambda: "pills_not_read" in stack.log())
    time.sleep(1.2)  # two looks
    assert stack.log().count("pills_not_read") == 1 and lives(web)
    os.rename(stack.path + ".away", stack.path)
    until(lambda: "pills_read_again" in stack.log())
    stack.acknowledged(stack.poison(PillKind.TEST))
