"""A new configuration: what this engine stops for it under the old one, and what the next engine says of it.

    Reload (a command) or SIGHUP -> the guardian has the file read -> Retire -> what is removed or is another thing from now
    on stops here -> Exit(retired) -> the next engine, with the new configuration, adopts the rest and starts what is new

No lease is given up on the way: a removed group is stopped and stays leased until this engine has gone, so that no node
with the old file can take it up meanwhile. A stop that fails ends the reload, and all is as it was.
"""

from __future__ import annotations

from hasnmp.core.apply import HALFWAY
from hasnmp.core.context import MS
from hasnmp.core.durable import Durable
from hasnmp.core.events import Exit, GiveUp, ReloadEnded, Retire, Started
from hasnmp.core.events import Reload as AskReload
from hasnmp.core.journal import mapping, number_of
from hasnmp.core.lease import Phase
from hasnmp.core.running import GRACE_MS, Run, Running, Stage
from hasnmp.core.state import State
from hasnmp.errors import Code, Refused
from hasnmp.model import CommandRow, CommandState, Kind, Reason, Role, ServiceState
from hasnmp.wire import fingerprint

WAIT_MS = 30_000  # beyond the stops' own limits: for a group that is just being started or moved


class Reload:
    def __init__(self, state: State, durable: Durable) -> None:
        self.state, self.durable = state, durable
        self.retire: Retire | None = None
        self.until_ns = 0
        self.groups: dict[str, list[Run]] = {}  # group -> its services to stop, the last started first
        self.over = False  # Exit was emitted: this step says nothing more, to nobody

    # ------------------------------------------------------------------------------------------------------ commands

    def ask(self, row: CommandRow) -> CommandRow:
        """Verb.RELOAD. Raises Refused."""
        if self.state.leaving:
            raise Refused(Code.BUSY, f"reload refused: {self.state.me} is stopping")
        if self.retire is not None:
            raise Refused(Code.BUSY, "reload refused: one is under way; see: hasnmp commands")
        self.state.ctx.emit(AskReload(row.id))
        return self.state.journal.update(
            self.state.ctx, row, CommandState.RUNNING, Code.DONE, "the configuration is being read"
        )

    def ended(self, event: ReloadEnded) -> None:
        """It was refused, has failed, or (DONE) found nothing to do."""
        state, ctx = self.state, self.state.ctx
        code = Code(event.code) if event.code in set(Code) else Code.FAILED
        if code is Code.DONE:
            self._accepted(event.text)
            self._end(event.command, CommandState.DONE, code, event.text)
            return
        if not state.leaving:
            state.journal.happened(
                ctx, Kind.CONFIG_REFUSED, f"the new configuration is not in force: {event.text}", of=state.me,
                reason=Reason.CONFIGURATION,
            )  # fmt: skip
        failed = code in (Code.FAILED, Code.TIMED_OUT, Code.BLOCKED)
        self._end(event.command, CommandState.FAILED if failed else CommandState.REFUSED, code, event.text)

    def _end(self, command: int, outcome: CommandState, code: Code, text: str) -> None:
        row = self.state.journal.commands.get(command)
        if row is not None:
            self.state.journal.update(self.state.ctx, row, outcome, code, text)

    def _accepted(self, text: str) -> None:
        state = self.state
        state.journal.clear(state.ctx, Kind.CONFIG_ACCEPTED, state.me, text, reason=Reason.CONFIGURATION)

    # -------------------------------------------------------------------------------------------------------- retire

    def begin(self, event: Retire) -> None:
        """Begin to stop what the new configuration has otherwise."""
        state, ctx = self.state, self.state.ctx
        self.retire, self.until_ns = event, ctx.now + (event.stop_ms + GRACE_MS + WAIT_MS) * MS
        refusal = f"{state.me} is stopping" if state.leaving else self._keys(event.keys)
        if refusal:
            self._give_up(Code.NOT_ALLOWED, refusal)
            return
        state.retiring = frozenset(event.groups)
        self.groups = {
            name: [r for r in reversed(running.runs) if name in state.retiring or r.settings.name in event.services]
            for name, running in state.running.items()
        }
        self.groups = {name: runs for name, runs in self.groups.items() if runs}
        ctx.dirty = True

    def _keys(self, keys: tuple[str, ...]) -> str:
        """Why these keys can't be used while the present peers live; "" when they can."""
        state = self.state
        if not keys:
            return ""
        ours = tuple(fingerprint(key) for key in state.config.heartbeat.keys)
        for peer in state.peers.values():
            if not peer.heard():
                continue
            told = state.peer_docs.get(peer.name, {}).get("keys")
            theirs = [str(key) for key in told] if isinstance(told, list) else []
            if not theirs and keys[:1] != ours[:1]:
                return f"{peer.name} has not told which keys it holds; try again in a moment"
            if theirs and keys[0] not in theirs:
                return (
                    f"{peer.name} does not hold the first key of heartbeat.key_files ({keys[0]}), so it would hear nothing "
                    f"of {state.me} any more; first add that key as the second one on every node and reload there"
                )
            if theirs and theirs[0] not in keys:
                return (
                    f"{peer.name} signs with a key ({theirs[0]}) that the new heartbeat.key_files lacks, so {state.me} would "
                    f"hear nothing of it any more; first put the new key first on every node and reload there"
                )
        return ""

    def look(self) -> None:
        """Go on with what is under way."""
        state, ctx = self.state, self.state.ctx
        if self.retire is None or self.over:
            return
        if state.leaving:
            self._give_up(Code.BUSY, f"{state.me} is stopping")
            return
        waits = []
        for name, runs in self.groups.items():
            running, lease = state.running[name], state.leases[name]
            if running.blocked:
                bad = next((r for r in running.runs if r.facts.state is ServiceState.STOP_FAILED), running.runs[0])
                self._give_up(
                    Code.BLOCKED,
                    f"service {bad.settings.name} of group {name} could not be stopped: {bad.facts.message}",
                )
                return
            if lease.phase is Phase.TAKING and name in state.retiring:
                lease.abandon(ctx, "a new configuration removes it")
            if state.owns(name) and not self._stop(name, running, runs):
                waits.append(name)
        if not waits:
            self._leave()
        elif ctx.now >= self.until_ns:
            self._give_up(
                Code.TIMED_OUT,
                f"not stopped after {(self.retire.stop_ms + GRACE_MS + WAIT_MS) // 1000} s: {', '.join(waits)}",
            )
        else:
            ctx.wake(self.until_ns)

    def _stop(self, name: str, running: Running, runs: list[Run]) -> bool:
        """The next step for one group; True when nothing is left to stop."""
        if name in self.state.retiring:
            if running.stage in (Stage.STARTING, Stage.RUNNING):
                running.stop(self.state.ctx)
            return running.stage is Stage.STOPPING and running.stopped()
        if running.stage is Stage.STOPPING:
            return False  # it is being moved away: wait until it has gone
        for run in runs:
            run.retired = True
            running.reconcile(self.state.ctx)
            if run.facts.state is not ServiceState.STOPPED or not run.idle():
                return False
        return running.stage is Stage.RUNNING or all(r.idle() for r in running.runs)

    def _leave(self) -> None:
        assert self.retire is not None
        self.over = True
        self.durable.retire(Exit(f"for a new configuration: {self.retire.text}", retired=True))

    def _give_up(self, code: Code, text: str) -> None:
        """All is as it was: what was stopped is started again by the looks that follow."""
        assert self.retire is not None
        command, self.retire = self.retire.command, None
        self.state.retiring = frozenset()
        for runs in self.groups.values():
            for run in runs:
                run.retired = False
        self.groups = {}
        self.state.ctx.emit(GiveUp(text))
        self.ended(ReloadEnded(command, int(code), text))
        self.state.ctx.dirty = True

    # ------------------------------------------------------------------------------------------------ the next engine

    def started(self, event: Started) -> None:
        """This engine is the first with a new configuration (event.reloaded)."""
        state, ctx = self.state, self.state.ctx
        former = mapping(event.durable)
        if not event.reloaded:
            if former.get("holder") != event.holder:  # the whole stack has started, so it has read the file anew
                self._accepted(f"{state.config.source} is in force")
                self._forget()
            return
        state.resumed = True
        role = number_of(former.get("role"))
        if role in set(Role):
            state.role = Role(role)
            state.journal.role = role
        text = f"{state.config.source} is in force: {event.reloaded}"
        if f"{Kind.CONFIG_REFUSED.value}/{state.me}" in state.journal.alarms:
            self._accepted(text)
        else:
            state.journal.note(ctx, Kind.CONFIG_ACCEPTED, text, reason=Reason.CONFIGURATION)
        if not state.config.webs:
            self._end(event.reload_command, CommandState.DONE, Code.DONE, event.reloaded)
        else:
            self._end(event.reload_command, CommandState.RUNNING, Code.DONE, f"{HALFWAY}; {event.reloaded}")
        # What is held already is not taken over by anybody: its services that are new start without a word of that.
        state.kept = {held.group for held in event.leases if held.group in state.leases}
        self._forget()

    def _forget(self) -> None:
        """End the alarms of what is not configured any more: nobody else would."""
        state, config = self.state, self.state.config
        nodes = {n.name for n in config.nodes}
        links = {f"{n.name}/{link}" for n in config.nodes for link in n.links}
        levels = {f"{n.name}/{i + 1}" for n in config.nodes for i in range(len(n.fence))}
        versions = {f"{n}/version" for n in nodes}
        known = nodes | links | levels | versions | set(state.leases) | set(state.services) | {config.arbiter.type}
        for alarm in tuple(state.journal.alarms.values()):
            # Processes are in no file; the guardian tells of one again only when it is better.
            if alarm.object and alarm.object not in known and alarm.kind is not Kind.PROCESS_LOST:
                clear = state.journal.clear_of(alarm.kind)
                state.journal.clear(state.ctx, clear, alarm.object, f"{alarm.object} is not configured any more")
