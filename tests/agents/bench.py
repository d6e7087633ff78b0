"""A guardian for agents to stand on: it runs real programs, within the test's own loop, and keeps what it was asked."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import tempfile
import time
from typing import Any

import structlog

from hasnmp import settings
from hasnmp.agents.acting import Agents
from hasnmp.agents.host import Here, Host
from hasnmp.core.events import Act, Action, AgentResult, Event, HeldLease, Outcome, ServiceExited
from hasnmp.runtime import messages


def service(
    name: str = "web", agent: str = "exec", check: settings.Check | None = None, **options: Any
) -> settings.Service:
    return settings.Service(name, "g", agent, options, check=check or settings.Check())


class Bench:
    """Agents of some services, with everything that they told the engine in `events`."""

    def __init__(self, *services: settings.Service, here: Here = Here()) -> None:
        self.events: list[Event] = []
        self.sent: list[messages.FromEngine] = []
        self.refuse: dict[str, messages.RunFailed] = {}
        self.deaf = False  # the guardian doesn't answer
        self.address_text = ""  # why an address can't be added
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._attempt = 0
        log = structlog.get_logger()
        self.host = Host(1, self._send, self.events.append, log, here)
        self.lease_until(time.clock_gettime_ns(time.CLOCK_BOOTTIME) + 3600 * 10**9)
        self.agents = Agents(services, self.host, log)

    def lease_until(self, until_ns: int) -> None:
        """The lease of group g as the guardian acknowledged it last, under a new token."""
        self.host.released("g")
        self.host.extended((HeldLease("g", 1, until_ns),))

    async def act(self, name: str, action: Action, timeout_ms: int = 10_000, owned: bool = True) -> AgentResult:
        """Do one Act and wait for its result."""
        self._attempt += 1
        attempt = self._attempt
        self.agents.act(Act(attempt, name, action, timeout_ms, owned))

        def result() -> AgentResult | None:
            return next((e for e in self.events if isinstance(e, AgentResult) and e.attempt == attempt), None)

        await self.until(lambda: result() is not None, timeout_ms / 1000 + 10)
        found = result()
        assert found is not None
        return found

    async def until(self, true: Any, seconds: float = 20.0) -> None:
        end_s = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end_s, f"not within {seconds} s; events: {self.events}"
            await asyncio.sleep(0.002)

    def alive(self) -> list[int]:
        """The programs that run now, by their pids."""
        return [process.pid for process in self._processes.values()]

    def exits(self) -> list[ServiceExited]:
        return [e for e in self.events if isinstance(e, ServiceExited)]

    async def close(self) -> None:
        self.agents.close()
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        await asyncio.gather(*self._tasks)

    # --------------------------------------------------------------------------------------------- as the guardian

    def _kill(self, run: int, number: int) -> None:
        if run in self._processes:
            with contextlib.suppress(ProcessLookupError):  # it has ended, and is told of in a moment
                os.killpg(self._processes[run].pid, number)

    def _send(self, message: messages.FromEngine) -> None:
        messages.encode(message)  # what is too long for the guardian can't be said
        self.sent.append(message)
        if self.deaf:
            return
        match message:
            case messages.Run():
                task = asyncio.get_running_loop().create_task(self._run(message))
                self._tasks.add(task)
            case messages.Signal(run, number):
                self._kill(run, number)
            case messages.End(run):
                self._kill(run, signal.SIGKILL)
            case messages.Address(op, name):
                done = messages.AddressDone(name, op, not self.address_text, self.address_text)
                asyncio.get_running_loop().call_soon(self.host.handle, done)

    async def _run(self, run: messages.Run) -> None:
        if run.service in self.refuse:
            self.host.handle(self.refuse[run.service])
            return
        began_ns = time.monotonic_ns()
        # What a start leaves running keeps its output open, and is nothing to wait for.
        told = tempfile.TemporaryFile() if run.purpose is messages.Purpose.START else None
        try:
            process = await asyncio.create_subprocess_exec(
                *run.argv, env={**os.environ, **run.env}, cwd=run.cwd or None, start_new_session=True,
                stdin=asyncio.subprocess.PIPE if run.stdin else asyncio.subprocess.DEVNULL, stdout=told or asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            )  # fmt: skip
        except OSError as error:
            self.host.handle(messages.RunFailed(run.run, Outcome.MISSING, f"{run.argv[0]}: {error.strerror}"))
            return
        self._processes[run.run] = process
        self.host.handle(messages.RunStarted(run.run, process.pid))
        timed_out = False
        try:
            output, _ = await asyncio.wait_for(
                process.communicate(run.stdin.encode() or None), run.timeout_ms / 1000 or None
            )
        except TimeoutError:
            timed_out, output = True, None
            with contextlib.suppress(ProcessLookupError):  # ended by an End at the same moment
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        del self._processes[run.run]
        code = process.returncode or 0
        if told:
            with told:
                told.seek(0)
                output = told.read()
        self.host.handle(
            messages.Exited(
                run.run, run.group, run.service, run.purpose, process.pid, -1 if code < 0 else code, max(0, -code),
                (output or b"")[-1024:].decode(), (time.monotonic_ns() - began_ns) // 1000, timed_out,
            )
        )  # fmt: skip
