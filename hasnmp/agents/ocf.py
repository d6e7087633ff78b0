"""The ocf agent: resource agents of the Open Cluster Framework (resource agent API 1.1), as Debian's resource-agents has them.

An action is a program of its own that ends. What a start leaves running is in the service's control group: it ends with the
group's lease, whatever the agent thinks of it. A service is up when a start ended with 0 and its check says so; it is down
when a stop ended with 0 (or 7: it did not run), and what that left is then ended by force (runtime/programs.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import NamedTuple

from hasnmp import settings
from hasnmp.agents import checks, ocf_metadata
from hasnmp.agents.checks import Verdict
from hasnmp.agents.host import Host, NotRun, Program, how_it_ended
from hasnmp.config_ocf import outlives, parts
from hasnmp.core.events import Act, Outcome
from hasnmp.runtime.messages import AddressOp, Exited, Purpose, Running
from hasnmp.runtime.netlink import NETLINK_ROUTE, Netlink, addresses

FIRST_POLL_S, LAST_POLL_S = 0.01, 0.25  # between two looks at whether a starting service answers: grows by half
MARGIN_S = 0.05  # the answer comes so long before the caller's time limit, so that it says what was wrong
REASON = "ocf-exit-reason:"  # what an agent prints before the reason of its exit status

# Exit statuses (resource agent API 1.1, "Exit Status Codes") in words.
OK, FAILED, NOT_INSTALLED, NOT_RUNNING, DEGRADED = 0, 1, 5, 7, 190
RUNS = (0, 8, 9, 190, 191)  # a monitor's, of a service that is there
WORDS = {
    2: "an option is wrong", 3: "the agent does not have this action", 4: "it lacks a permission",
    5: "what it needs is not installed here", 6: "it is not configured well", 7: "not running", 8: "runs promoted",
    9: "failed while promoted", 190: "degraded", 191: "runs promoted, degraded",
}  # fmt: skip


class Said(NamedTuple):
    """What came of an action. code: its exit status, -1 if it did not come to that."""

    code: int
    outcome: Outcome
    text: str


def said(action: str, exited: Exited, limit_s: float) -> Said:
    """An action's end in words."""
    if exited.timed_out:
        return Said(-1, Outcome.TIMED_OUT, f"no end within {limit_s:.1f} s{_why(exited, '; ') or _tail(exited)}")
    if exited.signal:
        return Said(-1, Outcome.FAILED, how_it_ended(exited))
    code = exited.code
    if code == OK:
        return Said(code, Outcome.OK, "done")
    meaning = WORDS.get(code, "a status that the API does not have")
    status = f"exit status {code}" if code == FAILED else f"{meaning} (exit status {code})"
    text = f"{status}{_why(exited, ': ') or _tail(exited)}"
    if code == DEGRADED and action == "monitor":
        return Said(code, Outcome.OK, f"degraded{_why(exited, ': ')}")
    outcome = {NOT_INSTALLED: Outcome.MISSING, NOT_RUNNING: Outcome.NOT_RUNNING}.get(code, Outcome.FAILED)
    return Said(code, outcome, text)


def _why(exited: Exited, before: str) -> str:
    """The last reason that the agent printed, "" if none."""
    reasons = [line for line in exited.output_tail.splitlines() if REASON in line]
    return before + _clean(reasons[-1].partition(REASON)[2])[:300] if reasons else ""


def _tail(exited: Exited) -> str:
    lines = [line for line in map(_clean, exited.output_tail.splitlines()) if line]
    return f"; last output: {lines[-1][-200:]}" if lines else ""


def _clean(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def make_folders(host: Host) -> None:
    """Where agents keep their state until the next boot."""
    try:
        os.makedirs(
            f"{ocf_metadata.state_dir(host.here.run_dir, host.here.node)}/attributes", mode=0o755, exist_ok=True
        )
    except OSError as error:
        host.log.error("folder_not_made", path=error.filename, why=error.strerror, next="OCF agents will say so")


class OcfAgent:
    def __init__(self, service: settings.Service, host: Host) -> None:
        self._service, self._host, self.group, self.ip = service, host, service.group, service.ip
        _, self._provider, self._type = parts(service.agent)
        self._path = ocf_metadata.path(service.agent)
        self._last: Program | None = None  # the last action: no two of them run at the same time
        self._last_action = ""
        # Held until an action's program is known: a stop must find the monitor that is just beginning.
        self._beginning = asyncio.Lock()
        self._up = False  # a start ended well and no stop has since
        self.begun = False  # a start began and no stop has ended well since
        if service.ip:
            host.on_address_lost(service.name, self._address_lost)
        self._asker = checks.Asker(service, host)

    @property
    def outside(self) -> str:
        """What it may have set up that no force ends, "" if nothing."""
        service = self._service
        kept = self.begun and outlives(service.agent) and not service.mounts
        return f"what {service.name} ({service.agent}) set up" if kept else ""

    def adopt_up(self) -> None:
        """A start of it ended well before this engine's own."""
        self._up = self.begun = True

    def adopt(self, running: Running) -> None:
        """An action from before this engine's start: it is waited for before the next one."""
        self._last, self._last_action = self._host.adopt(running), str(running.purpose)
        self.begun = True

    async def end_what_has_no_lease(self) -> None:
        """At the engine's start: what runs here although no start of ours began it (a boot did, or an administrator) is
        stopped, for a service runs where its group's lease is."""
        until_s = asyncio.get_running_loop().time() + self._service.check.timeout_ms / 1000
        found = await self._do("monitor", Purpose.CHECK, until_s, probe=True)
        if found.code not in RUNS or self._up or self._host.lease_alive(self.group):
            return
        name = self._service.name
        self._host.log.error(
            "service_runs_without_lease", service=name, agent=self._service.agent, next="it is stopped"
        )
        until_s = asyncio.get_running_loop().time() + self._service.stop_timeout_ms / 1000
        ended = await self._do("stop", Purpose.CHECK, until_s)  # of another purpose it would need the lease
        self._host.log.warning("stray_service_ended", service=name, how=ended.text)

    # ----------------------------------------------------------------------------------------------------- actions

    async def start(self, act: Act) -> Verdict:
        until_s = _until(act)
        self.begun = True
        self._asker.begin()
        answer = await self._do("start", Purpose.START, until_s)
        if answer.code != OK:
            outcome = Outcome.FAILED if answer.outcome is Outcome.NOT_RUNNING else answer.outcome
            return Verdict(outcome, answer.text)
        self._up = True
        if self._service.ip and (problem := await self._bind()):
            return Verdict(Outcome.FAILED, problem)
        return await self._until_good(until_s)

    async def _bind(self) -> str:
        """Have the guardian bind the address that the agent put up to the lease, as it does with its own: the kernel ends it
        with that, whatever happens to everybody here. Gives why not, "" if done."""
        with contextlib.closing(Netlink(NETLINK_ROUTE)) as route:
            row = next((row for row in addresses(route) if row.ip == self._service.ip), None)
        if row is None:
            return f"{self._service.ip}: start said that it is done, but the address is on no interface"
        interface = socket.if_indextoname(row.index)
        done = await self._host.address(self._service, AddressOp.ADD, row.ip, row.prefix, interface)
        return "" if done.ok else f"{self._service.ip} on {interface}: {done.text}"

    def _address_lost(self, text: str) -> None:
        if self._up:
            self._host.exited_by_itself(self._service, 0, text)

    async def _until_good(self, until_s: float) -> Verdict:
        """Ask the service until it answers well, or the time is over."""
        loop = asyncio.get_running_loop()
        pause_s, last = FIRST_POLL_S, "none was finished"
        while (left_s := until_s - loop.time()) > 0:
            try:
                async with asyncio.timeout(left_s):
                    verdict = await self._look(until_s)
            except TimeoutError:
                break
            if verdict.outcome in (Outcome.OK, Outcome.MISSING):
                return verdict
            last = verdict.message
            await asyncio.sleep(min(pause_s, max(0.0, until_s - loop.time())))
            pause_s = min(LAST_POLL_S, pause_s * 1.5)
        return Verdict(Outcome.TIMED_OUT, f"started, but not up within its time; last check: {last}")

    async def stop(self, act: Act) -> Verdict:
        if self._service.ip:
            done = await self._host.address(self._service, AddressOp.REMOVE, self._service.ip, 0, "")
            if not done.ok:
                return Verdict(Outcome.FAILED, f"{self._service.ip}: {done.text}")
        async with self._asker.closing():
            answer = await self._do("stop", Purpose.STOP, _until(act))
        if answer.code in (OK, NOT_RUNNING):
            self._up = self.begun = False
            return Verdict(Outcome.OK, "stopped" if answer.code == OK else "was not running")
        if answer.outcome is Outcome.MISSING and not self._up:
            self.begun = False
            return Verdict(Outcome.OK, f"was not started: {answer.text}")
        return Verdict(answer.outcome, answer.text)

    def glance(self, act: Act) -> Verdict | None:
        return None if act.owned else Verdict(Outcome.OK, "not run here")

    async def check(self, act: Act) -> Verdict:
        return await self._look(_until(act))

    async def _look(self, until_s: float) -> Verdict:
        if self._service.check.type != "monitor":
            left_ms = int((until_s - asyncio.get_running_loop().time()) * 1000)
            return await self._asker.ask(min(max(10, left_ms), self._service.check.timeout_ms))
        answer = await self._do("monitor", Purpose.CHECK, until_s)
        return Verdict(answer.outcome, "runs" if answer.code == OK else answer.text)

    # --------------------------------------------------------------------------------------------------- one action

    async def _do(self, action: str, purpose: Purpose, until_s: float, probe: bool = False) -> Said:
        """Run an action to its end. A stop ends a monitor that is under way; anything else is waited for."""
        loop = asyncio.get_running_loop()
        async with self._beginning:
            last = self._last
            if last is not None and last.alive:
                if self._last_action == "monitor" and action != "monitor":
                    self._host.end(last)
                await asyncio.wait((last.exited,), timeout=max(0.0, until_s - loop.time()))
                if last.alive:
                    return Said(-1, Outcome.TIMED_OUT, f"the former {self._last_action} has not ended yet")
            limit_s = max(0.01, until_s - loop.time())
            try:
                program = await self._host.run(
                    self._service, self._program(action), purpose,
                    env=self._environment(action, limit_s, probe), timeout_ms=int(limit_s * 1000),
                )  # fmt: skip
            except NotRun as error:
                return Said(-1, error.outcome, str(error))
            self._last, self._last_action = program, action
        try:
            return said(action, await asyncio.shield(program.exited), limit_s)
        except asyncio.CancelledError:
            self._host.end(program)
            raise

    def _program(self, action: str) -> tuple[str, ...]:
        return (self._path, action)

    def _environment(self, action: str, limit_s: float, probe: bool) -> dict[str, str]:
        here = self._host.here
        return ocf_metadata.environment(
            self._service, action, here.run_dir, here.node, here.nodes, int(limit_s * 1000), probe
        )  # fmt: skip


def _until(act: Act) -> float:
    """When the answer must be there, by the loop's clock: a little before the caller's time is over."""
    return asyncio.get_running_loop().time() + max(MARGIN_S, act.timeout_ms / 1000 - MARGIN_S)
