"""A move under way, on the node that gives the group up and on the one that takes it: stop all of it, then the lease, then hand over.

Nothing is given up before all of it is stopped. A move that an engine's end cut off is gone on with by the next one, once
(durable.resume): what nothing was stopped of is judged anew, and what was being stopped is stopped further - but given up
only to a node that is able, else started again here. Who is to have a group, and why, is placement.py's to decide.
"""

from __future__ import annotations

from hasnmp.core.board import EXCLUDED, FREEZE, STANDBY
from hasnmp.core.context import MS
from hasnmp.core.lease import Lease, Phase
from hasnmp.core.running import Running
from hasnmp.core.state import Move, Order, State
from hasnmp.errors import Code
from hasnmp.model import GroupState, Kind, Reason
from hasnmp.settings import Group

TO_ONE_NODE = {Reason.OPERATOR, Reason.OPERATOR_FORCED, Reason.FAILBACK}  # where that node can not take it, it stays
PLANNED = {Reason.OPERATOR, Reason.STANDBY_ORDERED, Reason.FAILBACK, Reason.NODE_LEFT}


def begin_move(state: State, group: Group, move: Move) -> None:
    """Stop the group here for another node to take. Nothing is given up before all of it is stopped."""
    ctx, name = state.ctx, group.name
    if state.running[name].hooks.waits(ctx, move):
        return
    facts, to = state.board.groups[name], move.to or "whoever can take it"
    state.moves[name] = move
    state.unfinished.pop(name, None)
    if not move.stopping:
        move.before, facts.decided_ms = (facts.reason, facts.reason_text), ctx.wall_ms()
    facts.reason, facts.reason_text = move.reason, move.text
    if move.again:
        state.decided(name, f"going on with what the former engine began: moving it to {to}: {move.text}")
    else:
        state.decided(name, f"moving it to {to}: {move.text}")
        state.journal.happened(
            ctx, Kind.FAILOVER_STARTED, f"group {name} leaves {state.me} for {to}: {move.text}",
            peer=move.to, group=name, previous=int(state.running[name].state()), state=int(GroupState.STOPPING),
            reason=move.reason,
        )  # fmt: skip
        state.journal.count("switchovers" if move.reason in PLANNED else "failovers")
        state.persist_at = 0  # at once: an engine that follows this one goes on with it
    running = state.running[name]
    running.stop(ctx, move.reason, move.text, move.to)
    move.stopping = not running.hooks.on


def _stay(state: State, group: Group, running: Running) -> None:
    """A required hook does not let the group go; nothing of it was stopped."""
    name, why = group.name, running.hooks.refused
    move, facts = state.moves.pop(name), state.board.groups[name]
    facts.decided_ms, (facts.reason, facts.reason_text) = 0, move.before
    state.persist_at = 0  # at once: an engine that follows this one is not to go on with it
    not_moved(state, name, move, why)
    running.stay(state.ctx)


def not_moved(state: State, group: str, move: Move, why: str) -> None:
    state.decided(group, f"stays on {state.me} although {move.text}: {why}")
    state.stayed[group] = (state.ctx.now, why)
    if move.asked and move.asked[0] in state.streams:  # there a follower waits for the outcome
        state.streams[move.asked[0]].put(
            f"a/{move.asked[1]}", [int(Code.FAILED), f"{group} stays on {state.me}: {why}", ""]
        )


def released(state: State, group: str) -> None:
    """The guardian confirmed that nothing of the group runs here: give the lease up, and hand it over."""
    ctx, lease = state.ctx, state.leases[group]
    move = state.moves.pop(group, None)
    state.unfinished.pop(group, None)
    state.untold.discard(group)
    lease.released(ctx)
    state.running[group].gone(ctx)
    why = (move.reason, move.text, move.to) if move is not None else ()
    state.running[group].hooks.begin(ctx, "after_stop", *why)
    state.fencing.held.pop(group, None)
    to = move.to if move is not None else ""
    state.gave(group, lease.token, to if to and (state.peers[to].heard() or state.starting) else "")
    facts = state.board.groups[group]
    facts.owner, facts.state, facts.changed_ns, facts.data_ns = "", GroupState.STOPPED, ctx.now, ctx.now
    facts.transitions += 1
    if state.hopeless(group):
        state.journal.happened(
            ctx, Kind.GROUP_FAILED,
            f"group {group} is stopped: it failed to start on every node that is heard; mend the cause, then: hasnmp service clear NAME",
            of=group, group=group, state=int(GroupState.FAILED), reason=Reason.START_FAILED,
        )  # fmt: skip


def look(state: State, group: Group, lease: Lease, running: Running) -> None:
    """Go on with the stop: a hook may keep the group here before it; after it the lease is given up."""
    ctx, name = state.ctx, group.name
    move = state.moves.get(name)
    if running.hooks.keeps(ctx, move):
        _stay(state, group, running)
        return
    if move is not None and not move.stopping and not running.hooks.on:
        move.stopping = state.journal.changed = True
        state.persist_at = 0  # at once: an engine that follows this one is not to start what is stopped now
    if running.stopped() and lease.phase is Phase.HELD and name not in state.retiring:
        if move is not None and move.again and not _has_a_taker(state, name, move):
            _await_taker(state, group, running, move)
        else:
            if move is not None and move.again and move.force and move.to:
                state.force(name, move)  # the former engine's word may not have come there
            lease.release(ctx)


def _fit(state: State, group: str, move: Move) -> bool:
    """Is the node that is to have the group able to take it, by its own fresh word?"""
    peer = state.peers[move.to]
    return peer.up() and state.config.goes_with(peer.digest) if move.force else state.able(group, move.to)


def _has_a_taker(state: State, group: str, move: Move) -> bool:
    """May what a former engine had begun to move be given up: is it known who takes it, or must it leave in any case?"""
    excluded = state.board.registers.get(EXCLUDED, f"{group}/{state.me}")
    return not move.to or state.leaving or bool(excluded) or _fit(state, group, move)


def _await_taker(state: State, group: Group, running: Running, move: Move) -> None:
    """All of it is stopped, and the node that was to have it is not able, or was not heard by this engine yet."""
    ctx, name, facts = state.ctx, group.name, state.board.groups[group.name]
    until = state.started_ns + state.config.heartbeat.dead_after_ms * MS
    peer = state.peers[move.to]
    why = f"{move.to}: {state.why_not(name, move.to) or 'has another configuration'}"
    if ctx.now < until and not (peer.up() and not state.config.goes_with(peer.digest)):
        ctx.wake(until)
        state.decided(name, f"stopped, and not given up before {move.to} is able to take it: {move.text}")
    elif move.reason not in TO_ONE_NODE and (others := state.candidates(name)):
        move.to = others[0]  # it can't stay: a service failed here, or this node is to be left
        state.decided(name, f"it goes to {move.to} instead: {why}")
        ctx.dirty = True
    else:
        del state.moves[name]
        state.persist_at = 0  # at once: no engine that follows this one is to go on with it
        facts.reason, facts.reason_text = Reason.RETURNED, f"started again where it was, for nobody else could: {why}"
        not_moved(state, name, move, why)
        running.start(ctx, {}, facts.reason, facts.reason_text)
        ctx.dirty = True


def order_again(state: State, group: Group, move: Move) -> None:
    """An order whose before_stop was under way when the former engine ended: nothing was stopped, so it is judged anew."""
    ctx, name, hb = state.ctx, group.name, state.config.heartbeat
    frozen = "" if move.force else state.board.registers.get(FREEZE, name)
    if not frozen and _fit(state, name, move):
        begin_move(state, group, move)
        return
    until = state.started_ns + (hb.startup_wait_ms + 2 * hb.dead_after_ms) * MS
    # Whatever else wants the group off this node waits for no order.
    goes = state.leaving or state.board.registers.get(STANDBY, state.me) or state.me not in group.nodes
    if not frozen and not goes and ctx.now < until:
        ctx.wake(until)  # this engine has just started: it may not have heard that node's word yet
        state.decided(name, f"what the former engine began waits for {move.to} to be able: {move.text}")
        return
    del state.unfinished[name]
    why = (
        f"it is frozen ({frozen})"
        if frozen
        else f"{move.to}: {state.why_not(name, move.to) or 'has another configuration'}"
    )
    not_moved(state, name, move, f"the engine was started again, and now {why}")
    ctx.dirty = True


def heard_handover(state: State, group: str, sender: str, token: int) -> None:
    """Another node gave the group up for this one to take."""
    lease = state.leases[group]
    if lease.phase is not Phase.NONE or lease.token_seen > token or group in state.orders:
        return
    hb = state.config.heartbeat
    facts = state.board.groups[group]
    state.orders[group] = Order(
        facts.reason if facts.decided_ms else Reason.OPERATOR, facts.reason_text or f"{sender} handed it over",
        state.ctx.now + 3 * hb.dead_after_ms * MS, token=token,
    )  # fmt: skip
    state.came_from[group] = sender
    lease.retry_at = 0
    state.ctx.dirty = True


def taken_by(state: State, group: str, owner: str) -> None:
    """Somebody has the group again: our own word on giving it up has served."""
    handed = state.handed.get(group)
    if handed is not None and state.peers[owner].groups[group].token > handed[0]:
        del state.handed[group]
        state.yield_until.pop(group, None)


def came_up(state: State, group: Group) -> None:
    """Every service of the group has been started here."""
    ctx, name = state.ctx, group.name
    facts = state.board.groups[name]
    before = facts.reason
    if facts.decided_ms:
        facts.duration_ms = max(0, ctx.wall_ms() - facts.decided_ms)
    facts.decided_ms = 0
    state.came_from.pop(name, None)
    facts.failovers += before not in (Reason.STARTUP, Reason.RETURNED, Reason.NONE)
    state.journal.count("takeovers")
    if before in (Reason.NODE_LOST, Reason.LEASE_LOST):
        state.journal.count("failovers")
    state.decided(name, f"runs on {state.me} since {facts.duration_ms} ms after it was decided: {facts.reason_text}")
    state.journal.happened(
        ctx, Kind.TAKEOVER_COMPLETED,
        f"group {name} runs on {state.me}, {facts.duration_ms} ms after it was decided: {facts.reason_text}",
        group=name, state=int(state.running[name].state()), reason=before,
    )  # fmt: skip
    state.journal.clear(ctx, Kind.GROUP_RESTORED, name, f"group {name} runs again, on {state.me}", group=name)
    state.persist_at = 0  # at once: an engine that follows this one is not to tell it again
