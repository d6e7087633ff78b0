"""The engine's loop around a core that the test writes: order, time, the guardian, and what must not stop it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import structlog

from hasnmp import settings
from hasnmp.core.events import (
    Act,
    Action,
    AgentResult,
    ArbiterAnswer,
    ArbiterCall,
    Effect,
    Event,
    Exit,
    Extend,
    Extended,
    Fence,
    FenceAction,
    Fenced,
    HeldLease,
    Notify,
    Outcome,
    Persist,
    Persisted,
    Received,
    Release,
    Released,
    Send,
    Sent,
    ServiceExited,
    Shutdown,
    Started,
    Tick,
)
from hasnmp.model import EventRow, Kind, Severity, SystemRow, View
from hasnmp.runtime import engine, messages
from hasnmp.runtime.engine import Loop, now_ns
from hasnmp.wire import Datagram, DatagramKind
from tests.ports import free_port
from tests.ticks import Ticks

MS = 1_000_000


class FakeCore:
    """Answers events as the test says; knows at which times it was asked."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.asked_ns: list[int] = []
        self.deadline_ns = 1 << 62
        self.rules: dict[type, tuple[Effect, ...]] = {}
        self.on_step: Callable[[Event, int], None] = lambda event, now: None

    def step(self, event: Event, now: int) -> tuple[Effect, ...]:
        self.events.append(event)
        self.asked_ns.append(now)
        self.on_step(event, now)
        return self.rules.pop(type(event), ())

    def next_deadline_ns(self) -> int:
        return self.deadline_ns

    def view(self, now: int, wall: int) -> View:
        view = View(now, wall)
        view.tables["system"][""] = SystemRow("bank", "node-a", "0")
        return view

    def why(self, group: str, now: int) -> tuple[str, ...]:
        return ("because",)

    def got(self, kind: type) -> list[Any]:
        return [e for e in self.events if isinstance(e, kind)]


class Bench:
    def __init__(self, folder: Path, hello: messages.Hello) -> None:
        self.core = FakeCore()
        port = free_port("::")
        self.config = settings.Config(
            cluster="bank",
            nodes=(
                settings.NodeSettings("node-a", {"lan": "127.0.0.81"}),
                settings.NodeSettings(
                    "node-b",
                    {"lan": "127.0.0.82"},
                    (settings.FenceLevel("fence_bench", "power", action="off", options={"plug": "7"}),),
                ),
            ),
            heartbeat=settings.Heartbeat(port=port, keys=(b"k" * 32,)),
            arbiter=settings.Arbiter("none"),
            groups=(
                settings.Group("g", ("node-a",), (settings.Service("web", "g", "exec", {"command": ("sleep", "9")}),)),
            ),
            control=settings.Control(str(folder / "control.sock")),
            state_dir=str(folder),
            run_dir=str(folder),
        )
        engine_end, self.guardian = messages.channel_pair()
        self.lease, lease_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.store, store_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self.lease, self.store):
            end.setblocking(False)
        self.loop = Loop(
            self.core, self.config, "node-a", hello, engine_end, lease_end, store_end, structlog.get_logger()
        )  # fmt: skip
        self.task = asyncio.create_task(self.loop.run({"kept": 1}))

    async def until(self, true: Callable[[], Any], seconds: float = 20.0) -> None:
        end_s = time.monotonic() + seconds
        while not true():
            if self.task.done() and self.task.exception():
                self.task.result()
            assert time.monotonic() < end_s, f"not within {seconds} s; events: {self.core.events}"
            await asyncio.sleep(0.001)

    async def told(self, kind: type, seconds: float = 20.0) -> Any:
        """The next message of this kind that the guardian gets."""
        end_s = time.monotonic() + seconds
        while True:
            try:
                message = self.guardian.receive()
            except BlockingIOError:
                assert time.monotonic() < end_s, f"no {kind.__name__} within {seconds} s"
                await asyncio.sleep(0.001)
                continue
            assert message is not None, "the engine closed its end"
            if isinstance(message, kind):
                return message

    def act(self, *effects: Effect) -> None:
        """Have the core give these effects, now."""
        self.core.rules[Tick] = effects
        self.loop.tell(Tick(0))


HELLO = messages.Hello("00000000000000aa", "boot")


def play(folder: Path, story: Callable[[Bench], Awaitable[int | None]], hello: messages.Hello = HELLO) -> int:
    """Run the loop around the story; give its exit status (0 if the story doesn't wait for one)."""

    async def whole() -> int:
        bench = Bench(folder, hello)
        try:
            await bench.until(lambda: bench.core.got(Started))
            status = await story(bench)
        finally:
            for end in (bench.lease, bench.store):
                end.close()
            bench.loop._finish(0)
            await asyncio.wait_for(bench.task, 20)
        return status or 0

    return asyncio.run(whole())


def test_the_first_event_is_started_with_what_the_guardian_and_the_disk_know(tmp_path: Path) -> None:
    hello = messages.Hello(
        "00000000000000aa", "boot", leases=(HeldLease("g", 7, 1 << 60),), cleaned=("address 192.0.2.1",), next_run=9,
        running=(messages.Running(4, "g", "web", messages.Purpose.SERVICE, 4711, 12),),
    )  # fmt: skip

    async def story(bench: Bench) -> None:
        started = bench.core.events[0]
        assert isinstance(started, Started) and len(bench.core.got(Started)) == 1
        assert (started.holder, started.boot_id, started.durable) == ("00000000000000aa", "boot", {"kept": 1})
        assert started.leases == hello.leases and started.cleaned == hello.cleaned
        assert [(a.service, a.pid, a.since_ns) for a in started.adopted] == [("web", 4711, 12)]
        assert started.incarnation.bit_length() > 32 and started.random != started.incarnation
        bench.guardian.send(messages.Exited(4, "g", "web", messages.Purpose.SERVICE, 4711, 1, 0, "", 5))
        await bench.until(lambda: bench.core.got(ServiceExited))
        bench.act(Act(1, "web", Action.START, 1000))
        run = await bench.told(messages.Run)
        assert run.run >= 9 and run.env["HASNMP_TOKEN"] == "7"

    play(tmp_path, story, hello)


def test_the_clock_is_read_before_the_step_and_deadlines_are_kept(tmp_path: Path) -> None:
    late_us: list[int] = []
    theirs_us: list[int] = []

    async def story(bench: Bench) -> None:
        before = len(bench.core.events)

        def on_step(event: Event, now: int) -> None:
            if isinstance(event, Tick):
                late_us.append((now - bench.core.deadline_ns) // 1000)
                bench.core.deadline_ns = now + 20 * MS

        bench.core.on_step = on_step
        bench.core.deadline_ns = now_ns() + 5 * MS
        bench.loop._arm()
        while len(bench.core.events) - before < 20:  # a timer of asyncio's beside it, in the same loop
            due = now_ns() + 10 * MS
            await asyncio.sleep(0.01)
            theirs_us.append((now_ns() - due) // 1000)
        assert all(asked <= now_ns() for asked in bench.core.asked_ns)
        assert min(late_us) >= 0, "never before the deadline"
        assert sorted(late_us)[len(late_us) // 2] < 5000 + sorted(theirs_us)[len(theirs_us) // 2]

    play(tmp_path, story)


def test_a_deadline_that_comes_nearer_is_seen_and_one_that_goes_away_is_no_event(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        bench.core.on_step = lambda event, now: setattr(bench.core, "deadline_ns", 1 << 62)
        bench.core.deadline_ns = now_ns() + 60_000 * MS
        bench.loop._arm()
        bench.core.deadline_ns = now_ns() + 10 * MS
        bench.loop._arm()
        with Ticks() as ticks:
            await bench.until(lambda: bench.core.got(Tick))
            assert ticks.at_most(1000)
        count = len(bench.core.events)
        await asyncio.sleep(1.2)  # longer than the longest sleep: it wakes, looks, and says nothing
        assert len(bench.core.events) == count

    play(tmp_path, story)


def test_effects_run_in_order_and_a_receipt_is_stepped_at_once(tmp_path: Path) -> None:
    datagram = Datagram(DatagramKind.HEARTBEAT, "node-a", "node-b", 1, 17)

    async def story(bench: Bench) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            peer.bind(("127.0.0.82", bench.config.heartbeat.port))
            peer.settimeout(20)
            bench.core.rules[Sent] = (Release("g", 3),)
            before_ns = now_ns()
            bench.act(Send(datagram, receipt=True), Extend((HeldLease("g", 3, 1 << 60),)))
            assert isinstance(bench.core.events[-1], Sent), "before anything else can happen"
            sent = bench.core.events[-1]
            assert sent.seq == 17 and before_ns <= sent.at_ns <= now_ns()
            assert len(peer.recv(1500)) > 40
            assert isinstance(await bench.told(Extend), Extend)
            assert isinstance(await bench.told(Release), Release)

    play(tmp_path, story)


def test_datagrams_come_in(tmp_path: Path) -> None:
    from hasnmp.wire import Signer

    async def story(bench: Bench) -> None:
        octets = Signer("bank", bench.config.heartbeat.keys).encode(
            Datagram(DatagramKind.HEARTBEAT, "node-b", "node-a", 1, 5)
        )
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            peer.bind(("127.0.0.82", bench.config.heartbeat.port))
            peer.sendto(octets, ("127.0.0.81", bench.config.heartbeat.port))
            await bench.until(lambda: bench.core.got(Received))
        assert bench.core.got(Received)[0].datagram.seq == 5

    play(tmp_path, story)


def test_the_guardians_words_become_events(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        lease = HeldLease("g", 3, 1 << 60)
        said = [
            Extended((lease,)),
            Released("g", 3, False, "pid 7 is left"),
            messages.Alarm("flushed"),
            messages.Stop(),
        ]
        for message in said:
            bench.guardian.send(message)
        await bench.until(lambda: bench.core.got(Shutdown))
        assert bench.core.got(Extended) == said[:1] and bench.core.got(Released) == said[1:2]
        # What the agents may rely on: acknowledged, and not given up yet.
        assert bench.loop._host.lease_alive("g") and not bench.loop._host.lease_alive("h")
        bench.guardian.send(Extended((HeldLease("h", 1, 1 << 60),), False))
        bench.guardian.send(Released("g", 3, True))
        await bench.until(lambda: len(bench.core.got(Released)) == 2)
        assert not bench.loop._host.lease_alive("g") and not bench.loop._host.lease_alive("h")

    play(tmp_path, story)


def test_a_service_starts_fails_and_is_told(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        bench.act(Act(41, "web", Action.START, 1000))
        run = await bench.told(messages.Run)
        bench.guardian.send(messages.RunStarted(run.run, 4711))
        await bench.until(lambda: bench.core.got(AgentResult))
        result = bench.core.got(AgentResult)[0]
        assert (result.attempt, result.service, result.outcome, result.pid) == (41, "web", Outcome.OK, 4711)
        bench.guardian.send(messages.Exited(run.run, "g", "web", run.purpose, 4711, -1, 11, "core dumped", 5))
        await bench.until(lambda: bench.core.got(ServiceExited))
        assert "signal 11" in bench.core.got(ServiceExited)[0].message

    play(tmp_path, story)


def test_a_fence_is_carried_out_by_the_guardians_programs(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        bench.act(Fence(3, "node-b", 0, FenceAction.FENCE, 5000))
        off = await bench.told(messages.Run)
        assert (off.purpose, off.group, off.argv) == (messages.Purpose.FENCE, "", ("fence_bench",))
        assert off.stdin == "plug=7\naction=off\n" and off.env["PATH"].endswith("/usr/sbin:/sbin")
        assert 4000 < off.timeout_ms <= 5000
        bench.guardian.send(messages.RunStarted(off.run, 77))
        bench.guardian.send(messages.Exited(off.run, "", "", off.purpose, 77, 0, 0, "", 5))
        status = await bench.told(messages.Run)
        assert status.stdin == "plug=7\naction=status\n" and not bench.core.got(Fenced)
        bench.guardian.send(messages.RunStarted(status.run, 78))
        bench.guardian.send(messages.Exited(status.run, "", "", off.purpose, 78, 2, 0, "", 5))
        await bench.until(lambda: bench.core.got(Fenced))
        [fenced] = bench.core.got(Fenced)
        assert (fenced.attempt, fenced.node, fenced.level, fenced.ok) == (3, "node-b", 0, True), fenced

    play(tmp_path, story)


def test_what_a_former_engines_fence_agent_printed_is_not_logged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def story(bench: Bench) -> None:
        ended = messages.Exited(4, "", "", messages.Purpose.FENCE, 4711, 1, 0, "login with geheim refused", 5)
        bench.guardian.send(ended)
        bench.act(Act(1, "web", Action.START, 1000))
        await bench.told(messages.Run)  # what was sent before it has been read

    play(tmp_path, story)
    said = capsys.readouterr()
    assert "former_program_ended" in said.out + said.err and "geheim" not in said.out + said.err


def test_the_lease_disk_and_the_store_answer(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        bench.act(ArbiterCall(9, "g", None, now_ns()), Persist(3, {"a": 1}))
        await bench.until(lambda: bench.core.got(ArbiterAnswer))  # nobody answers: the time limit does
        assert bench.core.got(ArbiterAnswer)[0].attempt == 9 and bench.core.got(ArbiterAnswer)[0].error
        bench.store.send(b'{"persisted": 3, "ok": false, "text": "disk full"}')
        await bench.until(lambda: bench.core.got(Persisted))
        assert bench.core.got(Persisted)[0] == Persisted(3, False, "disk full")

    play(tmp_path, story)


def test_a_state_that_is_not_saved_is_logged_once_until_that_changes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def story(bench: Bench) -> None:
        for version, text in enumerate(
            ("disk full (9 octets free)", "disk full (8 octets free)", "read-only", "", "read-only")
        ):
            bench.act(Persist(version, {"a": 1}))
            bench.store.send(json.dumps({"persisted": version, "ok": not text, "text": text}).encode())
            await bench.until(lambda last=version: [e for e in bench.core.got(Persisted) if e.version == last])

    play(tmp_path, story)
    said = capsys.readouterr()
    lines = [line for line in (said.out + said.err).splitlines() if "state_not_saved" in line]
    assert ["disk full (9" in lines[0], *("read-only" in line for line in lines[1:])] == [True] * 3, lines


def test_the_guardian_hears_that_the_loop_turns(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        for _ in range(2):
            with Ticks() as ticks:
                await bench.told(messages.Alive)
                assert ticks.at_most(1500)

    play(tmp_path, story)


def test_a_loop_that_the_guardian_hears_anyway_says_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "ALIVE_S", 3600.0)

    async def story(bench: Bench) -> None:
        await bench.told(messages.Alive)
        bench.act(Extend((HeldLease("g", 1, now_ns()),)))
        await bench.told(Extend)
        bench.loop._say_alive()
        with pytest.raises(BlockingIOError):
            bench.guardian.receive()
        bench.loop._say_alive()
        await bench.told(messages.Alive)

    play(tmp_path, story)


def test_exit_ends_with_0_after_the_state_is_written(tmp_path: Path) -> None:
    async def story(bench: Bench) -> int:
        bench.act(Persist(1, {"released": "g"}), Exit("nothing runs here any more"))
        asked = len(bench.core.events)
        await asyncio.sleep(0.1)
        assert not bench.task.done(), "it waits for the last state"
        bench.store.send(b'{"persisted": 1, "ok": true, "text": ""}')
        status = await asyncio.wait_for(asyncio.shield(bench.task), 20)
        assert len(bench.core.events) == asked, "nothing is decided after the end"
        return status

    assert play(tmp_path, story) == 0
    assert not (tmp_path / "control.sock").exists()


def test_without_a_guardian_everything_ends_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []
    monkeypatch.setattr(engine.programs, "end_everything", lambda config, node, within_ms: ended.append(node) or ())

    async def story(bench: Bench) -> int:
        bench.guardian.close()
        return await asyncio.wait_for(asyncio.shield(bench.task), 20)

    assert play(tmp_path, story) == 1
    assert ended == ["node-a"]


def test_an_exit_by_force_ends_everything_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []
    monkeypatch.setattr(engine.programs, "end_everything", lambda config, node, within_ms: ended.append(node) or ())

    async def story(bench: Bench) -> int:
        bench.act(Exit("the guardian did not act", force=True))
        return await asyncio.wait_for(asyncio.shield(bench.task), 20)

    assert play(tmp_path, story) == 1
    assert ended == ["node-a"]


def test_a_defect_in_the_core_ends_the_engine_and_says_so(tmp_path: Path) -> None:
    def broken(event: Event, now: int) -> None:
        raise ZeroDivisionError("in the core")

    async def story(bench: Bench) -> int:
        bench.core.on_step = broken
        bench.loop.tell(Tick(0))
        return await asyncio.wait_for(asyncio.shield(bench.task), 20)

    assert play(tmp_path, story) == engine.FAILED


def test_sigterm_is_a_shutdown_and_sigint_is_left_to_the_guardian(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        await bench.until(lambda: bench.core.got(Shutdown))
        assert len(bench.core.got(Shutdown)) == 1 and not bench.task.done()

    play(tmp_path, story)


def test_what_happened_is_on_the_socket_and_in_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def story(bench: Bench) -> None:
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "control.sock"))
        assert b'"snapshot"' in await reader.readline()
        row = EventRow(5, Kind.NODE_LOST, Severity.MAJOR, 1, 1, "node-a", "silent", peer="node-b")
        bench.act(Notify(row))
        assert b'"nodeLost"' in await asyncio.wait_for(reader.readline(), 20)
        writer.close()

    play(tmp_path, story)
    assert "node_lost" in capsys.readouterr().out


def test_a_control_socket_that_can_not_be_made_does_not_stop_the_engine(tmp_path: Path) -> None:
    (tmp_path / "control.sock").mkdir()

    async def story(bench: Bench) -> None:
        bench.core.on_step = lambda event, now: None
        bench.loop.tell(Tick(0))
        assert bench.core.got(Tick)

    play(tmp_path, story)
