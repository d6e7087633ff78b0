"""The exec agent: a program in the foreground, run by the guardian, which ends all of it that outlives its stop.

Options: command, env, cwd, user, oom_score_adjust, stop_signal, stop_command (run in place of the signal). A started service is one whose program was executed
and whose check passes; with the check `process`, one whose program still lives after SETTLE_S, or, where it is not critical,
one whose program was executed: no other service waits for it.
"""

from __future__ import annotations

import asyncio
import signal

from hasnmp import settings
from hasnmp.agents import checks
from hasnmp.agents.checks import Verdict
from hasnmp.agents.host import Host, NotRun, Program, how_it_ended
from hasnmp.core.events import Act, Outcome
from hasnmp.runtime.messages import Exited, Purpose, Running

SETTLE_S = 0.02  # a program that ends sooner has not started; a longer wait would be part of every failover
# Between two looks at whether a starting service answers: a tenth of the time that it has had, for that is how much later than
# need be its group goes on.
FIRST_POLL_S, LAST_POLL_S, POLL_PART = 0.01, 0.25, 0.1
FORCE_PART = 0.25  # of the stop's time limit is kept for ending by force ...
FORCE_S = 2.0  # ... but not more than this


class ExecAgent:
    def __init__(self, service: settings.Service, host: Host) -> None:
        self._service, self._host = service, host
        options = service.options
        self._command = tuple(options["command"])
        self._stop_command = tuple(options.get("stop_command") or ())
        self._env = {str(k): str(v) for k, v in (options.get("env") or {}).items()}
        self._cwd, self._user = str(options.get("cwd") or ""), str(options.get("user") or "")
        self._stop_signal = signal.Signals[f"SIG{options.get('stop_signal') or 'TERM'}"]
        self._oom_score_adjust = int(options.get("oom_score_adjust") or 0)
        self._program: Program | None = None
        self._at_once = True  # its check may be answered at a glance
        self._asker = checks.Asker(service, host)

    def adopt(self, running: Running) -> None:
        """Go on with a program from before this engine's start."""
        self._watch(self._host.adopt(running))

    async def start(self, act: Act) -> Verdict:
        loop = asyncio.get_running_loop()
        until_s = loop.time() + _inner_s(act)
        self._asker.begin()
        if self._program is None or not self._program.alive:
            try:
                program = await self._host.run(
                    self._service, self._command, Purpose.SERVICE, env=self._env, cwd=self._cwd, user=self._user,
                    oom_score_adjust=self._oom_score_adjust,
                )  # fmt: skip
            except NotRun as error:
                return Verdict(error.outcome, str(error))
            self._program = program
        program = self._program
        verdict = Verdict(Outcome.OK, "runs", program.pid)
        if self._service.check.type == "process":
            if self._service.critical:
                await asyncio.wait((program.exited,), timeout=SETTLE_S)
        else:
            verdict = await self._until_good(program, until_s)
        if not program.alive:
            self._program = None
            return Verdict(Outcome.FAILED, f"ended at its start: {how_it_ended(program.exited.result())}")
        if verdict.outcome is Outcome.OK:
            # From here on its end is news; before, it was the start's result.
            self._watch(program)
        return verdict._replace(pid=program.pid)

    async def _until_good(self, program: Program, until_s: float) -> Verdict:
        """Ask the service until it answers well, ends, or the time is over."""
        loop = asyncio.get_running_loop()
        began_s, last = loop.time(), "none was finished"
        while program.alive:
            left_s = until_s - loop.time()
            if left_s <= 0:
                return Verdict(Outcome.TIMED_OUT, f"not up within {until_s - began_s:.1f} s; last check: {last}")
            try:
                async with asyncio.timeout(min(left_s, self._service.check.timeout_ms / 1000)):
                    verdict = await self._asker.ask(self._service.check.timeout_ms)
            except TimeoutError:
                verdict = Verdict(Outcome.TIMED_OUT, "timed out")
            if verdict.outcome in (Outcome.OK, Outcome.MISSING):
                return verdict  # a check that is not installed never gets good by waiting
            last = verdict.message
            now_s = loop.time()
            pause_s = min(LAST_POLL_S, max(FIRST_POLL_S, (now_s - began_s) * POLL_PART))
            await asyncio.wait((program.exited,), timeout=min(pause_s, max(0.0, until_s - now_s)))
        return Verdict(Outcome.FAILED, last)

    async def stop(self, act: Act) -> Verdict:
        async with self._asker.closing():
            return await self._stop(act)

    async def _stop(self, act: Act) -> Verdict:
        program = self._program
        if program is None or not program.alive:
            self._program = None
            return Verdict(Outcome.OK, "was not running")
        program.on_exit = None  # its end is wanted now
        limit_s = _inner_s(act)
        force_s = min(FORCE_S, limit_s * FORCE_PART)
        note = await self._ask_to_stop(program, limit_s - force_s)
        if program.alive:
            self._host.end(program)
            await asyncio.wait((program.exited,), timeout=force_s)
            note = f"ended by force after {limit_s - force_s:.1f} s{note}"
        if program.alive:
            return Verdict(Outcome.TIMED_OUT, f"parts of it are left after {limit_s:.1f} s{note}", program.pid)
        self._program = None
        return Verdict(Outcome.OK, note.strip("; ") or "stopped")

    async def _ask_to_stop(self, program: Program, time_s: float) -> str:
        """Stop in order, waiting at most time_s. Returns what there is to say about it, "" or "; ..."."""
        loop = asyncio.get_running_loop()
        until_s, note = loop.time() + time_s, ""
        if self._stop_command:
            try:
                async with asyncio.timeout(time_s):
                    exited = await self._host.output(
                        self._service, self._stop_command, Purpose.STOP, int(time_s * 1000),
                        env=self._env, cwd=self._cwd, user=self._user,
                    )  # fmt: skip
                note = f"; stop_command: {how_it_ended(exited)}" if exited.code else ""
            except TimeoutError:
                note = "; stop_command: timed out"
            except NotRun as error:
                note = f"; stop_command: {error}"
        if not self._stop_command or note:
            self._host.signal(program, self._stop_signal)  # also when the command went wrong: never leave it unasked
            # One that was stopped by SIGSTOP hears of it only so: else it would cost the whole limit, and its end by force.
            self._host.signal(program, signal.SIGCONT)
        await asyncio.wait((program.exited,), timeout=max(0.0, until_s - loop.time()))
        return note

    def glance(self, act: Act) -> Verdict | None:
        if not act.owned:
            # Whether the program is there can't be asked: it may lie on a disk that comes with the group, and a
            # dead network disk would block the question.
            return Verdict(Outcome.OK, "not run here")
        program = self._program
        if program is None or not program.alive:
            return Verdict(Outcome.NOT_RUNNING, "its program does not run")
        if self._service.check.type == "process":
            return Verdict(Outcome.OK, "its program lives", program.pid)
        if not self._at_once:
            return None
        verdict = checks.glance(self._service.check)
        self._at_once = verdict is not None  # once was enough to know that it has to be waited for
        return verdict._replace(pid=program.pid) if verdict is not None else None

    async def check(self, act: Act) -> Verdict:
        pid = self._program.pid if self._program is not None else 0
        verdict = await self._asker.ask(act.timeout_ms)
        return verdict._replace(pid=pid)

    def _watch(self, program: Program) -> None:
        self._program = program
        program.on_exit = self._ended

    def _ended(self, exited: Exited) -> None:
        self._program = None
        self._host.exited_by_itself(self._service, exited.pid, how_it_ended(exited))


def _inner_s(act: Act) -> float:
    """Seconds that the agent may use: a little less than the caller allows, so that the answer says what was wrong."""
    return max(0.01, act.timeout_ms / 1000 - 0.05)
