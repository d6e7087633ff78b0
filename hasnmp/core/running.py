"""The services of one group on the node that owns it: start in order, check, restart, stop in reverse.

    IDLE -> STARTING -> RUNNING -> STOPPING -> IDLE        a stop that fails keeps STOPPING, `blocked`, until cleared

What a failure leads to beyond a restart - moving the group, excluding this node - is placement.py's to decide: here it is
only asked for (`move_wanted`, `start_failed`). Nothing is started or stopped here but through an effect with an attempt;
an answer to an older attempt is ignored.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from hasnmp.core.board import LOCKED, Registers, ServiceFacts
from hasnmp.core.context import MS, Context
from hasnmp.core.events import Act, Action, AgentResult, Outcome
from hasnmp.core.hooks import Hooks
from hasnmp.core.journal import Journal, clip
from hasnmp.model import GroupState, Kind, Reason, ServiceState
from hasnmp.settings import Group, Service

GRACE_MS = 2000  # beyond its own time limit, an action without an answer counts as timed out
SLOW_RETRY_MS = 10_000  # a service that used up its restarts and can't move is tried again so often


def brief(why: str) -> str:
    """Without what the program printed last: that stands whole in serviceFailed."""
    return why.split("; last output", 1)[0]


class Stage(Enum):
    IDLE = "idle"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"


@dataclass(slots=True)
class Run:
    """One service: what it is configured to be, what is known of it, and what is under way."""

    settings: Service
    facts: ServiceFacts
    action: Action | None = None
    attempt: int = 0
    deadline: int = 0
    check_at: int = 0
    retry_at: int = 0
    failing: int = 0  # checks that failed in a row
    restarting: bool = False  # the stop under way is followed by a start
    given_up: bool = False  # `then: stop`: it stays stopped until the administrator says otherwise
    retired: bool = False  # a new configuration does not have it like this: it stays stopped
    reported_ns: int = 0  # passive: the last good word
    probe_ok: bool = True  # of a group that another node owns: could it run here?
    probe_text: str = ""

    def idle(self) -> bool:
        """May a start or a stop be ordered? They never overlap."""
        return self.action not in (Action.START, Action.STOP)

    @property
    def passive(self) -> bool:
        return self.settings.agent == "passive"


@dataclass(slots=True)
class Running:
    group: Group
    me: str
    runs: list[Run]
    journal: Journal
    registers: Registers
    hooks: Hooks
    stage: Stage = Stage.IDLE
    stage_ns: int = 0
    blocked: bool = False
    announced: bool = False  # that all of it is up; an adopted group needs no announcement
    start_failed: str = ""  # why; placement decides: exclude and move on, or try again
    start_failed_of: str = ""  # which service
    move_wanted: str = ""  # why; a critical service used up its restarts
    told: set[str] = field(default_factory=set)  # services whose facts changed: peers are to be told

    # ---------------------------------------------------------------------------------------------- small helpers

    def frozen(self) -> bool:
        return bool(self.registers.get("freeze", self.group.name))

    def run(self, service: str) -> Run | None:
        return next((r for r in self.runs if r.settings.name == service), None)

    def state(self) -> GroupState:
        """The group's state as its owner."""
        if self.blocked:
            return GroupState.BLOCKED
        if self.stage is not Stage.RUNNING:
            return {
                Stage.IDLE: GroupState.STOPPED, Stage.STARTING: GroupState.STARTING, Stage.STOPPING: GroupState.STOPPING,
            }[self.stage]  # fmt: skip
        bad = any(r.facts.state is not ServiceState.RUNNING and not self._locked(r) for r in self.runs)
        return GroupState.DEGRADED if bad else GroupState.RUNNING

    def _locked(self, run: Run) -> bool:
        return run.retired or bool(self.registers.get(LOCKED, run.settings.name))

    def _become(self, run: Run, state: ServiceState, ctx: Context, message: str = "") -> None:
        facts = run.facts
        if facts.state is not state:
            facts.state, facts.changed_ns = state, ctx.now
            facts.transitions += 1
        facts.node, facts.message, facts.data_ns = self.me, clip(message), ctx.now
        self.told.add(run.settings.name)
        ctx.dirty = True

    def _act(self, run: Run, action: Action, ctx: Context, owned: bool = True) -> None:
        s = run.settings
        limit = {
            Action.START: s.start_timeout_ms, Action.STOP: s.stop_timeout_ms, Action.CHECK: s.check.timeout_ms,
        }[action]  # fmt: skip
        run.action, run.attempt = action, ctx.attempt()
        run.deadline = ctx.now + (limit + GRACE_MS) * MS
        ctx.wake(run.deadline)
        ctx.emit(Act(run.attempt, s.name, action, limit, owned))

    # ------------------------------------------------------------------------------------------------------ start

    def start(
        self, ctx: Context, adopted: dict[str, int], reason: Reason = Reason.NONE, text: str = "", going: bool = False
    ) -> None:
        """The lease is held. adopted: service -> pid of what runs already (an engine that was restarted). reason, text: for the
        hooks. going: it is stopped next, so nothing is started; what is not known to run is stopped too, for it may be that
        its stop was cut off."""
        self.stage, self.stage_ns, self.blocked = Stage.STARTING, ctx.now, False
        self.start_failed = self.move_wanted = ""
        self.announced = bool(adopted)
        for run in self.runs:
            if run.facts.node not in ("", self.me):
                run.facts.restarts.clear()  # each node has its own number of restarts
            run.failing, run.retry_at, run.restarting, run.given_up, run.action = 0, 0, False, False, None
            if adopted and not self._locked(run) if run.passive else run.settings.name in adopted:
                run.facts.pid = adopted.get(run.settings.name, 0)
                self._up(run, ctx, "adopted")
            else:
                self._become(run, ServiceState.STOPPING if going else ServiceState.STOPPED, ctx)
        self.hooks.cancel()
        if going:
            return
        if not adopted:
            self.hooks.begin(ctx, "before_start", reason, text)
        self._start_next(ctx)

    def _start_next(self, ctx: Context) -> None:
        """Start the next in order, or find that all are up."""
        if self.hooks.refused:
            self.start_failed, self.start_failed_of, self.hooks.refused = self.hooks.refused, "", ""
            ctx.dirty = True
        if self.hooks.on or self.start_failed:
            return
        for run in self.runs:
            if not run.idle() or self.start_failed or run.facts.state is ServiceState.STOP_FAILED:
                return
            if run.facts.state is ServiceState.STOPPED and not self._locked(run):
                if run.retry_at > ctx.now:
                    ctx.wake(run.retry_at)
                    return
                self._start_one(run, ctx)
                return
        self.stage, self.stage_ns = Stage.RUNNING, ctx.now
        ctx.dirty = True

    def _start_one(self, run: Run, ctx: Context) -> None:
        run.retry_at = 0
        self._become(run, ServiceState.STARTING, ctx)
        self._act(run, Action.START, ctx)

    def _up(self, run: Run, ctx: Context, message: str) -> None:
        self._become(run, ServiceState.RUNNING, ctx, message)
        run.failing, run.retry_at = 0, 0
        run.reported_ns = ctx.now
        run.check_at = self._in_step(run, ctx)
        self.journal.clear(
            ctx, Kind.SERVICE_RECOVERED, run.settings.name, f"service {run.settings.name} runs on {self.me}",
            group=self.group.name, service=run.settings.name, state=int(ServiceState.RUNNING),
            reason=Reason.SERVICE_RECOVERED,
        )  # fmt: skip

    # ------------------------------------------------------------------------------------------------------- stop

    def stop(self, ctx: Context, reason: Reason = Reason.NONE, text: str = "", to: str = "") -> None:
        """Stop everything in reverse order; `stopped()` tells when that is done. reason, text, to: for the hooks."""
        if self.stage is not Stage.STOPPING:
            self.hooks.cancel()
            if self.stage is Stage.RUNNING:
                self.hooks.begin(ctx, "before_stop", reason, text, to)
            self.stage, self.stage_ns = Stage.STOPPING, ctx.now
            self.start_failed = self.move_wanted = ""
            for run in self.runs:
                run.restarting = False
        ctx.dirty = True

    def stay(self, ctx: Context) -> None:
        """A hook keeps the group from being stopped: nothing was, yet."""
        self.stage, self.stage_ns, self.hooks.refused = Stage.RUNNING, ctx.now, ""
        ctx.dirty = True

    def stopped(self) -> bool:
        return not self.hooks.on and all(r.facts.state is ServiceState.STOPPED and r.action is None for r in self.runs)

    def _stop_next(self, ctx: Context) -> None:
        if self.hooks.on or self.hooks.refused:
            return
        for run in reversed(self.runs):
            if run.action in (Action.START, Action.STOP):
                return  # a start and a stop of one service never overlap: its answer, or its time limit, comes first
            run.action = None  # a check under way is of no interest any more
            if run.facts.state is ServiceState.STOP_FAILED:
                return
            if run.facts.state is not ServiceState.STOPPED:
                self._become(run, ServiceState.STOPPING, ctx, run.facts.message)
                self._act(run, Action.STOP, ctx)
                return

    def leftover(self, run: Run, text: str, ctx: Context) -> None:
        """The guardian still sees something of the group although every stop went well: that is a stop that failed."""
        run.action = None
        self._stop_failed(run, f"something of the group is left: {text}", ctx)

    def gone(self, ctx: Context) -> None:
        """The lease is over and the guardian confirmed that nothing runs."""
        self.stage, self.stage_ns, self.blocked = Stage.IDLE, ctx.now, False
        self.hooks.cancel()
        for run in self.runs:
            run.action = None
            run.facts.pid = 0
            if run.facts.state is not ServiceState.STOPPED:
                self._become(run, ServiceState.STOPPED, ctx, run.facts.message)

    # ---------------------------------------------------------------------------------------------------- results

    def result(self, answer: AgentResult, ctx: Context) -> None:
        run = self.run(answer.service)
        if run is None or run.action is None or answer.attempt != run.attempt:
            return
        action, run.action = run.action, None
        if action is Action.CHECK:
            self._checked(run, answer, ctx)
            ctx.wake(run.check_at)  # a good check changes nothing that anybody decides on
            return
        ctx.dirty = True
        if action is Action.START:
            self._started(run, answer, ctx)
        else:
            self._stopped(run, answer, ctx)

    def _started(self, run: Run, answer: AgentResult, ctx: Context) -> None:
        if answer.outcome is Outcome.OK:
            run.facts.pid = answer.pid
            again = run.restarting
            run.restarting = False
            self._up(run, ctx, answer.message)
            if again:
                self.journal.count("service_restarts")
                self.journal.happened(
                    ctx, Kind.SERVICE_RESTARTED, f"service {run.settings.name} was restarted on {self.me}",
                    group=self.group.name, service=run.settings.name, state=int(ServiceState.RUNNING),
                    reason=Reason.RESTART,
                )  # fmt: skip
        elif answer.outcome is Outcome.REFUSED:
            # The guardian has no live lease: either it ends the group now, or its answer crossed ours.
            run.restarting = False
            self._become(run, ServiceState.STOPPED, ctx, answer.message)
            run.retry_at = ctx.now + 100 * MS
        else:
            self._failed(run, f"start {answer.outcome}: {answer.message}".rstrip(": "), ctx)

    def _stopped(self, run: Run, answer: AgentResult, ctx: Context) -> None:
        name = run.settings.name
        if answer.killed:
            self.journal.happened(
                ctx, Kind.HOLDERS_KILLED, f"service {name} on {self.me}: killed for its stop: {answer.killed}",
                group=self.group.name, service=name,
            )  # fmt: skip
        if answer.outcome in (Outcome.OK, Outcome.NOT_RUNNING):
            run.facts.pid = 0
            self._become(run, ServiceState.STOPPED, ctx, run.facts.message)
            if self.blocked and all(r.facts.state is not ServiceState.STOP_FAILED for r in self.runs):
                self.blocked = False
                self.journal.clear(
                    ctx, Kind.GROUP_UNBLOCKED, self.group.name, f"group {self.group.name}: service {name} did stop",
                    group=self.group.name, service=name,
                )  # fmt: skip
            if run.restarting and self.stage is not Stage.STOPPING and not self._locked(run):
                self._start_one(run, ctx)
            return
        self._stop_failed(run, f"stop {answer.outcome}: {answer.message}".rstrip(": "), ctx)

    def _stop_failed(self, run: Run, why: str, ctx: Context) -> None:
        name = run.settings.name
        run.restarting = False
        self.blocked = True
        self._become(run, ServiceState.STOP_FAILED, ctx, why)
        self.journal.happened(
            ctx, Kind.SERVICE_STOP_FAILED, f"service {name} on {self.me}: {why}",
            group=self.group.name, service=name, state=int(ServiceState.STOP_FAILED), reason=Reason.STOP_FAILED,
        )  # fmt: skip
        self.journal.happened(
            ctx, Kind.GROUP_BLOCKED,
            f"group {self.group.name} keeps its lease on {self.me}, for service {name} could not be stopped; "
            f"end it by hand, then: hasnmp service clear {name}",
            of=self.group.name, group=self.group.name, service=name, state=int(GroupState.BLOCKED),
            reason=Reason.STOP_FAILED,
        )  # fmt: skip

    def _checked(self, run: Run, answer: AgentResult, ctx: Context) -> None:
        facts, check = run.facts, run.settings.check
        run.check_at = self._in_step(run, ctx)
        if self.stage is Stage.IDLE:
            fit = answer.outcome is Outcome.OK
            ctx.dirty |= fit is not run.probe_ok
            run.probe_ok, run.probe_text = fit, answer.message
            return
        facts.checks += 1
        facts.last_check_ns, facts.check_us = ctx.now, answer.took_us
        if answer.outcome is Outcome.OK:
            run.failing = 0
            if facts.state is ServiceState.FAILED and not run.restarting:
                self._up(run, ctx, answer.message)
            elif facts.message != answer.message:
                facts.message = clip(answer.message)
            return
        why = f"check {answer.outcome}: {answer.message}".rstrip(": ")
        run.failing += 1
        facts.message = clip(why)
        if facts.state is ServiceState.RUNNING and run.failing >= check.fail_after:
            self._failed(run, why, ctx)

    def _in_step(self, run: Run, ctx: Context) -> int:
        """When to check next: services with one interval are checked at one moment, for each wake-up costs."""
        step = min(run.settings.check.every_ms, 1000) * MS
        return -(-(ctx.now + run.settings.check.every_ms * MS - step // 2) // step) * step

    def exited(self, service: str, pid: int, message: str, ctx: Context) -> None:
        """A program ended by itself: known at once, whatever the check's interval."""
        run = self.run(service)
        if run is None or run.facts.state is not ServiceState.RUNNING or (run.facts.pid and run.facts.pid != pid):
            return
        run.action = None  # a check under way has nothing left to look at
        run.facts.pid = 0
        self._failed(run, f"ended by itself: {message}", ctx)

    def reported(self, service: str, up: bool, message: str, ctx: Context) -> None:
        """An outside agent's word on a passive service."""
        run = self.run(service)
        if run is None:
            return
        run.facts.checks += 1
        run.facts.last_check_ns = ctx.now
        if up:
            run.reported_ns = ctx.now
            if run.facts.state is ServiceState.FAILED:
                self._up(run, ctx, message)
            run.facts.message = clip(message)
            self.told.add(service)
        elif run.facts.state is ServiceState.RUNNING:
            self._failed(run, f"reported down: {message}".rstrip(": "), ctx)
        ctx.dirty = True

    # ---------------------------------------------------------------------------------------------------- failure

    def restarts_left(self, run: Run, ctx: Context) -> int:
        rule = run.settings.on_failure
        run.facts.restarts = ctx.lately(run.facts.restarts, rule.within_s)
        return 0 if run.passive else rule.restart - len(run.facts.restarts)

    def _failed(self, run: Run, why: str, ctx: Context) -> None:
        name = run.settings.name
        starting = run.facts.state is ServiceState.STARTING
        run.facts.failures += 1
        run.failing = 0
        run.check_at = self._in_step(run, ctx)
        self.journal.count("service_failures")
        previous = int(run.facts.state)
        self._become(run, ServiceState.FAILED, ctx, why)
        self.journal.happened(
            ctx, Kind.SERVICE_FAILED, f"service {name} on {self.me}: {why}", of=name, group=self.group.name,
            service=name, previous=previous, state=int(ServiceState.FAILED),
            reason=Reason.START_FAILED if starting else Reason.SERVICE_FAILED,
        )  # fmt: skip
        if self.stage is Stage.STOPPING:
            return
        if starting and self.stage is Stage.STARTING and run.settings.critical and not run.restarting:
            self.start_failed, self.start_failed_of = f"service {name}: {brief(why)}", name
            return
        run.restarting = False
        self.handle(run, ctx)

    def handle(self, run: Run, ctx: Context) -> None:
        """A service stands failed: restart it, or what `then` says. Called again when a freeze ends."""
        if self.frozen():
            return
        name, rule = run.settings.name, run.settings.on_failure
        if self.restarts_left(run, ctx) > 0:
            self.restart(run, ctx)
        elif rule.then == "stop":
            run.given_up = True
            self._stop_one(run, ctx)
        elif rule.then == "failover" and run.settings.critical:
            self.move_wanted = f"service {name}: {brief(run.facts.message)}"
        if rule.then != "stop":
            run.retry_at = ctx.now + SLOW_RETRY_MS * MS
        ctx.dirty = True

    def restart(self, run: Run, ctx: Context, counted: bool = True) -> None:
        """Stop it (whatever is left of it), then start it."""
        if counted:
            run.facts.restarts.append(ctx.wall_ms())
        run.restarting = True
        self._stop_one(run, ctx)

    def _stop_one(self, run: Run, ctx: Context) -> None:
        message = run.facts.message
        if run.facts.state is not ServiceState.FAILED:
            self._become(run, ServiceState.STOPPING, ctx, message)
        self._act(run, Action.STOP, ctx)

    # ------------------------------------------------------------------------------------- the administrator's word

    def lock(self, run: Run, ctx: Context) -> None:
        """`hasnmp service stop`: it stays stopped, and the group runs without it."""
        run.restarting = False
        why = "for a new configuration" if run.retired else "by command"
        by = self.registers.get(LOCKED, run.settings.name)
        run.facts.message = clip(f"stopped {why}" + (f": {by}" if by else ""))
        self.journal.clear(
            ctx, Kind.SERVICE_RECOVERED, run.settings.name, f"service {run.settings.name} was stopped {why}",
            group=self.group.name, service=run.settings.name, reason=Reason.OPERATOR,
        )  # fmt: skip
        if run.action is not Action.START:
            self._stop_one(run, ctx)

    def reconcile(self, ctx: Context) -> None:
        """Bring each service to what the administrator wants of it (a register, set on whichever node)."""
        if self.stage not in (Stage.STARTING, Stage.RUNNING):
            return
        for run in self.runs:
            if self._locked(run):
                if run.facts.state in (ServiceState.RUNNING, ServiceState.FAILED) and run.action is not Action.STOP:
                    self.lock(run, ctx)
                continue
            self.unlock(run, ctx)
            waits = run.facts.state is ServiceState.FAILED and run.action is None and not run.retry_at
            if waits and not self.start_failed and not self.move_wanted and not self.frozen():
                self.handle(run, ctx)  # it failed while the group was frozen

    def unlock(self, run: Run, ctx: Context) -> None:
        idle = run.facts.state is ServiceState.STOPPED and run.action is None and not run.retry_at
        if self.stage is Stage.RUNNING and idle and not run.given_up:
            self._start_one(run, ctx)

    def cleared(self, ctx: Context) -> None:
        """`hasnmp service clear`: forget the failures that stand, and try again what stands failed."""
        for run in self.runs:
            run.facts.restarts.clear()
            run.given_up = False
            if run.facts.state is ServiceState.STOP_FAILED and run.action is None:
                self._stop_one(run, ctx)
            elif run.facts.state is ServiceState.FAILED and run.action is None and self.stage is Stage.RUNNING:
                self.restart(run, ctx, counted=False)
        self.move_wanted = ""
        ctx.dirty = True

    # ------------------------------------------------------------------------------------------------------- time

    def look(self, ctx: Context, alive: bool) -> None:
        """What time, and what changed, ask for. alive: the lease counts now."""
        if self.stage is not Stage.IDLE and not alive:
            return
        self.hooks.look(ctx)
        for run in self.runs:
            if run.action is not None:
                if ctx.now < run.deadline:
                    ctx.wake(run.deadline)
                    continue
                self.result(
                    AgentResult(run.attempt, run.settings.name, Outcome.TIMED_OUT, "no answer from its agent"), ctx
                )
        if self.stage is Stage.IDLE:
            self._probe(ctx)
            return
        if self.stage is Stage.STOPPING:
            self._stop_next(ctx)
            return
        if self.stage is Stage.STARTING:
            self._start_next(ctx)
        for run in self.runs:
            self._watch(run, ctx)

    def _watch(self, run: Run, ctx: Context) -> None:
        state = run.facts.state
        if run.action is not None:
            return
        if run.passive:
            silent_at = run.reported_ns + run.settings.check.report_within_ms * MS
            if state is ServiceState.RUNNING:
                if ctx.now >= silent_at:
                    self._failed(run, f"no report for {(ctx.now - run.reported_ns) // MS} ms", ctx)
                else:
                    ctx.wake(silent_at)
        elif state in (ServiceState.RUNNING, ServiceState.FAILED):
            if ctx.now >= run.check_at:
                self._act(run, Action.CHECK, ctx)
            else:
                ctx.wake(run.check_at)
        elif state is ServiceState.STOPPED and self.stage is Stage.RUNNING and run.retry_at and not self._locked(run):
            if ctx.now >= run.retry_at:
                self._start_one(run, ctx)  # its start was refused while its group ran
            else:
                ctx.wake(run.retry_at)
        if state is ServiceState.FAILED and run.retry_at and not self.start_failed and run.action is None:
            if ctx.now < run.retry_at:
                ctx.wake(run.retry_at)
            elif run.passive and not self.frozen():
                self.handle(
                    run, ctx
                )  # only its reporter can say that it is well again; but a node to move to may have come
            elif not self.frozen() and run.settings.on_failure.then != "ignore":
                # Used up its restarts and could not move: it keeps trying where it is.
                run.retry_at = ctx.now + SLOW_RETRY_MS * MS
                self.restart(run, ctx, counted=False)

    def _probe(self, ctx: Context) -> None:
        """On a node that does not own the group: is what it needs here (an address: its interface) in order?"""
        for run in self.runs:
            if run.settings.agent != "address" or run.action is not None:
                continue
            if ctx.now >= run.check_at:
                self._act(run, Action.CHECK, ctx, owned=False)
            else:
                ctx.wake(run.check_at)

    def unfit(self) -> str:
        """Why this node could not run the group although nothing was started; "" when it could."""
        return next((f"{r.settings.name}: {r.probe_text}" for r in self.runs if not r.probe_ok), "")
