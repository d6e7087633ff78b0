"""What goes between nodes: heartbeats out, datagrams in, and what each fresh one changes.

Only peers.py judges whether a datagram counts. Here stands what follows when it does: a promise asked for and given
(lease.py), the other's word on its groups, the facts of the stream (exchange.py), and the next heartbeat's own words.
"""

from __future__ import annotations

from typing import Any

from hasnmp.core import arbitration, fence_acts, fencing, moving
from hasnmp.core.commands import Commands
from hasnmp.core.context import MS
from hasnmp.core.events import Send
from hasnmp.core.exchange import Stream
from hasnmp.core.journal import number_of
from hasnmp.core.lease import Phase
from hasnmp.core.peers import Asked, Link, Peer, forget_old, take_in
from hasnmp.core.state import State
from hasnmp.model import Kind, LinkState, NodeState, Reason
from hasnmp.wire import Datagram, DatagramKind, GroupEntry, GroupFlag, NodeFlag, SlotState, fingerprint

TELL_MS = 2000  # how often an owner tells its counters


class Talk:
    def __init__(self, state: State, commands: Commands) -> None:
        self.state = state
        self.ctx = state.ctx
        self.config = state.config
        self.commands = commands
        self.seq = 0
        self.beat_at = 0
        self.told_groups: dict[str, tuple[Any, ...]] = {}
        self.told_node: dict[str, Any] = {}
        self.told_suspects: dict[str, Any] = {}
        self.told_slots: dict[str, SlotState] = {}  # group -> what our slot said when its sequence was told last
        self.keys = [fingerprint(key) for key in state.config.heartbeat.keys]  # the first signs

    # ------------------------------------------------------------------------------------------------- receiving

    def received(self, link: str, d: Datagram) -> None:
        state, ctx = self.state, self.ctx
        peer = state.peers.get(d.sender)
        if peer is None or d.receiver != state.me:
            state.journal.count("rejected_foreign")
            return
        if not d.flags & NodeFlag.LEAVING and d.incarnation not in peer.retired:
            for lease in state.leases.values():
                if (
                    lease.left.pop(peer.name, None) is not None
                ):  # before any answer: it must not think that we count on it
                    state.journal.changed = True
        heard, refused = take_in(peer, link, d, state.incarnation, ctx)
        if refused:
            state.journal.count(f"rejected_{refused}")
        if not heard.fresh:
            if d.kind is DatagramKind.HEARTBEAT and refused in ("", "stale"):
                self._send(peer, DatagramKind.ANSWER, link=link, echo=(d.incarnation, d.seq))
            return
        fencing.heard(state, peer)
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
            if d.seq >= peer.seq:
                self._answer(peer, link, d)
            else:  # overtaken on another link by a newer word: what it asks for may not be asked any more
                self._send(peer, DatagramKind.ANSWER, link=link, echo=(d.incarnation, d.seq))
        elif d.kind is DatagramKind.ANSWER:
            for entry in d.groups:
                asked_of = state.leases.get(entry.group)
                if asked_of is not None and entry.flags & GroupFlag.PROMISE:
                    asked_of.promised(peer.name, entry, heard.asked_ns)
                    ctx.dirty |= asked_of.phase is Phase.TAKING  # with `fence` and `none` it is not all that counts
                elif asked_of is not None and asked_of.phase is Phase.TAKING and entry.token >= asked_of.token:
                    asked_of.token_floor = max(asked_of.token_floor, entry.token)  # refused for its number: outbid
                    ctx.dirty = True
            self.state.grant()
        stream.acknowledged(d.ack)
        if d.stream:
            for key, value in stream.take(d.stream, d.payload):
                self._fact(peer, key, value)
            if not stream.queue and not stream.under_way:
                self._send(peer, DatagramKind.EXCHANGE, link=link)  # only acknowledges

    def _met(self, peer: Peer, stream: Stream) -> None:
        """A new incarnation of the peer: tell it everything, and hear it at once."""
        state = self.state
        # The first that this engine meets: it may wait for what came of its order, that a former engine had begun.
        owed = {} if peer.retired else {k: v for k, v in stream.queue.items() if k.startswith("a/")}
        stream.begin()
        stream.queue.update(owed)
        for key, value in state.board.registers.values.items():
            stream.put(f"r/{key}", value)
        for key, fact in fencing.facts(state, peer.name).items():
            stream.put(key, fact)
        self.told_groups.clear()
        self.told_node, self.told_suspects, self.told_slots = {}, {}, {}
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
        if before is NodeState.LOST:
            self.told_suspects, self.told_slots = {}, {}  # it could not be told while it was not heard
        if before in (NodeState.LOST, NodeState.LEFT):
            for link in peer.links.values():
                link.state = LinkState.UNKNOWN  # silent with its peer: one that stays so beside another is told of
        peer.transitions += 1
        ctx.dirty = state.journal.changed = True
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
        peer.told = True
        peer.groups = {e.group: e for e in d.groups}
        ctx.dirty = True
        for entry in d.groups:
            lease = state.leases.get(entry.group)
            if lease is None:
                continue
            if entry.flags & GroupFlag.OWNER or not entry.flags & GroupFlag.ASK:
                lease.hear_floor(entry.token)  # what is only asked for was not used yet
            if entry.flags & (GroupFlag.OWNER | GroupFlag.RELEASED):
                state.used(entry.token)
            if entry.flags & GroupFlag.OWNER:
                lease.learn(entry.token, peer.name)
            elif entry.flags & GroupFlag.RELEASED:
                lease.heard_release(entry, peer.name, d.holder)
                if entry.flags & GroupFlag.HANDOVER and entry.token == lease.token_seen:
                    moving.heard_handover(state, entry.group, peer.name, entry.token)

    def _answer(self, peer: Peer, link: str, d: Datagram) -> None:
        """Answer a fresh heartbeat over its own link, with the promises that it asked for and gets."""
        state, ctx = self.state, self.ctx
        self.seq += 1
        seq, answers = self.seq, []
        same = self.config.goes_with(d.digest)
        for entry in d.groups:
            lease = state.leases.get(entry.group)
            if lease is None and entry.flags & GroupFlag.ASK and entry.flags & GroupFlag.OWNER:
                # A group that our configuration does not have (any more, or yet): we can't take it, so its owner may keep
                # it. A configuration that has it comes with a new engine, which begins as if it had just promised all.
                if entry.token > state.ceiling:
                    state.foreign_token = max(state.foreign_token, entry.token)
                    ctx.dirty = True
                else:
                    period_ms = self.config.heartbeat.dead_after_ms
                    answers.append(GroupEntry(entry.group, GroupFlag.PROMISE, entry.token, period_ms))
                continue
            if lease is None or not entry.flags & GroupFlag.ASK:
                continue
            # One that may not take it while its nodes change may have it: by what was before, or comes after.
            may = peer.name in lease.group.nodes or (peer.name in lease.group.also and entry.flags & GroupFlag.OWNER)
            if not may:
                continue
            if not same and not entry.flags & GroupFlag.OWNER:
                continue  # while configurations differ nobody acquires, and owners keep what they have
            if entry.token > state.ceiling:
                lease.asked_token = entry.token  # first it must be durable here that this number may be used
                if lease.phase is Phase.NONE and not entry.flags & GroupFlag.OWNER:
                    # Nor is it taken from under whoever asks, who may be the one that it was given up for.
                    lease.retry_at = max(lease.retry_at, ctx.now + 2 * self.config.heartbeat.interval_ms * MS)
                    lease.conflict = f"{peer.name} asks for it"
                ctx.dirty = True
                continue
            answer = lease.answer(entry, d, seq, ctx, self.config.heartbeat.dead_after_ms)
            if answer is not None:
                answers.append(answer)
        promises = any(entry.flags & GroupFlag.PROMISE for entry in answers)
        self._send(peer, DatagramKind.ANSWER, link=link, groups=tuple(answers), seq=seq, receipt=promises)

    def _fact(self, peer: Peer, key: str, value: Any) -> None:
        """One fact of a peer's stream; what this version does not know is left alone."""
        state, ctx = self.state, self.ctx
        kind, _, name = key.partition("/")
        try:
            if kind == "r":
                if state.board.registers.merge(name, value):
                    ctx.dirty = state.journal.changed = True
            elif kind == "g" and name in state.leases and not state.owns(name):
                facts = state.board.groups[name]
                before = facts.token
                if state.board.hear_group(name, value, ctx):
                    ctx.dirty = True
                    state.journal.changed |= facts.token > before  # an older word is known by it, also after a restart
                    # Of one that nobody has, only its last owner tells; who had it before that one may not know better.
                    if not facts.owner and facts.token >= state.leases[name].token_seen:
                        state.had_by(name, peer.name)
            elif kind == "s":
                group = next((s.group for s in self.config.services() if s.name == name), "")
                if group and not state.owns(group):
                    state.board.hear_service(name, value, ctx)
            elif kind == "n" and isinstance(value, dict):
                state.peer_docs[peer.name] = value
                fencing.said(state, peer, number_of(value.get("watchdog_ms")))
                arbitration.compare(state)
            elif kind == "l" and name in state.leases and isinstance(value, dict):
                fencing.suspected(state, name, value.get("suspects"))
                arbitration.told_floor(state, name, peer.name, value.get("seq"))
            elif kind == "f":
                fence_acts.told(state, name, value)
            else:
                self.commands.told(key, value, peer.name)
        except (TypeError, ValueError, KeyError, IndexError, StopIteration, OverflowError):
            state.journal.count("rejected_malformed")

    # --------------------------------------------------------------------------------------------------- sending

    def beat(self) -> None:
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
        if not state.unable_why.get(group, "not looked yet") and not state.over(group):
            flags |= GroupFlag.ABLE
        if lease.phase is Phase.NONE and group not in state.unclean:
            flags |= GroupFlag.CLEAN
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
        # An incarnation that is only heard, not met: what was taken in is of the one before, and acknowledges nothing (seed 122348).
        received = stream.received if echoed[0] == peer.incarnation else 0
        ctx.emit(
            Send(
                Datagram(
                    kind, state.me, peer.name, state.incarnation, seq, echoed[0], echoed[1], state.holder,
                    self.config.digest, flags, groups, stream.position if payload else 0, received, payload,
                ),
                link, receipt,
            )
        )  # fmt: skip

    def pump(self) -> None:
        """Send what the streams have; again what was not acknowledged for two intervals."""
        for name, stream in self.state.streams.items():
            if not stream.queue and not stream.under_way:
                continue
            peer = self.state.peers[name]
            if peer.heard():
                payload = stream.next(self.ctx, 2 * self.config.heartbeat.interval_ms * MS)
                if payload:
                    self._send(peer, DatagramKind.EXCHANGE, payload=payload)

    def tell(self) -> None:
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
        node = {
            "version": state.version, "uuid": state.arbiter.uuid, "reads": state.arbiter.reads, "role": int(state.role),
            "keys": self.keys, "watchdog_ms": state.watchdog_ms,
        }  # fmt: skip
        if refresh or node != self.told_node:
            self.told_node = node
            news["n/"] = node
        suspects = state.fencing.told_suspects()
        anew = refresh or suspects != self.told_suspects
        self.told_suspects = suspects
        for name, lease in state.leases.items():
            # The sequence changes all the time. It is told with the counters, and when the slot says something else than before: a
            # write of this node's former life may land on that, and be taken for its word.
            settled = lease.call is None and not lease.rewrite  # it stands there, as it was read back
            if anew or (settled and self.told_slots.get(name) is not lease.slot_state):
                news[f"l/{name}"] = {"seq": lease.floors.get(state.me, -1), "suspects": suspects.get(name, {})}
                if settled:
                    self.told_slots[name] = lease.slot_state
        for peer, stream in state.streams.items():
            if state.peers[peer].heard():
                for name, value in news.items():
                    stream.put(name, value)
