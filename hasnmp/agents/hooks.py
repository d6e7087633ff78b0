"""The administrator's own programs at transitions and events (core/hooks.py): how they are told, run and ended.

A program is told by its environment and by one JSON object on standard input. Those around a group's start and stop run as
part of the group: by its lease, in its control group, and ended with it. Those that only tell of something belong to no
group, and wait in one queue, so that they run one after the other in the order of what happened. The queue is bounded; what
finds no room is counted, and told once there is room. It does not outlive the engine.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Mapping
from typing import Any

from hasnmp import settings
from hasnmp.agents.host import Host, NotRun, how_it_ended
from hasnmp.core.events import Hook, HookEnded
from hasnmp.model import EventRow
from hasnmp.runtime.messages import MessageError

QUEUE = 256  # programs that wait to tell of an event


def told_of(hook: Hook, node: str, token: int) -> dict[str, Any]:
    """What the programs of a transition are told."""
    return {"event": hook.on, "group": hook.group, "node": node, "peer": hook.to, "token": token, "reason": hook.reason,
            "message": hook.text}  # fmt: skip


def told_of_event(row: EventRow, token: int) -> dict[str, Any]:
    return {
        "event": snake(row.kind.value), "group": row.group, "service": row.service, "node": row.node, "peer": row.peer,
        "link": row.link, "token": token, "reason": row.reason.name.lower(), "severity": row.severity.name.lower(),
        "message": row.message, "id": row.id, "common_id": row.common_id, "wall_ms": row.wall_ms, "alarm": row.alarm,
        "state": int(row.state), "previous": int(row.previous_state),
    }  # fmt: skip


def snake(kind: str) -> str:
    """takeoverCompleted -> takeover_completed."""
    return "".join("_" + c.lower() if c.isupper() else c for c in kind)


def environment(told: Mapping[str, Any]) -> dict[str, str]:
    """HASNMP_EVENT and so on. HASNMP_NODE and HASNMP_GROUP are what the guardian knows its own programs by, and a program that
    only tells of a group is no part of it: so these two end in _NAME."""
    own = {"node": "node_name", "group": "group_name"}
    return {f"HASNMP_{own.get(name, name).upper()}": str(value).replace("\0", " ") for name, value in told.items()}


class Hooks:
    def __init__(self, config: settings.Config, node: str, host: Host, log: Any) -> None:
        self._hooks, self._node, self._host, self._log = config.hooks, node, host, log
        self._wanted = {hook.on for hook in config.hooks}
        self._tasks: set[asyncio.Task[None]] = set()
        self._queue: deque[tuple[settings.Hook, dict[str, Any]]] = deque()
        self._lost = 0
        self._teller: asyncio.Task[None] | None = None

    def _of(self, on: str, group: str) -> list[settings.Hook]:
        return [h for h in self._hooks if h.on == on and (not h.groups or group in h.groups)]

    # ---------------------------------------------------------------------------------------------- transitions

    def run(self, effect: Hook) -> None:
        """Begin; HookEnded comes later, after the effects that are being executed."""
        told = told_of(effect, self._node, self._host.token_of(effect.group))
        if effect.on == "after_stop":
            for hook in self._of(effect.on, effect.group):
                self._put(hook, told)
            return
        task = asyncio.get_running_loop().create_task(self._run(effect, told))
        self._tasks.add(task)  # the loop itself holds tasks only weakly
        task.add_done_callback(self._tasks.discard)

    async def _run(self, effect: Hook, told: dict[str, Any]) -> None:
        failures: list[str] = []
        stopped = False
        for hook in self._of(effect.on, effect.group):
            if why := await self._program(hook, told, effect.group):
                failures.append(why)
                if hook.required:
                    stopped = True
                    break
        self._host.tell(HookEnded(effect.attempt, effect.group, effect.on, tuple(failures), stopped))

    async def _program(self, hook: settings.Hook, told: dict[str, Any], group: str) -> str:
        """Run one to its end. Returns why it failed, "" if it did not."""
        stdin = json.dumps(told, ensure_ascii=False) + "\n"
        try:
            async with asyncio.timeout(hook.timeout_ms / 1000 + 1):  # the guardian ends it before, and says so
                exited = await self._host.hook(group, hook.run, environment(told), stdin, hook.timeout_ms)
        except TimeoutError:
            why = f"no end within {hook.timeout_ms} ms"
        except (NotRun, MessageError) as error:
            why = f"not run: {error}"
        else:
            if exited.timed_out:
                why = f"ended by force after {hook.timeout_ms} ms"
            elif exited.code or exited.signal:
                why = how_it_ended(exited)
            else:
                self._log.debug("hook_ended", on=hook.on, program=hook.run[0], took_ms=exited.took_us / 1000)
                return ""
        return f"{hook.run[0]}: {why}"

    # --------------------------------------------------------------------------------------------------- events

    def happened(self, row: EventRow) -> None:
        """Something was told: the programs that want to know it are put in the queue."""
        if not self._wanted or (on := snake(row.kind.value)) not in self._wanted:
            return
        told = told_of_event(row, self._host.token_of(row.group) if row.group else 0)
        for hook in self._of(on, row.group):
            self._put(hook, told)

    def _put(self, hook: settings.Hook, told: dict[str, Any]) -> None:
        if len(self._queue) >= QUEUE:
            self._lost += 1
            return
        self._queue.append((hook, told))
        if self._teller is None or self._teller.done():
            self._teller = asyncio.get_running_loop().create_task(self._tell())

    async def _tell(self) -> None:
        while self._queue:
            if self._lost and len(self._queue) < QUEUE // 2:
                lost, self._lost = self._lost, 0
                self._host.tell(HookEnded(0, "", "events", (f"{lost} programs were not run: {QUEUE} others waited",)))
            hook, told = self._queue.popleft()
            if why := await self._program(hook, told, ""):
                self._log.warning("hook_failed", on=hook.on, why=why)
                self._host.tell(HookEnded(0, str(told["group"]), hook.on, (why,)))

    def close(self) -> None:
        """End every task that is under way; nothing is told any more."""
        for task in (*self._tasks, *([self._teller] if self._teller is not None else [])):
            task.cancel()
