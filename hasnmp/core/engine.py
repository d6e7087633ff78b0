"""The engine: one pure step from an event to effects. Here the parts meet; what each decides stands in its own file.

    lease.py        may this node run a group, and until when            (design rules 1 to 3)
    guard.py        what the guardian lets live                          (rule 4)
    peers.py        whose word is fresh                                  (rule 8)
    arbitration.py  when the arbiter is asked
    placement.py    who is wanted to run a group, and why                (rules 9 to 11); moving.py: a move under way
    running.py      the services of a group on its owner
    commands.py     the administrator's word; following.py: what came of it
    talk.py         what goes between nodes; exchange.py their ordered stream; board.py what they know together
    journal.py      what happened; noting.py: facts and role; durable.py what outlives an engine, and the orderly leave
    reload.py       a new configuration; apply.py one for all nodes at once

step() takes the clock that was read before it, and returns effects to be executed in order. next_deadline_ns() is when it
wants to be called again; being called earlier, or late, is always allowed, and lateness is counted.
"""

from __future__ import annotations

from hasnmp.core import arbitration, fence_acts, fencing, moving, noting, placement, split_brain, view
from hasnmp.core.board import Board, GroupFacts, ServiceFacts
from hasnmp.core.commands import Commands
from hasnmp.core.context import MS, NEVER, Context
from hasnmp.core.durable import Durable
from hasnmp.core.events import (
    AgentResult,
    ArbiterAnswer,
    CommandIn,
    Effect,
    Event,
    Exit,
    Extended,
    Fenced,
    HookEnded,
    Persisted,
    Received,
    Rejected,
    Released,
    ReloadEnded,
    Retire,
    Sent,
    ServiceExited,
    Shutdown,
    Staged,
    Started,
    Tick,
    Troubled,
)
from hasnmp.core.exchange import Stream
from hasnmp.core.hooks import Hooks, failed
from hasnmp.core.journal import Journal, mapping
from hasnmp.core.lease import Lease, Phase
from hasnmp.core.peers import Link, Peer, silence
from hasnmp.core.reload import Reload
from hasnmp.core.running import Run, Running, Stage
from hasnmp.core.state import State
from hasnmp.core.talk import Talk
from hasnmp.model import Kind, LinkState, NodeState, Reason, View
from hasnmp.settings import Config
from hasnmp.wire import GroupFlag, NodeFlag

STEP_MS = 50  # less than that is a clock that is kept right


class Engine:
    """A pure state machine: no clock, no randomness, no I/O. One instance is one incarnation."""

    def __init__(self, config: Config, node: str, version: str) -> None:
        """Raises KeyError: the configuration has no such node."""
        mine = config.node(node)
        ctx = Context(config, node)
        journal = Journal(node, config.events_keep)
        board = Board(
            {g.name: GroupFacts() for g in config.groups}, {s.name: ServiceFacts() for s in config.services()}
        )
        self.ctx = ctx
        self.config = config
        self.state = State(
            config, node, version, ctx,
            peers={
                n.name: Peer(n.name, {k: Link(k, a) for k, a in n.links.items() if k in mine.links})
                for n in config.nodes if n.name != node
            },
            streams={n.name: Stream() for n in config.nodes if n.name != node},
            leases={g.name: Lease(g, node, tuple(n for n in g.asked() if n != node)) for g in config.groups},
            running={
                g.name: Running(
                    g, node, [Run(s, board.services[s.name]) for s in g.services], journal, board.registers,
                    Hooks(g.name, node, config.hooks, journal),
                )
                for g in config.groups
            },
            board=board, journal=journal, services={s.name: s for s in config.services()},
        )  # fmt: skip
        self.durable = Durable(self.state)
        self.reload = Reload(self.state, self.durable)
        self.commands = Commands(self.state, self.reload)
        self.talk = Talk(self.state, self.commands)

    # ------------------------------------------------------------------------------------------------------- step

    def step(self, event: Event, now_ns: int) -> tuple[Effect, ...]:
        """Take one event in at now_ns (CLOCK_BOOTTIME, read before the call); returns the effects, in order."""
        ctx = self.ctx
        ctx.now, ctx.out = now_ns, []
        if self.durable.gone:
            return ()
        late_ns = now_ns - ctx.deadline
        if isinstance(event, Tick):
            self._clock(event.wall_ms - now_ns // MS)
            self.state.journal.worst(max(event.late_us, late_ns // 1000 if ctx.deadline else 0))
        self._take(event)
        if not self.state.started_ns:
            return ()  # nothing but Started begins an engine
        rounds = 0
        while ctx.dirty or (now_ns >= ctx.deadline and rounds == 0):
            self._look()
            if self.reload.over:
                return tuple(ctx.out)  # no heartbeat: what it would say of the groups is for the next engine to say
            rounds += 1
            if rounds >= 8:  # parts that answer each other within one moment come to rest long before this
                ctx.wake(now_ns + MS)
                break
        self.talk.pump()
        if ctx.beat or now_ns >= self.talk.beat_at:
            self.talk.beat()  # last: where a link overtakes itself, it is the facts that come again, not what moves a group
        return tuple(ctx.out)

    def _clock(self, offset_ms: int) -> None:
        """Unix time minus CLOCK_BOOTTIME. Where somebody has set the clock, what is under way has begun by the new one too."""
        step_ms, self.ctx.wall_offset_ms = offset_ms - self.ctx.wall_offset_ms, offset_ms
        if abs(step_ms) >= STEP_MS:
            for facts in self.state.board.groups.values():
                facts.decided_ms += step_ms if facts.decided_ms else 0

    def next_deadline_ns(self) -> int:
        return NEVER if self.durable.gone else min(self.ctx.deadline, self.talk.beat_at)

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
                self.talk.received(event.link, event.datagram)
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
                self.state.grant()
            case AgentResult():
                for name, running in state.running.items():
                    if not state.over(name):
                        running.result(event, ctx)
            case ServiceExited():
                for name, running in state.running.items():
                    if not state.over(name):
                        running.exited(event.service, event.pid, event.message, ctx)
            case Fenced():
                fence_acts.answered(state, event)
            case HookEnded():
                self._hook_ended(event)
            case CommandIn():
                self.commands.asked(event)
                ctx.dirty = True
            case Persisted():
                self.durable.persisted(event)
            case Rejected():
                state.journal.count(f"rejected_{event.reason}", event.count)
                if event.peer in state.peers:
                    self._cant_talk(event.peer, event.text)
            case Started():
                self._started(event)
            case Retire():
                self.reload.begin(event)
            case Staged():
                self.commands.apply.staged(event)
            case Troubled():
                state.journal.process(ctx, event.name, event.text)
            case ReloadEnded():
                self.reload.ended(event)
                ctx.dirty = True
            case Shutdown():
                state.leaving = ctx.dirty = ctx.beat = True
                state.leaving_ns = state.leaving_ns or ctx.now
                self.durable.leave_at = self.durable.leave_at or ctx.now

    def _hook_ended(self, event: HookEnded) -> None:
        if (running := self.state.running.get(event.group)) is not None:
            running.hooks.ended(event, self.ctx)
            return
        for failure in event.failures:
            failed(self.state.journal, self.ctx, self.state.me, event.on, "", failure)

    # ------------------------------------------------------------------------------------------------------ start

    def _started(self, event: Started) -> None:
        state, ctx, hb = self.state, self.ctx, self.config.heartbeat
        ctx.wall_offset_ms = event.wall_ms - ctx.now // MS
        ctx.random = event.random or 1
        ctx.attempts = event.random >> 12  # answers to a former engine's attempts may still arrive
        state.incarnation, state.holder, state.started_ns = event.incarnation, event.holder, ctx.now
        state.watchdog_ms, state.watchdog_error, state.unclean = (
            event.watchdog_ms,
            event.watchdog_error,
            set(event.unclean),
        )
        self.durable.restore(event)
        for held in event.leases:
            if held.group in state.leases and held.until_ns - hb.kill_ms * MS <= ctx.now:
                state.leases[held.group].lapsed(held)
            elif held.group in state.leases:
                state.leases[held.group].adopt(held, ctx.now)
                self.durable.untold(held, mapping(event.durable))
                self.durable.resume(held, mapping(event.durable))
                state.owned[held.group] = held.token
                state.last_owner[held.group] = self.state.me
        self.durable.given_up(event, mapping(event.durable))
        for group, move, token in self.durable.resumed:
            self.commands.followed.again(group, move, token)
        for adopted in event.adopted:
            group = next((s.group for s in self.config.services() if s.name == adopted.service), "")
            if group and state.owns(group):
                state.adopted.setdefault(group, {})[adopted.service] = adopted.pid
        if event.durable and not event.replaced and not mapping(event.durable).get("left_in_order"):
            me = state.me
            state.journal.happened(
                ctx, Kind.ENGINE_DOWN, f"the engine of {me} had ended without leaving", of=me, reason=Reason.RESTART
            )
            state.journal.clear(ctx, Kind.ENGINE_UP, me, f"the engine of {me} is up", reason=Reason.RESTART)
        if event.cleaned:
            what = f"found running without a lease, and ended: {', '.join(event.cleaned)}"
            state.journal.happened(ctx, Kind.GUARDIAN_LOST, what, of=state.me, reason=Reason.GUARDIAN)
            state.journal.clear(ctx, Kind.GUARDIAN_RESTORED, state.me, "nothing runs here without a lease any more")
        noting.watchdog(state)
        self.reload.started(event)
        self.commands.apply.command = event.reload_command
        ctx.deadline = ctx.now
        ctx.dirty = ctx.beat = True
        self.durable.persist()

    # -------------------------------------------------------------------------------------------------- the look

    def _look(self) -> None:
        """Everything that time or a change may ask for; each part wakes the engine for what it waits for."""
        state, ctx = self.state, self.ctx
        ctx.dirty = False
        ctx.deadline = ctx.now + 1000 * MS
        self._look_peers()
        self._look_start()
        self.reload.look()
        if self.reload.over:
            return
        unable = {g: state.unable(g) for g in state.leases}
        if unable != state.unable_why:
            ctx.beat |= any(bool(why) is not bool(state.unable_why.get(g, "?")) for g, why in unable.items())
            state.unable_why = unable
        for group in self.config.groups:
            lease, running = state.leases[group.name], state.running[group.name]
            noting.taken(state, group.name, lease)
            fencing.learn(state, group)
            placement.look(state, group)
            split_brain.look(state, group)
            running.look(ctx, lease.alive(ctx))
            if lease.alive(ctx):
                running.reconcile(ctx)
                if running.stage is Stage.RUNNING and not running.announced:
                    running.announced = True
                    moving.came_up(state, group)
            arbitration.look(state, lease)
            noting.group(state, group.name, lease, running)
        self.state.grant()
        fence_acts.look(state)
        self.commands.followed.look()
        self.commands.apply.look()
        arbitration.refresh(state)
        self._look_guardian()
        noting.role_of_this_node(state)
        self.talk.tell()
        if state.leaving:
            self.durable.leave()
        self.durable.look()

    def _look_peers(self) -> None:
        state, ctx, hb = self.state, self.ctx, self.config.heartbeat
        for peer in state.peers.values():
            late, lost, down = silence(peer, ctx)
            if lost:
                self._lost(peer)
                continue
            if late and not peer.late and not peer.flags & NodeFlag.LEAVING:
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
            differs = peer.heard() and not self.config.goes_with(peer.digest)
            if differs:
                state.journal.happened(
                    ctx, Kind.CONFIG_MISMATCH,
                    f"the configuration of {peer.name} ({peer.digest}) differs from ours ({self.config.digest}) in nodes, "
                    "links, times, arbiter or groups; nobody takes a group until the files are equal",
                    of=peer.name, peer=peer.name, reason=Reason.CONFIGURATION,
                )  # fmt: skip
            elif state.journal.alarms and peer.heard():
                state.journal.clear(
                    ctx,
                    Kind.CONFIG_RESOLVED,
                    peer.name,
                    f"the configuration of {peer.name} equals ours",
                    peer=peer.name,
                )
            silent = state.journal.alarms.get(f"{Kind.CONFIG_MISMATCH.value}/{peer.name}/version")
            if silent is not None and peer.heard_ns > silent.since_ns:
                can = f"{peer.name} and this node can talk again"
                state.journal.clear(ctx, Kind.CONFIG_RESOLVED, f"{peer.name}/version", can, peer=peer.name)

    def _cant_talk(self, peer: str, text: str) -> None:
        """A peer whose signature is good speaks no version of the datagrams that this node does."""
        self.state.journal.happened(
            self.ctx, Kind.CONFIG_MISMATCH,
            f"{peer} and this node can't talk: {text}; each takes the other for lost until the older one is upgraded",
            of=f"{peer}/version", peer=peer, reason=Reason.CONFIGURATION,
        )  # fmt: skip

    def _lost(self, peer: Peer) -> None:
        state, ctx = self.state, self.ctx
        left = bool(peer.flags & NodeFlag.LEAVING)
        owns = [g for g in state.leases if (e := peer.groups.get(g)) is not None and e.flags & GroupFlag.OWNER]
        peer.forget()
        before, peer.state = peer.state, NodeState.LEFT if left else NodeState.LOST
        peer.changed_ns = ctx.now
        peer.transitions += 1
        state.journal.changed = True  # who left in order is durable
        for link in peer.links.values():
            link.state = LinkState.DOWN
        ctx.dirty = True
        fencing.lost(state, peer)
        common = f"{peer.name}/{peer.incarnation:x}/lost"
        if left:
            state.journal.clear(ctx, Kind.HEARTBEAT_RESTORED, peer.name, f"{peer.name} left in order", peer=peer.name)
            return
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
            for peer in state.peers.values():
                if not peer.heard_ns and peer.state is not NodeState.LEFT:
                    self._never_heard(peer)
        else:
            ctx.wake(end)

    def _never_heard(self, peer: Peer) -> None:
        """Not lost, for nobody knows it; but whoever relies on it must be told that nothing stands behind this node."""
        waited = self.config.heartbeat.startup_wait_ms
        self.state.journal.happened(
            self.ctx, Kind.NODE_LOST,
            f"{peer.name} has not been heard since this node's start, {waited} ms ago; see that it runs, and that datagrams to "
            f"port {self.config.heartbeat.port} pass in both directions, and that both have the same key_files", of=peer.name, peer=peer.name,
            peer_state=int(peer.state), previous=int(peer.state), state=int(peer.state), reason=Reason.HEARTBEAT,
        )  # fmt: skip

    def _look_guardian(self) -> None:
        """A lease that has run out while this engine lives: the guardian, which should have killed it, does not act."""
        for name, lease in self.state.leases.items():
            if lease.phase is Phase.LOST:
                if self.ctx.now >= lease.acked:
                    text = f"the lease of {name} ended {(self.ctx.now - lease.acked) // MS} ms ago and the guardian did not act"
                    self.ctx.emit(Exit(text, force=True))
                    self.durable.gone = True
                    return
                self.ctx.wake(lease.acked)

    # ------------------------------------------------------------------------------------------------------ leases

    def _released(self, event: Released) -> None:
        state = self.state
        if event.ok and event.group in state.unclean:
            state.unclean.discard(event.group)
            self.ctx.dirty = self.ctx.beat = True
        lease = state.leases.get(event.group)
        if lease is None or lease.token != event.token or lease.phase not in (Phase.RELEASING, Phase.LOST):
            return
        if event.ok:  # even of a lease that ran out meanwhile: the guardian saw that nothing is left
            moving.released(state, event.group)
            return
        if lease.phase is Phase.LOST:
            return
        # Something of the group is left: the lease stays, and the stop is tried again from its end.
        lease.phase = Phase.HELD
        running = state.running[event.group]
        last = running.runs[0]
        running.leftover(last, event.text, self.ctx)
