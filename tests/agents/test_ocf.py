"""The ocf agent: with agents that say what the test wants, and with real ones of Debian's resource-agents."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from hasnmp import settings
from hasnmp.agents import ocf_metadata
from hasnmp.agents.host import Here
from hasnmp.core.events import Action, AgentResult, Outcome
from hasnmp.runtime import messages
from hasnmp.runtime.messages import Purpose
from hasnmp.settings import Check
from tests.agents.bench import Bench

HEARTBEAT = Path("/usr/lib/ocf/resource.d/heartbeat")


def service(agent: str, check: Check | None = None, name: str = "web", **options: str) -> settings.Service:
    return settings.Service(name, "g", agent, options, check=check or Check(type="monitor"))


def play(folder: Path, *services: settings.Service) -> Callable[[Callable[[Bench], Awaitable[None]]], None]:
    """Run the decorated story at once."""

    def run(story: Callable[[Bench], Awaitable[None]]) -> None:
        async def whole() -> None:
            bench = Bench(*services, here=Here("node-a", ("node-a", "node-b"), str(folder / "run")))
            try:
                await story(bench)
            finally:
                await bench.close()

        asyncio.run(whole())

    return run


@pytest.fixture
def scripted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Makes an agent of a shell script, whose functions are its actions; gives its name."""
    monkeypatch.setenv("OCF_ROOT", str(tmp_path / "ocf"))
    folder = tmp_path / "ocf/resource.d/test"
    folder.mkdir(parents=True)

    def make(**actions: str) -> str:
        lines = [f"{action.replace('_', '-')}) {body} ;;" for action, body in actions.items()]
        path = folder / "scripted"
        path.write_text(
            "#!/bin/sh\ncd " + str(tmp_path) + "\ncase $1 in\n" + "\n".join(lines) + "\n*) exit 3;;\nesac\n"
        )
        path.chmod(0o755)
        return "ocf:test:scripted"

    return make


def said(result: AgentResult, outcome: Outcome, *words: str) -> None:
    assert result.outcome is outcome, result
    assert all(word in result.message for word in words), result


@pytest.mark.parametrize(
    ("code", "outcome", "word"),
    [
        (0, Outcome.OK, "runs"),
        (1, Outcome.FAILED, "exit status 1: no heart"),
        (2, Outcome.FAILED, "an option is wrong"),
        (3, Outcome.FAILED, "does not have this action"),
        (4, Outcome.FAILED, "lacks a permission"),
        (5, Outcome.MISSING, "not installed here"),
        (6, Outcome.FAILED, "not configured well"),
        (7, Outcome.NOT_RUNNING, "not running"),
        (8, Outcome.FAILED, "runs promoted"),
        (9, Outcome.FAILED, "failed while promoted"),
        (77, Outcome.FAILED, "a status that the API does not have (exit status 77)"),
        (190, Outcome.OK, "degraded: no heart"),
        (191, Outcome.FAILED, "runs promoted, degraded"),
    ],
)
def test_every_exit_status_of_a_monitor_has_its_meaning(
    scripted: Any, tmp_path: Path, code: int, outcome: Outcome, word: str
) -> None:
    agent = scripted(monitor=f"echo of no interest; echo ocf-exit-reason:no heart >&2; echo later; exit {code}")

    @play(tmp_path, service(agent))
    async def story(bench: Bench) -> None:
        said(await bench.act("web", Action.CHECK), outcome, word)


def test_a_start_waits_until_the_monitor_is_content(scripted: Any, tmp_path: Path) -> None:
    agent = scripted(
        start="(sleep 0.3; touch up) >/dev/null 2>&1 &", monitor="[ -e up ] || exit 7", stop="rm -f up; exit 0"
    )

    @play(tmp_path, service(agent))
    async def story(bench: Bench) -> None:
        began = time.monotonic()
        said(await bench.act("web", Action.START), Outcome.OK, "runs")
        assert time.monotonic() - began >= 0.3
        said(await bench.act("web", Action.STOP), Outcome.OK, "stopped")
        said(await bench.act("web", Action.CHECK), Outcome.NOT_RUNNING)
        purposes = [message.purpose for message in bench.sent if isinstance(message, messages.Run)]
        assert purposes[0] is Purpose.START and purposes[-2:] == [Purpose.STOP, Purpose.CHECK]


def test_a_start_that_fails_says_why(scripted: Any, tmp_path: Path) -> None:
    agent = scripted(start="echo 'ocf-exit-reason:port 80 is taken' >&2; exit 1", stop="exit 0")

    @play(tmp_path, service(agent))
    async def story(bench: Bench) -> None:
        said(await bench.act("web", Action.START), Outcome.FAILED, "exit status 1: port 80 is taken")


def test_a_service_that_is_never_up_is_a_start_that_took_too_long(scripted: Any, tmp_path: Path) -> None:
    agent = scripted(start="exit 0", monitor="echo 'ocf-exit-reason:still replaying' >&2; exit 1")

    @play(tmp_path, service(agent))
    async def story(bench: Bench) -> None:
        for limit_ms in (500, 2000, 8000):  # a busy machine may not have come to ask it within the first
            result = await bench.act("web", Action.START, limit_ms)
            if "still replaying" in result.message:
                break
        said(result, Outcome.TIMED_OUT, "still replaying")


def test_an_action_that_hangs_is_ended_and_says_so(scripted: Any, tmp_path: Path) -> None:
    agent = scripted(
        monitor="echo $$ >new; mv new pid; echo 'ocf-exit-reason:asks the disk' >&2; exec sleep 100", stop="exit 0"
    )

    @play(tmp_path, service(agent))
    async def story(bench: Bench) -> None:
        for limit_ms in (300, 1200, 4800):  # a busy machine may not have come to begin it within the first
            result = await bench.act("web", Action.CHECK, limit_ms)
            assert result.outcome is Outcome.TIMED_OUT
            if (tmp_path / "pid").exists():
                break
        await bench.until(lambda: not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists())


def test_a_stop_ends_a_monitor_that_is_under_way(scripted: Any, tmp_path: Path) -> None:
    agent = scripted(
        monitor="echo $$ >new; mv new pid; exec sleep 100", stop="[ -d /proc/$(cat pid) ] && exit 1; exit 0"
    )

    @play(tmp_path, service(agent))
    async def story(bench: Bench) -> None:
        check = asyncio.create_task(bench.act("web", Action.CHECK, 20_000))
        await bench.until((tmp_path / "pid").exists)
        said(await bench.act("web", Action.STOP), Outcome.OK, "stopped")
        said(await check, Outcome.FAILED, "signal 9")


def test_a_stop_fails_loudly_but_what_was_never_started_is_stopped(scripted: Any, tmp_path: Path) -> None:
    agent = scripted(start="exit 0", monitor="exit 0", stop="exit 5")

    @play(tmp_path, service(agent))
    async def story(bench: Bench) -> None:
        said(await bench.act("web", Action.STOP), Outcome.OK, "was not started", "not installed here")
        said(await bench.act("web", Action.START), Outcome.OK)
        said(await bench.act("web", Action.STOP), Outcome.MISSING, "not installed here")


def test_an_agent_that_is_not_there_says_so(scripted: Any, tmp_path: Path) -> None:
    @play(tmp_path, service("ocf:test:nowhere"))
    async def story(bench: Bench) -> None:
        said(await bench.act("web", Action.START), Outcome.MISSING, "resource.d/test/nowhere")
        said(await bench.act("web", Action.STOP), Outcome.OK, "was not started")


def test_the_next_engine_waits_for_an_action_of_the_former_one(scripted: Any, tmp_path: Path) -> None:
    agent = scripted(start="exit 0", monitor="exit 0")

    @play(tmp_path, service(agent))
    async def story(bench: Bench) -> None:
        before = messages.Running(99, "g", "web", Purpose.START, 4711, 1)
        assert bench.agents.adopt((before,), ()) == (), "a start that has not ended is no service that is up"
        starting = asyncio.create_task(bench.act("web", Action.START))
        await asyncio.sleep(0.1)
        assert not any(isinstance(message, messages.Run) for message in bench.sent)
        bench.host.handle(messages.Exited(99, "g", "web", Purpose.START, 4711, 0, 0, "", 5))
        said(await starting, Outcome.OK)


def test_an_address_that_no_lease_lets_answer_is_not_up(tmp_path: Path) -> None:
    """The engine ended between the agent's start and the guardian's word that the address is bound to the lease."""
    address = settings.Service("ip", "g", "ocf:heartbeat:IPaddr2", {"ip": "192.0.2.7"}, check=Check(type="monitor"))
    row = messages.Running(0, "g", "ip", Purpose.START, 0, 5)

    @play(tmp_path, address)
    async def story(bench: Bench) -> None:
        groups = frozenset({"g"})
        assert bench.agents.adopt((row,), (), groups) == ()
        held = messages.HeldAddress("ip", "g", "192.0.2.7", 24, "eth0", 5)
        assert [a.service for a in bench.agents.adopt((row,), (held,), groups)] == ["ip"]


def test_what_is_up_is_adopted_untouched(scripted: Any, tmp_path: Path) -> None:
    @play(tmp_path, service(scripted(monitor="exit 0")))
    async def story(bench: Bench) -> None:
        row = messages.Running(0, "g", "web", Purpose.START, 0, 17)
        assert [(a.service, a.pid) for a in bench.agents.adopt((row,), ())] == [("web", 0)]
        assert bench.sent == []
        said(await bench.act("web", Action.CHECK), Outcome.OK, "runs")


def test_what_no_force_ends_is_known_from_its_start_to_its_stop(scripted: Any, tmp_path: Path) -> None:
    """ocf:test:scripted is no agent that hasnmp knows, so it may keep anything."""

    @play(tmp_path, service(scripted(start="exit 1", monitor="exit 7", stop="[ -e stops ] && exit 0; exit 1")))
    async def story(bench: Bench) -> None:
        assert bench.agents.outside(frozenset("g")) == ()
        assert (await bench.act("web", Action.START)).outcome is Outcome.FAILED
        assert bench.agents.outside(frozenset("g")) == ("what web (ocf:test:scripted) set up",)
        assert bench.agents.outside(frozenset("h")) == ()
        said(await bench.act("web", Action.STOP), Outcome.FAILED)
        assert bench.agents.outside(frozenset("g"))
        (tmp_path / "stops").touch()
        said(await bench.act("web", Action.STOP), Outcome.OK)
        assert bench.agents.outside(frozenset("g")) == ()


def test_what_an_action_is_given(scripted: Any, tmp_path: Path) -> None:
    agent = scripted(monitor="env >given; exit 0")
    made = settings.Service(
        "web",
        "g",
        agent,
        {"port": "80"},
        check=Check(type="monitor", every_ms=7000, depth=10),
        secrets={"password": "x y"},
    )

    @play(tmp_path, made)
    async def story(bench: Bench) -> None:
        said(await bench.act("web", Action.CHECK), Outcome.OK)

    given = dict(line.partition("=")[::2] for line in (tmp_path / "given").read_text().splitlines())
    assert given["OCF_RESKEY_port"] == "80" and given["OCF_RESKEY_password"] == "x y"
    assert (given["OCF_RESOURCE_INSTANCE"], given["OCF_RESOURCE_TYPE"]) == ("web", "scripted")
    assert (given["OCF_RESOURCE_PROVIDER"], given["__OCF_ACTION"]) == ("test", "monitor")
    assert (given["OCF_RA_VERSION_MAJOR"], given["OCF_RA_VERSION_MINOR"]) == ("1", "1")
    assert (given["OCF_CHECK_LEVEL"], given["OCF_RESKEY_CRM_meta_interval"]) == ("10", "7000")
    assert given["PATH"].split(":")[0] == str(ocf_metadata.TOOLS)
    assert Path(given["HA_RSCTMP"]).is_dir() and Path(given["HASNMP_OCF_ATTRIBUTES"]).is_dir()


# -------------------------------------------------------------------------------------------------------- real ones


@pytest.mark.skipif(not HEARTBEAT.is_dir(), reason="needs Debian's resource-agents")
def test_dummy_goes_up_and_down(tmp_path: Path) -> None:
    @play(tmp_path, service("ocf:heartbeat:Dummy"))
    async def story(bench: Bench) -> None:
        said(await bench.act("web", Action.CHECK), Outcome.NOT_RUNNING, "not running")
        said(await bench.act("web", Action.START), Outcome.OK, "runs")
        said(await bench.act("web", Action.CHECK), Outcome.OK, "runs")
        said(await bench.act("web", Action.STOP), Outcome.OK, "stopped")
