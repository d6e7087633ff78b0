"""The picture that this node shows: every row of model.py, made from what the engine knows. It changes nothing.

Of a group that nobody is heard to own, and of a peer that is silent, the last good value is not repeated: it is `unknown`,
with the moment of the last word beside it.
"""

from __future__ import annotations

from hasnmp.core.board import EXCLUDED, FREEZE, INHIBIT, LOCKED, RECOVERING, STANDBY
from hasnmp.core.context import MS
from hasnmp.core.fencing import Device
from hasnmp.core.state import State
from hasnmp.model import (
    AdminState,
    ArbiterRow,
    Condition,
    ConfigRow,
    FenceRow,
    GroupRow,
    GroupState,
    Kind,
    LinkRow,
    LinkState,
    NodeRow,
    NodeState,
    PartState,
    Proof,
    Role,
    ServiceRow,
    ServiceState,
    Severity,
    SystemRow,
    View,
)
from hasnmp.settings import FenceLevel
from hasnmp.wire import NodeFlag

GOOD = (GroupState.RUNNING, GroupState.DEGRADED)


def make(state: State, wall_ms: int) -> View:
    """The whole picture, true at the context's now."""
    view = View(state.ctx.now, wall_ms)
    tables = view.tables
    for group in state.config.groups:
        tables["groups"][group.name] = _group(state, group.name)
        for service in group.services:
            tables["services"][service.name] = _service(state, service.name)
    groups = [row for row in tables["groups"].values() if isinstance(row, GroupRow)]
    for node in state.config.nodes:
        tables["nodes"][node.name] = _node(state, node.name, groups)
    for peer in state.peers.values():
        for link in peer.links.values():
            tables["links"][f"{peer.name}/{link.name}"] = LinkRow(
                peer.name, link.name, link.address, link.state, link.sent, link.received, link.lost, link.round_trip_us,
                link.heard_ns, link.changed_ns, link.transitions,
            )  # fmt: skip
    tables["arbiters"][state.config.arbiter.type] = _arbiter(state)
    for node in state.config.nodes:
        for index, level in enumerate(node.fence):
            tables["fences"][f"{node.name}/{index + 1}"] = _fence(state, node.name, index, level)
    tables["config"][""] = _config(state)
    tables["statistics"][""] = state.journal.totals()
    tables["events"] = {str(e.id): e for e in state.journal.events.values()}
    tables["alarms"] = dict(state.journal.alarms)
    tables["commands"] = {str(c.id): c for c in state.journal.commands.values()}
    tables["system"][""] = _system(state, groups)
    return view


def _group(state: State, name: str) -> GroupRow:
    settings, facts, lease = state.config.group(name), state.board.groups[name], state.leases[name]
    registers, owner, now = state.board.registers, state.owner(name), state.ctx.now
    mine = owner == state.me
    token = lease.token if mine else max(facts.token, lease.token_seen)
    current = facts.owner == owner
    status = state.group_state(name)
    condition = Condition.OK if status is GroupState.RUNNING else Condition.FAILED
    if status in (GroupState.DEGRADED, GroupState.ACQUIRING, GroupState.STARTING, GroupState.STOPPING):
        condition = Condition.DEGRADED
    elif status is GroupState.UNKNOWN:
        condition = Condition.UNKNOWN
    since = state.unserved_since(name)
    if since and now - since >= state.unserved_limit():
        condition = Condition.FAILED
    return GroupRow(
        name, status, condition, owner, token,
        lease.acked if mine else _promised(state, name, owner) if owner and current else 0,
        lease.proof(now) if mine else facts.proof if owner and current else Proof.NONE,
        settings.nodes[0], settings.nodes, settings.failback,
        bool(registers.get(INHIBIT, name) or registers.get(INHIBIT)), bool(registers.get(FREEZE, name)),
        facts.changed_ns, facts.transitions, facts.failovers, len(state.ctx.lately(facts.moves, settings.failover_within_s)),
        settings.failover_limit, tuple(n for n in settings.nodes if registers.get(EXCLUDED, f"{name}/{n}")),
        facts.reason, facts.reason_text, facts.duration_ms, now if mine else facts.data_ns,
    )  # fmt: skip


def _promised(state: State, name: str, owner: str) -> int:
    """Until when another node's lease lasts, as far as this one knows: by the owner's last word, or our own promise."""
    lease, told = state.leases[name], state.board.groups[name].lease_until_ns
    return max(told, lease.promised_until) if lease.promised_node == owner else told


def _service(state: State, name: str) -> ServiceRow:
    settings = state.services[name]
    facts, owner = state.board.services[name], state.owner(settings.group)
    status = facts.state
    if not owner:
        unheard = state.group_state(settings.group) is GroupState.UNKNOWN
        status = ServiceState.UNKNOWN if unheard else ServiceState.STOPPED
    elif owner != state.me and facts.node != owner:
        status = ServiceState.UNKNOWN  # its new owner has not told yet
    rule = settings.on_failure
    return ServiceRow(
        name, settings.group, facts.node, settings.agent, status,
        AdminState.LOCKED if state.board.registers.get(LOCKED, name) else AdminState.UNLOCKED, settings.critical,
        facts.checks, facts.failures, len(state.ctx.lately(facts.restarts, rule.within_s)), rule.restart, facts.last_check_ns,
        facts.changed_ns, facts.transitions, facts.check_us, facts.pid if status is ServiceState.RUNNING else 0,
        facts.message, state.ctx.now if owner == state.me else facts.data_ns,
    )  # fmt: skip


def _node(state: State, name: str, groups: list[GroupRow]) -> NodeRow:
    registers = state.board.registers
    standby, recovering = bool(registers.get(STANDBY, name)), bool(registers.get(RECOVERING, name))
    if name == state.me:
        up = NodeState.STARTING if state.starting else NodeState.UP
        return NodeRow(
            name, True, up, state.role, _node_condition(state, name, up, groups), f"{state.incarnation:016x}", state.holder,
            standby, recovering, state.ctx.now, state.role_changed_ns, state.role_changes,
            state.journal.totals().heartbeats_received, state.journal.totals().heartbeats_late, state.config.digest,
            state.version,
        )  # fmt: skip
    peer = state.peers[name]
    have = [g for g in groups if g.owner == name]
    can = [g for g in groups if name in g.nodes]
    if peer.state in (NodeState.LOST, NodeState.UNKNOWN):
        role = Role.UNKNOWN
    elif peer.state is NodeState.LEFT or peer.flags & NodeFlag.STARTING:
        role = Role.OFFLINE
    elif recovering:
        role = Role.RECOVERING
    else:
        role = Role.PRIMARY if have and len(have) == len(can) else Role.SHARED if have else Role.STANDBY
    return NodeRow(
        name, False, peer.state, role, _node_condition(state, name, peer.state, groups),
        f"{peer.incarnation:016x}" if peer.incarnation else "", peer.holder, standby, recovering, peer.heard_ns,
        peer.changed_ns, peer.transitions, peer.received, peer.late_count, peer.digest,
        str(state.peer_docs.get(name, {}).get("version", "")),
    )  # fmt: skip


def _node_condition(state: State, name: str, status: NodeState, groups: list[GroupRow]) -> Condition:
    if status is NodeState.UNKNOWN:
        return Condition.UNKNOWN
    if status in (NodeState.LOST, NodeState.LEFT):
        return Condition.FAILED
    own = [g for g in groups if g.owner == name]
    bad = any(g.state not in GOOD for g in own) or state.board.registers.get(RECOVERING, name)
    links = state.peers[name].links.values() if name in state.peers else ()
    soft = any(g.state is GroupState.DEGRADED for g in own) or any(x.state is LinkState.DOWN for x in links)
    return Condition.DEGRADED if bad or soft or status is NodeState.STARTING else Condition.OK


def _system(state: State, groups: list[GroupRow]) -> SystemRow:
    worst = min((int(a.severity) for a in state.journal.alarms.values()), default=int(Severity.INFO))
    own = Condition.OK
    if worst <= Severity.CRITICAL:
        own = Condition.FAILED
    elif worst <= Severity.WARNING or state.starting:
        own = Condition.DEGRADED
    conditions = [g.condition for g in groups]
    cluster = own
    if any(c in (Condition.FAILED, Condition.UNKNOWN) for c in conditions):
        cluster = Condition.FAILED
    elif any(c is not Condition.OK for c in conditions) or any(not p.heard() for p in state.peers.values()):
        cluster = Condition.DEGRADED if cluster is Condition.OK else cluster
    return SystemRow(
        state.config.cluster, state.me, state.version, state.role, own, cluster, state.role_changed_ns, state.role_changes,
        PartState.STARTING if state.starting else PartState.UP, PartState.UP, _watchdog(state), state.started_ns,
        bool(state.board.registers.get(INHIBIT)),
    )  # fmt: skip


def _arbiter(state: State) -> ArbiterRow:
    settings, health = state.config.arbiter, state.arbiter
    return ArbiterRow(
        settings.type, health.state, settings.device, health.uuid, health.last_ok_ns, health.latency_us, health.changed_ns,
        health.transitions, health.error if health.failing else "; ".join(health.mismatch.values()),
    )  # fmt: skip


def _watchdog(state: State) -> PartState:
    if not state.config.watchdog.device:
        return PartState.ABSENT
    return PartState.UP if state.watchdog_ms else PartState.DOWN


def _fence(state: State, node: str, index: int, level: FenceLevel) -> FenceRow:
    """A node's own devices are tested and used by the others: here nothing is known of them."""
    device = state.fencing.devices.get((node, index)) or Device()
    at = [(ms - state.ctx.wall_offset_ms) * MS if ms else 0 for ms in (device.used_ms, device.good_ms)]
    return FenceRow(node, index + 1, level.agent, level.cuts, device.result, *at)


def _config(state: State) -> ConfigRow:
    config, hb = state.config, state.config.heartbeat
    refused = state.journal.alarms.get(f"{Kind.CONFIG_REFUSED.value}/{state.me}")
    return ConfigRow(
        config.digest, config.source, state.started_ns, refused.message if refused else "", hb.interval_ms, hb.late_after_ms, hb.dead_after_ms,
        hb.startup_wait_ms, hb.kill_ms, config.arbiter.lease_ms, config.arbiter.io_timeout_ms, config.recovery_automatic,
    )  # fmt: skip
