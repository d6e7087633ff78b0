"""Hooks without a guardian: their order, what a required one that fails stops, and a queue that never grows without bound."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import structlog

from hasnmp.agents import hooks as module
from hasnmp.agents.hooks import Hooks
from hasnmp.agents.host import NotRun
from hasnmp.core.events import Event, Hook, HookEnded, Outcome
from hasnmp.model import EventRow, Kind, Reason, Severity
from hasnmp.runtime.messages import Exited, Purpose
from hasnmp.settings import Arbiter, Config, Heartbeat, NodeSettings
from hasnmp.settings import Hook as Settings

ENDED = Exited(1, "", "", Purpose.HOOK, 9, 0, 0, "", 10)
EVENT = EventRow(
    7,
    Kind.SERVICE_FAILED,
    Severity.MAJOR,
    1_000,
    2,
    "b",
    "it broke",
    group="web",
    service="www",
    reason=Reason.SERVICE_FAILED,
)


@dataclass
class Host:
    """Runs nothing: does what the test wants of each program, by its name."""

    does: dict[str, Callable[[], Any]] = field(default_factory=dict)
    ran: list[tuple[str, str, dict[str, str], dict[str, Any]]] = field(default_factory=list)
    told: list[Event] = field(default_factory=list)

    def tell(self, event: Event) -> None:
        self.told.append(event)

    def token_of(self, group: str) -> int:
        return {"web": 12}.get(group, 0)

    async def hook(self, group: str, argv: tuple[str, ...], env: dict[str, str], stdin: str, timeout_ms: int) -> Exited:
        self.ran.append((argv[0], group, env, json.loads(stdin)))
        result = self.does.get(argv[0], lambda: ENDED)()
        return await result if asyncio.iscoroutine(result) else result  # type: ignore[no-any-return]


def play(hooks: tuple[Settings, ...], story: Callable[[Hooks], None], **does: Callable[[], Any]) -> Host:
    host = Host(does)
    config = Config("c", (NodeSettings("a", {}),), Heartbeat(), Arbiter("none"), (), hooks=hooks)

    async def run() -> None:
        made = Hooks(config, "a", host, structlog.get_logger())  # type: ignore[arg-type]
        story(made)
        while others := [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]:
            await asyncio.wait(others)
        made.close()

    asyncio.run(run())
    return host


def on(event: str, program: str, **more: Any) -> Settings:
    return Settings(event, (program,), **more)


def failing(code: int) -> Callable[[], Exited]:
    return lambda: replace(ENDED, code=code, output_tail="no space left")


def refused() -> Exited:
    raise NotRun(Outcome.MISSING, "no such program")


def test_those_of_a_transition_run_in_order_as_part_of_the_group() -> None:
    hooks = (
        on("before_start", "one"),
        on("after_stop", "x"),
        on("before_start", "other", groups=("db",)),
        on("before_start", "two"),
    )
    host = play(hooks, lambda h: h.run(Hook(5, "web", "before_start", "node_lost", "b is silent", "")))
    assert [(name, group) for name, group, _, _ in host.ran] == [("one", "web"), ("two", "web")]
    assert host.told == [HookEnded(5, "web", "before_start")]
    _, _, env, told = host.ran[0]
    assert told == {
        "event": "before_start",
        "group": "web",
        "node": "a",
        "peer": "",
        "token": 12,
        "reason": "node_lost",
        "message": "b is silent",
    }
    assert env == {"HASNMP_EVENT": "before_start", "HASNMP_GROUP_NAME": "web", "HASNMP_NODE_NAME": "a", "HASNMP_PEER": "",
                   "HASNMP_TOKEN": "12", "HASNMP_REASON": "node_lost", "HASNMP_MESSAGE": "b is silent"}  # fmt: skip


def test_a_required_one_that_fails_ends_the_row_and_another_does_not() -> None:
    hooks = (on("before_stop", "one"), on("before_stop", "two", required=True), on("before_stop", "three"))
    host = play(hooks, lambda h: h.run(Hook(5, "web", "before_stop")), one=refused, two=failing(3))
    assert [name for name, *_ in host.ran] == ["one", "two"]
    [ended] = host.told
    assert isinstance(ended, HookEnded) and ended.stopped and ended.attempt == 5
    assert ended.failures[0] == "one: not run: no such program" and "two: exit status 3" in ended.failures[1]
    assert "no space left" in ended.failures[1]


def test_one_that_hangs_counts_as_failed_even_if_the_guardian_is_silent() -> None:
    hooks = (on("before_stop", "one", timeout_ms=10, required=True),)
    host = play(hooks, lambda h: h.run(Hook(5, "web", "before_stop")), one=lambda: asyncio.sleep(30))
    assert host.told == [HookEnded(5, "web", "before_stop", ("one: no end within 10 ms",), True)]


def test_events_are_told_in_their_order_one_after_the_other() -> None:
    busy: list[int] = []

    async def slow() -> Exited:
        busy.append(1)
        assert len(busy) == 1
        await asyncio.sleep(0.005)
        busy.pop()
        return ENDED

    def story(hooks: Hooks) -> None:
        for number in range(5):
            hooks.happened(replace(EVENT, id=number))
        hooks.happened(replace(EVENT, kind=Kind.LINK_UP))
        hooks.run(Hook(1, "web", "after_stop"))
        hooks.happened(replace(EVENT, group="db"))

    host = play((on("service_failed", "one", groups=("web",)), on("after_stop", "one")), story, one=slow)
    assert [told.get("id") for _, _, _, told in host.ran] == [0, 1, 2, 3, 4, None]
    assert {group for _, group, _, _ in host.ran} == {""} and host.told == []
    told = host.ran[0][3]
    assert (told["event"], told["service"], told["severity"], told["node"]) == ("service_failed", "www", "major", "b")


def test_what_finds_no_room_is_counted_and_told() -> None:
    def story(hooks: Hooks) -> None:
        for number in range(module.QUEUE + 44):
            hooks.happened(replace(EVENT, id=number))

    host = play((on("service_failed", "one"),), story)
    assert [told["id"] for _, _, _, told in host.ran] == list(range(module.QUEUE))
    assert host.told == [HookEnded(0, "", "events", (f"44 programs were not run: {module.QUEUE} others waited",))]


def test_one_that_fails_to_tell_of_an_event_is_told_and_stops_nothing() -> None:
    def story(hooks: Hooks) -> None:
        hooks.happened(EVENT)
        hooks.happened(replace(EVENT, id=8))

    host = play((on("service_failed", "one"),), story, one=failing(1))
    assert len(host.ran) == 2 and [type(event) for event in host.told] == [HookEnded, HookEnded]
    assert all(isinstance(e, HookEnded) and e.attempt == 0 and e.group == "web" and not e.stopped for e in host.told)


def test_names_of_events_are_those_of_the_configuration() -> None:
    from hasnmp.config_schema import HOOK_EVENTS

    assert {module.snake(kind.value) for kind in Kind} < set(HOOK_EVENTS)
