"""What outlives this engine: its durable document, and an orderly leave.

The document says what must not be forgotten: tokens used (a ceiling, made durable before it is needed), promises that
were left for ever, what was owned and never released, the registers, the journal.
"""

from __future__ import annotations

from typing import Any

from hasnmp.core import moving
from hasnmp.core.board import known
from hasnmp.core.context import MS
from hasnmp.core.events import Exit, HeldLease, Persist, Persisted, Started
from hasnmp.core.journal import clip, mapping, number_of, strings
from hasnmp.core.lease import TAKER_PART, UNKNOWN_HOLDER, Lease, Phase
from hasnmp.core.running import Stage
from hasnmp.core.state import Move, State
from hasnmp.model import Kind, NodeState, Reason
from hasnmp.wire import NodeFlag

ROOM = 100  # tokens are made durable this many ahead, so that no takeover waits for the store
PERSIST_MS = 500  # at most one document each
COUNTERS_MS = 60_000  # how often the counters alone are made durable
SILENT_MS = 10_000  # a store that has not answered for so long is told of
ALARM_AFTER = 2  # failures in a row: a store that died is there again for the next document
LEAVE_MS = 3000  # beyond the groups' own time limits, how long an orderly leave may take


class Durable:
    def __init__(self, state: State) -> None:
        self.state = state
        self.ctx = state.ctx
        self.config = state.config
        # Tokens that follow the time can't be kept ready: there a fence took longer than the store will.
        self.room = 0 if self.config.arbiter.type == "fence" else ROOM
        self.persisting: dict[int, int] = {}  # version of a Persist under way -> the ceiling in it
        self.version = 0
        self.asked_at = 0  # since when the store owes an answer; 0: it does not
        self.saved_at = 0  # when it answered well the last time
        self.failures = 0  # in a row
        self.counters_at = 0
        self.leave_stage = 0
        self.leave_at = 0
        self.leave_version = 0
        self.gone = False  # Exit was emitted
        self.resumed: list[tuple[str, Move, int]] = []  # moves that are gone on with: group, move, the lease's token
        self.retired = False  # for the next engine, which goes on with what runs: no orderly leave, and no death either

    def restore(self, event: Started) -> None:
        """Take back what a former engine left; whatever stands there, nothing is raised."""
        state, ctx, hb = self.state, self.ctx, self.config.heartbeat
        document = mapping(event.durable)
        state.journal.restore(mapping(document.get("journal")), ctx)
        state.board.restore(mapping(document.get("board")), ctx)
        ceiling = state.ceiling = number_of(document.get("ceiling"))  # it was read from the disk: it is durable
        state.lead, state.lead_offset_ms = number_of(document.get("lead")), ctx.wall_offset_ms
        longest = max(hb.dead_after_ms, number_of(document.get("dead_after_ms")))
        state.longest_ms = max(hb.dead_after_ms, self.config.arbiter.lease_ms, number_of(document.get("longest_ms")))
        if self.config.arbiter.type == "disk":
            state.arbiter.uuid = str(document.get("arbiter_uuid") or "")
            # Until the disk shows that there is nothing to have forgotten; not only for this life (seed 107730).
            state.forgot = (
                set(state.leases) if event.durable is None else strings(document.get("forgot")) & set(state.leases)
            )
        nodes = {n.name for n in self.config.nodes}
        state.fencing.restore(mapping(document.get("fencing")), event.holder, ctx.now, nodes)
        state.last_owner = {
            g: n for g, n in mapping(document.get("last_owner")).items() if isinstance(n, str) and n in nodes
        }
        state.owned = {g: number_of(t) for g, t in mapping(document.get("owned")).items() if g in state.leases}
        for name, lease in state.leases.items():
            lease.holder = event.holder
            lease.token_floor = ceiling
            lease.lived = event.durable is not None
            # What the former engine promised died with it: act as if it had just promised everything, for the longest.
            if name not in event.unbound:
                lease.promised_to = UNKNOWN_HOLDER
                lease.promised_until = ctx.now + longest * MS * TAKER_PART // 100
            for node, seq in mapping(mapping(document.get("slots")).get(name)).items():
                lease.floors[node] = number_of(seq)
            self._restore_leave(lease, mapping(document.get("forever")).get(name))
        left = strings(document.get("left")) if document.get("holder") == event.holder else set()
        for peer in state.peers.values():
            if peer.name in left:
                peer.state = NodeState.LEFT  # as the former engine heard it; after a boot it is expected back
            peer.late = f"{Kind.HEARTBEAT_LOST.value}/{peer.name}" in state.journal.alarms  # its clear is still owed

    def _restore_leave(self, lease: Lease, saved: Any) -> None:
        """A promise that this node left when it stopped in order stands until its holder is heard, or seen gone."""
        if not isinstance(saved, list) or len(saved) != 5:
            return
        lease.promised_to, lease.promised_node = str(saved[0]), str(saved[1])
        lease.promised_token, lease.forever_ms, lease.forever_seq = (number_of(x) for x in saved[2:])

    def untold(self, held: HeldLease, document: dict[str, Any]) -> None:
        """The former engine held this lease. Did it tell that the group has come up? If its last document does not know of this
        lease, or knows of it as begun, it died before."""
        state, name = self.state, held.group
        begun = mapping(document.get("begun"))
        if document and (name in begun or state.owned.get(name) != held.token):
            state.untold.add(name)
            state.board.groups[name].decided_ms = number_of(begun.get(name))
        elif document and all(run.passive for run in state.running[name].runs):
            # The guardian has no program of it, and so nothing to tell: it is up as it was, nothing to take over or start anew.
            state.adopted[name] = {run.settings.name: 0 for run in state.running[name].runs}

    def resume(self, held: HeldLease, document: dict[str, Any]) -> None:
        """A move that the former engine began under this lease is gone on with. Once: it may be the move itself that costs an
        engine its life. Where hooks still held it up, only an order is kept: what else wanted it still says so by itself."""
        facts = self.state.board.groups[held.group]
        token, decided_ms, move = self._saved_move(held.group, document)
        if move is None or token != held.token:
            return
        if move.twice:
            why = "the engine ended again before that was over"
            returned = (Reason.RETURNED, clip(f"started again where it was, for {why}: {move.text}"))
            facts.reason, facts.reason_text = returned if move.stopping else move.before
            moving.not_moved(self.state, held.group, move, why)
            return
        if move.stopping:
            facts.decided_ms = number_of(decided_ms)
        else:
            facts.reason, facts.reason_text = move.before
        if move.stopping or (move.to and move.reason in (Reason.OPERATOR, Reason.OPERATOR_FORCED)):
            self.state.unfinished[held.group] = move
            self.resumed.append((held.group, move, held.token))

    def given_up(self, event: Started, document: dict[str, Any]) -> None:
        """Moves that had come so far when the former engine ended that nothing of the group runs here any more: it is for the node
        that was to take it, though the former engine had not come to say so."""
        state, held = self.state, {lease.group for lease in event.leases}
        for name, lease in state.leases.items():
            token, decided_ms, move = self._saved_move(name, document)
            if move is None or not move.stopping or not move.to or token != state.owned.get(name):
                continue
            if name in held or name in event.unclean or document.get("holder") != event.holder:
                continue
            lease.released_token = token
            lease.learn(token, state.me)
            facts = state.board.groups[name]
            facts.reason, facts.reason_text, facts.decided_ms = move.reason, move.text, number_of(decided_ms)
            state.gave(name, token, move.to)
            self.resumed.append((name, move, token))

    def _saved_move(self, group: str, document: dict[str, Any]) -> tuple[Any, Any, Move | None]:
        """The token under which it was begun, when it was decided, and the move; None: there is none, or it can't be read."""
        saved = mapping(document.get("moves")).get(group)
        if not isinstance(saved, list):
            return 0, 0, None
        try:
            token, decided_ms, to, reason, text, force, stopping, before, before_text, asked_by, asked_as = saved[:11]
            return token, decided_ms, Move(
                to if to in self.config.group(group).nodes and to != self.state.me else "",
                known(Reason, reason, Reason.OPERATOR), clip(str(text)), force=bool(force),
                before=(known(Reason, before, Reason.NONE), clip(str(before_text))),
                asked=(str(asked_by), str(asked_as)) if asked_by == self.state.me or asked_by in self.state.streams else None,
                stopping=bool(stopping), again=True, twice=any(saved[11:12]),
            )  # fmt: skip
        except (TypeError, ValueError):
            return 0, 0, None

    def _needed(self) -> int:
        """The highest token that may be used next, by us or by whom we would promise it to."""
        own = [token for x in self.state.leases.values() for token in (x.next_token(), x.asked_token)]
        return max((*own, self.state.foreign_token))

    def look(self) -> None:
        state, ctx = self.state, self.ctx
        self._look_store()
        need = self._needed() + self.room // 5
        makes_room = need > state.ceiling and need > max(self.persisting.values(), default=0)
        if makes_room and (not self.failures or ctx.now >= state.persist_at):  # what just failed waits for its second
            self.persist()
        elif state.journal.changed or ctx.now >= self.counters_at:
            if ctx.now >= state.persist_at:
                self.persist()
            else:
                ctx.wake(state.persist_at)

    def _look_store(self) -> None:
        if not self.asked_at:
            return
        silent_at = self.asked_at + SILENT_MS * MS
        if self.ctx.now >= silent_at:
            self._unsaved(f"its disk or its store process has not answered for {self.state.seconds(self.asked_at)}")
        else:
            self.ctx.wake(silent_at)

    def _unsaved(self, why: str) -> None:
        """Groups run on: leases do not wait for this disk. But what is not on it is forgotten by a restart."""
        state = self.state
        last = f"for {state.seconds(self.saved_at)}" if self.saved_at else "since its start"
        state.journal.happened(
            self.ctx, Kind.STATE_NOT_SAVED,
            f"the state of {state.me} is not saved {last}: {why}; groups run on, but a restart forgets what is new; make room on "
            "that disk, or mend it", of=state.me,
        )  # fmt: skip

    def persist(self) -> None:
        state, ctx = self.state, self.ctx
        state.journal.changed = False
        state.persist_at = ctx.now + PERSIST_MS * MS
        self.counters_at = ctx.now + COUNTERS_MS * MS
        self.version += 1
        state.persist_version = self.version
        ceiling = max(self._needed() + self.room, state.ceiling)
        self.persisting[self.version] = ceiling
        self.asked_at = self.asked_at or ctx.now
        document = {
            "journal": state.journal.document(), "board": state.board.document(ctx), "ceiling": ceiling, "lead": state.lead_now(),
            "dead_after_ms": self.config.heartbeat.dead_after_ms,
            "longest_ms": state.longest_ms if self.config.webs else max(self.config.heartbeat.dead_after_ms, self.config.arbiter.lease_ms),
            "owned": dict(state.owned),
            "last_owner": dict(state.last_owner),
            "forever": {
                n: [x.promised_to, x.promised_node, x.promised_token, x.forever_ms, x.forever_seq]
                for n, x in state.leases.items() if x.forever_ms
            },
            "begun": {
                n: state.board.groups[n].decided_ms
                for n, x in state.running.items() if n in state.untold or (x.stage is not Stage.IDLE and not x.announced)
            },
            "moves": {
                n: [state.leases[n].token, state.board.groups[n].decided_ms, m.to, int(m.reason), m.text, m.force, m.stopping,
                    int(m.before[0]), m.before[1], *(m.asked or ("", "")), m.again]
                for n, m in (state.unfinished | state.moves).items()
            },
            "forgot": sorted(state.forgot) if state.unheard() else [],
            "role": int(state.role), "holder": state.holder,
            "left": sorted(p.name for p in state.peers.values() if p.state is NodeState.LEFT),
            "left_in_order": self.leave_stage > 0 or self.retired,
            "fencing": state.fencing.document(state.holder),
            "arbiter_uuid": state.arbiter.uuid, "slots": {n: dict(x.floors) for n, x in state.leases.items() if x.floors},
        }  # fmt: skip
        ctx.emit(Persist(self.version, document))

    def persisted(self, event: Persisted) -> None:
        state, ctx = self.state, self.ctx
        ceiling = self.persisting.get(event.version, 0)
        for version in [v for v in self.persisting if v <= event.version]:
            del self.persisting[version]
        self.asked_at = ctx.now if self.persisting else 0
        ctx.dirty = True
        if event.ok:
            self.saved_at, self.failures, state.unsaved = ctx.now, 0, ""
            state.journal.clear(ctx, Kind.STATE_SAVED, state.me, f"the state of {state.me} is saved again")
            state.ceiling = max(state.ceiling, ceiling)
            state.persisted_version = max(state.persisted_version, event.version)
            if self.leave_stage == 2 and event.version >= self.leave_version:
                self.leave_stage, self.leave_at = 3, ctx.now
                for lease in state.leases.values():
                    lease.forever_durable = lease.forever_ms > 0
                ctx.beat = True
        else:
            self.failures += 1
            state.unsaved = event.text or "it could not be written"
            if self.failures >= ALARM_AFTER:
                self._unsaved(state.unsaved)
            state.journal.changed = True
            state.persist_at = ctx.now + 1000 * MS

    # ------------------------------------------------------------------------------------------------------- leave

    def leave(self) -> None:
        """Stop in order: groups moved away (placement), then promises left for ever, then gone."""
        state, ctx, hb = self.state, self.ctx, self.config.heartbeat
        own = (
            sum(s.stop_timeout_ms for s in g.services) + state.running[g.name].hooks.stop_ms()
            for g in self.config.groups
        )
        limit = max(own, default=0) + LEAVE_MS
        if self.leave_stage == 0:
            for lease in state.leases.values():
                if lease.phase is Phase.TAKING:
                    lease.abandon(ctx, f"{state.me} is stopping")
            if any(x.phase is not Phase.NONE for x in state.leases.values()):
                end = max(self.leave_at, state.lingered_ns) + limit * MS
                if ctx.now < end:
                    ctx.wake(end)
                    return
                self._exit("stopped with groups that could not be stopped in order; the guardian ends them by force")
                return
            self.leave_stage, self.leave_at = 1, ctx.now
        if self.leave_stage == 1:
            calls = any(x.call is not None for x in state.leases.values())
            if calls and ctx.now < self.leave_at + self.config.arbiter.io_timeout_ms * MS:
                ctx.wake(self.leave_at + self.config.arbiter.io_timeout_ms * MS)
                return
            waiting = [
                g for g, (_, to) in state.handed.items()
                if not state.owner(g) and not state.peers[to].flags & NodeFlag.LEAVING
            ]  # fmt: skip
            if waiting and ctx.now < self.leave_at + 2 * hb.dead_after_ms * MS:
                ctx.wake(self.leave_at + 2 * hb.dead_after_ms * MS)
                return
            for name, lease in state.leases.items():
                peer = state.peers.get(state.owner(name))
                # `none` has accepted that a silent peer may still run: its owner goes on by itself when we are gone.
                keeps = self.config.arbiter.type != "none"
                if (
                    keeps
                    and peer is not None
                    and (not lease.promise_stands(ctx.now) or lease.promised_to == peer.holder)
                ):
                    lease.leave_to(peer.name, peer.holder, hb.dead_after_ms, ctx.wall_ms())
                elif lease.slot_seq >= 0 and lease.call is None and self.config.arbiter.type != "none":
                    lease.farewell(ctx)
            self.leave_stage = 2
            self.persist()
            self.leave_version, self.leave_at = self.version, ctx.now
        if self.leave_stage == 2 and ctx.now >= self.leave_at + 1000 * MS:
            for lease in state.leases.values():
                lease.end_forever()  # told to nobody
            self._exit("left, though the store did not answer: no promise is kept beyond its ordinary time")
            return
        if self.leave_stage == 2:
            ctx.wake(self.leave_at + 1000 * MS)
        elif self.leave_stage == 3:
            busy = any(x.call is not None for x in state.leases.values())
            end = self.leave_at + (2 * hb.interval_ms + (self.config.arbiter.io_timeout_ms if busy else 0)) * MS
            if ctx.now >= end:
                self._exit("left in order")
            else:
                ctx.wake(end)

    def retire(self, leave: Exit) -> None:
        """Make room for the next engine, under a new configuration."""
        self.retired = True
        self.persist()
        self.ctx.emit(leave)
        self.gone = True

    def _exit(self, text: str) -> None:
        self.persist()
        self.ctx.emit(Exit(text))
        self.gone = True
