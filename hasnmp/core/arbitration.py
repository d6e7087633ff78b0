"""When the arbiter is written and read: by an owner whose promises run late, by a taker, and for its health.

What counts is lease.py's; here is only the timing. At most one call a group is under way, and nothing is written before
this node's own slot was read once, so that a sequence number never falls.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hasnmp.core import fencing, split_brain
from hasnmp.core.context import MS, Context
from hasnmp.core.events import ArbiterAnswer
from hasnmp.core.fencing import GONE_HOLDER
from hasnmp.core.journal import ENDS, number_of
from hasnmp.core.lease import OWNER_PART, Lease, Phase
from hasnmp.core.state import ALARM_AFTER, State
from hasnmp.model import ArbiterState, Kind, Reason
from hasnmp.wire import Slot, SlotState

PROBE_MS = 2000  # how often a resting arbiter is looked at
REST_MS = 500  # between two tries to write that this node has a group by promises
PROVE_MS = 6000  # how often the slot of a group at rest is written again: a disk that can only be read is no arbiter
POLL_MS = 50  # how often a taker reads while another's record stands


def look(state: State, lease: Lease) -> None:
    """Start the group's next call if one is due, or wake for it."""
    ctx = state.ctx
    if state.config.arbiter.type != "disk":
        (_none if state.config.arbiter.type == "none" else _fence)(state, lease)
        return
    if lease.farewelled:
        return
    if lease.call is not None:
        return  # it comes back in any case: the lease i/o process answers within its bound
    if lease.phase in (Phase.HELD, Phase.RELEASING):
        _owner(state, lease)
    elif lease.phase is Phase.TAKING:
        _taker(state, lease)
    elif (
        lease.phase is Phase.NONE
        and lease.slot_seq >= 0
        and (lease.slot_state is not SlotState.IDLE or lease.rewrite)
        and lease.group.name not in state.unclean
    ):
        # A claim withdrawn, a group released, or a record of a former life: nobody is to wait for it.
        if ctx.now >= lease.renew_at:
            lease.renew_at = ctx.now + POLL_MS * MS
            lease.write(ctx, SlotState.IDLE)
        else:
            ctx.wake(lease.renew_at)
    if lease.call is None:
        _probe(state, lease)


def _owner(state: State, lease: Lease) -> None:
    ctx = state.ctx
    if lease.acked and not lease.alive(ctx):
        return
    if lease.needs_arbiter(ctx):
        _number_anew(state, lease)
        if lease.slot_seq < 0:
            if ctx.now >= lease.renew_at:
                lease.renew_at = ctx.now + POLL_MS * MS
                lease.read(ctx)
            else:
                ctx.wake(lease.renew_at)
        elif ctx.now >= lease.renew_at:
            lease.renew_at = ctx.now + state.config.arbiter.lease_ms * MS // 3
            lease.write(ctx, SlotState.HELD)
        else:
            ctx.wake(lease.renew_at)
        return
    ctx.wake(lease.unanimous_asked(ctx.now) + 2 * state.config.heartbeat.interval_ms * MS)
    lease.renew_at = 0  # the next need is served at once
    if lease.slot_seq >= 0 and (lease.slot_state is not SlotState.RESTING or lease.rewrite):
        # Every node promises. That this node has the group is on the disk all the same: whoever takes it from a dead node
        # must know whose traces to look for. A record that we may count on is left to lapse before.
        counts = lease.slot_state in (SlotState.CLAIM, SlotState.HELD)
        rest_at = max(lease.arbiter_until if counts else 0, lease.rest_at)
        if ctx.now >= rest_at:
            lease.rest_at = ctx.now + REST_MS * MS
            lease.write(ctx, SlotState.RESTING)
        else:
            ctx.wake(rest_at)


def _taker(state: State, lease: Lease) -> None:
    ctx = state.ctx
    if lease.outbid() or not _may_claim(state, lease):
        return
    if ctx.now < lease.renew_at:
        ctx.wake(lease.renew_at)
        return
    if lease.read_at <= lease.taking_since:  # of before our promise lapsed: what it allowed may have been written since
        lease.renew_at = ctx.now + POLL_MS * MS
        lease.read(ctx)
    elif lease.standing(ctx.now):
        # It is read again and again: only a record that does not change through its whole duration has lapsed.
        poll = max(POLL_MS * MS, 2 * state.arbiter.latency_us * 1000)  # a slow disk is not to be crowded
        lease.renew_at = min(ctx.now + poll, max(lease.lapse_at(ctx.now), ctx.now + 5 * MS))
        if ctx.now - lease.read_at >= poll // 2:
            lease.read(ctx)
        else:
            ctx.wake(lease.renew_at)
    else:
        _number_anew(state, lease)
        lease.renew_at = ctx.now + POLL_MS * MS
        if lease.slot_seq >= 0:
            lease.write(ctx, SlotState.CLAIM)
        else:
            lease.read(
                ctx
            )  # our own slot can't be used; the second time it is an alarm, and then it is written all the same


def _number_anew(state: State, lease: Lease) -> None:
    """Our own slot is damaged, and this engine has never read it, so it does not know the number to go on from. Once that is an
    alarm (an operator is to see it), and the slot is needed or its turn to be proven has come, it is written all the same:
    above all that this node knows of, and from Unix time in ms on, as `hasnmp arbiter clear` does."""
    name = lease.group.name
    told = state.arbiter.failing.get(name, 0) >= ALARM_AFTER
    if lease.slot_seq < 0 and lease.damaged and told and name not in state.unclean:
        # Idle would say that nothing of it runs here.
        lease.slot_state = SlotState.IDLE if lease.phase in (Phase.NONE, Phase.TAKING) else SlotState.RESTING
        lease.slot_seq = max(lease.floors.get(state.me, -1), state.ctx.wall_ms())


def _may_claim(state: State, lease: Lease) -> bool:
    """The arbiter is for when not every node can promise: somebody is not heard, or does not answer."""
    ctx, hb = state.ctx, state.config.heartbeat
    if state.arbiter.mismatch:
        return False
    if any(not state.peers[n].heard() and n not in lease.left for n in lease.others):
        return True
    patient_until = lease.taking_since + hb.dead_after_ms * MS
    if ctx.now < patient_until:
        ctx.wake(patient_until)
        return False
    return True


def _none(state: State, lease: Lease) -> None:
    """`none`: promises only, and the accepted risk that a silent peer still runs the group."""
    ctx, hb = state.ctx, state.config.heartbeat
    # Of owners that hear each other the one with the highest token goes on, until the others have stopped: whatever a third node
    # has promised, which may be to one of these, and lapses only a while after that one's end.
    rivals = {n: its for n, its in split_brain.rivals(state, lease.group).items() if n in lease.others}
    if rivals:
        yields = any(split_brain.yields(lease.group, state.me, lease.token, n, its) for n, its in rivals.items())
        lease.first_until = 0 if yields else ctx.now + 2 * hb.dead_after_ms * MS
    silent = all(
        not state.peers[n].heard() or lease.promises.get(n, 0) > ctx.now or n in lease.left for n in lease.others
    )
    granted = ctx.now + state.config.arbiter.lease_ms * MS * OWNER_PART // 100
    if lease.phase is Phase.HELD and lease.needs_arbiter(ctx) and (silent or ctx.now < lease.first_until):
        if lease.arbiter_until - ctx.now < state.config.arbiter.lease_ms * MS // 2 and lease.alive(ctx):
            lease.arbiter_until = granted
        ctx.wake(ctx.now + hb.interval_ms * MS)
    elif lease.phase is Phase.TAKING and silent:
        lease.arbiter_until = granted


def _fence(state: State, lease: Lease) -> None:
    """`fence`: an owner is ended by being fenced or by command, so it needs nobody's word to go on; a taker needs every other
    node's promise, or that it was fenced and not heard since."""
    ctx = state.ctx
    granted = ctx.now + state.config.arbiter.lease_ms * MS * OWNER_PART // 100
    if lease.phase in (Phase.HELD, Phase.RELEASING):
        if lease.needs_arbiter(ctx):
            if lease.arbiter_until - ctx.now < state.config.arbiter.lease_ms * MS // 2 and lease.alive(ctx):
                lease.arbiter_until = granted
            ctx.wake(ctx.now + state.config.heartbeat.interval_ms * MS)
        else:
            ctx.wake(lease.unanimous_asked(ctx.now) + 2 * state.config.heartbeat.interval_ms * MS)
    elif lease.phase is Phase.TAKING and all(
        lease.promises.get(n, 0) > ctx.now or n in lease.left or fencing.is_ended(state, n, lease.group)
        for n in lease.others
    ):
        lease.arbiter_until = granted


def _probe(state: State, lease: Lease) -> None:
    """A look now and then, so that an arbiter that is needed tomorrow is known to be gone today."""
    ctx = state.ctx
    every = 500 if lease.group.name in state.arbiter.failing else PROBE_MS
    if lease.probe_at == 0:
        lease.probe_at, lease.prove_at = ctx.now, ctx.now + PROVE_MS * MS
    if lease.rewrite:
        return  # a write failed and is tried again: reads that succeed meanwhile say nothing of that
    if ctx.now >= lease.probe_at:
        lease.probe_at = ctx.now + every * MS
        if ctx.now >= lease.prove_at:
            _number_anew(state, lease)
        rests = lease.slot_state not in (SlotState.CLAIM, SlotState.HELD) and lease.phase in (Phase.NONE, Phase.HELD)
        if rests and lease.slot_seq >= 0 and ctx.now >= lease.prove_at:
            lease.prove_at = ctx.now + PROVE_MS * MS
            lease.write(ctx, lease.slot_state)
        else:
            lease.read(ctx)
    else:
        ctx.wake(lease.probe_at)


def answered(state: State, answer: ArbiterAnswer) -> None:
    """The health of the arbiter as a whole, then the group's own part."""
    ctx, health = state.ctx, state.arbiter
    lease = state.leases.get(answer.group)
    if lease is None or lease.call is None or lease.call.attempt != answer.attempt:
        return
    if not answer.error and answer.uuid and answer.uuid != health.uuid and not _in_force(state, answer.uuid):
        health.mismatch[state.me] = (
            f"this node reads arbiter {answer.uuid}, and {health.uuid} was in force; if it was replaced on purpose, it is used "
            "as soon as every node is heard to read it"
        )
        answer = replace(answer, error=f"foreign uuid: {answer.uuid}", slots={})
    older = _older(state, lease, answer)
    # Ours is still taken in: it is written again, above every number that it ever had.
    answer = replace(answer, slots=answer.slots | {n: text for n, text in older.items() if n != state.me})
    error = answer.error or next(
        (f"slot of {n}: {s}" for n, s in (answer.slots | older).items() if isinstance(s, str)), ""
    )
    if error:
        health.failing[answer.group] = max(health.failing.get(answer.group, 0) + 1, ALARM_AFTER if older else 0)
        health.error = error
        lease.probe_at = min(lease.probe_at, ctx.now + 500 * MS)
    else:
        health.failing.pop(answer.group, None)
        health.last_ok_ns, health.latency_us = ctx.now, answer.took_us
        health.mismatch.pop(state.me, None)
        if all(isinstance(s, Slot) and (s.token, s.holder) == (0, GONE_HOLDER) for s in answer.slots.values()):
            state.forgot.discard(answer.group)  # nobody ever had it: there is nothing to have forgotten
    for node, slot in answer.slots.items():
        if isinstance(slot, Slot) and slot.seq > lease.floors.get(node, -1):
            lease.floors[node] = slot.seq
    first = lease.slot_seq < 0
    waited_for = lease.call.slot is None and not error and (lease.phase is Phase.TAKING or first)
    lease.arbiter_answered(answer, ctx)
    if waited_for and not lease.standing(ctx.now):
        lease.renew_at = 0  # what the read was for can begin
    if lease.phase in (Phase.HELD, Phase.RELEASING) and (error or lease.conflict):
        # What we have may end before the next regular one: the nearer that end, the sooner.
        lease.renew_at = min(lease.renew_at, ctx.now + max(POLL_MS * MS, (lease.acked - ctx.now) // 8))
    release_checks(lease, ctx)
    refresh(state)


def _older(state: State, lease: Lease, answer: ArbiterAnswer) -> dict[str, str]:
    """node -> why its slot, well written as it is, can't be of today: a lower sequence was read than there was before."""
    found = {}
    for node, slot in answer.slots.items():
        if not isinstance(slot, Slot):
            continue
        told, told_ns = lease.told_floors.get(node, (-1, 0))
        seen = lease.seen.get(node)
        if told_ns < lease.called_at and slot.seq < told:
            found[node] = f"sequence {slot.seq}, and {node} says that it wrote {told}"
        elif slot.seq < lease.floors.get(node, -1):
            found[node] = f"sequence {slot.seq} after {lease.floors[node]}"
        elif seen is not None and slot.seq == seen.slot.seq and slot != seen.slot:
            found[node] = f"sequence {slot.seq} again, with another word"
    what = "an older copy of the disk, or not the one that it writes; see that all nodes use one: hasnmp arbiter show"
    return {node: f"{text}: {what}" for node, text in found.items()}


def told_floor(state: State, group: str, node: str, seq: Any) -> None:
    """A peer tells the sequence of its own slot on the lease disk, as it read it back."""
    same = state.peer_docs.get(node, {}).get("uuid") == state.arbiter.uuid
    if same and node in state.leases[group].others:
        state.leases[group].told_floors[node] = (number_of(seq, -1), state.ctx.now)


def _in_force(state: State, uuid: str) -> bool:
    """May the disk with this UUID be used? The first ever read, at once. Another than the one in force only when all nodes
    are heard to read it, and nothing here rests on the old one any more: else two nodes could each go by their own."""
    ctx, health = state.ctx, state.arbiter
    if health.uuid:
        rests = all(x.arbiter_until <= ctx.now for x in state.leases.values())
        health.reads = uuid if rests else ""
        docs = [state.peer_docs.get(p.name, {}) if p.heard() else {} for p in state.peers.values()]
        if not rests or not all(uuid in (d.get("uuid"), d.get("reads")) for d in docs):
            return False
        state.decided_for_all(f"the lease disk is {uuid} from now on, as every node reads it; it was {health.uuid}")
    health.uuid, health.reads = uuid, ""
    for lease in state.leases.values():
        lease.seen.clear()
        lease.unreadable.clear()
        lease.floors.clear()
        lease.told_floors.clear()
        lease.slot_seq = -1  # of the other disk
    state.journal.changed = True
    compare(state)
    return True


def compare(state: State) -> None:
    """Do the peers use the lease disk that this node uses? By the UUID that each tells."""
    health = state.arbiter
    before = dict(health.mismatch)
    for node, doc in state.peer_docs.items():
        uuid = str(doc.get("uuid") or "")
        health.mismatch.pop(node, None)
        if uuid and health.uuid and uuid != health.uuid and doc.get("reads") != health.uuid:
            health.mismatch[node] = f"{node} uses arbiter {uuid}, this node {health.uuid}"
    if health.mismatch != before:
        refresh(state)


def refresh(state: State) -> None:
    """Tell when the arbiter is lost, back, or not the one that the peers use."""
    ctx, health = state.ctx, state.arbiter
    kind = state.config.arbiter.type
    if kind != "disk":
        new = ArbiterState.RESTING
    elif health.mismatch:
        new = ArbiterState.MISMATCH
    elif any(n >= ALARM_AFTER for n in health.failing.values()):
        new = ArbiterState.LOST
    elif not health.last_ok_ns:
        new = ArbiterState.UNKNOWN
    elif any(x.slot_state in (SlotState.CLAIM, SlotState.HELD) for x in state.leases.values()):
        new = ArbiterState.ACTIVE
    else:
        new = ArbiterState.RESTING
    if new is health.state:
        return
    previous, health.state, health.changed_ns = health.state, new, ctx.now
    health.transitions += 1
    ctx.dirty = True
    more: dict[str, Any] = {"previous": int(previous), "state": int(new), "reason": Reason.ARBITER}
    if new is ArbiterState.LOST:
        state.journal.happened(
            ctx, Kind.ARBITER_LOST,
            f"arbiter {kind} can't be used: {health.error}; groups go on by promises while every node is heard; "
            "mend it before a second failure", of=kind, **more,
        )  # fmt: skip
    elif new is ArbiterState.MISMATCH:
        text = "; ".join(health.mismatch.values())
        state.journal.happened(
            ctx,
            Kind.ARBITER_MISMATCH,
            f"arbiter {kind}: {text}; nothing is claimed until all nodes use one",
            of=kind,
            **more,
        )
    elif new in (ArbiterState.RESTING, ArbiterState.ACTIVE):
        for _ in ENDS[Kind.ARBITER_RESTORED]:  # lost and mismatch may both stand; each has its own clear
            state.journal.clear(ctx, Kind.ARBITER_RESTORED, kind, f"arbiter {kind} is good", **more)


def release_checks(lease: Lease, ctx: Context) -> None:
    """A promise that was left for ever ends when its holder is seen gone: its node wrote, after we left, that another
    holder (or none) has its slot. Only that node writes there, and its guardian ended everything before."""
    seen = lease.seen.get(lease.promised_node)
    if (
        lease.forever_ms
        and seen is not None
        and lease.promised_node not in lease.unreadable
        and seen.slot.seq > lease.forever_seq
        and seen.slot.holder != lease.promised_to
    ):
        lease.promised_until = 0
        lease.end_forever()
        ctx.dirty = True
