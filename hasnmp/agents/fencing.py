"""Fencing, carried out: one level of one node through its fence agent, and what counts as having happened.

A node is fenced when the agent's `off` succeeded *and* its `status` then said off, all within the time limit by a clock
that runs on while this process is stopped. Everything else has failed, whatever it did: the agent is ended, and the next
attempt begins anew. The switching on again comes after the answer: it is no part of the fence, and nobody waits for it.

The agents are programs with the Fence Agent API: `key=value` lines on standard input (so that a password is in no process
list), exit status 0 done or on, 2 off. What they print goes into the texts here, without the secrets.
"""

from __future__ import annotations

import asyncio
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hasnmp import settings
from hasnmp.agents.host import Host, NotRun, how_it_ended
from hasnmp.arbiters import pill_agent
from hasnmp.arbiters.pills import PILL
from hasnmp.core.events import Fence, FenceAction, Fenced
from hasnmp.errors import HasnmpError
from hasnmp.runtime.kernel import boottime_ns
from hasnmp.runtime.messages import Exited, MessageError
from hasnmp.runtime.programs import TAIL

MS = 1_000_000
ANSWER_MS = 50  # kept of the time limit, so that the answer says what was wrong
FIRST_POLL_S, LAST_POLL_S = 0.2, 1.0  # between two questions for the status: grows by half
ENDING_S = 0.5  # how long a new attempt waits for the end of the agent that it takes the place of
ON, OFF = 0, 2  # exit status of `status`
PILL_AGENT = (sys.executable, "-I", "-S", str(Path(pill_agent.__file__)))
MASK = "***"
# The end of every agent's metadata; all of Debian's fit into a third of what is kept of a program's output.
_ACTION = re.compile(r'<action\s[^>]*?name="([^"]+)"')


class NotFenced(HasnmpError):
    """This attempt has failed, and why."""


@dataclass(slots=True)
class _Work:
    """What is being done to one node's devices. step: what it is at, for the text when the time is over."""

    effect: Fence
    level: settings.FenceLevel
    deadline_ns: int
    step: str = "begin"
    task: asyncio.Task[None] | None = None

    def left_ms(self) -> int:
        """Raises NotFenced: nothing is."""
        left = (self.deadline_ns - boottime_ns()) // MS
        if left <= 0:
            raise NotFenced(self.late())
        return left

    def late(self) -> str:
        return f"not done within {self.effect.timeout_ms} ms: {self.step}"


class Fencing:
    """Does what Fence says; a Fenced for each is told. At most one thing is done to a node's devices at a time: a fence
    takes the place of a test, and of switching on; a test waits."""

    def __init__(self, config: settings.Config, node: str, host: Host, log: Any) -> None:
        self.config = config  # may be exchanged: each Fence looks its level up
        self._node, self._host, self._log = node, host, log
        self._works: dict[str, _Work] = {}  # node -> what is done there
        self._actions: dict[str, frozenset[str]] = {}  # agent -> what it is able to do, by its own word

    def fence(self, effect: Fence) -> None:
        """Begin; the Fenced comes later, after the effects that are being executed."""
        began_ns = boottime_ns()
        try:
            level = self.config.node(effect.node).fence[effect.level]
        except (KeyError, IndexError):
            loop = asyncio.get_running_loop()
            loop.call_soon(self._tell, effect, began_ns, False, f"{effect.node} has no fence level {effect.level + 1}")
            return
        work = _Work(effect, level, began_ns + max(1, effect.timeout_ms - ANSWER_MS) * MS)
        before = self._works.get(effect.node)
        if before and effect.action is FenceAction.FENCE:
            self._works[effect.node] = work
        else:
            self._works.setdefault(effect.node, work)
        work.task = asyncio.get_running_loop().create_task(self._do(work, before, began_ns))

    def close(self) -> None:
        """End everything that is under way; nothing is told any more."""
        for work in self._works.values():
            if work.task:
                work.task.cancel()

    # ------------------------------------------------------------------------------------------------- one attempt

    async def _do(self, work: _Work, before: _Work | None, began_ns: int) -> None:
        effect = work.effect
        try:
            try:
                async with asyncio.timeout(work.left_ms() / 1000):
                    await self._turn(work, before)
                    text = await (self._fence(work) if effect.action is FenceAction.FENCE else self._test(work))
                    work.left_ms()  # stopped meanwhile? Then it is too late, though all went well
            except TimeoutError:
                raise NotFenced(work.late()) from None
        except (NotFenced, NotRun, MessageError) as error:
            self._tell(effect, began_ns, False, self._safe(work, str(error)))
        except Exception as error:  # a defect here is one attempt's failure, not the node's
            self._log.exception("fencing_failed", node=effect.node, level=effect.level + 1)
            self._tell(effect, began_ns, False, f"defect: {type(error).__name__}")
        else:
            self._tell(effect, began_ns, True, self._safe(work, text))
            if effect.action is FenceAction.FENCE and self._comes_back(work):
                await self._switch_on(work, began_ns, text)
        finally:
            if self._works.get(effect.node) is work:
                del self._works[effect.node]

    async def _turn(self, work: _Work, before: _Work | None) -> None:
        """Have the devices of the node for this alone."""
        work.step = "waiting for what is done there already"
        if before and before.task and not before.task.done():
            if work.effect.action is FenceAction.FENCE:
                before.task.cancel()
                await asyncio.wait((before.task,), timeout=ENDING_S)
            else:
                await asyncio.wait((before.task,))
        if work.effect.action is FenceAction.TEST:
            self._works.setdefault(work.effect.node, work)
            if self._works[work.effect.node] is not work:
                raise NotFenced("its devices are being used")

    def _tell(self, effect: Fence, began_ns: int, ok: bool, text: str) -> None:
        took_us = (boottime_ns() - began_ns) // 1000
        self._host.tell(Fenced(effect.attempt, effect.node, effect.level, effect.action, ok, text, took_us))

    # --------------------------------------------------------------------------------------------------- fence, test

    async def _fence(self, work: _Work) -> str:
        if work.level.agent == PILL:
            return await self._pill(work, "off")
        off = await self._run(work, "off")
        if off.code:
            if not await self._unable(work, "off") or await self._unable(work, "reboot"):
                raise NotFenced(f"off: {self._how(work, off)}")
            reboot = await self._run(work, "reboot")
            if reboot.code:
                raise NotFenced(f"reboot (it knows no off): {self._how(work, reboot)}")
            return "rebooted: the agent knows no off, so that off could not be verified"
        return await self._verify(work)

    async def _verify(self, work: _Work) -> str:
        loop = asyncio.get_running_loop()
        began_s, pause_s = loop.time(), FIRST_POLL_S
        step = "off succeeded; its status was asked for"
        while True:
            status = await self._run(work, "status", step)
            if status.code == OFF:
                return "off, verified by its status"
            if status.code != ON and await self._unable(work, "status"):
                return "off by the agent's word: it knows no status to verify it by"
            said = "on" if status.code == ON else self._how(work, status)
            work.step = step = f"off succeeded, but {loop.time() - began_s:.1f} s later its status was: {said}"
            await asyncio.sleep(pause_s)
            pause_s = min(LAST_POLL_S, pause_s * 1.5)

    async def _test(self, work: _Work) -> str:
        if work.level.agent == PILL:
            return await self._pill(work, "status")
        status = await self._run(work, "status")
        if status.code in (ON, OFF):
            return f"status {'on' if status.code == ON else 'off'}"
        if not await self._unable(work, "status"):
            raise NotFenced(f"status: {self._how(work, status)}")
        monitor = await self._run(work, "monitor")
        if monitor.code in (ON, OFF):
            return "monitor is well (the agent knows no status)"
        raise NotFenced(f"monitor: {self._how(work, monitor)}")

    async def _pill(self, work: _Work, action: str) -> str:
        """The built-in agent: the victim's own guardian says that it has ended everything, or that it would."""
        exited = await self._run(work, action, "the pill was not acknowledged")
        said = _one_line(exited.output_tail)
        if exited.code or exited.signal:
            raise NotFenced(said or how_it_ended(exited))
        return said

    def _comes_back(self, work: _Work) -> bool:
        """Only from a power cut: a node that was cut off lives, and would go on with what it had."""
        return work.level.action == "reboot" and work.level.cuts == "power" and work.level.agent != PILL

    async def _switch_on(self, work: _Work, began_ns: int, text: str) -> None:
        """The fence has happened. What comes of this is told by a second Fenced of the same attempt."""
        work.deadline_ns = boottime_ns() + work.effect.timeout_ms * MS
        failed = ""
        try:
            on = await self._run(work, "on")
            if on.code:
                failed = f"on: {self._how(work, on)}"
        except (NotFenced, NotRun, MessageError) as error:
            failed = str(error)
        if failed:
            failed = self._safe(work, failed)
            self._log.warning("node_not_switched_on", peer=work.effect.node, why=failed, next="switch it on by hand")
        self._tell(
            work.effect, began_ns, True, f"{text}; {f'NOT switched on again: {failed}' if failed else 'on again'}"
        )

    # ------------------------------------------------------------------------------------------------------ the agent

    async def _run(self, work: _Work, action: str, step: str = "") -> Exited:
        """One action of the agent. Raises NotRun; NotFenced: it was ended at the time limit, or can't be told."""
        work.step = step or f"{action} did not end"
        given = {**work.level.options, **work.level.secrets, "action": action}
        argv: tuple[str, ...] = (work.level.agent,)
        if work.level.agent == PILL:
            arbiter, argv = self.config.arbiter, PILL_AGENT
            given |= {"device": arbiter.device, "cluster": self.config.cluster, "attacker": self._node,
                      "victim": work.effect.node, "until_ns": str(work.deadline_ns)}  # fmt: skip
        if any("\n" in text or "\0" in text for pair in given.items() for text in pair):
            raise NotFenced("an option has a line break in it, which can't be handed to a fence agent")
        stdin = "".join(f"{key}={value}\n" for key, value in given.items())
        exited = await self._host.fence_agent(argv, stdin, work.left_ms())
        if exited.timed_out:
            raise NotFenced(work.late())
        return exited

    async def _unable(self, work: _Work, action: str) -> bool:
        """Does the agent's metadata say that it does not know this action? False also where nothing is known.

        Asked only when something went wrong: no fence waits for it.
        """
        agent = work.level.agent
        if agent not in self._actions:
            step = work.step
            said = (await self._run(work, "metadata")).output_tail
            work.step = step
            if "<actions" not in said:
                return False
            self._actions[agent] = frozenset(_ACTION.findall(said))
        return action not in self._actions[agent]

    def _how(self, work: _Work, exited: Exited) -> str:
        """How it ended, with the end of what it printed, without secrets."""
        return how_it_ended(replace(exited, output_tail=self._masked(work, exited.output_tail)))

    def _masked(self, work: _Work, tail: str) -> str:
        """Also without the rest of a secret whose beginning was not kept: what a program prints is cut at TAIL octets."""
        if len(tail.encode()) >= TAIL:
            rests = {secret[cut:] for secret in _forms(work.level) for cut in range(1, len(secret))}
            rest = max((rest for rest in rests if tail.startswith(rest)), key=len, default="")
            tail = (MASK if rest else "") + tail[len(rest) :]
        return self._safe(work, tail)

    @staticmethod
    def _safe(work: _Work, text: str) -> str:
        for secret in _forms(work.level):
            text = text.replace(secret, MASK)
        return text


def _one_line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _forms(level: settings.FenceLevel) -> list[str]:
    """The secrets of a level as they may occur in what its agent prints, the longest first: one may be part of another."""
    words = {word for value in level.secrets.values() for word in (value, quote(value), quote(value, safe=""))}
    return sorted(filter(None, words), key=len, reverse=True)
