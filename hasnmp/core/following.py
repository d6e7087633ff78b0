"""What was ordered and goes on: each command is followed until it is done, has failed, or nothing moves any more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hasnmp.core import fence_acts
from hasnmp.core.board import STANDBY, known
from hasnmp.core.context import MS
from hasnmp.core.state import Move, State
from hasnmp.errors import Code
from hasnmp.model import CommandRow, CommandState, GroupState, ServiceState, Verb

KEEP_MS = 3000  # how long a register may take to become durable before the command says that it is not


@dataclass(slots=True)
class Follow:
    """A command that goes on after it was accepted."""

    row: CommandRow
    group: str = ""  # of a failover
    to: str = ""
    source: str = ""  # the owner when it was accepted
    token: int = 0  # of the lease that is to be given up
    node: str = ""  # of a standby: done when it owns nothing
    asked: str = ""  # a peer whose answer is awaited
    service: str = ""  # of a restart: done when it runs after more changes than `token`
    fence: str = ""  # of a test: the node whose devices are asked
    kept: int = 0  # of a register: done when the document of this version is on the disk
    text: str = ""
    until_ns: int = 0


def patience(state: State, group: str) -> int:
    """How long a move may take: every stop, every start, and the lease's ways between them."""
    hb, config = state.config.heartbeat, state.config
    groups = [config.group(group)] if group else list(config.groups)
    services = sum(s.start_timeout_ms + s.stop_timeout_ms for g in groups for s in g.services)
    services += sum(state.running[g.name].hooks.patience_ms() for g in groups)
    return (services + 4 * hb.dead_after_ms + 2 * config.arbiter.lease_ms + 2000) * MS


class Following:
    def __init__(self, state: State) -> None:
        self.state = state
        self.all: list[Follow] = []

    def kept(self, row: CommandRow, text: str) -> CommandRow:
        """A register is set and in force; the command is done once a restart can't undo it."""
        state = self.state
        state.persist_at = 0
        follow = Follow(row, kept=state.persist_version + 1, text=text, until_ns=state.ctx.now + KEEP_MS * MS)
        return self.running(row, f"{text}; being made durable", follow)

    def running(self, row: CommandRow, text: str, follow: Follow) -> CommandRow:
        state = self.state
        row = state.journal.update(state.ctx, row, CommandState.RUNNING, Code.DONE, text)
        self.add(row, follow)
        return row

    def add(self, row: CommandRow, follow: Follow) -> None:
        state = self.state
        follow.row = row
        follow.until_ns = follow.until_ns or state.ctx.now + patience(state, follow.group)
        self.all.append(follow)
        state.ctx.wake(follow.until_ns)

    def again(self, group: str, move: Move, token: int) -> None:
        """A move that a former engine began is gone on with: so is the command that ordered it, if it was given here."""
        asked_by, key = move.asked or ("", "")
        number = key.partition("/")[0]
        row = self.state.journal.commands.get(int(number)) if asked_by == self.state.me and number.isdecimal() else None
        if row is not None and row.verb in (Verb.FAILOVER, Verb.FORCE_FAILOVER):
            text = f"moving {group} to {move.to}, gone on with by an engine that was started again"
            self.running(row, text, Follow(row, group, move.to, self.state.me, token))

    def answered(self, command: int, group: str, value: Any) -> None:
        """The node that was asked to move the group says whether it does, and where to."""
        for follow in [f for f in self.all if f.row.id == command and f.group == group]:
            follow.asked = ""
            follow.to = follow.to or str(value[2])
            if value[0] != Code.DONE:
                self._end(follow, CommandState.REFUSED, known(Code, value[0], Code.FAILED), str(value[1]))

    def _end(self, follow: Follow, outcome: CommandState, code: Code, text: str) -> None:
        self.all.remove(follow)
        others = [f for f in self.all if f.row.id == follow.row.id]
        if outcome is not CommandState.DONE:
            for other in others:
                self.all.remove(other)
        elif others:
            return  # the last of its groups ends the command
        self.state.journal.update(self.state.ctx, follow.row, outcome, code, text)

    def look(self) -> None:
        """End what has come to its end."""
        for follow in list(self.all):
            if follow not in self.all:
                continue
            if follow.kept:
                self._look_kept(follow)
            elif follow.fence:
                self._look_fence(follow)
            elif follow.service:
                self._look_restart(follow)
            elif follow.node:
                self._look_standby(follow)
            else:
                self._look_failover(follow)

    def _look_restart(self, follow: Follow) -> None:
        facts = self.state.board.services[follow.service]
        changed = facts.transitions > follow.token
        if changed and facts.state is ServiceState.RUNNING:
            self._end(follow, CommandState.DONE, Code.DONE, f"service {follow.service} was restarted on {facts.node}")
        elif changed and facts.state in (ServiceState.FAILED, ServiceState.STOP_FAILED):
            text = f"service {follow.service} on {facts.node}: {facts.message}"
            self._end(follow, CommandState.FAILED, Code.FAILED, text)
        elif self.state.ctx.now >= follow.until_ns:
            text = f"service {follow.service} is {facts.state.name.lower().replace('_', ' ')}: {facts.message}"
            self._end(follow, CommandState.FAILED, Code.TIMED_OUT, text)
        else:
            self.state.ctx.wake(follow.until_ns)

    def _look_fence(self, follow: Follow) -> None:
        state = self.state
        if fence_acts.testing(state, follow.fence) and state.ctx.now < follow.until_ns:
            state.ctx.wake(follow.until_ns)
            return
        good, text = fence_acts.tested(state, follow.fence, follow.row.asked_wall_ms)
        outcome = (CommandState.DONE, Code.DONE) if good else (CommandState.FAILED, Code.FENCE_FAILED)
        self._end(follow, *outcome, text)

    def _look_kept(self, follow: Follow) -> None:
        if self.state.persisted_version >= follow.kept:
            self._end(follow, CommandState.DONE, Code.DONE, follow.text)
        elif self.state.ctx.now >= follow.until_ns:
            why = self.state.unsaved or "the store does not answer, see its log"
            text = f"{follow.text}; but not durable after {KEEP_MS} ms: {why}"
            self._end(follow, CommandState.FAILED, Code.TIMED_OUT, text)
        else:
            self.state.ctx.wake(follow.until_ns)

    def _look_standby(self, follow: Follow) -> None:
        state, node = self.state, follow.node
        left = [g.name for g in state.config.groups if state.owner(g.name) == node]
        if not left:
            self._end(follow, CommandState.DONE, Code.DONE, f"{node} is on standby and runs nothing")
        elif not state.board.registers.get(STANDBY, node):
            self._end(follow, CommandState.FAILED, Code.FAILED, f"{node} was set online again")
        elif state.ctx.now >= follow.until_ns or self._stuck(follow, left):
            text = f"{node} is on standby but still runs {', '.join(left)}: {state.why_nowhere(left[0])}"
            self._end(follow, CommandState.FAILED, Code.NO_TARGET, text)
        else:
            state.ctx.wake(follow.until_ns)

    def _stuck(self, follow: Follow, left: list[str]) -> bool:
        """Does nothing move, and is there nowhere to move to? Then there is nothing to wait for."""
        state = self.state
        patient_until = follow.row.asked_ns + 2 * state.config.heartbeat.dead_after_ms * MS
        state.ctx.wake(patient_until)
        waits = follow.node == state.me and state.ctx.now >= patient_until
        return waits and not any(g in state.moves or state.candidates(g) for g in left)

    def _look_failover(self, follow: Follow) -> None:
        state, group = self.state, follow.group
        owner, now_state = state.owner(group), state.group_state(group)
        facts = state.board.groups[group]
        up = now_state in (GroupState.RUNNING, GroupState.DEGRADED) and facts.owner == owner and owner != ""
        if follow.asked and not state.peers[follow.asked].heard():
            text = f"{follow.asked} fell silent before it answered; see: hasnmp why {group}"
            self._end(follow, CommandState.FAILED, Code.PEER_LOST, text)
            return
        if up and facts.token > follow.token:  # even unanswered: an engine's end may have cost the answer, not the move
            if follow.to in ("", owner):
                text = f"{group} runs on {owner} after {facts.duration_ms} ms"
                self._end(follow, CommandState.DONE, Code.DONE, text)
            else:
                text = f"{group} runs on {owner}, not on {follow.to}: {facts.reason_text}"
                self._end(follow, CommandState.FAILED, Code.TARGET_FAILED, text)
            return
        elif follow.asked:
            pass  # the rest is for that node to say
        elif now_state is GroupState.FAILED:
            self._end(follow, CommandState.FAILED, Code.TARGET_FAILED, f"{group} failed to start on every node")
            return
        elif state.stayed.get(group, (0, ""))[0] >= max(follow.row.asked_ns, 1):
            text = f"{group} stays on {owner}: {state.stayed[group][1]}"
            self._end(follow, CommandState.FAILED, Code.FAILED, text)
            return
        elif now_state is GroupState.BLOCKED:
            text = f"{group} is blocked on {owner}: a service could not be stopped; see: hasnmp why {group}"
            self._end(follow, CommandState.FAILED, Code.BLOCKED, text)
            return
        if state.ctx.now >= follow.until_ns:
            where = f"{group} is {now_state.name.lower()}" + (f" on {owner}" if owner else "")
            text = f"not over after {patience(state, group) // (1000 * MS)} s: {where}; see: hasnmp why {group}"
            self._end(follow, CommandState.FAILED, Code.TIMED_OUT, text)
        else:
            state.ctx.wake(follow.until_ns)
