"""The engine: one pure step from an event to effects. Here the parts meet; what each decides stands in its own file.

    lease.py        may this node run a group, and until when            (design rules 1 to 3)
    guard.py        what the guardian lets live                          (rule 4)
    peers.py        whose word is fresh                                  (rule 8)
    arbitration.py  when the arbiter is asked
    placement.py    who is wanted to run a group, and why                (rules 9 to 11)
    running.py      the services of a group on its owner
    commands.py     the administrator's word
    exchange.py     what nodes tell each other; board.py what they know together; journal.py what happened

step() takes the clock that was read before it, and returns effects to be executed in order. next_deadline_ns() is when it
wants to be called again; being called earlier, or late, is always allowed, and lateness is counted.
"""

from __future__ import annotations

from typing import Any

from hasnmp.core import arbitration, placement, view
from hasnmp.core.board import EXCLUDED, RECOVERING, Board, GroupFacts, ServiceFacts
from hasnmp.core.commands import Commands
from hasnmp.core.context import MS, NEVER, Context
from hasnmp.core.events import (
    AgentResult,
    ArbiterAnswer,
    CommandIn,
    Effect,
    Event,
    Exit,
    Extend,
    Extended,
    Persist,
    Persisted,
    Received,
    Rejected,
    Released,
    Send,
    Sent,
    ServiceExited,
    Shutdown,
    Started,
    Tick,
)
from hasnmp.core.exchange import Stream
from hasnmp.core.journal import Journal, number_of
from hasnmp.core.lease import TAKER_PART, UNKNOWN_HOLDER, Lease, Phase
from hasnmp.core.peers import Asked, Link, Peer, forget_old, silence, take_in
from hasnmp.core.running import Run, Running, Stage
from hasnmp.core.state import State
from hasnmp.model import Kind, LinkState, NodeState, Proof, Reason, Role, View
from hasnmp.settings import Config
from hasnmp.wire import Datagram, DatagramKind, GroupEntry, GroupFlag, NodeFlag

ROOM = 100  # tokens are made durable this many ahead, so that no takeover waits for the store
TELL_MS = 2000  # how often an owner tells its counters
PERSIST_MS = 500  # at most one document each
COUNTERS_MS = 60_000  # how often the counters alone are made durable
LEAVE_MS = 3000  # beyond the groups' own time limits, how long an orderly leave may take


class Engine:
    """A pure state machine: no clock, no randomness, no I/O. One instance is one incarnation."""

    def __init__(self, config: Config, node: str, version: str) -> None:
        """Raises KeyError: the configuration has no such node."""
        mine = config.node(node)
        ctx = Context(config, node)
        journal = Journal(node, config.events_keep)
        board = Board({g.name: GroupFacts() for g in config.groups}, {s.name: ServiceFacts() for s in config.services()})
        self.ctx = ctx
        self.config = config
        self.state = State(
            config, node, version, ctx,
            peers={
                n.name: Peer(n.name, {k: Link(k, a) for k, a in n.links.items() if k in mine.links})
                for n in config.nodes if n.name != node
            },
            streams={n.name: Stream() for n in config.nodes if n.name != node},
            leases={g.name: Lease(g, node, tuple(n for n in g.nodes if n != node)) for g in config.groups},
            running={
                g.name: Running(g, node, [Run(s, board.services[s.name]) for s in g.services], journal, board.registers)
                for g in config.groups
            },
            board=board, journal=journal,
        )  # fmt: skip
        self.commands = Commands(self.state)
        self.seq = 0
        self.beat_at = 0
        self.persisting: dict[int, int] = {}  # version of a Persist under way -> the ceiling in it
        self.document_version = 0
        self.counters_at = 0
        self.told_groups: dict[str, tuple[Any, ...]] = {}
        self.told_node: dict[str, Any] = {}
        self.leave_stage = 0
        self.leave_at = 0
        self.gone = False  # Exit was emitted

    # ------------------------------------------------------------------------------------------------------- step

    def step(self, event: Event, now_ns: int) -> tuple[Effect, ...]:
        """Take one event in at now_ns (CLOCK_BOOTTIME, read before the call); returns the effects, in order."""
        ctx = self.ctx
        ctx.now, ctx.out = now_ns, []
        if self.gone:
            return ()
        late_ns = now_ns - ctx.deadline
        if isinstance(event, Tick):
            ctx.wall_offset_ms = event.wall_ms - now_ns // MS
            if late_ns > 0 and ctx.deadline:
                self.state.journal.worst(late_ns // 1000)
        self._take(event)
        if not self.state.started_ns:
            return ()  # nothing but Started begins an engine
        rounds = 0
        while ctx.dirty or (now_ns >= ctx.deadline and rounds == 0):
            self._look()
            rounds += 1
            if rounds >= 8:  # parts that answer each other within one moment come to rest long before this
                ctx.wake(now_ns + MS)
                break
        if ctx.beat or now_ns >= self.beat_at:
            self._beat()
        self._pump()
        return tuple(ctx.out)

    def next_deadline_ns(self) -> int:
        return NEVER if self.gone else min(self.ctx.deadline, self.beat_at)

    def view(self, now_ns: int, wall_ms: int) -> View:
        """The whole picture, as this node sees it."""
        self.ctx.now = now_ns
        return view.make(self.state, wall_ms)

    def why(self, group: str, now_ns: int) -> tuple[str, ...]:
        """What `hasnmp why` prints. Raises KeyError: no such group."""
        self.ctx.now = now_ns
        return placement.explain(self.state, self.config.group(group))

    def _take(self, event: Event) -> None:
        state, ctx = self.state, self.ctx
        match event:
            case Received():
                self._received(event.link, event.datagram)
            case Tick():
                pass
            case Sent():
                for lease in state.leases.values():
                    lease.sent(event.seq, event.at_ns)
            case Extended():
                for held in event.leases:
                    if held.group in state.leases:
                        state.leases[held.group].acknowledged(held, event.ok, ctx)
            case Released():
                self._released(event)
            case ArbiterAnswer():
                arbitration.answered(state, event)
                self._grant()
            case AgentResult():
                for running in state.running.values():
                    running.result(event, ctx)
            case ServiceExited():
                for running in state.running.values():
                    running.exited(event.service, event.pid, event.message, ctx)
            case CommandIn():
                self.commands.asked(event)
                ctx.dirty = True
            case Persisted():
                self._persisted(event)
            case Rejected():
                state.journal.count(f"rejected_{event.reason}", event.count)
            case Started():
                self._started(event)
            case Shutdown():
                state.leaving = ctx.dirty = ctx.beat = True
                self.leave_at = self.leave_at or ctx.now

    # ------------------------------------------------------------------------------------------------------ start

    def _started(self, event: Started) -> None:
        state, ctx, hb = self.state, self.ctx, self.config.heartbeat
        ctx.wall_offset_ms = event.wall_ms - ctx.now // MS
        ctx.random = event.random or 1
        ctx.attempts = event.random >> 12  # answers to a former engine's attempts may still arrive
        state.incarnation, state.holder, state.started_ns = event.incarnation, event.holder, ctx.now
        document = event.durable or {}
        state.journal.restore(document.get("journal") or {}, ctx)
        state.board.restore(document.get("board") or {}, ctx)
        ceiling = number_of(document.get("ceiling"))
        longest = max(hb.dead_after_ms, number_of(document.get("dead_after_ms")))
        owned = document.get("owned") or {}
        state.last_owner = {str(g): str(n) for g, n in (document.get("last_owner") or {}).items()}
        state.owned = {str(g): number_of(t) for g, t in owned.items() if g in state.leases}
        state.arbiter.uuid = str(document.get("uuid") or "")
        for name, lease in state.leases.items():
            lease.holder = event.holder
            lease.token_floor = ceiling
            # What the former engine promised died with it: act as if it had just promised everything, for the longest.
            lease.promised_to = UNKNOWN_HOLDER
            lease.promised_until = ctx.now + longest * MS * TAKER_PART // 100
            self._restore_leave(lease, (document.get("forever") or {}).get(name))
        if document.get("holder") == event.holder:
            for name, left in (document.get("left") or {}).items():
                if name in state.leases:
                    state.leases[name].left = {str(n): number_of(ms) for n, ms in left.items()}
        for held in event.leases:
            if held.group in state.leases and held.until_ns - hb.kill_ms * MS > ctx.now:
                state.leases[held.group].adopt(held, ctx.now)
                state.owned[held.group] = held.token
                state.last_owner[held.group] = self.state.me
        for adopted in event.adopted:
            group = next((s.group for s in self.config.services() if s.name == adopted.service), "")
            if group and state.owns(group):
                state.adopted.setdefault(group, {})[adopted.service] = adopted.pid
        if document and not document.get("left_in_order"):
            me = state.me
            state.journal.happened(
                ctx, Kind.ENGINE_DOWN, f"the engine of {me} had ended without leaving", of=me, reason=Reason.RESTART
            )
            state.journal.clear(ctx, Kind.ENGINE_UP, me, f"the engine of {me} is up", reason=Reason.RESTART)
        if event.cleaned:
            what = f"found running without a lease, and ended: {', '.join(event.cleaned)}"
            state.journal.happened(ctx, Kind.GUARDIAN_LOST, what, of=state.me, reason=Reason.GUARDIAN)
            state.journal.clear(ctx, Kind.GUARDIAN_RESTORED, state.me, "nothing runs here without a lease any more")
        ctx.deadline = ctx.now
        ctx.dirty = ctx.beat = True
        self._persist()

    def _restore_leave(self, lease: Lease, saved: Any) -> None:
        """A promise that this node left when it stopped in order stands until its holder is heard, or seen gone."""
        if not isinstance(saved, list) or len(saved) != 5:
            return
        lease.promised_to, lease.promised_node = str(saved[0]), str(saved[1])
        lease.promised_token, lease.forever_ms, lease.forever_seq = (number_of(x) for x in saved[2:])

    # -------------------------------------------------------------------------------------------------- datagrams

    def _received(self, link: str, d: Datagram) -> None:
        state, ctx = self.state, self.ctx
        peer = state.peers.get(d.sender)
        if peer is None or d.receiver != state.me:
            state.journal.count("rejected_foreign")
            return
        if not d.flags & NodeFlag.LEAVING and d.incarnation not in peer.retired:
            for lease in state.leases.values():
                if lease.left.pop(peer.name, None) is not None:  # before any answer: it must not think that we count on it
                    state.journal.changed = True
        heard, refused = take_in(peer, link, d, state.incarnation, ctx)
        if refused:
            state.journal.count(f"rejected_{refused}")
        if not heard.fresh:
            if d.kind is DatagramKind.HEARTBEAT and refused in ("", "stale"):
                self._send(peer, DatagramKind.ANSWER, link=link, echo=(d.incarnation, d.seq))
            return
        stream = state.streams[peer.name]
        if heard.restarted:
            self._met(peer, stream)
        if heard.first:
            self._note_life(peer, d)
        way = peer.links[link]
        if way.state is not LinkState.UP:
            self._link_up(peer, way)
        if heard.first and not state.leaving:
            for lease in state.leases.values():
                if lease.forever_ms:
                    lease.heard_holder(peer.name, d.holder, ctx.now)
        if d.kind is DatagramKind.HEARTBEAT:
            state.journal.count("heartbeats_received", int(heard.first))
            peer.received += heard.first
            if heard.first:
                self._heartbeat(peer, d)
            self._answer(peer, link, d)
        elif d.kind is DatagramKind.ANSWER:
            for entry in d.groups:
                asked_of = state.leases.get(entry.group)
                if asked_of is not None and entry.flags & GroupFlag.PROMISE:
                    asked_of.promised(peer.name, entry, heard.asked_ns)
            self._grant()
        stream.acknowledged(d.ack)
        if d.stream:
            for key, value in stream.take(d.stream, d.payload):
                self._fact(peer, key, value)
            if not stream.queue and not stream.under_way:
                self._send(peer, DatagramKind.EXCHANGE, link=link)  # only acknowledges

    def _met(self, peer: Peer, stream: Stream) -> None:
        """A new incarnation of the peer: tell it everything, and hear it at once."""
        state = self.state
        stream.begin()
        for key, value in state.board.registers.values.items():
            stream.put(f"r/{key}", value)
        self.told_groups.clear()
        self.told_node = {}
        for group, running in state.running.items():
            if state.owns(group):
                running.told.update(r.settings.name for r in running.runs)
        self.ctx.dirty = self.ctx.beat = True

    def _note_life(self, peer: Peer, d: Datagram) -> None:
        state, ctx = self.state, self.ctx
        if peer.late:
            peer.late = False
            state.journal.clear(
                ctx, Kind.HEARTBEAT_RESTORED, peer.name, f"{peer.name} is heard again", peer=peer.name,
                reason=Reason.HEARTBEAT,
            )  # fmt: skip
        if d.kind is DatagramKind.HEARTBEAT and d.flags != peer.flags:
            peer.flags = d.flags
            ctx.dirty = True
        new = NodeState.STARTING if peer.flags & NodeFlag.STARTING else NodeState.UP
        if peer.state is new or (peer.state is NodeState.LEFT and peer.flags & NodeFlag.LEAVING):
            return
        before, peer.state, peer.changed_ns = peer.state, new, ctx.now
        peer.transitions += 1
        ctx.dirty = True
        if new is NodeState.UP or before is NodeState.LOST:
            state.journal.clear(
                ctx, Kind.NODE_JOINED, peer.name, f"{peer.name} is {new.name.lower()}", peer=peer.name,
                peer_state=int(new), previous=int(before), state=int(new), reason=Reason.HEARTBEAT,
                common=f"{peer.name}/{peer.incarnation:x}/joined",
            )  # fmt: skip

    def _link_up(self, peer: Peer, link: Link) -> None:
        before, link.state, link.changed_ns = link.state, LinkState.UP, self.ctx.now
        link.transitions += 1
        self.state.journal.clear(
            self.ctx, Kind.LINK_UP, f"{peer.name}/{link.name}", f"link {link.name} to {peer.name} carries again",
            peer=peer.name, link=link.name, previous=int(before), state=int(LinkState.UP), reason=Reason.LINK,
        )  # fmt: skip

    def _heartbeat(self, peer: Peer, d: Datagram) -> None:
        """What a fresh heartbeat says of each group."""
        state, ctx = self.state, self.ctx
        if d.groups == peer.said:
            return  # as most are
        peer.said = d.groups
        peer.groups = {e.group: e for e in d.groups}
        ctx.dirty = True
        for entry in d.groups:
            lease = state.leases.get(entry.group)
            if lease is None:
                continue
            if entry.flags & GroupFlag.OWNER or not entry.flags & GroupFlag.ASK:
                lease.hear_floor(entry.token)  # what is only asked for was not used yet
            if entry.flags & GroupFlag.OWNER:
                lease.learn(entry.token, peer.name)
            elif entry.flags & GroupFlag.RELEASED:
                lease.heard_release(entry, peer.name, d.holder)
                if entry.flags & GroupFlag.HANDOVER and entry.token == lease.token_seen:
                    placement.heard_handover(state, entry.group, peer.name, entry.token)

    def _answer(self, peer: Peer, link: str, d: Datagram) -> None:
        """Answer a fresh heartbeat over its own link, with the promises that it asked for and gets."""
        state, ctx = self.state, self.ctx
        self.seq += 1
        seq, promises = self.seq, []
        same = d.digest == self.config.digest
        for entry in d.groups:
            lease = state.leases.get(entry.group)
            if lease is None or not entry.flags & GroupFlag.ASK or peer.name not in lease.group.nodes:
                continue
            if not same and not entry.flags & GroupFlag.OWNER:
                continue  # while configurations differ nobody acquires, and owners keep what they have
            promise = lease.answer(entry, d, seq, ctx, self.config.heartbeat.dead_after_ms)
            if promise is not None:
                promises.append(promise)
        self._send(peer, DatagramKind.ANSWER, link=link, groups=tuple(promises), seq=seq, receipt=bool(promises))

    def _fact(self, peer: Peer, key: str, value: Any) -> None:
        """One fact of a peer's stream; what this version does not know is left alone."""
        state, ctx = self.state, self.ctx
        kind, _, name = key.partition("/")
        try:
            if kind == "r":
                if state.board.registers.merge(name, value):
                    ctx.dirty = state.journal.changed = True
            elif kind == "g" and name in state.leases and not state.owns(name):
                if state.board.hear_group(name, value, ctx):
                    ctx.dirty = True
            elif kind == "s":
                group = next((s.group for s in self.config.services() if s.name == name), "")
                if group and not state.owns(group):
                    state.board.hear_service(name, value, ctx)
            elif kind == "n" and isinstance(value, dict):
                state.peer_docs[peer.name] = value
                self._compare_arbiter(peer.name, value)
            else:
                self.commands.told(key, value, peer.name)
        except (TypeError, ValueError, KeyError, IndexError, StopIteration):
            state.journal.count("rejected_malformed")

    def _compare_arbiter(self, node: str, doc: dict[str, Any]) -> None:
        """Do the peer and this node use one lease disk? By its UUID, and by the sequence numbers that it wrote there."""
        health = self.state.arbiter
        uuid = str(doc.get("uuid") or "")
        before = dict(health.mismatch)
        health.mismatch.pop(node, None)
        if uuid and health.uuid and uuid != health.uuid:
            health.mismatch[node] = f"{node} uses arbiter {uuid}, this node {health.uuid}"
        if health.mismatch != before:
            arbitration.refresh(self.state)

    # -------------------------------------------------------------------------------------------------- the look

    def _look(self) -> None:
        """Everything that time or a change may ask for; each part wakes the engine for what it waits for."""
        state, ctx = self.state, self.ctx
        ctx.dirty = False
        ctx.deadline = ctx.now + 1000 * MS
        self._look_peers()
        self._look_start()
        for group in self.config.groups:
            lease, running = state.leases[group.name], state.running[group.name]
            self._look_taken(group.name, lease)
            placement.look(state, group)
            running.look(ctx, lease.alive(ctx))
            if lease.alive(ctx):
                running.reconcile(ctx)
                if running.stage is Stage.RUNNING and not running.announced:
                    running.announced = True
                    placement.came_up(state, group)
            arbitration.look(state, lease)
            self._note_group(group.name, lease, running)
        self._grant()
        self.commands.look()
        arbitration.refresh(state)
        self._look_guardian()
        self._look_role()
        self._tell()
        if state.leaving:
            self._leave()
        self._look_durable()

    def _look_peers(self) -> None:
        state, ctx, hb = self.state, self.ctx, self.config.heartbeat
        for peer in state.peers.values():
            late, lost, down = silence(peer, ctx)
            if lost:
                self._lost(peer)
                continue
            if late and not peer.late:
                peer.late = True
                peer.late_count += 1
                state.journal.count("heartbeats_late")
                state.journal.happened(
                    ctx, Kind.HEARTBEAT_LOST,
                    f"no heartbeat of {peer.name} for {hb.late_after_ms} ms; it counts as lost after {hb.dead_after_ms} ms",
                    of=peer.name, peer=peer.name, peer_state=int(peer.state), reason=Reason.HEARTBEAT,
                )  # fmt: skip
            for link in down:
                before, link.state, link.changed_ns = link.state, LinkState.DOWN, ctx.now
                link.transitions += 1
                state.journal.happened(
                    ctx, Kind.LINK_DOWN,
                    f"link {link.name} to {peer.name} ({link.address}) is silent for {hb.dead_after_ms} ms while "
                    f"{peer.name} is heard over another", of=f"{peer.name}/{link.name}", peer=peer.name, link=link.name,
                    previous=int(before), state=int(LinkState.DOWN), peer_state=int(peer.state), reason=Reason.LINK,
                )  # fmt: skip
            differs = peer.heard() and peer.digest != self.config.digest
            if differs:
                state.journal.happened(
                    ctx, Kind.CONFIG_MISMATCH,
                    f"the configuration of {peer.name} ({peer.digest}) differs from ours ({self.config.digest}) in nodes, "
                    "links, times, arbiter or groups; nobody takes a group until the files are equal",
                    of=peer.name, peer=peer.name, reason=Reason.CONFIGURATION,
                )  # fmt: skip
            elif state.journal.alarms and peer.heard():
                state.journal.clear(
                    ctx, Kind.CONFIG_RESOLVED, peer.name, f"the configuration of {peer.name} equals ours", peer=peer.name
                )

    def _lost(self, peer: Peer) -> None:
        state, ctx = self.state, self.ctx
        left = bool(peer.flags & NodeFlag.LEAVING)
        before, peer.state = peer.state, NodeState.LEFT if left else NodeState.LOST
        peer.changed_ns = ctx.now
        peer.transitions += 1
        for link in peer.links.values():
            link.state = LinkState.DOWN
        ctx.dirty = True
        common = f"{peer.name}/{peer.incarnation:x}/lost"
        if left:
            state.journal.clear(ctx, Kind.HEARTBEAT_RESTORED, peer.name, f"{peer.name} left in order", peer=peer.name)
            return
        owns = [g for g in state.leases if (e := peer.groups.get(g)) is not None and e.flags & GroupFlag.OWNER]
        state.journal.happened(
            ctx, Kind.NODE_LOST,
            f"{peer.name} is silent on every link for {self.config.heartbeat.dead_after_ms} ms"
            + (f"; it had {', '.join(owns)}" if owns else "; it had no group"),
            of=peer.name, peer=peer.name, peer_state=int(peer.state), previous=int(before), state=int(peer.state),
            reason=Reason.HEARTBEAT, common=common,
        )  # fmt: skip

    def _look_start(self) -> None:
        """A starting node listens first; the wait ends early once every peer was heard."""
        state, ctx = self.state, self.ctx
        if not state.starting:
            return
        end = state.started_ns + self.config.heartbeat.startup_wait_ms * MS
        if all(p.heard() for p in state.peers.values()) or ctx.now >= end:
            state.starting = False
            ctx.dirty = ctx.beat = True
        else:
            ctx.wake(end)

    def _look_taken(self, group: str, lease: Lease) -> None:
        """Design rule 10: another holder took a group from this node since it last owned it."""
        state = self.state
        token = state.owned.get(group)
        if token is None or state.owns(group) or lease.token_seen <= token or lease.seen_owner in ("", state.me):
            return
        del state.owned[group]
        state.last_owner[group] = lease.seen_owner
        state.journal.changed = True
        if self.config.recovery_automatic or state.board.registers.get(RECOVERING, state.me):
            return
        why = f"{lease.seen_owner} took group {group} from it"
        state.set_register(RECOVERING, state.me, why)
        state.journal.happened(
            self.ctx, Kind.RECOVERY_NEEDED,
            f"{state.me} is recovering: {why}; when it is sound: hasnmp recover {state.me}", of=state.me, group=group,
            reason=Reason.RECOVERY,
        )  # fmt: skip

    def _note_group(self, name: str, lease: Lease, running: Running) -> None:
        """Keep the facts of an owned group as its owner's word, and end alarms that no longer hold."""
        state, ctx = self.state, self.ctx
        facts, registers = state.board.groups[name], state.board.registers
        if lease.phase in (Phase.HELD, Phase.RELEASING) and lease.acked:
            now_state = running.state()
            if (facts.owner, facts.state, facts.token) != (state.me, now_state, lease.token):
                facts.owner, facts.state, facts.token = state.me, now_state, lease.token
                facts.changed_ns = ctx.now
                facts.transitions += 1
            facts.lease_until_ns, facts.proof, facts.data_ns = lease.acked, lease.proof(ctx.now), ctx.now
            horizon = ctx.wall_ms() - running.group.failover_within_s * 1000
            if state.journal.alarms and len([m for m in facts.moves if m > horizon]) < running.group.failover_limit:
                state.journal.clear(
                    ctx, Kind.FAILOVER_LIMIT_CLEARED, name, f"group {name} may be moved again for a failed service", group=name
                )
        elif facts.owner == state.me and not state.owns(name):
            facts.owner, facts.lease_until_ns, facts.proof = "", 0, Proof.NONE
            running.gone(ctx)
        elif state.journal.alarms and state.owner(name):
            for run in running.runs:  # it is the new owner's to tell of its services
                state.journal.clear(
                    ctx, Kind.SERVICE_RECOVERED, run.settings.name, f"service {run.settings.name} is with {facts.owner} now",
                    group=name, service=run.settings.name,
                )  # fmt: skip
            state.journal.clear(ctx, Kind.GROUP_RESTORED, name, f"group {name} is with {state.owner(name)} now", group=name)
            state.journal.clear(
                ctx, Kind.FAILOVER_LIMIT_CLEARED, name, f"group {name} is with {state.owner(name)} now", group=name
            )
        tried = state.journal.alarms and state.owns(name)
        if tried and not all(registers.get(EXCLUDED, f"{name}/{n}") for n in running.group.nodes):
            state.journal.clear(ctx, Kind.GROUP_RESTORED, name, f"group {name} is tried again", group=name)

    def _look_guardian(self) -> None:
        """A lease that has run out while this engine lives: the guardian, which should have killed it, does not act."""
        for name, lease in self.state.leases.items():
            if lease.phase is Phase.LOST:
                if self.ctx.now >= lease.acked:
                    text = f"the lease of {name} ended {(self.ctx.now - lease.acked) // MS} ms ago and the guardian did not act"
                    self.ctx.emit(Exit(text, force=True))
                    self.gone = True
                    return
                self.ctx.wake(lease.acked)

    def _look_role(self) -> None:
        state, ctx = self.state, self.ctx
        mine = [g for g in self.config.groups if state.me in g.nodes]
        have = [g for g in mine if state.owns(g.name)]
        if state.board.registers.get(RECOVERING, state.me):
            role = Role.RECOVERING
        else:
            state.journal.clear(ctx, Kind.RECOVERED, state.me, f"{state.me} is recovered", reason=Reason.RECOVERY)
            if state.starting or (state.leaving and not have):
                role = Role.OFFLINE
            else:
                role = Role.PRIMARY if have and len(have) == len(mine) else Role.SHARED if have else Role.STANDBY
        if role is state.role:
            return
        before, state.role = state.role, role
        state.role_changes += 1
        state.role_changed_ns = ctx.now
        state.journal.role = int(role)
        state.journal.happened(
            ctx, Kind.ROLE_CHANGE, f"{state.me} is {role.name.lower()} (was {before.name.lower()})", previous=int(before),
            state=int(role),
        )  # fmt: skip

    # ------------------------------------------------------------------------------------------------------ leases

    def _grant(self) -> None:
        """Hand what the leases gained to the guardian, all groups in one message."""
        held = tuple(h for lease in self.state.leases.values() if (h := lease.grant(self.ctx)) is not None)
        if held:
            self.ctx.emit(Extend(held))

    def _released(self, event: Released) -> None:
        state = self.state
        lease = state.leases.get(event.group)
        if lease is None or lease.phase is not Phase.RELEASING or lease.token != event.token:
            return
        if event.ok:
            placement.released(state, event.group)
            return
        # Something of the group is left: the lease stays, and the stop is tried again from its end.
        lease.phase = Phase.HELD
        running = state.running[event.group]
        last = running.runs[0]
        running.leftover(last, event.text, self.ctx)

    # -------------------------------------------------------------------------------------------------- sending

    def _beat(self) -> None:
        """A heartbeat to every peer over every link, and the books of what was sent."""
        state, ctx, hb = self.state, self.ctx, self.config.heartbeat
        ctx.beat = False
        if ctx.now >= self.beat_at:
            # In step with the clock, not with our own delays; but never two at once after a pause.
            self.beat_at = max(self.beat_at + hb.interval_ms * MS, ctx.now + hb.interval_ms * MS // 2)
        for peer in state.peers.values():
            forget_old(peer, ctx)
            self._send(peer, DatagramKind.HEARTBEAT, groups=tuple(self._entry(g, peer.name) for g in state.leases))
            for link in peer.links.values():
                link.sent += 1
            state.journal.count("heartbeats_sent")

    def _entry(self, group: str, to: str) -> GroupEntry:
        state = self.state
        lease = state.leases[group]
        flags, token = GroupFlag(0), lease.token_floor
        if lease.phase is Phase.TAKING or (lease.phase is Phase.HELD and not lease.acked):
            flags, token = GroupFlag.ASK, lease.token
        elif lease.alive(self.ctx):
            flags, token = GroupFlag.ASK | GroupFlag.OWNER, lease.token
        elif lease.phase is Phase.NONE and lease.released_token:
            flags, token = GroupFlag.RELEASED, lease.released_token
            if state.handed.get(group) == (lease.released_token, to):
                flags |= GroupFlag.HANDOVER
        if not state.unable(group):
            flags |= GroupFlag.ABLE
        return GroupEntry(group, flags, token)

    def _send(
        self, peer: Peer, kind: DatagramKind, *, link: str = "", groups: tuple[GroupEntry, ...] = (), seq: int = 0,
        receipt: bool = False, echo: tuple[int, int] | None = None, payload: bytes = b"",
    ) -> None:  # fmt: skip
        state, ctx = self.state, self.ctx
        if not seq:
            self.seq += 1
            seq = self.seq
        peer.asked[seq] = Asked(ctx.now, kind is DatagramKind.HEARTBEAT)
        stream = state.streams[peer.name]
        flags = NodeFlag(0)
        if state.starting:
            flags |= NodeFlag.STARTING
        if state.leaving:
            flags |= NodeFlag.LEAVING
        echoed = echo or peer.echo
        ctx.emit(
            Send(
                Datagram(
                    kind, state.me, peer.name, state.incarnation, seq, echoed[0], echoed[1], state.holder,
                    self.config.digest, flags, groups, stream.position if payload else 0, stream.received, payload,
                ),
                link, receipt,
            )
        )  # fmt: skip

    def _pump(self) -> None:
        """Send what the streams have; again what was not acknowledged for two intervals."""
        for name, stream in self.state.streams.items():
            if not stream.queue and not stream.under_way:
                continue
            peer = self.state.peers[name]
            if peer.heard():
                payload = stream.next(self.ctx, 2 * self.config.heartbeat.interval_ms * MS)
                if payload:
                    self._send(peer, DatagramKind.EXCHANGE, payload=payload)

    def _tell(self) -> None:
        """Queue for every peer what changed of our own groups and services; the counters now and then."""
        state, ctx = self.state, self.ctx
        refresh = ctx.now >= state.tell_at
        if refresh:
            state.tell_at = ctx.now + TELL_MS * MS
        ctx.wake(state.tell_at)
        news: dict[str, Any] = {}
        for name, running in state.running.items():
            facts = state.board.groups[name]
            mine = state.owns(name) or (facts.owner == "" and state.last_owner.get(name) == state.me)
            if not mine:
                running.told.clear()
                continue
            key = (
                facts.owner, facts.token, facts.state, facts.transitions, facts.failovers, len(facts.moves), facts.reason,
                facts.reason_text, facts.duration_ms, facts.proof, facts.decided_ms,
            )  # fmt: skip
            if refresh or self.told_groups.get(name) != key:
                self.told_groups[name] = key
                news[f"g/{name}"] = facts.to_json(ctx.now)
            names = {r.settings.name for r in running.runs} if refresh else running.told
            for service in sorted(names):
                news[f"s/{service}"] = state.board.services[service].to_json(ctx.now)
            running.told.clear()
        node = {"version": state.version, "uuid": state.arbiter.uuid, "role": int(state.role)}
        if refresh or node != self.told_node:
            self.told_node = node
            news["n/"] = node
        for peer, stream in state.streams.items():
            if state.peers[peer].heard():
                for name, value in news.items():
                    stream.put(name, value)

    # ---------------------------------------------------------------------------------------------------- durable

    def _look_durable(self) -> None:
        state, ctx = self.state, self.ctx
        need = max((x.next_token() for x in state.leases.values()), default=0)
        if need + ROOM // 5 > state.ceiling and need + ROOM // 5 > max(self.persisting.values(), default=0):
            self._persist()
        elif state.journal.changed or ctx.now >= self.counters_at:
            if ctx.now >= state.persist_at:
                self._persist()
            else:
                ctx.wake(state.persist_at)

    def _persist(self) -> None:
        state, ctx = self.state, self.ctx
        state.journal.changed = False
        state.persist_at = ctx.now + PERSIST_MS * MS
        self.counters_at = ctx.now + COUNTERS_MS * MS
        self.document_version += 1
        ceiling = max(max((x.next_token() for x in state.leases.values()), default=0) + ROOM, state.ceiling)
        self.persisting[self.document_version] = ceiling
        document = {
            "journal": state.journal.document(), "board": state.board.document(ctx), "ceiling": ceiling,
            "dead_after_ms": self.config.heartbeat.dead_after_ms, "owned": dict(state.owned),
            "last_owner": dict(state.last_owner), "uuid": state.arbiter.uuid, "holder": state.holder,
            "left": {n: dict(x.left) for n, x in state.leases.items() if x.left},
            "forever": {
                n: [x.promised_to, x.promised_node, x.promised_token, x.forever_ms, x.forever_seq]
                for n, x in state.leases.items() if x.forever_ms
            },
            "left_in_order": self.leave_stage > 0,
        }  # fmt: skip
        ctx.emit(Persist(self.document_version, document))

    def _persisted(self, event: Persisted) -> None:
        state, ctx = self.state, self.ctx
        ceiling = self.persisting.get(event.version, 0)
        for version in [v for v in self.persisting if v <= event.version]:
            del self.persisting[version]
        ctx.dirty = True
        if event.ok:
            state.ceiling = max(state.ceiling, ceiling)
            if self.leave_stage == 2 and event.version >= self.leave_version:
                self.leave_stage, self.leave_at = 3, ctx.now
                ctx.beat = True
        else:
            state.journal.changed = True
            state.persist_at = ctx.now + 1000 * MS

    # ------------------------------------------------------------------------------------------------------- leave

    leave_version = 0

    def _leave(self) -> None:
        """Stop in order: groups moved away (placement), then promises left for ever, then gone."""
        state, ctx, hb = self.state, self.ctx, self.config.heartbeat
        limit = max((sum(s.stop_timeout_ms for s in g.services) for g in self.config.groups), default=0) + LEAVE_MS
        if self.leave_stage == 0:
            for lease in state.leases.values():
                if lease.phase is Phase.TAKING:
                    lease.abandon(ctx, f"{state.me} is stopping")
            if any(x.phase is not Phase.NONE for x in state.leases.values()):
                if ctx.now < self.leave_at + limit * MS:
                    ctx.wake(self.leave_at + limit * MS)
                    return
                self._exit("stopped with groups that could not be stopped in order; the guardian ends them by force")
                return
            self.leave_stage, self.leave_at = 1, ctx.now
        if self.leave_stage == 1:
            waiting = [g for g in state.handed if not state.owner(g)]
            if waiting and ctx.now < self.leave_at + 2 * hb.dead_after_ms * MS:
                ctx.wake(self.leave_at + 2 * hb.dead_after_ms * MS)
                return
            for name, lease in state.leases.items():
                peer = state.peers.get(state.owner(name))
                if peer is not None and (not lease.promise_stands(ctx.now) or lease.promised_to == peer.holder):
                    lease.leave_to(peer.name, peer.holder, hb.dead_after_ms)
                elif lease.slot_seq >= 0 and lease.call is None and self.config.arbiter.type != "none":
                    lease.farewell(ctx)
            self.leave_stage = 2
            self._persist()
            self.leave_version, self.leave_at = self.document_version, ctx.now
        if self.leave_stage == 2 and ctx.now >= self.leave_at + 1000 * MS:
            self._exit("left, though the store did not answer: the promises were not kept")
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

    def _exit(self, text: str) -> None:
        self._persist()
        self.ctx.emit(Exit(text))
        self.gone = True
