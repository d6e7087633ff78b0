"""From Act to AgentResult: each service's agent, and the tasks in which they work. An agent never blocks the loop, and
whatever it does, its answer comes within the time that the Act gives it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, Protocol

from hasnmp import settings
from hasnmp.agents import ocf
from hasnmp.agents.address import AddressAgent
from hasnmp.agents.checks import Verdict
from hasnmp.agents.exec import ExecAgent
from hasnmp.agents.filesystem import FilesystemAgent
from hasnmp.agents.host import Host
from hasnmp.agents.ocf import OcfAgent
from hasnmp.agents.passive import PassiveAgent
from hasnmp.agents.systemd import SystemdAgent
from hasnmp.core.events import Act, Action, Adopted, AgentResult, Outcome
from hasnmp.runtime.kernel import boottime_ns
from hasnmp.runtime.messages import HeldAddress, Purpose, Running

LATE_S = 0.02  # who looks at the clock so much later than it was due stood still: the machine did, or this loop


class Agent(Protocol):
    """What handles one service. A call may be cancelled at any point: its time was over.

    glance: the answer to a check if it is known at once and without waiting (most are: the cheapest of all checks), None
    if check must ask. With act.owned False both look only at what can be known without running the service.
    """

    async def start(self, act: Act) -> Verdict: ...
    async def stop(self, act: Act) -> Verdict: ...
    def glance(self, act: Act) -> Verdict | None: ...
    async def check(self, act: Act) -> Verdict: ...


AGENTS: dict[str, type] = {
    "exec": ExecAgent, "address": AddressAgent, "filesystem": FilesystemAgent, "passive": PassiveAgent, "ocf": OcfAgent,
    "systemd": SystemdAgent,
}  # fmt: skip


class Agents:
    """The agents of every service of the configuration."""

    def __init__(self, services: tuple[settings.Service, ...], host: Host, log: Any) -> None:
        self._host, self._log = host, log
        self._agents: dict[str, Agent] = {s.name: AGENTS[s.kind](s, host) for s in services}
        self._tasks: set[asyncio.Task[None]] = set()
        if any(s.kind == "ocf" for s in services):
            ocf.make_folders(host)

    def adopt(
        self, running: tuple[Running, ...], addresses: tuple[HeldAddress, ...], groups: frozenset[str] = frozenset()
    ) -> tuple[Adopted, ...]:
        """Take over what the guardian runs from before this engine's start. Returns it as the engine is to hear it.
        groups: those with a live lease, whose file systems are adopted if they are mounted.

        What no configured service claims, and checks that nobody waits for any more, are ended; the guardian ends the
        rest with its group's lease.
        """
        adopted = []
        bound = {address.service for address in addresses}
        for program in running:
            agent = self._agents.get(program.service)
            if isinstance(agent, ExecAgent) and program.purpose is Purpose.SERVICE:
                agent.adopt(program)
                adopted.append(Adopted(program.service, program.pid, program.started_ns))
            elif isinstance(agent, OcfAgent) and program.purpose is Purpose.START and not program.run:
                # An address that no lease lets answer is not up, whatever its agent says: it is started again.
                if not agent.ip or program.service in bound:
                    agent.adopt_up()
                    adopted.append(Adopted(program.service, 0, program.started_ns))
            elif isinstance(agent, OcfAgent) and program.purpose in (Purpose.START, Purpose.STOP):
                agent.adopt(program)
            elif program.purpose is not Purpose.STOP and program.run:
                self._log.warning("stray_program_ended", service=program.service, pid=program.pid)
                self._host.end(self._host.adopt(program))
        for address in addresses:
            agent = self._agents.get(address.service)
            if isinstance(agent, AddressAgent):
                agent.adopt(address)
                adopted.append(Adopted(address.service, 0, address.since_ns))
        up = {row.service for row in adopted}
        for name, agent in self._agents.items():
            if isinstance(agent, OcfAgent) and name not in up and agent.group not in groups:
                self._keep(agent.end_what_has_no_lease())
        for name, mounted in self._agents.items():
            if isinstance(mounted, FilesystemAgent) and mounted.group in groups and mounted.mounted:
                adopted.append(Adopted(name, 0, boottime_ns()))
        return tuple(adopted)

    def act(self, act: Act) -> None:
        """Begin; the AgentResult comes later, after the effects that are being executed."""
        if act.action is Action.CHECK:
            began_ns = time.monotonic_ns()
            verdict = self._glance(act)
            if verdict is not None:
                self._answer(act, verdict, began_ns)
                return
        self._keep(self._do(act))

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)  # the loop itself holds tasks only weakly
        task.add_done_callback(self._tasks.discard)

    async def _do(self, act: Act) -> None:
        began_ns = time.monotonic_ns()
        loop = asyncio.get_running_loop()
        over_s = loop.time() + act.timeout_ms / 1000
        try:
            agent = self._agents[act.service]
            async with asyncio.timeout(None) as limit:

                def over() -> None:
                    # The agent's own limit, which comes a little sooner and tells what was wrong, may have passed only now, too.
                    now_s = loop.time()
                    limit.reschedule(now_s + LATE_S if now_s - over_s > LATE_S else now_s)

                timer = loop.call_at(over_s, over)
                try:
                    match act.action:
                        case Action.START:
                            verdict = await agent.start(act)
                        case Action.STOP:
                            verdict = await agent.stop(act)
                        case Action.CHECK:
                            verdict = await agent.check(act)
                finally:
                    timer.cancel()
        except TimeoutError:
            verdict = Verdict(Outcome.TIMED_OUT, f"{act.action} took longer than {act.timeout_ms} ms")
        except Exception as error:
            verdict = self._defect(act, error)
        self._answer(act, verdict, began_ns)

    def _glance(self, act: Act) -> Verdict | None:
        try:
            return self._agents[act.service].glance(act)
        except Exception as error:
            return self._defect(act, error)

    def _defect(self, act: Act, error: Exception) -> Verdict:
        """A defect in one agent is that service's failure, not the node's."""
        self._log.exception("agent_failed", service=act.service, action=act.action)
        return Verdict(Outcome.FAILED, f"defect in the agent: {error!r}")

    def _answer(self, act: Act, verdict: Verdict, began_ns: int) -> None:
        took_us = (time.monotonic_ns() - began_ns) // 1000
        self._host.tell(
            AgentResult(
                act.attempt, act.service, verdict.outcome, verdict.message, took_us, verdict.pid, verdict.killed
            )
        )  # fmt: skip

    def outside(self, groups: frozenset[str]) -> tuple[str, ...]:
        """What services of these groups may have set up that no force ends, a text each."""
        agents = (agent for agent in self._agents.values() if isinstance(agent, OcfAgent) and agent.group in groups)
        return tuple(agent.outside for agent in agents if agent.outside)

    def close(self) -> None:
        """End every task that is under way; nothing is told any more."""
        for task in self._tasks:
            task.cancel()
