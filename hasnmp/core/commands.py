"""The administrator's commands: tested at once, carried out by whoever owns the group, followed to their end (following.py).

Every command gets a row whose outcome and reason are kept. Registers (inhibit, freeze, standby, ...) are set here and
travel; a failover goes to the group's owner; the node that was asked follows what the owner says until it is over.
"""

from __future__ import annotations

from typing import Any

from hasnmp.core import fence_acts, moving
from hasnmp.core.apply import Apply
from hasnmp.core.board import EXCLUDED, FREEZE, INHIBIT, LOCKED, RECOVERING, STANDBY, known
from hasnmp.core.context import MS
from hasnmp.core.events import CommandIn
from hasnmp.core.following import Follow, Following, patience
from hasnmp.core.journal import clip
from hasnmp.core.lease import Phase
from hasnmp.core.reload import Reload
from hasnmp.core.running import Stage
from hasnmp.core.state import Move, Order, State
from hasnmp.errors import Code, Refused
from hasnmp.model import CommandRow, CommandState, Kind, NodeState, Reason, Verb
from hasnmp.settings import Service


class Commands:
    def __init__(self, state: State, reload: Reload) -> None:
        self.state = state
        self.apply = Apply(state)
        self.reload = reload
        self.followed = Following(state)

    # ------------------------------------------------------------------------------------------------------ asked

    def asked(self, event: CommandIn) -> None:
        """A command from the control socket: answer at once, with what follows or why not."""
        state, journal = self.state, self.state.journal
        if event.verb is Verb.REPORT:
            self._report(event)
            return
        row = journal.command(
            state.ctx, event.verb, event.target, event.to, event.requester, event.address, event.reason
        )
        try:
            if event.verb is Verb.SET:  # nothing is asked for: the agent refused it, and has it put on record
                code = Code(event.code) if event.code in set(Code) and event.code else Code.NOT_ALLOWED
                raise Refused(code, event.message)
            row = self.apply.ask(row, event.document) if event.verb is Verb.APPLY else self._execute(row)
        except Refused as refused:
            row = journal.update(state.ctx, row, CommandState.REFUSED, refused.code, refused.text)
        self._audit(row)
        journal.answer(state.ctx, event.reply, row)

    def _audit(self, row: CommandRow) -> None:
        """What came over the network is an event of its own: who, from where, what, and whether it was accepted."""
        if row.address in ("", "local"):
            return
        what = f"{row.verb.name.lower().replace('_', ' ')} {row.target}".strip() + (f" to {row.to}" if row.to else "")
        refused = row.state is CommandState.REFUSED
        head, found, why = row.text.partition(" refused: ")
        why = why if found and head.split()[0] in what.split() else row.text  # "recover b" stands there already
        self.state.journal.happened(
            self.state.ctx, Kind.COMMAND_REFUSED if refused else Kind.COMMAND_GIVEN,
            f"{row.requester} from {row.address}: {what} (command {row.id}): "
            + (f"refused: {why}" if refused else "accepted"), reason=Reason.OPERATOR,
        )  # fmt: skip

    def _execute(self, row: CommandRow) -> CommandRow:
        verb = row.verb
        if verb in (Verb.FAILOVER, Verb.FORCE_FAILOVER):
            return self._failover(row)
        if verb in (Verb.INHIBIT, Verb.PERMIT, Verb.FREEZE, Verb.THAW):
            return self._switch(row)
        if verb in (Verb.STANDBY, Verb.ONLINE, Verb.RECOVER):
            return self._node(row)
        if verb in (Verb.FENCE_TEST, Verb.FENCE_CONFIRM):
            return self._fence(row)
        if verb is Verb.RELOAD:
            return self.reload.ask(row)
        return self._service(row)

    def _done(self, row: CommandRow, text: str) -> CommandRow:
        return self.state.journal.update(self.state.ctx, row, CommandState.DONE, Code.DONE, text)

    def _known(self, name: str, names: list[str], what: str) -> str:
        if name not in names:
            raise Refused(Code.NOT_FOUND, f"no {what} {name!r}; there are: {', '.join(names)}")
        return name

    # --------------------------------------------------------------------------------------------------- failover

    def _failover(self, row: CommandRow) -> CommandRow:
        state = self.state
        names = [g.name for g in state.config.groups]
        if row.target:
            groups = [self._known(row.target, names, "group")]
        else:
            groups = [g for g in names if state.owner(g) == state.me] or (names if len(names) == 1 else [])
            if not groups:
                raise Refused(Code.NOT_FOUND, f"{state.me} runs no group, so name the one to move: {', '.join(names)}")
        if row.to:
            self._known(row.to, [n.name for n in state.config.nodes], "node")
        follows: list[Follow] = []
        not_moved: list[Refused] = []
        for group in groups:
            try:
                follows.append(self._begin(row, group))
            except Refused as refused:
                not_moved.append(refused)
        if not follows:
            raise not_moved[0]
        for follow in follows[1:]:
            self.followed.add(row, follow)
        text = ", ".join(f"{f.group} to {f.to or 'whoever can take it'}" for f in follows)
        text += "".join(f"; {refused.text}" for refused in not_moved)
        return self.followed.running(row, f"moving {text}", follows[0])

    def _begin(self, row: CommandRow, group: str) -> Follow:
        """Start one group's move, here or by asking the node that must."""
        state = self.state
        force = row.verb is Verb.FORCE_FAILOVER
        owner = state.owner(group)
        follow = Follow(row, group, row.to, owner, state.leases[group].token_seen)
        words = {"group": group, "to": row.to, "force": force, "reason": row.reason, "by": row.requester}
        if owner == state.me:
            follow.to = self._move_away(group, row.to, force, row.reason, row.requester)
            state.moves[group].asked = (state.me, f"{row.id}/{group}")
        elif owner:
            follow.asked = owner
            self.state.streams[owner].put(f"c/{row.id}/{group}", words)
        else:
            to = row.to or next(iter([n for n in state.config.group(group).nodes if state.able(group, n)]), "")
            if not to:
                raise Refused(Code.NO_TARGET, f"nobody runs {group} and no node is able to; {state.why_nowhere(group)}")
            follow.to = to
            if to == state.me:
                self._take_here(group, force, row.reason, row.requester)
            else:
                self._fit(group, to, force)
                follow.asked = to
                state.streams[to].put(f"c/{row.id}/{group}", {**words, "to": to})
        return follow

    def _fit(self, group: str, to: str, force: bool) -> None:
        """Raises Refused: that node may not, or can't, take the group; with what to do about it."""
        state, registers = self.state, self.state.board.registers
        what = f"failover {group} -> {to} refused: "
        nodes = state.config.group(group).nodes
        if to not in nodes:
            raise Refused(Code.TARGET_NOT_MEMBER, f"{what}its nodes are {', '.join(nodes)}")
        if to != state.me:
            peer = state.peers[to]
            if not peer.heard():
                limit = state.config.heartbeat.dead_after_ms / 1000
                last = f"last heard {state.seconds(peer.heard_ns)} ago" if peer.heard_ns else "never heard"
                raise Refused(
                    Code.TARGET_DOWN, f"{what}{to} {last} (limit {limit:.1f} s); wait for haNodeState.{to} = up(1)"
                )
            if peer.state is NodeState.STARTING:
                raise Refused(Code.STARTING, f"{what}{to} has just started and still listens; try again in a moment")
            if not state.config.goes_with(peer.digest):
                raise Refused(
                    Code.CONFIG_MISMATCH,
                    f"{what}its configuration {peer.digest} is not ours ({state.config.digest}); make the files equal",
                )
        elif state.starting:
            raise Refused(Code.STARTING, f"{what}{to} has just started and still listens; try again in a moment")
        if registers.get(STANDBY, to):  # even by force: it would give the group away again at once
            raise Refused(Code.TARGET_STANDBY, f"{what}{to} is on standby; to take it back: hasnmp online {to}")
        if force:
            return
        excluded = registers.get(EXCLUDED, f"{group}/{to}")
        if excluded:
            service = state.config.group(group).services[0].name
            raise Refused(
                Code.TARGET_EXCLUDED,
                f"{what}{to} is excluded: {excluded}; mend it, then: hasnmp service clear {service}",
            )
        if registers.get(RECOVERING, to):
            raise Refused(
                Code.TARGET_RECOVERING,
                f"{what}{to} is recovering ({registers.get(RECOVERING, to)}); when it is sound: hasnmp recover {to}",
            )
        if not state.able(group, to):
            why = state.unable(group) if to == state.me else f"{to} says that its own check is not good"
            raise Refused(Code.TARGET_FAILED, f"{what}{why}; see: hasnmp why {group}")

    def _move_away(self, group: str, to: str, force: bool, reason: str, by: str) -> str:
        """Begin to move a group that this node owns; returns where to. Raises Refused."""
        state = self.state
        running, settings = state.running[group], state.config.group(group)
        what = f"failover {group} refused: "
        if to == state.me:
            raise Refused(Code.ALREADY_THERE, f"{what}it runs on {to} already")
        if running.blocked:
            raise Refused(
                Code.BLOCKED, f"{what}a service could not be stopped; end it by hand, then: hasnmp service clear NAME"
            )
        if group in state.moves or running.stage is Stage.STOPPING or state.leases[group].phase is not Phase.HELD:
            raise Refused(Code.BUSY, f"{what}it is being moved already; see: hasnmp why {group}")
        if running.stage is not Stage.RUNNING and not force:
            raise Refused(Code.BUSY, f"{what}it is being started; wait, or use --force")
        frozen = state.board.registers.get(FREEZE, group)
        if frozen and not force:
            raise Refused(Code.FROZEN, f"{what}it is frozen ({frozen}); first: hasnmp thaw {group}")
        if to:
            self._fit(group, to, force)
        else:
            others = state.candidates(group)
            if not others:
                raise Refused(Code.NO_TARGET, f"{what}no other node is able; {state.why_not_others(group)}")
            to = others[0]
        why = f"ordered by {by}" + (f": {reason}" if reason else "")
        kind = Reason.OPERATOR_FORCED if force else Reason.OPERATOR
        move = Move(to, kind, why, force=force)
        if force:
            self._lift(group, to)
            state.force(group, move)
        running.hooks.stays = (Reason.NONE, 0)  # who orders it wants it tried now
        moving.begin_move(state, settings, move)
        return to

    def _lift(self, group: str, node: str) -> None:
        """A force sets aside what would keep the node from the group."""
        if self.state.board.registers.get(EXCLUDED, f"{group}/{node}"):
            self.state.set_register(EXCLUDED, f"{group}/{node}", "")

    def _take_here(self, group: str, force: bool, reason: str, by: str) -> None:
        state = self.state
        self._fit(group, state.me, force)
        lease = state.leases[group]
        if lease.phase is not Phase.NONE:
            raise Refused(Code.BUSY, f"failover {group} refused: this node is taking it already")
        if lease.forever_ms:
            raise Refused(
                Code.PROMISED,
                f"failover {group} refused: it was left to {lease.promised_node}, which was not heard since; start "
                f"{lease.promised_node}, or if it is off for certain: "
                f"hasnmp arbiter clear {group} --node {lease.promised_node} --force --config FILE",
            )
        if force:
            self._lift(group, state.me)
        text = f"ordered by {by}" + (f": {reason}" if reason else "")
        kind = Reason.OPERATOR_FORCED if force else Reason.OPERATOR
        state.orders[group] = Order(kind, text, state.ctx.now + patience(state, group), force, lease.token_seen)
        state.board.groups[group].decided_ms = state.ctx.wall_ms()
        lease.retry_at = 0
        state.ctx.dirty = True

    # --------------------------------------------------------------------------------- registers, nodes, services

    def _switch(self, row: CommandRow) -> CommandRow:
        state, verb = self.state, row.verb
        if row.target or verb in (Verb.FREEZE, Verb.THAW):
            self._known(row.target, [g.name for g in state.config.groups], "group")
        kind = INHIBIT if verb in (Verb.INHIBIT, Verb.PERMIT) else FREEZE
        on = verb in (Verb.INHIBIT, Verb.FREEZE)
        state.set_register(kind, row.target, (row.reason or f"by {row.requester}") if on else "")
        what = f"group {row.target}" if row.target else "every group"
        word = {
            Verb.INHIBIT: f"automatic failover of {what} is inhibited", Verb.PERMIT: f"automatic failover of {what} is permitted",
            Verb.FREEZE: f"{what} is frozen: its lease is kept, no check is acted on", Verb.THAW: f"{what} is watched again",
        }[verb]  # fmt: skip
        state.journal.happened(
            state.ctx, Kind.INHIBIT_CHANGED, f"{word}, by {row.requester}" + (f": {row.reason}" if row.reason else ""),
            group=row.target, reason=Reason.OPERATOR, state=int(on) + 1,
        )  # fmt: skip
        return self.followed.kept(row, word)

    def _node(self, row: CommandRow) -> CommandRow:
        state, verb = self.state, row.verb
        node = self._known(row.target or state.me, [n.name for n in state.config.nodes], "node")
        registers = state.board.registers
        if verb is Verb.RECOVER:
            if not registers.get(RECOVERING, node):
                raise Refused(Code.NOT_RECOVERING, f"recover {node} refused: it is not recovering")
            state.set_register(RECOVERING, node, "")
            return self.followed.kept(row, f"{node} is recovered and may take groups again")
        if verb is Verb.ONLINE:
            if not registers.get(STANDBY, node):
                raise Refused(Code.ALREADY_THERE, f"online {node} refused: it is not on standby")
            state.set_register(STANDBY, node, "")
            return self.followed.kept(row, f"{node} may take groups again")
        if registers.get(STANDBY, node):
            raise Refused(Code.ALREADY_THERE, f"standby {node} refused: it is on standby already")
        state.set_register(STANDBY, node, row.reason or f"by {row.requester}")
        if not any(state.owner(g.name) == node for g in state.config.groups):
            return self.followed.kept(row, f"{node} is on standby; it ran no group")
        return self.followed.running(row, f"{node} moves its groups away", Follow(row, node=node))

    def _fence(self, row: CommandRow) -> CommandRow:
        state = self.state
        node = self._known(row.target, [n.name for n in state.config.nodes], "node")
        if row.verb is Verb.FENCE_CONFIRM:
            return self.followed.kept(row, fence_acts.confirm(state, node, row.requester, row.reason))
        fence_acts.test(state, node)
        limit = sum(level.timeout_ms + fence_acts.GRACE_MS for level in state.config.node(node).fence)
        follow = Follow(row, fence=node, until_ns=state.ctx.now + 2 * limit * MS)
        return self.followed.running(row, f"asking the fence devices of {node}", follow)

    def _service(self, row: CommandRow) -> CommandRow:
        state, verb = self.state, row.verb
        services = {s.name: s for s in state.config.services()}
        service = services[self._known(row.target, list(services), "service")]
        owner = state.owner(service.group)
        if verb is Verb.SERVICE_CLEAR:
            for node in state.config.group(service.group).nodes:
                if state.board.registers.get(EXCLUDED, f"{service.group}/{node}"):
                    state.set_register(EXCLUDED, f"{service.group}/{node}", "")
            state.board.groups[service.group].forgive()
            state.leases[service.group].retry_at = 0
            for peer in state.streams.values():  # whoever will run it next begins anew as well
                peer.put(f"v/{service.name}", int(verb))
            self.told(f"v/{service.name}", int(verb))
            return self._done(row, f"service {service.name} is cleared")
        elif verb in (Verb.SERVICE_START, Verb.SERVICE_STOP):
            stop = verb is Verb.SERVICE_STOP
            state.set_register(LOCKED, service.name, (row.reason or f"by {row.requester}") if stop else "")
            if not stop:
                self._tell_owner(owner, service.group, f"v/{service.name}", int(verb))
            return self.followed.kept(
                row, f"service {service.name} " + ("is kept stopped" if stop else "is started with its group")
            )
        elif not owner:
            raise Refused(Code.NOT_OWNER, f"restart {service.name} refused: nobody runs group {service.group}")
        else:
            return self._restart(row, service, owner)

    def _restart(self, row: CommandRow, service: Service, owner: str) -> CommandRow:
        state = self.state
        running = state.running[service.group]
        run = running.run(service.name)
        if owner == state.me and (run is None or running.stage is not Stage.RUNNING or not run.idle()):
            text = (
                f"restart {service.name} refused: it, or its group, is being started or stopped; try again in a moment"
            )
            raise Refused(Code.BUSY, text)
        until = state.ctx.now + (service.stop_timeout_ms + service.start_timeout_ms + 4000) * MS
        changes = state.board.services[service.name].transitions
        follow = Follow(row, token=changes, service=service.name, until_ns=until)
        self._tell_owner(owner, service.group, f"v/{service.name}", int(row.verb))
        return self.followed.running(row, f"restarting {service.name} on {owner}", follow)

    def _tell_owner(self, owner: str, group: str, key: str, value: Any) -> None:
        if owner == self.state.me:
            self.told(key, value)
        elif owner:
            self.state.streams[owner].put(key, value)
        self.state.ctx.dirty = True

    def _report(self, event: CommandIn) -> None:
        """An outside agent's word: no row, for it comes every few seconds."""
        state = self.state
        row = CommandRow(0, event.requester, event.address, event.verb, event.target, "", "", CommandState.DONE,
                         asked_wall_ms=state.ctx.wall_ms(), ended_wall_ms=state.ctx.wall_ms())  # fmt: skip
        service = next((s for s in state.config.services() if s.name == event.target), None)
        code, text = Code.DONE, ""
        if service is None:
            code, text = Code.NOT_FOUND, f"no service {event.target!r}"
        elif service.agent != "passive":
            code, text = (
                Code.NOT_PASSIVE,
                f"{service.name} is checked by its agent {service.agent}; only passive ones are reported",
            )
        else:
            owner = state.owner(service.group)
            if not owner:
                code, text = Code.NOT_OWNER, f"nobody runs group {service.group} now; the report is not kept"
            else:
                self._tell_owner(owner, service.group, f"p/{service.name}", [event.up, clip(event.message)])
        state_now = CommandState.DONE if code is Code.DONE else CommandState.REFUSED
        state.journal.answer(
            state.ctx, event.reply,
            CommandRow(row.id, row.requester, row.address, row.verb, row.target, "", "", state_now, code, text,
                       row.asked_wall_ms, row.ended_wall_ms),
        )  # fmt: skip

    # --------------------------------------------------------------------------------------- what a peer tells us

    def told(self, key: str, value: Any, sender: str = "") -> None:
        """A command or report that another node passed on because this one owns the group; or the answer to ours.

        Raises TypeError, ValueError, KeyError or IndexError: of a form that this version does not know.
        """
        state = self.state
        kind, _, name = key.partition("/")
        if kind == "c":
            try:
                if state.owner(value["group"]) == state.me:
                    to = self._move_away(
                        value["group"], value["to"], bool(value["force"]), value["reason"], value["by"]
                    )
                    state.moves[value["group"]].asked = (sender, name)
                else:
                    to = state.me
                    self._take_here(value["group"], bool(value["force"]), value["reason"], value["by"])
                answer = [int(Code.DONE), "", to]
            except Refused as refused:
                answer = [int(refused.code), refused.text, ""]
            state.streams[sender].put(f"a/{name}", answer)
        elif kind == "a":
            number, _, group = name.partition("/")
            self.followed.answered(int(number), group, value)
        elif kind == "o":
            state.orders[name] = Order(
                known(Reason, value["reason"], Reason.OPERATOR),
                str(value["text"]),
                state.ctx.now + patience(state, name),
                force=True,
                token=state.leases[name].token_seen,
            )
        elif kind == "v":
            service = next(s for s in state.config.services() if s.name == name)
            running = state.running[service.group]
            run = running.run(name)
            if Verb(value) is Verb.SERVICE_CLEAR:
                for each in running.runs:
                    each.facts.restarts.clear()
                if state.leases[service.group].alive(state.ctx):
                    running.cleared(state.ctx)
                state.ctx.dirty = True
                state.board.groups[service.group].forgive()
            elif run is None or not state.leases[service.group].alive(state.ctx) or running.stage is not Stage.RUNNING:
                return
            elif Verb(value) is Verb.SERVICE_START:
                run.given_up = False
                state.ctx.dirty = True
            elif run.idle():
                running.restart(run, state.ctx, counted=False)
        elif kind == "p":
            service = next(s for s in state.config.services() if s.name == name)
            state.running[service.group].reported(name, bool(value[0]), str(value[1]), state.ctx)
        else:
            self.apply.told(kind, name, value, sender)
