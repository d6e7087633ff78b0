"""Who has to be ended from outside before a group is started here, who does it, and what counts as ended.

Design rules 6 and 7. A lease that has lapsed says that nobody may act for the group any more; it does not say that nothing
of it is left. A stack that was killed leaves dirty pages, which its kernel goes on writing. So a group with a disk is
started here only when each node that may have had it is *clean* by one of these:

    its own word           a fresh heartbeat that says so (CLEAN), or its record on the lease disk: nothing runs there
    another holder         its guardian was started anew, and a guardian begins by ending everything (or can't, and says so)
    a fence                verified, within its time limit, that cuts its power or its way to the disk
    its watchdog           armed by its own word, and its time has passed since the lease was ours alone
    the administrator      `hasnmp fence confirm`

Until then it is a *suspect*. Suspects are durable. With the arbiters `disk` and `none` a node fences only for a group
whose lease it already holds, so that of two that could not hear each other one fences, and never both. With the arbiter
`fence` the fence itself decides: there the owner fires first, and everybody else waits for longer than that may take.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hasnmp.core.context import MS
from hasnmp.core.events import FenceAction
from hasnmp.core.journal import mapping, number_of
from hasnmp.core.lease import TAKER_PART, UNKNOWN_HOLDER, Lease, Phase
from hasnmp.core.peers import Peer
from hasnmp.model import GroupState
from hasnmp.settings import Group
from hasnmp.wire import GroupFlag, SlotState

if TYPE_CHECKING:
    from hasnmp.core.state import State

GONE_HOLDER = "0" * 16  # in the slot of a node that left in order
OPEN_MS = 1000  # of its turn: a node whose turn has gone on for longer waits for the next
PAUSE_MS = 2000  # by design rule 7: how much longer than the owner's time limit everybody else waits
BEGUN = (GroupState.STARTING, GroupState.RUNNING, GroupState.DEGRADED, GroupState.STOPPING, GroupState.BLOCKED)
DISK = frozenset({"power", "disk"})  # what must be cut for a group with a disk
LIFE = frozenset({"power", "network"})  # ... and for the lease of a group without one, where the fence is the arbiter


@dataclass(slots=True)
class Suspect:
    """A holder that had, or may have had, a group under this token."""

    holder: str
    token: int


@dataclass(frozen=True, slots=True)
class Place:
    """Whose turn it is, of this node and one that it can't hear: ours is the turn `slot` of each round, counted from since."""

    since: int
    slot: int


@dataclass(slots=True)
class Attempt:
    number: int
    level: int
    action: FenceAction
    until: int
    why: str
    cuts: frozenset[str] = frozenset()  # what must be cut
    limit_ms: int = 0
    end: int = 0  # of our turn; 0: there are no turns


@dataclass(slots=True)
class Device:
    """One fence level of a node, as it is known here. Times are Unix ms, for they outlive this boot; 0 = never."""

    result: str = ""
    used_ms: int = 0
    good_ms: int = 0
    since_ms: int = 0  # it has not been good since then
    test_at: int = 0


@dataclass(slots=True)
class Fencing:
    suspects: dict[str, dict[str, Suspect]] = field(default_factory=dict)  # group -> node ->
    clean: dict[str, dict[tuple[str, str], int]] = field(default_factory=dict)  # group -> (node, holder) -> up to token
    dead: dict[str, set[str]] = field(default_factory=dict)  # node -> holders of which nothing is left
    ended: dict[str, tuple[int, str]] = field(
        default_factory=dict
    )  # node -> (when it was fenced or confirmed, what was cut)
    armed: dict[str, int] = field(default_factory=dict)  # node/holder -> its watchdog's time in ms, by its own word
    resolved: dict[str, int] = field(
        default_factory=dict
    )  # group -> it was started under this token: all before was clean
    held: dict[str, int] = field(default_factory=dict)  # group -> since when its lease is ours and it waits
    # node -> why, what must be cut, and until when all fire must have ended (0: no bound)
    wanted: dict[str, tuple[str, frozenset[str], int]] = field(default_factory=dict)
    attempts: dict[str, Attempt] = field(default_factory=dict)  # node ->
    tests: list[tuple[str, int]] = field(default_factory=list)  # (node, level) that are to be tested now
    next_level: dict[str, int] = field(default_factory=dict)
    retry_at: dict[str, int] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)  # node -> how often in a row every level failed
    failed_at: dict[str, int] = field(default_factory=dict)  # node -> when that was last
    devices: dict[tuple[str, int], Device] = field(default_factory=dict)
    # node -> (its holder, what was cut), as another node told while this one still counted it as heard
    hearsay: dict[str, tuple[str, str]] = field(default_factory=dict)
    fenced: dict[str, tuple[int, str]] = field(default_factory=dict)  # node -> (attempt that fenced it, what it told)
    places: dict[str, Place] = field(default_factory=dict)  # node that is not heard -> when we may fire at it

    def told_suspects(self) -> dict[str, dict[str, list[Any]]]:
        return {g: {n: [s.holder, s.token] for n, s in found.items()} for g, found in self.suspects.items() if found}

    def document(self, holder: str) -> dict[str, Any]:
        return {
            "suspects": self.told_suspects(),
            "armed": dict(self.armed),
            "resolved": dict(self.resolved),
            "holder": holder,
            "ended": {n: [cut, sorted(self.dead.get(n, ()))] for n, (_, cut) in self.ended.items()},
            "devices": [[n, x, d.result, d.used_ms, d.good_ms, d.since_ms] for (n, x), d in self.devices.items()],
        }

    def restore(self, saved: dict[str, Any], holder: str, now: int, nodes: set[str]) -> None:
        """Whatever stands there, nothing is raised."""
        for group, found in mapping(saved.get("suspects")).items():
            for node, suspect in mapping(found).items():
                if node in nodes and isinstance(suspect, list) and len(suspect) >= 2:
                    self.suspects.setdefault(group, {})[node] = Suspect(str(suspect[0]), number_of(suspect[1]))
        self.armed = {str(k): number_of(v) for k, v in mapping(saved.get("armed")).items()}
        self.resolved = {str(k): number_of(v) for k, v in mapping(saved.get("resolved")).items()}
        if (
            saved.get("holder") == holder
        ):  # the same guardian: this machine ran on, so what was ended can't have ended us
            for node, ended in mapping(saved.get("ended")).items():
                if node in nodes and isinstance(ended, list) and len(ended) >= 2 and isinstance(ended[1], list):
                    self.ended[node] = (now, str(ended[0]))
                    self.dead[node] = {str(h) for h in ended[1]}
        devices = saved.get("devices")
        for row in devices if isinstance(devices, list) else ():
            if isinstance(row, list) and len(row) >= 6 and isinstance(row[0], str):
                numbers = [number_of(x) for x in row[3:6]]
                self.devices[row[0], number_of(row[1])] = Device(str(row[2]), *numbers)


def concerns(group: Group) -> bool:
    """Is silence with a lapsed lease too little to take this group?"""
    return group.disk and not group.accept_unfenced_disk


def levels(state: State, node: str, cuts: frozenset[str]) -> list[int]:
    """The levels of the node, in order, that cut what must be cut."""
    return [i for i, level in enumerate(state.config.node(node).fence) if level.cuts in cuts]


# ------------------------------------------------------------------------------------------------------------ suspects


def learn(state: State, group: Group) -> None:
    """Take in who may have had the group, and who is seen to be clean. To be called before anything is decided on it."""
    fencing, lease = state.fencing, state.leases[group.name]
    known = fencing.suspects.setdefault(group.name, {})
    # Of another configuration's time: its risk was accepted since, or the node can't run the group any more.
    for gone in [n for n in known if not concerns(group) or n not in state.peers]:
        _forget(state, group.name, gone)
    if not concerns(group):
        return
    clean = fencing.clean.setdefault(group.name, {})
    facts = state.board.groups[group.name]
    if facts.owner and facts.state in BEGUN:
        fencing.resolved[group.name] = max(facts.token, fencing.resolved.get(group.name, 0))
    for node in dict.fromkeys((*lease.others, *known)):  # one that the group had may not be among its nodes any more
        peer = state.peers[node]
        if lease.promised_node == node and lease.promised_to not in ("", UNKNOWN_HOLDER):
            _note(state, group.name, node, lease.promised_to, lease.promised_token)
        seen = lease.seen.get(node) if node not in lease.unreadable else None
        if seen is not None and seen.slot.state is SlotState.IDLE:
            key = (node, seen.slot.holder)
            clean[key] = max(seen.slot.token, clean.get(key, 0))
        elif seen is not None:
            _note(state, group.name, node, seen.slot.holder, seen.slot.token)
        if peer.heard():
            entry = peer.groups.get(group.name)
            if entry is not None and entry.flags & GroupFlag.CLEAN:
                key = (node, peer.holder)
                clean[key] = max(entry.token, clean.get(key, 0))
            elif entry is not None and entry.flags & GroupFlag.OWNER:
                _note(state, group.name, node, peer.holder, entry.token)
        suspect = known.get(node)
        if suspect is None:
            continue
        # ... for it began by ending everything, or says that it could not: then it is waited for. Its numbers go on above all
        # that its node used, so a word with a lower one is of a life before the suspect's.
        entry = peer.groups.get(group.name) if peer.heard() else None
        settled = entry is not None and bool(entry.flags & (GroupFlag.CLEAN | GroupFlag.OWNER | GroupFlag.ASK))
        newer = settled and entry is not None and entry.token >= suspect.token and suspect.holder != peer.holder
        # A record of another holder that knows of this token was written after it: only a newer holder can have done so.
        newer |= seen is not None and seen.slot.holder != suspect.holder and seen.slot.token >= suspect.token
        if newer:
            fencing.dead.setdefault(node, set()).add(suspect.holder)
        old = suspect.token < fencing.resolved.get(group.name, 0)
        if (
            old
            or suspect.holder in fencing.dead.get(node, ())
            or clean.get((node, suspect.holder), -1) >= suspect.token
        ):
            _forget(state, group.name, node)


def _note(state: State, group: str, node: str, holder: str, token: int) -> None:
    fencing = state.fencing
    if token < fencing.resolved.get(group, 0):
        return
    if holder in fencing.dead.get(node, ()) or fencing.clean[group].get((node, holder), -1) >= token:
        return
    known = fencing.suspects[group].get(node)
    if known is None or (known.holder, known.token) != (holder, token):
        if known is not None and known.holder == holder and known.token > token:
            return
        fencing.suspects[group][node] = Suspect(holder, token)
        state.journal.changed = True
        state.persist_at = 0  # who dies next must still know it


def _forget(state: State, group: str, node: str) -> None:
    del state.fencing.suspects[group][node]
    state.journal.changed = True
    state.ctx.dirty = True


def heard(state: State, peer: Peer) -> None:
    """A fresh word of a node: whatever was thought to be ended there, this holder lives."""
    fencing = state.fencing
    if peer.name in fencing.ended:
        del fencing.ended[peer.name]
        for stream in state.streams.values():
            stream.queue.pop(f"f/{peer.name}", None)  # not told yet, and not true any more
        state.ctx.dirty = state.journal.changed = True
    fencing.dead.get(peer.name, set()).discard(peer.holder)
    fencing.hearsay.pop(peer.name, None)
    fencing.places.pop(peer.name, None)
    fencing.next_level.pop(peer.name, None)
    fencing.failures.pop(peer.name, None)


def lost(state: State, peer: Peer) -> None:
    """A node fell silent: what another node told of it before is known to be true now."""
    # Turns are counted from its silence, not from when this was seen: of two that lose each other one may have been stopped
    # meanwhile, and what is its turn by its own count would be in the middle of the other's.
    silent = peer.heard_ns + state.config.heartbeat.dead_after_ms * MS
    state.fencing.places[peer.name] = _place(state, peer.name, min(silent, state.ctx.now))
    holder, cut = state.fencing.hearsay.pop(peer.name, ("", ""))
    if holder and peer.holder == holder:
        ended(state, peer.name, cut, holder)


def facts(state: State, to: str) -> dict[str, list[str]]:
    """What is known to have ended, for a node that begins anew: it may have died before it was told."""
    return {
        f"f/{node}": [state.peers[node].holder, cut]
        for node, (_, cut) in state.fencing.ended.items()
        if node != to and state.peers[node].holder and not state.peers[node].heard()
    }


def said(state: State, peer: Peer, watchdog_ms: int) -> None:
    """The present holder of that node tells whether its watchdog is armed: a former one's word says nothing of this one."""
    fencing, key = state.fencing, f"{peer.name}/{peer.holder}"
    if fencing.armed.get(key, 0) == watchdog_ms:
        return
    for old in [k for k in fencing.armed if k.startswith(f"{peer.name}/")]:
        del fencing.armed[old]
    if watchdog_ms:
        fencing.armed[key] = watchdog_ms
    state.journal.changed = True


def suspected(state: State, name: str, told: Any) -> None:
    """A peer tells whom it suspects: a node that was down meanwhile can't know, where there is no lease disk that does."""
    lease = state.leases[name]
    for node, suspect in mapping(told).items():
        if concerns(lease.group) and node in lease.others and isinstance(suspect, list) and len(suspect) >= 2:
            state.fencing.clean.setdefault(name, {})
            before = state.fencing.suspects.setdefault(name, {}).get(node)
            if before is not None and before.token >= number_of(suspect[1]):
                continue  # of an older life: what was told second-hand may have been overtaken
            _note(state, name, node, str(suspect[0]), number_of(suspect[1]))
            state.ctx.dirty = True


def started(state: State, group: str, token: int) -> None:
    """The group is started here under this token: nobody else is suspected of it, for each was clean."""
    fencing = state.fencing
    fencing.resolved[group] = max(token, fencing.resolved.get(group, 0))
    fencing.suspects.pop(group, None)
    fencing.held.pop(group, None)


def may_fence(state: State, group: str) -> bool:
    """A node that has not heard every peer since its start fences nobody: after a power cut it is more likely that the others
    still boot. But the last owner may, and a command. Where the fence is the arbiter, only who has the lease now may: a
    former owner that was fenced itself, starts anew and hears nobody would else shoot at a healthy successor."""
    if all(p.heard_ns for p in state.peers.values()):
        return True
    return state.owns(group) if state.config.arbiter.type == "fence" else state.last_owner.get(group) == state.me


def _armed(state: State, node: str, holder: str) -> int:
    """The time in ms of the watchdog that this holder has armed; 0: it proves nothing. With the arbiter `none` a node that is
    cut off keeps what it has, and feeds its watchdog (it is suspected there where the arbiter was another one before)."""
    return 0 if state.config.arbiter.type == "none" else state.fencing.armed.get(f"{node}/{holder}", 0)


def no_way(state: State, group: Group) -> str:
    """Why this node can't take the group at all, for it could never learn that a suspect is clean; "" when it can."""
    fencing, name = state.fencing, group.name
    for node, suspect in fencing.suspects.get(name, {}).items():
        peer = state.peers[node]
        if peer.heard() or _armed(state, node, suspect.holder):
            continue
        had = f"{node} had it (token {suspect.token}) and may still write to its disk"
        confirm = f"start {node}, or if it is off for certain: hasnmp fence confirm {node}"
        if not levels(state, node, DISK):
            return f"{had}; {node} has no fence device that cuts power or disk, and no armed watchdog: {confirm}"
        if not may_fence(state, name):
            silent = ", ".join(p.name for p in state.peers.values() if not p.heard_ns)
            return f"{had}; {state.me} has not heard {silent} since its start, so it fences nobody: {confirm}"
    return ""


def holds_back(state: State, group: Group) -> str:
    """The lease of the group is ours: why its services may not be started yet; "" when they may."""
    fencing, ctx, name = state.fencing, state.ctx, group.name
    found = fencing.suspects.get(name, {})
    if not found:
        fencing.held.pop(name, None)
        return ""
    since = fencing.held.setdefault(name, ctx.now)
    for node, suspect in list(found.items()):
        armed = _armed(state, node, suspect.holder)
        if armed and ctx.now >= (end := since + armed * MS * TAKER_PART // 100):
            state.decided(name, f"{node} is clean: its watchdog, armed with {armed} ms, has passed")
            # Of this group alone: a guardian that ended it feeds its watchdog, and may have others still (seed 121539).
            fencing.clean[name][node, suspect.holder] = suspect.token
            _forget(state, name, node)
        elif armed:
            ctx.wake(end)
    if not found:
        fencing.held.pop(name, None)
        return ""
    node, suspect = next(iter(found.items()))
    armed = _armed(state, node, suspect.holder)
    # No count of what is left: this is kept as a decision, and a new text each time would push out all others.
    ways = [f"its watchdog, armed with {armed} ms, has not passed yet"] if armed else []
    if node in fencing.attempts or fencing.failures.get(node):  # between two tries too
        ways.append("it is being fenced")
    elif levels(state, node, DISK):
        ways.append("it is to be fenced" if may_fence(state, name) else "nobody is fenced before all were heard")
    ways.append(f"if it is off for certain: hasnmp fence confirm {node}")
    return f"{node} had it (token {suspect.token}) and may still write to its disk; {'; '.join(ways)}"


# ---------------------------------------------------------------------------------------------- the fence as the arbiter


def is_ended(state: State, node: str, group: Group) -> bool:
    """Was the node fenced, or confirmed to be off, and not heard since - by something that ends this group there?"""
    ended = state.fencing.ended.get(node)
    if ended is None or state.peers[node].heard():
        return False
    return ended[1] in ("power", "confirmed") or (ended[1] == "network" and not concerns(group))


def unfenced(state: State, group: Group, lease: Lease) -> list[str]:
    """With the arbiter `fence`: the silent nodes that must be ended before this node may take the group."""
    if state.config.arbiter.type != "fence":
        return []
    return [
        n for n in lease.others if not state.peers[n].heard() and n not in lease.left and not is_ended(state, n, group)
    ]


def want_for(state: State, group: Group, nodes: list[str]) -> str:
    """Fence these to take the group, when our turn has come; returns what is waited for."""
    ctx = state.ctx
    if not may_fence(state, group.name):
        silent = [p.name for p in state.peers.values() if not p.heard_ns]
        return (
            f"{', '.join(silent)} was not heard since this node's start, so it fences nobody; start it, or if it is off for "
            f"certain: hasnmp fence confirm {silent[0]}"
        )
    cuts = frozenset({"power"}) if concerns(group) else LIFE
    waits: list[str] = []
    for node in nodes:
        turn, end = turn_of(state, node, nodes)
        if ctx.now < turn:
            ctx.wake(turn)
            silent_ms = (turn - state.peers[node].changed_ns) // MS  # no count of what is left: see holds_back()
            waits.append(f"{node} is fenced {silent_ms} ms after it was lost: whoever has a group comes first")
        else:
            state.fencing.wanted.setdefault(node, (f"to take {group.name}, and it is silent", cuts, end))
    if len(waits) == len(nodes):
        return "; ".join(waits)
    return f"{', '.join(nodes)} must be fenced first; if it is off for certain: hasnmp fence confirm {nodes[0]}"


def _rounds(state: State) -> int:
    """How many turns a round has for two nodes that know which of them has a group; then as many for when they don't."""
    return 2 if len(state.config.nodes) == 2 else 3


def _place(state: State, node: str, since: int) -> Place:
    """Our place beside that node, of the two alone and as things stand when they lose each other: so both find the same.

    Neither learns then what the other takes or loses, or whom it fences: a place that changed with that, or with a third
    node's, could come to be the other's, and each would fire at the other in its own turn. Who has a group comes first, then
    the order of `nodes`. Where neither has one a third node may, and its turn comes before both.
    """
    names = [n.name for n in state.config.nodes]
    has = {n: any(state.last_owner.get(g.name) == n for g in state.config.groups) for n in (state.me, node)}
    behind = (not has[state.me], names.index(state.me)) > (not has[node], names.index(node))
    slot = int(behind) + (len(names) > 2 and not any(has.values()))
    # Of a group that we handed to it, or promised it, we can't know whether it has it; nor of any, if all that we heard of it since our
    # start were answers. It may fire at once, as the owner, or in its turn after us. So we come after both.
    peer = state.peers[node]
    unsure = (peer.heard_ns and not peer.told) or any(
        lease.phase in (Phase.NONE, Phase.TAKING)
        and (state.handed.get(g, (0, ""))[1] == node
             or (lease.promised_node == node and lease.promised_token > lease.token_seen))
        for g, lease in state.leases.items()
    )  # fmt: skip
    if unsure:  # and it may be as unsure of us: by the order of `nodes` alone, for that is what both know
        slot = _rounds(state) + int(names.index(state.me) > names.index(node))
    return Place(since, slot)


def turn_of(state: State, node: str, silent: list[str]) -> tuple[int, int]:
    """When this node may begin to fire at that one, of all that are silent; now or later; and when that must have ended.

    Turns are as long as any node's levels may take, and fire is opened only at the start of one. What failed is tried again
    with what is left of the turn, if that is enough, and then in the next round: so no two ever shoot at each other (rule 7).
    """
    config, fencing = state.config, state.fencing
    longest = max(sum(level.timeout_ms for level in n.fence) for n in config.nodes)
    step = (longest + PAUSE_MS + config.heartbeat.dead_after_ms) * MS
    rounds = _rounds(state)
    at = state.ctx.now
    for other in silent:
        if other not in fencing.places:
            fencing.places[other] = _place(state, other, max(state.started_ns, state.peers[other].changed_ns))
        place = fencing.places[other]
        # One of them that has a group, or may have one, is let fire before we fire at any: it may serve, and we not.
        if place.slot >= rounds or any(state.last_owner.get(g.name) == other for g in config.groups):
            at = max(at, place.since + place.slot * step)
    place = fencing.places[node]
    turn, passed = divmod(at - place.since, step)
    ahead = (place.slot - turn) % (2 * rounds)
    begin = place.since + turn * step
    end = begin + (OPEN_MS + longest) * MS
    # The next level of what was begun in this turn, or all of them once more.
    begun = bool(fencing.next_level.get(node)) or fencing.failed_at.get(node, 0) >= begin
    if ahead == 0 and (passed <= OPEN_MS * MS or (begun and at < end)):
        return at, end
    return begin + (ahead or 2 * rounds) * step, 0


def ended(state: State, node: str, cut: str, holder: str = "") -> None:
    """Nothing of that node's present life goes on, as far as `cut` (power, disk, network, confirmed) reaches.

    holder: only of that life of it, for the word comes from another node and may have been long on its way.
    """
    fencing, peer = state.fencing, state.peers[node]
    fencing.ended[node] = (state.ctx.now, cut)
    attempt = fencing.attempts.get(node)
    if attempt is not None and attempt.action is FenceAction.FENCE:
        del fencing.attempts[node]  # what comes of it is of a life that is over
    # What it said before may still be on its way. Only an answer to what is sent from now on shows that it lives.
    peer.asked.clear()
    if cut != "network":
        dead = fencing.dead.setdefault(node, set())
        dead.update(h for h in (holder or peer.holder,) if h)
        for lease in state.leases.values():
            if node in lease.seen and not holder:
                dead.add(lease.seen[node].slot.holder)
        for lease in state.leases.values():
            # A promise that was left for ever waits for that holder, and it is gone.
            if cut != "disk" and lease.forever_ms and lease.promised_node == node:
                if (cut == "confirmed" and not holder) or lease.promised_to in dead:
                    lease.promised_until = 0
                    lease.end_forever()
        for group, found in fencing.suspects.items():
            if node in found and holder in ("", found[node].holder):
                dead.add(found[node].holder)
                _forget(state, group, node)
    state.ctx.dirty = state.journal.changed = True
    state.persist_at = 0
