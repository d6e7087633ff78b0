"""What the engine notes at each look: the facts of its groups, its role, what was taken from it; and its watchdog. Nothing is
started or stopped from here."""

from __future__ import annotations

from hasnmp.core.board import EXCLUDED, RECOVERING
from hasnmp.core.lease import Lease, Phase
from hasnmp.core.running import Running
from hasnmp.core.state import State
from hasnmp.model import GroupState, Kind, Proof, Reason, Role


def group(state: State, name: str, lease: Lease, running: Running) -> None:
    """Keep the facts of an owned group as its owner's word, and end alarms that no longer hold."""
    ctx, facts, registers = state.ctx, state.board.groups[name], state.board.registers
    since = state.unserved_since(name)
    if since and ctx.now < since + state.unserved_limit():
        ctx.wake(since + state.unserved_limit())
    elif since and state.me in running.group.nodes and f"{Kind.GROUP_FAILED.value}/{name}" not in state.journal.alarms:
        state.journal.happened(
            ctx, Kind.GROUP_FAILED,
            f"group {name} is run by nobody that {state.me} knows of, for {state.seconds(since)}; see: hasnmp why {name}",
            of=name, group=name, state=int(GroupState.FAILED),
        )  # fmt: skip
    if lease.phase in (Phase.HELD, Phase.RELEASING) and lease.acked:
        now_state = state.group_state(name)
        if (facts.owner, facts.state, facts.token) != (state.me, now_state, lease.token):
            facts.owner, facts.state, facts.token = state.me, now_state, lease.token
            facts.changed_ns = ctx.now
            facts.transitions += 1
        facts.lease_until_ns, facts.proof, facts.data_ns = lease.acked, lease.proof(ctx.now), ctx.now
        settings = running.group
        if state.journal.alarms and len(ctx.lately(facts.moves, settings.failover_within_s)) < settings.failover_limit:
            state.journal.clear(
                ctx,
                Kind.FAILOVER_LIMIT_CLEARED,
                name,
                f"group {name} may be moved again for a failed service",
                group=name,
            )
    elif facts.owner == state.me and not state.owns(name):
        facts.owner, facts.lease_until_ns, facts.proof = "", 0, Proof.NONE
        running.gone(ctx)
    elif state.journal.alarms and not state.owns(name) and state.owner(name):
        for run in running.runs:  # it is the new owner's to tell of its services
            state.journal.clear(
                ctx, Kind.SERVICE_RECOVERED, run.settings.name, f"service {run.settings.name} is with {state.owner(name)} now",
                group=name, service=run.settings.name,
            )  # fmt: skip
        state.journal.clear(ctx, Kind.GROUP_RESTORED, name, f"group {name} is with {state.owner(name)} now", group=name)
        state.journal.clear(
            ctx, Kind.FAILOVER_LIMIT_CLEARED, name, f"group {name} is with {state.owner(name)} now", group=name
        )
    if state.journal.alarms and not running.blocked:
        # Of a former engine: its lease has ended, or what failed is tried again.
        state.journal.clear(
            ctx, Kind.GROUP_UNBLOCKED, name, f"group {name} is not blocked on {state.me} any more", group=name
        )
    tried = state.journal.alarms and state.owns(name)
    if tried and not all(registers.get(EXCLUDED, f"{name}/{n}") for n in running.group.nodes):
        state.journal.clear(ctx, Kind.GROUP_RESTORED, name, f"group {name} is tried again", group=name)


def role_of_this_node(state: State) -> None:
    ctx = state.ctx
    mine = [g for g in state.config.groups if state.me in g.nodes]
    have = [g for g in mine if state.owns(g.name)]
    if why := state.board.registers.get(RECOVERING, state.me):
        role = Role.RECOVERING
        text = f"{state.me} is recovering: {why}; when it is sound: hasnmp recover {state.me}"
        state.journal.happened(ctx, Kind.RECOVERY_NEEDED, text, of=state.me, reason=Reason.RECOVERY)
    else:
        state.journal.clear(ctx, Kind.RECOVERED, state.me, f"{state.me} is recovered", reason=Reason.RECOVERY)
        if state.starting or (state.leaving and not have):
            role = Role.OFFLINE
        else:
            role = Role.PRIMARY if have and len(have) == len(mine) else Role.SHARED if have else Role.STANDBY
    if role is state.role or (state.starting and state.resumed):
        return
    before, state.role = state.role, role
    state.role_changes += 1
    state.role_changed_ns = ctx.now
    state.journal.role = int(role)
    state.journal.happened(
        ctx, Kind.ROLE_CHANGE, f"{state.me} is {role.name.lower()} (was {before.name.lower()})", previous=int(before),
        state=int(role),
    )  # fmt: skip


def taken(state: State, group: str, lease: Lease) -> None:
    """Design rule 10: another holder took a group from this node since it last owned it."""
    token = state.owned.get(group)
    if token is None or state.owns(group) or lease.token_seen <= token or lease.seen_owner in ("", state.me):
        return
    del state.owned[group]
    state.journal.changed = True
    state.had_by(group, lease.seen_owner)
    if state.config.recovery_automatic or state.board.registers.get(RECOVERING, state.me):
        return
    why = f"{lease.seen_owner} took group {group} from it"
    state.set_register(RECOVERING, state.me, why)
    state.journal.happened(
        state.ctx, Kind.RECOVERY_NEEDED,
        f"{state.me} is recovering: {why}; when it is sound: hasnmp recover {state.me}", of=state.me, group=group,
        reason=Reason.RECOVERY,
    )  # fmt: skip


def watchdog(state: State) -> None:
    device = state.config.watchdog.device
    if device and not state.watchdog_ms:
        state.journal.happened(
            state.ctx, Kind.WATCHDOG_LOST,
            f"watchdog {device} can't be used ({state.watchdog_error}): this machine is not reset when a group can't be "
            "ended; load its driver, it is tried again every 30 s", of=state.me, reason=Reason.WATCHDOG,
        )  # fmt: skip
    else:
        text = f"the watchdog is armed with {state.watchdog_ms} ms" if device else "no watchdog is configured any more"
        state.journal.clear(state.ctx, Kind.WATCHDOG_RESTORED, state.me, text, reason=Reason.WATCHDOG)
