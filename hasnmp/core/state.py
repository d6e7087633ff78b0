"""All that an engine knows, in one place: what engine.py drives and placement, arbitration, commands and view look at."""

from __future__ import annotations

from dataclasses import dataclass, field

from hasnmp.core import fencing
from hasnmp.core.board import EXCLUDED, RECOVERING, STANDBY, Board
from hasnmp.core.context import MS, Context
from hasnmp.core.events import Extend
from hasnmp.core.exchange import Stream
from hasnmp.core.journal import Journal, clip
from hasnmp.core.lease import Lease, Phase
from hasnmp.core.peers import Peer
from hasnmp.core.running import Running
from hasnmp.model import ArbiterState, GroupState, NodeState, Reason, Role
from hasnmp.settings import Config, Service
from hasnmp.wire import GroupFlag, NodeFlag

LINGER_MS = 6000  # how long at most a node that stops goes on serving for a peer that is just starting
ALARM_AFTER = 2  # calls of the arbiter that failed in a row: one slow write is not an outage
EPOCH_MS = 1_577_836_800_000  # 2020-01-01, so that a token of the time fits an Unsigned32 until 2053


@dataclass(slots=True)
class Order:
    """This node is to take the group now, whoever comes first otherwise: a handover, a command."""

    reason: Reason
    text: str
    until_ns: int
    force: bool = False
    token: int = 0  # the newest known when it was given: one above it, of another owner, makes the order void


@dataclass(slots=True)
class Move:
    """The group is being stopped here. to: who shall take it, "" for whoever can (or nobody)."""

    to: str
    reason: Reason
    text: str
    force: bool = False
    before: tuple[Reason, str] = (Reason.NONE, "")  # of the group, before it was decided
    asked: tuple[str, str] | None = None  # by which node, under which key its answer goes back: command/group
    stopping: bool = False  # no hook holds it up any more, so some of the group may be stopped
    again: bool = False  # a former engine began it, and this one goes on with it
    twice: bool = False  # so did the former engine, and has ended too


@dataclass(slots=True)
class ArbiterHealth:
    state: ArbiterState = ArbiterState.UNKNOWN
    last_ok_ns: int = 0
    latency_us: int = 0
    failing: dict[str, int] = field(default_factory=dict)  # group -> failed calls in a row
    error: str = ""
    uuid: str = ""  # of the lease disk that is in force here: durable
    reads: str = ""  # of another one that is read in its place, while nothing rests on the one in force
    changed_ns: int = 0
    transitions: int = 0
    mismatch: dict[str, str] = field(default_factory=dict)  # peer -> what differs


@dataclass(slots=True)
class Decision:
    ns: int
    text: str


@dataclass(slots=True)
class State:
    config: Config
    me: str
    version: str
    ctx: Context
    peers: dict[str, Peer]
    streams: dict[str, Stream]
    leases: dict[str, Lease]
    running: dict[str, Running]
    board: Board
    journal: Journal
    incarnation: int = 0
    holder: str = ""
    started_ns: int = 0
    starting: bool = True
    leaving: bool = False
    leaving_ns: int = 0  # since when
    lingered_ns: int = 0  # leaving: when it last waited for a peer that is starting
    resumed: bool = False  # a change of the configuration brought this engine: the node was never away
    role: Role = Role.UNKNOWN
    role_changes: int = 0
    role_changed_ns: int = 0
    arbiter: ArbiterHealth = field(default_factory=ArbiterHealth)
    fencing: fencing.Fencing = field(default_factory=fencing.Fencing)
    watchdog_ms: int = 0  # the guardian's, armed; 0 = none
    watchdog_error: str = ""
    forgot: set[str] = field(
        default_factory=set
    )  # groups of which the state file that is gone may have known something
    unclean: set[str] = field(default_factory=set)  # groups of which the guardian could not end everything here
    longest_ms: int = 0  # how long a lease may last, by this file or by the one before it
    ceiling: int = 0  # tokens up to here may be used: a higher one is durable as "used" already
    lead: int = 0  # arbiter fence: how far the others' clocks are ahead of ours, in quarter seconds; durable
    lead_offset_ms: int = 0  # ctx.wall_offset_ms as it was then
    foreign_token: int = 0  # the highest asked for of groups that we do not have: the ceiling must cover it as well
    orders: dict[str, Order] = field(default_factory=dict)
    moves: dict[str, Move] = field(default_factory=dict)
    stayed: dict[str, tuple[int, str]] = field(
        default_factory=dict
    )  # group -> (when, why): a hook kept a move from happening
    handed: dict[str, tuple[int, str]] = field(default_factory=dict)  # group -> (token, to): released for that node
    services: dict[str, Service] = field(default_factory=dict)  # name -> settings
    unable_why: dict[str, str] = field(default_factory=dict)  # group -> unable(), as of the last look
    yield_until: dict[str, int] = field(default_factory=dict)
    came_from: dict[str, str] = field(default_factory=dict)  # group -> the node that handed it to this one
    unowned_ns: dict[str, int] = field(default_factory=dict)
    last_owner: dict[str, str] = field(default_factory=dict)
    owned: dict[str, int] = field(default_factory=dict)  # group -> token of ours that was never released
    adopted: dict[str, dict[str, int]] = field(
        default_factory=dict
    )  # group -> service -> pid, before the group's start
    unfinished: dict[str, Move] = field(default_factory=dict)  # group -> its move that the former engine's end cut off
    retiring: frozenset[str] = frozenset()  # groups that a new configuration does not have: stopped, and not released
    untold: set[str] = field(default_factory=set)  # groups that the former engine took over and did not come to tell of
    kept: set[str] = field(default_factory=set)  # groups held through a change of the configuration, before their start
    decisions: dict[str, list[Decision]] = field(default_factory=dict)
    fit_since: dict[str, int] = field(default_factory=dict)  # node -> since when it is up, for failback
    limit_told: set[str] = field(default_factory=set)
    peer_docs: dict[str, dict[str, object]] = field(default_factory=dict)  # node -> what it says of itself
    persist_at: int = 0
    persist_version: int = 0  # of the newest document handed to the store
    persisted_version: int = 0  # of the newest that is on the disk
    unsaved: str = ""  # why the last document could not be written
    tell_at: int = 0  # when the counters are told to the peers again

    # ------------------------------------------------------------------------------------------------- questions

    def new_token(self, lease: Lease) -> int:
        """For a lease that is to be taken: above every number that may have been used.

        Where the fence is the arbiter, a node may have taken the group, unheard, and been fenced since, and there is no
        record to read its number from. So a number also follows the time: such a thing takes longer than a quarter second.
        The time is that of the fastest clock in the cluster: a node whose own is slow goes by how far the numbers that it
        heard were ahead of it.
        """
        token = lease.next_token()
        if self.config.arbiter.type == "fence":
            token = max(token, self.quarters() + self.lead_now())
        return token

    def quarters(self) -> int:
        """Quarter seconds since 2020, by this node's clock."""
        return max(0, (self.ctx.wall_ms() - EPOCH_MS) // 250)

    def lead_now(self) -> int:
        """The lead, less what this node's clock was set forward since it was noted: a clock that began in 1970, and was put
        right, is not behind any more."""
        return max(0, self.lead - (self.ctx.wall_offset_ms - self.lead_offset_ms) // 250)

    def used(self, token: int) -> None:
        """Another node has, or had, a lease with this number."""
        if self.config.arbiter.type == "fence" and token - self.quarters() > self.lead_now():
            self.lead, self.lead_offset_ms = token - self.quarters(), self.ctx.wall_offset_ms
            self.journal.changed = True

    def owns(self, group: str) -> bool:
        return self.leases[group].phase in (Phase.HELD, Phase.RELEASING, Phase.LOST)

    def over(self, group: str) -> bool:
        """Has our lease of the group run out? The guardian is killing it: this engine does nothing for it any more."""
        lease = self.leases[group]
        held = lease.phase in (Phase.HELD, Phase.RELEASING) and lease.acked > 0
        return lease.phase is Phase.LOST or (held and not lease.alive(self.ctx))

    def owner(self, group: str) -> str:
        """Who holds the group's lease, by its own fresh word; "" = nobody that we know of."""
        if self.owns(group):
            return self.me
        return next((p.name for p in self.peers.values() if p.flag(group, GroupFlag.OWNER)), "")

    def had_by(self, group: str, node: str) -> None:
        """That node had the group last. Durable, for whose turn it is to fire rests on it (fencing.py): a node that did not know it
        after its start would fire in the other's turn."""
        if self.last_owner.get(group) != node:
            self.last_owner[group] = node
            self.journal.changed = True

    def gave(self, group: str, token: int, to: str) -> None:
        """This node has given the group up, so that another one may take it; to: that one above all, "" = whoever can."""
        self.owned.pop(group, None)
        self.journal.changed = True
        self.persist_at = 0  # at once: a node that dies now must not think afterwards that the group was taken from it
        self.unowned_ns[group] = self.ctx.now
        if to:
            self.handed[group] = (token, to)
            self.yield_until[group] = self.ctx.now + 3 * self.config.heartbeat.dead_after_ms * MS

    def mismatched(self) -> list[str]:
        """Nodes that are heard with another configuration of what safety rests on."""
        return [p.name for p in self.peers.values() if p.heard() and not self.config.goes_with(p.digest)]

    def unable(self, group: str, force: bool = False) -> str:
        """Why this node may not take the group now, "" when it may. The ABLE flag of our heartbeats is this.

        force: the administrator sets aside recovering, exclusions and checks; never what safety rests on, nor a standby, for
        which the group would be given away again at once.
        """
        registers = self.board.registers
        if self.me not in self.config.group(group).nodes:
            changing = ", while its nodes are being changed" if self.me in self.config.group(group).also else ""
            return f"{self.me} is none of its nodes{changing}"
        if self.leaving:
            return f"{self.me} is stopping"
        if group in self.retiring:
            return f"{self.me} is loading a configuration without it"
        if self.starting:
            return f"{self.me} has just started and still listens"
        if self.forgot and self.unheard():
            silent = ", ".join(self.unheard())
            return (
                f"{self.me} has lost its state file, so it does not know what it may have promised, and the lease disk is not known to be "
                f"new: it takes nothing before it has heard {silent} with the same file; start {silent}, or if it is off for certain: "
                f"hasnmp fence confirm {silent}"
            )
        if group in self.unclean:
            return f"the guardian of {self.me} has not ended yet what runs of it without a lease"
        differ = self.mismatched()
        if differ:
            return f"the configuration of {', '.join(differ)} differs from ours"
        if self.leases[group].next_token() > self.ceiling and not self.owns(group):
            why = f": {self.unsaved}" if self.unsaved else "; if this stays, its store does not answer: see its log"
            return f"{self.me} has not made a new token durable yet{why}"
        named = self.config.group(group)
        if (unfenced := fencing.unfenced(self, named, self.leases[group])) and not fencing.may_fence(self, group):
            silent = ", ".join(unfenced)
            return (
                f"{silent} must be fenced first, and {self.me} has not heard it since its start, so it fences nobody: start {silent}, "
                f"or if it is off for certain: hasnmp fence confirm {unfenced[0]}"
            )
        if out_of_reach := self.out_of_reach(group):
            return out_of_reach
        if registers.get(STANDBY, self.me):
            return (
                f"{self.me} is on standby ({registers.get(STANDBY, self.me)}); to take it back: hasnmp online {self.me}"
            )
        if force:
            return ""
        if registers.get(RECOVERING, self.me):
            return f"{self.me} is recovering ({registers.get(RECOVERING, self.me)}); when it is sound: hasnmp recover {self.me}"
        excluded = registers.get(EXCLUDED, f"{group}/{self.me}")
        if excluded:
            first = self.config.group(group).services[0].name
            return f"{self.me} is excluded: {excluded}; when that is mended: hasnmp service clear {first}"
        unfit = self.running[group].unfit()
        if unfit:
            return f"{self.me} can't run it: {unfit}"
        return ""

    def out_of_reach(self, group: str) -> str:
        """Why this node leaves the group to another: it could only take it by the lease disk, and can't use that; "" when it
        could, or nobody else is there. It asks for nothing then: whoever promised us the group would be bound."""
        lease, arbiter = self.leases[group], self.arbiter
        failing = arbiter.failing.get(group, 0) >= ALARM_AFTER and not lease.damaged  # our own slot is written anew
        if self.config.arbiter.type != "disk" or not failing or self.owns(group):
            return ""
        silent = [n for n in lease.others if not self.peers[n].heard() and n not in lease.left]
        others = [n for n in lease.others if self.peers[n].up()]
        if not silent or not others:
            return ""
        return (
            f"{self.me} can't use the lease disk ({arbiter.error}), and without {', '.join(silent)} it is needed: "
            f"left to {' or '.join(others)} until that is mended"
        )

    def unheard(self) -> list[str]:
        """The other nodes that this life has never heard to have our file, and that are not known to be off either."""
        return [p.name for p in self.peers.values() if not p.same and p.name not in self.fencing.ended]

    def able(self, group: str, node: str) -> bool:
        """Could that node take the group, by its own fresh word? (For this node: by our own knowledge.)"""
        if node == self.me:
            return not self.unable(group)
        peer = self.peers.get(node)
        return peer is not None and peer.up() and peer.flag(group, GroupFlag.ABLE)

    def candidates(self, group: str) -> list[str]:
        """The other nodes that could take the group, best first."""
        return [n for n in self.config.group(group).nodes if n != self.me and self.able(group, n)]

    def why_not(self, group: str, node: str) -> str:
        """What keeps another node from taking the group; "" when nothing does."""
        if self.able(group, node):
            return ""
        peer, registers = self.peers[node], self.board.registers
        excluded = registers.get(EXCLUDED, f"{group}/{node}")
        if not peer.heard():
            last = f"last heard {self.seconds(peer.heard_ns)} ago" if peer.heard_ns else "never heard"
            return f"{peer.state.name.lower()}, {last}"
        if peer.state is NodeState.STARTING:
            return "has just started and still listens"
        if excluded:
            first = self.config.group(group).services[0].name
            return f"excluded: {excluded}; when that is mended: hasnmp service clear {first}"
        if registers.get(RECOVERING, node):
            return f"recovering ({registers.get(RECOVERING, node)}); when it is sound: hasnmp recover {node}"
        if registers.get(STANDBY, node):
            return f"on standby; to take it back: hasnmp online {node}"
        if not self.config.goes_with(peer.digest):
            return "has another configuration"
        return "says that it is not able: its interface or `reach:` check"

    def why_not_others(self, group: str) -> str:
        """What keeps each other node from taking the group."""
        reasons = {n: self.why_not(group, n) for n in self.config.group(group).nodes if n != self.me}
        return "; ".join(f"{n}: {why}" for n, why in reasons.items() if why) or "every other node is able"

    def why_nowhere(self, group: str) -> str:
        """What keeps each node, this one included, from taking the group."""
        return "; ".join(x for x in (self.unable(group), self.why_not_others(group)) if x)

    def group_state(self, group: str) -> GroupState:
        """The group's state as this node knows it."""
        lease = self.leases[group]
        if lease.phase in (Phase.HELD, Phase.RELEASING):
            begun = lease.acked and group not in self.fencing.held
            return self.running[group].state() if begun else GroupState.ACQUIRING
        if lease.phase is Phase.TAKING:
            return GroupState.ACQUIRING
        if self.owner(group) not in ("", self.me):
            return self.board.groups[group].state
        if self.hopeless(group):
            return GroupState.FAILED
        nodes = self.config.group(group).nodes
        unheard = any(n != self.me and not self.peers[n].heard() for n in nodes)
        bound = lease.promise_stands(self.ctx.now) or self.me not in nodes
        return GroupState.UNKNOWN if unheard and bound else GroupState.STOPPED

    def arriving(self, group: str) -> tuple[str, int]:
        """This node stops and nobody is able to take the group yet: a node that has just started and may be able in a
        moment, and until when to go on serving for it; "" when there is none."""
        hb, now, registers = self.config.heartbeat, self.ctx.now, self.board.registers.get
        bound = self.leaving_ns + min(2 * hb.dead_after_ms + hb.startup_wait_ms, LINGER_MS) * MS
        # One that left in order may be back at this very moment: its first heartbeat is then on its way.
        glance = self.leaving_ns + 2 * hb.interval_ms * MS
        for name in self.config.group(group).nodes:
            peer = self.peers.get(name)
            if (
                peer is None
                or registers(STANDBY, name)
                or registers(RECOVERING, name)
                or registers(EXCLUDED, f"{group}/{name}")
            ):
                continue
            left = peer.state is NodeState.LEFT or (peer.heard() and peer.flags & NodeFlag.LEAVING)
            if left and now < glance:
                return name, glance
            # Up for a moment only: its first document is not durable yet, or its first check has not come back.
            fresh = peer.state is NodeState.STARTING or now < peer.changed_ns + 2 * hb.dead_after_ms * MS
            if peer.heard() and fresh and not left and self.config.goes_with(peer.digest) and now < bound:
                return name, bound
        return "", 0

    def unserved_since(self, group: str) -> int:
        """Since when nobody that this node knows of has the group, neither by its word nor by a record; 0: somebody has."""
        if self.owner(group) or any(s.standing(self.ctx.now) for s in self.leases[group].seen.values()):
            return 0
        return self.unowned_ns.get(group, 0)

    def unserved_limit(self) -> int:
        """How long (ns) it may take until a group that could be taken is taken; beyond that it is an alarm."""
        hb = self.config.heartbeat
        return (2 * hb.dead_after_ms + 2 * self.config.arbiter.lease_ms + hb.startup_wait_ms) * MS

    def hopeless(self, group: str) -> bool:
        """Did it fail to start on every node of it that is heard, this one included?"""
        excluded = self.board.registers.get
        return self.me in self.config.group(group).nodes and all(
            excluded(EXCLUDED, f"{group}/{n}") or (n != self.me and not self.peers[n].heard())
            for n in self.config.group(group).nodes
        )

    # --------------------------------------------------------------------------------------------------- changes

    def decided(self, group: str, text: str) -> None:
        """Keep what was decided and on which inputs, for `hasnmp why`: the last eight of a group."""
        log = self.decisions.setdefault(group, [])
        if not log or log[-1].text != text:
            log.append(Decision(self.ctx.now, text))
            del log[:-8]

    def decided_for_all(self, text: str) -> None:
        for group in self.leases:
            self.decided(group, text)

    def set_register(self, kind: str, name: str, value: str) -> None:
        """Switch a register and tell every peer; it is durable with the next document."""
        key = self.board.registers.set(kind, name, value, self.me)
        for stream in self.streams.values():
            stream.put(f"r/{key}", self.board.registers.values[key])
        self.ctx.dirty = self.journal.changed = True

    def force(self, group: str, move: Move) -> None:
        """Tell the node that is to take the group that this was forced, so what the administrator set there is set aside."""
        self.streams[move.to].put(f"o/{group}", {"reason": int(move.reason), "text": clip(move.text)})

    def grant(self) -> None:
        """Hand what the leases gained to the guardian, all groups in one message."""
        held = tuple(h for lease in self.leases.values() if (h := lease.grant(self.ctx)) is not None)
        if held:
            self.ctx.emit(Extend(held))

    def seconds(self, ns: int) -> str:
        return f"{max(0, self.ctx.now - ns) / (1000 * MS):.1f} s"
