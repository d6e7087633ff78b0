"""Who runs a group: when this node takes it, when it moves it away, and why - in the words that `hasnmp why` shows.

The lease decides what is safe; this file decides what is wanted. Every decision is kept with the inputs it was made on.
"""

from __future__ import annotations

from hasnmp.core import fencing, moving
from hasnmp.core.board import EXCLUDED, FREEZE, INHIBIT, STANDBY
from hasnmp.core.context import MS
from hasnmp.core.lease import UNKNOWN_HOLDER, Lease, Phase
from hasnmp.core.moving import begin_move
from hasnmp.core.running import Running, Stage
from hasnmp.core.state import Move, State
from hasnmp.model import Failback, Kind, Reason, ServiceState
from hasnmp.settings import Group

SLOW_STORE = 40  # quarter seconds
STEADY_MS = 5000  # how long a home node is up before a group goes back to it by itself


def look(state: State, group: Group) -> None:
    """Decide for one group what this node does next."""
    lease, running = state.leases[group.name], state.running[group.name]
    if lease.phase is Phase.NONE:
        _not_owned(state, group, lease, running)
    elif lease.phase is Phase.TAKING:
        _taking(state, group, lease)
    elif lease.phase is Phase.HELD and lease.alive(state.ctx):
        _owned(state, group, lease, running)
    elif lease.phase is Phase.HELD and lease.acked and not lease.alive(state.ctx):
        lease.phase = Phase.LOST  # the guardian is killing the group now, and this engine first


# ------------------------------------------------------------------------------------------------------------- taking


def _not_owned(state: State, group: Group, lease: Lease, running: Running) -> None:
    ctx, name = state.ctx, group.name
    owner = state.owner(name)
    if owner:
        state.unowned_ns.pop(name, None)
        state.had_by(name, owner)
        moving.taken_by(state, name, owner)
        if (order := state.orders.get(name)) is not None:
            order.token = order.token or lease.token_seen
            if lease.token_seen > order.token:
                del state.orders[name]  # somebody else took it since
        return
    since = state.unowned_ns.setdefault(name, ctx.now)
    why, at = reasons_not_to_take(state, group, lease, since)
    if why:
        if at:
            ctx.wake(at)  # only a moment's wait: nothing that an operator would ask about afterwards
        else:
            state.decided(name, f"not taken here: {why}")
        return
    if missing := fencing.unfenced(state, group, lease):
        state.decided(name, f"not taken yet: {fencing.want_for(state, group, missing)}")
        return
    token = state.new_token(lease)
    if token > state.ceiling:
        # Where numbers follow the time, room for as long as a slow store takes: else each document would come too late.
        lease.asked_token = token + (SLOW_STORE if state.config.arbiter.type == "fence" else 0)
        return  # the store is making room; engine.py looks again when it has
    order = state.orders.get(name)
    facts = state.board.groups[name]
    if order is not None:
        facts.reason, facts.reason_text = order.reason, order.text
    elif not state.last_owner.get(name) or state.last_owner[name] == state.me:
        first = not state.last_owner.get(name)
        facts.reason = Reason.STARTUP if first else Reason.RETURNED
        facts.reason_text = "nobody had run it" if first else "its last owner takes it up again"
    elif facts.decided_ms == 0:
        last = state.last_owner[name]
        peer = state.peers.get(last)
        if peer is not None and peer.heard():
            facts.reason, facts.reason_text = Reason.LEASE_LOST, f"{last} had it and does not take it up again"
        else:
            silent = f"was last heard {state.seconds(peer.heard_ns)} ago" if peer and peer.heard_ns else "is not heard"
            facts.reason, facts.reason_text = Reason.NODE_LOST, f"{last}, its last owner, {silent}"
    if not facts.decided_ms:
        facts.decided_ms = ctx.wall_ms(since)
    state.decided(name, f"taking it with token {token}: {facts.reason_text}")
    lease.take(token, ctx)


def reasons_not_to_take(state: State, group: Group, lease: Lease, since: int) -> tuple[str, int]:
    """Why this node does not take a group that nobody owns, and when to look again (0: when something changes)."""
    ctx, name, registers = state.ctx, group.name, state.board.registers
    order = state.orders.get(name)
    if order is not None and ctx.now >= order.until_ns:
        del state.orders[name]
        order = None
    unable = state.unable(name, force=order is not None and order.force)
    if unable:
        return unable, 0
    if no_way := fencing.no_way(state, group):
        return no_way, 0
    if ctx.now < lease.retry_at:
        return f"trying again in {(lease.retry_at - ctx.now) // MS} ms: {lease.conflict}", lease.retry_at
    if lease.promise_stands(ctx.now):
        if lease.forever_ms:
            return (
                f"{state.me} left it to {lease.promised_node} when it stopped, and has not heard it since; start "
                f"{lease.promised_node}, or if it is off for certain: hasnmp fence confirm {lease.promised_node}"
            ), 0
        left = -(-max(0, lease.promised_until - ctx.now) // MS)
        whom = "whoever had it before this start" if lease.promised_to == UNKNOWN_HOLDER else lease.promised_node
        if not left:
            return f"promised to {whom} a moment ago", 0  # its answer is not known to have left
        return f"promised to {whom} for {left} ms more", lease.promised_until
    if order is not None:
        return "", 0
    last = state.last_owner.get(name, "")
    if registers.get(FREEZE, name) and last not in ("", state.me):
        return f"frozen ({registers.get(FREEZE, name)}); to end that: hasnmp thaw {name}", 0
    inhibit = registers.get(INHIBIT, name) or registers.get(INHIBIT)
    if inhibit and last not in ("", state.me):
        return (
            f"automatic failover is inhibited ({inhibit}); hasnmp permit {name}, or: hasnmp failover {name} --to {state.me}",
            0,
        )
    _, to = state.handed.get(name, (0, ""))
    if ctx.now < state.yield_until.get(name, 0) and (not to or state.peers[to].heard()):  # else it can't take it
        return "it was just given up here", state.yield_until[name]
    order_of = [last, *(n for n in group.nodes if n != last)] if last in group.nodes else list(group.nodes)
    better = [n for n in order_of[: order_of.index(state.me)] if state.able(name, n)]
    if better:
        hb = state.config.heartbeat
        turn = since + len(better) * 2 * (hb.dead_after_ms + state.config.arbiter.io_timeout_ms) * MS
        if ctx.now < turn:
            return f"{better[0]} comes first and is able to take it", turn
    return "", 0


def _taking(state: State, group: Group, lease: Lease) -> None:
    ctx, name = state.ctx, group.name
    hb, arbiter = state.config.heartbeat, state.config.arbiter
    owner = state.owner(name)
    if owner:
        lease.abandon(ctx, f"{owner} has it")
        state.decided(name, f"gave way: {owner} has it")
        return
    if out_of_reach := state.out_of_reach(name):
        lease.abandon(ctx, state.arbiter.error)
        state.decided(name, f"gave way: {out_of_reach}")
        return
    if fencing.unfenced(state, group, lease):
        # No promise of theirs is to come any more, and our turn to fire may be now.
        lease.abandon(ctx, "")
        lease.retry_at = 0
        _not_owned(state, group, lease, state.running[name])
        return
    if lease.outbid():
        lease.bid_again(state.ceiling, ctx)
    patience = (4 * hb.dead_after_ms + 2 * arbiter.lease_ms + 4 * arbiter.io_timeout_ms) * MS
    if ctx.now >= lease.taking_since + patience:
        lease.abandon(ctx, lease.conflict or "not every node promised")
        state.decided(name, f"could not get the lease: {lease.conflict}")
    else:
        ctx.wake(lease.taking_since + patience)


# -------------------------------------------------------------------------------------------------------------- owned


def _owned(state: State, group: Group, lease: Lease, running: Running) -> None:
    ctx, name = state.ctx, group.name
    ctx.wake(lease.acked - state.config.heartbeat.kill_ms * MS)
    if running.stage is Stage.IDLE:
        waits = fencing.holds_back(state, group) if name not in state.adopted else ""
        if waits:
            state.decided(name, f"the lease is held, nothing is started yet: {waits}")
            begun = state.unfinished.get(name)
            if name in state.moves:
                running.stop(ctx)
            elif begun is not None and begun.stopping:
                begin_move(state, group, begun)
            elif state.leaving or state.board.registers.get(STANDBY, state.me):
                _drain(state, group)
            return
        fencing.started(state, name, lease.token)
        state.owned[name] = lease.token
        state.last_owner[name] = state.me
        state.unowned_ns.pop(name, None)
        state.orders.pop(name, None)
        state.handed.pop(name, None)
        state.journal.changed = True
        state.persist_at = 0  # at once: a node that dies now must know afterwards that it had the group
        facts = state.board.groups[name]
        again = state.unfinished.get(name)
        going = again is not None and again.stopping
        running.start(ctx, state.adopted.pop(name, {}), facts.reason, facts.reason_text, going)
        running.announced = (running.announced or name in state.kept) and name not in state.untold
        state.kept.discard(name)
        state.untold.discard(name)
        if again is not None and going:
            begin_move(state, group, again)
        return
    if running.stage is Stage.STOPPING:
        moving.look(state, group, lease, running)
        return
    if name in state.moves and not running.blocked:
        running.stop(ctx)
        return
    if running.blocked:
        state.unfinished.pop(name, None)  # its command has failed by that: nothing is left to carry out
        return
    if running.start_failed:
        _start_failed(state, group, running)
    elif running.move_wanted:
        _service_failed(state, group, running)
    elif running.stage is Stage.RUNNING:
        if name in state.unfinished:
            moving.order_again(state, group, state.unfinished[name])
        elif state.me not in group.nodes:
            _give_away(state, group)
        elif state.leaving or state.board.registers.get(STANDBY, state.me):
            _drain(state, group)
        elif group.failback is Failback.AUTOMATIC:
            _fail_back(state, group)


def _start_failed(state: State, group: Group, running: Running) -> None:
    name, why = group.name, running.start_failed
    others = state.candidates(name)
    run = running.run(running.start_failed_of)
    if not others and run is not None and running.restarts_left(run, state.ctx) > 0:
        running.start_failed = ""
        state.decided(name, f"tried again here, for no other node is able: {why}")
        running.restart(run, state.ctx)
        return
    _exclude_and_go(state, group, running, why, others)


def _exclude_and_go(state: State, group: Group, running: Running, why: str, others: list[str]) -> None:
    ctx, name = state.ctx, group.name
    state.journal.count("failed_takeovers")
    state.journal.happened(
        ctx, Kind.TAKEOVER_FAILED, f"group {name} on {state.me}: {why}", group=name, reason=Reason.START_FAILED
    )
    state.set_register(EXCLUDED, f"{name}/{state.me}", why)
    source = state.came_from.get(name, "")
    to = source if source in others else others[0] if others else ""
    state.decided(name, f"excluded {state.me} ({why}); " + (f"handing it to {to}" if to else "no other node is able"))
    begin_move(state, group, Move(to, Reason.START_FAILED, why))


def _service_failed(state: State, group: Group, running: Running) -> None:
    ctx, name, why = state.ctx, group.name, running.move_wanted
    others = state.candidates(name)
    facts, registers = state.board.groups[name], state.board.registers
    inhibit = registers.get(INHIBIT, name) or registers.get(INHIBIT)
    facts.moves = ctx.lately(facts.moves, group.failover_within_s)
    running.move_wanted = ""
    if running.stage is Stage.STARTING:  # it never came up here: that is a failed start
        _exclude_and_go(state, group, running, why, others)
    elif inhibit:
        state.decided(name, f"stays on {state.me} although {why}: automatic failover is inhibited ({inhibit})")
    elif len(facts.moves) >= group.failover_limit:
        text = f"{len(facts.moves)} moves within {group.failover_within_s} s, the limit is {group.failover_limit}"
        state.decided(name, f"stays on {state.me} although {why}: {text}")
        state.journal.happened(
            ctx, Kind.FAILOVER_LIMIT_REACHED, f"group {name} keeps trying on {state.me}: {text}; mend the cause, then: hasnmp service clear {group.services[0].name}", of=name, group=name,
            reason=Reason.SERVICE_FAILED,
        )  # fmt: skip
    elif not others:
        state.decided(
            name, f"stays on {state.me} although {why}: no other node is able; {state.why_not_others(group.name)}"
        )
    else:
        facts.moves.append(ctx.wall_ms())
        facts.fled_from, facts.fled_ms = state.me, ctx.wall_ms()
        begin_move(state, group, Move(others[0], Reason.SERVICE_FAILED, why))


def _drain(state: State, group: Group) -> None:
    others = state.candidates(group.name)
    reason = Reason.NODE_LEFT if state.leaving else Reason.STANDBY_ORDERED
    text = f"{state.me} is stopping" if state.leaving else f"{state.me} was set to standby"
    frozen = state.board.registers.get(FREEZE, group.name)
    if frozen and not state.leaving:
        state.decided(group.name, f"stays on {state.me} although {text}: it is frozen ({frozen})")
        return
    coming, until = state.arriving(group.name) if state.leaving and not others else ("", 0)
    if coming:
        # A rolling restart: to stop now would leave the group to nobody for as long as that start takes.
        state.lingered_ns = state.ctx.now
        state.ctx.wake(until)
        state.decided(
            group.name, f"stays on {state.me} for a moment although {text}: {coming} has just started or left"
        )
    elif others or state.leaving:
        begin_move(state, group, Move(others[0] if others else "", reason, text))
    else:
        state.decided(group.name, f"stays on {state.me} although {text}: {state.why_not_others(group.name)}")


def _give_away(state: State, group: Group) -> None:
    """Its nodes are being changed, and this one is none of the new."""
    others = state.candidates(group.name)
    text = f"{state.me} is to be none of its nodes any more"
    if others or state.leaving:
        begin_move(state, group, Move(others[0] if others else "", Reason.OPERATOR, text))
    else:
        state.decided(group.name, f"stays on {state.me} although {text}: {state.why_not_others(group.name)}")


def _fail_back(state: State, group: Group) -> None:
    ctx, name, home = state.ctx, group.name, group.nodes[0]
    registers = state.board.registers
    if home == state.me or not state.able(name, home):
        state.fit_since.pop(f"{name}/{home}", None)
        return
    if registers.get(INHIBIT, name) or registers.get(INHIBIT) or registers.get(FREEZE, name):
        return
    facts = state.board.groups[name]
    if facts.fled_from == home and ctx.lately((facts.fled_ms,), group.failover_within_s):
        state.decided(name, f"not failed back: it left {home} because a service failed there; to let it: service clear")
        return
    since = state.fit_since.setdefault(f"{name}/{home}", ctx.now)
    steady = max(STEADY_MS, 3 * state.config.heartbeat.dead_after_ms) * MS
    if ctx.now < since + steady:
        ctx.wake(since + steady)
        return
    begin_move(state, group, Move(home, Reason.FAILBACK, f"{home} is its home and has been able for {steady // MS} ms"))


def explain(state: State, group: Group) -> tuple[str, ...]:
    """`hasnmp why GROUP`: what is, what was decided last and on what, why it may or may not move now, what to do."""
    ctx, name = state.ctx, group.name
    lease, facts, registers = state.leases[name], state.board.groups[name], state.board.registers
    owner = state.owner(name)
    lines = [
        f"group {name}: {state.group_state(name).name.lower()}" + (f" on {owner}" if owner else ", owned by nobody")
    ]
    if state.owns(name):
        left = max(0, lease.acked - ctx.now) // MS
        lines.append(f"lease: token {lease.token}, {left} ms left, by {lease.proof(ctx.now).name.lower()}")
    elif lease.promise_stands(ctx.now) and lease.promised_to != UNKNOWN_HOLDER:
        more = f"{max(0, lease.promised_until - ctx.now) // MS} ms more"
        until = "until it is heard again" if lease.forever_ms else more
        lines.append(f"lease: {state.me} promised it to {lease.promised_node} ({until})")
    if owner:
        for service in group.services:
            known = state.board.services[service.name]
            if known.state is not ServiceState.RUNNING and known.changed_ns:
                word = known.state.name.lower().replace("_", " ")
                lines.append(f"service {service.name}: {word} for {state.seconds(known.changed_ns)}: {known.message}")
    if facts.reason_text and not facts.decided_ms:
        lines.append(
            f"last move: {facts.reason.name.lower().replace('_', ' ')}: {facts.reason_text}; took {facts.duration_ms} ms"
        )
    for decision in state.decisions.get(name, []):
        lines.append(f"{state.seconds(decision.ns)} ago: {decision.text}")
    if not owner:
        why, _ = reasons_not_to_take(state, group, lease, state.unowned_ns.get(name, ctx.now))
        missing = fencing.unfenced(state, group, lease)
        if not why and missing:
            why = f"{', '.join(missing)} must be fenced first; if it is off for certain: hasnmp fence confirm {missing[0]}"
        lines.append(f"here: {why or 'this node is taking it'}")
    elif name in state.fencing.held:
        lines.append(f"here: {fencing.holds_back(state, group)}")
    for node in group.nodes:
        if node == owner:
            continue
        if node == state.me:
            lines.append(f"{node}: {state.unable(name) or 'able to take it'}".replace(f"{node}: {node} ", f"{node}: "))
        else:
            lines.append(f"{node}: {state.why_not(name, node) or 'able to take it'}")
    inhibit = registers.get(INHIBIT, name) or registers.get(INHIBIT)
    if inhibit:
        lines.append(f"automatic failover is inhibited: {inhibit}; to end that: hasnmp permit {name}")
    if registers.get(FREEZE, name):
        lines.append(f"frozen: {registers.get(FREEZE, name)}; no check is acted on; to end that: hasnmp thaw {name}")
    used = len(ctx.lately(facts.moves, group.failover_within_s))
    lines.append(f"moves for a failed service: {used} of {group.failover_limit} within {group.failover_within_s} s")
    if lease.conflict:
        lines.append(f"arbiter: {lease.conflict}")
    for node in [n for n in lease.unreadable if n in lease.others and not state.peers[n].heard()]:
        lines.append(
            f"arbiter: the slot of {node} can't be used ({lease.unreadable[node]}), and nothing is claimed beside it; {node} "
            f"writes it anew when it starts; if it is gone for certain: hasnmp arbiter clear {name} --node {node} --force --config FILE"
        )
    return tuple(lines)
