"""The exec agent with real programs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hasnmp import settings
from hasnmp.agents import exec as module
from hasnmp.core.events import Action, HeldLease, Outcome
from hasnmp.runtime import messages
from tests.agents.bench import Bench, service
from tests.ports import free_port
from tests.ticks import Ticks

SLEEP = ("sleep", "60")
STUBBORN = ("sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.05; done")


async def trapped(bench: Bench, pid: int, number: signal.Signals) -> None:
    """Wait until the program has said what it does with the signal (proc(5): SigIgn, SigCgt)."""

    def said() -> bool:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        masks = [int(line.split()[1], 16) for line in lines if line.startswith(("SigIgn:", "SigCgt:"))]
        return any(mask >> (number - 1) & 1 for mask in masks)

    await bench.until(said)


@contextlib.contextmanager
def patient() -> Iterator[None]:
    """How soon a program has to end so that it counts as one that did not start is no matter of this machine's speed."""
    settle_s, module.SETTLE_S = module.SETTLE_S, 20.0
    try:
        yield
    finally:
        module.SETTLE_S = settle_s


def play(*services: settings.Service) -> Any:
    """Run a test's coroutine against a bench with these services."""

    def decorate(test: Any) -> Any:
        def run() -> None:
            async def whole() -> None:
                bench = Bench(*services)
                try:
                    await test(bench)
                finally:
                    await bench.close()

            asyncio.run(whole())

        run.__name__, run.__doc__ = test.__name__, test.__doc__
        return run

    return decorate


@play(service(command=SLEEP))
async def test_a_program_starts_fast_is_checked_and_stops(bench: Bench) -> None:
    with Ticks() as ticks:
        started = await bench.act("web", Action.START)
        assert ticks.at_most(200), "a planned failover of one address and one program has 100 ms"
    assert started.outcome is Outcome.OK and started.pid > 0
    checked = await bench.act("web", Action.CHECK)
    assert (checked.outcome, checked.pid) == (Outcome.OK, started.pid)
    again = await bench.act("web", Action.START)
    assert (again.outcome, again.pid) == (Outcome.OK, started.pid), "a started service is not started twice"
    with Ticks() as ticks:
        stopped = await bench.act("web", Action.STOP)
        assert ticks.at_most(500)
    assert (stopped.outcome, stopped.message) == (Outcome.OK, "stopped")
    assert (await bench.act("web", Action.CHECK)).outcome is Outcome.NOT_RUNNING
    assert (await bench.act("web", Action.STOP)).outcome is Outcome.OK
    assert bench.exits() == [], "an end that was ordered is no failure"


@play(service(command=("/nowhere/gateway",)))
async def test_a_missing_program_says_so(bench: Bench) -> None:
    result = await bench.act("web", Action.START)
    assert result.outcome is Outcome.MISSING and "/nowhere/gateway: No such file" in result.message


@play(service(command=("sh", "-c", "echo no license for port 7001 >&2; exit 3")))
async def test_a_program_that_ends_at_once_has_failed(bench: Bench) -> None:
    with patient():
        result = await bench.act("web", Action.START, timeout_ms=30_000)
    assert result.outcome is Outcome.FAILED
    assert "exit status 3" in result.message and "no license for port 7001" in result.message
    assert bench.exits() == []


@play(service(command=("sh", "-c", "trap 'echo out of memory; exit 9' USR1; while :; do sleep 0.01; done")))
async def test_an_unexpected_end_is_told_at_once(bench: Bench) -> None:
    started = await bench.act("web", Action.START)
    assert started.outcome is Outcome.OK
    await trapped(bench, started.pid, signal.SIGUSR1)
    os.kill(started.pid, signal.SIGUSR1)
    await bench.until(bench.exits)
    assert "exit status 9" in bench.exits()[0].message and "out of memory" in bench.exits()[0].message
    assert (await bench.act("web", Action.CHECK)).outcome is Outcome.NOT_RUNNING
    assert (await bench.act("web", Action.START)).outcome is Outcome.OK, "it can be started again"


@play(service(command=STUBBORN))
async def test_a_program_that_ignores_sigterm_is_ended_by_force_in_time(bench: Bench) -> None:
    await trapped(bench, (await bench.act("web", Action.START)).pid, signal.SIGTERM)
    with Ticks() as ticks:
        result = await bench.act("web", Action.STOP, timeout_ms=600)
        assert ticks.at_most(600)
    assert result.outcome is Outcome.OK and "by force" in result.message
    assert 300_000 < result.took_us
    assert any(isinstance(m, messages.End) for m in bench.sent)


@play(
    service(
        command=("sh", "-c", "trap '' TERM; trap 'exit 0' USR1; echo up; while :; do sleep 0.01; done"),
        stop_signal="USR1",  # not one that a shell in the background has ignored, which no trap undoes
    )
)
async def test_the_stop_signal_is_the_configured_one(bench: Bench) -> None:
    await trapped(bench, (await bench.act("web", Action.START)).pid, signal.SIGUSR1)
    result = await bench.act("web", Action.STOP, timeout_ms=20_000)
    assert (result.outcome, result.message) == (Outcome.OK, "stopped")
    assert not any(isinstance(m, messages.End) for m in bench.sent)


@play(service(command=SLEEP))
async def test_a_program_that_was_stopped_by_a_signal_hears_of_its_end(bench: Bench) -> None:
    started = await bench.act("web", Action.START)
    os.kill(started.pid, signal.SIGSTOP)
    result = await bench.act("web", Action.STOP, timeout_ms=20_000)
    assert result.outcome is Outcome.OK and "by force" not in result.message
    assert not any(isinstance(m, messages.End) for m in bench.sent)


@play(service(command=SLEEP))
async def test_a_program_that_can_not_be_ended_is_a_timed_out_stop(bench: Bench) -> None:
    await bench.act("web", Action.START)
    bench.deaf = True
    with Ticks() as ticks:
        result = await bench.act("web", Action.STOP, timeout_ms=300)
        assert result.outcome is Outcome.TIMED_OUT and ticks.at_most(320)
    bench.deaf = False
    assert (await bench.act("web", Action.STOP)).outcome is Outcome.OK


@play(service(command=STUBBORN, stop_command=("sh", "-c", "echo bye; kill -9 -- -$(cat /tmp/nothing.pid)")))
async def test_a_stop_command_that_fails_leaves_the_program_to_the_signal(bench: Bench) -> None:
    await trapped(bench, (await bench.act("web", Action.START)).pid, signal.SIGTERM)
    result = await bench.act("web", Action.STOP, timeout_ms=3000)
    assert result.outcome is Outcome.OK and "stop_command: exit status" in result.message
    runs = [m for m in bench.sent if isinstance(m, messages.Run)]
    assert [r.purpose for r in runs] == [messages.Purpose.SERVICE, messages.Purpose.STOP]


@play(
    service(
        command=("sh", "-c", 'echo "$HASNMP_SERVICE $HASNMP_TOKEN $KEPT"; exit 1'),
        env={"KEPT": "x"},
    )
)
async def test_a_program_is_told_its_token(bench: Bench) -> None:
    bench.host.token(HeldLease("g", 41, 1))
    with patient():
        assert "web 41 x" in (await bench.act("web", Action.START, timeout_ms=30_000)).message


@play(service(command=SLEEP))
async def test_without_a_lease_the_guardian_refuses(bench: Bench) -> None:
    bench.refuse["web"] = messages.RunFailed(1, Outcome.REFUSED, "no live lease of g")
    result = await bench.act("web", Action.START)
    assert (result.outcome, result.message) == (Outcome.REFUSED, "no live lease of g")


@play(service(command=SLEEP))
async def test_a_silent_guardian_ends_the_attempt_in_time(bench: Bench) -> None:
    bench.deaf = True
    with Ticks() as ticks:
        result = await bench.act("web", Action.START, timeout_ms=100)
        assert result.outcome is Outcome.TIMED_OUT and ticks.at_most(200)
    assert isinstance(bench.sent[-1], messages.End), "a program that comes up late is not left"


@play(service(command=SLEEP))
async def test_a_former_engines_program_is_taken_over(bench: Bench) -> None:
    process = await asyncio.create_subprocess_exec("sleep", "60")
    running = messages.Running(77, "g", "web", messages.Purpose.SERVICE, process.pid, 5)
    stray = messages.Running(78, "g", "gone", messages.Purpose.SERVICE, 2, 5)
    adopted = bench.agents.adopt((running, stray), ())
    assert [(a.service, a.pid, a.since_ns) for a in adopted] == [("web", process.pid, 5)]
    assert bench.sent == [messages.End(78)]
    assert (await bench.act("web", Action.CHECK)).pid == process.pid
    process.kill()
    await process.wait()
    bench.host.handle(messages.Exited(77, "g", "web", messages.Purpose.SERVICE, process.pid, -1, 9, "", 2_000_000))
    assert [(e.pid, e.message) for e in bench.exits()] == [(process.pid, "signal 9 after 2.0 s")]


@play(service(command=SLEEP))
async def test_a_program_adopted_before_it_was_executed_is_watched_all_the_same(bench: Bench) -> None:
    """The engine before died right after it asked for the start: what the guardian says of that comes to this one."""
    bench.agents.adopt((messages.Running(77, "g", "web", messages.Purpose.SERVICE, 4242, 5),), ())
    bench.host.handle(messages.RunStarted(77, 4242))
    assert (await bench.act("web", Action.CHECK)).outcome is Outcome.OK
    bench.host.handle(messages.Exited(77, "g", "web", messages.Purpose.SERVICE, 4242, -1, 9, "", 2_000_000))
    assert [(e.pid, e.message) for e in bench.exits()] == [(4242, "signal 9 after 2.0 s")]
    assert (await bench.act("web", Action.CHECK)).outcome is Outcome.NOT_RUNNING


@play(service(command=SLEEP))
async def test_an_adopted_program_that_could_not_be_executed_has_ended(bench: Bench) -> None:
    bench.agents.adopt((messages.Running(77, "g", "web", messages.Purpose.SERVICE, 4242, 5),), ())
    bench.host.handle(messages.RunFailed(77, Outcome.MISSING, "/bin/nothing: No such file"))
    text = "exit status 127 after 0.0 s; last output: /bin/nothing: No such file"
    assert [(e.pid, e.message) for e in bench.exits()] == [(4242, text)]
    assert (await bench.act("web", Action.CHECK)).outcome is Outcome.NOT_RUNNING


SERVER = """
import http.server, sys, time
time.sleep(0.15)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), http.server.SimpleHTTPRequestHandler).serve_forever()
"""


@pytest.mark.parametrize("kind", ["tcp", "http"])
def test_a_start_lasts_until_the_first_good_check(kind: str) -> None:
    port = free_port()
    check = settings.Check("tcp", host="127.0.0.1", port=port)
    if kind == "http":
        check = settings.Check("http", url=f"http://127.0.0.1:{port}/", status=200)
    one = service(command=(sys.executable, "-c", SERVER, str(port)), check=check)

    async def story(bench: Bench) -> None:
        started = await bench.act("web", Action.START, timeout_ms=30_000)
        assert started.outcome is Outcome.OK, started
        assert started.took_us > 150_000, "before that nothing listens"
        assert (await bench.act("web", Action.CHECK)).outcome is Outcome.OK
        assert (await bench.act("web", Action.STOP)).outcome is Outcome.OK

    play(one)(story)()


@play(service(command=SLEEP, check=settings.Check("tcp", host="127.0.0.1", port=1)))
async def test_a_service_that_never_answers_has_not_started(bench: Bench) -> None:
    with Ticks() as ticks:
        result = await bench.act("web", Action.START, timeout_ms=400)
        assert result.outcome is Outcome.TIMED_OUT and ticks.at_most(450)
    assert "not up within" in result.message and "Connection refused" in result.message
    assert (await bench.act("web", Action.STOP)).outcome is Outcome.OK, "what it left is stopped"


@play(service(command=SLEEP, check=settings.Check("tcp", host="127.0.0.1", port=1)))
async def test_why_it_did_not_start_is_told_by_one_that_stood_still_past_every_limit(bench: Bench) -> None:
    asyncio.get_running_loop().call_later(0.1, time.sleep, 0.5)
    result = await bench.act("web", Action.START, timeout_ms=400)
    assert result.outcome is Outcome.TIMED_OUT and result.took_us > 600_000
    assert "not up within" in result.message and "Connection refused" in result.message


@play(service(command=("sh", "-c", "sleep 0.1; exit 4"), check=settings.Check("tcp", host="127.0.0.1", port=1)))
async def test_a_program_that_ends_while_it_is_awaited_fails_at_once(bench: Bench) -> None:
    with Ticks() as ticks:
        result = await bench.act("web", Action.START, timeout_ms=30_000)
        assert ticks.at_most(1000)
    assert result.outcome is Outcome.FAILED and "exit status 4" in result.message
