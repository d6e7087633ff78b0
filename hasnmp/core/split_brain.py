"""Two owners of one group that hear each other: detected, told, and ended.

No lease rule allows it. It can come of what an administrator accepted: the arbiter `none` takes a silent node's group, a
`fence confirm` of a node that was not off, a fence that cut the network only. When the two hear each other again the lower
token stops (of equal ones, the later in `nodes`), in order as long as its lease lasts, and is then recovering: what it
wrote meanwhile somebody must look at.
"""

from __future__ import annotations

from hasnmp.core import moving
from hasnmp.core.board import RECOVERING
from hasnmp.core.running import Stage
from hasnmp.core.state import Move, State
from hasnmp.model import Kind, Reason
from hasnmp.settings import Group
from hasnmp.wire import GroupFlag


def rivals(state: State, group: Group) -> dict[str, int]:
    """The nodes that say just now that they have the group which this node has, with their tokens."""
    if not state.leases[group.name].alive(state.ctx):
        return {}
    return {
        p.name: p.groups[group.name].token for p in state.peers.values() if p.flag(group.name, GroupFlag.OWNER)
    }  # fmt: skip


def yields(group: Group, me: str, token: int, node: str, its: int) -> bool:
    """Of two owners, is it this node that stops?"""
    return (its, -group.asked().index(node)) > (token, -group.asked().index(me))


def look(state: State, group: Group) -> None:
    name, lease, running = group.name, state.leases[group.name], state.running[group.name]
    found = {n: t for n, t in rivals(state, group).items() if n in group.asked()}
    if not found:
        if not any(state.peers[n].flag(name, GroupFlag.OWNER) for n in lease.others) or not state.owns(name):
            state.journal.clear(
                state.ctx, Kind.SPLIT_BRAIN_CLEARED, name, f"group {name} has one owner again", group=name,
                reason=Reason.SPLIT_BRAIN,
            )  # fmt: skip
        return
    better = [n for n, t in found.items() if yields(group, state.me, lease.token, n, t)]
    both = " and ".join([f"{state.me} (token {lease.token})", *(f"{n} (token {t})" for n, t in found.items())])
    stops = state.me if better else next(iter(found))
    text = (
        f"group {name} is run by {both} at once; {stops}, with the lower token, stops it; compare what each has written"
    )
    state.journal.happened(
        state.ctx,
        Kind.SPLIT_BRAIN_DETECTED,
        text,
        of=name,
        group=name,
        peer=next(iter(found)),
        reason=Reason.SPLIT_BRAIN,
    )
    if not better or running.blocked or name in state.moves or running.stage is Stage.STOPPING:
        return
    why = f"{better[0]} has it too, with a higher token"
    if not state.config.recovery_automatic:
        state.set_register(RECOVERING, state.me, f"it ran group {name} at the same time as {better[0]}")
    moving.begin_move(state, group, Move("", Reason.SPLIT_BRAIN, why))
